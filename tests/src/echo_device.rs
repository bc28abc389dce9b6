//! A device that answers: what a chain has to read is written, byte by byte inverted, into what it has to write. It
//! remembers every call a session makes.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vhost_session::{
    Backend, BackendError, Endpoint, EndpointError, FrontendHandle, QueueStart, Refused, SessionMetrics,
    SocketRole, serve,
};
use virtq::{Chain, Queue};

use crate::frontend::{F_EVENT_IDX, F_INDIRECT, F_VERSION_1, Protocol};

/// Rings of the device.
pub const QUEUES: u16 = 4;
/// Largest ring.
pub const QUEUE_SIZE_MAX: u16 = 1024;
/// A feature bit that the device refuses together with [`F_ODD_B`].
pub const F_ODD_A: u64 = 1;
/// See [`F_ODD_A`].
pub const F_ODD_B: u64 = 2;
/// The configuration space: bytes 0, 1, 2, ...
pub const CONFIG_BYTES: usize = 40;

/// One call of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Call {
    Connected,
    Negotiated(u64),
    Started { index: u16, next_avail: u16, features: u64 },
    Stopped { index: u16, next_avail: u16 },
    SetCall(u16),
    Reset,
    Mtu(u16),
    Rarp([u8; 6]),
    Config(u32, Vec<u8>),
    Disconnected,
}

/// Calls of all sessions of an endpoint, in order.
pub type Calls = Arc<Mutex<Vec<Call>>>;

/// One connection's device.
pub struct EchoDevice {
    calls: Calls,
    config: [u8; CONFIG_BYTES],
    running: Vec<Option<Running>>,
    frontend: Option<FrontendHandle>,
}

struct Running {
    stop: Arc<EventFd>,
    call: Arc<Mutex<Option<OwnedFd>>>,
    thread: JoinHandle<Queue>,
}

impl EchoDevice {
    /// A device that notes its calls in `calls`.
    pub fn new(calls: Calls) -> Self {
        let config = std::array::from_fn(|index| index as u8);
        Self { calls, config, running: (0..QUEUES).map(|_| None).collect(), frontend: None }
    }

    fn note(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }
}

/// Serves echo devices at `path`.
///
/// # Errors
/// Those of [`serve`].
pub fn serve_echo(name: &str, path: &Path) -> Result<(Endpoint, Calls), EndpointError> {
    let role = SocketRole::Server { path: path.to_owned(), owner: None, group: None, mode: 0o600 };
    serve_echo_as(name, role)
}

/// Serves echo devices in either role.
///
/// # Errors
/// Those of [`serve`].
pub fn serve_echo_as(name: &str, role: SocketRole) -> Result<(Endpoint, Calls), EndpointError> {
    let calls = Calls::default();
    let for_factory = Arc::clone(&calls);
    let factory = move || Ok::<_, Refused>(EchoDevice::new(Arc::clone(&for_factory)));
    Ok((serve(name.to_owned(), role, factory, SessionMetrics::detached())?, calls))
}

impl Backend for EchoDevice {
    fn features(&self) -> u64 {
        F_INDIRECT | F_EVENT_IDX | F_VERSION_1 | F_ODD_A | F_ODD_B
    }

    fn extra_protocol_features(&self) -> u64 {
        (Protocol::MTU | Protocol::RARP).bits()
    }

    fn queue_count(&self) -> u16 {
        QUEUES
    }

    fn queue_size_max(&self) -> u16 {
        QUEUE_SIZE_MAX
    }

