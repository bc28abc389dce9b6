//! A frontend that says anything in any order, against a vhost-user session: the session may end, the server may not.
//!
//! Most messages have the right length and plausible values, so that sessions get as far as running rings.

#![no_main]

use std::collections::HashMap;
use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vhost_session::{
    Backend, BackendError, Endpoint, FrontendHandle, QueueStart, Refused, SessionMetrics, SocketRole, serve,
};
use virtq::Queue;

/// A device that takes rings and gives them back.
#[derive(Default)]
struct Idle(HashMap<u16, Queue>);

impl Backend for Idle {
    fn features(&self) -> u64 {
        1 << 28 | 1 << 29 | 1 << 32
    }

    fn extra_protocol_features(&self) -> u64 {
        0
    }

    fn queue_count(&self) -> u16 {
        4
    }

    fn queue_size_max(&self) -> u16 {
        256
    }

    fn read_config(&self, _offset: u32, into: &mut [u8]) {
        into.fill(1);
    }

    fn write_config(&mut self, _offset: u32, _bytes: &[u8]) -> Result<(), BackendError> {
        Ok(())
    }

    fn negotiated(&mut self, _features: u64) -> Result<(), BackendError> {
        Ok(())
    }

    fn start_queue(&mut self, mut start: QueueStart) -> Result<(), BackendError> {
        let mut heads = [0; 16];
        let mut chain = virtq::Chain::new(start.queue.size());
        if let Ok(count) = start.queue.pop_batch(&mut heads) {
            for &head in &heads[..count] {
                let _ = start.queue.walk(head, &mut chain);
                start.queue.push_used(head, 0);
            }
        }
        for head in start.queue.resubmit() {
            start.queue.push_used(head, 0);
        }
        start.queue.publish();
        assert!(self.0.insert(start.index, start.queue).is_none(), "a ring was started twice");
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<Queue> {
        self.0.remove(&index)
    }

    fn set_call(&mut self, _index: u16, _call: Option<OwnedFd>) {}

    fn reset(&mut self) {}

    fn set_mtu(&mut self, _mtu: u16) {}

    fn send_rarp(&mut self, _mac: [u8; 6]) {}

    fn connected(&mut self, _frontend: FrontendHandle) {}

    fn disconnected(&mut self) {
        assert!(self.0.is_empty(), "rings still run after the end of the session");
    }
}

/// The server and what messages carry, made once.
struct Stage {
    path: PathBuf,
    memory: File,
    event: EventFd,
    _endpoint: Endpoint,
}

fn stage() -> &'static Stage {
    static STAGE: OnceLock<Stage> = OnceLock::new();
    STAGE.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("sluice-fuzz-{}.sock", std::process::id()));
        let role = SocketRole::Server { path: path.clone(), owner: None, group: None, mode: 0o600 };
        let metrics = SessionMetrics::detached();
        let endpoint = serve("fuzz".into(), role, || Ok::<_, Refused>(Idle::default()), metrics);
        let memory = File::from(memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
        memory.set_len(0x10000).expect("64 KiB");
        virtq::install_sigbus_guard();
        Stage {
            path,
            memory,
            event: EventFd::new().expect("an eventfd"),
            _endpoint: endpoint.expect("a socket"),
        }
    })
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn long(&mut self) -> u64 {
        (0..8).fold(0, |value, _| value << 8 | u64::from(self.byte()))
    }

    /// A small number, rarely any number.
    fn number(&mut self) -> u32 {
        match self.byte() {
            small @ 0..=240 => u32::from(small % 8),
            _ => self.long() as u32,
        }
    }
}

/// VERSION_1, PROTOCOL_FEATURES, EVENT_IDX, INDIRECT_DESC.
const FEATURES: u64 = 0x1_7000_0000;
/// MQ, LOG_SHMFD, REPLY_ACK, CONFIG, INFLIGHT_SHMFD, CONFIGURE_MEM_SLOTS.
const PROTOCOL_FEATURES: u64 = 0x920b;

/// A message: request, payload, descriptors.
type Message = (u8, Vec<u8>, Vec<RawFd>);

/// What a good frontend says until ring 0 runs.
fn good_start(stage: &Stage) -> [Message; 8] {
    let longs = |values: &[u64]| values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<u8>>();
    let pair = |index: u32, value: u32| [index.to_ne_bytes(), value.to_ne_bytes()].concat();
    let memory = vec![stage.memory.as_raw_fd()];
    [
        (2, longs(&[FEATURES]), vec![]),
        (16, longs(&[PROTOCOL_FEATURES]), vec![]),
        (37, longs(&[0, 0, 0x4000, 0x7000_0000, 0]), memory),
        (8, pair(0, 16), vec![]),
        (10, pair(0, 0), vec![]),
        (9, longs(&[0, 0x7000_0000, 0x7000_2000, 0x7000_1000, 0]), vec![]),
        (12, longs(&[0]), vec![stage.event.as_raw_fd()]),
        (18, pair(0, 1), vec![]),
    ]
}

