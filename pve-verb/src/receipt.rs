//! The receipt: made of a closed record, and of nothing less. Signing it is the last thing that happens to a request.
//!
//! Without a usable key the verb has acted all the same: the receipt says so, unsigned, and a client shows *unknown (unsigned)*.

use base64ct::{Base64, Encoding};
use proto::{
    AuditPosition, BundleName, Code, KeyName, Message, Origin, QemuProcess, Receipt, ReceiptBody, RequestId, Sha256Hex, Unit64, Unit200,
    VERSION, Verb, VmState, Vmid, Where, WitnessAnswer, encode_body, namespace,
};

use crate::audit::Closed;
use crate::sign::Signer;

/// What the pipeline knows at the end. The rest of the body comes from the record: outcome, times, audit position, unreviewed.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is the body's member of its name")]
pub struct Facts {
    pub request_id: RequestId,
    pub verb: Option<Verb>,
    pub vmid: Vmid,
    pub node: String,
    pub dry_run: bool,
    pub key_name: KeyName,
    pub origin: Origin,
    pub actor: Option<Unit64>,
    pub reason: Option<Unit200>,
    pub already: bool,
    pub interrupted: bool,
    pub state_before: VmState,
    pub state_after: VmState,
    pub qemu_before: Option<QemuProcess>,
    pub qemu_after: Option<QemuProcess>,
    pub assessment: Option<Code>,
    pub bundle: Option<BundleName>,
    pub preserved_where: Option<Where>,
    pub manifest_sha256: Option<Sha256Hex>,
    pub degraded: Vec<String>,
    pub message: Message,
    pub witness: Option<WitnessAnswer>,
    pub binary_sha256: Option<Sha256Hex>,
}

/// The receipt of a closed record, and its body for whoever shows it.
///
/// # Errors
/// Where the body has no JSON form: a bug, which exit code 70 is for.
pub fn make(closed: Closed, facts: Facts, signer: Result<&Signer, &str>) -> Result<(Receipt, ReceiptBody), String> {
    let audit = closed.position.map(|p| AuditPosition { seq: p.seq, prev: p.prev, head: p.head });
    let mut degraded = facts.degraded;
    degraded.extend(closed.degraded);
    let body = ReceiptBody {
        v: VERSION,
        request_id: facts.request_id,
        verb: facts.verb,
        vmid: facts.vmid,
        node: facts.node,
        dry_run: facts.dry_run,
        key_name: facts.key_name,
        origin: facts.origin,
        actor: facts.actor,
        reason: facts.reason,
        outcome: closed.outcome,
        exit_code: closed.outcome.exit_code(),
        already: facts.already,
        replayed: false,
        interrupted: facts.interrupted,
        state_before: facts.state_before,
        state_after: facts.state_after,
        qemu_before: facts.qemu_before,
        qemu_after: facts.qemu_after,
        assessment: facts.assessment,
        bundle: facts.bundle,
        preserved_where: facts.preserved_where,
        manifest_sha256: facts.manifest_sha256,
        degraded,
        message: facts.message,
        started: closed.started,
        finished: closed.finished,
        audit,
        witness: facts.witness,
        binary_sha256: facts.binary_sha256,
        unreviewed: closed.unreviewed,
        unsigned_reason: None,
    };
    sealed(body, signer)
}

/// The stored answer of an earlier run, signed anew. Its audit position stays the original's; the replay's own record is `closed`.
///
/// # Errors
/// As [`make`].
pub fn replay(closed: Closed, stored: ReceiptBody, signer: Result<&Signer, &str>) -> Result<(Receipt, ReceiptBody), String> {
    let mut body = ReceiptBody { replayed: true, unreviewed: closed.unreviewed, unsigned_reason: None, ..stored };
    body.degraded.extend(closed.degraded);
    sealed(body, signer)
}

fn sealed(body: ReceiptBody, signer: Result<&Signer, &str>) -> Result<(Receipt, ReceiptBody), String> {
    let signer = match signer {
        Ok(signer) => signer,
        Err(why) => return unsigned(body, why),
    };
    let (encoded, bytes) = encode_body(&body).map_err(|e| e.to_string())?;
    match signer.sshsig(namespace::RECEIPT, &bytes) {
        Ok(blob) => Ok((Receipt { body: encoded, sig: Some(Base64::encode_string(&blob)) }, body)),
        Err(why) => unsigned(body, &why),
    }
}

fn unsigned(mut body: ReceiptBody, why: &str) -> Result<(Receipt, ReceiptBody), String> {
    body.degraded.push(format!("the receipt is not signed: {why}"));
    body.unsigned_reason = Some(why.to_owned());
    let (encoded, _) = encode_body(&body).map_err(|e| e.to_string())?;
    Ok((Receipt { body: encoded, sig: None }, body))
}

#[cfg(test)]
#[path = "receipt/tests.rs"]
mod tests;
