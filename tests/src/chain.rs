//! The audit log as an outsider reads it: an independent check that its lines are one signed chain, and a look at what they say.
//!
//! It shares no code with the program that writes the log. `pve-verb log verify` has its own tests; this is what scenarios hold
//! the log against, so that a mistake in the writer is not repeated in the reader.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use base64ct::{Base64, Encoding};
use ed25519_dalek::{Signature, VerifyingKey};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Result};

/// Where the segments are.
pub const LOG: &str = "/var/log/pve-verb";
/// What the disk has not taken yet.
pub const OVERFLOW: &str = "/run/pve-verb/audit-overflow.jsonl";
const KEY: &str = "/etc/pve-verb/signing_key.pub";

/// The hashes of lines whose signature was found good: a sweep reads the same log a thousand times.
static CHECKED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The chain, checked.
#[derive(Debug)]
pub struct Chain {
    /// Every record, the first one first.
    pub records: Vec<Value>,
    /// How many of them are on disk.
    pub on_disk: usize,
    /// A last line on disk that is not whole: the writer was killed in the middle of it.
    pub torn: bool,
}

impl Chain {
    /// Reads the segments and the overflow, and checks numbers, hashes and signatures of all lines, and the head's claim.
    ///
    /// A torn last line on disk is allowed only where the head does not cover it: its writer had not answered yet.
    ///
    /// Also while somebody writes: the head is read before what it speaks of, and tmpfs before the disk that takes its records.
    pub fn read() -> Result<Self> {
        let key = public_key()?;
        let claimed = head()?;
        let overflow = fs::read(OVERFLOW).unwrap_or_default();
        let (disk, torn) = on_disk()?;
        let mut lines = disk;
        let on_disk = lines.len();
        for line in whole_lines(&overflow).0 {
            match (number(&line)?, lines.last().map(|last| number(last)).transpose()?) {
                (seq, Some(last)) if seq <= last => {
                    if !lines.contains(&line) {
                        return Err(broken(format!("record {seq} is in the overflow and on disk, and differs")));
                    }
                }
                _ => lines.push(line),
            }
        }
        let mut records: Vec<Value> = Vec::new();
        let mut before: Option<(u64, String)> = None;
        for line in &lines {
            let record: Value = serde_json::from_slice(line).context("read a record of the log")?;
            let (seq, prev) = (record["seq"].as_u64().unwrap_or(0), record["prev"].as_str().unwrap_or_default());
            let (wanted, hash) = before.map_or_else(|| (1, "0".repeat(64)), |(seq, hash)| (seq + 1, hash));
            if seq != wanted {
                return Err(broken(format!("record {wanted} is followed by {seq}")));
            }
            if prev != hash {
                return Err(broken(format!("record {seq} does not carry the hash of the one before it")));
            }
            let hash = hash_of(line);
            if !CHECKED.lock().unwrap_or_else(PoisonError::into_inner).contains(&hash) {
                signed(&key, line).map_err(|why| broken(format!("record {seq} {why}")))?;
                CHECKED.lock().unwrap_or_else(PoisonError::into_inner).insert(hash.clone());
            }
            before = Some((seq, hash));
            records.push(record);
        }
        let (end, _) = before.unwrap_or_default();
        if let Some((seq, head)) = claimed {
            let at = usize::try_from(seq).ok().and_then(|n| n.checked_sub(1)).and_then(|n| lines.get(n));
            if seq > end || at.is_some_and(|line| hash_of(line) != head) {
                return Err(broken(format!("head.json says {seq} {head}, the log ends with {end}")));
            }
        }
        Ok(Self { records, on_disk, torn })
    }

    /// The records of one request.
    pub fn of(&self, id: &str) -> Vec<&Value> {
        self.records.iter().filter(|record| record["request_id"] == id).collect()
    }

    /// How many records of this kind a request has.
    pub fn count(&self, id: &str, kind: &str) -> usize {
        self.of(id).into_iter().filter(|record| record["kind"] == kind).count()
    }

    /// All records of a kind.
    pub fn kind(&self, kind: &str) -> Vec<&Value> {
        self.records.iter().filter(|record| record["kind"] == kind).collect()
    }
}

fn broken(why: String) -> Error {
    Error::new(format!("The audit log is not one chain: {why}"), "Look at /var/log/pve-verb and the overflow in /run/pve-verb")
}

/// The segments' whole lines in order, and whether the last one ends torn.
fn on_disk() -> Result<(Vec<Vec<u8>>, bool)> {
    let mut segments: Vec<PathBuf> = fs::read_dir(LOG).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    segments.retain(|path| path.extension().is_some_and(|e| e == "jsonl"));
    segments.sort();
    let (mut lines, mut torn) = (Vec::new(), false);
    for path in segments {
        if torn {
            return Err(broken(format!("the segment before {} ends torn", path.display())));
        }
        let bytes = fs::read(&path).context(format!("read {}", path.display()))?;
        let (mut more, rest) = whole_lines(&bytes);
        lines.append(&mut more);
        torn = rest;
    }
    Ok((lines, torn))
}

fn whole_lines(bytes: &[u8]) -> (Vec<Vec<u8>>, bool) {
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |n| n + 1);
    let (whole, rest) = bytes.split_at(end);
    (whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect(), !rest.is_empty())
}

fn number(line: &[u8]) -> Result<u64> {
    let record: Value = serde_json::from_slice(line).context("read a record's number")?;
    record["seq"].as_u64().ok_or_else(|| broken("a record has no number".to_owned()))
}

fn hash_of(line: &[u8]) -> String {
    Sha256::digest(line).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn signed(key: &VerifyingKey, line: &[u8]) -> std::result::Result<(), &'static str> {
    let marker = b",\"sig\":\"";
    let at = line.windows(marker.len()).rposition(|part| part == marker).ok_or("is not signed")?;
    let (body, sig) = line.split_at(at);
    let sig = sig.get(marker.len()..).and_then(|rest| rest.strip_suffix(b"\"}")).ok_or("does not end with its signature")?;
    let sig = std::str::from_utf8(sig).ok().and_then(|text| Base64::decode_vec(text).ok()).ok_or("has a signature that is no base64")?;
    let sig = Signature::from_slice(&sig).map_err(|_| "has a signature of the wrong length")?;
    key.verify_strict(&[b"pve-verb-log\n".as_slice(), body].concat(), &sig).map_err(|_| "has a false signature")
}

fn public_key() -> Result<VerifyingKey> {
    let text = fs::read_to_string(KEY).context("read the host's signing key")?;
    let blob = text.split(' ').nth(1).and_then(|word| Base64::decode_vec(word.trim()).ok());
    let raw: Option<[u8; 32]> = blob.and_then(|blob| blob.last_chunk::<32>().copied());
    let raw = raw.ok_or_else(|| Error::new(format!("{KEY} is no ed25519 key"), "Run `pve-verb init`"))?;
    VerifyingKey::from_bytes(&raw).context("use the host's signing key")
}

/// What `head.json` claims.
fn head() -> Result<Option<(u64, String)>> {
    let Ok(text) = fs::read_to_string(format!("{LOG}/head.json")) else { return Ok(None) };
    let file: Value = serde_json::from_str(&text).context("read head.json")?;
    let body = file["body"].as_str().and_then(|body| Base64::decode_vec(body).ok()).unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).context("read the body of head.json")?;
    match (body["seq"].as_u64(), body["head"].as_str()) {
        (Some(seq), Some(head)) => Ok(Some((seq, head.to_owned()))),
        _ => Err(broken("head.json claims nothing".to_owned())),
    }
}
