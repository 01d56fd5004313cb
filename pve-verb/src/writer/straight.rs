//! A bundle that tmpfs did not take: its files come through the pipe, one by one, and are sealed on disk alone.

use proto::{BundleName, Vmid};
use rustix::fs::OFlags;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ArtifactPath, Reply, Root, durable};
use crate::host::path;

/// Far longer than anybody carries.
const YOUNG: Duration = Duration::from_secs(600);

impl Root {
    fn shelf(&self, vmid: Vmid) -> PathBuf {
        self.path(path::EVIDENCE).join(vmid.to_string())
    }

    pub(super) fn bundle_put(&self, vmid: Vmid, name: &BundleName, file: &ArtifactPath, bytes: &[u8]) -> io::Result<Reply> {
        let partial = self.shelf(vmid).join(format!("{name}.partial"));
        let at = partial.join(file.as_str());
        let put = (|| {
            durable::folder(at.parent().unwrap_or(&at))?;
            let mut file = durable::file(&at, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
            file.write_all(bytes)?;
            file.sync_all()
        })();
        if put.is_err() {
            let _ = std::fs::remove_dir_all(&partial);
        }
        put.map(|()| Reply::Done {})
    }

    /// Takes away what carriers that were killed have left half done. Not what is young: another one may be at it.
    pub(super) fn sweep_shelf(shelf: &Path) -> io::Result<()> {
        for entry in std::fs::read_dir(shelf)? {
            let entry = entry?;
            let old = entry.metadata()?.modified()?.elapsed().is_ok_and(|age| age >= YOUNG);
            if old && entry.file_name().to_str().is_some_and(|n| n.ends_with(".partial")) {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// The names of its files are made durable folder by folder, then it gets its own.
    pub(super) fn bundle_seal(&self, vmid: Vmid, name: &BundleName) -> io::Result<Reply> {
        let shelf = self.shelf(vmid);
        let partial = shelf.join(format!("{name}.partial"));
        for entry in std::fs::read_dir(&partial)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                durable::sync_folder(&entry.path())?;
            }
        }
        durable::sync_folder(&partial)?;
        std::fs::rename(&partial, shelf.join(name.as_str()))?;
        durable::sync_folder(&shelf)?;
        Ok(Reply::Done {})
    }
}
