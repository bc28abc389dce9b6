//! Between the codec's words and the pipeline's: matches, actions, instructions, flows.

use std::sync::Arc;

use ofp::{ErrorCode, Field, FlowModFlags, Instruction, Match, OxmField};
use packet::{Edit, FlowKey, MacAddr, field};

use crate::flow::{ACTIONS_MAX, Action, Flow, FlowFlags, Instructions};
use crate::flow_tables::{FlowModError, Selection};
use crate::model::PortNo;

/// Where a match field is in the key: its only place, or the places of the halves of an IPv6 address.
fn places(oxm: Field) -> (Option<packet::Field>, packet::Field) {
    let low = match oxm {
        Field::InPort => field::IN_PORT,
        Field::InPhyPort => field::IN_PHY_PORT,
        Field::Metadata => field::METADATA,
        Field::EthDst => field::ETH_DST,
        Field::EthSrc => field::ETH_SRC,
        Field::EthType => field::ETH_TYPE,
        Field::VlanVid => field::VLAN_VID,
        Field::VlanPcp => field::VLAN_PCP,
        Field::IpDscp => field::IP_DSCP,
        Field::IpEcn => field::IP_ECN,
        Field::IpProto => field::IP_PROTO,
        Field::Ipv4Src => field::IPV4_SRC,
        Field::Ipv4Dst => field::IPV4_DST,
        Field::TcpSrc | Field::UdpSrc | Field::SctpSrc => field::TP_SRC,
        Field::TcpDst | Field::UdpDst | Field::SctpDst => field::TP_DST,
        Field::Icmpv4Type | Field::Icmpv6Type => field::ICMP_TYPE,
        Field::Icmpv4Code | Field::Icmpv6Code => field::ICMP_CODE,
        Field::ArpOp => field::ARP_OP,
        Field::ArpSpa => field::ARP_SPA,
        Field::ArpTpa => field::ARP_TPA,
        Field::ArpSha => field::ARP_SHA,
        Field::ArpTha => field::ARP_THA,
        Field::Ipv6Src => return (Some(field::IPV6_SRC_HI), field::IPV6_SRC_LO),
        Field::Ipv6Dst => return (Some(field::IPV6_DST_HI), field::IPV6_DST_LO),
        Field::Ipv6NdTarget => return (Some(field::ND_TARGET_HI), field::ND_TARGET_LO),
        Field::Ipv6Flabel => field::IPV6_FLABEL,
        Field::Ipv6NdSll => field::ND_SLL,
        Field::Ipv6NdTll => field::ND_TLL,
        Field::MplsLabel => field::MPLS_LABEL,
        Field::MplsTc => field::MPLS_TC,
        Field::MplsBos => field::MPLS_BOS,
        Field::TunnelId => field::TUNNEL_ID,
        Field::Ipv6Exthdr => field::IPV6_EXTHDR,
    };
    (None, low)
}

fn full_mask(oxm: Field) -> u128 {
    u128::MAX >> (128 - oxm.bits())
}

/// Key and mask of a match.
///
/// # Errors
/// An unknown field, one that is given twice, a missing prerequisite, a value that cannot be.
pub fn key_and_mask(matching: &Match) -> Result<(FlowKey, FlowKey), ErrorCode> {
    matching.validate().map_err(|error| error.code)?;
    let (mut key, mut mask) = (FlowKey::ZERO, FlowKey::ZERO);
    for oxm in &matching.fields {
        let (Some(kind), Some((value, bits))) = (oxm.field(), oxm.numbers()) else {
            return Err(ErrorCode::MATCH_BAD_FIELD);
        };
        let bits = bits.unwrap_or_else(|| full_mask(kind));
        let (high, low) = places(kind);
        if high.is_none() && value > u128::from(low.max()) {
            // Only the physical port, which has fewer bits here than on the wire.
            return Err(ErrorCode::MATCH_BAD_VALUE);
        }
        if let Some(high) = high {
            key.set(high, (value >> 64) as u64);
            mask.set(high, (bits >> 64) as u64);
        }
        key.set(low, value as u64);
        mask.set(low, bits as u64);
    }
    Ok((key, mask))
}

