//! A pool at work on its worker: the store's actions become operations of the ring, and their ends reports to the store.

mod moves;

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reactor::{Buffers, FileId, Full, Io, MemoryId, Reply};
use telemetry::RateLimited;
use tiering::{
    Action, ActionKind, Buffer, Done, Grown, Growth, Hit, IoError, Request, RequestError, RequestKind, Store,
    UNIT_BYTES, VolumeError, VolumeId,
};
use virtq::{Chain, GuestMemory, GuestSlice, Parts, RegionHint};

use super::control::PoolStatus;
use super::device::{OpenDevice, SCRATCH_BUFFERS};
use super::metrics::PoolMetrics;
use crate::disk::Medium;
use crate::helper::{Helper, Job};
use crate::queue::is_aligned;

/// Marks the tokens of pools among those of queues.
pub(crate) const POOL_TOKEN: u64 = 1 << 62;
/// A pool's token is: the mark, the pool's number, the action.
const NUMBER_SHIFT: u32 = 32;
/// How often the store is told the time while it works: what a limit of some MiB a second allows in between is one unit,
/// so that guests wait behind one, not behind several.
const TICK_BUSY: Duration = Duration::from_millis(2);
/// How often while nothing happens: for what is to be made durable sooner or later.
const TICK_IDLE: Duration = Duration::from_millis(500);

/// Whose request a tag names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Nobody's: the tag is free.
    Nobody,
    /// A guest's.
    Queue {
        /// The queue's number at the worker.
        queue: u32,
        /// Head of the request's chain.
        head: u16,
    },
    /// The daemon's own, by its number.
    Own(u32),
}

/// The buffers of a guest's request that an action works on.
pub(crate) struct GuestPart<'a> {
    /// The guest's memory as the ring knows it.
    pub(crate) id: MemoryId,
    /// The same.
    pub(crate) memory: &'a GuestMemory,
    /// The request's chain.
    pub(crate) chain: &'a Chain,
    /// Whether the guest's bytes are read (else written).
    pub(crate) readable: bool,
    /// Bytes of the chain's half before the action's.
    pub(crate) skip: u64,
}

impl GuestPart<'_> {
    fn parts(&self, len: u32) -> Parts<'_> {
        match self.readable {
            true => self.chain.readable_range(self.skip, u64::from(len)),
            false => self.chain.writable_range(self.skip, u64::from(len)),
        }
    }
}

/// A transfer of the daemon's own, from or to memory of its own.
pub(crate) struct OwnTransfer {
    /// The volume.
    pub(crate) volume: VolumeId,
    /// Read, write, or flush.
    pub(crate) kind: RequestKind,
    /// First byte.
    pub(crate) offset: u64,
    /// Where the bytes are; its length is the request's.
    pub(crate) buffer: Option<(Arc<GuestMemory>, GuestSlice)>,
    /// Gets the result.
    pub(crate) then: WhenDone,
}

struct OwnFlight {
    volume: VolumeId,
    memory: Option<(MemoryId, Arc<GuestMemory>, GuestSlice)>,
    then: WhenDone,
}

/// What waits for a transfer of the daemon's own.
pub(crate) type WhenDone = Box<dyn FnOnce(Result<(), RequestError>) + Send>;

/// What waits until a record survives a crash.
type WhenFirm = Box<dyn FnOnce(Result<(), VolumeError>) + Send>;

/// How a pool is to grow.
pub struct Grow {
    /// The device that joins, if one does.
    pub(crate) device: Option<OpenDevice>,
    /// What the store is told.
    pub(crate) growth: Growth,
    /// Gets what came of it.
    pub(crate) then: WhenGrown,
}

/// What waits for a pool to grow.
type WhenGrown = Box<dyn FnOnce(Result<Grown, String>) + Send>;

/// A device of an open pool.
struct Member {
    file: FileId,
    handle: Arc<File>,
    medium: Medium,
    alignment: (u32, u32),
    discard: bool,
    size_bytes: u64,
    path: PathBuf,
}

