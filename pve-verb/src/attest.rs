//! Self-attestation: which binary and which configuration answer here, in the log itself, at the first record of each new one.
//!
//! Every receipt names the binary; this says since when it answers, and under which limits. Root can replace binary and log alike; what
//! this shows is a change that nobody meant to hide, and with receipts held elsewhere one that somebody did.

use proto::Binary;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::io::Read;

use crate::host::path;
use crate::sign::Signer;

/// What the log is to know of this host; compared as a whole with what it was told last.
pub fn this_host(node: &str, binary: &Binary, signer: Option<&Signer>) -> Map<String, Value> {
    let mut facts = Map::new();
    facts.insert("what".to_owned(), json!("this binary and configuration answer from here on"));
    facts.insert("node".to_owned(), json!(node));
    facts.insert("binary".to_owned(), json!(binary));
    facts.insert("configuration_sha256".to_owned(), json!(configuration()));
    facts.insert("signing_key".to_owned(), json!(signer.map(Signer::fingerprint)));
    facts
}

/// The hash of the configuration file as it is, used or not; null where there is none.
fn configuration() -> Option<proto::Sha256Hex> {
    // A FIFO in its place must not hang a recovery; nor is it a configuration.
    let plain = std::fs::symlink_metadata(path::CONFIG).is_ok_and(|m| m.is_file());
    let file = plain.then(|| std::fs::File::open(path::CONFIG).ok())??;
    let mut bytes = Vec::new();
    file.take(1 << 20).read_to_end(&mut bytes).ok()?;
    Some(proto::Sha256Hex::from_bytes(Sha256::digest(&bytes).into()))
}
