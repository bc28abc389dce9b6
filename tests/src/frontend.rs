//! A vhost-user frontend in the test's own process, down to the single message: it can behave like QEMU, and it can
//! misbehave in every way.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::driver_queue::DriverQueue;
use crate::guest_ram::GuestRam;

pub use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;
pub use vhost::vhost_user::message::FrontendReq as Request;

/// `VIRTIO_RING_F_INDIRECT_DESC`
pub const F_INDIRECT: u64 = 1 << 28;
/// `VIRTIO_RING_F_EVENT_IDX`
pub const F_EVENT_IDX: u64 = 1 << 29;
/// `VHOST_USER_F_PROTOCOL_FEATURES`
pub const F_PROTOCOL: u64 = 1 << 30;
/// `VIRTIO_F_VERSION_1`
pub const F_VERSION_1: u64 = 1 << 32;
/// `VHOST_F_LOG_ALL`
pub const F_LOG_ALL: u64 = 1 << 26;

/// How long an answer may take before a test fails: nobody waits this long unless something is wrong, and a machine with
/// other work may be slow.
pub const PATIENCE: Duration = Duration::from_secs(30);

const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;

/// One answer of the backend.
#[derive(Debug)]
pub struct Reply {
    /// The request it answers.
    pub request: u32,
    /// Header flags.
    pub flags: u32,
    /// The payload.
    pub payload: Vec<u8>,
    /// Descriptors that came along.
    pub files: Vec<OwnedFd>,
}

impl Reply {
    /// The payload as one number.
    ///
    /// # Errors
    /// It has not 8 bytes.
    pub fn number(&self) -> io::Result<u64> {
        let bytes = self.payload.as_slice().try_into().map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} bytes of payload, not 8", self.payload.len()),
            )
        })?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

/// The area that survives the backend (INFLIGHT_SHMFD).
#[derive(Debug)]
pub struct Inflight {
    /// Its memory.
    pub file: File,
    /// Bytes.
    pub size: u64,
    /// Queues it has room for.
    pub queues: u16,
    /// Descriptors per queue.
    pub queue_size: u16,
}

/// A connection to a backend.
pub struct Frontend {
    socket: UnixStream,
    /// Features both sides agreed on.
    pub features: u64,
    /// Protocol features both sides agreed on.
    pub protocol: Protocol,
}

