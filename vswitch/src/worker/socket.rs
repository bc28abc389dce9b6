//! Ports of the host: tap devices and packet sockets, read and written in batches through the worker's io_uring.

use std::os::fd::{AsFd as _, OwnedFd};

use packet::{Header, edit, ethertype};
use reactor::netdev::{PACKET_HEADER_BYTES, TAP_HEADER_BYTES};
use reactor::{Buffers, FileId, Io, PacketInfo, WatchId};

use crate::model::DropReason;
use crate::port::offload::{Accepts, FRAME_BYTES_MAX, FRAME_BYTES_MIN, NET_HEADER_BYTES_LEGACY, Offload};
use crate::worker::frame::Frame;

/// Receives that are started at once when the device has something: more while all of them find a frame.
const BATCH_MIN: u32 = 2;
const BATCH_MAX: u32 = 32;
/// Frames on a wire have at least this many bytes, without FCS.
pub(crate) const WIRE_BYTES_MIN: usize = 60;
/// Bytes of a pool buffer: the longest frame, the header in front, and room for tags.
pub(crate) const BUFFER_BYTES: usize = FRAME_BYTES_MAX + TAP_HEADER_BYTES + 64;

/// What kind of device it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SocketKind {
    /// A tap device.
    Tap,
    /// A packet socket on a network device.
    Packet,
}

impl SocketKind {
    fn header_bytes(self) -> usize {
        match self {
            SocketKind::Tap => TAP_HEADER_BYTES,
            SocketKind::Packet => PACKET_HEADER_BYTES,
        }
    }
}

/// The receiving side.
pub(crate) struct SocketSource {
    file: FileId,
    watch: Option<WatchId>,
    kind: SocketKind,
    /// The device may have frames that nobody asked for yet.
    readable: bool,
    batch: u32,
    outstanding: u32,
    empty: bool,
}

impl SocketSource {
    /// Takes over an open device. `watch_token`: completions that mean "readable".
    pub(crate) fn new(
        io: &mut Io,
        fd: &OwnedFd,
        kind: SocketKind,
        watch_token: u64,
    ) -> std::io::Result<SocketSource> {
        let file = io.add_file(fd.as_fd())?;
        let watch = io.watch(fd.as_fd(), watch_token).inspect_err(|_| io.remove_file(file))?;
        Ok(SocketSource {
            file,
            watch: Some(watch),
            kind,
            readable: true,
            batch: BATCH_MIN,
            outstanding: 0,
            empty: false,
        })
    }

    pub(crate) fn file(&self) -> FileId {
        self.file
    }

    pub(crate) fn remove(mut self, io: &mut Io) {
        if let Some(watch) = self.watch.take() {
            io.unwatch(watch);
        }
        io.remove_file(self.file);
    }

    /// The watch fired.
    pub(crate) fn became_readable(&mut self) {
        self.readable = true;
    }

    /// Starts a batch of receives if the device may have frames and none are under way. True if it did.
    pub(crate) fn start(&mut self, io: &mut Io, token: u64) -> bool {
        if !self.readable || self.outstanding > 0 {
            return false;
        }
        self.readable = false;
        self.empty = false;
        while self.outstanding < self.batch
            && let Some(buffer) = io.buffer()
        {
            let started = match self.kind {
                SocketKind::Tap => io.try_receive(self.file, buffer, token),
                SocketKind::Packet => io.try_receive_packet(self.file, buffer, token),
            };
            if let Err((_, buffer)) = started {
                io.release(buffer);
                break;
            }
            self.outstanding += 1;
        }
        // Without buffers or room in the ring it is tried again in the next pass.
        self.readable = self.outstanding == 0;
        true
    }

    /// Ends one receive: copies the frame into `into` and returns how it is to be read. `None`: there was none.
    pub(crate) fn finish(
        &mut self,
        io: &mut Io,
        result: i32,
        into: &mut [u8],
    ) -> Option<Result<Arrived, DropReason>> {
        self.outstanding -= 1;
        self.empty |= result <= 0;
        if self.outstanding == 0 {
            self.batch = if self.empty { BATCH_MIN } else { (self.batch * 2).min(BATCH_MAX) };
            // After an empty receive the watch tells of the next frame.
            self.readable |= !self.empty;
        }
        let buffer = io.take_buffer()?;
        let arrived = usize::try_from(result)
            .ok()
            .filter(|&length| length > 0)
            .map(|length| Arrived::read(io.bytes(&buffer), length, self.kind, io.packet_info(&buffer), into));
        io.release(buffer);
        arrived
    }

