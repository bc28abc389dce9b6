//! What a port is: as it is asked for, kept over restarts, and shown.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use telemetry::check::{Errors, Fields};
use telemetry::{Problem, SocketAccess};

use crate::model::{PORT_NO_LAST, VlanMode, VlanSet};

/// Most queue pairs of a vhost-user port.
pub const QUEUE_PAIRS_MAX: u16 = 8;
/// Smallest MTU: what IPv4 demands of a link.
pub const MTU_MIN: u16 = 68;
/// Largest MTU: the longest frame a virtio-net device without segmentation may carry fits 64 KiB.
pub const MTU_MAX: u16 = 65_521;
/// MTU of a port that was given none.
pub const MTU_DEFAULT: u16 = 1500;
/// Longest name of a network interface (`IFNAMSIZ` without its zero).
const INTERFACE_NAME_MAX: usize = 15;

/// What is on the other side of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PortKind {
    /// A guest that connects to `<name>.sock` in the run directory.
    VhostUser,
    /// A guest whose VMM listens at this socket; we connect, again and again.
    #[schema(value_type = String)]
    VhostUserClient(PathBuf),
    /// A network interface of the host, by a packet socket.
    AfPacket(String),
    /// A tap interface; made when it does not exist.
    Tap(String),
}

/// VLANs of a port, for NORMAL and FLOOD.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PortVlans {
    /// Every frame passes as it is: all VLANs tagged, the network without a tag untagged.
    #[default]
    Any,
    /// Untagged member of one VLAN.
    Access(u16),
    /// Tagged member of several VLANs.
    Trunk {
        /// The VLANs, ascending.
        allowed: Vec<u16>,
        /// VLAN of untagged frames.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        native: Option<u16>,
    },
}

impl PortVlans {
    /// The same as the pipeline takes it.
    pub fn mode(&self) -> VlanMode {
        match self {
            PortVlans::Any => VlanMode::Trunk { allowed: VlanSet::all(), native: Some(0) },
            PortVlans::Access(vid) => VlanMode::Access(*vid),
            PortVlans::Trunk { allowed, native } => {
                VlanMode::Trunk { allowed: allowed.iter().copied().collect(), native: *native }
            }
        }
    }
}

/// A port as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PortSpec {
    /// Unique name; a vhost-user server socket is `<name>.sock` in the run directory.
    pub name: String,
    /// What is on the other side.
    pub kind: PortKind,
    /// OpenFlow port number; `None` until the switch has chosen one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ofport: Option<u32>,
    /// VLANs.
    #[serde(default)]
    pub vlans: PortVlans,
    /// Largest IP packet in bytes, without the Ethernet header.
    pub mtu: u16,
    /// Number of queue pairs (vhost-user).
    pub queue_pairs: u16,
    /// Owner, group and mode of the socket (vhost-user).
    #[serde(default)]
    pub socket: SocketAccess,
}

/// A port as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PortView {
    /// What was asked for.
    #[serde(flatten)]
    pub spec: PortSpec,
    /// Its socket, where it has one.
    #[schema(value_type = Option<String>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<PathBuf>,
    /// Whether somebody is attached and the carrier is up.
    pub link_up: bool,
    /// Why the port cannot work, if it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Frames and bytes since the port was made.
    pub counters: PortCountersView,
}

/// Counters of a port since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PortCountersView {
    /// Frames from the port.
    pub rx_packets: u64,
    /// Bytes from the port.
    pub rx_bytes: u64,
    /// Frames from the port that went nowhere.
    pub rx_dropped: u64,
    /// Frames to the port.
    pub tx_packets: u64,
    /// Bytes to the port.
    pub tx_bytes: u64,
    /// Frames to the port that it could not take.
    pub tx_dropped: u64,
}

