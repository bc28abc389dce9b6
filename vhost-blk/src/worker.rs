//! The program of a storage worker: serves the queues that were given to it.

use std::os::fd::OwnedFd;
use std::thread::JoinHandle;

use reactor::{Io, Reply, Worker, WorkerConfig, WorkerHandle, spawn};
use telemetry::Registry;
use virtq::Chain;

use crate::backend::QUEUE_SIZE_MAX;
use crate::helper::Helper;
use crate::queue::{KICK, POP_BATCH, Serving, Start, Stopped};

/// Queues of one worker at most. Each takes two files and one operation for its watch.
const QUEUES_MAX: usize = 1024;
/// Requests in flight of one worker at most, and its watches.
const OPERATIONS_MAX: u32 = 8192;
/// A token is: queue, one bit for its kick, head.
const QUEUE_SHIFT: u32 = 17;

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
    /// End the thread. All queues were stopped before.
    Shutdown,
}

/// A worker thread that serves queues.
pub struct BlkWorker {
    queues: Vec<Option<Serving>>,
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
            Command::Shutdown => io.stop(),
        }
    }

    #[inline]
    fn completion(&mut self, io: &mut Io, token: u64, result: i32) {
        let Some(queue) = self.queues.get_mut((token >> QUEUE_SHIFT) as usize).and_then(Option::as_mut)
        else {
            return;
        };
        if token & KICK != 0 {
            queue.kicked();
            return;
        }
        self.completions += 1;
        queue.completed(token as u16, result, io, &mut self.chain);
    }

    #[inline]
    fn poll(&mut self, io: &mut Io) -> bool {
        let mut worked = false;
        for place in &mut self.queues {
            let Some(queue) = place else { continue };
            worked |= queue.poll(io, &mut self.chain, &mut self.heads, self.completions);
            if queue.stopped() {
                worked = true;
                place.take().into_iter().for_each(|queue| queue.finish(io));
            }
        }
        worked
    }

    fn arm(&mut self, _io: &mut Io) -> bool {
        self.queues.iter_mut().flatten().fold(false, |work, queue| queue.arm() | work)
    }

    fn disarm(&mut self, _io: &mut Io) {
        self.queues.iter_mut().flatten().for_each(Serving::disarm);
    }
}
