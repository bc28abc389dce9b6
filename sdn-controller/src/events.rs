//! What happens, for whoever listens.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::sync::broadcast;

/// Events that a slow listener may be behind.
const BACKLOG: usize = 1024;
/// Events that are kept for those who come back.
const KEPT: usize = 256;

/// Something that happened.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    /// Its number, one more than that of the event before.
    pub number: u64,
    /// What kind: `change`, `switch`, `port`, `moved`, `link`, `flapping`, `shut`, `opened`.
    pub kind: &'static str,
    /// The tenant it belongs to; `None`: it belongs to no tenant.
    pub tenant: Option<String>,
    /// The rest.
    pub value: Value,
}

/// Where events go.
pub struct Events {
    sender: broadcast::Sender<Arc<Event>>,
    kept: Mutex<(u64, VecDeque<Arc<Event>>)>,
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Default for Events {
    fn default() -> Events {
        Events { sender: broadcast::Sender::new(BACKLOG), kept: Mutex::default() }
    }
}

impl Events {
    /// Tells everybody. `value` is an object.
    pub fn tell(&self, kind: &'static str, tenant: Option<String>, mut value: Value) {
        value["time_ms"] = json!(now_ms());
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, events) = &mut *kept;
        *last += 1;
        let event = Arc::new(Event { number: *last, kind, tenant, value });
        if events.len() == KEPT {
            events.pop_front();
        }
        events.push_back(event.clone());
        // Nobody may be listening.
        let _ = self.sender.send(event);
    }

    /// The events that are kept and come after number `after`, and those to come.
    pub fn listen(&self, after: u64) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let missed = kept.1.iter().filter(|event| event.number > after).cloned().collect();
        (missed, self.sender.subscribe())
    }

    /// The number of the last event.
    pub fn last(&self) -> u64 {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_comes_back_gets_what_it_missed() {
        let events = Events::default();
        for number in 0..300 {
            events.tell("change", None, json!({"n": number}));
        }
        let (missed, mut coming) = events.listen(298);
        assert_eq!(missed.iter().map(|event| event.number).collect::<Vec<_>>(), [299, 300]);
        assert_eq!(events.listen(0).0.len(), KEPT);
        events.tell("port", None, json!({}));
        assert_eq!(coming.recv().await.unwrap().number, 301);
    }
}
