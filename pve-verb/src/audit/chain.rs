//! The part of the chain that is on tmpfs: what is known of the disk's end, and the lines that the disk has not taken yet.
//!
//! Everything here is done under `audit.lock`, touches tmpfs only, and so takes microseconds. No disk is asked here.

use proto::{Sha256Hex, Timestamp};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::line::{Kind, Line};

/// Where the log ends on disk, as far as is known: `audit-tail.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiskEnd {
    /// The segment that the next lines belong to; 0 where there is none yet.
    pub(super) segment: u64,
    /// Where they begin in it.
    pub(super) length: u64,
    /// The torn bytes that stand there.
    pub(super) torn: u64,
    /// The last whole line's number.
    pub(super) seq: u64,
    /// Its hash.
    pub(super) head: Sha256Hex,
    /// Mutating uses since the last review, up to that line.
    pub(super) unreviewed: Option<u64>,
    /// The latest time that a record up to that line says, as far as it was seen.
    pub(super) newest: Option<Timestamp>,
}

/// What [`Held::load`] found.
#[derive(Debug)]
pub(super) struct Known {
    /// None after a restart, until the disk was asked.
    pub(super) disk: Option<DiskEnd>,
    /// The lines that are on tmpfs only.
    pub(super) pending: Vec<Line>,
}

impl Known {
    /// Number and hash of the chain's last line; none where nothing is known at all.
    pub(super) fn end(&self) -> Option<(u64, Sha256Hex)> {
        let last = self.pending.last().map(|l| (l.seq, l.hash.clone()));
        last.or_else(|| self.disk.as_ref().map(|d| (d.seq, d.head.clone())))
    }

    /// The latest time that any record says, as far as it was seen.
    pub(super) fn newest(&self) -> Option<Timestamp> {
        newest(self.disk.as_ref().and_then(|d| d.newest), &self.pending)
    }

    /// Mutating uses since the last review.
    pub(super) fn unreviewed(&self) -> Option<u64> {
        unreviewed(self.disk.as_ref()?.unreviewed, &self.pending)
    }
}

pub(super) fn newest(before: Option<Timestamp>, lines: &[Line]) -> Option<Timestamp> {
    lines.iter().map(|l| l.at).chain([before]).max().flatten()
}

pub(super) fn unreviewed(before: Option<u64>, lines: &[Line]) -> Option<u64> {
    lines.iter().fold(before, |uses, line| match line.kind {
        Kind::Review => Some(0),
        Kind::Intent => uses.map(|n| n + 1),
        _ => uses,
    })
}

/// The folder of the locks and of both files.
#[derive(Debug)]
pub(super) struct Chain {
    run: PathBuf,
}

/// `audit.lock`, held. Whoever holds it decides what the chain's next line is.
#[derive(Debug)]
pub(super) struct Held<'a> {
    chain: &'a Chain,
    _lock: File,
}

/// `carry.lock`, held. Whoever holds it may append to the disk and cut the overflow.
#[derive(Debug)]
pub(super) struct Carrying {
    _lock: File,
}

impl Chain {
    pub(super) const fn at(run: PathBuf) -> Self {
        Self { run }
    }

    pub(super) fn knows_the_disk(&self) -> bool {
        self.disk_end().is_some()
    }

