//! The audit log's files as the writer sees them: segments of lines. What the lines mean is `audit`'s; here they have a number, a hash
//! and a kind.

use proto::{Sha256Hex, Timestamp};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Reply, Root, durable};
use crate::host::{self, path};
use crate::operation::{LastIntent, Mark, mark, may_mark};

/// The longest file that is read as one: a segment and one batch beyond its limit.
const MOST: u64 = 64 << 20;
/// How long another writer is waited for.
const APPENDING: Duration = Duration::from_millis(200);
/// How far back reviews, and records that were taken in, are looked for.
const LOOK_BACK: u64 = 32 << 20;
/// How many intents are looked at for one without an end: every mutation that the disk answers tells of those before it, so the ones
/// that are left are the newest.
const INTENTS: usize = 4;
/// How much of a torn line a repair record can show.
pub(crate) const TORN_SHOWN: usize = 512;

/// Where the log ends on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// The newest segment that holds anything: the seq of its first record.
    pub segment: u64,
    /// Where its last whole line ends, in bytes.
    pub length: u64,
    /// How many bytes of a torn line follow.
    pub torn: u64,
    /// The first of those bytes, escaped.
    pub torn_text: String,
    /// The last whole line's number; 0 where there is none.
    pub seq: u64,
    /// Its hash; zeros where there is none.
    pub hash: Sha256Hex,
    /// What is wrong with the last lines, where something is.
    pub damaged: Option<String>,
    /// When it was written, by the clock that the host had; none where it does not say.
    pub at: Option<Timestamp>,
    /// Mutating uses since the last review; none where that lies too far back.
    pub unreviewed: Option<u64>,
    /// The newest intent, as far back as reviews are looked for.
    pub intent: Option<LastIntent>,
}

/// The oldest segment, which goes next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oldest {
    /// The seq of its first record.
    pub segment: u64,
    /// The number of its last record.
    pub last_seq: u64,
    /// The hash of its last record.
    pub last_hash: Sha256Hex,
    /// Its length.
    pub bytes: u64,
}

/// The hash of a line without its newline.
pub(crate) fn hash(line: &[u8]) -> Sha256Hex {
    Sha256Hex::from_bytes(Sha256::digest(line).into())
}

/// A record's number and kind.
fn record(line: &[u8]) -> Option<(u64, String)> {
    #[derive(Deserialize)]
    struct Record {
        seq: u64,
        kind: String,
    }
    serde_json::from_slice::<Record>(line).ok().map(|r| (r.seq, r.kind))
}

/// When a record says that it was written.
fn written(line: &[u8]) -> Option<Timestamp> {
    #[derive(Deserialize)]
    struct Record {
        at: Timestamp,
    }
    serde_json::from_slice::<Record>(line).ok().map(|r| r.at)
}

/// Whether this line is the record of this number and hash.
fn is_record(line: &[u8], seq: u64, wanted: &Sha256Hex) -> bool {
    line.starts_with(format!("{{\"seq\":{seq},").as_bytes()) && hash(line) == *wanted
}

/// Whether this is a `repair` record that took that record in as it was, because the disk's log could not be read when it was made.
pub(crate) fn takes_in(line: &[u8], seq: u64, wanted: &Sha256Hex) -> bool {
    /// What stands before the facts is not longer.
    const KIND_WITHIN: usize = 400;
    #[derive(Deserialize)]
    struct Repair {
        kind: String,
        line: String,
    }
    let kind: &[u8] = br#""kind":"repair""#;
    line.get(..KIND_WITHIN).unwrap_or(line).windows(kind.len()).any(|w| w == kind)
        && serde_json::from_slice::<Repair>(line).is_ok_and(|r| r.kind == "repair" && is_record(r.line.as_bytes(), seq, wanted))
}

/// The whole lines of some bytes, and what follows the last of them.
fn lines(bytes: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let end = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
    let (whole, torn) = bytes.split_at(end);
    (whole.split_inclusive(|b| *b == b'\n').map(|l| l.strip_suffix(b"\n").unwrap_or(l)).collect(), torn)
}

