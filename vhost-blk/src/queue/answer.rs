//! From completions of the host to answers for the guest, and to the end of a ring that is broken.

use std::os::fd::AsFd as _;

use reactor::{Full, Io};

use super::{Failure, Kit, Serving, Slot, Stage, Step};
use crate::helper::Job;
use crate::metrics::{ErrorKind, Op};
use crate::request::{Request, STATUS_BYTES, Status};

impl Serving {
    /// An operation of request `head` ended with `result`.
    #[inline]
    pub(crate) fn completed(&mut self, head: u16, result: i32, kit: &mut Kit<'_>) {
        if let Stage::Hit(hit) = self.slots[usize::from(head)].stage {
            self.hit_ended(head, hit, result, kit);
        }
        if self.broken {
            self.open -= 1;
            return;
        }
        let slot = &mut self.slots[usize::from(head)];
        let ended = match slot.stage {
            _ if slot.tampered => Some(Err(Failure { kind: ErrorKind::Guest, status: Status::IoError })),
            Stage::Transfer => self.transferred(head, result, kit),
            Stage::Sync => match self.synced(head, result) {
                Some(ended) => Some(ended),
                None => return,
            },
            Stage::Note(kind) => Some(Err(Failure::io(kind))),
            Stage::Range(method) => self.ranged(head, method, result),
            Stage::Between if slot.missed => None,
            Stage::New | Stage::Between | Stage::Hit(_) => {
                unreachable!("completion of a request with nothing in flight")
            }
        };
        if self.broken {
            return;
        }
        let ended = match ended {
            Some(ended) => ended,
            None => match self.resume(head, kit, &self.disk.limits()) {
                Ok(Step::Started) => return,
                Ok(Step::Ended(ended)) => ended,
                Ok(Step::Broken) => return,
                Err(Full) => {
                    self.waiting.push_back(head);
                    return;
                }
            },
        };
        let slot = &self.slots[usize::from(head)];
        self.metrics.queue_time.record_ns(slot.submitted_ns - slot.popped_ns);
        self.metrics.device_time.record_ns(kit.io.now_ns().saturating_sub(slot.submitted_ns));
        self.answer(head, ended);
    }

    /// A flush ended. One that failed may have lost writes that were answered: nothing is written any more. `None`: the
    /// first such answer waits until a restart would know of it, too.
    fn synced(&mut self, head: u16, result: i32) -> Option<Result<(), Failure>> {
        if result >= 0 {
            return Some(Ok(()));
        }
        let error = std::io::Error::from_raw_os_error(-result);
        let kind = ErrorKind::of_errno(-result);
        let first = self.disk.poison(format!("a flush failed: {error}"));
        self.session.poisoned.set(1);
        if !first {
            return Some(Err(Failure::io(kind)));
        }
        tracing::error!(volume = self.session.volume, %error, "a flush failed; nothing is written any more");
        self.slots[usize::from(head)].stage = Stage::Note(kind);
        let (disk, token) = (self.disk.clone(), self.token | u64::from(head));
        self.helper.send(Job::NotePoison { disk, token });
        None
    }

    pub(super) fn host_failed(&self, attempt: &str, errno: i32) -> Failure {
        let error = std::io::Error::from_raw_os_error(errno);
        let key = format!("{}/{attempt}/{errno}", self.session.volume);
        if let Some(suppressed) = self.session.limited.pass(&key) {
            let volume = &self.session.volume;
            tracing::error!(volume, attempt, %error, suppressed, "the host failed; the guest gets an I/O error");
        }
        Failure::io(ErrorKind::of_errno(errno))
    }

    /// The guest asked for something wrong, which is answered with an error.
    #[cold]
    pub(super) fn refuse(&self, head: u16, fault: &dyn std::fmt::Display, status: Status) -> Step {
        if let Some(suppressed) = self.session.limited.pass(&format!("{}/request", self.session.volume)) {
            let volume = &self.session.volume;
            tracing::warn!(volume, queue = self.index, head, %fault, suppressed, "refused a request of the guest");
        }
        Step::Ended(Err(Failure { kind: ErrorKind::Guest, status }))
    }

    /// The ring is broken: nothing is taken from it any more. `lost` is 1 when a request that was begun showed it.
    #[cold]
    pub(super) fn break_ring(&mut self, lost: u32, fault: &dyn std::fmt::Display, io: &mut Io) {
        self.metrics.ring_faults.add(1);
        if self.queue.lost() {
            self.session.frontend.close("guest memory was taken away");
        }
        if let Some(suppressed) = self.session.limited.pass(&format!("{}/ring", self.session.volume)) {
            let volume = &self.session.volume;
            tracing::warn!(volume, queue = self.index, %fault, suppressed, "the guest broke its ring; the queue stops");
        }
        if let Some(err) = &self.err {
            io.signal(err.as_fd());
        }
        self.broken = true;
        // This request, and those that wait, are never answered; what is in flight in the kernel still ends.
        self.open -= lost + self.waiting.len() as u32;
        self.waiting.clear();
    }

    /// Answers a request: status byte, used element.
    #[inline]
    pub(super) fn answer(&mut self, head: u16, result: Result<(), Failure>) {
        let Slot { status, request, chunk, .. } = self.slots[usize::from(head)];
        self.slots[usize::from(head)].stage = Stage::New;
        let (code, moved) = match (result, request) {
            (Ok(()), Some(Request::Read { bytes, .. } | Request::Write { bytes, .. })) => (Status::Ok, bytes),
            (Ok(()), _) => (Status::Ok, 0),
            (Err(failure), _) => {
                self.metrics.failed(failure.kind);
                (failure.status, 0)
            }
        };
        let written = match request {
            Some(Request::Read { .. }) => moved + STATUS_BYTES,
            Some(Request::GetId) => chunk + STATUS_BYTES,
            _ => STATUS_BYTES,
        };
        self.queue.memory().write(status, 0, &[code as u8]);
        self.queue.log_written(status, 0, 1);
        self.queue.push_used(head, written as u32);
        self.metrics.answered(request.as_ref().map_or(Op::Other, Op::from), moved);
        self.open -= 1;
        self.unpublished = true;
    }

    #[inline]
    pub(super) fn publish(&mut self, io: &mut Io) {
        self.unpublished = false;
        if self.queue.publish() {
            self.signal(io);
        }
    }

    pub(super) fn signal(&mut self, io: &mut Io) {
        if let Some(call) = &self.call {
            io.signal(call.as_fd());
            self.metrics.interrupts.add(1);
        }
    }
}
