//! Strategies for every message.

use ofp::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// Bytes of no meaning.
fn data() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..40)
}

/// Bytes of no meaning, a multiple of eight of them with `extra` more.
fn data8(extra: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<[u8; 8]>(), 0..3).prop_flat_map(move |chunks| {
        vec(any::<u8>(), extra).prop_map(move |tail| [chunks.as_flattened(), &tail].concat())
    })
}

fn text<const N: usize>() -> impl Strategy<Value = Text<N>> {
    "[ -~äß]{0,40}".prop_map(|text| Text::new(&text))
}

fn port() -> impl Strategy<Value = PortNo> {
    prop_oneof![any::<u32>(), 1u32..100, 0xffff_fff8u32..].prop_map(PortNo)
}

fn mac() -> impl Strategy<Value = MacAddr> {
    any::<[u8; 6]>().prop_map(MacAddr)
}

/// A field of the basic class with any value, and any mask where one is allowed.
pub fn field() -> impl Strategy<Value = OxmField> {
    (select(Field::ALL), any::<u128>(), proptest::option::of(any::<u128>())).prop_map(
        |(field, value, mask)| {
            let width = u128::MAX >> (128 - field.bits());
            let mask = mask.filter(|_| field.maskable()).map(|mask| mask & width);
            field.with(value & width & mask.unwrap_or(width), mask).expect("within the field's width")
        },
    )
}

fn raw_field() -> impl Strategy<Value = OxmField> {
    let class = select(&[0x0000u16, 0x0001, 0x7fff, 0xffff][..]);
    (class, 0u8..128, any::<bool>(), vec(any::<u8>(), 4..12)).prop_map(|(class, field, has_mask, payload)| {
        OxmField::Raw(RawOxm { class, field, has_mask, payload })
    })
}

pub fn matching() -> impl Strategy<Value = Match> {
    vec(prop_oneof![9 => field(), 1 => raw_field()], 0..6).prop_map(|fields| Match { fields })
}

fn settable() -> impl Strategy<Value = OxmField> {
    field().prop_filter("settable without mask", |f| !f.has_mask() && f.field().is_some_and(Field::settable))
}

pub fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        (port(), any::<u16>()).prop_map(|(port, max_len)| Action::Output { port, max_len }),
        select(
            &[
                Action::CopyTtlOut,
                Action::CopyTtlIn,
                Action::DecMplsTtl,
                Action::PopVlan,
                Action::DecNwTtl,
                Action::PopPbb
            ][..]
        ),
        any::<u8>().prop_map(Action::SetMplsTtl),
        any::<u8>().prop_map(Action::SetNwTtl),
        any::<u16>().prop_map(Action::PushVlan),
        any::<u16>().prop_map(Action::PushMpls),
        any::<u16>().prop_map(Action::PopMpls),
        any::<u16>().prop_map(Action::PushPbb),
        any::<u32>().prop_map(Action::SetQueue),
        any::<u32>().prop_map(Action::Group),
        settable().prop_map(Action::SetField),
        (any::<u32>(), data8(0)).prop_map(|(experimenter, data)| Action::Experimenter { experimenter, data }),
    ]
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    vec(action(), 0..5)
}

fn instructions() -> impl Strategy<Value = Vec<Instruction>> {
    vec(
        prop_oneof![
            any::<u8>().prop_map(Instruction::GotoTable),
            any::<(u64, u64)>().prop_map(|(metadata, mask)| Instruction::WriteMetadata { metadata, mask }),
            actions().prop_map(Instruction::WriteActions),
            actions().prop_map(Instruction::ApplyActions),
            Just(Instruction::ClearActions),
            any::<u32>().prop_map(Instruction::Meter),
            (any::<u32>(), data8(0))
                .prop_map(|(experimenter, data)| Instruction::Experimenter { experimenter, data }),
        ],
        0..4,
    )
}

