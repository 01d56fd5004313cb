//! Authorised → Locked: one mutation at a time on the host's VM. Reads pass without a lock and never wait for a mutation.
//!
//! The lock is a flock in /run with the holder's pid, start time and deadline in it. The kernel frees it when the holder dies. A
//! holder past its deadline is taken over: killed through a pidfd that was checked to be it, and the lock file replaced, because
//! in state D the old one stays held. With SIGKILL pending it can't act again. One that is gone, and whose file something else keeps
//! locked, is taken over at once.
//!
//! Taking the lock and taking it over both happen behind a gate, a second flock held for milliseconds: without it the name of a lock
//! that somebody has just taken could be replaced, and two would mutate.

use proto::{KeyName, Timestamp, Verb, Vmid};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::flock::Flocked;
use crate::policy::Authorised;
use crate::promise::{Event, LOOKS, Sight, Turn, turn};
use crate::run::{Run, Stop};
use crate::{deadline, host, text::say};

const LOCK: &str = "/run/pve-verb/mutation.lock";
const GATE: &str = "/run/pve-verb/mutation.gate";

/// Who mutates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    // Held, never read: dropping it frees the lock.
    _lock: Option<Held>,
}

/// The lock, held. What stands in it goes before it is free: nobody is to be told of a holder that has ended.
#[derive(Debug)]
struct Held(File);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.set_len(0);
        // Not left to the descriptor: a child that hangs before its exec may have a copy of it.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
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
    let mut ended = Vec::new();
    let taken = take(&Place { lock: Path::new(LOCK), gate: Path::new(GATE) }, &authorised, &mut ended);
    for (holder, killed) in &ended {
        run.note_takeover(holder, *killed);
    }
    let held = taken?;
    run.reach(Event::Locked)?;
    Ok(Locked { authorised, _lock: Some(held) })
}

/// Where the lock is; in tests elsewhere.
struct Place<'a> {
    lock: &'a Path,
    gate: &'a Path,
}

/// Takes it, behind the gate; `ended` gets those from whom it was taken over, and whether they were killed for it.
fn take(place: &Place<'_>, authorised: &Authorised, ended: &mut Vec<(Holder, bool)>) -> Result<Held, Stop> {
    let _gate = gate(place.gate)?;
    let mut looks = 0;
    loop {
        let file = open(place.lock).map_err(|e| unfit(&e))?;
        let free = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        let holder = if free { None } else { read_holder(&file) };
        let sight = match &holder {
            _ if free => Sight::Free,
            Some(holder) if past_deadline(holder) => Sight::Late,
            Some(holder) if lives(holder) => Sight::Lives,
            Some(_) => Sight::Gone,
            None => Sight::Nameless,
        };
        match (turn(sight, ended.len(), looks), holder) {
            (Turn::Take, _) => {
                write_holder(&file, authorised).map_err(|e| unfit(&e))?;
                return Ok(Held(file));
            }
            (Turn::End, Some(holder)) => {
                let killed = end(&holder)?;
                // In state D it keeps the old file's lock; the gate keeps everybody else from taking that file meanwhile.
                std::fs::remove_file(place.lock).map_err(|e| unfit(&e))?;
                ended.push((holder, killed));
            }
            (Turn::Wait, _) => {
                looks += 1;
                std::thread::sleep(deadline::NAMELESS / LOOKS);
            }
            (_, Some(h)) => return Err(Stop::busy(say::busy(h.verb, &h.request_id, h.key_name.as_str(), h.since))),
            (_, None) => return Err(Stop::busy(say::busy_unknown("its file does not say whose it is"))),
        }
    }
}

