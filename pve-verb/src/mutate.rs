//! Preserved → Mutated: the only file that changes the VM, and it can't be called without preserved evidence.
//!
//! Before the first act an `intent` record and operation.json are durable; each step is recorded before the next begins. What a
//! step reports is written down; whether it worked is for verify.rs, which looks at the VM.

use proto::{StepName, StepOutcome, Verb, VmState};
use serde_json::json;
use std::time::{Duration, Instant};

use crate::bundle::Preserved;
use crate::capture::Unresponsive;
use crate::kill::{self, Killed};
use crate::preflight::{self, Plan};
use crate::probe::observe::observe;
use crate::promise::Event;
use crate::pve::Config;
use crate::qm;
use crate::qmp::{Door, InUse, Purpose, Session};
use crate::run::{Run, Stop};
use crate::text::say;
use crate::{deadline, reset, resume};

/// What was done to the VM, to be held against what is seen. Made by [`apply`] only.
#[derive(Debug)]
pub struct Mutated {
    preserved: Preserved,
    report: Report,
}

/// What the steps said of themselves.
#[derive(Debug, Default)]
pub struct Report {
    /// Whether anything was sent at all.
    pub touched: bool,
    /// Whether anything began that acts on the VM.
    pub acted: bool,
    /// Whether nothing had to be sent.
    pub already: bool,
    /// What was found not to be in the way, for a dry run to tell.
    pub checked: Vec<String>,
    /// Whether SIGKILL is pending for a proved QEMU that does not die.
    pub survives: bool,
    /// How often a start was tried.
    pub starts: u32,
    /// What the last step that failed said.
    pub trouble: Option<String>,
    /// For `reset`: whether QEMU said that it reset.
    pub reset_seen: bool,
}

/// Does what the plan says.
///
/// # Errors
/// Refusals only, and only before anything was sent; from the first act on there is a [`Mutated`], whatever happens.
pub fn apply(run: &mut Run, preserved: Preserved) -> Result<Mutated, Stop> {
    let plan = preflight::plan(&preserved)?;
    run.planned(&plan, preserved.verb());
    let checked = preflight::free(run, &preserved, &plan)?;
    let mut done = Mutated { preserved, report: Report { already: matches!(plan, Plan::Already), checked, ..Report::default() } };
    if done.report.already || done.preserved.authorised().dry_run() {
        return Ok(done);
    }
    match act(run, &mut done, &plan) {
        Ok(()) => Ok(done),
        // There may be an intent already: nobody else gets the lock before its end is stored.
        Err(stop) => Err(stop.holding(done.close())),
    }
}

fn act(run: &mut Run, done: &mut Mutated, plan: &Plan) -> Result<(), Stop> {
    // What goes over QMP refuses while nothing is begun: it opens its connection before it declares the intent.
    match plan {
        Plan::Reset => return reset::reset(run, done, plan),
        Plan::Resume => return resume::resume(run, done, plan),
        _ => preflight::again(run, &done.preserved, plan)?,
    }
    declare_intent(run, &done.preserved, plan)?;
    done.report.touched = true;
    match plan {
        Plan::Already | Plan::Reset | Plan::Resume => {}
        Plan::Start => start(run, done),
        Plan::Stop => stop(run, done),
        Plan::Kill(proved) => end_unresponsive(run, done, proved),
    }
    if done.verb() == Verb::Cycle && done.preserved.seen().state != VmState::Stopped {
        second_half(run, done);
    }
    Ok(())
}

impl Mutated {
    /// The VM.
    pub const fn vmid(&self) -> proto::Vmid {
        self.preserved.authorised().vmid()
    }

    /// The verb.
    pub const fn verb(&self) -> Verb {
        self.preserved.verb()
    }

    /// The evidence.
    pub const fn preserved(&self) -> &Preserved {
        &self.preserved
    }

    /// What the steps said.
    pub const fn report(&self) -> &Report {
        &self.report
    }

    /// Another request of ours holds QEMU's sockets, and nothing was sent.
    pub(crate) fn busy(&self, in_use: &InUse) -> Stop {
        Stop::busy_pve(say::sockets_busy(self.vmid(), &in_use.by), self.preserved.seen().state)
    }

