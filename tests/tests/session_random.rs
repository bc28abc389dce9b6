//! Random sequences of messages, most of them plausible: whatever comes, the session neither panics nor hangs, its rings
//! are started and stopped in pairs (the echo device asserts that), and the next frontend is served.

use std::cell::Cell;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use nix::sys::eventfd::EventFd;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;
use tests::driver_queue::DriverQueue;
use tests::echo_device::{Call, serve_echo};
use tests::frontend::{
    F_EVENT_IDX, F_LOG_ALL, F_PROTOCOL, F_VERSION_1, Frontend, PATIENCE, Protocol, Request, config, inflight,
    message, pair, vring_addr,
};
use tests::guest_ram::GuestRam;
use tests::holds_within;

const FEATURES: u64 = F_PROTOCOL | F_VERSION_1 | F_EVENT_IDX;
const RAM_BYTES: usize = 1 << 20;

#[derive(Debug, Clone)]
struct Step {
    request: u32,
    flags: u32,
    payload: Vec<u8>,
    eventfds: usize,
    memory: usize,
    /// Sent up to here only, then the next step follows.
    cut: Option<usize>,
}

fn index() -> impl Strategy<Value = u32> {
    prop_oneof![20 => 0..4u32, 1 => select(vec![4, 255, 77777, u32::MAX])]
}

/// Offsets in guest memory: small aligned ones often, so that rings overlap each other.
fn addr() -> impl Strategy<Value = u64> {
    let user = GuestRam::new(0, 4096).unwrap().user_addr();
    prop_oneof![
        10 => (0..64u64).prop_map(move |page| user + page * 4096),
        2 => (0..RAM_BYTES as u64 / 16).prop_map(move |slot| user + slot * 16),
        1 => any::<u64>(),
    ]
}

fn step(request: u32, payload: Vec<u8>, eventfds: usize, memory: usize) -> Step {
    Step { request, flags: 0, payload, eventfds, memory, cut: None }
}