fn gate(path: &Path) -> Result<Flocked<File>, Stop> {
    let file = open(path).map_err(|e| unfit(&e))?;
    let until = Instant::now() + deadline::GATE;
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= until {
            return Err(Stop::busy(say::busy_unknown("somebody else is taking it")));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(Flocked::new(file))
}

fn unfit(e: &std::io::Error) -> Stop {
    Stop::host(say::host_unfit(&format!("{LOCK}: {e}")))
}

/// The lock for work that is no request (recover.rs); none where a mutation is in progress.
pub fn only() -> Option<impl Drop> {
    let _gate = gate(Path::new(GATE)).ok()?;
    let file = open(Path::new(LOCK)).ok()?;
    (flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() && file.set_len(0).is_ok()).then_some(Held(file))
}

fn open(path: &Path) -> std::io::Result<File> {
    std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// The mutation in progress, if there is one: for `status`, and for who wants to attach. Takes no lock, not even for a moment: it
/// would be in the way of whoever wants to act.
pub fn holder() -> Option<Holder> {
    read_holder(&File::open(LOCK).ok()?).filter(lives)
}

/// Whether its worker is still there. One that could not tell its own start time counts as long as its pid is taken.
fn lives(holder: &Holder) -> bool {
    let now = crate::procfs::start_time(holder.pid);
    now.is_some() && (holder.started == 0 || now == Some(holder.started))
}

fn past_deadline(holder: &Holder) -> bool {
    host::boot_ms() > holder.deadline_boot_ms.saturating_add(u64::try_from(deadline::GRACE.as_millis()).unwrap_or(0))
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
    std::io::Seek::rewind(&mut file)?;
    file.write_all(&serde_json::to_vec(&holder)?)
}

fn read_holder(file: &File) -> Option<Holder> {
    let mut text = String::new();
    let mut file = file;
    std::io::Seek::rewind(&mut file).ok()?;
    file.take(64 * 1024).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// Makes sure that a holder past its deadline can't act again; true where it had to be killed for that.
#[allow(clippy::disallowed_methods, reason = "the holder is past its deadline, and the pidfd is checked to be it")]
fn end(holder: &Holder) -> Result<bool, Stop> {
    let kill = || {
        let pid = i32::try_from(holder.pid).ok().and_then(Pid::from_raw)?;
        let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // The pidfd is open: if the start time still fits now, the pid was not reused.
        (crate::procfs::start_time(holder.pid) == Some(holder.started)).then_some(())?;
        pidfd_send_signal(&fd, Signal::KILL).ok()
    };
    if kill().is_some() {
        return Ok(true);
    }
    // Gone: whatever still holds the file is nobody who acts. There, and not to be killed: it may act at any time.
    if lives(holder) {
        Err(Stop::busy(say::busy(holder.verb, &holder.request_id, holder.key_name.as_str(), holder.since)))
    } else {
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::{self, Arrival, Caller};
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn cycle() -> Authorised {
        let caller = Caller::console(Vmid::DEVVM);
        let arrival = Arrival::new(caller, b"cycle".to_vec(), proto::RequestId::from_random([7; 16]));
        crate::policy::allow(door::parse(arrival).unwrap()).unwrap()
    }

    /// A lock that a process of this pid and start time has held beyond its deadline.
    fn late(lock: &Path, pid: u32, started: u64) -> File {
        held_by(lock, pid, started, 0)
    }

    fn held_by(lock: &Path, pid: u32, started: u64, deadline_boot_ms: u64) -> File {
        let file = open(lock).unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        write_holder(&file, &cycle()).unwrap();
        let holder = Holder { pid, started, deadline_boot_ms, ..read_holder(&file).unwrap() };
        file.set_len(0).unwrap();
        std::io::Seek::rewind(&mut &file).unwrap();
        (&file).write_all(&serde_json::to_vec(&holder).unwrap()).unwrap();
        file
    }

    #[test]
    fn of_many_that_take_over_at_once_one_at_a_time_has_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let (lock, gate) = (folder.path().join("lock"), folder.path().join("gate"));
        let (inside, most, had, ended) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        // Dead, and the file's lock is held on: a descriptor that somebody inherited.
        let _stuck = late(&lock, 4_000_000, 1);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let mut from = Vec::new();
                    let taken = take(&Place { lock: &lock, gate: &gate }, &cycle(), &mut from);
                    ended.fetch_add(from.len(), Ordering::SeqCst);
                    if let Ok(held) = taken {
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        had.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(20));
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(held);
                    }
                });
            }
        });
        assert!(had.load(Ordering::SeqCst) >= 1);
        assert_eq!((most.load(Ordering::SeqCst), ended.load(Ordering::SeqCst)), (1, 1), "two had it at once, or it was taken over twice");
    }

    /// Something that has a copy of this descriptor and keeps it, as a child that hangs before its exec does.
    fn stuck(lock: &File) -> std::process::Child {
        let copy = std::process::Stdio::from(lock.try_clone().unwrap());
        #[allow(clippy::disallowed_methods, reason = "a stand-in for a child that hangs")]
        std::process::Command::new("sleep").arg("600").stdin(copy).spawn().unwrap()
    }

    #[test]
    fn what_a_child_keeps_of_a_lock_that_was_let_go_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        let (lock, gate) = (folder.path().join("lock"), folder.path().join("gate"));
        let place = Place { lock: &lock, gate: &gate };
        let held = take(&place, &cycle(), &mut Vec::new()).unwrap();
        let mut child = stuck(&held.0);
        drop(held);
        let mut ended = Vec::new();
        let taken = take(&place, &cycle(), &mut ended);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(taken.is_ok() && ended.is_empty(), "{taken:?}");
    }

    #[test]
    fn a_dead_holder_whose_child_keeps_the_lock_is_taken_over_before_its_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let (lock, gate) = (folder.path().join("lock"), folder.path().join("gate"));
        let place = Place { lock: &lock, gate: &gate };
        // A worker that was killed: no pid is that large.
        let file = held_by(&lock, 4_999_999, 1, u64::MAX);
        let mut child = stuck(&file);
        drop(file);
        let mut ended = Vec::new();
        let taken = take(&place, &cycle(), &mut ended);
        let holder = read_holder(&open(&lock).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(taken.is_ok(), "{taken:?}");
        assert_eq!(ended.iter().map(|(holder, killed)| (holder.pid, *killed)).collect::<Vec<_>>(), [(4_999_999, false)]);
        assert_eq!(holder.map(|h| h.pid), Some(std::process::id()), "the new lock is not under the lock's name");
    }

    #[test]
    fn a_late_holder_that_can_not_be_told_from_another_process_is_not_robbed() {
        let folder = tempfile::tempdir().unwrap();
        let (lock, gate) = (folder.path().join("lock"), folder.path().join("gate"));
        let _held = late(&lock, std::process::id(), 0);
        let refused = take(&Place { lock: &lock, gate: &gate }, &cycle(), &mut Vec::new()).unwrap_err();
        assert!(format!("{refused:?}").contains("RefusedBusy"), "{refused:?}");
        assert!(lock.exists());
    }

    #[test]
    fn a_lock_that_was_let_go_names_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let (lock, gate) = (folder.path().join("lock"), folder.path().join("gate"));
        let place = Place { lock: &lock, gate: &gate };
        let held = take(&place, &cycle(), &mut Vec::new()).unwrap();
        assert_eq!(read_holder(&open(&lock).unwrap()).map(|h| h.pid), Some(std::process::id()));
        assert!(take(&place, &cycle(), &mut Vec::new()).is_err());
        drop(held);
        assert_eq!(std::fs::read(&lock).unwrap(), b"");
        assert!(take(&place, &cycle(), &mut Vec::new()).is_ok());
    }
}
