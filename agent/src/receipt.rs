//! Checks the receipt at the end of an answer (PROTOCOL.md, section 5). Success is a [`Proved`] whose outcome is done, and nothing else.
//!
//! The signature is checked before a byte of the body is looked at. There is one way to write an ed25519 SSHSIG of a known key for a
//! known purpose, but for its 64 bytes: everything before them is compared, not decoded, so a flipped bit anywhere is no signature.

use base64ct::{Base64, Encoding};
use ed25519_dalek::{Signature, VerifyingKey};
use proto::{NotAReceipt, Outcome, ReceiptBody, RequestId, Verb, Vmid, namespace};
use ssh_key::{HashAlg, SshSig};

use crate::UNKNOWN;
use crate::answer::{Broken, Unchecked};
use crate::signers::Pinned;

/// What the caller asked: a receipt for something else is not an answer to it. What is absent was not told.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The request's id.
    pub request_id: Option<RequestId>,
    /// The verb.
    pub verb: Option<Verb>,
    /// The VM.
    pub vmid: Option<Vmid>,
}

/// A receipt that the pinned key signed and that is about what was asked. Made by [`check`] alone.
#[derive(Debug)]
pub struct Proved {
    body: ReceiptBody,
    by: String,
    line: String,
}

/// Why nothing is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unproved {
    /// There is no receipt to check.
    Answer(Broken),
    /// No key was given to check it with.
    NoKey,
    /// The host had no usable signing key; its own words are not ours to repeat, as nobody signed them.
    Unsigned,
    /// Not a signature of the pinned key, for receipts, over exactly these bytes.
    BadSignature,
    /// Signed, and still not the body of a receipt that this version reads.
    Body(NotAReceipt),
    /// Signed: the host could not read a request. It can't say whose, as it did not read the id either.
    NotUnderstood(proto::Message),
    /// Signed, and about another VM than the one that was asked for.
    OtherVm {
        /// The one that was asked for.
        wanted: Vmid,
        /// The one that it is about.
        got: Vmid,
    },
    /// Signed, and about something else: what was wanted, what it is about.
    Foreign {
        /// The member that differs.
        what: &'static str,
        /// What the caller asked.
        wanted: String,
        /// What the receipt is about.
        got: String,
    },
}

/// Checks it against the host's pinned key and what was asked.
///
/// # Errors
/// Why it proves nothing.
pub fn check(unchecked: &Unchecked, pinned: Option<&Pinned>, asked: &Asked) -> Result<Proved, Unproved> {
    let pinned = pinned.ok_or(Unproved::NoKey)?;
    let sig = unchecked.receipt.sig.as_deref().ok_or(Unproved::Unsigned)?;
    let blob = Base64::decode_vec(sig).map_err(|_| Unproved::BadSignature)?;
    let bytes = Base64::decode_vec(&unchecked.receipt.body).map_err(|_| Unproved::BadSignature)?;
    if !signed_by(pinned, &bytes, &blob) {
        return Err(Unproved::BadSignature);
    }
    let (body, _) = proto::decode_body(&unchecked.receipt.body).map_err(Unproved::Body)?;
    foreign(&body, unchecked, pinned, asked).map_or(Ok(()), Err)?;
    Ok(Proved { body, by: pinned.fingerprint(), line: unchecked.line.clone() })
}

/// Whether the blob is the SSHSIG of this key, for receipts, over these bytes.
fn signed_by(pinned: &Pinned, bytes: &[u8], blob: &[u8]) -> bool {
    let Some(signature) = blob.strip_prefix(envelope(pinned).as_slice()) else { return false };
    let Ok(signature) = Signature::from_slice(signature) else { return false };
    let Ok(signed) = SshSig::signed_data(namespace::RECEIPT, HashAlg::Sha512, bytes) else { return false };
    // Strict: RFC 8032's leeway would let a crafted key or signature verify in one library and not in the next.
    VerifyingKey::from_bytes(pinned.raw()).is_ok_and(|key| key.verify_strict(&signed, &signature).is_ok())
}

/// Everything of the SSHSIG blob before the signature's 64 bytes (openssh's PROTOCOL.sshsig).
fn envelope(pinned: &Pinned) -> Vec<u8> {
    let algorithm: &[u8] = b"ssh-ed25519";
    let mut blob = b"SSHSIG\0\0\0\x01".to_vec();
    blob.extend(string(&[string(algorithm), string(pinned.raw())].concat()));
    for text in [namespace::RECEIPT.as_bytes(), b"", b"sha512"] {
        blob.extend(string(text));
    }
    blob.extend([0, 0, 0, 83]); // the signature: its algorithm and 64 bytes, each with its length
    blob.extend(string(algorithm));
    blob.extend([0, 0, 0, 64]);
    blob
}

/// A string of the SSH protocol. What is put in here is short.
fn string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes(), bytes].concat()
}

/// What the receipt is about, held against what was asked and what the answer around it claims.
fn foreign(body: &ReceiptBody, unchecked: &Unchecked, pinned: &Pinned, asked: &Asked) -> Option<Unproved> {
    let differs = |what, wanted: &dyn ToString, got: &dyn ToString| {
        Some(Unproved::Foreign { what, wanted: wanted.to_string(), got: got.to_string() })
    };
    if body.verb.is_none() && body.outcome == Outcome::RefusedRequest && (asked.request_id.is_some() || asked.verb.is_some()) {
        return Some(Unproved::NotUnderstood(body.message.clone()));
    }
    if let Some(id) = asked.request_id.as_ref().or(Some(&unchecked.request_id)).filter(|id| **id != body.request_id) {
        return differs("request", id, &body.request_id);
    }
    if let Some(verb) = asked.verb.filter(|verb| Some(*verb) != body.verb) {
        return differs("verb", &verb, &body.verb.map_or("none".to_owned(), |verb| verb.to_string()));
    }
    if let Some(vmid) = asked.vmid.filter(|vmid| *vmid != body.vmid) {
        return Some(Unproved::OtherVm { wanted: vmid, got: body.vmid });
    }
    if !pinned.speaks_for(&body.node) {
        return differs("host", &"the one that the key belongs to", &body.node);
    }
    None
}

impl Proved {
    /// What the host signed.
    pub const fn body(&self) -> &ReceiptBody {
        &self.body
    }

    /// The fingerprint of the key that signed.
    pub fn by(&self) -> &str {
        &self.by
    }

    /// The answer's last line, as it came, without its newline: whoever has it can check it again.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// Whether what was asked for was observed. For a dry run that is: nothing was changed.
    pub const fn is_success(&self) -> bool {
        matches!(self.body.outcome, Outcome::Done)
    }
}

/// The exit status for a checked answer: the host's, or [`UNKNOWN`].
pub fn exit_code(checked: &Result<Proved, Unproved>) -> u8 {
    checked.as_ref().map_or(UNKNOWN, |proved| proved.body.exit_code)
}
