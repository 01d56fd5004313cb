//! The folder in /run into which QEMU itself writes its screen. QEMU writes as root, relative to `/`: so the path is absolute, in a
//! folder that only root can enter, never on a disk that may hang, and gone with this value.

use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::flock::Flocked;
use crate::host;

/// A fresh 0700 folder, removed on drop.
#[derive(Debug)]
pub struct Folder(PathBuf, Option<Flocked<File>>);

impl Folder {
    /// Makes it.
    ///
    /// # Errors
    /// Where /run is full or read-only; then there are no pictures.
    pub fn make() -> Result<Self, String> {
        let tag = host::random::<8>()?.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let path = PathBuf::from(format!("{}/screens-{tag}", host::path::RUN));
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(|e| e.to_string())?;
        // Locked for as long as we live, so that a later call knows what a killed one left (litter.rs).
        let lock = File::open(&path).ok().filter(|f| flock(f, FlockOperation::NonBlockingLockExclusive).is_ok());
        Ok(Self(path, lock.map(Flocked::new)))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A QEMU that wakes up late finds no folder and its dump fails, which is what we want.
        let _ = std::fs::remove_dir_all(&self.0);
        self.1.take();
    }
}