impl Frontend {
    /// Connects to a backend that listens.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::from_stream(UnixStream::connect(path)?)
    }

    /// Connects, trying again until somebody listens or `patience` is over.
    ///
    /// # Errors
    /// The last attempt's.
    pub fn connect_within(path: impl AsRef<Path>, patience: Duration) -> io::Result<Self> {
        let start = Instant::now();
        loop {
            match Self::connect(&path) {
                Err(_) if start.elapsed() < patience => std::thread::sleep(Duration::from_millis(5)),
                result => return result,
            }
        }
    }

    /// A frontend on a connection that exists.
    ///
    /// # Errors
    /// The socket takes no time-out.
    pub fn from_stream(socket: UnixStream) -> io::Result<Self> {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket, features: 0, protocol: Protocol::empty() })
    }

    /// The connection.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    // ---- single messages ----

    /// Sends bytes as they are, with descriptors on the first one.
    ///
    /// # Errors
    /// The connection is dead.
    pub fn send_raw(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        let mut sent = 0;
        while sent < bytes.len() {
            let control = if sent == 0 { control } else { &rights[..0] };
            let data = [IoSlice::new(&bytes[sent..])];
            sent += sendmsg::<()>(self.socket.as_raw_fd(), &data, control, MsgFlags::MSG_NOSIGNAL, None)?;
        }
        Ok(())
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The connection is dead.
    pub fn send(&self, request: u32, flags: u32, payload: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_raw(&message(request, flags, payload), files)
    }

    /// Receives one message.
    ///
    /// # Errors
    /// The connection is dead or closed, or nothing came within [`PATIENCE`].
    pub fn reply(&self) -> io::Result<Reply> {
        let mut header = [0; 12];
        let files = self.receive(&mut header)?;
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let mut payload = vec![0; word(8) as usize];
        self.receive(&mut payload)?;
        Ok(Reply { request: word(0), flags: word(4), payload, files })
    }

    fn receive(&self, into: &mut [u8]) -> io::Result<Vec<OwnedFd>> {
        let mut files = Vec::new();
        let mut filled = 0;
        while filled < into.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut data = [IoSliceMut::new(&mut into[filled..])];
            let received = recvmsg(&self.socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    files.extend(rights);
                }
            }
            if received.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += received.bytes;
        }
        Ok(files)
    }

    /// Sends a request that has an answer of its own and waits for it.
    ///
    /// # Errors
    /// The connection is dead or something else was answered.
    pub fn ask(&self, request: Request, payload: &[u8]) -> io::Result<Reply> {
        self.send(request.into(), 0, payload, &[])?;
        let reply = self.reply()?;
        if reply.request != u32::from(request) || reply.flags & 4 == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{request:?} answered by {reply:?}"),
            ));
        }
        Ok(reply)
    }

    /// Sends a request that is only acknowledged, and waits for that if REPLY_ACK was agreed on.
    ///
    /// # Errors
    /// `PermissionDenied`: a negative acknowledgement. Others: the connection is dead.
    pub fn tell(&self, request: Request, payload: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        if !self.protocol.contains(Protocol::REPLY_ACK) {
            return self.send(request.into(), 0, payload, files);
        }
        self.send(request.into(), NEED_REPLY, payload, files)?;
        let reply = self.reply()?;
        match (reply.request == u32::from(request), reply.number()?) {
            (true, 0) => Ok(()),
            (true, _) => {
                Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{request:?} was refused")))
            }
            (false, _) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, format!("{request:?} answered by {reply:?}")))
            }
        }
    }

    /// Waits until everything sent so far has been handled.
    ///
    /// # Errors
    /// The connection is dead.
    pub fn sync(&self) -> io::Result<()> {
        self.ask(Request::GET_FEATURES, &[]).map(drop)
    }

    /// Waits for the backend to close the connection, reading away what it still says. False: it did not.
    pub fn closed_within(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut rest = [0; 4096];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.socket.set_read_timeout(Some(left)).is_err() {
                return false;
            }
            match io::Read::read(&mut &self.socket, &mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => return true,
            }
        }
    }

    // ---- the session ----

    /// Agrees on features: those of `features` and `protocol` that the backend offers, too.
    ///
    /// # Errors
    /// The connection is dead.
    pub fn negotiate(&mut self, features: u64, protocol: Protocol) -> io::Result<()> {
        let offered = self.ask(Request::GET_FEATURES, &[])?.number()?;
        self.features = features & offered;
        if self.features & F_PROTOCOL != 0 {
            let offered = self.ask(Request::GET_PROTOCOL_FEATURES, &[])?.number()?;
            let accepted = protocol & Protocol::from_bits_truncate(offered);
            self.tell(Request::SET_PROTOCOL_FEATURES, &accepted.bits().to_ne_bytes(), &[])?;
            self.protocol = accepted;
        }
        self.tell(Request::SET_OWNER, &[], &[])?;
        self.set_features(self.features)
    }

    /// SET_FEATURES.
    ///
    /// # Errors
    /// Refused, or the connection is dead.
    pub fn set_features(&mut self, features: u64) -> io::Result<()> {
        self.tell(Request::SET_FEATURES, &features.to_ne_bytes(), &[])?;
        self.features = features;
        Ok(())
    }

    /// SET_MEM_TABLE.
    ///
    /// # Errors
    /// Refused, or the connection is dead.
    pub fn set_mem_table(&self, regions: &[&GuestRam]) -> io::Result<()> {
        let mut payload = Vec::from((regions.len() as u64).to_ne_bytes());
        regions.iter().for_each(|ram| payload.extend(region(ram)));
        let files: Vec<_> = regions.iter().map(|ram| ram.file().as_fd()).collect();
        self.tell(Request::SET_MEM_TABLE, &payload, &files)
    }

    /// ADD_MEM_REG.
    ///
    /// # Errors
    /// Refused, or the connection is dead.
    pub fn add_memory(&self, ram: &GuestRam) -> io::Result<()> {
        let payload = [[0; 8].to_vec(), region(ram)].concat();
        self.tell(Request::ADD_MEM_REG, &payload, &[ram.file().as_fd()])
    }

    /// REM_MEM_REG.
    ///
    /// # Errors
    /// Refused, or the connection is dead.
    pub fn remove_memory(&self, ram: &GuestRam) -> io::Result<()> {
        self.tell(Request::REM_MEM_REG, &[[0; 8].to_vec(), region(ram)].concat(), &[])
    }

    /// Sets up a ring in QEMU's order and enables it, beginning at index `base`.
    ///
    /// # Errors
    /// Refused, or the connection is dead.
    pub fn start_queue(&self, index: u16, queue: &DriverQueue, base: u16) -> io::Result<()> {
        self.tell(Request::SET_VRING_NUM, &pair(index.into(), queue.size().into()), &[])?;
        self.tell(Request::SET_VRING_BASE, &pair(index.into(), base.into()), &[])?;
        self.set_addresses(index, queue, None)?;
        self.tell(Request::SET_VRING_KICK, &u64::from(index).to_ne_bytes(), &[queue.kick_fd()])?;
        self.tell(Request::SET_VRING_CALL, &u64::from(index).to_ne_bytes(), &[queue.call_fd()])?;
        if self.features & F_PROTOCOL != 0 { self.enable(index, true) } else { Ok(()) }
    }

    /// SET_VRING_ADDR; with `log`, writes to the used ring are logged under that guest address.
    ///
    /// # Errors
    /// Refused, or the connection is dead.
    pub fn set_addresses(&self, index: u16, queue: &DriverQueue, log: Option<u64>) -> io::Result<()> {
        let [desc, avail, used] = queue.addresses().map(|addr| queue.ram().to_user(addr));
        self.tell(Request::SET_VRING_ADDR, &vring_addr(index.into(), log, desc, used, avail), &[])
    }

    /// SET_VRING_ENABLE.
    ///
    /// # Errors
    /// Refused, or the connection is dead.
    pub fn enable(&self, index: u16, enable: bool) -> io::Result<()> {
        self.tell(Request::SET_VRING_ENABLE, &pair(index.into(), enable.into()), &[])
    }

    /// GET_VRING_BASE: stops a ring and returns its next index.
    ///
    /// # Errors
    /// The connection is dead.
    pub fn stop_queue(&self, index: u16) -> io::Result<u16> {
        let reply = self.ask(Request::GET_VRING_BASE, &pair(index.into(), 0))?.number()?;
        Ok((reply >> 32) as u16)
    }

    /// `len` bytes of the configuration space.
    ///
    /// # Errors
    /// Refused (an empty answer), or the connection is dead.
    pub fn read_config(&self, offset: u32, len: u32) -> io::Result<Vec<u8>> {
        let reply = self.ask(Request::GET_CONFIG, &config(offset, &vec![0; len as usize]))?;
        match reply.payload.get(12..) {
            Some(bytes) if bytes.len() == len as usize => Ok(bytes.to_vec()),
            _ => Err(io::Error::new(io::ErrorKind::PermissionDenied, "GET_CONFIG was refused")),
        }
    }

    /// Writes to the configuration space.
    ///
    /// # Errors
    /// Refused, or the connection is dead.
    pub fn write_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        self.tell(Request::SET_CONFIG, &config(offset, bytes), &[])
    }

    /// GET_INFLIGHT_FD.
    ///
    /// # Errors
    /// The connection is dead, or no descriptor came.
    pub fn get_inflight(&self, queues: u16, queue_size: u16) -> io::Result<Inflight> {
        let reply = self.ask(Request::GET_INFLIGHT_FD, &inflight(0, queues, queue_size))?;
        let size = reply.payload.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes)).unwrap_or_default();
        let file = reply.files.into_iter().next().ok_or(io::ErrorKind::InvalidData)?.into();
        Ok(Inflight { file, size, queues, queue_size })
    }

    /// SET_INFLIGHT_FD.
    ///
    /// # Errors
    /// Refused, or the connection is dead.
    pub fn set_inflight(&self, area: &Inflight) -> io::Result<()> {
        let payload = inflight(area.size, area.queues, area.queue_size);
        self.tell(Request::SET_INFLIGHT_FD, &payload, &[area.file.as_fd()])
    }

    /// SET_LOG_BASE: dirty pages are marked in `log`, one bit per 4 KiB.
    ///
    /// # Errors
    /// The connection is dead.
    pub fn set_log(&self, log: &GuestRam) -> io::Result<()> {
        let payload = [log.size().to_ne_bytes(), 0u64.to_ne_bytes()].concat();
        self.send(Request::SET_LOG_BASE.into(), 0, &payload, &[log.file().as_fd()])?;
        self.reply().map(drop)
    }

    /// SET_BACKEND_REQ_FD: opens the channel for requests of the backend.
    ///
    /// # Errors
    /// Refused, or the connection is dead.
    pub fn open_request_channel(&self) -> io::Result<Frontend> {
        let (ours, theirs) = UnixStream::pair()?;
        self.tell(Request::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])?;
        Frontend::from_stream(ours)
    }
}

