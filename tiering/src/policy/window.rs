//! How much a miss brings along, and which streams are not worth it.
//!
//! A miss fills a window of 128 KiB around it. A miss where one of the last fills ended is a stream: its window is
//! 512 KiB. A stream that has gone on for long is read past the hot tier: it would push out what is used, and the
//! cold tier is good at streams.

use crate::types::UNIT_BYTES;
use std::collections::VecDeque;

/// Bytes a lone miss fills.
pub const WINDOW_BYTES: u64 = 128 << 10;
/// Bytes a miss that continues a fill brings in.
pub const STREAM_WINDOW_BYTES: u64 = 512 << 10;
/// Fills that are remembered.
pub const STREAMS_MAX: usize = 32;

/// What to do with a miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Promote these bytes of the volume.
    Fill {
        /// First byte.
        start: u64,
        /// First byte after.
        end: u64,
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
}

impl Windows {
    /// Streams longer than `bypass_bytes` are not promoted.
    pub fn new(bypass_bytes: u64) -> Self {
        Windows { streams: VecDeque::with_capacity(STREAMS_MAX), bypass_bytes }
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
        let bypass = gone_by >= self.bypass_bytes && !write;
        let reach = if bypass { end } else { fill_end };
        let bytes = gone_by + reach.saturating_sub(before.map_or(start, |stream| stream.end));
        if self.streams.len() == STREAMS_MAX {
            self.streams.pop_front();
        }
        self.streams.push_back(Stream { volume, end: reach, bytes });
        if bypass { Decision::Bypass } else { Decision::Fill { start, end: fill_end } }
    }
}
