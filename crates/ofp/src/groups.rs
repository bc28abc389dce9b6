//! Groups: modification, description, statistics, features.

use crate::action::Action;
use crate::error::{DecodeError, ErrorCode};
use crate::types::PortNo;
use crate::wire::{Reader, Wire, Writer};

/// Reserved group numbers (`OFPG_*`).
pub mod group {
    /// The highest number of a group.
    pub const MAX: u32 = 0xffff_ff00;
    /// Every group (delete, statistics).
    pub const ALL: u32 = 0xffff_fffc;
    /// No group: wildcard in requests.
    pub const ANY: u32 = 0xffff_ffff;
}

wire_enum! {
    /// What a group-mod does (`OFPGC_*`).
    GroupModCommand: u16 {
        /// New group.
        Add = 0,
        /// Change type and buckets.
        Modify = 1,
        /// Delete.
        Delete = 2,
    }
}

wire_enum! {
    /// How a group treats its buckets (`OFPGT_*`).
    GroupType: u8 {
        /// A copy of the packet for each bucket.
        All = 0,
        /// One bucket, chosen by weight.
        Select = 1,
        /// The only bucket.
        Indirect = 2,
        /// The first live bucket.
        FastFailover = 3,
    }
}

/// One bucket of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bucket {
    /// Relative weight; for select groups.
    pub weight: u16,
    /// The port whose state says whether the bucket is live, or `ANY`.
    pub watch_port: PortNo,
    /// The group whose state says whether the bucket is live, or [`group::ANY`].
    pub watch_group: u32,
    /// The actions, as an action set.
    pub actions: Vec<Action>,
}

impl Wire for Bucket {
    fn put(&self, w: &mut Writer<'_>) {
        let start = w.at();
        w.u16(0);
        w.u16(self.weight);
        self.watch_port.put(w);
        w.u32(self.watch_group);
        w.zeros(4);
        w.list(&self.actions);
        w.patch_len(start, start);
    }

    fn get(outer: &mut Reader<'_>) -> Result<Bucket, DecodeError> {
        let mut r = outer.sized("bucket")?;
        let (weight, watch_port, watch_group) = (r.u16()?, PortNo::get(&mut r)?, r.u32()?);
        r.skip(4)?;
        Ok(Bucket { weight, watch_port, watch_group, actions: r.list()? })
    }
}

fn group_type(number: u8) -> Result<GroupType, DecodeError> {
    GroupType::from_number(number).ok_or(DecodeError::new(ErrorCode::GROUP_BAD_TYPE, "group type"))
}

/// `OFPT_GROUP_MOD` (7.3.4.2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupMod {
    /// What to do.
    pub command: GroupModCommand,
    /// The kind of group.
    pub kind: GroupType,
    /// Its number; [`group::ALL`] for delete.
    pub group_id: u32,
    /// Its buckets.
    pub buckets: Vec<Bucket>,
}

impl Wire for GroupMod {
    fn put(&self, w: &mut Writer<'_>) {
        w.u16(self.command.number());
        w.u8(self.kind.number());
        w.zeros(1);
        w.u32(self.group_id);
        w.list(&self.buckets);
    }

    fn get(r: &mut Reader<'_>) -> Result<GroupMod, DecodeError> {
        let command = GroupModCommand::from_number(r.u16()?)
            .ok_or(DecodeError::new(ErrorCode::GROUP_BAD_COMMAND, "group-mod command"))?;
        let kind = group_type(r.u8()?)?;
        r.skip(1)?;
        let group_id = r.u32()?;
        let len = r.len();
        let buckets = r.part(len, ErrorCode::GROUP_BAD_BUCKET, "bucket")?.list()?;
        Ok(GroupMod { command, kind, group_id, buckets })
    }
}

/// One entry of a group description reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupDesc {
    /// The kind of group.
    pub kind: GroupType,
    /// Its number.
    pub group_id: u32,
    /// Its buckets.
    pub buckets: Vec<Bucket>,
}

