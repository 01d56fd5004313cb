//! Incidents: each a folder of its own, named by its id, made as its first act; everything that happens is a line of its log.
//!
//! ```text
//!  chat, page, runbook, watch ──> Store ──> Incident ──act.rs──> hands (verb, exec)
//!                                              │
//!                     events.jsonl (log.rs), messages.jsonl (Claude's history), artifacts/
//!                                              └──> watchers (watchers.rs), each at its own pace
//! ```
//! What must not be lost is on the disk before anything follows from it: a verb's request id before its first attempt.
//!
//! # How a server uses it
//! - Open: [`Store::create`], once for each incident; after a restart [`Store::unfinished`], then [`Store::resume`], then
//!   [`Incident::catch_up`] for the verbs that ran and [`Session::resume`](crate::claude::Session::resume) for Claude's turn.
//! - A person's sentence: [`Session::open`](crate::claude::Session::open) once, then
//!   [`Session::prompt`](crate::claude::Session::prompt) for each sentence, on a task of its own: it goes on when nobody watches. One session
//!   an incident. [`Turned::Unavailable`](crate::claude::Turned::Unavailable) is the runbook's turn.
//! - A button: [`Incident::verb`], and its [`Running::end`] if anybody waits for it. Claude hears of it before its next answer.
//! - Stop the turn: [`Incident::cancel`]. What runs on the host goes on, and [`Facts::running_said`] says what.
//! - Approve or deny: [`Facts::awaiting`] holds the calls that wait, [`Incident::decide`] decides one; [`Incident::deny_all`] where nobody can be asked.
//! - Watch from an event id: [`Incident::watch`] with the number of the last line seen (0: all), then [`Watcher::next`]; [`Store::lines`] reads an
//!   incident that another process writes.
//! - End: [`claude::verdict`](crate::claude::verdict) looks once more, [`Incident::end`] records it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use proto::{Message, RequestId, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, oneshot, watch};

use crate::bound::Bound;
use crate::mirror::Mirror;

mod act;
mod artifacts;
mod event;
mod facts;
mod hears;
mod journal;
mod log;
mod store;
#[cfg(test)]
mod tests;
mod watchers;

pub use act::{Asks, Exec, ExecTold, Kept, Running, VerbTold};
pub use event::{By, Line, Task, What};
pub use facts::{BY_HAND, Facts, Pending, Spent, Unread, Waits};
pub use journal::Notes;
pub use store::{Store, Summary};
pub use watchers::{Live, Seen, Watcher};

pub(crate) use log::NAME as LOG;
pub(crate) use store::{is_empty, removable};

/// An incident's id, which is its folder's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IncidentId(RequestId);

impl IncidentId {
    /// A new one.
    ///
    /// # Errors
    /// The kernel gave no random bytes.
    pub fn fresh() -> Result<Self, Message> {
        fresh_id().map(Self)
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for IncidentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for IncidentId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self)
    }
}

/// A request id that nobody has used.
///
/// # Errors
/// The kernel gave no random bytes.
pub fn fresh_id() -> Result<RequestId, Message> {
    let mut bytes = [0; 16];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(_) => Ok(RequestId::from_random(bytes)),
        Err(error) => Err(Message::new(format!("There are no random bytes for an id: {error}."), "Try again.")),
    }
}

/// An open incident: the one handle through which this process writes it. Everything of it can be used from any thread.
#[derive(Debug)]
pub struct Incident {
    id: IncidentId,
    folder: PathBuf,
    state: Mutex<State>,
    /// The number of the last line.
    grown: watch::Sender<u64>,
    live: broadcast::Sender<watchers::Spoken>,
    /// Counts the cancellations.
    stop: watch::Sender<u64>,
    mirror: Mirror,
    bound: Arc<Bound>,
}

#[derive(Debug)]
struct State {
    log: log::Log,
    facts: Facts,
    /// Room that is left for artifacts.
    room: u64,
    /// Calls that wait for a person.
    waiting: Vec<(String, oneshot::Sender<Decision>)>,
}

/// What a person decided about a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may run.
    pub allowed: bool,
    /// Who.
    pub actor: Option<String>,
}

