//! The lines of the documentation of Ryu's `ofctl_rest`, sent to our controller with Open vSwitch behind it: what is
//! answered, what the switch has then, and who it says did it.

use hyper::Method;
use serde_json::{Value, json};
use tests::fabric::{Fabric, Make};

/// What depends on time and traffic is set to nothing.
fn still(mut value: Value) -> Value {
    fn go(value: &mut Value) {
        match value {
            Value::Object(object) => object.iter_mut().for_each(|(key, value)| {
                let counted = ["_count", "duration_sec", "duration_nsec"];
                let counts = counted.iter().any(|end| key.ends_with(end)) && value.is_number();
                if counts { *value = json!(0) } else { go(value) }
            }),
            Value::Array(list) => list.iter_mut().for_each(go),
            _ => {}
        }
    }
    go(&mut value);
    value
}

#[track_caller]
fn post(fabric: &Fabric, path: &str, body: &Value) {
    let answer = fabric.request(Method::POST, path, Some(body));
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, ""), "{path} {body}");
}

fn with(mut object: Value, more: &[(&str, Value)]) -> Value {
    more.iter().for_each(|(key, value)| object[*key] = value.clone());
    object
}

/// Entries of a table with cookie 1: the controller has some of its own.
#[track_caller]
fn assert_flows(fabric: &Fabric, table: u8, expected: &[Value]) {
    let filter = json!({"table_id": table, "cookie": 1, "cookie_mask": u64::MAX});
    let answer = fabric.request(Method::POST, "/stats/flow/1", Some(&filter));
    assert_eq!(still(answer.json().unwrap()), json!({"1": expected}));
}

fn flow_entries(fabric: &Fabric) {
    let line = |more: &[(&str, Value)]| {
        let plain = json!({
            "dpid": 1, "cookie": 1, "cookie_mask": 1, "table_id": 0, "idle_timeout": 3000, "hard_timeout": 3000,
            "priority": 11111, "flags": 1, "match": {"in_port": 1}, "actions": [{"type": "OUTPUT", "port": 2}],
        });
        with(plain, more)
    };
    let shown = |more: &[(&str, Value)]| {
        let plain = json!({
            "cookie": 1, "table_id": 0, "idle_timeout": 3000, "hard_timeout": 3000, "priority": 11111, "flags": 1,
            "match": {"in_port": 1}, "actions": ["OUTPUT:2"], "length": 88,
            "packet_count": 0, "byte_count": 0, "duration_sec": 0, "duration_nsec": 0,
        });
        with(plain, more)
    };
    post(fabric, "/stats/flowentry/add", &line(&[]));
    assert_flows(fabric, 0, &[shown(&[])]);
    let aggregate =
        fabric.request(Method::POST, "/stats/aggregateflow/1", Some(&json!({"cookie": 1, "cookie_mask": 1})));
    assert_eq!(still(aggregate.json().unwrap())["1"].as_array().unwrap().len(), 1);

    // The other kinds of instructions, each instead of the one before.
    let metadata = json!({"type": "WRITE_METADATA", "metadata": 1, "metadata_mask": 1});
    for (actions, seen, length) in [
        (json!([{"type": "GOTO_TABLE", "table_id": 1}]), "GOTO_TABLE:1", 72),
        (json!([metadata]), "WRITE_METADATA:0x1/0x1", 88),
        (json!([{"type": "OUTPUT", "port": "CONTROLLER", "max_len": "NO_BUFFER"}]), "OUTPUT:CONTROLLER", 88),
    ] {
        post(fabric, "/stats/flowentry/modify_strict", &line(&[("actions", actions)]));
        assert_flows(fabric, 0, &[shown(&[("actions", json!([seen])), ("length", json!(length))])]);
    }
    post(fabric, "/stats/flowentry/delete_strict", &line(&[("priority", json!(1))]));
    assert_flows(fabric, 0, &[shown(&[("actions", json!(["OUTPUT:CONTROLLER"]))])]);
    post(fabric, "/stats/flowentry/delete_strict", &line(&[]));
    assert_flows(fabric, 0, &[]);

    // Every way to name a field, and what is shown of it.
    let fields = |given: Value, seen: Value| {
        let plain = [("idle_timeout", json!(0)), ("hard_timeout", json!(0)), ("table_id", json!(3))];
        let line = with(line(&plain), &[("match", given)]);
        post(fabric, "/stats/flowentry/add", &line);
        let filter = json!({"table_id": 3});
        let answer = fabric.request(Method::POST, "/stats/flow/1", Some(&filter)).json().unwrap();
        assert_eq!(answer["1"][0]["match"], seen, "{answer:#}");
        post(fabric, "/stats/flowentry/delete", &with(line, &[("match", json!({}))]));
    };
    let mac = "aa:bb:cc:11:22:33";
    fields(
        json!({"dl_dst": mac, "eth_src": "00:00:00:00:00:01/00:00:00:00:00:ff"}),
        json!({"dl_dst": mac, "dl_src": "00:00:00:00:00:01/00:00:00:00:00:ff"}),
    );
    fields(json!({"dl_vlan": 3}), json!({"dl_vlan": "3"}));
    fields(json!({"vlan_vid": "0x1003"}), json!({"dl_vlan": "3"}));
    fields(json!({"dl_vlan": "0x1000/0x1000"}), json!({"dl_vlan": "0x1000/0x1000"}));
    fields(json!({"vlan_vid": "0x0000"}), json!({"dl_vlan": "0x0000"}));
    let tcp =
        json!({"dl_type": 2048, "nw_proto": 6, "nw_src": "10.0.0.0/24", "nw_dst": "10.1.0.1", "tp_dst": 80});
    fields(tcp.clone(), with(tcp, &[("nw_src", json!("10.0.0.0/255.255.255.0"))]));
    fields(
        json!({"eth_type": 2048, "ip_proto": 17, "udp_dst": 53}),
        json!({"dl_type": 2048, "nw_proto": 17, "tp_dst": 53}),
    );
    fields(
        json!({"dl_type": 2054, "nw_src": "10.0.0.1", "arp_op": 1}),
        json!({"dl_type": 2054, "arp_spa": "10.0.0.1", "arp_op": 1}),
    );
    fields(
        json!({"eth_type": 34525, "ipv6_src": "2001:db8::/32"}),
        json!({"dl_type": 34525, "ipv6_src": "2001:db8::/ffff:ffff::"}),
    );
    fields(
        json!({"metadata": "0x10/0xf0", "in_port": "LOCAL"}),
        json!({"metadata": "16/240", "in_port": "LOCAL"}),
    );
}

