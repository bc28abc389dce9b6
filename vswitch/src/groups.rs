//! Groups (OpenFlow 1.3.5, 5.6): lists of buckets that flows send packets to.
//!
//! The control side keeps [`Group`]s and publishes what they come to while the ports are as they are: which buckets
//! of a group a packet takes is settled when a group or a port changes, not for each packet.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use packet::{FlowKey, field};

use crate::flow::{Action, ActionSet, FlowStats};
use crate::hash;
use crate::model::{Op, PortNo, is_physical};
use crate::pipeline;
use crate::ports::Ports;

/// Groups at most, unless configured otherwise.
pub const GROUP_LIMIT_DEFAULT: usize = 4096;
/// Buckets of a group at most.
pub const BUCKETS_MAX: usize = 256;
/// Groups behind each other at most.
pub const CHAIN_MAX: usize = 8;
/// Places of a select group at least: shares are exact to that part.
const PLACES_MIN: usize = 256;

/// How a group treats its buckets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GroupKind {
    /// A copy of the packet for each.
    All,
    /// One live bucket by weight, always the same for the packets of a flow.
    Select,
    /// The only one.
    Indirect,
    /// The first live one.
    FastFailover,
}

/// One bucket of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bucket {
    /// Share of the packets, for [`GroupKind::Select`].
    pub weight: u16,
    /// The port that must be up for the bucket to be live.
    pub watch_port: Option<PortNo>,
    /// The group that must be live for the bucket to be live.
    pub watch_group: Option<u32>,
    /// What happens to the packet, as an action set.
    pub actions: Vec<Action>,
}

impl Bucket {
    fn chained(&self) -> impl Iterator<Item = u32> + '_ {
        let groups = self.actions.iter().filter_map(|action| match action {
            Action::Group(id) => Some(*id),
            _ => None,
        });
        groups.chain(self.watch_group)
    }

    fn watches(&self) -> bool {
        self.watch_port.is_some() || self.watch_group.is_some()
    }
}

/// A group to add, or what one becomes.
#[derive(Clone, Debug)]
pub struct NewGroup {
    /// Its number.
    pub id: u32,
    /// What it does with the buckets.
    pub kind: GroupKind,
    /// The buckets.
    pub buckets: Vec<Bucket>,
    /// The group as the controller sent it, for it to see again.
    pub wire: ofp::GroupDesc,
}

/// One change of the groups.
#[derive(Clone, Debug)]
pub enum GroupChange {
    /// Add a group.
    Add(NewGroup),
    /// Make another one of the group with this number.
    Modify(NewGroup),
    /// Delete a group, or with `None` all, and the flows that use it.
    Delete(Option<u32>),
}

/// A group.
#[derive(Debug)]
pub struct Group {
    /// What it does.
    pub config: NewGroup,
    /// When it was added, milliseconds of the switch's clock.
    pub created_ms: u64,
    /// Packets it took.
    pub stats: FlowStats,
    /// Packets of each bucket.
    pub bucket_stats: Vec<FlowStats>,
    /// Steps of each bucket.
    pub(crate) ops: Vec<Box<[Op]>>,
}

/// Why a group-mod was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GroupError {
    /// A group of this number exists.
    #[error("group {0} exists; modify it or choose another number")]
    Exists(u32),
    /// No group of this number exists.
    #[error("there is no group {0}")]
    Unknown(u32),
    /// The number or the buckets make no group of this kind.
    #[error("group {0}: the number is reserved, or the buckets do not fit the type")]
    Invalid(u32),
    /// As many groups as fit.
    #[error("there are {limit} groups, which is the limit; delete some or raise it")]
    Full {
        /// The limit.
        limit: usize,
    },
    /// Too many buckets.
    #[error("a group has {BUCKETS_MAX} buckets at most")]
    TooManyBuckets,
    /// A bucket sends packets to a group that does not exist.
    #[error("a bucket of group {group} names group {other}, which does not exist")]
    BadChain {
        /// The group.
        group: u32,
        /// The other one.
        other: u32,
    },
    /// A bucket watches a port or group that cannot be.
    #[error("a bucket of group {0} watches what cannot be")]
    BadWatch(u32),
    /// Packets would go round for ever.
    #[error("group {0} would lead back to itself")]
    Loop(u32),
    /// Too many groups behind each other.
    #[error("more than {CHAIN_MAX} groups behind each other")]
    ChainTooLong,
    /// Another group sends packets to it.
    #[error("group {0} is used by another group; delete that one first")]
    Chained(u32),
}

