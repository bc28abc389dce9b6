//! When rings run and when they don't: one echo device behind a session, a frontend that sends messages in every order.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tests::driver_queue::DriverQueue;
use tests::echo_device::{Call, Calls, F_ODD_A, F_ODD_B, QUEUE_SIZE_MAX, QUEUES, serve_echo};
use tests::frontend::{
    F_EVENT_IDX, F_INDIRECT, F_LOG_ALL, F_PROTOCOL, F_VERSION_1, Frontend, PATIENCE, Protocol, Request,
    message, pair,
};
use tests::guest_ram::GuestRam;
use tests::holds_within;
use vhost_session::Endpoint;

const FEATURES: u64 = F_PROTOCOL | F_VERSION_1 | F_EVENT_IDX | F_INDIRECT;

struct Bed {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
    endpoint: Endpoint,
    calls: Calls,
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("echo.sock");
        let (endpoint, calls) = serve_echo("echo", &path).unwrap();
        Self { _dir: dir, path, endpoint, calls }
    }

    fn frontend(&self, features: u64, protocol: Protocol) -> Frontend {
        let mut frontend = Frontend::connect(&self.path).unwrap();
        frontend.negotiate(features, protocol).unwrap();
        frontend
    }

    /// Calls since the last look, without those that say nothing about rings.
    fn take_calls(&self) -> Vec<Call> {
        let calls = std::mem::take(&mut *self.calls.lock().unwrap());
        calls.into_iter().filter(|call| !matches!(call, Call::Connected | Call::Negotiated(_))).collect()
    }
}

fn ram() -> Arc<GuestRam> {
    Arc::new(GuestRam::new(0x1_0000_0000, 4 << 20).unwrap())
}

fn queue(ram: &Arc<GuestRam>, features: u64) -> DriverQueue {
    DriverQueue::new(Arc::clone(ram), 64, features & F_EVENT_IDX != 0).unwrap()
}

/// One round trip of `bytes` through the device.
fn echo_once(queue: &mut DriverQueue, bytes: &[u8]) {
    let ram = Arc::clone(queue.ram());
    let (out, back) = (ram.alloc(bytes.len(), 8), ram.alloc(bytes.len(), 8));
    ram.write(out, bytes);
    let half = bytes.len() as u32 / 2;
    let readable = [(out, half), (out + u64::from(half), bytes.len() as u32 - half)];
    let head = queue.add(&readable, &[(back, bytes.len() as u32)]).unwrap();
    queue.publish();
    assert_eq!(queue.wait_used(PATIENCE), Some((head, bytes.len() as u32)), "the echo comes back");
    let inverted: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
    assert_eq!(ram.bytes(back, bytes.len()), inverted);
}

fn started(index: u16, next_avail: u16) -> Call {
    Call::Started { index, next_avail, features: F_VERSION_1 | F_EVENT_IDX | F_INDIRECT }
}

