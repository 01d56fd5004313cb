//! The machine's real disk below what `pve-verb` keeps: in the lab everything else is in memory, where syncing costs nothing.
//!
//! The folders lie in the lab's own folder, the one place of the machine that a lab can write to, and go when they are dropped.

use std::fs;
use std::path::{Path, PathBuf};

use lab::Result;
use lab::error::Context;
use lab::guest::lab_folder;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use tempfile::TempDir;

/// What a host has of ours on disk, and the agent.
const KEPT: [&str; 4] = ["/etc/pve-verb", "/var/lib/pve-verb", "/var/log/pve-verb", "/var/lib/breakglass"];
/// And in memory.
const RUN: &str = "/run/pve-verb";

/// A folder on the real disk.
pub(crate) fn folder() -> Result<TempDir> {
    let lab = lab_folder().canonicalize().context("find the lab's folder")?;
    tempfile::Builder::new().prefix("bench-").tempdir_in(lab).context("make a folder on the disk")
}

/// One host's worth of ours on the real disk, to be mounted and taken away as a whole.
#[derive(Debug)]
pub(crate) struct Own {
    disk: TempDir,
    run: PathBuf,
}

impl Own {
    /// An empty one.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let own = Self { disk: folder()?, run: Path::new("/run/lab").join(name) };
        for folder in KEPT.iter().map(|kept| own.of(kept)).chain([own.run.clone()]) {
            fs::create_dir_all(&folder).context("make a folder")?;
            fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).context("set its mode")?;
        }
        Ok(own)
    }

    fn of(&self, kept: &str) -> PathBuf {
        self.disk.path().join(kept.trim_start_matches('/'))
    }

    /// The host is this one until what is given back is dropped.
    pub(crate) fn mounted(&self) -> Result<Mounted> {
        let mut mounted = Mounted(Vec::new());
        for (from, to) in KEPT.iter().map(|kept| (self.of(kept), *kept)).chain([(self.run.clone(), RUN)]) {
            fs::create_dir_all(to).context(format!("make {to}"))?;
            mount_bind(&from, to).context(format!("bind {to}"))?;
            mounted.0.push(to);
        }
        Ok(mounted)
    }

    /// As after a boot: nothing of ours is in memory.
    pub(crate) fn boots(&self) -> Result<()> {
        for entry in fs::read_dir(&self.run).context("read what is in memory")?.flatten() {
            let path = entry.path();
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.context("forget what is in memory")?;
        }
        Ok(())
    }
}

/// While it lives the host is another one.
#[derive(Debug)]
pub(crate) struct Mounted(Vec<&'static str>);

impl Drop for Mounted {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            let _gone_with_the_lab = unmount(*folder, UnmountFlags::DETACH);
        }
    }
}

/// The lab's own host on the real disk, for the whole run. The second part is first: what is mounted goes before its folder.
pub(crate) fn real() -> Result<(Mounted, Own)> {
    let own = Own::new("own")?;
    Ok((own.mounted()?, own))
}
