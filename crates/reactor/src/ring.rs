//! The io_uring of one worker.

use std::io;
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, Submitter, cqueue};

/// One completion.
#[derive(Clone, Copy, Default)]
pub(crate) struct Completion {
    pub(crate) op: u32,
    pub(crate) result: i32,
    pub(crate) more: bool,
}

pub(crate) struct Ring {
    ring: IoUring,
}

impl Ring {
    /// A ring with `entries` submission slots and room for `completions`. The cheap modes (one issuer, task work only when
    /// we ask) are used where the kernel has them: 6.1 and later.
    pub(crate) fn new(entries: u32, completions: u32) -> io::Result<Ring> {
        let builder = || {
            let mut builder = IoUring::builder();
            builder.setup_clamp().setup_cqsize(completions.max(entries)).dontfork();
            builder
        };
        let newest = || {
            builder()
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag()
                .setup_submit_all()
                .build(entries)
        };
        let ring = newest().or_else(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => builder().build(entries),
            _ => Err(error),
        })?;
        let params = ring.params();
        if !params.is_feature_ext_arg() || !params.is_feature_submit_stable() || !params.is_feature_nodrop() {
            let old = "io_uring of this kernel is too old; Linux 5.13 or later is needed";
            return Err(io::Error::new(io::ErrorKind::Unsupported, old));
        }
        Ok(Ring { ring })
    }

    pub(crate) fn submitter(&self) -> Submitter<'_> {
        self.ring.submitter()
    }

    /// Queues one operation; false when the submission queue is full.
    ///
    /// # Safety
    /// Everything that `entry` points to stays valid: data until the operation's last completion, iovecs and headers until
    /// it is submitted (message headers of receives until completion).
    #[inline]
    pub(crate) unsafe fn push(&mut self, entry: &Entry) -> bool {
        // SAFETY: validity as promised by the caller.
        unsafe { self.ring.submission().push(entry).is_ok() }
    }

    /// Whether every queued operation has been taken by the kernel.
    #[inline]
    pub(crate) fn submitted(&mut self) -> bool {
        self.ring.submission().is_empty()
    }

    /// Gives the queued operations to the kernel and lets it finish what has completed. No system call when there is
    /// neither.
    #[inline]
    pub(crate) fn submit(&mut self) {
        let queue = self.ring.submission();
        let needed = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if needed {
            check(self.ring.submit());
        }
    }

    /// Submits, and sleeps until something completes or `timeout` is over.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) {
        check(match timeout {
            None => self.ring.submit_and_wait(1),
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&timespec);
                self.ring.submitter().submit_with_args(1, &args)
            }
        });
    }

    /// Takes completions into `batch`; returns how many.
    #[inline]
    pub(crate) fn completions(&mut self, batch: &mut [Completion]) -> usize {
        let mut count = 0;
        for (slot, entry) in batch.iter_mut().zip(self.ring.completion()) {
            *slot = Completion {
                op: entry.user_data() as u32,
                result: entry.result(),
                more: cqueue::more(entry.flags()),
            };
            count += 1;
        }
        count
    }
}

fn check(entered: io::Result<usize>) {
    let Err(error) = entered else { return };
    match error.raw_os_error() {
        // A signal, the end of the wait, or completions to be taken first: the next pass goes on.
        Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN) => {}
        _ => panic!("io_uring_enter failed, which only a bug of ours can cause: {error}"),
    }
}
