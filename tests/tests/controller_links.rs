//! Links between switches are found by probes: real switches, real packets.

use serde_json::json;
use tests::fabric::{Fabric, Make, PATIENCE, REST, TRUNK, reaches};
use tests::{binary, holds_within};
use xtask::lab::process::output;

fn find_the_trunk(fabric: &Fabric) {
    let found = || {
        let discovered = fabric.get("/v1/topology")["discovered"].take();
        let end = |dpid: u64| json!({"dpid": dpid, "port": TRUNK, "name": format!("up{dpid}")});
        discovered == json!([{"a": end(1), "b": end(2), "both_ways": true}])
    };
    assert!(holds_within(PATIENCE, found), "{:#}", fabric.get("/v1/topology"));
}

#[test]
fn a_trunk_is_found_and_forgotten() {
    let (fabric, hosts) = Fabric::with_hosts(Make::OpenVSwitch);
    find_the_trunk(&fabric);
    let end = |dpid: u64| json!({"dpid": dpid, "port": TRUNK});
    let (status, answer) = fabric.put("/v1/uplinks/core", &json!({"a": end(1), "b": end(2)}));
    assert_eq!(status, 200, "{answer:#}");
    let ports = [(1, 1), (2, 2)].map(|(dpid, port)| json!({"dpid": dpid, "port": port}));
    fabric.apply("/v1/networks/red", &json!({"vlan": 10, "ports": ports}));
    assert!(reaches(&hosts[0], &hosts[1]));
    assert_eq!(fabric.get("/v1/topology")["links"][0]["seen"], true);
    let mut command = fabric.namespace().command(binary::sluice().to_str().unwrap());
    let said = output(command.args(["topology", "--controller", REST])).unwrap();
    for part in ["core", "pass", "both ways", "switch 2 port 10"] {
        assert!(said.contains(part), "`{part}` is not in:\n{said}");
    }

    // A link that is taken away is forgotten with its port.
    fabric.ovs().vsctl(&["del-port", "up1"]).unwrap();
    let gone = || fabric.get("/v1/topology")["discovered"] == json!([]);
    assert!(holds_within(PATIENCE, gone), "{:#}", fabric.get("/v1/topology"));
}

#[test]
fn a_trunk_between_switches_of_ours_is_found() {
    let (fabric, _hosts) = Fabric::with_hosts(Make::Sluice);
    find_the_trunk(&fabric);
}
