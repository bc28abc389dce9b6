//! Drivers of our own through a switch of this process: learning, flooding, VLANs.

use serde_json::{Value, json};
use tests::net_frontend::{NetFrontend, NetOptions};
use tests::switch::{BROADCAST, PATIENCE, TestSwitch, expect_frame, expect_nothing, frame, mac};

fn guests<const N: usize>(switch: &TestSwitch, bodies: [Value; N]) -> [NetFrontend; N] {
    let mut number = 0;
    bodies.map(|body| {
        number += 1;
        switch.guest(&format!("p{number}"), body, NetOptions::default())
    })
}

#[test]
fn unknown_addresses_are_flooded_known_ones_are_not() {
    let switch = TestSwitch::new(&[]);
    let [mut a, mut b, mut c] = guests(&switch, [json!({}), json!({}), json!({})]);
    let hello = frame(BROADCAST, mac(1), &[], b"hello");
    a.send(&hello).unwrap();
    assert_eq!(expect_frame(&mut b), hello);
    assert_eq!(expect_frame(&mut c), hello);
    let answer = frame(mac(1), mac(2), &[], b"answer");
    b.send(&answer).unwrap();
    assert_eq!(expect_frame(&mut a), answer, "and hello was not reflected");
    let direct = frame(mac(2), mac(1), &[], b"direct");
    a.send(&direct).unwrap();
    assert_eq!(expect_frame(&mut b), direct);
    expect_nothing(&mut c);
    expect_nothing(&mut a);
    switch.expect_metric("sluice_port_packets_total{direction=\"rx\",port=\"p1\"}", 2.0);
    switch.expect_metric("sluice_port_packets_total{direction=\"tx\",port=\"p3\"}", 1.0);
    switch.expect_metric("sluice_port_bytes_total{direction=\"rx\",port=\"p1\"}", 120.0);
}

#[test]
fn a_guest_that_moves_is_followed_and_its_own_port_gets_nothing_back() {
    let switch = TestSwitch::new(&[]);
    let [mut a, mut b, mut c] = guests(&switch, [json!({}), json!({}), json!({})]);
    // One after the other: two rings are not looked at in the order in which they were filled.
    let here = frame(BROADCAST, mac(9), &[], b"I am here");
    a.send(&here).unwrap();
    assert_eq!((expect_frame(&mut b), expect_frame(&mut c)), (here.clone(), here.clone()));
    b.send(&here).unwrap();
    assert_eq!((expect_frame(&mut a), expect_frame(&mut c)), (here.clone(), here));
    let to = frame(mac(9), mac(3), &[], b"to nine");
    c.send(&to).unwrap();
    assert_eq!(expect_frame(&mut b), to);
    expect_nothing(&mut a);
    b.send(&frame(mac(9), mac(9), &[], b"to myself")).unwrap();
    b.drain_tx(0).unwrap();
    expect_nothing(&mut b);
    switch.expect_drops("p2", "rx", "ingress_port", 1.0);
}

