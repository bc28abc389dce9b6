//! Between the codec's words and the pipeline's: actions and instructions.

use std::sync::Arc;

use ofp::{ErrorCode, Field, Instruction, Match, OxmField};
use packet::{Edit, MacAddr, ethertype, ip_proto};

use crate::flow::{ACTIONS_MAX, Action, Instructions};
use crate::model::{PortNo, is_physical};

/// What is known about a packet when an action is executed: which fields there can be.
struct Known<'a> {
    /// The match of the flow, while no action has changed the packet's type.
    given: Option<&'a Match>,
    /// Matches that the packet may fit besides, one after each action that changes its type.
    possible: Vec<Match>,
    /// Nothing is known: every field is possible.
    anything: bool,
    /// Whether it can have a VLAN tag.
    tagged: bool,
    /// Actions are executed in another order than that of the list, so that whatever any of them makes is possible.
    unordered: bool,
}

impl<'a> Known<'a> {
    /// Of a packet that a flow with this match decides on; `None` for a packet-out.
    fn new(matching: Option<&'a Match>, list: &[ofp::Action], unordered: bool) -> Known<'a> {
        let none = OxmField::VlanVid(ofp::Masked::exact(ofp::VID_NONE));
        let untagged = matching.is_some_and(|matching| matching.fields.contains(&none));
        let pushes = || list.iter().any(|action| matches!(action, ofp::Action::PushVlan(_)));
        let mut known = Known {
            given: matching,
            possible: Vec::new(),
            anything: matching.is_none(),
            tagged: !untagged || (unordered && pushes()),
            unordered,
        };
        if unordered {
            list.iter().for_each(|action| known.apply(action));
        }
        known
    }

    fn eth_type(&mut self, eth_type: u16) {
        if self.anything {
            return;
        }
        if !self.unordered {
            self.given = None;
            self.possible.clear();
        }
        self.possible.push(Match::any().with(OxmField::EthType(eth_type)));
    }

    /// What an action does to the packet's type.
    fn apply(&mut self, action: &ofp::Action) {
        match action {
            ofp::Action::PushVlan(_) => self.tagged = true,
            ofp::Action::PushMpls(eth_type) | ofp::Action::PopMpls(eth_type) => self.eth_type(*eth_type),
            ofp::Action::SetField(OxmField::EthType(eth_type)) => self.eth_type(*eth_type),
            _ => {}
        }
    }

    fn has(&self, field: Field) -> bool {
        match field {
            // A tag may have been pushed by an earlier table: only what cannot be is refused.
            Field::VlanVid | Field::VlanPcp => self.tagged,
            field => {
                let mut possible = self.given.into_iter().chain(&self.possible);
                self.anything || possible.any(|possible| possible.allows_set(field))
            }
        }
    }
}

/// The instructions of a flow-mod with this match.
///
/// # Errors
/// An instruction or action that is unknown, not supported, or makes no sense for the match.
pub fn instructions(wire: &[Instruction], matching: &Match) -> Result<Arc<Instructions>, ErrorCode> {
    let mut result = Instructions { wire: wire.to_vec(), ..Instructions::default() };
    let mut kinds = 0u32;
    for instruction in wire {
        let kind = 1u32.checked_shl(instruction.number().into()).unwrap_or(0);
        if kinds & kind != 0 {
            // At most one of a type (OpenFlow 1.3.5, 5.9); 1.3 has no code of its own for it.
            return Err(ErrorCode::UNSUPPORTED_INSTRUCTION);
        }
        kinds |= kind;
        match instruction {
            Instruction::GotoTable(table) => result.goto = Some(*table),
            Instruction::WriteMetadata { metadata, mask } => result.metadata = Some((*metadata, *mask)),
            Instruction::ApplyActions(list) => result.apply = list_of(list, Some(matching), Place::List)?,
            Instruction::WriteActions(list) => result.write = list_of(list, Some(matching), Place::Set)?,
            Instruction::ClearActions => result.clear = true,
            Instruction::Meter(id) => result.meter = Some(*id),
            Instruction::Experimenter { .. } => return Err(ErrorCode::INSTRUCTION_BAD_EXPERIMENTER),
        }
    }
    Ok(Arc::new(result))
}

/// Where actions stand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Apply-Actions: in this order.
    List,
    /// An action set, which has an order of its own.
    Set,
    /// A packet-out: as a list, and TABLE is a legal port.
    PacketOut,
}

