//! Every way in which a frontend's message can be wrong, as a table. Each must end that session, or be refused with a
//! negative acknowledgement, and do nothing else.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::frontend::{
    Frontend, PATIENCE, Protocol, Request, config, inflight, message, pair, region, vring_addr,
};
use crate::guest_ram::GuestRam;

/// Descriptors sent with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// None.
    None,
    /// So many eventfds.
    Eventfds(usize),
    /// So many descriptors of the guest's memory.
    Memory(usize),
    /// A regular file of no bytes.
    Empty,
}

/// One message.
#[derive(Debug, Clone)]
pub struct Message {
    request: u32,
    /// Added to the version; 0 leaves the usual one.
    flags: u32,
    payload: Vec<u8>,
    files: Files,
}

/// Good messages, and a last one that is not.
#[derive(Debug, Clone)]
pub struct BadCase {
    /// What is wrong.
    pub name: &'static str,
    messages: Vec<Message>,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The session was closed.
    Closed,
    /// The message was refused, the session goes on.
    Refused,
}

fn case(name: &'static str, request: Request, payload: impl Into<Vec<u8>>, files: Files) -> BadCase {
    raw(name, request.into(), 0, payload, files)
}

fn raw(name: &'static str, request: u32, flags: u32, payload: impl Into<Vec<u8>>, files: Files) -> BadCase {
    BadCase { name, messages: vec![Message { request, flags, payload: payload.into(), files }] }
}

impl BadCase {
    /// The same after a good message.
    fn after(mut self, request: Request, payload: impl Into<Vec<u8>>, files: Files) -> Self {
        self.messages
            .insert(0, Message { request: request.into(), flags: 0, payload: payload.into(), files });
        self
    }
}

fn memory_table(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut payload = (regions.len() as u64).to_ne_bytes().to_vec();
    regions.iter().flatten().for_each(|word| payload.extend(word.to_ne_bytes()));
    payload
}

fn single_region(words: [u64; 4]) -> Vec<u8> {
    [vec![0; 8], words.map(u64::to_ne_bytes).concat()].concat()
}

const MEBI: u64 = 1 << 20;

/// The table. `ram` is the memory that the frontend will have shared when a case asks for it.
pub fn cases(ram: &GuestRam) -> Vec<BadCase> {
    let mut all = memory_cases(ram);
    all.extend(ring_cases(ram));
    all.extend(descriptor_cases());
    all.extend(shape_cases());
    all.extend(feature_cases());
    all
}

fn memory_cases(ram: &GuestRam) -> Vec<BadCase> {
    use Request::{ADD_MEM_REG, REM_MEM_REG, SET_MEM_TABLE};
    let good = [ram.guest_addr(), ram.size(), ram.user_addr(), 0];
    let table = || [1u64.to_ne_bytes().to_vec(), region(ram)].concat();
    let region_of = |words| memory_table(&[words]);
    vec![
        case("1000 regions", SET_MEM_TABLE, memory_table(&[good; 1000]), Files::Memory(1)),
        case(
            "1000 regions announced, one given",
            SET_MEM_TABLE,
            [1000u64.to_ne_bytes().to_vec(), region(ram)].concat(),
            Files::Memory(1),
        ),
        case("no regions", SET_MEM_TABLE, 0u64.to_ne_bytes(), Files::None),
        case(
            "fewer descriptors than regions",
            SET_MEM_TABLE,
            memory_table(&[good, [MEBI, MEBI, MEBI, 0]]),
            Files::Memory(1),
        ),
        case("more descriptors than regions", SET_MEM_TABLE, table(), Files::Memory(3)),
        case("no descriptor for a region", SET_MEM_TABLE, table(), Files::None),
        case("40 descriptors", SET_MEM_TABLE, table(), Files::Memory(40)),
        case("a region of no bytes", SET_MEM_TABLE, region_of([0, 0, 0, 0]), Files::Memory(1)),
        case("a region that wraps", SET_MEM_TABLE, region_of([u64::MAX - 10, 4096, 0, 0]), Files::Memory(1)),
        case("a region larger than its file", SET_MEM_TABLE, region_of([0, 1 << 40, 0, 0]), Files::Memory(1)),
        case(
            "a region behind its file's end",
            SET_MEM_TABLE,
            region_of([0, MEBI, 0, 1 << 40]),
            Files::Memory(1),
        ),
        case("a region in an empty file", SET_MEM_TABLE, region_of([0, MEBI, 0, 0]), Files::Empty),
        case("a region in an eventfd", SET_MEM_TABLE, region_of([0, MEBI, 0, 0]), Files::Eventfds(1)),
        case("overlapping regions", SET_MEM_TABLE, memory_table(&[good, good]), Files::Memory(2)),
        case("an added region that overlaps", ADD_MEM_REG, single_region(good), Files::Memory(1)).after(
            SET_MEM_TABLE,
            table(),
            Files::Memory(1),
        ),
        case("an added region without descriptor", ADD_MEM_REG, single_region(good), Files::None),
        case("an added region with two descriptors", ADD_MEM_REG, single_region(good), Files::Memory(2)),
        case(
            "an added region that wraps",
            ADD_MEM_REG,
            single_region([u64::MAX, MEBI, u64::MAX, 0]),
            Files::Memory(1),
        ),
        case("a removed region that is not there", REM_MEM_REG, single_region([1, 2, 3, 4]), Files::None)
            .after(SET_MEM_TABLE, table(), Files::Memory(1)),
        case("a removed region without any memory", REM_MEM_REG, single_region(good), Files::None),
    ]
}

