//! Counters stay exact where packets end on their way through the tables.

use ofp::{
    Action, Body, Instruction, MeterBand, MeterFlags, MeterMod, MeterModCommand, MultipartReply,
    MultipartRequest, OxmField, PortNo,
};
use vswitch::bridge::{BridgeConfig, FailMode};
use vswitch::model::DropReason;
use vswitch::openflow::AgentConfig;

use crate::client::{Client, add};
use crate::data_path::{Switch, frame};

/// Packets of the first two tables: looked up, matched, and counted by the one flow there.
fn tables(client: &mut Client<std::os::unix::net::UnixStream>) -> [(u64, u64, u64); 2] {
    let MultipartReply::Table(tables) = client.multipart(MultipartRequest::Table) else {
        panic!("no tables")
    };
    let flows = client.flows();
    [0, 1].map(|table: u8| {
        let stats = &tables[usize::from(table)];
        let flow = flows.iter().find(|flow| flow.table_id == table).expect("a flow");
        assert_eq!(flow.byte_count, 60 * flow.packet_count);
        (stats.lookup_count, stats.matched_count, flow.packet_count)
    })
}

/// A switch whose table 0 has `instructions` and then goes to table 1, which sends to port 2.
fn start(
    before: &[Body],
    instructions: Vec<Instruction>,
) -> (Switch, Client<std::os::unix::net::UnixStream>) {
    let config = BridgeConfig { fail_mode: FailMode::Secure, ..BridgeConfig::default() };
    let switch = Switch::start(config, AgentConfig::default());
    let mut client = Client::connect(&switch.socket());
    for body in before {
        client.send(body.clone());
    }
    let mut first = add(5, &[OxmField::InPort(PortNo(1))], &[]);
    first.instructions = [instructions, vec![Instruction::GotoTable(1)]].concat();
    client.send(Body::FlowMod(first));
    let mut second = add(5, &[], &[2]);
    second.table_id = 1;
    client.send(Body::FlowMod(second));
    client.barrier();
    (switch, client)
}

#[test]
fn tables_behind_a_meter_count_what_it_let_through() {
    let meter = Body::MeterMod(MeterMod {
        command: MeterModCommand::Add,
        flags: MeterFlags::PKTPS | MeterFlags::BURST | MeterFlags::STATS,
        meter_id: 7,
        bands: vec![MeterBand::Drop { rate: 1, burst_size: 3 }],
    });
    let (switch, mut client) = start(&[meter], vec![Instruction::Meter(7)]);
    let (mut passed, mut dropped) = (0, 0);
    // In two rounds, so that the second one finds its decision made.
    for round in 1..=2 {
        for _ in 0..20 {
            let sent = switch.frame(1, &frame(1, 2));
            passed += sent.frames.len() as u64;
            dropped += sent.drops.iter().filter(|reason| **reason == DropReason::Metered).count() as u64;
            assert_eq!(sent.frames.len() + sent.drops.len(), 1);
        }
        let all = 20 * round;
        assert_eq!(passed + dropped, all);
        assert!(passed >= 3 && dropped > 0, "{passed} passed");
        assert_eq!(tables(&mut client), [(all, all, all), (passed, passed, passed)]);
    }
    let MultipartReply::Meter(meters) = client.multipart(MultipartRequest::Meter(7)) else { panic!() };
    assert_eq!((meters[0].packet_in_count, meters[0].bands[0].packet_count), (40, dropped));
    let counters = switch.counters.lock().expect("not poisoned")[&vswitch::model::PortNo(1)];
    assert_eq!((counters.rx_packets, counters.rx_dropped), (40, dropped));
}

#[test]
fn tables_behind_a_ttl_count_what_still_lived() {
    let (switch, mut client) = start(&[], vec![Instruction::ApplyActions(vec![Action::DecNwTtl])]);
    let dead = {
        let mut frame = frame(1, 2);
        frame[22] = 1;
        frame
    };
    for _ in 0..5 {
        assert_eq!(switch.frame(1, &frame(1, 2)).frames.len(), 1);
        assert_eq!(switch.frame(1, &dead).drops, [DropReason::TtlExpired]);
    }
    assert_eq!(tables(&mut client), [(10, 10, 10), (5, 5, 5)]);
    // A table that has nothing for the packet was asked, and drops it for that.
    let mut delete = ofp::FlowMod::new(ofp::FlowModCommand::Delete);
    delete.table_id = 1;
    client.send(Body::FlowMod(delete));
    client.barrier();
    assert_eq!(switch.frame(1, &frame(1, 2)).drops, [DropReason::TableMiss]);
    assert_eq!(switch.frame(1, &dead).drops, [DropReason::TtlExpired]);
    let MultipartReply::Table(stats) = client.multipart(MultipartRequest::Table) else { panic!("no tables") };
    assert_eq!((stats[1].lookup_count, stats[1].matched_count), (6, 5));
}
