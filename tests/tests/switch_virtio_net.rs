//! The virtio-net device as drivers of every kind see it: offloads, merged and chained buffers, several queues, and
//! drivers that break the rules.

use std::time::Duration;

use packet::checksum;
use serde_json::json;
use tests::frontend::{F_EVENT_IDX, F_INDIRECT, F_PROTOCOL, F_VERSION_1};
use tests::net_frontend::{NetFrontend, NetHeader, NetOptions, feature};
use tests::switch::{BROADCAST, PATIENCE, TestSwitch, expect_frame, expect_nothing, frame, mac};

/// What Linux accepts of a device behind QEMU.
const LINUX: u64 = feature::CSUM
    | feature::GUEST_CSUM
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::MRG_RXBUF
    | F_EVENT_IDX
    | F_INDIRECT
    | F_PROTOCOL
    | F_VERSION_1;
/// What DPDK's virtio-user accepts.
const VIRTIO_USER: u64 =
    feature::MRG_RXBUF | feature::IN_ORDER | F_INDIRECT | F_PROTOCOL | F_VERSION_1 | feature::MTU;
/// A driver of old: no VERSION_1, no merging, a header of 10 bytes.
const LEGACY: u64 = F_PROTOCOL;

fn driver(features: u64) -> NetOptions {
    NetOptions { features, ..NetOptions::default() }
}

/// Ethernet, IPv4, TCP without options, payload; the TCP checksum holds the sum of the pseudo header.
fn tcp(to: [u8; 6], from: [u8; 6], payload: &[u8]) -> (Vec<u8>, NetHeader) {
    let mut frame = [to, from].concat();
    frame.extend([0x08, 0x00, 0x45, 0]);
    frame.extend((40 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = checksum::checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend([0x1f, 0x90, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 0x20, 0, 0, 0, 0, 0]);
    frame.extend(payload);
    let pseudo = checksum::sum(&frame[26..34], 6 + 20 + payload.len() as u32) as u16;
    frame[50..52].copy_from_slice(&pseudo.to_be_bytes());
    let header = NetHeader { flags: 1, csum_start: 34, csum_offset: 16, ..NetHeader::default() };
    (frame, header)
}

/// The same to be cut into segments of `size` bytes.
fn tso(to: [u8; 6], from: [u8; 6], payload: &[u8], size: u16) -> (Vec<u8>, NetHeader) {
    let (frame, header) = tcp(to, from, payload);
    (frame, NetHeader { gso_type: 1, gso_size: size, hdr_len: 54, ..header })
}

/// Panics unless the checksums of IPv4 and TCP are right; returns the TCP payload.
fn checked_payload(frame: &[u8]) -> &[u8] {
    let bytes = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    let packet = &frame[14..14 + bytes];
    assert_eq!(checksum::checksum(&packet[..20]), 0, "IP checksum");
    let pseudo = checksum::sum(&packet[12..20], 6 + bytes as u32 - 20);
    assert_eq!(checksum::sum(&packet[20..], pseudo) as u16, 0xffff, "TCP checksum");
    &packet[40..]
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 + at / 256) as u8).collect()
}

/// Frames of many lengths between every two kinds of drivers.
#[test]
fn every_kind_of_driver_talks_to_every_other() {
    let switch = TestSwitch::new(&[]);
    let kinds = [
        ("linux", driver(LINUX)),
        ("user", driver(VIRTIO_USER)),
        ("legacy", driver(LEGACY)),
        ("small", NetOptions { rx_buffer_bytes: 128, ..driver(LINUX) }),
        ("indirect", NetOptions { indirect: true, ..driver(LINUX) }),
        ("tiny", NetOptions { queue_size: 64, ..driver(LINUX) }),
    ];
    let mut nets: Vec<NetFrontend> =
        kinds.into_iter().map(|(name, options)| switch.guest(name, json!({}), options)).collect();
    for from in 0..nets.len() {
        for bytes in [0, 45, 46, 47, 115, 116, 117, 240, 242, 243, 500, 1000, 1499, 1500] {
            let sent = [&frame(BROADCAST, mac(from as u8), &[], &[])[..14], &pattern(bytes)].concat();
            nets[from].send(&sent).unwrap();
            nets[from].drain_tx(0).unwrap();
            for (to, net) in nets.iter_mut().enumerate().filter(|(to, _)| *to != from) {
                let (_, header, got) = net.recv_with(PATIENCE).expect("a frame");
                assert_eq!(got, sent, "{bytes} bytes from {from} to {to}");
                assert_eq!((header.flags, header.gso_type), (0, 0));
            }
        }
        let too_long = [&frame(BROADCAST, mac(from as u8), &[], &[])[..14], &pattern(1501)].concat();
        nets[from].send(&too_long).unwrap();
        nets[from].drain_tx(0).unwrap();
    }
    nets.iter_mut().for_each(expect_nothing);
    switch.expect_drops("linux", "tx", "too_long", 5.0);
}

