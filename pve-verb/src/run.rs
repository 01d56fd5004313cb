//! One request on its way: who answers, what is known so far, and its end. Stages get it as `&mut Run` beside the token they
//! consume; the tokens carry the permission to go on, this carries the paper.
//!
//! Opening the audit record is the first thing that happens, and closing it the only way to a receipt.

use base64ct::{Base64, Encoding};
use proto::{Accepted, Binary, Body, Code, Message, Origin, Outcome, ReceiptBody, Rejected, RequestId, Step, StepName, StepOutcome, Timestamp, Verb, VmState};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

use crate::answer::Answer;
use crate::audit::{self, Kind, Log, Record};
use crate::config::Config;
use crate::disk::Disk;
use crate::door::{Arrival, Parsed};
use crate::operation::{self, Finished, Operation};
use crate::policy::Authorised;
use crate::probe::Answer as Answered;
use crate::preflight::Plan;
use crate::probe::observe::Observation;
use crate::rate::{Limits, Rates};
use crate::sign::Signer;
use crate::text::say;
use crate::verify::Verified;
use crate::{binary, deadline, host, lock, receipt, spool::Binding};

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
    body: ReceiptBody,
    plan: String,
    intent: bool,
    inline_left: usize,
}

impl Run {
    /// Opens the record of what came in.
    pub fn begin(arrival: &Arrival, id: RequestId, answer: Answer) -> Self {
        let (config, config_trouble) = Config::load();
        let signer = Signer::load();
        let node = config.node().map_or_else(host::hostname, str::to_owned);
        let here = Here { node, boot_id: host::boot_id(), binary: binary::this(), config };
        let started = host::now();
        let caller = &arrival.caller;
        let body = ReceiptBody {
            v: proto::VERSION,
            request_id: id,
            verb: None,
            vmid: caller.vmid,
            node: here.node.clone(),
            dry_run: false,
            key_name: caller.key_name.clone(),
            origin: Origin::Unstated,
            actor: None,
            reason: None,
            outcome: Outcome::Internal,
            exit_code: Outcome::Internal.exit_code(),
            already: false,
            replayed: false,
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
            started,
            finished: started,
            audit: None,
            witness: None,
            binary_sha256: here.binary.sha256.clone(),
            unreviewed: None,
            unsigned_reason: None,
        };
        let record = Record::open(&here.boot_id);
        let log = Log::open(here.config.audit_keep_bytes());
        let mut run =
            Self { host: here, answer, disk: Disk::spawn(), signer, log, record: Some(record), began: Instant::now(), binding: None, body, plan: String::new(), intent: false, inline_left: 0 };
        if let Err(why) = &run.signer {
            run.body.unsigned_reason = Some(why.clone());
            let sentence = format!("receipts and evidence are not signed: {why}");
            run.degrade(sentence);
        }
        run.fact("request_id", json!(run.body.request_id));
        run.fact("vmid", json!(run.body.vmid));
        run.fact("key_name", json!(run.body.key_name));
        run.fact("key_fingerprint", json!(caller.key_fp));
        run.fact("ssh_connection", json!(caller.ssh_connection));
        run
    }

    /// The request as it was understood.
    pub fn understood(&mut self, parsed: &Parsed) {
        let options = parsed.request().options();
        self.body.request_id = parsed.id().clone();
        self.body.verb = Some(parsed.request().verb());
        self.body.dry_run = options.dry_run;
        self.body.origin = parsed.origin();
        self.body.actor.clone_from(&options.actor);
        self.body.reason.clone_from(&options.reason);
        self.answer.understood(parsed.id(), options.json);
        self.inline_left = if options.inline { MOST_INLINE } else { 0 };
        self.binding = Some(Binding { key_name: self.body.key_name.clone(), verb: parsed.request().verb(), vmid: self.body.vmid, dry_run: options.dry_run });
        for (name, value) in [
            ("request_id", json!(parsed.id())),
            ("verb", json!(parsed.request().verb())),
            ("dry_run", json!(options.dry_run)),
            ("origin", json!(parsed.origin())),
            ("actor", json!(options.actor)),
            ("reason", json!(options.reason)),
            ("witness", json!(options.witness)),
        ] {
            self.fact(name, value);
        }
        if let Some(given) = &options.witness {
            let ok = self.log.contains(&mut self.disk, given);
            self.body.witness = Some(proto::WitnessAnswer { given: given.clone(), ok });
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
            origin: self.body.origin,
            actor: self.body.actor.clone(),
            reason: self.body.reason.clone(),
            deadline_ms: authorised.verb().deadline_ms(),
            binary: self.host.binary.clone(),
            attached: false,
        };
        self.answer.say(Body::Accepted(said));
    }

