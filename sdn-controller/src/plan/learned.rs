//! The rules that follow from an address: where it is, and that it is known.

use ofp::{Field, Instruction, MacAddr, Masked, OxmField, PortNo, VID_PRESENT};

use super::{DELIVER, FORWARD, LEARN, PRIORITY_LEARNED, Tagging, Way, from_port, in_vlan, output, steps};
use crate::entry::{Cookie, FlowBody, FlowKey};

/// What stands in the metadata of a packet on its way to a port.
pub(super) fn destination_number(vlan: u16, port: PortNo) -> u64 {
    u64::from(vlan) << 32 | u64::from(port.0)
}

/// The rule that lets packets of a known source pass without a copy to the controller.
pub fn source_rule(vlan: u16, mac: MacAddr, port: PortNo, way: &Way) -> (FlowKey, FlowBody) {
    let matching = from_port(vlan, port).with(OxmField::EthSrc(Masked::exact(mac)));
    let goto = [Instruction::GotoTable(way.after_learning)];
    let body = FlowBody::new(Cookie::Learned(vlan).number(), &goto);
    (FlowKey::new(LEARN, PRIORITY_LEARNED, &matching), body)
}

/// The rule that sends packets for a known address out of its port.
pub fn destination_rule(vlan: u16, mac: MacAddr, port: PortNo, way: &Way) -> (FlowKey, FlowBody) {
    let matching = in_vlan(vlan).with(OxmField::EthDst(Masked::exact(mac)));
    let instructions = if way.deliver {
        let metadata = destination_number(vlan, port);
        let meter = way.meter.map(Instruction::Meter);
        let to_port =
            [Instruction::WriteMetadata { metadata, mask: u64::MAX }, Instruction::GotoTable(DELIVER)];
        meter.into_iter().chain(to_port).collect()
    } else {
        let pop = (way.tagging == Tagging::Untagged).then_some(ofp::Action::PopVlan);
        let outputs = std::iter::once(&port).chain(&way.copies).map(|&port| output(port));
        steps(way.meter, pop.into_iter().chain(outputs).collect(), None)
    };
    let body = FlowBody::new(Cookie::Learned(vlan).number(), &instructions);
    (FlowKey::new(FORWARD, PRIORITY_LEARNED, &matching), body)
}

/// A learned rule, read back: VLAN, address and port, and whether it is the destination's.
pub fn read_learned(key: &FlowKey, body: &FlowBody) -> Option<(u16, MacAddr, PortNo, bool)> {
    let Some(OxmField::VlanVid(vid)) = key.matching.field(Field::VlanVid) else { return None };
    let vlan = vid.value & !VID_PRESENT;
    match key.table {
        LEARN => match (key.matching.field(Field::InPort), key.matching.field(Field::EthSrc)) {
            (Some(OxmField::InPort(port)), Some(OxmField::EthSrc(mac))) => {
                Some((vlan, mac.value, *port, false))
            }
            _ => None,
        },
        FORWARD => {
            let Some(OxmField::EthDst(mac)) = key.matching.field(Field::EthDst) else { return None };
            let port = body.instructions.iter().find_map(|instruction| match instruction {
                // What comes before the first output is the tag's, what comes after are copies.
                Instruction::ApplyActions(actions) => actions.iter().find_map(|action| match action {
                    ofp::Action::Output { port, .. } => Some(*port),
                    _ => None,
                }),
                Instruction::WriteMetadata { metadata, .. } => Some(PortNo(*metadata as u32)),
                _ => None,
            });
            Some((vlan, mac.value, port?, true))
        }
        _ => None,
    }
}
