//! The guard against SIGBUS: a frontend that truncates the file behind its guest memory must not kill the daemon.
//!
//! Every mapping is registered in a table that the signal handler can read without a lock. A fault inside one of them
//! maps zero pages over the whole mapping and marks it lost; the access then continues and reads zeros. The owner of
//! the memory sees `lost()` and closes that session. A fault anywhere else goes to the handler that was there before.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, Once, OnceLock, PoisonError};

/// Slots per block of the table; blocks are added and never freed, so the handler may always walk them.
const BLOCK_SLOTS: usize = 256;

struct Slot {
    /// Odd while `start` and `end` are being changed. A mapping that can fault is in use, so its own slot stands still;
    /// the handler skips any other slot it finds in motion.
    version: AtomicU32,
    start: AtomicUsize,
    end: AtomicUsize,
    lost: AtomicBool,
}

struct Block {
    slots: [Slot; BLOCK_SLOTS],
    next: AtomicPtr<Block>,
}

static FIRST: AtomicPtr<Block> = AtomicPtr::new(ptr::null_mut());
static FREE: Mutex<Vec<&'static Slot>> = Mutex::new(Vec::new());
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// A mapping's place in the table.
#[derive(Debug)]
pub(crate) struct Registration {
    slot: &'static Slot,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let start = self.start.load(Ordering::Relaxed);
        let end = self.end.load(Ordering::Relaxed);
        write!(f, "Slot({start:#x}..{end:#x})")
    }
}

impl Slot {
    const fn new() -> Slot {
        Slot {
            version: AtomicU32::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            lost: AtomicBool::new(false),
        }
    }

    /// Changes the range; called by the slot's owner alone.
    fn set(&self, start: usize, end: usize) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    fn range(&self) -> Option<(usize, usize)> {
        let before = self.version.load(Ordering::Acquire);
        let range = (self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let after = self.version.load(Ordering::Relaxed);
        (before.is_multiple_of(2) && before == after).then_some(range)
    }
}

impl Registration {
    pub(crate) fn lost(&self) -> bool {
        self.slot.lost.load(Ordering::Relaxed)
    }

    /// Takes the mapping out of the table; the caller unmaps afterwards and uses the registration no more.
    pub(crate) fn release(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        self.slot.set(0, 0);
        free.push(self.slot);
    }
}

/// Enters a mapping, before anybody touches it.
pub(crate) fn register(start: usize, len: usize) -> Registration {
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    if free.is_empty() {
        let block: &'static Block = Box::leak(Box::new(Block {
            slots: [const { Slot::new() }; BLOCK_SLOTS],
            next: AtomicPtr::new(FIRST.load(Ordering::Acquire)),
        }));
        FIRST.store(ptr::from_ref(block).cast_mut(), Ordering::Release);
        free.extend(block.slots.iter());
    }
    let slot = free.pop().expect("a block of slots was added just now");
    slot.lost.store(false, Ordering::Relaxed);
    slot.set(start, start + len);
    Registration { slot }
}

/// Installs the handler, once per process; later calls do nothing.
///
/// Call it before the first frontend connects. Other uses of SIGBUS stay as they are: what does not hit one of our
/// mappings is handed to the handler that was installed before, or takes the default action.
pub fn install_sigbus_guard() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut previous = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: a null new action only reads the current one into `previous`; the signal number is valid.
        let read = unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), previous.as_mut_ptr()) };
        assert_eq!(read, 0, "reading the action of SIGBUS cannot fail");
        // SAFETY: filled by the call above. Stored before our handler can run.
        let _ = PREVIOUS.set(unsafe { previous.assume_init() });

        // SAFETY: all-zero bytes are a valid sigaction (default action, empty mask).
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
        action.sa_sigaction = handler as libc::sighandler_t;
        // On the alternate stack where a thread has one: the previous handler may be the one for stack overflows.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler only uses async-signal-safe calls (mmap, sigaction) and lock-free reads.
        let set = unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) };
        assert_eq!(set, 0, "setting the action of SIGBUS cannot fail");
    });
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo; for SIGBUS it carries the address.
    let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
    // Codes above zero come from the kernel: a SIGBUS sent by kill(2) has no address.
    if code > 0 && recover(address) {
        return;
    }
    pass_on(signal, info, context);
}

/// Maps zero pages over the registered mapping that contains `address`; false when there is none.
fn recover(address: usize) -> bool {
    let mut block = FIRST.load(Ordering::Acquire);
    // SAFETY: blocks are leaked, hence valid for ever once published.
    while let Some(current) = unsafe { block.as_ref() } {
        for slot in &current.slots {
            let Some((start, end)) = slot.range() else { continue };
            if !(start..end).contains(&address) {
                continue;
            }
            slot.lost.store(true, Ordering::Relaxed);
            // errno belongs to the interrupted code.
            // SAFETY: errno's address is valid for the calling thread.
            let errno = unsafe { *libc::__errno_location() };
            // SAFETY: the range is one of our live mappings (somebody just touched it, so its owner still holds it);
            // replacing its pages is what its users expect of memory that others may change at any time.
            let mapped = unsafe {
                libc::mmap(
                    start as *mut libc::c_void,
                    end - start,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            // SAFETY: as above.
            unsafe { *libc::__errno_location() = errno };
            return mapped != libc::MAP_FAILED;
        }
        block = current.next.load(Ordering::Acquire);
    }
    false
}

fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(previous) = PREVIOUS.get() else { return };
    match previous.sa_sigaction {
        // Ignoring a fault would repeat it for ever, hence the default action in both cases: back to it and return,
        // the instruction faults again (or, for a signal that was sent, is raised again) and ends the process.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: all-zero bytes are the default action.
            let action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
            // SAFETY: valid signal and action; both calls are async-signal-safe.
            unsafe {
                libc::sigaction(signal, &action, ptr::null_mut());
                if (*info).si_code <= 0 {
                    libc::raise(signal);
                }
            }
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: with SA_SIGINFO set, the stored address is a handler of this type.
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without SA_SIGINFO, the stored address is a handler of this type.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}
