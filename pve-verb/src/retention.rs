//! Which bundles go (PROTOCOL.md, section 9), and their going: after an answer, never while a mutation is in progress.
//!
//! What goes is decided by the order of the log and by reviews, never by a clock or a name. The record comes first, then the drop: a
//! bundle that is gone without a record was taken by somebody else.

use proto::{BundleName, Verb, Vmid};
use serde_json::json;

use crate::config::Evidence;
use crate::run::Run;
use crate::writer::{ArtifactPath, Op, Reply, Shelved, Uptime};
use crate::{deadline, host, lock};

/// What only tells of the VM has a quota of its own: bundles of `forensics`, and of calls that ended without an intent.
pub const FORENSICS: Quota = Quota { keep: 20, keep_bytes: 1 << 30 };
/// How long a mutation's bundle stays at least: 30 days of the host being up.
const YOUNG_MS: u64 = 30 * 24 * 3_600_000;
/// How many go after one answer; the next answer goes on.
const AT_ONCE: usize = 8;

/// How much of a kind is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Bundles.
    pub keep: usize,
    /// Their bytes together.
    pub keep_bytes: u64,
}

impl From<&Evidence> for Quota {
    fn from(configured: &Evidence) -> Self {
        Self { keep: usize::try_from(configured.keep).unwrap_or(usize::MAX), keep_bytes: configured.keep_bytes.bytes() }
    }
}

/// Whether it was made for something that may have changed the VM.
fn mutations(bundle: &Shelved) -> bool {
    bundle.name.verb() != Some(Verb::Forensics) && !bundle.idle
}

/// Which of them go, oldest first. `shelf` is in the order of the log; `reviewed` is the number of the newest review.
pub fn due(shelf: &[Shelved], quota: Quota, reviewed: Option<u64>) -> Vec<&Shelved> {
    let (acts, looks): (Vec<_>, Vec<_>) = shelf.iter().partition(|b| mutations(b));
    let settled = |b: &Shelved| reviewed.is_some_and(|at| b.seq < at) && b.aged_ms >= YOUNG_MS;
    let mut gone = over(&looks, FORENSICS, |_| true);
    gone.extend(over(&acts, quota, settled));
    gone
}

/// The oldest of one kind that may go, until the rest is within its quota. The newest of each kind never goes.
fn over<'a>(kind: &[&'a Shelved], quota: Quota, may_go: impl Fn(&Shelved) -> bool) -> Vec<&'a Shelved> {
    let (mut count, mut bytes) = (kind.len(), kind.iter().map(|b| b.bytes).fold(0, u64::saturating_add));
    let mut gone = Vec::new();
    for bundle in kind.iter().take(kind.len().saturating_sub(1)) {
        if count <= quota.keep && bytes <= quota.keep_bytes {
            break;
        }
        if may_go(bundle) {
            count -= 1;
            bytes = bytes.saturating_sub(bundle.bytes);
            gone.push(*bundle);
        }
    }
    gone
}

/// Enters what is new on the shelf, `own` as the bundle of a request that was `idle` or had an intent, and drops what is due. All of it may
/// fail; the next call tries again.
pub fn tidy(run: &mut Run, seq: u64, own: Option<BundleName>, idle: bool) {
    let vmid = run.vmid();
    let now = Uptime { boot_id: run.host.boot_id.clone(), boot_ms: host::boot_ms() };
    let Ok(Reply::Shelf { bundles }) = run.disk.call(&Op::Shelve { vmid, seq, own, idle, now }, &[], deadline::CARRY) else { return };
    let quota = Quota::from(&run.host.config.evidence);
    // Looking through the log for a review is worth it only where one could free anything.
    let reviewed = if due(&bundles, quota, Some(u64::MAX)).iter().all(|b| !mutations(b)) {
        None
    } else {
        match run.disk.call(&Op::LogReviewed {}, &[], deadline::CARRY) {
            Ok(Reply::Reviewed { seq }) => seq,
            _ => None,
        }
    };
    for bundle in due(&bundles, quota, reviewed).into_iter().take(AT_ONCE) {
        if lock::holder().is_some() || run.disk.is_late() || !drop_one(run, vmid, bundle) {
            return;
        }
    }
}

fn drop_one(run: &mut Run, vmid: Vmid, bundle: &Shelved) -> bool {
    let manifest = ArtifactPath::try_from("manifest.json".to_owned()).ok().and_then(|path| {
        match run.disk.call(&Op::BundleRead { vmid, name: bundle.name.clone(), path }, &[], deadline::WRITE) {
            Ok(Reply::Bytes { bytes }) => Some(crate::bundle::hash(&bytes)),
            _ => None,
        }
    });
    let facts = json!({
        "what": "bundle", "bundle": bundle.name, "vmid": vmid, "bundle_seq": bundle.seq, "bytes": bundle.bytes, "manifest_sha256": manifest,
    });
    // Not before the record is on disk: after a power cut the drop would stand and the record would not.
    run.record_pruned(facts) && run.disk.call(&Op::BundleDrop { vmid, name: bundle.name.clone() }, &[], deadline::CARRY).is_ok()
}

#[cfg(test)]
#[path = "retention/tests.rs"]
mod tests;
