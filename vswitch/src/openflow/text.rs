//! Flows for people and programs: in the words of `ovs-ofctl dump-flows`.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use ofp::{Action, Field, FlowStats, Instruction, Match, OxmField};
use packet::MacAddr;
use serde_json::{Value, json};

use super::convert;
use crate::flow::Flow;

/// The priority that is not printed.
const PRIORITY_DEFAULT: u16 = 0x8000;

/// A flow as `ovs-ofctl dump-flows` prints it, as of `now_ms` of the switch's clock.
pub fn flow_text(flow: &Flow, now_ms: u64) -> String {
    let stats = convert::flow_stats(flow, now_ms);
    let seconds = f64::from(stats.duration_sec) + f64::from(stats.duration_nsec) / 1e9;
    let mut text = format!(
        "cookie={:#x}, duration={seconds:.3}s, table={}, n_packets={}, n_bytes={}, ",
        stats.cookie, stats.table_id, stats.packet_count, stats.byte_count
    );
    for (name, timeout) in [("idle_timeout", stats.idle_timeout), ("hard_timeout", stats.hard_timeout)] {
        if timeout != 0 {
            let _ = write!(text, "{name}={timeout}, ");
        }
    }
    for flag in stats.flags.names() {
        let _ = write!(text, "{} ", flag.to_ascii_lowercase());
    }
    text + &rule_text(&stats)
}

/// Priority, match and actions: what a flow is, without what it counted.
pub fn rule_text(stats: &FlowStats) -> String {
    let mut parts = Vec::new();
    if stats.priority != PRIORITY_DEFAULT {
        parts.push(format!("priority={}", stats.priority));
    }
    parts.extend(match_parts(&stats.matching));
    let gap = if parts.is_empty() { "" } else { " " };
    format!("{}{gap}actions={}", parts.join(","), instructions_text(&stats.instructions))
}

/// A flow as JSON: the fields of its statistics, and its text.
pub fn flow_json(flow: &Flow, now_ms: u64) -> Value {
    let stats = convert::flow_stats(flow, now_ms);
    let value =
        |oxm: &OxmField| oxm.to_string().split_once('=').map_or_else(String::new, |pair| pair.1.into());
    let matching: serde_json::Map<String, Value> =
        stats.matching.fields.iter().map(|oxm| (oxm.name().to_string(), json!(value(oxm)))).collect();
    json!({
        "table": stats.table_id,
        "priority": stats.priority,
        "cookie": stats.cookie,
        "match": matching,
        "actions": instructions_text(&stats.instructions),
        "idle_timeout_seconds": stats.idle_timeout,
        "hard_timeout_seconds": stats.hard_timeout,
        "flags": stats.flags.names().map(|name| name.to_ascii_lowercase()).collect::<Vec<_>>(),
        "duration_seconds": f64::from(stats.duration_sec) + f64::from(stats.duration_nsec) / 1e9,
        "packets": stats.packet_count,
        "bytes": stats.byte_count,
        "text": flow_text(flow, now_ms),
    })
}

/// The fields of a match in the order and with the names of `ovs-ofctl`; prerequisites are shortened to the name of
/// the protocol.
pub fn match_parts(matching: &Match) -> Vec<String> {
    let field = |wanted: Field| matching.fields.iter().find(|oxm| oxm.field() == Some(wanted));
    let value = |wanted: Field| field(wanted).and_then(OxmField::numbers).map(|(value, _)| value);
    let (eth_type, proto) = (value(Field::EthType), value(Field::IpProto));
    let protocol = protocol(eth_type, proto);
    // Whether the name of the protocol says the protocol above IP as well.
    let shortened =
        protocol.is_some_and(|name| !["ip", "ipv6", "arp", "rarp", "mpls", "mplsm"].contains(&name));
    let mut parts: Vec<String> = protocol.iter().map(ToString::to_string).collect();
    for kind in ORDER {
        let skip = match kind {
            Field::EthType => protocol.is_some(),
            Field::IpProto => shortened,
            _ => false,
        };
        match field(kind) {
            Some(oxm) if !skip => parts.push(field_text(oxm)),
            _ => {}
        }
    }
    let listed = |oxm: &&OxmField| oxm.field().is_some_and(|field| ORDER.contains(&field));
    parts.extend(matching.fields.iter().filter(|oxm| !listed(oxm)).map(ToString::to_string));
    parts
}