    pub(super) fn lock(&self, until: Instant) -> Result<Held<'_>, String> {
        Ok(Held { chain: self, _lock: self.flock("audit.lock", until)? })
    }

    pub(super) fn carrying(&self, until: Instant) -> Result<Carrying, String> {
        Ok(Carrying { _lock: self.flock("carry.lock", until)? })
    }

    fn flock(&self, name: &str, until: Instant) -> Result<File, String> {
        let file = self.file(name, OFlags::RDWR | OFlags::CREATE).map_err(|e| format!("{name} could not be opened: {e}"))?;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                // Polled, because a blocking flock has no deadline.
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(Duration::from_millis(2)),
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(format!("{name} was held by somebody else for too long")),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(format!("{name} could not be locked: {e}")),
            }
        }
    }

    fn file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match open(self.run.join(name), flags, Mode::RUSR | Mode::WUSR) {
            Err(rustix::io::Errno::NOENT) if flags.contains(OFlags::CREATE) => {
                DirBuilder::new().recursive(true).mode(0o700).create(&self.run)?;
                Ok(open(self.run.join(name), flags, Mode::RUSR | Mode::WUSR)?.into())
            }
            opened => Ok(opened?.into()),
        }
    }

    fn disk_end(&self) -> Option<DiskEnd> {
        let mut text = Vec::new();
        self.file("audit-tail.json", OFlags::RDONLY).ok()?.take(64 * 1024).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

impl Held<'_> {
    /// What is on tmpfs. A line that was torn by a kill is nobody's (its writer had not answered yet) and is cut off.
    pub(super) fn load(&self) -> Known {
        let disk = self.chain.disk_end();
        let mut pending: Vec<Line> = self.overflow().split(|b| *b == b'\n').filter_map(Line::read).collect();
        if let Some(end) = &disk {
            // Lines that are on disk already: their carrier was killed before it could cut the file. Where the rest does not follow the
            // disk's end nothing is dropped: the next carrier sees that, and has it repaired.
            let newer = pending.iter().position(|l| l.seq > end.seq);
            let follows = match newer.and_then(|n| pending.get(n)) {
                Some(line) => line.prev == end.head,
                None => pending.last().is_none_or(|l| l.seq < end.seq || l.hash == end.head),
            };
            if follows {
                pending.drain(..newer.unwrap_or(pending.len()));
            }
        }
        Known { disk, pending }
    }

    /// The whole lines of the overflow, as bytes.
    pub(super) fn overflow(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Ok(mut file) = self.chain.file("audit-overflow.jsonl", OFlags::RDWR) {
            let _ = file.read_to_end(&mut bytes);
            let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
            if whole < bytes.len() && file.set_len(whole as u64).is_ok() {
                bytes.truncate(whole);
            }
        }
        bytes
    }

    /// Adds a line to the overflow, whole or not at all.
    pub(super) fn push(&self, line: &Line) -> io::Result<()> {
        let mut file = self.chain.file("audit-overflow.jsonl", OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND)?;
        let before = file.metadata()?.len();
        file.write_all(&[&line.text[..], b"\n"].concat()).inspect_err(|_| {
            let _ = file.set_len(before);
        })
    }

    /// The overflow becomes these lines.
    pub(super) fn keep(&self, lines: &[Line]) -> io::Result<()> {
        if lines.is_empty() {
            // Cutting needs no room, which a full tmpfs would not have.
            return self.chain.file("audit-overflow.jsonl", OFlags::WRONLY | OFlags::CREATE)?.set_len(0);
        }
        let bytes: Vec<u8> = lines.iter().flat_map(|l| l.text.iter().copied().chain(*b"\n")).collect();
        self.replace("audit-overflow.jsonl", &bytes)
    }

    /// Remembers where the disk's log ends. Where that can't be written it is forgotten, so that the next call asks the disk.
    pub(super) fn remember(&self, end: &DiskEnd) {
        let stored = serde_json::to_vec(end).map_err(io::Error::other).and_then(|bytes| self.replace("audit-tail.json", &bytes));
        if stored.is_err() {
            let _ = std::fs::remove_file(self.chain.run.join("audit-tail.json"));
        }
    }

    /// Whether the log was told just this of the host last.
    pub(super) fn was_told(&self, what: &[u8]) -> bool {
        let mut told = Vec::new();
        let read = self.chain.file("audit-told.json", OFlags::RDONLY).and_then(|f| f.take(64 * 1024).read_to_end(&mut told));
        read.is_ok() && told == what
    }

    pub(super) fn tell(&self, what: &[u8]) {
        let _ = self.replace("audit-told.json", what);
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = format!("{name}.new");
        self.chain.file(&temporary, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?.write_all(bytes)?;
        std::fs::rename(self.chain.run.join(&temporary), self.chain.run.join(name))
    }
}
