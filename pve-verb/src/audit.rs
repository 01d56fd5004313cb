//! The audit log (PROTOCOL.md, section 7): one chain of signed lines, whatever the disk does.
//!
//! ```text
//! append ─audit.lock─▶ audit-overflow.jsonl (tmpfs: the chain's order is decided here, in microseconds)
//!            └─carry.lock─▶ writer ─▶ /var/log/pve-verb/audit-….jsonl + head.json ─▶ the overflow is cut
//! ```
//!
//! Every record goes to tmpfs first, and from there to disk within its budget: a second for what changes the VM, less for a read. So the
//! lock that orders the chain is never held while a disk is waited for, a `status` never waits for somebody else's disk, and what the
//! disk did not take stays in the one chain until the next call that finds the disk working carries it. A line is carried at the place
//! it was meant for, and a line that is there already is skipped.
//!
//! Not here: `log verify` and `log show`, which are `auditor`'s, and grants.

use proto::{Sha256Hex, Timestamp, Witness};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::disk::Disk;
use crate::host::{self, path};
use crate::sign::Signer;
use crate::writer::{Op, Reply};

mod carry;
mod chain;
mod journal;
pub(crate) mod line;
mod record;

use carry::Carried;
use chain::Chain;
pub use line::{Kind, Position, signed_head};
pub(crate) use line::{claimed_head, signed_part};
pub use record::{Closed, Closing, Record};

/// What a record that belongs to a mutation, or a refusal, may wait for locks and disk together.
pub const PATIENT: Duration = Duration::from_millis(1000);
/// What a read may.
pub const HASTY: Duration = Duration::from_millis(300);

/// The audit log of this host.
#[derive(Debug)]
pub struct Log {
    chain: Chain,
    disk: Disk,
    signer: Option<Signer>,
    boot_id: String,
    keep_bytes: u64,
    /// What this process says of itself before its first record, where the log was told something else last.
    attests: Option<Map<String, Value>>,
    /// Where the journal listens; tests have none.
    journal: Option<&'static str>,
}

impl Log {
    /// The log, behind this disk. Reads and writes nothing yet. Without a signer its lines say `"sig":null`.
    pub fn open(disk: Disk, signer: Option<Signer>, keep_bytes: u64) -> Self {
        Self::open_at(Path::new(path::RUN), disk, signer, keep_bytes, Some("/run/systemd/journal/socket"))
    }

    pub(crate) fn open_at(run: &Path, disk: Disk, signer: Option<Signer>, keep_bytes: u64, journal: Option<&'static str>) -> Self {
        Self { chain: Chain::at(PathBuf::from(run)), disk, signer, boot_id: host::boot_id(), keep_bytes, attests: None, journal }
    }

    /// The same, with a `start` record before its first record if the log was told something else of this host last.
    pub fn attesting(self, facts: Map<String, Value>) -> Self {
        Self { attests: Some(facts), ..self }
    }

    /// Appends a record that is not a request's last one: intent, step, takeover, review and the like.
    ///
    /// # Errors
    /// Where it could be written neither to tmpfs nor to disk: the words for `message.what`'s reason.
    pub fn append(&mut self, kind: Kind, facts: Map<String, Value>) -> Result<Position, String> {
        self.append_within(kind, facts, PATIENT)
    }

    pub(crate) fn append_within(&mut self, kind: Kind, facts: Map<String, Value>, budget: Duration) -> Result<Position, String> {
        let until = Instant::now() + budget;
        if !self.chain.knows_the_disk() {
            // Late or failed: the chain goes on from what is on tmpfs, and says so.
            let _ = self.learn(until);
        }
        if let Some(facts) = self.attests.take() {
            self.attest(facts, until);
        }
        // The first carrying may find the disk's log damaged; then the record is made anew behind the repair, once.
        match self.push_and_carry(kind, &facts, until)? {
            Some(position) => Ok(position),
            None => self.push_and_carry(kind, &facts, until)?.ok_or_else(|| "the disk's log ended elsewhere twice".to_owned()),
        }
    }

