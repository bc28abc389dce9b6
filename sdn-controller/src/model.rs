//! What the operator wants: networks and static flows, as values with their JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use telemetry::check::{Errors, Fields};
use utoipa::ToSchema;

use crate::flow_json::FlowSpec;

/// Ports of one network on one switch at most: they stand in one flooding rule.
pub const PORTS_PER_SWITCH_MAX: usize = 1000;
/// Static flows over all switches at most.
pub const FLOWS_MAX: usize = 65_536;
/// Port numbers of OpenFlow end here (`OFPP_MAX`).
const PORT_MAX: u64 = 0xffff_ff00;

/// The number of a switch (datapath id).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = u64, example = 1)]
pub struct Dpid(pub u64);

impl fmt::Display for Dpid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A text that is no switch number.
#[derive(Debug, thiserror::Error)]
#[error("not the number of a switch; give it in decimal, with 0x, or as 16 hexadecimal digits")]
pub struct ParseDpidError;

impl FromStr for Dpid {
    type Err = ParseDpidError;

    fn from_str(text: &str) -> Result<Dpid, ParseDpidError> {
        let hexadecimal = |digits: &str| {
            let plain = digits.bytes().all(|b| b.is_ascii_hexdigit());
            u64::from_str_radix(digits, 16).ok().filter(|_| plain)
        };
        let number = if let Some(digits) = text.strip_prefix("0x") {
            hexadecimal(digits)
        } else if text.len() == 16 {
            hexadecimal(text)
        } else {
            text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
        };
        number.map(Dpid).ok_or(ParseDpidError)
    }
}

impl<'de> Deserialize<'de> for Dpid {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Dpid, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(deserializer).map_err(|_| serde::de::Error::custom(ParseDpidError))? {
            Either::Number(number) => Ok(Dpid(number)),
            Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// A port of a switch: its OpenFlow number or its name there.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum PortRef {
    /// The OpenFlow number.
    Number(u32),
    /// The name the switch tells.
    Name(String),
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortRef::Number(number) => write!(f, "{number}"),
            PortRef::Name(name) => f.write_str(name),
        }
    }
}

/// How a port takes part in a network.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum PortMode {
    /// Untagged, and in no other network.
    #[default]
    Access,
    /// Tagged; may be in other networks too.
    Trunk,
    /// Untagged; may be a trunk in other networks.
    Native,
}

/// One port of a network.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
pub struct NetworkPort {
    /// The switch.
    pub dpid: Dpid,
    /// The port on it.
    pub port: PortRef,
    /// How it takes part.
    #[serde(default)]
    pub mode: PortMode,
}

/// An L2 network: the ports that can reach each other, carried as one VLAN.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Network {
    /// VLAN id, 1 to 4094; of one network only.
    #[schema(minimum = 1, maximum = 4094, example = 10)]
    pub vlan: u16,
    /// Its ports.
    pub ports: Vec<NetworkPort>,
}

