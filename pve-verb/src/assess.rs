//! Evidence in, judgement out: a pure function over artifacts, probe outcomes and facts, driven by the table in `ROWS`.
//!
//! Does not: capture anything, read a clock or a file, or block a verb. What it can't see it does not accuse: evidence that is
//! missing, damaged or in an unknown shape never yields an alarm. Everything it quotes from a guest is escaped.
//!
//! One file for each kind of row: `block` (the stall, with `sample` and `rrd` beneath it), `guest`, `paused`, `host`.

use proto::{Assessment, Code, Finding, ProbeOutcome, QemuProcess, Recommendation, StepName, Verb, Vmid};
use serde::{Deserialize, Serialize};
use serde_json::Value;

mod block;
mod guest;
mod host;
mod paused;
mod rrd;
mod sample;
mod serial;
mod tasks;

pub use crate::probe::sketch::Likeness;
pub(crate) use host::completes;
pub(crate) use sample::asks_for_io;
pub use sample::{Blocked, Queue, Sample};

/// How a probe ended, and its detail.
pub type Probed<'a> = (ProbeOutcome, Option<&'a str>);

/// What was captured: everything that the judgement may look at.
pub struct Evidence<'a> {
    /// An artifact's bytes by its path in the bundle (`qmp/query-status.json`).
    pub artifact: &'a dyn Fn(&str) -> Option<&'a [u8]>,
    /// How a probe ended, by its name (the path without its ending), and its detail.
    pub outcome: &'a dyn Fn(&str) -> Option<Probed<'a>>,
    /// What is not an artifact.
    pub facts: Facts,
}

/// What was observed and is no artifact. `None` is "not known", and never counts against the VM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Facts {
    /// The VM; 102 where not said.
    pub vmid: Option<Vmid>,
    /// Whether a QEMU process of this VM runs here.
    pub running: Option<bool>,
    /// That process.
    pub qemu: Option<QemuProcess>,
    /// For how many seconds it has run; tells an old line of a console log from a new one.
    pub qemu_age_s: Option<u64>,
    /// Where PVE has the VM's configuration.
    pub config: Option<Config>,
    /// PVE's lock, where there is one.
    pub lock: Option<Lock>,
    /// What came of asking QEMU.
    pub qmp: Option<Qmp>,
    /// The proof, where QEMU is proved unresponsive (`main thread in D at io_schedule, …`).
    pub unresponsive: Option<String>,
    /// What is left of the VM although PVE says "stopped" (`pid 4711: 1 thread in D at …`).
    pub survivor: Option<String>,
    /// A verb of ours that was killed half-way.
    pub interrupted: Option<Interrupted>,
    /// Since when and by whom the VM is stopped, as tasks and audit log have it.
    pub stopped_by: Option<String>,
    /// What the last `status` saw, where this one has a single sample.
    pub previous: Option<Sample>,
    /// Milliseconds between the two samples that are compared: 1 and 2, or `previous` and 1.
    pub window_ms: Option<u64>,
    /// Seconds since 1970 when the evidence was taken; without it the RRD's rows have no age.
    pub now_unix_s: Option<u64>,
    /// How the two screens compare; where not said, their files are compared.
    pub screens: Option<Likeness>,
    /// Whether `console/serial.txt` is what the socket said just now, and not a log file with a past.
    pub serial_is_live: Option<bool>,
}

/// Where PVE has the VM's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Config {
    /// On this node.
    Here,
    /// On that node.
    Elsewhere(String),
    /// On no node.
    Missing,
    /// `/etc/pve` hung, or was not there: how.
    Unreadable(String),
}

/// PVE's lock on the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Its word, `backup`.
    pub word: String,
    /// Whether somebody still works under it.
    pub owner: LockOwner,
}

/// Whether a live task owns a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockOwner {
    /// This one does (its UPID, or what is known of it).
    Task(String),
    /// None does: it was left behind.
    Nobody,
    /// Could not be told.
    Unknown,
}

/// What came of asking QEMU over QMP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Qmp {
    /// It answered.
    Answered,
    /// No greeting or no answer in time.
    NoAnswer,
    /// Somebody else holds the only place: who.
    InUse(String),
    /// There is no socket.
    NoSocket,
}

/// A verb of ours that did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interrupted {
    /// The verb.
    pub verb: Verb,
    /// The step at which it was killed, as in `operation.json`.
    pub step: Option<StepName>,
    /// Whether the VM's process is another one than before it: what it was to stop is gone, whoever started what runs now.
    #[serde(default)]
    pub replaced: bool,
    /// When and whose: `request 1f0c9a2e of key agent, at 2026-11-21T00:30:00.123Z`.
    pub text: String,
}

impl Interrupted {
    /// One of which only the verb is known.
    pub const fn of(verb: Verb) -> Self {
        Self { verb, step: None, replaced: false, text: String::new() }
    }
}

/// What one row of the table says.
struct Row {
    finding: Finding,
    sentence: String,
    recommend: Recommendation,
}

impl Row {
    fn new(code: Code, sentence: impl Into<String>, evidence: &[&str], verb: Option<Verb>, why: impl Into<String>) -> Self {
        let sentence = sentence.into();
        let evidence = evidence.iter().map(|path| (*path).to_owned()).collect();
        let finding = Finding { code, text: sentence.clone(), evidence };
        Self { finding, sentence, recommend: Recommendation { verb, why: why.into() } }
    }

    /// A longer text for the finding than for the sentence.
    fn text(mut self, text: String) -> Self {
        self.finding.text = text;
        self
    }
}