#[derive(Clone, Copy)]
struct Flight {
    action: Action,
    bounced: bool,
    started: Instant,
    /// The action that is carried out by the same operation, behind this one.
    next: Option<u32>,
}

/// What a worker is given to run a pool.
pub struct PoolStart {
    /// Its name, for messages.
    pub(crate) name: String,
    /// The open store.
    pub(crate) store: Store,
    /// Its devices, in the pool's order; `None`: not there.
    pub(crate) devices: Vec<Option<OpenDevice>>,
    /// Requests it takes at a time.
    pub(crate) requests_max: u32,
    /// When the store's clock stood at zero.
    pub(crate) epoch: Instant,
    /// What others may know at any time.
    pub(crate) status: Arc<PoolStatus>,
    /// Where it is counted.
    pub(crate) metrics: PoolMetrics,
    /// Brake for messages.
    pub(crate) limited: Arc<RateLimited>,
}

/// A pool on its worker.
pub struct Pool {
    name: String,
    token: u64,
    store: Store,
    members: Vec<Option<Member>>,
    helper: Helper,
    scratch: Arc<GuestMemory>,
    scratch_id: MemoryId,
    /// By number of the scratch buffer; the last one holds zeroes and is never written.
    scratch_slices: Box<[GuestSlice]>,
    owners: Box<[Owner]>,
    free_tags: Vec<u32>,
    flights: Vec<Option<Flight>>,
    in_flight: u32,
    /// Actions that found no room, or are to be tried again.
    waiting: VecDeque<Action>,
    own: Vec<Option<OwnFlight>>,
    own_waiting: VecDeque<OwnTransfer>,
    when_firm: Vec<(u64, WhenFirm)>,
    forks: Vec<(VolumeId, WhenFirm)>,
    /// Whether a device joins, and who waits.
    growing: Option<(bool, WhenGrown)>,
    closing: Option<Reply<()>>,
    epoch: Instant,
    next_tick: Instant,
    worked: bool,
    status: Arc<PoolStatus>,
    metrics: PoolMetrics,
    limited: Arc<RateLimited>,
}

impl Pool {
    /// Makes the devices known to the worker.
    pub(crate) fn new(start: PoolStart, number: usize, helper: Helper, io: &mut Io) -> std::io::Result<Pool> {
        let unit = UNIT_BYTES as u32;
        let buffers = SCRATCH_BUFFERS + 1;
        let scratch = Arc::new(GuestMemory::anonymous(&[(0, (buffers * unit) as usize)]));
        let mut hint = RegionHint::default();
        let slice = |index: u32| {
            scratch.slice(&mut hint, u64::from(index * unit), unit).expect("inside the memory just made")
        };
        let scratch_slices = (0..buffers).map(slice).collect();
        let mut members = Vec::new();
        for device in start.devices {
            let member = device.map(|device| Member::new(device, io)).transpose();
            match member {
                Ok(member) => members.push(member),
                Err(error) => {
                    members.iter().flatten().for_each(|member: &Member| io.remove_file(member.file));
                    return Err(error);
                }
            }
        }
        Ok(Pool {
            name: start.name,
            token: POOL_TOKEN | (number as u64) << NUMBER_SHIFT,
            store: start.store,
            members,
            helper,
            scratch_id: io.add_memory(scratch.clone()),
            scratch,
            scratch_slices,
            owners: vec![Owner::Nobody; start.requests_max as usize].into(),
            free_tags: (0..start.requests_max).rev().collect(),
            flights: Vec::new(),
            in_flight: 0,
            waiting: VecDeque::new(),
            own: Vec::new(),
            own_waiting: VecDeque::new(),
            when_firm: Vec::new(),
            forks: Vec::new(),
            growing: None,
            closing: None,
            epoch: start.epoch,
            next_tick: io.now(),
            worked: true,
            status: start.status,
            metrics: start.metrics,
            limited: start.limited,
        })
    }

    /// The pool that a token belongs to.
    pub(crate) fn number_of(token: u64) -> usize {
        ((token & !POOL_TOKEN) >> NUMBER_SHIFT) as usize
    }

