//! `paused`: QEMU answers and says that the guest does not run. Each RunState has its own cause, and its own advice.
//!
//! `guest-panicked` is a RunState too, but has its own row.

use proto::{Code, RunState, Verb};
use serde_json::Value;

use super::sample::device_name;
use super::{Evidence, Row, show};

pub(super) fn paused(e: &Evidence<'_>) -> Option<Row> {
    let word = e.status()?;
    if word == "running" || word == "guest-panicked" {
        return None;
    }
    let (cause, verb, why) = advice(RunState::from_qmp(&word));
    let vm = e.vm();
    let mut sentence = format!("{vm} does not run: QEMU says {} ({cause}).", show(&word));
    let mut evidence = vec!["qmp/query-status.json"];
    if word == "io-error" {
        let disks = failed_disks(e);
        if !disks.is_empty() {
            sentence = format!("{vm} does not run: QEMU says io-error ({cause}), on {}.", disks.join(", "));
            evidence.push("qmp/query-block.json");
        }
    }
    let why = why.replace("102", &e.vmid().to_string());
    Some(Row::new(Code::Paused, sentence, &evidence, verb, why))
}

/// Cause, verb, and why. An exhaustive match: a RunState without advice does not compile.
const fn advice(state: Option<RunState>) -> (&'static str, Option<Verb>, &'static str) {
    use RunState as S;
    match state {
        Some(S::IoError) => (
            "a write to the host's storage failed",
            Some(Verb::Cycle),
            "Make room on the host's storage or repair it first (host/lvs.txt, host/zpool.txt, host/df.txt), then cycle; resumed before, it stops again.",
        ),
        Some(S::InternalError) => {
            ("KVM could not go on", Some(Verb::Cycle), "This process can't be resumed: cycle, and keep the bundle for a bug report.")
        }
        Some(S::Suspended) => {
            ("the guest suspended itself to RAM", None, "On the host, `qm resume 102` wakes it without loss; reset boots it anew.")
        }
        Some(S::Prelaunch) => {
            ("a reset or a start left it before its first instruction", Some(Verb::Start), "Nothing is wrong with it: start lets it run.")
        }
        Some(S::Shutdown) => (
            "the guest powered itself off and QEMU is still there",
            Some(Verb::Cycle),
            "qmeventd should have ended QEMU and did not: cycle.",
        ),
        Some(S::Paused) => ("somebody paused it", Some(Verb::Start), "pve/tasks.txt says who; start resumes it."),
        Some(S::Watchdog) => ("the guest's watchdog fired", Some(Verb::Reset), "The guest had stopped feeding its watchdog: reset."),
        Some(S::GuestPanicked) => ("the guest's kernel panicked", Some(Verb::Reset), "The guest's kernel is dead: reset."),
        Some(S::Postmigrate) => (
            "it was migrated away",
            None,
            "Its memory went to another node: look there before anything is started here, or two run on one disk.",
        ),
        Some(S::Inmigrate) => ("it waits for a migration to arrive", None, "Wait for the migration's end; pve/tasks.txt names its task."),
        Some(S::FinishMigrate) => ("a migration is in its last phase", None, "Wait for the migration's end; pve/tasks.txt names its task."),
        Some(S::SaveVm) => ("a snapshot of it is being written", None, "Wait for the snapshot's end; pve/tasks.txt names its task."),
        Some(S::RestoreVm) => ("a snapshot of it is being read", None, "Wait for the snapshot's end; pve/tasks.txt names its task."),
        Some(S::Debug) => ("a debugger holds it", None, "Ask who debugs it: detaching lets it run on."),
        Some(S::Colo) => ("it is a COLO replica", None, "PVE does not make such a VM: ask who did."),
        Some(S::Running) => ("it runs", None, "Nothing needs doing."),
        None => (
            "a state that this version does not know",
            None,
            "QEMU's documentation of RunState says what it means; a newer pve-verb may know it.",
        ),
    }
}

/// `scsi0 (nospace)`: disks whose last operation failed.
fn failed_disks(e: &Evidence<'_>) -> Vec<String> {
    let blocks = e.json("qmp/query-block.json");
    let disks = blocks.as_ref().and_then(Value::as_array).into_iter().flatten();
    let failed = disks.filter_map(|block| {
        let status = block.get("io-status")?.as_str().filter(|s| *s != "ok")?;
        Some(format!("{} ({})", show(&device_name(block)?), show(status)))
    });
    failed.take(4).collect()
}
