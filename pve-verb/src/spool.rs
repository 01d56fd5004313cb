//! The event spool of a worker: `/run/pve-verb/spool/ID.jsonl`. The worker appends; any number of fronts follow from its start.
//!
//! Its first line says which request it belongs to, so that an id can't be used for another one. The worker holds an exclusive
//! flock on it for as long as it lives: a spool without a lock and without a receipt is the trace of a worker that was killed.

use proto::{Body, Event, KeyName, Receipt, RequestId, Verb, Vmid};
use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags, fallocate, flock, fstatvfs};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::host::path;

/// What an id is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The key that asked first.
    pub key_name: KeyName,
    /// Its verb.
    pub verb: Verb,
    /// Its VM.
    pub vmid: Vmid,
    /// Whether nothing is to be changed.
    pub dry_run: bool,
}

/// A spool's first line.
#[derive(Debug, Serialize, Deserialize)]
struct First {
    #[serde(flatten)]
    binding: Binding,
    /// The worker that made it.
    #[serde(default)]
    worker: u32,
}

/// More than the events of any verb are without artifacts inside.
const RESERVED: u64 = 256 * 1024;
/// Room that is kept behind every line, for the last word: a receipt is far shorter.
const LAST_WORD: u64 = 64 * 1024;

/// With less than this free, tmpfs takes no artifacts inside events.
const ROOMY: u64 = 64 << 20;

/// The writing end; held by the worker.
#[derive(Debug)]
pub struct Spool {
    file: File,
    /// Where the last whole line ends.
    length: u64,
}

fn path_of(folder: &Path, id: &RequestId) -> PathBuf {
    folder.join(format!("{id}.jsonl"))
}

impl Spool {
    /// Makes the spool of this request. Exactly one process succeeds for each id.
    ///
    /// # Errors
    /// `AlreadyExists` where another worker has the id; else the file system's.
    pub fn create(id: &RequestId, binding: &Binding) -> std::io::Result<Self> {
        Self::create_in(Path::new(path::SPOOL), id, binding)
    }

    fn create_in(folder: &Path, id: &RequestId, binding: &Binding) -> std::io::Result<Self> {
        // Locked and with its first line before it has its name, so that a follower never sees an unlocked or empty one.
        let hidden = folder.join(format!(".{id}.{}", std::process::id()));
        let mut file = std::fs::OpenOptions::new().append(true).create_new(true).mode(0o600).open(&hidden)?;
        let made = (|| {
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            reserve(&file, 0, RESERVED)?;
            let mut line = serde_json::to_vec(&First { binding: binding.clone(), worker: std::process::id() })?;
            line.push(b'\n');
            file.write_all(&line)?;
            std::fs::hard_link(&hidden, path_of(folder, id))?;
            Ok(line.len() as u64)
        })();
        // The hidden name goes whatever came of it; a leftover would only be litter on tmpfs.
        let _ = std::fs::remove_file(&hidden);
        made.map(|length| Self { file, length })
    }

    /// Appends an event. A full tmpfs loses the line, never the verb: the receipt is in the finished request and the log as well. What
    /// was written of a lost line is cut off, so that the next one is not glued to it. An artifact inside must not use up the room that
    /// the bundle needs; where it could, the event comes without it.
    pub fn append(&mut self, event: &Event) {
        let Ok(mut line) = serde_json::to_vec(event) else { return };
        line.push(b'\n');
        if let Body::Probe(probe) = &event.body
            && probe.data.is_some()
            && !(roomy(&self.file) && reserve(&self.file, self.length, line.len() as u64 + LAST_WORD).is_ok())
        {
            let body = Body::Probe(proto::Probe { data: None, ..probe.clone() });
            return self.append(&Event { body, ..event.clone() });
        }
        match self.file.write_all(&line) {
            Ok(()) => self.length += line.len() as u64,
            Err(_) => self.cut_back(),
        }
    }

    fn cut_back(&self) {
        let _ = self.file.set_len(self.length);
        // Cutting gave the room away that was kept for the last word.
        let _ = reserve(&self.file, self.length, LAST_WORD);
    }
}

/// How many spools of ended workers are kept on tmpfs.
const KEPT: usize = 100;
/// How much room they may take together. With `--inline` one alone takes up to eleven megabytes.
const KEPT_BYTES: u64 = 16 << 20;

/// Takes the oldest spools of ended workers away. The finished requests and the log have what they said.
pub fn prune() {
    prune_in(Path::new(path::SPOOL));
}