    /// The store.
    pub(crate) fn store(&mut self) -> &mut Store {
        &mut self.store
    }

    /// Gives the store a request; returns its tag. Full: try again when something has completed.
    #[inline]
    pub(crate) fn submit(
        &mut self,
        owner: Owner,
        volume: VolumeId,
        kind: RequestKind,
        offset: u64,
        len: u32,
    ) -> Result<u32, Full> {
        let tag = *self.free_tags.last().ok_or(Full)?;
        self.store.submit(Request { tag, volume, kind, offset, len }).map_err(|_| Full)?;
        self.free_tags.pop();
        self.owners[tag as usize] = owner;
        self.worked = true;
        Ok(tag)
    }

    /// Where hot data are to be read: the file and its alignment. They stay there until [`Pool::hit_done`].
    #[inline]
    pub(crate) fn hit(
        &mut self,
        volume: VolumeId,
        offset: u64,
        len: u32,
    ) -> Option<(Hit, FileId, (u32, u32))> {
        let hit = self.store.hit(volume, offset, len)?;
        self.worked = true;
        match &self.members[usize::from(hit.device.0)] {
            Some(member) => Some((hit, member.file, member.alignment)),
            None => {
                self.hit_done(hit, false);
                None
            }
        }
    }

    /// Hot data were read, or could not be.
    #[inline]
    pub(crate) fn hit_done(&mut self, hit: Hit, failed: bool) {
        self.store.hit_done(hit, failed);
    }

    /// The next thing to do.
    #[inline]
    pub(crate) fn next_action(&mut self) -> Option<Action> {
        self.waiting.pop_front().or_else(|| self.store.next_action())
    }

    /// An action that could not be started comes first next time.
    pub(crate) fn put_back(&mut self, action: Action) {
        self.waiting.push_front(action);
    }

    /// Whose buffers an action works on.
    #[inline]
    pub(crate) fn owner_of(&self, action: &Action) -> Owner {
        match action.buffer {
            Buffer::Request { tag, .. } => self.owners[tag as usize],
            _ => Owner::Nobody,
        }
    }

    /// The action cannot be done.
    pub(crate) fn refuse(&mut self, action: Action) {
        self.store.complete(action.id, Err(IoError));
    }

    /// Carries out an action; `guest` has the buffers if it works on a guest's. True if the bytes take a detour because
    /// of their alignment.
    #[inline]
    pub(crate) fn carry_out(
        &mut self,
        action: Action,
        guest: Option<&GuestPart<'_>>,
        io: &mut Io,
    ) -> Result<bool, Full> {
        match action.kind {
            ActionKind::Read | ActionKind::Write => return self.transfer(action, guest, io),
            ActionKind::ZeroFill => {
                self.each_part(&action, guest, |memory, part, _| memory.zero(part, 0, part.len()));
                self.store.complete(action.id, Ok(action.len));
            }
            ActionKind::CopyOut { scratch, scratch_offset } => {
                let from = self.scratch.window(self.scratch_slices[scratch as usize]);
                self.each_part(&action, guest, |memory, part, done| {
                    from.copy_to(scratch_offset + done, memory.window(part), 0, part.len());
                });
                self.store.complete(action.id, Ok(action.len));
            }
            ActionKind::Flush => {
                let Some(member) = self.member(&action) else { return Ok(self.absent(action)) };
                io.fsync(member.file, true, self.token | u64::from(action.id.0))?;
                self.takes_off(action, false, io);
            }
            ActionKind::Discard => self.discard(action, io)?,
        }
        Ok(false)
    }

    /// Calls `work` with each part of the action's buffer and the bytes before it.
    fn each_part(
        &self,
        action: &Action,
        guest: Option<&GuestPart<'_>>,
        mut work: impl FnMut(&GuestMemory, GuestSlice, u32),
    ) {
        if let Some(guest) = guest {
            let mut done = 0;
            for part in guest.parts(action.len) {
                work(guest.memory, part, done);
                done += part.len();
            }
        } else if let Some((_, memory, part)) = self.own_part(action) {
            work(&memory, part, 0);
        }
    }

