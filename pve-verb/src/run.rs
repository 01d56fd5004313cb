//! One request on its way: who answers, what is known so far, and its end. Stages get it as `&mut Run` beside the token they
//! consume; the tokens carry the permission to go on, this carries the paper.
//!
//! Opening the audit record is the first thing that happens, and closing it the only way to a receipt.

use base64ct::{Base64, Encoding};
use proto::{
    Accepted, Binary, Body, Code, Message, Origin, Outcome, ReceiptBody, Rejected, RequestId, Step, StepName, StepOutcome, Timestamp, Verb,
    VmState,
};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

use crate::answer::Answer;
use crate::audit::{Closing, Kind, Log, Record};
use crate::bundle::Preserved;
use crate::config::Config;
use crate::config::Limits;
use crate::disk::Disk;
use crate::door::{Arrival, Parsed};
use crate::operation::{self, Finished, Operation};
use crate::policy::Authorised;
use crate::preflight::Plan;
use crate::probe::Answer as Answered;
use crate::probe::observe::Observation;
use crate::rate::Rates;
use crate::receipt::{self, Facts};
use crate::sign::Signer;
use crate::text::say;
use crate::verify::Verified;
use crate::{binary, deadline, host, lock, spool::Binding};

/// With `--inline`: all artifacts together; what does not fit is in the bundle all the same.
const MOST_INLINE: usize = 8 << 20;

/// Who answers: fixed for the whole request.
#[derive(Debug)]
pub struct Here {
    /// This node's name.
    pub node: String,
    /// This boot.
    pub boot_id: String,
    /// This binary.
    pub binary: Binary,
    /// This host's configuration.
    pub config: Config,
}

/// A request that ends before it is done: a refusal, or a bug.
#[derive(Debug)]
pub struct Stop {
    outcome: Outcome,
    message: Message,
    state: Option<VmState>,
}

impl Stop {
    const fn new(outcome: Outcome, message: Message) -> Self {
        Self { outcome, message, state: None }
    }

    /// Not in the grammar, or an id that belongs to another request.
    pub const fn request(message: Message) -> Self {
        Self::new(Outcome::RefusedRequest, message)
    }

    /// The key may not.
    pub const fn policy(message: Message) -> Self {
        Self::new(Outcome::RefusedPolicy, message)
    }

    /// Another mutation of ours is in progress.
    pub const fn busy(message: Message) -> Self {
        Self::new(Outcome::RefusedBusy, message)
    }

    /// PVE holds a lock.
    pub const fn busy_pve(message: Message, state: VmState) -> Self {
        Self { outcome: Outcome::RefusedBusy, message, state: Some(state) }
    }

    /// Evidence or intent could not be made durable.
    pub const fn evidence(message: Message) -> Self {
        Self::new(Outcome::RefusedEvidence, message)
    }

    /// The host is not fit.
    pub const fn host(message: Message) -> Self {
        Self::new(Outcome::RefusedHost, message)
    }

    /// Proved impossible or harmful.
    pub const fn precondition(message: Message, state: VmState) -> Self {
        Self { outcome: Outcome::RefusedPrecondition, message, state: Some(state) }
    }

    /// `--attach` to an id that nobody knows.
    pub const fn unknown_id(message: Message) -> Self {
        Self::new(Outcome::RefusedPrecondition, message)
    }

    /// A bug, or a host on which nothing can be started.
    pub const fn internal(message: Message) -> Self {
        Self::new(Outcome::Internal, message)
    }
}

/// The request on its way.
pub struct Run {
    /// Who answers.
    pub host: Here,
    /// To whom.
    pub answer: Answer,
    /// The writer child.
    pub disk: Disk,
    signer: Result<Signer, String>,
    log: Log,
    record: Option<Record>,
    began: Instant,
    binding: Option<Binding>,
    facts: Facts,
    plan: String,
    intent: bool,
    inline_left: usize,
}

