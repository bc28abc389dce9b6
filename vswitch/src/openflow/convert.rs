//! Between the codec's words and the pipeline's: matches and flows.

use ofp::{Addition, ErrorCode, Field, FlowModFlags, Match, PortMod};
use packet::{FlowKey, MacAddr, field};

pub use super::actions::instructions;
use super::{groups, meters};
use crate::bridge::{ChangeError, PortChangeRequest};
use crate::flow::{Flow, FlowFlags};
use crate::flow_tables::{FlowModError, Selection};

/// Where a match field is in the key: its only place, or the places of the halves of an IPv6 address.
const fn places(oxm: Field) -> (Option<packet::Field>, packet::Field) {
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

/// [`places`] of every field.
static PLACES: [(Option<packet::Field>, packet::Field); Field::ALL.len()] = {
    let mut all = [(None, field::IN_PORT); Field::ALL.len()];
    let mut at = 0;
    while at < all.len() {
        all[Field::ALL[at] as usize] = places(Field::ALL[at]);
        at += 1;
    }
    all
};

/// Writes a field of a match into the key and mask that it becomes. `false`: its value cannot be.
#[inline]
fn set(key: &mut FlowKey, mask: &mut FlowKey, oxm: Field, value: u128, bits: u128) -> bool {
    let (high, low) = &PLACES[oxm as usize];
    if let Some(high) = high {
        key.set(*high, (value >> 64) as u64);
        mask.set(*high, (bits >> 64) as u64);
    } else if value > u128::from(low.max()) {
        // Only the physical port, which has fewer bits here than on the wire.
        return false;
    }
    key.set(*low, value as u64);
    mask.set(*low, bits as u64);
    true
}

/// Writes the match of an addition into `key` and `mask`, which are zero. `false`: [`key_and_mask`] has to tell what is
/// wrong with it.
pub fn addition(addition: &Addition<'_>, key: &mut FlowKey, mask: &mut FlowKey) -> bool {
    let mut possible = true;
    addition.fields(|oxm, value, bits| possible &= set(key, mask, oxm, value, bits)) && possible
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
        if !set(&mut key, &mut mask, kind, value, bits.unwrap_or_else(|| full_mask(kind))) {
            return Err(ErrorCode::MATCH_BAD_VALUE);
        }
    }
    Ok((key, mask))
}

/// The match with this key and mask: every field after its prerequisites.
pub fn matching(key: &FlowKey, mask: &FlowKey) -> Match {
    let mut matching = Match::any();
    for oxm in Field::ALL.iter().copied() {
        let (high, low) = PLACES[oxm as usize];
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
        out_port,
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
        FlowModError::UnknownGroup(_) => ErrorCode::ACTION_BAD_OUT_GROUP,
        FlowModError::UnknownMeter(_) => ErrorCode::UNKNOWN_METER,
    }
}

/// The code for a refused change.
pub fn change_error(error: ChangeError) -> ErrorCode {
    match error {
        ChangeError::Flow(error) => flow_mod_error(error),
        ChangeError::Group(error) => groups::code(error),
        ChangeError::Meter(error) => meters::code(error),
        ChangeError::NoSuchPort(_) => ErrorCode::PORT_MOD_BAD_PORT,
        ChangeError::OtherPort(_) => ErrorCode::PORT_MOD_BAD_HW_ADDR,
    }
}

/// What a port-mod asks for.
///
/// # Errors
/// The code to answer with.
pub fn port_change(request: &PortMod) -> Result<PortChangeRequest, ErrorCode> {
    if request.mask.0 & !ofp::PortConfig::NAMED.0 != 0 {
        return Err(ErrorCode::PORT_MOD_BAD_CONFIG);
    }
    if request.advertise.0 != 0 {
        // There are no link modes to choose from.
        return Err(ErrorCode::PORT_MOD_BAD_ADVERTISE);
    }
    let (port, mac) = (request.port_no, MacAddr(request.hw_addr.0));
    Ok(PortChangeRequest { port, mac, config: request.config, mask: request.mask })
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
        matching: matching(&flow.key(), &flow.mask),
        instructions: flow.instructions.wire.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ofp::OxmField;
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
            let mut flow_mod = ofp::FlowMod::new(ofp::FlowModCommand::Add);
            flow_mod.matching = matching_given;
            let bytes = ofp::Message { xid: 1, body: ofp::Body::FlowMod(flow_mod) }.encode().expect("valid");
            let (mut other_key, mut other_mask) = (FlowKey::ZERO, FlowKey::ZERO);
            prop_assert!(addition(&Addition::peek(&bytes).expect("valid"), &mut other_key, &mut other_mask));
            prop_assert_eq!((other_key, other_mask), (key, mask));
        }
    }
}
