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

use crate::deadline;
use crate::disk::Disk;
use crate::host::{self, path};
use crate::operation::LastIntent;
use crate::sign::Signer;
use crate::writer::{Op, Reply, takes_in};

mod carry;
mod chain;
mod flood;
mod journal;
pub(crate) mod line;
mod record;

use carry::Carried;
use chain::Chain;
pub use line::{Kind, Position, signed_head};
pub(crate) use line::{claimed_head, signed_part};
pub use record::{Closed, Closing, Record};

/// A clock that is this far behind the newest record has jumped; less is how clocks are kept right.
const CLOCK_BEHIND_MS: u64 = 5_000;
/// How many segments are dropped at once; the next answer goes on.
const DROP_AT_ONCE: usize = 8;

/// What became of a request's last record.
#[derive(Debug)]
pub(super) enum Ended {
    /// It stands in the chain.
    Recorded(Position),
    /// It is counted, for a summary: the sentence that says so.
    Counted(String),
}

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
    /// Whether what is on tmpfs is carried to disk by us.
    carries: bool,
    /// A sentence where the clock is behind the newest record.
    clock: Option<String>,
}

impl Log {
    /// The log, behind this disk. Reads and writes nothing yet. Without a signer its lines say `"sig":null`.
    pub fn open(disk: Disk, signer: Option<Signer>, keep_bytes: u64) -> Self {
        Self::open_at(Path::new(path::RUN), disk, signer, keep_bytes, Some("/run/systemd/journal/socket"))
    }

    pub(crate) fn open_at(run: &Path, disk: Disk, signer: Option<Signer>, keep_bytes: u64, journal: Option<&'static str>) -> Self {
        let (chain, boot_id) = (Chain::at(PathBuf::from(run)), host::boot_id());
        Self { chain, disk, signer, boot_id, keep_bytes, attests: None, journal, carries: true, clock: None }
    }

    /// From here on records go to tmpfs and are left there; the next call that has a writer carries them. For refusals, which must
    /// start no process, and must not wait for a disk in this one: it could not end then.
    pub fn leave_on_tmpfs(&mut self) {
        self.carries = false;
    }

    /// A sentence where the host's clock was found behind the newest record.
    pub fn clock(&self) -> Option<&str> {
        self.clock.as_deref()
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
        self.append_within(kind, facts, deadline::RECORD)
    }

    pub(crate) fn append_within(&mut self, kind: Kind, facts: Map<String, Value>, budget: Duration) -> Result<Position, String> {
        self.disk.clone().waiting(budget, |until| {
            self.prepare(until);
            self.append_until(kind, &facts, until)
        })
    }

    /// Appends a request's last record, or counts it where there are too many.
    fn end(&mut self, kind: Kind, facts: &Map<String, Value>, budget: Duration) -> Result<Ended, String> {
        self.disk.clone().waiting(budget, |until| self.end_until(kind, facts, until))
    }

    fn end_until(&mut self, kind: Kind, facts: &Map<String, Value>, until: Instant) -> Result<Ended, String> {
        self.prepare(until);
        if self.carries && self.chain.lock(until).is_ok_and(|held| held.standing().tally.bytes >= flood::CROWDED) {
            // The disk may be back: then there is room for a record.
            let now = Instant::now();
            let _ = self.carry(None, now + until.saturating_duration_since(now) / 2);
        }
        if let Some(counted) = self.count(kind, facts, until) {
            return Ok(Ended::Counted(counted));
        }
        self.append_until(kind, facts, until).map(Ended::Recorded)
    }

    /// What comes before a record: where the disk's log ends, and who answers.
    fn prepare(&mut self, until: Instant) {
        if self.carries && !self.chain.knows_the_disk() {
            // Late or failed: the chain goes on from what is on tmpfs, and says so.
            let _ = self.learn(until);
        }
        if let Some(facts) = self.attests.take() {
            self.attest(facts, until);
        }
    }