impl Run {
    /// Opens the record of what came in.
    pub fn begin(arrival: &Arrival, answer: Answer) -> Self {
        let began = Instant::now();
        let (config, config_trouble) = Config::load();
        let node = config.host.node.as_str().to_owned();
        let mut record = Record::open(&node);
        let signer = Signer::load();
        let disk = Disk::spawn();
        let log = Log::open(disk.clone(), signer.as_ref().ok().cloned(), config.audit.keep_bytes.bytes());
        let here = Here { node, boot_id: host::boot_id(), binary: binary::this(), config };
        let caller = &arrival.caller;
        record.fact("request_id", json!(arrival.fresh_id));
        record.fact("vmid", json!(caller.vmid));
        record.caller(&caller.key_name, caller.key_fp.as_deref(), caller.ssh_connection.as_deref());
        let facts = Facts {
            request_id: arrival.fresh_id.clone(),
            verb: None,
            vmid: caller.vmid,
            node: here.node.clone(),
            dry_run: false,
            key_name: caller.key_name.clone(),
            origin: Origin::Unstated,
            actor: None,
            reason: None,
            already: false,
            interrupted: false,
            state_before: VmState::Unknown,
            state_after: VmState::Unknown,
            qemu_before: None,
            qemu_after: None,
            assessment: None,
            bundle: None,
            preserved_where: None,
            manifest_sha256: None,
            degraded: config_trouble.into_iter().collect(),
            message: Message::new("", ""),
            witness: None,
            binary_sha256: here.binary.sha256.clone(),
        };
        let mut run = Self {
            host: here,
            answer,
            disk,
            signer,
            log,
            record: Some(record),
            began,
            binding: None,
            facts,
            plan: String::new(),
            intent: false,
            inline_left: 0,
        };
        if let Err(why) = &run.signer {
            run.degrade(format!("receipts and evidence are not signed: {why}"));
        }
        run
    }

    /// The request as it was understood.
    pub fn understood(&mut self, parsed: &Parsed) {
        let options = parsed.request().options();
        self.facts.request_id = parsed.id().clone();
        self.facts.verb = Some(parsed.request().verb());
        self.facts.dry_run = options.dry_run;
        self.facts.origin = parsed.origin();
        self.facts.actor.clone_from(&options.actor);
        self.facts.reason.clone_from(&options.reason);
        self.answer.understood(parsed.id(), options.json);
        self.inline_left = if options.inline { MOST_INLINE } else { 0 };
        self.binding = Some(parsed.binding());
        if let Some(record) = &mut self.record {
            record.request(parsed.request(), parsed.id(), self.facts.vmid);
            record.fact("origin", json!(parsed.origin()));
        }
        if let Some(given) = &options.witness {
            let ok = self.log.contains(given, deadline::WITNESS);
            self.facts.witness = Some(proto::WitnessAnswer { given: given.clone(), ok });
            self.fact("witness_ok", json!(ok));
        }
    }

    /// The key may: says so.
    pub fn accepted(&mut self, authorised: &Authorised) {
        let caller = authorised.caller();
        let said = Accepted {
            verb: authorised.verb(),
            vmid: authorised.vmid(),
            node: self.host.node.clone(),
            key_name: caller.key_name.clone(),
            key_fingerprint: caller.key_fp.clone(),
            origin: self.facts.origin,
            actor: self.facts.actor.clone(),
            reason: self.facts.reason.clone(),
            deadline_ms: authorised.verb().deadline_ms(),
            binary: self.host.binary.clone(),
            attached: false,
        };
        self.answer.say(Body::Accepted(said));
    }

    /// The request's id.
    pub const fn id(&self) -> &RequestId {
        &self.facts.request_id
    }

    /// The VM of its key.
    pub const fn vmid(&self) -> proto::Vmid {
        self.facts.vmid
    }

    /// When it came.
    pub fn started(&self) -> Timestamp {
        self.record.as_ref().map_or_else(host::now, Record::started)
    }

    /// What is left of the published bound.
    pub fn time_left(&self) -> Duration {
        let bound = self.facts.verb.map_or(Duration::ZERO, |v| Duration::from_millis(v.deadline_ms()));
        bound.saturating_sub(self.began.elapsed()).saturating_sub(deadline::OBSERVE_AFTER + deadline::LOOK + deadline::QM_TERM)
    }