    /// The part of the daemon's own memory that an action works on.
    fn own_part(&self, action: &Action) -> Option<(MemoryId, Arc<GuestMemory>, GuestSlice)> {
        let (Buffer::Request { offset, .. }, Owner::Own(number)) = (action.buffer, self.owner_of(action))
        else {
            return None;
        };
        let (id, memory, slice) = self.own.get(number as usize)?.as_ref()?.memory.as_ref()?;
        Some((*id, memory.clone(), slice.sub(offset, action.len)?))
    }

    #[inline]
    fn member(&self, action: &Action) -> Option<&Member> {
        self.members.get(usize::from(action.device.0))?.as_ref()
    }

    #[cold]
    fn absent(&mut self, action: Action) -> bool {
        self.refuse(action);
        false
    }

    #[inline]
    fn takes_off(&mut self, action: Action, bounced: bool, io: &Io) {
        let at = action.id.0 as usize;
        if at >= self.flights.len() {
            self.flights.resize(at + 1, None);
        }
        self.flights[at] = Some(Flight { action, bounced, started: io.now(), next: None });
        self.in_flight += 1;
        self.worked = true;
    }

    #[inline]
    fn transfer(&mut self, action: Action, guest: Option<&GuestPart<'_>>, io: &mut Io) -> Result<bool, Full> {
        let Some(member) = self.member(&action) else { return Ok(self.absent(action)) };
        let (file, alignment) = (member.file, member.alignment);
        let write = action.kind == ActionKind::Write;
        let own;
        let scratch;
        let mut bounced = false;
        let buffers = match (action.buffer, guest) {
            (Buffer::Request { .. }, Some(guest)) => {
                let segments = if guest.readable { guest.chain.readable() } else { guest.chain.writable() };
                if is_aligned(guest.memory, alignment, guest.parts(action.len)) {
                    Buffers::Guest { memory: guest.id, segments, skip: guest.skip, len: action.len }
                } else {
                    bounced = true;
                    self.bounce(&action, guest, io)?
                }
            }
            (Buffer::Request { .. }, None) => {
                let Some((memory, _, slice)) = self.own_part(&action) else { return Ok(self.absent(action)) };
                own = [slice];
                Buffers::Guest { memory, segments: &own, skip: 0, len: action.len }
            }
            (Buffer::Scratch { .. }, _) => return self.move_scratch(action, file, io),
            (Buffer::Zeroes, _) => {
                // More than the zeroes there are is a short transfer, which the store continues.
                let len = action.len.min(UNIT_BYTES as u32);
                scratch = [self.scratch_part(SCRATCH_BUFFERS, 0, len)];
                Buffers::Guest { memory: self.scratch_id, segments: &scratch, skip: 0, len }
            }
            (Buffer::Meta { index, offset }, _) => {
                let mut buffer = io.buffer().ok_or(Full)?;
                let bytes = &self.store.meta(index)[offset as usize..][..action.len as usize];
                let len = bytes.len().min(io.buffer_bytes());
                io.bytes_mut(&mut buffer)[..len].copy_from_slice(&bytes[..len]);
                Buffers::Pool(buffer, 0..len)
            }
            (Buffer::None, _) => unreachable!("a transfer has a buffer"),
        };
        let token = self.token | u64::from(action.id.0);
        match write {
            false => io.read(file, action.offset, buffers, token)?,
            true => io.write(file, action.offset, buffers, token)?,
        }
        self.takes_off(action, bounced, io);
        Ok(bounced)
    }

