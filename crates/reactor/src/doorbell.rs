//! Signals to eventfds that belong to somebody else.
//!
//! write(2) on an eventfd sleeps when its counter is full, unless O_NONBLOCK is set; and both the counter and the flag are
//! the frontend's as much as ours, at any time. So the kernel is asked to signal by itself, which never sleeps: it does
//! so when an asynchronous operation with IOCB_FLAG_RESFD completes (io_submit(2)), and the operation is one that
//! completes at once. A full counter stays full, and what is no eventfd is refused. That costs one system call, as a write
//! does.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Operations of one context: those that completed and whose completions were not taken yet.
const OPERATIONS: u32 = 256;
/// After so many their completions are taken, all at once.
const REAP_AFTER: u32 = 128;

/// include/uapi/linux/aio_abi.h
const IOCB_CMD_POLL: u16 = 5;
/// include/uapi/linux/aio_abi.h
const IOCB_FLAG_RESFD: u32 = 1;

/// `struct io_event` of include/uapi/linux/aio_abi.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

/// Signals eventfds without ever waiting.
pub(crate) struct Doorbell {
    /// `aio_context_t`; `None` where the host has none to give.
    context: Option<libc::c_ulong>,
    /// Always readable: polling it completes at once.
    ready: EventFd,
    unreaped: u32,
    events: Box<[Event]>,
}

impl Doorbell {
    pub(crate) fn new() -> io::Result<Doorbell> {
        let ready = EventFd::from_value_and_flags(1, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one number to `context`, which is zero before, as it demands.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, OPERATIONS, &raw mut context) };
        // Refused without CONFIG_AIO, by a sandbox, or with fs.aio-max-nr used up.
        let context = (made == 0).then_some(context);
        Ok(Doorbell {
            context,
            ready,
            unreaped: 0,
            events: vec![Event::default(); OPERATIONS as usize].into(),
        })
    }

    /// Signals an eventfd. What goes wrong is its receiver's own doing.
    #[inline]
    pub(crate) fn ring(&mut self, fd: BorrowedFd<'_>) {
        let Some(context) = self.context else { return write_if_possible(fd) };
        if self.unreaped >= REAP_AFTER {
            self.reap(context);
        }
        // SAFETY: all zeroes is a valid iocb.
        let mut request: libc::iocb = unsafe { std::mem::zeroed() };
        request.aio_lio_opcode = IOCB_CMD_POLL;
        request.aio_fildes = self.ready.as_raw_fd() as u32;
        request.aio_buf = libc::POLLIN as u64;
        request.aio_flags = IOCB_FLAG_RESFD;
        request.aio_resfd = fd.as_raw_fd() as u32;
        let mut list = [&raw mut request];
        // SAFETY: one request, which the kernel copies before it returns; a poll points to no memory.
        let submitted = unsafe { libc::syscall(libc::SYS_io_submit, context, 1, list.as_mut_ptr()) };
        if submitted == 1 {
            self.unreaped += 1;
        } else if io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN) {
            // No room although completions were taken in time: not lost, at the price of a second call.
            self.reap(context);
            write_if_possible(fd);
        }
    }

    #[cold]
    fn reap(&mut self, context: libc::c_ulong) {
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let (events, count) = (self.events.as_mut_ptr(), self.events.len());
        // SAFETY: room for `count` events; the kernel writes that many at most and does not wait for any.
        unsafe { libc::syscall(libc::SYS_io_getevents, context, 0, count, events, &raw const none) };
        self.unreaped = 0;
    }
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        if let Some(context) = self.context {
            // SAFETY: made by `new` and destroyed once; nothing is in flight.
            unsafe { libc::syscall(libc::SYS_io_destroy, context) };
        }
    }
}

/// The second best: between the look and the write somebody may fill the counter.
#[cold]
fn write_if_possible(fd: BorrowedFd<'_>) {
    let mut look = [PollFd::new(fd, PollFlags::POLLOUT)];
    // A counter that the kernel filled to the brim is an error for poll, and no less full.
    let _ = poll(&mut look, PollTimeout::ZERO);
    if look[0].revents().is_some_and(|events| events.contains(PollFlags::POLLOUT)) {
        // A full counter is a signal already; any other error is the receiver's own doing.
        let _ = nix::unistd::write(fd, &1u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::{AsFd, OwnedFd};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    /// Signals `fd` a few times, by the kernel or by the second best; panics if that takes for ever.
    fn ring_in_time(fd: &OwnedFd, by_kernel: bool) {
        let (sender, receiver) = channel();
        let fd = fd.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut doorbell = Doorbell::new().unwrap();
            doorbell.context = doorbell.context.filter(|_| by_kernel);
            (0..5).for_each(|_| doorbell.ring(fd.as_fd()));
            let _ = sender.send(());
        });
        receiver.recv_timeout(Duration::from_secs(30)).expect("a signal waits for nobody");
    }

    #[test]
    fn a_full_eventfd_in_blocking_mode_stalls_nobody() {
        for by_kernel in [true, false] {
            let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
            eventfd.write(u64::MAX - 1).unwrap();
            ring_in_time(&eventfd.as_fd().try_clone_to_owned().unwrap(), by_kernel);
            // By the kernel it can be filled further than by a write.
            ring_in_time(&eventfd.as_fd().try_clone_to_owned().unwrap(), true);
            ring_in_time(&eventfd.as_fd().try_clone_to_owned().unwrap(), by_kernel);
            assert_eq!(eventfd.read().unwrap(), u64::MAX);
            ring_in_time(&eventfd.as_fd().try_clone_to_owned().unwrap(), by_kernel);
            assert_eq!(eventfd.read().unwrap(), 5, "and once it is empty it is signalled again");
        }
    }

    #[test]
    fn a_full_pipe_stalls_nobody() {
        let (_reader, mut writer) = std::io::pipe().unwrap();
        let fd: OwnedFd = writer.try_clone().unwrap().into();
        let size = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETPIPE_SZ).unwrap();
        writer.write_all(&vec![0; size as usize]).unwrap();
        for by_kernel in [true, false] {
            ring_in_time(&fd, by_kernel);
        }
    }

    #[test]
    fn signals_without_end_are_all_counted() {
        let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
        let mut doorbell = Doorbell::new().unwrap();
        let count = 10 * u64::from(OPERATIONS);
        (0..count).for_each(|_| doorbell.ring(eventfd.as_fd()));
        assert_eq!(eventfd.read().unwrap(), count);
    }
}
