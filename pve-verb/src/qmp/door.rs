//! The door to a VM's QMP and guest-agent sockets, which take one client each: a flock that all of ours go through.
//!
//! Whoever holds it has written into the file who he is. A mutation holds it during its own connections and across every `qm` call;
//! a read waits at most a second for another read, and not at all for a mutation. The kernel opens the door again when its holder
//! dies, and the name that he left means nothing then. Others than ours (`qm`, the GUI) don't know of it: see `procfs::peer_of`.

use crate::host;
use proto::{Vmid, escape_cut};
use rustix::fs::{FlockOperation, Mode, OFlags, fchmod, flock, ftruncate, mkdir, open};
use rustix::io::{Errno, pread, pwrite};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);

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

/// The door, held. Dropping it gives it back.
#[derive(Debug)]
pub struct Door {
    lock: OwnedFd,
    vmid: Vmid,
    sockets: PathBuf,
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
        let failed = |e: Errno| InUse { by: format!("nobody, but its lock in {} can't be taken: {e}", locks.display()) };
        let _ = mkdir(locks, Mode::RWXU);
        let lock = open(
            locks.join(format!("qmp-{vmid}.lock")),
            OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::RUSR | Mode::WUSR,
        )
        .map_err(failed)?;
        let _ = fchmod(&lock, Mode::RUSR | Mode::WUSR);
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) => {}
                Err(Errno::INTR) => continue,
                Err(e) => return Err(failed(e)),
            }
            let by = holder(&lock);
            let hopeless = by.starts_with("mutation") && matches!(purpose, Purpose::Read(_));
            if hopeless || Instant::now() >= until {
                return Err(InUse { by });
            }
            std::thread::sleep(PAUSE);
        }
        let words = match purpose {
            Purpose::Read(id) => format!("read {id}\n"),
            Purpose::Mutation(id) => format!("mutation {id}\n"),
        };
        let _ = ftruncate(&lock, 0);
        let _ = pwrite(&lock, words.as_bytes(), 0);
        Ok(Self { lock, vmid, sockets: sockets.to_owned() })
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

fn holder(lock: &OwnedFd) -> String {
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
        assert_eq!(take(folder.path(), &Purpose::Read("r1".into()), 5_000).unwrap_err().by, "mutation m1");
        assert!(started.elapsed() < Duration::from_secs(1));
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
        assert!(take(folder.path(), &Purpose::Mutation("m1".into()), 5_000).is_ok());
        later.join().unwrap();
    }

    #[test]
    fn a_name_left_by_the_dead_means_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("qmp-102.lock"), "mutation long-dead\n").unwrap();
        assert!(take(folder.path(), &Purpose::Read("r1".into()), 0).is_ok());
    }
}
