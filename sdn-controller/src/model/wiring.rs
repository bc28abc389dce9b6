//! What connects and copies: tenants, uplinks, mirrors, service chains.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use telemetry::check::{Errors, Fields};
use utoipa::ToSchema;

use super::Place;

/// Functions of one chain at most.
pub const HOPS_MAX: usize = 8;
/// Ports of one tenant at most.
pub const PORTS_PER_TENANT_MAX: usize = 10_000;

/// A tenant: whoever is confined to it sees and changes only what belongs to it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, ToSchema)]
pub struct Tenant {
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    pub description: String,
    /// The ports that whoever is confined to the tenant may attach. Others attach what they like to its networks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub ports: Vec<Place>,
}

impl Tenant {
    /// Reads a tenant from JSON; everything wrong with it goes to `errors`.
    pub fn from_json(value: Value, errors: &mut Errors) -> Option<Tenant> {
        let mut fields = Fields::new("", value, errors);
        let description = fields.optional::<String>("description", "a text").unwrap_or_default();
        let given = fields.optional::<Vec<Value>>("ports", "a list of {dpid, port}").unwrap_or_default();
        fields.finish();
        if given.len() > PORTS_PER_TENANT_MAX {
            let remedy = format!("give {PORTS_PER_TENANT_MAX} at most");
            errors.add("ports", given.len(), "too many ports", remedy);
        }
        let mut ports = Vec::with_capacity(given.len());
        for (index, port) in given.into_iter().enumerate() {
            ports.extend(Place::from_json(&format!("ports[{index}]"), port, errors));
        }
        Some(Tenant { description, ports }).filter(|_| errors.is_empty())
    }
}

/// A link between two switches, or out of the switches altogether. Networks that need it are carried tagged. Of links
/// that form a loop only a tree is used.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Uplink {
    /// One end.
    pub a: Place,
    /// The other end; without one it leads out, and carries every network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b: Option<Place>,
}

impl Uplink {
    /// Reads an uplink from JSON; everything wrong with it goes to `errors`.
    pub fn from_json(value: Value, errors: &mut Errors) -> Option<Uplink> {
        let mut fields = Fields::new("", value, errors);
        let a = fields.required::<Value>("a", "{dpid, port}");
        let b = fields.optional::<Value>("b", "{dpid, port}");
        fields.finish();
        let a = a.and_then(|a| Place::from_json("a", a, errors));
        let b = b.and_then(|b| Place::from_json("b", b, errors));
        if let (Some(a), Some(b)) = (&a, &b)
            && a.dpid == b.dpid
        {
            errors.add("b.dpid", b.dpid, "is the switch of the other end", "name two switches");
        }
        Some(Uplink { a: a?, b }).filter(|_| errors.is_empty())
    }
}

/// What a mirror copies.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MirrorSource {
    /// A network: every packet that enters it on the switch of the copies.
    Network(String),
    /// An attachment, which is to be on the switch of the copies.
    Attachment(String),
}

/// Which packets of an attachment are copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MirrorDirection {
    /// To the attached host.
    Ingress,
    /// From it.
    Egress,
    /// Both.
    #[default]
    Both,
}

/// Copies of packets for an observer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Mirror {
    /// Whose packets.
    pub source: MirrorSource,
    /// Which of them; of a network always both.
    #[schema(required = false)]
    pub direction: MirrorDirection,
    /// Where the copies go. The port is in no network.
    pub to: Place,
}

impl Mirror {
    /// Reads a mirror from JSON; everything wrong with it goes to `errors`.
    pub fn from_json(value: Value, errors: &mut Errors) -> Option<Mirror> {
        let mut fields = Fields::new("", value, errors);
        let source = fields.required::<MirrorSource>("source", "{network: NAME} or {attachment: NAME}");
        let direction = fields.optional::<MirrorDirection>("direction", "`ingress`, `egress` or `both`");
        let to = fields.required::<Value>("to", "{dpid, port}");
        fields.finish();
        let to = to.and_then(|to| Place::from_json("to", to, errors));
        Some(Mirror { source: source?, direction: direction.unwrap_or_default(), to: to? })
            .filter(|_| errors.is_empty())
    }
}

/// A function that traffic passes through: a host with two ports that forwards between them, such as a transparent
/// firewall.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Hop {
    /// Its port towards the inside.
    pub inside: Place,
    /// Its port towards the rest of the network.
    pub outside: Place,
}

/// A service chain: what these ports of a network exchange with the others passes through functions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Chain {
    /// The network.
    pub network: String,
    /// Attachments of the network that are behind the functions.
    pub inside: Vec<String>,
    /// The functions, from the inside out.
    pub hops: Vec<Hop>,
    /// VLAN ids between the functions, one for each; chosen by the controller when not given.
    #[schema(required = false)]
    pub vlans: Vec<u16>,
}

impl Chain {
    /// Reads a chain from JSON; everything wrong with it goes to `errors`.
    pub fn from_json(value: Value, errors: &mut Errors) -> Option<Chain> {
        let mut fields = Fields::new("", value, errors);
        let network = fields.required::<String>("network", "the name of a network");
        let inside = fields.required::<Vec<String>>("inside", "a list of names of attachments");
        let given = fields.required::<Vec<Value>>("hops", "a list of {inside, outside}");
        let vlans = fields.optional::<Vec<u16>>("vlans", "a list of VLAN ids").unwrap_or_default();
        fields.finish();
        let given = given.unwrap_or_default();
        errors.range("hops", given.len(), 1..=HOPS_MAX);
        let mut hops = Vec::new();
        for (index, hop) in given.into_iter().enumerate() {
            let path = format!("hops[{index}]");
            let mut fields = Fields::new(&path, hop, errors);
            let sides = ["inside", "outside"].map(|side| fields.required::<Value>(side, "{dpid, port}"));
            fields.finish();
            let [inside, outside] = sides;
            let inside = inside.and_then(|at| Place::from_json(&format!("{path}.inside"), at, errors));
            let outside = outside.and_then(|at| Place::from_json(&format!("{path}.outside"), at, errors));
            if let (Some(inside), Some(outside)) = (inside, outside) {
                hops.push(Hop { inside, outside });
            }
        }
        if !vlans.is_empty() && vlans.len() != hops.len() {
            errors.add("vlans", vlans.len(), "not one for each function", "leave them out");
        }
        vlans.iter().for_each(|&vlan| errors.range("vlans", vlan, 1..=4094));
        Some(Chain { network: network?, inside: inside?, hops, vlans }).filter(|_| errors.is_empty())
    }
}