#[test]
fn offloads_go_through_where_they_are_taken_and_are_done_where_not() {
    let switch = TestSwitch::new(&[]);
    let mut sender = switch.guest("sender", json!({}), driver(LINUX));
    let mut linux = switch.guest("linux", json!({}), driver(LINUX));
    let mut plain = switch.guest("plain", json!({}), driver(VIRTIO_USER));
    let no_tso = LINUX & !(feature::GUEST_TSO4 | feature::GUEST_TSO6);
    let mut csum = switch.guest("csum", json!({}), driver(no_tso));
    let mut legacy = switch.guest("legacy", json!({}), driver(LEGACY));
    let mut trunk = switch.guest("trunk", json!({"trunk": "5", "native": 5}), driver(LINUX));

    let payload = pattern(1000);
    let (sent, header) = tcp(BROADCAST, mac(1), &payload);
    sender.send_with(0, header, &sent).unwrap();
    let (_, got_header, got) = linux.recv_with(PATIENCE).expect("a frame");
    assert_eq!((got_header, &got), (NetHeader { num_buffers: 1, ..header }, &sent));
    let (_, got_header, got) = csum.recv_with(PATIENCE).expect("a frame");
    assert_eq!((got_header, &got), (NetHeader { num_buffers: 1, ..header }, &sent));
    for net in [&mut plain, &mut legacy] {
        let (_, got_header, got) = net.recv_with(PATIENCE).expect("a frame");
        assert_eq!((got_header.flags, got_header.gso_type), (0, 0));
        assert_eq!(checked_payload(&got), payload);
    }

    let payload = pattern(20_000);
    let (sent, header) = tso(BROADCAST, mac(1), &payload, 1400);
    sender.send_with(0, header, &sent).unwrap();
    let (_, got_header, got) = linux.recv_with(PATIENCE).expect("a frame");
    assert_eq!(got, sent);
    assert_eq!(got_header, NetHeader { num_buffers: got_header.num_buffers, ..header });
    assert!(got_header.num_buffers > 1);
    for net in [&mut plain, &mut csum, &mut legacy] {
        let mut whole = Vec::new();
        while whole.len() < payload.len() {
            let (_, got_header, got) = net.recv_with(PATIENCE).expect("a segment");
            assert_eq!((got_header.flags, got_header.gso_type), (0, 0));
            assert!(got.len() <= 1514, "a segment of {} bytes", got.len());
            whole.extend_from_slice(checked_payload(&got));
        }
        assert_eq!(whole, payload);
        expect_nothing(net);
    }
    expect_nothing(&mut trunk);

    // A VLAN tag that comes or goes moves what the header points to.
    let mut access = switch.guest("access", json!({"vlan": 6}), driver(LINUX));
    let mut tagged = switch.guest("tagged", json!({"trunk": "6"}), driver(LINUX));
    let (sent, header) = tso(BROADCAST, mac(8), &payload, 1400);
    access.send_with(0, header, &sent).unwrap();
    let (_, got_header, got) = tagged.recv_with(PATIENCE).expect("a frame");
    assert_eq!(got[12..16], [0x81, 0, 0, 6]);
    assert_eq!((got_header.csum_start, got_header.hdr_len), (38, 58));
    tagged.send_with(0, NetHeader { num_buffers: 0, ..got_header }, &got).unwrap();
    let (_, got_header, got) = access.recv_with(PATIENCE).expect("a frame");
    assert_eq!((got_header.csum_start, got_header.hdr_len), (34, 54));
    assert_eq!(got, sent);
}

