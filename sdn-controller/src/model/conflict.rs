//! What cannot stand side by side.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use super::{Desired, Dpid, FLOWS_MAX, Kind, MirrorSource, Place, PortMode, PortRef, Subject, modes_agree};

/// Why what is wanted cannot be as a whole.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Conflict {
    /// A VLAN belongs to one network.
    #[error("VLAN {vlan} belongs to {other}, and {of} wants it")]
    Vlan {
        /// The VLAN.
        vlan: u16,
        /// Who has it.
        other: Subject,
        /// Who wants it too.
        of: Subject,
    },
    /// A port cannot be both.
    #[error("{place} is {other_use} in {other}, which does not go with {of}")]
    Port {
        /// The port.
        place: Place,
        /// What it is there.
        other_use: &'static str,
        /// Who has it.
        other: Subject,
        /// Who wants it too.
        of: Subject,
    },
    /// Two flows of equal table, priority and match cannot be told apart.
    #[error("{other} has the same table, priority and match as {of}")]
    Flow {
        /// The other flow.
        other: Subject,
        /// This flow.
        of: Subject,
    },
    /// Something names what is not there.
    #[error("{of} names {missing}, which does not exist")]
    Missing {
        /// What is named.
        missing: Subject,
        /// Who names it.
        of: Subject,
    },
    /// What is taken away is still named.
    #[error("{of} needs {needed}")]
    Needed {
        /// What is named.
        needed: Subject,
        /// Who names it.
        of: Subject,
    },
    /// Something names what belongs to another tenant.
    #[error("{of} and {other} belong to different tenants")]
    Tenant {
        /// What is named.
        other: Subject,
        /// Who names it.
        of: Subject,
    },
    /// Something does not fit together.
    #[error("{of}: {what}")]
    Wrong {
        /// Who.
        of: Subject,
        /// What is wrong.
        what: String,
    },
    /// What is asked for belongs to somebody else.
    #[error("the VLAN, the port or something that is named is not of tenant {tenant}")]
    Hidden {
        /// Who asks.
        tenant: String,
    },
    /// Too much of it.
    #[error("there are {FLOWS_MAX} static flows already")]
    TooManyFlows,
    /// Nothing left to choose from.
    #[error("no VLAN id of {first} to {last} is free")]
    NoVlan {
        /// The first that may be chosen.
        first: u16,
        /// The last.
        last: u16,
    },
}

impl Conflict {
    /// The same for somebody confined to `tenant`: not what belongs to whom, only that it is not theirs.
    pub fn hidden_from(self, tenant: &str) -> Conflict {
        match self {
            Conflict::Vlan { .. }
            | Conflict::Port { .. }
            | Conflict::Flow { .. }
            | Conflict::Tenant { .. } => Conflict::Hidden { tenant: tenant.to_owned() },
            other => other,
        }
    }
}

/// What a port is used for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Member(PortMode),
    Uplink,
    Copies,
}

impl Use {
    fn word(self) -> &'static str {
        match self {
            Use::Member(PortMode::Access) => "an access port",
            Use::Member(PortMode::Trunk) => "a trunk port",
            Use::Member(PortMode::Native) => "a native port",
            Use::Uplink => "an uplink",
            Use::Copies => "for copies",
        }
    }

    fn agrees(self, other: Use) -> bool {
        let mode = |use_of| match use_of {
            Use::Member(mode) => Some(mode),
            Use::Uplink => Some(PortMode::Trunk),
            Use::Copies => None,
        };
        match (mode(self), mode(other)) {
            (Some(a), Some(b)) => modes_agree(a, b),
            _ => false,
        }
    }
}

/// A thing of what is wanted; a [`Subject`] of it is made where it is part of a conflict.
type Thing<'a> = (Kind, &'a str);
/// A use of a port, and by whom.
type PortUse<'a> = (Use, Thing<'a>);

fn subject((kind, name): Thing<'_>) -> Subject {
    Subject::new(kind, name)
}

#[derive(Default)]
struct Search<'a> {
    found: Vec<Conflict>,
    /// The first of each use of a port.
    ports: HashMap<(Dpid, &'a PortRef), Vec<PortUse<'a>>>,
    /// The first use in each network.
    members: HashMap<(Dpid, &'a PortRef, &'a str), PortUse<'a>>,
}

impl<'a> Search<'a> {
    /// Notes a use of a port; `network` is the one it is a member of.
    fn port(&mut self, dpid: Dpid, port: &'a PortRef, used: Use, of: Thing<'a>, network: Option<&'a str>) {
        let uses = self.ports.entry((dpid, port)).or_default();
        let clash = uses.iter().copied().find(|(other, _)| !used.agrees(*other));
        if uses.iter().all(|(other, _)| *other != used) {
            uses.push((used, of));
        }
        let twice = network.and_then(|network| match self.members.entry((dpid, port, network)) {
            Entry::Occupied(first) => Some(*first.get()),
            Entry::Vacant(free) => {
                free.insert((used, of));
                None
            }
        });
        if let Some((other_use, other)) = clash.or(twice) {
            self.found.push(Conflict::Port {
                place: Place { dpid, port: port.clone() },
                other_use: other_use.word(),
                other: subject(other),
                of: subject(of),
            });
        }
    }