fn flow_mod() -> impl Strategy<Value = FlowMod> {
    let head = any::<(u64, u64, u8, u16, u16, u16, u32, u32)>();
    (head, select(FlowModCommand::ALL), port(), 0u16..32, matching(), instructions()).prop_map(
        |(head, command, out_port, flags, matching, instructions)| {
            let (cookie, cookie_mask, table_id, idle_timeout, hard_timeout, priority, buffer_id, out_group) =
                head;
            FlowMod {
                cookie,
                cookie_mask,
                table_id,
                command,
                idle_timeout,
                hard_timeout,
                priority,
                buffer_id,
                out_port,
                out_group,
                flags: FlowModFlags(flags),
                matching,
                instructions,
            }
        },
    )
}

fn flow_removed() -> impl Strategy<Value = FlowRemoved> {
    let head = any::<(u64, u16, u8, u32, u32, u16, u16, u64, u64)>();
    (head, select(FlowRemovedReason::ALL), matching()).prop_map(|(h, reason, matching)| FlowRemoved {
        cookie: h.0,
        priority: h.1,
        reason,
        table_id: h.2,
        duration_sec: h.3,
        duration_nsec: h.4,
        idle_timeout: h.5,
        hard_timeout: h.6,
        packet_count: h.7,
        byte_count: h.8,
        matching,
    })
}

fn flow_stats() -> impl Strategy<Value = FlowStats> {
    let head = any::<(u8, u32, u32, u16, u16, u16, u16, u64, u64, u64)>();
    (head, matching(), instructions()).prop_map(|(h, matching, instructions)| FlowStats {
        table_id: h.0,
        duration_sec: h.1,
        duration_nsec: h.2,
        priority: h.3,
        idle_timeout: h.4,
        hard_timeout: h.5,
        flags: FlowModFlags(h.6),
        cookie: h.7,
        packet_count: h.8,
        byte_count: h.9,
        matching,
        instructions,
    })
}

fn flow_stats_request() -> impl Strategy<Value = FlowStatsRequest> {
    (any::<(u8, u32, u64, u64)>(), port(), matching()).prop_map(
        |((table_id, out_group, cookie, cookie_mask), out_port, matching)| FlowStatsRequest {
            table_id,
            out_port,
            out_group,
            cookie,
            cookie_mask,
            matching,
        },
    )
}

fn port_desc() -> impl Strategy<Value = Port> {
    (port(), mac(), text(), any::<[u32; 8]>()).prop_map(|(port_no, hw_addr, name, n)| Port {
        port_no,
        hw_addr,
        name,
        config: PortConfig(n[0]),
        state: PortState(n[1]),
        current: PortFeatures(n[2]),
        advertised: PortFeatures(n[3]),
        supported: PortFeatures(n[4]),
        peer: PortFeatures(n[5]),
        current_speed_kbps: n[6],
        max_speed_kbps: n[7],
    })
}

fn port_stats() -> impl Strategy<Value = PortStats> {
    (port(), any::<[u64; 12]>(), any::<(u32, u32)>()).prop_map(
        |(port_no, n, (duration_sec, duration_nsec))| PortStats {
            rx_packets: n[0],
            tx_packets: n[1],
            rx_bytes: n[2],
            tx_bytes: n[3],
            rx_dropped: n[4],
            tx_dropped: n[5],
            rx_errors: n[6],
            tx_errors: n[7],
            rx_frame_err: n[8],
            rx_over_err: n[9],
            rx_crc_err: n[10],
            collisions: n[11],
            duration_sec,
            duration_nsec,
            port_no,
        },
    )
}

fn buckets() -> impl Strategy<Value = Vec<Bucket>> {
    let bucket = (any::<u16>(), port(), any::<u32>(), actions()).prop_map(
        |(weight, watch_port, watch_group, actions)| Bucket { weight, watch_port, watch_group, actions },
    );
    vec(bucket, 0..4)
}

