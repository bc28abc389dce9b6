//! Nothing drops: edits of a running network, the controller's death and its return, a switch that comes back; on Open
//! vSwitch and on our switch, with a stream of packets between hosts that none of it concerns.

use std::hash::{BuildHasher as _, DefaultHasher, Hash as _, Hasher as _, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tests::fabric::{Fabric, Make, PATIENCE, REPLY, TRUNK, reaches};
use tests::holds_within;
use tests::wire::Wire;
use xtask::lab::netns::Host;

const EDITS: usize = 100;
/// Between two packets of the stream.
const PAUSE: Duration = Duration::from_millis(1);
const MARK: &[u8] = b"hitless-";
/// Seconds from the first rule that a switch is sent to the last that it has confirmed.
const CONVERGED: f64 = 1.0;

/// Packets from the first of two hosts to the second while `work` is done. What was lost, and sent.
fn under_stream(hosts: [&Host; 2], work: impl FnOnce()) -> (u64, u64) {
    let (from, to) = (Wire::of(hosts[0]), Wire::of(hosts[1]));
    let [source, destination] = hosts.map(|host| host.mac);
    let over = AtomicBool::new(false);
    // Whether it is the last one.
    let mark = |frame: &[u8]| frame.get(14..)?.strip_prefix(MARK)?.first().map(|last| *last == 1);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0u64;
            loop {
                let last = over.load(Ordering::Relaxed);
                let mut frame = [&destination[..], &source, &[0x88, 0xb5], MARK, &[u8::from(last)]].concat();
                frame.resize(60, 0);
                from.send(&frame);
                sent += 1;
                if last {
                    return sent;
                }
                std::thread::sleep(PAUSE);
            }
        });
        let receiver = scope.spawn(|| {
            let mut got = 0u64;
            while let Some(frame) = to.receive(REPLY, |frame| mark(frame).is_some()) {
                got += 1;
                if mark(&frame) == Some(true) {
                    break;
                }
            }
            got
        });
        work();
        over.store(true, Ordering::Relaxed);
        let sent = sender.join().expect("the stream");
        let got = receiver.join().expect("the stream's end");
        assert!(got <= sent, "{got} of {sent} packets");
        (sent - got, sent)
    })
}

/// Hosts 1 and 2 over the trunk, whom nothing concerns; host 3 and others are edited.
fn setup(make: Make) -> (Fabric, Vec<Host>) {
    let (fabric, hosts) = Fabric::with_hosts(make);
    let trunk = json!({"a": {"dpid": 1, "port": TRUNK}, "b": {"dpid": 2, "port": TRUNK}});
    let at = |dpid: u64, port: u32| json!({"network": "red", "dpid": dpid, "port": port});
    fabric.make(&json!({
        "networks": {"red": {"vlan": 10}, "blue": {"vlan": 20}},
        "attachments": {"h1": at(1, 1), "h2": at(2, 2), "h4": {"network": "blue", "dpid": 2, "port": 4}},
        "uplinks": {"trunk": trunk},
    }));
    assert!(reaches(&hosts[0], &hosts[1]) && reaches(&hosts[1], &hosts[0]));
    // Known on both switches by now; the stream is not flooded.
    for host in &hosts[..2] {
        let rule = format!("dl_dst={}", host.mac.map(|byte| format!("{byte:02x}")).join(":"));
        let known = || [1, 2].iter().all(|&dpid| fabric.flows(dpid).iter().any(|flow| flow.contains(&rule)));
        assert!(holds_within(PATIENCE, known), "{} is learned", host.address);
    }
    (fabric, hosts)
}

/// One of the edits that operators make, by chance; `None` deletes.
fn edit(choice: u32) -> (String, Option<Value>) {
    let (what, how) = (choice % 8, choice / 8);
    let network = ["red", "blue"][how as usize % 2];
    let set = |path: &str, body: Value| (format!("/v1/{path}"), Some(body));
    let rate = 100 + how % 1000;
    let rule =
        json!({"direction": "egress", "action": "deny", "protocol": "udp", "destination_port": how % 60_000});
    match what {
        0 => set("attachments/h3", json!({"network": network, "dpid": 1, "port": 3})),
        1 => set(
            "attachments/h3",
            json!({"network": network, "dpid": 1, "port": 3, "macs": ["02:00:0a:00:00:03"]}),
        ),
        2 => set(
            "attachments/h5",
            json!({"network": network, "dpid": 2, "port": 5, "rates": {"outbound": {"average": rate}}}),
        ),
        3 => set("attachments/h4", json!({"network": "blue", "dpid": 2, "port": 4, "acls": ["a"]})),
        4 => set("acls/a", json!({"rules": [rule]})),
        5 => set("networks/blue", json!({"vlan": 20 + how % 50})),
        6 => set(
            &format!("networks/n{}", how % 5),
            json!({"vlan": 100 + how % 5, "ports": [{"dpid": 1, "port": 7}]}),
        ),
        _ => (
            ["/v1/attachments/h3", "/v1/attachments/h5", "/v1/networks/n1"][how as usize % 3].to_owned(),
            None,
        ),
    }
}

