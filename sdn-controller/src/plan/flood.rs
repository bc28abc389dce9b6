//! Frames whose receiver is not known: to whom they go.

use std::sync::Arc;

use ofp::{Action, MacAddr, Masked, Match, OxmField, PortNo};

use super::{
    Abilities, FORWARD, Owner, PRIORITY_NETWORK, Plan, Seated, Tagging, has_rules, in_vlan, output, steps,
};
use crate::entry::{Cookie, FlowBody, FlowKey, MeterBody};
use crate::layout::Segment;
use crate::model::{Direction, Verdict};
use crate::rule_set::{RuleSet, both};

/// Flooding rules of a segment whose hosts have ingress ACLs at most.
const VARIANTS_MAX: usize = 2000;
const PRIORITY_VARIANTS: u16 = 14_000;
const PRIORITY_GROUPS: u16 = 11_000;
/// What frames from a mirrored host have above all others: they are not copied as frames to it.
const FROM_MIRRORED: u16 = 5_000;

/// Tagged copies first: once the tag is off it stays off.
fn flood_actions<'a>(members: impl Iterator<Item = &'a Seated<'a>> + Clone) -> Vec<Action> {
    let of = |tagging| {
        let ports = members.clone().filter(move |seat| seat.tagging == tagging);
        ports.flat_map(|seat| std::iter::once(&seat.port).chain(&seat.copies_to)).map(|&port| output(port))
    };
    let untagged: Vec<_> = of(Tagging::Untagged).collect();
    let pop = (!untagged.is_empty()).then_some(Action::PopVlan);
    of(Tagging::Tagged).chain(pop).chain(untagged).collect()
}

/// A match and, for each set of rules, whether it lets these packets pass.
type Variant = (Vec<OxmField>, Vec<bool>);

/// Every combination of what the sets say, in an order in which the first that fits is right.
fn variants(sets: &[Arc<RuleSet>]) -> Option<Vec<Variant>> {
    let mut all: Vec<Variant> = vec![(vec![], vec![])];
    for set in sets {
        let mut next = Vec::new();
        for (fields, passes) in &all {
            for clause in set.clauses(Direction::Ingress) {
                let Some(fields) = both(fields, &clause.fields) else { continue };
                let passes = passes.iter().copied().chain([clause.verdict == Verdict::Allow]).collect();
                next.push((fields, passes));
            }
        }
        if next.len() > VARIANTS_MAX {
            return None;
        }
        all = next;
    }
    Some(all)
}

impl Plan {
    pub(super) fn add_flooding(
        &mut self,
        owner: &Owner,
        segment: &Segment,
        seated: &[Seated<'_>],
        abilities: Abilities,
    ) {
        let cookie = Cookie::Network(segment.vlan).number();
        let of_vlan = in_vlan(segment.vlan);
        let group = OxmField::EthDst(Masked::with_mask(GROUP, GROUP));
        let meter = self.flooding_meter(owner, segment, abilities);
        let body = |actions| FlowBody::new(cookie, &steps(meter, actions, None));
        let ruled = |seat: &Seated<'_>| has_rules(seat.policy(), Direction::Ingress);
        let mut sets: Vec<Arc<RuleSet>> = Vec::new();
        for policy in seated.iter().filter(|seat| ruled(seat)).filter_map(|seat| seat.member.policy.as_ref())
        {
            if !sets.contains(&policy.rules) {
                sets.push(policy.rules.clone());
            }
        }
        let index = |seat: &Seated<'_>| {
            let rules = &seat.policy().filter(|_| ruled(seat))?.rules;
            sets.iter().position(|set| set == rules)
        };
        let indexes: Vec<Option<usize>> = seated.iter().map(index).collect();
        let reached = |passes: &[bool], from: Option<PortNo>| {
            let gets = |index: Option<usize>| index.is_none_or(|i| passes.get(i).copied().unwrap_or(false));
            let others = seated.iter().zip(&indexes).filter(|(seat, _)| Some(seat.port) != from);
            let seats: Vec<&Seated<'_>> = others.filter(|(_, i)| gets(**i)).map(|(seat, _)| seat).collect();
            flood_actions(seats.into_iter())
        };
        let (base, priority) = match segment.flooding.unknown_unicast {
            true => (of_vlan.clone(), PRIORITY_NETWORK),
            false => (of_vlan.clone().with(group), PRIORITY_GROUPS),
        };
        if !segment.flooding.unknown_unicast {
            let drop = FlowBody::new(cookie, &[]);
            self.add(owner, FlowKey::new(FORWARD, PRIORITY_NETWORK, &of_vlan), drop);
        }
        let all = variants(&sets).unwrap_or_else(|| {
            let text =
                "its hosts have too many different ingress ACLs: nothing is flooded to those that have one";
            self.obstacle(owner, text.to_owned());
            vec![(vec![], vec![])]
        });
        let last = all.len() - 1;
        let mirrored = seated.iter().filter(|seat| !seat.copies_to.is_empty()).map(|seat| Some(seat.port));
        for from in std::iter::once(None).chain(mirrored) {
            let above = if from.is_some() { FROM_MIRRORED } else { 0 };
            let base =
                Match { fields: base.fields.iter().cloned().chain(from.map(OxmField::InPort)).collect() };
            for (number, (fields, passes)) in all.iter().enumerate() {
                let Some(fields) = both(&base.fields, fields) else { continue };
                let priority = if number == last { priority } else { PRIORITY_VARIANTS - number as u16 };
                let key = FlowKey::new(FORWARD, priority + above, &Match { fields });
                self.add(owner, key, body(reached(passes, from)));
            }
        }
    }

    fn flooding_meter(&mut self, owner: &Owner, segment: &Segment, abilities: Abilities) -> Option<u32> {
        let limit = segment.flooding.limit_pps?;
        let number = u32::from(segment.vlan);
        if number > abilities.meter_max {
            let text = "the switch has no meter for it: the limit of flooding does not hold on it";
            self.obstacle(owner, text.to_owned());
            return None;
        }
        let meter = MeterBody { packets: true, rate: limit, burst: (limit / 10).max(10) };
        self.meters.insert(number, meter);
        self.meter_owners.insert(number, owner.clone());
        Some(number)
    }
}

const GROUP: MacAddr = MacAddr([1, 0, 0, 0, 0, 0]);