/// The bytes of a message; the version is added to `flags` unless it has one.
pub fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let flags = if flags & 3 == 0 { flags | VERSION } else { flags };
    let header = [request, flags, payload.len() as u32].map(u32::to_ne_bytes).concat();
    [header.as_slice(), payload].concat()
}

/// Payload of two numbers: index and value.
pub fn pair(index: u32, value: u32) -> [u8; 8] {
    (u64::from(index) | u64::from(value) << 32).to_le_bytes()
}

/// Payload of SET_VRING_ADDR.
pub fn vring_addr(index: u32, log: Option<u64>, desc: u64, used: u64, avail: u64) -> Vec<u8> {
    let mut payload = pair(index, log.is_some().into()).to_vec();
    [desc, used, avail, log.unwrap_or(0)].iter().for_each(|addr| payload.extend(addr.to_ne_bytes()));
    payload
}

/// A memory region as SET_MEM_TABLE describes it.
pub fn region(ram: &GuestRam) -> Vec<u8> {
    [ram.guest_addr(), ram.size(), ram.user_addr(), 0].map(u64::to_ne_bytes).concat()
}

/// Payload of SET_CONFIG and GET_CONFIG.
pub fn config(offset: u32, bytes: &[u8]) -> Vec<u8> {
    let header = [offset, bytes.len() as u32, 0].map(u32::to_ne_bytes).concat();
    [header.as_slice(), bytes].concat()
}

/// Payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD.
pub fn inflight(size: u64, queues: u16, queue_size: u16) -> Vec<u8> {
    let shape = u64::from(queues) | u64::from(queue_size) << 16;
    [size, 0, shape].map(u64::to_le_bytes).concat()
}
