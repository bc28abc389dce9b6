//! `ovs-ofctl -O OpenFlow13` against our listener.

use std::process::Command;

use vswitch::bridge::{BridgeConfig, FailMode};
use vswitch::flow_tables::Selection;
use vswitch::openflow::{AgentConfig, flow_text};

use crate::data_path::{Switch, frame, wait_for};

struct Ofctl<'a>(&'a Switch);

impl Ofctl<'_> {
    /// Exit status and output of a command; SWITCH stands for our listener.
    fn run(&self, arguments: &[&str]) -> (bool, String) {
        let target = format!("unix:{}", self.0.socket().display());
        let arguments =
            arguments.iter().map(|argument| if *argument == "SWITCH" { target.as_str() } else { argument });
        let output =
            Command::new("ovs-ofctl").args(["-O", "OpenFlow13", "-t", "10"]).args(arguments).output().expect(
                "ovs-ofctl runs; it is in the package openvswitch-switch (Debian, Ubuntu): install that",
            );
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let (success, text) = self.run(arguments);
        assert!(success, "ovs-ofctl {arguments:?}:\n{text}");
        text
    }

    #[track_caller]
    fn shows(&self, arguments: &[&str], wanted: &[&str]) {
        let text = self.ok(arguments);
        for wanted in wanted {
            assert!(text.contains(wanted), "ovs-ofctl {arguments:?} without {wanted:?}:\n{text}");
        }
    }

    /// The flows without what differs from run to run, sorted.
    fn flows(&self) -> Vec<String> {
        let text = self.ok(&["--no-stats", "dump-flows", "SWITCH"]);
        let mut lines: Vec<String> = text.lines().map(|line| line.trim().to_string()).collect();
        lines.sort();
        lines
    }
}

fn secure() -> Switch {
    let config = BridgeConfig { fail_mode: FailMode::Secure, datapath_id: 0xab, ..BridgeConfig::default() };
    Switch::start(config, AgentConfig::default())
}

#[test]
fn show_describes_switch_and_ports() {
    let switch = secure();
    let ofctl = Ofctl(&switch);
    ofctl.shows(
        &["show", "SWITCH"],
        &["dpid:00000000000000ab", "n_tables:64", "n_buffers:0", " 1(p1)", " 4(p4)"],
    );
    ofctl.shows(&["dump-ports-desc", "SWITCH"], &["1(p1): addr:02:00:00:00:01:01", "LIVE", "10GB-FD"]);
    ofctl.shows(&["dump-desc", "SWITCH"], &["Manufacturer: Sluice"]);
    ofctl.shows(&["get-frags", "SWITCH"], &["normal"]);
    ofctl.ok(&["ping", "SWITCH", "64"]);
    ofctl.ok(&["probe", "SWITCH"]);
}

