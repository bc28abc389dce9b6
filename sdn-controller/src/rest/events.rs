//! What happens, as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{self, KeepAlive, Sse};
use futures_util::Stream;
use serde::Deserialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::{Shared, Who};
use crate::events::Event;

/// Where to begin.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct From {
    after: Option<u64>,
}

/// Events from now on, or after the one whose number the client names: `Last-Event-ID` when it comes back, or `?after=`.
pub async fn stream(
    State(controller): Shared,
    Extension(who): Who,
    Query(from): Query<From>,
    headers: HeaderMap,
) -> Sse<impl Stream<Item = Result<sse::Event, Infallible>>> {
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
    let after = last.or(from.after).unwrap_or_else(|| controller.events().last());
    let (missed, coming) = controller.events().listen(after);
    let state = (VecDeque::from(missed), coming, who, controller);
    let events =
        futures_util::stream::unfold(state, |(mut missed, mut coming, who, controller)| async move {
            loop {
                let event = next(&mut missed, &mut coming).await?;
                if who.token.is_some_and(|token| !controller.tokens().knows(&token)) {
                    // It was good when they came, and is no more.
                    return None;
                }
                let for_them = |event: &Event| who.tenant.is_none() || event.tenant == who.tenant;
                let line = match event {
                    Some(event) if for_them(&event) => sse::Event::default()
                        .id(event.number.to_string())
                        .event(event.kind)
                        .data(event.value.to_string()),
                    Some(_) => continue,
                    None => sse::Event::default().event("lost").data("{}"),
                };
                return Some((Ok(line), (missed, coming, who, controller)));
            }
        });
    Sse::new(events).keep_alive(KeepAlive::default())
}

/// The next event; inside, `None` says that some were lost; outside, that there are no more.
async fn next(
    missed: &mut VecDeque<Arc<Event>>,
    coming: &mut Receiver<Arc<Event>>,
) -> Option<Option<Arc<Event>>> {
    if let Some(event) = missed.pop_front() {
        return Some(Some(event));
    }
    match coming.recv().await {
        Ok(event) => Some(Some(event)),
        Err(RecvError::Lagged(_)) => Some(None),
        Err(RecvError::Closed) => None,
    }
}