fn group_mod() -> impl Strategy<Value = GroupMod> {
    (select(GroupModCommand::ALL), select(GroupType::ALL), any::<u32>(), buckets())
        .prop_map(|(command, kind, group_id, buckets)| GroupMod { command, kind, group_id, buckets })
}

fn bands() -> impl Strategy<Value = Vec<MeterBand>> {
    let band = (any::<(u32, u32, u8, u32)>(), 0..3, data8(0)).prop_map(
        |((rate, burst_size, level, exp), kind, data)| match kind {
            0 => MeterBand::Drop { rate, burst_size },
            1 => MeterBand::DscpRemark { rate, burst_size, prec_level: level },
            _ => MeterBand::Experimenter { rate, burst_size, experimenter: exp, data },
        },
    );
    vec(band, 0..4)
}

fn queue_property() -> impl Strategy<Value = QueueProperty> {
    prop_oneof![
        any::<u16>().prop_map(QueueProperty::MinRate),
        any::<u16>().prop_map(QueueProperty::MaxRate),
        (any::<u32>(), data8(0))
            .prop_map(|(experimenter, data)| QueueProperty::Experimenter { experimenter, data }),
    ]
}

fn queue() -> impl Strategy<Value = PacketQueue> {
    (any::<u32>(), port(), vec(queue_property(), 0..3)).prop_map(|(queue_id, port, properties)| PacketQueue {
        queue_id,
        port,
        properties,
    })
}

fn oxm_ids() -> impl Strategy<Value = Vec<OxmId>> {
    let known = (select(Field::ALL), any::<bool>()).prop_map(|(field, mask)| OxmId::new(field, mask));
    let foreign = any::<u32>().prop_map(|experimenter| OxmId {
        class: 0xffff,
        field: 3,
        has_mask: false,
        len: 8,
        experimenter,
    });
    vec(prop_oneof![known, foreign], 0..5)
}

fn action_ids() -> impl Strategy<Value = Vec<ActionId>> {
    let foreign = data8(4).prop_map(|experimenter| ActionId { kind: 0xffff, experimenter });
    vec(prop_oneof![4 => select(&ActionId::STANDARD[..]).prop_map(ActionId::new), 1 => foreign], 0..5)
}

fn table_property() -> impl Strategy<Value = TableProperty> {
    let instructions = vec(select(&InstructionId::STANDARD[..]).prop_map(InstructionId::new), 0..5);
    prop_oneof![
        (any::<bool>(), instructions).prop_map(|(miss, ids)| TableProperty::Instructions { miss, ids }),
        (any::<bool>(), data()).prop_map(|(miss, tables)| TableProperty::NextTables { miss, tables }),
        (any::<bool>(), action_ids()).prop_map(|(miss, ids)| TableProperty::WriteActions { miss, ids }),
        (any::<bool>(), action_ids()).prop_map(|(miss, ids)| TableProperty::ApplyActions { miss, ids }),
        oxm_ids().prop_map(TableProperty::Match),
        oxm_ids().prop_map(TableProperty::Wildcards),
        (any::<bool>(), oxm_ids()).prop_map(|(miss, ids)| TableProperty::WriteSetField { miss, ids }),
        (any::<bool>(), oxm_ids()).prop_map(|(miss, ids)| TableProperty::ApplySetField { miss, ids }),
        (any::<bool>(), data8(4)).prop_map(|(miss, data)| TableProperty::Experimenter { miss, data }),
    ]
}

fn table_features() -> impl Strategy<Value = TableFeatures> {
    (any::<(u8, u64, u64, u32, u32)>(), text(), vec(table_property(), 0..6)).prop_map(
        |(n, name, properties)| TableFeatures {
            table_id: n.0,
            name,
            metadata_match: n.1,
            metadata_write: n.2,
            config: n.3,
            max_entries: n.4,
            properties,
        },
    )
}