/// The name of `ovs-ofctl` for a protocol by its Ethernet type and the number above IP.
fn protocol(eth_type: Option<u128>, proto: Option<u128>) -> Option<&'static str> {
    Some(match (eth_type?, proto) {
        (0x0800, Some(1)) => "icmp",
        (0x0800, Some(6)) => "tcp",
        (0x0800, Some(17)) => "udp",
        (0x0800, Some(132)) => "sctp",
        (0x0800, _) => "ip",
        (0x86dd, Some(6)) => "tcp6",
        (0x86dd, Some(17)) => "udp6",
        (0x86dd, Some(58)) => "icmp6",
        (0x86dd, Some(132)) => "sctp6",
        (0x86dd, _) => "ipv6",
        (0x0806, _) => "arp",
        (0x8035, _) => "rarp",
        (0x8847, _) => "mpls",
        (0x8848, _) => "mplsm",
        _ => return None,
    })
}

/// The order in which fields are printed; those that it does not name come last.
const ORDER: [Field; 37] = [
    Field::TunnelId,
    Field::Metadata,
    Field::InPort,
    Field::VlanVid,
    Field::VlanPcp,
    Field::EthSrc,
    Field::EthDst,
    Field::EthType,
    Field::Ipv6Src,
    Field::Ipv6Dst,
    Field::Ipv6Flabel,
    Field::ArpSpa,
    Field::ArpTpa,
    Field::Ipv4Src,
    Field::Ipv4Dst,
    Field::IpProto,
    Field::ArpOp,
    Field::ArpSha,
    Field::ArpTha,
    Field::IpDscp,
    Field::IpEcn,
    Field::MplsLabel,
    Field::MplsTc,
    Field::MplsBos,
    Field::Icmpv4Type,
    Field::Icmpv6Type,
    Field::Icmpv4Code,
    Field::Icmpv6Code,
    Field::Ipv6NdTarget,
    Field::Ipv6NdSll,
    Field::Ipv6NdTll,
    Field::TcpSrc,
    Field::UdpSrc,
    Field::SctpSrc,
    Field::TcpDst,
    Field::UdpDst,
    Field::SctpDst,
];

/// A field of a match.
fn field_text(oxm: &OxmField) -> String {
    let (Some(field), Some((value, mask))) = (oxm.field(), oxm.numbers()) else { return oxm.to_string() };
    let name = match field {
        Field::TunnelId => "tun_id",
        Field::EthSrc => "dl_src",
        Field::EthDst => "dl_dst",
        Field::EthType => return format!("dl_type={value:#06x}"),
        Field::VlanVid => {
            return match mask {
                None if value & u128::from(ofp::VID_PRESENT) != 0 => format!("dl_vlan={}", value & 0xfff),
                None => format!("vlan_tci={value:#06x}/0x1fff"),
                Some(mask) => format!("vlan_tci={value:#06x}/{mask:#06x}"),
            };
        }
        Field::VlanPcp => "dl_vlan_pcp",
        Field::Ipv4Src => "nw_src",
        Field::Ipv4Dst => "nw_dst",
        Field::IpProto => "nw_proto",
        // The whole byte, of which this is the upper part.
        Field::IpDscp => return format!("nw_tos={}", value << 2),
        Field::IpEcn => "nw_ecn",
        Field::Ipv6Flabel => "ipv6_label",
        Field::Ipv6NdTarget => "nd_target",
        Field::Ipv6NdSll => "nd_sll",
        Field::Ipv6NdTll => "nd_tll",
        Field::Icmpv4Type | Field::Icmpv6Type => "icmp_type",
        Field::Icmpv4Code | Field::Icmpv6Code => "icmp_code",
        Field::TcpSrc | Field::UdpSrc | Field::SctpSrc => "tp_src",
        Field::TcpDst | Field::UdpDst | Field::SctpDst => "tp_dst",
        _ => oxm.name(),
    };
    format!("{name}={}", value_text(field, value, mask))
}

/// A value, with its mask if it has one.
fn value_text(field: Field, value: u128, mask: Option<u128>) -> String {
    let ipv4 = |number: u128| Ipv4Addr::from(number as u32).to_string();
    let ipv6 = |number: u128| Ipv6Addr::from(number).to_string();
    let mac = |number: u128| MacAddr::from_u64(number as u64).to_string();
    match field {
        Field::InPort | Field::InPhyPort => ofp::PortNo(value as u32).to_string(),
        Field::Ipv4Src | Field::Ipv4Dst | Field::ArpSpa | Field::ArpTpa => {
            ipv4(value) + &mask.map_or_else(String::new, |mask| prefix(mask << 96, || ipv4(mask)))
        }
        Field::Ipv6Src | Field::Ipv6Dst | Field::Ipv6NdTarget => {
            ipv6(value) + &mask.map_or_else(String::new, |mask| prefix(mask, || ipv6(mask)))
        }
        Field::EthSrc | Field::EthDst | Field::ArpSha | Field::ArpTha => masked(mac(value), mask.map(mac)),
        Field::Ipv6NdSll | Field::Ipv6NdTll => mac(value),
        Field::Metadata | Field::TunnelId => {
            masked(format!("{value:#x}"), mask.map(|mask| format!("{mask:#x}")))
        }
        Field::Ipv6Flabel => masked(format!("{value:#07x}"), mask.map(|mask| format!("{mask:#07x}"))),
        _ => match mask {
            None => value.to_string(),
            Some(mask) => format!("{value:#x}/{mask:#x}"),
        },
    }
}