fn ring_cases(ram: &GuestRam) -> Vec<BadCase> {
    use Request::{
        GET_VRING_BASE, SET_MEM_TABLE, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_ENABLE, SET_VRING_KICK,
        SET_VRING_NUM,
    };
    let user = ram.user_addr();
    let table = || [1u64.to_ne_bytes().to_vec(), region(ram)].concat();
    let with_memory = |case: BadCase| case.after(SET_MEM_TABLE, table(), Files::Memory(1));
    let addr = |desc, used, avail| vring_addr(0, None, desc, used, avail);
    let ring_at = |name, desc, used, avail| {
        let case = case(name, SET_VRING_ENABLE, pair(0, 1), Files::None)
            .after(SET_VRING_KICK, 0u64.to_ne_bytes(), Files::Eventfds(1))
            .after(SET_VRING_ADDR, addr(desc, used, avail), Files::None)
            .after(SET_VRING_NUM, pair(0, 64), Files::None);
        with_memory(case)
    };
    let end = user + ram.size();
    vec![
        case("size of ring 77777", SET_VRING_NUM, pair(77777, 64), Files::None),
        case("base of ring 77777", SET_VRING_BASE, pair(77777, 0), Files::None),
        case(
            "addresses of ring 77777",
            SET_VRING_ADDR,
            vring_addr(77777, None, user, user, user),
            Files::None,
        ),
        case("enable of ring 77777", SET_VRING_ENABLE, pair(77777, 1), Files::None),
        case("base of ring 77777 asked", GET_VRING_BASE, pair(77777, 0), Files::None),
        case("ring size 0xfffff", SET_VRING_NUM, pair(0, 0xfffff), Files::None),
        case("ring size 65536", SET_VRING_NUM, pair(0, 65536), Files::None),
        case("ring size 0", SET_VRING_NUM, pair(0, 0), Files::None),
        case("ring size 100", SET_VRING_NUM, pair(0, 100), Files::None),
        case("base with 17 bits", SET_VRING_BASE, pair(0, 0x1_0000), Files::None),
        case("enable with 2", SET_VRING_ENABLE, pair(0, 2), Files::None),
        case("addresses without memory", SET_VRING_ADDR, addr(user, user + 4096, user + 8192), Files::None),
        with_memory(case(
            "addresses outside memory",
            SET_VRING_ADDR,
            addr(0x1000, 0x2000, 0x3000),
            Files::None,
        )),
        with_memory(case("used ring outside memory", SET_VRING_ADDR, addr(user, 0x2000, user), Files::None)),
        case("misaligned descriptors", SET_VRING_ADDR, addr(user + 1, user, user), Files::None),
        case("misaligned used ring", SET_VRING_ADDR, addr(user, user + 2, user), Files::None),
        case("misaligned available ring", SET_VRING_ADDR, addr(user, user, user + 1), Files::None),
        case(
            "unknown address flags",
            SET_VRING_ADDR,
            [pair(0, 8).to_vec(), vec![0; 32]].concat(),
            Files::None,
        ),
        ring_at("descriptors that end behind memory", end - 16, user, user),
        ring_at("a used ring that ends behind memory", user, end - 16, user),
        ring_at("an available ring that ends behind memory", user, user, end - 16),
    ]
}