#[test]
fn data_moves_and_the_index_survives_stop_start_and_memory_changes() {
    let bed = Bed::new();
    let frontend = bed.frontend(FEATURES, Protocol::all());
    let ram = ram();
    frontend.set_mem_table(&[&ram]).unwrap();
    let mut queue = queue(&ram, FEATURES);
    frontend.start_queue(1, &queue, 0).unwrap();
    assert_eq!(bed.take_calls(), [started(1, 0)]);
    for round in 0..100u8 {
        echo_once(&mut queue, &[round; 100]);
    }
    // Disable and enable.
    frontend.enable(1, false).unwrap();
    assert_eq!(bed.take_calls(), [Call::Stopped { index: 1, next_avail: 100 }]);
    frontend.enable(1, true).unwrap();
    echo_once(&mut queue, b"enabled again");
    assert_eq!(bed.take_calls(), [started(1, 100)]);
    // The same memory once more, then one region more, then less: the ring goes on each time.
    let more = GuestRam::new(0x8_0000_0000, 1 << 20).unwrap();
    frontend.set_mem_table(&[&ram]).unwrap();
    echo_once(&mut queue, b"memory table replaced");
    frontend.add_memory(&more).unwrap();
    echo_once(&mut queue, b"region added");
    let far = more.alloc(8, 8);
    more.write(far, b"far away");
    let back = ram.alloc(8, 8);
    queue.add(&[(far, 8)], &[(back, 8)]).unwrap();
    queue.publish();
    queue.wait_used(PATIENCE).unwrap();
    assert_eq!(ram.bytes(back, 8), b"far away".map(|byte| !byte), "the new region is usable");
    frontend.remove_memory(&more).unwrap();
    echo_once(&mut queue, b"region removed");
    let stops = bed.take_calls().iter().filter(|call| matches!(call, Call::Stopped { .. })).count();
    assert_eq!(stops, 3);
    // GET_VRING_BASE, then a start from there.
    assert_eq!(frontend.stop_queue(1).unwrap(), 105);
    bed.take_calls();
    queue.renew_eventfds().unwrap();
    frontend.start_queue(1, &queue, 105).unwrap();
    echo_once(&mut queue, b"started from its base");
    assert_eq!(bed.take_calls(), [started(1, 105), Call::SetCall(1)]);
    let info = &bed.endpoint.sessions()[0];
    assert_eq!((info.running_queues.as_slice(), info.memory), ([1].as_slice(), (1, 4 << 20)));
    assert_eq!(info.peer_pid, Some(std::process::id()));
    drop(frontend);
    assert!(holds_within(PATIENCE, || bed.endpoint.sessions().is_empty()));
    assert_eq!(bed.take_calls(), [Call::Stopped { index: 1, next_avail: 106 }, Call::Disconnected]);
}

/// The messages that make a ring complete, in every order that QEMU or another frontend may choose.
#[test]
fn a_ring_starts_with_the_last_of_its_messages_whatever_their_order() {
    let bed = Bed::new();
    let steps = ["num", "base", "addr", "kick", "call", "enable"];
    let mut orders: Vec<Vec<&str>> = (0..steps.len())
        .map(|turn| {
            let mut order = steps.to_vec();
            order.rotate_left(turn);
            order
        })
        .collect();
    orders.push(steps.iter().rev().copied().collect());
    for order in orders {
        let mut frontend = Frontend::connect(&bed.path).unwrap();
        let ram = ram();
        let mut queue = queue(&ram, FEATURES);
        // Call and enable may come before features and memory.
        let early = |step: &&str| matches!(*step, "call" | "enable" | "kick" | "num" | "base");
        let split = order.iter().position(|step| !early(step)).unwrap();
        frontend.ask(Request::GET_FEATURES, &[]).unwrap();
        for step in &order[..split] {
            send_step(&frontend, step, &queue);
        }
        frontend.negotiate(FEATURES, Protocol::all()).unwrap();
        frontend.set_mem_table(&[&ram]).unwrap();
        for (place, step) in order[split..].iter().enumerate() {
            let complete =
                |steps: &[&str]| ["num", "addr", "kick", "enable"].iter().all(|s| steps.contains(s));
            let before = complete(&order[..split + place]);
            send_step(&frontend, step, &queue);
            frontend.sync().unwrap();
            let calls = bed.take_calls();
            let starts = calls.iter().any(|call| matches!(call, Call::Started { .. }));
            let now = complete(&order[..=split + place]);
            assert_eq!(starts, now && (!before || *step == "base"), "{order:?} at {step}: {calls:?}");
        }
        queue.kick();
        echo_once(&mut queue, b"whatever the order");
        drop(frontend);
        assert!(holds_within(PATIENCE, || bed.endpoint.sessions().is_empty()));
        bed.take_calls();
    }
}

