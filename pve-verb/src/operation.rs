//! The mutation in progress, and the finished ones: operation.json, requests/ID.json.
//!
//! Both are on disk and on tmpfs: the disk may hang, and tmpfs does not survive the host's power. operation.json stands from the
//! intent to the stored end; found without a living worker it is the trace of a mutation that was killed.

use proto::{KeyName, RequestId, Timestamp, Verb, Vmid};
use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::host::path;
use crate::run::Run;
use crate::writer::{Op, Reply};
use crate::{deadline, lock, spool::Binding};

/// What operation.json says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Operation {
    /// The request.
    pub request_id: RequestId,
    /// Its verb.
    pub verb: Verb,
    /// Its VM.
    pub vmid: Vmid,
    /// Whose key.
    pub key_name: KeyName,
    /// In which boot.
    pub boot_id: String,
    /// Its worker.
    pub pid: u32,
    /// The worker's start time.
    pub started: Option<u64>,
    /// When its intent was durable.
    pub at: Timestamp,
    /// Its evidence.
    pub bundle: Option<proto::BundleName>,
    /// CLOCK_BOOTTIME at which it is past its deadline.
    pub deadline_boot_ms: u64,
}

/// A finished mutating request, as it is replayed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finished {
    /// What its id is bound to.
    pub binding: Binding,
    /// The receipt that its first caller got, or should have got.
    pub receipt: proto::Receipt,
}

const RUN_OPERATION: &str = "/run/pve-verb/operation.json";

fn run_request(id: &RequestId) -> String {
    format!("{}/requests/{id}.json", path::RUN)
}

/// Writes a small file on tmpfs as a whole or not at all.
fn replace(at: &str, bytes: &[u8]) -> std::io::Result<()> {
    let hidden = format!("{at}.{}", std::process::id());
    std::fs::write(&hidden, bytes).and_then(|()| std::fs::rename(&hidden, at))
}

/// Sets operation.json, before the first act.
pub fn set(run: &mut Run, operation: &Operation) -> Result<(), String> {
    let bytes = serde_json::to_vec(operation).map_err(|e| e.to_string())?;
    let on_tmpfs = replace(RUN_OPERATION, &bytes);
    match run.disk.call(&Op::OperationSet {}, &bytes, deadline::WRITE) {
        Ok(_) => Ok(()),
        Err(e) => {
            run.degrade(format!("operation.json is on tmpfs only: {e}"));
            on_tmpfs.map_err(|e| e.to_string())
        }
    }
}

/// Stores the end of a mutating request, and then takes operation.json away.
pub fn finish(run: &Run, finished: &Finished, acted: bool) {
    let id = &run.id().clone();
    let Ok(bytes) = serde_json::to_vec(finished) else { return };
    // The spool keeps the answer as well, and the log the outcome: what fails here costs the replay after a reboot, nothing else.
    if run.disk.call(&Op::RequestStore { id: id.clone() }, &bytes, deadline::WRITE).is_err() {
        let _ = std::fs::create_dir_all(format!("{}/requests", path::RUN)).and_then(|()| replace(&run_request(id), &bytes));
    }
    if acted {
        clear(&run.disk);
    }
}

/// Takes operation.json away.
fn clear(disk: &Disk) {
    let _ = disk.call(&Op::OperationClear {}, &[], deadline::WRITE);
    let _ = std::fs::remove_file(RUN_OPERATION);
}

/// The finished request of this id.
pub fn finished(disk: &Disk, id: &RequestId) -> Option<Finished> {
    if let Ok(bytes) = std::fs::read(run_request(id)) {
        return serde_json::from_slice(&bytes).ok();
    }
    bytes_of(disk, &Op::RequestLoad { id: id.clone() }).and_then(|bytes| serde_json::from_slice(&bytes).ok())
}

fn bytes_of(disk: &Disk, op: &Op) -> Option<Vec<u8>> {
    match disk.call(op, &[], deadline::WRITE) {
        Ok(Reply::Bytes { bytes }) => Some(bytes),
        _ => None,
    }
}

/// The mutation that stands unfinished, if any. Whether its worker lives is the lock's to say.
fn standing(disk: &Disk) -> Option<Operation> {
    let bytes = match std::fs::read(RUN_OPERATION) {
        Ok(bytes) => bytes,
        Err(_) => bytes_of(disk, &Op::OperationGet {})?,
    };
    serde_json::from_slice(&bytes).ok()
}

/// A mutation that was killed half-way: it stands, and nobody holds the lock.
pub fn interrupted(disk: &Disk) -> Option<Operation> {
    let operation = standing(disk)?;
    lock::holder().is_none().then_some(operation)
}

/// Records that a mutation was killed, and takes it away. Only who holds the mutation lock may.
pub fn settle(run: &mut Run) {
    if let Some(operation) = standing(&run.disk) {
        run.note_interrupted(&operation);
        clear(&run.disk);
    }
}