fn experimenter() -> impl Strategy<Value = Experimenter> {
    (any::<(u32, u32)>(), data()).prop_filter_map("not a bundle", |((experimenter, exp_type), data)| {
        (experimenter != ONF_EXPERIMENTER).then_some(Experimenter { experimenter, exp_type, data })
    })
}

fn multipart_request() -> impl Strategy<Value = MultipartRequest> {
    prop_oneof![
        Just(MultipartRequest::Desc),
        flow_stats_request().prop_map(MultipartRequest::Flow),
        flow_stats_request().prop_map(MultipartRequest::Aggregate),
        Just(MultipartRequest::Table),
        port().prop_map(MultipartRequest::PortStats),
        (port(), any::<u32>()).prop_map(|(port_no, queue_id)| MultipartRequest::Queue { port_no, queue_id }),
        any::<u32>().prop_map(MultipartRequest::Group),
        Just(MultipartRequest::GroupDesc),
        Just(MultipartRequest::GroupFeatures),
        any::<u32>().prop_map(MultipartRequest::Meter),
        any::<u32>().prop_map(MultipartRequest::MeterConfig),
        Just(MultipartRequest::MeterFeatures),
        vec(table_features(), 0..3).prop_map(MultipartRequest::TableFeatures),
        Just(MultipartRequest::PortDesc),
        experimenter().prop_map(MultipartRequest::Experimenter),
    ]
}

fn desc() -> impl Strategy<Value = MultipartReply> {
    (text(), text(), text(), text(), text()).prop_map(
        |(manufacturer, hardware, software, serial, datapath)| {
            MultipartReply::Desc(Box::new(Desc { manufacturer, hardware, software, serial, datapath }))
        },
    )
}

fn counters_reply() -> impl Strategy<Value = MultipartReply> {
    let table =
        any::<(u8, u32, u64, u64)>().prop_map(|(table_id, active_count, lookup_count, matched_count)| {
            TableStats { table_id, active_count, lookup_count, matched_count }
        });
    let queue = (port(), any::<(u32, u64, u64, u64, u32, u32)>()).prop_map(|(port_no, n)| QueueStats {
        port_no,
        queue_id: n.0,
        tx_bytes: n.1,
        tx_packets: n.2,
        tx_errors: n.3,
        duration_sec: n.4,
        duration_nsec: n.5,
    });
    let pair = any::<(u64, u64)>();
    let group =
        (any::<(u32, u32, u64, u64, u32, u32)>(), vec(pair, 0..4)).prop_map(|(n, buckets)| GroupStats {
            group_id: n.0,
            ref_count: n.1,
            packet_count: n.2,
            byte_count: n.3,
            duration_sec: n.4,
            duration_nsec: n.5,
            buckets: buckets
                .into_iter()
                .map(|(packet_count, byte_count)| BucketCounter { packet_count, byte_count })
                .collect(),
        });
    let meter =
        (any::<(u32, u32, u64, u64, u32, u32)>(), vec(pair, 0..4)).prop_map(|(n, bands)| MeterStats {
            meter_id: n.0,
            flow_count: n.1,
            packet_in_count: n.2,
            byte_in_count: n.3,
            duration_sec: n.4,
            duration_nsec: n.5,
            bands: bands
                .into_iter()
                .map(|(packet_count, byte_count)| MeterBandCounter { packet_count, byte_count })
                .collect(),
        });
    prop_oneof![
        vec(table, 0..4).prop_map(MultipartReply::Table),
        vec(port_stats(), 0..4).prop_map(MultipartReply::PortStats),
        vec(queue, 0..4).prop_map(MultipartReply::Queue),
        vec(group, 0..4).prop_map(MultipartReply::Group),
        vec(meter, 0..4).prop_map(MultipartReply::Meter),
    ]
}