fn descriptor_cases() -> Vec<BadCase> {
    use Request::{
        GET_INFLIGHT_FD, SET_BACKEND_REQ_FD, SET_FEATURES, SET_INFLIGHT_FD, SET_LOG_BASE, SET_VRING_CALL,
        SET_VRING_ERR, SET_VRING_KICK,
    };
    let number = |value: u64| value.to_ne_bytes();
    vec![
        case("kick of ring 255", SET_VRING_KICK, number(255), Files::Eventfds(1)),
        case("call of ring 255", SET_VRING_CALL, number(255), Files::Eventfds(1)),
        case("err of ring 255", SET_VRING_ERR, number(255), Files::Eventfds(1)),
        case("kick without its descriptor", SET_VRING_KICK, number(0), Files::None),
        case(
            "kick with a descriptor and the flag for none",
            SET_VRING_KICK,
            number(0x100),
            Files::Eventfds(1),
        ),
        case("kick with two descriptors", SET_VRING_KICK, number(0), Files::Eventfds(2)),
        case("kick with 33 descriptors", SET_VRING_KICK, number(0), Files::Eventfds(33)),
        case("kick with 250 descriptors", SET_VRING_KICK, number(0), Files::Eventfds(250)),
        case("a file as kick", SET_VRING_KICK, number(0), Files::Memory(1)),
        case("a file as call", SET_VRING_CALL, number(0), Files::Empty),
        case("a descriptor with SET_FEATURES", SET_FEATURES, number(0), Files::Eventfds(1)),
        case("a request channel without descriptor", SET_BACKEND_REQ_FD, [], Files::None),
        case("an eventfd as request channel", SET_BACKEND_REQ_FD, [], Files::Eventfds(1)),
        case("in-flight area for no queues", GET_INFLIGHT_FD, inflight(0, 0, 64), Files::None),
        case("in-flight area for 60000 queues", GET_INFLIGHT_FD, inflight(0, 60000, 64), Files::None),
        case("in-flight area with rings of 65535", GET_INFLIGHT_FD, inflight(0, 1, 65535), Files::None),
        case("in-flight area without descriptor", SET_INFLIGHT_FD, inflight(4096, 1, 64), Files::None),
        case(
            "in-flight area too small for its queues",
            SET_INFLIGHT_FD,
            inflight(64, 1, 64),
            Files::Memory(1),
        ),
        case("in-flight area in an empty file", SET_INFLIGHT_FD, inflight(4096, 1, 64), Files::Empty),
        case("log without descriptor", SET_LOG_BASE, [number(4096), number(0)].concat(), Files::None),
        case("log of no bytes", SET_LOG_BASE, [number(0), number(0)].concat(), Files::Memory(1)),
        case("log in an empty file", SET_LOG_BASE, [number(4096), number(0)].concat(), Files::Empty),
        case(
            "log whose end wraps",
            SET_LOG_BASE,
            [number(u64::MAX), number(4096)].concat(),
            Files::Memory(1),
        ),
    ]
}

fn shape_cases() -> Vec<BadCase> {
    use Request::{
        GET_CONFIG, GET_FEATURES, GET_STATUS, RESET_DEVICE, SEND_RARP, SET_CONFIG, SET_FEATURES, SET_OWNER,
        SET_STATUS, SET_VRING_ADDR, SET_VRING_ENABLE, SET_VRING_KICK, SET_VRING_NUM,
    };
    let oversized = || config(0, &[0; 4096]);
    vec![
        case("SET_FEATURES with 4 bytes", SET_FEATURES, [0; 4], Files::None),
        case("SET_OWNER with payload", SET_OWNER, [0; 8], Files::None),
        case("GET_FEATURES with payload", GET_FEATURES, [0; 8], Files::None),
        case("SET_VRING_NUM with 16 bytes", SET_VRING_NUM, [0; 16], Files::None),
        case("SET_VRING_ENABLE with 4 bytes", SET_VRING_ENABLE, [0; 4], Files::None),
        case("SET_VRING_ADDR with 39 bytes", SET_VRING_ADDR, [0; 39], Files::None),
        case("SET_VRING_KICK with 4 bytes", SET_VRING_KICK, [0; 4], Files::Eventfds(1)),
        case("SET_STATUS with no bytes", SET_STATUS, [], Files::None),
        case("GET_STATUS with payload", GET_STATUS, [0; 8], Files::None),
        case("SEND_RARP with 6 bytes", SEND_RARP, [0; 6], Files::None),
        case("RESET_DEVICE with payload", RESET_DEVICE, [0; 1], Files::None),
        case("config of no bytes", GET_CONFIG, config(0, &[]), Files::None),
        case(
            "config longer than its payload",
            GET_CONFIG,
            [config(0, &[0; 8]), vec![0; 8]].concat(),
            Files::None,
        ),
        case("config beyond 4096", GET_CONFIG, config(4090, &[0; 8]), Files::None),
        case("config whose end wraps", GET_CONFIG, config(u32::MAX, &[0; 8]), Files::None),
        case("config with a payload above 4096", GET_CONFIG, oversized(), Files::None),
        case("config written where there is none", SET_CONFIG, config(3000, &[0; 8]), Files::None),
        case("config written with 3 bytes", SET_CONFIG, [0; 3], Files::None),
        raw("request 0", 0, 0, [], Files::None),
        raw("request 99", 99, 0, [0; 8], Files::None),
        raw("request 0xffffffff", u32::MAX, 0, [], Files::None),
        raw("version 2", 1, 2, [], Files::None),
        raw("version 3", SET_STATUS.into(), 3, [0; 8], Files::None),
        raw("reserved flags", 1, 0x100, [], Files::None),
        raw(
            "reserved flags of a message handled in front",
            SET_STATUS.into(),
            0x8000_0000,
            [0; 8],
            Files::None,
        ),
        raw("a reply", SET_FEATURES.into(), 4, [0; 8], Files::None),
    ]
}

