//! The writer child: all I/O on /var happens here, because the root disk may hang with the VM's and a hung disk must cost a deadline,
//! not a recovery.
//!
//! ```text
//! worker ──{op}+payload──▶ stdin  writer  stdout ──{reply}+payload──▶ worker
//! ```
//!
//! The operations are a closed list with constant destinations: the parent names a VM, a bundle or a request, never a path. The child
//! has no deadline of its own. Its parent kills it and never waits; whatever it may still do after that (a write that was stuck in the
//! kernel completes) must be harmless: files are replaced by renaming, each writer under a name of its own; log lines are written at the
//! place they were meant for, and while one writer may still be at that, no other is let near (a flock in `/run`).

use proto::{BundleName, RequestId, Sha256Hex, Vmid};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

mod bundle;
mod durable;
mod log;
mod names;
mod shelf;
mod state;

pub use log::{Oldest, Tail};
pub(crate) use log::{TORN_SHOWN, takes_in};
pub use names::{ArtifactPath, Nonce};
pub(crate) use shelf::{INDEX, index};
pub use shelf::{Shelved, Uptime};

/// The longest header.
const MOST_HEADER: u32 = 1 << 20;
/// The longest payload: a bundle's largest artifact.
pub(crate) const MOST_PAYLOAD: u32 = 64 << 20;

/// What the writer can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Op {
    /// Where does the log end? Answer: [`Reply::Tail`].
    LogTail {},
    /// Appends the payload's lines. Answer: [`Reply::Done`] or [`Reply::Mismatch`].
    LogAppend {
        /// The segment: the seq of its first record.
        segment: u64,
        /// Where the lines belong. Refused where whole lines already end elsewhere, so that none is written twice.
        at: u64,
        /// How many bytes of a torn line stand there and are replaced.
        torn: u64,
        /// What `head.json` says afterwards.
        head: String,
    },
    /// Has the log this record? Answer: [`Reply::Contains`].
    LogContains {
        /// Its number.
        seq: u64,
        /// Its hash.
        hash: Sha256Hex,
    },
    /// Which segment goes next, if the log is larger than this? Answer: [`Reply::Oldest`].
    LogOldest {
        /// How much is kept.
        keep_bytes: u64,
    },
    /// Drops a segment, never the newest. Answer: [`Reply::Done`].
    LogDrop {
        /// Which.
        segment: u64,
    },
    /// Copies a sealed bundle from tmpfs to disk. Answer: [`Reply::Done`], also where it is there already.
    CarryBundle {
        /// Whose.
        vmid: Vmid,
        /// Which.
        name: BundleName,
    },
    /// One file of a bundle that is built on disk, because tmpfs did not take it: the payload. Answer: [`Reply::Done`].
    BundlePut {
        /// Whose.
        vmid: Vmid,
        /// Which bundle.
        name: BundleName,
        /// Which file.
        path: ArtifactPath,
    },
    /// That bundle is whole and gets its name. Answer: [`Reply::Done`].
    BundleSeal {
        /// Whose.
        vmid: Vmid,
        /// Which.
        name: BundleName,
    },
    /// That bundle won't be whole. Answer: [`Reply::Done`], also where nothing of it is there.
    BundleAbandon {
        /// Whose.
        vmid: Vmid,
        /// Which.
        name: BundleName,
    },
    /// Enters the bundles on disk that the shelf's index does not have yet, and lets all of them grow older. Answer: [`Reply::Shelf`].
    Shelve {
        /// Whose.
        vmid: Vmid,
        /// The number of the log's newest record: what a new bundle gets.
        seq: u64,
        /// The bundle of the request whose record that is.
        own: Option<BundleName>,
        /// Whether that request ended without an intent.
        idle: bool,
        /// The clock by which they grow older.
        now: Uptime,
    },
    /// Drops a sealed bundle from disk, never the newest. Answer: [`Reply::Done`].
    BundleDrop {
        /// Whose.
        vmid: Vmid,
        /// Which.
        name: BundleName,
    },
    /// Up to which record were mutations reviewed? Answer: [`Reply::Reviewed`].
    LogReviewed {},
    /// The names of the sealed bundles on disk. Answer: [`Reply::Bundles`].
    BundleList {
        /// Whose.
        vmid: Vmid,
    },
    /// One file of a bundle. Answer: [`Reply::Bytes`] or [`Reply::Absent`].
    BundleRead {
        /// Whose.
        vmid: Vmid,
        /// Which bundle.
        name: BundleName,
        /// Which file.
        path: ArtifactPath,
    },
    /// `operation.json` becomes the payload. Fails where another request's stands, whom nobody may have told of yet: a write that comes
    /// late must not take its trace away. Answer: [`Reply::Done`].
    OperationSet {
        /// Whose it is.
        id: RequestId,
    },
    /// `operation.json` goes, unless it is another request's. Answer: [`Reply::Done`], also where there was none.
    OperationClear {
        /// Whose it is.
        id: RequestId,
    },
    /// What `operation.json` says. Answer: [`Reply::Bytes`] or [`Reply::Absent`].
    OperationGet {},
    /// A finished receipt becomes the payload; one that is null takes nothing else's place. Answer: [`Reply::Done`].
    RequestStore {
        /// Whose.
        id: RequestId,
    },
    /// A finished receipt. Answer: [`Reply::Bytes`] or [`Reply::Absent`].
    RequestLoad {
        /// Whose.
        id: RequestId,
    },
    /// Drops all but the newest receipts. Answer: [`Reply::Done`].
    RequestsPrune {
        /// How many stay.
        keep: u32,
    },
    /// Spends a grant; the payload names the request. Answer: [`Reply::Done`], or [`Reply::Spent`] where it was spent before.
    GrantSpend {
        /// Its nonce.
        nonce: Nonce,
    },
}