#[test]
fn flows_are_added_dumped_changed_and_deleted() {
    let switch = secure();
    let ofctl = Ofctl(&switch);
    let flows = [
        "priority=10,in_port=1 actions=output:2",
        "priority=20,tcp,nw_src=10.0.0.0/8,tp_dst=80 actions=drop",
        "table=3,priority=5,dl_vlan=10,dl_src=02:00:00:00:00:01 actions=pop_vlan,output:3",
        "priority=7,in_port=3 actions=push_vlan:0x8100,set_field:4106->vlan_vid,goto_table:3",
        "priority=8,udp6,ipv6_src=2001:db8::/32 actions=NORMAL",
        "priority=0 actions=CONTROLLER:65535",
        "cookie=0x5,idle_timeout=60,hard_timeout=100,arp,arp_op=1 actions=FLOOD",
        "priority=3,metadata=0x1/0x1 actions=write_actions(set_field:02:00:00:00:00:09->eth_dst,output:4)",
    ];
    for flow in flows {
        ofctl.ok(&["add-flow", "SWITCH", flow]);
    }
    let dumped = ofctl.flows();
    assert_eq!(dumped.len(), flows.len(), "{dumped:#?}");
    for wanted in [
        "priority=10,in_port=1 actions=output:2",
        "priority=20,tcp,nw_src=10.0.0.0/8,tp_dst=80 actions=drop",
        "table=3, priority=5,dl_vlan=10,dl_src=02:00:00:00:00:01 actions=pop_vlan,output:3",
        "priority=7,in_port=3 actions=push_vlan:0x8100,set_field:4106->vlan_vid,goto_table:3",
        "priority=8,udp6,ipv6_src=2001:db8::/32 actions=NORMAL",
        "priority=0 actions=CONTROLLER:65535",
        "cookie=0x5, idle_timeout=60, hard_timeout=100, arp,arp_op=1 actions=FLOOD",
        "priority=3,metadata=0x1/0x1 actions=write_actions(set_field:02:00:00:00:00:09->eth_dst,output:4)",
    ] {
        assert!(dumped.iter().any(|line| line == wanted), "{wanted}\nnot in {dumped:#?}");
    }
    ofctl.shows(&["dump-aggregate", "SWITCH"], &["flow_count=8"]);
    ofctl.shows(&["dump-flows", "SWITCH", "table=3"], &["dl_vlan=10"]);
    ofctl.ok(&["mod-flows", "SWITCH", "in_port=1 actions=output:4"]);
    assert!(ofctl.flows().iter().any(|line| line == "priority=10,in_port=1 actions=output:4"));
    ofctl.ok(&["--strict", "del-flows", "SWITCH", "priority=10,in_port=1"]);
    ofctl.ok(&["del-flows", "SWITCH", "cookie=0x5/-1"]);
    ofctl.ok(&["del-flows", "SWITCH", "tcp"]);
    assert_eq!(ofctl.flows().len(), 5);
    ofctl.ok(&["del-flows", "SWITCH"]);
    assert_eq!(ofctl.flows(), Vec::<String>::new());
}

#[test]
fn counters_are_exact() {
    let switch = secure();
    let ofctl = Ofctl(&switch);
    ofctl.ok(&["add-flow", "SWITCH", "priority=10,in_port=1 actions=output:2"]);
    for _ in 0..7 {
        assert_eq!(switch.frame(1, &frame(1, 2)).frames.len(), 1);
    }
    switch.frame(3, &frame(3, 2));
    ofctl.shows(&["dump-flows", "SWITCH"], &["n_packets=7, n_bytes=420"]);
    ofctl.shows(&["dump-aggregate", "SWITCH"], &["packet_count=7 byte_count=420 flow_count=1"]);
    ofctl.shows(&["dump-tables", "SWITCH"], &["active=1, lookup=8, matched=7"]);
    ofctl.shows(&["dump-ports", "SWITCH", "1"], &["rx pkts=7, bytes=420", "duration="]);
    ofctl.shows(&["dump-ports", "SWITCH", "2"], &["tx pkts=7, bytes=420"]);
    let all = ofctl.ok(&["dump-ports", "SWITCH"]);
    assert_eq!(all.matches("rx pkts=").count(), 4, "{all}");
    ofctl.ok(&["mod-flows", "SWITCH", "reset_counts in_port=1 actions=output:2"]);
    ofctl.shows(&["dump-flows", "SWITCH"], &["n_packets=0, n_bytes=0"]);
}