    fn append_until(&mut self, kind: Kind, facts: &Map<String, Value>, until: Instant) -> Result<Position, String> {
        // The first carrying may find the disk's log damaged; then the record is made anew behind the repair, once.
        match self.push_and_carry(kind, facts, until)? {
            Some(position) => Ok(position),
            None => self.push_and_carry(kind, facts, until)?.ok_or_else(|| "the disk's log ended elsewhere twice".to_owned()),
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
        if !self.carries {
            let seq = position.seq;
            position.degraded =
                Some(format!("the audit record {seq} is on tmpfs only: a refusal starts no writer, and the next call carries it"));
            return Ok(Some(position));
        }
        match self.carry(Some(&position.head), until) {
            Ok(Carried::Undone) => return Ok(None),
            Ok(Carried::Done { opened }) => {
                if opened && kind != Kind::Pruned {
                    // Behind other records the disk is still needed, and the rest goes after the answer; behind a read's there is time left.
                    self.drop_oldest(if kind == Kind::Read { DROP_AT_ONCE } else { 1 }, until);
                }
            }
            Err(why) => position.degraded = Some(format!("the audit record {} is on tmpfs only: {why}", position.seq)),
        }
        Ok(Some(position))
    }

    /// Whether the log has the record that the caller says it saw; none where that can't be told within this time.
    pub fn contains(&self, witness: &Witness, within: Duration) -> Option<bool> {
        self.disk.waiting(within, |until| self.contains_until(witness, until))
    }

    fn contains_until(&self, witness: &Witness, until: Instant) -> Option<bool> {
        let snapshot = self.chain.lock(until).ok().map(|held| held.snapshot());
        let known = snapshot.map(chain::Snapshot::known);
        let mut beyond_the_disk = false;
        if let Some(known) = known {
            let is_it = |seq: u64, hash: &Sha256Hex| seq == witness.seq && *hash == witness.head;
            if known.end().is_some_and(|(seq, head)| is_it(seq, &head))
                || known.pending.iter().any(|l| is_it(l.seq, &l.hash) || takes_in(&l.text, witness.seq, &witness.head))
            {
                return Some(true);
            }
            beyond_the_disk = known.disk.is_some_and(|end| witness.seq > end.seq);
        }
        // Also where the number alone says no: a repair record may have taken it in.
        let op = Op::LogContains { seq: witness.seq, hash: witness.head.clone() };
        match self.disk.call(&op, &[], until.saturating_duration_since(Instant::now())) {
            Ok(Reply::Contains { found: Some(true) }) => Some(true),
            _ if beyond_the_disk => Some(false),
            Ok(Reply::Contains { found }) => found,
            _ => None,
        }
    }

    /// Mutating uses since the last review; none where the log could not be asked.
    pub fn unreviewed(&self) -> Option<u64> {
        self.disk.waiting(deadline::RECORD_HASTY, |until| self.chain.lock(until).ok()?.unreviewed())
    }

    /// The time of the newest record that this host knows of, by whatever clock it had then; none where there is no record.
    ///
    /// # Errors
    /// The disk does not say in time where its log ends.
    pub fn newest(&mut self, within: Duration) -> Result<Option<Timestamp>, String> {
        self.disk.waiting(within, |until| {
            self.learn(until)?;
            Ok(self.chain.lock(until)?.standing().newest())
        })
    }

    /// Whether this host knows where the disk's log ends: then it knows the newest intent too.
    pub fn is_known(&self) -> bool {
        self.chain.knows_the_disk()
    }

    /// The newest intent and what became of it; none where there is none, or where the disk does not say in time (see [`Log::is_known`]).
    /// Without any time no disk is asked.
    pub fn last_intent(&mut self, within: Duration) -> Option<LastIntent> {
        self.disk.waiting(within, |until| {
            if !within.is_zero() {
                let _ = self.learn(until);
            }
            self.chain.lock(until).ok()?.standing().intent()
        })
    }

    /// What `head.json` would say now: the chain's end, signed.
    ///
    /// # Errors
    /// Where the end is not known in time.
    pub fn head(&mut self) -> Result<String, String> {
        let (seq, head) = self.disk.waiting(deadline::RECORD, |until| {
            self.learn(until)?;
            Ok::<_, String>(self.chain.lock(until)?.standing().end().unwrap_or((0, Sha256Hex::zero())))
        })?;
        signed_head(seq, &head, self.signer.as_ref())
    }

    /// Drops the oldest segments while the log is too large, for after an answer: what an earlier call had no time for, and what an admin
    /// who lowered `audit.keep_bytes` wants gone.
    pub fn prune(&mut self, within: Duration) {
        self.disk.clone().waiting(within, |until| self.drop_oldest(DROP_AT_ONCE, until));
    }

    fn drop_oldest(&mut self, most: usize, until: Instant) {
        for _ in 0..most {
            if !self.dropped_one(until) {
                return;
            }
        }
    }

    /// First the record that carries the segment's last hash, then the file; false where none is to go, or this one did not.
    fn dropped_one(&mut self, until: Instant) -> bool {
        let left = || until.saturating_duration_since(Instant::now());
        let Ok(Reply::Oldest { oldest: Some(oldest) }) = self.disk.call(&Op::LogOldest { keep_bytes: self.keep_bytes }, &[], left()) else {
            return false;
        };
        let facts = json!({
            "segment": oldest.segment, "last_seq": oldest.last_seq, "last_hash": oldest.last_hash, "bytes": oldest.bytes,
        });
        let Value::Object(facts) = facts else { return false };
        let recorded = self.append_within(Kind::Pruned, facts, left());
        recorded.is_ok_and(|p| p.degraded.is_none())
            && self.disk.call(&Op::LogDrop { segment: oldest.segment }, &[], deadline::WRITE).is_ok()
    }
}

#[cfg(test)]
pub(crate) mod ample;
#[cfg(test)]
mod begun;
#[cfg(test)]
mod crowded;
#[cfg(test)]
mod pruned;
#[cfg(test)]
mod slow;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod told;
#[cfg(test)]
mod witnessed;