/// Which buckets packets take.
enum Choice {
    All,
    One(u16),
    None,
    /// By hash of the flow.
    Places(Box<[u16]>),
}

/// A group as it works while the ports are as they are.
pub(crate) struct LiveGroup {
    pub(crate) group: Arc<Group>,
    choice: Choice,
    /// Of a select group, which buckets are live.
    alive: Vec<bool>,
}

impl LiveGroup {
    /// The buckets for a packet; `key` is asked for its key when that matters.
    pub(crate) fn buckets(&self, key: impl FnOnce() -> FlowKey) -> std::ops::Range<usize> {
        match &self.choice {
            Choice::All => 0..self.group.ops.len(),
            Choice::None => 0..0,
            Choice::One(bucket) => usize::from(*bucket)..usize::from(*bucket) + 1,
            Choice::Places(places) => {
                let place = ((flow_hash(&key()) >> 32) * places.len() as u64) >> 32;
                let bucket = usize::from(places[place as usize]);
                bucket..bucket + 1
            }
        }
    }
}

/// All groups of one moment, by number.
#[derive(Default)]
pub struct LiveGroups(Vec<(u32, Arc<LiveGroup>)>);

impl LiveGroups {
    /// The group of this number.
    pub(crate) fn get(&self, id: u32) -> Option<&LiveGroup> {
        let at = self.0.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(&self.0[at].1)
    }
}

/// The same for all packets of a flow, and for nobody to aim at.
fn flow_hash(key: &FlowKey) -> u64 {
    const FLOW: FlowKey = FlowKey::ZERO
        .with(field::ETH_TYPE, u64::MAX)
        .with(field::VLAN_VID, u64::MAX)
        .with(field::ETH_DST, u64::MAX)
        .with(field::ETH_SRC, u64::MAX)
        .with(field::IP_PROTO, u64::MAX)
        .with(field::IPV4_SRC, u64::MAX)
        .with(field::IPV4_DST, u64::MAX)
        .with(field::TP_SRC, u64::MAX)
        .with(field::TP_DST, u64::MAX)
        .with(field::IPV6_SRC_HI, u64::MAX)
        .with(field::IPV6_SRC_LO, u64::MAX)
        .with(field::IPV6_DST_HI, u64::MAX)
        .with(field::IPV6_DST_LO, u64::MAX);
    hash::words(SEED, key.masked(&FLOW).words())
}

const SEED: u64 = 0x51_7c_c1_b7_27_22_0a_95;

/// Which bucket each place of a select group leads to. Each place prefers the live buckets in an order of its own that
/// does not depend on the others, so that few flows move when a bucket comes or goes; shares are exact.
fn places(buckets: &[Bucket], live: &[bool]) -> Choice {
    let weight = |at: usize| if live[at] { u64::from(buckets[at].weight) } else { 0 };
    let total: u64 = (0..buckets.len()).map(weight).sum();
    if total == 0 {
        return Choice::None;
    }
    let count = (buckets.len() * 16).next_power_of_two().max(PLACES_MIN) as u64;
    let mut room: Vec<u64> = (0..buckets.len()).map(|at| weight(at) * count / total).collect();
    // What rounding left goes to those it took most from.
    let mut rest = count - room.iter().sum::<u64>();
    let mut by_loss: Vec<usize> = (0..buckets.len()).collect();
    by_loss.sort_by_key(|at| std::cmp::Reverse(weight(*at) * count % total));
    for at in by_loss {
        if rest == 0 {
            break;
        }
        room[at] += 1;
        rest -= 1;
    }
    let place = |place: u64| {
        let wish = |at: &usize| hash::words(SEED, &[place, *at as u64]);
        let best = (0..buckets.len()).filter(|at| room[*at] > 0).max_by_key(wish).unwrap_or(0);
        room[best] = room[best].saturating_sub(1);
        best as u16
    };
    Choice::Places((0..count).map(place).collect())
}

/// Groups by number.
pub(crate) type Groups = BTreeMap<u32, Arc<Group>>;

/// The groups and who uses them: the control side.
pub(crate) struct GroupTable {
    groups: Groups,
    /// Flows that send packets to a group.
    pub(crate) users: HashMap<u32, u32>,
    /// What groups came to at the last publication, except those that changed since.
    live: HashMap<u32, Arc<LiveGroup>>,
    limit: usize,
    workers: usize,
}