/// The match with this key and mask: every field after its prerequisites.
pub fn matching(key: &FlowKey, mask: &FlowKey) -> Match {
    let mut matching = Match::any();
    for oxm in Field::ALL.iter().copied() {
        let (high, low) = places(oxm);
        let both =
            |key: &FlowKey| u128::from(high.map_or(0, |high| key.get(high))) << 64 | u128::from(key.get(low));
        let full = full_mask(oxm);
        let bits = both(mask) & full;
        // Several fields share a place; which one is meant is what the prerequisites before it say.
        if bits == 0 || !matching.allows_set(oxm) {
            continue;
        }
        let bits_given = (bits != full && oxm.maskable()).then_some(bits);
        matching.fields.extend(oxm.with(both(key) & bits, bits_given));
    }
    matching
}

/// The selection of a request: flow-mod or statistics.
///
/// # Errors
/// See [`key_and_mask`]; a group that cannot exist.
pub fn selection(
    table: u8,
    matching: &Match,
    (cookie, cookie_mask): (u64, u64),
    out_port: ofp::PortNo,
    out_group: u32,
) -> Result<Selection, ErrorCode> {
    let (key, mask) = key_and_mask(matching)?;
    Ok(Selection {
        table: (table != ofp::TABLE_ALL).then_some(table),
        strict_priority: None,
        key,
        mask,
        cookie,
        cookie_mask,
        out_port: PortNo(out_port.0),
        out_group,
    })
}

/// The code for a refused flow-mod.
pub fn flow_mod_error(error: FlowModError) -> ErrorCode {
    match error {
        FlowModError::BadTable(_) => ErrorCode::FLOW_MOD_BAD_TABLE_ID,
        FlowModError::TableFull { .. } => ErrorCode::FLOW_MOD_TABLE_FULL,
        FlowModError::Overlap { .. } => ErrorCode::FLOW_MOD_OVERLAP,
        FlowModError::BadGoto { .. } => ErrorCode::INSTRUCTION_BAD_TABLE_ID,
    }
}

/// Flags of a flow from those of its flow-mod.
pub fn flags(flags: FlowModFlags) -> FlowFlags {
    FlowFlags {
        send_removed: flags.contains(FlowModFlags::SEND_FLOW_REM),
        check_overlap: flags.contains(FlowModFlags::CHECK_OVERLAP),
        reset_counts: flags.contains(FlowModFlags::RESET_COUNTS),
        no_packet_counts: flags.contains(FlowModFlags::NO_PKT_COUNTS),
        no_byte_counts: flags.contains(FlowModFlags::NO_BYT_COUNTS),
    }
}

fn wire_flags(flags: FlowFlags) -> FlowModFlags {
    let bit = |set: bool, flag: FlowModFlags| if set { flag } else { FlowModFlags(0) };
    bit(flags.send_removed, FlowModFlags::SEND_FLOW_REM)
        | bit(flags.check_overlap, FlowModFlags::CHECK_OVERLAP)
        | bit(flags.reset_counts, FlowModFlags::RESET_COUNTS)
        | bit(flags.no_packet_counts, FlowModFlags::NO_PKT_COUNTS)
        | bit(flags.no_byte_counts, FlowModFlags::NO_BYT_COUNTS)
}

/// Seconds and nanoseconds of a time span in milliseconds.
pub fn duration(ms: u64) -> (u32, u32) {
    ((ms / 1000) as u32, (ms % 1000) as u32 * 1_000_000)
}

/// Statistics of a flow as of now.
pub fn flow_stats(flow: &Flow, now_ms: u64) -> ofp::FlowStats {
    let counters = flow.stats.sum();
    let (duration_sec, duration_nsec) = duration(now_ms.saturating_sub(flow.created_ms));
    ofp::FlowStats {
        table_id: flow.table,
        duration_sec,
        duration_nsec,
        priority: flow.priority,
        idle_timeout: flow.idle_timeout_s,
        hard_timeout: flow.hard_timeout_s,
        flags: wire_flags(flow.flags),
        cookie: flow.cookie,
        packet_count: counters.packets,
        byte_count: counters.bytes,
        matching: matching(&flow.key, &flow.mask),
        instructions: flow.instructions.wire.clone(),
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
            Instruction::ApplyActions(list) => result.apply = actions(list, Some(matching))?,
            Instruction::WriteActions(list) => result.write = actions(list, Some(matching))?,
            Instruction::ClearActions => result.clear = true,
            Instruction::Meter(_) => return Err(ErrorCode::UNSUPPORTED_INSTRUCTION),
            Instruction::Experimenter { .. } => return Err(ErrorCode::INSTRUCTION_BAD_EXPERIMENTER),
        }
    }
    Ok(Arc::new(result))
}