#[test]
fn what_is_not_there_is_empty_or_refused() {
    let switch = secure();
    let ofctl = Ofctl(&switch);
    for command in ["dump-groups", "dump-group-stats", "dump-group-features", "dump-meters", "meter-stats"] {
        ofctl.ok(&[command, "SWITCH"]);
    }
    ofctl.shows(&["meter-features", "SWITCH"], &["max_meter:65536"]);
    ofctl.ok(&["queue-stats", "SWITCH"]);
    ofctl.shows(&["dump-table-features", "SWITCH"], &["table 0 (\"table0\")", "table 63"]);
    let refused = |arguments: &[&str], code: &str| {
        let (_, text) = ofctl.run(arguments);
        assert!(text.contains(code), "{arguments:?}: {text}");
    };
    refused(&["add-flow", "SWITCH", "actions=group:1"], "OFPBAC_BAD_OUT_GROUP");
    refused(&["add-flow", "SWITCH", "table=70,actions=drop"], "OFPFMFC_BAD_TABLE_ID");
    refused(&["add-flow", "SWITCH", "check_overlap,priority=1,in_port=1 actions=drop"], "");
    refused(&["add-flow", "SWITCH", "check_overlap,priority=1,tcp actions=drop"], "OFPFMFC_OVERLAP");
    refused(&["dump-ports", "SWITCH", "99"], "OFPBRC_BAD_PORT");
}

#[test]
fn packet_out_reaches_ports_and_the_monitor_sees_packet_ins() {
    let switch = secure();
    let ofctl = Ofctl(&switch);
    let hex: String = frame(9, 9).iter().map(|byte| format!("{byte:02x}")).collect();
    ofctl.ok(&["packet-out", "SWITCH", &format!("in_port=1 packet={hex} actions=output:2,output:3")]);
    ofctl.ok(&["add-flow", "SWITCH", "priority=1,in_port=4 actions=output:1"]);
    ofctl.ok(&["packet-out", "SWITCH", &format!("in_port=4 packet={hex} actions=TABLE")]);
    ofctl.shows(&["dump-ports", "SWITCH", "2"], &["tx pkts=1, bytes=60"]);
    ofctl.shows(&["dump-ports", "SWITCH", "3"], &["tx pkts=1, bytes=60"]);
    ofctl.shows(&["dump-ports", "SWITCH", "1"], &["tx pkts=1, bytes=60"]);
    ofctl.shows(&["dump-flows", "SWITCH"], &["n_packets=1, n_bytes=60"]);
}

#[test]
fn groups_are_added_used_counted_and_deleted() {
    let switch = secure();
    let ofctl = Ofctl(&switch);
    ofctl.ok(&[
        "add-group",
        "SWITCH",
        "group_id=1,type=all,bucket=push_vlan:0x8100,output:2,bucket=output:3",
    ]);
    ofctl.ok(&["add-group", "SWITCH", "group_id=2,type=indirect,bucket=group:1"]);
    ofctl.ok(&["add-flow", "SWITCH", "send_flow_rem,in_port=1 actions=group:2,output:4"]);
    ofctl.shows(&["dump-groups", "SWITCH"], &["group_id=2,type=indirect,bucket=actions=group:1"]);
    let plain = frame(1, 2);
    let sent = switch.frame(1, &plain).frames;
    assert_eq!(sent.iter().map(|(port, _)| port.0).collect::<Vec<_>>(), [2, 3, 4]);
    assert_eq!((sent[0].1.len(), &sent[1].1, &sent[2].1), (plain.len() + 4, &plain, &plain));
    ofctl.shows(
        &["dump-group-stats", "SWITCH"],
        &["group_id=1,", "ref_count=1,", "packet_count=1,byte_count=60,bucket0:packet_count=1,byte_count=60"],
    );
    let refused = |arguments: &[&str], code: &str| {
        let (_, text) = ofctl.run(arguments);
        assert!(text.contains(code), "{arguments:?}: {text}");
    };
    refused(&["mod-group", "SWITCH", "group_id=1,type=all,bucket=group:2"], "OFPGMFC_LOOP");
    refused(&["add-group", "SWITCH", "group_id=1,type=all"], "OFPGMFC_GROUP_EXISTS");
    refused(&["del-groups", "SWITCH", "group_id=1"], "OFPGMFC_CHAINED_GROUP");
    ofctl.ok(&["del-flows", "SWITCH", "out_group=1"]);
    assert_eq!(ofctl.flows().len(), 1, "no flow sends to it itself");
    ofctl.ok(&["del-groups", "SWITCH"]);
    assert_eq!(ofctl.flows(), Vec::<String>::new(), "flows go with their group");
}

