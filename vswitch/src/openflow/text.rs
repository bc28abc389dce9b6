//! Flows for people and programs.

use std::fmt::Write;

use ofp::{Field, Instruction, Match, OxmField};
use serde_json::{Value, json};

use super::convert;
use crate::flow::Flow;

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
    let _ = write!(text, "priority={}", stats.priority);
    let fields = match_text(&stats.matching);
    if !fields.is_empty() {
        let _ = write!(text, ",{fields}");
    }
    let _ = write!(text, " actions={}", instructions_text(&stats.instructions));
    text
}

/// A flow as JSON: the fields of its statistics, and its text.
pub fn flow_json(flow: &Flow, now_ms: u64) -> Value {
    let stats = convert::flow_stats(flow, now_ms);
    let matching: serde_json::Map<String, Value> =
        stats.matching.fields.iter().map(|oxm| (oxm.name().to_string(), json!(value_text(oxm)))).collect();
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

/// The value of a field, with its mask if it has one.
fn value_text(oxm: &OxmField) -> String {
    let text = oxm.to_string();
    text.split_once('=').map_or_else(|| text.clone(), |(_, value)| value.to_string())
}

/// The fields by the names that `ovs-ofctl` uses, prerequisites shortened to the name of the protocol.
fn match_text(matching: &Match) -> String {
    let value = |field: Field| {
        matching
            .fields
            .iter()
            .find(|oxm| oxm.field() == Some(field))
            .and_then(|oxm| oxm.numbers().map(|n| n.0))
    };
    let (eth_type, proto) = (value(Field::EthType), value(Field::IpProto));
    let protocol = match (eth_type, proto) {
        (Some(0x0800), Some(1)) => Some("icmp"),
        (Some(0x0800), Some(6)) => Some("tcp"),
        (Some(0x0800), Some(17)) => Some("udp"),
        (Some(0x0800), Some(132)) => Some("sctp"),
        (Some(0x86dd), Some(6)) => Some("tcp6"),
        (Some(0x86dd), Some(17)) => Some("udp6"),
        (Some(0x86dd), Some(58)) => Some("icmp6"),
        (Some(0x86dd), Some(132)) => Some("sctp6"),
        (Some(0x0800), _) => Some("ip"),
        (Some(0x86dd), _) => Some("ipv6"),
        (Some(0x0806), _) => Some("arp"),
        _ => None,
    };
    let shortened = protocol.is_some_and(|protocol| !matches!(protocol, "ip" | "ipv6" | "arp"));
    let mut parts: Vec<String> = protocol.iter().map(ToString::to_string).collect();
    for oxm in &matching.fields {
        let skip = match oxm.field() {
            Some(Field::EthType) => protocol.is_some(),
            Some(Field::IpProto) => shortened,
            _ => false,
        };
        if !skip {
            parts.push(field_text(oxm));
        }
    }
    parts.join(",")
}

fn field_text(oxm: &OxmField) -> String {
    let name = match oxm {
        OxmField::VlanVid(vid) if vid.mask.is_none() && vid.value & ofp::VID_PRESENT != 0 => {
            return format!("dl_vlan={}", vid.value & 0xfff);
        }
        OxmField::VlanPcp(pcp) => return format!("dl_vlan_pcp={pcp}"),
        OxmField::EthType(eth_type) => return format!("dl_type={eth_type:#06x}"),
        OxmField::EthDst(_) => "dl_dst",
        OxmField::EthSrc(_) => "dl_src",
        OxmField::IpProto(_) => "nw_proto",
        OxmField::Ipv4Src(_) => "nw_src",
        OxmField::Ipv4Dst(_) => "nw_dst",
        OxmField::TcpSrc(_) | OxmField::UdpSrc(_) | OxmField::SctpSrc(_) => "tp_src",
        OxmField::TcpDst(_) | OxmField::UdpDst(_) | OxmField::SctpDst(_) => "tp_dst",
        OxmField::Icmpv4Type(_) | OxmField::Icmpv6Type(_) => "icmp_type",
        OxmField::Icmpv4Code(_) | OxmField::Icmpv6Code(_) => "icmp_code",
        oxm => oxm.name(),
    };
    format!("{name}={}", value_text(oxm))
}

fn instructions_text(instructions: &[Instruction]) -> String {
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

fn action_text(action: &ofp::Action) -> String {
    match action {
        ofp::Action::Output { port: ofp::PortNo::CONTROLLER, max_len } => format!("CONTROLLER:{max_len}"),
        ofp::Action::Output { port, .. } => match port.reserved_name() {
            Some(name) => name.to_string(),
            None => format!("output:{port}"),
        },
        ofp::Action::PushVlan(tpid) => format!("push_vlan:{tpid:#06x}"),
        ofp::Action::PopVlan => "pop_vlan".to_string(),
        ofp::Action::SetField(oxm) => format!("set_field:{}->{}", value_text(oxm), oxm.name()),
        other => other.to_string(),
    }
}
