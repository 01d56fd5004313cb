//! Reading a file that only root may have written. Checks what was opened, not what a path said a moment ago.
//!
//! It does not check the folders above: `setup::check` does, once, for the admin.

use rustix::fs::{Mode, OFlags, fstat, open};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Nobody but the owner may write.
pub const NOT_WRITABLE: u32 = 0o022;
/// Nobody but the owner may do anything.
pub const PRIVATE: u32 = 0o077;

/// Why a file can't be used.
#[derive(Debug, PartialEq, Eq)]
pub enum Untrusted {
    /// There is no such file.
    Absent,
    /// What is wrong with it; a sentence's second half, after the file's name.
    Bad(String),
}

impl Untrusted {
    /// The reason as text, for a file that should have been there.
    pub fn text(self) -> String {
        match self {
            Self::Absent => "does not exist".to_owned(),
            Self::Bad(why) => why,
        }
    }
}

/// Reads a regular file of at most `most` bytes that `owner` owns and whose mode has none of the bits of `forbidden`.
///
/// # Errors
/// [`Untrusted`], each kind as it says.
pub fn read(path: &Path, owner: u32, forbidden: u32, most: u64) -> Result<Vec<u8>, Untrusted> {
    let bad = |why: String| Err(Untrusted::Bad(why));
    // NONBLOCK: a FIFO put in the file's place must not hang a recovery at its start.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT) => return Err(Untrusted::Absent),
        Err(rustix::io::Errno::LOOP) => return bad("is a symbolic link".to_owned()),
        Err(e) => return bad(format!("could not be opened: {e}")),
    };
    let stat = match fstat(&file) {
        Ok(stat) => stat,
        Err(e) => return bad(format!("could not be examined: {e}")),
    };
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return bad("is not a regular file".to_owned());
    }
    if stat.st_uid != owner {
        return bad(format!("belongs to uid {}, not to uid {owner}", stat.st_uid));
    }
    if stat.st_mode & forbidden != 0 {
        return bad(format!("has mode {:04o}, of which {:04o} must not be set", stat.st_mode & 0o7777, stat.st_mode & forbidden));
    }
    let mut bytes = Vec::new();
    match file.take(most + 1).read_to_end(&mut bytes) {
        Ok(n) if n as u64 > most => bad(format!("is longer than {most} bytes")),
        Ok(_) => Ok(bytes),
        Err(e) => bad(format!("could not be read: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, set_permissions, write};
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn what_others_could_have_written_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let me = rustix::process::getuid().as_raw();
        let path = folder.path().join("f");
        assert_eq!(read(&path, me, PRIVATE, 9), Err(Untrusted::Absent));
        write(&path, "text").unwrap();
        for (mode, forbidden, good) in [
            (0o600, PRIVATE, true),
            (0o640, PRIVATE, false),
            (0o644, NOT_WRITABLE, true),
            (0o664, NOT_WRITABLE, false),
            (0o602, NOT_WRITABLE, false),
        ] {
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&path, me, forbidden, 9).is_ok(), good, "{mode:o}");
        }
        set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert!(read(&path, me + 1, PRIVATE, 9).is_err(), "another owner");
        assert!(read(&path, me, PRIVATE, 3).is_err(), "too long");
        symlink(&path, folder.path().join("link")).unwrap();
        assert!(read(&folder.path().join("link"), me, PRIVATE, 9).is_err(), "a link");
        assert!(read(folder.path(), me, 0, 9).is_err(), "a folder");
    }
}