pub fn multipart_reply() -> impl Strategy<Value = MultipartReply> {
    let group = (select(GroupType::ALL), any::<u32>(), buckets())
        .prop_map(|(kind, group_id, buckets)| GroupDesc { kind, group_id, buckets });
    let meter = (0u16..16, any::<u32>(), bands()).prop_map(|(flags, meter_id, bands)| MeterConfig {
        flags: MeterFlags(flags),
        meter_id,
        bands,
    });
    prop_oneof![
        2 => counters_reply(),
        1 => desc(),
        2 => vec(flow_stats(), 0..4).prop_map(MultipartReply::Flow),
        1 => any::<(u64, u64, u32)>().prop_map(|(packet_count, byte_count, flow_count)| {
            MultipartReply::Aggregate(AggregateStats { packet_count, byte_count, flow_count })
        }),
        1 => vec(group, 0..3).prop_map(MultipartReply::GroupDesc),
        1 => any::<(u32, u32, [u32; 4], [u32; 4])>().prop_map(|(types, capabilities, max_groups, actions)| {
            MultipartReply::GroupFeatures(GroupFeatures { types, capabilities, max_groups, actions })
        }),
        1 => vec(meter, 0..3).prop_map(MultipartReply::MeterConfig),
        1 => any::<(u32, u32, u32, u8, u8)>().prop_map(|(max_meter, band_types, capabilities, max_bands, max_color)| {
            MultipartReply::MeterFeatures(MeterFeatures { max_meter, band_types, capabilities, max_bands, max_color })
        }),
        1 => vec(table_features(), 0..3).prop_map(MultipartReply::TableFeatures),
        1 => vec(port_desc(), 0..4).prop_map(MultipartReply::PortDesc),
        1 => experimenter().prop_map(MultipartReply::Experimenter),
    ]
}

fn hello() -> impl Strategy<Value = Body> {
    (any::<u8>(), proptest::option::of(vec(any::<u32>(), 0..3)))
        .prop_map(|(version, bitmap)| Body::Hello(Hello { version, bitmap }))
}

fn error() -> impl Strategy<Value = Body> {
    (any::<(u16, u16, u32)>(), any::<bool>(), data()).prop_map(|((kind, code, number), foreign, data)| {
        let (kind, experimenter) = if foreign { (0xffff, number) } else { (kind & 0x7fff, 0) };
        Body::Error(ErrorMessage { error: ErrorCode { kind, code, experimenter }, data })
    })
}

fn role() -> impl Strategy<Value = RoleMessage> {
    (select(Role::ALL), any::<u64>()).prop_map(|(role, generation_id)| RoleMessage { role, generation_id })
}

fn async_config() -> impl Strategy<Value = AsyncConfig> {
    any::<[[u32; 2]; 3]>().prop_map(|[packet_in_mask, port_status_mask, flow_removed_mask]| AsyncConfig {
        packet_in_mask,
        port_status_mask,
        flow_removed_mask,
    })
}

fn config() -> impl Strategy<Value = SwitchConfig> {
    any::<(u16, u16)>()
        .prop_map(|(flags, miss_send_len)| SwitchConfig { flags: ConfigFlags(flags), miss_send_len })
}

fn session_body() -> impl Strategy<Value = Body> {
    let features = any::<(u64, u32, u8, u8, u32)>().prop_map(|n| SwitchFeatures {
        datapath_id: n.0,
        n_buffers: n.1,
        n_tables: n.2,
        auxiliary_id: n.3,
        capabilities: Capabilities(n.4),
    });
    prop_oneof![
        hello(),
        error(),
        data().prop_map(Body::EchoRequest),
        data().prop_map(Body::EchoReply),
        experimenter().prop_map(Body::Experimenter),
        select(
            &[
                Body::FeaturesRequest,
                Body::GetConfigRequest,
                Body::BarrierRequest,
                Body::BarrierReply,
                Body::GetAsyncRequest
            ][..]
        ),
        features.prop_map(Body::FeaturesReply),
        config().prop_map(Body::GetConfigReply),
        config().prop_map(Body::SetConfig),
        role().prop_map(Body::RoleRequest),
        role().prop_map(Body::RoleReply),
        async_config().prop_map(Body::GetAsyncReply),
        async_config().prop_map(Body::SetAsync),
    ]
}