/// What the writer answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reply {
    /// Done, and durable.
    Done {},
    /// There is no such thing.
    Absent {},
    /// The file's bytes.
    Bytes {
        /// They travel behind the header.
        #[serde(skip)]
        bytes: Vec<u8>,
    },
    /// The log does not end where the parent thought. Nothing was written.
    Mismatch {
        /// The segment's length on disk.
        length: u64,
    },
    /// Where the log ends.
    Tail {
        /// None where there is no record at all.
        tail: Option<Box<Tail>>,
        /// What `head.json` holds, as text.
        head: Option<String>,
    },
    /// Whether the log has that record.
    Contains {
        /// None where it can't be told: that part of the log was pruned.
        found: Option<bool>,
    },
    /// The segment that goes next.
    Oldest {
        /// None where none has to go.
        oldest: Option<Oldest>,
    },
    /// The grant was spent before.
    Spent {
        /// By which request; none where whoever spent it was killed before it could say so.
        by: Option<RequestId>,
    },
    /// Sealed bundles, oldest first.
    Bundles {
        /// Their names.
        names: Vec<BundleName>,
    },
    /// The bundles on disk, in the order of the log.
    Shelf {
        /// All that the index has.
        bundles: Vec<Shelved>,
    },
    /// The newest review.
    Reviewed {
        /// Its number; none where there is none within reach.
        seq: Option<u64>,
    },
    /// It could not be done.
    Failed {
        /// Why.
        why: String,
    },
}

/// Where the writer works: `/`, and in tests a folder that looks like it.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    path: PathBuf,
    abandoned: Abandoned,
}

/// Set where nobody waits for a writer any more that is a thread, and so can't be killed.
pub(crate) type Abandoned = Arc<AtomicBool>;

