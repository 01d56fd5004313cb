//! What is recorded between the lock and the verdict: takeover, interrupted, intent, operation, steps. Each is durable on its rung
//! when the call returns, before the next thing is done.

use proto::{Body, Step, StepName, StepOutcome, Verb};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

use super::Run;
use crate::audit::Kind;
use crate::operation::{self, LastIntent, Operation};
use crate::policy::Authorised;
use crate::promise::{Event, Stage};
use crate::rate::{Idle, Rates};
use crate::run::Stop;
use crate::text::say::{self, BadGrant};
use crate::{deadline, host, lock};

impl Run {
    /// A holder past its deadline lost the lock to us.
    pub fn note_takeover(&mut self, holder: &lock::Holder, killed: bool) {
        let facts = json!({ "holder": holder, "killed": killed });
        let why = if killed { "which was past its deadline" } else { "whose worker is gone" };
        self.degrade(format!("the lock was taken over from request {}, {why}", holder.request_id));
        let _ = self.append(Kind::Takeover, facts);
    }

    /// The `intent` record.
    ///
    /// # Errors
    /// Where no rung takes it.
    pub fn record_intent(&mut self, facts: Value) -> Result<(), Stop> {
        let Some(next) = self.stage.after(Event::Intended) else { return Err(self.astray(Event::Intended)) };
        self.append(Kind::Intent, facts).map_err(|e| Stop::evidence(say::intent_nowhere(&e)))?;
        self.stage = next;
        Ok(())
    }

    /// Spends the request's grant, if it came with one.
    ///
    /// # Errors
    /// Refused-policy: spent before, expired meanwhile, or not durable on disk.
    pub fn spend_grant(&mut self, authorised: &Authorised) -> Result<(), Stop> {
        let Some(granted) = authorised.granted() else { return Ok(()) };
        let newest = self.log.newest(deadline::WITNESS).map_err(|why| BadGrant::NotRecorded(format!("the log's end is not known: {why}")));
        let spend = |newest| crate::grant::spend(granted, &self.facts.request_id, (host::now(), newest), &self.disk, deadline::WRITE);
        newest.and_then(spend).map_err(|why| Stop::policy(say::grant(authorised.verb(), &why)))
    }

    /// Counts a mutation against its key's allowance. `start` and the console are exempt.
    pub fn count_mutation(&mut self, authorised: &Authorised) {
        if authorised.caller().is_console() || authorised.verb() == Verb::Start {
            return;
        }
        if let Err(e) = Rates::update(|rates| rates.count_mutation(&authorised.caller().key_name, host::boot_ms())) {
            self.degrade(format!("the mutation could not be counted: {e}"));
        }
    }

    /// Counts a call that took a bundle and ended without an intent. A dry run was counted before it captured.
    pub fn count_idle(&mut self, end: Stage) {
        let Some(verb) = self.facts.verb.filter(|verb| verb.mutates() && !self.facts.dry_run) else { return };
        if self.made.is_some() && !end.is_begun() {
            // It changed nothing, and its answer is made: a count that can't be kept is no reason to say more.
            let _ = Rates::update(|rates| rates.count_idle(Idle::Call(verb), &self.facts.key_name, host::boot_ms()));
        }
    }

    /// operation.json, which tells a later call of a mutation that was killed.
    ///
    /// # Errors
    /// Where no rung takes it.
    pub fn set_operation(&mut self, operation: &Operation) -> Result<(), Stop> {
        operation::set(self, operation).map_err(|e| Stop::evidence(say::intent_nowhere(&e)))?;
        self.reach(Event::Declared)
    }

    /// What operation.json will say, and the intent before it.
    pub fn operation(&self, authorised: &Authorised) -> Operation {
        let pid = std::process::id();
        Operation {
            request_id: self.facts.request_id.clone(),
            verb: authorised.verb(),
            vmid: authorised.vmid(),
            key_name: authorised.caller().key_name.clone(),
            boot_id: self.host.boot_id.clone(),
            pid,
            started: crate::procfs::start_time(pid),
            at: host::now(),
            bundle: self.facts.bundle.clone(),
            step: None,
            qemu_before: self.facts.qemu_before,
            deadline_boot_ms: host::boot_ms().saturating_add(authorised.deadline_ms()),
        }
    }

    /// The log's newest intent, as [`crate::audit::Log::last_intent`].
    pub fn last_intent(&mut self, within: Duration) -> Option<LastIntent> {
        self.log.last_intent(within)
    }

    /// Whether this host knows where the log on disk ends, and so its newest intent.
    pub fn knows_the_log(&self) -> bool {
        self.log.is_known()
    }

    /// A mutation was killed half-way, and nobody told of it yet.
    ///
    /// # Errors
    /// Where no rung takes the record.
    pub fn note_interrupted(&mut self, operation: &Operation) -> Result<(), String> {
        self.degrade(format!(
            "{} of request {} was killed half-way at {}; its evidence is {}",
            operation.verb,
            operation.request_id,
            operation.step.map_or_else(|| "an unknown step".to_owned(), |step| format!("its step {step}")),
            operation.bundle.as_ref().map_or("not known", proto::BundleName::as_str)
        ));
        self.append(Kind::Interrupted, json!({ "operation": operation }))
    }

    /// A bundle is about to be dropped; true where the record of it is on disk.
    pub(crate) fn record_pruned(&mut self, facts: Value) -> bool {
        let Value::Object(facts) = facts else { return false };
        self.log.append(Kind::Pruned, facts).is_ok_and(|position| position.degraded.is_none())
    }

    /// A step begins: said, and recorded before it does anything.
    pub fn step_started(&mut self, name: StepName) -> Instant {
        let began = Instant::now();
        self.step(name, StepOutcome::Started, 0, None);
        operation::at_step(&self.facts.request_id, name);
        began
    }

    /// A step ended.
    pub fn step_ended(&mut self, name: StepName, began: Instant, outcome: StepOutcome, detail: Option<String>) {
        self.step(name, outcome, u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX), detail);
    }

    fn step(&mut self, name: StepName, outcome: StepOutcome, ms: u64, detail: Option<String>) {
        let step = Step { name, outcome, ms, detail };
        if let Err(why) = self.append(Kind::Step, json!(step)) {
            self.degrade(format!("a step could not be recorded: {why}"));
        }
        self.answer.say(Body::Step(step));
    }

    /// A record in the middle of the request, durable when this returns.
    fn append(&mut self, kind: Kind, facts: Value) -> Result<(), String> {
        let mut map = Map::new();
        map.insert("request_id".to_owned(), json!(self.facts.request_id));
        map.insert("verb".to_owned(), json!(self.facts.verb));
        map.insert("key_name".to_owned(), json!(self.facts.key_name));
        if let Value::Object(facts) = facts {
            map.extend(facts);
        }
        let position = self.log.append(kind, map)?;
        if let Some(sentence) = position.degraded {
            self.degrade(sentence);
        }
        Ok(())
    }
}
