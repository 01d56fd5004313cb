//! 0, 10, 11 and 70: what was done, what failed, what is not known. From `failed` on the VM may have changed.

use proto::{Message, QemuProcess, RequestId, Verb, VmState, Vmid};

use super::show;
use crate::assess::Interrupted;

// ---- 0, done

/// A `status`; the judgement's sentence and advice.
pub fn status(sentence: &str, advice: &str) -> Message {
    Message::new(sentence, advice)
}

/// A bundle was captured and is safe.
pub fn captured(vmid: Vmid, captured: usize, not_captured: usize) -> Message {
    Message::new(
        format!("The evidence of VM {vmid} is kept: {captured} artifacts, {not_captured} questions without an answer."),
        "Read its summary.txt; the manifest says what is missing and why.",
    )
}

/// An existing bundle was shown.
pub fn shown(bundle: &proto::BundleName) -> Message {
    Message::new(
        format!("The bundle {bundle} is shown as it is kept; nothing new was captured."),
        "Check it with `pve-verb bundle verify` on the host.",
    )
}

/// A mutation reached the wanted state.
pub fn done(verb: Verb, vmid: Vmid, now: Option<QemuProcess>, ms: u64) -> Message {
    let took = format!("{}.{} s", ms / 1000, ms % 1000 / 100);
    let pid = now.map(|p| format!(" with pid {}", p.pid)).unwrap_or_default();
    let (what, next) = match verb {
        Verb::Reset => (
            format!("VM {vmid} was reset in the same QEMU process{pid}, in {took}."),
            "Wait for the guest to boot, then look whether it answers over SSH.",
        ),
        Verb::Stop => (format!("VM {vmid} was stopped in {took}, and no process of it is left."), "Use start to bring it back."),
        Verb::Start => {
            (format!("VM {vmid} runs{pid}, after {took}."), "Wait for the guest to boot, then look whether it answers over SSH.")
        }
        Verb::Cycle => (
            format!("VM {vmid} was stopped and started and runs in a fresh QEMU process{pid}, after {took}."),
            "Wait for the guest to boot, then look whether it answers over SSH.",
        ),
        Verb::Status | Verb::Forensics => (format!("{verb} of VM {vmid} ended after {took}."), "Nothing was changed."),
    };
    Message::new(what, next)
}

/// The VM was in the wanted state before.
pub fn already(verb: Verb, vmid: Vmid, state: VmState) -> Message {
    let next = match verb {
        Verb::Start => "If it does not answer, ask for status: running does not mean healthy.",
        _ => "Nothing is left to do.",
    };
    Message::new(format!("VM {vmid} was {state} already, so nothing was sent."), next)
}

/// A dry run: what was looked at, and what would be done.
pub fn plan(verb: Verb, vmid: Vmid, checked: &[String], steps: &[&str]) -> Message {
    let checked = if checked.is_empty() { String::new() } else { format!(" ({})", show(&checked.join("; "))) };
    let steps = if steps.is_empty() { "nothing, it is so already".to_owned() } else { steps.join(", then ") };
    Message::new(
        format!("A dry run of {verb} on VM {vmid} found nothing in its way{checked}; it would do: {}.", show(&steps)),
        "Send it again without --dry-run, and with a new request id, to do it.",
    )
}

// ---- 10, failed

/// `stop`, or cycle's stop part: a process is still there.
pub fn still_there(vmid: Vmid, left: &str) -> Message {
    Message::new(
        format!("VM {vmid} was told to stop and is not gone: {}.", show(left)),
        "In state D it waits for the host's storage: repair that, then stop again; do not start it before it is gone.",
    )
}

/// `stop` or `cycle`, and nothing was begun.
pub fn not_told_to_stop(vmid: Vmid, why: &str) -> Message {
    Message::new(
        format!("Nothing was done to VM {vmid}, and nothing is left that could be: {}.", show(why)),
        "Repair that on the host, then use the verb again.",
    )
}

/// `start` did not bring the VM up.
pub fn did_not_start(vmid: Vmid, said: &str) -> Message {
    Message::new(
        format!("VM {vmid} does not run after start; qm said: {}.", show(said)),
        "Repair what it names, then use start again; PVE's task log has qm's whole output.",
    )
}

/// cycle stopped the VM and could not start it.
pub fn stopped_but_not_started(vmid: Vmid, tries: u32, said: &str) -> Message {
    let tries = if tries > 1 { ", in two tries" } else { "" };
    Message::new(
        format!("VM {vmid} was stopped and could not be started again{tries}: {}.", show(said)),
        "The VM is OFF: repair what it names, then use start.",
    )
}

/// `reset` was sent and did not have its effect.
pub fn did_not_reset(vmid: Vmid, state: VmState, said: &str) -> Message {
    Message::new(format!("VM {vmid} was sent a reset and is {state}: {}.", show(said)), "Use cycle, which makes a fresh QEMU process.")
}

/// `start` on a paused VM did not resume it.
pub fn did_not_resume(vmid: Vmid, state: VmState) -> Message {
    Message::new(
        format!("VM {vmid} was resumed and is {state} all the same."),
        "Ask for status for the cause; cycle makes a fresh QEMU process.",
    )
}

/// Any other state than the wanted one.
pub fn failed(verb: Verb, vmid: Vmid, state: VmState, why: &str) -> Message {
    Message::new(
        format!("The {verb} of VM {vmid} was tried and the VM is {state}: {}.", show(why)),
        "Ask for status: it says which verb helps now.",
    )
}

// ---- 11, unknown

/// The deadline came before the state could be seen.
pub fn not_observed(verb: Verb, vmid: Vmid, why: &str) -> Message {
    Message::new(
        format!("The {verb} of VM {vmid} was begun, and its end could not be observed in time: {}.", show(why)),
        "Ask for status until the state is known, before anything else is sent.",
    )
}

/// The worker was killed.
pub fn interrupted(vmid: Vmid, was: &Interrupted, (completes, why): (Option<Verb>, &'static str)) -> Message {
    let at = was.step.map(|step| format!(" at its step {step}")).unwrap_or_default();
    let next = completes.map_or_else(|| why.to_owned(), |v| format!("Use {v} to complete it, with a new request id."));
    Message::new(format!("The {} of VM {vmid} was killed half-way{at}.", was.verb), next)
}

/// The front lost its worker, or the worker's events ended without a receipt.
pub fn worker_lost(id: &RequestId) -> Message {
    Message::new(
        "The worker that did this ended without an answer.".to_owned(),
        format!("Ask what became of it with --attach --request-id={id}, before anything else is sent."),
    )
}

/// An earlier worker was past its deadline, and its lock was taken over.
pub fn taken_over(verb: Verb, since: proto::Timestamp) -> Message {
    Message::new(
        format!("An earlier {verb}, begun at {since}, was past its deadline, and its worker was killed."),
        "Ask for status: it says what that one left behind.",
    )
}

// ---- 70, internal

/// A bug of ours.
pub fn internal(touched: Option<bool>, how: &str) -> Message {
    let touched = match touched {
        Some(true) => "the VM may have changed",
        Some(false) => "nothing was sent to the VM",
        None => "whether anything was sent to the VM is not known",
    };
    Message::new(
        format!("pve-verb itself failed, and {touched}: {}.", show(how)),
        "Ask for status, then report this with the host's journal of pve-verb.",
    )
}

/// A panic.
pub fn panicked(touched: Option<bool>) -> Message {
    internal(touched, "it panicked, and its stderr says where")
}
