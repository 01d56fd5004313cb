//! The part of the chain that is on tmpfs: what is known of the disk's end, and the lines that the disk has not taken yet.
//!
//! Everything here is done under `audit.lock`, touches tmpfs only, and so takes microseconds. No disk is asked here. How long the
//! overflow is does not matter to who adds a line: a [`Tally`] beside it says where the chain ends.

use proto::{Sha256Hex, Timestamp};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::line::{Kind, Line};
use crate::flock::Flocked;
use crate::operation::LastIntent;

/// The lines that the disk has not taken yet.
const OVERFLOW: &str = "audit-overflow.jsonl";
/// Their [`Tally`].
const TALLY: &str = "audit-pending.json";

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
    /// The newest intent up to that line.
    pub(super) intent: Option<LastIntent>,
}

/// What the overflow's lines come to, so that nobody has to read them all to add one: `audit-pending.json`. It covers the first
/// `bytes`; what was added by somebody who was killed before he could say so is read and added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tally {
    /// Of the overflow that it is about.
    inode: u64,
    /// How much of it is counted here.
    pub(super) bytes: u64,
    /// The hash that the first line names.
    first_prev: Option<Sha256Hex>,
    /// Number and hash of the last line.
    last: Option<(u64, Sha256Hex)>,
    /// Whether a review is among the lines.
    reviewed: bool,
    /// Mutating uses, since that review if there is one.
    uses: u64,
    /// The latest time that one of the lines says.
    newest: Option<Timestamp>,
    /// The newest intent of all, the disk's among them, and what became of it.
    intent: Option<LastIntent>,
}

impl Tally {
    fn count(&mut self, line: &Line) {
        self.first_prev.get_or_insert_with(|| line.prev.clone());
        self.last = Some((line.seq, line.hash.clone()));
        self.newest = self.newest.max(line.at);
        self.intent = LastIntent::after(self.intent.take(), line.mark());
        match line.kind {
            Kind::Review => (self.reviewed, self.uses) = (true, 0),
            Kind::Intent => self.uses += 1,
            _ => {}
        }
    }
}

/// Where the chain stands, without its lines.
#[derive(Debug)]
pub(super) struct Standing {
    disk: Option<DiskEnd>,
    pub(super) tally: Tally,
}

impl Standing {
    /// Number and hash of the chain's last line; none where nothing is known at all.
    pub(super) fn end(&self) -> Option<(u64, Sha256Hex)> {
        let disk = self.disk.as_ref().map(|d| (d.seq, d.head.clone()));
        match (&self.tally.last, disk) {
            // The overflow was carried, and its carrier was killed before he could cut it.
            (Some((seq, _)), Some(disk)) if *seq < disk.0 => Some(disk),
            (Some(last), _) => Some(last.clone()),
            (None, disk) => disk,
        }
    }

    /// The latest time that any record says, as far as it was seen.
    pub(super) fn newest(&self) -> Option<Timestamp> {
        self.tally.newest.max(self.disk.as_ref().and_then(|d| d.newest))
    }

    /// The newest intent, and what became of it.
    pub(super) fn intent(self) -> Option<LastIntent> {
        self.tally.intent
    }

    /// Mutating uses since the last review; `Err` where some of the overflow's lines are on disk too, so that they have to be looked at.
    fn unreviewed(&self) -> Result<Option<u64>, ()> {
        let Some(disk) = &self.disk else { return Ok(None) };
        match (&self.tally.first_prev, &self.tally.last) {
            (Some(prev), _) if *prev == disk.head => {
                let before = if self.tally.reviewed { Some(0) } else { disk.unreviewed };
                Ok(before.map(|n| n + self.tally.uses))
            }
            (Some(_), Some((seq, _))) if *seq > disk.seq => Err(()),
            _ => Ok(disk.unreviewed),
        }
    }
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

    fn unreviewed(&self) -> Option<u64> {
        unreviewed(self.disk.as_ref()?.unreviewed, &self.pending)
    }
}

pub(super) fn newest(before: Option<Timestamp>, lines: &[Line]) -> Option<Timestamp> {
    lines.iter().map(|l| l.at).chain([before]).max().flatten()
}

pub(super) fn intent(before: Option<LastIntent>, lines: &[Line]) -> Option<LastIntent> {
    lines.iter().fold(before, |last, line| LastIntent::after(last, line.mark()))
}

pub(super) fn unreviewed(before: Option<u64>, lines: &[Line]) -> Option<u64> {
    lines.iter().fold(before, |uses, line| match line.kind {
        Kind::Review => Some(0),
        Kind::Intent => uses.map(|n| n + 1),
        _ => uses,
    })
}

/// What is on tmpfs at one moment, unread.
pub(super) struct Snapshot {
    disk: Option<DiskEnd>,
    overflow: Vec<u8>,
}

impl Snapshot {
    /// Reads it. Parsing thousands of lines takes longer than anybody should hold `audit.lock`.
    pub(super) fn known(self) -> Known {
        let Self { disk, overflow } = self;
        let mut pending: Vec<Line> = overflow.split(|b| *b == b'\n').filter_map(Line::read).collect();
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
    _lock: Flocked<File>,
}

/// `carry.lock`, held. Whoever holds it may append to the disk and cut the overflow.
#[derive(Debug)]
pub(super) struct Carrying {
    _lock: Flocked<File>,
}

impl Chain {
    pub(super) const fn at(run: PathBuf) -> Self {
        Self { run }
    }

