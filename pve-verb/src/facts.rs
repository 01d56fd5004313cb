//! From what was observed to what others take: the judgement's facts, the state that receipts say, the proof that QEMU will not
//! answer. Struct to struct; nothing here decides what is done.

use proto::{QemuProcess, StepName, VmState, Vmid};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::assess::{self, Facts, Interrupted, Lock, LockOwner, Qmp};
use crate::helper::run::{UNHEARD, UNSERVED};
use crate::operation::Operation;
use crate::probe::Answer;
use crate::probe::observe::{Observation, Process};
use crate::procfs::{MainThread, Proof, peer_of, unresponsive_proof};
use crate::pve::Config;
use crate::{deadline, host};

/// What counts as silent for [`deadline::QMP_SILENT`], give or take a clock's tick.
const QMP_SILENT_MS: u64 = 2_950;
/// Between the two samples of a full capture, at least.
const WINDOW_MS: u64 = 1_000;

/// The state, where the host's own view tells it; [`VmState::Unknown`] where QEMU has to be asked, or nothing is known.
pub fn state_without_qmp(seen: &Observation) -> VmState {
    match (&seen.process, &seen.config) {
        (_, _) if seen.survivor.is_some() => VmState::Survivor,
        (Process::Absent, Config::Elsewhere(_)) => VmState::Elsewhere,
        (Process::Absent, Config::Missing) => VmState::Missing,
        (Process::Absent, _) if seen.certainly_stopped() => VmState::Stopped,
        _ => VmState::Unknown,
    }
}

/// The VM's process as receipts name it.
pub fn qemu(seen: &Observation) -> Option<QemuProcess> {
    seen.running().map(crate::procfs::Identity::process)
}

/// What QEMU said, or did not say, to the helper.
pub fn qmp(answers: &[Answer]) -> Option<Qmp> {
    let greeting = answers.iter().find(|a| a.name == "qmp/greeting")?;
    let detail = greeting.detail.as_deref().unwrap_or_default();
    Some(match greeting.outcome {
        proto::ProbeOutcome::Captured => {
            // A greeting alone is no answer: a question after it may have hung.
            let status = answers.iter().find(|a| a.name == "qmp/query-status");
            let gave_way = status.and_then(|a| a.detail.as_deref()?.split_once("in use by "));
            match (status.map(|a| a.outcome), gave_way) {
                (Some(proto::ProbeOutcome::TimedOut), _) => Qmp::NoAnswer,
                (Some(proto::ProbeOutcome::Unavailable), Some((_, by))) => Qmp::InUse(by.to_owned()),
                _ => Qmp::Answered,
            }
        }
        _ if detail.contains("no such socket") => Qmp::NoSocket,
        _ => match detail.split_once("in use by ") {
            Some((_, by)) => Qmp::InUse(by.to_owned()),
            None => Qmp::NoAnswer,
        },
    })
}

/// All conditions of "proved unresponsive" (PROTOCOL.md, section 8), or none: QEMU was silent for 3 s while the lock was ours,
/// nobody else is on its socket, and its main thread is stopped, dead, in D, spinning, or was not scheduled for a second.
pub fn prove_unresponsive(
    vmid: Vmid,
    before: &Observation,
    after: impl FnOnce() -> Observation,
    answers: &[Answer],
) -> Option<(MainThread, String)> {
    let process = qemu(before)?;
    let greeting = answers.iter().find(|a| a.name == "qmp/greeting")?;
    // The helper's own word that it waited at the socket: one that hung itself, or got no CPU, has shown nothing about QEMU.
    let waited = greeting.facts.as_ref().is_some_and(|f| [UNSERVED, UNHEARD].iter().any(|how| f.get(*how).is_some()));
    let silent = waited && greeting.outcome != proto::ProbeOutcome::Captured && greeting.ms >= QMP_SILENT_MS;
    if !silent || !nobody_else_on(&host::qemu_server(vmid, "qmp")) {
        return None;
    }
    let (first, second) = (before.main_thread.as_ref()?, after().main_thread?);
    let wall = Duration::from_millis(second.at_ms.saturating_sub(first.at_ms));
    let proof = unresponsive_proof(first, &second, wall)?;
    (second.process == process).then(|| (second, format!("no answer to QMP for {} ms, and {}", greeting.ms, words(&proof))))
}

