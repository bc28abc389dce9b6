//! Questions and messages of others to the switch, passed on as they are.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use ofp::{Body, ErrorCode, MultipartReply, Reassembler};
use tokio::sync::oneshot;

use super::{Datapath, ENTRIES_MAX};

/// Questions under way at most.
const ASKS_MAX: usize = 256;
/// How long a switch may take to answer.
const ASK_PATIENCE: Duration = Duration::from_secs(10);

/// Why a switch gave no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AskError {
    /// It refused.
    #[error("the switch refused: {0}")]
    Refused(ErrorCode),
    /// It said nothing, or nothing that makes an answer.
    #[error("the switch gave no answer within {} s", ASK_PATIENCE.as_secs())]
    Silent,
    /// Too many ask at once.
    #[error("{ASKS_MAX} requests to the switch are under way already")]
    Busy,
    /// The message cannot be written.
    #[error("a message of it is longer than OpenFlow allows")]
    TooLong,
    /// The switch went away.
    #[error("the switch is not connected")]
    Gone,
}

/// What the switch said; `None` where nothing is said but that it is done.
pub type Answer = Result<Option<Body>, AskError>;

struct Ask {
    messages: HashSet<u32>,
    /// The barrier behind messages that are answered by nothing else.
    barrier: Option<u32>,
    parts: Reassembler,
    error: Option<ErrorCode>,
    until: Instant,
    reply: oneshot::Sender<Answer>,
}

/// The questions under way.
#[derive(Default)]
pub(super) struct Asks {
    open: HashMap<u32, Ask>,
    /// Which question each message belongs to.
    of: HashMap<u32, u32>,
}

impl Asks {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.open.values().map(|ask| ask.until).min()
    }

    fn finish(&mut self, id: u32, answer: Answer) {
        let Some(ask) = self.open.remove(&id) else { return };
        for xid in ask.messages.iter().chain(&ask.barrier) {
            self.of.remove(xid);
        }
        // Whoever asked may have stopped waiting.
        let _ = ask.reply.send(answer);
    }

    pub(super) fn expire(&mut self, now: Instant) {
        let late: Vec<u32> =
            self.open.iter().filter(|(_, ask)| now >= ask.until).map(|(id, _)| *id).collect();
        late.into_iter().for_each(|id| self.finish(id, Err(AskError::Silent)));
    }

    /// A part of an answer.
    pub(super) fn part(&mut self, xid: u32, more: bool, reply: MultipartReply) {
        let Some(&id) = self.of.get(&xid) else { return };
        let Some(ask) = self.open.get_mut(&id) else { return };
        match ask.parts.push(xid, more, reply) {
            Ok(Some(whole)) => self.finish(id, Ok(Some(Body::MultipartReply(whole)))),
            Ok(None) => {}
            Err(_) => self.finish(id, Err(AskError::Silent)),
        }
    }

    /// An answer that is one message.
    pub(super) fn answer(&mut self, xid: u32, answer: Body) {
        if let Some(&id) = self.of.get(&xid) {
            self.finish(id, Ok(Some(answer)));
        }
    }

    /// Whether the error belongs to a question.
    pub(super) fn refused(&mut self, xid: u32, error: ErrorCode) -> bool {
        let Some(&id) = self.of.get(&xid) else { return false };
        match self.open.get_mut(&id) {
            Some(ask) if ask.barrier.is_some() => drop(ask.error.get_or_insert(error)),
            _ => self.finish(id, Err(AskError::Refused(error))),
        }
        true
    }

    /// Whether the barrier belongs to a question.
    pub(super) fn barrier(&mut self, xid: u32) -> bool {
        let Some(&id) = self.of.get(&xid) else { return false };
        let error = self.open.get(&id).and_then(|ask| ask.error);
        self.finish(id, error.map_or(Ok(None), |error| Err(AskError::Refused(error))));
        true
    }
}

impl Datapath {
    /// Sends messages of somebody else. A single message that has an answer is answered with it, anything else when
    /// the switch has done it.
    pub fn ask(&mut self, now: Instant, bodies: Vec<Body>, reply: oneshot::Sender<Answer>) {
        let error = if self.asks.open.len() >= ASKS_MAX {
            Some(AskError::Busy)
        } else {
            let too_long = |body: &Body| ofp::Message { xid: 0, body: body.clone() }.encode().is_err();
            bodies.iter().any(too_long).then_some(AskError::TooLong)
        };
        if let Some(error) = error {
            let _ = reply.send(Err(error));
            return;
        }
        let answered = matches!(
            bodies[..],
            [Body::MultipartRequest(_)
                | Body::RoleRequest(_)
                | Body::GetConfigRequest
                | Body::FeaturesRequest]
        );
        let messages: HashSet<u32> = bodies.into_iter().map(|body| self.send(body)).collect();
        let barrier = (!answered).then(|| self.send(Body::BarrierRequest));
        let id = self.xid;
        for xid in messages.iter().chain(&barrier) {
            self.asks.of.insert(*xid, id);
        }
        let (parts, until) = (Reassembler::new(ENTRIES_MAX), now + ASK_PATIENCE);
        self.asks.open.insert(id, Ask { messages, barrier, parts, error: None, until, reply });
    }
}
