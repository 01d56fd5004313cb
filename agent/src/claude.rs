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

use crate::evals::{Table, Who};
use crate::hands::{ExecEnd, Hands};
use crate::incident::{Asks, By, Exec, Incident, Store, Task};

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

/// Whether the VM is well: looked at once more from the host, with its evidence, and from inside. Decided by what was observed.
pub async fn verdict(hands: &Arc<dyn Hands>, incident: &Arc<Incident>, task: Task) -> (bool, Message) {
    let asks = Asks { reason: Some("the end of the incident: is it well?".to_owned()), ..Asks::default() };
    let told = match incident.verb(hands, task, By::Agent, Verb::Forensics, asks) {
        Ok(running) => running.end().await,
        Err(why) => Err(why),
    };
    let told = match told {
        Ok(told) => told,
        Err(why) => return (false, why),
    };
    let Ok(proved) = &told.end.checked else { return (false, told.end.said) };
    let body = proved.body();
    if !proved.is_success() || body.assessment != Some(Code::Healthy) {
        let sentence = told.assessment.map_or_else(|| body.message.what.clone(), |judged| judged.sentence);
        return (false, Message::new(sentence, "Read the report above; the six verbs and the runbook are there."));
    }
    let patient = incident.facts().mutated;
    let timeout = if patient { BOOT } else { UPTIME };
    let exec = Exec { command: "uptime".to_owned(), reason: Some("does it answer?".to_owned()), timeout, patient, call: None };
    let end = match incident.exec(hands, task, By::Agent, exec) {
        Ok(running) => running.end().await.map(|told| told.end),
        Err(why) => return (false, why),
    };
    match end {
        Ok(ExecEnd::Exited(0)) => (
            true,
            Message::new(
                format!("VM {} looks healthy and the devvm answers over SSH.", body.vmid),
                "Read the evidence when you are awake.",
            ),
        ),
        _ => (
            false,
            Message::new(
                format!("From the host VM {} looks healthy, and the devvm does not answer over SSH.", body.vmid),
                "Look at its console in the evidence; it may still be booting.",
            ),
        ),
    }
}
