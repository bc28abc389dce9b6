//! Tap and AF_PACKET ports: two switches of this process, joined by devices of a network namespace of the test's own.
#![allow(clippy::print_stdout, reason = "a skipped test says so")]

use nix::sched::{CloneFlags, unshare};
use nix::unistd::Uid;
use reactor::netdev::DeviceChanges;
use serde_json::{Value, json};
use tests::net_frontend::{NetFrontend, NetHeader, NetOptions, feature};
use tests::switch::{BROADCAST, PATIENCE, TestSwitch, expect_frame, expect_nothing, frame, mac};
use xtask::lab::netns::{cable, ip};

/// Moves this thread, and those it starts, to a network namespace of its own. False, with a message: not possible here.
fn own_namespace() -> bool {
    if !Uid::effective().is_root() || !std::path::Path::new("/dev/net/tun").exists() {
        println!("skipped: needs root and /dev/net/tun");
        return false;
    }
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        println!("skipped: no network namespaces here: {error}");
        return false;
    }
    for which in ["all", "default"] {
        // A kernel without IPv6 sends nothing of its own anyway.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1");
    }
    true
}

/// A cable between the interfaces `left` and `right`.
fn plug() {
    cable(None, ["left", "right"], 1500).expect("ip(8) of iproute2");
}

/// Two switches with the ends of a cable as their ports `up`: tagged for these VLANs, untagged for VLAN 1.
fn two_switches(vlans: Option<&str>) -> (TestSwitch, TestSwitch) {
    plug();
    let (one, two) = (TestSwitch::new(&[]), TestSwitch::new(&[]));
    for (switch, end) in [(&one, "left"), (&two, "right")] {
        let mut port = json!({"af_packet": end});
        if let Some(vlans) = vlans {
            port["trunk"] = json!(vlans);
            port["native"] = json!(1);
        }
        switch.add("up", port);
    }
    (one, two)
}

/// Accepts all offloads.
fn driver() -> NetOptions {
    let offloads = feature::GUEST_TSO4 | feature::GUEST_TSO6 | feature::HOST_TSO4 | feature::HOST_TSO6;
    let plain = NetOptions::default();
    NetOptions { features: plain.features | offloads, ..plain }
}

fn guest(switch: &TestSwitch, name: &str, body: Value) -> NetFrontend {
    switch.guest(name, body, driver())
}

/// One frame there, one back, many sizes.
fn exchange(a: &mut NetFrontend, b: &mut NetFrontend, payload_max: usize) {
    for bytes in [0, 46, 47, 200, 256, 300, 1000, payload_max] {
        let payload: Vec<u8> = (0..bytes).map(|at| (at * 13 + bytes) as u8).collect();
        let there = frame(BROADCAST, mac(1), &[], &payload);
        a.send(&there).unwrap();
        assert_eq!(expect_frame(b), there, "{bytes} bytes there");
        let back = frame(mac(1), mac(2), &[], &payload);
        b.send(&back).unwrap();
        assert_eq!(expect_frame(a), back, "{bytes} bytes back");
    }
}