    /// The request's id.
    pub const fn id(&self) -> &RequestId {
        &self.body.request_id
    }

    /// When it came.
    pub const fn started(&self) -> Timestamp {
        self.body.started
    }

    /// What is left of the published bound.
    pub fn time_left(&self) -> Duration {
        let bound = self.body.verb.map_or(Duration::ZERO, |v| Duration::from_millis(v.deadline_ms()));
        bound.saturating_sub(self.began.elapsed()).saturating_sub(deadline::OBSERVE_AFTER + deadline::LOOK + deadline::QM_TERM)
    }

    /// Milliseconds since the request came.
    pub fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The configured limits.
    pub fn limits(&self) -> Limits {
        self.host.config.limits()
    }

    /// Something is weaker than it should be: said in the answer, the record and the receipt.
    pub fn degrade(&mut self, sentence: String) {
        if !self.body.degraded.contains(&sentence) {
            self.body.degraded.push(sentence);
        }
    }

    /// All that is weaker so far.
    pub fn degraded(&self) -> &[String] {
        &self.body.degraded
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
        self.body.qemu_before = crate::facts::qemu(seen);
        self.body.qemu_after = self.body.qemu_before;
        self.body.state_before = crate::facts::state_without_qmp(seen);
        self.body.state_after = self.body.state_before;
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
        self.body.state_before = state;
        self.body.state_after = state;
        self.body.assessment = Some(assessment.code);
    }

    /// The assessment's code, once there is one.
    pub const fn judgement(&self) -> Option<Code> {
        self.body.assessment
    }

