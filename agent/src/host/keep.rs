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
use std::sync::Arc;

use proto::{Message, RequestId, Sha256Hex, Witness};
use sha2::{Digest, Sha256};

use crate::bound::Bound;
use crate::receipt::Proved;

/// How many receipts stay: the newest.
const MOST_RECEIPTS: usize = 10_000;
/// No answer's evidence takes more.
const MOST_EVIDENCE: u64 = 64 << 20;
/// What an answer takes at most: its evidence here, and again in its incident.
pub(crate) const ANSWER: u64 = 2 * MOST_EVIDENCE;

/// The state folder's part for the host.
#[derive(Debug)]
pub struct Keep {
    receipts: PathBuf,
    evidence: PathBuf,
    bound: Arc<Bound>,
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
        let mut keep = Self { receipts, evidence, bound: Arc::new(Bound::new(state, keep_bytes)), witness: None };
        let newest = keep.all().pop().and_then(|path| crate::receipts::read(&path).ok());
        keep.witness = newest.and_then(|kept| kept.witness());
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
    pub fn evidence(&self, id: &RequestId) -> Evidence {
        Evidence::new(self.evidence.join(id.as_str()), self.bound())
    }

    /// The bound of the state folder.
    pub fn bound(&self) -> Arc<Bound> {
        Arc::clone(&self.bound)
    }

    /// Keeps a receipt that was proved. What fails here costs the later proof of a roll-back, not the answer.
    pub fn store(&mut self, proved: &Proved) {
        let body = proved.body();
        let seq = body.audit.as_ref().map_or(0, |at| at.seq);
        let path = self.receipts.join(format!("{seq:020}-{}.json", body.request_id));
        let line = format!("{}\n", proved.line());
        if let Err(error) = self.bound.writes(|| write(&path, line.as_bytes())) {
            tracing::warn!(event = "degraded", "{} can't be written: {error}", path.display());
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
    }
}

/// Writes a file whole or not at all, and syncs it.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let hidden = path.with_extension(format!("new.{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&hidden)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&hidden, path));
    written.inspect_err(|_| {
        let _half_a_file_is_of_no_use = fs::remove_file(&hidden);
    })?;
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// The artifacts of one answer, as they come.
#[derive(Debug)]
pub struct Evidence {
    folder: PathBuf,
    bound: Arc<Bound>,
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
    pub const fn new(folder: PathBuf, bound: Arc<Bound>) -> Self {
        Self { folder, bound, bytes: 0, manifest: None, failed: false }
    }

    /// Keeps a file whose bytes have this hash; gives them. What is none, or is not the one that was announced, is none.
    pub fn put(&mut self, path: &str, sha256: &Sha256Hex, bytes: Option<Vec<u8>>) -> Option<Vec<u8>> {
        let kept = (|| {
            let (name, bytes) = (plain(path)?, bytes?);
            if Sha256Hex::from_bytes(Sha256::digest(&bytes).into()) != *sha256 {
                return None;
            }
            self.bytes += bytes.len() as u64;
            if self.bytes > MOST_EVIDENCE || !self.bound.admits(bytes.len() as u64) {
                return None;
            }
            let full = self.folder.join(&name);
            let parent = full.parent()?;
            self.bound.writes(|| folder(parent).and_then(|()| write(&full, &bytes))).ok()?;
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
