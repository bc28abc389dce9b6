//! Group-mods and what is told of groups.

use ofp::{
    BucketCounter, ErrorCode, GroupDesc, GroupFeatures, GroupMod, GroupModCommand, GroupStats, GroupType,
};

use super::{actions, convert, replies};
use crate::bridge::Bridge;
use crate::groups::{Bucket, GroupChange, GroupError, GroupKind, NewGroup};
use crate::model::PortNo;

/// The change that a group-mod asks for.
///
/// # Errors
/// The code to answer with.
pub fn change(request: &GroupMod) -> Result<GroupChange, ErrorCode> {
    Ok(match request.command {
        GroupModCommand::Add => GroupChange::Add(group(request)?),
        GroupModCommand::Modify => GroupChange::Modify(group(request)?),
        GroupModCommand::Delete => {
            GroupChange::Delete((request.group_id != ofp::group::ALL).then_some(request.group_id))
        }
    })
}

fn group(request: &GroupMod) -> Result<NewGroup, ErrorCode> {
    let bucket = |wire: &ofp::Bucket| {
        let watch_port = wire.watch_port;
        Ok(Bucket {
            weight: wire.weight,
            watch_port: (watch_port != PortNo::ANY).then_some(watch_port),
            watch_group: (wire.watch_group != ofp::group::ANY).then_some(wire.watch_group),
            actions: actions::bucket(&wire.actions)?,
        })
    };
    let kind = match request.kind {
        GroupType::All => GroupKind::All,
        GroupType::Select => GroupKind::Select,
        GroupType::Indirect => GroupKind::Indirect,
        GroupType::FastFailover => GroupKind::FastFailover,
    };
    let id = request.group_id;
    let wire = GroupDesc { kind: request.kind, group_id: id, buckets: request.buckets.clone() };
    let buckets = request.buckets.iter().map(bucket).collect::<Result<_, ErrorCode>>()?;
    Ok(NewGroup { id, kind, buckets, wire })
}

/// The code for a refused change.
pub fn code(error: GroupError) -> ErrorCode {
    match error {
        GroupError::Exists(_) => ErrorCode::GROUP_EXISTS,
        GroupError::Unknown(_) => ErrorCode::UNKNOWN_GROUP,
        GroupError::Invalid(_) => ErrorCode::INVALID_GROUP,
        GroupError::Full { .. } => ErrorCode::OUT_OF_GROUPS,
        GroupError::TooManyBuckets => ErrorCode::OUT_OF_BUCKETS,
        GroupError::BadChain { .. } => ErrorCode::ACTION_BAD_OUT_GROUP,
        GroupError::BadWatch(_) => ErrorCode::GROUP_BAD_WATCH,
        GroupError::Loop(_) => ErrorCode::GROUP_LOOP,
        GroupError::ChainTooLong => ErrorCode::GROUP_CHAINING_UNSUPPORTED,
        GroupError::Chained(_) => ErrorCode::CHAINED_GROUP,
    }
}

/// Statistics of one group or of all; of one that does not exist there are none.
pub fn stats(bridge: &Bridge, wanted: u32) -> Vec<GroupStats> {
    let now_ms = bridge.clock().now_ms();
    let groups = bridge.groups();
    let wanted = groups.iter().filter(|(group, _)| wanted == ofp::group::ALL || group.config.id == wanted);
    let stats = wanted.map(|(group, ref_count)| {
        let counters = group.stats.sum();
        let (duration_sec, duration_nsec) = convert::duration(now_ms.saturating_sub(group.created_ms));
        let bucket = |stats: &crate::flow::FlowStats| {
            let counters = stats.sum();
            BucketCounter { packet_count: counters.packets, byte_count: counters.bytes }
        };
        GroupStats {
            group_id: group.config.id,
            ref_count: *ref_count,
            packet_count: counters.packets,
            byte_count: counters.bytes,
            duration_sec,
            duration_nsec,
            buckets: group.bucket_stats.iter().map(bucket).collect(),
        }
    });
    stats.collect()
}

/// The groups as they were sent.
pub fn descriptions(bridge: &Bridge) -> Vec<GroupDesc> {
    bridge.groups().into_iter().map(|(group, _)| group.config.wire.clone()).collect()
}

/// What groups can do: all types, weights, liveness, chains that are checked for loops.
pub fn features(bridge: &Bridge) -> GroupFeatures {
    let actions = replies::ACTIONS.iter().fold(0, |bits, number| bits | 1 << number);
    let limit = bridge.config().group_limit.min(u32::MAX as usize) as u32;
    GroupFeatures { types: 0xf, capabilities: 0xf, max_groups: [limit; 4], actions: [actions; 4] }
}