    fn read_config(&self, offset: u32, into: &mut [u8]) {
        let rest = self.config.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(into.len());
        into[..len].copy_from_slice(&rest[..len]);
    }

    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), BackendError> {
        let end = offset as usize + bytes.len();
        let space = self.config.get_mut(offset as usize..end);
        space
            .ok_or_else(|| BackendError::new(format!("config bytes {offset}..{end}")))?
            .copy_from_slice(bytes);
        self.note(Call::Config(offset, bytes.to_vec()));
        Ok(())
    }

    fn negotiated(&mut self, features: u64) -> Result<(), BackendError> {
        if features & (F_ODD_A | F_ODD_B) == F_ODD_A | F_ODD_B {
            return Err(BackendError::new("features 1 and 2 exclude each other"));
        }
        self.note(Call::Negotiated(features));
        Ok(())
    }

    fn start_queue(&mut self, start: QueueStart) -> Result<(), BackendError> {
        let QueueStart { index, queue, kick, call, features, .. } = start;
        self.note(Call::Started { index, next_avail: queue.next_avail(), features });
        let slot = &mut self.running[usize::from(index)];
        assert!(slot.is_none(), "ring {index} was started twice");
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)
            .map_err(|error| BackendError::new(error.to_string()))?;
        let (stop, call) = (Arc::new(stop), Arc::new(Mutex::new(call)));
        let frontend = self.frontend.clone().expect("connected before any ring");
        let (stop_seen, call_used) = (Arc::clone(&stop), Arc::clone(&call));
        let thread = std::thread::spawn(move || echo(queue, &kick, &call_used, &stop_seen, &frontend));
        *slot = Some(Running { stop, call, thread });
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<Queue> {
        let running = self.running[usize::from(index)].take()?;
        running.stop.write(1).expect("an eventfd far from its maximum");
        let queue = running.thread.join().expect("the echo thread does not panic");
        self.note(Call::Stopped { index, next_avail: queue.next_avail() });
        Some(queue)
    }

    fn set_call(&mut self, index: u16, call: Option<OwnedFd>) {
        self.note(Call::SetCall(index));
        let running = self.running[usize::from(index)].as_ref().expect("only running rings get a new call");
        let mut current = running.call.lock().unwrap();
        *current = call;
        if let Some(call) = current.as_ref() {
            let _ = nix::unistd::write(call, &1u64.to_ne_bytes());
        }
    }

    fn reset(&mut self) {
        assert!(self.running.iter().all(Option::is_none), "rings run at a reset");
        self.note(Call::Reset);
    }

    fn set_mtu(&mut self, mtu: u16) {
        self.note(Call::Mtu(mtu));
    }

    fn send_rarp(&mut self, mac: [u8; 6]) {
        self.note(Call::Rarp(mac));
    }

    fn connected(&mut self, frontend: FrontendHandle) {
        self.note(Call::Connected);
        self.frontend = Some(frontend);
    }

    fn disconnected(&mut self) {
        assert!(self.running.iter().all(Option::is_none), "rings run at the end");
        self.note(Call::Disconnected);
    }
}

fn echo(
    mut queue: Queue,
    kick: &OwnedFd,
    call: &Mutex<Option<OwnedFd>>,
    stop: &EventFd,
    frontend: &FrontendHandle,
) -> Queue {
    let mut chain = Chain::new(queue.size());
    let left = queue.resubmit();
    let mut result = left.iter().try_for_each(|&head| answer(&mut queue, head, &mut chain));
    loop {
        result = result.and_then(|()| serve_available(&mut queue, &mut chain));
        if queue.publish()
            && let Some(call) = call.lock().unwrap().as_ref()
        {
            let _ = nix::unistd::write(call, &1u64.to_ne_bytes());
        }
        if let Err(fault) = &result {
            frontend.close(&format!("the ring is broken: {fault}"));
        } else if queue.lost() {
            frontend.close("the frontend took its memory away");
        } else if queue.arm() {
            continue;
        }
        let mut fds =
            [PollFd::new(kick.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        // A broken ring waits for nothing but its end.
        let watched = if result.is_ok() { &mut fds[..] } else { &mut fds[1..] };
        let _ = poll(watched, PollTimeout::NONE);
        if fds[1].any() == Some(true) {
            queue.disarm();
            return queue;
        }
        let mut count = [0; 8];
        let _ = nix::unistd::read(kick, &mut count);
        queue.disarm();
    }
}

fn serve_available(queue: &mut Queue, chain: &mut Chain) -> Result<(), virtq::RingFault> {
    let mut heads = [0; 32];
    loop {
        let count = queue.pop_batch(&mut heads)?;
        if count == 0 {
            return Ok(());
        }
        for &head in &heads[..count] {
            answer(queue, head, chain)?;
        }
    }
}

fn answer(queue: &mut Queue, head: u16, chain: &mut Chain) -> Result<(), virtq::RingFault> {
    queue.walk(head, chain)?;
    let mut bytes = vec![0; chain.readable_bytes().min(chain.writable_bytes()) as usize];
    chain.read_at(queue.memory(), 0, &mut bytes);
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
    chain.write_at(queue.memory(), 0, &bytes);
    let mut left = bytes.len() as u32;
    for slice in chain.writable().to_vec() {
        let part = left.min(slice.len());
        queue.log_written(slice, 0, part);
        left -= part;
    }
    queue.push_used(head, bytes.len() as u32);
    Ok(())
}
