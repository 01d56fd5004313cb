//! The end of a request: the record is closed, the receipt made of it, and said. Every way out leads through here.

use proto::{Code, Message, Outcome, ReceiptBody, Rejected, Verb};
use serde_json::{Map, Value, json};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Run, Stop};
use crate::audit::Closing;
use crate::bundle::Preserved;
use crate::door::Arrival;
use crate::look::Seen;
use crate::operation::{self, Finished};
use crate::promise::{Ended, Event, Stage};
use crate::text::say;
use crate::verify::Verified;
use crate::{deadline, receipt, retention};

impl Run {
    /// The end of a request outside the grammar.
    pub fn reject(mut self, arrival: &Arrival, rejected: Rejected) -> u8 {
        if let Some(record) = &mut self.record {
            record.rejected(&arrival.line, &arrival.whole, rejected.position, &rejected.to_string());
        }
        if arrival.line.is_empty() {
            self.answer.aside(crate::text::usage());
        }
        self.refuse(Stop::request(say::rejected(&rejected)))
    }

    /// The end of a request before anything was started for it: and nothing is started for its record either.
    pub fn refuse(mut self, stop: Stop) -> u8 {
        self.disk.without_child();
        self.log.leave_on_tmpfs();
        self.finish(Err(stop))
    }

    /// This front joins a worker that another one started.
    pub fn attached(&mut self) {
        self.fact("attached", json!(true));
        self.joined = true;
    }

    /// The front has no more to do: the request's record is its worker's, and one that joined has one of its own, a read.
    pub fn leave(mut self, outcome: Outcome) -> u8 {
        if let Some(record) = self.record.take() {
            if self.joined {
                let _its_receipt_is_the_worker_s = record.close(&mut self.log, Closing::Read, outcome, Map::new());
            } else {
                record.hand_over();
            }
        }
        outcome.exit_code()
    }

    /// Closes the record, signs the receipt, says it, and gives the exit status.
    pub fn finish(mut self, end: Result<Verified, Stop>) -> u8 {
        let (how, outcome, held) = match end {
            Ok(verified) => {
                self.facts.message = verified.message;
                self.facts.already = verified.already;
                self.facts.state_after = verified.state;
                self.facts.qemu_after = verified.qemu;
                let changes = self.facts.verb.is_some_and(Verb::mutates);
                (if changes { Closing::Outcome } else { Closing::Read }, verified.outcome, verified.held.map(Box::new))
            }
            Err(stop) => {
                self.facts.message = stop.message;
                if let Some(state) = stop.state {
                    self.facts.state_before = state;
                    self.facts.state_after = state;
                }
                (Closing::Refused, stop.outcome, stop.held)
            }
        };
        self.seal(how, outcome, held)
    }

    /// A request that was killed half-way, told by a later call.
    pub(crate) fn tell_interrupted(mut self, now: Seen, bundle: Option<proto::BundleName>, message: Message) -> u8 {
        self.facts.interrupted = true;
        self.facts.assessment = Some(Code::Interrupted);
        self.facts.bundle = bundle;
        self.facts.state_after = now.state;
        self.facts.qemu_after = now.qemu;
        self.facts.message = message;
        // Its binding was spent by the one that was killed; storing this answer would hide a late outcome.
        self.binding = None;
        self.seal(Closing::Read, Outcome::Unknown, None)
    }

    /// Says an earlier answer again: recorded as a read, signed anew, everything else as it was.
    pub(crate) fn replay(mut self, earlier: ReceiptBody) -> u8 {
        self.fact("replayed", json!(true));
        let Some(record) = self.record.take() else { return Outcome::Internal.exit_code() };
        let closed = record.close(&mut self.log, Closing::Read, earlier.outcome, Map::new());
        match receipt::replay(closed, earlier, self.signer.as_ref().map_err(String::as_str)) {
            Ok((receipt, body)) => {
                self.answer.last(&body.request_id, receipt);
                body.exit_code
            }
            Err(why) => self.broken(&why),
        }
    }

