//! Long work: begun by a request, done on a thread of its own, looked at and ended by others.
//!
//! [`Jobs::start`] takes the work as a closure. It says how far it is with [`Job::progress`], and looks at [`Job::pause`] or
//! [`Job::cancelled`] often enough that a cancel takes effect within a second. Jobs do not live longer than the daemon:
//! its end cancels them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use telemetry::Problem;

/// Ended jobs that are remembered.
const ENDED_MAX: usize = 100;

/// Where a job is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// At work.
    Running,
    /// All was done.
    Done,
    /// Somebody ended it early.
    Cancelled,
    /// It came to nothing.
    Failed {
        /// What was attempted and what came of it.
        reason: String,
    },
}

/// A job as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobView {
    /// Names it as long as the daemon runs.
    pub id: u64,
    /// What kind of work, such as `drain`.
    pub kind: String,
    /// What it works on, such as the name of a pool.
    pub target: String,
    /// Where it is.
    pub state: JobState,
    /// Bytes that are through.
    pub done_bytes: u64,
    /// Bytes in all, as far as known.
    pub total_bytes: u64,
    /// Bytes a second since it began.
    pub bytes_per_s: u64,
    /// Seconds it will take at this rate; absent when nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_s: Option<u64>,
    /// When it began, seconds since 1970.
    pub began_at: u64,
    /// Seconds it has been or was at work.
    pub took_s: f64,
}

/// What work says when it ends early: words for people.
pub type Failure = String;

/// One piece of long work.
#[derive(Debug)]
pub struct Job {
    id: u64,
    kind: &'static str,
    target: String,
    began: Instant,
    began_at: SystemTime,
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    state: JobState,
    cancelled: bool,
    took: Option<Duration>,
}

impl Job {
    /// What the admin interface calls it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Says how far the work is.
    pub fn progress(&self, done_bytes: u64, total_bytes: u64) {
        self.done_bytes.store(done_bytes, Relaxed);
        self.total_bytes.store(total_bytes, Relaxed);
    }

    /// The same for work that copies piece by piece; false when it is to end.
    pub fn report(&self, done_bytes: u64, total_bytes: u64) -> bool {
        self.progress(done_bytes, total_bytes);
        !self.cancelled()
    }

    /// Whether the work is to end as soon as it can; what it returns then does not matter unless it is `Ok`.
    pub fn cancelled(&self) -> bool {
        self.lock().cancelled
    }