/// A TCP frame to be cut by whoever must: payload of `bytes` in segments of 1400.
fn tso(bytes: usize) -> (Vec<u8>, NetHeader) {
    let mut frame = [BROADCAST, mac(1)].concat();
    frame.extend([0x08, 0x00, 0x45, 0]);
    frame.extend((40 + bytes as u16).to_be_bytes());
    frame.extend([0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = packet::checksum::checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend([0x1f, 0x90, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 0x20, 0, 0, 0, 0, 0]);
    frame.extend((0..bytes).map(|at| (at * 31) as u8));
    let pseudo = packet::checksum::sum(&frame[26..34], 6 + 20 + bytes as u32) as u16;
    frame[50..52].copy_from_slice(&pseudo.to_be_bytes());
    let header = NetHeader {
        flags: 1,
        gso_type: 1,
        hdr_len: 54,
        gso_size: 1400,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    (frame, header)
}

#[test]
fn vlans_over_a_packet_socket() {
    if !own_namespace() {
        return;
    }
    let (one, two) = two_switches(Some("10,20"));
    assert!(one.switch.show("up").unwrap().link_up);
    for vid in [10, 20, 1] {
        let mut a = guest(&one, &format!("a{vid}"), json!({"vlan": vid}));
        let mut b = guest(&two, &format!("b{vid}"), json!({"vlan": vid}));
        let mut other = guest(&two, &format!("c{vid}"), json!({"vlan": vid + 1}));
        exchange(&mut a, &mut b, 1486);
        expect_nothing(&mut other);
    }
    // Priority and tag arrive as they were sent, whatever the host does with tags on the way.
    let mut a = guest(&one, "trunk-a", json!({"trunk": "10,20"}));
    let mut b = guest(&two, "trunk-b", json!({"trunk": "10,20"}));
    for tci in [10, 0xa000 | 20] {
        let sent = frame(BROADCAST, mac(7), &[tci], b"tagged");
        a.send(&sent).unwrap();
        assert_eq!(expect_frame(&mut b), sent);
    }
}

/// What is shorter than a wire carries leaves with zeroes at its end, whatever was in the buffer before.
#[test]
fn short_frames_are_padded_on_the_way_out() {
    if !own_namespace() {
        return;
    }
    let (one, two) = two_switches(Some("10"));
    for vid in [1, 10] {
        let mut a = guest(&one, &format!("a{vid}"), json!({"vlan": vid}));
        let mut b = guest(&two, &format!("b{vid}"), json!({"vlan": vid}));
        for bytes in [14, 15, 42, 59, 60] {
            let mut long = frame(BROADCAST, mac(1), &[], &[0xff; 200]);
            a.send(&long).unwrap();
            assert_eq!(expect_frame(&mut b), long);
            long.truncate(bytes);
            a.send(&long).unwrap();
            let got = expect_frame(&mut b);
            assert_eq!(got[..bytes], long, "{bytes} bytes in VLAN {vid}");
            // The tag counts on the wire, and the host takes it off.
            let wire = if vid == 1 { 60 } else { 56 };
            assert!(got.len() >= wire.max(bytes), "{bytes} bytes in VLAN {vid} came as {}", got.len());
            assert!(got[bytes..].iter().all(|byte| *byte == 0), "{bytes} bytes in VLAN {vid}");
        }
    }
}

#[test]
fn offloads_over_a_packet_socket() {
    if !own_namespace() {
        return;
    }
    let (one, two) = two_switches(Some("10"));
    for vid in [1, 10] {
        let mut a = guest(&one, &format!("a{vid}"), json!({"vlan": vid}));
        let mut b = guest(&two, &format!("b{vid}"), json!({"vlan": vid}));
        let (sent, header) = tso(20_000);
        a.send_with(0, header, &sent).unwrap();
        let (_, got_header, got) = b.recv_with(PATIENCE).expect("a frame");
        assert_eq!(got, sent);
        assert_eq!(NetHeader { num_buffers: 0, ..got_header }, header, "VLAN {vid}");
    }
}

#[test]
fn a_tap_device_carries_frames_and_offloads() {
    if !own_namespace() {
        return;
    }
    let (one, two) = (TestSwitch::new(&[]), TestSwitch::new(&[]));
    let changes = DeviceChanges::listen().unwrap();
    one.add("t0", json!({"tap": "tap0", "vlan": 20}));
    two.add("up", json!({"af_packet": "tap0"}));
    let mut a = guest(&one, "a", json!({"vlan": 20}));
    let mut b = guest(&two, "b", json!({}));
    let linked = || link_of_up(&two, &changes);
    assert!(tests::holds_within(PATIENCE, linked), "the carrier of the tap device");
    two.switch.bridge().barrier().wait();
    exchange(&mut a, &mut b, 1486);
    let (sent, header) = tso(20_000);
    for _ in 0..2 {
        a.send_with(0, header, &sent).unwrap();
        let (_, got_header, got) = b.recv_with(PATIENCE).expect("a frame");
        assert_eq!((got, NetHeader { num_buffers: 0, ..got_header }), (sent.clone(), header));
        std::mem::swap(&mut a, &mut b);
    }
}

/// Whether port `up` has a link, which the switch looks at only when the kernel says that a device changed.
fn link_of_up(switch: &TestSwitch, changes: &DeviceChanges) -> bool {
    if changes.take().unwrap() {
        switch.switch.look_at_links();
    }
    switch.switch.show("up").unwrap().link_up
}

#[test]
fn many_frames_at_once() {
    if !own_namespace() {
        return;
    }
    let (one, two) = two_switches(None);
    let mut a = guest(&one, "a", json!({}));
    let mut b = guest(&two, "b", json!({}));
    for round in 0..100u8 {
        let frames: Vec<Vec<u8>> =
            (0..32u8).map(|number| frame(BROADCAST, mac(1), &[], &[round, number, 9])).collect();
        let burst: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        a.send_burst(0, &burst).unwrap();
        for (number, sent) in frames.iter().enumerate() {
            assert_eq!(&expect_frame(&mut b), sent, "round {round}, frame {number}");
        }
    }
    one.expect_metric("sluice_port_packets_total{direction=\"tx\",port=\"up\"}", 3200.0);
    one.expect_metric("sluice_port_errors_total{direction=\"tx\",port=\"up\"}", 0.0);
}

#[test]
fn a_device_that_goes_takes_the_link_with_it() {
    if !own_namespace() {
        return;
    }
    plug();
    let changes = DeviceChanges::listen().unwrap();
    let switch = TestSwitch::new(&[]);
    switch.add("up", json!({"af_packet": "left"}));
    let up = || link_of_up(&switch, &changes);
    assert!(up());
    ip("link set right down").unwrap();
    assert!(tests::holds_within(PATIENCE, || !up()));
    ip("link set right up").unwrap();
    assert!(tests::holds_within(PATIENCE, up));
    ip("link del left").unwrap();
    assert!(tests::holds_within(PATIENCE, || !up()));
    let mut a = guest(&switch, "a", json!({}));
    let mut b = guest(&switch, "b", json!({}));
    exchange(&mut a, &mut b, 1486);
    // Kept, shown with the reason after a restart, and served as soon as the device is there.
    drop((a, b));
    let switch = switch.restart(&[]);
    assert!(switch.switch.show("up").unwrap().failure.is_some());
    plug();
    let served = || {
        switch.switch.tick();
        let view = switch.switch.show("up").unwrap();
        view.failure.is_none() && view.link_up
    };
    assert!(tests::holds_within(PATIENCE, served));
}