    /// Whether it wants to be polled although nothing completed.
    pub(crate) fn wants_poll(&self) -> bool {
        self.readable && self.outstanding == 0
    }
}

/// A frame as the host gave it.
#[derive(Debug)]
pub(crate) struct Arrived {
    /// Bytes of the frame without the tag below.
    pub(crate) bytes: usize,
    net_header: [u8; NET_HEADER_BYTES_LEGACY],
    /// TPID and TCI of the VLAN tag that the host took out.
    tag: Option<(u16, u16)>,
}

impl Arrived {
    fn read(
        buffer: &[u8],
        length: usize,
        kind: SocketKind,
        info: PacketInfo,
        into: &mut [u8],
    ) -> Result<Arrived, DropReason> {
        let header_bytes = kind.header_bytes();
        if length < header_bytes + FRAME_BYTES_MIN {
            return Err(DropReason::TooShort);
        }
        let bytes = length - header_bytes;
        if bytes > FRAME_BYTES_MAX || length > buffer.len() {
            return Err(DropReason::TooLong);
        }
        into[..bytes].copy_from_slice(&buffer[header_bytes..length]);
        let mut net_header = [0; NET_HEADER_BYTES_LEGACY];
        net_header.copy_from_slice(&buffer[..NET_HEADER_BYTES_LEGACY]);
        let tagged =
            kind == SocketKind::Packet && info.present && info.status & libc::TP_STATUS_VLAN_VALID != 0;
        let tpid = if info.vlan_tpid == 0 { ethertype::VLAN } else { info.vlan_tpid };
        Ok(Arrived { bytes, net_header, tag: tagged.then_some((tpid, info.vlan_tci)) })
    }

    /// Loads the header of the frame, which is in `frame`, and puts the tag back.
    pub(crate) fn load(&self, frame: &[u8], header: &mut Header) -> Result<Offload, DropReason> {
        let frame = &frame[..self.bytes];
        header.load(frame.len(), |to| to.copy_from_slice(&frame[..to.len()]));
        let offload = Offload::parse(&self.net_header, Accepts::ALL, header.bytes(), frame.len())?;
        header.set_partial_checksum(offload.partial.is_some());
        if let Some((tpid, tci)) = self.tag {
            if !edit::push_vlan(header, tpid) {
                return Err(DropReason::NoHeadroom);
            }
            header.bytes_mut()[14..16].copy_from_slice(&tci.to_be_bytes());
        }
        Ok(offload)
    }
}

/// The sending side.
pub(crate) struct SocketSink {
    file: FileId,
    kind: SocketKind,
    token: u64,
}

impl SocketSink {
    /// `token`: completions of writes.
    pub(crate) fn new(file: FileId, kind: SocketKind, token: u64) -> SocketSink {
        SocketSink { file, kind, token }
    }

    /// Starts the write of a frame. It is padded to the shortest length that a wire carries.
    pub(crate) fn deliver(&self, frame: &Frame<'_>, io: &mut Io) -> Result<(), DropReason> {
        let header_bytes = self.kind.header_bytes();
        let Some(mut buffer) = io.buffer() else {
            return Err(DropReason::RingFull);
        };
        let bytes = frame.bytes();
        let end = header_bytes + bytes.max(WIRE_BYTES_MIN);
        let place = io.bytes_mut(&mut buffer);
        if end > place.len() {
            io.release(buffer);
            return Err(DropReason::TooLong);
        }
        place[..header_bytes].copy_from_slice(&frame.offload.emit(Accepts::ALL, 1)[..header_bytes]);
        frame.read(0, &mut place[header_bytes..header_bytes + bytes]);
        place[header_bytes + bytes..end].fill(0);
        // A full ring gives the buffer back by itself.
        io.write(self.file, 0, Buffers::Pool(buffer, 0..end), self.token).map_err(|_| DropReason::RingFull)
    }
}
