//! What reaches the controller from outside: a switch that says anything at any time, and wishes made of the words that it
//! knows. A session ends or goes on; a wish that is taken is written and read the same, and every rule that follows from it
//! can be sent.

#![no_main]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use ofp::{
    Body, Capabilities, Hello, MacAddr, Message, MultipartReply, Port, PortNo, PortState, SwitchFeatures,
};
use sdn_controller::controller::{Controller, Options};
use sdn_controller::edit::Edit;
use sdn_controller::entry;
use sdn_controller::layout::Layout;
use sdn_controller::metrics::Metrics;
use sdn_controller::model::{Desired, Dpid, Item, Kind, Subject, VlanRange};
use sdn_controller::plan::{Abilities, Plan};
use sdn_controller::store::Store;
use serde_json::{Map, Value, json};
use telemetry::Registry;
use telemetry::check::Errors;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;

/// Words of the model; keys and values alike, so that all of them come to stand in all places.
const WORDS: &[&str] = &[
    "tenant",
    "description",
    "ports",
    "rules",
    "default",
    "direction",
    "ingress",
    "egress",
    "action",
    "allow",
    "deny",
    "ether",
    "ipv4",
    "ipv6",
    "arp",
    "protocol",
    "tcp",
    "udp",
    "icmp",
    "icmpv6",
    "source",
    "destination",
    "source_mac",
    "source_port",
    "destination_port",
    "icmp_type",
    "vlan",
    "auto",
    "mtu",
    "flooding",
    "unknown_unicast",
    "limit_pps",
    "acls",
    "guard",
    "suppress",
    "dpid",
    "port",
    "mode",
    "access",
    "trunk",
    "native",
    "network",
    "macs",
    "ips",
    "rates",
    "inbound",
    "outbound",
    "average",
    "peak",
    "burst",
    "trusted",
    "a",
    "b",
    "attachment",
    "both",
    "to",
    "inside",
    "outside",
    "hops",
    "vlans",
    "table",
    "priority",
    "match",
    "actions",
    "instructions",
    "apply_actions",
    "write_actions",
    "goto_table",
    "meter",
    "output",
    "group",
    "set_field",
    "push_vlan",
    "pop_vlan",
    "in_port",
    "eth_type",
    "eth_dst",
    "vlan_vid",
    "ip_proto",
    "ipv4_src",
    "ipv6_dst",
    "tcp_dst",
    "CONTROLLER",
    "0x1000/0x1000",
    "02:00:00:00:00:01",
    "10.0.0.0/8",
    "10.0.0.5",
    "fd00::5",
    "fd00::/64",
    "8000-8999",
    "p1",
];
const NUMBERS: &[u64] = &[
    0,
    1,
    2,
    3,
    4,
    6,
    10,
    17,
    58,
    100,
    1500,
    2048,
    2054,
    4094,
    4095,
    34525,
    65535,
    65536,
    1 << 32,
    u64::MAX,
];
const DPID: Dpid = Dpid(1);

/// Bytes that decide, one after the other; no more than there are.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> Option<T> {
        self.next().map(|byte| list[usize::from(byte) % list.len()])
    }

    fn value(&mut self, depth: u32) -> Option<Value> {
        Some(match self.next()? % 8 {
            0..=1 => json!(self.of(WORDS)?),
            2..=3 => json!(self.of(NUMBERS)?),
            4 => json!(self.next()? % 2 == 0),
            5 if depth > 0 => self.list(depth - 1),
            6..=7 if depth > 0 => self.object(depth - 1),
            _ => Value::Null,
        })
    }

    fn list(&mut self, depth: u32) -> Value {
        let count = self.next().unwrap_or(0) % 4;
        (0..count).map_while(|_| self.value(depth)).collect()
    }

    fn object(&mut self, depth: u32) -> Value {
        let mut object = Map::new();
        for _ in 0..self.next().unwrap_or(0) % 6 {
            let (Some(key), Some(value)) = (self.of(WORDS), self.value(depth)) else { break };
            object.insert(key.to_owned(), value);
        }
        object.into()
    }
}

/// What each kind needs, so that most wishes get past the first look.
fn needed(kind: Kind) -> Value {
    let at = |dpid: u64, port: u32| json!({"dpid": dpid, "port": port});
    match kind {
        Kind::Tenant | Kind::Network | Kind::Flow => json!({}),
        Kind::Acl => json!({"rules": [{"direction": "ingress", "action": "deny", "protocol": "tcp"}]}),
        Kind::Attachment => json!({"network": "x", "dpid": 1, "port": 1}),
        Kind::Uplink => json!({"a": at(1, 3)}),
        Kind::Mirror => json!({"source": {"network": "x"}, "to": at(1, 4)}),
        Kind::Chain => {
            json!({"network": "x", "inside": ["x"], "hops": [{"inside": at(1, 5), "outside": at(1, 6)}]})
        }
    }
}

fn ports() -> BTreeMap<PortNo, Port> {
    let port = |number: u32| {
        let mac = MacAddr([2, 0, 0, 0, 0, number as u8]);
        (
            PortNo(number),
            Port { state: PortState::LIVE, ..Port::new(PortNo(number), mac, &format!("p{number}")) },
        )
    };
    (1..=8).map(port).collect()
}

