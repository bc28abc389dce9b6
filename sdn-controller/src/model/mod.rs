//! What the operator wants, as values with their JSON.

mod acl;
mod attachment;
mod conflict;
mod desired;
mod network;
mod place;
mod wiring;

pub use acl::{Acl, Defaults, Direction, Ether, PortRange, Protocol, Rule, Verdict};
pub use attachment::{Attachment, Rate, Rates};
pub use conflict::Conflict;
pub use desired::{Desired, Entry, FLOWS_MAX, Item, Kind, Subject, VlanRange};
pub use network::{Flooding, Network, NetworkPort, PORTS_PER_SWITCH_MAX, VLAN_AUTOMATIC};
pub use place::{Dpid, Mac, ParseDpidError, Place, PortMode, PortRef, modes_agree};
pub use wiring::{Chain, Hop, Mirror, MirrorDirection, MirrorSource, Tenant, Uplink};
