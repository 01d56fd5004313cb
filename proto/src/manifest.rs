//! The manifest of a bundle: an in-toto Statement v1 whose predicate says what was asked, found, and not captured.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::{Assessment, Binary, KeyName, Origin, Probe, ProbeOutcome, RequestId, Sha256Hex, Timestamp, Unit64, Unit200, Verb, Vmid};

/// `_type` of every in-toto Statement v1.
pub const IN_TOTO_STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// Our predicate's type.
pub const PREDICATE_TYPE: &str = "urn:pve-verb:forensics:v1";

/// `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always [`IN_TOTO_STATEMENT`].
    #[serde(rename = "_type")]
    pub statement: String,
    /// Every artifact.
    pub subject: Vec<Subject>,
    /// Always [`PREDICATE_TYPE`].
    #[serde(rename = "predicateType")]
    pub predicate_type: String,
    /// What we state about them.
    pub predicate: Predicate,
}

/// One artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Its path within the bundle.
    pub name: String,
    /// Its hash, under `sha256`.
    pub digest: Digest,
}

/// Digests by algorithm; ours is always `sha256`.
pub type Digest = BTreeMap<String, Sha256Hex>;

/// Who asked for what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the members are those of `accepted`")]
pub struct RequestFacts {
    pub request_id: RequestId,
    pub verb: Verb,
    pub vmid: Vmid,
    pub key_name: KeyName,
    pub key_fingerprint: Option<String>,
    pub origin: Origin,
    pub actor: Option<Unit64>,
    pub reason: Option<Unit200>,
    pub dry_run: bool,
    pub started: Timestamp,
}

/// On which machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The node's name.
    pub node: String,
    /// The kernel's boot id.
    pub boot_id: String,
}

/// A question that has no answer, or only the beginning of one, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotCaptured {
    /// The probe's name.
    pub name: String,
    /// How it ended.
    pub outcome: ProbeOutcome,
    /// Why.
    pub why: String,
}

/// The predicate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predicate {
    /// Who asked for what.
    pub request: RequestFacts,
    /// On which machine.
    pub host: Host,
    /// By which binary.
    pub binary: Binary,
    /// Every probe that was tried, as the events say it.
    pub probes: Vec<Probe>,
    /// Every question without an answer.
    pub not_captured: Vec<NotCaptured>,
    /// The judgement.
    pub assessment: Assessment,
    /// What is weaker than it should be.
    pub degraded: Vec<String>,
}
