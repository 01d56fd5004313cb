//! One record as one line of JSON, hashed and signed. Pure, apart from the clocks.

use base64ct::{Base64, Encoding};
use proto::{Sha256Hex, Timestamp, namespace};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::host;
use crate::operation::{Mark, mark};
use crate::sign::Signer;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A request that changed nothing, and its answer.
    Read,
    /// A refusal: nothing was sent to the VM.
    Refused,
    /// A mutation is about to begin.
    Intent,
    /// A step of it.
    Step,
    /// Its end.
    Outcome,
    /// A worker was killed half-way.
    Interrupted,
    /// The log itself was damaged, and goes on from here.
    Repair,
    /// A late holder of the mutation lock was killed.
    Takeover,
    /// Reads or refusals of a key that were counted, and have no records of their own.
    Summary,
    /// The oldest segment was dropped.
    Pruned,
    /// A person has looked at what was done.
    Review,
    /// Another signing key from here on.
    Rotate,
    /// Another binary or configuration answers from here on, or the host came up.
    Start,
    /// Something is weaker than it should be.
    Degraded,
}

/// Where a record stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Its number.
    pub seq: u64,
    /// The hash of the record before it.
    pub prev: Sha256Hex,
    /// Its own hash.
    pub head: Sha256Hex,
    /// Why it is on tmpfs only, where it is.
    pub degraded: Option<String>,
}

/// A line of the chain as it stands in a file, without its newline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) seq: u64,
    pub(crate) prev: Sha256Hex,
    pub(super) kind: Kind,
    /// When, by the clock that the host had; none in a line that says it in another form.
    pub(super) at: Option<Timestamp>,
    pub(super) hash: Sha256Hex,
    pub(super) text: Vec<u8>,
}

impl Line {
    /// What it says about intents.
    pub(super) fn mark(&self) -> Option<Mark> {
        mark(&self.text)
    }

    /// Reads a line; none where it is no record.
    pub(crate) fn read(text: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Members {
            seq: u64,
            prev: Sha256Hex,
            kind: Kind,
            at: Option<String>,
        }
        let Members { seq, prev, kind, at } = serde_json::from_slice(text).ok()?;
        Some(Self { seq, prev, kind, at: at.as_deref().and_then(Timestamp::parse), hash: hash(text), text: text.to_owned() })
    }

    /// The next line of a chain that ends with `seq` and `head`.
    pub(super) fn next(
        (seq, head): (u64, Sha256Hex),
        boot_id: &str,
        kind: Kind,
        facts: Map<String, Value>,
        signer: Option<&Signer>,
    ) -> Result<Self, String> {
        let mut members = Map::new();
        let now = host::now();
        let seq = seq.checked_add(1).ok_or("the log has no numbers left")?;
        for (name, value) in [
            ("seq", json!(seq)),
            ("at", json!(now)),
            ("boot_id", json!(boot_id)),
            ("monotonic_ns", json!(host::monotonic_ns())),
            ("prev", json!(head)),
            ("kind", json!(kind)),
        ] {
            members.insert(name.to_owned(), value);
        }
        for (name, value) in facts {
            // A fact must not pass for one of the chain's own members; it is kept under another name.
            let name = if members.contains_key(&name) || name == "sig" { format!("fact_{name}") } else { name };
            members.insert(name, value);
        }
        let mut text = serde_json::to_string(&members).map_err(|e| e.to_string())?;
        text.pop();
        let sig = signer.map(|s| Base64::encode_string(&s.raw(&signed_part(text.as_bytes()))));
        text.push_str(",\"sig\":");
        text.push_str(&serde_json::to_string(&sig).map_err(|e| e.to_string())?);
        text.push('}');
        let text = text.into_bytes();
        Ok(Self { seq, prev: head, kind, at: Some(now), hash: hash(&text), text })
    }
}

/// What a line's signature is over: a prefix, so that it is worth nothing elsewhere, and the line's bytes before `,"sig":`.
pub(crate) fn signed_part(before_sig: &[u8]) -> Vec<u8> {
    [namespace::LOG.as_bytes(), b"\n", before_sig].concat()
}

pub(super) fn hash(bytes: &[u8]) -> Sha256Hex {
    Sha256Hex::from_bytes(Sha256::digest(bytes).into())
}

/// `head.json` for a log that ends here: {body: base64 of {seq, head}, sig: base64 of the raw SSHSIG blob, or null}.
///
/// # Errors
/// The signer's.
pub fn signed_head(seq: u64, head: &Sha256Hex, signer: Option<&Signer>) -> Result<String, String> {
    let body = json!({"seq": seq, "head": head}).to_string();
    let sig = signer.map(|s| s.sshsig(namespace::LOG, body.as_bytes())).transpose()?.map(|blob| Base64::encode_string(&blob));
    Ok(json!({"body": Base64::encode_string(body.as_bytes()), "sig": sig}).to_string())
}

/// What a `head.json` claims; none where it is none.
pub(crate) fn claimed_head(text: &str) -> Option<(u64, Sha256Hex)> {
    #[derive(Deserialize)]
    struct File {
        body: String,
    }
    #[derive(Deserialize)]
    struct Body {
        seq: u64,
        head: Sha256Hex,
    }
    let file: File = serde_json::from_str(text).ok()?;
    let body: Body = serde_json::from_slice(&Base64::decode_vec(&file.body).ok()?).ok()?;
    Some((body.seq, body.head))
}