/// Wishes, one after the other, as the controller would take them.
fn wishes(data: &[u8]) {
    let mut choices = Choices(data);
    let (mut desired, mut layout) = (Desired::default(), Layout::default());
    while let Some(kind) = choices.of(Kind::ALL) {
        let mut value = needed(kind);
        if let (Value::Object(more), Some(object)) = (choices.object(4), value.as_object_mut()) {
            object.extend(more);
        }
        let Some(item) = Item::from_json(kind, value, &mut Errors::new()) else { continue };
        let name = choices.of(&["x", "y"]).unwrap_or("x");
        let subject = if kind == Kind::Flow { Subject::flow(DPID, name) } else { Subject::new(kind, name) };
        let mut after = desired.clone();
        after.set(&subject, Some(item), None);
        if after.complete(&desired, VlanRange::default()).is_err() {
            continue;
        }
        let (_, item) = after.get(&subject).expect("it was put in");
        let again = Item::from_json(kind, item.to_json(), &mut Errors::new());
        assert_eq!(again.as_ref(), Some(&item), "{}", item.to_json());
        if !after.conflicts().is_empty() {
            continue;
        }
        layout = Layout::new(&after, &layout);
        let fresh = Layout::new(&after, &Layout::default());
        assert_eq!(layout.of(DPID), fresh.of(DPID), "what is laid out does not depend on what was");
        let plan = Plan::new(&layout.of(DPID), &ports(), Abilities { meter_max: 1 << 18, bundles: true });
        for (key, body) in &plan.flows {
            // One that is too long for a message is shown as refused.
            let message = Message { xid: 1, body: Body::FlowMod(entry::add(key, body)) };
            assert!(message.encode().is_ok() || body.instructions.len() > 1000, "{message:?}");
        }
        desired = after;
    }
}

/// A controller with a network, and a runtime to be asked in.
struct Bed {
    runtime: Runtime,
    controller: Arc<Controller>,
    _directory: tempfile::TempDir,
}

static BED: LazyLock<Bed> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, desired) = Store::open(directory.path()).expect("a store");
    let options = Options {
        probe_interval: Some(std::time::Duration::from_secs(1)),
        loop_hold: Some(std::time::Duration::from_secs(1)),
        ..Options::default()
    };
    let controller = Controller::new(store, desired, Metrics::new(&Registry::new()), options);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let sets = [
        (Kind::Network, json!({"vlan": 10, "flooding": {"limit_pps": 100}})),
        (Kind::Attachment, json!({"network": "x", "dpid": 1, "port": 1, "macs": ["02:00:00:00:00:01"]})),
    ];
    let item = |(kind, value): (Kind, Value)| {
        let item = Item::from_json(kind, value, &mut Errors::new()).expect("a good one");
        (Subject::new(kind, "x"), Some(item))
    };
    let edit = Edit::new(sets.map(item).into());
    let who = sdn_controller::auth::Identity::controller();
    runtime.block_on(controller.change(&who, &edit)).expect("it is stored");
    Bed { runtime, controller, _directory: directory }
});

fn encoded(xid: u32, body: Body) -> Vec<u8> {
    Message { xid, body }.encode().expect("it can be written")
}

/// The beginning of a good session: who the switch is, and its ports.
fn introduction() -> Vec<u8> {
    let features = SwitchFeatures {
        datapath_id: DPID.0,
        n_buffers: 0,
        n_tables: 16,
        auxiliary_id: 0,
        capabilities: Capabilities(0),
    };
    let ports: Vec<Port> = ports().into_values().collect();
    [
        encoded(1, Body::Hello(Hello::default())),
        encoded(2, Body::FeaturesReply(features)),
        encoded(3, Body::MultipartReply(MultipartReply::Desc(Box::default()))),
        encoded(4, Body::MultipartReply(MultipartReply::PortDesc(ports))),
    ]
    .concat()
}

/// Messages with good headers whose numbers are those of requests, or nearly.
fn messages(data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = data;
    while let [kind, xid, length, behind @ ..] = rest {
        let body = &behind[..usize::from(*length).min(behind.len())];
        rest = &behind[body.len()..];
        bytes.extend([ofp::VERSION, kind % 40]);
        bytes.extend((body.len() as u16 + 8).to_be_bytes());
        bytes.extend(u32::from(*xid % 16).to_be_bytes());
        bytes.extend(body);
    }
    bytes
}

fn session(bytes: &[u8]) {
    let Bed { runtime, controller, .. } = &*BED;
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    let (mut read, mut write) = tokio::io::split(theirs);
    let talk = async {
        // It may have had enough of us.
        let _ = write.write_all(bytes).await;
        let _ = write.shutdown().await;
    };
    let listen = async {
        let mut said = Vec::new();
        let _ = read.read_to_end(&mut said).await;
        let mut framer = ofp::Framer::new();
        let mut rest = said.as_slice();
        while !rest.is_empty() {
            rest = &rest[framer.push(rest)..];
            while let Some(message) = framer.pop().expect("whole messages") {
                ofp::decode(message).expect("good messages");
            }
        }
    };
    runtime.block_on(async {
        tokio::join!(sdn_controller::session::serve(controller.clone(), ours, peer), talk, listen)
    });
    assert!(controller.switches().is_empty(), "the session is over");
}

fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((0..=127, rest)) => wishes(rest),
        Some((128..=240, rest)) => session(&[introduction(), messages(rest)].concat()),
        Some((_, rest)) => session(rest),
        None => {}
    }
});
