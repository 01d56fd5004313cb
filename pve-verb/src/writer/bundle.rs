//! Bundles: carried from tmpfs to disk under their own name, listed, read. A sealed bundle is never changed.

use proto::{BundleName, Vmid};
use rustix::fs::OFlags;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::{ArtifactPath, Reply, Root, durable, state};
use crate::host::path;

/// How long another carrier is waited for. Less than a parent waits for us: it is told that the shelf is busy, not that the disk is late.
const SHELF: Duration = Duration::from_secs(2);
/// How deep a bundle's folders go; deeper is not a bundle of ours.
const DEEPEST: u32 = 4;

impl Root {
    pub(super) fn carry_bundle(&self, vmid: Vmid, name: &BundleName) -> io::Result<Reply> {
        let from = self.path(path::RUN_EVIDENCE).join(vmid.to_string()).join(name.as_str());
        let shelf = self.path(path::EVIDENCE).join(vmid.to_string());
        let to = shelf.join(name.as_str());
        durable::folder(&shelf)?;
        // One at a time: another call may be carrying the same bundle, and each would clear away the other's half. Freed when this ends,
        // killed or not. Not waited for without an end: somebody else's copying is no sign of a disk that hangs.
        let _lock = durable::lock(&self.path(path::RUN).join("shelf.lock"), SHELF)?;
        if to.is_dir() {
            // An earlier carrier may have been killed between its rename and this.
            durable::sync_folder(&shelf)?;
            return Ok(Reply::Done {});
        }
        let partial = shelf.join(format!("{name}.partial"));
        match std::fs::remove_dir_all(&partial) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        Self::sweep_shelf(&shelf)?;
        copy(&from, &partial, DEEPEST).inspect_err(|_| {
            // Half a bundle on a full disk would keep it full.
            let _ = std::fs::remove_dir_all(&partial);
        })?;
        std::fs::rename(&partial, &to)?;
        durable::sync_folder(&shelf)?;
        Ok(Reply::Done {})
    }

    pub(super) fn bundle_list(&self, vmid: Vmid) -> io::Result<Reply> {
        let shelf = self.path(path::EVIDENCE).join(vmid.to_string());
        let entries = match std::fs::read_dir(shelf) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Reply::Bundles { names: Vec::new() }),
            Err(e) => return Err(e),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            if let (Some(Ok(name)), true) = (entry.file_name().to_str().map(str::parse), entry.file_type()?.is_dir()) {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(Reply::Bundles { names })
    }

    pub(super) fn bundle_read(&self, vmid: Vmid, name: &BundleName, artifact: &ArtifactPath) -> io::Result<Reply> {
        let bundle = self.path(path::EVIDENCE).join(vmid.to_string()).join(name.as_str());
        Ok(state::bytes(durable::read(&bundle.join(artifact.as_str()), super::MOST_PAYLOAD.into())?))
    }
}

/// Copies a folder of regular files and folders, syncing each; anything else in there is not a bundle.
fn copy(from: &Path, to: &Path, deeper: u32) -> io::Result<()> {
    durable::folder(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_file() {
            let mut source: File = durable::file(&entry.path(), OFlags::RDONLY)?;
            let mut copied = durable::file(&target, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
            io::copy(&mut source, &mut copied)?;
            copied.sync_all()?;
        } else if kind.is_dir() && deeper > 0 {
            copy(&entry.path(), &target, deeper - 1)?;
        } else {
            return Err(io::Error::other(format!("{} does not belong in a bundle", proto::escape(entry.file_name().as_encoded_bytes()))));
        }
    }
    durable::sync_folder(to)
}
