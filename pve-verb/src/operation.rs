//! The mutation in progress, and the finished ones: operation.json, requests/ID.json.
//!
//! Both are on disk and on tmpfs: the disk may hang, and tmpfs does not survive the host's power. operation.json stands from behind the
//! intent to the stored end; found without a living worker it is the trace of a mutation that was killed. The log's newest intent is
//! another one, for what died before operation.json stood (intent.rs).

use proto::{BundleName, KeyName, QemuProcess, RequestId, StepName, Timestamp, Verb, Vmid};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

use crate::disk::Disk;
use crate::lock::{self, Locked};
use crate::promise::{Due, Event, Fresh, Rest, Stored, fresh};
use crate::run::{Run, Stop};
use crate::text::say;
use crate::writer::{Op, Reply};
use crate::{deadline, spool::Binding};

mod intent;
mod tidy;

pub use intent::{End, LastIntent, Mark, Named};
pub(crate) use intent::{mark, may_mark};
pub use tidy::tidy;

/// What operation.json says, and the `intent` record before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// When it was declared.
    pub at: Timestamp,
    /// Its evidence.
    pub bundle: Option<BundleName>,
    /// The step that it began last. On tmpfs only: the log's intent and the disk have what stood before the first.
    #[serde(default)]
    pub step: Option<StepName>,
    /// The VM's process before it, where one ran.
    #[serde(default)]
    pub qemu_before: Option<QemuProcess>,
    /// CLOCK_BOOTTIME at which it is past its deadline.
    pub deadline_boot_ms: u64,
}

/// A finished mutating request, as it is replayed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finished {
    /// What its id is bound to.
    pub binding: Binding,
    /// The receipt that its first caller got, or should have got; null where its worker was killed and nobody saw its end.
    pub receipt: Option<proto::Receipt>,
    /// Its evidence.
    pub bundle: Option<BundleName>,
    /// What is known of one whose worker was killed.
    #[serde(default)]
    pub killed: Option<Operation>,
}

/// Where it is on tmpfs.
pub(crate) const RUN_OPERATION: &str = "/run/pve-verb/operation.json";
/// Stands where the disk was asked in this boot what was killed before it, and all of that was told. What this boot begins is on tmpfs.
const SETTLED: &str = "/run/pve-verb/settled";
const RUN_REQUESTS: &str = "/run/pve-verb/requests";

fn run_request(id: &RequestId) -> String {
    format!("{RUN_REQUESTS}/{id}.json")
}

/// Stands beside a finished request that the disk does not have yet.
fn late_mark(id: &RequestId) -> String {
    format!("{RUN_REQUESTS}/{id}.late")
}

/// Writes a small file on tmpfs as a whole or not at all.
fn replace(at: &str, bytes: &[u8]) -> std::io::Result<()> {
    let hidden = format!("{at}.{}", std::process::id());
    std::fs::write(&hidden, bytes).and_then(|()| std::fs::rename(&hidden, at))
}

/// Sets operation.json, before the first act.
pub fn set(run: &mut Run, operation: &Operation) -> Result<(), String> {
    let bytes = serde_json::to_vec(operation).map_err(|e| e.to_string())?;
    let on_tmpfs = replace(RUN_OPERATION, &bytes).inspect_err(|_| {
        // Then only the disk can tell of it.
        let _ = std::fs::remove_file(SETTLED);
    });
    match run.disk.call(&Op::OperationSet { id: operation.request_id.clone() }, &bytes, deadline::WRITE) {
        Ok(_) => Ok(()),
        Err(e) => {
            run.degrade(format!("operation.json is on tmpfs only: {e}"));
            on_tmpfs.map_err(|e| e.to_string())
        }
    }
}

/// Keeps which step begins, for whoever tells of a worker that is killed at it. No disk is asked in the middle of a mutation, and where even
/// tmpfs fails the step is not known.
pub(crate) fn at_step(id: &RequestId, step: StepName) {
    let ours = on_tmpfs().filter(|operation| operation.request_id == *id);
    if let Some(bytes) = ours.and_then(|operation| serde_json::to_vec(&Operation { step: Some(step), ..operation }).ok()) {
        let _ = replace(RUN_OPERATION, &bytes);
    }
}

/// Stores the end of a mutating request, and then takes operation.json away.
pub fn finish(run: &Run, finished: &Finished, acted: bool) {
    store(&run.disk, run.id(), finished);
    if acted {
        clear(&run.disk, run.id());
    }
}

/// On tmpfs always, so that a disk that hangs later can't make this id one that never ran (ADR 0018). What fails on disk is carried there
/// by a later call.
fn store(disk: &Disk, id: &RequestId, finished: &Finished) {
    let Ok(bytes) = serde_json::to_vec(finished) else { return };
    let _ = std::fs::create_dir_all(RUN_REQUESTS).and_then(|()| replace(&run_request(id), &bytes));
    if disk.call(&Op::RequestStore { id: id.clone() }, &bytes, deadline::WRITE).is_err() {
        let _ = std::fs::write(late_mark(id), []);
    }
}

