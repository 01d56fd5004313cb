//! `log verify` (PROTOCOL.md, section 7): is the log what this host wrote, all of it, in this order? Reads only, writes no record, and
//! needs as much memory for a million records as for ten.
//!
//! It shares the shape of a line with `audit`, and no code that reads one: a mistake in the writer must not be the reader's as well.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::host::path;

mod every;
mod files;
mod finding;
mod keys;
pub(crate) mod raw;
mod receipts;
mod show;
mod walk;

use files::Files;
pub(crate) use files::whole;
use finding::{At, Place};
pub use finding::{Code, Finding, Findings};
pub(crate) use keys::Keys;
use receipts::Receipts;
pub use show::{Wanted, show};
use walk::{Head, Shared, Walk};

/// What to verify.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// What callers kept.
    pub receipts: Option<PathBuf>,
    /// Every signature, not only the last.
    pub all: bool,
    /// Public keys or `allowed_signers` lines, instead of the host's own.
    pub key: Option<PathBuf>,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// What is wrong.
    pub findings: Findings,
    /// What is worth knowing and is not wrong.
    pub notes: Vec<String>,
    /// How many records there are, on disk and on tmpfs.
    pub records: u64,
    summary: String,
}

/// Verifies this host's log; prints one line for each finding and gives the exit status.
pub fn verify(asked: &Asked, out: &mut dyn Write) -> u8 {
    let report = verify_at(&Files(PathBuf::from("/")), asked);
    // Whoever closed the output still gets the status.
    let _ = print(&report, out);
    report.exit_code()
}

/// The same, of a log below this folder.
#[cfg(fuzzing)]
pub(crate) fn verify_below(root: &Path, out: &mut dyn Write) -> u8 {
    let report = verify_at(&Files(root.to_owned()), &Asked::default());
    let _ = print(&report, out);
    report.exit_code()
}

fn print(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    for finding in report.findings.told() {
        writeln!(out, "{finding}")?;
    }
    if report.findings.untold() > 0 {
        writeln!(out, "and {} findings more.", report.findings.untold())?;
    }
    for note in &report.notes {
        writeln!(out, "note: {note}")?;
    }
    writeln!(out, "{}{}", if report.findings.worst().is_none() { "intact: " } else { "NOT intact: " }, report.summary)
}

impl Report {
    /// 0, or that of the finding that comes first.
    pub fn exit_code(&self) -> u8 {
        self.findings.worst().map_or(0, Code::exit_code)
    }
}

fn verify_at(files: &Files, asked: &Asked) -> Report {
    let mut shared = Shared::default();
    let mut notes = Vec::new();
    let walked = prepare(files, asked, &mut shared).and_then(|()| walk(files, asked, &mut shared, &mut notes));
    let (records, summary) = match walked {
        Ok(told) => told,
        Err(why) => {
            shared.findings.add(Code::Unreadable, why);
            (0, "it could not be read to its end".to_owned())
        }
    };
    Report { findings: shared.findings, notes, records, summary }
}

/// The keys and the receipts.
fn prepare(files: &Files, asked: &Asked, shared: &mut Shared) -> Result<(), String> {
    let host = files.path(path::SIGNING_PUB);
    let key = asked.key.as_deref().unwrap_or(&host);
    match whole(key) {
        Ok(Some(text)) => shared.keys = Keys::read(&String::from_utf8_lossy(&text)),
        Ok(None) if asked.key.is_none() => {}
        Ok(None) => return Err(format!("{} does not exist", key.display())),
        Err(e) => return Err(format!("{} could not be read: {e}", key.display())),
    }
    if asked.key.is_some() && shared.keys.none() {
        return Err(format!("{} holds no ed25519 public key", key.display()));
    }
    if let Some(path) = &asked.receipts {
        let read = |path: &Path| whole(path)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
        let bytes = read(path).map_err(|e| format!("{} could not be read: {e}", path.display()))?;
        shared.receipts = Receipts::read(&bytes);
        if shared.receipts.len() == 0 {
            return Err(format!("{} holds no receipt and no SEQ:HEX", path.display()));
        }
    }
    Ok(())
}

