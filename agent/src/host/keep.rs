//! What is kept of the host's answers: each receipt in a file of its own, the newest audit head for the witness, and the artifacts of
//! an answer. Below `[state] dir`:
//!
//! ```text
//! receipts/00000000000000000042-REQUEST.json    the receipt's line, as it came; named by its place in the host's log
//! evidence/REQUEST/…                            the artifacts, at their paths within the bundle
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use proto::{Message, RequestId, Sha256Hex, Witness};
use sha2::{Digest, Sha256};

use crate::answer::MAX_LINE;
use crate::receipt::Proved;

/// How many receipts stay: the newest.
const MOST_RECEIPTS: usize = 10_000;
/// No answer's evidence takes more.
const MOST_EVIDENCE: u64 = 64 << 20;

/// The state folder's part for the host.
#[derive(Debug)]
pub struct Keep {
    receipts: PathBuf,
    evidence: PathBuf,
    keep_bytes: u64,
    witness: Option<Witness>,
}

pub(crate) fn folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

impl Keep {
    /// Opens it, or makes it.
    ///
    /// # Errors
    /// The folder can't be made or read.
    pub fn open(state: &Path, keep_bytes: u64) -> Result<Self, Message> {
        let (receipts, evidence) = (state.join("receipts"), state.join("evidence"));
        let made = folder(&receipts).and_then(|()| folder(&evidence));
        made.map_err(|error| {
            Message::new(
                format!("The state folder {} can't be used: {error}.", state.display()),
                "Correct [state] dir, or its owner and space.",
            )
        })?;
        let mut keep = Self { receipts, evidence, keep_bytes, witness: None };
        let newest = keep.all().pop().and_then(|path| crate::receipts::read(&path).ok());
        keep.witness = newest.and_then(|kept| kept.witness());
        keep.prune();
        Ok(keep)
    }

    /// The kept receipts, by their place in the host's log.
    pub fn all(&self) -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> = fs::read_dir(&self.receipts).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        all.retain(|path| path.extension().is_some_and(|ending| ending == "json"));
        all.sort_unstable();
        all
    }

    /// The newest audit head that is held.
    pub fn witness(&self) -> Option<Witness> {
        self.witness.clone()
    }

    /// Where an answer's artifacts go.
    pub fn folder(&self, id: &RequestId) -> PathBuf {
        self.evidence.join(id.as_str())
    }

    /// Keeps a receipt that was proved. What fails here costs the later proof of a roll-back, not the answer.
    pub fn store(&mut self, proved: &Proved, line: &[u8]) {
        let body = proved.body();
        let seq = body.audit.as_ref().map_or(0, |at| at.seq);
        let path = self.receipts.join(format!("{seq:020}-{}.json", body.request_id));
        if write(&path, line).is_err() {
            return;
        }
        if let Some(at) = &body.audit
            && self.witness.as_ref().is_none_or(|held| held.seq < at.seq)
        {
            self.witness = Some(Witness { seq: at.seq, head: at.head.clone() });
        }
        let all = self.all();
        for old in all.iter().take(all.len().saturating_sub(MOST_RECEIPTS)) {
            let _next_time = fs::remove_file(old);
        }
        self.prune();
    }

    /// Drops the evidence of the oldest answers beyond the limit, never the newest answer's.
    fn prune(&self) {
        let entries = fs::read_dir(&self.evidence).into_iter().flatten().flatten();
        let mut all: Vec<_> =
            entries.filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, size(&entry.path()), entry.path()))).collect();
        all.sort_unstable();
        let mut total: u64 = all.iter().map(|(_, bytes, _)| bytes).sum();
        let newest = all.len().saturating_sub(1);
        for (_, bytes, path) in all.into_iter().take(newest) {
            if total <= self.keep_bytes {
                break;
            }
            total = total.saturating_sub(bytes);
            let _next_time = fs::remove_dir_all(path);
        }
    }
}

fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => size(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Writes a file whole or not at all, and syncs it.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let hidden = path.with_extension(format!("new.{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&hidden)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&hidden, path)?;
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Keeps the last whole line of a stream, for the receipt as it came.
pub(crate) fn last_line(kept: &mut Vec<u8>, bytes: &[u8]) {
    // A finished line is dropped when the next one begins.
    for part in bytes.split_inclusive(|byte| *byte == b'\n') {
        if kept.last() == Some(&b'\n') || kept.len() > MAX_LINE {
            kept.clear();
        }
        kept.extend_from_slice(part);
    }
}

/// The artifacts of one answer, as they come.
#[derive(Debug)]
pub struct Evidence {
    folder: PathBuf,
    bytes: u64,
    manifest: Option<Vec<u8>>,
    failed: bool,
}

/// A path within a bundle: relative, plain names only.
fn plain(path: &str) -> Option<PathBuf> {
    let plain = !path.is_empty()
        && path.len() <= 200
        && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte))
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    plain.then(|| PathBuf::from(path))
}

impl Evidence {
    /// Into this folder, which is made with the first file.
    pub const fn new(folder: PathBuf) -> Self {
        Self { folder, bytes: 0, manifest: None, failed: false }
    }

    /// Keeps a file whose bytes have this hash; gives them. What is none, or is not the one that was announced, is none.
    pub fn put(&mut self, path: &str, sha256: &Sha256Hex, bytes: Option<Vec<u8>>) -> Option<Vec<u8>> {
        let kept = (|| {
            let (name, bytes) = (plain(path)?, bytes?);
            if Sha256Hex::from_bytes(Sha256::digest(&bytes).into()) != *sha256 {
                return None;
            }
            self.bytes += bytes.len() as u64;
            if self.bytes > MOST_EVIDENCE {
                return None;
            }
            let full = self.folder.join(&name);
            folder(full.parent()?).and_then(|()| write(&full, &bytes)).ok()?;
            if path == "manifest.json" {
                self.manifest = Some(bytes.clone());
            }
            Some(bytes)
        })();
        self.failed |= kept.is_none();
        kept
    }

    /// Whether all of a bundle is here: this manifest, and each file that it names, as it names it.
    pub fn whole(&self, manifest: &Sha256Hex) -> bool {
        let Some(bytes) = self.manifest.as_ref().filter(|_| !self.failed) else { return false };
        if Sha256Hex::from_bytes(Sha256::digest(bytes).into()) != *manifest {
            return false;
        }
        let Ok(stated) = serde_json::from_slice::<proto::Manifest>(bytes) else { return false };
        stated.subject.iter().all(|subject| {
            let held = plain(&subject.name).and_then(|name| fs::read(self.folder.join(name)).ok());
            held.is_some_and(|bytes| subject.digest.get("sha256") == Some(&Sha256Hex::from_bytes(Sha256::digest(&bytes).into())))
        })
    }
}
