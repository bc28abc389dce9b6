//! One socket of a device: listens or dials, and runs one thread per connection.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::net::SocketAddrUnix;

use crate::backend::{Backend, Refused};
use crate::control::{Control, SessionInfo};
use crate::lines::Lines;
use crate::metrics::SessionMetrics;
use crate::session::{End, Session};
use crate::socket::{self, EndpointError, SocketFile};

/// Frontends that one endpoint serves at a time. One more takes the place of the oldest that has told us nothing of
/// worth, or is turned away.
pub const SESSIONS_MAX: usize = 16;

/// First pause after a failed accept (out of descriptors, say); doubled up to [`ACCEPT_PAUSE_MAX`].
const ACCEPT_PAUSE_MIN: Duration = Duration::from_millis(10);
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Which side of the socket we are.
#[derive(Debug, Clone)]
pub enum SocketRole {
    /// We listen, frontends connect.
    Server {
        /// Where the socket file is made. A stale one of a dead process is replaced.
        path: PathBuf,
        /// User id that shall own the file.
        owner: Option<u32>,
        /// Group id that shall own the file.
        group: Option<u32>,
        /// Permission bits of the file: who may write to it may connect.
        mode: u32,
    },
    /// A frontend listens, we connect, and connect again whenever the connection is lost.
    Client {
        /// Where the frontend listens.
        path: PathBuf,
        /// First pause after a failed attempt; doubled with every further one. The first attempt is made at once.
        retry_min: Duration,
        /// Longest pause.
        retry_max: Duration,
    },
}

/// A socket that is served. Dropping or closing it ends the listener and all sessions and removes the socket file.
#[derive(Debug)]
pub struct Endpoint {
    shared: Arc<Shared>,
    main: Option<JoinHandle<()>>,
    _file: Option<SocketFile>,
}

/// What the endpoint and its threads have in common.
#[derive(Debug)]
struct Shared {
    name: String,
    metrics: SessionMetrics,
    stopping: AtomicBool,
    /// Readable once the endpoint is closing.
    stop: OwnedFd,
    next_id: AtomicU64,
    lines: Arc<Lines>,
    sessions: Mutex<BTreeMap<u64, Running>>,
}

#[derive(Debug)]
struct Running {
    control: Arc<Control>,
    /// `None` for the session of a client endpoint, which runs on the main thread, and while a thread is being made.
    thread: Option<JoinHandle<()>>,
}

/// Serves frontends on a socket, each with a backend of its own from `factory`, until the [`Endpoint`] is dropped.
///
/// `name` is used in the log and for thread names.
///
/// # Errors
/// The path is too long, its directory is missing, something else is there or another process serves it, or the
/// operating system refuses. Nothing is left behind. A client endpoint starts in any case where the path is usable.
pub fn serve<B: Backend>(
    name: String,
    role: SocketRole,
    mut factory: impl FnMut() -> Result<B, Refused> + Send + 'static,
    metrics: SessionMetrics,
) -> Result<Endpoint, EndpointError> {
    let path = match &role {
        SocketRole::Server { path, .. } | SocketRole::Client { path, .. } => path.clone(),
    };
    let system = |action| {
        let path = path.clone();
        move |source: io::Error| EndpointError::System { action, path, source }
    };
    let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|errno| system("watch")(errno.into()))?;
    let shared = Arc::new(Shared {
        name,
        metrics,
        stopping: AtomicBool::new(false),
        stop,
        next_id: AtomicU64::new(1),
        lines: Arc::new(Lines::new()),
        sessions: Mutex::default(),
    });
    let for_thread = Arc::clone(&shared);
    let builder = thread(&shared.name);
    let (main, file) = match role {
        SocketRole::Server { path: at, owner, group, mode } => {
            let (listener, file) = socket::listen(&at, owner, group, mode)?;
            (builder.spawn(move || for_thread.listen(&listener, &mut factory)), Some(file))
        }
        SocketRole::Client { path: at, retry_min, retry_max } => {
            let address = socket::address(&at)?;
            let pauses = Pauses::new(retry_min, retry_max);
            (builder.spawn(move || for_thread.dial(&address, pauses, &mut factory)), None)
        }
    };
    let main = main.map_err(system("start a thread for"))?;
    Ok(Endpoint { shared, main: Some(main), _file: file })
}

/// Thread names have 15 bytes.
fn thread(name: &str) -> Builder {
    let short: String = format!("vu-{name}").chars().filter(|&letter| letter != '\0').take(15).collect();
    Builder::new().name(short)
}