/// The table, gravest first. The order follows one rule: **a row stands above all rows whose advice it would make wrong.**
///
/// - `elsewhere`: nothing here is this VM's. `survivor`: a second QEMU on the same disk would destroy it, so no row may send
///   anyone to `start` or `cycle` first.
/// - `qemu-unresponsive`, `block-stalled`: the process itself is broken; nothing inside the guest can be judged through it, and a
///   `reset`, which lower rows advise, would make it worse. `guest-panicked`: nothing inside the guest can be repaired any more.
/// - `interrupted` explains `paused` and `stopped` below it, and knows which verb completes the work.
/// - `pve-unresponsive` stands in the way of `start` and `cycle` alone, and a paused VM may not need either.
/// - the guest's own troubles: what names its cause before what does not.
/// - `qmp-unavailable` means that little is known. `locked` and `stopped` may be as somebody wants them, the lock before the
///   state because it forbids the `start`.
const ROWS: [fn(&Evidence<'_>) -> Option<Row>; 14] = [
    host::elsewhere,
    host::survivor,
    host::qemu_unresponsive,
    block::block_stalled,
    guest::guest_panicked,
    host::interrupted,
    paused::paused,
    host::pve_unresponsive,
    guest::guest_oom,
    guest::guest_disk_full,
    guest::guest_unresponsive,
    host::qmp_unavailable,
    host::locked,
    host::stopped,
];

/// Judges the evidence. Total: every evidence, also none, has a judgement.
pub fn assess(evidence: &Evidence<'_>) -> Assessment {
    let mut rows = ROWS.iter().filter_map(|row| row(evidence));
    let Some(gravest) = rows.next() else { return nothing_found(evidence) };
    let mut recommend = gravest.recommend;
    let mut findings = vec![gravest.finding];
    for row in rows {
        // What stands in the way of the verb that is recommended belongs into the same breath.
        let in_the_way = match row.finding.code {
            Code::Locked => recommend.verb.is_some(),
            Code::PveUnresponsive => matches!(recommend.verb, Some(Verb::Start | Verb::Stop | Verb::Cycle)),
            _ => false,
        };
        if in_the_way {
            recommend.why = format!("{} First: {}", recommend.why, row.recommend.why);
        }
        findings.push(row.finding);
    }
    Assessment { code: findings.first().map_or(Code::Healthy, |f| f.code), healthy: false, sentence: gravest.sentence, findings, recommend }
}

/// No row matched: healthy where QEMU says `running`; where nobody could be asked, that is said instead.
fn nothing_found(evidence: &Evidence<'_>) -> Assessment {
    let vm = evidence.vm();
    let (code, sentence, text, paths, why) = if evidence.status().as_deref() == Some("running") {
        let (text, mut paths, waits) = block::activity(evidence);
        paths.insert(0, "qmp/query-status.json".to_owned());
        let (but, why) = match waits {
            // One look can't tell a request that is about to be answered from one that never will be.
            Some(waits) => (
                format!(". But {waits} at this moment, and whether for long one look can't tell"),
                "Ask for status again after two seconds: two looks show whether what waits is answered.",
            ),
            None => (String::new(), "Nothing needs doing."),
        };
        let sentence = format!("{vm} looks healthy: QEMU answers and says running, {text}{but}.");
        (Code::Healthy, sentence.clone(), sentence, paths, why)
    } else {
        let sentence = format!("Too little of {vm} could be observed for a judgement; nothing that was seen looks wrong.");
        (Code::QmpUnavailable, sentence.clone(), sentence, vec!["qmp".to_owned()], "Try again.")
    };
    Assessment {
        code,
        healthy: code == Code::Healthy,
        sentence,
        findings: vec![Finding { code, text, evidence: paths }],
        recommend: Recommendation { verb: None, why: why.to_owned() },
    }
}

impl Evidence<'_> {
    /// `VM 102`.
    fn vm(&self) -> String {
        format!("VM {}", self.vmid())
    }

    fn vmid(&self) -> Vmid {
        self.facts.vmid.unwrap_or(Vmid::DEVVM)
    }

    /// An artifact as JSON; of a QMP or agent reply, what it returned. An error reply is no answer.
    fn json(&self, path: &str) -> Option<Value> {
        returned((self.artifact)(path)?)
    }

    /// An artifact as text; bytes that are not UTF-8 are replaced, so escape before showing.
    fn text(&self, path: &str) -> Option<String> {
        (self.artifact)(path).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// QEMU's RunState.
    fn status(&self) -> Option<String> {
        Some(self.json("qmp/query-status.json")?.get("status")?.as_str()?.to_owned())
    }

    fn timed_out(&self, probe: &str) -> bool {
        matches!((self.outcome)(probe), Some((ProbeOutcome::TimedOut, _)))
    }

    /// The agent answered its ping.
    fn agent_answers(&self) -> bool {
        self.json("guest/ping.json").is_some()
    }
}

/// The most of an artifact that is read as JSON: parsed, it takes many times as much, of a worker that must not be killed for it. A host
/// with a hundred disks and vCPUs stays far below.
const MOST_JSON: usize = 4 * 1024 * 1024;

/// `{"return": X}` is X, `{"error": …}` is nothing, anything else is itself. What is too long to be read safely is nothing, too.
pub(crate) fn returned(bytes: &[u8]) -> Option<Value> {
    if bytes.len() > MOST_JSON {
        return None;
    }
    match serde_json::from_slice(bytes).ok()? {
        Value::Object(mut reply) if reply.contains_key("return") => reply.shift_remove("return"),
        Value::Object(reply) if reply.contains_key("error") => None,
        bare => Some(bare),
    }
}

/// Foreign text, fit to stand in a sentence.
fn show(text: &str) -> String {
    proto::escape_cut(text.as_bytes(), 120)
}

/// `1.2 s`.
fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

#[cfg(test)]
mod tests;
