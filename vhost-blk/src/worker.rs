//! The program of a storage worker: serves the queues that were given to it.

use std::os::fd::OwnedFd;
use std::thread::JoinHandle;
use std::time::Instant;

use reactor::{Io, Reply, Worker, WorkerConfig, WorkerHandle, spawn};
use telemetry::Registry;
use tiering::Buffer;
use virtq::Chain;

use crate::backend::QUEUE_SIZE_MAX;
use crate::helper::Helper;
use crate::queue::{KICK, Kit, POP_BATCH, Serving, Start, Stopped};
use crate::tier::{Grow, Owner, POOL_TOKEN, Pool, PoolStart};

/// Queues of one worker at most. Each takes two files and one operation for its watch.
const QUEUES_MAX: usize = 1024;
/// Requests in flight of one worker at most, and its watches.
const OPERATIONS_MAX: u32 = 8192;
/// A token is: queue, one bit for its kick, head.
pub(crate) const QUEUE_SHIFT: u32 = 17;

/// What a worker is asked to do.
pub enum Command {
    /// Serve a queue; answered with its number at this worker, or why it cannot be served.
    Start(Box<Start>, Reply<Result<usize, String>>),
    /// Stop serving a queue; answered when it is drained.
    Stop(usize, Reply<Option<Stopped>>),
    /// Signal another eventfd.
    SetCall(usize, Option<OwnedFd>, Reply<()>),
    /// The helper finished a job.
    Helped {
        /// The request's token.
        token: u64,
        /// 0 or a negative errno.
        result: i32,
    },
    /// Run a pool; answered with its number at this worker, or why it cannot be run.
    OpenPool(Box<PoolStart>, Reply<Result<usize, String>>),
    /// Do something with a pool; dropped when there is no pool of this number.
    Pool(usize, PoolWork),
    /// Make a pool larger; dropped when there is no pool of this number.
    GrowPool(usize, Box<Grow>),
    /// End the thread. All queues were stopped before.
    Shutdown,
}

/// What other threads do with a pool, on its worker.
pub type PoolWork = Box<dyn FnOnce(&mut Pool) + Send>;

/// A worker thread that serves queues and runs pools.
pub struct BlkWorker {
    queues: Vec<Option<Serving>>,
    pools: Vec<Option<Box<Pool>>>,
    helper: Helper,
    chain: Chain,
    heads: [u16; POP_BATCH],
    completions: u64,
}

/// Starts a storage worker, pinned to `core` if given.
pub fn start(
    name: String,
    core: Option<usize>,
    spin_us: u32,
    registry: &Registry,
) -> std::io::Result<(WorkerHandle<Command>, JoinHandle<()>)> {
    let (sender, receiver) = std::sync::mpsc::sync_channel::<WorkerHandle<Command>>(1);
    let mut handle = None;
    let helper = Helper::start(move |token, result| {
        if handle.is_none() {
            handle = receiver.recv().ok();
        }
        if let Some(handle) = &handle {
            // A worker that is gone needs no answer.
            let _ = handle.send(Command::Helped { token, result });
        }
    })?;
    let config = WorkerConfig {
        name,
        core,
        spin_us,
        operations_max: OPERATIONS_MAX,
        files_max: 2 * QUEUES_MAX as u32 + 16,
        ..WorkerConfig::default()
    };
    let (handle, thread) = spawn(config, registry, move |_| BlkWorker {
        queues: Vec::new(),
        pools: Vec::new(),
        helper,
        chain: Chain::new(QUEUE_SIZE_MAX),
        heads: [0; POP_BATCH],
        completions: 0,
    })?;
    let _ = sender.send(handle.clone());
    Ok((handle, thread))
}

impl BlkWorker {
    fn start_queue(&mut self, start: Start, io: &mut Io) -> Result<usize, String> {
        let free = self.queues.iter().position(Option::is_none).unwrap_or(self.queues.len());
        if free == QUEUES_MAX {
            return Err(format!(
                "this worker serves {QUEUES_MAX} queues already; start the daemon with more --cores"
            ));
        }
        let token = (free as u64) << QUEUE_SHIFT;
        let serving = Serving::new(start, token, self.helper.clone(), io)
            .map_err(|error| format!("the host refused to watch the queue: {error}"))?;
        if free == self.queues.len() {
            self.queues.push(None);
        }
        self.queues[free] = Some(serving);
        Ok(free)
    }

    fn open_pool(&mut self, start: PoolStart, io: &mut Io) -> Result<usize, String> {
        let free = self.pools.iter().position(Option::is_none).unwrap_or(self.pools.len());
        let pool = Pool::new(start, free, self.helper.clone(), io)
            .map_err(|error| format!("the worker cannot take its devices: {error}"))?;
        if free == self.pools.len() {
            self.pools.push(None);
        }
        self.pools[free] = Some(Box::new(pool));
        Ok(free)
    }

    /// Carries out what the pools want done, and tells queues what is done.
    #[inline]
    fn drive_pools(&mut self, io: &mut Io) -> bool {
        let mut worked = false;
        for at in 0..self.pools.len() {
            let Some(pool) = self.pools[at].as_deref_mut() else { continue };
            let driven = drive(pool, &mut self.queues, &mut self.chain, io);
            if driven {
                // There may be room again for what found none.
                self.completions += 1;
                worked = true;
            }
            pool.settle(io);
            if pool.closed() {
                self.pools[at].take().into_iter().for_each(|pool| pool.finish(io));
            }
        }
        worked
    }

