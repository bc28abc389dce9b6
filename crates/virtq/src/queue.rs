//! The device side of a split virtqueue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, compiler_fence, fence};

use crate::chain::Chain;
use crate::cpu;
use crate::dirty_log::DirtyLog;
use crate::inflight::InflightQueue;
use crate::memory::{GuestMemory, GuestSlice, RegionHint};
use crate::ring::{
    AVAIL_F_NO_INTERRUPT, DESC_BYTES, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor, MAX_QUEUE_SIZE,
    RingFault, USED_F_NO_NOTIFY, Word, resolve,
};

/// What a frontend says about a queue before it starts.
#[derive(Clone, Copy, Debug, Default)]
pub struct RingSetup {
    /// Entries, a power of two up to [`MAX_QUEUE_SIZE`].
    pub size: u16,
    /// Descriptor table, in the frontend's address space.
    pub desc_user_addr: u64,
    /// Avail ring, in the frontend's address space.
    pub avail_user_addr: u64,
    /// Used ring, in the frontend's address space.
    pub used_user_addr: u64,
    /// Guest-physical address of the used ring when its writes are to be logged (`VHOST_VRING_F_LOG`).
    pub used_log_addr: Option<u64>,
    /// The avail index to go on from (SET_VRING_BASE). Not used with an inflight region, which knows better.
    pub next_avail: u16,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC` was negotiated.
    pub indirect: bool,
    /// `VIRTIO_F_IN_ORDER` was negotiated.
    pub in_order: bool,
}

/// Where a head is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeadState {
    /// With the driver.
    Free,
    /// Popped, not yet pushed.
    InFlight,
    /// Pushed, but an older one is not yet: only with IN_ORDER.
    Waiting,
}

/// A chain that is one buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lone {
    /// The buffer; not empty.
    pub slice: GuestSlice,
    /// The device writes it.
    pub writable: bool,
}

/// One split virtqueue, owned by one worker.
///
/// A pass of the worker: [`pop_batch`](Queue::pop_batch), [`walk`](Queue::walk) each head, work,
/// [`push_used`](Queue::push_used) each completed head, one [`publish`](Queue::publish). Before sleeping
/// [`arm`](Queue::arm), after waking [`disarm`](Queue::disarm).
#[derive(Debug)]
pub struct Queue {
    desc: *const u8,
    avail: *mut u16,
    used: *mut u16,
    size: u16,
    mask: u16,
    event_idx: bool,
    indirect: bool,
    in_order: bool,
    /// Index of the next avail entry to take.
    next_avail: u16,
    /// What it was at first: where heads that were taken over stand in the avail ring is not known.
    first: u16,
    /// Index of the next used element to write.
    next_used: u16,
    /// The used index the driver was told.
    published: u16,
    /// Signal at the next publish whatever the driver asked: a predecessor may have died before its signal.
    signal_owed: bool,
    in_flight: u16,
    /// Avail index of the oldest head that is not used yet (IN_ORDER).
    oldest: u16,
    /// Heads that were pushed before an older one (IN_ORDER).
    waiting: u16,
    /// Elements at the end of the used ring that share one entry, not written yet (IN_ORDER).
    run: Run,
    hint: RegionHint,
    /// A byte each: a queue of 1024 fits into sixteen lines.
    heads: Box<[HeadState]>,
    /// Bytes written for the heads that wait.
    written: Box<[u32]>,
    /// Heads by avail index: what was taken at which place. The ring itself may change under us.
    taken: Box<[u16]>,
    leftover: Vec<u16>,
    inflight: Option<InflightQueue>,
    log: Option<Arc<DirtyLog>>,
    used_log_addr: Option<u64>,
    mem: Arc<GuestMemory>,
}

/// Buffers used without a byte written: with IN_ORDER one used element, naming the last of them, stands for all.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    first: u16,
    count: u16,
    last_head: u16,
}

// SAFETY: the ring pointers point into mappings that `mem` keeps alive; they are used by the owner of the queue only.
unsafe impl Send for Queue {}

/// Slot of the flags in the avail and the used ring, in 16-bit words.
const FLAGS: usize = 0;
/// Slot of the index.
const IDX: usize = 1;
/// First slot of the elements.
const RING: usize = 2;

impl Queue {
    /// Resolves and checks the rings and takes over what a killed predecessor left in the inflight region.
    ///
    /// After a restart call [`resubmit`](Queue::resubmit) and serve those heads first, and call
    /// [`publish`](Queue::publish) once in any case: the predecessor may have died between index and signal.
    ///
    /// # Errors
    ///
    /// A size that is no power of two, rings that are misaligned or not in guest memory, an inflight region that does
    /// not fit.
    pub fn new(
        mem: Arc<GuestMemory>,
        setup: &RingSetup,
        inflight: Option<InflightQueue>,
        log: Option<Arc<DirtyLog>>,
    ) -> Result<Queue, RingFault> {
        let size = setup.size;
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(RingFault::BadSize { size });
        }
        let entries = u64::from(size);
        let event_bytes = if setup.event_idx { 2 } else { 0 };
        let desc_bytes = u64::from(DESC_BYTES) * entries;
        let desc = resolve(&mem, "descriptor table", setup.desc_user_addr, desc_bytes, 16)?;
        let avail_bytes = 4 + 2 * entries + event_bytes;
        let avail = resolve(&mem, "avail ring", setup.avail_user_addr, avail_bytes, 2)?;
        let used_bytes = 4 + 8 * entries + event_bytes;
        let used = resolve(&mem, "used ring", setup.used_user_addr, used_bytes, 4)?;
        let mut queue = Queue {
            desc,
            avail: avail.cast(),
            used: used.cast(),
            size,
            mask: size - 1,
            event_idx: setup.event_idx,
            indirect: setup.indirect,
            in_order: setup.in_order,
            next_avail: setup.next_avail,
            first: setup.next_avail,
            next_used: 0,
            published: 0,
            signal_owed: false,
            in_flight: 0,
            oldest: setup.next_avail,
            waiting: 0,
            run: Run::default(),
            hint: RegionHint::default(),
            heads: vec![HeadState::Free; usize::from(size)].into_boxed_slice(),
            written: vec![0; usize::from(size)].into_boxed_slice(),
            taken: vec![0; usize::from(size)].into_boxed_slice(),
            leftover: Vec::new(),
            inflight,
            log,
            used_log_addr: setup.used_log_addr,
            mem,
        };
        queue.take_over()?;
        Ok(queue)
    }

    /// Goes on where the used ring stands.
    fn take_over(&mut self) -> Result<(), RingFault> {
        let used_idx = u16::from_le(self.used_word(IDX).load(Ordering::Relaxed));
        self.next_used = used_idx;
        self.published = used_idx;
        self.signal_owed = used_idx != 0;
        let Some(inflight) = &mut self.inflight else { return Ok(()) };
        let heads = inflight.recover(self.size, used_idx)?.heads;
        // At most `size` heads: each descriptor has one mark.
        self.in_flight = heads.len() as u16;
        self.oldest = used_idx;
        self.next_avail = used_idx.wrapping_add(self.in_flight);
        self.first = self.next_avail;
        for (place, &head) in heads.iter().enumerate() {
            self.heads[usize::from(head)] = HeadState::InFlight;
            let position = used_idx.wrapping_add(place as u16) & self.mask;
            self.taken[usize::from(position)] = head;
        }
        self.signal_owed |= !heads.is_empty();
        self.leftover = heads;
        Ok(())
    }

    /// The memory the queue translates with.
    #[inline]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.mem
    }

    /// Entries.
    #[inline]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Index of the avail entry that comes next: what GET_VRING_BASE answers once nothing is in flight.
    #[inline]
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Heads that were popped and not yet given back.
    #[inline]
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// True once a SIGBUS was caught on the guest's memory, the inflight region or the dirty log: stop and close the
    /// session.
    pub fn lost(&self) -> bool {
        self.mem.lost()
            || self.inflight.as_ref().is_some_and(InflightQueue::lost)
            || self.log.as_ref().is_some_and(|log| log.lost())
    }

    /// Heads that a killed predecessor took and did not answer, in the order it took them. They count as in flight; walk
    /// and serve them before anything popped. Empty at the second call.
    pub fn resubmit(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.leftover)
    }

    /// Takes up to `heads.len()` available heads, returns how many; they are in flight from now on.
    ///
    /// # Errors
    ///
    /// The driver broke a rule of the avail ring. Heads before the faulty entry are returned first, the fault by the next
    /// call.
    #[inline]
    pub fn pop_batch(&mut self, heads: &mut [u16]) -> Result<usize, RingFault> {
        let ready = self.ready()?;
        let count = heads.len().min(usize::from(ready));
        for (taken, place) in heads[..count].iter_mut().enumerate() {
            match self.take_next() {
                Ok(head) => *place = head,
                Err(fault) if taken == 0 => return Err(fault),
                Err(_) => return Ok(taken),
            }
        }
        Ok(count)
    }

    /// Number of entries that wait; the acquire load orders everything the driver wrote before its index.
    #[inline]
    fn ready(&self) -> Result<u16, RingFault> {
        let avail_idx = u16::from_le(self.avail_word(IDX).load(Ordering::Acquire));
        let ahead = avail_idx.wrapping_sub(self.next_avail);
        if ahead > self.size {
            return Err(RingFault::AvailRunsAhead {
                avail_idx,
                next_avail: self.next_avail,
                ahead,
                size: self.size,
            });
        }
        Ok(ahead)
    }

    #[inline]
    fn take_next(&mut self) -> Result<u16, RingFault> {
        let place = usize::from(self.next_avail & self.mask);
        // SAFETY: `place` is below `size`, and the avail ring was resolved for `size` elements of 2 bytes; the mapping
        // lives as long as `self.mem`.
        let head = u16::from_le(unsafe { self.avail.add(RING + place).read_volatile() });
        let Some(state) = self.heads.get_mut(usize::from(head)) else {
            return Err(RingFault::HeadOutside { position: self.next_avail, head, size: self.size });
        };
        if *state != HeadState::Free {
            return Err(RingFault::HeadInFlight { head });
        }
        *state = HeadState::InFlight;
        self.taken[place] = head;
        // The descriptors of a batch are on their way together.
        cpu::prefetch(self.desc.wrapping_add(usize::from(head) * DESC_BYTES as usize));
        if let Some(inflight) = &mut self.inflight {
            inflight.take(head);
        }
        self.in_flight += 1;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(head)
    }

    /// Puts the last `count` popped heads back, as if they had not been popped: back-pressure.
    ///
    /// # Panics
    ///
    /// When one of them was used meanwhile (a bug of the caller).
    pub fn undo_pop(&mut self, count: u16) {
        // From the newest on, so that the marks in the inflight region always are a prefix of the avail order.
        for _ in 0..count {
            let before = self.next_avail.wrapping_sub(1);
            let head = self.taken[usize::from(before & self.mask)];
            let state = &mut self.heads[usize::from(head)];
            assert!(*state == HeadState::InFlight, "descriptor {head} is not in flight");
            *state = HeadState::Free;
            if let Some(inflight) = &mut self.inflight {
                inflight.give_back(head);
            }
            self.in_flight -= 1;
            self.next_avail = before;
        }
    }

    /// Leaves `heads`, which were popped and are not going to be used, to the queue that comes next. The newest go back to
    /// the avail ring as if they had never been popped. The others stay in `heads`: where
    /// [`keeps_in_flight`](Queue::keeps_in_flight) says so, the next queue gets them from
    /// [`resubmit`](Queue::resubmit); elsewhere they have to be used after all, or the driver waits for them for ever.
    ///
    /// # Panics
    ///
    /// When one of them was used meanwhile (a bug of the caller).
    pub fn leave(&mut self, heads: &mut Vec<u16>) {
        while self.next_avail != self.first {
            let newest = self.taken[usize::from(self.next_avail.wrapping_sub(1) & self.mask)];
            let Some(at) = heads.iter().position(|head| *head == newest) else { break };
            heads.swap_remove(at);
            self.undo_pop(1);
        }
    }

    /// Whether the queue that comes next finds what is in flight now: there is an inflight region, and the guest is not
    /// just being migrated to a host that will not see it.
    pub fn keeps_in_flight(&self) -> bool {
        self.inflight.is_some() && self.log.is_none()
    }

    /// Follows the chain of a head and translates its buffers into `chain`, each descriptor being read once.
    ///
    /// Buffers without a byte are left out; those that run over the border of adjacent regions become several parts.
    ///
    /// # Errors
    ///
    /// The chain breaks a rule; `chain` holds nothing useful then.
    #[inline]
    pub fn walk(&mut self, head: u16, chain: &mut Chain) -> Result<(), RingFault> {
        let desc = self.descriptor(head)?;
        self.walk_from(head, desc, chain)
    }

    /// [`walk`](Queue::walk) for chains that nearly always are one buffer: that of a lone direct descriptor is returned and
    /// `chain` is left as it was. `None`: any other chain, which is in `chain` now.
    ///
    /// # Errors
    ///
    /// As for [`walk`](Queue::walk).
    #[inline]
    pub fn walk_lone(&mut self, head: u16, chain: &mut Chain) -> Result<Option<Lone>, RingFault> {
        let desc = self.descriptor(head)?;
        if !desc.has(DESC_F_INDIRECT | DESC_F_NEXT)
            && desc.len > 0
            && let Some(slice) = self.mem.slice(&mut self.hint, desc.addr, desc.len)
        {
            return Ok(Some(Lone { slice, writable: desc.has(DESC_F_WRITE) }));
        }
        self.walk_from(head, desc, chain)?;
        Ok(None)
    }

    /// The first bytes of the first buffer of a head that was popped, if they are there in one piece. Only a hint of what
    /// [`walk`](Queue::walk) will find: the driver may change them until then.
    #[inline]
    pub fn peek<const N: usize>(&mut self, head: u16) -> Option<[u8; N]> {
        let mut desc = self.descriptor(head).ok()?;
        if self.indirect && desc.has(DESC_F_INDIRECT) {
            let first = self.mem.slice(&mut self.hint, desc.addr, DESC_BYTES)?;
            desc = Descriptor::from_bytes(self.mem.window(first).read_array(0));
        }
        let bytes = self.mem.slice(&mut self.hint, desc.addr, desc.len.min(N as u32))?;
        (bytes.len() == N as u32).then(|| self.mem.window(bytes).read_array(0))
    }

    /// A copy of a descriptor of the table.
    #[inline]
    fn descriptor(&self, index: u16) -> Result<Descriptor, RingFault> {
        if index >= self.size {
            return Err(RingFault::NextOutside { next: index.into(), size: self.size.into() });
        }
        // SAFETY: `index < size`, and the table was resolved for `size` descriptors; the mapping lives as long as
        // `self.mem`.
        Ok(unsafe { Descriptor::load(self.desc.add(usize::from(index) * DESC_BYTES as usize)) })
    }

    /// Follows the chain of `head`, whose descriptor is `desc`.
    #[inline]
    fn walk_from(&mut self, head: u16, mut desc: Descriptor, chain: &mut Chain) -> Result<(), RingFault> {
        chain.restart(self.size);
        let mut writable = false;
        let mut links = 0;
        loop {
            if desc.has(DESC_F_INDIRECT) {
                self.walk_table(head, desc, links, writable, chain)?;
                break;
            }
            writable = self.add_buffer(head, desc, writable, chain)?;
            if !desc.has(DESC_F_NEXT) {
                break;
            }
            links += 1;
            if links == self.size {
                return Err(RingFault::ChainTooLong { head, size: self.size });
            }
            desc = self.descriptor(desc.next)?;
        }
        // Lengths of what is read and written are 32 bits in many places, so the rule is worth a comparison.
        let bytes = chain.readable_bytes() + chain.writable_bytes();
        if bytes > u64::from(u32::MAX) {
            return Err(RingFault::ChainTooLarge { head, bytes });
        }
        Ok(())
    }

    /// Follows the chain inside an indirect table, after `links` direct descriptors.
    fn walk_table(
        &mut self,
        head: u16,
        table: Descriptor,
        links: u16,
        mut writable: bool,
        chain: &mut Chain,
    ) -> Result<(), RingFault> {
        if !self.indirect {
            return Err(RingFault::IndirectNotNegotiated { head });
        }
        if table.has(DESC_F_NEXT) {
            return Err(RingFault::IndirectWithNext { head });
        }
        if table.len == 0 || !table.len.is_multiple_of(DESC_BYTES) {
            return Err(RingFault::IndirectBadLength { head, len: table.len });
        }
        let entries = table.len / DESC_BYTES;
        let whole = self.mem.slice(&mut self.hint, table.addr, table.len).map(|s| self.mem.host_ptr(s));
        let mut index = 0u32;
        for _ in links..self.size {
            if index >= entries {
                return Err(RingFault::NextOutside { next: index, size: entries });
            }
            let desc = match whole {
                // SAFETY: `index < entries`, and the slice of `entries` descriptors was translated and checked above; the
                // mapping lives as long as `self.mem`.
                Some(start) => unsafe { Descriptor::load(start.add((index * DESC_BYTES) as usize)) },
                None => self.load_across(table, index)?,
            };
            if desc.has(DESC_F_INDIRECT) {
                return Err(RingFault::IndirectNested { head });
            }
            writable = self.add_buffer(head, desc, writable, chain)?;
            if !desc.has(DESC_F_NEXT) {
                return Ok(());
            }
            index = desc.next.into();
        }
        Err(RingFault::ChainTooLong { head, size: self.size })
    }

    /// Copies an entry of an indirect table that runs over the border of two regions.
    #[cold]
    fn load_across(&self, table: Descriptor, index: u32) -> Result<Descriptor, RingFault> {
        let outside = RingFault::BufferOutsideMemory { guest_addr: table.addr, len: table.len };
        let addr = table.addr.checked_add(u64::from(index * DESC_BYTES)).ok_or(outside)?;
        let mut bytes = [0; DESC_BYTES as usize];
        let mut done = 0;
        let whole = self.mem.split_slice(addr, DESC_BYTES, |part| {
            let end = done + part.len() as usize;
            self.mem.read(part, 0, &mut bytes[done..end]);
            done = end;
            true
        });
        whole.then(|| Descriptor::from_bytes(bytes)).ok_or(outside)
    }

    /// Adds one descriptor's buffer; returns whether the chain is in its writable half now.
    #[inline]
    fn add_buffer(
        &mut self,
        head: u16,
        desc: Descriptor,
        writable: bool,
        chain: &mut Chain,
    ) -> Result<bool, RingFault> {
        let write = desc.has(DESC_F_WRITE);
        if writable && !write {
            return Err(RingFault::ReadableAfterWritable { head });
        }
        if desc.len == 0 {
            return Ok(write);
        }
        let Some(slice) = self.mem.slice(&mut self.hint, desc.addr, desc.len) else {
            return self.add_split(head, desc, write, chain);
        };
        let pushed = if write { chain.push_writable(slice) } else { chain.push_readable(slice) };
        if !pushed {
            return Err(RingFault::TooManyParts { head, limit: chain.part_limit() });
        }
        Ok(write)
    }

    #[cold]
    fn add_split(
        &self,
        head: u16,
        desc: Descriptor,
        write: bool,
        chain: &mut Chain,
    ) -> Result<bool, RingFault> {
        let mut full = false;
        let whole = self.mem.split_slice(desc.addr, desc.len, |part| {
            full = !(if write { chain.push_writable(part) } else { chain.push_readable(part) });
            !full
        });
        match (whole, full) {
            (true, _) => Ok(write),
            (false, true) => Err(RingFault::TooManyParts { head, limit: chain.part_limit() }),
            (false, false) => Err(RingFault::BufferOutsideMemory { guest_addr: desc.addr, len: desc.len }),
        }
    }

    /// Gives a head back to the driver with `written` bytes in its writable buffers. The driver sees it after
    /// [`publish`](Queue::publish); with IN_ORDER not before all older heads were given back, too.
    ///
    /// # Panics
    ///
    /// When the head is not in flight (a bug of the caller).
    #[inline(always)]
    pub fn push_used(&mut self, head: u16, written: u32) {
        let state = &mut self.heads[usize::from(head)];
        assert!(*state == HeadState::InFlight, "descriptor {head} is not in flight");
        if self.in_order && self.taken[usize::from(self.oldest & self.mask)] != head {
            *state = HeadState::Waiting;
            self.written[usize::from(head)] = written;
            self.waiting += 1;
            return;
        }
        *state = HeadState::Free;
        self.push_next(head, written);
        if self.waiting > 0 {
            self.push_waiting();
        }
    }

    /// Moves the heads that waited for an older one to the used ring, oldest first.
    #[cold]
    fn push_waiting(&mut self) {
        while self.waiting > 0 {
            let head = self.taken[usize::from(self.oldest & self.mask)];
            if self.heads[usize::from(head)] != HeadState::Waiting {
                break;
            }
            self.heads[usize::from(head)] = HeadState::Free;
            self.waiting -= 1;
            self.push_next(head, self.written[usize::from(head)]);
        }
    }

    /// Gives the head that is next in turn to the used ring.
    #[inline(always)]
    fn push_next(&mut self, head: u16, written: u32) {
        self.in_flight -= 1;
        self.oldest = self.oldest.wrapping_add(1);
        if self.in_order && written == 0 {
            if self.run.count == 0 {
                self.run.first = self.next_used;
            }
            self.run.count += 1;
            self.run.last_head = head;
        } else {
            // The driver takes the length of skipped elements for granted, so one with a length is never skipped.
            self.end_run();
            self.write_element(self.next_used, head, written);
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.link(head);
        }
        self.next_used = self.next_used.wrapping_add(1);
    }

    #[inline]
    fn end_run(&mut self) {
        if self.run.count > 0 {
            self.write_element(self.run.first, self.run.last_head, 0);
            self.run.count = 0;
        }
    }

    #[inline]
    fn write_element(&mut self, position: u16, head: u16, written: u32) {
        let place = usize::from(position & self.mask);
        let element = u64::from(head) | u64::from(written) << 32;
        #[cfg(test)]
        crate::kill::point();
        // SAFETY: `place` is below `size`, and the used ring was resolved for `size` elements of 8 bytes after its 4 bytes
        // of flags and index; the mapping lives as long as `self.mem`. `Word` needs no alignment.
        unsafe { self.used.add(RING).cast::<Word>().add(place).write_volatile(Word(element)) };
        self.log_ring(4 + 8 * place as u64, 8);
    }

    /// Asks the CPU for the lines of the used ring that the next `count` heads go to, given back with bytes in them: the
    /// driver has read them, and each store would wait for its line.
    #[inline]
    pub fn prefetch_used(&self, count: usize) {
        const PER_LINE: usize = 8;
        for ahead in (0..count).step_by(PER_LINE) {
            let place = usize::from(self.next_used.wrapping_add(ahead as u16) & self.mask);
            cpu::prefetch_write(self.used.wrapping_add(RING + 4 * place).cast());
        }
    }

    /// Shows everything pushed since the last time to the driver, by one store of the index; true when the driver wants a
    /// signal.
    ///
    /// The first call after a restart may say true without anything pushed.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.next_used == self.published && !self.signal_owed {
            return false;
        }
        self.end_run();
        #[cfg(test)]
        crate::kill::point();
        self.used_word(IDX).store(self.next_used.to_le(), Ordering::Release);
        if let Some(inflight) = &mut self.inflight {
            // A process killed here must have stored the index before the marks go.
            compiler_fence(Ordering::SeqCst);
            inflight.retire(self.next_used, self.size);
        }
        self.log_ring(2, 2);
        let before = std::mem::replace(&mut self.published, self.next_used);
        let owed = std::mem::take(&mut self.signal_owed);
        // The driver stores what it wants, then looks at the index; we do it the other way round. The full fence makes
        // sure that one of the two sees the other.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let used_event =
                u16::from_le(self.avail_word(RING + usize::from(self.size)).load(Ordering::Relaxed));
            owed || event_passed(used_event, self.published, before)
        } else {
            u16::from_le(self.avail_word(FLAGS).load(Ordering::Relaxed)) & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Asks the driver for kicks; true when entries wait already: do not sleep.
    pub fn arm(&mut self) -> bool {
        if self.event_idx {
            self.set_avail_event(self.next_avail);
        } else {
            self.used_word(FLAGS).store(0, Ordering::Relaxed);
            self.log_ring(0, 2);
        }
        // As in `publish`, with the roles exchanged: we say what we want, then look.
        fence(Ordering::SeqCst);
        // A broken index counts as work: the next pop finds the fault.
        self.ready() != Ok(0)
    }

    /// Tells the driver that kicks are not needed, since the queue is polled. It may kick nevertheless.
    pub fn disarm(&mut self) {
        if self.event_idx {
            // An event index just passed: the next one that matches is 65536 entries away.
            self.set_avail_event(self.next_avail.wrapping_sub(1));
        } else {
            self.used_word(FLAGS).store(USED_F_NO_NOTIFY.to_le(), Ordering::Relaxed);
            self.log_ring(0, 2);
        }
    }

    fn set_avail_event(&mut self, value: u16) {
        // The used ring's elements take 4 words each; the field behind them exists with `event_idx` only.
        let slot = RING + 4 * usize::from(self.size);
        self.used_word(slot).store(value.to_le(), Ordering::Relaxed);
        self.log_ring(2 * slot as u64, 2);
    }

    /// Marks `len` bytes at `offset` inside a slice as written, when a dirty log is on. Call it after writing them and
    /// before pushing the head.
    #[inline]
    pub fn log_written(&mut self, slice: GuestSlice, offset: u32, len: u32) {
        if let Some(log) = &self.log {
            log.mark(self.mem.guest_addr(slice) + u64::from(offset), len.into());
        }
    }

    /// True when written buffers must be reported by [`log_written`](Queue::log_written).
    #[inline]
    pub fn logs_writes(&self) -> bool {
        self.log.is_some()
    }

    #[inline]
    fn log_ring(&self, offset: u64, len: u64) {
        if let (Some(log), Some(base)) = (&self.log, self.used_log_addr) {
            log.mark(base.saturating_add(offset), len);
        }
    }

    /// A word of the avail ring: flags, index, or the event index behind the elements.
    #[inline]
    fn avail_word(&self, slot: usize) -> &AtomicU16 {
        debug_assert!(slot <= RING + usize::from(self.size));
        // SAFETY: callers use FLAGS, IDX and, with `event_idx` only, the slot behind the elements, all of which `new`
        // resolved and found aligned to 2; the mapping lives as long as `self.mem`. The reference is used for one access.
        unsafe { AtomicU16::from_ptr(self.avail.add(slot)) }
    }

    /// A word of the used ring: flags, index, or the event index behind the elements.
    #[inline]
    fn used_word(&self, slot: usize) -> &AtomicU16 {
        debug_assert!(slot <= RING + 4 * usize::from(self.size));
        // SAFETY: as in `avail_word`; the used ring was found aligned to 4.
        unsafe { AtomicU16::from_ptr(self.used.add(slot)) }
    }
}

/// Whether the other side wants to hear of a move of the index from `old` to `new` (virtio 1.2, 2.7.7.2, `need_event`).
#[inline]
fn event_passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