#[test]
fn segments_that_the_target_s_mtu_does_not_allow_are_dropped() {
    let switch = TestSwitch::new(&[]);
    let mut sender = switch.guest("sender", json!({"mtu": 9000}), driver(LINUX));
    let mut target = switch.guest("target", json!({"mtu": 1500}), driver(LINUX));
    let (large, header) = tso(BROADCAST, mac(1), &pattern(20_000), 1461);
    sender.send_with(0, header, &large).unwrap();
    let (fits, header) = tso(BROADCAST, mac(1), &pattern(20_000), 1460);
    sender.send_with(0, header, &fits).unwrap();
    assert_eq!(expect_frame(&mut target), fits);
    expect_nothing(&mut target);
    switch.expect_drops("target", "tx", "too_long", 1.0);
}

#[test]
fn bad_frames_and_headers_are_dropped_by_reason() {
    let switch = TestSwitch::new(&[]);
    let mut bad = switch.guest("bad", json!({}), driver(LINUX));
    let mut plain = switch.guest("plain", json!({}), driver(VIRTIO_USER));
    let mut other = switch.guest("other", json!({}), driver(LINUX));
    for bytes in [0, 1, 13] {
        bad.send(&pattern(bytes)).unwrap();
    }
    bad.send(&pattern(65_558)).unwrap();
    let (good, header) = tso(BROADCAST, mac(1), &pattern(3000), 1000);
    let lies: [&dyn Fn(&mut NetHeader); 9] = [
        &|h| h.gso_type = 3,
        &|h| h.gso_type = 0x7f,
        &|h| h.gso_size = 0,
        &|h| h.flags = 0,
        &|h| h.csum_start = 0xffff,
        &|h| h.csum_offset = 0xffff,
        &|h| h.csum_start = 0,
        &|h| h.gso_type = 4,
        &|h| h.gso_type = 0x81,
    ];
    for lie in lies {
        let mut header = header;
        lie(&mut header);
        bad.send_with(0, header, &good).unwrap();
    }
    // Without an agreement about them, claims mean nothing: the frame is what it is.
    let claims = frame(BROADCAST, mac(2), &[], b"claims");
    plain.send_with(0, header, &claims).unwrap();
    plain.drain_tx(0).unwrap();
    let (_, header, got) = other.recv_with(PATIENCE).expect("a frame");
    assert_eq!((got, header), (claims, NetHeader { num_buffers: 1, ..NetHeader::default() }));
    // Claims that no one reads do no harm.
    let harmless = NetHeader { hdr_len: 0xffff, gso_size: 0xffff, num_buffers: 77, ..NetHeader::default() };
    let last = frame(BROADCAST, mac(1), &[], b"last");
    bad.send_with(0, harmless, &last).unwrap();
    let (_, header, got) = other.recv_with(PATIENCE).expect("a frame");
    assert_eq!((got, header), (last, NetHeader { num_buffers: 1, ..NetHeader::default() }));
    switch.expect_drops("bad", "rx", "too_short", 3.0);
    switch.expect_drops("bad", "rx", "too_long", 1.0);
    switch.expect_drops("bad", "rx", "bad_header", 9.0);
    switch.expect_drops("plain", "rx", "bad_header", 0.0);
    expect_nothing(&mut other);
}

#[test]
fn a_broken_ring_stops_and_harms_nobody_else() {
    let switch = TestSwitch::new(&[]);
    let mut a = switch.guest("a", json!({}), driver(LINUX));
    let mut b = switch.guest("b", json!({}), driver(LINUX));
    let faults = "sluice_port_ring_faults_total{port=\"bad\"}";
    switch.add("bad", json!({"vhost_user": true}));
    for kind in 0..4 {
        let mut bad = switch.attach("bad", driver(LINUX));
        let before = switch.metric(faults);
        {
            let (_, tx) = bad.queues(0);
            match kind {
                // A head that does not exist, more heads than entries, a buffer outside, a chain that does not end.
                0 => tx.add_head(60_000),
                1 => (0..300).for_each(|_| tx.add_head(0)),
                2 => {
                    tx.add(&[(0xffff_ffff_0000, 100)], &[]);
                }
                _ => {
                    let at = tx.addresses()[0];
                    tx.write_descriptor(at, (0x1000, 64), 0, Some(0));
                    tx.add_head(0);
                }
            }
            tx.publish();
            tx.kick();
        }
        assert!(tests::holds_within(PATIENCE, || switch.metric(faults) > before), "fault {kind} is counted");
        let sent = frame(BROADCAST, mac(1), &[], &[kind]);
        a.send(&sent).unwrap();
        assert_eq!(expect_frame(&mut b), sent);
        // Its other ring works on.
        assert_eq!(expect_frame(&mut bad), sent);
        drop(bad);
        assert!(tests::holds_within(PATIENCE, || !switch.switch.show("bad").unwrap().link_up));
    }
}

