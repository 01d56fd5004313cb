//! The hands of a replay: a recorded incident instead of a host and a devvm. What is asked is kept, as that is what is scored; a
//! mutating verb only changes the state of this world.
//!
//! Its receipts are signed with a key made for it and checked as a real host's are: there is no second way to a [`Proved`](crate::receipt::Proved).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use proto::{
    ArtifactRef, Assessment, Body, BundleName, Code, Event, Finding, KeyName, Message, Outcome, Preserved, Probe, ProbeOutcome, Receipt,
    ReceiptBody, Recommendation, Sha256Hex, Timestamp, Verb, Vmid, Where, namespace,
};
use sha2::{Digest, Sha256};
use ssh_key::private::{Ed25519Keypair, PrivateKey};
use ssh_key::{HashAlg, LineEnding};
use tokio::sync::mpsc::Sender;

use super::case::{self, Case, State};
use crate::answer::{Broken, Unchecked};
use crate::hands::{Doing, ExecAsk, ExecEnd, ExecNews, Hands, VerbAsk, VerbEnd, VerbNews};
use crate::receipt::{Asked, Unproved, check, exit_code};
use crate::signers::Pinned;

/// One thing that was done, and the state in which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// A verb.
    Verb {
        /// Which.
        verb: Verb,
        /// Why.
        reason: String,
        /// In which state.
        within: String,
    },
    /// A command on the devvm.
    Exec {
        /// The command.
        command: String,
        /// In which state.
        within: String,
    },
}

/// The world of one replay.
pub struct World {
    case: Case,
    vmid: Vmid,
    key: PrivateKey,
    pinned: Pinned,
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    state: String,
    acts: Vec<Act>,
    /// Receipts by request id: the same id is answered again and nothing runs twice.
    given: BTreeMap<String, Given>,
}

/// An answer: its receipt, the events before it, and the state that it tells of.
type Given = (Receipt, Vec<Event>, String);

impl World {
    /// The world at the beginning of a case.
    ///
    /// # Errors
    /// No random bytes, or no key out of them.
    pub fn new(case: Case) -> Result<Self, String> {
        Self::of(case, Vmid::DEVVM)
    }