impl Wire for GroupDesc {
    fn put(&self, w: &mut Writer<'_>) {
        let start = w.at();
        w.u16(0);
        w.u8(self.kind.number());
        w.zeros(1);
        w.u32(self.group_id);
        w.list(&self.buckets);
        w.patch_len(start, start);
    }

    fn get(outer: &mut Reader<'_>) -> Result<GroupDesc, DecodeError> {
        let mut r = outer.sized("group description")?;
        let kind = group_type(r.u8()?)?;
        r.skip(1)?;
        Ok(GroupDesc { kind, group_id: r.u32()?, buckets: r.list()? })
    }
}

/// Counters of one bucket.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct BucketCounter {
    /// Packets.
    pub packet_count: u64,
    /// Bytes.
    pub byte_count: u64,
}

impl Wire for BucketCounter {
    fn put(&self, w: &mut Writer<'_>) {
        w.u64(self.packet_count);
        w.u64(self.byte_count);
    }

    fn get(r: &mut Reader<'_>) -> Result<BucketCounter, DecodeError> {
        Ok(BucketCounter { packet_count: r.u64()?, byte_count: r.u64()? })
    }
}

/// One entry of a group statistics reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupStats {
    /// Its number.
    pub group_id: u32,
    /// Flow entries and groups that use it.
    pub ref_count: u32,
    /// Packets it processed.
    pub packet_count: u64,
    /// Their bytes.
    pub byte_count: u64,
    /// Whole seconds it lives.
    pub duration_sec: u32,
    /// Nanoseconds beyond those.
    pub duration_nsec: u32,
    /// Counters of its buckets.
    pub buckets: Vec<BucketCounter>,
}

impl Wire for GroupStats {
    fn put(&self, w: &mut Writer<'_>) {
        let start = w.at();
        w.u16(0);
        w.zeros(2);
        w.u32(self.group_id);
        w.u32(self.ref_count);
        w.zeros(4);
        w.u64(self.packet_count);
        w.u64(self.byte_count);
        w.u32(self.duration_sec);
        w.u32(self.duration_nsec);
        w.list(&self.buckets);
        w.patch_len(start, start);
    }

    fn get(outer: &mut Reader<'_>) -> Result<GroupStats, DecodeError> {
        let mut r = outer.sized("group statistics entry")?;
        r.skip(2)?;
        let (group_id, ref_count) = (r.u32()?, r.u32()?);
        r.skip(4)?;
        Ok(GroupStats {
            group_id,
            ref_count,
            packet_count: r.u64()?,
            byte_count: r.u64()?,
            duration_sec: r.u32()?,
            duration_nsec: r.u32()?,
            buckets: r.list()?,
        })
    }
}

/// What a switch can do with groups (7.3.5.11). Arrays are indexed by [`GroupType`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct GroupFeatures {
    /// Bit per group type.
    pub types: u32,
    /// `OFPGFC_*`: 1 weights, 2 liveness, 4 chaining, 8 loop check of chaining.
    pub capabilities: u32,
    /// Groups of each type at most.
    pub max_groups: [u32; 4],
    /// Bit per action number, for each type.
    pub actions: [u32; 4],
}

impl Wire for GroupFeatures {
    fn put(&self, w: &mut Writer<'_>) {
        w.u32(self.types);
        w.u32(self.capabilities);
        self.max_groups.iter().chain(&self.actions).for_each(|&n| w.u32(n));
    }

    fn get(r: &mut Reader<'_>) -> Result<GroupFeatures, DecodeError> {
        let (types, capabilities) = (r.u32()?, r.u32()?);
        let mut four = || Ok::<_, DecodeError>([r.u32()?, r.u32()?, r.u32()?, r.u32()?]);
        Ok(GroupFeatures { types, capabilities, max_groups: four()?, actions: four()? })
    }
}