/// Number and hash of the last line, and what is wrong where its number had to be counted from an earlier one.
fn last(first_seq: u64, lines: &[&[u8]]) -> Option<(u64, Sha256Hex, Option<String>)> {
    let newest = hash(lines.last()?);
    for (back, line) in lines.iter().rev().enumerate() {
        if let Some((seq, _)) = record(line) {
            let damaged = (back > 0).then(|| format!("the last {back} lines are no records"));
            return Some((seq.saturating_add(back as u64), newest, damaged));
        }
    }
    Some((first_seq.saturating_add(lines.len() as u64 - 1), newest, Some("no line of the segment is a record".to_owned())))
}

impl Root {
    fn segment(&self, first_seq: u64) -> PathBuf {
        self.path(path::LOG).join(host::segment(first_seq))
    }

    fn segments(&self) -> io::Result<Vec<(u64, u64)>> {
        host::segments(&self.path(path::LOG))
    }

    fn read_segment(&self, first_seq: u64) -> io::Result<Vec<u8>> {
        durable::read(&self.segment(first_seq), MOST)?.ok_or_else(|| io::Error::other("a segment of the log vanished"))
    }

    pub(super) fn log_tail(&self) -> io::Result<Reply> {
        let head = durable::read(&self.head_path(), 1 << 20)?.map(|h| String::from_utf8_lossy(&h).into_owned());
        let segments = self.segments()?;
        // An empty segment is what a crash between creating and writing leaves; the next append uses its name or another.
        let mut filled = segments.iter().rev().filter(|(_, length)| *length > 0);
        let Some(&(segment, _)) = filled.next() else { return Ok(Reply::Tail { tail: None, head }) };
        let bytes = self.read_segment(segment)?;
        let (whole, torn) = lines(&bytes);
        let mut end = last(segment, &whole);
        if end.is_none()
            && let Some(&(before, _)) = filled.next()
        {
            end = last(before, &lines(&self.read_segment(before)?).0);
        }
        let (seq, hash, damaged) = end.unwrap_or((0, Sha256Hex::zero(), None));
        let (unreviewed, intent) = self.look_back(&segments)?;
        let tail = Tail {
            segment,
            length: (bytes.len() - torn.len()) as u64,
            torn: torn.len() as u64,
            torn_text: proto::escape_cut(torn, TORN_SHOWN),
            seq,
            hash,
            damaged,
            at: whole.last().and_then(|line| written(line)),
            unreviewed,
            intent,
        };
        Ok(Reply::Tail { tail: Some(Box::new(tail)), head })
    }

