//! What becomes of a packet does not depend on the packets of its batch: what NORMAL remembers within one is not seen.

use std::sync::Arc;

use packet::{FlowKey, Header, MacAddr};
use proptest::prelude::*;
use vswitch::fdb::Fdb;
use vswitch::forwarder::{BATCH_MAX, Egress, Forwarder, VerdictId};
use vswitch::model::{DropReason, PacketIn, PortConfig, PortNo, Snapshot, VlanMode};
use vswitch::ports::Ports;
use vswitch::tables::Tables;

/// What became of packets, in order.
#[derive(Default, PartialEq, Debug)]
struct Outcome(Vec<Result<(PortNo, Vec<u8>), DropReason>>);

impl Egress for Outcome {
    fn send(&mut self, port: PortNo, header: &Header) {
        self.0.push(Ok((port, header.bytes().to_vec())));
    }
    fn packet_in(&mut self, _: PacketIn, _: u16, _: &Header) {}
    fn frame_bytes(&self, header: &Header) -> usize {
        header.len()
    }
    fn dropped(&mut self, reason: DropReason) {
        self.0.push(Err(reason));
    }
}

/// Ports 1 and 2 of VLAN 10, and a trunk for it that takes untagged packets for VLAN 20, of which port 4 is one.
fn forwarder() -> Forwarder {
    let trunk = VlanMode::Trunk { allowed: [10].into_iter().collect(), native: Some(20) };
    let vlans = [VlanMode::Access(10), VlanMode::Access(10), trunk, VlanMode::Access(20)];
    let ports = (1..).zip(vlans).map(|(number, vlan)| {
        Arc::new(PortConfig {
            ofport: PortNo(number),
            name: format!("p{number}"),
            mac: MacAddr([2, 0, 0, 0, 1, number as u8]),
            vlan,
            mtu: 1500,
            link_up: true,
            speed_kbps: 10_000_000,
            config: ofp::PortConfig(0),
        })
    });
    let ports = Arc::new(Ports::new(ports));
    let snapshot = Snapshot { epoch: 1, tables: Tables::empty(1, true), ports };
    Forwarder::new(0, Arc::new(snapshot), Arc::new(Fdb::new(64, 300, 5)), 7)
}

/// A frame of few addresses and tags, which may end behind any of its first bytes.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let tag = prop::sample::select(vec![None, Some(0), Some(10), Some(20)]);
    (1..4u8, 1..4u8, tag, prop::sample::select(vec![14, 16, 17, 18, 60])).prop_map(
        |(to, from, tag, bytes)| {
            let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from];
            if let Some(vid) = tag {
                frame.extend([0x81, 0, 0, vid]);
            }
            frame.extend([8, 0, 0x45, 0]);
            frame.resize(bytes, 0);
            frame
        },
    )
}

fn forward(forwarder: &mut Forwarder, in_port: PortNo, frames: &[Vec<u8>], outcome: &mut Outcome) {
    let mut headers: Vec<Header> = frames.iter().map(|frame| Header::of(frame)).collect();
    let keys: Vec<FlowKey> = headers.iter().map(|header| forwarder.key(header, in_port)).collect();
    let bytes: Vec<u32> = frames.iter().map(|frame| frame.len() as u32).collect();
    let mut verdicts = vec![VerdictId::default(); frames.len()];
    forwarder.classify(&keys, &bytes, &mut verdicts, 1000);
    for (header, verdict) in headers.iter_mut().zip(verdicts) {
        forwarder.forward(verdict, in_port, header, 1000, outcome);
    }
}

proptest! {
    #[test]
    fn a_batch_is_forwarded_like_its_packets_one_by_one(
        batches in prop::collection::vec((1..5u32, prop::collection::vec(frame(), 1..BATCH_MAX)), 1..8),
    ) {
        let (mut whole, mut single) = (forwarder(), forwarder());
        for (in_port, frames) in batches {
            let (mut together, mut apart) = (Outcome::default(), Outcome::default());
            forward(&mut whole, PortNo(in_port), &frames, &mut together);
            for frame in frames.chunks(1) {
                forward(&mut single, PortNo(in_port), frame, &mut apart);
            }
            prop_assert_eq!(together, apart);
        }
    }
}