fn edits(make: Make) {
    let (fabric, hosts) = setup(make);
    let seed = RandomState::new().hash_one(0);
    let mut made = 0;
    fabric.apply("/v1/acls/a", &json!({"rules": []}));
    let (lost, sent) = under_stream([&hosts[0], &hosts[1]], || {
        for count in 0..EDITS {
            let (path, body) = edit(chance(seed, count));
            let method = if body.is_some() { hyper::Method::PUT } else { hyper::Method::DELETE };
            let answer = fabric.request(method, &path, body.as_ref());
            // What contradicts what is there is refused, and what is gone cannot be deleted.
            let status = answer.status.as_u16();
            assert!([200, 404, 409].contains(&status), "{path} {body:?}: {status} {}", answer.body);
            made += u32::from(status == 200);
        }
    });
    assert!(made > EDITS as u32 / 2, "{made} edits were made");
    assert_eq!(lost, 0, "of {sent} packets, over {made} edits of seed {seed}");
}

/// A number by chance; the same for the same seed.
fn chance(seed: u64, count: usize) -> u32 {
    let mut hasher = DefaultHasher::new();
    (seed, count).hash(&mut hasher);
    hasher.finish() as u32
}

fn deaths(make: Make) {
    let (mut fabric, hosts) = setup(make);
    fabric.count_flow_mods();
    let before = fabric.flow_mods();
    let learned = |fabric: &Fabric| fabric.metric("sluice_controller_addresses_learned_total", &[]) as u64;
    // The sum of what was sent must not be more than what was learned meanwhile: two rules for each address and switch.
    let fabric_at = std::sync::Mutex::new(&mut fabric);
    let (lost, sent) = under_stream([&hosts[0], &hosts[1]], || {
        let mut fabric = fabric_at.lock().expect("one at a time");
        for _ in 0..3 {
            fabric.kill_controller();
            fabric.start_controller();
            fabric.settled(2);
        }
    });
    assert_eq!(lost, 0, "of {sent} packets, over three deaths of the controller");
    let told = fabric.flow_mods() - before;
    let needed = 2 * learned(&fabric);
    assert!(told <= needed, "{told} flow-mods after restarts, and {needed} for addresses");

    // A change shows that they are counted at all.
    fabric.apply("/v1/networks/blue", &json!({"vlan": 30}));
    assert!(fabric.flow_mods() > before + told, "flow-mods are counted");

    // A switch that comes back empty has everything within a second, as the controller counts it.
    let returned = if make == Make::Sluice { 1.0 } else { 2.0 };
    let count = |fabric: &Fabric| fabric.metric("sluice_controller_reconcile_seconds_count", &[]);
    let seconds = |fabric: &Fabric| fabric.metric("sluice_controller_reconcile_seconds_sum", &[]);
    let before = (count(&fabric), seconds(&fabric));
    fabric.restart_switch(2);
    let back = holds_within(PATIENCE, || count(&fabric) >= before.0 + returned);
    assert!(back, "{:#}", fabric.get("/v1/switches"));
    fabric.settled(2);
    let took = seconds(&fabric) - before.1;
    assert!(took < CONVERGED, "{took} s from the first rule to the last barrier");
    assert!(reaches(&hosts[0], &hosts[1]));
}

#[test]
fn edits_on_open_vswitch() {
    edits(Make::OpenVSwitch);
}

#[test]
fn edits_on_our_switch() {
    edits(Make::Sluice);
}

#[test]
fn deaths_on_open_vswitch() {
    deaths(Make::OpenVSwitch);
}

#[test]
fn deaths_on_our_switch() {
    deaths(Make::Sluice);
}