/// Checks the body of a request to add a port. The keys are `name`, one of `vhost_user`, `client`, `af_packet` and
/// `tap`, `ofport`, either `vlan` or `trunk` and `native`, `mtu`, `queue_pairs`, `socket_owner`, `socket_group`,
/// `socket_mode`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_add(body: Value) -> Result<PortSpec, Problem> {
    let mut errors = Errors::new();
    let mut fields = Fields::new("", body, &mut errors);
    let name = fields.required::<String>("name", "a name").unwrap_or_default();
    if !name.is_empty() {
        fields.errors().name("name", &name);
    }
    let kind = read_kind(&mut fields);
    let ofport = fields.optional::<u32>("ofport", "a number from 1 to 65279");
    if let Some(number) = ofport {
        fields.errors().range("ofport", number, 1..=PORT_NO_LAST.0);
    }
    let vlans = read_vlans(&mut fields);
    let mtu = fields.optional("mtu", "a number of bytes").unwrap_or(MTU_DEFAULT);
    fields.errors().range("mtu", mtu, MTU_MIN..=MTU_MAX);
    let queue_pairs = fields.optional("queue_pairs", "a number from 1 to 8").unwrap_or(1);
    fields.errors().range("queue_pairs", queue_pairs, 1..=QUEUE_PAIRS_MAX);
    let socket = SocketAccess::read(&mut fields);
    fields.finish();
    let title = format!("the port `{name}` cannot be added");
    let kind = kind.unwrap_or(PortKind::VhostUser);
    errors.into_result(title, PortSpec { name, kind, ofport, vlans, mtu, queue_pairs, socket })
}

fn read_kind(fields: &mut Fields<'_>) -> Option<PortKind> {
    let vhost_user = fields.optional("vhost_user", "true").unwrap_or(false);
    let client = fields.optional::<PathBuf>("client", "the path of a socket");
    if let Some(path) = client.as_ref().filter(|path| !path.is_absolute()) {
        fields.errors().add("client", path.display(), "not an absolute path", "begin it with `/`");
    }
    let mut given: Vec<(&str, PortKind)> = Vec::new();
    match client {
        Some(path) => given.push(("vhost_user", PortKind::VhostUserClient(path))),
        None if vhost_user => given.push(("vhost_user", PortKind::VhostUser)),
        None => {}
    }
    given.extend(read_interface(fields, "af_packet").map(|name| ("af_packet", PortKind::AfPacket(name))));
    given.extend(read_interface(fields, "tap").map(|name| ("tap", PortKind::Tap(name))));
    let remedy = "give one of vhost_user (with client, if we are to connect), af_packet and tap";
    match given.len() {
        0 => fields.errors().add("vhost_user", "", "missing", remedy),
        1 => {}
        _ => {
            let shown = given.iter().map(|(key, _)| *key).collect::<Vec<_>>().join(", ");
            fields.errors().add("vhost_user", shown, "more than one kind of port", remedy);
        }
    }
    given.pop().map(|(_, kind)| kind)
}

fn read_interface(fields: &mut Fields<'_>, key: &'static str) -> Option<String> {
    let name = fields.optional::<String>(key, "the name of a network interface")?;
    let legal = |c: char| c.is_ascii_graphic() && !"/:".contains(c);
    if name.is_empty()
        || name.len() > INTERFACE_NAME_MAX
        || !name.chars().all(legal)
        || name == "."
        || name == ".."
    {
        fields.errors().add(
            key,
            &name,
            "not the name of a network interface",
            "use 1 to 15 characters, no `/` or `:`",
        );
    }
    Some(name)
}

fn read_vlans(fields: &mut Fields<'_>) -> PortVlans {
    let access = fields.optional::<u16>("vlan", "a number from 1 to 4094");
    let trunk = fields.optional::<Value>("trunk", "VLANs such as 10,20-29");
    let native = fields.optional::<u16>("native", "a number from 1 to 4094");
    for (field, vid) in [("vlan", access), ("native", native)] {
        if let Some(vid) = vid {
            fields.errors().range(field, vid, 1..=4094);
        }
    }
    let allowed = trunk.map(|value| read_vlan_list(fields, &value));
    match (access, allowed, native) {
        (Some(vid), None, None) => PortVlans::Access(vid),
        (Some(vid), ..) => {
            let remedy = "give vlan for an access port, trunk and native for a trunk";
            fields.errors().add("vlan", vid, "an access port has one VLAN and no trunk", remedy);
            PortVlans::Any
        }
        (None, Some(allowed), native) => PortVlans::Trunk { allowed, native },
        (None, None, Some(native)) => PortVlans::Trunk { allowed: Vec::new(), native: Some(native) },
        (None, None, None) => PortVlans::Any,
    }
}