impl Network {
    /// Reads a network from JSON; everything wrong with it goes to `errors`.
    pub fn from_json(value: Value, errors: &mut Errors) -> Option<Network> {
        let mut fields = Fields::new("", value, errors);
        let vlan = fields.required::<u16>("vlan", "a VLAN id, 1 to 4094");
        let ports = fields.required::<Vec<Value>>("ports", "a list of {dpid, port, mode}");
        fields.finish();
        if let Some(vlan) = vlan {
            errors.range("vlan", vlan, 1..=4094);
        }
        let mut list = Vec::new();
        for (index, port) in ports.into_iter().flatten().enumerate() {
            let path = format!("ports[{index}]");
            let Some(port) = NetworkPort::from_json(&path, port, errors) else { continue };
            if list.iter().any(|p: &NetworkPort| p.dpid == port.dpid && p.port == port.port) {
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
        Some(Network { vlan: vlan?, ports: list }).filter(|_| errors.is_empty())
    }

    /// The switches it reaches.
    pub fn switches(&self) -> BTreeSet<Dpid> {
        self.ports.iter().map(|port| port.dpid).collect()
    }
}

impl NetworkPort {
    fn from_json(path: &str, value: Value, errors: &mut Errors) -> Option<NetworkPort> {
        let mut fields = Fields::new(path, value, errors);
        let dpid = fields.required::<Dpid>("dpid", "the number of a switch");
        let port = fields.required::<Value>("port", "the number or the name of a port");
        let mode = fields.optional::<PortMode>("mode", "`access`, `trunk` or `native`");
        let field = fields.field("port");
        fields.finish();
        let port = match port? {
            Value::Number(number) if number.as_u64().is_some_and(|n| (1..=PORT_MAX).contains(&n)) => {
                PortRef::Number(number.as_u64().and_then(|n| u32::try_from(n).ok())?)
            }
            Value::String(name) if (1..=15).contains(&name.len()) => PortRef::Name(name),
            other => {
                let remedy = "give a port number from 1, or a name of 1 to 15 bytes as the switch tells it";
                errors.add(field, other, "is neither the number nor the name of a port", remedy);
                return None;
            }
        };
        Some(NetworkPort { dpid: dpid?, port, mode: mode.unwrap_or_default() })
    }
}

/// Everything the operator wants. A value that is never changed in place: readers keep the one they have.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Desired {
    /// Networks by name.
    pub networks: BTreeMap<String, Network>,
    /// Static flows by switch and id.
    pub flows: BTreeMap<(Dpid, String), FlowSpec>,
}

/// Why a network or flow cannot stand beside what is there.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Conflict {
    /// A VLAN belongs to one network.
    #[error("VLAN {vlan} belongs to network {other}")]
    Vlan {
        /// The VLAN.
        vlan: u16,
        /// The network that has it.
        other: String,
    },
    /// A port cannot be both.
    #[error("port {port} of switch {dpid} is in mode {mode:?} in network {other}")]
    Port {
        /// The switch.
        dpid: Dpid,
        /// The port.
        port: PortRef,
        /// Its mode there.
        mode: PortMode,
        /// The network it is in.
        other: String,
    },
    /// Two flows of equal table, priority and match cannot be told apart.
    #[error("flow {other} has the same table, priority and match")]
    Flow {
        /// The other flow's id.
        other: String,
    },
    /// Too much of it.
    #[error("there are {FLOWS_MAX} static flows already")]
    TooManyFlows,
}

/// Whether a port in mode `a` in one network can be in mode `b` in another.
pub fn modes_agree(a: PortMode, b: PortMode) -> bool {
    a == PortMode::Trunk && b != PortMode::Access || b == PortMode::Trunk && a != PortMode::Access
}

impl Desired {
    /// Whether `network` could be the network `name`; every reason why not.
    pub fn network_conflicts(&self, name: &str, network: &Network) -> Vec<Conflict> {
        let mut conflicts = Vec::new();
        for (other, theirs) in self.networks.iter().filter(|(other, _)| *other != name) {
            if theirs.vlan == network.vlan {
                conflicts.push(Conflict::Vlan { vlan: network.vlan, other: other.clone() });
            }
            for ours in &network.ports {
                let same = theirs.ports.iter().filter(|p| p.dpid == ours.dpid && p.port == ours.port);
                for port in same.filter(|port| !modes_agree(port.mode, ours.mode)) {
                    conflicts.push(Conflict::Port {
                        dpid: port.dpid,
                        port: port.port.clone(),
                        mode: port.mode,
                        other: other.clone(),
                    });
                }
            }
        }
        conflicts
    }

    /// Whether `flow` could be the flow `id` of switch `dpid`.
    pub fn flow_conflict(&self, dpid: Dpid, id: &str, flow: &FlowSpec) -> Option<Conflict> {
        let key = flow.key();
        let same = self.flows_of(dpid).find(|(other, theirs)| *other != id && theirs.key() == key);
        if let Some((other, _)) = same {
            return Some(Conflict::Flow { other: other.to_owned() });
        }
        let new = !self.flows.contains_key(&(dpid, id.to_owned()));
        (new && self.flows.len() >= FLOWS_MAX).then_some(Conflict::TooManyFlows)
    }