fn groups_and_meters(fabric: &Fabric) {
    let bucket = json!({"weight": 0, "actions": [{"type": "OUTPUT", "port": 1}]});
    let group = json!({"dpid": 1, "type": "ALL", "group_id": 1, "buckets": [bucket]});
    post(fabric, "/stats/groupentry/add", &group);
    let shown = |port: u32| {
        let bucket = json!({"weight": 0, "watch_port": u32::MAX, "watch_group": u32::MAX, "actions": [format!("OUTPUT:{port}")]});
        json!({"1": [{"type": "ALL", "group_id": 1, "buckets": [bucket]}]})
    };
    assert_eq!(fabric.get("/stats/groupdesc/1"), shown(1));
    assert_eq!(fabric.get("/stats/groupdesc/1/1"), shown(1));
    assert_eq!(fabric.get("/stats/groupdesc/1/2"), json!({"1": []}));
    let stats = json!({"1": [{
        "length": 56, "group_id": 1, "ref_count": 0, "packet_count": 0, "byte_count": 0, "duration_sec": 0,
        "duration_nsec": 0, "bucket_stats": [{"packet_count": 0, "byte_count": 0}],
    }]});
    assert_eq!(still(fabric.get("/stats/group/1")), stats);
    assert_eq!(still(fabric.get("/stats/group/1/1")), stats);
    let changed = json!([{"actions": [{"type": "OUTPUT", "port": 2}]}]);
    post(fabric, "/stats/groupentry/modify", &with(group, &[("buckets", changed)]));
    assert_eq!(fabric.get("/stats/groupdesc/1"), shown(2));
    post(fabric, "/stats/groupentry/delete", &json!({"dpid": 1, "group_id": "ALL"}));
    assert_eq!(fabric.get("/stats/groupdesc/1"), json!({"1": []}));

    let meter = json!({"dpid": 1, "flags": "KBPS", "meter_id": 1, "bands": [{"type": "DROP", "rate": 1000}]});
    post(fabric, "/stats/meterentry/add", &meter);
    let shown = |rate: u32| {
        // Where no burst is given, Open vSwitch takes a second's worth.
        let band = json!({"type": "DROP", "rate": rate, "burst_size": rate});
        json!({"1": [{"flags": ["KBPS"], "meter_id": 1, "bands": [band]}]})
    };
    assert_eq!(fabric.get("/stats/meterconfig/1"), shown(1000));
    let stats = json!({"1": [{
        "meter_id": 1, "len": 56, "flow_count": 0, "packet_in_count": 0, "byte_in_count": 0, "duration_sec": 0,
        "duration_nsec": 0, "band_stats": [{"packet_band_count": 0, "byte_band_count": 0}],
    }]});
    assert_eq!(still(fabric.get("/stats/meter/1/1")), stats);
    post(
        fabric,
        "/stats/meterentry/modify",
        &with(meter, &[("bands", json!([{"type": "DROP", "rate": 2000}]))]),
    );
    assert_eq!(fabric.get("/stats/meterconfig/1/1"), shown(2000));
    post(fabric, "/stats/meterentry/delete", &json!({"dpid": 1, "meter_id": 1}));
    assert_eq!(fabric.get("/stats/meter/1"), json!({"1": []}));
}