#[test]
fn meters_drop_mark_and_count() {
    let switch = secure();
    let ofctl = Ofctl(&switch);
    ofctl.ok(&["add-meter", "SWITCH", "meter=1 pktps burst stats band=type=drop rate=1 burst_size=3"]);
    ofctl.shows(&["dump-meters", "SWITCH"], &["meter=1 pktps burst stats bands=", "rate=1 burst_size=3"]);
    ofctl.ok(&["add-flow", "SWITCH", "in_port=1 actions=meter:1,output:2"]);
    let passed = (0..20).filter(|_| !switch.frame(1, &frame(1, 2)).frames.is_empty()).count();
    // Three at once, and one more for each second that this took.
    assert!((3..20).contains(&passed), "{passed}");
    ofctl.shows(&["meter-stats", "SWITCH"], &["flow_count:1 packet_in_count:20 byte_in_count:1200"]);
    let (_, text) = ofctl.run(&["add-flow", "SWITCH", "in_port=2 actions=meter:2,output:3"]);
    assert!(text.contains("OFPMMFC_UNKNOWN_METER"), "{text}");
    ofctl.ok(&["mod-meter", "SWITCH", "meter=1 kbps band=type=drop rate=100000000"]);
    assert_eq!(switch.frame(1, &frame(1, 2)).frames.len(), 1);
    ofctl.ok(&["del-meters", "SWITCH"]);
    assert_eq!(ofctl.flows(), Vec::<String>::new(), "flows go with their meter");
}

/// What is expected of a command.
enum Want {
    /// It succeeds and prints nothing.
    Silent,
    /// It succeeds and prints all of these.
    Shows(&'static [&'static str]),
    /// It is refused with this code.
    Refused(&'static str),
    /// The flows are these, sorted, without their counters.
    Flows(&'static [&'static str]),
    /// It ends with status 2, which says that flows differ, and prints these.
    Differs(&'static [&'static str]),
}

/// Runs a table of commands, one after the other, on one switch. FLOWS-n stands for a file with those flows.
#[track_caller]
fn check(steps: &[(&[&str], Want)]) {
    let switch = secure();
    let ofctl = Ofctl(&switch);
    let file = |name: &str| switch.directory.path().join(name).display().to_string();
    for (name, flows) in FILES {
        std::fs::write(file(name), flows).expect("written");
    }
    for (arguments, want) in steps {
        let with_files: Vec<String> = arguments
            .iter()
            .map(
                |argument| if argument.starts_with("FLOWS-") { file(argument) } else { argument.to_string() },
            )
            .collect();
        let with_files: Vec<&str> = with_files.iter().map(String::as_str).collect();
        let (success, text) = ofctl.run(&with_files);
        let all = |wanted: &[&str]| wanted.iter().all(|wanted| text.contains(wanted));
        let holds = match want {
            Want::Silent => success && text.is_empty(),
            Want::Shows(wanted) => success && all(wanted),
            Want::Refused(code) => text.contains(code),
            Want::Differs(wanted) => !success && all(wanted) && text.lines().count() == wanted.len(),
            Want::Flows(_) => success,
        };
        assert!(holds, "ovs-ofctl {arguments:?}:\n{text}");
        if let Want::Flows(wanted) = want {
            assert_eq!(ofctl.flows(), *wanted, "after ovs-ofctl {arguments:?}");
        }
    }
}

const FILES: &[(&str, &str)] = &[
    ("FLOWS-1", "priority=1,in_port=1 actions=output:2\npriority=2,tcp actions=drop\n"),
    ("FLOWS-2", "priority=1,in_port=1 actions=output:3\npriority=3,udp actions=drop\n"),
    ("FLOWS-BUNDLE", "add priority=9,arp,actions=FLOOD\ndelete tcp\nmodify in_port=1,actions=output:4\n"),
    ("FLOWS-BAD", "add priority=7,actions=drop\ndelete in_port=1\nadd table=99,actions=drop\n"),
];