fn send_step(frontend: &Frontend, step: &str, queue: &DriverQueue) {
    let index = 2u64.to_ne_bytes();
    match step {
        "num" => frontend.tell(Request::SET_VRING_NUM, &pair(2, 64), &[]),
        "base" => frontend.tell(Request::SET_VRING_BASE, &pair(2, 0), &[]),
        "addr" => frontend.set_addresses(2, queue, None),
        "kick" => frontend.tell(Request::SET_VRING_KICK, &index, &[queue.kick_fd()]),
        "call" => frontend.tell(Request::SET_VRING_CALL, &index, &[queue.call_fd()]),
        _ => frontend.enable(2, true),
    }
    .unwrap();
}

#[test]
fn without_protocol_features_a_ring_is_enabled_from_the_start() {
    let bed = Bed::new();
    let frontend = bed.frontend(F_VERSION_1, Protocol::empty());
    let ram = ram();
    frontend.set_mem_table(&[&ram]).unwrap();
    let mut queue = queue(&ram, 0);
    frontend.start_queue(0, &queue, 0).unwrap();
    echo_once(&mut queue, b"old style");
}

#[test]
fn a_guest_that_restarts_with_other_features_is_served_again() {
    let bed = Bed::new();
    let mut frontend = bed.frontend(FEATURES, Protocol::all());
    let ram = ram();
    frontend.set_mem_table(&[&ram]).unwrap();
    for features in [F_PROTOCOL | F_VERSION_1, FEATURES, F_PROTOCOL, FEATURES | F_ODD_A] {
        frontend.set_features(features).unwrap();
        let mut queue = queue(&ram, features);
        frontend.start_queue(0, &queue, 0).unwrap();
        echo_once(&mut queue, b"firmware or kernel");
        frontend.sync().unwrap();
        let expected = Call::Started { index: 0, next_avail: 0, features: features & !F_PROTOCOL };
        assert!(bed.take_calls().contains(&expected));
        assert_eq!(frontend.stop_queue(0).unwrap(), 1);
    }
    // The device itself says no to some combinations: that ends the session.
    let refused = frontend.set_features(FEATURES | F_ODD_A | F_ODD_B);
    assert!(refused.is_err());
    assert!(frontend.closed_within(PATIENCE));
}

#[test]
fn a_running_ring_takes_new_eventfds() {
    let bed = Bed::new();
    let frontend = bed.frontend(FEATURES, Protocol::all());
    let ram = ram();
    frontend.set_mem_table(&[&ram]).unwrap();
    let mut queue = queue(&ram, FEATURES);
    frontend.start_queue(0, &queue, 0).unwrap();
    for _ in 0..10 {
        echo_once(&mut queue, b"before");
        queue.renew_eventfds().unwrap();
        frontend.tell(Request::SET_VRING_CALL, &0u64.to_ne_bytes(), &[queue.call_fd()]).unwrap();
        frontend.tell(Request::SET_VRING_KICK, &0u64.to_ne_bytes(), &[queue.kick_fd()]).unwrap();
        echo_once(&mut queue, b"after");
    }
    // Without a call the device is silent and the driver polls.
    frontend.tell(Request::SET_VRING_CALL, &0x100u64.to_ne_bytes(), &[]).unwrap();
    // An echo is seen on the ring before its call arrives: the last one may still lie in the eventfd.
    queue.wait_call(Duration::ZERO);
    let head = queue.add(&[(ram.alloc(1, 1), 1)], &[(ram.alloc(1, 1), 1)]).unwrap();
    queue.arm();
    queue.publish();
    let mut used = None;
    assert!(holds_within(PATIENCE, || {
        used = queue.poll_used();
        used.is_some()
    }));
    assert_eq!(used, Some((head, 1)));
    frontend.stop_queue(0).unwrap();
    assert!(!queue.wait_call(Duration::ZERO), "nobody signals the old call");
}