    /// A buffer of the worker's in place of the guest's, which direct I/O cannot use.
    fn bounce(&self, action: &Action, guest: &GuestPart<'_>, io: &mut Io) -> Result<Buffers<'static>, Full> {
        let mut buffer = io.buffer().ok_or(Full)?;
        let len = (action.len as usize).min(io.buffer_bytes());
        if guest.readable {
            guest.chain.read_at(guest.memory, guest.skip, &mut io.bytes_mut(&mut buffer)[..len]);
        }
        Ok(Buffers::Pool(buffer, 0..len))
    }

    fn scratch_part(&self, index: u32, offset: u32, len: u32) -> GuestSlice {
        self.scratch_slices[index as usize].sub(offset, len).expect("the store stays inside scratch buffers")
    }

    fn discard(&mut self, action: Action, io: &mut Io) -> Result<(), Full> {
        let token = self.token | u64::from(action.id.0);
        let (offset, bytes) = (action.offset, u64::from(action.len));
        match self.member(&action) {
            Some(member) if member.discard && member.medium == Medium::File => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                io.fallocate(member.file, mode, offset, bytes, token)?;
            }
            Some(member) if member.discard => {
                self.helper.send(Job::Discard { file: member.handle.clone(), offset, bytes, token });
            }
            _ => {
                self.store.complete(action.id, Ok(action.len));
                return Ok(());
            }
        }
        self.takes_off(action, false, io);
        Ok(())
    }

    /// The action in flight whose operation has this token, if its bytes took a detour.
    pub(crate) fn bounced_read(&self, token: u64) -> Option<Action> {
        let flight = self.flights.get(token as u32 as usize)?.as_ref()?;
        (flight.bounced && flight.action.kind == ActionKind::Read).then_some(flight.action)
    }

    /// The operation with this token ended.
    #[inline]
    pub(crate) fn completed(&mut self, token: u64, result: i32, io: &Io) {
        let (mut at, mut left) = (Some(token as u32), result);
        let merged = |flight: &Flight| flight.next.is_some();
        let merged = self.flights[token as u32 as usize].as_ref().is_some_and(merged);
        while let Some(flight) = at.and_then(|at| self.flights[at as usize].take()) {
            at = flight.next;
            let moved = if merged { left.min(flight.action.len as i32) } else { left };
            left -= if result > 0 { moved } else { 0 };
            self.ended(&flight, moved, merged, io);
        }
    }

    /// An action ended. If it was `merged` with others and nothing of it was done, it is tried again by itself.
    #[inline]
    fn ended(&mut self, flight: &Flight, result: i32, merged: bool, io: &Io) {
        let Flight { action, started, .. } = *flight;
        self.in_flight -= 1;
        self.worked = true;
        if merged && result <= 0 {
            return self.waiting.push_back(action);
        }
        let transfer = matches!(action.kind, ActionKind::Read | ActionKind::Write);
        if matches!(action.buffer, Buffer::Meta { .. }) || action.kind == ActionKind::Flush {
            self.metrics.device_time(&action, io.now().duration_since(started));
        }
        match result {
            0.. if transfer => {
                let moved = result.unsigned_abs();
                // What goes on begins at a block again.
                let align = self.member(&action).map_or(1, |member| member.alignment.1);
                let whole = if moved == action.len { moved } else { moved - moved % align };
                if whole == 0 && moved > 0 {
                    return self.waiting.push_back(action);
                }
                self.store.complete(action.id, Ok(whole));
            }
            0.. => self.store.complete(action.id, Ok(action.len)),
            _ if matches!(-result, libc::EAGAIN | libc::EINTR) => self.waiting.push_back(action),
            // A discard is a hint.
            _ if action.kind == ActionKind::Discard => self.store.complete(action.id, Ok(action.len)),
            _ => {
                self.device_failed(&action, -result);
                self.store.complete(action.id, Err(IoError));
            }
        }
    }

    #[cold]
    fn device_failed(&self, action: &Action, errno: i32) {
        let error = std::io::Error::from_raw_os_error(errno);
        let attempt = match action.kind {
            ActionKind::Read => "read",
            ActionKind::Write => "write",
            _ => "flush",
        };
        self.metrics.device_errors.add(1);
        let (pool, device) = (&self.name, action.device.0);
        if let Some(suppressed) = self.limited.pass(&format!("{pool}/{device}/{attempt}/{errno}")) {
            let path = self.member(action).map(|member| member.path.display().to_string());
            let (offset, len) = (action.offset, action.len);
            tracing::error!(pool, path, attempt, offset, len, %error, suppressed, "a device of a pool failed");
        }
    }