#[test]
fn sets_of_flows() {
    const ONE: &[&str] = &["priority=1,in_port=1 actions=output:2", "priority=2,tcp actions=drop"];
    const TWO: &[&str] = &["priority=1,in_port=1 actions=output:3", "priority=3,udp actions=drop"];
    const CHANGED: &[&str] = &["priority=1,in_port=1 actions=output:4", "priority=9,arp actions=FLOOD"];
    check(&[
        (&["add-flows", "SWITCH", "FLOWS-1"], Want::Flows(ONE)),
        (&["diff-flows", "SWITCH", "FLOWS-1"], Want::Silent),
        (
            &["diff-flows", "SWITCH", "FLOWS-2"],
            Want::Differs(&[
                "-priority=2,tcp actions=drop",
                "+priority=3,udp actions=drop",
                "-priority=1,in_port=1 actions=output:2",
                "+priority=1,in_port=1 actions=output:3",
            ]),
        ),
        (&["replace-flows", "SWITCH", "FLOWS-2"], Want::Flows(TWO)),
        (&["--bundle", "replace-flows", "SWITCH", "FLOWS-1"], Want::Flows(ONE)),
        (&["--bundle", "add-flows", "SWITCH", "FLOWS-BUNDLE"], Want::Flows(CHANGED)),
        (&["--bundle", "add-flows", "SWITCH", "FLOWS-BAD"], Want::Refused("OFPFMFC_BAD_TABLE_ID for")),
        (&["diff-flows", "SWITCH", "SWITCH"], Want::Flows(CHANGED)),
        (&["--bundle", "add-flow", "SWITCH", "priority=3,actions=drop"], Want::Silent),
        (&["--bundle", "mod-flows", "SWITCH", "priority=3,actions=output:1"], Want::Silent),
        (&["--bundle", "--strict", "del-flows", "SWITCH", "priority=9,arp"], Want::Silent),
        (&["--bundle", "del-flows", "SWITCH", "in_port=1"], Want::Flows(&["priority=3 actions=output:1"])),
    ]);
}

#[test]
fn flows_are_found_by_every_filter() {
    check(&[
        (
            &["add-flow", "SWITCH", "cookie=0x15,table=2,priority=4,tcp,tp_dst=80,actions=output:2"],
            Want::Silent,
        ),
        (&["add-flow", "SWITCH", "cookie=0x16,priority=5,udp,actions=output:3"], Want::Silent),
        (&["dump-flows", "SWITCH", "cookie=0x15/-1"], Want::Shows(&["cookie=0x15", "table=2"])),
        (&["dump-aggregate", "SWITCH", "cookie=0x14/0xfc"], Want::Shows(&["flow_count=2"])),
        (&["dump-aggregate", "SWITCH", "out_port=3"], Want::Shows(&["flow_count=1"])),
        (&["dump-aggregate", "SWITCH", "table=2"], Want::Shows(&["flow_count=1"])),
        (&["dump-aggregate", "SWITCH", "tcp"], Want::Shows(&["flow_count=1"])),
        (&["dump-aggregate", "SWITCH", "ip"], Want::Shows(&["flow_count=2"])),
        (&["dump-aggregate", "SWITCH", "icmp"], Want::Shows(&["flow_count=0"])),
        (&["mod-flows", "SWITCH", "cookie=0x15/-1,actions=output:4"], Want::Silent),
        (&["--strict", "mod-flows", "SWITCH", "priority=5,udp,actions=output:1"], Want::Silent),
        (&["--strict", "del-flows", "SWITCH", "priority=4,udp"], Want::Silent),
        (&["dump-aggregate", "SWITCH", "out_port=4"], Want::Shows(&["flow_count=0"])),
        (&["del-flows", "SWITCH", "out_port=1"], Want::Silent),
        (&["del-flows", "SWITCH", "cookie=0x15/0xff"], Want::Flows(&[])),
    ]);
}