impl Incident {
    /// A handle around a log that this process owns.
    fn around(id: IncidentId, folder: PathBuf, log: log::Log, facts: Facts, room: u64, mirror: Mirror, bound: Arc<Bound>) -> Arc<Self> {
        let (grown, _) = watch::channel(log.len());
        let (live, _) = broadcast::channel(64);
        let (stop, _) = watch::channel(0);
        let state = Mutex::new(State { log, facts, room, waiting: Vec::new() });
        Arc::new(Self { id, folder, state, grown, live, stop, mirror, bound })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its id.
    pub const fn id(&self) -> &IncidentId {
        &self.id
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What follows from its log so far.
    pub fn facts(&self) -> Facts {
        self.state().facts.clone()
    }

    /// A new part of it.
    pub fn task(&self) -> Task {
        let mut state = self.state();
        state.facts.last_task += 1;
        Task(state.facts.last_task)
    }

    /// Writes a line. What must not be lost is on the disk when this returns.
    ///
    /// # Errors
    /// It could not be written: then what would follow from it must not happen.
    pub fn write(&self, task: Task, origin: By, what: What) -> Result<u64, Message> {
        // The lock is not held while room is made.
        let written = self.bound.writes(|| {
            let mut state = self.state();
            let (line, text) = state.log.append(&self.id, now(), task, origin, what.clone())?;
            state.facts.fold(&line);
            self.mirror.tell(&text);
            // Within the lock: the numbers that watchers see only grow.
            self.grown.send_replace(line.n);
            Ok(line.n)
        });
        written.map_err(|error| {
            Message::new(
                format!("The incident's log {} can't be written: {error}.", self.folder.display()),
                "Make room there; what must be recorded first is not done until then.",
            )
        })
    }

    /// The bound of what all incidents take.
    pub(crate) fn bound(&self) -> &Bound {
        &self.bound
    }

    /// Writes a line from which nothing follows; a failure is said on the structured log.
    pub fn note(&self, task: Task, origin: By, what: What) {
        if let Err(why) = self.write(task, origin, what) {
            tracing::warn!(event = "degraded", incident = self.id.as_str(), "{why}");
        }
    }

    /// Shows watchers something that is no line: words as they come.
    pub fn show(&self, live: Live) {
        let _nobody_watches = self.live.send(watchers::Spoken { after: *self.grown.borrow(), live });
    }

    /// Watches it from after line `after`; 0 is from the beginning.
    pub fn watch(self: &Arc<Self>, after: u64) -> Watcher {
        Watcher::new(Arc::clone(self), after)
    }

    /// The text of line `n`.
    pub fn line(&self, n: u64) -> Option<String> {
        self.state().log.text(n)
    }

    /// Stops the turn that runs. What it started on the host goes on to its own end.
    pub fn cancel(&self) {
        self.stop.send_modify(|count| *count += 1);
    }

    /// Hears of cancellations from now on.
    pub fn cancellations(&self) -> watch::Receiver<u64> {
        let mut heard = self.stop.subscribe();
        heard.mark_unchanged();
        heard
    }

    /// Has a call wait for a person.
    ///
    /// # Errors
    /// The log can't be written.
    pub fn await_person(&self, task: Task, call: &str, tool: &str, said: &str) -> Result<oneshot::Receiver<Decision>, Message> {
        let what = What::Awaiting { call: call.to_owned(), tool: tool.to_owned(), said: said.to_owned() };
        let (decide, decided) = oneshot::channel();
        self.state().waiting.push((call.to_owned(), decide));
        self.write(task, By::Model, what)?;
        Ok(decided)
    }

    /// A person decides on a call. Whether one of that id waited.
    pub fn decide(&self, call: &str, decision: Decision) -> bool {
        let mut state = self.state();
        let Some(at) = state.waiting.iter().position(|(waiting, _)| waiting == call) else { return false };
        let (_, waits) = state.waiting.swap_remove(at);
        waits.send(decision).is_ok()
    }

    /// Denies every call that waits, where nobody can be asked.
    pub fn deny_all(&self, actor: &str) {
        for call in self.facts().awaiting.into_keys() {
            self.decide(&call, Decision { allowed: false, actor: Some(actor.to_owned()) });
        }
    }

    /// Ends it, with what was observed. A further prompt goes on with it.
    pub fn end(&self, task: Task, healthy: bool, said: &Message) {
        self.note(task, By::Agent, What::Ended { healthy, said: said.clone() });
    }
}

/// The time, as everything here writes it.
pub(crate) fn now() -> Timestamp {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}