    /// The next request that is done: whose it is and how it ended.
    #[inline]
    pub(crate) fn next_done(&mut self) -> Option<(Owner, Result<(), RequestError>)> {
        let Done { tag, result } = self.store.next_done()?;
        let owner = std::mem::replace(&mut self.owners[tag as usize], Owner::Nobody);
        self.free_tags.push(tag);
        Some((owner, result))
    }

    /// Calls off what a queue wrote that waits for space: it has to stop.
    pub(crate) fn call_off(&mut self, number: u32) {
        if self.store.waiting_for_space() > 0 {
            let owners = &self.owners;
            let of_queue = |owner| matches!(owner, Owner::Queue { queue, .. } if queue == number);
            self.store.cancel_waiting(|tag| of_queue(owners[tag as usize]));
            self.worked = true;
        }
    }

    /// Takes a transfer of the daemon's own.
    pub(crate) fn begin_own(&mut self, transfer: OwnTransfer) {
        self.own_waiting.push_back(transfer);
        self.worked = true;
    }

    /// Gives the store the daemon's own transfers, as long as there is room. True if there was any.
    pub(crate) fn start_own(&mut self, io: &mut Io) -> bool {
        let mut worked = false;
        while let Some(transfer) = self.own_waiting.front() {
            let free = self.own.iter().position(Option::is_none).unwrap_or(self.own.len());
            let len = transfer.buffer.as_ref().map_or(0, |(_, slice)| slice.len());
            let OwnTransfer { volume, kind, offset, .. } = *transfer;
            if self.submit(Owner::Own(free as u32), volume, kind, offset, len).is_err() {
                break;
            }
            let Some(OwnTransfer { buffer, then, .. }) = self.own_waiting.pop_front() else { break };
            let memory = buffer.map(|(memory, slice)| (io.add_memory(memory.clone()), memory, slice));
            if free == self.own.len() {
                self.own.push(None);
            }
            self.own[free] = Some(OwnFlight { volume, memory, then });
            worked = true;
        }
        worked
    }

    /// The daemon's own writes to a volume that wait for space fail.
    pub(crate) fn cancel_own_waiting(&mut self, volume: VolumeId) {
        let (owners, own) = (&self.owners, &self.own);
        self.store.cancel_waiting(|tag| match owners[tag as usize] {
            Owner::Own(at) => own[at as usize].as_ref().is_some_and(|flight| flight.volume == volume),
            _ => false,
        });
        self.worked = true;
    }

    /// A transfer of the daemon's own is done.
    pub(crate) fn own_done(&mut self, number: u32, result: Result<(), RequestError>, io: &mut Io) {
        if let Some(flight) = self.own.get_mut(number as usize).and_then(Option::take) {
            if let Some((id, ..)) = flight.memory {
                io.remove_memory(id);
            }
            (flight.then)(result);
        }
    }

    /// Calls `then` when everything recorded so far survives a crash.
    pub(crate) fn when_firm(&mut self, then: WhenFirm) {
        self.when_firm.push((self.store.last_record(), then));
        self.worked = true;
    }

    /// Calls `then` when the fork `id` is made and survives a crash.
    pub(crate) fn when_forked(&mut self, id: VolumeId, then: WhenFirm) {
        self.forks.push((id, then));
        self.worked = true;
    }

    /// Its devices as they were opened; `None`: not there.
    pub(crate) fn devices(&self) -> Vec<Option<OpenDevice>> {
        let device = |member: &Member| OpenDevice {
            path: member.path.clone(),
            file: member.handle.clone(),
            medium: member.medium,
            size_bytes: member.size_bytes,
            alignment: member.alignment,
            discard: member.discard,
            made: false,
        };
        self.members.iter().map(|member| member.as_ref().map(device)).collect()
    }