#[test]
fn the_same_lines_give_the_same_json() {
    let mut fabric = Fabric::new(Make::OpenVSwitch);
    fabric.add_switch(1);
    fabric.add_host(1, 1);
    fabric.add_host(1, 2);
    fabric.settled(1);
    assert_eq!(fabric.get("/stats/switches"), json!([1]));
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let desc = fabric.get("/stats/desc/1");
    assert_eq!(keys(&desc["1"]), ["dp_desc", "hw_desc", "mfr_desc", "serial_num", "sw_desc"]);
    assert_eq!(desc["1"]["hw_desc"], "Open vSwitch");
    flow_entries(&fabric);
    groups_and_meters(&fabric);

    let tables = fabric.get("/stats/table/1");
    assert_eq!(keys(&tables["1"][0]), ["active_count", "lookup_count", "matched_count", "table_id"]);
    let counters = fabric.get("/stats/port/1/1");
    let names = [
        "collisions",
        "duration_nsec",
        "duration_sec",
        "port_no",
        "rx_bytes",
        "rx_crc_err",
        "rx_dropped",
        "rx_errors",
        "rx_frame_err",
        "rx_over_err",
        "rx_packets",
        "tx_bytes",
        "tx_dropped",
        "tx_errors",
        "tx_packets",
    ];
    assert_eq!(
        (counters["1"].as_array().unwrap().len(), keys(&counters["1"][0])),
        (1, names.map(String::from).into())
    );
    let ports = fabric.get("/stats/portdesc/1");
    let numbers: Vec<_> = ports["1"].as_array().unwrap().iter().map(|port| port["port_no"].clone()).collect();
    assert_eq!(numbers, [json!(1), json!(2), json!("LOCAL")]);
    let one = fabric.get("/stats/portdesc/1/2");
    assert_eq!(one["1"], json!([ports["1"][1]]));
    let names = [
        "advertised",
        "config",
        "curr",
        "curr_speed",
        "hw_addr",
        "max_speed",
        "name",
        "peer",
        "port_no",
        "state",
        "supported",
    ];
    assert_eq!(keys(&one["1"][0]), names);

    assert_eq!(fabric.get("/stats/role/1")["1"][0]["role"], "EQUAL");
    post(&fabric, "/stats/role", &json!({"dpid": 1, "role": "MASTER"}));
    assert_eq!(fabric.get("/stats/role/1")["1"], json!([{"role": "MASTER", "generation_id": 0}]));

    // Errors are told, which Ryu does not do.
    for (path, body, status, said) in [
        ("flowentry/add", json!({"dpid": 9, "match": {}}), 404, "switch 9 is not connected"),
        ("flowentry/fly", json!({"dpid": 1}), 404, "fly"),
        ("flowentry/add", json!({"dpid": 1, "priority": 70_000, "match": {"colour": 1}}), 400, "colour"),
        (
            "flowentry/add",
            json!({"dpid": 1, "actions": [{"type": "GROUP", "group_id": 77}]}),
            422,
            "BAD_OUT_GROUP",
        ),
        ("groupentry/modify", json!({"dpid": 1, "group_id": 77}), 422, "UNKNOWN_GROUP"),
        ("meterentry/modify", json!({"dpid": 1, "meter_id": 77}), 422, "UNKNOWN_METER"),
        ("role", json!({"dpid": 1, "role": "KING"}), 400, "MASTER"),
    ] {
        let answer = fabric.request(Method::POST, &format!("/stats/{path}"), Some(&body));
        assert_eq!(answer.status.as_u16(), status, "{path} {body}: {}", answer.body);
        assert!(answer.body.contains(said), "{path} {body}: {}", answer.body);
    }
    let cleared = fabric.request(Method::DELETE, "/stats/flowentry/clear/1", None);
    assert_eq!(cleared.status.as_u16(), 200, "{}", cleared.body);

    // What was done is noted, with what was asked for; what was refused is not.
    let records = fabric.get("/v1/audit?limit=1000")["records"].take();
    let of = |record: &Value| ["action", "kind", "name"].map(|key| record[key].as_str().unwrap().to_owned());
    let latest: Vec<_> = records.as_array().unwrap().iter().map(of).collect();
    assert_eq!(latest[..2], [["clear", "flowentry", "1"], ["set", "role", "1"]]);
    assert_eq!(latest.last().unwrap(), &["add", "flowentry", "1"]);
    assert_eq!(records[1]["after"], json!({"dpid": 1, "role": "MASTER"}));
    assert!(records[1]["from"].as_str().unwrap().starts_with("127.0.0.1:"), "{}", records[1]);
    assert!(latest.contains(&["delete", "groupentry", "1"].map(String::from)));
    assert!(latest.contains(&["modify", "meterentry", "1"].map(String::from)));
}
