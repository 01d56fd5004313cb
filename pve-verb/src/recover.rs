//! `recover`: at boot, by a oneshot unit. A mutation that was killed with the host is told now, because the next call may never
//! come; and the log goes on from what the disk has, while the disk still answers.

use proto::Message;
use serde_json::{Map, Value, json};
use std::io::Write;

use crate::audit::{Kind, Log};
use crate::config::Config;
use crate::disk::Disk;
use crate::operation::{Operation, Told};
use crate::sign::Signer;
use crate::text::say;
use crate::{attest, binary, deadline, host, lock, operation};

/// Records what was interrupted, and that this host is up.
///
/// # Errors
/// Where a mutation is running (then there is nothing to recover), no record could be written, or the disk did not say all that it has to:
/// then whoever started this tries again.
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
    let log = Log::open(disk.clone(), signer, config.audit.keep_bytes.bytes()).attesting(told);
    settle(&disk, log, json!({ "what": "recover", "node": config.host.node.as_str(), "binary": binary, "config": trouble }), out)
        .map(|told| told.remember())
}

fn settle(disk: &Disk, mut log: Log, start: Value, out: &mut dyn Write) -> Result<Told, Message> {
    let last = log.last_intent(deadline::RECORD);
    let known = log.is_known();
    let mut record = |kind, facts: Value| {
        let facts: Map<String, Value> = if let Value::Object(facts) = facts { facts } else { Map::new() };
        log.append(kind, facts)
    };
    record(Kind::Start, start).map_err(|why| say::intent_nowhere(&why))?;
    let tell = |operation: &Operation| record(Kind::Interrupted, json!({ "operation": operation })).map(drop);
    let told = operation::lay_to_rest(disk, last.as_ref(), known, tell).map_err(|why| say::killed_nowhere(&why))?;
    // Whoever started this at boot may have closed its output; the record is what counts.
    for operation in &told.all {
        let _ = writeln!(
            out,
            "{} of request {} was killed half-way; it is recorded, and its id answers so from now on.",
            operation.verb, operation.request_id
        );
    }
    if !told.whole {
        return Err(say::disk_did_not_say());
    }
    if told.all.is_empty() {
        let _ = writeln!(out, "Nothing was interrupted.");
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tests::{broken_disk, disk_at, hung_disk};

    /// What it says with this disk, and whether that is the end of it.
    fn recovered(disk: &Disk) -> (bool, String) {
        let run = tempfile::tempdir().unwrap();
        let log = Log::open_at(run.path(), disk.clone(), None, 1 << 30, None);
        let mut out = Vec::new();
        let end = settle(disk, log, json!({"what": "recover"}), &mut out);
        let said = end.as_ref().err().map_or_else(|| String::from_utf8(out).unwrap(), Message::to_string);
        (end.is_ok(), said)
    }

    #[test]
    fn a_disk_that_does_not_say_is_not_one_without_anything_to_tell() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(recovered(&disk_at(root.path())), (true, "Nothing was interrupted.\n".to_owned()));
        for silent in [hung_disk(), broken_disk()] {
            let (good, said) = recovered(&silent);
            assert!(!good && !said.contains("Nothing was interrupted") && said.contains("did not say"), "{said}");
        }
        // Its log does answer, the rest does not.
        let operation = root.path().join("var/lib/pve-verb/operation.json");
        std::fs::create_dir_all(&operation).unwrap();
        let (good, said) = recovered(&disk_at(root.path()));
        assert!(!good && said.contains("did not say"), "{said}");
    }
}