fn prune_in(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let spools = entries.flatten().filter(|e| e.file_name().to_str().is_some_and(|n| n.ends_with(".jsonl")));
    let mut all: Vec<_> = spools
        .filter_map(|e| {
            let about = e.metadata().ok()?;
            // What is allotted, not what is written: a killed worker leaves what was kept for it.
            Some((about.modified().ok()?, about.blocks() * 512, e.path()))
        })
        .collect();
    all.sort_unstable();
    let mut room = KEPT_BYTES;
    for (n, (_, bytes, file)) in all.into_iter().rev().enumerate() {
        let fits = room.checked_sub(bytes);
        room = fits.unwrap_or(0);
        if n < KEPT && fits.is_some() {
            continue;
        }
        let Ok(opened) = File::open(&file) else { continue };
        let ended = flock(&opened, FlockOperation::NonBlockingLockExclusive).is_ok();
        let there = std::fs::symlink_metadata(&file).is_ok_and(|there| opened.metadata().is_ok_and(|ours| ours.ino() == there.ino()));
        if ended && there {
            let _ = std::fs::remove_file(file);
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // What was kept for it and not used goes back.
        let _ = self.file.set_len(self.length);
        // A child that hangs before its exec may have a copy of the descriptor, and this worker must not seem to live with it.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// Keeps room for all that a worker usually says: on a full tmpfs its last word must still fit, or a refusal would be taken for a death.
fn reserve(file: &File, from: u64, bytes: u64) -> std::io::Result<()> {
    Ok(fallocate(file, FallocateFlags::KEEP_SIZE, from, bytes)?)
}

/// Whether tmpfs has room for artifacts a second time.
fn roomy(file: &File) -> bool {
    fstatvfs(file).is_ok_and(|fs| fs.f_bavail.saturating_mul(fs.f_frsize) >= ROOMY)
}

/// Whether a spool can be made now.
///
/// # Errors
/// Why not: most likely tmpfs is full.
pub fn room() -> std::io::Result<()> {
    let hidden = PathBuf::from(format!("{}/.room.{}", path::SPOOL, std::process::id()));
    let reserved =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&hidden).and_then(|f| reserve(&f, 0, RESERVED));
    let _ = std::fs::remove_file(&hidden);
    reserved
}

/// The reading end.
#[derive(Debug)]
pub struct Follower {
    file: File,
    /// Where the next line begins, and what was read from there.
    at: u64,
    pending: Vec<u8>,
    /// What the id is bound to.
    pub binding: Binding,
    /// The pid of the worker that made it.
    pub worker: u32,
}

/// What following gave.
#[derive(Debug)]
pub enum Next {
    /// The next event.
    Event(Box<Event>),
    /// Nothing yet, and the worker lives.
    Nothing,
    /// No receipt came, and the worker is gone.
    WorkerGone,
}

impl Follower {
    /// Opens the spool of this id; none where there is none.
    pub fn open(id: &RequestId) -> Option<Self> {
        Self::open_in(Path::new(path::SPOOL), id)
    }

    fn open_in(folder: &Path, id: &RequestId) -> Option<Self> {
        let fd = rustix::fs::open(path_of(folder, id), OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()).ok()?;
        let mut follower = Self {
            file: File::from(fd),
            at: 0,
            pending: Vec::new(),
            binding: Binding { key_name: KeyName::console("-"), verb: Verb::Status, vmid: Vmid::DEVVM, dry_run: false },
            worker: 0,
        };
        let first = follower.take_line()?;
        First { binding: follower.binding, worker: follower.worker } = serde_json::from_slice(&first).ok()?;
        Some(follower)
    }

    /// Waits for a spool to appear, as its worker makes it.
    pub fn wait_for(id: &RequestId, within: Duration) -> Option<Self> {
        let until = Instant::now() + within;
        loop {
            if let Some(follower) = Self::open(id) {
                return Some(follower);
            }
            if Instant::now() >= until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The next event, without waiting.
    pub fn follow(&mut self) -> Next {
        if let Some(event) = self.take_event() {
            return event;
        }
        if self.worker_lives() {
            return Next::Nothing;
        }
        // It may have written its last line between our look and its end.
        self.take_event().unwrap_or(Next::WorkerGone)
    }

    fn take_event(&mut self) -> Option<Next> {
        let line = self.take_line()?;
        serde_json::from_slice(&line).ok().map(|event| Next::Event(Box::new(event)))
    }

    /// The receipt that stands in it. Reads to the end; for a spool whose worker is gone.
    pub fn receipt(&mut self) -> Option<Receipt> {
        loop {
            if let Next::Event(event) = self.take_event()?
                && let Body::Receipt(receipt) = event.body
            {
                return Some(receipt);
            }
        }
    }

    /// Takes the spool away, so that its id can be used again; not one that has taken its place meanwhile.
    pub fn discard(self, id: &RequestId) {
        self.discard_in(Path::new(path::SPOOL), id);
    }

    fn discard_in(self, folder: &Path, id: &RequestId) {
        let named = path_of(folder, id);
        // Only whoever holds this file's lock takes its name away: so between the look and the act nobody else does, and no worker of
        // another caller can have made a new spool under the name. Others hold the lock for moments, to see who lives; where one is off
        // the CPU that long, the old refusal would be told as this call's.
        let until = Instant::now() + Duration::from_secs(2);
        while flock(&self.file, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() >= until {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let same = |there: std::fs::Metadata| self.file.metadata().is_ok_and(|ours| (ours.dev(), ours.ino()) == (there.dev(), there.ino()));
        if std::fs::symlink_metadata(&named).is_ok_and(same) {
            let _ = std::fs::remove_file(named);
        }
    }

    /// Whether its worker lives: it holds the spool's lock until it dies.
    pub fn worker_lives(&self) -> bool {
        match flock(&self.file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {
                let _ = flock(&self.file, FlockOperation::Unlock);
                false
            }
            Err(_) => true,
        }
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.pending.iter().position(|b| *b == b'\n') {
                let rest = self.pending.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.pending, rest);
                self.at += line.len() as u64;
                line.pop();
                return Some(line);
            }
            let mut buffer = [0; 64 * 1024];
            match self.file.read_at(&mut buffer, self.at + self.pending.len() as u64) {
                Ok(0) | Err(_) => {
                    // Half a line may be cut off and another one be written in its place: it is read again.
                    self.pending.clear();
                    return None;
                }
                Ok(n) => self.pending.extend_from_slice(buffer.get(..n)?),
            }
        }
    }
}

#[cfg(test)]
mod tests;
