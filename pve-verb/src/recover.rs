//! `recover`: at boot, by a oneshot unit. A mutation that was killed with the host is told now, because the next call may never
//! come; and the log goes on from what the disk has, while the disk still answers.

use proto::Message;
use serde_json::{Map, Value, json};
use std::io::Write;

use crate::audit::{Kind, Log};
use crate::config::Config;
use crate::disk::Disk;
use crate::operation::Operation;
use crate::sign::Signer;
use crate::text::say;
use crate::{attest, binary, deadline, host, lock, operation};

/// Records what was interrupted, and that this host is up.
///
/// # Errors
/// Where a mutation is running (then there is nothing to recover), or no record could be written.
pub fn recover(out: &mut dyn Write) -> Result<(), Message> {
    host::ready()?;
    let Some(_only) = lock::only() else {
        return Err(lock::holder().map_or_else(
            || say::busy_unknown("its file can't be read"),
            |h| say::busy(h.verb, &h.request_id, h.key_name.as_str(), h.since),
        ));
    };
    let (config, trouble) = Config::load();
    let disk = Disk::spawn();
    let (signer, binary) = (Signer::load().ok(), binary::this());
    let told = attest::this_host(config.host.node.as_str(), &binary, signer.as_ref());
    let mut log = Log::open(disk.clone(), signer, config.audit.keep_bytes.bytes()).attesting(told);
    let last = log.last_intent(deadline::RECORD);
    let mut record = |kind, facts: Value| {
        let facts: Map<String, Value> = if let Value::Object(facts) = facts { facts } else { Map::new() };
        log.append(kind, facts)
    };
    let nowhere = |why: String| say::intent_nowhere(&why);
    record(Kind::Start, json!({ "what": "recover", "node": config.host.node.as_str(), "binary": binary, "config": trouble }))
        .map_err(nowhere)?;
    let tell = |operation: &Operation| record(Kind::Interrupted, json!({ "operation": operation })).map(drop);
    let mut told = String::new();
    for operation in operation::lay_to_rest(&disk, last.as_ref(), tell).map_err(|why| say::killed_nowhere(&why))? {
        told += &format!(
            "{} of request {} was killed half-way; it is recorded, and its id answers so from now on.",
            operation.verb, operation.request_id
        );
    }
    if told.is_empty() {
        told += "Nothing was interrupted.";
    }
    // Whoever started this at boot may have closed its output; the record is what counts.
    let _ = writeln!(out, "{told}");
    Ok(())
}