    /// Milliseconds since the request came.
    pub fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The configured limits.
    pub fn limits(&self) -> Limits {
        self.host.config.limits.clone()
    }

    /// Something is weaker than it should be: said in the answer, the record and the receipt.
    pub fn degrade(&mut self, sentence: String) {
        if !self.facts.degraded.contains(&sentence) {
            self.facts.degraded.push(sentence);
        }
    }

    /// All that is weaker so far.
    pub fn degraded(&self) -> &[String] {
        &self.facts.degraded
    }

    /// Signs, where there is a key.
    ///
    /// # Errors
    /// Why there is no signature.
    pub fn sign(&self, namespace: &'static str, bytes: &[u8]) -> Result<Vec<u8>, String> {
        self.signer.as_ref().map_err(Clone::clone)?.sshsig(namespace, bytes)
    }

    /// The first look.
    pub fn saw_before(&mut self, seen: &Observation) {
        self.facts.qemu_before = crate::facts::qemu(seen);
        self.facts.qemu_after = self.facts.qemu_before;
        self.facts.state_before = crate::facts::state_without_qmp(seen);
        self.facts.state_after = self.facts.state_before;
    }

    /// A probe was tried.
    pub fn probed(&mut self, answer: &Answered) {
        let mut said = crate::capture::event(answer);
        if let Some(artifact) = answer.artifact.as_ref().filter(|a| a.bytes.as_bytes().len() <= self.inline_left) {
            self.inline_left -= artifact.bytes.as_bytes().len();
            said.data = Some(Base64::encode_string(artifact.bytes.as_bytes()));
        }
        self.answer.say(Body::Probe(said));
    }

    /// The judgement.
    pub fn judged(&mut self, state: VmState, assessment: &proto::Assessment) {
        self.facts.state_before = state;
        self.facts.state_after = state;
        self.facts.assessment = Some(assessment.code);
    }

    /// The assessment's code, once there is one.
    pub const fn judgement(&self) -> Option<Code> {
        self.facts.assessment
    }

    /// The evidence is safe.
    pub fn preserved(&mut self, said: &proto::Preserved) {
        self.facts.bundle = Some(said.bundle.clone());
        self.facts.preserved_where = Some(said.place);
        self.facts.manifest_sha256 = Some(said.manifest_sha256.clone());
    }

    /// What will be done, in words.
    pub fn planned(&mut self, plan: &Plan, verb: Verb) {
        self.plan = plan.sentence(verb);
        self.fact("plan", json!(self.plan));
    }

    /// What was planned, in words.
    pub fn plan(&self) -> &str {
        &self.plan
    }

    /// A holder past its deadline lost the lock to us.
    pub fn note_takeover(&mut self, holder: &lock::Holder, killed: bool) {
        let facts = json!({ "holder": holder, "killed": killed });
        self.degrade(format!("the lock was taken over from request {}, which was past its deadline", holder.request_id));
        let _ = self.append(Kind::Takeover, facts);
    }

    /// The `intent` record.
    ///
    /// # Errors
    /// Where no rung takes it.
    pub fn record_intent(&mut self, facts: Value) -> Result<(), String> {
        self.append(Kind::Intent, facts)?;
        self.intent = true;
        Ok(())
    }

    /// Counts a mutation against its key's allowance. `start` and the console are exempt.
    pub fn count_mutation(&mut self, authorised: &Authorised) {
        if authorised.caller().is_console() || authorised.verb() == Verb::Start {
            return;
        }
        let mut rates = Rates::load();
        rates.count_mutation(&authorised.caller().key_name, host::boot_ms());
        if let Err(e) = rates.store() {
            self.degrade(format!("the mutation could not be counted: {e}"));
        }
    }

