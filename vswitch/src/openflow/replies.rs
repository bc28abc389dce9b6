//! Answers that only read the switch: features, descriptions, statistics.

use ofp::{
    ActionId, Capabilities, Desc, ErrorCode, Field, InstructionId, MultipartReply, MultipartRequest, OxmId,
    Port, PortFeatures, PortState, SwitchFeatures, TableFeatures, TableProperty, TableStats, Text,
};

use super::{convert, groups, meters};
use crate::bridge::Bridge;
use crate::model::PortConfig;
use crate::tables::TABLES;

/// Numbers of the instructions that flows can have (7.2.4): goto, metadata, write, apply, clear, meter.
const INSTRUCTIONS: [u16; 6] = [1, 2, 3, 4, 5, 6];
/// Numbers of the actions (7.2.5): output; copy, set and decrement TTLs; push and pop VLAN and MPLS; set-field.
pub(super) const ACTIONS: [u16; 13] = [0, 11, 12, 15, 16, 17, 18, 19, 20, 22, 23, 24, 25];
/// Fields that set-field can change.
const SETTABLE: [Field; 35] = [
    Field::EthDst,
    Field::EthSrc,
    Field::VlanVid,
    Field::VlanPcp,
    Field::IpDscp,
    Field::IpEcn,
    Field::IpProto,
    Field::Ipv4Src,
    Field::Ipv4Dst,
    Field::TcpSrc,
    Field::TcpDst,
    Field::UdpSrc,
    Field::UdpDst,
    Field::Icmpv4Type,
    Field::Icmpv4Code,
    Field::ArpOp,
    Field::ArpSpa,
    Field::ArpTpa,
    Field::ArpSha,
    Field::ArpTha,
    Field::Ipv6Src,
    Field::Ipv6Dst,
    Field::Ipv6Flabel,
    Field::Icmpv6Type,
    Field::Icmpv6Code,
    Field::Ipv6NdTarget,
    Field::Ipv6NdSll,
    Field::Ipv6NdTll,
    Field::EthType,
    Field::SctpSrc,
    Field::SctpDst,
    Field::MplsLabel,
    Field::MplsTc,
    Field::MplsBos,
    Field::TunnelId,
];

/// The features reply.
pub fn features(bridge: &Bridge) -> SwitchFeatures {
    SwitchFeatures {
        datapath_id: bridge.config().datapath_id,
        n_buffers: 0,
        n_tables: TABLES as u8,
        auxiliary_id: 0,
        capabilities: Capabilities::FLOW_STATS
            | Capabilities::TABLE_STATS
            | Capabilities::PORT_STATS
            | Capabilities::GROUP_STATS,
    }
}

/// A port in descriptions and port status messages.
pub fn port(config: &PortConfig) -> Port {
    let mode = match config.speed_kbps {
        10_000 => PortFeatures::SPEED_10MB_FD,
        100_000 => PortFeatures::SPEED_100MB_FD,
        1_000_000 => PortFeatures::SPEED_1GB_FD,
        10_000_000 => PortFeatures::SPEED_10GB_FD,
        40_000_000 => PortFeatures::SPEED_40GB_FD,
        100_000_000 => PortFeatures::SPEED_100GB_FD,
        _ => PortFeatures::SPEED_OTHER,
    };
    Port {
        config: config.config,
        state: match (config.link_up, config.is_live()) {
            (false, _) => PortState::LINK_DOWN,
            (true, true) => PortState::LIVE,
            (true, false) => PortState(0),
        },
        current: mode,
        current_speed_kbps: config.speed_kbps,
        max_speed_kbps: config.speed_kbps,
        ..Port::new(config.ofport, ofp::MacAddr(config.mac.0), &config.name)
    }
}

fn desc(bridge: &Bridge) -> Desc {
    Desc {
        manufacturer: Text::new("Sluice"),
        hardware: Text::new("vhost-user, tap and packet-socket ports"),
        software: Text::new(env!("CARGO_PKG_VERSION")),
        serial: Text::new("none"),
        datapath: Text::new(&format!("{:016x}", bridge.config().datapath_id)),
    }
}

fn port_stats(bridge: &Bridge, config: &PortConfig) -> Option<ofp::PortStats> {
    let counters = bridge.port_counters(config.ofport)?;
    let (duration_sec, duration_nsec) = convert::duration(bridge.port_age_ms(config.ofport)?);
    Some(ofp::PortStats {
        rx_packets: counters.rx_packets,
        tx_packets: counters.tx_packets,
        rx_bytes: counters.rx_bytes,
        tx_bytes: counters.tx_bytes,
        rx_dropped: counters.rx_dropped,
        tx_dropped: counters.tx_dropped,
        rx_errors: counters.rx_errors,
        tx_errors: counters.tx_errors,
        duration_sec,
        duration_nsec,
        ..ofp::PortStats::new(config.ofport)
    })
}

