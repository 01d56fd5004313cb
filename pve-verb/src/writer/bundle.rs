//! Bundles: carried from tmpfs to disk under their own name, listed, read. A sealed bundle is never changed.

use proto::{BundleName, Vmid};
use rustix::fs::OFlags;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ArtifactPath, Reply, Root, durable, state};
use crate::flock::Flocked;
use crate::host::path;
use crate::tree::Tree;

/// How long another carrier is waited for. Less than a parent waits for us: it is told that the shelf is busy, not that the disk is late.
const SHELF: Duration = Duration::from_secs(2);
/// Far longer than anybody builds a bundle.
const YOUNG: Duration = Duration::from_secs(600);
/// How deep a bundle's folders go; deeper is not a bundle of ours.
const DEEPEST: u32 = 4;

impl Root {
    pub(super) fn carry_bundle(&self, vmid: Vmid, name: &BundleName) -> io::Result<Reply> {
        let from = self.path(path::RUN_EVIDENCE).join(vmid.to_string()).join(name.as_str());
        let shelf = self.shelf(vmid);
        let to = shelf.join(name.as_str());
        durable::folder(&shelf)?;
        // One at a time: another call may be carrying the same bundle, and each would clear away the other's half.
        let _lock = self.shelf_lock()?;
        if to.is_dir() {
            // An earlier carrier may have been killed between its rename and this.
            durable::sync_folder(&shelf)?;
            return Ok(Reply::Done {});
        }
        let partial = self.partial(vmid, name);
        durable::remove_folder(&partial)?;
        sweep(&shelf)?;
        copy(&from, &partial, DEEPEST).inspect_err(|_| {
            // Half a bundle on a full disk would keep it full.
            let _ = durable::remove_folder(&partial);
        })?;
        std::fs::rename(&partial, &to)?;
        durable::sync_folder(&shelf)?;
        Ok(Reply::Done {})
    }

    pub(super) fn shelf(&self, vmid: Vmid) -> PathBuf {
        self.path(path::EVIDENCE).join(vmid.to_string())
    }

    fn partial(&self, vmid: Vmid, name: &BundleName) -> PathBuf {
        self.shelf(vmid).join(format!("{name}.partial"))
    }

    /// Freed when this process ends, killed or not. In /run like every lock: a disk that hangs must not hold one. Not waited for without an
    /// end: somebody else's work on the shelf is no sign of a disk that hangs.
    pub(super) fn shelf_lock(&self) -> io::Result<Flocked<File>> {
        durable::lock(&self.path(path::RUN).join("shelf.lock"), SHELF)
    }

    pub(super) fn bundle_put(&self, vmid: Vmid, name: &BundleName, artifact: &ArtifactPath, bytes: &[u8]) -> io::Result<Reply> {
        let path = self.partial(vmid, name).join(artifact.as_str());
        durable::folder(path.parent().ok_or_else(|| io::Error::other("a file needs a folder"))?)?;
        let mut file = durable::file(&path, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        durable::sync_folder(path.parent().unwrap_or(&path))?;
        Ok(Reply::Done {})
    }

    pub(super) fn bundle_seal(&self, vmid: Vmid, name: &BundleName) -> io::Result<Reply> {
        let partial = self.partial(vmid, name);
        durable::sync_folder(&partial)?;
        std::fs::rename(&partial, self.shelf(vmid).join(name.as_str()))?;
        durable::sync_folder(&self.shelf(vmid))?;
        Ok(Reply::Done {})
    }

    pub(super) fn bundle_abandon(&self, vmid: Vmid, name: &BundleName) -> io::Result<Reply> {
        durable::remove_folder(&self.partial(vmid, name))?;
        Ok(Reply::Done {})
    }

    pub(super) fn bundle_list(&self, vmid: Vmid) -> io::Result<Reply> {
        let shelf = self.shelf(vmid);
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
        let Some(bundle) = Tree::open(&self.shelf(vmid).join(name.as_str()))? else { return Ok(Reply::Absent {}) };
        Ok(state::bytes(bundle.read(artifact.as_str(), super::MOST_PAYLOAD.into())?))
    }
}

/// Takes away what carriers that were killed have left half done. Not what is young: another one may be at it.
fn sweep(shelf: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(shelf)? {
        let entry = entry?;
        let old = entry.metadata()?.modified()?.elapsed().is_ok_and(|age| age >= YOUNG);
        if old && entry.file_name().to_str().is_some_and(|n| n.ends_with(".partial")) {
            durable::remove_folder(&entry.path())?;
        }
    }
    Ok(())
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