#[test]
fn config_status_mtu_rarp_and_resets_reach_the_device() {
    let bed = Bed::new();
    let frontend = bed.frontend(FEATURES, Protocol::all());
    for (offset, len) in [(0, 1), (0, 8), (0, 40), (0, 60), (0, 256), (7, 3), (39, 2), (200, 4)] {
        let expected: Vec<u8> =
            (offset..offset + len).map(|byte| if byte < 40 { byte as u8 } else { 0 }).collect();
        assert_eq!(frontend.read_config(offset, len).unwrap(), expected, "{len} bytes at {offset}");
    }
    frontend.write_config(3, &[9, 9]).unwrap();
    assert_eq!(frontend.read_config(2, 4).unwrap(), [2, 9, 9, 5]);
    assert!(frontend.write_config(39, &[1, 2]).is_err(), "beyond the end");
    assert_eq!(frontend.ask(Request::GET_QUEUE_NUM, &[]).unwrap().number().unwrap(), u64::from(QUEUES));
    assert_eq!(frontend.ask(Request::GET_MAX_MEM_SLOTS, &[]).unwrap().number().unwrap(), 509);
    let status = |value: u64| frontend.tell(Request::SET_STATUS, &value.to_ne_bytes(), &[]).unwrap();
    status(11);
    assert_eq!(frontend.ask(Request::GET_STATUS, &[]).unwrap().number().unwrap(), 11);
    assert!(frontend.tell(Request::NET_SET_MTU, &9000u64.to_ne_bytes(), &[]).is_ok());
    assert!(frontend.tell(Request::NET_SET_MTU, &70000u64.to_ne_bytes(), &[]).is_err());
    frontend.tell(Request::SEND_RARP, &[2, 0, 0, 0, 0, 7, 0, 0], &[]).unwrap();
    frontend.tell(Request::SET_LOG_FD, &[], &[frontend.socket().as_fd()]).unwrap();
    let ram = ram();
    frontend.set_mem_table(&[&ram]).unwrap();
    let mut queue = queue(&ram, FEATURES);
    frontend.start_queue(0, &queue, 0).unwrap();
    echo_once(&mut queue, b"runs");
    bed.calls.lock().unwrap().retain(|call| !matches!(call, Call::Started { .. } | Call::SetCall(_)));
    status(0);
    assert_eq!(frontend.ask(Request::GET_STATUS, &[]).unwrap().number().unwrap(), 0);
    frontend.tell(Request::RESET_DEVICE, &[], &[]).unwrap();
    frontend.tell(Request::RESET_OWNER, &[], &[]).unwrap();
    assert_eq!(
        bed.take_calls(),
        [
            Call::Config(3, vec![9, 9]),
            Call::Mtu(9000),
            Call::Rarp([2, 0, 0, 0, 0, 7]),
            Call::Stopped { index: 0, next_avail: 1 },
            Call::Reset,
            Call::Reset,
        ]
    );
    let info = &bed.endpoint.sessions()[0];
    assert_eq!(info.refused_messages, 2);
}

#[test]
fn a_change_of_the_configuration_is_announced_on_the_request_channel() {
    let bed = Bed::new();
    let frontend = bed.frontend(FEATURES, Protocol::all());
    let deaf = bed.frontend(FEATURES, Protocol::all());
    assert_eq!(bed.endpoint.config_changed(), 0, "nobody has a channel yet");
    let channel = frontend.open_request_channel().unwrap();
    let full = deaf.open_request_channel().unwrap();
    // One that never reads does not hold up anything.
    for _ in 0..10_000 {
        assert_eq!(bed.endpoint.config_changed(), 2);
        let message = channel.reply().unwrap();
        assert_eq!((message.request, message.flags, message.payload.len()), (2, 1, 0));
    }
    drop(full);
    assert_eq!(bed.endpoint.config_changed(), 1);
    assert!(frontend.tell(Request::SET_BACKEND_REQ_FD, &[], &[]).is_err(), "no descriptor");
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(frontend.tell(Request::SET_BACKEND_REQ_FD, &[], &[tcp.as_fd()]).is_err(), "not a local socket");
    assert_eq!(bed.endpoint.config_changed(), 1, "the old channel is still there");
    drop(frontend);
    assert!(channel.closed_within(PATIENCE));
}