    /// Begins to grow.
    pub(crate) fn grow(&mut self, Grow { device, growth, then }: Grow, io: &mut Io) {
        let joins = device.is_some();
        match device.map(|device| Member::new(device, io)).transpose() {
            Ok(member) => self.members.extend(member.map(Some)),
            Err(error) => return then(Err(format!("the worker cannot take the device: {error}"))),
        }
        self.growing = Some((joins, then));
        self.worked = true;
        if let Err(error) = self.store.grow(growth) {
            self.grown(Err(error.to_string()), io);
        }
    }

    fn grown(&mut self, result: Result<Grown, String>, io: &mut Io) {
        let Some((joins, then)) = self.growing.take() else { return };
        if joins && result.is_err() && self.members.len() > self.store.devices().count() {
            let gone = self.members.pop().flatten();
            gone.into_iter().for_each(|member| io.remove_file(member.file));
        }
        then(result);
    }

    /// Ends the pool's work; `reply` is answered when all of its state is on the devices.
    pub(crate) fn close(&mut self, reply: Reply<()>) {
        self.store.close();
        self.closing = Some(reply);
        self.worked = true;
    }

    /// Tells those who wait for records, forks and growth.
    #[inline]
    pub(crate) fn settle(&mut self, io: &mut Io) {
        if self.growing.is_some() {
            match (self.store.next_grown(), self.store.read_only()) {
                (Some(result), _) => self.grown(result.map_err(|error| error.to_string()), io),
                (None, Some(why)) => self.grown(Err(format!("the pool is read-only: {why}")), io),
                (None, None) => {}
            }
        }
        if !self.when_firm.is_empty() || !self.forks.is_empty() {
            self.tell_waiting();
        }
    }

    fn tell_waiting(&mut self) {
        while let Some(id) = self.store.next_forked() {
            if let Some(at) = self.forks.iter().position(|(fork, _)| *fork == id) {
                self.forks.swap_remove(at).1(Ok(()));
            }
        }
        let read_only = self.store.read_only();
        let firm = self.store.firm_record();
        for (_, then) in self.when_firm.extract_if(.., |(record, _)| *record <= firm) {
            then(Ok(()));
        }
        if let Some(why) = read_only {
            let waiting = self.when_firm.drain(..).map(|(_, then)| then);
            for then in waiting.chain(self.forks.drain(..).map(|(_, then)| then)) {
                then(Err(VolumeError::ReadOnly(why)));
            }
        }
    }

    /// Whether a closed pool has nothing left to do.
    pub(crate) fn closed(&self) -> bool {
        self.closing.is_some()
            && (self.store.closed() || self.store.read_only().is_some())
            && self.in_flight == 0
            && self.waiting.is_empty()
            && self.store.idle()
    }

    /// Lets the worker forget a closed pool.
    pub(crate) fn finish(mut self, io: &mut Io) {
        for member in self.members.iter().flatten() {
            io.remove_file(member.file);
        }
        io.remove_memory(self.scratch_id);
        self.metrics.update(&mut self.store);
        if let Some(reply) = self.closing.take() {
            // The devices are to be free when the caller hears of it.
            drop(self.members);
            reply.send(());
        }
    }

    /// When [`Pool::tick`] is wanted next.
    #[inline]
    pub(crate) fn deadline(&self) -> Instant {
        self.next_tick
    }

    /// Tells the store the time, if it wants to know.
    pub(crate) fn tick(&mut self, now: Instant) {
        if now < self.next_tick {
            return;
        }
        self.store.tick(now.saturating_duration_since(self.epoch).as_nanos() as u64);
        let pause = if std::mem::take(&mut self.worked) { TICK_BUSY } else { TICK_IDLE };
        self.next_tick = now + pause;
        self.metrics.update(&mut self.store);
        self.status.update(&self.store, &self.name);
    }
}

impl Member {
    fn new(device: OpenDevice, io: &mut Io) -> std::io::Result<Member> {
        Ok(Member {
            file: io.add_file(device.file.as_fd())?,
            medium: device.medium,
            alignment: device.alignment,
            discard: device.discard,
            size_bytes: device.size_bytes,
            path: device.path,
            handle: device.file,
        })
    }
}
