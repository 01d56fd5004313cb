//! `bundle …` (PROTOCOL.md, sections 1 and 11): the bundles that are kept, on disk and on tmpfs, for an admin. Reads only, writes no record.
//!
//! Whoever could write to the disk may have made what is found there: nothing in a bundle is followed, waited for, or shown unescaped,
//! and no file is read whole but the manifest and the summary. Verbs go on meanwhile; nothing is locked.

use proto::{BundleName, Manifest, Message, Vmid};
use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::host::path;
use crate::text::paragraph;
use crate::tree::Tree;
use crate::writer::{INDEX, index};

mod export;
mod verify;

pub use export::export;
pub use verify::{Asked, verify};

const MANIFEST: &str = "manifest.json";
const SIGNATURE: &str = "manifest.json.sig";
const SUMMARY: &str = "summary.txt";
/// More than a manifest of the plan's probes is.
const MOST_MANIFEST: u64 = 8 << 20;
/// More than one screen is.
const MOST_SUMMARY: u64 = 64 << 10;

/// Where bundles are: below `/`, and in tests below a folder that looks like it.
#[derive(Clone, Debug)]
struct Rungs(PathBuf);

/// A bundle that is there.
#[derive(Debug)]
struct Found {
    tree: Tree,
    /// Its folder, as a person finds it.
    folder: String,
}

impl Rungs {
    fn here() -> Self {
        Self(PathBuf::from("/"))
    }

    fn path(&self, absolute: &str) -> PathBuf {
        self.0.join(absolute.trim_start_matches('/'))
    }

    /// Both rungs' folders of this VM, the disk's first.
    fn shelves(vmid: Vmid) -> [String; 2] {
        [path::EVIDENCE, path::RUN_EVIDENCE].map(|rung| format!("{rung}/{vmid}"))
    }

    fn find(&self, vmid: Vmid, name: &BundleName) -> io::Result<Option<Found>> {
        for folder in Self::shelves(vmid).map(|shelf| format!("{shelf}/{name}")) {
            if let Some(tree) = Tree::open(&self.path(&folder))? {
                return Ok(Some(Found { tree, folder }));
            }
        }
        Ok(None)
    }

    /// Every bundle of this VM: in the index's order, then those that it does not have yet.
    fn names(&self, vmid: Vmid) -> io::Result<Vec<BundleName>> {
        let (mut all, mut seen) = (Vec::new(), HashSet::new());
        for shelf in Self::shelves(vmid) {
            let Some(tree) = Tree::open(&self.path(&shelf))? else { continue };
            let known = tree.read(INDEX, MOST_MANIFEST).ok().flatten().map(|bytes| index(&bytes)).unwrap_or_default();
            let place: HashMap<&BundleName, usize> = known.iter().enumerate().map(|(at, b)| (&b.name, at)).collect();
            let mut here: Vec<BundleName> = Vec::new();
            for entry in std::fs::read_dir(self.path(&shelf))? {
                here.extend(entry?.file_name().to_str().and_then(|n| n.parse().ok()));
            }
            here.sort_by_cached_key(|name| (place.get(name).copied().unwrap_or(usize::MAX), name.clone()));
            // In both places while it is carried.
            here.retain(|name| seen.insert(name.clone()));
            all.extend(here);
        }
        Ok(all)
    }
}

impl Found {
    /// What its manifest says, whoever wrote it.
    fn manifest(&self) -> Option<Manifest> {
        serde_json::from_slice(&self.tree.read(MANIFEST, MOST_MANIFEST).ok()??).ok()
    }
}

fn unreadable(e: &io::Error) -> Message {
    Message::new(
        format!("The bundles could not be read: {e}."),
        "Run it as root on the PVE host, and look at the disk of /var/lib/pve-verb.",
    )
}

fn find(rungs: &Rungs, vmid: Vmid, name: &BundleName) -> Result<Found, Message> {
    let nowhere = || {
        Message::new(
            format!("There is no bundle {name} of VM {vmid} on this host."),
            "Run `pve-verb bundle list`; with --vmid for another VM.",
        )
    };
    rungs.find(vmid, name).map_err(|e| unreadable(&e))?.ok_or_else(nowhere)
}

/// Whoever stops listening has what they wanted.
fn told(written: io::Result<()>) -> Result<(), Message> {
    match written {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Message::new(format!("The answer could not be written: {e}."), "Look at where the output goes, and ask again."))
        }
        _ => Ok(()),
    }
}

/// `bundle list`.
///
/// # Errors
/// Where the shelves can't be read.
pub fn list(vmid: Vmid, out: &mut dyn Write) -> Result<(), Message> {
    list_at(&Rungs::here(), vmid, out)
}

fn list_at(rungs: &Rungs, vmid: Vmid, out: &mut dyn Write) -> Result<(), Message> {
    let names = rungs.names(vmid).map_err(|e| unreadable(&e))?;
    if names.is_empty() {
        return told(writeln!(out, "There is no bundle of VM {vmid} on this host."));
    }
    for name in names {
        // Dropped, or carried to disk, since its name was read.
        let Ok(Some(found)) = rungs.find(vmid, &name) else { continue };
        let rung = if found.folder.starts_with(path::RUN_EVIDENCE) { "tmpfs" } else { "disk" };
        let size = match found.tree.entries() {
            Ok(entries) => {
                let bytes: u64 = entries.iter().filter_map(|e| e.bytes).fold(0, u64::saturating_add);
                format!("{} files, {} KiB", entries.len(), bytes.div_ceil(1024))
            }
            Err(e) => format!("its files can't be listed ({e})"),
        };
        let said = found.manifest().map_or_else(|| "its manifest can't be read".to_owned(), |m| m.predicate.assessment.code.to_string());
        told(write!(out, "{name}\n{}", paragraph("  ", &format!("{rung}, {size}: {said}"))))?;
    }
    Ok(())
}

/// `bundle show NAME`.
///
/// # Errors
/// No such bundle, or one that can't be read.
pub fn show(vmid: Vmid, name: &BundleName, out: &mut dyn Write) -> Result<(), Message> {
    show_at(&Rungs::here(), vmid, name, out)
}

fn show_at(rungs: &Rungs, vmid: Vmid, name: &BundleName, out: &mut dyn Write) -> Result<(), Message> {
    let found = find(rungs, vmid, name)?;
    let entries = found.tree.entries().map_err(|e| unreadable(&e))?;
    let mut text = format!("{name}\n");
    match found.tree.read(SUMMARY, MOST_SUMMARY) {
        Ok(Some(summary)) => {
            for line in summary.split(|b| *b == b'\n') {
                text.push_str(&paragraph("", &proto::escape_cut(line, 4_096)));
            }
        }
        Ok(None) => text.push_str("It has no summary.txt.\n"),
        Err(e) => text.push_str(&paragraph("", &format!("Its summary.txt can't be read: {e}."))),
    }
    text.push_str(&format!("In {}:\n", found.folder));
    for entry in entries {
        let size = entry.bytes.map_or_else(|| "NOT A REGULAR FILE".to_owned(), |bytes| bytes.to_string());
        text.push_str(&format!("  {} ({size})\n", proto::escape_cut(&entry.path, 400)));
    }
    text.push_str(&paragraph("", &format!("Nothing of this is checked yet: `pve-verb bundle verify {name}`.")));
    told(out.write_all(text.as_bytes()))
}

/// A path that a manifest may name, and a tar may hold.
fn is_path(text: &str) -> bool {
    crate::writer::ArtifactPath::try_from(text.to_owned()).is_ok()
}

/// The folder of a file, for what was made in it.
fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests;
