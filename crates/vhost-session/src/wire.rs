//! vhost-user messages on the socket: waiting for a whole one, looking at its header, and the few that are received and
//! answered here because the `vhost` crate's dispatch has no place for them.
//!
//! A message is 12 bytes of header (request, flags, payload size; native byte order) and the payload; descriptors
//! ride on its first byte. Specification: QEMU, docs/interop/vhost-user.rst, "Message Specification".

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags};
use vhost::vhost_user::message::{BackendReq, FrontendReq, MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE};

pub(crate) const HEADER_BYTES: usize = 12;
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 0x3;
const FLAG_REPLY: u32 = 0x4;
const FLAG_NEED_REPLY: u32 = 0x8;

/// How long a message may be incomplete. Frontends send each one at once; who sends half of one would otherwise hold a
/// session for ever. Between two messages a frontend may be silent for as long as it likes.
const MESSAGE_LIMIT: Duration = Duration::from_secs(10);

/// Header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) request: u32,
    pub(crate) flags: u32,
    pub(crate) size: u32,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self { request: word(0), flags: word(4), size: word(8) }
    }

    fn bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.request.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.size.to_ne_bytes());
        bytes
    }

    /// The request, if it is one that vhost-user defines.
    pub(crate) fn code(self) -> Option<FrontendReq> {
        FrontendReq::try_from(self.request).ok()
    }

    pub(crate) fn needs_reply(self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }

    /// Version 1, a request, no reserved bits.
    pub(crate) fn is_plain_request(self) -> bool {
        self.flags & !FLAG_NEED_REPLY == VERSION
    }

    /// For the log.
    pub(crate) fn name(self) -> String {
        self.code().map_or_else(|| format!("request {}", self.request), |code| format!("{code:?}"))
    }
}

/// Why a session can't read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the frontend closed the connection in the middle of a message ({got} of {expected} bytes)")]
    Truncated { got: u64, expected: u64 },
    #[error("the rest of a message did not come within {} s ({got} of {expected} bytes)", MESSAGE_LIMIT.as_secs())]
    Stalled { got: u64, expected: u64 },
    #[error("message header with version {0}, expected 1")]
    Version(u32),
    #[error("{name} announces {size} bytes of payload, at most {MAX_MSG_SIZE} are possible")]
    Oversized { name: String, size: u32 },
    #[error("{name} carries more than {MAX_ATTACHED_FD_ENTRIES} descriptors")]
    TooManyDescriptors { name: String },
    #[error("{name} has {got} bytes of payload, expected {expected}")]
    PayloadSize { name: String, got: usize, expected: usize },
    #[error("socket: {0}")]
    Socket(#[from] io::Error),
}

/// The receiving side of a connection.
pub(crate) struct Inbox {
    socket: UnixStream,
    /// Edge-triggered: wakes for every piece that arrives, so that a half message can be waited on asleep.
    epoll: OwnedFd,
    hung_up: bool,
    message_limit: Duration,
}