fn feature_cases() -> Vec<BadCase> {
    use Request::{
        CHECK_DEVICE_STATE, CREATE_CRYPTO_SESSION, GET_SHARED_OBJECT, GET_SHMEM_CONFIG, GPU_SET_SOCKET,
        IOTLB_MSG, POSTCOPY_ADVISE, SET_FEATURES, SET_PROTOCOL_FEATURES, SET_VRING_ENDIAN, VRING_KICK,
    };
    let number = |value: u64| value.to_ne_bytes();
    vec![
        case("features that were not offered", SET_FEATURES, number(1 << 60), Files::None),
        case("protocol features that were not offered", SET_PROTOCOL_FEATURES, number(u64::MAX), Files::None),
        case("IOTLB", IOTLB_MSG, [0; 40], Files::None),
        case("endianness", SET_VRING_ENDIAN, pair(0, 1), Files::None),
        case("crypto", CREATE_CRYPTO_SESSION, [0; 8], Files::None),
        case("postcopy", POSTCOPY_ADVISE, [], Files::None),
        case("in-band kick", VRING_KICK, pair(0, 0), Files::None),
        case("shared object", GET_SHARED_OBJECT, [1; 16], Files::None),
        case("shared memory regions", GET_SHMEM_CONFIG, [], Files::None),
        case("GPU socket", GPU_SET_SOCKET, [], Files::Eventfds(1)),
        case("device state", CHECK_DEVICE_STATE, [0; 8], Files::Eventfds(1)),
    ]
}

impl BadCase {
    /// Connects nothing itself: sends the messages over `frontend`, which has agreed on features, and tells what became
    /// of it. `None`: neither closed nor refused within [`PATIENCE`].
    ///
    /// # Errors
    /// Descriptors or memory for the message can't be had here, or a good message before the last one was refused.
    pub fn inflict(&self, frontend: &Frontend, ram: &GuestRam) -> io::Result<Option<Outcome>> {
        let acknowledged = frontend.protocol.contains(Protocol::REPLY_ACK);
        let (last, before) = self.messages.split_last().ok_or(io::ErrorKind::InvalidInput)?;
        for message in before {
            message.send(frontend, ram, acknowledged)?;
            if acknowledged && frontend.reply()?.number()? != 0 {
                return Err(io::Error::other(format!("{}: a good message was refused", self.name)));
            }
        }
        match last.send(frontend, ram, acknowledged) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
        if acknowledged && let Ok(reply) = frontend.reply() {
            // GET_CONFIG says no with an empty answer.
            let refused = reply.number().map_or(reply.payload.len() == 12, |number| number != 0);
            let goes_on = frontend.sync().is_ok();
            return Ok(match (refused, goes_on) {
                (_, false) => Some(Outcome::Closed),
                (true, true) => Some(Outcome::Refused),
                (false, true) => None,
            });
        }
        Ok(frontend.closed_within(PATIENCE).then_some(Outcome::Closed))
    }
}

impl Message {
    fn send(&self, frontend: &Frontend, ram: &GuestRam, acknowledged: bool) -> io::Result<()> {
        let need_reply = if acknowledged { 8 } else { 0 };
        let bytes = message(self.request, self.flags | need_reply, &self.payload);
        let eventfds: Vec<EventFd>;
        let empty: File;
        let files: Vec<BorrowedFd<'_>> = match self.files {
            Files::None => Vec::new(),
            Files::Memory(count) => vec![ram.file().as_fd(); count],
            Files::Eventfds(count) => {
                let eventfd = |_| EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
                eventfds = (0..count).map(eventfd).collect::<Result<_, _>>()?;
                eventfds.iter().map(AsFd::as_fd).collect()
            }
            Files::Empty => {
                empty = tempfile::tempfile()?;
                vec![empty.as_fd()]
            }
        };
        frontend.send_raw(&bytes, &files)
    }
}
