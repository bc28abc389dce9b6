//! A drain: everything that is only on a pool's hot tier goes to the cold one, too.

use std::time::Duration;

use telemetry::Problem;
use tiering::UNIT_BYTES;

use super::control::PoolHandle;
use crate::job::{Failure, Job, JobView};
use crate::volume::Volumes;

/// How often a drain looks how far it is.
const LOOK: Duration = Duration::from_millis(10);

impl Volumes {
    /// Begins to write back all that is only on the hot tier of a pool now. Guests go on meanwhile; what they write is
    /// not waited for. A checkpoint at the end makes it known to the cold tier.
    ///
    /// # Errors
    /// The pool is not there, not open or read-only, or is drained already.
    pub fn drain_pool(&self, name: &str) -> Result<JobView, Problem> {
        let pool = self.lock().open_pool(name)?;
        if let Some(why) = pool.status().read_only() {
            let title = format!("the pool `{name}` cannot be drained");
            return Err(Problem::conflict(title).detail(format!("it is read-only: {why}")));
        }
        self.jobs().start("drain", name, move |job| {
            let result = drain(&pool, job);
            // A pool that is gone needs no word.
            let _ = pool.ask(|store| store.drain(false));
            result
        })
    }
}

fn drain(pool: &PoolHandle, job: &Job) -> Result<(), Failure> {
    let begin = |store: &mut tiering::Store| {
        store.drain(true);
        u64::from(store.drain_left())
    };
    let total = pool.ask(begin).map_err(|gone| gone.to_string())?;
    let mut left = total;
    while left > 0 {
        job.progress((total - left) * UNIT_BYTES, total * UNIT_BYTES);
        if job.pause(LOOK) {
            return Err("it was cancelled".to_string());
        }
        left = look(pool)?.0;
    }
    job.progress(total * UNIT_BYTES, total * UNIT_BYTES);
    let (_, before) = look(pool)?;
    loop {
        pool.ask(|store| store.checkpoint()).map_err(|gone| gone.to_string())?;
        if look(pool)?.1 > before {
            return Ok(());
        }
        if job.pause(LOOK) {
            return Err("it was cancelled".to_string());
        }
    }
}

/// Units still to be drained, and checkpoints so far.
fn look(pool: &PoolHandle) -> Result<(u64, u64), Failure> {
    let look = |store: &mut tiering::Store| {
        (u64::from(store.drain_left()), store.stats().checkpoints, store.read_only())
    };
    match pool.ask(look).map_err(|gone| gone.to_string())? {
        (left, checkpoints, None) => Ok((left, checkpoints)),
        (.., Some(why)) => Err(format!("the pool is read-only: {why}")),
    }
}
