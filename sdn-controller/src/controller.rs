//! The controller: the desired state, its store, and the switches in session.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use ofp::{Desc, SwitchFeatures};
use telemetry::RateLimited;
use tokio::sync::{mpsc, oneshot};

use crate::datapath::{Refusal, Status};
use crate::flow_json::FlowSpec;
use crate::metrics::Metrics;
use crate::model::{Conflict, Desired, Dpid, Network};
use crate::plan::Owner;
use crate::session::Command;
use crate::store::{Store, StoreError};

/// How long a request waits for a switch before it is answered that the change is pending.
const APPLY_PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection has to prove that it is alive when another claims to be its switch.
const PROBE_PATIENCE: Duration = Duration::from_secs(3);

/// A switch in session.
pub struct SwitchEntry {
    /// Its number.
    pub dpid: Dpid,
    /// Where it is connected from.
    pub peer: SocketAddr,
    /// Since when.
    pub since: SystemTime,
    /// What it can do.
    pub features: SwitchFeatures,
    /// What it says it is.
    pub desc: Desc,
    status: Mutex<Arc<Status>>,
    commands: mpsc::Sender<Command>,
}

impl SwitchEntry {
    /// What is known of it now.
    pub fn status(&self) -> Arc<Status> {
        lock(&self.status).clone()
    }
}

/// A switch's place among the sessions; dropping it takes the switch off the list.
pub struct Seat {
    entry: Arc<SwitchEntry>,
    controller: Arc<Controller>,
}

impl Seat {
    /// Shows the others how the switch is.
    pub fn publish(&self, status: Arc<Status>) {
        *lock(&self.entry.status) = status;
    }

    /// What was published last.
    pub fn status(&self) -> Arc<Status> {
        self.entry.status()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut sessions = lock(&self.controller.sessions);
        if sessions.get(&self.entry.dpid).is_some_and(|entry| Arc::ptr_eq(entry, &self.entry)) {
            sessions.remove(&self.entry.dpid);
        }
        self.controller.metrics.sessions.add(-1);
    }
}

/// Another connection is this switch, and alive.
pub struct Taken;

/// How far a wish is on one switch.
#[derive(Clone, PartialEq, Debug)]
pub enum Progress {
    /// The switch has it.
    Applied,
    /// Not yet; why.
    Pending(Vec<String>),
    /// It refused.
    Refused(Vec<Refusal>),
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// It contradicts what is there.
    #[error("it contradicts what is there")]
    Conflicts(Vec<Conflict>),
    /// A switch refused a rule of it; the state is as before.
    #[error("a switch refused it")]
    Refused(BTreeMap<Dpid, Vec<Refusal>>),
    /// The store failed; the state is as before.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The controller.
pub struct Controller {
    desired: RwLock<Arc<Desired>>,
    // Held over check, store and publication: one change at a time, but never while a switch is waited for.
    store: tokio::sync::Mutex<Arc<Store>>,
    sessions: Mutex<HashMap<Dpid, Arc<SwitchEntry>>>,
    metrics: Arc<Metrics>,
    limited: RateLimited,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Values are replaced as a whole: a panic elsewhere leaves nothing half done in them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One thing the operator can change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Subject {
    /// A network, by name.
    Network(String),
    /// A static flow, by switch and id.
    Flow(Dpid, String),
}

#[derive(Clone, PartialEq, Debug)]
enum Wish {
    Network(Option<Network>),
    Flow(Option<FlowSpec>),
}

impl Controller {
    /// A controller with the state that was stored.
    pub fn new(store: Store, desired: Desired, metrics: Metrics) -> Arc<Controller> {
        Arc::new(Controller {
            desired: RwLock::new(Arc::new(desired)),
            store: tokio::sync::Mutex::new(Arc::new(store)),
            sessions: Mutex::default(),
            metrics: Arc::new(metrics),
            limited: RateLimited::per_minute(),
        })
    }