    /// What is left when all is seen: the permission, with the lock in it.
    pub(crate) fn close(self) -> Preserved {
        self.preserved
    }

    /// The evidence and the report to write to, for the file of one step.
    pub(crate) const fn parts(&mut self) -> (&Preserved, &mut Report) {
        (&self.preserved, &mut self.report)
    }
}

/// The start of a cycle: only once nothing of the old process is left, and once more if it fails and time is left.
fn second_half(run: &mut Run, done: &mut Mutated) {
    let gone = stopped_within(done.vmid(), deadline::OBSERVE_AFTER);
    if !gone {
        // A second QEMU on the same disk would be worse than a VM that is down; systemd would refuse it anyway, 20 s later.
        done.report.trouble.get_or_insert_with(|| "the old QEMU is not gone, so no new one was started".to_owned());
        return;
    }
    start(run, done);
    if done.report.trouble.is_some() && run.time_left() > Duration::from_secs(40) && stopped_within(done.vmid(), Duration::from_millis(100))
    {
        done.report.trouble = None;
        start(run, done);
    }
}

/// Whether, within this time, no process of the VM is left anywhere.
pub(crate) fn stopped_within(vmid: proto::Vmid, within: Duration) -> bool {
    let until = Instant::now() + within;
    loop {
        if observe(vmid, deadline::OBSERVE).certainly_stopped() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn stop(run: &mut Run, done: &mut Mutated) {
    call_qm(run, done, StepName::QmStop, qm::Call::Stop);
}

fn start(run: &mut Run, done: &mut Mutated) {
    done.report.starts += 1;
    call_qm(run, done, StepName::QmStart, qm::Call::Start);
}

/// Our own lock on the VM's sockets, as a mutation.
pub(crate) fn door(run: &Run, vmid: proto::Vmid) -> Result<Door, InUse> {
    Door::take(vmid, &Purpose::Mutation(run.id().to_string()), deadline::QMP_DOOR)
}

/// Opens the one connection over which something is sent to QEMU.
///
/// # Errors
/// Precondition: QEMU did not greet us, so nothing can be sent.
pub(crate) fn open<'d>(door: &'d Door, done: &Mutated) -> Result<Session<'d>, Stop> {
    Session::open(door, deadline::QMP_ASK)
        .map_err(|e| Stop::precondition(say::without_qmp(done.vmid(), done.verb(), &e.to_string()), done.preserved.seen().state))
}

/// Calls `qm` with our QMP lock held, so that no `status` of ours occupies the socket and turns `quit` into SIGTERM.
fn call_qm(run: &mut Run, done: &mut Mutated, step: StepName, call: qm::Call) {
    let program = run.host.config.host.qm.path().to_owned();
    let began = run.step_started(step);
    let door = door(run, done.vmid()).map_err(|e| {
        run.degrade(format!("qm {} was called without our lock on QEMU's sockets, which is in use by {}", call.word(), e.by));
    });
    let report = qm::call(call, done.vmid(), &program, run.time_left(), &done.preserved);
    drop(door);
    let good = matches!(report.ended, qm::Ended::Exit(Some(0)));
    done.report.acted |= !matches!(report.ended, qm::Ended::NotBegun | qm::Ended::NotStarted(_));
    let outcome = match report.ended {
        qm::Ended::Exit(Some(0)) => StepOutcome::Done,
        qm::Ended::Abandoned | qm::Ended::NotBegun | qm::Ended::AfterTerm(_) => StepOutcome::TimedOut,
        _ => StepOutcome::Failed,
    };
    let detail = report.detail(call);
    run.step_ended(step, began, outcome, Some(detail.clone()));
    if !good {
        done.report.trouble = Some(detail);
    }
}