#[test]
fn a_broken_receive_ring_only_loses_its_own_frames() {
    let switch = TestSwitch::new(&[]);
    let mut a = switch.guest("a", json!({}), driver(LINUX));
    let mut b = switch.guest("b", json!({}), driver(LINUX));
    let mut bad = switch.guest("bad", json!({}), NetOptions { queue_size: 8, ..driver(LINUX) });
    let (rx, _) = bad.queues(0);
    rx.add_head(7777);
    rx.publish();
    for number in 0..100u8 {
        let sent = frame(BROADCAST, mac(1), &[], &[number]);
        a.send(&sent).unwrap();
        assert_eq!(expect_frame(&mut b), sent);
    }
    switch.expect_metric("sluice_port_ring_faults_total{port=\"bad\"}", 1.0);
}

#[test]
fn a_receiver_without_buffers_loses_frames_and_nobody_waits() {
    let switch = TestSwitch::new(&[]);
    let mut a = switch.guest("a", json!({}), driver(LINUX));
    let mut b = switch.guest("b", json!({}), driver(LINUX));
    // Takes no frames, so its 8 buffers are soon used up.
    let _full = switch.guest("full", json!({}), NetOptions { queue_size: 8, ..driver(LINUX) });
    for number in 0..50u8 {
        let sent = frame(BROADCAST, mac(1), &[], &[number]);
        a.send(&sent).unwrap();
        assert_eq!(expect_frame(&mut b), sent);
    }
    switch.expect_drops("full", "tx", "ring_full", 42.0);
    assert_eq!(switch.switch.show("full").unwrap().counters.tx_packets, 8);
}

#[test]
fn a_frame_larger_than_a_buffer_that_cannot_be_merged_is_dropped() {
    let switch = TestSwitch::new(&[]);
    let mut a = switch.guest("a", json!({}), driver(LINUX));
    let options = NetOptions { rx_buffer_bytes: 512, ..driver(LINUX & !feature::MRG_RXBUF) };
    let mut b = switch.guest("b", json!({}), options);
    a.send(&frame(BROADCAST, mac(1), &[], &pattern(600))).unwrap();
    let small = frame(BROADCAST, mac(1), &[], &pattern(400));
    a.send(&small).unwrap();
    assert_eq!(expect_frame(&mut b), small);
    switch.expect_drops("b", "tx", "buffer_too_small", 1.0);
}

#[test]
fn several_queue_pairs_keep_flows_together() {
    let switch = TestSwitch::new(&[]);
    let mq = LINUX | feature::MQ | feature::CTRL_VQ | feature::STATUS | feature::MAC;
    let mut a = switch.guest("a", json!({}), driver(LINUX));
    let mut b = switch.guest("b", json!({"queue_pairs": 4}), NetOptions { queue_pairs: 4, ..driver(mq) });
    let mut used = [0; 4];
    for flow in 0..64u8 {
        let mut pair_of_flow = None;
        for number in 0..4u8 {
            let (mut sent, header) = tcp(BROADCAST, mac(1), &[number; 20]);
            sent[35] = flow;
            a.send_with(0, header, &sent).unwrap();
            let (pair, _, got) = b.recv_with(PATIENCE).expect("a frame");
            assert_eq!(got, sent);
            assert_eq!(*pair_of_flow.get_or_insert(pair), pair, "flow {flow} changes rings");
            used[pair] += 1;
        }
    }
    assert!(used.iter().all(|frames| *frames > 0), "64 flows on 4 rings: {used:?}");
    // From every ring of the guest.
    for pair in 0..4 {
        let sent = frame(mac(1), mac(2), &[], &[pair as u8]);
        b.send_with(pair, NetHeader::default(), &sent).unwrap();
        assert_eq!(expect_frame(&mut a), sent);
    }
    // With one ring only, as the driver may ask at any time.
    assert_eq!(b.control(4, 0, &1u16.to_le_bytes()).unwrap(), 0);
    for flow in 0..64u8 {
        let (mut sent, header) = tcp(mac(2), mac(1), &[flow; 20]);
        sent[35] = flow;
        a.send_with(0, header, &sent).unwrap();
        assert_eq!(b.recv_with(PATIENCE).expect("a frame").0, 0);
    }
}

