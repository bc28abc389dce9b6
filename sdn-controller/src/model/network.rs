//! Networks.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use telemetry::check::{Errors, Fields};
use utoipa::ToSchema;

use super::{Dpid, Place, PortMode, PortRef};

/// Ports of one network on one switch at most: they stand in one flooding rule.
pub const PORTS_PER_SWITCH_MAX: usize = 1000;
/// The VLAN id of a network for which the controller has yet to choose one.
pub const VLAN_AUTOMATIC: u16 = 0;
/// Bytes of an Ethernet payload, least and most.
const MTU: std::ops::RangeInclusive<u16> = 68..=9216;

/// One port of a network.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, ToSchema)]
pub struct NetworkPort {
    /// The switch.
    pub dpid: Dpid,
    /// The port on it.
    pub port: PortRef,
    /// How it takes part.
    #[serde(default)]
    pub mode: PortMode,
}

/// What happens to frames whose receiver is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Flooding {
    /// Whether frames to an unknown unicast address go to every port.
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub unknown_unicast: bool,
    /// Flooded frames a second and switch at most; none = no limit. Needs a switch with meters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 10_000_000)]
    pub limit_pps: Option<u32>,
}

impl Default for Flooding {
    fn default() -> Flooding {
        Flooding { unknown_unicast: true, limit_pps: None }
    }
}

fn yes() -> bool {
    true
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// An L2 network: the ports that can reach each other, carried as one VLAN.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Network {
    /// VLAN id, 1 to 4094; of one network only. Without it the controller chooses one and keeps it.
    #[schema(minimum = 1, maximum = 4094, example = 10, required = false)]
    pub vlan: u16,
    /// Its ports that need no more than this; see also attachments.
    #[schema(required = false)]
    pub ports: Vec<NetworkPort>,
    /// The tenant it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Bytes of a packet at most, for those who set up its hosts; switches do not enforce it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 68, maximum = 9216)]
    pub mtu: Option<u16>,
    /// What happens to frames whose receiver is not known.
    #[serde(skip_serializing_if = "is_default")]
    #[schema(required = false)]
    pub flooding: Flooding,
    /// ACLs of every attachment and access port, before those of the attachment.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub acls: Vec<String>,
    /// Whether DHCP answers and router advertisements from access ports are dropped, but for trusted attachments.
    #[serde(skip_serializing_if = "Clone::clone")]
    #[schema(required = false, default = true)]
    pub guard: bool,
    /// Whether ARP requests and neighbour solicitations for addresses of attachments go to these alone.
    #[serde(skip_serializing_if = "is_default")]
    #[schema(required = false, default = false)]
    pub suppress: bool,
}

impl Network {
    /// A network of this VLAN without ports.
    pub fn of_vlan(vlan: u16) -> Network {
        Network {
            vlan,
            ports: Vec::new(),
            tenant: None,
            mtu: None,
            flooding: Flooding::default(),
            acls: Vec::new(),
            guard: true,
            suppress: false,
        }
    }

    /// Reads a network from JSON; everything wrong with it goes to `errors`.
    pub fn from_json(value: Value, errors: &mut Errors) -> Option<Network> {
        let mut fields = Fields::new("", value, errors);
        let vlan = fields.optional::<Value>("vlan", "a VLAN id, 1 to 4094, or `auto`");
        let ports = fields.optional::<Vec<Value>>("ports", "a list of {dpid, port, mode}");
        let tenant = fields.optional::<String>("tenant", "the name of a tenant");
        let mtu = fields.optional::<u16>("mtu", "a number of bytes");
        let flooding = fields.optional::<Flooding>("flooding", "{unknown_unicast, limit_pps}");
        let acls = fields.optional::<Vec<String>>("acls", "a list of names of ACLs");
        let guard = fields.optional::<bool>("guard", "true or false");
        let suppress = fields.optional::<bool>("suppress", "true or false");
        fields.finish();
        let vlan = read_vlan(vlan, errors);
        if let Some(mtu) = mtu {
            errors.range("mtu", mtu, MTU);
        }
        if let Some(limit) = flooding.and_then(|flooding| flooding.limit_pps) {
            errors.range("flooding.limit_pps", limit, 1..=10_000_000);
        }
        Some(Network {
            ports: read_ports(ports.unwrap_or_default(), errors),
            tenant,
            mtu,
            flooding: flooding.unwrap_or_default(),
            acls: acls.unwrap_or_default(),
            guard: guard.unwrap_or(true),
            suppress: suppress.unwrap_or(false),
            ..Network::of_vlan(vlan?)
        })
        .filter(|_| errors.is_empty())
    }

    /// The switches of its own ports.
    pub fn switches(&self) -> BTreeSet<Dpid> {
        self.ports.iter().map(|port| port.dpid).collect()
    }
}

