//! The events of an answer: one JSON object a line (`--json`), in PROTOCOL.md, section 3.

use serde::{Deserialize, Serialize};

use crate::{Assessment, BundleName, KeyName, Origin, Receipt, RequestId, Sha256Hex, Timestamp, Unit64, Unit200, VERSION, Verb, Vmid};

/// One line of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The protocol version.
    pub v: u8,
    /// When it was made.
    pub at: Timestamp,
    /// Whose answer it is part of.
    pub request_id: RequestId,
    /// What happened.
    #[serde(flatten)]
    pub body: Body,
}

impl Event {
    /// An event of this protocol version.
    pub const fn new(at: Timestamp, request_id: RequestId, body: Body) -> Self {
        Self { v: VERSION, at, request_id, body }
    }
}

/// What an event says; its name is the member `event`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Body {
    /// The request was understood and this key may say it.
    Accepted(Accepted),
    /// A probe was tried.
    Probe(Probe),
    /// The evidence was judged.
    Assessment(Assessment),
    /// A file of a bundle that only the caller can keep.
    Artifact(Artifact),
    /// All of that bundle was sent; the caller's `ack` is awaited.
    Offered(Offered),
    /// The evidence is durable; from here on the VM may be changed.
    Preserved(Preserved),
    /// A step of a mutation.
    Step(Step),
    /// The signed end; always last, exactly once.
    Receipt(Receipt),
}

/// The binary that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binary {
    /// Its version.
    pub version: String,
    /// SHA-256 of its file; null where it could not be read.
    pub sha256: Option<Sha256Hex>,
}

/// `accepted`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The verb.
    pub verb: Verb,
    /// The VM.
    pub vmid: Vmid,
    /// The node that answers.
    pub node: String,
    /// The admin's name for the key, or `console:USER`.
    pub key_name: KeyName,
    /// The key's fingerprint, where `authorized_keys` says it.
    pub key_fingerprint: Option<String>,
    /// Who is said to act.
    pub origin: Origin,
    /// Who, as the caller claims.
    pub actor: Option<Unit64>,
    /// Why, as the caller claims.
    pub reason: Option<Unit200>,
    /// The bound on the whole verb, from now, in milliseconds.
    pub deadline_ms: u64,
    /// The binary that answers.
    pub binary: Binary,
    /// Whether this caller joined a request that was already running.
    pub attached: bool,
}

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeOutcome {
    /// There is an artifact.
    Captured,
    /// No answer by its deadline; it was abandoned.
    TimedOut,
    /// There was nothing to ask: no such tool, file or process.
    Unavailable,
    /// It answered with an error.
    Failed,
}

/// A file within a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRef {
    /// Its path within the bundle.
    pub path: String,
    /// Its media type.
    pub media_type: String,
    /// Its length.
    pub bytes: u64,
    /// Its hash.
    pub sha256: Sha256Hex,
}

/// `probe`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The probe: `group/question`, as the artifact's path without its ending.
    pub name: String,
    /// How it ended.
    pub outcome: ProbeOutcome,
    /// How long it took.
    pub ms: u64,
    /// Why there is no artifact, or what is odd about it; escaped.
    pub detail: Option<String>,
    /// The artifact; where it was not captured, what had come by then, if anything.
    pub artifact: Option<ArtifactRef>,
    /// The artifact's bytes in base64, with `--inline` only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub data: Option<String>,
}

/// `artifact`: one file of a bundle that no rung of the host's could take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Its path within the bundle.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Its hash.
    pub sha256: Sha256Hex,
    /// Its bytes in base64.
    pub data: String,
}

/// `offered`: the bundle is with the caller, who now says that it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offered {
    /// Its name.
    pub bundle: BundleName,
    /// SHA-256 of its `manifest.json`: what the `ack` names.
    pub manifest_sha256: Sha256Hex,
    /// How many `artifact` events there were.
    pub files: u64,
    /// The questions whose artifacts were left out, because all of them together were too long.
    pub left_out: Vec<String>,
    /// How long the `ack` is awaited, in milliseconds.
    pub wait_ms: u64,
}

/// What the caller says on stdin once it keeps the bundle: `ack MANIFEST_SHA256` and a newline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack(pub Sha256Hex);

impl Ack {
    /// The bytes of the line, its newline with them.
    pub const BYTES: usize = 4 + 64 + 1;

    /// Reads the line; there is one way to write it.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(line).ok()?;
        text.strip_prefix("ack ")?.strip_suffix('\n')?.parse().ok().map(Self)
    }
}

impl std::fmt::Display for Ack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "ack {}", self.0)
    }
}

/// On which rung the evidence is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Where {
    /// Synced to the host's disk.
    Disk,
    /// On tmpfs only: it survives the VM and the worker, not the host's power.
    Tmpfs,
    /// Only the caller has it, and said so.
    Caller,
}

/// `preserved`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preserved {
    /// The bundle's name.
    pub bundle: BundleName,
    /// Where it is.
    #[serde(rename = "where")]
    pub place: Where,
    /// SHA-256 of its `manifest.json`.
    pub manifest_sha256: Sha256Hex,
    /// What is weaker than it should be.
    pub degraded: Vec<String>,
}

/// The steps of a mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names say it; PROTOCOL.md, section 8, says how")]
pub enum StepName {
    Preflight,
    Kill,
    QmStop,
    QmStart,
    SystemReset,
    Resume,
    Cleanup,
    Takeover,
    Observe,
}

impl std::fmt::Display for StepName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Preflight => "preflight",
            Self::Kill => "kill",
            Self::QmStop => "qm-stop",
            Self::QmStart => "qm-start",
            Self::SystemReset => "system-reset",
            Self::Resume => "resume",
            Self::Cleanup => "cleanup",
            Self::Takeover => "takeover",
            Self::Observe => "observe",
        })
    }
}

/// `started`, then one of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names say it")]
pub enum StepOutcome {
    Started,
    Done,
    Failed,
    TimedOut,
}

/// `step`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which step.
    pub name: StepName,
    /// How far it is.
    pub outcome: StepOutcome,
    /// Milliseconds since it started.
    pub ms: u64,
    /// What was seen; escaped.
    pub detail: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_flat_object_that_names_itself() {
        let step = Step { name: StepName::QmStop, outcome: StepOutcome::TimedOut, ms: 7, detail: None };
        let id = RequestId::from_random([1; 16]);
        let event = Event::new(Timestamp::from_unix_ms(0), id, Body::Step(step));
        let line = serde_json::to_string(&event).unwrap();
        assert_eq!(
            line,
            r#"{"v":1,"at":"1970-01-01T00:00:00.000Z","request_id":"01010101-0101-4101-8101-010101010101","event":"step","name":"qm-stop","outcome":"timed_out","ms":7,"detail":null}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
    }

    #[test]
    fn an_ack_has_one_spelling() {
        let hash = "0a".repeat(32);
        let line = format!("ack {hash}\n");
        let ack = Ack::parse(line.as_bytes()).unwrap();
        assert_eq!((ack.to_string(), line.len()), (line.clone(), Ack::BYTES));
        for bad in [
            format!("ack {hash}"),
            format!("ack {hash}\r\n"),
            format!("ack  {hash}\n"),
            format!(" ack {hash}\n"),
            format!("ACK {hash}\n"),
            format!("ack {}\n", hash.to_uppercase()),
            format!("ack {hash}0\n"),
            format!("ack {hash}\n\n"),
            "ack \n".to_owned(),
            String::new(),
        ] {
            assert_eq!(Ack::parse(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