impl Endpoint {
    /// Tells all frontends that the configuration space has changed; returns how many could be told.
    pub fn config_changed(&self) -> usize {
        self.shared.sessions().values().filter(|session| session.control.config_changed()).count()
    }

    /// The connections of this moment, oldest first.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.shared.sessions().values().map(|session| session.control.info()).collect()
    }

    /// Ends the listener and all sessions and waits for their threads; then the socket file is gone. Takes as long as
    /// the backends' workers need to drain, whatever the frontends do.
    ///
    /// Must not be called by a [`Backend`]: it would wait for itself.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.shared.stop();
        // After the main thread no session is added.
        if let Some(main) = self.main.take() {
            let _ = main.join();
        }
        let threads: Vec<_> =
            self.shared.sessions().values_mut().filter_map(|session| session.thread.take()).collect();
        for thread in threads {
            // A session that panicked has said so, and is over as well.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn sessions(&self) -> MutexGuard<'_, BTreeMap<u64, Running>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Can't fail: the counter is far from its maximum.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        for session in self.sessions().values() {
            session.control.close(CLOSING);
        }
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Sleeps until the endpoint is closed (true) or `pause` is over.
    fn stopped_within(&self, pause: Duration) -> bool {
        let deadline = Instant::now() + pause;
        while !self.stopping() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.poll(None, Some(left));
        }
        true
    }

    fn poll(&self, listener: Option<&UnixListener>, pause: Option<Duration>) {
        let mut fds = vec![PollFd::new(&self.stop, PollFlags::IN)];
        fds.extend(listener.map(|listener| PollFd::new(listener, PollFlags::IN)));
        let timeout = pause.and_then(|pause| Timespec::try_from(pause).ok());
        // EINTR is as good as an event: callers look again.
        let _ = rustix::event::poll(&mut fds, timeout.as_ref());
    }

    // ---- server ----

    fn listen<B: Backend>(
        self: &Arc<Self>,
        listener: &UnixListener,
        factory: &mut impl FnMut() -> Result<B, Refused>,
    ) {
        let mut pauses = Pauses::new(ACCEPT_PAUSE_MIN, ACCEPT_PAUSE_MAX);
        while !self.stopping() {
            match listener.accept() {
                Ok((socket, _)) => {
                    pauses.reset();
                    self.accepted(socket, factory);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => self.poll(Some(listener), None),
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => {
                        if pauses.is_fresh() {
                            tracing::error!("{}: can't accept a frontend, trying again: {error}", self.name);
                        }
                        self.stopped_within(pauses.next());
                    }
                },
            }
        }
    }

    fn accepted<B: Backend>(
        self: &Arc<Self>,
        socket: UnixStream,
        factory: &mut impl FnMut() -> Result<B, Refused>,
    ) {
        let name = &self.name;
        let turned_away = |reason: String| {
            self.lines.warn(format_args!("{name}: turned a frontend away: {reason}"));
        };
        if !self.make_room() {
            return turned_away(format!("{SESSIONS_MAX} are connected already"));
        }
        let session = match self.open(socket, factory) {
            Ok(session) => session,
            Err(reason) => return turned_away(reason),
        };
        let (id, shared) = (session.id, Arc::clone(self));
        // The thread must find its entry when it ends, so it is there before.
        let mut sessions = self.sessions();
        sessions.insert(id, Running { control: Arc::clone(&session.control), thread: None });
        match thread(name).spawn(move || shared.run(session)) {
            Ok(thread) => {
                if let Some(running) = sessions.get_mut(&id) {
                    running.thread = Some(thread);
                }
            }
            Err(error) => {
                sessions.remove(&id);
                turned_away(format!("can't start a thread: {error}"));
            }
        }
    }

    /// Whether one more frontend may come. The place of one that has neither agreed on features nor shared memory is
    /// given away: connections that say nothing must not keep the guest's own out.
    fn make_room(&self) -> bool {
        let sessions = self.sessions();
        let staying: Vec<_> = sessions
            .values()
            .map(|session| &session.control)
            .filter(|control| !control.is_closing())
            .collect();
        if staying.len() < SESSIONS_MAX {
            // Those that are closing are on their way out; their threads count nevertheless.
            return sessions.len() < 2 * SESSIONS_MAX;
        }
        let idle = staying.iter().find(|control| control.has_said_nothing());
        if let Some(control) = idle {
            control.close(GIVEN_AWAY);
        }
        idle.is_some() && sessions.len() < 2 * SESSIONS_MAX
    }

    // ---- client ----

    fn dial<B: Backend>(
        self: &Arc<Self>,
        address: &SocketAddrUnix,
        mut pauses: Pauses,
        factory: &mut impl FnMut() -> Result<B, Refused>,
    ) {
        let name = &self.name;
        while !self.stopping() {
            let connected = Instant::now();
            match socket::connect(address)
                .map_err(|error| error.to_string())
                .and_then(|socket| self.open(socket, factory))
            {
                Ok(session) => {
                    let running = Running { control: Arc::clone(&session.control), thread: None };
                    self.sessions().insert(session.id, running);
                    if self.stopping() {
                        session.control.close(CLOSING);
                    }
                    self.run(session);
                    // A connection that held is no reason to wait; one that broke at once is a failed attempt.
                    if connected.elapsed() >= pauses.max {
                        pauses.reset();
                        continue;
                    }
                }
                Err(reason) => {
                    if pauses.is_fresh() {
                        self.lines.info(format_args!(
                            "{name}: the frontend can't be reached yet, trying again: {reason}"
                        ));
                    }
                }
            }
            if self.stopped_within(pauses.next()) {
                break;
            }
        }
    }

    // ---- both ----

    fn open<B: Backend>(
        &self,
        socket: UnixStream,
        factory: &mut impl FnMut() -> Result<B, Refused>,
    ) -> Result<Opened<B>, String> {
        let backend = factory().map_err(|refused| refused.to_string())?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let control = Control::new(id, socket.try_clone().map_err(|error| error.to_string())?);
        let name = format!("{} (frontend {id})", self.name);
        let (for_session, metrics, lines) =
            (Arc::clone(&control), self.metrics.clone(), Arc::clone(&self.lines));
        let session = Session::new(name, socket, backend, for_session, metrics, lines)
            .map_err(|error| error.to_string())?;
        Ok(Opened { id, control, session })
    }

    fn run<B: Backend>(&self, opened: Opened<B>) {
        let Opened { id, control, session } = opened;
        self.metrics.session_started();
        let name = format!("{} (frontend {id})", self.name);
        self.lines.info(format_args!("{name}: connected"));
        let end = session.run();
        let messages = control.info().messages;
        let failed = match end {
            // Somebody only looked whether the socket is served.
            End::Disconnected if messages == 0 => false,
            End::Disconnected => {
                self.lines.info(format_args!("{name}: disconnected"));
                false
            }
            End::Closed(reason) if reason == CLOSING => false,
            end => {
                self.lines.warn(format_args!("{name}: session closed: {end}"));
                true
            }
        };
        self.metrics.session_ended(failed);
        self.sessions().remove(&id);
        // Last: a frontend that sees the end finds everything said and its place free.
        control.ended();
    }
}

