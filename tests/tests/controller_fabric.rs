//! What networks promise to those in them, on Open vSwitch and on our switch: two switches with a trunk, hosts around
//! them, real frames.

#![allow(clippy::print_stdout, reason = "figures for who asks for them")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::fabric::{Fabric, Make, PATIENCE, SILENCE, TRUNK, assert_reach, parted, reaches};
use tests::holds_within;
use tests::wire::{Addresses, Wire, datagram};
use xtask::lab::netns::{Host, ip};

/// Marks the frames of these tests.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const BROADCAST: [u8; 6] = [0xff; 6];
const ICMP: u8 = 1;
const MARK: &[u8] = b"fabric-";

/// What was sent and who got it: in the end each frame was heard exactly as often as it should be.
struct Ears {
    wires: Vec<Wire>,
    macs: Vec<[u8; 6]>,
    /// By host and number of the frame.
    heard: BTreeMap<(usize, u32), u32>,
    expected: BTreeMap<(usize, u32), u32>,
    told: Vec<String>,
}

impl Ears {
    fn of(hosts: &[Host]) -> Ears {
        let (wires, macs) = hosts.iter().map(|host| (Wire::of(host), host.mac)).unzip();
        Ears { wires, macs, heard: BTreeMap::new(), expected: BTreeMap::new(), told: Vec::new() }
    }

    /// The next mark to put into a frame.
    fn mark(&mut self, what: String) -> Vec<u8> {
        self.told.push(what);
        [MARK, format!("{:08}", self.told.len() - 1).as_bytes()].concat()
    }

    /// Host `from` sends what `frame` makes of a mark; these hosts are to hear it, each once.
    #[track_caller]
    fn send(&mut self, what: &str, from: usize, frame: impl FnOnce(&[u8]) -> Vec<u8>, to: &[usize]) {
        let mark = self.mark(format!("{what} from host {from}"));
        let number = self.told.len() as u32 - 1;
        self.wires[from - 1].send(&frame(&mark));
        for &host in to {
            self.expected.insert((host, number), 1);
            let arrived = self.hears(host, number);
            assert!(arrived, "{what} from host {from} does not reach host {host}");
        }
    }

    /// A frame to an address, with these tags.
    #[track_caller]
    fn frame(&mut self, from: usize, to: [u8; 6], tags: &[u16], hearers: &[usize]) {
        let source = self.macs[from - 1];
        let what = format!("a frame to {to:02x?} with tags {tags:?}");
        self.send(&what, from, |mark| frame(to, source, tags, mark), hearers);
    }

    /// Whether a frame comes to a host, soon at the latest. What comes before it is noted.
    fn hears(&mut self, host: usize, number: u32) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while !self.heard.contains_key(&(host, number)) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(other) = self.next(host, left) else { return false };
            *self.heard.entry((host, other)).or_default() += 1;
        }
        true
    }

    fn next(&self, host: usize, patience: Duration) -> Option<u32> {
        let number = |frame: &[u8]| {
            if frame[12..14] == [8, 0] && frame[23] == ICMP {
                // The host's own word that nobody listens there, with our packet in it.
                return None;
            }
            let at = frame.windows(MARK.len()).position(|window| window == MARK)? + MARK.len();
            std::str::from_utf8(frame.get(at..at + 8)?).ok()?.parse::<u32>().ok()
        };
        number(&self.wires[host - 1].receive(patience, |frame| number(frame).is_some())?)
    }

    /// A last frame from a host to others: what it sent before them has come by then.
    #[track_caller]
    fn flush(&mut self, pairs: &[(usize, usize)]) {
        for &(from, to) in pairs {
            let to_mac = self.macs[to - 1];
            let source = self.macs[from - 1];
            let mark = self.mark(format!("the last frame from host {from}"));
            let number = self.told.len() as u32 - 1;
            self.wires[from - 1].send(&frame(to_mac, source, &[], &mark));
            self.expected.insert((to, number), 1);
            assert!(self.hears(to, number), "the last frame from host {from} to host {to}");
            // Until the destination is known it is flooded.
            for host in (1..=self.wires.len()).filter(|host| *host != to) {
                self.heard.remove(&(host, number));
            }
        }
    }

    /// Everything that is to be heard was, and nothing else.
    #[track_caller]
    fn done(mut self) {
        for host in 1..=self.wires.len() {
            while let Some(number) = self.next(host, Duration::ZERO) {
                *self.heard.entry((host, number)).or_default() += 1;
            }
        }
        for (&(host, number), &count) in &self.heard {
            let wanted = self.expected.get(&(host, number)).copied().unwrap_or(0);
            let what = &self.told[number as usize];
            assert!(
                count == wanted || what.starts_with("the last"),
                "host {host} heard {what} {count} times"
            );
        }
    }
}