fn masked(value: String, mask: Option<String>) -> String {
    mask.map_or(value.clone(), |mask| format!("{value}/{mask}"))
}

/// `/24` for a mask (in the upper bits) that is a prefix, else `/` and the mask itself.
fn prefix(mask: u128, text: impl Fn() -> String) -> String {
    let length = mask.leading_ones();
    if length + mask.trailing_zeros() >= 128 { format!("/{length}") } else { format!("/{}", text()) }
}

/// What a flow does.
pub fn instructions_text(instructions: &[Instruction]) -> String {
    let mut parts = Vec::new();
    // In the order of execution (5.9), whatever order they were sent in.
    let mut sorted: Vec<&Instruction> = instructions.iter().collect();
    sorted.sort_by_key(|instruction| match instruction {
        Instruction::Meter(_) => 0,
        Instruction::ApplyActions(_) => 1,
        Instruction::ClearActions => 2,
        Instruction::WriteActions(_) => 3,
        Instruction::WriteMetadata { .. } => 4,
        Instruction::GotoTable(_) => 5,
        Instruction::Experimenter { .. } => 6,
    });
    for instruction in sorted {
        match instruction {
            Instruction::Meter(meter) => parts.push(format!("meter:{meter}")),
            Instruction::ApplyActions(actions) => parts.extend(actions.iter().map(action_text)),
            Instruction::ClearActions => parts.push("clear_actions".to_string()),
            Instruction::WriteActions(actions) => {
                let list: Vec<String> = actions.iter().map(action_text).collect();
                parts.push(format!("write_actions({})", list.join(",")));
            }
            Instruction::WriteMetadata { metadata, mask } if *mask == u64::MAX => {
                parts.push(format!("write_metadata:{metadata:#x}"));
            }
            Instruction::WriteMetadata { metadata, mask } => {
                parts.push(format!("write_metadata:{metadata:#x}/{mask:#x}"));
            }
            Instruction::GotoTable(table) => parts.push(format!("goto_table:{table}")),
            Instruction::Experimenter { experimenter, .. } => {
                parts.push(format!("experimenter:{experimenter:#x}"));
            }
        }
    }
    if parts.is_empty() { "drop".to_string() } else { parts.join(",") }
}

/// An action.
pub fn action_text(action: &Action) -> String {
    match action {
        Action::Output { port: ofp::PortNo::CONTROLLER, max_len } => format!("CONTROLLER:{max_len}"),
        Action::Output { port, .. } => match port.reserved_name() {
            Some(name) => name.to_string(),
            None => format!("output:{port}"),
        },
        Action::SetNwTtl(ttl) => format!("mod_nw_ttl:{ttl}"),
        Action::DecNwTtl => "dec_ttl".to_string(),
        Action::SetMplsTtl(ttl) => format!("set_mpls_ttl({ttl})"),
        Action::SetField(oxm) => set_field_text(oxm),
        other => other.to_string(),
    }
}

fn set_field_text(oxm: &OxmField) -> String {
    let (Some(field), Some((value, mask))) = (oxm.field(), oxm.numbers()) else {
        return format!("set_field:{oxm}");
    };
    let name = match field {
        Field::Ipv4Src => "ip_src",
        Field::Ipv4Dst => "ip_dst",
        Field::IpEcn => "nw_ecn",
        Field::IpProto => "nw_proto",
        Field::Ipv6Flabel => "ipv6_label",
        Field::Icmpv4Type => "icmp_type",
        Field::Icmpv4Code => "icmp_code",
        Field::Ipv6NdTarget => "nd_target",
        Field::Ipv6NdSll => "nd_sll",
        Field::Ipv6NdTll => "nd_tll",
        Field::TunnelId => "tun_id",
        _ => oxm.name(),
    };
    format!("set_field:{}->{name}", value_text(field, value, mask))
}
