//! Mutated → Verified: looks at the VM until it is as wanted, or the time is up. The verdict comes from what is seen, never from
//! an exit code: `qm stop` says 0 for a process that holds the disk, and a lost connection says nothing at all.

use proto::{Message, Outcome, QemuProcess, StepName, StepOutcome, Verb, VmState};
use std::time::{Duration, Instant};

use crate::bundle::Preserved;
use crate::capture::Captured;
use crate::look::{Seen, look, look_again};
use crate::mutate::Mutated;
use crate::promise::Event;
use crate::qmp::Purpose;
use crate::run::Run;
use crate::text::say;
use crate::{deadline, facts};

/// The end of a request that was not refused. Made by this file only.
#[derive(Debug)]
pub struct Verified {
    /// The verdict.
    pub outcome: Outcome,
    /// What happened and what to do.
    pub message: Message,
    /// Whether nothing had to be done.
    pub already: bool,
    /// The VM as it is now.
    pub state: VmState,
    /// Its process.
    pub qemu: Option<QemuProcess>,
    /// Whether something was sent to the VM.
    pub touched: bool,
    /// A mutation's permission and, in it, its lock: held until the end is stored, or the next one would take it for killed.
    pub held: Option<Preserved>,
}

/// The end of `status`: what is seen is the answer.
pub fn status(captured: Captured) -> Verified {
    let message = say::status(&captured.seen().assessment.sentence, &captured.seen().assessment.recommend.why);
    Verified {
        outcome: Outcome::Done,
        message,
        already: false,
        state: captured.seen().state,
        qemu: facts::qemu(&captured.seen().before),
        touched: false,
        held: None,
    }
}

/// The end of `forensics`: the bundle is the answer.
pub fn forensics(preserved: Preserved) -> Verified {
    let message = {
        let all = &preserved.seen().answers;
        let got = all.iter().filter(|a| a.outcome == proto::ProbeOutcome::Captured).count();
        say::captured(preserved.authorised().vmid(), got, all.len() - got)
    };
    Verified {
        outcome: Outcome::Done,
        message,
        already: false,
        state: preserved.seen().state,
        qemu: facts::qemu(&preserved.seen().before),
        touched: false,
        held: None,
    }
}

/// The end of `forensics --bundle=`: nobody looked at the VM.
pub fn shown(bundle: &proto::BundleName) -> Verified {
    Verified {
        outcome: Outcome::Done,
        message: say::shown(bundle),
        already: false,
        state: VmState::Unknown,
        qemu: None,
        touched: false,
        held: None,
    }
}

/// Looks until the wanted state is there.
pub fn confirm(run: &mut Run, done: Mutated) -> Verified {
    if !done.report().touched {
        let state = done.preserved().seen().state;
        let verb = done.verb();
        let qemu = facts::qemu(&done.preserved().seen().before);
        let message = if done.report().already {
            say::already(verb, done.vmid(), state)
        } else {
            say::plan(verb, done.vmid(), &done.report().checked, &[run.plan()])
        };
        let already = done.report().already;
        return Verified { outcome: Outcome::Done, message, already, state, qemu, touched: false, held: Some(done.close()) };
    }
    let purpose = Purpose::Mutation(run.id().to_string());
    let began = run.step_started(StepName::Observe);
    let until = Instant::now() + deadline::OBSERVE_AFTER;
    let mut seen = look(done.vmid(), &purpose);
    while !wanted(&done, &seen) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
        seen = look_again(done.vmid(), &purpose, seen);
    }
    if done.report().survives && seen.state == VmState::Unknown {
        // Of a process that was proved to hang, and can't even die, silence is an answer.
        seen.state = VmState::Unresponsive;
    }
    let good = wanted(&done, &seen);
    // Where that must not be, its end says so (run/end.rs).
    let _ = run.reach(Event::Observed);
    let step = if good { StepOutcome::Done } else { StepOutcome::Failed };
    run.step_ended(StepName::Observe, began, step, Some(format!("the VM is {}", seen.state)));
    let outcome = match (good, seen.state) {
        (true, _) => Outcome::Done,
        (false, VmState::Unknown) => Outcome::Unknown,
        (false, _) => Outcome::Failed,
    };
    let message = message(run, &done, outcome, &seen);
    Verified { outcome, message, already: false, state: seen.state, qemu: seen.qemu, touched: true, held: Some(done.close()) }
}

/// The two sentences for what came of it.
fn message(run: &Run, done: &Mutated, outcome: Outcome, seen: &Seen) -> Message {
    // A cycle of a stopped VM is a start, and what it did is said as one.
    let verb = match (done.verb(), done.preserved().seen().state) {
        (Verb::Cycle, VmState::Stopped) => Verb::Start,
        (verb, _) => verb,
    };
    let vmid = done.vmid();
    let why = done.report().trouble.as_deref().unwrap_or("no step reported a failure");
    match (outcome, verb, seen.state) {
        (Outcome::Done, ..) => say::done(verb, vmid, seen.qemu, run.elapsed_ms()),
        (Outcome::Unknown, ..) => say::not_observed(verb, vmid, why),
        (_, Verb::Cycle, VmState::Stopped) => say::stopped_but_not_started(vmid, done.report().starts, why),
        (_, Verb::Stop | Verb::Cycle, _) if !done.report().acted => say::not_told_to_stop(vmid, why),
        (_, Verb::Stop | Verb::Cycle, _) => say::still_there(vmid, why),
        (_, Verb::Start, VmState::Stopped) => say::did_not_start(vmid, why),
        (_, Verb::Start, state @ VmState::Qmp(_)) => say::did_not_resume(vmid, state),
        (_, Verb::Reset, state) => say::did_not_reset(vmid, state, why),
        (_, _, state) => say::failed(verb, vmid, state, why),
    }
}

/// Whether what is seen is what the verb means (PROTOCOL.md, section 8).
fn wanted(done: &Mutated, seen: &Seen) -> bool {
    let before = facts::qemu(&done.preserved().seen().before);
    match done.verb() {
        Verb::Status | Verb::Forensics => true,
        Verb::Reset => done.report().reset_seen && seen.state == VmState::Running && seen.qemu == before,
        Verb::Stop => seen.state == VmState::Stopped,
        Verb::Start => seen.state == VmState::Running,
        Verb::Cycle => seen.state == VmState::Running && seen.qemu.is_some() && seen.qemu != before,
    }
}
