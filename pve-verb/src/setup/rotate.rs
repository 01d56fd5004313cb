//! `rotate`: another signing key from here on. The old key signs a record that names the new one, so that who trusts either can follow;
//! only when that is on disk does the new key take the old one's place.
//!
//! Killed anywhere in between it can be run again: the new key waits in `signing_key.next` until it is in its place.

use proto::{Message, Timestamp, principal};
use rustix::fs::RenameFlags;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Write;

use super::init::{new_key, place};
use super::{Site, allowed_signers_line, failed, need_root, retired_signers_line};
use crate::audit::{Kind, Log};
use crate::config::Config;
use crate::disk::Disk;
use crate::door::Caller;
use crate::host::{self, path};
use crate::lock;
use crate::sign::Signer;
use crate::text::say;

/// Puts a new key in the old one's place and prints the lines for verifiers.
///
/// # Errors
/// While a mutation is in progress, without a usable key, or where the record does not reach the disk: then the old key stays.
pub fn rotate(out: &mut dyn Write) -> Result<(), Message> {
    need_root()?;
    host::ready()?;
    // A worker signs with the key that it began with.
    let Some(_only) = lock::only() else {
        return Err(lock::holder().map_or_else(
            || say::busy_unknown("its file can't be read"),
            |h| say::busy(h.verb, &h.request_id, h.key_name.as_str(), h.since),
        ));
    };
    let (config, _) = Config::load();
    let by = Caller::console(proto::Vmid::DEVVM).key_name;
    let open = |signer: &Signer| Log::open(Disk::spawn(), Some(signer.clone()), config.audit.keep_bytes.bytes());
    rotate_at(&Site::host(), config.host.node.as_str(), by.as_str(), host::now(), open, out)
}

pub(crate) fn rotate_at(
    site: &Site,
    node: &str,
    by: &str,
    now: Timestamp,
    open: impl Fn(&Signer) -> Log,
    out: &mut dyn Write,
) -> Result<(), Message> {
    let key = site.path(path::SIGNING_KEY);
    let next = key.with_extension("next");
    let old = Signer::load_from(&key, site.owner).map_err(|why| {
        Message::new(
            format!("There is no key to rotate from: {why}."),
            "Move it away and run `pve-verb init`; verifiers then learn of the new key from you alone.",
        )
    })?;
    if !next.exists() {
        let text = new_key(node).map_err(|e| failed("Making", &next, e))?;
        place(&next, text.as_bytes(), 0o600, RenameFlags::NOREPLACE).map_err(|e| failed("Writing", &next, e))?;
    }
    let new = Signer::load_from(&next, site.owner).map_err(|why| failed("Reading", &next, why))?;
    let mut facts = Map::new();
    for (name, value) in [
        ("what", json!("the new key signs from the next record on")),
        ("key_name", json!(by)),
        ("old_key", json!(old.public_openssh())),
        ("new_key", json!(new.public_openssh())),
    ] {
        facts.insert(name.to_owned(), Value::clone(&value));
    }
    let position = open(&old).append(Kind::Rotate, facts).map_err(|why| say::intent_nowhere(&why))?;
    if let Some(why) = position.degraded {
        return Err(Message::new(
            format!("The old key stays, because its word for the new one is not on disk: {why}."),
            "Look at the disk of /var/log/pve-verb, then run this again.",
        ));
    }
    std::fs::rename(&next, &key).map_err(|e| failed("Replacing", &key, e))?;
    key.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all()).map_err(|e| failed("Syncing", &key, e))?;
    let public = site.path(path::SIGNING_PUB);
    let line = format!("{} {}\n", new.public_openssh(), principal(node));
    place(&public, line.as_bytes(), 0o644, RenameFlags::empty()).map_err(|e| failed("Writing", &public, e))?;
    let told = writeln!(
        out,
        "Record {} of the log names the new key. For verifiers, instead of the old line:\n{}\n{}",
        position.seq,
        retired_signers_line(node, &old, now),
        allowed_signers_line(node, &new)
    );
    told.map_err(|e| {
        Message::new(format!("The lines could not be printed: {e}."), "The key is rotated; `pve-verb init` prints the new line.")
    })
}
