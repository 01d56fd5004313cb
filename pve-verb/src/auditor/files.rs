//! The log's files, read as they are: segments, head, what is on tmpfs. Nothing is locked and nothing is written, so verbs go on.
//!
//! The order makes that safe: head and tmpfs are read first, the segments after. What is carried to disk meanwhile is then met twice,
//! never missed, and a head is never newer than the segments that are held against it.

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::finding::Place;
use super::raw::unhex;
use crate::host::{self, path};

/// A longer line is not the host's: its writer takes no more at once.
const MOST_LINE: u64 = 64 << 20;
/// What is read whole: head, keys, what is on tmpfs, receipts.
const MOST_WHOLE: u64 = 256 << 20;

/// Where the log is: `/`, and in tests a folder that looks like it.
#[derive(Clone, Debug)]
pub(super) struct Files(pub(super) PathBuf);

impl Files {
    pub(super) fn path(&self, absolute: &str) -> PathBuf {
        self.0.join(absolute.trim_start_matches('/'))
    }

    pub(super) fn head(&self) -> io::Result<Option<Vec<u8>>> {
        whole(&self.path(path::LOG).join("head.json"))
    }

    pub(super) fn overflow(&self) -> io::Result<Vec<u8>> {
        Ok(whole(&self.path(path::RUN).join("audit-overflow.jsonl"))?.unwrap_or_default())
    }

    /// What the host remembers of the disk's end, for as long as it is up.
    pub(super) fn remembered(&self) -> Option<(u64, [u8; 32])> {
        let text = whole(&self.path(path::RUN).join("audit-tail.json")).ok()??;
        let end = serde_json::from_slice::<serde_json::Value>(&text).ok()?;
        Some((end.get("seq")?.as_u64()?, unhex(end.get("head")?.as_str()?.as_bytes())?))
    }

    /// The numbers in the names of the segments that hold anything.
    pub(super) fn segments(&self) -> io::Result<Vec<u64>> {
        let all = host::segments(&self.path(path::LOG))?;
        Ok(all.into_iter().filter(|(_, length)| *length > 0).map(|(first, _)| first).collect())
    }

    pub(super) fn segment(&self, first: u64) -> io::Result<Lines> {
        let file = plain(&self.path(path::LOG).join(Place::Segment(first).to_string()))?;
        Ok(Lines { from: BufReader::with_capacity(1 << 18, file), line: Vec::new(), number: 0 })
    }
}

/// A file line by line, with one buffer.
pub(super) struct Lines {
    from: BufReader<File>,
    line: Vec<u8>,
    number: u64,
}

/// One line.
pub(super) struct Text<'a> {
    pub(super) number: u64,
    pub(super) bytes: &'a [u8],
    /// Whether its newline is there.
    pub(super) whole: bool,
}

impl Lines {
    pub(super) fn next(&mut self) -> io::Result<Option<Text<'_>>> {
        self.line.clear();
        let read = (&mut self.from).take(MOST_LINE).read_until(b'\n', &mut self.line)?;
        if read as u64 == MOST_LINE && self.line.last() != Some(&b'\n') {
            return Err(io::Error::other(format!("a line is longer than {MOST_LINE} bytes")));
        }
        self.number += 1;
        let whole = self.line.last() == Some(&b'\n');
        let bytes = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        Ok((read > 0).then_some(Text { number: self.number, bytes, whole }))
    }
}

/// A regular file; a link or a FIFO in its place is somebody else's.
fn plain(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(open(path, flags, Mode::empty())?);
    if FileType::from_raw_mode(fstat(&file)?.st_mode).is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

pub(crate) fn whole(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match plain(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    file.take(MOST_WHOLE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_WHOLE { Err(io::Error::other("it is too long")) } else { Ok(Some(bytes)) }
}