fn port_mod() -> impl Strategy<Value = PortMod> {
    (port(), mac(), any::<(u32, u32, u32)>()).prop_map(|(port_no, hw_addr, (config, mask, advertise))| {
        PortMod {
            port_no,
            hw_addr,
            config: PortConfig(config),
            mask: PortConfig(mask),
            advertise: PortFeatures(advertise),
        }
    })
}

fn meter_mod() -> impl Strategy<Value = MeterMod> {
    (select(MeterModCommand::ALL), 0u16..16, any::<u32>(), bands()).prop_map(
        |(command, flags, meter_id, bands)| MeterMod { command, flags: MeterFlags(flags), meter_id, bands },
    )
}

fn switch_body() -> impl Strategy<Value = Body> {
    let packet_in = (any::<(u32, u16, u8, u64)>(), select(PacketInReason::ALL), matching(), data()).prop_map(
        |((buffer_id, total_len, table_id, cookie), reason, matching, data)| PacketIn {
            buffer_id,
            total_len,
            reason,
            table_id,
            cookie,
            matching,
            data,
        },
    );
    let packet_out = (any::<u32>(), port(), actions(), data())
        .prop_map(|(buffer_id, in_port, actions, data)| PacketOut { buffer_id, in_port, actions, data });
    prop_oneof![
        2 => packet_in.prop_map(Body::PacketIn),
        1 => flow_removed().prop_map(Body::FlowRemoved),
        1 => (select(PortStatusReason::ALL), port_desc())
            .prop_map(|(reason, port)| Body::PortStatus(PortStatus { reason, port })),
        2 => packet_out.prop_map(Body::PacketOut),
        3 => flow_mod().prop_map(Body::FlowMod),
        2 => group_mod().prop_map(Body::GroupMod),
        1 => port_mod().prop_map(Body::PortMod),
        1 => any::<(u8, u32)>().prop_map(|(table_id, config)| Body::TableMod(TableMod { table_id, config })),
        2 => meter_mod().prop_map(Body::MeterMod),
        1 => port().prop_map(Body::QueueGetConfigRequest),
        1 => (port(), vec(queue(), 0..3))
            .prop_map(|(port, queues)| Body::QueueGetConfigReply(QueueConfig { port, queues })),
        3 => multipart_request().prop_map(Body::MultipartRequest),
        1 => multipart_request().prop_map(Body::MultipartRequestMore),
        5 => multipart_reply().prop_map(Body::MultipartReply),
        1 => multipart_reply().prop_map(Body::MultipartReplyMore),
    ]
}

fn bundle_body() -> impl Strategy<Value = Body> {
    let properties =
        || vec((any::<u16>(), data()).prop_map(|(kind, data)| BundleProperty { kind, data }), 0..3);
    let inner = (any::<u32>(), prop_oneof![session_body(), switch_body()])
        .prop_filter("no raw ONF message", |(_, body)| !matches!(body, Body::Experimenter(_)))
        .prop_map(|(xid, body)| Box::new(Message { xid, body }));
    prop_oneof![
        (any::<u32>(), select(BundleControlType::ALL), 0u16..4, properties()).prop_map(
            |(bundle_id, kind, flags, properties)| {
                Body::BundleControl(BundleControl { bundle_id, kind, flags: BundleFlags(flags), properties })
            }
        ),
        (any::<u32>(), 0u16..4, inner, properties()).prop_map(|(bundle_id, flags, message, properties)| {
            Body::BundleAdd(BundleAdd { bundle_id, flags: BundleFlags(flags), message, properties })
        }),
    ]
}

/// Any message.
pub fn message() -> impl Strategy<Value = Message> {
    (any::<u32>(), prop_oneof![2 => session_body(), 5 => switch_body(), 1 => bundle_body()])
        .prop_map(|(xid, body)| Message { xid, body })
}