    /// What the operator wants.
    pub fn desired(&self) -> Arc<Desired> {
        self.desired.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The counters.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The brake for log lines that a switch could repeat.
    pub fn limited(&self) -> &RateLimited {
        &self.limited
    }

    /// A switch in session.
    pub fn switch(&self, dpid: Dpid) -> Option<Arc<SwitchEntry>> {
        lock(&self.sessions).get(&dpid).cloned()
    }

    /// Every switch in session.
    pub fn switches(&self) -> BTreeMap<Dpid, Arc<SwitchEntry>> {
        lock(&self.sessions).iter().map(|(dpid, entry)| (*dpid, entry.clone())).collect()
    }

    /// Lets a switch into session. If another connection already is this switch and answers, that one stays: whoever
    /// claims to be a switch cannot push it out.
    pub async fn admit(
        self: &Arc<Controller>,
        dpid: Dpid,
        peer: SocketAddr,
        features: SwitchFeatures,
        desc: Desc,
        commands: mpsc::Sender<Command>,
    ) -> Result<Seat, Taken> {
        let status = Mutex::default();
        let entry =
            Arc::new(SwitchEntry { dpid, peer, since: SystemTime::now(), features, desc, status, commands });
        loop {
            let other = {
                let mut sessions = lock(&self.sessions);
                match sessions.get(&dpid) {
                    Some(other) => other.clone(),
                    None => {
                        sessions.insert(dpid, entry.clone());
                        self.metrics.sessions.add(1);
                        return Ok(Seat { entry, controller: self.clone() });
                    }
                }
            };
            let (alive, answer) = oneshot::channel();
            if other.commands.try_send(Command::Probe(alive)).is_ok()
                && let Ok(Ok(())) = tokio::time::timeout(PROBE_PATIENCE, answer).await
            {
                return Err(Taken);
            }
            // Dead, or so busy that it cannot take one more command: it makes room.
            let _ = other.commands.try_send(Command::Close);
            let mut sessions = lock(&self.sessions);
            if sessions.get(&dpid).is_some_and(|entry| Arc::ptr_eq(entry, &other)) {
                sessions.remove(&dpid);
            }
        }
    }

    /// Makes `network` the network `name`, or deletes it, and waits a while for its switches.
    ///
    /// # Errors
    /// It contradicts another network, a switch refuses a rule of it, or it cannot be stored.
    pub async fn set_network(
        &self,
        name: &str,
        network: Option<Network>,
    ) -> Result<BTreeMap<Dpid, Progress>, ChangeError> {
        self.set(&Subject::Network(name.to_owned()), Wish::Network(network)).await
    }

    /// Makes `flow` the flow `id` of a switch, or deletes it, and waits a while for the switch.
    ///
    /// # Errors
    /// It contradicts another flow, the switch refuses it, or it cannot be stored.
    pub async fn set_flow(
        &self,
        dpid: Dpid,
        id: &str,
        flow: Option<FlowSpec>,
    ) -> Result<Progress, ChangeError> {
        let progress = self.set(&Subject::Flow(dpid, id.to_owned()), Wish::Flow(flow)).await?;
        Ok(progress.into_values().next().unwrap_or(Progress::Applied))
    }

    async fn set(&self, subject: &Subject, wish: Wish) -> Result<BTreeMap<Dpid, Progress>, ChangeError> {
        let (before, affected) = self.exchange(subject, None, wish.clone()).await?;
        let progress = self.apply(subject, &affected).await;
        let refused: BTreeMap<Dpid, Vec<Refusal>> = progress
            .iter()
            .filter_map(|(dpid, progress)| match progress {
                Progress::Refused(refusals) => Some((*dpid, refusals.clone())),
                _ => None,
            })
            .collect();
        if refused.is_empty() {
            return Ok(progress);
        }
        if before != wish {
            // Back to what was there, unless somebody changed it meanwhile.
            self.exchange(subject, Some(&wish), before).await?;
            self.apply(subject, &affected).await;
        }
        Err(ChangeError::Refused(refused))
    }

    /// Stores and publishes `wish`; returns what was wanted before and the switches it concerns. With `only_if`,
    /// nothing is done unless that is what is wanted now.
    async fn exchange(
        &self,
        subject: &Subject,
        only_if: Option<&Wish>,
        wish: Wish,
    ) -> Result<(Wish, Vec<Dpid>), ChangeError> {
        let store = self.store.lock().await;
        let mut desired = Desired::clone(&self.desired());
        let before = match subject {
            Subject::Network(name) => Wish::Network(desired.networks.get(name).cloned()),
            Subject::Flow(dpid, id) => Wish::Flow(desired.flows.get(&(*dpid, id.clone())).cloned()),
        };
        let of_network = |wish: &Wish| match wish {
            Wish::Network(Some(network)) => network.switches(),
            _ => Default::default(),
        };
        let affected = match subject {
            Subject::Network(_) => of_network(&before).union(&of_network(&wish)).copied().collect(),
            Subject::Flow(dpid, _) => vec![*dpid],
        };
        if before == wish || only_if.is_some_and(|expected| *expected != before) {
            return Ok((before, affected));
        }
        let conflicts = match (subject, &wish) {
            (Subject::Network(name), Wish::Network(Some(network))) => {
                desired.network_conflicts(name, network)
            }
            (Subject::Flow(dpid, id), Wish::Flow(Some(flow))) => {
                desired.flow_conflict(*dpid, id, flow).into_iter().collect()
            }
            _ => vec![],
        };
        if !conflicts.is_empty() {
            return Err(ChangeError::Conflicts(conflicts));
        }
        let writer = (*store).clone();
        let (to_store, what) = (wish.clone(), subject.clone());
        let written = tokio::task::spawn_blocking(move || match (&what, &to_store) {
            (Subject::Network(name), Wish::Network(network)) => writer.set_network(name, network.as_ref()),
            (Subject::Flow(dpid, id), Wish::Flow(flow)) => writer.set_flow(*dpid, id, flow.as_ref()),
            _ => unreachable!("a subject has its own kind of wish"),
        });
        written.await.expect("storing does not panic")?;
        match (subject, wish) {
            (Subject::Network(name), Wish::Network(Some(network))) => {
                desired.networks.insert(name.clone(), network);
            }
            (Subject::Network(name), _) => drop(desired.networks.remove(name)),
            (Subject::Flow(dpid, id), Wish::Flow(Some(flow))) => {
                desired.flows.insert((*dpid, id.clone()), flow);
            }
            (Subject::Flow(dpid, id), _) => drop(desired.flows.remove(&(*dpid, id.clone()))),
        }
        *self.desired.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(desired);
        drop(store);
        Ok((before, affected))
    }

    /// Tells the sessions of the switches and waits for them, all at once.
    async fn apply(&self, subject: &Subject, dpids: &[Dpid]) -> BTreeMap<Dpid, Progress> {
        let desired = self.desired();
        let until = tokio::time::Instant::now() + APPLY_PATIENCE;
        let mut answers = Vec::new();
        for &dpid in dpids {
            let Some(entry) = self.switch(dpid) else { continue };
            let (done, answer) = oneshot::channel();
            let wish = Command::Wish { desired: desired.clone(), done };
            if let Ok(Ok(())) = tokio::time::timeout_at(until, entry.commands.send(wish)).await {
                answers.push((dpid, answer));
            }
        }
        let mut progress: BTreeMap<Dpid, Progress> =
            dpids.iter().map(|&dpid| (dpid, Progress::Pending(vec![not_connected(dpid)]))).collect();
        for (dpid, answer) in answers {
            let state = match tokio::time::timeout_at(until, answer).await {
                Ok(Ok(status)) => progress_in(&status, subject),
                // The session ended.
                Ok(Err(_)) => continue,
                Err(_) => Progress::Pending(vec![not_yet(dpid)]),
            };
            progress.insert(dpid, state);
        }
        progress
    }

    /// How far `subject` is on a switch.
    pub fn progress(&self, subject: &Subject, dpid: Dpid) -> Progress {
        let Some(entry) = self.switch(dpid) else { return Progress::Pending(vec![not_connected(dpid)]) };
        let status = entry.status();
        match progress_in(&status, subject) {
            Progress::Applied if !status.settled => Progress::Pending(vec![not_yet(dpid)]),
            progress => progress,
        }
    }
}

fn not_connected(dpid: Dpid) -> String {
    format!("switch {dpid} is not connected; it gets this when it is")
}

fn not_yet(dpid: Dpid) -> String {
    format!("switch {dpid} has not confirmed it yet")
}

/// How far `subject` is on a switch that has answered everything.
fn progress_in(status: &Status, subject: &Subject) -> Progress {
    let owners = match subject {
        Subject::Network(name) => vec![Owner::Network(name.clone()), Owner::Networks],
        Subject::Flow(_, id) => vec![Owner::Flow(id.clone())],
    };
    let refusals: Vec<_> =
        owners.iter().filter_map(|owner| status.refusals.get(owner)).flatten().cloned().collect();
    let obstacles: Vec<_> =
        owners.iter().filter_map(|owner| status.obstacles.get(owner)).flatten().cloned().collect();
    match (refusals.is_empty(), obstacles.is_empty()) {
        (true, true) => Progress::Applied,
        (true, false) => Progress::Pending(obstacles),
        _ => Progress::Refused(refusals),
    }
}