fn addresses(host: &Host) -> Addresses {
    (host.mac, host.address)
}

fn frame(to: [u8; 6], from: [u8; 6], tags: &[u16], payload: &[u8]) -> Vec<u8> {
    let mut frame = [to, from].concat();
    for tag in tags {
        frame.extend([0x81, 0]);
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(ETHERTYPE);
    frame.extend(payload);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// Attachments by the numbers of their hosts, in one network each, and the trunk.
fn document(networks: Value, attachments: &[(u8, &str, Value)]) -> Value {
    let of = |&(n, network, ref more): &(u8, &str, Value)| {
        let dpid = if [1, 3].contains(&n) { 1 } else { 2 };
        let mut attachment = json!({"network": network, "dpid": dpid, "port": n});
        attachment.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        (format!("h{n}"), attachment)
    };
    let attachments: serde_json::Map<String, Value> = attachments.iter().map(of).collect();
    let trunk = json!({"a": {"dpid": 1, "port": TRUNK}, "b": {"dpid": 2, "port": TRUNK}});
    json!({"networks": networks, "attachments": attachments, "uplinks": {"trunk": trunk}})
}

fn one_network(attachments: &[(u8, &str, Value)]) -> Value {
    document(json!({"red": {"vlan": 10}}), attachments)
}

/// Hosts 1, 2 and 5 (native) in one network, 3 and 4 in another: every pair of hosts, broadcasts, and tags that try to
/// get from one to the other.
fn isolation(fabric: &Fabric, hosts: &[Host]) {
    let none = || json!({});
    let native = json!({"mode": "native"});
    fabric.make(&document(
        json!({"red": {"vlan": 10}, "blue": {"vlan": 20}}),
        &[
            (1, "red", none()),
            (2, "red", none()),
            (5, "red", native),
            (3, "blue", none()),
            (4, "blue", none()),
        ],
    ));
    let group = |host: usize| -> &[usize] { if [1, 2, 5].contains(&host) { &[1, 2, 5] } else { &[3, 4] } };
    let pairs = || (1..=5).flat_map(|a| (1..=5).map(move |b| (a, b))).filter(|(a, b)| a != b);
    for (a, b) in pairs().filter(|&(a, b)| group(a).contains(&b)) {
        assert!(reaches(&hosts[a - 1], &hosts[b - 1]), "host {a} to host {b}");
    }
    assert_learned(fabric, hosts);
    let mut ears = Ears::of(hosts);
    for (a, b) in pairs() {
        let others = || group(a).iter().copied().filter(|&host| host != a);
        // Who is not in the network is not known in it: the frame goes to all who are.
        let hearers: Vec<usize> = if group(a).contains(&b) { vec![b] } else { others().collect() };
        ears.frame(a, hosts[b - 1].mac, &[], &hearers);
    }
    ears.frame(1, BROADCAST, &[], &[2, 5]);
    ears.frame(4, BROADCAST, &[], &[3]);
    // VLAN 0 is a priority and no network.
    ears.frame(1, BROADCAST, &[0xa000], &[2, 5]);
    for tags in [&[10][..], &[20], &[10, 20], &[20, 20], &[0, 20], &[4095]] {
        let wanted: &[usize] = if tags == [0, 20] { &[2, 5] } else { &[] };
        ears.frame(1, BROADCAST, tags, wanted);
        for to in [hosts[1].mac, hosts[3].mac] {
            let known = tags == [0, 20] && to == hosts[1].mac;
            let hearers: &[usize] = if known {
                &[2]
            } else if tags == [0, 20] {
                &[2, 5]
            } else {
                &[]
            };
            ears.frame(1, to, tags, hearers);
        }
    }
    ears.flush(&[(1, 2), (1, 5), (3, 4), (4, 3)]);
    ears.done();
}

/// Ports that ACLs open and close, to destinations that are known and flooded.
fn acls(fabric: &Fabric, hosts: &[Host]) {
    let mut wanted = one_network(&[
        (1, "red", json!({"acls": ["out"]})),
        (2, "red", json!({"acls": ["in"]})),
        (5, "red", json!({})),
    ]);
    wanted["acls"] = json!({
        "in": {"rules": [
            {"direction": "ingress", "action": "deny", "protocol": "udp", "destination_port": 7777},
            {"direction": "ingress", "action": "allow", "protocol": "udp", "destination_port": "8000-8099", "source": "10.0.0.1"},
            {"direction": "ingress", "action": "deny", "protocol": "udp", "destination_port": "8000-8099"},
        ]},
        "out": {"rules": [
            {"direction": "egress", "action": "deny", "protocol": "udp", "destination_port": 53, "destination": "10.0.0.0/24"},
        ]},
    });
    fabric.make(&wanted);
    let mut ears = Ears::of(hosts);
    let cases: [(usize, usize, u16, bool); 10] = [
        (1, 2, 7777, false),
        (1, 2, 7778, true),
        (1, 2, 8000, true),
        (1, 2, 8099, true),
        (5, 2, 8000, false),
        (5, 2, 8099, false),
        (5, 2, 8100, true),
        (1, 2, 53, false),
        (5, 2, 53, true),
        (2, 1, 7777, true),
    ];
    let mut round = |known: bool| {
        for (from, to, port, passes) in cases {
            let ends = [from, to].map(|host| addresses(&hosts[host - 1]));
            let (hearers, what): (&[usize], _) = (if passes { &[to] } else { &[] }, format!("port {port}"));
            if known {
                ears.send(&what, from, |mark| datagram(ends[0], ends[1], [9, port], mark), hearers);
            } else {
                // To nobody in particular: everybody but those whose ACL says no.
                let everybody = |host: &usize| *host != from && (*host != 2 || passes);
                let hearers: Vec<usize> = [1, 2, 5].into_iter().filter(everybody).collect();
                let denied_outright = port == 53 && from == 1;
                let hearers = if denied_outright { vec![] } else { hearers };
                let frame = |mark: &[u8]| {
                    let mut frame = datagram(ends[0], ends[1], [9, port], mark);
                    frame[..6].copy_from_slice(&BROADCAST);
                    frame
                };
                ears.send(&what, from, frame, &hearers);
            }
        }
    };
    round(false);
    // Every host has been heard by now.
    assert_learned(fabric, [&hosts[0], &hosts[1], &hosts[4]]);
    round(true);
    ears.flush(&[(1, 2), (5, 2), (2, 1), (1, 5), (2, 5)]);
    ears.done();
    let hits =
        |acl: &str, rule: usize| fabric.get("/v1/counters")["acls"][acl]["rules"][rule]["packets"].clone();
    // The flooded one was left out by the flooding rule, which has no number of the ACL.
    for (acl, rule, count) in [("out", 0, 2), ("in", 0, 1), ("in", 1, 2), ("in", 2, 2)] {
        let right = holds_within(PATIENCE, || hits(acl, rule) == json!(count));
        assert!(right, "rule {rule} of ACL {acl}: {:#}", fabric.get("/v1/counters"));
    }
}

/// Addresses that are not a host's own do not leave it, and are counted.
fn spoofing(fabric: &Fabric, hosts: &[Host]) {
    let own = json!({"macs": ["02:00:0a:00:00:01"], "ips": ["10.0.0.1"]});
    fabric.make(&one_network(&[(1, "red", own), (2, "red", json!({})), (5, "red", json!({}))]));
    assert!(reaches(&hosts[0], &hosts[1]), "its own addresses are allowed");
    let counted = || fabric.get("/v1/counters")["attachments"]["h1"]["spoofed_packets"].as_u64().unwrap();
    assert_eq!(counted(), 0);
    let mut ears = Ears::of(hosts);
    let other = [2, 0, 0, 0, 9, 9];
    for to in [BROADCAST, hosts[1].mac] {
        for _ in 0..3 {
            ears.send("a frame of another MAC address", 1, |mark| frame(to, other, &[], mark), &[]);
        }
    }
    for _ in 0..5 {
        let from = (hosts[0].mac, hosts[2].address);
        let packet = |mark: &[u8]| datagram(from, addresses(&hosts[1]), [9, 9], mark);
        ears.send("a packet of another IP address", 1, packet, &[]);
    }
    ears.frame(1, hosts[1].mac, &[], &[2]);
    ears.flush(&[(1, 2), (1, 5)]);
    ears.done();
    let right = holds_within(PATIENCE, || counted() == 11);
    assert!(right, "{} frames counted of 11", counted());
    // The address was not learned where it does not belong.
    assert_eq!(fabric.get("/v1/addresses").to_string().matches("02:00:00:00:09:09").count(), 0);
}

/// The address of a host is known when a rule says so, on both switches.
#[track_caller]
fn assert_learned<'a>(fabric: &Fabric, hosts: impl IntoIterator<Item = &'a Host>) {
    for host in hosts {
        let rule = format!("dl_dst={}", text(host.mac));
        let known = || [1, 2].iter().all(|&dpid| fabric.flows(dpid).iter().any(|flow| flow.contains(&rule)));
        assert!(holds_within(PATIENCE, known), "{} is learned", host.address);
    }
    fabric.in_force();
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A packet of ICMPv6 or another protocol above IPv6, with the mark in an option that nobody knows.
fn ipv6(to: [u8; 6], from: [u8; 6], protocol: u8, head: &[u8], mark: &[u8]) -> Vec<u8> {
    let mut option = vec![253, 3];
    option.extend(mark);
    option.resize(24, 0);
    let mut frame = [&to[..], &from, &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    frame.extend(((head.len() + option.len()) as u16).to_be_bytes());
    frame.extend([protocol, 255]);
    frame.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, from[5]]);
    frame.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    frame.extend(head);
    frame.extend(option);
    frame
}

/// What only servers, routers and bridges send does not come from others.
fn guards(fabric: &Fabric, hosts: &[Host]) {
    let trusted = json!({"trusted": true});
    fabric.make(&one_network(&[(1, "red", json!({})), (2, "red", trusted), (5, "red", json!({}))]));
    let mut ears = Ears::of(hosts);
    for (host, hearers) in [(1, &[][..]), (2, &[1, 5][..])] {
        let (mac, from) = (hosts[host - 1].mac, addresses(&hosts[host - 1]));
        let everybody = (BROADCAST, std::net::Ipv4Addr::BROADCAST);
        ears.send("an answer by DHCP", host, |mark| datagram(from, everybody, [67, 68], mark), hearers);
        let udp = [2, 35, 2, 34, 0, 32, 0, 0];
        ears.send("an answer by DHCPv6", host, |mark| ipv6(BROADCAST, mac, 17, &udp, mark), hearers);
        let mut advertisement = [0; 16];
        advertisement[0] = 134;
        let frame = |mark: &[u8]| ipv6(BROADCAST, mac, 58, &advertisement, mark);
        ears.send("a router's advertisement", host, frame, hearers);
        for bridges in [[1, 0x80, 0xc2, 0, 0, 0], [1, 0x80, 0xc2, 0, 0, 0xe], [1, 0, 0xc, 0xcc, 0xcc, 0xcd]] {
            ears.frame(host, bridges, &[], &[]);
        }
    }
    // What a host asks of a server passes.
    let (from, everybody) = (addresses(&hosts[0]), (BROADCAST, std::net::Ipv4Addr::BROADCAST));
    ears.send("a question by DHCP", 1, |mark| datagram(from, everybody, [68, 67], mark), &[2, 5]);
    ears.flush(&[(1, 2), (2, 1), (1, 5), (2, 5)]);
    ears.done();
}

/// Who asks for the address of a known host is heard by that host alone.
fn suppression(fabric: &Fabric, hosts: &[Host]) {
    let own = json!({"macs": [text(hosts[1].mac)], "ips": ["10.0.0.2", "fd00::2"]});
    let mut wanted = one_network(&[(1, "red", json!({})), (2, "red", own), (5, "red", json!({}))]);
    wanted["networks"]["red"]["suppress"] = json!(true);
    fabric.make(&wanted);
    let mut ears = Ears::of(hosts);
    let from = hosts[0].mac;
    for (last, hearers) in [(2, &[2][..]), (99, &[2, 5][..])] {
        let request = |mark: &[u8]| {
            let mut frame = [&BROADCAST[..], &from, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &from].concat();
            frame.extend([10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, last]);
            frame.extend(mark);
            frame.resize(60, 0);
            frame
        };
        ears.send("an ARP request", 1, request, hearers);
        let mut target = [0; 24];
        (target[0], target[8], target[9], target[23]) = (135, 0xfd, 0, last);
        let to = [0x33, 0x33, 0xff, 0, 0, last];
        ears.send("a neighbour solicitation", 1, |mark| ipv6(to, from, 58, &target, mark), hearers);
    }
    ears.flush(&[(1, 2), (1, 5)]);
    ears.done();
}

/// What nobody is known for goes nowhere where that is wanted, and what is flooded has a limit.
fn flooding(fabric: &Fabric, hosts: &[Host]) {
    let mut wanted = one_network(&[(1, "red", json!({})), (2, "red", json!({})), (3, "red", json!({}))]);
    wanted["networks"]["red"]["flooding"] = json!({"unknown_unicast": false});
    fabric.make(&wanted);
    let mut ears = Ears::of(hosts);
    ears.frame(2, BROADCAST, &[], &[1, 3]);
    ears.frame(1, BROADCAST, &[], &[2, 3]);
    assert_learned(fabric, [&hosts[0], &hosts[1]]);
    ears.frame(1, [2, 0, 0, 0, 7, 7], &[], &[]);
    ears.frame(1, hosts[1].mac, &[], &[2]);
    ears.flush(&[(1, 2)]);
    ears.done();

    // A limit in packets: what the meter lets pass arrives, and nothing else.
    wanted["networks"]["red"]["flooding"] = json!({"limit_pps": 20});
    fabric.make(&wanted);
    let meter = || {
        let meter = fabric.get("/stats/meter/1/10")["1"][0].take();
        let number = |value: &Value| value.as_u64().unwrap();
        (number(&meter["packet_in_count"]), number(&meter["band_stats"][0]["packet_band_count"]))
    };
    let (wire, to) = (Wire::of(&hosts[0]), Wire::of(&hosts[2]));
    let storm = frame(BROADCAST, hosts[0].mac, &[], &[0x5a; 777]);
    let before = meter();
    (0..300).for_each(|_| wire.send(&storm));
    let counts = || (meter().0 - before.0, meter().1 - before.1);
    let mut delivered = 0;
    while to.receive(SILENCE, |bytes| bytes.len() == storm.len()).is_some() {
        delivered += 1;
    }
    let right = holds_within(PATIENCE, || counts().1 > 0 && counts().0 - counts().1 == delivered);
    assert!(right, "(came, dropped) {:?}, and {delivered} passed", counts());
}

/// An address that turns up at another port is there from then on; a loop is cut and nobody else feels it.
fn moves_and_loops(fabric: &Fabric, hosts: &[Host]) {
    fabric.make(&one_network(&[(1, "red", json!({})), (2, "red", json!({})), (3, "red", json!({}))]));
    let guest = [2, 0, 0, 0, 8, 8];
    let mut ears = Ears::of(hosts);
    for (host, others) in [(1, [2, 3]), (3, [1, 2])] {
        ears.send("a frame of a guest", host, |mark| frame(BROADCAST, guest, &[], mark), &others);
        let port = || {
            let list = fabric.get("/v1/addresses?mac=02:00:00:00:08:08")["addresses"].take();
            let on = |entry: &&Value| entry["dpid"] == 1;
            list.as_array().unwrap().iter().find(on).map(|entry| entry["port"].clone())
        };
        assert!(holds_within(PATIENCE, || port() == Some(json!(host))), "{:?}, not {host}", port());
        // The controller knows before the switch does, which is told this rule last.
        let parts = [format!("in_port={host},"), format!("dl_src={}", text(guest))];
        let told = || fabric.flows(1).iter().any(|flow| parts.iter().all(|part| flow.contains(part)));
        assert!(holds_within(PATIENCE, told), "{:#?}", fabric.flows(1));
    }
    fabric.in_force();
    ears.frame(2, guest, &[], &[3]);
    ears.flush(&[(2, 3), (2, 1), (1, 2), (3, 2)]);
    ears.done();

    let mut wanted = one_network(&[(1, "red", json!({})), (2, "red", json!({}))]);
    wanted["networks"]["red"]["ports"] = json!([6, 7].map(|port| json!({"dpid": 1, "port": port})));
    fabric.make(&wanted);
    let shut = || {
        let ports = fabric.get("/v1/switches/1/ports")["ports"].take();
        let shut = |port: &&Value| port["shut"].is_string();
        ports.as_array().unwrap().iter().filter(shut).map(|port| port["port"].clone()).collect::<Vec<_>>()
    };
    assert!(holds_within(PATIENCE, || !shut().is_empty()), "{:#}", fabric.get("/v1/switches/1/ports"));
    assert!(shut().iter().all(|port| [json!(6), json!(7)].contains(port)), "{:?}", shut());
    assert!(reaches(&hosts[0], &hosts[1]));
}

/// An observer gets each frame of a host, and of a network, once.
fn mirrors(fabric: &Fabric, hosts: &[Host]) {
    let members = [(1, "red", json!({})), (2, "red", json!({})), (5, "red", json!({}))];
    for source in [json!({"attachment": "h1"}), json!({"network": "red"})] {
        let mut wanted = one_network(&members);
        wanted["mirrors"] = json!({"observer": {"source": source, "to": {"dpid": 1, "port": 3}}});
        fabric.make(&wanted);
        assert!(reaches(&hosts[0], &hosts[1]) && reaches(&hosts[0], &hosts[4]));
        let mut ears = Ears::of(hosts);
        for _ in 0..10 {
            ears.frame(1, hosts[1].mac, &[], &[2, 3]);
            ears.frame(2, hosts[0].mac, &[], &[1, 3]);
        }
        ears.frame(5, BROADCAST, &[], &[1, 2, 3]);
        ears.frame(1, BROADCAST, &[], &[2, 3, 5]);
        // Not of host 1, and not on its switch.
        ears.frame(2, hosts[4].mac, &[], &[5]);
        // The observer is in no network.
        ears.frame(3, BROADCAST, &[], &[]);
        ears.flush(&[(1, 2), (2, 1), (1, 5)]);
        ears.done();
    }
}

/// What host 1 and the others exchange passes through a function; without it, nothing passes.
fn chain(fabric: &Fabric, hosts: &[Host], function: &xtask::lab::netns::Namespace) {
    let mut wanted = one_network(&[(1, "red", json!({})), (2, "red", json!({})), (3, "red", json!({}))]);
    let hop = json!({"inside": {"dpid": 1, "port": 6}, "outside": {"dpid": 1, "port": 7}});
    wanted["chains"] = json!({"firewall": {"network": "red", "inside": ["h1"], "hops": [hop]}});
    fabric.make(&wanted);
    let inside = Wire::open(function, "eth0");
    assert_reach(&hosts[..3], &[&[1, 2, 3]]);
    let mut ears = Ears::of(hosts);
    for _ in 0..5 {
        ears.frame(1, hosts[1].mac, &[], &[2]);
        ears.frame(1, hosts[2].mac, &[], &[3]);
        ears.frame(3, hosts[1].mac, &[], &[2]);
    }
    ears.frame(1, BROADCAST, &[], &[2, 3]);
    ears.flush(&[(1, 2), (2, 1), (1, 3)]);
    ears.done();
    let seen =
        |frame: &[u8]| frame.windows(MARK.len()).any(|window| window == MARK) && frame[6..12] == hosts[0].mac;
    let mut count = 0;
    while inside.receive(Duration::ZERO, seen).is_some() {
        count += 1;
    }
    assert_eq!(count, 11 + 2, "frames of host 1 in the function");
    ip(&format!("-n {} link set bridge down", function.name)).unwrap();
    assert!(parted(&hosts[0], &hosts[1]) && parted(&hosts[2], &hosts[0]), "nothing passes the function by");
    assert!(reaches(&hosts[2], &hosts[1]), "others do not need it");
    ip(&format!("-n {} link set bridge up", function.name)).unwrap();
    assert!(reaches(&hosts[0], &hosts[1]));
}

/// Frames over a small and a large limit: what passes is within 5 % of what the limit allows for the time that it took, and
/// every frame is accounted for. A burst of 1.5 s bridges the moments in which a loaded machine sends nothing.
fn rates(fabric: &Fabric, hosts: &[Host]) {
    for host in [&hosts[0], &hosts[2]] {
        // Nobody else speaks.
        ip(&format!("-n {} link set eth0 arp off", host.namespace.name)).unwrap();
    }
    for average in [64u32, 6400] {
        let burst = average + average / 2;
        let rate = json!({"rates": {"outbound": {"average": average, "burst": burst}}});
        fabric.make(&one_network(&[(1, "red", rate), (3, "red", json!({}))]));
        let mut ears = Ears::of(hosts);
        ears.frame(1, BROADCAST, &[], &[3]);
        ears.frame(3, BROADCAST, &[], &[1]);
        let meter = || {
            let meter = fabric.get("/stats/meter/1")["1"][0].take();
            let number = |value: &Value| value.as_u64().unwrap();
            (number(&meter["packet_in_count"]), number(&meter["band_stats"][0]["packet_band_count"]))
        };
        let before = meter();
        let Passed { sent, sending, delivered, until_last } = offer(hosts, 3.0 * f64::from(average));
        let counts = || (meter().0 - before.0, meter().1 - before.1);
        // A loaded machine may lose frames before the meter sees them, none behind it.
        let right = holds_within(PATIENCE, || counts().0 - counts().1 == delivered && counts().1 > 0);
        assert!(right, "of {sent} frames (came, dropped) {:?}, and {delivered} passed", counts());
        let allowed =
            |seconds: f64| (f64::from(average) * seconds + f64::from(burst)) * 1024.0 / RATE_FRAME as f64;
        // The switch sees the last frame between the two moments.
        let (least, most) = (allowed(sending).min(counts().0 as f64), allowed(until_last));
        println!(
            "{average} KiB/s: {delivered} of {sent} frames passed, {:.3} of the limit",
            delivered as f64 / allowed(sending)
        );
        let within = (0.95 * least..=1.05 * most).contains(&(delivered as f64));
        assert!(within, "{average} KiB/s: {delivered} frames passed, {least:.0} to {most:.0} expected");
    }
}

/// Bytes of a frame that tries a rate.
const RATE_FRAME: usize = 1000;

/// What passed of frames that were sent.
struct Passed {
    sent: u64,
    /// Seconds from the first frame sent to the last.
    sending: f64,
    delivered: u64,
    /// Seconds from the first frame sent to the last received.
    until_last: f64,
}

/// Sends from host 1 to host 3 for a while, so many KiB/s by the clock.
fn offer(hosts: &[Host], per_second: f64) -> Passed {
    const SECONDS: f64 = 3.0;
    let (wire, to) = (Wire::of(&hosts[0]), Wire::of(&hosts[2]));
    let frame = frame(hosts[2].mac, hosts[0].mac, &[], &[0x5a; RATE_FRAME - 14]);
    let frames_per_second = per_second * 1024.0 / RATE_FRAME as f64;
    let over = AtomicBool::new(false);
    let begin = Instant::now();
    let seconds = || begin.elapsed().as_secs_f64();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut delivered, mut until_last) = (0, 0.0);
            loop {
                let last = over.load(Ordering::Acquire);
                match to.receive(SILENCE, |bytes| bytes.len() == frame.len()) {
                    Some(_) => (delivered, until_last) = (delivered + 1, seconds()),
                    None if last => return (delivered, until_last),
                    None => {}
                }
            }
        });
        let (mut sent, mut sending) = (0u64, 0.0);
        while sending < SECONDS {
            while (sent as f64) < sending * frames_per_second {
                wire.send(&frame);
                sent += 1;
            }
            std::thread::sleep(Duration::from_millis(1));
            sending = seconds();
        }
        over.store(true, Ordering::Release);
        let (delivered, until_last) = receiver.join().unwrap();
        Passed { sent, sending, delivered, until_last }
    })
}

fn everything(make: Make) {
    let (fabric, hosts) = Fabric::with_hosts(make);
    let function = fabric.add_function(1, [6, 7]);
    isolation(&fabric, &hosts);
    acls(&fabric, &hosts);
    spoofing(&fabric, &hosts);
    mirrors(&fabric, &hosts);
    chain(&fabric, &hosts, &function);
    guards(&fabric, &hosts);
    suppression(&fabric, &hosts);
    flooding(&fabric, &hosts);
    moves_and_loops(&fabric, &hosts);
    // At last: it takes ARP away from hosts.
    rates(&fabric, &hosts);
}

#[test]
fn networks_on_open_vswitch() {
    everything(Make::OpenVSwitch);
}

#[test]
fn networks_on_our_switch() {
    everything(Make::Sluice);
}