impl GroupTable {
    pub(crate) fn new(workers: usize, limit: usize) -> GroupTable {
        GroupTable { groups: BTreeMap::new(), users: HashMap::new(), live: HashMap::new(), limit, workers }
    }

    pub(crate) fn contains(&self, id: u32) -> bool {
        self.groups.contains_key(&id)
    }

    pub(crate) fn all(&self) -> &Groups {
        &self.groups
    }

    /// Takes the groups back that there were before.
    pub(crate) fn restore(&mut self, groups: Groups) {
        self.groups = groups;
        self.live.clear();
    }

    /// Carries out a change and returns the groups that it deleted, ascending.
    pub(crate) fn apply(&mut self, change: &GroupChange, now_ms: u64) -> Result<Vec<u32>, GroupError> {
        match change {
            GroupChange::Add(new) => self.add(new.clone(), now_ms).map(|()| Vec::new()),
            GroupChange::Modify(new) => self.modify(new.clone(), now_ms).map(|()| Vec::new()),
            GroupChange::Delete(id) => self.delete(*id),
        }
    }

    /// The groups, each with the number of flows and groups that use it.
    pub(crate) fn list(&self) -> Vec<(Arc<Group>, u32)> {
        let mut uses: HashMap<u32, u32> = self.users.clone();
        for group in self.groups.values() {
            for id in group.config.buckets.iter().flat_map(Bucket::chained) {
                *uses.entry(id).or_default() += 1;
            }
        }
        let used = |group: &Arc<Group>| (group.clone(), uses.get(&group.config.id).copied().unwrap_or(0));
        self.groups.values().map(used).collect()
    }

    fn add(&mut self, new: NewGroup, now_ms: u64) -> Result<(), GroupError> {
        if self.contains(new.id) {
            return Err(GroupError::Exists(new.id));
        }
        self.check(&new)?;
        if self.groups.len() >= self.limit {
            return Err(GroupError::Full { limit: self.limit });
        }
        self.put(new, now_ms);
        Ok(())
    }

    fn modify(&mut self, new: NewGroup, now_ms: u64) -> Result<(), GroupError> {
        let old = self.groups.get(&new.id).ok_or(GroupError::Unknown(new.id))?;
        let created_ms = old.created_ms.min(now_ms);
        self.check(&new)?;
        self.put(new, created_ms);
        Ok(())
    }

    /// Deletes one group, or with `None` all.
    fn delete(&mut self, id: Option<u32>) -> Result<Vec<u32>, GroupError> {
        let Some(id) = id else {
            self.live.clear();
            return Ok(std::mem::take(&mut self.groups).into_keys().collect());
        };
        let others = self.groups.values().filter(|group| group.config.id != id);
        if others.flat_map(|group| &group.config.buckets).flat_map(Bucket::chained).any(|other| other == id) {
            return Err(GroupError::Chained(id));
        }
        self.live.remove(&id);
        // One that does not exist is deleted already (6.7).
        Ok(self.groups.remove(&id).map(|group| group.config.id).into_iter().collect())
    }

    fn put(&mut self, config: NewGroup, created_ms: u64) {
        let stats = || FlowStats::new(self.workers);
        let ops = config.buckets.iter().map(|bucket| steps(&bucket.actions)).collect();
        let bucket_stats = config.buckets.iter().map(|_| stats()).collect();
        let group = Group { created_ms, stats: stats(), bucket_stats, ops, config };
        self.live.remove(&group.config.id);
        self.groups.insert(group.config.id, Arc::new(group));
    }