    fn pool_completion(&mut self, io: &mut Io, token: u64, result: i32) {
        let Some(pool) = self.pools.get_mut(Pool::number_of(token)).and_then(Option::as_deref_mut) else {
            return;
        };
        self.completions += 1;
        // A buffer that is not taken goes back by itself: one of a read that failed stays where it is.
        if result > 0
            && let Some(action) = pool.bounced_read(token)
            && let Some(buffer) = io.take_buffer()
        {
            if let (Owner::Queue { queue, head }, Buffer::Request { offset, .. }) =
                (pool.owner_of(&action), action.buffer)
                && let Some(serving) = self.queues.get_mut(queue as usize).and_then(Option::as_mut)
                && serving.walk_again(head, io, &mut self.chain)
            {
                let moved = &io.bytes(&buffer)[..result.unsigned_abs() as usize];
                serving.bring(head, offset, moved, &self.chain);
            }
            io.release(buffer);
        }
        pool.completed(token, result, io);
    }

    fn queue(&mut self, number: usize) -> Option<&mut Serving> {
        self.queues.get_mut(number).and_then(Option::as_mut)
    }
}

impl Worker for BlkWorker {
    type Command = Command;

    fn command(&mut self, io: &mut Io, command: Command) {
        match command {
            Command::Start(start, reply) => reply.send(self.start_queue(*start, io)),
            Command::Stop(number, reply) => match self.queue(number) {
                Some(queue) => queue.stop(reply),
                None => reply.send(None),
            },
            Command::SetCall(number, call, reply) => {
                if let Some(queue) = self.queue(number) {
                    queue.set_call(call, io);
                }
                reply.send(());
            }
            Command::Helped { token, result } => self.completion(io, token, result),
            Command::OpenPool(start, reply) => reply.send(self.open_pool(*start, io)),
            Command::Pool(number, work) => {
                if let Some(pool) = self.pools.get_mut(number).and_then(Option::as_deref_mut) {
                    work(pool);
                }
            }
            Command::GrowPool(number, grow) => {
                if let Some(pool) = self.pools.get_mut(number).and_then(Option::as_deref_mut) {
                    pool.grow(*grow, io);
                }
            }
            Command::Shutdown => io.stop(),
        }
    }

    #[inline]
    fn completion(&mut self, io: &mut Io, token: u64, result: i32) {
        if token & POOL_TOKEN != 0 {
            return self.pool_completion(io, token, result);
        }
        let Some(queue) = self.queues.get_mut((token >> QUEUE_SHIFT) as usize).and_then(Option::as_mut)
        else {
            return;
        };
        if token & KICK != 0 {
            queue.kicked();
            return;
        }
        self.completions += 1;
        let pool = queue.pool_number().and_then(|number| self.pools.get_mut(number)?.as_deref_mut());
        queue.completed(token as u16, result, &mut Kit { io, chain: &mut self.chain, pool });
    }

    #[inline]
    fn poll(&mut self, io: &mut Io) -> bool {
        // First what is done, so that its answers are published with the rest; afterwards what was asked for.
        let mut worked = self.drive_pools(io);
        for place in &mut self.queues {
            let Some(queue) = place else { continue };
            let pool = queue.pool_number().and_then(|number| self.pools.get_mut(number)?.as_deref_mut());
            let mut kit = Kit { io, chain: &mut self.chain, pool };
            worked |= queue.poll(&mut kit, &mut self.heads, self.completions);
            if queue.stopped() {
                worked = true;
                place.take().into_iter().for_each(|queue| queue.finish(io));
            }
        }
        worked | self.drive_pools(io)
    }

    fn deadline(&mut self, _now: Instant) -> Option<Instant> {
        self.pools.iter().flatten().map(|pool| pool.deadline()).min()
    }

    fn tick(&mut self, _io: &mut Io, now: Instant) {
        self.pools.iter_mut().flatten().for_each(|pool| pool.tick(now));
    }

    fn arm(&mut self, _io: &mut Io) -> bool {
        self.queues.iter_mut().flatten().fold(false, |work, queue| queue.arm() | work)
    }

    fn disarm(&mut self, _io: &mut Io) {
        self.queues.iter_mut().flatten().for_each(Serving::disarm);
    }
}

/// Carries out what a pool wants done until it wants nothing or there is no room. True if there was anything.
fn drive(pool: &mut Pool, queues: &mut [Option<Serving>], chain: &mut Chain, io: &mut Io) -> bool {
    let mut worked = pool.start_own(io);
    loop {
        while let Some(action) = pool.next_action() {
            let owner = pool.owner_of(&action);
            let mut kit = Kit { io: &mut *io, chain: &mut *chain, pool: Some(&mut *pool) };
            let started = match owner {
                Owner::Queue { queue, head } => match queues.get_mut(queue as usize).and_then(Option::as_mut)
                {
                    Some(serving) => serving.act(head, action, &mut kit),
                    None => unreachable!("a queue is drained before it goes"),
                },
                _ => pool.carry_out(action, None, io).map(drop),
            };
            if started.is_err() {
                pool.put_back(action);
                break;
            }
            worked = true;
        }
        let mut done = false;
        while let Some((owner, result)) = pool.next_done() {
            done = true;
            match owner {
                Owner::Queue { queue, head } => {
                    if let Some(serving) = queues.get_mut(queue as usize).and_then(Option::as_mut) {
                        let mut kit = Kit { io: &mut *io, chain: &mut *chain, pool: Some(&mut *pool) };
                        serving.pool_answered(head, result, &mut kit);
                    }
                }
                Owner::Own(number) => pool.own_done(number, result, io),
                Owner::Nobody => unreachable!("a request has an owner"),
            }
        }
        worked |= done;
        if !done {
            return worked;
        }
    }
}
