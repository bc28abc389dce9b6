//! Where hosts are: learned from their packets, forgotten with their ports.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ofp::{Body, Field, FlowMod, FlowModCommand, FlowModFlags, MacAddr, Match, OxmField, PacketIn, PortNo};

use super::Datapath;
use crate::addresses::{DESTINATION_TIMEOUT_S, Lesson, SOURCE_TIMEOUT_S};
use crate::entry::{self, Cookie, FlowBody, FlowKey};
use crate::plan::{self, Plan, Way};

impl Datapath {
    /// Takes over the addresses learned in an earlier session, where they are still right.
    pub(super) fn adopt(&mut self, now: Instant, mut learned: Vec<(FlowKey, FlowBody, u32)>) {
        // Destinations first: a source rule without its destination would hide a host from us while it is flooded to.
        learned.sort_by_key(|(key, _, _)| std::cmp::Reverse(key.table));
        let mut again = Vec::new();
        for (key, body, age) in learned {
            let Some((vlan, mac, port, destination)) = plan::read_learned(&key, &body) else {
                self.delete(&key);
                continue;
            };
            let Some(way) = self.plan.members.get(&(vlan, port)) else {
                self.delete(&key);
                continue;
            };
            if destination {
                let age = Duration::from_secs(age.into());
                self.addresses.insert(vlan, mac, port, now.checked_sub(age).unwrap_or(now));
                if plan::destination_rule(vlan, mac, port, way) != (key, body) {
                    again.push((vlan, mac, port));
                }
            } else if self.addresses.port_of(vlan, mac) != Some(port) {
                self.delete(&key);
            } else if plan::source_rule(vlan, mac, port, way) != (key, body) {
                again.push((vlan, mac, port));
            }
        }
        again.dedup();
        for (vlan, mac, port) in again {
            if let Some(way) = self.plan.members.get(&(vlan, port)).cloned() {
                self.write_learned(vlan, mac, port, &way);
            }
        }
    }

    pub(super) fn delete(&mut self, key: &FlowKey) -> u32 {
        self.metrics.flow_deletes.add(1);
        self.send(Body::FlowMod(entry::delete(key)))
    }

    /// Deletes what was learned on ports that leave a network, or change their tagging in it. Returns the ports whose
    /// hosts are to be reached in another way from now on.
    pub(super) fn leave_former_members(&mut self, plan: &Plan) -> Vec<(u16, PortNo)> {
        let (mut former, mut moved) = (Vec::new(), Vec::new());
        for (&member, way) in &self.plan.members {
            match plan.members.get(&member) {
                Some(same) if same == way => {}
                Some(other) if other.tagging == way.tagging => moved.push(member),
                _ => former.push(member),
            }
        }
        for &(vlan, port) in &former {
            self.forget_learned(Some(vlan), port);
        }
        self.addresses.retain(|vlan, port| !former.contains(&(vlan, port)));
        moved
    }

    /// Writes the rules of the hosts on these ports again, in place of what is there.
    pub(super) fn write_learned_again(&mut self, ports: &[(u16, PortNo)]) {
        for &(vlan, port) in ports {
            let Some(way) = self.plan.members.get(&(vlan, port)).cloned() else { continue };
            for mac in self.addresses.at(vlan, port) {
                self.write_learned(vlan, mac, port, &way);
            }
        }
    }

    /// Deletes the learned rules of a port, in one VLAN or in all.
    pub(super) fn forget_learned(&mut self, vlan: Option<u16>, port: PortNo) {
        let in_vlan = vlan.map(|vlan| OxmField::VlanVid(ofp::Masked::exact(ofp::VID_PRESENT | vlan)));
        let fields =
            |first: Option<OxmField>| Match { fields: first.into_iter().chain(in_vlan.clone()).collect() };
        let delete = |table_id, matching, out_port| FlowMod {
            cookie: Cookie::Learned(0).number(),
            cookie_mask: Cookie::KIND_MASK,
            table_id,
            matching,
            out_port,
            ..FlowMod::new(FlowModCommand::Delete)
        };
        let sources = delete(plan::LEARN, fields(Some(OxmField::InPort(port))), PortNo::ANY);
        let destinations = delete(plan::FORWARD, fields(None), port);
        // Rules that lead on to another table do not name the port as an output.
        let members: HashMap<(u16, PortNo), Way> = self
            .plan
            .members
            .iter()
            .filter(|((of, member), way)| {
                *member == port && vlan.is_none_or(|vlan| vlan == *of) && way.deliver
            })
            .map(|(member, way)| (*member, way.clone()))
            .collect();
        for ((of, _), way) in members {
            for mac in self.addresses.at(of, port) {
                let (key, _) = plan::destination_rule(of, mac, port, &way);
                self.delete(&key);
            }
        }
        for flow_mod in [destinations, sources] {
            self.metrics.flow_deletes.add(1);
            self.send(Body::FlowMod(flow_mod));
        }
    }

    pub(super) fn packet_in(&mut self, now: Instant, packet_in: &PacketIn) {
        let vlan = match Cookie::from_number(packet_in.cookie) {
            Some(Cookie::Network(vlan)) => vlan,
            Some(Cookie::Discovery) => return self.probe_in(now, packet_in),
            _ => return,
        };
        let Some(OxmField::InPort(port)) = packet_in.matching.field(Field::InPort) else { return };
        let port = *port;
        let Some(&[s0, s1, s2, s3, s4, s5]) = packet_in.data.get(6..12).and_then(|s| s.first_chunk::<6>())
        else {
            return;
        };
        let mac = MacAddr([s0, s1, s2, s3, s4, s5]);
        let Some(way) = self.plan.members.get(&(vlan, port)) else { return };
        if mac.is_group() || mac == MacAddr::default() {
            return;
        }
        let way = way.clone();
        match self.addresses.seen(now, vlan, mac, port) {
            Lesson::Known => return,
            Lesson::Refused => return self.metrics.refused_packets.add(1),
            Lesson::Moved(from) => {
                let (key, _) = plan::source_rule(vlan, mac, from, &way);
                self.delete(&key);
                self.address_moved(now, (vlan, mac), from, port);
            }
            Lesson::Learn => {}
        }
        self.metrics.learned.add(1);
        self.write_learned(vlan, mac, port, &way);
    }

    /// The destination first: once the source rule is there we are not shown this host for a while.
    fn write_learned(&mut self, vlan: u16, mac: MacAddr, port: PortNo, way: &Way) {
        let destination = plan::destination_rule(vlan, mac, port, way);
        let source = plan::source_rule(vlan, mac, port, way);
        for ((key, body), hard_timeout) in [(destination, DESTINATION_TIMEOUT_S), (source, SOURCE_TIMEOUT_S)]
        {
            let flow_mod = FlowMod { hard_timeout, flags: FlowModFlags(0), ..entry::add(&key, &body) };
            self.metrics.flow_adds.add(1);
            self.send(Body::FlowMod(flow_mod));
        }
    }
}
