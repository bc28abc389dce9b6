//! A thread for the calls that io_uring has no operation for. Workers never wait for it: the result comes back as a
//! command.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use crate::disk::Disk;

/// Something to be done that would block a worker.
pub(crate) enum Job {
    /// Discard a range of a block device.
    Discard {
        /// The device.
        file: Arc<File>,
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        bytes: u64,
        /// Comes back with the result.
        token: u64,
    },
    /// Make it last that the volume is poisoned.
    NotePoison {
        /// The volume.
        disk: Arc<Disk>,
        /// Comes back when that is done.
        token: u64,
    },
}

impl Job {
    /// Does it; the token, and 0 or a negative errno.
    fn work(self) -> (u64, i32) {
        match self {
            Job::Discard { file, offset, bytes, token } => {
                let result = reactor::discard_blocking(file.as_fd(), offset, bytes);
                (token, result.map_or_else(|error| -error.raw_os_error().unwrap_or(libc::EIO), |()| 0))
            }
            Job::NotePoison { disk, token } => {
                if let Err(error) = disk.note_poison() {
                    tracing::error!(%error, "after a restart nobody will know that a flush failed");
                }
                (token, 0)
            }
        }
    }
}

/// Reaches the helper thread; belongs to one worker.
#[derive(Clone)]
pub(crate) struct Helper(Sender<Job>);

impl Helper {
    /// Starts the thread; `done` gets each job's token and its result, 0 or a negative errno. It ends when the last
    /// [`Helper`] is dropped.
    pub(crate) fn start(mut done: impl FnMut(u64, i32) + Send + 'static) -> std::io::Result<Helper> {
        let (sender, receiver) = channel::<Job>();
        std::thread::Builder::new().name("blk-helper".to_string()).spawn(move || {
            for job in receiver {
                let (token, result) = job.work();
                done(token, result);
            }
        })?;
        Ok(Helper(sender))
    }

    /// Queues a job. There are at most as many as requests in flight.
    pub(crate) fn send(&self, job: Job) {
        self.0.send(job).expect("the helper thread lives as long as its senders");
    }
}