#[test]
fn requests_in_flight_in_the_shared_area_are_served_first() {
    let bed = Bed::new();
    let ram = ram();
    let mut queue = queue(&ram, FEATURES);
    let area = {
        let frontend = bed.frontend(FEATURES, Protocol::all());
        frontend.set_mem_table(&[&ram]).unwrap();
        assert!(frontend.ask(Request::GET_INFLIGHT_FD, &tests::frontend::inflight(0, QUEUES, 64)).is_ok());
        let area = frontend.get_inflight(QUEUES, QUEUE_SIZE_MAX).unwrap();
        frontend.set_inflight(&area).unwrap();
        frontend.start_queue(0, &queue, 0).unwrap();
        echo_once(&mut queue, b"before");
        area
    };
    assert!(holds_within(PATIENCE, || bed.endpoint.sessions().is_empty()));
    // The predecessor took two requests and was killed: the area says so.
    let out = ram.alloc(16, 8);
    let heads = [(); 2].map(|()| queue.add(&[(out, 4)], &[(out + 8, 4)]).unwrap());
    queue.publish();
    for (order, head) in heads.iter().enumerate() {
        let state = 16 + 16 * u64::from(*head);
        std::os::unix::fs::FileExt::write_all_at(&area.file, &[1], state).unwrap();
        let counter = 100 - order as u64;
        std::os::unix::fs::FileExt::write_all_at(&area.file, &counter.to_ne_bytes(), state + 8).unwrap();
    }
    let frontend = bed.frontend(FEATURES, Protocol::all());
    frontend.set_mem_table(&[&ram]).unwrap();
    frontend.set_inflight(&area).unwrap();
    frontend.start_queue(0, &queue, queue.device_used_idx()).unwrap();
    let used = [(); 2].map(|()| queue.wait_used(PATIENCE).unwrap().0);
    assert_eq!(used, [heads[1], heads[0]], "in the order they were taken");
    echo_once(&mut queue, b"and on it goes");
    assert_eq!(frontend.stop_queue(0).unwrap(), 4);
}

#[test]
fn dirty_pages_are_logged_while_logging_is_on() {
    let bed = Bed::new();
    let mut frontend = bed.frontend(FEATURES, Protocol::all());
    let ram = ram();
    frontend.set_mem_table(&[&ram]).unwrap();
    let mut queue = queue(&ram, FEATURES);
    frontend.start_queue(0, &queue, 0).unwrap();
    // One bit per page up to the end of memory.
    let pages = (ram.guest_addr() + ram.size()) / 4096;
    let log = GuestRam::new(0, (pages as usize / 8).next_multiple_of(4096)).unwrap();
    let dirty = |addr: u64| log.bytes(addr / 4096 / 8, 1)[0] & 1 << (addr / 4096 % 8) != 0;
    frontend.set_log(&log).unwrap();
    let [before, during, after] = [(); 3].map(|()| ram.alloc(4096, 4096));
    let write = |queue: &mut DriverQueue, to: u64| {
        let out = ram.alloc(16, 8);
        queue.add(&[(out, 16)], &[(to, 16)]).unwrap();
        queue.publish();
        queue.wait_used(PATIENCE).unwrap();
    };
    write(&mut queue, before);
    // As QEMU does it: the feature first, then the rings' addresses with the log flag; the rings run on.
    let [_, avail, used] = queue.addresses();
    frontend.set_features(FEATURES | F_LOG_ALL).unwrap();
    frontend.set_addresses(0, &queue, Some(used)).unwrap();
    write(&mut queue, during);
    assert!(dirty(during) && !dirty(before) && !dirty(after));
    assert!(dirty(used), "the used ring is logged");
    assert!(!dirty(avail) || avail / 4096 == used / 4096);
    frontend.set_features(FEATURES).unwrap();
    frontend.set_addresses(0, &queue, None).unwrap();
    write(&mut queue, after);
    assert!(!dirty(after), "logging is off again");
    let starts = bed.take_calls().iter().filter(|call| matches!(call, Call::Started { .. })).count();
    assert_eq!(starts, 5);
}

