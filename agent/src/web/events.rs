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
use crate::incident::{Incident, IncidentId, Seen, Summary};

/// Between two heartbeats.
const BEAT: Duration = Duration::from_secs(10);
/// Events that wait for a slow reader; beyond, its watcher waits, and nobody else does.
const WAITING: usize = 16;
/// Between two looks at a log that another process writes.
const POLL: Duration = Duration::from_secs(2);

/// How much of such a log is held at once for one who watches.
const AT_ONCE: usize = 256 * 1024;

/// Between two looks at what goes on in the incidents, while somebody is on the first screen.
const GOINGS: Duration = Duration::from_secs(1);

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
    let (mut hear, mut goings, its) = (app.looks.hear(), app.goings.subscribe(), Arc::clone(&app));
    tokio::spawn(async move {
        let mut beat = tokio::time::interval(BEAT);
        loop {
            let event = tokio::select! {
                () = tell.closed() => return,
                heard = hear.changed() => match heard {
                    Ok(()) => Event::default().event("changed").data(hear.borrow_and_update().key()),
                    Err(_) => return,
                },
                heard = goings.changed() => match heard {
                    Ok(()) => Event::default().event("changed").data("incidents"),
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

/// Sees for all streams of the first screen what begins, waits and ends in the incidents, whichever process writes them.
pub(super) async fn goings(app: Arc<App>) {
    let mut every = tokio::time::interval(GOINGS);
    loop {
        every.tick().await;
        if app.goings.receiver_count() == 0 {
            continue;
        }
        let one = |one: &Summary| {
            let running = one.facts.running.iter().map(|pending| pending.request_id.as_str()).collect::<Vec<_>>().join("+");
            format!("{} {running} {} {:?}\n", one.id, one.facts.awaiting.len(), one.facts.ended.as_ref().map(|(healthy, _)| healthy))
        };
        let seen: String = app.store.list().iter().take(100).map(one).collect();
        app.goings.send_if_modified(|known| {
            let changed = *known != seen;
            *known = seen;
            changed
        });
    }
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
                // A long log is told a piece at a time: what waits for a slow reader stays small.
                while one.facts.lines > after {
                  let (mut grown, mut bytes, from) = (Vec::new(), 0, after);
                  let _what_can_be_read_is_told = app.store.lines(&id, after + 1, |line, text| {
                    if bytes < AT_ONCE {
                        bytes += text.len();
                        grown.push((line.n, text.to_owned()));
                    }
                  });
                  for (n, text) in grown {
                    after = n;
                    if tell.send(Ok(Event::default().id(n.to_string()).event("line").data(text))).await.is_err() {
                        return;
                    }
                  }
                  if after == from {
                      break;
                  }
                }
            }
        }
    }
}