    /// The evidence is safe.
    pub fn preserved(&mut self, said: &proto::Preserved) {
        self.body.bundle = Some(said.bundle.clone());
        self.body.preserved_where = Some(said.place);
        self.body.manifest_sha256 = Some(said.manifest_sha256.clone());
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
            request_id: self.body.request_id.clone(),
            verb: authorised.verb(),
            vmid: authorised.vmid(),
            key_name: authorised.caller().key_name.clone(),
            boot_id: self.host.boot_id.clone(),
            pid,
            started: crate::procfs::start_time(pid),
            at: host::now(),
            bundle: self.body.bundle.clone(),
            deadline_boot_ms: host::boot_ms().saturating_add(authorised.verb().deadline_ms()),
        };
        operation::set(self, &operation)
    }

    /// A mutation was killed half-way, and nobody told of it yet.
    pub fn note_interrupted(&mut self, operation: &Operation) {
        self.degrade(format!("{} of request {} was killed half-way at an unknown step; its evidence is {}", operation.verb, operation.request_id, operation.bundle.as_ref().map_or("not known", proto::BundleName::as_str)));
        let _ = self.append(Kind::Interrupted, json!({ "operation": operation }));
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
        map.insert("request_id".to_owned(), json!(self.body.request_id));
        map.insert("verb".to_owned(), json!(self.body.verb));
        map.insert("key_name".to_owned(), json!(self.body.key_name));
        if let Value::Object(facts) = facts {
            map.extend(facts);
        }
        let appended = self.log.append(&mut self.disk, self.signer.as_ref().ok(), kind, map)?;
        if let Some(sentence) = appended.degraded {
            self.degrade(sentence);
        }
        Ok(())
    }

    /// The end of a request outside the grammar.
    pub fn reject(mut self, arrival: &Arrival, rejected: Rejected) -> u8 {
        if let Some(record) = &mut self.record {
            record.rejected(&arrival.line, rejected);
        }
        if arrival.line.is_empty() {
            self.answer.aside(crate::text::usage());
        }
        let message = say::rejected(&rejected);
        self.finish(Err(Stop::request(message)))
    }

    /// The front leaves the request, and the record of it, to its worker.
    pub fn hand_over(mut self) {
        if let Some(record) = self.record.take() {
            record.hand_over();
        }
    }

    /// Closes the record, signs the receipt, says it, and gives the exit status.
    pub fn finish(mut self, end: Result<Verified, Stop>) -> u8 {
        let kind = match &end {
            Ok(_) if self.intent => Kind::Outcome,
            Ok(verified) if verified.already || self.body.dry_run => Kind::Outcome,
            Ok(_) => Kind::Read,
            Err(_) => Kind::Refused,
        };
        match end {
            Ok(verified) => {
                self.body.outcome = verified.outcome;
                self.body.message = verified.message;
                self.body.already = verified.already;
                self.body.state_after = verified.state;
                self.body.qemu_after = verified.qemu;
            }
            Err(stop) => {
                self.body.outcome = stop.outcome;
                self.body.message = stop.message;
                if let Some(state) = stop.state {
                    self.body.state_before = state;
                    self.body.state_after = state;
                }
            }
        }
        self.seal(kind)
    }

    /// What the receipt will say, for those who end a request in another way (replay.rs).
    pub(crate) const fn body_mut(&mut self) -> &mut ReceiptBody {
        &mut self.body
    }

    /// Says an earlier answer again: recorded as a read, signed anew, everything else as it was.
    pub(crate) fn replay(mut self, mut earlier: ReceiptBody) -> u8 {
        earlier.replayed = true;
        self.note_end(&earlier);
        let _ = self.close(Kind::Read);
        let receipt = receipt::sign(&mut earlier, self.signer.as_ref());
        self.answer.last(&earlier.request_id, receipt);
        earlier.exit_code
    }

    /// Closes the record with the body as it stands, signs it and says it.
    pub(crate) fn seal(mut self, kind: Kind) -> u8 {
        self.body.exit_code = self.body.outcome.exit_code();
        self.body.finished = host::now();
        let body = self.body.clone();
        self.note_end(&body);
        let Some(closed) = self.close(kind) else { return Outcome::Internal.exit_code() };
        let receipt = receipt::make(closed, &mut self.body, self.signer.as_ref());
        if kind == Kind::Outcome {
            if let Some(binding) = self.binding.clone() {
                operation::finish(&mut self, &Finished { binding, receipt: receipt.clone() });
            }
        }
        self.answer.last(&self.body.request_id.clone(), receipt);
        self.body.exit_code
    }

    fn close(&mut self, kind: Kind) -> Option<audit::Closed> {
        let record = self.record.take()?;
        Some(record.close(&mut self.log, &mut self.disk, self.signer.as_ref().ok(), kind))
    }

    fn note_end(&mut self, body: &ReceiptBody) {
        for (name, value) in [
            ("outcome", json!(body.outcome)),
            ("exit_code", json!(body.exit_code)),
            ("already", json!(body.already)),
            ("replayed", json!(body.replayed)),
            ("interrupted", json!(body.interrupted)),
            ("state_before", json!(body.state_before)),
            ("state_after", json!(body.state_after)),
            ("assessment", json!(body.assessment)),
            ("bundle", json!(body.bundle)),
            ("preserved_where", json!(body.preserved_where)),
            ("manifest_sha256", json!(body.manifest_sha256)),
            ("degraded", json!(body.degraded)),
            ("message", json!(body.message)),
        ] {
            self.fact(name, value);
        }
    }

    fn fact(&mut self, name: &'static str, value: Value) {
        if let Some(record) = &mut self.record {
            record.fact(name, value);
        }
    }
}
