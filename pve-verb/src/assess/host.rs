//! What the host knows without QEMU's word: where the VM is, whether anything of it is left, who holds what.
//!
//! These rows rest on facts that the probes proved or observed; here they only become sentences.

use proto::{Code, Verb};

use super::{Config, Evidence, Interrupted, LockOwner, Qmp, Row, show};

pub(super) fn elsewhere(e: &Evidence<'_>) -> Option<Row> {
    let Some(Config::Elsewhere(node)) = &e.facts.config else { return None };
    // A process here outranks what a file says about another place: then the rows below speak.
    if e.facts.running == Some(true) {
        return None;
    }
    let (vm, node) = (e.vm(), show(node));
    Some(Row::new(
        Code::Elsewhere,
        format!("{vm} is not on this node: its configuration is on {node}."),
        &["pve/vmlist.json"],
        None,
        format!("Call pve-verb on {node}."),
    ))
}

pub(super) fn survivor(e: &Evidence<'_>) -> Option<Row> {
    let left = show(e.facts.survivor.as_deref()?);
    let vm = e.vm();
    Some(Row::new(
        Code::Survivor,
        format!("PVE takes {vm} for stopped, but a part of its QEMU still holds the disk: {left}."),
        &["host/survivor.json", "cgroup/procs.txt"],
        None,
        "Do not start it: wait until its I/O ends, or repair the host's storage that it waits for. Only then start; if the I/O never ends, the host needs a reboot.",
    ))
}

pub(super) fn qemu_unresponsive(e: &Evidence<'_>) -> Option<Row> {
    let proof = show(e.facts.unresponsive.as_deref()?);
    let vm = e.vm();
    Some(Row::new(
        Code::QemuUnresponsive,
        format!("{vm}'s QEMU is proved unresponsive: {proof}."),
        &["process/threads.1.json", "process/status.txt", "process/stat.txt"],
        Some(Verb::Cycle),
        "This process answers nobody: cycle kills exactly it and starts a fresh one.",
    ))
}

/// Unproved silence, or somebody else on the socket. Not an alarm about the VM: QEMU serves one client at a time.
pub(super) fn qmp_unavailable(e: &Evidence<'_>) -> Option<Row> {
    if e.facts.running != Some(true) || e.facts.unresponsive.is_some() || e.facts.survivor.is_some() {
        return None;
    }
    let vm = e.vm();
    let (sentence, why) = match e.facts.qmp.as_ref()? {
        Qmp::Answered => return None,
        Qmp::InUse(by) => (
            format!("{vm} runs, but its QEMU could not be asked: its socket, which serves one client, is in use by {}.", show(by)),
            "Try again when that is done; nothing shows that the VM is ill.",
        ),
        Qmp::NoAnswer => (
            format!("{vm} runs, but its QEMU did not answer in time; that it hangs is not proved."),
            "Try again. If it stays so, forensics has the proof or the reason.",
        ),
        Qmp::NoSocket => (
            format!("{vm} runs, but its QMP socket is missing."),
            "Try again. If it stays so, somebody removed files of /run/qemu-server, and only cycle makes a new socket.",
        ),
    };
    Some(Row::new(Code::QmpUnavailable, sentence, &["qmp/query-status", "process/threads.1.json"], None, why))
}

pub(super) fn pve_unresponsive(e: &Evidence<'_>) -> Option<Row> {
    let Some(Config::Unreadable(how)) = &e.facts.config else { return None };
    Some(Row::new(
        Code::PveUnresponsive,
        format!("PVE's /etc/pve does not work ({}); qm would hang or fail.", show(how)),
        &[&format!("pve/{}.conf", e.vmid())],
        None,
        "On the host run `systemctl restart pve-cluster`, then try again: start and cycle can't work before that.",
    ))
}

pub(super) fn locked(e: &Evidence<'_>) -> Option<Row> {
    let lock = e.facts.lock.as_ref()?;
    if is_suspended(e) && !matches!(lock.owner, LockOwner::Task(_)) {
        // The lock is how PVE remembers that: nothing is to be unlocked, and the row of what is stopped says what to do.
        return None;
    }
    let (vm, vmid, word) = (e.vm(), e.vmid(), show(&lock.word));
    let (sentence, why) = match &lock.owner {
        LockOwner::Task(task) => {
            let task = show(task);
            let why = "Wait for that task's end, or stop it in PVE, then try again.".to_owned();
            (format!("PVE holds the lock \"{word}\" on {vm}, and a live task owns it: {task}."), why)
        }
        LockOwner::Nobody => (
            format!("PVE holds the lock \"{word}\" on {vm}, and no live task owns it."),
            format!("On the host run `qm unlock {vmid}`, then try again."),
        ),
        LockOwner::Unknown => (
            format!("PVE holds the lock \"{word}\" on {vm}; whether a live task owns it could not be told."),
            format!("Look at the host's task list; only where no task works on it run `qm unlock {vmid}`."),
        ),
    };
    Some(Row::new(Code::Locked, sentence, &["pve/lock.json", "pve/tasks.txt"], None, why))
}

