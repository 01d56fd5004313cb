//! What the evidence says about the VM, in one word, one sentence, and the findings behind it.

use serde::{Deserialize, Serialize};
use std::fmt;

use crate::Verb;

/// The verdict (the table of `shared` terms is in PROTOCOL.md, "Assessment").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// QMP running, vCPUs progress, block operations complete or nothing waits for one.
    Healthy,
    /// QMP alive, no block operation completes, and a witness says that the guest wants I/O.
    BlockStalled,
    /// Proved unresponsive.
    QemuUnresponsive,
    /// QMP did not answer, but unresponsiveness is not proved; or its socket is in use.
    QmpUnavailable,
    /// QMP alive, I/O fine, the agent's port open but silent, screens alike.
    GuestUnresponsive,
    /// The guest's kernel panicked.
    GuestPanicked,
    /// A file system in the guest is full.
    GuestDiskFull,
    /// The guest ran out of memory.
    GuestOom,
    /// `io-error`, `internal-error`, `suspended`, `prelaunch`, `shutdown`, …
    Paused,
    /// No process of this VM.
    Stopped,
    /// "Stopped" for PVE, but something still holds the disk.
    Survivor,
    /// PVE holds a lock on the VM's configuration.
    Locked,
    /// `/etc/pve` hung or gone.
    PveUnresponsive,
    /// The configuration is on another node.
    Elsewhere,
    /// A verb was killed half-way.
    Interrupted,
    /// A word of a newer host: read, never judged. What it means stands in the sentence that comes with it.
    #[serde(other)]
    Newer,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(word)) => f.write_str(&word),
            _ => f.write_str("unknown"),
        }
    }
}

/// One thing that was found, and where to see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The code that this finding speaks for.
    pub code: Code,
    /// A sentence with its figures.
    pub text: String,
    /// Artifact paths within the bundle, or facts where there is no artifact.
    pub evidence: Vec<String>,
}

/// What to do next. Advice: only `reset` is ever refused because of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recommendation {
    /// The verb, where one helps.
    pub verb: Option<Verb>,
    /// Why, or what to do instead.
    pub why: String,
}

/// The whole judgement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assessment {
    /// The gravest finding's code, or `healthy`.
    pub code: Code,
    /// Whether nothing needs doing.
    pub healthy: bool,
    /// One sentence for a person.
    pub sentence: String,
    /// Every finding, gravest first.
    pub findings: Vec<Finding>,
    /// What to do next.
    pub recommend: Recommendation,
}