#[test]
fn the_control_queue_answers() {
    let switch = TestSwitch::new(&[]);
    let features = LINUX | feature::CTRL_VQ | feature::STATUS | feature::MAC;
    let mut net = switch.guest("p", json!({}), driver(features));
    for (class, command, data, status) in [
        (0, 0, &[1][..], 0),
        (0, 5, &[1], 0),
        (1, 1, &[2, 0, 0, 0, 0, 9], 0),
        (3, 0, &[0], 0),
        (4, 0, &[2, 0], 1),
        (9, 9, &[0], 1),
    ] {
        assert_eq!(net.control(class, command, data).unwrap(), status, "class {class}, command {command}");
    }
    let mac = net.mac().unwrap();
    assert_eq!(mac[0], 2, "locally administered: {mac:02x?}");
}

#[test]
fn a_frontend_s_announcement_moves_the_guest() {
    let switch = TestSwitch::new(&[]);
    let mut a = switch.guest("a", json!({}), driver(LINUX));
    let mut b = switch.guest("b", json!({}), driver(LINUX));
    b.frontend().tell(tests::frontend::Request::SEND_RARP, &[2, 0, 0, 0, 0, 9, 0, 0], &[]).expect("taken");
    let rarp = expect_frame(&mut a);
    assert_eq!(
        (&rarp[..14], rarp.len()),
        (&[255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 9, 0x80, 0x35][..], 60)
    );
    let mut c = switch.guest("c", json!({}), driver(LINUX));
    let sent = frame(mac(9), mac(1), &[], b"to the moved one");
    a.send(&sent).unwrap();
    assert_eq!(expect_frame(&mut b), sent);
    expect_nothing(&mut c);
}

#[test]
fn a_smaller_mtu_of_the_frontend_is_shown() {
    let switch = TestSwitch::new(&[]);
    let net = switch.guest("p", json!({"mtu": 9000}), driver(LINUX | feature::MTU));
    let mtu = |net: &NetFrontend| net.frontend().read_config(10, 2).unwrap();
    assert_eq!(mtu(&net), 9000u16.to_le_bytes());
    net.set_mtu(1450).unwrap();
    assert_eq!(mtu(&net), 1450u16.to_le_bytes());
}

#[test]
fn the_newest_frontend_has_the_port_and_gives_it_back() {
    let switch = TestSwitch::new(&[]);
    let mut a = switch.guest("a", json!({}), driver(LINUX));
    let mut old = switch.guest("b", json!({}), driver(LINUX));
    let mut new = switch.attach("b", driver(VIRTIO_USER));
    let sent = frame(BROADCAST, mac(1), &[], b"to the new one");
    a.send(&sent).unwrap();
    assert_eq!(expect_frame(&mut new), sent);
    expect_nothing(&mut old);
    drop(new);
    let back = || {
        a.send(&sent).unwrap();
        old.recv(Duration::from_millis(50)).is_some()
    };
    assert!(tests::holds_within(PATIENCE, back), "the old one has it again");
}

#[test]
fn a_restarted_driver_goes_on_with_other_features() {
    let switch = TestSwitch::new(&[]);
    let mut a = switch.guest("a", json!({}), driver(LINUX));
    for features in [LINUX, LEGACY, VIRTIO_USER, LINUX & !feature::MRG_RXBUF, LINUX] {
        let mut b = if features == LINUX && switch.switch.show("b").is_err() {
            switch.guest("b", json!({}), driver(features))
        } else {
            switch.attach("b", driver(features))
        };
        for number in 0..40u8 {
            let sent = frame(BROADCAST, mac(1), &[], &[number; 900]);
            a.send(&sent).unwrap();
            assert_eq!(expect_frame(&mut b), sent);
            let sent = frame(mac(1), mac(2), &[], &[number; 300]);
            b.send(&sent).unwrap();
            assert_eq!(expect_frame(&mut a), sent);
        }
        let bases = b.stop().expect("the rings stop");
        assert_eq!(bases[1], 40, "what was sent was taken");
    }
}