impl Inbox {
    pub(crate) fn new(socket: UnixStream) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let interest = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&epoll, &socket, epoll::EventData::new_u64(0), interest)?;
        Ok(Self { socket, epoll, hung_up: false, message_limit: MESSAGE_LIMIT })
    }

    /// Sleeps until a whole message is there and returns its header; the message itself stays on the socket.
    /// `None`: the connection was closed between two messages.
    pub(crate) fn next(&mut self) -> Result<Option<Header>, WireError> {
        let mut incomplete_since = None;
        loop {
            let queued = rustix::io::ioctl_fionread(&self.socket).map_err(io::Error::from)?;
            let mut expected = HEADER_BYTES as u64;
            if queued >= expected {
                let (header, has_descriptors) = self.peek()?;
                if header.size as usize > MAX_MSG_SIZE {
                    return Err(WireError::Oversized { name: header.name(), size: header.size });
                }
                if header.flags & VERSION_MASK != VERSION {
                    return Err(WireError::Version(header.flags & VERSION_MASK));
                }
                expected += u64::from(header.size);
                if queued >= expected {
                    if has_descriptors && self.too_many_descriptors()? {
                        return Err(WireError::TooManyDescriptors { name: header.name() });
                    }
                    return Ok(Some(header));
                }
            }
            if self.hung_up {
                return if queued == 0 {
                    Ok(None)
                } else {
                    Err(WireError::Truncated { got: queued, expected })
                };
            }
            let left = (queued > 0).then(|| {
                let since = *incomplete_since.get_or_insert_with(Instant::now);
                self.message_limit.saturating_sub(since.elapsed())
            });
            if left == Some(Duration::ZERO) {
                return Err(WireError::Stalled { got: queued, expected });
            }
            self.wait(left)?;
        }
    }

    /// Sleeps until something arrives, or `limit` is over.
    fn wait(&mut self, limit: Option<Duration>) -> io::Result<()> {
        let mut events = Vec::with_capacity(1);
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), limit.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let over = epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        self.hung_up |= events.iter().any(|event| { event.flags }.intersects(over));
        Ok(())
    }

    fn peek(&self) -> io::Result<(Header, bool)> {
        let mut bytes = [0; HEADER_BYTES];
        let mut no_control = RecvAncillaryBuffer::default();
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked =
            rustix::net::recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut no_control, flags)?;
        if peeked.bytes < HEADER_BYTES {
            // Only descriptors on a piece of a header cut it like that.
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "descriptors in the middle of a message header",
            ));
        }
        Ok((Header::parse(&bytes), peeked.flags.contains(ReturnFlags::CTRUNC)))
    }

    /// The `vhost` crate loses the header of a message with more descriptors than it takes, and the stream with it.
    fn too_many_descriptors(&self) -> io::Result<bool> {
        let mut control =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES + 1))];
        let mut control = RecvAncillaryBuffer::new(&mut control);
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let peeked =
            rustix::net::recvmsg(&self.socket, &mut [IoSliceMut::new(&mut [0; 1])], &mut control, flags)?;
        let count = descriptors(&mut control).len();
        Ok(count > MAX_ATTACHED_FD_ENTRIES || peeked.flags.contains(ReturnFlags::CTRUNC))
    }

    /// Receives the message that [`Inbox::next`] announced: payload and descriptors.
    pub(crate) fn take(&mut self, header: Header) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut bytes = vec![0; HEADER_BYTES + header.size as usize];
        let mut files = Vec::new();
        let mut filled = 0;
        while filled < bytes.len() {
            let mut control =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
            let mut control = RecvAncillaryBuffer::new(&mut control);
            let mut rest = [IoSliceMut::new(&mut bytes[filled..])];
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let received = rustix::net::recvmsg(&self.socket, &mut rest, &mut control, flags)?;
            files.extend(descriptors(&mut control));
            if received.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += received.bytes;
        }
        Ok((bytes.split_off(HEADER_BYTES), files))
    }

    /// Answers a message taken by [`Inbox::take`] with a number.
    pub(crate) fn reply_u64(&mut self, request: Header, value: u64) -> io::Result<()> {
        let header = Header { request: request.request, flags: VERSION | FLAG_REPLY, size: 8 };
        let mut bytes = [0; HEADER_BYTES + 8];
        bytes[..HEADER_BYTES].copy_from_slice(&header.bytes());
        bytes[HEADER_BYTES..].copy_from_slice(&value.to_ne_bytes());
        self.socket.write_all(&bytes)
    }
}

fn descriptors(control: &mut RecvAncillaryBuffer<'_>) -> Vec<OwnedFd> {
    control
        .drain()
        .filter_map(
            |message| if let RecvAncillaryMessage::ScmRights(files) = message { Some(files) } else { None },
        )
        .flatten()
        .collect()
}

/// A message of ours on the request channel: the configuration space has changed. No reply is asked for, so nobody has
/// to wait for a frontend.
pub(crate) fn config_change_message() -> [u8; HEADER_BYTES] {
    Header { request: BackendReq::CONFIG_CHANGE_MSG.into(), flags: VERSION, size: 0 }.bytes()
}

/// Payload of fixed size `N`.
pub(crate) fn payload<const N: usize>(header: Header, bytes: &[u8]) -> Result<[u8; N], WireError> {
    let size = || WireError::PayloadSize { name: header.name(), got: bytes.len(), expected: N };
    bytes.try_into().map_err(|_| size())
}

/// Is this descriptor a stream socket of the local machine, as a request channel must be?
pub(crate) fn is_unix_stream(fd: &OwnedFd) -> bool {
    use rustix::net::{AddressFamily, SocketType, sockopt};
    sockopt::socket_domain(fd.as_fd()) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(fd.as_fd()) == Ok(SocketType::STREAM)
}