#[test]
fn memory_taken_away_closes_the_session_and_nothing_else() {
    virtq::install_sigbus_guard();
    let bed = Bed::new();
    let ram = ram();
    let frontend = bed.frontend(FEATURES, Protocol::all());
    frontend.set_mem_table(&[&ram]).unwrap();
    let other_ram = self::ram();
    let other = bed.frontend(FEATURES, Protocol::all());
    other.set_mem_table(&[&other_ram]).unwrap();
    let (mut queue, mut other_queue) = (self::queue(&ram, FEATURES), self::queue(&other_ram, FEATURES));
    frontend.start_queue(0, &queue, 0).unwrap();
    other.start_queue(0, &other_queue, 0).unwrap();
    echo_once(&mut queue, b"both run");
    echo_once(&mut other_queue, b"both run");
    ram.file().set_len(0).unwrap();
    // The ring itself is gone: we must not touch it any more, only kick.
    queue.kick();
    assert!(frontend.closed_within(PATIENCE));
    echo_once(&mut other_queue, b"the other one goes on");
}

#[test]
fn several_frontends_at_once_and_many_one_after_another() {
    let bed = Bed::new();
    let mut all = Vec::new();
    for _ in 0..vhost_session::SESSIONS_MAX {
        let ram = ram();
        let frontend = bed.frontend(FEATURES, Protocol::all());
        frontend.set_mem_table(&[&ram]).unwrap();
        let queue = queue(&ram, FEATURES);
        frontend.start_queue(0, &queue, 0).unwrap();
        all.push((frontend, queue));
    }
    for (_, queue) in &mut all {
        echo_once(queue, b"side by side");
    }
    let one_more = Frontend::connect(&bed.path).unwrap();
    assert!(one_more.closed_within(PATIENCE), "one more than the limit is turned away");
    echo_once(&mut all[0].1, b"undisturbed");
    all.clear();
    assert!(holds_within(PATIENCE, || bed.endpoint.sessions().is_empty()));
    for _ in 0..50 {
        bed.frontend(FEATURES, Protocol::all()).sync().unwrap();
    }
}

/// Connections that say nothing of worth give way; who uses the device stays.
#[test]
fn silent_connections_keep_nobody_out() {
    let bed = Bed::new();
    let ram = ram();
    let mut queue = queue(&ram, FEATURES);
    let first = bed.frontend(FEATURES, Protocol::all());
    first.set_mem_table(&[&ram]).unwrap();
    first.start_queue(0, &queue, 0).unwrap();
    let mut crowd = Vec::new();
    for number in 0..3 * vhost_session::SESSIONS_MAX {
        let frontend = Frontend::connect(&bed.path).unwrap();
        match number % 3 {
            0 => {}
            1 => frontend.send_raw(&message(5, 0, &[0; 100])[..50], &[]).unwrap(),
            // It may have been given away by then.
            _ => drop(frontend.ask(Request::GET_FEATURES, &[])),
        }
        crowd.push(frontend);
        // Those that gave way are gone before the next one comes: it is about places, not about speed.
        let most = vhost_session::SESSIONS_MAX;
        assert!(holds_within(PATIENCE, || bed.endpoint.sessions().len() <= most));
    }
    let other_ram = self::ram();
    let mut other_queue = self::queue(&other_ram, FEATURES);
    let other = bed.frontend(FEATURES, Protocol::all());
    other.set_mem_table(&[&other_ram]).unwrap();
    other.start_queue(0, &other_queue, 0).unwrap();
    echo_once(&mut other_queue, b"let in");
    echo_once(&mut queue, b"still there");
}
