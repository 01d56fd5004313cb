//! One request on its way: who answers, what is known so far, and its end. Stages get it as `&mut Run` beside the token they
//! consume; the tokens carry the permission to go on, this carries the paper.
//!
//! Opening the audit record is the first thing that happens, and closing it the only way to a receipt.

use base64ct::{Base64, Encoding};
use proto::{Accepted, Binary, Body, Code, Message, Origin, RequestId, Timestamp, Verb, VmState};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

use crate::answer::Answer;
use crate::audit::{Log, Record};
use crate::config::{Config, Limits};
use crate::disk::Disk;
use crate::door::{Arrival, Parsed};
use crate::policy::Authorised;
use crate::preflight::Plan;
use crate::probe::{self, observe::Observation};
use crate::promise::{Event, Stage};
use crate::receipt::Facts;
use crate::sign::Signer;
use crate::text::say;
use crate::{attest, binary, deadline, host, spool::Binding};

mod end;
mod middle;
mod stop;

pub use stop::Stop;

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
    stage: Stage,
    inline_left: Option<usize>,
    bound: Duration,
    made: Option<proto::BundleName>,
    joined: bool,
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
        let log = log.attesting(attest::this_host(&here.node, &here.binary, signer.as_ref().ok()));
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
            stage: Stage::Asked,
            inline_left: None,
            bound: Duration::ZERO,
            made: None,
            joined: false,
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
        self.answer.understood(parsed.id(), options);
        self.inline_left = options.inline.then_some(MOST_INLINE);
        self.binding = Some(parsed.binding());
        if let Some(record) = &mut self.record {
            record.request(parsed.request(), parsed.id(), self.facts.vmid);
            record.fact("origin", json!(parsed.origin()));
        }
    }

    /// The key may: says so.
    pub fn accepted(&mut self, authorised: &Authorised) {
        self.bound = Duration::from_millis(authorised.deadline_ms());
        self.disk.allow(Some(match authorised.verb() {
            Verb::Status => deadline::DISK_STATUS,
            _ if authorised.parsed().request().options().bundle.is_some() => deadline::SHOW,
            _ => deadline::DISK_EVIDENCE,
        }));
        if let Some(given) = &authorised.parsed().request().options().witness {
            let ok = self.log.contains(given, deadline::WITNESS);
            self.facts.witness = Some(proto::WitnessAnswer { given: given.clone(), ok });
            self.fact("witness_ok", json!(ok));
        }
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
            deadline_ms: authorised.deadline_ms(),
            binary: self.host.binary.clone(),
            attached: false,
        };
        self.answer.say(Body::Accepted(said));
    }

    /// This is so now, or is about to be done.
    ///
    /// # Errors
    /// It must not happen at this stage: a bug, and the request ends.
    pub fn reach(&mut self, event: Event) -> Result<(), Stop> {
        self.stage = self.stage.after(event).ok_or_else(|| self.astray(event))?;
        if event == Event::Acts {
            self.disk.allow(Some(deadline::DISK_STEPS));
        }
        Ok(())
    }

    /// What is said where the code has left its own way.
    fn astray(&self, event: Event) -> Stop {
        let touched = matches!(self.stage, Stage::Acting | Stage::Observed);
        Stop::internal(say::internal(Some(touched), &format!("{event:?} must not follow {:?}", self.stage)))
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

    /// What is left of the published bound for a `qm`.
    pub fn time_left(&self) -> Duration {
        self.bound.saturating_sub(self.began.elapsed()).saturating_sub(deadline::BEHIND_QM)
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

    /// Whether these bytes carry this host's signature, as a file has it.
    pub fn signed_here(&self, namespace: &str, bytes: &[u8], armour: &[u8]) -> bool {
        let blob = std::str::from_utf8(armour).ok().and_then(crate::sign::dearmour);
        self.signer
            .as_ref()
            .ok()
            .zip(blob)
            .is_some_and(|(signer, blob)| crate::sign::verify_sshsig(signer.public(), namespace, bytes, &blob))
    }

    /// The first look.
    pub fn saw_before(&mut self, seen: &Observation) {
        self.facts.qemu_before = crate::facts::qemu(seen);
        self.facts.qemu_after = self.facts.qemu_before;
        self.facts.state_before = crate::facts::state_without_qmp(seen);
        self.facts.state_after = self.facts.state_before;
    }

    /// A probe was tried.
    pub fn probed(&mut self, answer: &probe::Answer) {
        let said = crate::capture::event(answer);
        self.probe(said, answer.artifact.as_ref().map(|a| a.bytes.as_bytes()));
    }

    /// Says what became of a question, with the artifact inside where that was asked for and fits.
    pub fn probe(&mut self, mut said: proto::Probe, artifact: Option<&[u8]>) {
        if let (Some(left), Some(bytes)) = (&mut self.inline_left, artifact)
            && let Some(rest) = left.checked_sub(bytes.len())
        {
            *left = rest;
            said.data = Some(Base64::encode_string(bytes));
        }
        self.answer.say(Body::Probe(said));
    }

    /// Whether artifacts are to be inside the events.
    pub const fn inline(&self) -> bool {
        self.inline_left.is_some()
    }

    /// The judgement.
    pub fn judged(&mut self, state: VmState, assessment: &proto::Assessment) {
        self.facts.state_before = state;
        self.facts.state_after = state;
        self.facts.assessment = Some(assessment.code);
    }

    /// What an earlier capture was judged to be.
    pub const fn judged_then(&mut self, code: Code) {
        self.facts.assessment = Some(code);
    }

    /// The assessment's code, once there is one.
    pub const fn judgement(&self) -> Option<Code> {
        self.facts.assessment
    }

    /// The evidence is safe.
    pub fn preserved(&mut self, said: &proto::Preserved) {
        self.made = Some(said.bundle.clone());
        self.tells_of(said);
    }

    /// This bundle is the answer, whoever made it.
    pub fn tells_of(&mut self, said: &proto::Preserved) {
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

    fn fact(&mut self, name: &'static str, value: Value) {
        if let Some(record) = &mut self.record {
            record.fact(name, value);
        }
    }
}
