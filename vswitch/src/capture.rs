//! Capturing what goes through a port, for people who look with tcpdump or Wireshark: the frames, which way they
//! went, and why those that went nowhere did.
//!
//! Workers put copies into a bounded queue and never wait: what finds it full is counted and told in the file. While
//! nothing is captured, a worker pays one look at an empty list for each burst.

mod pcapng;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Bytes, HttpBody};
use http_body::Frame;
use packet::{FlowKey, parse};
use tokio::sync::mpsc;

use crate::model::{DropReason, PortNo};

/// Frames that may wait for the reader.
const QUEUE_FRAMES: usize = 4096;
/// Bytes of frames that may wait for the reader.
const QUEUE_BYTES: usize = 8 << 20;
/// Bytes of a frame that are kept unless told otherwise: all that a frame can have.
pub const FRAME_BYTES_DEFAULT: u32 = 262_144;
/// Frames that are written at once.
const FRAMES_AT_ONCE: usize = 256;

/// What to capture.
#[derive(Clone, Debug)]
pub struct CaptureSpec {
    /// Name of the port, for the reader.
    pub name: String,
    /// The port.
    pub port: PortNo,
    /// Only frames that were dropped.
    pub drops: bool,
    /// Only frames whose key, under the mask, is this.
    pub filter: (FlowKey, FlowKey),
    /// Bytes of a frame to keep.
    pub frame_bytes_max: u32,
}

/// Which way a frame went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    /// From the port.
    Rx,
    /// To the port.
    Tx,
}

/// A frame that was seen.
#[derive(Debug)]
pub(crate) struct Seen {
    at: Duration,
    direction: Direction,
    bytes: Box<[u8]>,
    /// Bytes of the frame, of which some may be missing.
    total: u32,
    drops: Box<[DropReason]>,
    /// Frames before this one that found no room.
    lost: u64,
}

/// A worker's end of a capture.
pub(crate) struct Tap {
    /// Tells it from others.
    pub(crate) id: u64,
    pub(crate) spec: CaptureSpec,
    queue: mpsc::Sender<Seen>,
    queued_bytes: Arc<AtomicUsize>,
    lost: AtomicU64,
}

impl Tap {
    /// Whether frames of `port` are of interest.
    pub(crate) fn wants(&self, port: PortNo) -> bool {
        self.spec.port == port
    }

    /// Takes a frame that went to or came from the port. `drops`: why it, or copies of it, went nowhere.
    pub(crate) fn see(&self, direction: Direction, frame: &[u8], drops: &[DropReason]) {
        if self.spec.drops && drops.is_empty() {
            return;
        }
        let (key, mask) = &self.spec.filter;
        if !parse(frame, self.spec.port.0).matches(key, mask) {
            return;
        }
        let kept = frame.len().min(self.spec.frame_bytes_max as usize);
        let room = self.queued_bytes.fetch_add(kept, Ordering::Relaxed) + kept <= QUEUE_BYTES;
        let place = if room { self.queue.try_reserve().ok() } else { None };
        let Some(place) = place else {
            self.queued_bytes.fetch_sub(kept, Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        };
        place.send(Seen {
            at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            direction,
            bytes: frame[..kept].into(),
            total: frame.len() as u32,
            drops: drops.into(),
            lost: self.lost.swap(0, Ordering::Relaxed),
        });
    }
}

/// The reader's end: the bytes of a pcapng file that has no end. Dropping it ends the capture.
pub struct Capture {
    head: Option<Vec<u8>>,
    seen: mpsc::Receiver<Seen>,
    queued_bytes: Arc<AtomicUsize>,
    end: Option<Box<dyn FnOnce() + Send>>,
}

/// Both ends of a capture. `end` is called when the reader's end is dropped.
pub(crate) fn capture(
    id: u64,
    spec: CaptureSpec,
    end: impl FnOnce() + Send + 'static,
) -> (Arc<Tap>, Capture) {
    let (sender, receiver) = mpsc::channel(QUEUE_FRAMES);
    let queued_bytes = Arc::new(AtomicUsize::new(0));
    let head = Some(pcapng::head(&spec.name, spec.frame_bytes_max));
    let capture =
        Capture { head, seen: receiver, queued_bytes: queued_bytes.clone(), end: Some(Box::new(end)) };
    (Arc::new(Tap { id, spec, queue: sender, queued_bytes, lost: AtomicU64::new(0) }), capture)
}

impl HttpBody for Capture {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(head) = self.head.take() {
            return Poll::Ready(Some(Ok(Frame::data(head.into()))));
        }
        let mut seen = Vec::new();
        match self.seen.poll_recv_many(context, &mut seen, FRAMES_AT_ONCE) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(0) => Poll::Ready(None),
            Poll::Ready(_) => {
                let mut bytes = Vec::new();
                for frame in seen {
                    self.queued_bytes.fetch_sub(frame.bytes.len(), Ordering::Relaxed);
                    pcapng::frame(&frame, &mut bytes);
                }
                Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
            }
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame_words::FrameWords;
    use crate::openflow::convert::key_and_mask;
    use telemetry::check::Errors;

    fn spec(filter: &str, drops: bool) -> CaptureSpec {
        let words = FrameWords::parse(filter, "filter", &mut Errors::new()).expect("a filter");
        CaptureSpec {
            name: "p1".to_string(),
            port: PortNo(1),
            drops,
            filter: key_and_mask(&words.matching()).expect("a match"),
            frame_bytes_max: 100,
        }
    }

    fn frame(words: &str) -> Vec<u8> {
        FrameWords::parse(words, "frame", &mut Errors::new()).expect("a frame").frame()
    }

    #[test]
    fn filters_drops_and_lengths_are_kept() {
        let (tap, mut capture) = capture(1, spec("udp *->*:53", false), || {});
        tap.see(Direction::Rx, &frame("udp 10.0.0.1:1->10.0.0.2:53"), &[]);
        tap.see(Direction::Rx, &frame("udp 10.0.0.1:1->10.0.0.2:54"), &[]);
        let mut long = frame("udp 10.0.0.1:1->10.0.0.2:53");
        long.resize(1000, 0);
        tap.see(Direction::Tx, &long, &[DropReason::RingFull]);
        let first = capture.seen.try_recv().expect("wanted");
        assert_eq!((first.direction, first.bytes.len(), first.total, first.lost), (Direction::Rx, 60, 60, 0));
        let second = capture.seen.try_recv().expect("wanted");
        assert_eq!((second.direction, second.bytes.len(), second.total), (Direction::Tx, 100, 1000));
        assert_eq!(*second.drops, [DropReason::RingFull]);
        assert!(capture.seen.try_recv().is_err(), "port 54 is not wanted");
    }

    #[test]
    fn a_reader_that_is_slow_loses_frames_and_is_told() {
        let (tap, mut capture) = capture(1, spec("", true), || {});
        for _ in 0..QUEUE_FRAMES + 7 {
            tap.see(Direction::Rx, &frame("arp"), &[DropReason::TableMiss]);
        }
        tap.see(Direction::Rx, &frame("arp"), &[]);
        while capture.seen.try_recv().is_ok() {}
        tap.see(Direction::Rx, &frame("arp"), &[DropReason::TableMiss]);
        assert_eq!(capture.seen.try_recv().expect("room again").lost, 7);
    }

    #[test]
    fn the_end_is_told() {
        let (sender, told) = std::sync::mpsc::channel();
        let (_, capture) = capture(1, spec("", false), move || sender.send(()).expect("somebody waits"));
        assert!(told.try_recv().is_err());
        drop(capture);
        told.try_recv().expect("told");
    }
}