/// The actions of a packet-out.
///
/// # Errors
/// See [`instructions`].
pub fn packet_out(wire: &[ofp::Action]) -> Result<Vec<Action>, ErrorCode> {
    list_of(wire, None, Place::PacketOut)
}

/// The actions of a bucket: a set for packets of which nothing is known.
///
/// # Errors
/// See [`instructions`].
pub fn bucket(wire: &[ofp::Action]) -> Result<Vec<Action>, ErrorCode> {
    list_of(wire, None, Place::Set)
}

fn list_of(wire: &[ofp::Action], matching: Option<&Match>, place: Place) -> Result<Vec<Action>, ErrorCode> {
    if wire.len() > ACTIONS_MAX {
        return Err(ErrorCode::ACTION_TOO_MANY);
    }
    let mut known = Known::new(matching, wire, place == Place::Set);
    let mut list = Vec::with_capacity(wire.len());
    for action in wire {
        list.push(match action {
            ofp::Action::Output { port, max_len } => output(*port, *max_len, place == Place::PacketOut)?,
            ofp::Action::Group(id) if *id > ofp::group::MAX => return Err(ErrorCode::ACTION_BAD_OUT_GROUP),
            ofp::Action::Group(id) => Action::Group(*id),
            action => Action::Edit(edit(action, &known)?),
        });
        known.apply(action);
    }
    Ok(list)
}

fn edit(action: &ofp::Action, known: &Known<'_>) -> Result<Edit, ErrorCode> {
    let vlan = |tpid| matches!(tpid, ethertype::VLAN | ethertype::SERVICE_VLAN);
    let mpls = |eth_type| matches!(eth_type, ethertype::MPLS | ethertype::MPLS_MULTICAST);
    let needs =
        |field, edit| if known.has(field) { Ok(edit) } else { Err(ErrorCode::ACTION_MATCH_INCONSISTENT) };
    match *action {
        ofp::Action::PushVlan(tpid) if vlan(tpid) => Ok(Edit::PushVlan(tpid)),
        ofp::Action::PushMpls(eth_type) if mpls(eth_type) => Ok(Edit::PushMpls(eth_type)),
        ofp::Action::PushVlan(_) | ofp::Action::PushMpls(_) => Err(ErrorCode::ACTION_BAD_ARGUMENT),
        ofp::Action::PopVlan => Ok(Edit::PopVlan),
        ofp::Action::PopMpls(eth_type) => Ok(Edit::PopMpls(eth_type)),
        ofp::Action::SetField(ref field) => set_field(field, known),
        ofp::Action::SetNwTtl(ttl) => Ok(Edit::SetTtl(ttl)),
        ofp::Action::DecNwTtl => Ok(Edit::DecTtl),
        ofp::Action::SetMplsTtl(ttl) => needs(Field::MplsLabel, Edit::SetMplsTtl(ttl)),
        ofp::Action::DecMplsTtl => needs(Field::MplsLabel, Edit::DecMplsTtl),
        ofp::Action::CopyTtlOut => Ok(Edit::CopyTtlOut),
        ofp::Action::CopyTtlIn => Ok(Edit::CopyTtlIn),
        ofp::Action::SetQueue(_) => Err(ErrorCode::ACTION_BAD_QUEUE),
        ofp::Action::Experimenter { .. } => Err(ErrorCode::ACTION_BAD_EXPERIMENTER),
        ofp::Action::Output { .. }
        | ofp::Action::Group(_)
        | ofp::Action::PushPbb(_)
        | ofp::Action::PopPbb => Err(ErrorCode::ACTION_BAD_TYPE),
    }
}

fn output(port: PortNo, max_len: u16, packet_out: bool) -> Result<Action, ErrorCode> {
    let legal = match port {
        PortNo::ANY => false,
        PortNo::TABLE => packet_out,
        PortNo::IN_PORT
        | PortNo::NORMAL
        | PortNo::FLOOD
        | PortNo::ALL
        | PortNo::CONTROLLER
        | PortNo::LOCAL => true,
        port => is_physical(port),
    };
    if legal { Ok(Action::Output { port, max_len }) } else { Err(ErrorCode::ACTION_BAD_OUT_PORT) }
}

