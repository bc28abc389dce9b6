//! Frames from one worker to another: bounded rings of frames that were allocated at the start.
//!
//! ```text
//! worker A                              worker B, which has the port
//!   free.pop -> fill -> ready.push  ...  ready.pop -> deliver -> free.push
//! ```

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use nix::sys::eventfd::{EfdFlags, EventFd};
use packet::HEADROOM_BYTES;
use rtrb::{Consumer, Producer, RingBuffer};

use crate::model::PortNo;
use crate::port::offload::{FRAME_BYTES_MAX, Offload};
use crate::worker::frame::Frame;

/// Frames between two workers, in each direction.
const FRAMES: usize = 256;

/// Wakes a worker that sleeps.
pub(crate) struct Doorbell {
    asleep: AtomicBool,
    bell: EventFd,
}

impl Doorbell {
    pub(crate) fn new() -> std::io::Result<Arc<Doorbell>> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Arc::new(Doorbell { asleep: AtomicBool::new(false), bell }))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The owner is going to sleep; it looks at its rings once more after this.
    pub(crate) fn fall_asleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub(crate) fn wake_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Something was put into a ring of the owner.
    fn ring(&self) {
        // Either the owner sees what was put there, or we see that it sleeps.
        fence(Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::Relaxed) {
            // A full counter is a signal already.
            let _ = self.bell.write(1);
        }
    }
}

/// A frame on its way to another worker.
pub(crate) struct Handed {
    pub(crate) port: PortNo,
    pub(crate) offload: Offload,
    bytes: usize,
    data: Box<[u8]>,
}

impl Handed {
    fn new() -> Box<Handed> {
        let data = vec![0; FRAME_BYTES_MAX + HEADROOM_BYTES].into_boxed_slice();
        Box::new(Handed { port: PortNo(0), offload: Offload::NONE, bytes: 0, data })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.data[..self.bytes]
    }
}

/// The sending end, of the worker that has a frame.
pub(crate) struct ToWorker {
    ready: Producer<Box<Handed>>,
    free: Consumer<Box<Handed>>,
    bell: Arc<Doorbell>,
    sent: bool,
}

/// The receiving end, of the worker that has the port.
pub(crate) struct FromWorker {
    ready: Consumer<Box<Handed>>,
    free: Producer<Box<Handed>>,
}

/// A ring to the worker that `bell` wakes.
pub(crate) fn ring(bell: Arc<Doorbell>) -> (ToWorker, FromWorker) {
    let (ready, taken) = RingBuffer::new(FRAMES);
    let (mut back, free) = RingBuffer::new(FRAMES);
    for _ in 0..FRAMES {
        assert!(back.push(Handed::new()).is_ok(), "the ring was made for so many");
    }
    (ToWorker { ready, free, bell, sent: false }, FromWorker { ready: taken, free: back })
}

impl ToWorker {
    /// Copies a frame for `port`. `false`: all frames are on their way.
    pub(crate) fn send(&mut self, port: PortNo, frame: &Frame<'_>) -> bool {
        let bytes = frame.bytes();
        let Ok(mut handed) = self.free.pop() else { return false };
        handed.port = port;
        handed.offload = *frame.offload;
        handed.bytes = bytes;
        frame.read(0, &mut handed.data[..bytes]);
        // There are as many places as frames.
        let sent = self.ready.push(handed).is_ok();
        self.sent |= sent;
        sent
    }

    /// Wakes the other worker if something was sent.
    pub(crate) fn flush(&mut self) {
        if std::mem::take(&mut self.sent) {
            self.bell.ring();
        }
    }
}

impl FromWorker {
    pub(crate) fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    /// Gives up to `budget` frames to `deliver`; returns how many.
    pub(crate) fn take(&mut self, budget: usize, mut deliver: impl FnMut(&Handed)) -> usize {
        for taken in 0..budget {
            let Ok(handed) = self.ready.pop() else { return taken };
            deliver(&handed);
            let given_back = self.free.push(handed).is_ok();
            debug_assert!(given_back, "there are as many places as frames");
        }
        budget
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_go_round_and_a_full_ring_says_so() {
        let bell = Doorbell::new().unwrap();
        let (mut to, mut from) = ring(bell.clone());
        for round in 0..3u8 {
            for number in 0..FRAMES {
                let bytes = [round, number as u8, 7];
                assert!(to.send(PortNo(5), &Frame::of(&bytes, &Offload::NONE)));
            }
            assert!(!to.send(PortNo(5), &Frame::of(&[0], &Offload::NONE)), "all are on their way");
            let mut number = 0;
            let taken = from.take(usize::MAX, |handed| {
                assert_eq!((handed.port, handed.bytes()), (PortNo(5), &[round, number as u8, 7][..]));
                number += 1;
            });
            assert_eq!(taken, FRAMES);
        }
    }

    #[test]
    fn only_a_sleeper_is_woken() {
        let bell = Doorbell::new().unwrap();
        let (mut to, _from) = ring(bell.clone());
        let mut send = || {
            to.send(PortNo(1), &Frame::of(&[1; 14], &Offload::NONE));
            to.flush();
        };
        send();
        assert!(bell.bell.read().is_err(), "it is awake");
        bell.fall_asleep();
        send();
        send();
        assert_eq!(bell.bell.read(), Ok(1));
    }
}
