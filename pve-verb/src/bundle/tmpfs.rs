//! The first rung: a bundle on tmpfs, which does not hang with a disk.

use proto::{BundleName, Vmid};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::pack::Pack;
use crate::flock::Flocked;
use crate::host::path;

/// Writes everything, and gives the folder its name last. What did not become whole goes at once: its room is needed.
pub(super) fn seal(vmid: Vmid, name: &BundleName, pack: &Pack<'_>) -> std::io::Result<()> {
    let parent = format!("{}/{vmid}", path::RUN_EVIDENCE);
    let partial = format!("{parent}/{name}.partial");
    let sealed = (|| {
        folder(Path::new(&partial))?;
        // Locked until it has its name: what is there without a lock is a dead one's (litter.rs).
        let opened = File::open(&partial)?;
        flock(&opened, FlockOperation::NonBlockingLockExclusive)?;
        let _lock = Flocked::new(&opened);
        for (path, bytes) in &pack.files {
            write(Path::new(&partial), path, bytes)?;
        }
        opened.sync_all()?;
        std::fs::rename(&partial, format!("{parent}/{name}"))?;
        File::open(&parent)?.sync_all()
    })();
    sealed.inspect_err(|_| {
        let _ = std::fs::remove_dir_all(&partial);
    })
}

/// It is elsewhere now.
pub(super) fn remove(vmid: Vmid, name: &BundleName) {
    let _ = std::fs::remove_dir_all(format!("{}/{vmid}/{name}", path::RUN_EVIDENCE));
}

fn folder(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes one file, whose path is one of our plan's, and syncs it.
fn write(root: &Path, path: &str, bytes: &[u8]) -> std::io::Result<()> {
    let full = root.join(path);
    if let Some(parent) = full.parent() {
        folder(parent)?;
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&full)?;
    file.write_all(bytes)?;
    file.sync_all()
}