/// Whether, at some moment within the time that is left for it, no foreign process was on the socket. PVE's own daemons come by
/// every ten seconds and wait there for a while.
fn nobody_else_on(socket: &Path) -> bool {
    let until = Instant::now() + deadline::PEERS;
    loop {
        if peer_of(socket, Duration::from_millis(200).min(until.saturating_duration_since(Instant::now()))).nobody() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn words(proof: &Proof) -> String {
    match proof {
        Proof::Stopped => "its main thread is stopped (T)".to_owned(),
        Proof::Zombie => "its main thread has ended and is not gone (Z)".to_owned(),
        Proof::Uninterruptible { wchan } => format!("its main thread is in D at {}", proto::escape_cut(wchan.as_bytes(), 64)),
        Proof::Idle { ms } => format!("its main thread was not scheduled for {ms} ms"),
        Proof::Spinning { percent } => format!("its main thread spins at {percent} % of a CPU"),
    }
}

/// What the judgement takes beside the artifacts.
pub fn gather(vmid: Vmid, seen: &Observation, answers: &[Answer], unresponsive: Option<String>, interrupted: Option<Operation>) -> Facts {
    let process = seen.running();
    Facts {
        vmid: Some(vmid),
        running: match seen.process {
            Process::Running(_) => Some(true),
            Process::Absent => Some(false),
            Process::Unknown(_) => None,
        },
        qemu: process.map(crate::procfs::Identity::process),
        qemu_age_s: process.map(|p| p.age_ms / 1000),
        config: Some(match &seen.config {
            Config::Here => assess::Config::Here,
            Config::Elsewhere(node) => assess::Config::Elsewhere(node.clone()),
            Config::Missing => assess::Config::Missing,
            Config::Unreadable(why) => assess::Config::Unreadable(why.clone()),
        }),
        lock: seen.lock.as_ref().map(|word| Lock {
            word: word.clone(),
            owner: match seen.lock_task {
                Some(true) => LockOwner::Task(seen.tasks.join(", ")),
                Some(false) => LockOwner::Nobody,
                None => LockOwner::Unknown,
            },
        }),
        qmp: qmp(answers),
        unresponsive,
        survivor: seen.survivor.clone(),
        interrupted: interrupted.map(|operation| killed(&operation, qemu(seen))),
        stopped_by: None,
        previous: None,
        window_ms: Some(WINDOW_MS),
        now_unix_s: Some(host::now().unix_ms() / 1000),
        screens: answers.iter().find(|a| a.name == "console/screen-2").and_then(likeness),
        serial_is_live: Some(true),
    }
}

/// A mutation that was killed, for the judgement, where this is the VM's process now.
pub fn killed(operation: &Operation, now: Option<QemuProcess>) -> Interrupted {
    let Operation { verb, step, qemu_before, request_id, key_name, at, boot_id, .. } = operation;
    let anew = match qemu_before {
        Some(_) => *qemu_before != now,
        // There was none, or it was not known: then nothing is started before nothing is left.
        None => matches!(step, Some(StepName::QmStart | StepName::Resume | StepName::Observe | StepName::Cleanup)),
    };
    // Of another boot no process is left.
    let replaced = now.is_some() && (anew || *boot_id != host::boot_id());
    Interrupted { verb: *verb, step: *step, replaced, text: format!("request {request_id} of key {key_name}, at {at}") }
}

/// How the second screen compares with the first, as the helper found.
fn likeness(screen: &Answer) -> Option<assess::Likeness> {
    serde_json::from_value(screen.facts.as_ref()?.get("likeness")?.clone()).ok()
}

/// Whether the VM has disks in iothreads, as QEMU says; unknown counts as yes, for the harm is a QMP that dies.
pub fn has_iothread(answers: &[Answer]) -> bool {
    let artifact = answers.iter().find(|a| a.name == "qmp/query-iothreads").and_then(|a| a.artifact.as_ref());
    let threads = artifact.and_then(|a| assess::returned(a.bytes.as_bytes()));
    threads.is_none_or(|t| t.as_array().is_none_or(|all| !all.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_not_there_before_a_killed_verb_is_another_one() {
        let process = |pid, started| Some(QemuProcess { pid, started });
        let replaced_at = |step: Option<&str>, before, boot_id: &str, now| {
            let operation = serde_json::json!({
                "request_id": proto::RequestId::from_random([7; 16]), "verb": "cycle", "vmid": 102, "key_name": "anna", "boot_id": boot_id,
                "pid": 1, "started": 2, "at": "2026-11-21T00:30:00.000Z", "bundle": null, "step": step, "qemu_before": before, "deadline_boot_ms": 3,
            });
            killed(&serde_json::from_value(operation).unwrap(), now).replaced
        };
        let replaced = |before, boot_id: &str, now| replaced_at(None, before, boot_id, now);
        let here = host::boot_id();
        assert!(replaced_at(Some("qm-start"), None, &here, process(5, 9)) && !replaced_at(Some("qm-stop"), None, &here, process(5, 9)));
        // Whatever its steps said, it is the same one.
        assert!(!replaced_at(Some("observe"), process(5, 9), &here, process(5, 9)));
        assert!(!replaced(process(5, 9), &here, process(5, 9)) && !replaced(process(5, 9), &here, None));
        // The pid came again.
        assert!(replaced(process(5, 9), &here, process(6, 9)) && replaced(process(5, 9), &here, process(5, 10)));
        // None ran before it, or that is not known.
        assert!(!replaced(None, &here, process(5, 9)));
        // The host booted since.
        assert!(replaced(None, "another", process(5, 9)) && replaced(process(5, 9), "another", process(5, 9)));
        assert!(!replaced(process(5, 9), "another", None));
    }

    use crate::probe::{Artifact, Raw};
    use proto::ProbeOutcome;

    fn captured(name: &str) -> Answer {
        let artifact = Artifact { path: format!("{name}.json"), media_type: "application/json", bytes: Raw::new(b"{}".to_vec()) };
        Answer { name: name.to_owned(), outcome: ProbeOutcome::Captured, ms: 1, detail: None, artifact: Some(artifact), facts: None }
    }

    #[test]
    fn a_read_that_gave_way_says_to_whom_and_is_no_silence_of_qemus() {
        let gave_way = |name: &str| {
            let why = crate::qmp::QmpError::GaveWay("mutation 1f0c".to_owned());
            Answer::without(name, ProbeOutcome::from(&why), 3_000, &why.to_string())
        };
        let to = Some(Qmp::InUse("mutation 1f0c, to which this read gave way".to_owned()));
        assert_eq!(qmp(&[gave_way("qmp/greeting"), gave_way("qmp/query-status")]), to);
        assert_eq!(qmp(&[captured("qmp/greeting"), gave_way("qmp/query-status")]), to);
        assert_eq!(qmp(&[captured("qmp/greeting"), captured("qmp/query-status"), gave_way("qmp/query-block")]), Some(Qmp::Answered));
        let late = Answer::without("qmp/query-status", ProbeOutcome::TimedOut, 3_000, "no answer in time");
        assert_eq!(qmp(&[captured("qmp/greeting"), late]), Some(Qmp::NoAnswer));
    }
}
