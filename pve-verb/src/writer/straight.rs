//! A bundle that tmpfs did not take: its files come through the pipe, one by one, and are sealed on disk alone.

use proto::{BundleName, Vmid};
use rustix::fs::OFlags;
use std::io::{self, Write};
use std::path::PathBuf;

use super::{ArtifactPath, Reply, Root, durable};
use crate::host::path;

impl Root {
    fn shelf(&self, vmid: Vmid) -> PathBuf {
        self.path(path::EVIDENCE).join(vmid.to_string())
    }

    pub(super) fn bundle_put(&self, vmid: Vmid, name: &BundleName, file: &ArtifactPath, bytes: &[u8]) -> io::Result<Reply> {
        let at = self.shelf(vmid).join(format!("{name}.partial")).join(file.as_str());
        durable::folder(at.parent().unwrap_or(&at))?;
        let mut file = durable::file(&at, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(Reply::Done {})
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
