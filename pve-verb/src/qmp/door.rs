//! The door to a VM's QMP and guest-agent sockets, which take one client each: a flock that all of ours go through.
//!
//! Whoever holds it has written into the file who he is. A mutation holds it during its own connections and across every `qm` call;
//! a read waits at most a second for another read, and not at all for a mutation. The kernel opens the door again when its holder
//! dies, and the name that he left means nothing then. Others than ours (`qm`, the GUI) don't know of it: see `procfs::peer_of`.
//!
//! A mutation that is about to need it says so beforehand with a [`Claim`], a second flock: reads that come then stay away, and one
//! that holds the door gives way, sooner than a mutation waits for it ([`crate::deadline::QMP_DOOR`]). So no read can cost a mutation its evidence, its reset or its verdict.

use super::QmpError;
use super::wire::{NoLine, Wire};
use crate::host;
use crate::probe::Raw;
use proto::{Vmid, escape_cut};
use rustix::fs::{FlockOperation, Mode, OFlags, fchmod, flock, ftruncate, mkdir, open};
use rustix::io::{Errno, pread, pwrite};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);
/// How often a read that waits for an answer looks whether a mutation wants the door.
const LOOKS_UP: Duration = Duration::from_millis(50);

/// Why somebody takes the door; carries the request's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To ask.
    Read(String),
    /// To change the VM.
    Mutation(String),
}

/// Somebody else holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    /// Who: `mutation ID`, `read ID`; or why the lock could not be tried.
    pub by: String,
}

/// A mutation's word that the door is its own from now on. Dropping it takes it back.
#[derive(Debug)]
pub(crate) struct Claim(OwnedFd);

impl Claim {
    /// Claims the VM's sockets for the mutation of this request; its own helpers' reads are not kept away.
    ///
    /// # Errors
    /// Why others were not told: then a read may be in the way.
    pub(crate) fn take(vmid: Vmid, id: &str) -> Result<Self, InUse> {
        Self::take_at(Path::new(host::path::RUN), vmid, id)
    }

    fn take_at(locks: &Path, vmid: Vmid, id: &str) -> Result<Self, InUse> {
        let until = Instant::now() + crate::deadline::CLAIM;
        let lock = claim_file(locks, vmid).map_err(|e| unusable(locks, e))?;
        while let Err(e) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if !matches!(e, Errno::WOULDBLOCK | Errno::INTR) {
                return Err(unusable(locks, e));
            }
            if Instant::now() >= until {
                return Err(InUse { by: words(&lock) });
            }
            std::thread::sleep(PAUSE);
        }
        write(&lock, &format!("mutation {id}\n"));
        Ok(Self(lock))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let _ = ftruncate(&self.0, 0);
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// What a read looks at to see whether a mutation wants the door.
#[derive(Debug)]
struct Wanted {
    claim: OwnedFd,
    own: String,
}

impl Wanted {
    /// By whom it is wanted, where that is not this read's own request.
    fn by(&self) -> Option<String> {
        match flock(&self.claim, FlockOperation::NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) => Some(words(&self.claim)).filter(|by| *by != self.own),
            Ok(()) => {
                let _ = flock(&self.claim, FlockOperation::Unlock);
                None
            }
            Err(_) => None,
        }
    }
}

/// The door, held. Dropping it gives it back.
#[derive(Debug)]
pub struct Door {
    lock: OwnedFd,
    vmid: Vmid,
    sockets: PathBuf,
    wanted: Option<Wanted>,
}

impl Door {
    /// Takes it, waiting for a read (never for a mutation, unless this is one) for at most `wait`.
    ///
    /// # Errors
    /// Where somebody else of ours holds it.
    pub fn take(vmid: Vmid, purpose: &Purpose, wait: Duration) -> Result<Self, InUse> {
        Self::take_for(Path::new(host::path::QEMU_SERVER), vmid, purpose, wait)
    }

    /// The same for somebody who knows the sockets' folder by another path.
    ///
    /// # Errors
    /// As [`Door::take`].
    pub(crate) fn take_for(sockets: &Path, vmid: Vmid, purpose: &Purpose, wait: Duration) -> Result<Self, InUse> {
        Self::take_at(Path::new(host::path::RUN), sockets, vmid, purpose, wait)
    }