    fn names<T>(
        &mut self,
        of: Thing<'_>,
        kind: Kind,
        name: &str,
        map: &'a BTreeMap<String, T>,
    ) -> Option<&'a T> {
        let found = map.get(name);
        if found.is_none() {
            self.found.push(Conflict::Missing { missing: Subject::new(kind, name), of: subject(of) });
        }
        found
    }

    /// ACLs of a tenant are for its networks alone.
    fn acls(&mut self, desired: &'a Desired, of: Thing<'_>, acls: &[String], tenant: Option<&str>) {
        for name in acls {
            let Some(acl) = self.names(of, Kind::Acl, name, &desired.acls) else { continue };
            if acl.tenant.is_some() && acl.tenant.as_deref() != tenant {
                let other = Subject::new(Kind::Acl, name);
                self.found.push(Conflict::Tenant { other, of: subject(of) });
            }
        }
    }

    fn vlans(&mut self, desired: &'a Desired) {
        let networks = desired.networks.iter().map(|(name, n)| (Subject::new(Kind::Network, name), n.vlan));
        let chains = desired.chains.iter().flat_map(|(name, chain)| {
            chain.vlans.iter().map(move |&vlan| (Subject::new(Kind::Chain, name), vlan))
        });
        let mut owners: HashMap<u16, Subject> = HashMap::new();
        for (of, vlan) in networks.chain(chains) {
            match owners.get(&vlan) {
                Some(other) => self.found.push(Conflict::Vlan { vlan, other: other.clone(), of }),
                None => drop(owners.insert(vlan, of)),
            }
        }
    }

    /// A port is given to one tenant.
    fn tenants(&mut self, desired: &'a Desired) {
        let mut given: HashMap<&Place, &str> = HashMap::new();
        for (name, tenant) in &desired.tenants {
            for place in &tenant.ports {
                let Some(other) = given.insert(place, name) else { continue };
                let what = format!("{place} is given to tenant {other} already");
                self.found.push(Conflict::Wrong { of: subject((Kind::Tenant, name)), what });
            }
        }
    }

    fn networks(&mut self, desired: &'a Desired) {
        for (name, acl) in &desired.acls {
            if let Some(tenant) = &acl.tenant {
                self.names((Kind::Acl, name), Kind::Tenant, tenant, &desired.tenants);
            }
        }
        for (name, network) in &desired.networks {
            let of = (Kind::Network, name.as_str());
            if let Some(tenant) = &network.tenant {
                self.names(of, Kind::Tenant, tenant, &desired.tenants);
            }
            self.acls(desired, of, &network.acls, network.tenant.as_deref());
            for port in &network.ports {
                self.port(port.dpid, &port.port, Use::Member(port.mode), of, Some(name));
            }
        }
        for (name, attachment) in &desired.attachments {
            let of = (Kind::Attachment, name.as_str());
            let Place { dpid, port } = &attachment.place;
            let network = &attachment.network;
            self.port(*dpid, port, Use::Member(attachment.mode), of, Some(network));
            if let Some(network) = self.names(of, Kind::Network, network, &desired.networks) {
                self.acls(desired, of, &attachment.acls, network.tenant.as_deref());
            }
        }
    }

    fn wiring(&mut self, desired: &'a Desired) {
        for (name, uplink) in &desired.uplinks {
            for end in [Some(&uplink.a), uplink.b.as_ref()].into_iter().flatten() {
                self.port(end.dpid, &end.port, Use::Uplink, (Kind::Uplink, name), Some(""));
            }
        }
        for (name, chain) in &desired.chains {
            let of = (Kind::Chain, name.as_str());
            self.names(of, Kind::Network, &chain.network, &desired.networks);
            for inside in &chain.inside {
                let attachment = self.names(of, Kind::Attachment, inside, &desired.attachments);
                let wrong = match attachment {
                    Some(a) if a.network != chain.network => "is in another network",
                    Some(a) if a.mode == PortMode::Trunk => "is a trunk port, and must be untagged",
                    _ => continue,
                };
                let what = format!("attachment {inside} {wrong}");
                self.found.push(Conflict::Wrong { of: subject(of), what });
            }
            for side in chain.hops.iter().flat_map(|hop| [&hop.inside, &hop.outside]) {
                self.port(side.dpid, &side.port, Use::Member(PortMode::Access), of, None);
            }
        }
        let mut targets: HashMap<&Place, ()> = HashMap::new();
        for (name, mirror) in &desired.mirrors {
            let of = (Kind::Mirror, name.as_str());
            match &mirror.source {
                MirrorSource::Network(network) => {
                    self.names(of, Kind::Network, network, &desired.networks);
                }
                MirrorSource::Attachment(attachment) => {
                    let found = self.names(of, Kind::Attachment, attachment, &desired.attachments);
                    if found.is_some_and(|found| found.place.dpid != mirror.to.dpid) {
                        let what = format!("attachment {attachment} is on another switch than its copies");
                        self.found.push(Conflict::Wrong { of: subject(of), what });
                    }
                }
            }
            // Several mirrors may share a port.
            if targets.insert(&mirror.to, ()).is_none() {
                self.port(mirror.to.dpid, &mirror.to.port, Use::Copies, of, None);
            }
        }
    }

    fn flows(&mut self, desired: &'a Desired) {
        if desired.flows.len() > FLOWS_MAX {
            self.found.push(Conflict::TooManyFlows);
        }
        let mut keys = HashMap::new();
        for ((dpid, id), flow) in &desired.flows {
            if let Some(other) = keys.insert((*dpid, flow.table, flow.priority, &flow.matching), id) {
                let (other, of) = (Subject::flow(*dpid, other), Subject::flow(*dpid, id));
                self.found.push(Conflict::Flow { other, of });
            }
        }
    }
}

