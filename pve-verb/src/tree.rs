//! A folder whose content somebody else may have made: opened once, and nothing in it is followed out of it. Reads only.
//!
//! Each name is resolved by the kernel below the opened folder, without links and other file systems' tricks; only regular files are
//! read, and a FIFO or device is seen for what it is without being waited for.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2, statat};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// No bundle has more files than this, or deeper folders.
const MOST_ENTRIES: usize = 4_096;
const DEEPEST: usize = 4;

/// A folder.
#[derive(Debug)]
pub(crate) struct Tree(OwnedFd);

/// Something in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    /// Its path below the folder, whatever bytes that has.
    pub(crate) path: Vec<u8>,
    /// Its length; none where it is no regular file.
    pub(crate) bytes: Option<u64>,
}

impl Tree {
    /// Opens it; none where there is no such folder. A link in its place is somebody else's.
    pub(crate) fn open(path: &Path) -> io::Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self(fd))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn below(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(openat2(&self.0, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?)
    }

    /// One of its regular files, and its length.
    pub(crate) fn file(&self, path: &str) -> io::Result<(File, u64)> {
        let file = File::from(self.below(path.as_bytes(), OFlags::empty())?);
        let stat = fstat(&file)?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        Ok((file, u64::try_from(stat.st_size).unwrap_or(u64::MAX)))
    }

    /// The bytes of one of its files, at most `most`; none where it does not exist.
    pub(crate) fn read(&self, path: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match self.file(path) {
            Ok((file, _)) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut bytes = Vec::new();
        file.take(most + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > most {
            return Err(io::Error::other(format!("the file is longer than {most} bytes")));
        }
        Ok(Some(bytes))
    }

    /// Everything in it that is no folder, and empty or too deep folders, by path.
    pub(crate) fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut all = Vec::new();
        let mut folders = vec![Vec::new()];
        while let Some(folder) = folders.pop() {
            let fd = if folder.is_empty() { None } else { Some(self.below(&folder, OFlags::DIRECTORY)?) };
            let fd = fd.as_ref().map_or_else(|| self.0.as_fd(), AsFd::as_fd);
            let mut inside = 0;
            for entry in Dir::read_from(fd)? {
                let entry = entry?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                inside += 1;
                let path = if folder.is_empty() { name.to_bytes().to_vec() } else { [&folder, &b"/"[..], name.to_bytes()].concat() };
                if all.len() + folders.len() >= MOST_ENTRIES {
                    return Err(io::Error::other(format!("there are more than {MOST_ENTRIES} files in it")));
                }
                let stat = statat(fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
                let kind = FileType::from_raw_mode(stat.st_mode);
                if kind.is_dir() && path.iter().filter(|b| **b == b'/').count() + 1 < DEEPEST {
                    folders.push(path);
                } else {
                    let bytes = kind.is_file().then(|| u64::try_from(stat.st_size).unwrap_or(u64::MAX));
                    all.push(Entry { path, bytes });
                }
            }
            if inside == 0 && !folder.is_empty() {
                all.push(Entry { path: folder, bytes: None });
            }
        }
        all.sort_unstable();
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_leads_out_of_it_and_nothing_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("bundle");
        std::fs::create_dir_all(root.join("qmp/empty")).unwrap();
        std::fs::create_dir_all(root.join("a/b/c/d/e")).unwrap();
        std::fs::write(root.join("qmp/x.json"), "12").unwrap();
        std::fs::write(folder.path().join("secret"), "secret").unwrap();
        symlink("/etc/passwd", root.join("link")).unwrap();
        symlink("../..", root.join("qmp/up")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(root.join("fifo")).status().unwrap();
        assert!(made.success());
        let tree = Tree::open(&root).unwrap().unwrap();
        assert_eq!(tree.read("qmp/x.json", 2).unwrap().unwrap(), b"12");
        assert!(tree.read("qmp/x.json", 1).is_err());
        assert_eq!(tree.read("qmp/none", 9).unwrap(), None);
        for bad in ["link", "fifo", "qmp", "qmp/up/secret", "../secret", "/etc/passwd", "link/x"] {
            assert!(tree.read(bad, 100).is_err(), "{bad}");
        }
        let seen: Vec<_> = tree.entries().unwrap().into_iter().map(|e| (String::from_utf8(e.path).unwrap(), e.bytes)).collect();
        let odd = |path: &str| (path.to_owned(), None);
        assert_eq!(seen, [odd("a/b/c/d"), odd("fifo"), odd("link"), odd("qmp/empty"), odd("qmp/up"), ("qmp/x.json".to_owned(), Some(2))]);
        symlink(&root, folder.path().join("linked")).unwrap();
        assert!(Tree::open(&folder.path().join("linked")).is_err());
        assert!(Tree::open(&folder.path().join("none")).unwrap().is_none());
    }

    #[test]
    fn a_folder_without_end_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        for n in 0..=MOST_ENTRIES {
            std::fs::write(folder.path().join(n.to_string()), "").unwrap();
        }
        assert!(Tree::open(folder.path()).unwrap().unwrap().entries().is_err());
    }
}