/// Sends a frame of every tagging from every port and compares what comes out where with the rules of 802.1Q.
#[test]
fn the_vlan_matrix() {
    let switch = TestSwitch::new(&[]);
    let bodies = [
        json!({"vlan": 10}),
        json!({"vlan": 10}),
        json!({"vlan": 20}),
        json!({"trunk": "10,20"}),
        json!({"trunk": "20", "native": 10}),
        json!({}),
    ];
    let mut ports = guests(&switch, bodies);
    // VLAN of a frame with this tag from port p; None: dropped.
    let vlan_in = |port: usize, tag: Option<u16>| -> Option<u16> {
        match (port, tag.map(|tag| tag & 0xfff)) {
            (0 | 1, None | Some(0)) => Some(10),
            (2, None | Some(0)) => Some(20),
            (3, Some(vid @ (10 | 20))) => Some(vid),
            (4, None | Some(0)) => Some(10),
            (4, Some(20)) => Some(20),
            (5, None | Some(0)) => Some(0),
            (5, Some(vid)) => Some(vid),
            _ => None,
        }
    };
    // Whether VLAN `vid` leaves port p, and with a tag.
    let tagged_out = |port: usize, vid: u16| -> Option<bool> {
        match (port, vid) {
            (0 | 1, 10) | (2, 20) | (4, 10) | (5, 0) => Some(false),
            (3, 10 | 20) | (4, 20) => Some(true),
            (5, vid) if vid != 0 => Some(true),
            _ => None,
        }
    };
    for from in 0..ports.len() {
        for tag in [None, Some(0u16), Some(0xa000), Some(10), Some(0x6000 | 20), Some(30)] {
            let tags: Vec<u16> = tag.into_iter().collect();
            let label = format!("port {from}, tag {tag:?}");
            ports[from].send(&frame(BROADCAST, mac(from as u8), &tags, label.as_bytes())).unwrap();
            ports[from].drain_tx(0).unwrap();
            let vid = vlan_in(from, tag);
            for (to, port) in ports.iter_mut().enumerate() {
                let expected = vid.and_then(|vid| tagged_out(to, vid)).filter(|_| to != from);
                let Some(tagged) = expected else { continue };
                let got = port.recv(PATIENCE).unwrap_or_else(|| panic!("{label} did not reach {to}"));
                let priority = tag.unwrap_or(0) & 0xf000;
                let tags = if tagged { vec![priority | vid.unwrap()] } else { vec![] };
                let sent = frame(BROADCAST, mac(from as u8), &tags, label.as_bytes());
                let length = 14 + 4 * tags.len() + label.len();
                assert_eq!(got[..length], sent[..length], "{label} at {to}");
            }
        }
    }
    for (number, port) in ports.iter_mut().enumerate() {
        assert_eq!(port.recv(tests::switch::QUIET), None, "nothing more at port {number}");
    }
    switch.expect_drops("p1", "rx", "vlan_not_allowed", 3.0);
}

#[test]
fn a_port_without_a_driver_is_passed_over_and_comes_back() {
    let switch = TestSwitch::new(&[]);
    let [mut a, b, mut c] = guests(&switch, [json!({}), json!({}), json!({})]);
    assert!(switch.switch.show("p2").unwrap().link_up);
    drop(b);
    assert!(
        tests::holds_within(PATIENCE, || !switch.switch.show("p2").unwrap().link_up),
        "the link goes down with the driver"
    );
    a.send(&frame(BROADCAST, mac(1), &[], b"one")).unwrap();
    expect_frame(&mut c);
    let mut b = switch.attach("p2", NetOptions::default());
    assert!(switch.switch.show("p2").unwrap().link_up);
    let two = frame(BROADCAST, mac(1), &[], b"two");
    a.send(&two).unwrap();
    assert_eq!(expect_frame(&mut b), two);
}

#[test]
fn ports_come_and_go_while_others_work() {
    let switch = TestSwitch::new(&[]);
    let [mut a, mut b] = guests(&switch, [json!({}), json!({})]);
    for round in 0..20u8 {
        let name = format!("extra{round}");
        let mut extra = switch.guest(&name, json!({}), NetOptions::default());
        let all = frame(BROADCAST, mac(1), &[], &[round]);
        a.send(&all).unwrap();
        assert_eq!(expect_frame(&mut b), all);
        assert_eq!(expect_frame(&mut extra), all);
        extra.send(&frame(mac(1), mac(77), &[], &[round])).unwrap();
        expect_frame(&mut a);
        switch.switch.delete(&name).unwrap();
        assert!(!switch.socket(&name).exists());
        b.send(&frame(mac(77), mac(2), &[], &[round])).unwrap();
        // Its address is forgotten with the port: flooded.
        expect_frame(&mut a);
    }
    assert_eq!(switch.switch.list().len(), 2);
}