fn plausible() -> impl Strategy<Value = Step> {
    let number = |value: u64| value.to_ne_bytes().to_vec();
    let region =
        |size: u64| [0, size, GuestRam::new(0, 4096).unwrap().user_addr(), 0].map(u64::to_ne_bytes).concat();
    let sizes = prop_oneof![8 => select(vec![1, 2, 16, 64, 1024]), 1 => select(vec![0, 100, 2048, 65536])];
    let features = prop_oneof![8 => select(vec![FEATURES, FEATURES | F_LOG_ALL]), 1 => select(vec![F_VERSION_1, 0, 3, u64::MAX])];
    let bytes = prop_oneof![8 => Just(RAM_BYTES as u64), 1 => select(vec![4096, 0, 1 << 40])];
    prop_oneof![
        features.prop_map(move |value| step(2, number(value), 0, 0)),
        bytes.clone().prop_map(move |size| step(5, [number(1), region(size)].concat(), 0, 1)),
        bytes.clone().prop_map(move |size| step(37, [number(0), region(size)].concat(), 0, 1)),
        bytes.prop_map(move |size| step(38, [number(0), region(size)].concat(), 0, 0)),
        (index(), sizes).prop_map(|(index, size)| step(8, pair(index, size).to_vec(), 0, 0)),
        (index(), addr(), addr(), addr(), any::<Option<u64>>()).prop_map(
            |(index, desc, used, avail, log)| step(9, vring_addr(index, log, desc, used, avail), 0, 0)
        ),
        (index(), 0..100u32).prop_map(|(index, base)| step(10, pair(index, base).to_vec(), 0, 0)),
        index().prop_map(|index| step(11, pair(index, 0).to_vec(), 0, 0)),
        (index(), 12..15u32, 0..3usize).prop_map(move |(index, request, files)| {
            let flag = if files == 0 { 0x100 } else { 0 };
            step(request, number(u64::from(index & 0xff) | flag), files, 0)
        }),
        (index(), 0..3u32).prop_map(|(index, on)| step(18, pair(index, on).to_vec(), 0, 0)),
        (select(vec![1, 3, 4, 15, 17, 34, 36, 40]), Just(Vec::new()))
            .prop_map(|(request, payload)| step(request, payload, 0, 0)),
        (select(vec![16, 19, 20, 39]), select(vec![0, 1, 15, 1500, u64::MAX]))
            .prop_map(move |(request, value)| step(request, number(value), 0, 0)),
        (24..26u32, 0..50u32, 0..50usize).prop_map(|(request, offset, len)| step(
            request,
            config(offset, &vec![7; len]),
            0,
            0
        )),
        (0..6u16, select(vec![0, 64, 1024, 5000])).prop_map(|(queues, size)| step(
            31,
            inflight(0, queues, size),
            0,
            0
        )),
        (0..6u16, select(vec![0, 64, 1024, 5000])).prop_map(|(queues, size)| step(
            32,
            inflight(RAM_BYTES as u64, queues, size),
            0,
            1
        )),
        (0..0x20_0000u64).prop_map(move |bytes| step(6, [number(bytes), number(0)].concat(), 0, 1)),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    let nonsense = (0..50u32, any::<u32>(), prop::collection::vec(any::<u8>(), 0..80), 0..40usize, 0..2usize)
        .prop_map(|(request, flags, payload, eventfds, memory)| Step {
            request,
            flags,
            payload,
            eventfds,
            memory,
            cut: None,
        });
    let need_reply = (plausible(), prop::bool::weighted(0.9)).prop_map(|(mut step, reply)| {
        step.flags = if reply { 8 } else { 0 };
        step
    });
    let cut = (plausible(), 1..30usize).prop_map(|(mut step, cut)| {
        step.cut = Some(cut);
        step
    });
    prop_oneof![60 => need_reply, 2 => nonsense, 1 => cut]
}

fn connect(path: &Path, good_start: bool) -> Frontend {
    let mut frontend = Frontend::connect_within(path, PATIENCE).unwrap();
    if good_start {
        frontend.negotiate(FEATURES, Protocol::all()).unwrap();
    }
    frontend
}

/// A connection for random messages; with a good start its first two rings run.
fn connect_random(path: &Path, good_start: bool, ram: &Arc<GuestRam>) -> Connection {
    let frontend = connect(path, good_start);
    if good_start {
        frontend.set_mem_table(&[ram]).unwrap();
        for index in 0..2 {
            let queue = DriverQueue::new(Arc::clone(ram), 16, true).unwrap();
            frontend.start_queue(index, &queue, queue.device_used_idx()).unwrap();
        }
    }
    Connection { frontend, cut: false }
}

/// A connection and whether a message was cut on it: then nobody knows what the backend takes for a message.
struct Connection {
    frontend: Frontend,
    cut: bool,
}

impl Connection {
    /// Sends a step and waits until it was handled; false: the session is over.
    fn send(&mut self, step: &Step, ram: &GuestRam, eventfds: &[EventFd]) -> bool {
        let mut bytes = message(step.request, step.flags, &step.payload);
        if let Some(cut) = step.cut {
            bytes.truncate(cut);
            self.cut = true;
        }
        let files: Vec<BorrowedFd<'_>> = std::iter::repeat_n(ram.file().as_fd(), step.memory)
            .chain(eventfds.iter().cycle().take(step.eventfds).map(AsFd::as_fd))
            .collect();
        if self.frontend.send_raw(&bytes, &files).is_err() {
            return false;
        }
        if self.cut { self.drain() } else { self.handled() }
    }

    /// Answers are read away as they come, so that nobody is stuck in a full socket.
    fn drain(&self) -> bool {
        self.frontend.socket().set_nonblocking(true).unwrap();
        let mut answers = [0; 4096];
        loop {
            match self.frontend.socket().read(&mut answers) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
    }

    /// A question is answered after everything before it.
    fn handled(&self) -> bool {
        if self.frontend.send(Request::GET_FEATURES.into(), 0, &[], &[]).is_err() {
            return false;
        }
        loop {
            match self.frontend.reply() {
                Ok(reply) if reply.request == 1 => return true,
                Ok(_) => {}
                Err(error) => {
                    assert!(error.kind() != ErrorKind::WouldBlock, "no answer within {PATIENCE:?}");
                    return false;
                }
            }
        }
    }
}

fn good_frontend_is_served(path: &Path) {
    let ram = Arc::new(GuestRam::new(0, 1 << 16).unwrap());
    let frontend = connect(path, true);
    frontend.set_mem_table(&[&ram]).unwrap();
    let mut queue = DriverQueue::new(Arc::clone(&ram), 16, true).unwrap();
    frontend.start_queue(0, &queue, 0).unwrap();
    queue.add(&[(ram.alloc(8, 8), 8)], &[(ram.alloc(8, 8), 8)]).unwrap();
    queue.publish();
    assert!(queue.wait_used(PATIENCE).is_some());
}

/// One sequence; returns how often a ring was started by it.
fn run(good_start: bool, steps: &[Step]) -> Result<usize, TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("echo.sock");
    let (endpoint, calls) = serve_echo("random", &path).unwrap();
    let ram = Arc::new(GuestRam::new(0, RAM_BYTES).unwrap());
    let eventfds: Vec<EventFd> = (0..3).map(|_| EventFd::new().unwrap()).collect();
    let mut connection = connect_random(&path, good_start, &ram);
    let mut connections = 1;
    for step in steps {
        if !connection.send(step, &ram, &eventfds) {
            connection = connect_random(&path, good_start, &ram);
            connections += 1;
        }
        eventfds[0].write(1).unwrap();
    }
    drop(connection);
    prop_assert!(holds_within(PATIENCE, || endpoint.sessions().is_empty()), "all sessions end");
    let starts = calls.lock().unwrap().iter().filter(|call| matches!(call, Call::Started { .. })).count();
    good_frontend_is_served(&path);
    endpoint.close();
    let calls = calls.lock().unwrap();
    let count = |wanted: fn(&Call) -> bool| calls.iter().filter(|call| wanted(call)).count();
    let stops = count(|call| matches!(call, Call::Stopped { .. }));
    prop_assert_eq!(count(|call| matches!(call, Call::Started { .. })), stops);
    let ends = count(|call| matches!(call, Call::Disconnected));
    prop_assert_eq!(count(|call| matches!(call, Call::Connected)), ends);
    // Not counting those of the good start.
    Ok(starts.saturating_sub(2 * connections))
}

#[test]
fn whatever_is_sent_the_next_frontend_is_served() {
    let config = ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() };
    let sequences = (prop::bool::weighted(0.9), prop::collection::vec(any_step(), 1..120));
    let starts = Cell::new(0);
    let mut runner = TestRunner::new(config);
    runner
        .run(&sequences, |(good_start, steps)| {
            starts.set(starts.get() + run(good_start, &steps)?);
            Ok(())
        })
        .unwrap();
    // The sequences go deep enough to set rings running.
    assert!(starts.get() > 1000, "only {} rings were started", starts.get());
}