    /// Waits a while, or until the job is cancelled; true when it is.
    pub fn pause(&self, pause: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), pause, |inner| !inner.cancelled);
        waited.unwrap_or_else(PoisonError::into_inner).0.cancelled
    }

    /// As it is shown.
    pub fn view(&self) -> JobView {
        let (state, took) = {
            let inner = self.lock();
            (inner.state.clone(), inner.took.unwrap_or_else(|| self.began.elapsed()))
        };
        let (done_bytes, total_bytes) = (self.done_bytes.load(Relaxed), self.total_bytes.load(Relaxed));
        let bytes_per_s = (done_bytes as f64 / took.as_secs_f64().max(1e-3)) as u64;
        let left = total_bytes.saturating_sub(done_bytes);
        JobView {
            id: self.id,
            kind: self.kind.to_string(),
            target: self.target.clone(),
            left_s: (state == JobState::Running && bytes_per_s > 0).then(|| left.div_ceil(bytes_per_s)),
            state,
            done_bytes,
            total_bytes,
            bytes_per_s,
            began_at: self.began_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            took_s: took.as_secs_f64(),
        }
    }

    fn cancel(&self) {
        self.lock().cancelled = true;
        self.changed.notify_all();
    }

    fn running(&self) -> bool {
        self.lock().state == JobState::Running
    }

    fn end(&self, result: Result<(), Failure>) {
        let mut inner = self.lock();
        inner.took = Some(self.began.elapsed());
        inner.state = match result {
            Ok(()) => JobState::Done,
            Err(_) if inner.cancelled => JobState::Cancelled,
            Err(reason) => JobState::Failed { reason },
        };
        let (job, kind, target) = (self.id, self.kind, &self.target);
        match &inner.state {
            JobState::Failed { reason } => tracing::error!(job, kind, target, reason, "a job failed"),
            state => tracing::info!(job, kind, target, ?state, "a job ended"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The jobs of a daemon.
#[derive(Debug, Default)]
pub struct Jobs(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    closed: bool,
    last: u64,
    jobs: BTreeMap<u64, (Arc<Job>, Option<JoinHandle<()>>)>,
}

impl Jobs {
    /// Begins a job. What has to be checked before should be: the answer to who asked is that the job has begun.
    ///
    /// # Errors
    /// There is such a job for this target already, or the daemon is stopping.
    pub fn start(
        &self,
        kind: &'static str,
        target: &str,
        work: impl FnOnce(&Job) -> Result<(), Failure> + Send + 'static,
    ) -> Result<JobView, Problem> {
        let mut held = self.lock();
        let title = format!("{kind} of `{target}` cannot begin");
        if held.closed {
            return Err(Problem::conflict(title).detail("the daemon is stopping"));
        }
        let same = |job: &Job| job.kind == kind && job.target == target && job.running();
        if let Some((job, _)) = held.jobs.values().find(|(job, _)| same(job)) {
            let detail = format!("it is at work as job {}: wait for that one, or cancel it", job.id);
            return Err(Problem::conflict(title).detail(detail));
        }
        let ended = held.jobs.values().filter(|(job, _)| !job.running()).count();
        if ended >= ENDED_MAX
            && let Some(oldest) = held.jobs.values().find(|(job, _)| !job.running()).map(|(job, _)| job.id)
        {
            held.jobs.remove(&oldest);
        }
        held.last += 1;
        let job = Arc::new(Job {
            id: held.last,
            kind,
            target: target.to_string(),
            began: Instant::now(),
            began_at: SystemTime::now(),
            done_bytes: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            inner: Mutex::new(Inner { state: JobState::Running, cancelled: false, took: None }),
            changed: Condvar::new(),
        });
        let of_thread = job.clone();
        let thread = std::thread::Builder::new()
            .name(format!("job-{}", job.id))
            .spawn(move || of_thread.end(work(&of_thread)))
            .map_err(|error| Problem::internal(title).detail(format!("no thread for it: {error}")))?;
        tracing::info!(job = job.id, kind, target, "a job began");
        let view = job.view();
        held.jobs.insert(job.id, (job, Some(thread)));
        Ok(view)
    }

    /// All jobs that run, and the last ones that ended.
    pub fn list(&self) -> Vec<JobView> {
        self.lock().jobs.values().map(|(job, _)| job.view()).collect()
    }

    /// One job.
    pub fn show(&self, id: u64) -> Result<JobView, Problem> {
        self.find(id).map(|job| job.view())
    }

    /// Tells a job to end; one that has ended stays as it is. Returns before it has ended.
    pub fn cancel(&self, id: u64) -> Result<JobView, Problem> {
        let job = self.find(id)?;
        job.cancel();
        Ok(job.view())
    }

    /// Cancels all jobs, waits until they have ended, and begins none any more.
    pub fn close(&self) {
        let mut held = self.lock();
        held.closed = true;
        held.jobs.values().for_each(|(job, _)| job.cancel());
        let threads: Vec<_> = held.jobs.values_mut().filter_map(|(_, thread)| thread.take()).collect();
        drop(held);
        for thread in threads {
            // One that panicked has ended, too.
            let _ = thread.join();
        }
    }

    fn find(&self, id: u64) -> Result<Arc<Job>, Problem> {
        let job = self.lock().jobs.get(&id).map(|(job, _)| job.clone());
        job.ok_or_else(|| Problem::not_found(format!("there is no job {id}")))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const FOREVER: Duration = Duration::from_secs(60);

    fn ended(jobs: &Jobs, id: u64) -> JobView {
        let until = Instant::now() + FOREVER;
        while jobs.show(id).expect("it was begun").state == JobState::Running {
            assert!(Instant::now() < until, "it never ends");
            std::thread::yield_now();
        }
        jobs.show(id).expect("it is remembered")
    }

    #[test]
    fn a_job_tells_how_far_it_is_and_how_it_ended() {
        let jobs = Jobs::default();
        let (go, wait) = channel::<()>();
        let id = jobs
            .start("drain", "pool0", move |job| {
                job.progress(1, 4);
                wait.recv().map_err(|error| error.to_string())?;
                job.progress(4, 4);
                Ok(())
            })
            .expect("nothing speaks against it")
            .id;
        let again = jobs.start("drain", "pool0", |_| Ok(())).expect_err("one at a time");
        assert!(again.to_string().contains("job 1"), "{again}");
        let other =
            jobs.start("drain", "pool1", |_| Err("no such device".to_string())).expect("another pool");
        assert_eq!(ended(&jobs, other.id).state, JobState::Failed { reason: "no such device".to_string() });
        go.send(()).expect("it waits");
        let view = ended(&jobs, id);
        assert_eq!(
            (view.state, view.done_bytes, view.total_bytes, view.left_s),
            (JobState::Done, 4, 4, None)
        );
        assert_eq!(jobs.list().len(), 2);
        assert!(jobs.show(3).is_err());
    }

    #[test]
    fn a_cancel_ends_the_pause_and_close_waits() {
        let jobs = Jobs::default();
        let work = |job: &Job| if job.pause(FOREVER) { Err("half done".to_string()) } else { Ok(()) };
        let first = jobs.start("drain", "a", work).expect("nothing speaks against it").id;
        let second = jobs.start("drain", "b", work).expect("nothing speaks against it").id;
        jobs.cancel(first).expect("it is there");
        assert_eq!(ended(&jobs, first).state, JobState::Cancelled);
        jobs.close();
        assert_eq!(jobs.show(second).expect("it is remembered").state, JobState::Cancelled);
        assert!(jobs.start("drain", "c", work).is_err());
    }

    #[test]
    fn not_all_that_ended_are_remembered() {
        let jobs = Jobs::default();
        for round in 0..2 * ENDED_MAX {
            let id = jobs.start("drain", &round.to_string(), |_| Ok(())).expect("it may begin").id;
            ended(&jobs, id);
        }
        assert_eq!(jobs.list().len(), ENDED_MAX);
    }
}
