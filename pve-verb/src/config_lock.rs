//! PVE's own flock on the VM's configuration, which every `qm` that changes something takes: `reset` holds it, every other verb looks
//! whether somebody else does.
//!
//! `qm` waits 10 s for it and then gives up. Whoever holds it for longer would leave a VM off whose QEMU was ended for a start.

use proto::Vmid;
use rustix::fs::{FlockOperation, flock, major, minor};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::deadline;
use crate::flock::Flocked;
use crate::procfs::read_text;

const FOLDER: &str = "/run/lock/qemu-server";

/// Why PVE's flock is not ours.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ConfigLock {
    /// Another process holds it: which, where that can be told.
    Busy(Option<String>),
    /// The file can't be opened or locked: why.
    Unusable(String),
}

/// Takes it, until what it gives is dropped.
pub(crate) fn take(vmid: Vmid) -> Result<Flocked<File>, ConfigLock> {
    lock(&file(Path::new(FOLDER), vmid), OpenOptions::new().read(true).append(true).create(true).mode(0o644), deadline::CONFIG_LOCK)
}

/// Whether it is free now. It is let go at once: whoever is called next needs it.
pub(crate) fn look(vmid: Vmid) -> Result<(), ConfigLock> {
    look_at(&file(Path::new(FOLDER), vmid))
}

fn file(folder: &Path, vmid: Vmid) -> PathBuf {
    folder.join(format!("lock-{vmid}.conf"))
}

fn look_at(path: &Path) -> Result<(), ConfigLock> {
    match std::fs::metadata(path) {
        // Nobody has locked anything of this VM since the host booted.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => lock(path, OpenOptions::new().read(true), deadline::CONFIG_LOOK).map(drop),
    }
}

fn lock(path: &Path, how: &OpenOptions, within: Duration) -> Result<Flocked<File>, ConfigLock> {
    let unusable = |e: &dyn std::fmt::Display| ConfigLock::Unusable(format!("{}: {e}", path.display()));
    let file = how.open(path).map_err(|e| unusable(&e))?;
    let until = Instant::now() + within;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Flocked::new(file)),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Err(ConfigLock::Busy(holder(&file))),
            Err(e) => return Err(unusable(&e)),
        }
    }
}

/// Who holds a flock on this file, as the kernel's table has it: its name and pid.
fn holder(file: &File) -> Option<String> {
    let at = file.metadata().ok()?;
    let id = format!("{:02x}:{:02x}:{}", major(at.dev()), minor(at.dev()), at.ino());
    let pid = holder_in(&read_text("/proc/locks").ok()?, &id)?;
    let name = read_text(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("{}, pid {pid}", proto::escape_cut(name.trim().as_bytes(), 32)))
}

/// A line is `1: FLOCK  ADVISORY  WRITE 4711 00:19:812 0 EOF`; one of a process that waits has `->` behind its number.
fn holder_in(table: &str, id: &str) -> Option<u32> {
    table.lines().find_map(|line| match line.split_ascii_whitespace().collect::<Vec<_>>()[..] {
        [_, "FLOCK", _, _, pid, file, ..] if file == id => pid.parse().ok(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lock_that_somebody_holds_is_busy() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), Vmid::DEVVM);
        let take = |path: &Path| lock(path, OpenOptions::new().read(true).append(true).create(true), Duration::ZERO);
        assert_eq!(look_at(&path), Ok(()));
        assert!(!path.exists(), "a look makes nothing");
        let held = take(&path).unwrap();
        let Err(ConfigLock::Busy(Some(by))) = look_at(&path) else { panic!("{:?}", look_at(&path)) };
        assert!(by.ends_with(&format!(", pid {}", std::process::id())), "{by}");
        assert!(matches!(take(&path), Err(ConfigLock::Busy(_))));
        drop(held);
        assert_eq!(look_at(&path), Ok(()));
        assert!(take(&path).is_ok(), "a look keeps nothing");
        let nowhere = take(&folder.path().join("absent/lock-102.conf")).unwrap_err();
        assert!(matches!(nowhere, ConfigLock::Unusable(why) if why.contains("lock-102.conf")));
    }

    #[test]
    fn who_holds_it_and_who_only_waits() {
        let table = "1: POSIX  ADVISORY  WRITE 11 00:19:812 0 EOF\n2: FLOCK  ADVISORY  WRITE 12 00:19:8120 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 13 00:19:812 0 EOF\n3: FLOCK  ADVISORY  WRITE 14 00:19:812 0 EOF\n";
        assert_eq!(holder_in(table, "00:19:812"), Some(14));
        assert_eq!(holder_in(table, "00:19:1"), None);
        assert_eq!(holder_in("rubbish\n4: FLOCK\n", "00:19:812"), None);
    }
}
