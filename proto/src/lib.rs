//! What crosses a boundary between `pve-verb` and its callers: requests, events, exit codes, receipts, manifests.
//!
//! The contract is `PROTOCOL.md` beside this crate; this is its vocabulary as types. No I/O, no clock, no cryptography:
//! everything here is a pure function of its input, so that random input can be thrown at all of it.

mod assessment;
mod event;
mod id;
mod manifest;
mod outcome;
mod receipt;
mod request;
mod state;
mod text;
mod time;
mod verb;

pub use assessment::{Assessment, Code, Finding, Recommendation};
pub use event::{
    Accepted, Ack, Artifact, ArtifactRef, Binary, Body, Event, Offered, Preserved, Probe, ProbeOutcome, Step, StepName, StepOutcome, Where,
};
pub use id::{BundleName, KeyName, RequestId, Sha256Hex, Vmid};
pub use manifest::{Digest, Host, IN_TOTO_STATEMENT, Manifest, NotCaptured, PREDICATE_TYPE, Predicate, RequestFacts, Subject};
pub use outcome::{Message, Outcome};
pub use receipt::{AuditPosition, NotAReceipt, QemuProcess, Receipt, ReceiptBody, WitnessAnswer, decode_body, encode_body};
pub use request::{Draft, Grant, MAX_REQUEST_BYTES, Misplaced, Origin, Rejected, Request, Unit64, Unit200, Why, Witness};
pub use state::{HostState, RunState, VmState};
pub use text::{escape, escape_ascii, escape_cut};
pub use time::Timestamp;
pub use verb::{Verb, VerbSet};

/// The protocol version in every event, receipt and record.
pub const VERSION: u8 = 1;

/// SSHSIG namespaces: a signature made for one purpose is worthless for another.
pub mod namespace {
    /// Receipts (PROTOCOL.md, section 5).
    pub const RECEIPT: &str = "pve-verb-receipt";
    /// Bundle manifests.
    pub const MANIFEST: &str = "pve-verb-manifest";
    /// The audit log's head, and the prefix of each line's raw signature.
    pub const LOG: &str = "pve-verb-log";
    /// Grants, made by a person's second key.
    pub const GRANT: &str = "pve-verb-grant";
}

/// The principal under which a host's signing key stands in an `allowed_signers` file.
pub fn principal(node: &str) -> String {
    format!("pve-verb@{node}")
}