    pub(super) fn knows_the_disk(&self) -> bool {
        self.disk_end().is_some()
    }

    pub(super) fn lock(&self, until: Instant) -> Result<Held<'_>, String> {
        // Also where a disk has used up the time: who holds this lock holds it for microseconds, and an intent must not be lost to that.
        let until = until.max(Instant::now() + Duration::from_millis(100));
        Ok(Held { chain: self, _lock: self.flock("audit.lock", until)? })
    }

    pub(super) fn carrying(&self, until: Instant) -> Result<Carrying, String> {
        Ok(Carrying { _lock: self.flock("carry.lock", until)? })
    }

    fn flock(&self, name: &str, until: Instant) -> Result<Flocked<File>, String> {
        let file = self.file(name, OFlags::RDWR | OFlags::CREATE).map_err(|e| format!("{name} could not be opened: {e}"))?;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Flocked::new(file)),
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
    /// Where the chain stands. Reads only what was not counted yet.
    pub(super) fn standing(&self) -> Standing {
        let disk = self.chain.disk_end();
        // Counting goes on from what the disk has.
        let nothing = Tally { intent: disk.as_ref().and_then(|d| d.intent.clone()), ..Tally::default() };
        let tally = self.tally(&nothing).unwrap_or(nothing);
        Standing { disk, tally }
    }

    fn tally(&self, nothing: &Tally) -> io::Result<Tally> {
        let file = match self.chain.file(OVERFLOW, OFlags::RDWR) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(nothing.clone()),
            opened => opened?,
        };
        let (inode, length) = (file.metadata()?.ino(), file.metadata()?.len());
        let stored = self.small(TALLY).and_then(|text| serde_json::from_slice::<Tally>(&text).ok());
        let mut tally = stored.filter(|t| t.inode == inode && t.bytes <= length).unwrap_or_else(|| Tally { inode, ..nothing.clone() });
        if tally.bytes < length {
            let mut more = vec![0; usize::try_from(length - tally.bytes).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut more, tally.bytes)?;
            let whole = more.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
            more.get(..whole).unwrap_or_default().split(|b| *b == b'\n').filter_map(Line::read).for_each(|line| tally.count(&line));
            tally.bytes += whole as u64;
            if tally.bytes < length {
                // A line that was torn by a kill is nobody's: its writer had not answered yet.
                file.set_len(tally.bytes)?;
            }
        }
        Ok(tally)
    }

    /// Mutating uses since the last review.
    pub(super) fn unreviewed(&self) -> Option<u64> {
        self.standing().unreviewed().unwrap_or_else(|()| self.load().unreviewed())
    }

    /// What is on tmpfs. A line that was torn by a kill is nobody's (its writer had not answered yet) and is cut off.
    pub(super) fn load(&self) -> Known {
        self.snapshot().known()
    }

    /// The bytes of both files, to be read without the lock.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot { disk: self.chain.disk_end(), overflow: self.overflow() }
    }

    /// The whole lines of the overflow, as bytes.
    pub(super) fn overflow(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Ok(mut file) = self.chain.file(OVERFLOW, OFlags::RDWR) {
            let _ = file.read_to_end(&mut bytes);
            let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
            if whole < bytes.len() && file.set_len(whole as u64).is_ok() {
                bytes.truncate(whole);
            }
        }
        bytes
    }

    /// Adds a line to the overflow, whole or not at all.
    pub(super) fn push(&self, line: &Line, standing: &mut Standing) -> io::Result<()> {
        let mut file = self.chain.file(OVERFLOW, OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND)?;
        let before = file.metadata()?;
        file.write_all(&[&line.text[..], b"\n"].concat()).inspect_err(|_| {
            let _ = file.set_len(before.len());
        })?;
        let tally = &mut standing.tally;
        tally.count(line);
        (tally.inode, tally.bytes) = (before.ino(), before.len() + line.text.len() as u64 + 1);
        // Where it can't be written, the next one counts on from the last one that could.
        let _ = serde_json::to_vec(tally).map_err(io::Error::other).and_then(|bytes| self.replace(TALLY, &bytes));
        Ok(())
    }

    /// The overflow becomes these lines.
    pub(super) fn keep(&self, lines: &[Line]) -> io::Result<()> {
        // Before the overflow changes: a tally of what was there before would be believed.
        let _ = std::fs::remove_file(self.chain.run.join(TALLY));
        if lines.is_empty() {
            // Cutting needs no room, which a full tmpfs would not have.
            return self.chain.file(OVERFLOW, OFlags::WRONLY | OFlags::CREATE)?.set_len(0);
        }
        let bytes: Vec<u8> = lines.iter().flat_map(|l| l.text.iter().copied().chain(*b"\n")).collect();
        self.replace(OVERFLOW, &bytes)
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
        self.small("audit-told.json").is_some_and(|told| told == what)
    }

    /// A small file's bytes; none where there is none.
    pub(super) fn small(&self, name: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        self.chain.file(name, OFlags::RDONLY).and_then(|f| f.take(64 * 1024).read_to_end(&mut bytes)).ok()?;
        Some(bytes)
    }

    pub(super) fn tell(&self, what: &[u8]) {
        let _ = self.replace("audit-told.json", what);
    }

    /// Replaces a small file, whole or not at all.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = format!("{name}.new");
        self.chain.file(&temporary, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?.write_all(bytes)?;
        std::fs::rename(self.chain.run.join(&temporary), self.chain.run.join(name))
    }
}