/// Takes operation.json away, unless it is another's.
fn clear(disk: &Disk, id: &RequestId) {
    let _ = disk.call(&Op::OperationClear { id: id.clone() }, &[], deadline::WRITE);
    if on_tmpfs().is_none_or(|operation| operation.request_id == *id) {
        let _ = std::fs::remove_file(RUN_OPERATION);
    }
}

/// What is known of this id.
pub fn known(disk: &Disk, id: &RequestId, within: Duration) -> Stored<Box<Finished>> {
    let read = |bytes: Vec<u8>| serde_json::from_slice(&bytes).ok();
    if let Some(finished) = std::fs::read(run_request(id)).ok().and_then(read) {
        return Stored::Ended(Box::new(finished));
    }
    match disk.call(&Op::RequestLoad { id: id.clone() }, &[], within) {
        Ok(Reply::Bytes { bytes }) => read(bytes).map_or(Stored::Damaged, |finished| Stored::Ended(Box::new(finished))),
        Ok(_) => Stored::No,
        Err(_) => Stored::NotOfThisBoot,
    }
}

/// The finished request of this id, where it is known.
pub fn finished(disk: &Disk, id: &RequestId) -> Option<Finished> {
    match known(disk, id, deadline::WRITE) {
        Stored::Ended(finished) => Some(*finished),
        Stored::Damaged | Stored::No | Stored::NotOfThisBoot => None,
    }
}

/// Whoever holds the lock asks once more whether this id ran: between the front's look and the lock another worker may have.
///
/// # Errors
/// It ran. Asking again with it tells what came of it.
pub fn not_yet_run(run: &mut Run, locked: &Locked) -> Result<(), Stop> {
    let authorised = locked.authorised();
    let id = authorised.id();
    if !authorised.verb().mutates() {
        return Ok(());
    }
    let began = run.last_intent(deadline::RECORD).is_some_and(|last| last.names(id));
    let standing = standing(&run.disk, deadline::WRITE);
    let stands = standing.all.iter().any(|operation| operation.request_id == *id);
    let stored = match known(&run.disk, id, deadline::WRITE) {
        // Without an end, but it may have begun: nobody could look.
        Stored::No if !(settled() || standing.whole && run.knows_the_log()) => Stored::NotOfThisBoot,
        stored => stored,
    };
    match fresh(&stored, began || stands) {
        Fresh::Ran => return Err(Stop::request(say::ran_meanwhile(id))),
        Fresh::NotLookedUp if authorised.parsed().request().options().request_id.is_some() => {
            run.degrade("whether this id ran before the host last booted could not be looked up: the disk did not answer".to_owned());
        }
        Fresh::NotLookedUp | Fresh::Yes => {}
    }
    run.reach(Event::Fresh)
}

fn on_tmpfs() -> Option<Operation> {
    serde_json::from_slice(&std::fs::read(RUN_OPERATION).ok()?).ok()
}

/// Operations, and whether the disk said all that it has to say of them.
#[derive(Debug)]
pub struct Told {
    /// The operations.
    pub all: Vec<Operation>,
    /// Whether these are all: false where the disk was late or failed.
    pub whole: bool,
}

impl Told {
    /// What lay unfinished is told. Where these were all, the disk has no more to tell of earlier boots, and reads need not ask it.
    pub(crate) fn remember(&self) {
        if self.whole {
            // Where it can't be kept, the next read asks the disk.
            let _ = std::fs::write(SETTLED, []);
        }
    }
}

/// Whether the disk has nothing to tell of earlier boots.
pub fn settled() -> bool {
    Path::new(SETTLED).exists()
}

/// What operation.json says, where it stands: on disk and on tmpfs it may be another one, where the disk hung in between. Without any time
/// no disk is asked.
fn standing(disk: &Disk, within: Duration) -> Told {
    let (on_disk, whole) = match disk.call(&Op::OperationGet {}, &[], within) {
        Ok(Reply::Bytes { bytes }) => (serde_json::from_slice::<Operation>(&bytes).ok(), true),
        Ok(_) => (None, true),
        Err(_) => (None, false),
    };
    let on_tmpfs = on_tmpfs();
    // Where both have it, tmpfs knows its step.
    let on_disk = on_disk.filter(|there| on_tmpfs.as_ref().is_none_or(|here| here.request_id != there.request_id));
    Told { all: on_disk.into_iter().chain(on_tmpfs).collect(), whole }
}

/// The mutations that stand unfinished, the oldest first: more than one where one was begun while the disk did not say what had been
/// killed before it. Whether a worker of theirs lives is the lock's to say.
fn unfinished(disk: &Disk, last: Option<&LastIntent>, within: Duration) -> Told {
    let mut all: Vec<Operation> = last.into_iter().flat_map(LastIntent::open).cloned().collect();
    let standing = standing(disk, within);
    for standing in standing.all {
        match all.iter_mut().find(|operation| operation.request_id == standing.request_id) {
            // The log's intent was before its first step.
            Some(known) => *known = standing,
            None => all.push(standing),
        }
    }
    let mut whole = standing.whole;
    all.retain(|operation| match known(disk, &operation.request_id, within) {
        // Its answer is stored: then its worker was killed after its end, and only operation.json is left to take away.
        Stored::Ended(finished) => finished.receipt.is_none(),
        Stored::Damaged | Stored::No => true,
        Stored::NotOfThisBoot => {
            whole = false;
            true
        }
    });
    Told { all, whole }
}

