//! Watchers of an incident: each reads the log at its own pace from the number it knows, so a slow one makes nobody wait.

use std::sync::Arc;

use tokio::sync::{broadcast, watch};

use super::Incident;
use super::event::Task;

/// Words as they come, before they are a line. Not kept: who was away sees the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// As part of what.
    pub task: Task,
    /// Whether it is a thought.
    pub thinking: bool,
    /// The next few words.
    pub text: String,
}

/// Words with the number of the last line before them: once a later line was given, they stand in it or are over.
#[derive(Clone, Debug)]
pub(super) struct Spoken {
    pub(super) after: u64,
    pub(super) live: Live,
}

/// What a watcher sees next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A line: its number, which is the id to resume after, and its JSON text.
    Line(u64, String),
    /// Words as they come.
    Live(Live),
}

/// A watcher.
#[derive(Debug)]
pub struct Watcher {
    incident: Arc<Incident>,
    after: u64,
    grown: watch::Receiver<u64>,
    live: broadcast::Receiver<Spoken>,
}

impl Watcher {
    pub(super) fn new(incident: Arc<Incident>, after: u64) -> Self {
        let (grown, live) = (incident.grown.subscribe(), incident.live.subscribe());
        Self { incident, after, grown, live }
    }

    /// The number of the last line that was given.
    pub const fn after(&self) -> u64 {
        self.after
    }

    /// The next line, without waiting.
    pub fn ready(&mut self) -> Option<Seen> {
        let text = self.incident.line(self.after + 1)?;
        self.after += 1;
        Some(Seen::Line(self.after, text))
    }

    /// What comes next. May be dropped while it waits, and called again.
    pub async fn next(&mut self) -> Seen {
        loop {
            if let Some(line) = self.ready() {
                return line;
            }
            tokio::select! {
                biased;
                // The sender lives in the incident, which this holds.
                _ = self.grown.changed() => {}
                live = self.live.recv() => match live {
                    Ok(spoken) if spoken.after < self.after => {}
                    Ok(spoken) => return Seen::Live(spoken.live),
                    Err(_) => tokio::task::yield_now().await,
                },
            }
        }
    }
}