/// An action list. `matching`: that of the flow; `None` for a packet-out, where TABLE is a legal port.
///
/// # Errors
/// See [`instructions`].
pub fn actions(wire: &[ofp::Action], matching: Option<&Match>) -> Result<Vec<Action>, ErrorCode> {
    if wire.len() > ACTIONS_MAX {
        return Err(ErrorCode::ACTION_TOO_MANY);
    }
    let mut pushed = false;
    let mut list = Vec::with_capacity(wire.len());
    for action in wire {
        list.push(match action {
            ofp::Action::Output { port, max_len } => output(PortNo(port.0), *max_len, matching.is_none())?,
            ofp::Action::PushVlan(tpid) => {
                pushed = true;
                if *tpid != packet::ethertype::VLAN && *tpid != packet::ethertype::SERVICE_VLAN {
                    return Err(ErrorCode::ACTION_BAD_ARGUMENT);
                }
                Action::Edit(Edit::PushVlan(*tpid))
            }
            ofp::Action::PopVlan => Action::Edit(Edit::PopVlan),
            ofp::Action::SetField(field) => Action::Edit(set_field(field, matching, pushed)?),
            ofp::Action::SetNwTtl(ttl) => Action::Edit(Edit::SetTtl(*ttl)),
            ofp::Action::DecNwTtl => Action::Edit(Edit::DecTtl),
            ofp::Action::Group(_) => return Err(ErrorCode::ACTION_BAD_OUT_GROUP),
            ofp::Action::SetQueue(_) => return Err(ErrorCode::ACTION_BAD_QUEUE),
            ofp::Action::Experimenter { .. } => return Err(ErrorCode::ACTION_BAD_EXPERIMENTER),
            ofp::Action::CopyTtlOut
            | ofp::Action::CopyTtlIn
            | ofp::Action::SetMplsTtl(_)
            | ofp::Action::DecMplsTtl
            | ofp::Action::PushMpls(_)
            | ofp::Action::PopMpls(_)
            | ofp::Action::PushPbb(_)
            | ofp::Action::PopPbb => return Err(ErrorCode::ACTION_BAD_TYPE),
        });
    }
    Ok(list)
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
        port => port.is_physical(),
    };
    if legal { Ok(Action::Output { port, max_len }) } else { Err(ErrorCode::ACTION_BAD_OUT_PORT) }
}

fn set_field(oxm: &OxmField, matching: Option<&Match>, pushed: bool) -> Result<Edit, ErrorCode> {
    // A flow that matches untagged packets only and pushes no tag cannot set one.
    let none = |oxm: &OxmField| *oxm == OxmField::VlanVid(ofp::Masked::exact(ofp::VID_NONE));
    let untagged = matching.is_some_and(|matching| matching.fields.iter().any(none));
    let tag = if untagged && !pushed { Err(ErrorCode::ACTION_MATCH_INCONSISTENT) } else { Ok(()) };
    let inconsistent = |field| matching.is_some_and(|matching| !matching.allows_set(field));
    match oxm.field() {
        // A tag may have been pushed by this list or an earlier table.
        Some(Field::VlanVid | Field::VlanPcp) => tag?,
        Some(field) if inconsistent(field) => return Err(ErrorCode::ACTION_MATCH_INCONSISTENT),
        _ => {}
    }
    let (tcp, udp) = (packet::ip_proto::TCP, packet::ip_proto::UDP);
    let (icmp, icmpv6) = (packet::ip_proto::ICMP, packet::ip_proto::ICMPV6);
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
        // In IPv6 the protocol may be behind extension headers: not settable.
        OxmField::IpProto(proto) if matching.is_none_or(is_ipv4) => Edit::SetIpProto(*proto),
        OxmField::Ipv4Src(address) => Edit::SetIpv4Src(address.value.octets()),
        OxmField::Ipv4Dst(address) => Edit::SetIpv4Dst(address.value.octets()),
        OxmField::Ipv6Src(address) => Edit::SetIpv6Src(address.value.octets()),
        OxmField::Ipv6Dst(address) => Edit::SetIpv6Dst(address.value.octets()),
        OxmField::Ipv6Flabel(label) => Edit::SetIpv6Flabel(label.value),
        OxmField::TcpSrc(port) => Edit::SetTpSrc(tcp, port.value),
        OxmField::TcpDst(port) => Edit::SetTpDst(tcp, port.value),
        OxmField::UdpSrc(port) => Edit::SetTpSrc(udp, port.value),
        OxmField::UdpDst(port) => Edit::SetTpDst(udp, port.value),
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
        _ => return Err(ErrorCode::ACTION_BAD_SET_TYPE),
    })
}

