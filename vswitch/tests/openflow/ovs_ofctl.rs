//! `ovs-ofctl -O OpenFlow13` against our listener.

use std::process::Command;

use vswitch::bridge::{BridgeConfig, FailMode};
use vswitch::openflow::AgentConfig;

use crate::data_path::{Switch, frame};

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
    ofctl.shows(&["meter-features", "SWITCH"], &["max_meter:4096"]);
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