/// The mutations that were killed half-way, the oldest first: they stand, and whoever holds the lock is at something else. Without any
/// time no disk is asked.
pub fn interrupted(disk: &Disk, last: Option<&LastIntent>, within: Duration) -> Told {
    let holder = lock::holder();
    let mut told = unfinished(disk, last, within);
    told.all.retain(|operation| holder.as_ref().is_none_or(|holder| holder.request_id != operation.request_id));
    told
}

/// The newest mutation that was killed half-way, as a read tells of it: from tmpfs. The disk is asked only where nobody has asked it in
/// this boot, and for a moment.
pub fn interrupted_now(run: &mut Run) -> Option<Operation> {
    let settled = settled();
    let within = if settled { Duration::ZERO } else { deadline::WITNESS };
    let last = run.last_intent(within);
    let mut told = interrupted(&run.disk, last.as_ref(), within);
    if !(settled || told.whole && run.knows_the_log()) {
        run.degrade(NOT_LOOKED_UP.to_owned());
    }
    told.all.pop()
}

/// Said where it is so.
const NOT_LOOKED_UP: &str = "whether a mutation was killed before the host last booted could not be looked up: the disk did not say";

/// Records that mutations were killed, and takes operation.json away. Only who holds the mutation lock may: then nobody can be at it.
///
/// # Errors
/// Where even the record fails: the next one's operation.json must not take the place of what nobody was told of.
pub fn settle(run: &mut Run, locked: &Locked) -> Result<(), Stop> {
    if !locked.authorised().verb().mutates() {
        return Ok(());
    }
    let (disk, last) = (run.disk.clone(), run.last_intent(deadline::RECORD));
    let known = run.knows_the_log();
    let told = lay_to_rest(&disk, last.as_ref(), known, |operation| run.note_interrupted(operation))
        .map_err(|e| Stop::evidence(say::killed_nowhere(&e)))?;
    told.remember();
    if !(told.whole || settled()) {
        run.degrade(NOT_LOOKED_UP.to_owned());
    }
    run.reach(Event::Settled)
}

/// From now on the ids of mutations that were killed answer `interrupted`, also after a reboot, and never run again; `tell` records
/// that, and is called once for each, however often this is killed itself. Gives those that were told of now. `known_log`: whether `last` is
/// the log's word, or nobody could ask it.
///
/// # Errors
/// Where even the record fails: it keeps standing, and the next call tells of it.
pub(crate) fn lay_to_rest(
    disk: &Disk,
    last: Option<&LastIntent>,
    known_log: bool,
    mut tell: impl FnMut(&Operation) -> Result<(), String>,
) -> Result<Told, String> {
    let within = deadline::WRITE;
    let mut told_now = Vec::new();
    let Told { mut all, mut whole } = unfinished(disk, last, within);
    // The newest one may have been killed behind its last record, before its end was stored: the next intent would hide it.
    if let Some(last) = last.filter(|last| last.end.is_some()) {
        match known(disk, &last.operation.request_id, within) {
            Stored::Ended(_) => {}
            // What is stored and could not be read stays: the writer replaces no end by one that nobody saw.
            stored => {
                whole &= !matches!(stored, Stored::NotOfThisBoot);
                all.push(last.operation.clone());
            }
        }
    }
    for operation in all {
        let id = &operation.request_id;
        let stands = standing(disk, within).all.iter().any(|standing| standing.request_id == *id);
        let end = last.filter(|last| last.operation.request_id == *id).and_then(|last| last.end);
        let told = end == Some(End::Interrupted) || (end == Some(End::Outcome) && !stands);
        let mut rest = Rest { stored: finished(disk, id).is_some(), told, stands };
        while let Some(due) = rest.due() {
            match due {
                Due::Store => {
                    let binding =
                        Binding { key_name: operation.key_name.clone(), verb: operation.verb, vmid: operation.vmid, dry_run: false };
                    store(
                        disk,
                        id,
                        &Finished { binding, receipt: None, bundle: operation.bundle.clone(), killed: Some(operation.clone()) },
                    );
                }
                Due::Tell => {
                    tell(&operation)?;
                    told_now.push(operation.clone());
                }
                Due::Clear => clear(disk, id),
            }
            rest = rest.after(due);
        }
    }
    // Of those that came to their end: their worker was killed after that.
    standing(disk, within).all.iter().for_each(|operation| clear(disk, &operation.request_id));
    whole &= known_log && !disk.is_late();
    Ok(Told { all: told_now, whole })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tests::{broken_disk, counted_hung_disk};

    #[test]
    fn without_any_time_no_disk_is_asked_and_one_that_fails_has_not_said_no() {
        let (disk, asked) = counted_hung_disk();
        assert!(!interrupted(&disk, None, Duration::ZERO).whole);
        assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 0);
        assert!(!interrupted(&broken_disk(), None, deadline::WRITE).whole);
    }
}