#[test]
fn two_workers_hand_frames_over() {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        println!("skipped: one processor only");
        return;
    }
    let switch = TestSwitch::new(&[0, 1]);
    let [mut a, mut b, mut c] =
        guests(&switch, [json!({}), json!({"vlan": 7}), json!({"trunk": "7", "native": 3})]);
    let mut d = switch.guest("p4", json!({"vlan": 7, "mtu": 9000}), NetOptions::default());
    let mut e = switch.guest("p5", json!({"vlan": 7, "mtu": 9000}), NetOptions::default());
    a.send(&frame(BROADCAST, mac(1), &[7], b"tagged")).unwrap();
    for (port, tags) in [(&mut b, &[][..]), (&mut c, &[7][..]), (&mut d, &[]), (&mut e, &[])] {
        let got = expect_frame(port);
        assert_eq!(
            got[..14 + 4 * tags.len() + 6],
            frame(BROADCAST, mac(1), tags, b"tagged")[..14 + 4 * tags.len() + 6]
        );
    }
    for round in 0..2000u32 {
        let (from, to) = if round % 2 == 0 { (&mut d, &mut e) } else { (&mut e, &mut d) };
        let payload: Vec<u8> = (0..round * 4 % 8900).map(|at| (at * 7 + round) as u8).collect();
        let sent = frame(BROADCAST, mac(4 + (round % 2) as u8), &[], &payload);
        from.send(&sent).unwrap();
        assert_eq!(expect_frame(to), sent, "round {round}");
        if sent.len() <= 1514 {
            expect_frame(&mut b);
        }
        while c.poll_recv(0).is_some() || a.poll_recv(0).is_some() {}
    }
}

#[test]
fn ports_are_kept_over_a_restart() {
    let switch = TestSwitch::new(&[]);
    switch.add("p1", json!({"vhost_user": true, "ofport": 7, "vlan": 10, "mtu": 9000, "queue_pairs": 2}));
    switch.add("p2", json!({"vhost_user": true, "trunk": "10,20", "native": 1}));
    let before = switch.switch.list();
    assert_eq!(before[1].spec.ofport, Some(1), "the lowest free number");
    let switch = switch.restart(&[]);
    assert_eq!(switch.switch.list(), before);
    switch.switch.delete("p1").unwrap();
    let switch = switch.restart(&[]);
    assert_eq!(switch.switch.list().len(), 1);
}

#[test]
fn what_contradicts_other_ports_is_told_at_once() {
    let switch = TestSwitch::new(&[]);
    switch.add("p1", json!({"vhost_user": true, "ofport": 7}));
    let body = json!({"name": "p1", "ofport": 7, "af_packet": "no-such-dev"});
    let problem = switch.switch.add(vswitch::port_spec::read_add(body).unwrap()).unwrap_err();
    let fields: Vec<&str> = problem.errors.iter().map(|error| error.field.as_str()).collect();
    assert_eq!((problem.status, fields), (409, vec!["name", "ofport", "af_packet"]));
    assert_eq!(switch.switch.list().len(), 1);
    assert_eq!(switch.switch.show("nobody").unwrap_err().status, 404);
    assert_eq!(switch.switch.delete("nobody").unwrap_err().status, 404);
}

#[test]
fn a_frame_that_lost_its_tag_is_still_as_long_as_a_wire_wants() {
    for cores in [&[][..], &[0, 1]] {
        let switch = TestSwitch::new(cores);
        let [mut trunk, mut access] = guests(&switch, [json!({"trunk": "7"}), json!({"vlan": 7})]);
        // 60 bytes with its tag, and 60 again without it.
        trunk.send(&frame(BROADCAST, mac(1), &[7], b"short")).unwrap();
        assert_eq!(expect_frame(&mut access), frame(BROADCAST, mac(1), &[], b"short"));
    }
}