/// Is this descriptor an eventfd? Anything else given as kick or call could block or wake a worker for ever.
pub(crate) fn is_eventfd(fd: &OwnedFd) -> bool {
    use std::os::fd::AsRawFd;
    // Without /proc the question can't be answered; then the frontend is believed.
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .map_or(true, |target| target.as_os_str().as_encoded_bytes().starts_with(b"anon_inode:[eventfd"))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn pair() -> (UnixStream, Inbox) {
        let (frontend, backend) = UnixStream::pair().unwrap();
        (frontend, Inbox::new(backend).unwrap())
    }

    fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
        let header = Header { request, flags, size: payload.len() as u32 };
        [&header.bytes()[..], payload].concat()
    }

    #[test]
    fn a_message_is_announced_when_all_of_it_is_there_and_stays_until_taken() {
        let (mut frontend, mut inbox) = pair();
        let bytes = message(39, VERSION | FLAG_NEED_REPLY, &7u64.to_ne_bytes());
        let writer = std::thread::spawn(move || {
            for byte in bytes {
                frontend.write_all(&[byte]).unwrap();
            }
            frontend
        });
        let header = inbox.next().unwrap().unwrap();
        assert_eq!(header, Header { request: 39, flags: VERSION | FLAG_NEED_REPLY, size: 8 });
        assert!(header.needs_reply() && header.is_plain_request());
        assert_eq!(header.name(), "SET_STATUS");
        let mut frontend = writer.join().unwrap();
        assert_eq!(inbox.next().unwrap(), Some(header), "it was only looked at");
        let (payload, files) = inbox.take(header).unwrap();
        assert_eq!((payload, files.len()), (7u64.to_ne_bytes().to_vec(), 0));
        inbox.reply_u64(header, 5).unwrap();
        let mut reply = [0; 20];
        frontend.read_exact(&mut reply).unwrap();
        assert_eq!(reply, message(39, VERSION | FLAG_REPLY, &5u64.to_ne_bytes())[..]);
        drop(frontend);
        assert_eq!(inbox.next().unwrap(), None);
    }

    #[test]
    fn what_can_be_no_message_is_an_error() {
        let next = |bytes: &[u8]| {
            let (mut frontend, mut inbox) = pair();
            frontend.write_all(bytes).unwrap();
            drop(frontend);
            inbox.next().unwrap_err()
        };
        let good = message(2, VERSION, &[0; 8]);
        assert!(matches!(next(&good[..1]), WireError::Truncated { got: 1, expected: 12 }));
        assert!(matches!(next(&good[..19]), WireError::Truncated { got: 19, expected: 20 }));
        assert!(matches!(next(&message(2, 2, &[])), WireError::Version(2)));
        let oversized = Header { request: 2, flags: VERSION, size: MAX_MSG_SIZE as u32 + 1 };
        assert!(matches!(next(&oversized.bytes()), WireError::Oversized { .. }));
        let at_limit = Header { size: MAX_MSG_SIZE as u32, ..oversized };
        assert!(matches!(next(&at_limit.bytes()), WireError::Truncated { .. }), "just waits for the rest");
    }

    #[test]
    fn half_a_message_is_not_waited_for_without_end_and_silence_is() {
        let good = message(2, VERSION, &[0; 8]);
        for cut in [1, HEADER_BYTES - 1, HEADER_BYTES, good.len() - 1] {
            let (mut frontend, mut inbox) = pair();
            inbox.message_limit = Duration::from_millis(20);
            frontend.write_all(&good[..cut]).unwrap();
            let error = inbox.next().unwrap_err();
            assert!(matches!(error, WireError::Stalled { got, .. } if got == cut as u64), "{error}");
        }
        let (frontend, mut inbox) = pair();
        inbox.message_limit = Duration::ZERO;
        let reader = std::thread::spawn(move || inbox.next());
        drop(frontend);
        assert!(
            matches!(reader.join().unwrap(), Ok(None)),
            "a silent frontend may hang up whenever it likes"
        );
    }

    #[test]
    fn kinds_of_descriptors_are_told_apart() {
        let eventfd: OwnedFd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let socket: OwnedFd = UnixStream::pair().unwrap().0.into();
        let datagram: OwnedFd = std::os::unix::net::UnixDatagram::unbound().unwrap().into();
        let [is_eventfd, is_socket] =
            [is_eventfd, is_unix_stream].map(|check| [&eventfd, &file, &socket, &datagram].map(check));
        assert_eq!(is_eventfd, [true, false, false, false]);
        assert_eq!(is_socket, [false, false, true, false]);
    }
}
