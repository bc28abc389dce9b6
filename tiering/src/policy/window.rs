//! How much a miss brings along, and which streams are not worth it.
//!
//! A miss fills a window of 128 KiB around it. A miss where one of the last fills ended is a stream: its window is
//! 512 KiB, and once it is longer than a few windows what it brings is marked as passing. A stream that has gone on for very
//! long is read past the hot tier, which is what the cold tier is good at, unless one passed by there before: who comes
//! back gets its windows.

use super::list::Ghosts;
use super::two_queue::SMALL_SLOTS;
use crate::types::UNIT_BYTES;
use std::collections::VecDeque;

/// Bytes a lone miss fills.
pub const WINDOW_BYTES: u64 = 128 << 10;
/// Bytes a miss that continues a fill brings in.
pub const STREAM_WINDOW_BYTES: u64 = 512 << 10;
/// Fills that are remembered.
pub const STREAMS_MAX: usize = 32;
/// From this length on what a stream brings in is passing.
const PASSING_BYTES: u64 = 2 << 20;
/// Grain in which it is remembered where streams went past the hot tier.
const REGION_BYTES: u64 = 1 << 20;

/// What to do with a miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Promote these bytes of the volume.
    Fill {
        /// First byte.
        start: u64,
        /// First byte after.
        end: u64,
        /// They belong to a long stream: [`super::Policy::insert_passing`].
        passing: bool,
    },
    /// Serve it from the cold tier.
    Bypass,
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    volume: u32,
    end: u64,
    bytes: u64,
}

/// Remembers where the last fills ended.
#[derive(Debug)]
pub struct Windows {
    streams: VecDeque<Stream>,
    bypass_bytes: u64,
    bypass_max: u64,
    /// Where streams went past the hot tier.
    passed: Ghosts,
    /// Where one does now: known when it has left.
    passing: Option<u64>,
}

impl Windows {
    /// Streams longer than `bypass_bytes`, or than about half of the hot tier of so many slots, are not promoted. A tiny
    /// hot tier is hardly more than a buffer to read ahead, and stays one.
    pub fn new(bypass_bytes: u64, slots: u32) -> Self {
        let mut windows = Windows {
            streams: VecDeque::with_capacity(STREAMS_MAX),
            bypass_bytes: 0,
            bypass_max: bypass_bytes,
            passed: Ghosts::new(1),
            passing: None,
        };
        windows.grow(slots);
        windows
    }

    /// The hot tier has so many slots from now on.
    pub fn grow(&mut self, slots: u32) {
        let share = if slots < SMALL_SLOTS { u64::MAX } else { u64::from(slots) * UNIT_BYTES / 100 * 48 };
        self.bypass_bytes = self.bypass_max.min(share);
        self.passed.grow(slots.max(1) as usize);
    }

    /// Decides on a miss of `len` bytes at `offset`. A write never goes past the hot tier: its data is new.
    pub fn miss(&mut self, volume: u32, offset: u64, len: u64, write: bool) -> Decision {
        let end = offset + len;
        let goes_on = |stream: &Stream| {
            stream.volume == volume && offset <= stream.end && end > stream.end.saturating_sub(WINDOW_BYTES)
        };
        let known = self.streams.iter().rposition(goes_on);
        let before = known.and_then(|at| self.streams.remove(at));
        let start = offset - offset % UNIT_BYTES;
        let fill_end = match before {
            Some(_) => (start + STREAM_WINDOW_BYTES).max(end),
            None => (start + WINDOW_BYTES).max(end),
        };
        let gone_by = before.map_or(0, |stream| stream.bytes);
        let bypass = gone_by >= self.bypass_bytes && !write && !self.comes_back(volume, offset);
        let reach = if bypass { end } else { fill_end };
        let bytes = gone_by + reach.saturating_sub(before.map_or(start, |stream| stream.end));
        if self.streams.len() == STREAMS_MAX {
            self.streams.pop_front();
        }
        self.streams.push_back(Stream { volume, end: reach, bytes });
        let passing = gone_by >= PASSING_BYTES && !write;
        if bypass { Decision::Bypass } else { Decision::Fill { start, end: fill_end, passing } }
    }

    /// Whether a stream has been here before; if not, one has now.
    fn comes_back(&mut self, volume: u32, offset: u64) -> bool {
        // A volume has fewer than 2^30 regions.
        let region = (u64::from(volume) << 30) + offset / REGION_BYTES;
        if self.passing != Some(region) {
            self.passing.replace(region).into_iter().for_each(|left| self.passed.add(left));
        }
        self.passed.knows(region)
    }
}