    fn check(&self, new: &NewGroup) -> Result<(), GroupError> {
        if new.id > ofp::group::MAX {
            return Err(GroupError::Invalid(new.id));
        }
        if new.buckets.len() > BUCKETS_MAX {
            return Err(GroupError::TooManyBuckets);
        }
        let fits = match new.kind {
            GroupKind::Indirect => new.buckets.len() == 1,
            GroupKind::FastFailover => new.buckets.iter().all(Bucket::watches),
            GroupKind::All | GroupKind::Select => true,
        };
        if !fits {
            return Err(GroupError::Invalid(new.id));
        }
        for bucket in &new.buckets {
            let port = bucket.watch_port.is_none_or(|port| is_physical(port) || port == PortNo::LOCAL);
            let group = bucket.watch_group.is_none_or(|id| id == new.id || self.contains(id));
            if !port || !group {
                return Err(GroupError::BadWatch(new.id));
            }
        }
        for other in new.buckets.iter().flat_map(Bucket::chained) {
            if other == new.id {
                return Err(GroupError::Loop(new.id));
            }
            if !self.contains(other) {
                return Err(GroupError::BadChain { group: new.id, other });
            }
        }
        let mut known = HashMap::new();
        let mut below = 0;
        for id in new.buckets.iter().flat_map(Bucket::chained) {
            below = below.max(self.depth(id, new.id, &mut known)?);
        }
        // Nothing can lead to a group that was not there.
        let above = if self.contains(new.id) { self.height(new.id) } else { 0 };
        if above + 1 + below > CHAIN_MAX { Err(GroupError::ChainTooLong) } else { Ok(()) }
    }

    /// Groups behind each other from `id` on; it is an error if `target` is among them. `known`: what was found out
    /// before, so that each group is looked at once however the groups branch.
    fn depth(&self, id: u32, target: u32, known: &mut HashMap<u32, usize>) -> Result<usize, GroupError> {
        if id == target {
            return Err(GroupError::Loop(target));
        }
        if let Some(depth) = known.get(&id) {
            return Ok(*depth);
        }
        let mut depth = 1;
        // No deeper than CHAIN_MAX: these groups were checked when they were added.
        for next in
            self.groups.get(&id).into_iter().flat_map(|group| &group.config.buckets).flat_map(Bucket::chained)
        {
            depth = depth.max(1 + self.depth(next, target, known)?);
        }
        known.insert(id, depth);
        Ok(depth)
    }

    /// Groups behind each other that lead to `id`.
    fn height(&self, id: u32) -> usize {
        let mut above: HashMap<u32, Vec<u32>> = HashMap::new();
        for group in self.groups.values() {
            for other in group.config.buckets.iter().flat_map(Bucket::chained) {
                let leads = above.entry(other).or_default();
                if leads.last() != Some(&group.config.id) {
                    leads.push(group.config.id);
                }
            }
        }
        // Level by level: the chains are short, whatever their number.
        let mut level = vec![id];
        for height in 0..CHAIN_MAX {
            level = level.iter().filter_map(|id| above.get(id)).flatten().copied().collect();
            level.sort_unstable();
            level.dedup();
            if level.is_empty() {
                return height;
            }
        }
        CHAIN_MAX
    }

    /// What the groups come to with these ports. Only groups that changed or watch something are looked at.
    pub(crate) fn live(&mut self, ports: &Ports) -> LiveGroups {
        let mut known = HashMap::new();
        for group in self.groups.values() {
            let buckets = &group.config.buckets;
            let watches = buckets.iter().any(Bucket::watches);
            if !watches && self.live.contains_key(&group.config.id) {
                continue;
            }
            let mut live = |bucket: &Bucket| self.is_live(bucket, ports, &mut known);
            let choice = match group.config.kind {
                GroupKind::All => Choice::All,
                GroupKind::Indirect => Choice::One(0),
                GroupKind::FastFailover => {
                    buckets.iter().position(live).map_or(Choice::None, |at| Choice::One(at as u16))
                }
                GroupKind::Select => {
                    let live: Vec<bool> = buckets.iter().map(&mut live).collect();
                    match self.live.get(&group.config.id) {
                        // Its ports are as they were.
                        Some(before) if before.alive == live => continue,
                        _ => {
                            let choice = places(buckets, &live);
                            let entry = LiveGroup { group: group.clone(), choice, alive: live };
                            self.live.insert(group.config.id, Arc::new(entry));
                            continue;
                        }
                    }
                }
            };
            let entry = LiveGroup { group: group.clone(), choice, alive: Vec::new() };
            self.live.insert(group.config.id, Arc::new(entry));
        }
        LiveGroups(self.groups.keys().filter_map(|id| Some((*id, self.live.get(id)?.clone()))).collect())
    }

    /// 6.5: a bucket is live if what it watches is; one that watches nothing is. `known`: groups that were looked at.
    fn is_live(&self, bucket: &Bucket, ports: &Ports, known: &mut HashMap<u32, bool>) -> bool {
        if !bucket.watches() {
            return true;
        }
        let port = bucket.watch_port.and_then(|port| ports.get(port)).is_some_and(|port| port.is_live());
        port || bucket.watch_group.is_some_and(|id| self.is_group_live(id, ports, known))
    }

