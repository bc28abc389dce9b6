//! How far the two processors of the benches are from each other.
//!
//! A hypervisor may run them on two cores with one cache in common, or on cores that reach each other by way of memory only,
//! and moves them while they sleep. Everything that server and client share costs several times as much then, so figures
//! say something only beside others of the same distance.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::{CLIENT_CORE, SERVER_CORE, pin_self};

/// Time one look takes: others that run on the processors hold it up, and the shortest batch counts.
const LOOK: Duration = Duration::from_millis(100);
/// Round trips of a batch.
const BATCH: u64 = 500;
/// A round trip takes 50 to 60 ns within a common cache, and more than 300 without one.
const NEAR_NS_MAX: f64 = 150.0;
/// Ends the other side.
const END: u64 = u64::MAX;

/// Where the processors are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Distance {
    /// They have a cache in common.
    Near,
    /// They have not.
    Far,
}

/// A cache line of its own, with those that a processor fetches along with it.
#[repr(align(256))]
struct Line(AtomicU64);

impl Distance {
    /// Of this moment. Whatever runs on the processors may go on.
    ///
    /// # Errors
    /// When threads cannot be bound to the processors.
    pub fn now() -> anyhow::Result<Distance> {
        let nanos = round_trip_ns()?;
        Ok(if nanos < NEAR_NS_MAX { Distance::Near } else { Distance::Far })
    }
}

/// The time that a line takes to the other processor and back.
fn round_trip_ns() -> anyhow::Result<f64> {
    let line = Line(AtomicU64::new(0));
    thread::scope(|scope| {
        let answering = scope.spawn(|| {
            let pinned = pin_self(CLIENT_CORE);
            // In any case: the other side waits.
            answer(&line.0);
            pinned
        });
        let asking = scope.spawn(|| {
            let nanos = pin_self(SERVER_CORE).map(|()| ask(&line.0));
            line.0.store(END, Ordering::Release);
            nanos
        });
        let nanos = asking.join().expect("it does not panic");
        answering.join().expect("it does not panic").and(nanos)
    })
}

/// Odd numbers are questions, the next even ones their answers.
fn ask(line: &AtomicU64) -> f64 {
    let mut shortest = f64::INFINITY;
    let mut question = 1;
    let end = Instant::now() + LOOK;
    loop {
        let start = Instant::now();
        if start >= end {
            return shortest;
        }
        for _ in 0..BATCH {
            line.store(question, Ordering::Release);
            while line.load(Ordering::Acquire) == question {
                spin_loop();
            }
            question += 2;
        }
        shortest = shortest.min(start.elapsed().as_nanos() as f64 / BATCH as f64);
    }
}

fn answer(line: &AtomicU64) {
    loop {
        match line.load(Ordering::Acquire) {
            END => return,
            question if question % 2 == 1 => line.store(question + 1, Ordering::Release),
            _ => spin_loop(),
        }
    }
}
