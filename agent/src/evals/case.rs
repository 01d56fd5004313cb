//! A recorded incident: the states that host and devvm go through, what each shows, and what a good colleague does. One TOML file each
//! in `agent/evals/`, compiled in.
//!
//! ```toml
//! about = "What happened, and why it is here."
//! says = "What the person types."
//! start = "stalled"                       # the state it begins in
//!
//! [state.stalled]
//! vm = "running"                          # as a receipt says it
//! code = "block-stalled"                  # the assessment: code, sentence, recommend (a verb or absent), why
//! sentence = "VM 102 …"
//! recommend = "cycle"
//! why = "Only a fresh QEMU process …"
//! screen = "frozen-login.png"             # the console, a file beside this one
//! away = true                             # the host can't be reached: nothing is sent
//! reachable = false                       # whether the devvm's sshd answers; otherwise the answers below count
//! artifacts = { "qmp/query-status.json" = '{"status":"running"}' }
//! answers = [{ when = ["df"], prints = "…", exit = 0, to = "…" }]   # the first whose words are all in the command
//! on.cycle = { to = "healthy" }           # what a verb leads to; absent: it is done and changes nothing. A read: time passes
//!
//! [expect]
//! ends = ["healthy"]                      # the states it may end in
//! verbs = ["cycle"]                       # the mutating verbs that may be used
//! most = 1                                # how often, together
//! soft = true                             # a repair over SSH comes before any of them
//! never = ["curl"]                        # in no command and no reason: what the data tries to talk one into
//! ```

use std::collections::BTreeMap;

use proto::{Code, Outcome, Verb, VmState};
use rust_embed::RustEmbed;
use serde::Deserialize;

/// The files.
#[derive(RustEmbed)]
#[folder = "evals/"]
struct Files;

/// One incident.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its file's name without its ending.
    #[serde(skip)]
    pub name: String,
    /// What happened, for people.
    pub about: String,
    /// What the person types.
    pub says: String,
    /// The state it begins in.
    pub start: String,
    /// The states, by name.
    pub state: BTreeMap<String, State>,
    /// What is good.
    pub expect: Expect,
}

/// What host and devvm show for a while.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The VM's state.
    pub vm: VmState,
    /// The assessment's code.
    pub code: Code,
    /// Its sentence.
    pub sentence: String,
    /// The verb that it recommends.
    pub recommend: Option<Verb>,
    /// Why, or what to do instead.
    pub why: String,
    /// The console's picture: a file beside the case.
    pub screen: Option<String>,
    /// Whether the host can't be reached, so that no request leaves.
    #[serde(default)]
    pub away: bool,
    /// Text artifacts, by their path in the bundle.
    #[serde(default)]
    pub artifacts: BTreeMap<String, String>,
    /// Whether the devvm's sshd answers.
    #[serde(default = "yes")]
    pub reachable: bool,
    /// What commands print.
    #[serde(default)]
    pub answers: Vec<Answer>,
    /// What verbs lead to.
    #[serde(default)]
    pub on: BTreeMap<Verb, Leads>,
}

/// What a command on the devvm prints.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Words that are all in the command.
    pub when: Vec<String>,
    /// Its output.
    #[serde(default)]
    pub prints: String,
    /// Its exit status.
    #[serde(default)]
    pub exit: u32,
    /// It hangs: the caller's time runs out.
    #[serde(default)]
    pub hangs: bool,
    /// The state that follows.
    pub to: Option<String>,
}

/// What a verb leads to.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leads {
    /// The state that follows; absent: the same.
    pub to: Option<String>,
    /// The outcome.
    #[serde(default = "done")]
    pub outcome: Outcome,
    /// What the host says of it.
    pub says: Option<String>,
}

/// What is good.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// The states it may end in.
    pub ends: Vec<String>,
    /// The mutating verbs that may be used.
    #[serde(default)]
    pub verbs: Vec<Verb>,
    /// How often, together.
    #[serde(default = "one")]
    pub most: usize,
    /// Whether a command on the devvm comes before any of them.
    #[serde(default)]
    pub soft: bool,
    /// Words that are in no command and no reason.
    #[serde(default)]
    pub never: Vec<String>,
}

const fn yes() -> bool {
    true
}

const fn done() -> Outcome {
    Outcome::Done
}

const fn one() -> usize {
    1
}

impl Case {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let mut case: Self = toml::from_str(text).map_err(|error| format!("{name}: {}", error.message()))?;
        name.clone_into(&mut case.name);
        let states = case.state.values();
        let named = states.flat_map(|state| {
            state.on.values().filter_map(|leads| leads.to.as_ref()).chain(state.answers.iter().filter_map(|a| a.to.as_ref()))
        });
        if let Some(absent) = named.chain(&case.expect.ends).chain([&case.start]).find(|state| !case.state.contains_key(*state)) {
            return Err(format!("{name}: there is no state {absent}"));
        }
        if let Some(read) = case.expect.verbs.iter().find(|verb| !verb.mutates()) {
            return Err(format!("{name}: {read} changes nothing"));
        }
        for screen in case.state.values().filter_map(|state| state.screen.as_ref()) {
            if Files::get(screen).is_none() {
                return Err(format!("{name}: there is no picture {screen}"));
            }
        }
        Ok(case)
    }
}

/// Every case, by name.
///
/// # Errors
/// A case that can't be read: a bug, which a test finds first.
pub fn all() -> Result<Vec<Case>, String> {
    let mut names: Vec<String> = Files::iter().filter_map(|file| file.strip_suffix(".toml").map(str::to_owned)).collect();
    names.sort();
    names.iter().map(|name| Case::parse(name, &String::from_utf8_lossy(&file(&format!("{name}.toml"))))).collect()
}

/// A file beside the cases.
pub fn file(name: &str) -> Vec<u8> {
    Files::get(name).map(|file| file.data.into_owned()).unwrap_or_default()
}
