//! `bundle export`: what the manifest names, the manifest and its signature as a tar; the same bundle gives the same bytes. It does not
//! check what it copies, `bundle verify` does, there or here.

use proto::{BundleName, Message, Vmid};
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{Found, MANIFEST, Rungs, SIGNATURE, find, folder_of, is_path, unreadable};
use crate::tar::Tar;

/// Writes it to a new file, or to `out`. What is in the folder and not in the manifest is named on `notes`, and left out.
///
/// # Errors
/// No such bundle, no usable manifest, an artifact that is missing, a file that exists already, a terminal.
pub fn export(vmid: Vmid, name: &BundleName, to: Option<&Path>, out: &mut dyn Write, notes: &mut dyn Write) -> Result<(), Message> {
    if to.is_none() && io::stdout().is_terminal() {
        return Err(Message::new("A tar is not for a terminal.", "Name a file with --output FILE, or send it into a pipe."));
    }
    export_at(&Rungs::here(), vmid, name, to, out, notes)
}

pub(super) fn export_at(
    rungs: &Rungs,
    vmid: Vmid,
    name: &BundleName,
    to: Option<&Path>,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> Result<(), Message> {
    let found = find(rungs, vmid, name)?;
    let paths = members(&found, name, notes)?;
    let failed = |e: io::Error| {
        Message::new(
            format!("The bundle {name} could not be exported: {e}."),
            format!("Look with `pve-verb bundle verify {name}`, then try again."),
        )
    };
    let Some(to) = to else { return write(&found, name, &paths, out).map_err(failed) };
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => Message::new(
            format!("There is a file {} already, and it is not overwritten.", proto::escape_cut(to.as_os_str().as_encoded_bytes(), 160)),
            "Name another one, or remove it first.",
        ),
        _ => failed(e),
    })?;
    let mut buffered = BufWriter::with_capacity(1 << 18, &file);
    let written = write(&found, name, &paths, &mut buffered).and_then(|()| buffered.flush());
    drop(buffered);
    let written = written.and_then(|()| file.sync_all()).and_then(|()| File::open(folder_of(to))?.sync_all());
    written.map_err(|e| {
        // Half a tar must not be taken for a whole one.
        let _ = std::fs::remove_file(to);
        failed(e)
    })
}

/// The members in the tar's order.
fn members(found: &Found, name: &BundleName, notes: &mut dyn Write) -> Result<Vec<String>, Message> {
    let manifest = found.manifest().ok_or_else(|| {
        Message::new(
            format!("The manifest of {name} can't be read, so nobody can tell what belongs to it."),
            format!("Look with `pve-verb bundle verify {name}`; copy the folder by hand if you need it as it is."),
        )
    })?;
    let mut paths: Vec<String> = manifest.subject.into_iter().map(|s| s.name).filter(|p| is_path(p)).collect();
    paths.sort_unstable();
    paths.dedup();
    paths.push(MANIFEST.to_owned());
    let entries = found.tree.entries().map_err(|e| unreadable(&e))?;
    if entries.iter().any(|e| e.path == SIGNATURE.as_bytes()) {
        paths.push(SIGNATURE.to_owned());
    }
    for entry in entries.iter().filter(|e| paths.iter().all(|p| p.as_bytes() != e.path)) {
        let _ = writeln!(notes, "left out, as the manifest does not name it: {}", proto::escape_cut(&entry.path, 160));
    }
    Ok(paths)
}

fn write(found: &Found, name: &BundleName, paths: &[String], out: &mut dyn Write) -> io::Result<()> {
    let at = name.at().map_or(0, |at| at.unix_ms() / 1000);
    let mut tar = Tar::begin(out, at);
    for path in paths {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{path}: {e}"));
        let (mut file, bytes) = found.tree.file(path).map_err(named)?;
        tar.stream(&format!("{name}/{path}"), bytes, &mut file).map_err(named)?;
    }
    tar.end()
}
