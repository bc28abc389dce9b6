//! Differential tests against Open vSwitch's own codec: `ovs-ofctl ofp-parse` reads what we write, and we read what
//! `ovs-ofctl` writes. Needs the Debian package openvswitch-common.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use ofp::*;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;

fn ovs_ofctl(arguments: &[&str]) -> Output {
    Command::new("ovs-ofctl")
        .arg("--timeout=20")
        .args(arguments)
        .output()
        .expect("ovs-ofctl is needed for this test: apt-get install openvswitch-common")
}

/// A directory of this test, removed afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("ofp-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// What Open vSwitch prints for each message, one string a message.
fn printed(name: &str, messages: &[Message]) -> Vec<String> {
    let scratch = Scratch::new(name);
    let file = scratch.0.join("messages");
    let bytes: Vec<u8> = messages.iter().flat_map(|message| message.encode().unwrap()).collect();
    std::fs::write(&file, bytes).unwrap();
    let output = ovs_ofctl(&["ofp-parse", file.to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    // A message may take many lines; each begins with its type.
    let mut texts: Vec<String> = Vec::new();
    for line in text.lines() {
        let begins = line.starts_with("OFPT_") || line.starts_with("OFPST_") || line.starts_with("***");
        if begins || line.starts_with("ONFT_") || line.contains("(OF1.3) (xid=") {
            texts.push(String::new());
        }
        let last = texts.last_mut().expect("a message begins with its type");
        last.push_str(line);
        last.push('\n');
    }
    assert_eq!(texts.len(), messages.len(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    texts
}

fn add(matching: Match, instructions: Vec<Instruction>) -> Message {
    let flow_mod = FlowMod { priority: 1, matching, instructions, ..FlowMod::new(FlowModCommand::Add) };
    Message { xid: 1, body: Body::FlowMod(flow_mod) }
}

fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

fn exact<T>(value: T) -> Masked<T> {
    Masked::exact(value)
}

/// Fields behind their prerequisites, and what Open vSwitch calls them.
fn field_cases() -> Vec<(Vec<OxmField>, &'static str)> {
    use OxmField::*;
    let v4 = |fields: &[OxmField]| [&[EthType(0x0800)], fields].concat();
    let v6 = |fields: &[OxmField]| [&[EthType(0x86dd)], fields].concat();
    let arp = |field| vec![EthType(0x0806), field];
    let nd = |kind, field| v6(&[IpProto(58), Icmpv6Type(kind), Icmpv6Code(0), field]);
    let ip = Ipv4Addr::new(10, 1, 2, 3);
    let net = Masked::with_mask(Ipv4Addr::new(10, 1, 0, 0), Ipv4Addr::new(255, 255, 0, 0));
    let ip6: Ipv6Addr = "2001:db8::5".parse().unwrap();
    let net6 = Masked::with_mask("2001:db8::".parse().unwrap(), "ffff:ffff::".parse().unwrap());
    vec![
        (vec![InPort(PortNo(7))], "in_port=7"),
        (vec![InPort(PortNo::LOCAL)], "in_port=LOCAL"),
        (vec![Metadata(exact(0x1234))], "metadata=0x1234"),
        (vec![Metadata(Masked::with_mask(0x10, 0xf0))], "metadata=0x10/0xf0"),
        (vec![EthDst(exact(mac(1)))], "dl_dst=02:00:00:00:00:01"),
        (
            vec![EthSrc(Masked::with_mask(MacAddr([2, 0, 0, 0, 0, 0]), MacAddr([255, 255, 255, 0, 0, 0])))],
            "dl_src=02:00:00:00:00:00/ff:ff:ff:00:00:00",
        ),
        (vec![EthType(0x88cc)], "dl_type=0x88cc"),
        (vec![VlanVid(exact(VID_NONE))], "vlan_tci=0x0000/0x1fff"),
        (vec![VlanVid(exact(VID_PRESENT | 10))], "dl_vlan=10"),
        (vec![VlanVid(Masked::with_mask(VID_PRESENT, VID_PRESENT))], "vlan_tci=0x1000/0x1000"),
        (vec![VlanVid(exact(VID_PRESENT | 10)), VlanPcp(5)], "dl_vlan=10,dl_vlan_pcp=5"),
        (v4(&[IpDscp(10)]), "ip,nw_tos=40"),
        (v4(&[IpEcn(1)]), "ip,nw_ecn=1"),
        (v4(&[IpProto(47)]), "ip,nw_proto=47"),
        (v4(&[Ipv4Src(exact(ip))]), "ip,nw_src=10.1.2.3"),
        (v4(&[Ipv4Dst(net)]), "ip,nw_dst=10.1.0.0/16"),
        (v4(&[IpProto(6), TcpSrc(exact(80))]), "tcp,tp_src=80"),
        (v4(&[IpProto(6), TcpDst(Masked::with_mask(0x50, 0xfff0))]), "tcp,tp_dst=0x50/0xfff0"),
        (v4(&[IpProto(17), UdpSrc(exact(53))]), "udp,tp_src=53"),
        (v6(&[IpProto(17), UdpDst(exact(53))]), "udp6,tp_dst=53"),
        (v4(&[IpProto(132), SctpSrc(exact(9))]), "sctp,tp_src=9"),
        (v6(&[IpProto(132), SctpDst(exact(9))]), "sctp6,tp_dst=9"),
        (v4(&[IpProto(1), Icmpv4Type(8), Icmpv4Code(0)]), "icmp,icmp_type=8,icmp_code=0"),
        (arp(ArpOp(1)), "arp,arp_op=1"),
        (arp(ArpSpa(exact(ip))), "arp,arp_spa=10.1.2.3"),
        (arp(ArpTpa(net)), "arp,arp_tpa=10.1.0.0/16"),
        (arp(ArpSha(exact(mac(3)))), "arp,arp_sha=02:00:00:00:00:03"),
        (arp(ArpTha(exact(mac(4)))), "arp,arp_tha=02:00:00:00:00:04"),
        (v6(&[Ipv6Src(exact(ip6))]), "ipv6,ipv6_src=2001:db8::5"),
        (v6(&[Ipv6Dst(net6)]), "ipv6,ipv6_dst=2001:db8::/32"),
        (v6(&[Ipv6Flabel(exact(0xabcde))]), "ipv6,ipv6_label=0xabcde"),
        (v6(&[IpProto(58), Icmpv6Type(128), Icmpv6Code(0)]), "icmp6,icmp_type=128,icmp_code=0"),
        (nd(135, Ipv6NdTarget(exact(ip6))), "icmp6,icmp_type=135,icmp_code=0,nd_target=2001:db8::5"),
        (nd(135, Ipv6NdSll(mac(5))), "icmp6,icmp_type=135,icmp_code=0,nd_sll=02:00:00:00:00:05"),
        (nd(136, Ipv6NdTll(mac(6))), "icmp6,icmp_type=136,icmp_code=0,nd_tll=02:00:00:00:00:06"),
        (vec![EthType(0x8847), MplsLabel(100)], "mpls,mpls_label=100"),
        (vec![EthType(0x8848), MplsTc(3)], "mplsm,mpls_tc=3"),
        (vec![EthType(0x8847), MplsBos(1)], "mpls,mpls_bos=1"),
        (vec![TunnelId(exact(0x77))], "tun_id=0x77"),
    ]
}

#[test]
fn every_match_field_means_the_same_to_open_vswitch() {
    let cases = field_cases();
    let messages: Vec<_> =
        cases.iter().map(|(fields, _)| add(Match { fields: fields.clone() }, vec![])).collect();
    for (text, (fields, expected)) in printed("fields", &messages).iter().zip(&cases) {
        assert!(Match { fields: fields.clone() }.validate().is_ok(), "{expected}");
        assert!(text.contains(&format!("priority=1,{expected} actions=drop")), "{expected}: {text}");
    }
    // Those without a counterpart in Open vSwitch 3.1 aside, every field is in the list.
    let listed =
        |field: &Field| cases.iter().any(|(fields, _)| fields.iter().any(|f| f.field() == Some(*field)));
    let missing: Vec<_> = Field::ALL.iter().filter(|field| !listed(field)).collect();
    assert_eq!(missing, [&Field::InPhyPort, &Field::Ipv6Exthdr]);
}

#[test]
fn every_action_and_instruction_means_the_same_to_open_vswitch() {
    let set = |field| Action::SetField(field);
    let apply = |actions: Vec<Action>| vec![Instruction::ApplyActions(actions)];
    let tagged = Match::any().with(OxmField::VlanVid(exact(VID_PRESENT | 3)));
    let ip = Match::any().with(OxmField::EthType(0x0800));
    let mpls = Match::any().with(OxmField::EthType(0x8847));
    let controller = Action::Output { port: PortNo::CONTROLLER, max_len: 128 };
    let cases = [
        (
            Match::any(),
            apply(vec![Action::output(PortNo(3)), Action::output(PortNo::NORMAL)]),
            "output:3,NORMAL",
        ),
        (Match::any(), apply(vec![controller]), "CONTROLLER:128"),
        (
            Match::any(),
            apply(vec![Action::output(PortNo::IN_PORT), Action::output(PortNo::FLOOD)]),
            "IN_PORT,FLOOD",
        ),
        (Match::any(), apply(vec![Action::output(PortNo::ALL), Action::output(PortNo::LOCAL)]), "ALL,LOCAL"),
        (
            Match::any(),
            apply(vec![Action::PushVlan(0x8100), set(OxmField::VlanVid(exact(VID_PRESENT | 10)))]),
            "push_vlan:0x8100,set_field:4106->vlan_vid",
        ),
        (tagged, apply(vec![Action::PopVlan, Action::output(PortNo(1))]), "pop_vlan,output:1"),
        (ip.clone(), apply(vec![Action::SetNwTtl(9), Action::DecNwTtl]), "mod_nw_ttl:9,dec_ttl"),
        (ip.clone(), apply(vec![Action::PushMpls(0x8847)]), "push_mpls:0x8847"),
        (
            mpls.clone(),
            apply(vec![Action::SetMplsTtl(7), Action::DecMplsTtl]),
            "set_mpls_ttl(7),dec_mpls_ttl",
        ),
        (mpls, apply(vec![Action::PopMpls(0x0800)]), "pop_mpls:0x0800"),
        (Match::any(), apply(vec![Action::SetQueue(4), Action::Group(5)]), "set_queue:4,group:5"),
        (
            ip,
            apply(vec![set(OxmField::Ipv4Dst(exact(Ipv4Addr::new(1, 2, 3, 4))))]),
            "set_field:1.2.3.4->ip_dst",
        ),
        (
            Match::any(),
            apply(vec![set(OxmField::EthSrc(exact(mac(9)))), set(OxmField::TunnelId(exact(5)))]),
            "set_field:02:00:00:00:00:09->eth_src,set_field:0x5->tun_id",
        ),
        (
            Match::any(),
            vec![
                Instruction::Meter(6),
                Instruction::ClearActions,
                Instruction::WriteActions(vec![Action::output(PortNo(2))]),
                Instruction::WriteMetadata { metadata: 0x30, mask: 0xf0 },
                Instruction::GotoTable(4),
            ],
            "meter:6,clear_actions,write_actions(output:2),write_metadata:0x30/0xf0,goto_table:4",
        ),
    ];
    let messages: Vec<_> = cases.iter().map(|(m, i, _)| add(m.clone(), i.clone())).collect();
    for (text, (_, _, expected)) in printed("actions", &messages).iter().zip(&cases) {
        assert!(text.trim_end().ends_with(&format!(" actions={expected}")), "{expected}: {text}");
    }
}

/// Open vSwitch refuses a match where we do, for random fields in random order.
#[test]
fn random_matches_are_judged_alike() {
    let mut runner = TestRunner::deterministic();
    // Open vSwitch's own rules on top of the specification: in_phy_port and ipv6_exthdr are unknown to it, a port is
    // below OFPP_MAX of OpenFlow 1.0, an ARP opcode below 256, ICMP and ND fields want more before them, VLAN ids want their presence bit.
    let plain = common::field().prop_filter("alike in both", |field| {
        use Field::*;
        !matches!(
            field.field(),
            None | Some(
                InPhyPort | Ipv6Exthdr | InPort | ArpOp | Icmpv4Type | Icmpv4Code | Icmpv6Type | Icmpv6Code
            ) | Some(Ipv6NdTarget | Ipv6NdSll | Ipv6NdTll | VlanVid | VlanPcp)
        )
    });
    let header = proptest::sample::select(vec![
        vec![],
        vec![OxmField::EthType(0x0800)],
        vec![OxmField::EthType(0x0806)],
        vec![OxmField::EthType(0x86dd)],
        vec![OxmField::EthType(0x8847)],
        vec![OxmField::EthType(0x0800), OxmField::IpProto(6)],
        vec![OxmField::EthType(0x86dd), OxmField::IpProto(17)],
        vec![OxmField::EthType(0x0800), OxmField::IpProto(132)],
    ]);
    let strategy = (header, proptest::collection::vec(plain, 0..4));
    let matches: Vec<Match> = (0..600)
        .map(|_| strategy.new_tree(&mut runner).unwrap().current())
        .map(|(header, fields)| Match { fields: [header, fields].concat() })
        .collect();
    let messages: Vec<_> = matches.iter().map(|m| add(m.clone(), vec![])).collect();
    let (mut good, mut bad) = (0, 0);
    for (text, matching) in printed("random", &messages).iter().zip(&matches) {
        match matching.validate() {
            Ok(()) => {
                assert!(!text.contains("decode error"), "{matching}: {text}");
                good += 1;
            }
            Err(error) => {
                let (_, code) = error.code.names();
                assert!(text.contains(&format!("decode error: {}", code.unwrap())), "{matching}: {text}");
                bad += 1;
            }
        }
    }
    assert!(good > 100 && bad > 100, "{good} valid and {bad} invalid matches are too few to mean something");
}

#[test]
fn random_messages_are_messages_to_open_vswitch() {
    let mut runner = TestRunner::deterministic();
    let wanted = |message: &Message| {
        // Bodies whose numbers are free in the strategies but not to Open vSwitch are left to other tests.
        matches!(
            message.body,
            Body::FeaturesRequest
                | Body::EchoRequest(_)
                | Body::EchoReply(_)
                | Body::FeaturesReply(_)
                | Body::GetConfigRequest
                | Body::BarrierRequest
                | Body::BarrierReply
                | Body::GetAsyncRequest
                | Body::RoleReply(_)
                | Body::MultipartReply(
                    MultipartReply::Desc(_)
                        | MultipartReply::Aggregate(_)
                        | MultipartReply::Table(_)
                        | MultipartReply::GroupFeatures(_)
                        | MultipartReply::MeterFeatures(_)
                        | MultipartReply::Meter(_)
                )
        )
    };
    let messages: Vec<Message> = (0..20_000)
        .map(|_| common::message().new_tree(&mut runner).unwrap().current())
        .filter(wanted)
        .take(300)
        .collect();
    assert_eq!(messages.len(), 300);
    for (text, message) in printed("messages", &messages).iter().zip(&messages) {
        assert!(!text.contains("***"), "{message:?}: {text}");
        let counters = match &message.body {
            Body::MultipartReply(MultipartReply::Aggregate(a)) => {
                format!(
                    "packet_count={} byte_count={} flow_count={}",
                    a.packet_count, a.byte_count, a.flow_count
                )
            }
            Body::FeaturesReply(features) => format!("dpid:{:016x}", features.datapath_id),
            _ => format!("(xid={:#x})", message.xid),
        };
        assert!(text.contains(&counters), "{counters}: {text}");
    }
}

/// A table that can do a little of everything.
fn table_features() -> TableFeatures {
    // Only the match property says which fields can have a mask.
    let maskable = vec![OxmId::new(Field::InPort, false), OxmId::new(Field::EthDst, true)];
    let fields = vec![OxmId::new(Field::InPort, false), OxmId::new(Field::EthDst, false)];
    let miss = false;
    let actions: Vec<_> = ActionId::STANDARD.map(ActionId::new).into();
    TableFeatures {
        table_id: 0,
        name: Text::new("first"),
        metadata_match: u64::MAX,
        metadata_write: u64::MAX,
        config: 0,
        max_entries: 1000,
        properties: vec![
            TableProperty::Instructions { miss, ids: InstructionId::STANDARD.map(InstructionId::new).into() },
            TableProperty::NextTables { miss, tables: vec![1, 2, 3] },
            TableProperty::WriteActions { miss, ids: actions.clone() },
            TableProperty::ApplyActions { miss, ids: actions },
            TableProperty::Match(maskable),
            TableProperty::Wildcards(fields.clone()),
            TableProperty::WriteSetField { miss, ids: fields.clone() },
            TableProperty::ApplySetField { miss, ids: fields },
        ],
    }
}

/// Reads the messages of one connection, answers what `ovs-ofctl` waits for, and returns all of them with their bytes.
fn serve(stream: UnixStream) -> Vec<(Vec<u8>, Message)> {
    let (mut framer, mut seen, mut buffer) = (Framer::new(), Vec::new(), [0; 4096]);
    let send = |xid, body| {
        // The other end may be gone already: it does not wait for every answer.
        drop((&stream).write_all(&Message { xid, body }.encode().unwrap()));
    };
    send(1, Body::Hello(Hello::default()));
    loop {
        let count = (&stream).read(&mut buffer).unwrap_or(0);
        if count == 0 {
            return seen;
        }
        assert_eq!(framer.push(&buffer[..count]), count);
        while let Some(bytes) = framer.pop().unwrap() {
            let message = decode(bytes).expect("ovs-ofctl speaks OpenFlow");
            let xid = message.xid;
            let features = SwitchFeatures {
                datapath_id: 1,
                n_buffers: 0,
                n_tables: 254,
                auxiliary_id: 0,
                capabilities: Capabilities(0),
            };
            match &message.body {
                Body::FeaturesRequest => send(xid, Body::FeaturesReply(features)),
                Body::BarrierRequest => send(xid, Body::BarrierReply),
                Body::EchoRequest(data) => send(xid, Body::EchoReply(data.clone())),
                // It asks for the names of ports and tables before it changes flows.
                Body::MultipartRequest(MultipartRequest::PortDesc) => {
                    send(xid, Body::MultipartReply(MultipartReply::PortDesc(vec![])));
                }
                Body::MultipartRequest(MultipartRequest::TableFeatures(_)) => {
                    send(xid, Body::MultipartReply(MultipartReply::TableFeatures(vec![table_features()])));
                }
                Body::BundleControl(control) => {
                    let kind = BundleControlType::from_number(control.kind.number() + 1).unwrap();
                    send(xid, Body::BundleControl(BundleControl { kind, ..control.clone() }));
                }
                Body::MultipartRequest(_) => {
                    send(xid, Body::Error(ErrorMessage::refusing(ErrorCode::BAD_MULTIPART, bytes)));
                }
                _ => {}
            }
            seen.push((bytes.to_vec(), message));
        }
    }
}

/// What `ovs-ofctl` sends for these arguments; `SWITCH` stands for our socket.
fn sent_by_ovs_ofctl(name: &str, arguments: &[&str]) -> Vec<(Vec<u8>, Message)> {
    let scratch = Scratch::new(name);
    let socket = scratch.0.join("switch");
    let listener = UnixListener::bind(&socket).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let server = std::thread::spawn({
        let done = done.clone();
        move || {
            // Some commands connect once for the names of the tables, and again meanwhile for what they are to do.
            let mut connections = Vec::new();
            loop {
                let stream = listener.accept().unwrap().0;
                if done.load(Ordering::Acquire) {
                    return connections.into_iter().flat_map(|c: JoinHandle<_>| c.join().unwrap()).collect();
                }
                connections.push(std::thread::spawn(move || serve(stream)));
            }
        }
    });
    let target = format!("unix:{}", socket.display());
    let arguments: Vec<&str> =
        arguments.iter().map(|a| if *a == "SWITCH" { target.as_str() } else { *a }).collect();
    let output = ovs_ofctl(&[&["-O", "OpenFlow13"], &arguments[..]].concat());
    done.store(true, Ordering::Release);
    drop(UnixStream::connect(&socket));
    let seen: Vec<_> = server.join().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    seen
}

#[test]
fn table_features_mean_the_same_to_open_vswitch() {
    let reply = Body::MultipartReply(MultipartReply::TableFeatures(vec![table_features()]));
    let text = &printed("features", &[Message { xid: 1, body: reply }])[0];
    for part in [
        "table 0 (\"first\"):",
        "max_entries=1000",
        "instructions: meter apply_actions clear_actions write_actions write_metadata goto_table",
        "next tables: 1-3",
        "arbitrary mask: eth_dst",
        "exact match or wildcard: in_port_oxm",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn what_ovs_ofctl_writes_is_read_and_written_back_byte_for_byte() {
    let flows = [
        "table=3,priority=7,in_port=2,dl_vlan=10,dl_vlan_pcp=3,actions=pop_vlan,output:4",
        "cookie=0x77,idle_timeout=30,hard_timeout=60,tcp,nw_src=10.0.0.0/8,tp_dst=443,actions=dec_ttl,NORMAL",
        "udp6,ipv6_dst=2001:db8::/32,tp_src=0x100/0xff00,actions=group:9",
        "arp,arp_op=1,arp_tpa=10.0.0.1,actions=CONTROLLER:128",
        "dl_dst=01:00:00:00:00:00/01:00:00:00:00:00,actions=push_vlan:0x88a8,set_field:4097->vlan_vid,FLOOD",
        "metadata=0x5/0xff,actions=meter:3,write_actions(output:1,set_queue:2),write_metadata:0x10/0xf0,goto_table:7",
        "mpls,mpls_label=17,actions=pop_mpls:0x0800,output:1",
        "icmp6,icmp_type=135,icmp_code=0,nd_target=fe80::1,actions=set_field:02:00:00:00:00:01->eth_dst,IN_PORT",
    ];
    for flow in flows {
        let seen = sent_by_ovs_ofctl("add-flow", &["add-flow", "SWITCH", flow]);
        let flow_mods: Vec<_> = seen.iter().filter(|(_, m)| matches!(m.body, Body::FlowMod(_))).collect();
        assert_eq!(flow_mods.len(), 1, "{flow}: {seen:?}");
        let (bytes, message) = flow_mods[0];
        assert_eq!(&message.encode().unwrap(), bytes, "{flow}: {message:?}");
        if let Body::FlowMod(flow_mod) = &message.body {
            assert_eq!(flow_mod.matching.validate(), Ok(()), "{flow}");
        }
    }
}

#[test]
fn groups_meters_ports_and_bundles_of_ovs_ofctl() {
    let group = "group_id=1,type=select,bucket=weight:3,output:1,bucket=weight:1,pop_vlan,output:2";
    let failover = "group_id=2,type=ff,bucket=watch_port:1,output:1,bucket=watch_group:1,group:1";
    let commands: [(&[&str], MessageType); 7] = [
        (&["add-group", "SWITCH", group], MessageType::GroupMod),
        (&["add-group", "SWITCH", failover], MessageType::GroupMod),
        (
            &["add-meter", "SWITCH", "meter=1,kbps,burst,band=type=drop,rate=1000,burst_size=100"],
            MessageType::MeterMod,
        ),
        (
            &["add-meter", "SWITCH", "meter=2,pktps,stats,band=type=dscp_remark,rate=9,prec_level=1"],
            MessageType::MeterMod,
        ),
        (&["--bundle", "add-flow", "SWITCH", "priority=9,actions=drop"], MessageType::Experimenter),
        (
            &["packet-out", "SWITCH", "in_port=1 packet=ffffffffffff0200000000010800 actions=output:2"],
            MessageType::PacketOut,
        ),
        (&["del-flows", "SWITCH", "cookie=0x5/-1,table=2,out_port=3"], MessageType::FlowMod),
    ];
    for (arguments, kind) in commands {
        let seen = sent_by_ovs_ofctl("groups", arguments);
        assert!(seen.iter().any(|(_, message)| message.body.kind() == kind), "{arguments:?}: {seen:?}");
        for (bytes, message) in &seen {
            assert_eq!(&message.encode().unwrap(), bytes, "{arguments:?}: {message:?}");
        }
    }
}