    /// operation.json, which tells a later call of a mutation that was killed.
    ///
    /// # Errors
    /// Where no rung takes it.
    pub fn set_operation(&mut self, authorised: &Authorised) -> Result<(), String> {
        let pid = std::process::id();
        let operation = Operation {
            request_id: self.facts.request_id.clone(),
            verb: authorised.verb(),
            vmid: authorised.vmid(),
            key_name: authorised.caller().key_name.clone(),
            boot_id: self.host.boot_id.clone(),
            pid,
            started: crate::procfs::start_time(pid),
            at: host::now(),
            bundle: self.facts.bundle.clone(),
            deadline_boot_ms: host::boot_ms().saturating_add(authorised.verb().deadline_ms()),
        };
        operation::set(self, &operation)
    }

    /// A mutation was killed half-way, and nobody told of it yet.
    ///
    /// # Errors
    /// Where no rung takes the record.
    pub fn note_interrupted(&mut self, operation: &Operation) -> Result<(), String> {
        self.degrade(format!(
            "{} of request {} was killed half-way at an unknown step; its evidence is {}",
            operation.verb,
            operation.request_id,
            operation.bundle.as_ref().map_or("not known", proto::BundleName::as_str)
        ));
        self.append(Kind::Interrupted, json!({ "operation": operation }))
    }

    /// A step begins: said, and recorded before it does anything.
    pub fn step_started(&mut self, name: StepName) -> Instant {
        let began = Instant::now();
        self.step(name, StepOutcome::Started, 0, None);
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

    /// The end of a request outside the grammar.
    pub fn reject(mut self, arrival: &Arrival, rejected: Rejected) -> u8 {
        if let Some(record) = &mut self.record {
            record.rejected(&arrival.line, rejected.position, &rejected.to_string());
        }
        if arrival.line.is_empty() {
            self.answer.aside(crate::text::usage());
        }
        self.refuse(Stop::request(say::rejected(&rejected)))
    }

    /// The end of a request before anything was started for it: and nothing is started for its record either.
    pub fn refuse(self, stop: Stop) -> u8 {
        self.disk.without_child();
        self.finish(Err(stop))
    }

    /// The front leaves the request, and the record of it, to its worker.
    pub fn hand_over(mut self) {
        if let Some(record) = self.record.take() {
            record.hand_over();
        }
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
                (if changes { Closing::Outcome } else { Closing::Read }, verified.outcome, verified.held)
            }
            Err(stop) => {
                self.facts.message = stop.message;
                if let Some(state) = stop.state {
                    self.facts.state_before = state;
                    self.facts.state_after = state;
                }
                (Closing::Refused, stop.outcome, None)
            }
        };
        self.seal(how, outcome, held)
    }

    /// A request that was killed half-way, told by a later call.
    pub(crate) fn tell_interrupted(mut self, now: crate::look::Seen, bundle: Option<proto::BundleName>, message: Message) -> u8 {
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

    fn seal(mut self, how: Closing, outcome: Outcome, held: Option<Preserved>) -> u8 {
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
        let closed = record.close(&mut self.log, how, outcome, facts);
        let made = receipt::make(closed, self.facts.clone(), self.signer.as_ref().map_err(String::as_str));
        let (receipt, body) = match made {
            Ok(made) => made,
            Err(why) => return self.broken(&why),
        };
        if let (Closing::Outcome, Some(binding)) = (how, self.binding.clone()) {
            let finished = Finished { binding, receipt: Some(receipt.clone()), bundle: body.bundle.clone() };
            operation::finish(&self, &finished, self.intent);
        }
        // Not before the end is stored (the next mutation would record it as killed), and not after the receipt: whoever reads that
        // may ask for the next one at once.
        drop(held);
        self.answer.last(&body.request_id, receipt);
        if how != Closing::Refused && self.facts.bundle.is_some() {
            // The caller has its answer; what earlier calls had to leave on tmpfs can take its time now.
            operation::tidy(&self);
        }
        body.exit_code
    }

    /// A receipt that can't be written as JSON: a bug. The caller gets no receipt, which every client takes as unknown.
    fn broken(&mut self, why: &str) -> u8 {
        self.answer.aside(&say::internal(Some(self.intent), why).to_string());
        Outcome::Internal.exit_code()
    }

    fn fact(&mut self, name: &'static str, value: Value) {
        if let Some(record) = &mut self.record {
            record.fact(name, value);
        }
    }
}
