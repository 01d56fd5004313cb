//! Every signature: a second reading, once the first has found which key may have signed what. As many threads as there are cores,
//! each with its part of a few megabytes.

use std::io;

use super::files::{Files, Lines};
use super::finding::{At, Code, Findings, Place};
use super::keys::Keys;
use super::raw::Raw;

/// What is read before it is checked.
const BATCH: usize = 4 << 20;

struct Batch<'a> {
    lines: Vec<(At, Vec<u8>)>,
    bytes: usize,
    keys: &'a Keys,
    checked: u64,
}

/// Checks the signature of every record up to `last`; gives how many were.
pub(super) fn signature(
    files: &Files,
    segments: &[u64],
    overflow: &[u8],
    last: u64,
    keys: &Keys,
    findings: &mut Findings,
) -> io::Result<u64> {
    let mut batch = Batch { lines: Vec::new(), bytes: 0, keys, checked: 0 };
    for first in segments {
        let mut lines: Lines = match files.segment(*first) {
            Ok(lines) => lines,
            // Pruned since the first reading.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        while let Some(text) = lines.next()? {
            if text.whole {
                batch.take(Place::Segment(*first), text.number, text.bytes, last, findings);
            }
        }
    }
    for (n, line) in overflow.split(|b| *b == b'\n').filter(|l| !l.is_empty()).enumerate() {
        batch.take(Place::Overflow, n as u64 + 1, line, u64::MAX, findings);
    }
    batch.check(findings);
    Ok(batch.checked)
}

impl Batch<'_> {
    fn take(&mut self, place: Place, line: u64, bytes: &[u8], last: u64, findings: &mut Findings) {
        // What is no record, or came since, is the first reading's.
        let Some(seq) = Raw::read(bytes).filter(|raw| raw.sig.is_some() && raw.seq <= last).map(|raw| raw.seq) else { return };
        self.bytes += bytes.len();
        self.lines.push((At { place, line, seq }, bytes.to_owned()));
        if self.bytes >= BATCH {
            self.check(findings);
        }
    }

    fn check(&mut self, findings: &mut Findings) {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
        let keys = self.keys;
        let part = self.lines.len().div_ceil(threads).max(1);
        let bad = |lines: &[(At, Vec<u8>)]| -> Vec<At> {
            lines.iter().filter(|(_, line)| !Raw::read(line).is_some_and(|raw| keys.line(&raw))).map(|(at, _)| *at).collect()
        };
        let all: Vec<At> = std::thread::scope(|scope| {
            let running: Vec<_> = self.lines.chunks(part).map(|chunk| scope.spawn(move || bad(chunk))).collect();
            // A thread that panicked says nothing good of its lines; there is none that does.
            running.into_iter().flat_map(|t| t.join().unwrap_or_default()).collect()
        });
        for at in all {
            findings.at(Code::Edited, at, at, "its signature is not this host's");
        }
        self.checked += self.lines.len() as u64;
        self.lines.clear();
        self.bytes = 0;
    }
}
