//! The record of one request: opened before parsing, filled as the request becomes known, closed exactly once. [`Closed`] is what a
//! receipt is made of, and closing a record is the only way to one.

use proto::{KeyName, Outcome, Request, RequestId, Timestamp, Vmid, escape_cut};
use serde_json::{Map, Value, json};
use std::time::Duration;

use super::line::{Kind, Position, hash};
use super::{Ended, Log};
use crate::door::Whole;
use crate::{deadline, host};

/// How much of a rejected request is kept.
const RAW: usize = 256;

/// A request's record, still open. Dropping it leaves no record: only a panic beside the work of a read does. `entry` answers 70 then and
/// records that, and a worker's front tells that it did not end.
#[derive(Debug)]
#[must_use = "a request without a record is a silent one"]
pub struct Record {
    started: Timestamp,
    facts: Map<String, Value>,
}

/// What a closing record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// Nothing was changed, nothing refused.
    Read,
    /// Nothing was sent to the VM.
    Refused,
    /// The end of something that had an intent.
    Outcome,
}

/// A request whose record is closed. Made by [`Record::close`] only, spent by `receipt::make`.
#[derive(Debug)]
#[must_use = "the caller is owed a receipt"]
pub struct Closed {
    pub(crate) outcome: Outcome,
    pub(crate) started: Timestamp,
    pub(crate) finished: Timestamp,
    pub(crate) position: Option<Position>,
    pub(crate) unreviewed: Option<u64>,
    pub(crate) degraded: Vec<String>,
}

impl Record {
    /// Opens the record of a request that has just arrived and of which nothing is known yet.
    pub fn open(node: &str) -> Self {
        let started = host::now();
        let mut record = Self { started, facts: Map::new() };
        record.fact("started", json!(started));
        record.fact("started_monotonic_ns", json!(host::monotonic_ns()));
        record.fact("node", json!(node));
        record
    }

    /// When the request arrived.
    pub const fn started(&self) -> Timestamp {
        self.started
    }

    /// Adds a fact, or replaces the one of this name.
    pub fn fact(&mut self, name: &'static str, value: Value) {
        self.facts.insert(name.to_owned(), value);
    }

    /// Who asks. `connection` is `SSH_CONNECTION`: recorded, never obeyed.
    pub fn caller(&mut self, key_name: &KeyName, key_fingerprint: Option<&str>, connection: Option<&[u8]>) {
        self.fact("key_name", json!(key_name));
        self.fact("key_fingerprint", json!(key_fingerprint));
        self.fact("ssh_connection", json!(connection.map(|c| escape_cut(c, 100))));
    }

    /// The request was not in the grammar: what of it is kept.
    pub fn rejected(&mut self, raw: &[u8], whole: &Whole, position: usize, why: &str) {
        let kept = raw.get(..RAW).unwrap_or(raw);
        self.fact(
            "rejected",
            json!({"raw": proto::escape_ascii(kept), "bytes": whole.bytes, "sha256": whole.sha256, "position": position, "why": why}),
        );
    }

    /// What is asked.
    pub fn request(&mut self, request: &Request, id: &RequestId, vmid: Vmid) {
        let options = request.options();
        self.fact("request_id", json!(id));
        self.fact("verb", json!(request.verb()));
        self.fact("vmid", json!(vmid));
        self.fact("origin", json!(options.origin));
        self.fact("actor", json!(options.actor));
        self.fact("reason", json!(options.reason));
        self.fact("dry_run", json!(options.dry_run));
        // A grant is a bearer's secret until it is spent: its hash names it well enough.
        self.fact("grant_sha256", json!(options.grant.as_ref().map(|g| hash(g.as_str().as_bytes()))));
        self.fact("witness", json!(options.witness));
    }

    /// The request goes to a worker, which opens a record of its own: this one is dropped unwritten.
    pub fn hand_over(self) {}

    /// Writes the last record of the request. What could not be written anywhere is said in the receipt, never a reason to hide an outcome.
    pub fn close(self, log: &mut Log, how: Closing, outcome: Outcome, facts: Map<String, Value>) -> Closed {
        let Self { started, facts: mut all } = self;
        all.insert("outcome".to_owned(), json!(outcome));
        all.insert("exit_code".to_owned(), json!(outcome.exit_code()));
        all.extend(facts);
        let (kind, budget): (Kind, Duration) = match how {
            Closing::Read => (Kind::Read, deadline::RECORD_HASTY),
            Closing::Refused => (Kind::Refused, deadline::RECORD),
            Closing::Outcome => (Kind::Outcome, deadline::RECORD),
        };
        let (position, mut degraded) = match log.end(kind, &all, budget) {
            Ok(Ended::Recorded(position)) => {
                let degraded: Vec<String> = position.degraded.iter().cloned().collect();
                (Some(position), degraded)
            }
            Ok(Ended::Counted(sentence)) => (None, vec![sentence]),
            Err(why) => (None, vec![format!("no audit record could be written: {why}")]),
        };
        degraded.extend(log.clock().map(str::to_owned));
        Closed { outcome, started, finished: host::now(), position, unreviewed: log.unreviewed(), degraded }
    }
}
