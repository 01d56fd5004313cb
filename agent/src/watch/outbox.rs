//! Notices on their way to the webhook, kept in a file until they are told: a receiver that is down for minutes and a program that is ended
//! meanwhile, as both happen on the same bad night, must not lose the one that counts. Killed right after it was told, it is told twice.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tracing::warn;

use super::notify::Notice;
use crate::host::keep::write;

/// Notices that wait for a receiver that is down; the oldest go on, the newest are dropped and said so here.
const WAITING: usize = 32;

/// What waits.
#[derive(Debug)]
pub(super) struct Outbox {
    file: PathBuf,
    waiting: Mutex<VecDeque<Notice>>,
    more: Notify,
}

impl Outbox {
    /// With what an earlier run could not tell.
    pub(super) fn open(state: &Path) -> Self {
        let file = state.join("untold.json");
        let waiting = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { file, waiting: Mutex::new(waiting), more: Notify::new() }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Notice>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts one in.
    pub(super) fn put(&self, notice: Notice) {
        let mut waiting = self.waiting();
        if waiting.len() >= WAITING {
            let what = notice.event.as_str();
            warn!(event = "not-notified", what, "too many wait for the webhook; told here only: {}", notice.text);
            return;
        }
        waiting.push_back(notice);
        self.keep(&waiting);
        self.more.notify_one();
    }

    /// The oldest, which stays until it is [`Outbox::done`].
    pub(super) async fn next(&self) -> Notice {
        loop {
            let first = self.waiting().front().cloned();
            match first {
                Some(notice) => return notice,
                None => self.more.notified().await,
            }
        }
    }

    /// The oldest is told, or can't be.
    pub(super) fn done(&self) {
        let mut waiting = self.waiting();
        waiting.pop_front();
        self.keep(&waiting);
    }

    fn keep(&self, waiting: &VecDeque<Notice>) {
        let text = serde_json::to_vec(waiting).unwrap_or_default();
        if let Err(error) = write(&self.file, &text) {
            warn!(event = "degraded", "what is to be told can't be kept in {} ({error}): a restart would lose it", self.file.display());
        }
    }
}
