//! Authorised → Locked: one mutation at a time on the host's VM. Reads pass without a lock and never wait for a mutation.
//!
//! The lock is a flock in /run with the holder's pid, start time and deadline in it. The kernel frees it when the holder dies. A
//! holder past its deadline is taken over: killed through a pidfd that was checked to be it, and the lock file replaced, because
//! in state D the old one stays held. With SIGKILL pending it can't act again.

use proto::{KeyName, Timestamp, Verb, Vmid};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::time::Duration;

use crate::policy::Authorised;
use crate::run::{Run, Stop};
use crate::{host, text::say};

const LOCK: &str = "/run/pve-verb/mutation.lock";
/// Beyond its published deadline a holder gets this long, for its last records.
const GRACE: Duration = Duration::from_secs(5);

/// Who mutates.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Holder {
    /// Its worker's pid.
    pub pid: u32,
    /// The worker's start time, field 22 of `/proc/PID/stat`.
    pub started: u64,
    /// The request, to attach to.
    pub request_id: proto::RequestId,
    /// Its verb.
    pub verb: Verb,
    /// Its VM.
    pub vmid: Vmid,
    /// Whose key.
    pub key_name: KeyName,
    /// Since when.
    pub since: Timestamp,
    /// CLOCK_BOOTTIME in milliseconds at which it is past its deadline.
    pub deadline_boot_ms: u64,
}

/// A request that may go on: a read, or the one mutation. Made by [`acquire`] only.
#[derive(Debug)]
pub struct Locked {
    authorised: Authorised,
    // Held, never read: closing it frees the lock.
    _lock: Option<File>,
}

impl Locked {
    /// The request.
    pub const fn authorised(&self) -> &Authorised {
        &self.authorised
    }
}

/// Takes the mutation lock where the verb mutates.
///
/// # Errors
/// Refused-busy: who holds it, since when, and how to attach.
pub fn acquire(run: &mut Run, authorised: Authorised) -> Result<Locked, Stop> {
    if !authorised.verb().mutates() {
        return Ok(Locked { authorised, _lock: None });
    }
    for _ in 0..3 {
        let file = open().map_err(|e| unfit(&e))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            if !is_still_the_lock(&file) {
                continue; // somebody took the old file's place between our open and our flock
            }
            write_holder(&file, &authorised).map_err(|e| unfit(&e))?;
            return Ok(Locked { authorised, _lock: Some(file) });
        }
        match read_holder(&file) {
            Some(holder) if past_deadline(&holder) => take_over(run, &holder)?,
            Some(h) => return Err(Stop::busy(say::busy(h.verb, &h.request_id, h.key_name.as_str(), h.since))),
            None => return Err(Stop::busy(say::busy_unknown("its file is empty"))),
        }
    }
    Err(Stop::busy(say::busy_unknown("others take it as often as it is free")))
}

fn unfit(e: &std::io::Error) -> Stop {
    Stop::host(say::host_unfit(&format!("{LOCK}: {e}")))
}

/// The lock for work that is no request (recover.rs); none where a mutation is in progress.
pub fn only() -> Option<File> {
    let file = open().ok()?;
    (flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() && is_still_the_lock(&file) && file.set_len(0).is_ok()).then_some(file)
}

fn open() -> std::io::Result<File> {
    std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(LOCK)
}

/// The mutation in progress, if there is one: for `status`, and for who wants to attach.
pub fn holder() -> Option<Holder> {
    let file = File::open(LOCK).ok()?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => None,
        Err(_) => read_holder(&file),
    }
}

fn is_still_the_lock(file: &File) -> bool {
    match (file.metadata(), std::fs::metadata(LOCK)) {
        (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

fn past_deadline(holder: &Holder) -> bool {
    host::boot_ms() > holder.deadline_boot_ms.saturating_add(u64::try_from(GRACE.as_millis()).unwrap_or(0))
}

fn write_holder(mut file: &File, authorised: &Authorised) -> std::io::Result<()> {
    let holder = Holder {
        pid: std::process::id(),
        started: crate::procfs::start_time(std::process::id()).unwrap_or(0),
        request_id: authorised.id().clone(),
        verb: authorised.verb(),
        vmid: authorised.vmid(),
        key_name: authorised.caller().key_name.clone(),
        since: host::now(),
        deadline_boot_ms: host::boot_ms().saturating_add(authorised.deadline_ms()),
    };
    file.set_len(0)?;
    file.write_all(&serde_json::to_vec(&holder)?)
}

fn read_holder(file: &File) -> Option<Holder> {
    let mut text = String::new();
    let mut file = file;
    std::io::Seek::rewind(&mut file).ok()?;
    file.take(64 * 1024).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// Kills a holder past its deadline and frees the lock's name.
#[allow(clippy::disallowed_methods, reason = "the holder is past its deadline, and the pidfd is checked to be it")]
fn take_over(run: &mut Run, holder: &Holder) -> Result<(), Stop> {
    let killed = i32::try_from(holder.pid).ok().and_then(Pid::from_raw).and_then(|pid| {
        let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // The pidfd is open: if the start time still fits now, the pid was not reused.
        (crate::procfs::start_time(holder.pid) == Some(holder.started)).then_some(())?;
        pidfd_send_signal(&fd, Signal::KILL).ok()
    });
    run.note_takeover(holder, killed.is_some());
    match std::fs::remove_file(LOCK) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(unfit(&e)),
    }
}