fn set_field(oxm: &OxmField, known: &Known<'_>) -> Result<Edit, ErrorCode> {
    if oxm.field().is_some_and(|field| !known.has(field)) {
        return Err(ErrorCode::ACTION_MATCH_INCONSISTENT);
    }
    let (tcp, udp, sctp) = (ip_proto::TCP, ip_proto::UDP, ip_proto::SCTP);
    let (icmp, icmpv6) = (ip_proto::ICMP, ip_proto::ICMPV6);
    let mac = |address: &ofp::MacAddr| MacAddr(address.0);
    Ok(match oxm {
        OxmField::VlanVid(vid) if vid.value & ofp::VID_PRESENT == 0 => {
            return Err(ErrorCode::ACTION_BAD_SET_ARGUMENT);
        }
        OxmField::VlanVid(vid) => Edit::SetVlanVid(vid.value & 0x0fff),
        OxmField::VlanPcp(pcp) => Edit::SetVlanPcp(*pcp),
        OxmField::EthDst(address) => Edit::SetEthDst(mac(&address.value)),
        OxmField::EthSrc(address) => Edit::SetEthSrc(mac(&address.value)),
        OxmField::IpDscp(dscp) => Edit::SetIpDscp(*dscp),
        OxmField::IpEcn(ecn) => Edit::SetIpEcn(*ecn),
        OxmField::EthType(eth_type) => Edit::SetEthType(*eth_type),
        OxmField::IpProto(proto) => Edit::SetIpProto(*proto),
        OxmField::Ipv4Src(address) => Edit::SetIpv4Src(address.value.octets()),
        OxmField::Ipv4Dst(address) => Edit::SetIpv4Dst(address.value.octets()),
        OxmField::Ipv6Src(address) => Edit::SetIpv6Src(address.value.octets()),
        OxmField::Ipv6Dst(address) => Edit::SetIpv6Dst(address.value.octets()),
        OxmField::Ipv6Flabel(label) => Edit::SetIpv6Flabel(label.value),
        OxmField::TcpSrc(port) => Edit::SetTpSrc(tcp, port.value),
        OxmField::TcpDst(port) => Edit::SetTpDst(tcp, port.value),
        OxmField::UdpSrc(port) => Edit::SetTpSrc(udp, port.value),
        OxmField::UdpDst(port) => Edit::SetTpDst(udp, port.value),
        OxmField::SctpSrc(port) => Edit::SetTpSrc(sctp, port.value),
        OxmField::SctpDst(port) => Edit::SetTpDst(sctp, port.value),
        OxmField::Icmpv4Type(kind) => Edit::SetIcmpType(icmp, *kind),
        OxmField::Icmpv4Code(code) => Edit::SetIcmpCode(icmp, *code),
        OxmField::Icmpv6Type(kind) => Edit::SetIcmpType(icmpv6, *kind),
        OxmField::Icmpv6Code(code) => Edit::SetIcmpCode(icmpv6, *code),
        OxmField::ArpOp(op) => Edit::SetArpOp(*op),
        OxmField::ArpSpa(address) => Edit::SetArpSpa(address.value.octets()),
        OxmField::ArpTpa(address) => Edit::SetArpTpa(address.value.octets()),
        OxmField::ArpSha(address) => Edit::SetArpSha(mac(&address.value)),
        OxmField::ArpTha(address) => Edit::SetArpTha(mac(&address.value)),
        OxmField::Ipv6NdTarget(target) => Edit::SetNdTarget(target.value.octets()),
        OxmField::Ipv6NdSll(address) => Edit::SetNdSll(mac(address)),
        OxmField::Ipv6NdTll(address) => Edit::SetNdTll(mac(address)),
        OxmField::MplsLabel(label) => Edit::SetMplsLabel(*label),
        OxmField::MplsTc(tc) => Edit::SetMplsTc(*tc),
        OxmField::MplsBos(bottom) => Edit::SetMplsBos(*bottom != 0),
        OxmField::TunnelId(id) => Edit::SetTunnelId(id.value),
        _ => return Err(ErrorCode::ACTION_BAD_SET_TYPE),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_refused_with_the_codes_of_the_specification() {
        let any = Match::any();
        let apply = |action| instructions(&[Instruction::ApplyActions(vec![action])], &any).map(|_| ());
        let output = |port| ofp::Action::Output { port, max_len: 0 };
        assert_eq!(apply(output(ofp::PortNo(1))), Ok(()));
        assert_eq!(apply(output(ofp::PortNo(0xfeff))), Ok(()));
        for port in [ofp::PortNo(0), ofp::PortNo(0xff00), ofp::PortNo::ANY, ofp::PortNo::TABLE] {
            assert_eq!(apply(output(port)), Err(ErrorCode::ACTION_BAD_OUT_PORT), "{port}");
        }
        assert_eq!(apply(ofp::Action::Group(1)), Ok(()));
        assert_eq!(apply(ofp::Action::Group(ofp::group::ANY)), Err(ErrorCode::ACTION_BAD_OUT_GROUP));
        assert_eq!(apply(ofp::Action::PushVlan(0x0800)), Err(ErrorCode::ACTION_BAD_ARGUMENT));
        assert_eq!(apply(ofp::Action::PushMpls(0x0800)), Err(ErrorCode::ACTION_BAD_ARGUMENT));
        assert_eq!(apply(ofp::Action::PushPbb(0x88e7)), Err(ErrorCode::ACTION_BAD_TYPE));
        let vid = |value| ofp::Action::SetField(OxmField::VlanVid(ofp::Masked::exact(value)));
        assert_eq!(apply(vid(10)), Err(ErrorCode::ACTION_BAD_SET_ARGUMENT));
        assert_eq!(apply(vid(0x100a)), Ok(()));
        let untagged = Match::any().with(OxmField::VlanVid(ofp::Masked::exact(ofp::VID_NONE)));
        let push_and_set = vec![ofp::Action::PushVlan(0x8100), vid(0x100a)];
        let set = [Instruction::ApplyActions(vec![vid(0x100a)])];
        assert_eq!(instructions(&set, &untagged).map(|_| ()), Err(ErrorCode::ACTION_MATCH_INCONSISTENT));
        assert!(instructions(&[Instruction::ApplyActions(push_and_set)], &untagged).is_ok());
        let many = vec![output(ofp::PortNo(1)); ACTIONS_MAX + 1];
        assert_eq!(packet_out(&many), Err(ErrorCode::ACTION_TOO_MANY));
        let twice = [Instruction::ClearActions, Instruction::ClearActions];
        assert_eq!(instructions(&twice, &any).map(|_| ()), Err(ErrorCode::UNSUPPORTED_INSTRUCTION));
        assert_eq!(instructions(&[Instruction::Meter(1)], &any).map(|found| found.meter), Ok(Some(1)));
        let table = ofp::Action::Output { port: ofp::PortNo::TABLE, max_len: 0 };
        assert_eq!(bucket(std::slice::from_ref(&table)), Err(ErrorCode::ACTION_BAD_OUT_PORT));
        assert_eq!(packet_out(&[table]).map(|list| list.len()), Ok(1));
    }

    #[test]
    fn fields_are_settable_where_the_packet_has_them_by_then() {
        let ipv4 = Match::any().with(OxmField::EthType(0x0800));
        let label = || ofp::Action::SetField(OxmField::MplsLabel(5));
        let apply = |list: &[ofp::Action]| {
            instructions(&[Instruction::ApplyActions(list.to_vec())], &ipv4).map(|_| ())
        };
        let write = |list: &[ofp::Action]| {
            instructions(&[Instruction::WriteActions(list.to_vec())], &ipv4).map(|_| ())
        };
        let push = || ofp::Action::PushMpls(0x8847);
        assert_eq!(apply(&[label()]), Err(ErrorCode::ACTION_MATCH_INCONSISTENT));
        assert_eq!(apply(&[label(), push()]), Err(ErrorCode::ACTION_MATCH_INCONSISTENT));
        assert_eq!(apply(&[push(), label(), ofp::Action::DecMplsTtl]), Ok(()));
        assert_eq!(write(&[label(), push()]), Ok(()), "a set has its own order");
        assert_eq!(write(&[label()]), Err(ErrorCode::ACTION_MATCH_INCONSISTENT));
        let source = || ofp::Action::SetField(OxmField::Ipv4Src(ofp::Masked::exact([10, 0, 0, 1].into())));
        assert_eq!(apply(&[source()]), Ok(()));
        assert_eq!(apply(&[push(), source()]), Err(ErrorCode::ACTION_MATCH_INCONSISTENT));
        assert_eq!(apply(&[push(), ofp::Action::PopMpls(0x0800), source()]), Ok(()));
        assert_eq!(packet_out(&[label(), source()]).map(|list| list.len()), Ok(2), "a packet-out");
    }
}
