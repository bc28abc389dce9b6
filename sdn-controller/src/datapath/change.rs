//! Changes on their way to the switch: in a bundle where it takes them, else in order, and what it refuses.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use ofp::{Body, BundleAdd, BundleControlType, BundleFlags, ErrorCode, Message, MeterModCommand};

use super::{Datapath, Done, Phase};
use crate::entry::{self, FlowBody, FlowKey, MeterBody};
use crate::layout::SwitchLayout;
use crate::plan::Plan;
use crate::reconcile::{Changes, Flows, Meters, reconcile};

/// Flow-mods in one bundle at most: a switch holds all of it in memory.
const BUNDLE_MAX: usize = 4096;

/// What was sent, and what was there before.
pub(super) enum Sent {
    /// A flow-mod.
    Flow { key: FlowKey, body: Option<FlowBody>, before: Option<FlowBody> },
    /// A meter-mod.
    Meter { id: u32, body: Option<MeterBody>, before: Option<MeterBody> },
    /// What opens or ends a bundle.
    Bundle,
}

impl Datapath {
    /// Sends what is needed to have what is wanted, unless something is under way: then that is done at its end.
    pub(super) fn change(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Idle) && self.dirty {
            self.dirty = false;
            self.changed = true;
            let plan = self.make_plan(&self.layout);
            let moved = self.leave_former_members(&plan);
            self.plan = plan;
            self.refused.retain(|key, (body, _)| self.plan.flows.get(key) == Some(body));
            self.refused_meters.retain(|id, (body, _)| self.plan.meters.get(id) == Some(body));
            let (flows, meters) = self.wanted(&self.plan);
            let changes = reconcile((&flows, &meters), (&self.installed, &self.meters));
            let waiting = std::mem::take(&mut self.waiting);
            let bundle = self.abilities.bundles;
            self.send_changes(now, changes, waiting, bundle);
            self.write_learned_again(&moved);
        }
    }

    /// What a plan asks for, without what the switch refused: that is not sent again, and what was there before stays.
    fn wanted(&self, plan: &Plan) -> (Flows, Meters) {
        let (mut flows, mut meters) = (plan.flows.clone(), plan.meters.clone());
        for (key, (body, _)) in &self.refused {
            if plan.flows.get(key) == Some(body) {
                match self.installed.get(key) {
                    Some(before) => drop(flows.insert(key.clone(), before.clone())),
                    None => drop(flows.remove(key)),
                }
            }
        }
        for (id, (body, _)) in &self.refused_meters {
            if plan.meters.get(id) == Some(body) {
                match self.meters.get(id) {
                    Some(before) => drop(meters.insert(*id, *before)),
                    None => drop(meters.remove(id)),
                }
            }
        }
        (flows, meters)
    }

    /// What the switch shall have.
    pub(super) fn make_plan(&self, layout: &SwitchLayout) -> Plan {
        let mut plan = Plan::new(layout, &self.ports, self.abilities);
        self.add_guards_to(&mut plan);
        plan
    }

    /// What would be sent if `layout` were wanted, and what stands in the way.
    pub fn preview(&self, layout: &SwitchLayout) -> (Changes, Vec<String>) {
        let plan = self.make_plan(layout);
        let (flows, meters) = self.wanted(&plan);
        let changes = reconcile((&flows, &meters), (&self.installed, &self.meters));
        let standby = matches!(self.phase, Phase::Standby).then(|| super::STANDBY.to_owned());
        (changes, standby.into_iter().chain(plan.obstacles.into_values().flatten()).collect())
    }

    fn send_changes(&mut self, now: Instant, changes: Changes, waiting: Vec<Done>, bundle: bool) {
        if changes.is_empty() {
            self.finished.extend(waiting);
            return;
        }
        let mut sent = HashMap::with_capacity(changes.add.len() + changes.delete.len());
        let new = changes.new_meters.iter().map(|meter| (MeterModCommand::Add, meter));
        let other = changes.other_meters.iter().map(|meter| (MeterModCommand::Modify, meter));
        for (command, &(id, body)) in new.chain(other) {
            let xid = self.send(Body::MeterMod(body.message(command, id)));
            let before = self.meters.insert(id, body);
            sent.insert(xid, Sent::Meter { id, body: Some(body), before });
        }
        let count = changes.add.len() + changes.delete.len();
        // One message is whole in itself.
        let bundle = bundle && (2..=BUNDLE_MAX).contains(&count);
        if !sent.is_empty() {
            self.send(Body::BarrierRequest);
        }
        if bundle {
            self.bundle_id = self.bundle_id.wrapping_add(1);
            let xid = self.send(self.bundle(BundleControlType::OpenRequest));
            sent.insert(xid, Sent::Bundle);
        }
        for (key, body) in changes.add {
            let flow_mod = Body::FlowMod(entry::add(&key, &body));
            if (Message { xid: 0, body: flow_mod.clone() }).encode().is_err() {
                self.refused.insert(key, (body, None));
                continue;
            }
            self.metrics.flow_adds.add(1);
            let xid = self.send_flow_mod(flow_mod, bundle);
            let before = self.installed.insert(key.clone(), body.clone());
            sent.insert(xid, Sent::Flow { key, body: Some(body), before });
        }
        if !bundle && !changes.delete.is_empty() && count > changes.delete.len() {
            // Nothing may go before what takes its place is there.
            self.send(Body::BarrierRequest);
        }
        for key in changes.delete {
            self.metrics.flow_deletes.add(1);
            let xid = self.send_flow_mod(Body::FlowMod(entry::delete(&key)), bundle);
            let before = self.installed.remove(&key);
            sent.insert(xid, Sent::Flow { key, body: None, before });
        }
        if bundle {
            for kind in [BundleControlType::CloseRequest, BundleControlType::CommitRequest] {
                let xid = self.send(self.bundle(kind));
                sent.insert(xid, Sent::Bundle);
            }
        }
        for id in changes.old_meters {
            let xid = self.send(Body::MeterMod(entry::delete_meter(id)));
            let before = self.meters.remove(&id);
            sent.insert(xid, Sent::Meter { id, body: None, before });
        }
        let barrier = self.send(Body::BarrierRequest);
        self.since = now;
        self.phase = Phase::Changing { barrier, sent, bundle: bundle.then_some(false), waiting };
    }

    fn send_flow_mod(&mut self, flow_mod: Body, bundle: bool) -> u32 {
        if !bundle {
            return self.send(flow_mod);
        }
        let message = Box::new(Message { xid: self.xid.wrapping_add(1), body: flow_mod });
        let flags = BundleFlags(BundleFlags::ATOMIC.0 | BundleFlags::ORDERED.0);
        self.send(Body::BundleAdd(BundleAdd {
            bundle_id: self.bundle_id,
            flags,
            message,
            properties: vec![],
        }))
    }

    /// The switch refused a message of the change.
    pub(super) fn change_refused(&mut self, xid: u32, error: ErrorCode) {
        let Phase::Changing { sent, bundle, .. } = &mut self.phase else { return };
        let of_bundle = !matches!(sent.get(&xid), None | Some(Sent::Meter { .. }));
        if let Some(failed) = bundle
            && of_bundle
        {
            // All of it is gone; who is to blame shows when it is sent again one by one.
            *failed = true;
            return;
        }
        match sent.remove(&xid) {
            Some(Sent::Flow { key, body: Some(body), before }) => {
                put_back(&mut self.installed, key.clone(), before);
                self.refused.insert(key, (body, Some(error)));
            }
            Some(Sent::Meter { id, body: Some(body), before }) => {
                put_back(&mut self.meters, id, before);
                self.refused_meters.insert(id, (body, error));
            }
            // A delete that is refused leaves nothing that could be repaired: read back at the next session.
            _ => {}
        }
    }

    /// A barrier was answered: perhaps the one behind the change.
    pub(super) fn change_confirmed(&mut self, now: Instant, xid: u32) {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Changing { barrier, sent, bundle: Some(true), waiting } if barrier == xid => {
                for sent in sent.into_values() {
                    if let Sent::Flow { key, before, .. } = sent {
                        put_back(&mut self.installed, key, before);
                    }
                }
                let (flows, meters) = self.wanted(&self.plan);
                let changes = reconcile((&flows, &meters), (&self.installed, &self.meters));
                self.send_changes(now, changes, waiting, false);
            }
            Phase::Changing { barrier, waiting, .. } if barrier == xid => {
                self.metrics.reconciled(now.saturating_duration_since(self.since));
                self.finished.extend(waiting);
                self.changed = true;
                self.change(now);
                if matches!(self.phase, Phase::Idle) {
                    self.finished.append(&mut self.waiting);
                }
            }
            other => self.phase = other,
        }
    }

    /// The layout of now.
    pub fn layout(&self) -> &Arc<SwitchLayout> {
        &self.layout
    }
}

fn put_back<K: Ord, V>(map: &mut std::collections::BTreeMap<K, V>, key: K, before: Option<V>) {
    match before {
        Some(before) => drop(map.insert(key, before)),
        None => drop(map.remove(&key)),
    }
}