    fn is_group_live(&self, id: u32, ports: &Ports, known: &mut HashMap<u32, bool>) -> bool {
        if let Some(live) = known.get(&id) {
            return *live;
        }
        let buckets = self.groups.get(&id).map_or(&[][..], |group| &group.config.buckets);
        let live = buckets.iter().any(|bucket| self.is_live(bucket, ports, known));
        known.insert(id, live);
        live
    }
}

/// The steps of a bucket: its actions in the order of an action set.
fn steps(actions: &[Action]) -> Box<[Op]> {
    let mut set = ActionSet::default();
    actions.iter().for_each(|action| set.write(*action));
    pipeline::steps_of_bucket(&set).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PortConfig, VlanMode};
    use packet::MacAddr;

    fn bucket(weight: u16, actions: Vec<Action>) -> Bucket {
        Bucket { weight, watch_port: None, watch_group: None, actions }
    }

    fn to(port: u32) -> Action {
        Action::Output { port: PortNo(port), max_len: 0 }
    }

    fn group(id: u32, kind: GroupKind, buckets: Vec<Bucket>) -> NewGroup {
        let wire = ofp::GroupDesc { kind: ofp::GroupType::All, group_id: id, buckets: Vec::new() };
        NewGroup { id, kind, buckets, wire }
    }

    fn ports(up: &[u32]) -> Ports {
        Ports::new((1..=4).map(|number| {
            Arc::new(PortConfig {
                ofport: PortNo(number),
                name: format!("p{number}"),
                mac: MacAddr([2; 6]),
                vlan: VlanMode::Access(0),
                mtu: 1500,
                link_up: up.contains(&number),
                speed_kbps: 0,
                config: ofp::PortConfig(0),
            })
        }))
    }

    fn shares(live: &LiveGroup, buckets: usize) -> Vec<usize> {
        let mut shares = vec![0; buckets];
        for flow in 0..30_000 {
            let key = FlowKey::ZERO.with(field::IPV4_SRC, flow).with(field::ETH_TYPE, 0x0800);
            let chosen = live.buckets(|| key);
            assert_eq!(chosen.len(), 1);
            assert_eq!(live.buckets(|| key), chosen, "a flow stays");
            shares[chosen.start] += 1;
        }
        shares
    }

    #[test]
    fn select_shares_by_weight_among_live_buckets() {
        let mut table = GroupTable::new(1, 8);
        let watched =
            |weight, port| Bucket { watch_port: Some(PortNo(port)), ..bucket(weight, vec![to(port)]) };
        let buckets = vec![watched(1, 1), watched(2, 2), watched(1, 3)];
        table.add(group(1, GroupKind::Select, buckets), 1).unwrap();
        let near = |shares: Vec<usize>, wanted: &[usize]| {
            for (share, wanted) in shares.iter().zip(wanted) {
                assert!(share.abs_diff(*wanted) <= 700, "{shares:?}, wanted {wanted}");
            }
        };
        let live = table.live(&ports(&[1, 2, 3]));
        near(shares(live.get(1).unwrap(), 3), &[7500, 15_000, 7500]);
        let live = table.live(&ports(&[1, 3]));
        near(shares(live.get(1).unwrap(), 3), &[15_000, 0, 15_000]);
        let live = table.live(&ports(&[]));
        assert!(live.get(1).unwrap().buckets(|| FlowKey::ZERO).is_empty());
    }

    #[test]
    fn failover_takes_the_first_live_bucket() {
        let mut table = GroupTable::new(1, 8);
        let unwatched = group(9, GroupKind::FastFailover, vec![bucket(0, vec![])]);
        assert_eq!(table.add(unwatched, 1), Err(GroupError::Invalid(9)));
        let watch = |port| Bucket { watch_port: Some(PortNo(port)), ..bucket(0, vec![to(port)]) };
        table.add(group(1, GroupKind::FastFailover, vec![watch(1), watch(2)]), 1).unwrap();
        let follow = Bucket { watch_group: Some(1), ..bucket(0, vec![Action::Group(1)]) };
        table.add(group(2, GroupKind::FastFailover, vec![follow, watch(3)]), 1).unwrap();
        let mut chosen = |up: &[u32], id| table.live(&ports(up)).get(id).unwrap().buckets(|| FlowKey::ZERO);
        assert_eq!(chosen(&[1, 2], 1), 0..1);
        assert_eq!(chosen(&[2], 1), 1..2);
        assert!(chosen(&[3], 1).is_empty());
        assert_eq!(chosen(&[2, 3], 2), 0..1);
        assert_eq!(chosen(&[3], 2), 1..2);
    }

    #[test]
    fn groups_that_branch_and_join_stay_cheap() {
        // Each of 24 groups leads to all 24 of the layer below: a walk along every way would never end.
        let mut table = GroupTable::new(1, 1000);
        for layer in 0..CHAIN_MAX as u32 {
            for at in 0..24 {
                let below = |other| Bucket {
                    watch_group: Some((layer - 1) * 100 + other),
                    ..bucket(1, vec![Action::Group((layer - 1) * 100 + other)])
                };
                let first = || vec![Bucket { watch_port: Some(PortNo(1)), ..bucket(1, vec![to(1)]) }];
                let buckets = if layer == 0 { first() } else { (0..24).map(below).collect() };
                table.add(group(layer * 100 + at, GroupKind::Select, buckets), 1).unwrap();
            }
        }
        let top = (CHAIN_MAX as u32 - 1) * 100;
        let too_deep = group(9999, GroupKind::All, vec![bucket(0, vec![Action::Group(top)])]);
        assert_eq!(table.add(too_deep, 1), Err(GroupError::ChainTooLong));
        assert_eq!(table.live(&ports(&[1])).get(top).unwrap().buckets(|| FlowKey::ZERO).len(), 1);
        assert_eq!(table.live(&ports(&[2])).get(top).unwrap().buckets(|| FlowKey::ZERO).len(), 0);
        assert_eq!(table.live(&ports(&[1])).get(top).unwrap().buckets(|| FlowKey::ZERO).len(), 1);
        let upside_down = group(0, GroupKind::All, vec![bucket(0, vec![Action::Group(top)])]);
        assert_eq!(table.modify(upside_down, 1), Err(GroupError::Loop(0)));
    }

    #[test]
    fn what_makes_no_group_is_refused() {
        let mut table = GroupTable::new(1, 10);
        let plain = |id| group(id, GroupKind::All, vec![bucket(0, vec![to(1)])]);
        let chain = |id, other| group(id, GroupKind::All, vec![bucket(0, vec![Action::Group(other)])]);
        assert_eq!(table.add(plain(ofp::group::ALL), 1), Err(GroupError::Invalid(ofp::group::ALL)));
        assert_eq!(table.add(plain(1), 1), Ok(()));
        assert_eq!(table.add(plain(1), 1), Err(GroupError::Exists(1)));
        assert_eq!(table.modify(plain(2), 1), Err(GroupError::Unknown(2)));
        assert_eq!(table.add(group(3, GroupKind::Indirect, vec![]), 1), Err(GroupError::Invalid(3)));
        assert_eq!(table.add(chain(3, 7), 1), Err(GroupError::BadChain { group: 3, other: 7 }));
        assert_eq!(table.add(chain(3, 3), 1), Err(GroupError::Loop(3)));
        assert_eq!(table.add(chain(3, 1), 1), Ok(()));
        assert_eq!(table.modify(chain(1, 3), 1), Err(GroupError::Loop(1)));
        assert_eq!(table.delete(Some(1)), Err(GroupError::Chained(1)));
        let many = vec![bucket(0, vec![]); BUCKETS_MAX + 1];
        assert_eq!(table.add(group(4, GroupKind::All, many), 1), Err(GroupError::TooManyBuckets));
        for id in 4..10 {
            assert_eq!(table.add(chain(id, id - 1), 1), Ok(()), "{id}");
        }
        assert_eq!(table.add(chain(10, 9), 1), Err(GroupError::ChainTooLong));
        assert_eq!(table.add(plain(10), 1), Ok(()));
        assert_eq!(table.modify(chain(1, 10), 1), Err(GroupError::ChainTooLong), "seen from the other end");
        assert_eq!(table.add(plain(11), 1), Ok(()));
        assert_eq!(table.add(plain(12), 1), Err(GroupError::Full { limit: 10 }));
        assert_eq!(table.delete(Some(77)), Ok(vec![]));
        assert_eq!(table.delete(None).unwrap().len(), 10);
    }
}