fn all_port_stats(bridge: &Bridge, wanted: ofp::PortNo) -> Result<Vec<ofp::PortStats>, ErrorCode> {
    let ports = bridge.ports();
    let wanted_port =
        |config: &&std::sync::Arc<PortConfig>| wanted == ofp::PortNo::ANY || config.ofport == wanted;
    let stats: Vec<_> =
        ports.iter().filter(wanted_port).filter_map(|config| port_stats(bridge, config)).collect();
    if stats.is_empty() && wanted != ofp::PortNo::ANY { Err(ErrorCode::BAD_PORT) } else { Ok(stats) }
}

fn table_stats(bridge: &Bridge) -> Vec<TableStats> {
    let stats = |(number, (flows, counters)): (usize, (usize, crate::tables::TableCounters))| TableStats {
        table_id: number as u8,
        active_count: flows as u32,
        lookup_count: counters.lookups,
        matched_count: counters.matches,
    };
    bridge.tables().into_iter().enumerate().map(stats).collect()
}

fn table_features(bridge: &Bridge, number: u8) -> TableFeatures {
    let actions = || ACTIONS.map(ActionId::new).to_vec();
    let set = || SETTABLE.map(|field| OxmId::new(field, false)).to_vec();
    let matches = Field::ALL.iter().map(|field| OxmId::new(*field, field.maskable()));
    let wildcards = Field::ALL.iter().map(|field| OxmId::new(*field, false));
    TableFeatures {
        table_id: number,
        name: Text::new(&format!("table{number}")),
        metadata_match: u64::MAX,
        metadata_write: u64::MAX,
        config: 0,
        max_entries: bridge.config().flow_limit.min(u32::MAX as usize) as u32,
        // Those of the table-miss entry are the same, so they are left out (7.3.5.5.2).
        properties: vec![
            TableProperty::Instructions { miss: false, ids: INSTRUCTIONS.map(InstructionId::new).to_vec() },
            TableProperty::NextTables { miss: false, tables: (number + 1..TABLES as u8).collect() },
            TableProperty::WriteActions { miss: false, ids: actions() },
            TableProperty::ApplyActions { miss: false, ids: actions() },
            TableProperty::Match(matches.collect()),
            TableProperty::Wildcards(wildcards.collect()),
            TableProperty::WriteSetField { miss: false, ids: set() },
            TableProperty::ApplySetField { miss: false, ids: set() },
        ],
    }
}

/// The answer to a multipart request that needs neither the flows nor the workers.
///
/// # Errors
/// What is asked for does not exist.
pub fn multipart(bridge: &Bridge, request: &MultipartRequest) -> Result<MultipartReply, ErrorCode> {
    Ok(match request {
        MultipartRequest::Desc => MultipartReply::Desc(Box::new(desc(bridge))),
        MultipartRequest::Table => MultipartReply::Table(table_stats(bridge)),
        MultipartRequest::PortStats(port) => MultipartReply::PortStats(all_port_stats(bridge, *port)?),
        MultipartRequest::PortDesc => {
            MultipartReply::PortDesc(bridge.ports().iter().map(|config| port(config)).collect())
        }
        MultipartRequest::TableFeatures(wanted) if wanted.is_empty() => {
            let tables = (0..TABLES as u8).map(|number| table_features(bridge, number));
            MultipartReply::TableFeatures(tables.collect())
        }
        MultipartRequest::TableFeatures(_) => return Err(ErrorCode::TABLE_FEATURES_EPERM),
        // There are no queues: lists are empty, and a single one is unknown.
        MultipartRequest::Queue { port_no, queue_id } => {
            let known = *port_no == ofp::PortNo::ANY || bridge.has_port(*port_no);
            match (known, *queue_id) {
                (false, _) => return Err(ErrorCode::QUEUE_BAD_PORT),
                (true, ofp::QUEUE_ALL) => MultipartReply::Queue(Vec::new()),
                (true, _) => return Err(ErrorCode::QUEUE_BAD_QUEUE),
            }
        }
        MultipartRequest::Group(wanted) => MultipartReply::Group(groups::stats(bridge, *wanted)),
        MultipartRequest::GroupDesc => MultipartReply::GroupDesc(groups::descriptions(bridge)),
        MultipartRequest::GroupFeatures => MultipartReply::GroupFeatures(groups::features(bridge)),
        MultipartRequest::Meter(wanted) => MultipartReply::Meter(meters::stats(bridge, *wanted)?),
        MultipartRequest::MeterConfig(wanted) => {
            MultipartReply::MeterConfig(meters::configs(bridge, *wanted)?)
        }
        MultipartRequest::MeterFeatures => MultipartReply::MeterFeatures(meters::features(bridge)),
        MultipartRequest::Experimenter(_) => return Err(ErrorCode::BAD_EXPERIMENTER),
        MultipartRequest::Flow(_) | MultipartRequest::Aggregate(_) => return Err(ErrorCode::BAD_MULTIPART),
    })
}
