//! Random flow-mods: what decodes is carried out or refused whole, and the cache decides as the tables do.

use std::sync::{Arc, Mutex};

use ofp::{Action, Body, FlowMod, FlowModCommand, Instruction, Masked, Message, OxmField};
use packet::field;
use proptest::prelude::*;
use vswitch::bridge::{Bridge, BridgeConfig, Change};
use vswitch::fdb::Fdb;
use vswitch::flow_tables::Selection;
use vswitch::forwarder::{Forwarder, VerdictId};
use vswitch::model::{Clock, Fence, PacketOut, PortCounters, PortNo, Snapshot, SwitchControl};
use vswitch::openflow::{convert, flow_mod};
use vswitch::pipeline::{Decision, decide};

const LIMIT: usize = 16;

/// Keeps the latest snapshot.
#[derive(Default)]
struct Data(Mutex<Option<Arc<Snapshot>>>);

struct Control(Arc<Data>);

impl SwitchControl for Control {
    fn workers(&self) -> usize {
        1
    }
    fn publish(&self, snapshot: Arc<Snapshot>) {
        *self.0.0.lock().unwrap() = Some(snapshot);
    }
    fn fence(&self, _: Fence) {}
    fn drain_counters(&self, _: Fence) {}
    fn packet_out(&self, _: PacketOut) -> bool {
        true
    }
    fn port_counters(&self, _: PortNo) -> Option<PortCounters> {
        None
    }
}

/// A legal flow-mod; the input changes some of its bytes.
fn template(kind: u8) -> FlowMod {
    let command = FlowModCommand::ALL[usize::from(kind) % FlowModCommand::ALL.len()];
    let mut flow_mod = FlowMod::new(command);
    flow_mod.priority = u16::from(kind >> 4);
    let tcp = [OxmField::EthType(0x0800), OxmField::IpProto(6), OxmField::TcpDst(Masked::exact(80))];
    let vlan = [OxmField::VlanVid(Masked::exact(0x100a))];
    flow_mod.matching.fields = match kind >> 3 & 3 {
        0 => vec![],
        1 => tcp.to_vec(),
        2 => vlan.to_vec(),
        _ => vec![OxmField::InPort(ofp::PortNo(1)), OxmField::EthDst(Masked::exact(ofp::MacAddr([2; 6])))],
    };
    let output = Action::Output { port: ofp::PortNo(2), max_len: 0xffff };
    flow_mod.instructions = match kind >> 5 {
        0 => vec![],
        1 => vec![Instruction::ApplyActions(vec![Action::PopVlan, output]), Instruction::GotoTable(3)],
        2 => vec![Instruction::WriteActions(vec![output]), Instruction::GotoTable(1)],
        3 => vec![Instruction::WriteMetadata { metadata: 1, mask: 3 }, Instruction::GotoTable(2)],
        4 => vec![Instruction::ApplyActions(vec![
            Action::PushVlan(0x8100),
            Action::SetField(vlan[0].clone()),
            output,
        ])],
        _ => vec![Instruction::ApplyActions(vec![output])],
    };
    flow_mod
}

fn check(bridge: &Bridge, snapshot: &Arc<Snapshot>) {
    let flows = bridge.flows(&Selection::all()).expect("all tables exist");
    assert!(flows.len() <= LIMIT);
    assert_eq!(flows.len(), snapshot.tables.len());
    let mut forwarder = Forwarder::new(0, snapshot.clone(), Arc::new(Fdb::new(1, 1, 1)), 1);
    let mut decision = Decision::default();
    // Packets that match flows, and their neighbours.
    let keys = flows.iter().flat_map(|flow| {
        let port = flow.key().get(field::IN_PORT);
        [flow.key(), flow.key().with(field::IN_PORT, port ^ 1), flow.key().with(field::VLAN_TCI_2, 0x1005)]
    });
    for key in keys {
        // Twice: decided, then found.
        for _ in 0..2 {
            let mut verdict = [VerdictId::default()];
            forwarder.classify(&[key], &[60], &mut verdict, 1);
            decide(&snapshot.tables, &key, &mut decision);
            assert_eq!(forwarder.verdict(verdict[0]).ops, decision.verdict().ops);
        }
    }
}

fn run(data: &[u8]) {
    let published = Arc::new(Data::default());
    let config = BridgeConfig { flow_limit: LIMIT, ..BridgeConfig::default() };
    let control = Arc::new(Control(published.clone()));
    let bridge = Bridge::new(config, control, Arc::new(Fdb::new(1, 1, 1)), Clock::start());
    let mut last = flow_mod::LastInstructions::default();
    for step in data.chunks(7).take(40) {
        let Ok(mut bytes) = (Message { xid: 1, body: Body::FlowMod(template(step[0])) }).encode() else {
            continue;
        };
        for patch in step[1..].chunks_exact(2).take(usize::from(step[0] % 4)) {
            // The header's length stays right: the rest of the message is what is of interest.
            let at = 8 + usize::from(patch[0]) % (bytes.len() - 8);
            bytes[at] = patch[1];
        }
        let Ok(Message { body: Body::FlowMod(request), .. }) = ofp::decode(&bytes) else { continue };
        let before = bridge.flows(&Selection::all()).expect("all tables exist").len();
        let changed = flow_mod::change(&request, &mut last)
            .and_then(|change| bridge.apply(&Change::Flow(change)).map_err(convert::change_error));
        match changed {
            Ok(removed) => {
                let after = bridge.flows(&Selection::all()).expect("all tables exist").len();
                assert!(after + removed.len() == before || (removed.is_empty() && after == before + 1));
            }
            Err(_) => assert_eq!(bridge.flows(&Selection::all()).expect("all tables exist").len(), before),
        }
    }
    bridge.publish();
    let snapshot = published.0.lock().unwrap().clone();
    check(&bridge, &snapshot.expect("published"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn flow_mods_are_carried_out_or_refused_whole(data in proptest::collection::vec(any::<u8>(), 0..280)) {
        run(&data);
    }
}
