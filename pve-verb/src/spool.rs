//! The event spool of a worker: `/run/pve-verb/spool/ID.jsonl`. The worker appends; any number of fronts follow from its start.
//!
//! Its first line says which request it belongs to, so that an id can't be used for another one. The worker holds an exclusive
//! flock on it for as long as it lives: a spool without a lock and without a receipt is the trace of a worker that was killed.

use proto::{Body, Event, KeyName, Receipt, RequestId, Verb, Vmid};
use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags, fallocate, flock, fstatvfs};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
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

/// More than the events of any verb are without artifacts inside.
const RESERVED: u64 = 256 * 1024;

/// With less than this free, tmpfs takes no artifacts inside events.
const ROOMY: u64 = 64 << 20;

/// The writing end; held by the worker.
#[derive(Debug)]
pub struct Spool {
    file: File,
}

fn path_of(id: &RequestId) -> PathBuf {
    PathBuf::from(format!("{}/{id}.jsonl", path::SPOOL))
}

impl Spool {
    /// Makes the spool of this request. Exactly one process succeeds for each id.
    ///
    /// # Errors
    /// `AlreadyExists` where another worker has the id; else the file system's.
    pub fn create(id: &RequestId, binding: &Binding) -> std::io::Result<Self> {
        // Locked and with its first line before it has its name, so that a follower never sees an unlocked or empty one.
        let hidden = PathBuf::from(format!("{}/.{id}.{}", path::SPOOL, std::process::id()));
        let mut file = std::fs::OpenOptions::new().append(true).create_new(true).mode(0o600).open(&hidden)?;
        let made = (|| {
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            reserve(&file)?;
            let mut line = serde_json::to_vec(binding)?;
            line.push(b'\n');
            file.write_all(&line)?;
            std::fs::hard_link(&hidden, path_of(id))
        })();
        // The hidden name goes whatever came of it; a leftover would only be litter on tmpfs.
        let _ = std::fs::remove_file(&hidden);
        made.map(|()| Self { file })
    }

    /// Appends an event. A full tmpfs loses the line, never the verb: the receipt is in the finished request and the log as well. An
    /// artifact inside must not use up the room that the bundle needs; where it could, the event comes without it.
    pub fn append(&mut self, event: &Event) {
        let Ok(mut line) = serde_json::to_vec(event) else { return };
        line.push(b'\n');
        let Ok(before) = self.file.metadata().map(|m| m.len()) else { return };
        if let Body::Probe(probe) = &event.body
            && probe.data.is_some()
            && !roomy(&self.file)
        {
            let body = Body::Probe(proto::Probe { data: None, ..probe.clone() });
            return self.append(&Event { body, ..event.clone() });
        }
        if self.file.write_all(&line).is_err() {
            // Half a line would take the next one with it.
            let _ = self.file.set_len(before);
        }
    }
}

/// How many spools of ended workers are kept on tmpfs.
const KEPT: usize = 100;

/// Takes the oldest spools of ended workers away. The finished requests and the log have what they said.
pub fn prune() {
    let Ok(entries) = std::fs::read_dir(path::SPOOL) else { return };
    let mut all: Vec<_> = entries.flatten().filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path()))).collect();
    all.sort_unstable();
    let gone = all.len().saturating_sub(KEPT);
    for (_, file) in all.into_iter().take(gone) {
        let ended = File::open(&file).is_ok_and(|f| flock(&f, FlockOperation::NonBlockingLockShared).is_ok());
        if ended {
            let _ = std::fs::remove_file(file);
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // What was kept for it and not used goes back.
        let _ = self.file.metadata().and_then(|m| self.file.set_len(m.len()));
    }
}

/// Keeps room for all that a worker usually says: on a full tmpfs its last word must still fit, or a refusal would be taken for a death.
fn reserve(file: &File) -> std::io::Result<()> {
    Ok(fallocate(file, FallocateFlags::KEEP_SIZE, 0, RESERVED)?)
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
    let reserved = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&hidden).and_then(|f| reserve(&f));
    let _ = std::fs::remove_file(&hidden);
    reserved
}

/// The reading end.
#[derive(Debug)]
pub struct Follower {
    file: File,
    pending: Vec<u8>,
    /// What the id is bound to.
    pub binding: Binding,
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
        let fd = rustix::fs::open(path_of(id), OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()).ok()?;
        let mut follower = Self {
            file: File::from(fd),
            pending: Vec::new(),
            binding: Binding { key_name: KeyName::console("-"), verb: Verb::Status, vmid: Vmid::DEVVM, dry_run: false },
        };
        let first = follower.take_line()?;
        follower.binding = serde_json::from_slice(&first).ok()?;
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
        let path = path_of(id);
        let same = |named: std::fs::Metadata| self.file.metadata().is_ok_and(|ours| (ours.dev(), ours.ino()) == (named.dev(), named.ino()));
        if std::fs::symlink_metadata(&path).is_ok_and(same) {
            let _ = std::fs::remove_file(path);
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
                line.pop();
                return Some(line);
            }
            let mut buffer = [0; 16 * 1024];
            match self.file.read(&mut buffer) {
                Ok(0) | Err(_) => return None,
                Ok(n) => self.pending.extend_from_slice(buffer.get(..n)?),
            }
        }
    }
}
