//! The receipt: the signed last word of every answer. This file knows its shape, not its cryptography.

use base64ct::{Base64, Encoding};
use serde::{Deserialize, Serialize};

use crate::{
    BundleName, Code, KeyName, Message, Origin, Outcome, RequestId, Sha256Hex, Timestamp, Unit64, Unit200, VERSION, Verb, VmState, Vmid,
    Where, Witness,
};

/// The members that `receipt` has beyond every event's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Base64 of the body's JSON bytes. The signature is over exactly these bytes, so nobody needs a canonical form.
    pub body: String,
    /// Base64 of the raw SSHSIG blob; null where the host has no usable signing key (then the answer is *unknown (unsigned)*).
    pub sig: Option<String>,
}

/// A QEMU process, named so that its pid's reuse can't be mistaken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuProcess {
    /// Its pid.
    pub pid: u32,
    /// Its start time in clock ticks since boot, field 22 of `/proc/PID/stat`.
    pub started: u64,
}

/// Where in the audit log this request's own last record stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditPosition {
    /// Its number.
    pub seq: u64,
    /// Hash of the record before it.
    pub prev: Sha256Hex,
    /// Hash of the record.
    pub head: Sha256Hex,
}

/// What the host says to the head that the caller showed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessAnswer {
    /// The head that the caller holds.
    pub given: Witness,
    /// Whether the host's log contains it; null where that could not be told in time.
    pub ok: Option<bool>,
}

/// What a receipt states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptBody {
    /// The protocol version.
    pub v: u8,
    /// Whose receipt it is.
    pub request_id: RequestId,
    /// The verb; null where the request was not in the grammar.
    pub verb: Option<Verb>,
    /// The VM that the key is for.
    pub vmid: Vmid,
    /// The node that answered.
    pub node: String,
    /// Whether nothing was to be changed.
    pub dry_run: bool,
    /// The key's name.
    pub key_name: KeyName,
    /// Who is said to act.
    pub origin: Origin,
    /// Who, as the caller claims.
    pub actor: Option<Unit64>,
    /// Why, as the caller claims.
    pub reason: Option<Unit200>,
    /// How it ended.
    pub outcome: Outcome,
    /// The outcome's exit code.
    pub exit_code: u8,
    /// Whether the VM was in the wanted state before.
    pub already: bool,
    /// Whether this is the stored answer of an earlier run.
    pub replayed: bool,
    /// Whether the run that did it was killed.
    pub interrupted: bool,
    /// The VM before.
    pub state_before: VmState,
    /// The VM after.
    pub state_after: VmState,
    /// Its process before.
    pub qemu_before: Option<QemuProcess>,
    /// Its process after.
    pub qemu_after: Option<QemuProcess>,
    /// The judgement's code, where there was one.
    pub assessment: Option<Code>,
    /// The evidence bundle, where one was made or shown.
    pub bundle: Option<BundleName>,
    /// On which rung it is.
    pub preserved_where: Option<Where>,
    /// SHA-256 of its manifest.
    pub manifest_sha256: Option<Sha256Hex>,
    /// What is weaker than it should be.
    pub degraded: Vec<String>,
    /// What happened, and what to do.
    pub message: Message,
    /// When the request came.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
    /// Where the record of it stands; null where no record could be written anywhere.
    pub audit: Option<AuditPosition>,
    /// The caller's head, and whether the log has it.
    pub witness: Option<WitnessAnswer>,
    /// The binary that answered; null where its file could not be read.
    pub binary_sha256: Option<Sha256Hex>,
    /// Mutating uses since the last review; null where the log could not be asked.
    pub unreviewed: Option<u64>,
    /// Why `sig` is null, where it is.
    pub unsigned_reason: Option<String>,
}

/// Why some bytes are not a receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotAReceipt {
    /// Not standard, padded, canonical base64.
    Base64,
    /// Not the JSON of a body; the parser's words.
    Json(String),
    /// Another protocol version.
    Version(u8),
    /// `exit_code` is not the outcome's.
    Contradiction,
}

/// The base64 under which a body travels.
pub fn encode_body(body: &ReceiptBody) -> Result<(String, Vec<u8>), serde_json::Error> {
    let bytes = serde_json::to_vec(body)?;
    Ok((Base64::encode_string(&bytes), bytes))
}

/// The body and the exact bytes that the signature is over. The signature itself is for the caller to check, first.
///
/// # Errors
/// [`NotAReceipt`], each kind as it says.
pub fn decode_body(body: &str) -> Result<(ReceiptBody, Vec<u8>), NotAReceipt> {
    let bytes = Base64::decode_vec(body).map_err(|_| NotAReceipt::Base64)?;
    let parsed: ReceiptBody = serde_json::from_slice(&bytes).map_err(|e| NotAReceipt::Json(e.to_string()))?;
    if parsed.v != VERSION {
        return Err(NotAReceipt::Version(parsed.v));
    }
    if parsed.exit_code != parsed.outcome.exit_code() {
        return Err(NotAReceipt::Contradiction);
    }
    Ok((parsed, bytes))
}
