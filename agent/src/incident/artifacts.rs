//! Files of an incident: the evidence that came with a verb, a command's whole output. Their names come from outside only through
//! here, and together they have a bound.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use proto::RequestId;

use super::Incident;

/// What the artifacts of one incident may take.
pub(super) const ROOM: u64 = 128 << 20;
/// One command's output.
const EXEC: u64 = 16 << 20;
/// The folder.
const FOLDER: &str = "artifacts";

/// Whether a path of a bundle is one that a file here may have: parts of plain characters, relative, without `..`, not deep.
pub(super) fn is_plain(path: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.len() <= 80
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    path.len() <= 240 && path.split('/').count() <= 5 && path.split('/').all(part)
}

impl Incident {
    /// Takes room; whether there was as much.
    fn take_room(&self, bytes: u64) -> bool {
        let mut state = self.state();
        let left = state.room.checked_sub(bytes);
        state.room = left.unwrap_or(state.room);
        left.is_some()
    }

    /// Keeps a file that came with a verb; its path in the incident's folder.
    pub(super) fn keep(&self, request_id: &RequestId, path: &str, bytes: &[u8]) -> Result<String, String> {
        if !is_plain(path) {
            return Err("its path is none that is taken".to_owned());
        }
        if !self.take_room(bytes.len() as u64) {
            return Err(format!("the incident's {} MiB for artifacts are used up", ROOM >> 20));
        }
        if !self.bound().admits(bytes.len() as u64) {
            return Err("the disk with the state folder is full".to_owned());
        }
        let name = format!("{FOLDER}/{request_id}/{path}");
        self.bound().writes(|| write(&self.folder.join(&name), bytes)).map_err(|error| error.to_string())?;
        Ok(name)
    }

    /// A file for a command's whole output.
    pub(super) fn output(&self, exec: u64) -> Option<Output> {
        self.bound().make(EXEC);
        let name = format!("{FOLDER}/exec/{exec}.txt");
        let file = create(&self.folder.join(&name)).ok()?;
        Some(Output { name, file, bytes: 0 })
    }

    /// Appends to it, as far as there is room; whether all of it is there.
    pub(super) fn append(&self, output: &mut Output, bytes: &[u8]) -> bool {
        let fits = output.bytes + bytes.len() as u64 <= EXEC && self.take_room(bytes.len() as u64);
        output.bytes += bytes.len() as u64;
        fits && self.bound().admits(bytes.len() as u64) && output.file.write_all(bytes).is_ok()
    }

    /// Where a file of this incident is, by the name that a line says.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        within(&self.folder, name)
    }
}

/// A file of the incident in this folder, by the name that a line says.
pub(super) fn within(folder: &Path, name: &str) -> Option<PathBuf> {
    let inside = name.strip_prefix(FOLDER)?.strip_prefix('/')?;
    is_plain(inside).then(|| folder.join(name)).filter(|path| path.is_file())
}

/// A command's output as it grows.
#[derive(Debug)]
pub(super) struct Output {
    /// Its path in the incident's folder.
    pub(super) name: String,
    file: File,
    bytes: u64,
}

fn create(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    create(path)?.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::is_plain;

    #[test]
    fn a_path_that_leaves_its_folder_is_none() {
        for good in ["qmp/query-status.json", "console/screen-1.png", "a"] {
            assert!(is_plain(good), "{good}");
        }
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/.hidden", "a\0", "a b", "ä", "a/b/c/d/e/f", &"x".repeat(81), "a/"] {
            assert!(!is_plain(bad), "{bad}");
        }
    }
}
