//! The controller: the desired state, its store, and the switches in session.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use ofp::{Body, Desc, MacAddr, PortNo, SwitchFeatures};
use serde_json::{Value, json};
use telemetry::RateLimited;
use tokio::sync::{mpsc, oneshot};

use crate::auth::{self, Grant, Identity, Token, Tokens};
use crate::datapath::{Answer, AskError, Foreign, Happening, Refusal, Status};
use crate::discovery::Probes;
use crate::edit::{self, Edit, Preview, SwitchPreview};
use crate::events::{Events, now_ms};
use crate::layout::Layout;
use crate::links::{End, LinkChange, Links};
use crate::metrics::Metrics;
use crate::model::{Conflict, Desired, Dpid, Item, Subject, VlanRange};
use crate::plan::Owner;
use crate::session::Command;
use crate::store::{Store, StoreError, Write};

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
    /// Asks the switch something, or tells it, and waits for its answer.
    ///
    /// # Errors
    /// It refuses, does not answer, or goes away.
    pub async fn ask(&self, bodies: Vec<Body>) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Ask { bodies, reply }).await.map_err(|_| AskError::Gone)?;
        answer.await.map_err(|_| AskError::Gone)?
    }

    /// The addresses learned on the switch: VLAN, address, port, and how long ago.
    pub async fn addresses(&self) -> Vec<(u16, MacAddr, PortNo, Duration)> {
        let (reply, answer) = oneshot::channel();
        // A switch that went away knows none.
        let _ = self.commands.send(Command::Addresses(reply)).await;
        answer.await.unwrap_or_default()
    }

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

    /// Tells everybody what happened on the switch.
    pub fn tell(&self, happening: Happening) {
        let dpid = self.entry.dpid;
        let end = |port: PortNo| End { dpid, port: port.0 };
        let (kind, value) = match happening {
            Happening::Link { from: (other, port), port: to } => {
                let from = End { dpid: other, port: port.0 };
                return self.controller.links_changed(|links| links.seen(Instant::now(), from, end(to)));
            }
            Happening::Flapping { vlan, mac, from, to } => {
                let mac = mac.to_string();
                tracing::warn!(%dpid, vlan, mac, from = from.0, to = to.0, "an address moves all the time");
                ("flapping", json!({"dpid": dpid, "vlan": vlan, "mac": mac, "ports": [from.0, to.0]}))
            }
            Happening::Shut { port, reason, other, seconds } => {
                let other = other.map(|(dpid, port)| json!({"dpid": dpid, "port": port.0}));
                tracing::warn!(%dpid, port = port.0, reason = reason.word(), seconds, "a port is shut for a while");
                let reason = reason.word();
                (
                    "shut",
                    json!({"dpid": dpid, "port": port.0, "reason": reason, "other": other, "seconds": seconds}),
                )
            }
            Happening::Opened { port } => ("opened", json!({"dpid": dpid, "port": port.0})),
            Happening::Port { port, name, up } => {
                if up != Some(true) {
                    self.controller.links_changed(|links| links.port_down(end(port)));
                }
                let state = up.map_or("gone", |up| if up { "up" } else { "down" });
                ("port", json!({"dpid": dpid, "port": port.0, "name": name, "state": state}))
            }
            Happening::Moved { vlan, mac, from, to } => {
                let mac = mac.to_string();
                ("moved", json!({"dpid": dpid, "vlan": vlan, "mac": mac, "from": from.0, "to": to.0}))
            }
        };
        self.controller.events.tell(kind, None, value);
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
            drop(sessions);
            let gone = json!({"dpid": self.entry.dpid, "connected": false});
            self.controller.events.tell("switch", None, gone);
            self.controller.links_changed(|links| links.switch_gone(self.entry.dpid));
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
    /// Somebody else changed it since.
    #[error("{0} is not as the request expects it")]
    Precondition(Subject),
    /// A switch refused a rule of it; the state is as before.
    #[error("a switch refused it")]
    Refused(BTreeMap<Dpid, Vec<Refusal>>),
    /// The store failed; the state is as before.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a token was not made or ended.
#[derive(Debug, thiserror::Error)]
pub enum TokenChangeError {
    /// It could not be made.
    #[error(transparent)]
    Token(#[from] auth::TokenError),
    /// The store failed; everything is as before.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ChangeError {
    /// The same for `who`: those confined to a tenant are not told what belongs to whom.
    pub fn hidden_from(self, who: &Identity) -> ChangeError {
        let Some(tenant) = &who.tenant else { return self };
        match self {
            ChangeError::Conflicts(list) => {
                let hidden = |conflict: Conflict| conflict.hidden_from(tenant);
                ChangeError::Conflicts(list.into_iter().map(hidden).collect())
            }
            other => other,
        }
    }
}

/// What the controller is told when it starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// VLAN ids to choose from.
    pub vlans: VlanRange,
    /// What to do with flow entries that are not ours.
    pub foreign: Foreign,
    /// Where other controllers drive the same switches: the one with the highest number leads.
    pub priority: Option<u16>,
    /// How often probes of links go out; `None`: never.
    pub probe_interval: Option<Duration>,
    /// How long a port is shut that a loop goes through; `None`: it is not.
    pub loop_hold: Option<Duration>,
}

/// What is wanted, as a whole and for each switch.
#[derive(Clone, Default)]
struct State {
    desired: Arc<Desired>,
    layout: Arc<Layout>,
}

/// The controller.
pub struct Controller {
    state: RwLock<State>,
    // Held over check, store and publication: one change at a time, but never while a switch is waited for.
    store: tokio::sync::Mutex<Arc<Store>>,
    sessions: Mutex<HashMap<Dpid, Arc<SwitchEntry>>>,
    events: Events,
    tokens: Tokens,
    probes: Option<Arc<Probes>>,
    links: Mutex<Links>,
    metrics: Arc<Metrics>,
    limited: RateLimited,
    options: Options,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Values are replaced as a whole: a panic elsewhere leaves nothing half done in them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A change that is stored and published.
struct Exchanged {
    /// What was there before.
    before: Vec<(Subject, Option<Item>)>,
    /// What is there now.
    after: Vec<(Subject, Option<Item>)>,
    /// The switches it concerns.
    concerned: BTreeSet<Dpid>,
}

impl Controller {
    /// A controller with the state that was stored.
    pub fn new(store: Store, desired: Desired, metrics: Metrics, options: Options) -> Arc<Controller> {
        let layout = Arc::new(Layout::new(&desired, &Layout::default()));
        Arc::new(Controller {
            state: RwLock::new(State { desired: Arc::new(desired), layout }),
            store: tokio::sync::Mutex::new(Arc::new(store)),
            sessions: Mutex::default(),
            events: Events::default(),
            tokens: Tokens::default(),
            probes: options.probe_interval.and_then(|_| Probes::new(Instant::now())).map(Arc::new),
            links: Mutex::default(),
            metrics: Arc::new(metrics),
            limited: RateLimited::per_minute(),
            options,
        })
    }

    fn state(&self) -> State {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the operator wants.
    pub fn desired(&self) -> Arc<Desired> {
        self.state().desired
    }

    /// The same for each switch.
    pub fn layout(&self) -> Arc<Layout> {
        self.state().layout
    }

    /// The options of this controller.
    pub fn options(&self) -> Options {
        self.options
    }

    /// The counters.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// What happens.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// What makes probes of links, if they are sent.
    pub fn probes(&self) -> Option<Arc<Probes>> {
        self.probes.clone()
    }

    /// The links that probes have shown: both ends, and whether they pass both ways.
    pub fn links(&self) -> Vec<(End, End, bool)> {
        lock(&self.links).list()
    }

    /// Forgets links that no probe came by for a while.
    pub fn expire_links(&self) {
        let Some(interval) = self.options.probe_interval else { return };
        // Two may be lost.
        self.links_changed(|links| links.expire(Instant::now(), interval * 3 + Duration::from_secs(1)));
    }

    fn links_changed(&self, change: impl FnOnce(&mut Links) -> Vec<LinkChange>) {
        let changes = change(&mut lock(&self.links));
        for LinkChange { from, to, up } in changes {
            self.metrics.links.add(if up { 1 } else { -1 });
            let end = |end: End| json!({"dpid": end.dpid, "port": end.port});
            let state = if up { "up" } else { "down" };
            self.events.tell("link", None, json!({"from": end(from), "to": end(to), "state": state}));
        }
    }

    /// The tokens of those who ask.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Makes a token and tells its text, this once; `None`: there is one of this name.
    ///
    /// # Errors
    /// The host has no randomness, or it cannot be stored.
    pub async fn make_token(
        &self,
        who: &Identity,
        name: &str,
        grant: Grant,
    ) -> Result<Option<String>, TokenChangeError> {
        let Grant { role, tenant } = grant;
        let token = Token { name: name.to_owned(), role, tenant, created_ms: now_ms() };
        let (text, digest) = auth::new_token()?;
        let row = auth::stored_token(&token, &digest);
        let store = self.store.lock().await;
        if self.tokens.list().contains_key(name) {
            return Ok(None);
        }
        let after = json!({"role": token.role, "tenant": token.tenant});
        self.note_token(&store, who, ("make", name), Some(row), after).await?;
        self.tokens.insert(digest, token);
        Ok(Some(text))
    }

    /// Ends a token; false: there is none of this name.
    ///
    /// # Errors
    /// It cannot be stored; then it is still good.
    pub async fn delete_token(&self, who: &Identity, name: &str) -> Result<bool, TokenChangeError> {
        let store = self.store.lock().await;
        if !self.tokens.list().contains_key(name) {
            return Ok(false);
        }
        self.note_token(&store, who, ("delete", name), None, Value::Null).await?;
        self.tokens.remove(name);
        Ok(true)
    }

    async fn note_token(
        &self,
        store: &Arc<Store>,
        who: &Identity,
        (action, name): (&str, &str),
        row: Option<Value>,
        after: Value,
    ) -> Result<(), TokenChangeError> {
        let record = edit::record(who, now_ms(), action, ("token", name), [Value::Null, after]);
        let (writer, kept, name) = (store.clone(), record.clone(), name.to_owned());
        let written = tokio::task::spawn_blocking(move || writer.set_user(&name, row.as_ref(), &kept));
        written.await.expect("storing does not panic")?;
        self.events.tell("change", None, record);
        Ok(())
    }

    /// Notes in the audit log what somebody had done to a switch, past what is wanted.
    ///
    /// # Errors
    /// It cannot be stored.
    pub async fn note(
        &self,
        who: &Identity,
        dpid: Dpid,
        (action, kind): (&str, &str),
        what: Value,
    ) -> Result<(), StoreError> {
        let name = dpid.to_string();
        let record = edit::record(who, now_ms(), action, (kind, &name), [Value::Null, what]);
        let (writer, kept) = (self.store().await, record.clone());
        let written = tokio::task::spawn_blocking(move || writer.write(&[], &[kept]));
        written.await.expect("storing does not panic")?;
        self.events.tell("change", None, record);
        Ok(())
    }

    /// The brake for log lines that a switch could repeat.
    pub fn limited(&self) -> &RateLimited {
        &self.limited
    }

    /// The store, for what is not desired state.
    pub async fn store(&self) -> Arc<Store> {
        self.store.lock().await.clone()
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
                        drop(sessions);
                        self.events.tell("switch", None, json!({"dpid": dpid, "connected": true}));
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

    /// Makes a change, and waits a while for the switches that it concerns. What a switch refuses is not made at all.
    ///
    /// # Errors
    /// It contradicts what is there, a switch refuses a rule of it, or it cannot be stored.
    pub async fn change(&self, who: &Identity, edit: &Edit) -> Result<BTreeMap<Dpid, Progress>, ChangeError> {
        let done = self.exchange(who, edit, None).await?;
        let subjects: Vec<Subject> = done.after.iter().map(|(subject, _)| subject.clone()).collect();
        let progress = self.apply(&subjects, &done.concerned).await;
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
        if done.before != done.after {
            // Back to what was there, unless somebody changed it meanwhile.
            let back = Edit::new(done.before);
            self.exchange(&Identity::controller(), &back, Some(&done.after)).await?;
            self.apply(&subjects, &done.concerned).await;
        }
        Err(ChangeError::Refused(refused))
    }

    /// What `edit` would make of what is wanted, with everything chosen that was left to the controller.
    fn wanted_after(&self, desired: &Desired, edit: &Edit) -> Result<Desired, ChangeError> {
        let mut after = desired.clone();
        for (subject, item) in &edit.sets {
            after.set(subject, item.clone(), None);
        }
        after
            .complete(desired, self.options.vlans)
            .map_err(|conflict| ChangeError::Conflicts(vec![conflict]))?;
        let mut conflicts = after.conflicts();
        for conflict in &mut conflicts {
            // Who deletes something knows that it is not there afterwards, but not who counts on it.
            if let Conflict::Missing { missing, of } = conflict
                && edit.sets.iter().any(|(subject, item)| item.is_none() && subject == missing)
            {
                *conflict = Conflict::Needed { needed: missing.clone(), of: of.clone() };
            }
        }
        if conflicts.is_empty() { Ok(after) } else { Err(ChangeError::Conflicts(conflicts)) }
    }

    /// Stores and publishes. With `only_if`, nothing is done unless that is what is wanted now.
    async fn exchange(
        &self,
        who: &Identity,
        edit: &Edit,
        only_if: Option<&[(Subject, Option<Item>)]>,
    ) -> Result<Exchanged, ChangeError> {
        let store = self.store.lock().await;
        let State { desired, layout } = self.state();
        edit.check(&desired)?;
        let items = |of: &Desired| -> Vec<(Subject, Option<Item>)> {
            let item = |subject: &Subject| (subject.clone(), of.get(subject).map(|(_, item)| item));
            edit.sets.iter().map(|(subject, _)| item(subject)).collect()
        };
        let before = items(&desired);
        let concerned = |layout: &Layout| -> BTreeSet<Dpid> {
            layout.switches_of_all(edit.sets.iter().map(|(subject, _)| subject))
        };
        if only_if.is_some_and(|expected| *expected != before) {
            return Ok(Exchanged { after: before.clone(), before, concerned: concerned(&layout) });
        }
        let wanted = self.wanted_after(&desired, edit)?;
        let after = items(&wanted);
        let mut switches = concerned(&layout);
        if before != after {
            let next = Layout::new(&wanted, &layout);
            switches.extend(concerned(&next));
            switches.extend(next.changed(&layout));
            let changed = before.iter().zip(&after).filter(|(before, after)| before != after);
            let (mut writes, mut audit): (Vec<Write>, Vec<Value>) = (vec![], vec![]);
            for ((subject, before), (_, after)) in changed {
                writes.push((subject.clone(), wanted.get(subject)));
                audit.push(edit::audit(who, now_ms(), subject, before.as_ref(), after.as_ref()));
            }
            let (writer, records) = (store.clone(), audit.clone());
            let written = tokio::task::spawn_blocking(move || writer.write(&writes, &records));
            written.await.expect("storing does not panic")?;
            let tenants: Vec<Option<String>> = before
                .iter()
                .zip(&after)
                .filter(|(before, after)| before != after)
                .map(|((_, before), (_, after))| {
                    let of = |item: &Option<Item>, desired: &Desired| {
                        item.as_ref().and_then(|item| desired.tenant_of(item)).map(str::to_owned)
                    };
                    of(after, &wanted).or_else(|| of(before, &desired))
                })
                .collect();
            let state = State { desired: Arc::new(wanted), layout: Arc::new(next) };
            *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
            for (record, tenant) in audit.into_iter().zip(tenants) {
                self.events.tell("change", tenant, record);
            }
        }
        drop(store);
        Ok(Exchanged { before, after, concerned: switches })
    }

    /// What a change would do, without doing it.
    ///
    /// # Errors
    /// As of [`Controller::change`], but for what switches refuse.
    pub async fn preview(&self, edit: &Edit) -> Result<Preview, ChangeError> {
        let State { desired, layout } = self.state();
        edit.check(&desired)?;
        let wanted = self.wanted_after(&desired, edit)?;
        let next = Layout::new(&wanted, &layout);
        let words = edit::words(&edit.sets, &desired, &wanted);
        let mut switches = BTreeMap::new();
        for dpid in next.changed(&layout) {
            let (reply, answer) = oneshot::channel();
            let mut preview = SwitchPreview::default();
            if let Some(entry) = self.switch(dpid) {
                let command = Command::Preview { layout: next.of(dpid), reply };
                // One that goes away meanwhile is shown as not connected.
                let _ = entry.commands.send(command).await;
                if let Ok((changes, obstacles)) = answer.await {
                    preview = SwitchPreview { connected: true, changes, obstacles };
                }
            }
            switches.insert(dpid, preview);
        }
        Ok(Preview { words, switches })
    }

    /// Tells the sessions of the switches and waits for them, all at once.
    async fn apply(&self, subjects: &[Subject], dpids: &BTreeSet<Dpid>) -> BTreeMap<Dpid, Progress> {
        let until = tokio::time::Instant::now() + APPLY_PATIENCE;
        let mut answers = Vec::new();
        for &dpid in dpids {
            let Some(entry) = self.switch(dpid) else { continue };
            let (done, answer) = oneshot::channel();
            if let Ok(Ok(())) = tokio::time::timeout_at(until, entry.commands.send(Command::Wish(done))).await
            {
                answers.push((dpid, answer));
            }
        }
        let mut progress: BTreeMap<Dpid, Progress> =
            dpids.iter().map(|&dpid| (dpid, Progress::Pending(vec![not_connected(dpid)]))).collect();
        for (dpid, answer) in answers {
            let state = match tokio::time::timeout_at(until, answer).await {
                Ok(Ok(status)) => progress_in(&status, subjects),
                // The session ended.
                Ok(Err(_)) => continue,
                Err(_) => Progress::Pending(vec![not_yet(dpid)]),
            };
            progress.insert(dpid, state);
        }
        progress
    }

    /// How far `subject` is on each of its switches.
    pub fn progress(&self, layout: &Layout, subject: &Subject) -> BTreeMap<Dpid, Progress> {
        let of = |dpid: Dpid| {
            let Some(entry) = self.switch(dpid) else { return Progress::Pending(vec![not_connected(dpid)]) };
            let status = entry.status();
            match progress_in(&status, std::slice::from_ref(subject)) {
                Progress::Applied if !status.settled => Progress::Pending(vec![not_yet(dpid)]),
                progress => progress,
            }
        };
        layout.switches_of(subject).into_iter().map(|dpid| (dpid, of(dpid))).collect()
    }
}

fn not_connected(dpid: Dpid) -> String {
    format!("switch {dpid} is not connected; it gets this when it is")
}

fn not_yet(dpid: Dpid) -> String {
    format!("switch {dpid} has not confirmed it yet")
}

/// How far `subjects` are on a switch that has answered everything.
fn progress_in(status: &Status, subjects: &[Subject]) -> Progress {
    fn of<T: Clone>(map: &BTreeMap<Owner, Vec<T>>, subjects: &[Subject]) -> Vec<T> {
        if map.is_empty() {
            return vec![];
        }
        let mut owners: BTreeSet<Owner> = subjects.iter().map(owner_of).collect();
        owners.insert(Owner::Networks);
        owners.iter().filter_map(|owner| map.get(owner)).flatten().cloned().collect()
    }
    let (refusals, obstacles) = (of(&status.refusals, subjects), of(&status.obstacles, subjects));
    match (refusals.is_empty(), obstacles.is_empty()) {
        (true, true) => Progress::Applied,
        (true, false) => Progress::Pending(obstacles),
        _ => Progress::Refused(refusals),
    }
}

/// On its switch a flow goes by its id.
fn owner_of(subject: &Subject) -> Owner {
    match subject.flow_key() {
        Some((_, id)) => Owner::Of(Subject::new(subject.kind, id)),
        None => Owner::Of(subject.clone()),
    }
}