/// Reason of a session that gave way to another one.
const GIVEN_AWAY: &str = "too many frontends are connected, and this one has not begun to use the device";

/// Reason of a session that ends with its endpoint.
const CLOSING: &str = "the socket is being closed";

struct Opened<B: Backend> {
    id: u64,
    control: Arc<Control>,
    session: Session<B>,
}

/// Pauses that double.
#[derive(Debug)]
struct Pauses {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Pauses {
    fn new(min: Duration, max: Duration) -> Self {
        let min = min.max(Duration::from_millis(1));
        Self { min, max: max.max(min), next: min }
    }

    fn is_fresh(&self) -> bool {
        self.next == self.min
    }

    fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        pause
    }

    fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_limit_and_start_anew() {
        let ms = Duration::from_millis;
        let mut pauses = Pauses::new(ms(10), ms(35));
        assert!(pauses.is_fresh());
        let seen: Vec<_> = (0..4).map(|_| pauses.next()).collect();
        assert_eq!(seen, [ms(10), ms(20), ms(35), ms(35)]);
        assert!(!pauses.is_fresh());
        pauses.reset();
        assert_eq!(pauses.next(), ms(10));
        // Limits that make no sense still make pauses.
        let mut odd = Pauses::new(Duration::ZERO, Duration::ZERO);
        assert_eq!((odd.next(), odd.next()), (ms(1), ms(1)));
    }

    #[test]
    fn thread_names_fit() {
        let name = "a-volume-with-a-name-of-many-letters\0";
        thread(name)
            .spawn(|| assert_eq!(std::thread::current().name().map(str::len), Some(15)))
            .unwrap()
            .join()
            .unwrap();
    }
}
