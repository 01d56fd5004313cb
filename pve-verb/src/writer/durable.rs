//! Making things durable: a file's bytes, its name, and the folder that holds the name are three separate promises.

use rustix::fs::{Mode, OFlags, open};
use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Makes a folder and what is missing above it, each 0700, and syncs the folders that got a new name.
pub(super) fn folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = path.parent().ok_or_else(|| io::Error::other("the root is missing"))?;
    folder(above)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => sync_folder(above),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(e),
    }
}

pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::from(open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?).sync_all()
}

/// Opens a file of ours; a link in its place is somebody else's.
pub(super) fn file(path: &Path, flags: OFlags) -> io::Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(File::from(open(path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY, mode)?))
}

/// Replaces a file so that a reader, or a power cut, finds the old or the new one, never half of either.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other("a file needs a folder and a name"));
    };
    folder(parent)?;
    let mut temporary = name.to_owned();
    temporary.push(".new");
    let temporary = parent.join(temporary);
    let written = file(&temporary, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC).and_then(|mut f| {
        f.write_all(bytes)?;
        f.sync_all()
    });
    if let Err(e) = written.and_then(|()| std::fs::rename(&temporary, path)) {
        let _ = std::fs::remove_file(&temporary);
        return Err(e);
    }
    sync_folder(parent)
}

/// The file's bytes, at most `most`; none where it does not exist.
pub(super) fn read(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let opened = match file(path, OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(f) => f,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(opened, most + 1), &mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("the file is longer than {most} bytes")));
    }
    Ok(Some(bytes))
}

/// Removes a file durably; true where there was one.
pub(super) fn remove(path: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => {
            if let Some(parent) = path.parent() {
                sync_folder(parent)?;
            }
            Ok(true)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Removes a folder and all in it; nothing in it is followed.
pub(super) fn remove_folder(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
