//! The one bound of the state folder, `[state] keep_bytes`: for incidents, evidence, receipts and whatever else is in it, together.
//!
//! Before an incident, an answer or a command's output it makes room: the oldest goes, evidence and incidents alike, until what comes fits.
//! What is not over stays, and so do what somebody writes and the newest answer's evidence. Where the disk is full sooner than the bound
//! says, more goes, and what failed is tried once more; what may be large leaves the disk's last bytes to the logs, as nothing is sent to
//! the host that is not in one.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::incident::{is_empty, removable};

/// The last bytes of a disk are the logs' and the receipts'.
const RESERVE: u64 = 16 << 20;
/// How much goes at once where the disk is full.
const AT_ONCE: u64 = 32 << 20;
/// Where nothing more can go, it is not looked for again this soon.
const IN_VAIN: Duration = Duration::from_secs(10);
/// An incident's folder that is empty for this long is what a failed beginning left.
const EMPTY: Duration = Duration::from_secs(60);

/// The state folder's bound.
#[derive(Debug)]
pub struct Bound {
    state: PathBuf,
    keep_bytes: u64,
    in_vain: Mutex<Option<Instant>>,
}

impl Bound {
    /// Of this folder, in bytes.
    pub fn new(state: &Path, keep_bytes: u64) -> Self {
        Self { state: state.to_owned(), keep_bytes, in_vain: Mutex::default() }
    }

    /// Makes room for this much, but for no more than half of all: a small bound does not cost everything that is kept.
    pub fn make(&self, bytes: u64) {
        for folder in folders(&self.state.join("incidents")) {
            let old = modified(&folder).and_then(|at| at.elapsed().ok()).is_some_and(|age| age > EMPTY);
            if old && is_empty(&folder) {
                let _next_time = fs::remove_dir_all(folder);
            }
        }
        self.shrink(self.keep_bytes - bytes.min(self.keep_bytes / 2));
    }

    /// Whether something large may be written: not into the disk's last bytes, which are made free where that is possible.
    pub fn admits(&self, bytes: u64) -> bool {
        let fits = || rustix::fs::statvfs(&self.state).map_or(true, |disk| disk.f_bavail.saturating_mul(disk.f_frsize) >= bytes + RESERVE);
        fits() || self.free() && fits()
    }

    /// Does what writes; once more where the disk was full and something could go. `write` undoes what it did of a write that failed.
    ///
    /// # Errors
    /// `write`'s own.
    pub fn writes<T>(&self, mut write: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match write() {
            Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) && self.free() => write(),
            done => done,
        }
    }

    /// Removes the oldest, whatever the bound says; whether something went.
    fn free(&self) -> bool {
        let mut in_vain = self.in_vain.lock().unwrap_or_else(PoisonError::into_inner);
        if in_vain.is_some_and(|at| at.elapsed() < IN_VAIN) {
            return false;
        }
        let went = self.shrink(size(&self.state).saturating_sub(AT_ONCE));
        *in_vain = (!went).then(Instant::now);
        went
    }

    /// Removes the oldest until no more than this is there; whether something went.
    fn shrink(&self, to: u64) -> bool {
        let mut total = size(&self.state);
        if total <= to {
            return false;
        }
        let mut went = false;
        for (_, path, incident) in self.oldest_first() {
            if total <= to {
                break;
            }
            // Held until it is gone: nobody takes up what is being removed.
            let lock = if incident { removable(&path) } else { None };
            if incident && lock.is_none() {
                continue;
            }
            let bytes = size(&path);
            match fs::remove_dir_all(&path) {
                Ok(()) => (went, total) = (true, total.saturating_sub(bytes)),
                Err(error) => tracing::warn!(event = "degraded", "{} can't be removed: {error}", path.display()),
            }
        }
        went
    }

    /// The answers' evidence but the newest, and the incidents, of which `true` tells.
    fn oldest_first(&self) -> Vec<(SystemTime, PathBuf, bool)> {
        let dated = |path: PathBuf, incident: bool| Some((modified(&path)?, path, incident));
        let mut all: Vec<_> = folders(&self.state.join("evidence")).into_iter().filter_map(|path| dated(path, false)).collect();
        all.sort_unstable();
        all.pop();
        all.extend(folders(&self.state.join("incidents")).into_iter().filter_map(|path| dated(path, true)));
        all.sort_unstable();
        all
    }
}

/// The folders in a folder.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// When a folder was last written, as far as its own entries and its log tell.
fn modified(folder: &Path) -> Option<SystemTime> {
    let log = fs::metadata(folder.join(crate::incident::LOG)).and_then(|meta| meta.modified());
    log.or_else(|_| fs::metadata(folder)?.modified()).ok()
}

/// What a folder takes of its disk, in bytes.
pub(crate) fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size(&entry.path()),
            // In whole blocks: of a thousand small files that is several times their length.
            Ok(meta) => meta.len().max(meta.blocks() * 512),
            Err(_) => 0,
        })
        .sum()
}
