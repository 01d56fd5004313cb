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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;
    use crate::incident::{By, IncidentId, Store, Task, What};
    use proto::Message;

    const BIG: usize = 100_000;

    /// An incident of some size, that ended or did not; nobody holds it.
    fn incident(state: &Path, ended: bool) -> IncidentId {
        let store = Store::open(state, u64::MAX, false).unwrap();
        let incident = store.create("it hangs", By::Human, None).unwrap();
        incident.note(Task(0), By::Human, What::Said { text: "x".repeat(BIG) });
        if ended {
            incident.end(Task(0), true, &Message::new("Well.", "Sleep."));
        }
        later();
        incident.id().clone()
    }

    fn evidence(state: &Path, name: &str) -> PathBuf {
        let folder = state.join("evidence").join(name);
        fs::create_dir_all(folder.join("qmp")).unwrap();
        fs::write(folder.join("qmp/query-status.json"), "x".repeat(BIG)).unwrap();
        later();
        folder
    }

    fn later() {
        std::thread::sleep(Duration::from_millis(5));
    }

    #[test]
    fn one_bound_holds_for_incidents_evidence_and_receipts_together() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        let at = |id: &IncidentId| state.join("incidents").join(id.as_str());
        let goes_on = incident(state, false);
        let (first, old, second, new) = (evidence(state, "1"), incident(state, true), evidence(state, "2"), incident(state, true));
        let newest = evidence(state, "3");
        fs::create_dir(state.join("receipts")).unwrap();
        fs::write(state.join("receipts/1.json"), "x".repeat(BIG)).unwrap();
        // Neither kind alone is over it.
        let bound = Bound::new(state, 500_000);
        bound.make(0);
        assert!(size(state) <= 500_000, "{}", size(state));
        assert!(!first.exists() && !at(&old).exists() && !second.exists(), "the oldest of both kinds");
        assert!(at(&goes_on).exists() && at(&new).exists() && newest.exists() && state.join("receipts/1.json").exists());
        // What comes has its room too, but nothing that has to stay goes for it.
        bound.make(1 << 40);
        assert!(size(state) > 250_000 && !at(&new).exists() && at(&goes_on).exists() && newest.exists());
    }

    #[test]
    fn a_full_disk_costs_the_oldest_and_not_what_is_written_now() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        let (old, newest) = (evidence(state, "1"), evidence(state, "2"));
        let bound = Bound::new(state, u64::MAX);
        let mut tries = 0;
        let written = bound.writes(|| {
            tries += 1;
            // The kernel's own word for it.
            if old.exists() { File::options().write(true).open("/dev/full")?.write_all(b"x") } else { Ok(()) }
        });
        assert!(written.is_ok() && tries == 2 && newest.exists(), "{written:?} after {tries}");
        // Where nothing can go there is no second try, and any other error is none of its business.
        let full = || File::options().write(true).open("/dev/full")?.write_all(b"x");
        assert_eq!(bound.writes(full).unwrap_err().kind(), ErrorKind::StorageFull);
        let other = evidence(state, "3");
        assert_eq!(bound.writes(|| File::open(state.join("none"))).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(newest.exists() && other.exists());
    }

    #[test]
    fn what_a_failed_beginning_left_goes_and_one_that_begins_stays() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        let whole = incident(state, false);
        let made = |name: &str, log: bool| {
            let path = state.join("incidents").join(name);
            fs::create_dir(&path).unwrap();
            if log {
                fs::write(path.join("events.jsonl"), "").unwrap();
            }
            path
        };
        let (bare, empty) = (made("1f0c9a2e-7c1e-4b57-9a52-0d6b2f3c1a01", false), made("1f0c9a2e-7c1e-4b57-9a52-0d6b2f3c1a02", true));
        let begins = made("1f0c9a2e-7c1e-4b57-9a52-0d6b2f3c1a03", false);
        let before = SystemTime::now() - Duration::from_secs(120);
        for old in [bare.clone(), empty.clone(), empty.join("events.jsonl"), state.join("incidents").join(whole.as_str())] {
            File::open(old).unwrap().set_modified(before).unwrap();
        }
        Bound::new(state, u64::MAX).make(0);
        assert!(!bare.exists() && !empty.exists() && begins.exists() && state.join("incidents").join(whole.as_str()).exists());
    }
}