#[test]
fn ports_are_switched_off_and_on() {
    check(&[
        (&["mod-port", "SWITCH", "p2", "down"], Want::Silent),
        (&["dump-ports-desc", "SWITCH", "2"], Want::Shows(&["config:     PORT_DOWN", "state:      0"])),
        (&["mod-port", "SWITCH", "2", "up"], Want::Silent),
        (&["mod-port", "SWITCH", "2", "no-receive"], Want::Silent),
        (&["mod-port", "SWITCH", "2", "no-forward"], Want::Silent),
        (&["mod-port", "SWITCH", "2", "no-packet-in"], Want::Silent),
        (&["show", "SWITCH"], Want::Shows(&["config:     NO_RECV NO_FWD NO_PACKET_IN"])),
        (&["mod-port", "SWITCH", "2", "receive"], Want::Silent),
        (&["mod-port", "SWITCH", "2", "forward"], Want::Silent),
        (&["mod-port", "SWITCH", "2", "packet-in"], Want::Silent),
        (&["mod-port", "SWITCH", "nobody", "down"], Want::Refused("couldn't find port")),
    ]);
}

#[test]
fn the_rest_of_what_it_can_ask() {
    check(&[
        (&["queue-stats", "SWITCH"], Want::Shows(&["0 queues"])),
        (&["queue-stats", "SWITCH", "1"], Want::Shows(&["0 queues"])),
        (&["queue-stats", "SWITCH", "1", "0"], Want::Refused("OFPQOFC_BAD_QUEUE")),
        (&["queue-stats", "SWITCH", "77"], Want::Refused("OFPQOFC_BAD_PORT")),
        (&["queue-get-config", "SWITCH", "1"], Want::Shows(&["OFPT_QUEUE_GET_CONFIG_REPLY"])),
        (&["set-frags", "SWITCH", "drop"], Want::Silent),
        (&["get-frags", "SWITCH"], Want::Shows(&["drop"])),
        (&["set-frags", "SWITCH", "normal"], Want::Silent),
        (&["get-frags", "SWITCH"], Want::Shows(&["normal"])),
        (&["set-frags", "SWITCH", "reassemble"], Want::Refused("OFPSCFC_BAD_FLAGS")),
        (
            &["dump-desc", "SWITCH"],
            Want::Shows(&["Manufacturer: Sluice", "DP Description: 00000000000000ab"]),
        ),
        (&["dump-table-features", "SWITCH"], Want::Shows(&["table 0 (\"table0\")", "goto_table", "ditto"])),
        (&["dump-tables", "SWITCH"], Want::Shows(&["table 0:", "active=0, lookup=0, matched=0"])),
        (&["ping", "SWITCH", "1000"], Want::Shows(&["1000 bytes from"])),
        (&["probe", "SWITCH"], Want::Silent),
        (&["benchmark", "SWITCH", "64", "50"], Want::Shows(&["Finished in"])),
    ]);
}

#[test]
fn the_monitor_shows_packet_ins_and_ports() {
    let switch = secure();
    let ofctl = Ofctl(&switch);
    ofctl.ok(&["add-flow", "SWITCH", "cookie=0x77,priority=3,in_port=1,actions=CONTROLLER:20"]);
    let log = switch.directory.path().join("monitor");
    let out = std::fs::File::create(&log).expect("a file");
    let mut monitor = Command::new("ovs-ofctl")
        .args(["-O", "OpenFlow13", "-t", "30", "monitor"])
        .args([&format!("unix:{}", switch.socket().display()), "65535"])
        // Where its own control socket goes.
        .env("OVS_RUNDIR", switch.directory.path())
        .stderr(out.try_clone().expect("a second handle"))
        .stdout(out)
        .spawn()
        .expect("ovs-ofctl runs");
    let seen = |text: &str| std::fs::read_to_string(&log).expect("readable").contains(text);
    // It may miss what is sent before it is there.
    wait_for("the packet-in", || {
        switch.frame(1, &frame(1, 2));
        seen("cookie=0x77 total_len=60 in_port=1 (via action) data_len=20")
    });
    ofctl.ok(&["mod-port", "SWITCH", "3", "down"]);
    wait_for("the port", || seen("OFPT_PORT_STATUS (OF1.3) (xid=0x0): MOD: 3(p3)") && seen("PORT_DOWN"));
    monitor.kill().expect("it runs");
    monitor.wait().expect("it ended");
}

