//! What the store may move for itself: bytes a second, and a share of all bytes while guests are at work.
//!
//! Promotion, write-back and demotion ask here first and do without if the answer is no: a miss is then served from cold,
//! a write finds no hot slot and goes to cold. Only what a guest's own request cannot do without (the rest of a page that
//! it writes in part) is not asked for, and still counts.

use super::Store;
use crate::types::{Tuning, UNIT_BYTES};

/// Guests that asked for nothing so long are not at work, ns.
const QUIET_NS: u64 = 100_000_000;

#[derive(Debug)]
pub(super) struct Budget {
    bytes_per_s: u64,
    share_percent: u64,
    /// The most that may be saved up: a tenth of a second, and always one group.
    most: u64,
    group_bytes: u64,
    by_rate: u64,
    by_share: u64,
    last_guest_ns: u64,
}

impl Budget {
    pub fn new(tuning: &Tuning, now_ns: u64) -> Budget {
        let mut budget = Budget {
            bytes_per_s: 0,
            share_percent: 100,
            most: 0,
            group_bytes: tuning.group_bytes.max(UNIT_BYTES),
            by_rate: 0,
            by_share: 0,
            last_guest_ns: now_ns.saturating_sub(QUIET_NS),
        };
        budget.set(tuning.migration_bytes_per_s, tuning.migration_share_percent);
        budget.by_rate = budget.group_bytes;
        budget
    }

    fn set(&mut self, bytes_per_s: u64, share_percent: u32) {
        self.bytes_per_s = bytes_per_s;
        self.share_percent = u64::from(share_percent.clamp(1, 100));
        self.most = (bytes_per_s / 10).max(self.group_bytes);
        self.by_rate = self.by_rate.min(self.most);
    }

    pub fn tick(&mut self, passed_ns: u64) {
        let earned = u128::from(self.bytes_per_s) * u128::from(passed_ns) / 1_000_000_000;
        self.by_rate = self.by_rate.saturating_add(earned as u64).min(self.most);
    }

    /// A guest's request of so many bytes.
    pub fn guest(&mut self, bytes: u64, now_ns: u64) {
        self.last_guest_ns = now_ns;
        if self.share_percent < 100 {
            let earned = bytes * self.share_percent / (100 - self.share_percent);
            self.by_share = (self.by_share + earned).min(self.group_bytes);
        }
    }

    pub fn allows(&self, bytes: u64, now_ns: u64) -> bool {
        let rate = self.bytes_per_s == u64::MAX || self.by_rate >= bytes;
        let quiet = now_ns.saturating_sub(self.last_guest_ns) >= QUIET_NS;
        rate && (self.share_percent == 100 || quiet || self.by_share >= bytes)
    }

    pub fn spend(&mut self, bytes: u64) {
        self.by_rate = self.by_rate.saturating_sub(bytes);
        self.by_share = self.by_share.saturating_sub(bytes);
    }
}

impl Store {
    /// Changes what the store may move for itself: see [`Tuning::migration_bytes_per_s`] and
    /// [`Tuning::migration_share_percent`].
    pub fn set_migration(&mut self, bytes_per_s: u64, share_percent: u32) {
        self.budget.set(bytes_per_s, share_percent);
        self.room_wanted = true;
        self.pump();
    }
}