/// SIGKILL to the proved process. For `stop` then `qm stop`, which finds a stopped VM and only cleans up after it; for `cycle`
/// `qm start` cleans up by itself.
fn end_unresponsive(run: &mut Run, done: &mut Mutated, proved: &Unresponsive) {
    let began = run.step_started(StepName::Kill);
    let vmid = done.vmid();
    // Reads were told to stay away; one that is at the socket all the same may be why it is silent.
    let silent = |within| {
        let door = Door::take(vmid, &Purpose::Mutation(run.id().to_string()), Duration::ZERO);
        door.is_ok_and(|door| Session::open(&door, within).is_err_and(|e| e.is_silence()))
    };
    let killed = kill::kill(proved, vmid, &done.preserved, silent);
    let (outcome, detail) = match &killed {
        Killed::Gone => (StepOutcome::Done, format!("QEMU {} is gone; it was {}", proved.qemu.pid, proved.why)),
        Killed::Survives => (StepOutcome::Failed, format!("QEMU {} has SIGKILL pending and does not die", proved.qemu.pid)),
        Killed::NotIt(why) => (StepOutcome::Failed, format!("nothing was killed: {why}")),
    };
    run.step_ended(StepName::Kill, began, outcome, Some(detail.clone()));
    done.report.acted = !matches!(killed, Killed::NotIt(_));
    done.report.survives = killed == Killed::Survives;
    let pve_hangs = matches!(done.preserved.seen().before.config, Config::Unreadable(_));
    match after_kill(&killed, done.verb(), pve_hangs) {
        AfterKill::Nothing => {}
        AfterKill::QmStop => stop(run, done),
        AfterKill::Trouble => done.report.trouble = Some(detail),
        AfterKill::TroubleWithPve => done.report.trouble = Some(format!("{detail}; and qm stop would hang, because /etc/pve does")),
    }
}

/// What follows the kill of a QEMU that was proved unresponsive.
#[derive(Debug, PartialEq, Eq)]
enum AfterKill {
    Nothing,
    QmStop,
    Trouble,
    TroubleWithPve,
}

const fn after_kill(killed: &Killed, verb: Verb, pve_hangs: bool) -> AfterKill {
    match (killed, verb) {
        (Killed::Survives, _) => AfterKill::Trouble,
        (Killed::Gone, Verb::Stop) if !pve_hangs => AfterKill::QmStop,
        (Killed::Gone, _) => AfterKill::Nothing,
        // A `qm` would be left behind in /etc/pve, and would stop the VM whenever that comes back.
        (Killed::NotIt(_), _) if pve_hangs => AfterKill::TroubleWithPve,
        // It came back to life or was replaced between the proof and now: then `qm stop` is right for it.
        (Killed::NotIt(_), _) => AfterKill::QmStop,
    }
}

/// Makes the intent durable, and lets it act: from here on a crash is told as `interrupted`, and the id never runs again.
pub(crate) fn declare_intent(run: &mut Run, preserved: &Preserved, plan: &Plan) -> Result<(), Stop> {
    let authorised = preserved.authorised();
    // Before the intent: a crash in between costs a grant, never a second use of it.
    run.spend_grant(authorised)?;
    let operation = run.operation(authorised);
    let facts = json!({
        "grant": authorised.granted().map(crate::grant::Granted::facts),
        "bundle": preserved.name(),
        "operation": operation,
        "plan": plan.sentence(authorised.verb()),
        "state_before": preserved.seen().state,
    });
    run.record_intent(facts)?;
    run.count_mutation(authorised);
    run.set_operation(&operation)?;
    run.reach(Event::Acts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_etc_pve_hangs_no_qm_follows_the_kill() {
        let not_it = || Killed::NotIt("it may answer again".to_owned());
        for verb in [Verb::Stop, Verb::Cycle] {
            for killed in [Killed::Gone, Killed::Survives, not_it()] {
                assert_ne!(after_kill(&killed, verb, true), AfterKill::QmStop, "{verb} {killed:?}");
            }
            assert_eq!(after_kill(&not_it(), verb, true), AfterKill::TroubleWithPve);
            assert_eq!(after_kill(&not_it(), verb, false), AfterKill::QmStop);
            assert_eq!(after_kill(&Killed::Survives, verb, false), AfterKill::Trouble);
        }
        assert_eq!(after_kill(&Killed::Gone, Verb::Stop, false), AfterKill::QmStop);
        assert_eq!(after_kill(&Killed::Gone, Verb::Cycle, false), AfterKill::Nothing);
    }
}