/// Whether the VM is off because PVE wrote it to disk: `qm start` goes on where it was.
fn is_suspended(e: &Evidence<'_>) -> bool {
    e.facts.running == Some(false) && e.facts.lock.as_ref().is_some_and(|lock| lock.word == "suspended")
}

pub(super) fn stopped(e: &Evidence<'_>) -> Option<Row> {
    let elsewhere = matches!(e.facts.config, Some(Config::Elsewhere(_)));
    if e.facts.running != Some(false) || e.facts.survivor.is_some() || elsewhere {
        return None;
    }
    let vm = e.vm();
    if e.facts.config == Some(Config::Missing) {
        let text = format!("No node of this cluster has a configuration of {vm}, and no process of it runs here.");
        return Some(Row::new(
            Code::Stopped,
            text,
            &["pve/vmlist.json"],
            None,
            "Look for its backup, or for who removed it (pve/tasks.txt).",
        ));
    }
    let by = e.facts.stopped_by.clone().or_else(|| super::tasks::last(e)).map(|by| format!(" ({})", show(&by))).unwrap_or_default();
    let (text, why) = if is_suspended(e) {
        (
            format!("{vm} is stopped: PVE suspended it to disk{by}."),
            "Start it, unless somebody suspended it on purpose: it goes on where it was.",
        )
    } else {
        (format!("{vm} is stopped: no process of it runs here{by}."), "Start it, unless somebody stopped it on purpose.")
    };
    Some(Row::new(Code::Stopped, text, &["process/identity", "pve/tasks.txt"], Some(Verb::Start), why))
}

pub(super) fn interrupted(e: &Evidence<'_>) -> Option<Row> {
    let was = e.facts.interrupted.as_ref()?;
    let (verb, why) = completes(was, e.facts.running, e.status().as_deref());
    let at = was.step.map(|step| format!(" at its step {step}")).unwrap_or_default();
    let sentence = format!("A {} of {} was killed half-way{at} ({}).", was.verb, e.vm(), show(&was.text));
    Some(Row::new(Code::Interrupted, sentence, &["host/operation.json", "the audit log"], verb, why))
}

/// The verb that completes an interrupted one, and why, from what is there now and not from what it had been about to do. `running`: whether
/// the VM has a process, where that is known; `status`: QEMU's own word.
pub(crate) fn completes(was: &Interrupted, running: Option<bool>, status: Option<&str>) -> (Option<Verb>, &'static str) {
    // `qm` goes on where its worker is killed, and people start VMs by hand: a VM that is up again is not stopped once more.
    match (was.verb, running) {
        (Verb::Stop, Some(true)) if was.replaced => {
            (None, "The VM was stopped, and somebody started it again since: nothing is left to do.")
        }
        (Verb::Stop, Some(false)) => (None, "The VM is stopped, as was wanted: nothing is left to do."),
        (Verb::Stop, _) => (Some(Verb::Stop), "Stop completes it."),
        (_, Some(false)) => (Some(Verb::Start), "The VM is off and was to run: start completes it."),
        (_, _) if matches!(status, Some("prelaunch" | "paused")) => (Some(Verb::Start), "The guest does not run yet: start completes it."),
        (Verb::Start, Some(true)) => (None, "The VM runs, as was wanted: nothing is left to do."),
        (Verb::Cycle, Some(true)) if was.replaced && status == Some("running") => {
            (None, "The VM runs again, as was wanted: nothing is left to do.")
        }
        (Verb::Reset, Some(true)) if status == Some("running") => (None, "The VM runs; if the guest is not back, reset again."),
        (Verb::Reset, _) => (Some(Verb::Reset), "Reset completes it."),
        (Verb::Cycle, _) => (Some(Verb::Cycle), "Cycle completes it."),
        (Verb::Start, None) => (Some(Verb::Start), "Start completes it."),
        (Verb::Status | Verb::Forensics, _) => (None, "It changes nothing: ask again."),
    }
}
