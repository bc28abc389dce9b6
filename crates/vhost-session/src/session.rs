//! The thread of one connection: sleeps until a whole message is there, handles it, ends when the connection does.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost::vhost_user::BackendReqHandler;
use vhost::vhost_user::message::FrontendReq;

use crate::backend::Backend;
use crate::control::{Control, FrontendHandle};
use crate::lines::Lines;
use crate::metrics::SessionMetrics;
use crate::state::{Refusal, State};
use crate::wire::{Header, Inbox, WireError, payload};

/// How a session ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    /// The frontend closed the connection between two messages.
    #[error("the frontend disconnected")]
    Disconnected,
    /// [`Control::close`] was called.
    #[error("{0}")]
    Closed(String),
    #[error("{name}: {refusal}")]
    Refused { name: String, refusal: Refusal },
    /// The `vhost` crate did not accept the message.
    #[error("{name}: {error}")]
    Malformed { name: String, error: vhost::vhost_user::Error },
    #[error("{0}")]
    Wire(#[from] WireError),
}

impl End {
    fn is_hang_up(&self) -> bool {
        let error = match self {
            End::Malformed { error: vhost::vhost_user::Error::SocketBroken(error), .. } => error,
            End::Wire(WireError::Socket(error)) => error,
            _ => return false,
        };
        matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        End::Wire(error.into())
    }
}

/// One connection with its backend.
pub(crate) struct Session<B: Backend> {
    name: String,
    control: Arc<Control>,
    metrics: SessionMetrics,
    lines: Arc<Lines>,
    state: Arc<Mutex<State<B>>>,
    handler: BackendReqHandler<Mutex<State<B>>>,
    inbox: Inbox,
    refused: u64,
}

impl<B: Backend> Session<B> {
    pub(crate) fn new(
        name: String,
        socket: UnixStream,
        backend: B,
        control: Arc<Control>,
        metrics: SessionMetrics,
        lines: Arc<Lines>,
    ) -> io::Result<Self> {
        let inbox = Inbox::new(socket.try_clone()?)?;
        let state = Arc::new(Mutex::new(State::new(backend, Arc::clone(&control), metrics.clone())));
        let handler = BackendReqHandler::from_stream(socket, Arc::clone(&state));
        Ok(Self { name, control, metrics, lines, state, handler, inbox, refused: 0 })
    }

    /// Serves the frontend until the connection ends, for whatever reason; then everything is stopped and given back.
    pub(crate) fn run(mut self) -> End {
        let handle = FrontendHandle::new(Arc::clone(&self.control));
        self.state().backend().connected(handle);
        let end = loop {
            if let Err(end) = self.message() {
                break end;
            }
        };
        self.state().disconnect();
        // A close asked for by ourselves looks like a dead socket to the reader, and so does a frontend that did not
        // wait for its answer.
        match self.control.close_reason() {
            Some(reason) => End::Closed(reason),
            None if end.is_hang_up() => End::Disconnected,
            None => end,
        }
    }