#[test]
fn flows_look_the_same_in_our_words() {
    let switch = secure();
    let ofctl = Ofctl(&switch);
    let flows = [
        "cookie=0x5,idle_timeout=60,hard_timeout=100,send_flow_rem,arp,arp_op=1,arp_spa=10.0.0.0/8 actions=FLOOD",
        "table=3,priority=5,dl_vlan=10,dl_vlan_pcp=3,dl_src=02:00:00:00:00:01 actions=pop_vlan,output:3",
        "priority=7,in_port=3 actions=push_vlan:0x8100,set_field:4106->vlan_vid,goto_table:3",
        "priority=8,udp6,ipv6_src=2001:db8::/32,tp_src=53 actions=NORMAL",
        "priority=9,icmp,icmp_type=8 actions=set_field:10.1.1.1->ip_dst,IN_PORT",
        "priority=3,metadata=0x1/0x1 actions=clear_actions,write_actions(output:4),write_metadata:0x5/0xf",
        "priority=0 actions=CONTROLLER:65535",
        "priority=2,dl_type=0x88cc actions=drop",
        "priority=4,vlan_tci=0x0000/0x1fff,ip,nw_tos=40 actions=ALL",
        "priority=10,sctp,nw_dst=10.1.0.0/255.255.0.255,tp_dst=9 actions=set_field:45->ip_dscp,LOCAL",
        "priority=11,tcp,tp_dst=0x50/0xfff0,nw_ecn=1 actions=set_field:8080->tcp_dst,mod_nw_ttl:9,dec_ttl,output:1",
        "priority=12,vlan_tci=0x1000/0x1000,dl_dst=01:00:00:00:00:00/01:00:00:00:00:00 actions=output:2",
        "priority=13,icmp6,icmp_type=135,nd_target=2001:db8::5 actions=set_field:02:00:00:00:00:05->eth_src,output:2",
        "priority=14,ipv6,ipv6_label=0xabcde,nw_proto=47 actions=set_field:0x12345->ipv6_label,output:2",
        "priority=15,arp,arp_sha=02:00:00:00:00:03 actions=set_field:10.0.0.9->arp_tpa,output:2",
        "priority=16,mpls,mpls_label=100,mpls_tc=3,mpls_bos=1 actions=dec_mpls_ttl,pop_mpls:0x0800,output:1",
        "priority=17,tun_id=0x77,ip,nw_proto=47 actions=output:1",
        "in_port=2 actions=push_mpls:0x8847,set_field:7->mpls_label,output:1",
        "actions=drop",
    ];
    for flow in flows {
        ofctl.ok(&["add-flow", "SWITCH", flow]);
    }
    let now_ms = switch.bridge.clock().now_ms();
    let flows = switch.bridge.flows(&Selection::all()).expect("every table exists");
    // Without what differs with time: duration and counters.
    let stable = |text: &str| -> String {
        let parts = text.trim().split(", ").filter(|part| {
            !["duration=", "n_packets=", "n_bytes="].iter().any(|name| part.starts_with(name))
        });
        parts.collect::<Vec<_>>().join(", ")
    };
    let mut ours: Vec<_> = flows.iter().map(|flow| stable(&flow_text(flow, now_ms))).collect();
    let text = ofctl.ok(&["dump-flows", "SWITCH"]);
    let mut theirs: Vec<_> = text.lines().filter(|line| line.contains("cookie=")).map(stable).collect();
    ours.sort();
    theirs.sort();
    assert_eq!(ours, theirs);
}