    /// The static flows of a switch.
    pub fn flows_of(&self, dpid: Dpid) -> impl Iterator<Item = (&str, &FlowSpec)> {
        self.flows
            .range((dpid, String::new())..)
            .take_while(move |((switch, _), _)| *switch == dpid)
            .map(|((_, id), flow)| (id.as_str(), flow))
    }

    /// Every switch that something is wanted of.
    pub fn switches(&self) -> BTreeSet<Dpid> {
        let of_networks = self.networks.values().flat_map(Network::switches);
        of_networks.chain(self.flows.keys().map(|(dpid, _)| *dpid)).collect()
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
    fn switch_numbers() {
        for (text, number) in
            [("1", 1), ("0x1f", 31), ("00000000000000ff", 255), ("18446744073709551615", u64::MAX)]
        {
            assert_eq!(text.parse::<Dpid>().unwrap(), Dpid(number), "{text}");
        }
        for text in ["", "0x", "-1", "+1", "x", "18446744073709551616", "+00000000000000f", "1 "] {
            assert!(text.parse::<Dpid>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_network_in_its_shortest_and_its_longest_form() {
        let short = network(json!({"vlan": 10, "ports": [{"dpid": 1, "port": 2}]})).unwrap();
        assert_eq!(
            short.ports,
            [NetworkPort { dpid: Dpid(1), port: PortRef::Number(2), mode: PortMode::Access }]
        );
        let long = json!({"vlan": 10, "ports": [{"dpid": "0x2", "port": "up0", "mode": "trunk"}]});
        assert_eq!(network(long).unwrap().ports[0].port, PortRef::Name("up0".into()));
        let written = serde_json::to_value(&short).unwrap();
        assert_eq!(network(written), Ok(short));
    }

    #[test]
    fn everything_wrong_with_a_network_is_told() {
        let wrong = json!({
            "vlan": 4095,
            "mtu": 1500,
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
        assert_eq!(network(json!({})).unwrap_err(), ["vlan", "ports"]);
    }

    #[test]
    fn too_many_ports_on_one_switch() {
        let ports = |count: usize| (1..=count).map(|n| json!({"dpid": 1, "port": n})).collect::<Vec<_>>();
        assert!(network(json!({"vlan": 1, "ports": ports(PORTS_PER_SWITCH_MAX)})).is_ok());
        assert!(network(json!({"vlan": 1, "ports": ports(PORTS_PER_SWITCH_MAX + 1)})).is_err());
    }

    #[test]
    fn networks_that_cannot_stand_side_by_side() {
        let of = |vlan, mode| Network {
            vlan,
            ports: vec![NetworkPort { dpid: Dpid(1), port: PortRef::Number(1), mode }],
        };
        let beside = |a, b| {
            let mut desired = Desired::default();
            desired.networks.insert("a".into(), of(10, a));
            assert!(
                desired.network_conflicts("a", &of(10, b)).is_empty(),
                "a network does not conflict with itself"
            );
            desired.network_conflicts("b", &of(20, b)).is_empty()
        };
        use PortMode::*;
        assert!(beside(Trunk, Trunk) && beside(Trunk, Native) && beside(Native, Trunk));
        assert!(!beside(Access, Access) && !beside(Access, Trunk) && !beside(Trunk, Access));
        assert!(!beside(Native, Native) && !beside(Native, Access));
        let mut desired = Desired::default();
        desired.networks.insert("a".into(), of(10, Trunk));
        let conflict = Conflict::Vlan { vlan: 10, other: "a".into() };
        assert_eq!(desired.network_conflicts("b", &of(10, Trunk)), [conflict]);
    }
}
