//! The file of an incident's events: one JSON line each, chained by hashes, only ever appended to.
//!
//! One process writes, held by a lock on the file. A last line without its newline is what a crash left and is taken away; anything
//! else that does not fit into the chain is damage, and a damaged log is read, not continued.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::{Sha256Hex, Timestamp};
use rustix::fs::FlockOperation;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::IncidentId;
use super::event::{By, Line, Task, What};

/// No line is longer.
pub(super) const MAX_LINE: u64 = 1 << 20;

/// Its name in the incident's folder.
pub(crate) const NAME: &str = "events.jsonl";

/// Why a log can't be continued.
#[derive(Debug)]
pub(super) enum Bad {
    /// The disk says no.
    Io(io::Error),
    /// Another process writes it.
    Busy,
    /// This line, from 1, does not fit.
    Damaged(u64),
}

impl From<io::Error> for Bad {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A log that this process writes.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    /// Where each line begins, and where the last one ends.
    ends: Vec<u64>,
    prev: Sha256Hex,
}

/// What a line has to have to be in the chain.
#[derive(Deserialize)]
struct Link {
    n: u64,
    prev: Sha256Hex,
}

impl Log {
    /// A new, empty one.
    pub(super) fn create(folder: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(folder.join(NAME))?;
        own(&file).map_err(|bad| if let Bad::Io(error) = bad { error } else { io::ErrorKind::ResourceBusy.into() })?;
        Ok(Self { file, ends: vec![0], prev: Sha256Hex::zero() })
    }

    /// An old one, every line given to `tell`; and how much of a torn line was taken away.
    pub(super) fn open(folder: &Path, mut tell: impl FnMut(Line)) -> Result<(Self, u64), Bad> {
        let file = OpenOptions::new().read(true).append(true).open(folder.join(NAME))?;
        own(&file)?;
        if file.metadata()?.nlink() == 0 {
            // Removed as one of the oldest, while this waited for its lock.
            return Err(io::Error::from(io::ErrorKind::NotFound).into());
        }
        let mut log = Self { file, ends: vec![0], prev: Sha256Hex::zero() };
        let torn = read(&folder.join(NAME), |bytes| {
            let n = log.ends.len() as u64;
            let text = std::str::from_utf8(bytes).map_err(|_| Bad::Damaged(n))?;
            let link: Link = serde_json::from_str(text).map_err(|_| Bad::Damaged(n))?;
            if link.n != n || link.prev != log.prev {
                return Err(Bad::Damaged(n));
            }
            log.took(bytes);
            tell(serde_json::from_str(text).map_err(|_| Bad::Damaged(n))?);
            Ok(())
        })?;
        if torn > 0 {
            log.file.set_len(log.end())?;
            log.file.sync_data()?;
        }
        Ok((log, torn))
    }

    /// One in this file, whatever it takes.
    #[cfg(test)]
    pub(super) fn on(file: File) -> Self {
        Self { file, ends: vec![0], prev: Sha256Hex::zero() }
    }

    /// How many lines there are.
    pub(super) const fn len(&self) -> u64 {
        self.ends.len() as u64 - 1
    }

    /// How many bytes.
    pub(super) fn end(&self) -> u64 {
        self.ends.last().copied().unwrap_or_default()
    }

    fn took(&mut self, line: &[u8]) {
        self.prev = hash(line);
        self.ends.push(self.end() + line.len() as u64 + 1);
    }

    /// Appends; gives the line and its text.
    pub(super) fn append(
        &mut self,
        incident: &IncidentId,
        at: Timestamp,
        task: Task,
        origin: By,
        what: What,
    ) -> io::Result<(Line, String)> {
        let durable = what.is_durable();
        let line = Line { v: 1, n: self.len() + 1, at, incident: incident.clone(), task, origin, what, prev: self.prev.clone() };
        let mut text = serde_json::to_string(&line)?;
        if text.len() as u64 >= MAX_LINE {
            return Err(io::Error::other("the event is longer than a line may be"));
        }
        text.push('\n');
        let written = self.file.write_all(text.as_bytes()).and_then(|()| if durable { self.file.sync_data() } else { Ok(()) });
        text.pop();
        if let Err(error) = written {
            // Half a line would be damage as soon as another follows.
            let _why_it_was_not_written_counts = self.file.set_len(self.end());
            return Err(error);
        }
        self.took(text.as_bytes());
        Ok((line, text))
    }

    /// From here on no line can be written.
    #[cfg(test)]
    pub(super) fn dies(&mut self) {
        self.file = File::open("/dev/null").unwrap();
    }

    /// The text of a line that there is; `n` from 1.
    pub(super) fn text(&self, n: u64) -> Option<String> {
        let at = usize::try_from(n).ok()?;
        let (from, to) = (*self.ends.get(at.checked_sub(1)?)?, *self.ends.get(at)?);
        let mut bytes = vec![0; usize::try_from(to - from - 1).ok()?];
        self.file.read_exact_at(&mut bytes, from).ok()?;
        String::from_utf8(bytes).ok()
    }
}

/// The lock by which one process at a time writes. Who only asks whether it is held ([`is_written`]) holds it for a moment too, or for as
/// long as it is off the CPU, and is outwaited for a second.
fn own(file: &File) -> Result<(), Bad> {
    for _ in 0..500 {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(Bad::Io(error.into())),
        }
    }
    Err(Bad::Busy)
}

/// Whether some process writes it.
pub(super) fn is_written(folder: &Path) -> bool {
    File::open(folder.join(NAME)).is_ok_and(|file| rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err())
}

/// Gives each whole line of a file; what remains after the last newline is its result.
fn read(file: &Path, mut tell: impl FnMut(&[u8]) -> Result<(), Bad>) -> Result<u64, Bad> {
    let mut reader = BufReader::new(File::open(file)?);
    let mut n = 0;
    loop {
        n += 1;
        let mut line = Vec::new();
        reader.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut line)?;
        match line.pop() {
            None => return Ok(0),
            Some(b'\n') => tell(&line)?,
            Some(_) if line.len() as u64 >= MAX_LINE => return Err(Bad::Damaged(n)),
            Some(_) => return Ok(line.len() as u64 + 1),
        }
    }
}

/// The lines of a log that somebody else may be writing, from number `from`, with their text.
pub(super) fn lines(folder: &Path, from: u64, mut tell: impl FnMut(Line, &str)) -> Result<(), Bad> {
    let mut n = 0;
    let path: PathBuf = folder.join(NAME);
    read(&path, |bytes| {
        n += 1;
        if n >= from {
            let text = std::str::from_utf8(bytes).map_err(|_| Bad::Damaged(n))?;
            tell(serde_json::from_str(text).map_err(|_| Bad::Damaged(n))?, text);
        }
        Ok(())
    })
    .map(|_torn| ())
}

/// SHA-256.
pub(super) fn hash(bytes: &[u8]) -> Sha256Hex {
    Sha256Hex::from_bytes(Sha256::digest(bytes).into())
}
