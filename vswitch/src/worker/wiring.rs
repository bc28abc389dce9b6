//! How workers are connected with each other.

use std::io;
use std::sync::{Arc, OnceLock};

use reactor::WorkerHandle;

use crate::worker::Command;
use crate::worker::handover::{Doorbell, FromWorker, ToWorker, ring};

pub(crate) use crate::worker::socket::BUFFER_BYTES;

/// The other workers, as one of them reaches them.
pub(crate) struct Peers {
    /// Number of this worker.
    pub(crate) index: usize,
    pub(crate) bell: Arc<Doorbell>,
    /// By worker; `None` at its own place.
    pub(crate) to: Vec<Option<ToWorker>>,
    pub(crate) from: Vec<FromWorker>,
    /// Known once all workers run.
    pub(crate) handles: Arc<OnceLock<Vec<WorkerHandle<Command>>>>,
}

/// Connects `count` workers with each other.
pub(crate) fn connect(
    count: usize,
    handles: &Arc<OnceLock<Vec<WorkerHandle<Command>>>>,
) -> io::Result<Vec<Peers>> {
    let mut peers = Vec::new();
    for index in 0..count {
        let bell = Doorbell::new()?;
        peers.push(Peers { index, bell, to: Vec::new(), from: Vec::new(), handles: handles.clone() });
    }
    for from in 0..count {
        for to in 0..count {
            if from == to {
                peers[from].to.push(None);
                continue;
            }
            let (sender, receiver) = ring(peers[to].bell.clone());
            peers[from].to.push(Some(sender));
            peers[to].from.push(receiver);
        }
    }
    Ok(peers)
}