impl Root {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path, abandoned: Abandoned::default() }
    }

    /// One of `host::path`'s constants, below this root.
    fn path(&self, constant: &str) -> PathBuf {
        self.path.join(constant.trim_start_matches('/'))
    }

    /// Asked between two steps of which the second must not come late.
    ///
    /// # Errors
    /// Where nobody waits any more.
    fn awaited(&self) -> io::Result<()> {
        if self.abandoned.load(Ordering::SeqCst) { Err(io::Error::other("nobody waits for this any more")) } else { Ok(()) }
    }

    fn perform(&self, op: Op, payload: &[u8]) -> Reply {
        let done = match op {
            Op::LogTail {} => self.log_tail(),
            Op::LogAppend { segment, at, torn, head } => self.log_append(segment, at, torn, &head, payload),
            Op::LogContains { seq, hash } => self.log_contains(seq, &hash),
            Op::LogOldest { keep_bytes } => self.log_oldest(keep_bytes),
            Op::LogDrop { segment } => self.log_drop(segment),
            Op::CarryBundle { vmid, name } => self.carry_bundle(vmid, &name),
            Op::BundlePut { vmid, name, path } => self.bundle_put(vmid, &name, &path, payload),
            Op::BundleSeal { vmid, name } => self.bundle_seal(vmid, &name),
            Op::BundleAbandon { vmid, name } => self.bundle_abandon(vmid, &name),
            Op::Shelve { vmid, seq, own, idle, now } => self.shelve(vmid, seq, own.as_ref().map(|name| (name, idle)), &now),
            Op::BundleDrop { vmid, name } => self.bundle_drop(vmid, &name),
            Op::LogReviewed {} => self.log_reviewed(),
            Op::BundleList { vmid } => self.bundle_list(vmid),
            Op::BundleRead { vmid, name, path } => self.bundle_read(vmid, &name, &path),
            Op::OperationSet { id } => self.operation_set(&id, payload),
            Op::OperationClear { id } => self.operation_clear(&id),
            Op::OperationGet {} => self.operation_get(),
            Op::RequestStore { id } => self.request_store(&id, payload),
            Op::RequestLoad { id } => self.request_load(&id),
            Op::RequestsPrune { keep } => self.requests_prune(keep),
            Op::GrantSpend { nonce } => self.grant_spend(&nonce, payload),
        };
        done.unwrap_or_else(|e| Reply::Failed { why: e.to_string() })
    }
}

/// The child's main loop: one operation after the other until stdin ends. Called for the hidden subcommand `writer`.
///
/// # Errors
/// Where the pipes break or carry something else than this protocol; then there is nobody to tell.
pub fn run() -> io::Result<()> {
    // A signal to the worker's process group or terminal must not end a write.
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    serve(&Root::at(PathBuf::from("/")), &mut io::stdin().lock(), &mut io::stdout().lock())
}

/// The same for a thread of the parent: on this host, between these two ends, until it is abandoned.
pub(crate) fn serve_here(abandoned: Abandoned, from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    serve(&Root { path: PathBuf::from("/"), abandoned }, from, to)
}

pub(crate) fn serve(root: &Root, from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    while let Some((header, payload)) = read_frame(from)? {
        let op: Op = serde_json::from_slice(&header)?;
        let mut reply = root.perform(op, &payload);
        let bytes = match &mut reply {
            Reply::Bytes { bytes } => std::mem::take(bytes),
            _ => Vec::new(),
        };
        to.write_all(&frame(&serde_json::to_vec(&reply)?, &bytes)?)?;
        to.flush()?;
    }
    Ok(())
}

/// Both lengths, then both parts.
pub(crate) fn frame(header: &[u8], payload: &[u8]) -> io::Result<Vec<u8>> {
    let length = |bytes: &[u8], most: u32| {
        u32::try_from(bytes.len())
            .ok()
            .filter(|n| *n <= most)
            .ok_or_else(|| io::Error::other("too long for one message to or from the writer"))
    };
    let (a, b) = (length(header, MOST_HEADER)?, length(payload, MOST_PAYLOAD)?);
    Ok([&a.to_be_bytes(), &b.to_be_bytes(), header, payload].concat())
}

/// The lengths in a frame's first eight bytes.
pub(crate) fn lengths(prefix: [u8; 8]) -> io::Result<(usize, usize)> {
    let [a, b, c, d, e, f, g, h] = prefix;
    let (header, payload) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
    if header > MOST_HEADER || payload > MOST_PAYLOAD {
        return Err(io::Error::other("a message to or from the writer claims to be too long"));
    }
    Ok((header as usize, payload as usize))
}

fn read_frame(from: &mut impl Read) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let mut prefix = [0; 8];
    if let Err(e) = from.read_exact(&mut prefix) {
        // The parent is gone, or closed the pipe: both are the normal end.
        return if e.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(e) };
    }
    let (header, payload) = lengths(prefix)?;
    let (mut a, mut b) = (vec![0; header], vec![0; payload]);
    from.read_exact(&mut a)?;
    from.read_exact(&mut b)?;
    Ok(Some((a, b)))
}

#[cfg(test)]
mod tests;
