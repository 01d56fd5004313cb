//! Claude at the wheel: an incident's conversation with the Messages API, and what its tool calls may do.
//!
//! ```text
//!  prompt ──> Session ──history.rs──> client.rs ──stream.rs, answer.rs──> an answer
//!                │  ^                    │ failed: the next model, then the runbook
//!                │  └── results, quoted <─ calls.rs: budget, autonomy, evidence first ──> incident ──> hands
//!                └── what people did by hand, as system messages
//! ```
//! The history is written before it is sent, and never changed. A call is run only out of a whole answer.

mod answer;
mod calls;
mod client;
pub(crate) mod evidence;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod history;
mod player;
mod probe;
mod settings;
mod stream;
mod tools;
mod turn;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::{Code, Message, Verb, Vmid};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::evals::{Table, Who};
use crate::hands::Hands;
use crate::incident::{Asks, By, Exec, Incident, Store, Task};
use crate::silence::Silence;

pub use player::Model;
pub use probe::{Found, probe};
pub use settings::{Autonomy, Budget, Credential, Settings};
pub use turn::{Session, Turned};

/// The system prompt, but for the VM's number.
const SYSTEM: &str = include_str!("claude/system.md");

/// The system prompt of a conversation about this VM.
fn system(vmid: Vmid) -> String {
    SYSTEM.replace("{VMID}", &vmid.to_string())
}

/// What the conversations of all incidents share.
pub struct Mind {
    client: client::Client,
    settings: Settings,
    budget: Budget,
    store: Arc<Store>,
    hands: Arc<dyn Hands>,
    /// Whether a devvm that may be booting is waited for. In a replay nothing boots.
    waits: bool,
}

impl Mind {
    /// A mind, where there is a credential; otherwise nothing, and the runbook does it.
    ///
    /// # Errors
    /// The settings can't be used.
    pub fn new(settings: &Settings, budget: Budget, store: &Arc<Store>, hands: &Arc<dyn Hands>) -> Result<Option<Arc<Self>>, Message> {
        Self::made(settings, budget, store, hands, true)
    }

    fn made(
        settings: &Settings,
        budget: Budget,
        store: &Arc<Store>,
        hands: &Arc<dyn Hands>,
        waits: bool,
    ) -> Result<Option<Arc<Self>>, Message> {
        let Some(credential) = settings.credential()? else { return Ok(None) };
        let client = client::Client::new(settings, &credential)?;
        let (settings, store, hands) = (settings.clone(), Arc::clone(store), Arc::clone(hands));
        Ok(Some(Arc::new(Self { client, settings, budget, store, hands, waits })))
    }

    /// The owner's choice.
    pub const fn autonomy(&self) -> Autonomy {
        self.settings.autonomy
    }
}

/// SHA-256 of the system prompt (the VM's number left open) and of the tools' definitions, in hex: with the model, what a score is about.
pub fn fingerprints() -> (String, String) {
    let hash = |text: &str| Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect::<String>();
    (hash(SYSTEM), hash(&tools::definitions().to_string()))
}

/// Whether this model, with the prompt and the tools as they are now, has passed all recorded incidents when `evals` played it last.
pub fn has_passed(model: &str, state: &Path) -> bool {
    let (prompt_sha256, tools_sha256) = fingerprints();
    let who = Who { model: model.to_owned(), prompt_sha256, tools_sha256 };
    Table::newest(state, &who).is_some_and(|table| table.passed() == table.lines.len())
}

/// Which of the models that may act have not passed, in one sentence: for whoever lets them act.
pub fn unproven(mind: Option<&Arc<Mind>>, state: &Path) -> Option<String> {
    let models: Vec<String> = mind?.settings.models().into_iter().filter(|model| !has_passed(model, state)).collect();
    let have = if models.len() == 1 { "has" } else { "have" };
    let names = proto::escape_cut(models.join(" and ").as_bytes(), 200);
    (!models.is_empty())
        .then(|| format!("{names} {have} not passed the recorded incidents with this prompt and these tools: try breakglass evals."))
}

/// How long the end of an incident waits for the devvm's sshd; where something was changed it may be booting.
const UPTIME: Duration = Duration::from_secs(20);
const BOOT: Duration = Duration::from_secs(240);
/// Between the host's two looks, where nobody can be asked in the guest and something was changed.
const APART: Duration = Duration::from_secs(60);

/// Whether the VM is well: looked at once more from the host, with its evidence, and from inside. Decided by what was observed. Without a
/// devvm to ask, a second look from the host is what there is, and that is said.
pub async fn verdict(hands: &Arc<dyn Hands>, incident: &Arc<Incident>, task: Task) -> (bool, Message) {
    let vmid = match looks_healthy(hands, incident, task, Verb::Forensics).await {
        Ok(vmid) => vmid,
        Err(why) => return (false, why),
    };
    let patient = incident.facts().mutated;
    let timeout = if patient { BOOT } else { UPTIME };
    let exec = Exec { command: "uptime".to_owned(), reason: Some("does it answer?".to_owned()), timeout, patient, call: None };
    let end = match incident.exec(hands, task, By::Agent, exec) {
        Ok(running) => running.end().await.map(|told| told.end),
        Err(why) => Err(why),
    };
    let silence = match end.map(|end| Silence::of(&end)) {
        Ok(Some(silence)) => silence,
        Ok(None) => {
            let what = format!("VM {vmid} looks healthy and the devvm answers over SSH.");
            return (true, Message::new(what, "Read the evidence when you are awake."));
        }
        Err(why) => return (false, why),
    };
    if silence == Silence::Absent {
        tokio::time::sleep(if patient { APART } else { Duration::ZERO }).await;
        if let Err(why) = looks_healthy(hands, incident, task, Verb::Status).await {
            return (false, why);
        }
    }
    silence.though_healthy("", vmid)
}

/// The same, unless a person stops it: it may wait for minutes. What it has begun goes on to its own end, and that is said.
pub async fn verdict_unless(
    cancelled: &mut watch::Receiver<u64>,
    hands: &Arc<dyn Hands>,
    incident: &Arc<Incident>,
    task: Task,
) -> (bool, Message) {
    tokio::select! {
        biased;
        _ = cancelled.changed() => {
            let running = incident.facts().running_said();
            (false, Message::new(format!("The look at the end was stopped. {running}"), "Look what is so now, with status."))
        }
        judged = verdict(hands, incident, task) => judged,
    }
}

/// Which VM it is that the host calls healthy; the error is what it says instead.
async fn looks_healthy(hands: &Arc<dyn Hands>, incident: &Arc<Incident>, task: Task, verb: Verb) -> Result<Vmid, Message> {
    let asks = Asks { reason: Some("the end of the incident: is it well?".to_owned()), ..Asks::default() };
    let told = incident.verb(hands, task, By::Agent, verb, asks)?.end().await?;
    let Ok(proved) = &told.end.checked else { return Err(told.end.said) };
    let body = proved.body();
    if proved.is_success() && body.assessment == Some(Code::Healthy) {
        return Ok(body.vmid);
    }
    let sentence = told.assessment.map_or_else(|| body.message.what.clone(), |judged| judged.sentence);
    Err(Message::new(sentence, "Read the report above; the six verbs and the runbook are there."))
}