/// Everything that is wrong with `desired` as a whole.
pub fn find(desired: &Desired) -> Vec<Conflict> {
    let mut search = Search::default();
    search.vlans(desired);
    search.tenants(desired);
    search.networks(desired);
    search.wiring(desired);
    search.flows(desired);
    search.found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn modes_that_cannot_stand_side_by_side() {
        let beside = |a: &str, b: &str| {
            let of = |vlan: u16, mode: &str| json!({"vlan": vlan, "ports": [{"dpid": 1, "port": 1, "mode": mode}]});
            Desired::of(&[(Kind::Network, "a", of(10, a)), (Kind::Network, "b", of(20, b))])
                .conflicts()
                .is_empty()
        };
        assert!(beside("trunk", "trunk") && beside("trunk", "native") && beside("native", "trunk"));
        assert!(!beside("access", "access") && !beside("access", "trunk") && !beside("trunk", "access"));
        assert!(!beside("native", "native") && !beside("native", "access"));
    }

    #[test]
    fn every_conflict_is_found() {
        let at = |dpid: u64, port: u32| json!({"dpid": dpid, "port": port});
        let attach =
            |network: &str, dpid: u64, port: u32| json!({"network": network, "dpid": dpid, "port": port});
        let flow = json!({"priority": 5, "match": {"in_port": 1}});
        let found = Desired::of(&[
            (Kind::Tenant, "t", json!({"ports": [at(1, 9), at(2, 9)]})),
            (Kind::Tenant, "u", json!({"ports": [at(2, 9)]})),
            (Kind::Acl, "theirs", json!({"tenant": "t", "rules": []})),
            (Kind::Acl, "lost", json!({"tenant": "nobody", "rules": []})),
            (Kind::Network, "a", json!({"vlan": 10, "acls": ["theirs", "none"], "ports": [at(1, 1)]})),
            (Kind::Network, "b", json!({"vlan": 10})),
            (Kind::Attachment, "x", attach("c", 1, 1)),
            (Kind::Attachment, "y", attach("a", 1, 7)),
            (Kind::Uplink, "u", json!({"a": at(1, 1), "b": at(2, 1)})),
            (Kind::Mirror, "m", json!({"source": {"attachment": "y"}, "to": at(2, 1)})),
            (
                Kind::Chain,
                "c",
                json!({"network": "b", "inside": ["y"], "vlans": [10],
                       "hops": [{"inside": at(3, 1), "outside": at(3, 1)}]}),
            ),
            (Kind::Flow, "1/f", flow.clone()),
            (Kind::Flow, "1/g", flow.clone()),
            (Kind::Flow, "2/f", flow),
        ])
        .conflicts();
        let texts: Vec<_> = found.iter().map(ToString::to_string).collect();
        let expected = [
            "VLAN 10 belongs to network a, and network b wants it",
            "VLAN 10 belongs to network a, and chain c wants it",
            "tenant u: port 9 of switch 2 is given to tenant t already",
            "acl lost names tenant nobody, which does not exist",
            "acl theirs and",
            "network a names acl none, which does not exist",
            "port 1 of switch 1 is an access port in network a, which does not go with attachment x",
            "attachment x names network c, which does not exist",
            "port 1 of switch 1 is an access port in network a, which does not go with uplink u",
            "chain c: attachment y is in another network",
            "port 1 of switch 3 is an access port in chain c, which does not go with chain c",
            "mirror m: attachment y is on another switch than its copies",
            "port 1 of switch 2 is an uplink in uplink u, which does not go with mirror m",
            "flow f of switch 1 has the same table, priority and match as flow g of switch 1",
        ];
        assert_eq!(texts.len(), expected.len(), "{texts:#?}");
        for (text, expected) in texts.iter().zip(expected) {
            let fits =
                *text == expected || expected == "acl theirs and" && text.contains("different tenants");
            assert!(fits, "{text}, not {expected}");
        }
    }
}