    /// The same of another VM than the recorded one.
    ///
    /// # Errors
    /// As of [`Self::new`].
    pub fn of(case: Case, vmid: Vmid) -> Result<Self, String> {
        let mut seed = [0; 32];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()).map_err(|error| error.to_string())?;
        let key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
        let pinned = Pinned::read(&key.public_key().to_openssh().map_err(|error| error.to_string())?)?;
        let now = Now { state: case.start.clone(), ..Now::default() };
        Ok(Self { case, vmid, key, pinned, now: Mutex::new(now) })
    }

    /// What was done so far.
    pub fn acts(&self) -> Vec<Act> {
        self.now().acts.clone()
    }

    /// The name of the state that it is in.
    pub fn state(&self) -> String {
        self.now().state.clone()
    }

    /// The case.
    pub const fn case(&self) -> &Case {
        &self.case
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the host can't be reached: how every verb ends, and time passes.
    fn unsent(&self, ask: &VerbAsk) -> Option<VerbEnd> {
        let mut now = self.now();
        let shown = self.case.state.get(&now.state).filter(|state| state.away)?;
        if let Some(to) = shown.on.get(&ask.verb).and_then(|leads| leads.to.as_ref()) {
            now.state.clone_from(to);
        }
        Some(VerbEnd {
            request_id: ask.request_id.clone(),
            checked: Err(Unproved::Answer(Broken::Empty)),
            sent: ask.attach,
            status: crate::UNKNOWN,
            said: Message::new("Nothing was sent: the host can't be reached.", "Look whether the host runs, then ask again."),
        })
    }

    /// Does the verb to the world.
    fn act(&self, ask: &VerbAsk) -> Result<Given, String> {
        let mut now = self.now();
        if let Some(given) = now.given.get(ask.request_id.as_str()) {
            return Ok(given.clone());
        }
        let before = now.state.clone();
        let reason = ask.reason.as_ref().map(ToString::to_string).unwrap_or_default();
        now.acts.push(Act::Verb { verb: ask.verb, reason, within: before.clone() });
        let shown = self.case.state.get(&before).ok_or("a state that is not there")?;
        let leads = shown.on.get(&ask.verb);
        let (outcome, says) = leads.map_or((Outcome::Done, None), |leads| (leads.outcome, leads.says.clone()));
        if !ask.dry_run
            && let Some(to) = leads.and_then(|leads| leads.to.as_ref())
        {
            now.state.clone_from(to);
        }
        let after = self.case.state.get(&now.state).ok_or("a state that is not there")?;
        let at = timestamp();
        let bundle = (ask.verb != Verb::Status).then(|| BundleName::new(at, ask.verb, &ask.request_id));
        let body = self.receipt(ask, (shown, after), (outcome, says), bundle.clone(), at)?;
        let events = events(ask, shown, bundle, at);
        let given = (body, events, before);
        now.given.insert(ask.request_id.to_string(), given.clone());
        Ok(given)
    }

    fn receipt(
        &self,
        ask: &VerbAsk,
        (before, after): (&State, &State),
        (outcome, says): (Outcome, Option<String>),
        bundle: Option<BundleName>,
        at: Timestamp,
    ) -> Result<Receipt, String> {
        let what = says.unwrap_or_else(|| match ask.verb {
            Verb::Status | Verb::Forensics => before.sentence.clone(),
            verb => format!("{verb} of VM {} ended as {outcome}.", self.vmid),
        });
        let body = ReceiptBody {
            v: proto::VERSION,
            request_id: ask.request_id.clone(),
            verb: Some(ask.verb),
            vmid: self.vmid,
            node: "pve".to_owned(),
            dry_run: ask.dry_run,
            key_name: KeyName::console("replay"),
            origin: ask.origin,
            actor: ask.actor.clone(),
            reason: ask.reason.clone(),
            outcome,
            exit_code: outcome.exit_code(),
            already: false,
            replayed: false,
            interrupted: false,
            state_before: before.vm,
            state_after: after.vm,
            qemu_before: None,
            qemu_after: None,
            assessment: Some(before.code),
            preserved_where: bundle.as_ref().map(|_| Where::Disk),
            manifest_sha256: None,
            bundle,
            degraded: Vec::new(),
            message: Message::new(what, before.why.clone()),
            started: at,
            finished: at,
            audit: None,
            witness: None,
            binary_sha256: None,
            unreviewed: None,
            unsigned_reason: None,
        };
        let (body, bytes) = proto::encode_body(&body).map_err(|error| error.to_string())?;
        let signed = self.key.sign(namespace::RECEIPT, HashAlg::Sha512, &bytes).map_err(|error| error.to_string())?;
        let armour = signed.to_pem(LineEnding::LF).map_err(|error| error.to_string())?;
        let sig = armour.lines().filter(|line| !line.starts_with("-----")).collect();
        Ok(Receipt { body, sig: Some(sig) })
    }

    /// What the command prints and how it ends.
    fn run(&self, ask: &ExecAsk) -> (String, ExecEnd) {
        let mut now = self.now();
        let within = now.state.clone();
        now.acts.push(Act::Exec { command: ask.command.clone(), within: within.clone() });
        let Some(state) = self.case.state.get(&within).filter(|state| state.reachable) else {
            return (String::new(), ExecEnd::Unreachable("no answer from the devvm's sshd within 10 s".to_owned()));
        };
        let Some(answer) = state.answers.iter().find(|answer| answer.when.iter().all(|word| ask.command.contains(word))) else {
            return (String::new(), ExecEnd::Exited(0));
        };
        if let Some(to) = &answer.to {
            now.state.clone_from(to);
        }
        (answer.prints.clone(), if answer.hangs { ExecEnd::TimedOut } else { ExecEnd::Exited(answer.exit) })
    }
}