    fn seal(mut self, how: Closing, outcome: Outcome, held: Option<Box<Preserved>>) -> u8 {
        let (end, outcome) = self.close(how, outcome);
        // A refusal behind its own intent is the end of that: an id with an intent never runs again.
        let how = if end == Stage::Closed(Ended::Begun) { Closing::Outcome } else { how };
        let facts = json!({
            "already": self.facts.already,
            "interrupted": self.facts.interrupted,
            "state_before": self.facts.state_before,
            "state_after": self.facts.state_after,
            "qemu_before": self.facts.qemu_before,
            "qemu_after": self.facts.qemu_after,
            "assessment": self.facts.assessment,
            "bundle": self.facts.bundle,
            "preserved_where": self.facts.preserved_where,
            "manifest_sha256": self.facts.manifest_sha256,
            "degraded": self.facts.degraded,
            "message": self.facts.message,
        });
        let Value::Object(facts) = facts else { return Outcome::Internal.exit_code() };
        let Some(record) = self.record.take() else { return Outcome::Internal.exit_code() };
        if self.facts.verb != Some(Verb::Status) {
            self.disk.allow(Some(deadline::DISK_END));
        }
        let closed = record.close(&mut self.log, how, outcome, facts);
        self.count_idle(end);
        let made = receipt::make(closed, self.facts.clone(), self.signer.as_ref().map_err(String::as_str));
        let (receipt, body) = match made {
            Ok(made) => made,
            Err(why) => return self.broken(&why),
        };
        if let (Some(stored), Some(binding)) = (end.after(Event::Stored), self.binding.clone()) {
            let finished = Finished { binding, receipt: Some(receipt.clone()), bundle: body.bundle.clone(), killed: None };
            operation::finish(&self, &finished, stored.after(Event::Cleared).is_some());
        }
        // Not before the end is stored (the next mutation would record it as killed), and not after the receipt: whoever reads that
        // may ask for the next one at once.
        drop(held);
        self.answer.last(&body.request_id, receipt);
        // Whatever comes of this: there is no second answer.
        let _ = catch_unwind(AssertUnwindSafe(|| self.tidy(body.audit.as_ref().map(|at| at.seq), end)));
        body.exit_code
    }

    /// The caller has its answer; what earlier calls left behind can take its time now. Also after a refusal: it may have a spool too.
    fn tidy(&mut self, seq: Option<u64>, end: Stage) {
        self.disk.allow(None);
        crate::spool::prune();
        crate::litter::sweep();
        if self.made.is_some() {
            // So can what they had to leave on tmpfs, the log's oldest segments, and old bundles. Also after a refusal that has evidence:
            // asked again and again it would fill the disk.
            operation::tidy(self);
            self.log.prune(deadline::CARRY);
            if let Some(seq) = seq {
                let own = self.made.take();
                retention::tidy(self, seq, own, !end.is_begun());
            }
        }
    }

    /// How it ends, by the way that it took. A verdict on something that nobody looked at is none: that is a bug, and says so.
    fn close(&mut self, how: Closing, outcome: Outcome) -> (Stage, Outcome) {
        let event = match how {
            Closing::Outcome => Event::Finished,
            Closing::Refused => Event::Refused,
            Closing::Read => return (self.stage, outcome),
        };
        if let Some(closed) = self.stage.after(event) {
            return (closed, outcome);
        }
        self.facts.message = self.astray(event).message;
        (Stage::Closed(if self.stage.is_begun() { Ended::Begun } else { Ended::Refused }), Outcome::Internal)
    }

    /// A receipt that can't be written as JSON: a bug. The caller gets no receipt, which every client takes as unknown.
    fn broken(&mut self, why: &str) -> u8 {
        self.answer.aside(&say::internal(Some(self.stage.is_begun()), why).to_string());
        self.answer.flush();
        Outcome::Internal.exit_code()
    }
}
