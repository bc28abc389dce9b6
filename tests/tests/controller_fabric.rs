//! What networks promise to those in them, on Open vSwitch and on our switch: two switches with a trunk, hosts around
//! them, real frames.

#![allow(clippy::print_stdout, reason = "figures for who asks for them")]

use std::collections::BTreeMap;
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
    // Every host has been heard by now; its address is known when a rule says so.
    let known = |host: &Host| {
        let mac = host.mac.map(|byte| format!("{byte:02x}")).join(":");
        let rule = format!("dl_dst={mac}");
        [1, 2].iter().all(|&dpid| fabric.flows(dpid).iter().any(|flow| flow.contains(&rule)))
    };
    for host in [&hosts[0], &hosts[1], &hosts[4]] {
        assert!(holds_within(PATIENCE, || known(host)), "{} is learned", host.address);
    }
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

/// Frames over a small and a large limit: what passes is about the limit, and every frame is accounted for. (How exact
/// it is, a bench says: it needs a quiet machine.)
fn rates(fabric: &Fabric, hosts: &[Host]) {
    const BYTES: usize = 1000;
    for host in [&hosts[0], &hosts[2]] {
        // Nobody else speaks.
        ip(&format!("-n {} link set eth0 arp off", host.namespace.name)).unwrap();
    }
    for (average, seconds) in [(64u32, 1.5), (6400, 1.0)] {
        let rate = json!({"rates": {"outbound": {"average": average}}});
        fabric.make(&one_network(&[(1, "red", rate), (3, "red", json!({}))]));
        let mut ears = Ears::of(hosts);
        ears.frame(1, BROADCAST, &[], &[3]);
        ears.frame(3, BROADCAST, &[], &[1]);
        let meter = || {
            let answer = fabric.get("/stats/meter/1");
            let meter = answer["1"][0].clone();
            let number = |value: &Value| value.as_u64().unwrap();
            let dropped = &meter["band_stats"][0];
            (number(&meter["packet_in_count"]), number(&dropped["packet_band_count"]))
        };
        let (wire, to) = (Wire::of(&hosts[0]), Wire::of(&hosts[2]));
        let frame = frame(hosts[2].mac, hosts[0].mac, &[], &[0x5a; BYTES - 14]);
        let before = meter();
        // Three times the limit, by the clock.
        let per_second = 3.0 * f64::from(average) * 1024.0 / BYTES as f64;
        let (begin, mut sent) = (Instant::now(), 0u64);
        let mut lasted = 0.0;
        while lasted < seconds {
            while (sent as f64) < lasted * per_second {
                wire.send(&frame);
                sent += 1;
            }
            std::thread::sleep(Duration::from_millis(1));
            lasted = begin.elapsed().as_secs_f64();
        }
        let counts = || {
            let (seen, dropped) = meter();
            (seen - before.0, dropped - before.1)
        };
        let mut delivered = 0;
        while to.receive(SILENCE, |bytes| bytes.len() == frame.len()).is_some() {
            delivered += 1;
        }
        // A loaded machine may lose frames before the meter sees them, none behind it.
        let right = holds_within(PATIENCE, || counts().0 - counts().1 == delivered && counts().1 > 0);
        assert!(right, "of {sent} frames (came, dropped) {:?}, and {delivered} passed", counts());
        let burst = f64::from((average / 10).max(32));
        let expected = (f64::from(average) * lasted + burst) * 1024.0 / BYTES as f64;
        let share = delivered as f64 / expected;
        println!(
            "{average} KiB/s over {lasted:.2} s: {delivered} of {sent} frames passed, {share:.3} of the limit"
        );
        assert!(
            (0.7..1.3).contains(&share),
            "{average} KiB/s: {delivered} frames passed, {expected:.0} expected"
        );
    }
}

fn everything(make: Make) {
    let (fabric, hosts) = Fabric::with_hosts(make);
    let function = fabric.add_function(1, [6, 7]);
    isolation(&fabric, &hosts);
    acls(&fabric, &hosts);
    spoofing(&fabric, &hosts);
    mirrors(&fabric, &hosts);
    chain(&fabric, &hosts, &function);
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
