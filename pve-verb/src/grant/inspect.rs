//! `grant inspect TEXT`: what a grant says, who signed it, and whether it would be taken now. Spends nothing.

use proto::{Message, Timestamp};
use std::io::Write;
use std::path::Path;

use super::{Granted, Signers, open};
use crate::host::{self, path};
use crate::text::{paragraph, say};

/// Prints it.
///
/// # Errors
/// Why it would be refused, as the refusal says it.
pub fn inspect(text: &str, out: &mut dyn Write) -> Result<(), Message> {
    inspect_at(text.trim(), &Signers::load(), host::now(), Path::new(path::GRANTS), out)
}

pub(super) fn inspect_at(text: &str, signers: &Signers, now: Timestamp, spent: &Path, out: &mut dyn Write) -> Result<(), Message> {
    let granted = open(text, signers, now).map_err(|why| say::grant_inspected(&why))?;
    let _ = out.write_all(shown(&granted).as_bytes());
    granted.holds(now).map_err(|why| say::grant_inspected(&why))?;
    let nonce = String::from(granted.said.nonce.clone());
    if spent.join(&nonce).exists() {
        return Err(say::grant_inspected(&say::BadGrant::Spent(None)));
    }
    let _ = writeln!(out, "It would be taken now.");
    Ok(())
}

fn shown(granted: &Granted) -> String {
    let said = &granted.said;
    let verbs: Vec<String> = said.verbs.iter().map(ToString::to_string).collect();
    [
        ("for: ", format!("{} of VM {} on {}", verbs.join(", "), said.vmid, proto::escape_cut(said.node.as_bytes(), 80))),
        ("to key: ", said.key_name.to_string()),
        ("from: ", said.not_before.0.to_string()),
        ("until: ", said.not_after.0.to_string()),
        ("why: ", proto::escape_cut(said.reason.as_bytes(), 200)),
        ("nonce: ", String::from(said.nonce.clone())),
        ("signed by: ", format!("{} {}", proto::escape_cut(granted.principal.as_bytes(), 80), granted.fingerprint)),
    ]
    .map(|(label, text)| paragraph(label, &text))
    .concat()
}