    fn state(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn message(&mut self) -> Result<(), End> {
        let Some(header) = self.inbox.next()? else { return Err(End::Disconnected) };
        self.metrics.message();
        let refusal = match header.code() {
            Some(code) if handled_here(code) && header.is_plain_request() => {
                self.handle_here(header, code)?
            }
            _ => self.handle_by_crate(header)?,
        };
        self.state().publish(refusal.is_some());
        match refusal {
            None => Ok(()),
            // The frontend knows, and the connection is in order: it may go on.
            Some(refusal) if self.acknowledged(header) => {
                self.note_refusal(header, &refusal);
                Ok(())
            }
            Some(refusal) => Err(End::Refused { name: header.name(), refusal }),
        }
    }

    /// Did the frontend get a negative acknowledgement for a message refused?
    fn acknowledged(&self, header: Header) -> bool {
        let can_not_go_on = matches!(
            header.code(),
            Some(
                FrontendReq::GET_VRING_BASE
                    | FrontendReq::GET_INFLIGHT_FD
                    | FrontendReq::SET_LOG_BASE
                    | FrontendReq::GET_STATUS
                    // After these the crate and we may disagree about what was agreed on.
                    | FrontendReq::SET_FEATURES
                    | FrontendReq::SET_PROTOCOL_FEATURES
            )
        );
        header.needs_reply() && !can_not_go_on && self.state().replies_enabled()
    }

    /// One line per session: a frontend may ask for nonsense as often as it likes.
    fn note_refusal(&mut self, header: Header, refusal: &Refusal) {
        self.metrics.refusal();
        self.refused += 1;
        let (endpoint, request) = (&self.name, header.name());
        if self.refused == 1 {
            self.lines.warn(format_args!(
                "{endpoint}: refused {request}: {refusal} (further refusals of this session only at debug level)"
            ));
        } else {
            tracing::debug!("{endpoint}: refused {request}: {refusal}");
        }
    }

    fn handle_by_crate(&mut self, header: Header) -> Result<Option<Refusal>, End> {
        let result = self.handler.handle_request();
        let refusal = self.state().refusal.take();
        match (result, refusal) {
            (Ok(()), refusal) => {
                debug_assert!(refusal.is_none(), "a refusal is an error for the crate, too");
                Ok(None)
            }
            (Err(_), Some(refusal)) => Ok(Some(refusal)),
            (Err(error), None) => Err(End::Malformed { name: header.name(), error }),
        }
    }

    fn handle_here(&mut self, header: Header, code: FrontendReq) -> Result<Option<Refusal>, End> {
        let (bytes, files) = self.inbox.take(header)?;
        let number = || payload::<8>(header, &bytes).map(u64::from_ne_bytes);
        let mut state = self.state();
        let result = match code {
            FrontendReq::SET_VRING_ENABLE => {
                let value = number()?;
                let [index, enable] = [0, 4].map(|at| {
                    let word = &value.to_ne_bytes()[at..at + 4];
                    u32::from_ne_bytes([word[0], word[1], word[2], word[3]])
                });
                state.set_vring_enable(index, enable)
            }
            FrontendReq::SEND_RARP => state.send_rarp(payload::<8>(header, &bytes)?),
            FrontendReq::NET_SET_MTU => state.set_mtu(number()?),
            FrontendReq::SET_BACKEND_REQ_FD => state.set_request_channel(files),
            FrontendReq::SET_STATUS => state.set_status(number()?),
            FrontendReq::GET_STATUS => {
                payload::<0>(header, &bytes)?;
                match state.status() {
                    Ok(status) => {
                        drop(state);
                        self.inbox.reply_u64(header, status.into())?;
                        return Ok(None);
                    }
                    Err(refusal) => Err(refusal),
                }
            }
            // The eventfd that tells the frontend of new dirty pages: frontends look at the log by themselves.
            _ => Ok(()),
        };
        let acknowledge = header.needs_reply() && code != FrontendReq::GET_STATUS && state.replies_enabled();
        drop(state);
        if acknowledge {
            self.inbox.reply_u64(header, result.is_err().into())?;
        }
        Ok(result.err())
    }
}

/// Messages that the `vhost` crate does not dispatch (STATUS, MTU, RARP, SET_LOG_FD), refuses too early (ENABLE before
/// features, which QEMU sends for network devices), or takes the channel out of our hands (BACKEND_REQ, on which the
/// crate can't send a configuration change).
fn handled_here(code: FrontendReq) -> bool {
    matches!(
        code,
        FrontendReq::SET_VRING_ENABLE
            | FrontendReq::SEND_RARP
            | FrontendReq::NET_SET_MTU
            | FrontendReq::SET_BACKEND_REQ_FD
            | FrontendReq::SET_STATUS
            | FrontendReq::GET_STATUS
            | FrontendReq::SET_LOG_FD
    )
}