/// A list of VLANs: an array of numbers, or a text such as `10,20-29`. Ascending, each once.
fn read_vlan_list(fields: &mut Fields<'_>, value: &Value) -> Vec<u16> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(Value::to_string).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    };
    let mut vids = Vec::new();
    for item in text.split(',').map(str::trim) {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
            (Ok(first), Ok(last)) if (1..=4094).contains(&first) && (first..=4094).contains(&last) => {
                vids.extend(first..=last);
            }
            _ => fields.errors().add(
                "trunk",
                item,
                "not a VLAN",
                "give numbers from 1 to 4094, such as 10,20-29",
            ),
        }
    }
    vids.sort_unstable();
    vids.dedup();
    vids
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_kinds_of_ports() {
        let kind = |body: Value| read_add(body).map(|spec| spec.kind);
        assert_eq!(kind(json!({"name": "p", "vhost_user": true})), Ok(PortKind::VhostUser));
        let client = Ok(PortKind::VhostUserClient("/s".into()));
        assert_eq!(kind(json!({"name": "p", "vhost_user": true, "client": "/s"})), client);
        assert_eq!(kind(json!({"name": "p", "af_packet": "veth0"})), Ok(PortKind::AfPacket("veth0".into())));
        assert_eq!(kind(json!({"name": "p", "tap": "tap0"})), Ok(PortKind::Tap("tap0".into())));
    }

    #[test]
    fn the_kinds_of_vlans() {
        let vlans = |body: Value| {
            let mut whole = json!({"name": "p", "vhost_user": true});
            whole.as_object_mut().expect("an object").extend(body.as_object().expect("an object").clone());
            read_add(whole).map(|spec| spec.vlans)
        };
        let trunk = |allowed: &[u16], native| Ok(PortVlans::Trunk { allowed: allowed.to_vec(), native });
        assert_eq!(vlans(json!({})), Ok(PortVlans::Any));
        assert_eq!(vlans(json!({"vlan": 10})), Ok(PortVlans::Access(10)));
        assert_eq!(vlans(json!({"trunk": "20,10", "native": 1})), trunk(&[10, 20], Some(1)));
        assert_eq!(vlans(json!({"trunk": [10, 20, 10]})), trunk(&[10, 20], None));
        assert_eq!(vlans(json!({"trunk": "4090-4094,1"})), trunk(&[1, 4090, 4091, 4092, 4093, 4094], None));
        for bad in [
            json!({"vlan": 0}),
            json!({"vlan": 4095}),
            json!({"vlan": 10, "trunk": "20"}),
            json!({"vlan": 10, "native": 20}),
            json!({"trunk": "0"}),
            json!({"trunk": "20-10"}),
            json!({"trunk": ""}),
            json!({"trunk": [10, 4095]}),
            json!({"native": 5000}),
        ] {
            assert!(vlans(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let body = json!({"name": "a/b", "af_packet": "a-name-that-is-too-long", "tap": "t/0", "client": "sock",
            "ofport": 0, "vlan": 5000, "mtu": 10, "queue_pairs": 9, "socket_mode": "x", "speed": 1});
        let problem = read_add(body).expect_err("all of it is wrong");
        let mut found: Vec<&str> = problem.errors.iter().map(|error| error.field.as_str()).collect();
        found.sort_unstable();
        let expect = [
            "af_packet",
            "client",
            "mtu",
            "name",
            "ofport",
            "queue_pairs",
            "socket_mode",
            "speed",
            "tap",
            "vhost_user",
            "vlan",
        ];
        assert_eq!(found, expect);
    }

    #[test]
    fn what_is_kept_is_read_back() {
        let body = json!({"name": "up0", "af_packet": "veth0", "trunk": "10,20", "native": 1, "ofport": 7, "mtu": 9000});
        let spec = read_add(body).expect("a good port");
        let text = serde_json::to_string(&spec).expect("serialisable");
        assert_eq!(serde_json::from_str::<PortSpec>(&text).expect("readable"), spec);
    }
}
