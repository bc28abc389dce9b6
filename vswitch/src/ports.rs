//! The ports of one moment, as the pipeline needs them: membership in VLANs and link state, by port number.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{PortConfig, PortNo, VlanMode};

/// What the hot path asks about a port, in eight bytes.
#[derive(Clone, Copy, Default)]
struct Slot {
    present: bool,
    sends: bool,
    ignores: bool,
    trunk: bool,
    /// Access VLAN, or native VLAN of a trunk.
    vid: Option<u16>,
}

/// How a packet of a VLAN leaves by a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EgressTag {
    /// Without the VLAN's tag.
    Untagged,
    /// With the VLAN's tag.
    Tagged,
}

/// An immutable set of ports.
#[derive(Clone, Default)]
pub struct Ports {
    slots: Vec<Slot>,
    /// Whether some port ignores what comes in.
    ignoring: bool,
    configs: BTreeMap<PortNo, Arc<PortConfig>>,
}

impl Ports {
    /// The set of these ports; of two with the same number the later one counts.
    pub fn new(configs: impl IntoIterator<Item = Arc<PortConfig>>) -> Ports {
        let configs: BTreeMap<_, _> = configs.into_iter().map(|config| (config.ofport, config)).collect();
        let size = configs.keys().map(|port| port.0 as usize + 1).max().unwrap_or(0);
        let mut slots = vec![Slot::default(); size];
        for (port, config) in &configs {
            let (trunk, vid) = match config.vlan {
                VlanMode::Access(vid) => (false, Some(vid)),
                VlanMode::Trunk { native, .. } => (true, native),
            };
            slots[port.0 as usize] =
                Slot { present: true, sends: config.sends(), ignores: config.ignores(), trunk, vid };
        }
        let ignoring = slots.iter().any(|slot| slot.ignores);
        Ports { slots, ignoring, configs }
    }

    /// The port's configuration.
    pub fn get(&self, port: PortNo) -> Option<&Arc<PortConfig>> {
        self.configs.get(&port)
    }

    /// All ports, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<PortConfig>> {
        self.configs.values()
    }

    /// Number of ports.
    pub fn len(&self) -> usize {
        self.configs.len()
    }

    /// Whether there is no port.
    pub fn is_empty(&self) -> bool {
        self.configs.is_empty()
    }

    #[inline]
    fn slot(&self, port: PortNo) -> Slot {
        self.slots.get(port.0 as usize).copied().unwrap_or_default()
    }

    /// Whether the port exists.
    #[inline]
    pub fn contains(&self, port: PortNo) -> bool {
        self.slot(port).present
    }

    /// Whether the port exists and frames can leave by it ([`PortConfig::sends`]).
    #[inline]
    pub fn sends(&self, port: PortNo) -> bool {
        self.slot(port).sends
    }

    /// Whether there is any port whose frames are dropped as they come in ([`PortConfig::ignores`]).
    #[inline]
    pub fn ignoring(&self) -> bool {
        self.ignoring
    }

    /// Whether this port's frames are.
    #[inline]
    pub fn ignores(&self, port: PortNo) -> bool {
        self.slot(port).ignores
    }

    /// The VLAN of a packet that came in on `port` with the outer tag `tag` (VID, `None` = untagged); `None` =
    /// the port is not a member, the packet is dropped. VID 0 in a tag is a priority tag: as untagged.
    #[inline]
    pub fn ingress_vlan(&self, port: PortNo, tag: Option<u16>) -> Option<u16> {
        let slot = self.slot(port);
        match tag {
            None | Some(0) => slot.vid,
            Some(vid) if slot.trunk && self.trunk_allows(port, vid) => Some(vid),
            Some(_) => None,
        }
    }

    /// How a packet of VLAN `vid` leaves by `port`; `None` = the port is not a member.
    #[inline]
    pub fn egress_tag(&self, port: PortNo, vid: u16) -> Option<EgressTag> {
        let slot = self.slot(port);
        if slot.vid == Some(vid) {
            return Some(EgressTag::Untagged);
        }
        (slot.trunk && self.trunk_allows(port, vid)).then_some(EgressTag::Tagged)
    }

    fn trunk_allows(&self, port: PortNo, vid: u16) -> bool {
        match self.configs.get(&port).map(|config| &config.vlan) {
            // VLAN 0 is the network without a tag: a trunk cannot carry it tagged.
            Some(VlanMode::Trunk { allowed, .. }) => vid != 0 && vid < 4095 && allowed.contains(vid),
            _ => false,
        }
    }
}