fn is_ipv4(matching: &Match) -> bool {
    matching.fields.contains(&OxmField::EthType(packet::ethertype::IPV4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A field with a random value and mask.
    fn oxm() -> impl Strategy<Value = OxmField> {
        (proptest::sample::select(Field::ALL), any::<u128>(), proptest::option::of(any::<u128>()))
            .prop_filter_map("legal", |(field, value, mask)| {
                let full = full_mask(field);
                let mask = mask.filter(|_| field.maskable()).map(|mask| mask & full);
                let value = value & mask.unwrap_or(full);
                let value = if field == Field::InPhyPort { value & 0xffff } else { value };
                field.with(value, mask)
            })
    }

    fn prerequisites() -> impl Strategy<Value = Vec<OxmField>> {
        let kinds: Vec<Vec<OxmField>> = vec![
            vec![],
            vec![OxmField::EthType(0x0806)],
            vec![OxmField::EthType(0x8847)],
            vec![OxmField::EthType(0x0800), OxmField::IpProto(6)],
            vec![OxmField::EthType(0x0800), OxmField::IpProto(1)],
            vec![OxmField::EthType(0x86dd), OxmField::IpProto(17)],
            vec![OxmField::EthType(0x86dd), OxmField::IpProto(132)],
            vec![OxmField::EthType(0x86dd), OxmField::IpProto(58), OxmField::Icmpv6Type(135)],
            vec![OxmField::EthType(0x86dd), OxmField::IpProto(58), OxmField::Icmpv6Type(136)],
        ];
        proptest::sample::select(kinds)
    }

    proptest! {
        #[test]
        fn a_match_comes_back_as_it_was(given in prerequisites(), more in proptest::collection::vec(oxm(), 0..12)) {
            let mut matching_given = Match { fields: given };
            for field in more {
                matching_given.fields.push(field);
                if matching_given.validate().is_err() {
                    matching_given.fields.pop();
                }
            }
            let (key, mask) = key_and_mask(&matching_given).expect("validated");
            prop_assert_eq!(key, key.masked(&mask));
            let back = matching(&key, &mask);
            prop_assert_eq!(back.validate(), Ok(()));
            prop_assert_eq!(back.normalized(), matching_given.normalized());
        }
    }

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
        assert_eq!(apply(ofp::Action::Group(1)), Err(ErrorCode::ACTION_BAD_OUT_GROUP));
        assert_eq!(apply(ofp::Action::PushVlan(0x0800)), Err(ErrorCode::ACTION_BAD_ARGUMENT));
        let vid = |value| ofp::Action::SetField(OxmField::VlanVid(ofp::Masked::exact(value)));
        assert_eq!(apply(vid(10)), Err(ErrorCode::ACTION_BAD_SET_ARGUMENT));
        assert_eq!(apply(vid(0x100a)), Ok(()));
        let untagged = Match::any().with(OxmField::VlanVid(ofp::Masked::exact(ofp::VID_NONE)));
        let push_and_set = vec![ofp::Action::PushVlan(0x8100), vid(0x100a)];
        let set = [Instruction::ApplyActions(vec![vid(0x100a)])];
        assert_eq!(instructions(&set, &untagged).map(|_| ()), Err(ErrorCode::ACTION_MATCH_INCONSISTENT));
        assert!(instructions(&[Instruction::ApplyActions(push_and_set)], &untagged).is_ok());
        let many = vec![output(ofp::PortNo(1)); ACTIONS_MAX + 1];
        assert_eq!(actions(&many, None), Err(ErrorCode::ACTION_TOO_MANY));
        let twice = [Instruction::ClearActions, Instruction::ClearActions];
        assert_eq!(instructions(&twice, &any).map(|_| ()), Err(ErrorCode::UNSUPPORTED_INSTRUCTION));
        assert_eq!(
            instructions(&[Instruction::Meter(1)], &any).map(|_| ()),
            Err(ErrorCode::UNSUPPORTED_INSTRUCTION)
        );
    }
}