    /// None where the record did not stay in the chain.
    fn push_and_carry(&mut self, kind: Kind, facts: &Map<String, Value>, until: Instant) -> Result<Option<Position>, String> {
        let mut position = match self.push(kind, facts.clone(), until) {
            Ok(pushed) => pushed,
            // Not even tmpfs takes a line: straight to the disk.
            Err(no_tmpfs) => {
                let straight = self.straight_to_disk(kind, facts.clone(), until);
                return straight.map(Some).map_err(|no_disk| format!("{no_tmpfs}; {no_disk}"));
            }
        };
        match self.carry(&position.head, until) {
            Ok(Carried::Undone) => return Ok(None),
            Ok(Carried::Done { opened }) => {
                if opened && kind != Kind::Pruned {
                    self.prune(until);
                }
            }
            Err(why) => position.degraded = Some(format!("the audit record {} is on tmpfs only: {why}", position.seq)),
        }
        Ok(Some(position))
    }

    /// Whether the log has the record that the caller says it saw; none where that can't be told within this time.
    pub fn contains(&self, witness: &Witness, within: Duration) -> Option<bool> {
        let until = Instant::now() + within;
        let known = self.chain.lock(until).ok().map(|held| held.load());
        if let Some(known) = &known {
            let end = known.end();
            if end.as_ref().is_some_and(|(seq, _)| witness.seq > *seq) && known.disk.is_some() {
                return Some(false);
            }
            if end.is_some_and(|(seq, head)| seq == witness.seq && head == witness.head) {
                return Some(true);
            }
            if let Some(pending) = known.pending.iter().find(|l| l.seq == witness.seq) {
                return Some(pending.hash == witness.head);
            }
        }
        let op = Op::LogContains { seq: witness.seq, hash: witness.head.clone() };
        match self.disk.call(&op, &[], until.saturating_duration_since(Instant::now())) {
            Ok(Reply::Contains { found }) => found,
            _ => None,
        }
    }

    /// Mutating uses since the last review; none where the log could not be asked.
    pub fn unreviewed(&self) -> Option<u64> {
        self.chain.lock(Instant::now() + HASTY).ok()?.load().unreviewed()
    }

    /// The time of the newest record that this host knows of, by whatever clock it had then; none where the disk does not say in time.
    pub fn newest(&mut self, within: Duration) -> Option<Timestamp> {
        let until = Instant::now() + within;
        if !self.chain.knows_the_disk() {
            let _ = self.learn(until);
        }
        self.chain.lock(until).ok()?.load().newest()
    }

    /// What `head.json` would say now: the chain's end, signed.
    ///
    /// # Errors
    /// Where the end is not known in time.
    pub fn head(&mut self) -> Result<String, String> {
        let until = Instant::now() + PATIENT;
        if !self.chain.knows_the_disk() {
            self.learn(until)?;
        }
        let (seq, head) = self.chain.lock(until)?.load().end().unwrap_or((0, Sha256Hex::zero()));
        signed_head(seq, &head, self.signer.as_ref())
    }

    /// Drops the oldest segment if the log is too large: first the record that carries its last hash, then the file.
    fn prune(&mut self, until: Instant) {
        let left = until.saturating_duration_since(Instant::now());
        let Ok(Reply::Oldest { oldest: Some(oldest) }) = self.disk.call(&Op::LogOldest { keep_bytes: self.keep_bytes }, &[], left) else {
            return;
        };
        let facts = json!({
            "segment": oldest.segment, "last_seq": oldest.last_seq, "last_hash": oldest.last_hash, "bytes": oldest.bytes,
        });
        let Value::Object(facts) = facts else { return };
        let recorded = self.append_within(Kind::Pruned, facts, until.saturating_duration_since(Instant::now()));
        if recorded.is_ok_and(|p| p.degraded.is_none()) {
            let _ = self.disk.call(&Op::LogDrop { segment: oldest.segment }, &[], PATIENT);
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod told;