    /// Intents since the newest review (none where neither that nor the log's beginning is within reach), and the newest intent.
    fn look_back(&self, segments: &[(u64, u64)]) -> io::Result<(Option<u64>, Option<LastIntent>)> {
        let (mut uses, mut reviewed, mut read) = (0, false, 0);
        // Newest first: turned round, they come as they were written.
        let (mut marks, mut begun) = (Vec::new(), 0);
        let last = |marks: Vec<Mark>| marks.into_iter().rev().fold(None, |last, mark| LastIntent::after(last, Some(mark)));
        for (segment, length) in segments.iter().rev() {
            read += length;
            if read > LOOK_BACK + MOST {
                return Ok((reviewed.then_some(uses), last(marks)));
            }
            let bytes = self.read_segment(*segment)?;
            for line in lines(&bytes).0.into_iter().rev() {
                if let Some(mark) = (begun < INTENTS && may_mark(line)).then(|| mark(line)).flatten() {
                    begun += usize::from(matches!(mark, Mark::Begun(_)));
                    marks.push(mark);
                }
                // Parsing every line would take seconds; within a string the quotes would be escaped.
                let may = |kind: &[u8]| line.windows(kind.len()).any(|w| w == kind);
                if !reviewed && (may(br#""kind":"intent""#) || may(br#""kind":"review""#)) {
                    match record(line) {
                        Some((_, kind)) if kind == "review" => reviewed = true,
                        Some((_, kind)) if kind == "intent" => uses += 1,
                        _ => {}
                    }
                }
                if reviewed && begun >= INTENTS {
                    return Ok((Some(uses), last(marks)));
                }
            }
            if read > LOOK_BACK {
                return Ok((reviewed.then_some(uses), last(marks)));
            }
        }
        // A log whose beginning was pruned may have had more.
        let whole = segments.first().is_none_or(|(first, _)| *first == 1);
        Ok(((reviewed || whole).then_some(uses), last(marks)))
    }

    /// The number of the newest review, as far back as reviews are looked for.
    pub(super) fn log_reviewed(&self) -> io::Result<Reply> {
        let mut read = 0;
        for (segment, length) in self.segments()?.iter().rev() {
            read += length;
            if read > LOOK_BACK + MOST {
                break;
            }
            let bytes = self.read_segment(*segment)?;
            let reviews = lines(&bytes).0.into_iter().rev().filter(|l| l.windows(15).any(|w| w == br#""kind":"review""#));
            if let Some((seq, _)) = reviews.filter_map(record).find(|(_, kind)| kind == "review") {
                return Ok(Reply::Reviewed { seq: Some(seq) });
            }
        }
        Ok(Reply::Reviewed { seq: None })
    }

    pub(super) fn log_append(&self, segment: u64, at: u64, torn: u64, head: &str, payload: &[u8]) -> io::Result<Reply> {
        if payload.last() != Some(&b'\n') {
            return Err(io::Error::other("only whole lines are appended"));
        }
        let path = self.segment(segment);
        durable::folder(&self.path(path::LOG))?;
        // Where an earlier writer may still be in the middle of this, its late cut would take our lines away.
        let _lock = match durable::lock(&self.path(path::RUN).join("append.lock"), APPENDING) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(e),
            // A `/run` that takes no lock is no reason to lose a record.
            lock => lock.ok(),
        };
        let file = durable::file(&path, OFlags::WRONLY | OFlags::CREATE)?;
        let length = file.metadata()?.len();
        if length != at + torn {
            return Ok(Reply::Mismatch { length });
        }
        self.awaited()?;
        if torn > 0 {
            file.set_len(at)?;
        }
        write_at(&file, payload, at)?;
        file.sync_data()?;
        self.awaited()?;
        // Also makes the segment's own name durable, if it is new: same folder.
        durable::replace(&self.head_path(), head.as_bytes())?;
        Ok(Reply::Done {})
    }

    pub(super) fn log_contains(&self, seq: u64, wanted: &Sha256Hex) -> io::Result<Reply> {
        let segments = self.segments()?;
        let place = segments.iter().rev().find(|(first, length)| *first <= seq && *length > 0);
        if let Some((segment, _)) = place
            && lines(&self.read_segment(*segment)?).0.into_iter().any(|line| is_record(line, seq, wanted))
        {
            return Ok(Reply::Contains { found: Some(true) });
        }
        // No further back: that a long log was written anew has to be said in the time that there is.
        let mut read = 0;
        for (segment, length) in segments.iter().rev() {
            if read > LOOK_BACK {
                break;
            }
            read += length;
            if lines(&self.read_segment(*segment)?).0.into_iter().any(|line| takes_in(line, seq, wanted)) {
                return Ok(Reply::Contains { found: Some(true) });
            }
        }
        // What is older than the log's first record may have been pruned.
        Ok(Reply::Contains { found: (place.is_some() || segments.is_empty()).then_some(false) })
    }

    pub(super) fn log_oldest(&self, keep_bytes: u64) -> io::Result<Reply> {
        let segments = self.segments()?;
        let total: u64 = segments.iter().map(|(_, length)| length).sum();
        let oldest = match segments.first() {
            Some(&(segment, bytes)) if total > keep_bytes && segments.len() > 1 => {
                let all = self.read_segment(segment)?;
                let (last_seq, last_hash, _) = last(segment, &lines(&all).0).unwrap_or((segment, Sha256Hex::zero(), None));
                Some(Oldest { segment, last_seq, last_hash, bytes })
            }
            _ => None,
        };
        Ok(Reply::Oldest { oldest })
    }

    pub(super) fn log_drop(&self, segment: u64) -> io::Result<Reply> {
        let newest = self.segments()?.last().map(|(first, _)| *first);
        if newest.is_none_or(|n| n <= segment) {
            return Err(io::Error::other("the newest segment is never dropped"));
        }
        durable::remove(&self.segment(segment))?;
        Ok(Reply::Done {})
    }

    fn head_path(&self) -> PathBuf {
        Path::new(&self.path(path::LOG)).join("head.json")
    }
}

/// At its place, not at the end: if a write that was abandoned completes after all, it writes the same bytes where they already are.
fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    file.write_all_at(bytes, at)
}
