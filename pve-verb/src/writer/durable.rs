//! Making things durable: a file's bytes, its name, and the folder that holds the name are three separate promises.

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;
use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::flock::Flocked;

/// Of this process's next temporary file.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A lock in `/run`, waited for at most this long: whoever is killed in the middle of a write that hangs keeps it until that write ends.
///
/// # Errors
/// `WouldBlock` where somebody else holds it; else the file system's.
pub(super) fn lock(path: &Path, within: Duration) -> io::Result<Flocked<File>> {
    if let Some(above) = path.parent() {
        folder(above)?;
    }
    let lock = file(path, OFlags::RDWR | OFlags::CREATE)?;
    let until = Instant::now() + within;
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Flocked::new(lock)),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            Err(Errno::WOULDBLOCK) => return Err(io::Error::new(io::ErrorKind::WouldBlock, "busy: another writer is still at it")),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Removes temporary files of writers that are gone.
pub(super) fn sweep(folder: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let pid = entry.file_name().to_str().and_then(|n| n.split_once(".new.")?.1.split_once('.')?.0.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

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
    // Its own: a writer that was abandoned may still be filling another one.
    let mut temporary = name.to_owned();
    temporary.push(format!(".new.{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
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