fn read_vlan(given: Option<Value>, errors: &mut Errors) -> Option<u16> {
    let number = match given {
        None => return Some(VLAN_AUTOMATIC),
        Some(Value::String(text)) if text == "auto" => return Some(VLAN_AUTOMATIC),
        Some(value) => match value.as_u64().and_then(|number| u16::try_from(number).ok()) {
            Some(number) => number,
            None => {
                errors.add("vlan", value, "no VLAN id", "give 1 to 4094, or `auto`");
                return None;
            }
        },
    };
    errors.range("vlan", number, 1..=4094);
    Some(number)
}

fn read_ports(ports: Vec<Value>, errors: &mut Errors) -> Vec<NetworkPort> {
    let mut list = Vec::with_capacity(ports.len());
    let mut seen = BTreeSet::new();
    for (index, port) in ports.into_iter().enumerate() {
        let path = format!("ports[{index}]");
        let Some(port) = NetworkPort::from_json(&path, port, errors) else { continue };
        if !seen.insert((port.dpid, port.port.clone())) {
            errors.add(path, &port.port, "is in the list twice", "name each port once");
        }
        list.push(port);
    }
    let mut counts = BTreeMap::<Dpid, usize>::new();
    for port in &list {
        *counts.entry(port.dpid).or_default() += 1;
    }
    for (dpid, count) in counts.into_iter().filter(|&(_, count)| count > PORTS_PER_SWITCH_MAX) {
        let detail = format!("has {count} ports on switch {dpid}");
        errors.add("ports", count, detail, format!("at most {PORTS_PER_SWITCH_MAX} are possible"));
    }
    list.sort();
    list
}

impl NetworkPort {
    fn from_json(path: &str, value: Value, errors: &mut Errors) -> Option<NetworkPort> {
        let mut fields = Fields::new(path, value, errors);
        let place = Place::take(&mut fields);
        let mode = fields.optional::<PortMode>("mode", "`access`, `trunk` or `native`");
        fields.finish();
        let Place { dpid, port } = place?;
        Some(NetworkPort { dpid, port, mode: mode.unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn network(value: Value) -> Result<Network, Vec<String>> {
        let mut errors = Errors::new();
        let network = Network::from_json(value, &mut errors);
        let fields = errors.list().iter().map(|error| error.field.clone()).collect();
        network.ok_or(fields)
    }

    #[test]
    fn a_network_in_its_shortest_and_its_longest_form() {
        assert_eq!(network(json!({})).unwrap(), Network::of_vlan(VLAN_AUTOMATIC));
        assert_eq!(network(json!({"vlan": "auto"})).unwrap(), Network::of_vlan(VLAN_AUTOMATIC));
        let short = network(json!({"vlan": 10, "ports": [{"dpid": 1, "port": 2}]})).unwrap();
        let port = NetworkPort { dpid: Dpid(1), port: PortRef::Number(2), mode: PortMode::Access };
        assert_eq!(short.ports, [port]);
        let long = network(json!({
            "vlan": 10, "ports": [{"dpid": "0x2", "port": "up0", "mode": "trunk"}], "tenant": "t", "mtu": 9000,
            "flooding": {"unknown_unicast": false, "limit_pps": 100}, "acls": ["web"], "guard": false, "suppress": true,
        }));
        assert_eq!(long.as_ref().unwrap().ports[0].port, PortRef::Name("up0".into()));
        for network_of in [short, long.unwrap()] {
            assert_eq!(network(serde_json::to_value(&network_of).unwrap()), Ok(network_of));
        }
    }

    #[test]
    fn everything_wrong_with_a_network_is_told() {
        let wrong = json!({
            "vlan": 4095,
            "colour": "red",
            "mtu": 10,
            "flooding": {"limit_pps": 0},
            "ports": [
                {"dpid": 1, "port": 0},
                {"dpid": -1, "port": "a-name-that-is-too-long"},
                {"dpid": 1, "port": 5, "mode": "hybrid"},
                {"dpid": 1, "port": 6},
                {"dpid": 1, "port": 6, "mode": "trunk"},
                7,
            ],
        });
        let mut fields = network(wrong).unwrap_err();
        fields.sort();
        fields.dedup();
        let expected = [
            "colour",
            "flooding.limit_pps",
            "mtu",
            "ports[0].port",
            "ports[1].dpid",
            "ports[1].port",
            "ports[2].mode",
            "ports[4]",
            "ports[5]",
            "ports[5].dpid",
            "ports[5].port",
            "vlan",
        ];
        assert_eq!(fields, expected);
        assert_eq!(network(json!({"vlan": "ten", "ports": 3})).unwrap_err(), ["ports", "vlan"]);
    }

    #[test]
    fn too_many_ports_on_one_switch() {
        let ports = |count: usize| (1..=count).map(|n| json!({"dpid": 1, "port": n})).collect::<Vec<_>>();
        assert!(network(json!({"vlan": 1, "ports": ports(PORTS_PER_SWITCH_MAX)})).is_ok());
        assert!(network(json!({"vlan": 1, "ports": ports(PORTS_PER_SWITCH_MAX + 1)})).is_err());
    }
}
