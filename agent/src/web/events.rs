//! Event streams: an incident's lines with their numbers as ids, so that who was away resumes after the last one it saw; and the looks at
//! the VM. A heartbeat is an event that scripts can see, as phones end streams without a word.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::Stream;
use proto::Message;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::app::App;
use super::shell;
use crate::incident::{Incident, IncidentId, Seen};

/// Between two heartbeats.
const BEAT: Duration = Duration::from_secs(10);
/// Events that wait for a slow reader; beyond, its watcher waits, and nobody else does.
const WAITING: usize = 16;
/// Between two looks at a log that another process writes.
const POLL: Duration = Duration::from_secs(2);

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Where to go on: the header of a browser that reconnects by itself, or the number in the address.
#[derive(Debug, Default, Deserialize)]
pub(super) struct After {
    after: Option<u64>,
}

type Tell = mpsc::Sender<Result<Event, Infallible>>;

/// A stream; its place is free again when its reader is gone.
fn stream(app: &Arc<App>, permit: OwnedSemaphorePermit, told: mpsc::Receiver<Result<Event, Infallible>>) -> Response {
    struct Held(ReceiverStream<Result<Event, Infallible>>, OwnedSemaphorePermit, Arc<App>);
    impl Stream for Held {
        type Item = Result<Event, Infallible>;
        fn poll_next(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Self::Item>> {
            Pin::new(&mut self.0).poll_next(cx)
        }
    }
    impl Drop for Held {
        fn drop(&mut self) {
            let _freed_with_it = &self.1;
            self.2.meter.stream(-1);
        }
    }
    app.meter.stream(1);
    // nginx would hold events back otherwise.
    ([(HeaderName::from_static("x-accel-buffering"), "no")], Sse::new(Held(ReceiverStream::new(told), permit, Arc::clone(app))))
        .into_response()
}

fn place(app: &App) -> Result<OwnedSemaphorePermit, Response> {
    Arc::clone(&app.streams).try_acquire_owned().map_err(|_| {
        let said = Message::new("Too many watch already.", "The page works without: it is loaded again by itself.");
        let mut answer = shell::refusal(StatusCode::SERVICE_UNAVAILABLE, &said, true);
        answer.headers_mut().insert(header::RETRY_AFTER, 30.into());
        answer.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        answer
    })
}

/// `GET /events`: each new look at the VM, and each change of an incident, as `event: changed`.
pub(super) async fn looks(State(app): State<Arc<App>>) -> Response {
    let permit = match place(&app) {
        Ok(permit) => permit,
        Err(full) => return full,
    };
    let (tell, told) = mpsc::channel(WAITING);
    let (mut hear, its) = (app.looks.hear(), Arc::clone(&app));
    tokio::spawn(async move {
        let mut beat = tokio::time::interval(BEAT);
        loop {
            let event = tokio::select! {
                () = tell.closed() => return,
                heard = hear.changed() => match heard {
                    Ok(()) => Event::default().event("changed").data(hear.borrow_and_update().key()),
                    Err(_) => return,
                },
                _ = beat.tick() => {
                    // Somebody looks at the page, even if it asks for nothing else.
                    its.looks.interest();
                    Event::default().event("beat").data("-")
                }
            };
            if tell.send(Ok(event)).await.is_err() {
                return;
            }
        }
    });
    stream(&app, permit, told)
}

/// `GET /incidents/{id}/events`.
pub(super) async fn incident(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Query(query): Query<After>,
    headers: HeaderMap,
) -> Response {
    let permit = match place(&app) {
        Ok(permit) => permit,
        Err(full) => return full,
    };
    let resumed = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()?.parse().ok());
    let after = resumed.or(query.after).unwrap_or(0);
    let (tell, told) = mpsc::channel(WAITING);
    let id: Option<IncidentId> = id.parse().ok();
    match id.filter(|id| app.store.folder(id).is_some()) {
        None => drop(tell.try_send(Ok(Event::default().event("gone").data("There is no such incident.")))),
        Some(id) => match app.store.get(&id) {
            Some(incident) => drop(tokio::spawn(watched(incident, after, tell))),
            None => drop(tokio::spawn(followed(Arc::clone(&app), id, after, tell))),
        },
    }
    stream(&app, permit, told)
}

/// An incident that this process writes.
async fn watched(incident: Arc<Incident>, after: u64, tell: Tell) {
    let mut watcher = incident.watch(after.min(incident.facts().lines));
    let mut beat = tokio::time::interval(BEAT);
    // The first thing that is heard: that this stream lives.
    beat.tick().await;
    let _noticed_below = tell.send(Ok(Event::default().event("beat").data("-"))).await;
    loop {
        let event = tokio::select! {
            biased;
            () = tell.closed() => return,
            _ = beat.tick() => Event::default().event("beat").data("-"),
            seen = watcher.next() => match seen {
                Seen::Line(n, text) => Event::default().id(n.to_string()).event("line").data(text),
                Seen::Live(live) => {
                    let text = serde_json::json!({ "task": live.task, "thinking": live.thinking, "text": live.text });
                    Event::default().event("words").data(text.to_string())
                }
            },
        };
        if tell.send(Ok(event)).await.is_err() {
            return;
        }
    }
}

/// One that another process writes, or nobody: read again when it has grown.
async fn followed(app: Arc<App>, id: IncidentId, mut after: u64, tell: Tell) {
    let mut beat = tokio::time::interval(BEAT);
    let mut poll = tokio::time::interval(POLL);
    loop {
        tokio::select! {
            () = tell.closed() => return,
            _ = beat.tick() => {
                if tell.send(Ok(Event::default().event("beat").data("-"))).await.is_err() {
                    return;
                }
            }
            _ = poll.tick() => {
                let Some(one) = app.store.one(&id) else {
                    let _gone_too = tell.send(Ok(Event::default().event("gone").data("The incident was removed."))).await;
                    return;
                };
                if one.facts.lines <= after {
                    continue;
                }
                let mut grown = Vec::new();
                let _what_can_be_read_is_told = app.store.lines(&id, after + 1, |line, text| grown.push((line.n, text.to_owned())));
                for (n, text) in grown {
                    after = n;
                    if tell.send(Ok(Event::default().id(n.to_string()).event("line").data(text))).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}