fn walk(files: &Files, asked: &Asked, shared: &mut Shared, notes: &mut Vec<String>) -> Result<(u64, String), String> {
    let log = |e: io::Error| format!("/var/log/pve-verb could not be read: {e}");
    // In this order: see files.rs.
    let remembered = files.remembered();
    let head_bytes = files.head().map_err(log)?;
    let overflow = files.overflow().map_err(|e| format!("the records on tmpfs could not be read: {e}"))?;
    let segments = files.segments().map_err(log)?;
    // Without its newline the last line on tmpfs was never told to anybody.
    let whole_lines = overflow.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
    let pending: Vec<&[u8]> = overflow.get(..whole_lines).unwrap_or_default().split(|b| *b == b'\n').filter(|l| !l.is_empty()).collect();
    if segments.is_empty() && pending.is_empty() && head_bytes.is_none() && remembered.is_none_or(|(seq, _)| seq == 0) {
        return Err("there is no log: nothing was recorded yet, or somebody took it away".to_owned());
    }
    shared.pending = pending.iter().map(|line| raw::digest(line)).collect();
    let head = head_bytes.as_deref().and_then(Head::read);
    let mut chain = Walk::from(segments.first().copied().unwrap_or(1), head.as_ref().map(|h| (h.seq, h.hash)), remembered);
    let mut torn = None;
    for (n, first) in segments.iter().enumerate() {
        let mut lines = files.segment(*first).map_err(log)?;
        while let Some(text) = lines.next().map_err(log)? {
            if !text.whole && n + 1 == segments.len() {
                torn = Some(text.bytes.len());
                continue;
            }
            if text.number == 1 && raw::Raw::read(text.bytes).is_some_and(|raw| raw.seq != *first && raw.seq == chain.last() + 1) {
                let at = At { place: Place::Segment(*first), line: 1, seq: chain.last() + 1 };
                shared.findings.at(Code::Edited, at, at, "the file's name is not the number of its first record");
            }
            chain.line(Place::Segment(*first), text.number, text.bytes, shared);
        }
    }
    let on_disk = chain.count;
    let disk_end = chain.last();
    tmpfs(&pending, &mut chain, shared, notes);
    chain.end(shared);
    if let Some(bytes) = torn {
        notes.push(format!("{bytes} bytes of a torn line follow record {disk_end} on disk; the next record repairs that."));
    }
    judge_head(head_bytes.as_deref(), head.as_ref(), &chain, on_disk, remembered, shared, notes);
    if shared.keys.none() && on_disk + pending.len() as u64 > shared.unsigned {
        shared.findings.add(Code::Unreadable, "there is no public key to check signatures with (/etc/pve-verb/signing_key.pub, or --key)");
    }
    let first = chain.first.unwrap_or(1);
    if asked.all {
        let checked = every::signature(
            files,
            &segments,
            overflow.get(..whole_lines).unwrap_or_default(),
            chain.last(),
            &shared.keys,
            &mut shared.findings,
        );
        notes.push(format!("{} signatures were checked.", checked.map_err(log)?));
    }
    let Shared { receipts, keys, findings, kept, counted, .. } = shared;
    if *counted > 0 {
        notes.push(format!("{counted} reads and refusals came in floods and have no records of their own; summary records count them."));
    }
    if receipts.len() > 0 {
        receipts.judge(first, chain.last(), keys, findings, notes);
        notes.push(format!("{} receipts were held against the log.", receipts.len()));
    }
    if *kept > 0 {
        notes.push(format!("{kept} records are kept inside repair records, as they were made while nobody knew where the log ends."));
    }
    let records = chain.count;
    let summary = format!(
        "{records} records, {first} to {}, in {} segments, {} on tmpfs; the key is {}.",
        chain.last(),
        segments.len(),
        records - on_disk,
        keys.fingerprint()
    );
    Ok((records, summary))
}

/// What the disk has not taken yet.
fn tmpfs(pending: &[&[u8]], chain: &mut Walk, shared: &mut Shared, notes: &mut Vec<String>) {
    let left: Vec<(u64, &[u8])> = pending
        .iter()
        .enumerate()
        .filter(|(_, line)| shared.pending.contains(&raw::digest(line)))
        .map(|(n, line)| (n as u64 + 1, *line))
        .collect();
    let begins = left.first().and_then(|(_, line)| raw::Raw::read(line));
    let provisional = chain.count > 0 && begins.is_some_and(|r| r.seq == 1 && r.kind == b"repair" && r.prev == [0; 32]);
    if provisional {
        let mut own = Walk::from(1, None, None);
        for (n, line) in &left {
            own.line(Place::Overflow, *n, line, shared);
        }
        own.end(shared);
        notes.push(format!(
            "{} records were made while nobody knew where the log ends; the next one that the disk takes takes them in.",
            own.count
        ));
        return;
    }
    for (n, line) in left {
        chain.line(Place::Overflow, n, line, shared);
    }
}

fn judge_head(
    bytes: Option<&[u8]>,
    head: Option<&Head>,
    chain: &Walk,
    on_disk: u64,
    remembered: Option<(u64, [u8; 32])>,
    shared: &mut Shared,
    notes: &mut Vec<String>,
) {
    let findings = &mut shared.findings;
    if let Some((seq, _)) = remembered.filter(|(seq, _)| *seq > chain.last_at_most()) {
        findings.add(Code::Truncated, format!("the log ends with record {}, and this host remembers record {seq} on disk", chain.last()));
    }
    let Some(head) = head else {
        match bytes {
            Some(_) => findings.add(Code::ForgedHead, "head.json is not in the form that the host writes"),
            None if on_disk > 0 => findings.add(Code::Unreadable, "head.json is missing, so nobody can tell where the log ended"),
            None => {}
        }
        return;
    };
    let sound = match &head.blob {
        Some(blob) => shared.keys.none() || shared.keys.head(head.seq, &head.body, blob),
        None => shared.unsigned > 0,
    };
    if !sound {
        findings.add(Code::ForgedHead, "head.json is not signed by this host's key");
        return;
    }
    if head.blob.is_none() {
        findings.add(Code::Unsigned, "head.json is not signed");
    }
    match chain.head_met {
        Some((false, at)) => findings.at(Code::Edited, at, at, "it is not the record that the signed head names"),
        None if head.seq > chain.last_at_most() => {
            findings
                .add(Code::Truncated, format!("the log ends with record {}, and its signed head names record {}", chain.last(), head.seq));
        }
        _ if chain.last() > head.seq => {
            notes.push(format!("the log is {} records ahead of its head, all in one sound chain.", chain.last() - head.seq));
        }
        _ => {}
    }
}

#[cfg(test)]
mod rotated;
#[cfg(test)]
mod tampered;
#[cfg(test)]
mod tests;
