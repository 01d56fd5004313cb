//! Grants (PROTOCOL.md, section 6): a person's second key says yes to one mutation. What a grant says is checked here, and that it is
//! spent is made durable here; whether a key needs one is policy.rs's.
//!
//! Pure, apart from [`spend`]: the clock, the node and the signers come in.

use base64ct::{Base64UrlUnpadded, Encoding};
use proto::{KeyName, RequestId, Timestamp, Verb, Vmid, namespace};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

use crate::disk::Disk;
use crate::sign;
use crate::text::say::BadGrant;
use crate::writer::{Nonce, Op, Reply};

mod inspect;
mod signers;

pub use inspect::inspect;
pub use signers::Signers;

/// No grant is good for longer.
const LONGEST_MS: u64 = 24 * 3_600_000;

/// For what a grant has to be.
#[derive(Clone, Copy, Debug)]
pub struct Need<'a> {
    /// The key's VM.
    pub vmid: Vmid,
    /// This node.
    pub node: &'a str,
    /// What is asked.
    pub verb: Verb,
    /// The key that asks.
    pub key_name: &'a KeyName,
}

/// What a grant says, as its signer wrote it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    vmid: Vmid,
    node: String,
    verbs: Vec<Verb>,
    key_name: KeyName,
    not_before: Time,
    not_after: Time,
    nonce: Nonce,
    reason: String,
}

/// A time with or without milliseconds: people write these with `date`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
struct Time(Timestamp);

impl TryFrom<String> for Time {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let full = match text.strip_suffix('Z') {
            Some(seconds) if seconds.len() == 19 => format!("{seconds}.000Z"),
            _ => text,
        };
        Timestamp::try_from(full).map(Self)
    }
}

/// A grant that is good for what was asked, and not spent yet as far as anybody has looked. Made by [`check`] only.
#[derive(Clone, Debug)]
pub struct Granted {
    said: Said,
    /// Under which name its signer stands in `allowed_signers`.
    principal: String,
    fingerprint: String,
}

/// Reads a grant and checks everything but whether it is spent.
///
/// # Errors
/// Why it is no good.
pub fn check(text: &str, need: &Need<'_>, signers: &Signers, now: Timestamp) -> Result<Granted, BadGrant> {
    let granted = open(text, signers, now)?;
    let said = &granted.said;
    if said.vmid != need.vmid {
        return Err(BadGrant::OtherVm(said.vmid));
    }
    if said.node != need.node {
        return Err(BadGrant::OtherNode(said.node.clone()));
    }
    if !said.verbs.contains(&need.verb) {
        let verbs: Vec<String> = said.verbs.iter().map(Verb::to_string).collect();
        return Err(BadGrant::OtherVerb(if verbs.is_empty() { "no verb".to_owned() } else { verbs.join(", ") }));
    }
    if said.key_name != *need.key_name {
        return Err(BadGrant::OtherKey(said.key_name.to_string()));
    }
    granted.holds(now)?;
    Ok(granted)
}

/// Reads a grant and finds its signer.
fn open(text: &str, signers: &Signers, now: Timestamp) -> Result<Granted, BadGrant> {
    let malformed = |how: &str| BadGrant::Malformed(how.to_owned());
    let (body, sig) = text.split_once('.').ok_or_else(|| malformed("it has no dot"))?;
    let body = Base64UrlUnpadded::decode_vec(body).map_err(|_| malformed("what stands before the dot is not unpadded base64url"))?;
    let blob = Base64UrlUnpadded::decode_vec(sig).map_err(|_| malformed("what stands after the dot is not unpadded base64url"))?;
    let said: Said = serde_json::from_slice(&body).map_err(|e| BadGrant::Malformed(e.to_string()))?;
    let person = sign::person_who_signed(namespace::GRANT, &body, &blob).ok_or(BadGrant::BadSignature)?;
    if person.touched == Some(false) {
        return Err(BadGrant::NoTouch);
    }
    let principal = signers.principal_of(&person.key, now)?;
    Ok(Granted { said, principal, fingerprint: person.fingerprint() })
}

impl Granted {
    /// Whether it is valid now.
    fn holds(&self, now: Timestamp) -> Result<(), BadGrant> {
        let (from, to) = (self.said.not_before.0, self.said.not_after.0);
        match to.unix_ms().checked_sub(from.unix_ms()) {
            None => return Err(BadGrant::Malformed("it ends before it begins".to_owned())),
            Some(ms) if ms > LONGEST_MS => return Err(BadGrant::TooLong),
            Some(_) => {}
        }
        if now < from {
            return Err(BadGrant::NotYet(from));
        }
        if now > to {
            return Err(BadGrant::Expired(to));
        }
        Ok(())
    }

    /// What the intent record says of it.
    pub fn facts(&self) -> Value {
        json!({
            "nonce": String::from(self.said.nonce.clone()), "signer": self.principal, "signer_fingerprint": self.fingerprint,
            "reason": proto::escape_cut(self.said.reason.as_bytes(), 200), "not_after": self.said.not_after.0,
        })
    }
}

/// Spends it: once this returns its nonce is durable on disk, and nobody can use it again, whatever becomes of this request.
///
/// `newest` is the time of the newest record that this host knows of: a clock that was set back revives no grant.
///
/// # Errors
/// Spent before, expired meanwhile, or the disk did not take the nonce in time.
pub fn spend(
    granted: &Granted,
    by: &RequestId,
    (now, newest): (Timestamp, Option<Timestamp>),
    disk: &Disk,
    within: Duration,
) -> Result<(), BadGrant> {
    granted.holds(now)?;
    let to = granted.said.not_after.0;
    if newest.is_some_and(|newest| newest > to) {
        return Err(BadGrant::Expired(to));
    }
    let note = json!({"request_id": by, "at": now}).to_string();
    match disk.call(&Op::GrantSpend { nonce: granted.said.nonce.clone() }, note.as_bytes(), within) {
        Ok(Reply::Done {}) => Ok(()),
        Ok(Reply::Spent { by }) => Err(BadGrant::Spent(by)),
        Ok(other) => Err(BadGrant::NotRecorded(format!("the writer answered {other:?}"))),
        Err(e) => Err(BadGrant::NotRecorded(e.to_string())),
    }
}

#[cfg(test)]
mod tests;