    pub(crate) fn take_at(locks: &Path, sockets: &Path, vmid: Vmid, purpose: &Purpose, wait: Duration) -> Result<Self, InUse> {
        let until = Instant::now() + wait;
        let failed = |e: Errno| unusable(locks, e);
        let lock = lock_file(locks, &format!("qmp-{vmid}.lock")).map_err(failed)?;
        let wanted = match purpose {
            Purpose::Read(id) => Some(Wanted { claim: claim_file(locks, vmid).map_err(failed)?, own: format!("mutation {id}") }),
            Purpose::Mutation(_) => None,
        };
        let wanted_by = || wanted.as_ref().and_then(Wanted::by);
        loop {
            if let Some(by) = wanted_by() {
                return Err(InUse { by });
            }
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) => {}
                Err(Errno::INTR) => continue,
                Err(e) => return Err(failed(e)),
            }
            let by = words(&lock);
            let hopeless = by.starts_with("mutation") && matches!(purpose, Purpose::Read(_));
            if hopeless || Instant::now() >= until {
                return Err(InUse { by });
            }
            std::thread::sleep(PAUSE);
        }
        match purpose {
            Purpose::Read(id) => write(&lock, &format!("read {id}\n")),
            Purpose::Mutation(id) => write(&lock, &format!("mutation {id}\n")),
        }
        let door = Self { lock, vmid, sockets: sockets.to_owned(), wanted };
        // The claim may have come between the look at it and the lock; then this door is given back at once.
        match door.wanted_by() {
            Some(by) => Err(InUse { by }),
            None => Ok(door),
        }
    }

    fn wanted_by(&self) -> Option<String> {
        self.wanted.as_ref().and_then(Wanted::by)
    }

    /// Whether this read may go on.
    ///
    /// # Errors
    /// [`QmpError::GaveWay`] where a mutation wants the door.
    pub(crate) fn still_ours(&self) -> Result<(), QmpError> {
        self.wanted_by().map_or(Ok(()), |by| Err(QmpError::GaveWay(by)))
    }

    /// The next line of a conversation behind this door. A read gives way to a mutation meanwhile.
    pub(crate) fn line(&self, wire: &mut Wire, until: Instant) -> Result<Raw, QmpError> {
        loop {
            match wire.line(until.min(Instant::now() + LOOKS_UP)) {
                Err(NoLine::Timeout) if Instant::now() < until => self.still_ours()?,
                came => return came.map_err(QmpError::from),
            }
        }
    }

    /// Waits between two samples, and gives way as [`Door::line`] does.
    pub(crate) fn pause(&self, time: Duration) -> Result<(), QmpError> {
        let until = Instant::now() + time;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            std::thread::sleep(left.min(LOOKS_UP));
            self.still_ours()?;
        }
        Ok(())
    }

    /// Whose door it is.
    pub const fn vmid(&self) -> Vmid {
        self.vmid
    }

    /// The path of the VM's QMP socket.
    pub fn qmp(&self) -> PathBuf {
        self.sockets.join(format!("{}.qmp", self.vmid))
    }

    /// The path of the VM's guest-agent socket.
    pub fn qga(&self) -> PathBuf {
        self.sockets.join(format!("{}.qga", self.vmid))
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Emptied before the descriptor closes: nobody reads our name on a door that is no longer ours.
        let _ = ftruncate(&self.lock, 0);
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

fn lock_file(locks: &Path, name: &str) -> Result<OwnedFd, Errno> {
    let _ = mkdir(locks, Mode::RWXU);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = open(locks.join(name), flags, Mode::RUSR | Mode::WUSR)?;
    let _ = fchmod(&lock, Mode::RUSR | Mode::WUSR);
    Ok(lock)
}

fn claim_file(locks: &Path, vmid: Vmid) -> Result<OwnedFd, Errno> {
    lock_file(locks, &format!("qmp-{vmid}.claim"))
}

fn unusable(locks: &Path, e: Errno) -> InUse {
    InUse { by: format!("nobody, but its lock in {} can't be taken: {e}", locks.display()) }
}

fn write(lock: &OwnedFd, words: &str) {
    let _ = ftruncate(lock, 0);
    let _ = pwrite(lock, words.as_bytes(), 0);
}

/// Who has written himself into a lock's file.
fn words(lock: &OwnedFd) -> String {
    let mut text = [0; 100];
    let n = pread(lock, &mut text, 0).unwrap_or(0);
    match text.get(..n).unwrap_or_default().trim_ascii() {
        [] => "a request that is just taking it".to_owned(),
        words => escape_cut(words, 80),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(folder: &Path, purpose: &Purpose, ms: u64) -> Result<Door, InUse> {
        Door::take_at(folder, folder, Vmid::DEVVM, purpose, Duration::from_millis(ms))
    }

    #[test]
    fn a_read_does_not_wait_for_a_mutation_and_says_whose_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let door = take(folder.path(), &Purpose::Mutation("m1".into()), 0).unwrap();
        let started = Instant::now();
        assert_eq!(take(folder.path(), &Purpose::Read("r1".into()), 60_000).unwrap_err().by, "mutation m1");
        assert!(started.elapsed() < Duration::from_secs(30));
        drop(door);
        assert!(take(folder.path(), &Purpose::Read("r1".into()), 0).is_ok());
    }

    #[test]
    fn a_read_waits_for_another_read_and_a_mutation_for_either() {
        let folder = tempfile::tempdir().unwrap();
        let door = take(folder.path(), &Purpose::Read("r1".into()), 0).unwrap();
        assert_eq!(take(folder.path(), &Purpose::Read("r2".into()), 50).unwrap_err().by, "read r1");
        let later = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(door);
        });
        assert!(take(folder.path(), &Purpose::Mutation("m1".into()), 60_000).is_ok());
        later.join().unwrap();
    }

    #[test]
    fn a_claim_keeps_reads_away_but_not_its_own_and_the_holder_gives_way_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let read = take(folder.path(), &Purpose::Read("r1".into()), 0).unwrap();
        assert_eq!(read.still_ours(), Ok(()));
        let claim = Claim::take_at(folder.path(), Vmid::DEVVM, "m1").unwrap();
        let gave_way = QmpError::GaveWay("mutation m1".into());
        assert_eq!(read.still_ours(), Err(gave_way.clone()));
        assert_eq!(read.pause(Duration::from_secs(60)), Err(gave_way.clone()));
        // It waits for an answer that does not come.
        let listener = std::os::unix::net::UnixListener::bind(folder.path().join("102.qmp")).unwrap();
        let mut wire = Wire::connect(&read.qmp(), 100).unwrap();
        // Once of five is enough: whoever measures may have been off the processor.
        let in_time = (0..5).any(|_| {
            let asked = Instant::now();
            assert_eq!(read.line(&mut wire, Instant::now() + Duration::from_secs(60)).unwrap_err(), gave_way);
            asked.elapsed() < crate::deadline::QMP_DOOR
        });
        assert!(in_time);
        assert!(LOOKS_UP * 4 < crate::deadline::QMP_DOOR);
        drop((listener, read));
        assert_eq!(take(folder.path(), &Purpose::Read("r2".into()), 1_000).unwrap_err().by, "mutation m1");
        // Its own helper reads, and then it acts.
        drop(take(folder.path(), &Purpose::Read("m1".into()), 0).unwrap());
        drop(take(folder.path(), &Purpose::Mutation("m1".into()), 0).unwrap());
        drop(claim);
        assert!(take(folder.path(), &Purpose::Read("r2".into()), 0).is_ok());
    }

    #[test]
    fn a_claim_is_taken_through_a_crowd_of_reads_that_look_at_it() {
        let folder = tempfile::tempdir().unwrap();
        let end = Instant::now() + Duration::from_millis(200);
        std::thread::scope(|scope| {
            for n in 0..8 {
                let folder = folder.path();
                scope.spawn(move || {
                    while Instant::now() < end {
                        let _ = take(folder, &Purpose::Read(format!("r{n}")), 0);
                    }
                });
            }
            while Instant::now() < end {
                assert!(Claim::take_at(folder.path(), Vmid::DEVVM, "m1").is_ok());
            }
        });
    }

    #[test]
    fn a_name_left_by_the_dead_means_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("qmp-102.lock"), "mutation long-dead\n").unwrap();
        assert!(take(folder.path(), &Purpose::Read("r1".into()), 0).is_ok());
    }
}
