//! What a flow-mod costs the control side: `cargo bench -p vswitch --bench flow_mods`.
//!
//! Exact five-tuple rules, as a controller sends them, are decoded and put into tables that hold others
//! already; every so many the tables are published, and what was published before is let go.
#![allow(clippy::print_stdout, reason = "figures are what this program is for")]

use std::time::Instant;

use ofp::{Action, Addition, Body, FlowMod, FlowModCommand, Instruction, Masked, Message, OxmField};
use vswitch::flow_tables::FlowTables;
use vswitch::openflow::flow_mod;

/// Rules that are there when the clock starts, and those that come then.
const RULES: [u32; 2] = [100_000, 200_000];
/// Flow-mods that are carried out together, as those of a session are.
const BATCH: usize = 32;

fn message(number: u32) -> Vec<u8> {
    let mut flow_mod = FlowMod::new(FlowModCommand::Add);
    flow_mod.priority = 100;
    flow_mod.matching.fields = vec![
        OxmField::InPort(ofp::PortNo(1)),
        OxmField::EthType(0x0800),
        OxmField::IpProto(17),
        OxmField::Ipv4Src(Masked::exact((0x0a00_0000 | number).into())),
        OxmField::Ipv4Dst(Masked::exact([10, 255, 0, 1].into())),
        OxmField::UdpSrc(Masked::exact(1024)),
        OxmField::UdpDst(Masked::exact(53)),
    ];
    let output = Action::Output { port: ofp::PortNo(2), max_len: 0 };
    flow_mod.instructions = vec![Instruction::ApplyActions(vec![output])];
    (Message { xid: number, body: Body::FlowMod(flow_mod) }).encode().expect("it can be written")
}

fn main() {
    let [there, more] = RULES;
    let messages: Vec<_> = (0..there + more).map(message).collect();
    let mut last = flow_mod::LastInstructions::default();
    let mut known = flow_mod::KnownInstructions::default();
    for batches in [16, 160, 1600, 16_000] {
        let mut tables = FlowTables::new(1, 1 << 21);
        let mut ns = [0; 2];
        let mut published = tables.tables().clone();
        let mut changes = Vec::new();
        for (number, batch) in messages.chunks(BATCH).enumerate() {
            if number * BATCH <= there as usize {
                ns = [0; 2];
            }
            let mut clock = Instant::now();
            let mut lap = |step: usize| {
                ns[step] += clock.elapsed().as_nanos();
                clock = Instant::now();
            };
            changes.clear();
            changes.extend(batch.iter().map(|message| {
                let known_already = Addition::peek(message).and_then(|add| known.change(&add));
                known_already.unwrap_or_else(|| match ofp::decode(message).expect("valid").body {
                    Body::FlowMod(flow_mod) => {
                        let change = flow_mod::change(&flow_mod, &mut last).expect("valid");
                        known.learn(message, &change);
                        change
                    }
                    other => panic!("{other:?}"),
                })
            }));
            lap(0);
            tables.fetch(&changes);
            for change in &changes {
                tables.apply(change, 1).expect("room");
            }
            // What was there before the clock started is always held by others.
            if number % batches == 0 || number * BATCH == there as usize {
                published = tables.tables().clone();
            }
            lap(1);
        }
        drop(published);
        let [decode, apply] = ns.map(|ns| ns / u128::from(more));
        println!("publication every {:6}: decode {decode} ns, apply {apply} ns", batches * BATCH);
    }
}
