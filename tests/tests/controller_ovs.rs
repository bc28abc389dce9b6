//! The controller drives Open vSwitch's userspace datapath: two bridges with a trunk between them, hosts in namespaces,
//! real packets.

use hyper::Method;
use serde_json::{Value, json};
use tests::fabric::{Fabric, Make, PATIENCE, assert_reach, parted, reaches};
use tests::holds_within;

/// Hosts 1, 2 and 5, the last on a native port.
fn red() -> Value {
    json!({ "vlan": 10, "ports": [
        { "dpid": 1, "port": 1 }, { "dpid": 2, "port": "h2" }, { "dpid": 2, "port": 5, "mode": "native" },
        { "dpid": 1, "port": "up1", "mode": "trunk" }, { "dpid": 2, "port": "up2", "mode": "trunk" },
    ]})
}

/// Hosts 3 and 4.
fn blue() -> Value {
    json!({ "vlan": 20, "ports": [
        { "dpid": "0x1", "port": "h3" }, { "dpid": "0000000000000002", "port": 4, "mode": "access" },
        { "dpid": 1, "port": 10, "mode": "trunk" }, { "dpid": 2, "port": 10, "mode": "trunk" },
    ]})
}

fn make_networks(fabric: &Fabric) {
    for (name, body) in [("red", red()), ("blue", blue())] {
        fabric.apply(&format!("/v1/networks/{name}"), &body);
    }
}

const APART: &[&[usize]] = &[&[1, 2, 5], &[3, 4]];

#[test]
fn networks_over_two_bridges_and_every_restart() {
    let mut fabric = Fabric::new(Make::OpenVSwitch);
    // Nobody is there yet: stored, and said so.
    let (status, answer) = fabric.put("/v1/networks/red", &red());
    assert_eq!((status, &answer["status"]), (202, &json!("pending")), "{answer:#}");
    fabric.add_switch(1);
    fabric.add_switch(2);
    fabric.join();
    let hosts = [(1, 1), (2, 2), (1, 3), (2, 4), (2, 5)].map(|(dpid, n)| fabric.add_host(dpid, n));
    fabric.settled(2);
    make_networks(&fabric);
    assert_reach(&hosts, APART);

    // Known destinations are not flooded.
    let flood = ["table=6", "priority=10000", "dl_vlan=10"];
    let known = || fabric.flows(1).iter().filter(|f| f.contains("table=6") && f.contains("dl_dst")).count();
    assert!(
        holds_within(PATIENCE, || known() >= hosts.len()),
        "addresses are learned: {:#?}",
        fabric.flows(1)
    );
    let before = fabric.packets(1, &flood);
    for _ in 0..20 {
        assert!(reaches(&hosts[0], &hosts[1]));
    }
    let flooded = fabric.packets(1, &flood) - before;
    assert!(flooded < 10, "{flooded} packets of 20 echoes between known hosts were flooded");

    // The same again sends nothing.
    let before = fabric.flows(1).iter().filter(|flow| flow.contains("send_flow_rem")).count();
    make_networks(&fabric);
    assert_eq!(fabric.flows(1).iter().filter(|flow| flow.contains("send_flow_rem")).count(), before);

    // Without the controller packets flow; a new one, told nothing, changes nothing.
    fabric.kill_controller();
    assert!(reaches(&hosts[0], &hosts[1]) && reaches(&hosts[2], &hosts[3]));
    fabric.start_controller();
    fabric.settled(2);
    // But for addresses learned meanwhile, two entries each.
    let sent = || {
        let sum = |name| fabric.metric(name, &[]);
        sum("sluice_openflow_flow_mods_total") - 2.0 * sum("sluice_controller_addresses_learned_total")
    };
    assert!(holds_within(PATIENCE, || sent() == 0.0), "a restarted controller sent flow-mods");
    assert_eq!(fabric.get("/v1/networks/red")["status"], "applied");
    assert_reach(&hosts, APART);

    // A switch that comes back empty gets all of it again.
    let reconciled = |fabric: &Fabric| fabric.metric("sluice_controller_reconcile_seconds_count", &[]);
    let before = reconciled(&fabric);
    fabric.restart_switch(1);
    let back = || reconciled(&fabric) >= before + 2.0;
    assert!(holds_within(PATIENCE, back), "the rules are sent again");
    fabric.settled(2);
    assert_reach(&hosts, APART);

    // SIGTERM ends it cleanly.
    assert!(fabric.controller().stop().unwrap().success());
}