/// What a message of this request usually holds, and what travels with it.
fn payload(request: u8, input: &mut Input<'_>, stage: &Stage) -> (Vec<u8>, Vec<RawFd>) {
    let mut out = Vec::new();
    let memory = stage.memory.as_raw_fd();
    let region = |out: &mut Vec<u8>, input: &mut Input<'_>, slot: u64| {
        let at = if input.byte() > 245 { input.long() } else { slot * 0x4000 };
        for value in [at, 0x4000, at.wrapping_add(0x7000_0000), slot * 0x4000] {
            out.extend(value.to_ne_bytes());
        }
    };
    match request {
        // SET_FEATURES, SET_PROTOCOL_FEATURES: all that is offered, or anything.
        2 => out.extend((if input.byte() < 240 { FEATURES } else { input.long() }).to_ne_bytes()),
        16 => out.extend((if input.byte() < 200 { PROTOCOL_FEATURES } else { input.long() }).to_ne_bytes()),
        // SET_MEM_TABLE
        5 => {
            let count = input.number();
            out.extend(count.to_ne_bytes());
            out.extend([0; 4]);
            (0..u64::from(count.min(8))).for_each(|slot| region(&mut out, input, slot));
            return (out, vec![memory; count.min(8) as usize]);
        }
        // SET_VRING_NUM, _BASE, GET_VRING_BASE, SET_VRING_ENABLE
        8 | 10 | 11 | 18 => {
            out.extend((input.number() % 5).to_ne_bytes());
            let value = if request == 8 { 1 << (input.number() % 9) } else { input.number() };
            out.extend(value.to_ne_bytes());
        }
        // SET_VRING_ADDR
        9 => {
            out.extend((input.number() % 5).to_ne_bytes());
            out.extend((input.number() & 1).to_ne_bytes());
            for at in [0u64, 0x2000, 0x1000, 0x2000] {
                let value = if input.byte() > 245 { input.long() } else { 0x7000_0000 + at };
                out.extend(value.to_ne_bytes());
            }
        }
        // SET_VRING_KICK, _CALL, _ERR
        12..=14 => {
            let index = u64::from(input.number());
            out.extend(index.to_ne_bytes());
            return (out, if index & 0x100 == 0 { vec![stage.event.as_raw_fd()] } else { vec![] });
        }
        // GET_CONFIG, SET_CONFIG
        24 | 25 => {
            let bytes = input.number().wrapping_mul(8);
            for value in [input.number(), bytes, 0] {
                out.extend(value.to_ne_bytes());
            }
            out.resize(12 + (bytes % 256) as usize, 7);
        }
        // GET_INFLIGHT_FD, SET_INFLIGHT_FD, SET_LOG_BASE
        31 | 32 => {
            for value in [if input.byte() > 240 { input.long() } else { 0x8000 }, 0] {
                out.extend(value.to_ne_bytes());
            }
            out.extend((input.number() as u16).to_ne_bytes());
            out.extend((1u16 << (input.number() % 9)).to_ne_bytes());
            return (out, if request == 32 { vec![memory] } else { vec![] });
        }
        6 => {
            out.extend((u64::from(input.number()) * 0x800).to_ne_bytes());
            out.extend(0u64.to_ne_bytes());
            return (out, vec![memory]);
        }
        // ADD_MEM_REG, REM_MEM_REG
        37 | 38 => {
            out.extend([0; 8]);
            let slot = u64::from(input.number());
            region(&mut out, input, slot);
            return (out, vec![memory]);
        }
        20 | 39 => out.extend(u64::from(input.number()).to_ne_bytes()),
        _ => {}
    }
    (out, vec![])
}

fn send(
    socket: &mut UnixStream,
    request: u32,
    flags: u32,
    len: u32,
    payload: &[u8],
    files: &[RawFd],
) -> std::io::Result<()> {
    let mut message = [request, flags, len].map(u32::to_ne_bytes).concat();
    message.extend(payload);
    let rights = [ControlMessage::ScmRights(files)];
    let control = if files.is_empty() { &rights[..0] } else { &rights[..] };
    let data = [IoSlice::new(&message)];
    let sent = sendmsg::<()>(socket.as_raw_fd(), &data, control, MsgFlags::MSG_NOSIGNAL, None)?;
    socket.write_all(&message[sent..])
}

fn run(data: &[u8]) -> std::io::Result<()> {
    let stage = stage();
    let mut socket = UnixStream::connect(&stage.path)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.set_write_timeout(Some(Duration::from_secs(10)))?;
    let mut input = Input(data);
    let steps = usize::from(input.byte() % 16);
    for (request, payload, files) in good_start(stage).into_iter().take(steps) {
        send(&mut socket, request.into(), 1, payload.len() as u32, &payload, &files)?;
    }
    for _ in 0..64 {
        if input.0.is_empty() {
            break;
        }
        let request = input.byte() % 44;
        let odd = input.byte();
        let (mut bytes, mut files) = payload(request, &mut input, stage);
        match odd {
            0..=235 => {}
            236..=240 => files.clear(),
            241..=245 => bytes.truncate(usize::from(odd & 7)),
            246..=250 => files.push(stage.event.as_raw_fd()),
            _ => bytes.extend(input.long().to_ne_bytes()),
        }
        let flags = if odd & 1 == 0 { 1 } else { 9 };
        let len = if odd == 255 { input.long() as u32 } else { bytes.len() as u32 };
        if send(&mut socket, request.into(), flags, len, &bytes, &files).is_err() {
            break;
        }
    }
    // No more comes; the session ends, and its end closes the connection.
    socket.shutdown(Shutdown::Write)?;
    let mut rest = [0; 4096];
    loop {
        match socket.read(&mut rest) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("the session does not end")
            }
            Err(_) => return Ok(()),
        }
    }
}

fuzz_target!(|data: &[u8]| {
    // An error is the session's end, met while writing to it.
    let _ = run(data);
});