/// What an answer holds before its receipt.
fn events(ask: &VerbAsk, shown: &State, bundle: Option<BundleName>, at: Timestamp) -> Vec<Event> {
    let event = |body| Event::new(at, ask.request_id.clone(), body);
    let mut events: Vec<Event> = artifacts(shown)
        .map(|(path, media_type, bytes)| {
            let name = path.rsplit_once('.').map_or(path.as_str(), |(name, _)| name).to_owned();
            let sha256 = Sha256Hex::from_bytes(Sha256::digest(&bytes).into());
            let artifact = ArtifactRef { path, media_type, bytes: bytes.len() as u64, sha256 };
            event(Body::Probe(Probe { name, outcome: ProbeOutcome::Captured, ms: 1, detail: None, artifact: Some(artifact), data: None }))
        })
        .collect();
    let finding = Finding { code: shown.code, text: shown.sentence.clone(), evidence: shown.artifacts.keys().cloned().collect() };
    events.push(event(Body::Assessment(Assessment {
        code: shown.code,
        healthy: shown.code == Code::Healthy,
        sentence: shown.sentence.clone(),
        findings: vec![finding],
        recommend: Recommendation { verb: shown.recommend, why: shown.why.clone() },
    })));
    if let Some(bundle) = bundle {
        let manifest_sha256 = Sha256Hex::from_bytes(Sha256::digest(bundle.to_string()).into());
        events.push(event(Body::Preserved(Preserved { bundle, place: Where::Disk, manifest_sha256, degraded: Vec::new() })));
    }
    events
}

/// Path, type and bytes of everything that a state shows.
fn artifacts(state: &State) -> impl Iterator<Item = (String, String, Vec<u8>)> {
    let kind = |path: &str| if path.ends_with(".json") { "application/json" } else { "text/plain" }.to_owned();
    let texts = state.artifacts.iter().map(move |(path, text)| (path.clone(), kind(path), text.clone().into_bytes()));
    let screens =
        state.screen.iter().flat_map(|name| [1, 2].map(|n| (format!("console/screen-{n}.png"), "image/png".to_owned(), case::file(name))));
    texts.chain(screens)
}

fn timestamp() -> Timestamp {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

impl Hands for World {
    fn vmid(&self) -> Vmid {
        self.vmid
    }

    fn verb(&self, ask: VerbAsk, news: Sender<VerbNews>) -> Doing<'_, VerbEnd> {
        Box::pin(async move {
            if let Some(end) = self.unsent(&ask) {
                return end;
            }
            let checked = match self.act(&ask) {
                Ok((receipt, events, before)) => {
                    for event in events {
                        let _nobody_listens = news.send(VerbNews::Event(Box::new(event))).await;
                    }
                    for (path, media_type, bytes) in self.case.state.get(&before).into_iter().flat_map(artifacts) {
                        let _nobody_listens = news.send(VerbNews::Artifact { path, media_type, bytes }).await;
                    }
                    let event = Event::new(timestamp(), ask.request_id.clone(), Body::Receipt(receipt.clone()));
                    let line = serde_json::to_string(&event).unwrap_or_default();
                    let unchecked = Unchecked { receipt, request_id: ask.request_id.clone(), line };
                    let asked = Asked { request_id: Some(ask.request_id.clone()), verb: Some(ask.verb), vmid: Some(self.vmid) };
                    check(&unchecked, Some(&self.pinned), &asked)
                }
                Err(_) => Err(Unproved::Answer(Broken::Empty)),
            };
            let status = exit_code(&checked);
            let said = match &checked {
                Ok(proved) => crate::say::proved(proved),
                Err(why) => crate::say::unproved(why, Some(&ask.request_id)),
            };
            VerbEnd { request_id: ask.request_id, checked: checked.map(Box::new), sent: true, status, said }
        })
    }

    fn exec(&self, ask: ExecAsk, news: Sender<ExecNews>) -> Doing<'_, ExecEnd> {
        Box::pin(async move {
            let (prints, end) = self.run(&ask);
            if !prints.is_empty() {
                let _nobody_listens = news.send(ExecNews { stderr: false, bytes: prints.into_bytes() }).await;
            }
            end
        })
    }
}