#[test]
fn edits_deletions_and_meddling() {
    let (fabric, hosts) = Fabric::with_hosts(Make::OpenVSwitch);
    fabric.ofctl("add-flow", 1, &["cookie=0x7,table=5,priority=3,in_port=1,actions=drop"]);
    make_networks(&fabric);
    assert!(reaches(&hosts[0], &hosts[1]));

    // Host 2 moves to the other network.
    let (mut red, mut blue) = (red(), blue());
    let ports = |network: &mut Value| network["ports"].as_array_mut().unwrap().clone();
    red["ports"] = ports(&mut red).into_iter().filter(|port| port["port"] != "h2").collect();
    blue["ports"] = [ports(&mut blue), vec![json!({"dpid": 2, "port": "h2"})]].concat().into();
    assert_eq!(
        fabric.put("/v1/networks/blue", &blue.clone()).0,
        409,
        "the port belongs to the other network still"
    );
    assert_eq!(fabric.put("/v1/networks/red", &red).0, 200);
    assert_eq!(fabric.put("/v1/networks/blue", &blue).0, 200);
    assert_reach(&hosts, &[&[1, 5], &[2, 3, 4]]);

    // Somebody else deletes our rules: they are written again.
    let ours = || fabric.flows(1).iter().filter(|flow| flow.contains("send_flow_rem")).count();
    let before = ours();
    fabric.ofctl("del-flows", 1, &["table=0"]);
    assert!(holds_within(PATIENCE, || ours() == before), "{:#?}", fabric.flows(1));
    assert!(reaches(&hosts[0], &hosts[4]));

    // A port that comes later, by its name.
    let late = json!({ "vlan": 30, "ports": [{ "dpid": 1, "port": "h6" }, { "dpid": 1, "port": "h7" }] });
    let (status, answer) = fabric.put("/v1/networks/green", &late);
    assert_eq!((status, &answer["status"]), (202, &json!("pending")), "{answer:#}");
    assert!(answer.to_string().contains("has no port `h6`"), "{answer:#}");
    let new = [6, 7].map(|n| fabric.add_host(1, n));
    let applied = || fabric.get("/v1/networks/green")["status"] == "applied";
    assert!(holds_within(PATIENCE, applied), "{:#}", fabric.get("/v1/networks/green"));
    assert!(reaches(&new[0], &new[1]) && parted(&new[0], &hosts[0]));

    // Nothing of ours stays, and what was not ours does.
    for name in ["red", "blue", "green"] {
        let answer = fabric.request(Method::DELETE, &format!("/v1/networks/{name}"), None);
        assert_eq!(answer.status.as_u16(), 200, "{}", answer.body);
        assert_eq!(fabric.request(Method::GET, &format!("/v1/networks/{name}"), None).status.as_u16(), 404);
    }
    let left = |dpid| {
        let mut flows = fabric.flows(dpid);
        // Links between switches are looked for whatever is wanted.
        flows.retain(|flow| !["dl_type=0x88cc ", "dl_type=0x8942 "].iter().any(|probe| flow.contains(probe)));
        flows
    };
    assert!(matches!(&left(1)[..], [flow] if flow.contains("cookie=0x7,")), "{:#?}", left(1));
    assert_eq!(left(2), [""; 0]);
}

#[test]
fn static_flows_and_refusals() {
    let mut fabric = Fabric::new(Make::OpenVSwitch);
    fabric.add_switch(1);
    let (a, b) = (fabric.add_host(1, 1), fabric.add_host(1, 2));
    fabric.settled(1);
    let flow = |from: u32, to: u32| json!({ "priority": 5, "match": { "in_port": from }, "actions": [{ "output": to }] });
    for (id, body) in [("ab", flow(1, 2)), ("ba", flow(2, 1))] {
        let (status, answer) = fabric.put(&format!("/v1/switches/1/flows/{id}"), &body);
        assert_eq!((status, &answer["status"]), (200, &json!("applied")), "{answer:#}");
    }
    assert!(reaches(&a, &b));

    // A refused flow says why, and what was there stays.
    let bad = json!({ "priority": 5, "match": { "in_port": 1 }, "actions": [{ "group": 77 }] });
    for id in ["ab", "new"] {
        let body =
            if id == "new" { json!({ "table": 3, "actions": [{ "group": 77 }] }) } else { bad.clone() };
        let (status, answer) = fabric.put(&format!("/v1/switches/1/flows/{id}"), &body);
        let error = json!({ "type": 2, "code": 9, "type_name": "OFPET_BAD_ACTION", "code_name": "OFPBAC_BAD_OUT_GROUP" });
        assert_eq!((status, &answer["openflow"]), (422, &error), "{answer:#}");
    }
    assert_eq!(fabric.get("/v1/switches/1/flows/ab")["actions"], json!([{ "output": 2 }]));
    assert_eq!(fabric.request(Method::GET, "/v1/switches/1/flows/new", None).status.as_u16(), 404);
    assert!(reaches(&a, &b));

    // All of it survives the controller's death, and nothing is sent again.
    let everything = json!({ "table": 9, "priority": 40, "match": {
        "eth_type": 34525, "ip_proto": 6, "ipv6_dst": "2001:db8::/32", "tcp_dst": 443, "vlan_vid": 4106, "vlan_pcp": 2,
    }, "instructions": [
        { "apply_actions": ["pop_vlan", { "set_field": { "eth_dst": "02:00:00:00:00:01" } }, { "output": "IN_PORT" }] },
        { "write_metadata": { "metadata": 16, "mask": 240 } }, { "goto_table": 10 },
    ]});
    assert_eq!(fabric.put("/v1/switches/1/flows/everything", &everything).0, 200);
    fabric.kill_controller();
    fabric.start_controller();
    fabric.settled(1);
    assert_eq!(fabric.metric("sluice_openflow_flow_mods_total", &[]), 0.0, "{:#?}", fabric.flows(1));
    let list = fabric.get("/v1/switches/1/flows");
    assert!(list["flows"].as_array().unwrap().iter().all(|flow| flow["status"] == "applied"), "{list:#}");

    let gone = fabric.request(Method::DELETE, "/v1/switches/1/flows/ab", None);
    assert_eq!(gone.status.as_u16(), 200, "{}", gone.body);
    assert!(parted(&a, &b));
    assert_eq!(fabric.request(Method::DELETE, "/v1/switches/1/flows/ab", None).status.as_u16(), 404);
}
