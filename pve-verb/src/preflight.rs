//! What is proved impossible or harmful is refused before anything is begun; what is unknown proceeds, and is said.
//!
//! [`quick`] runs before the capture, on the first look. [`plan`] runs after the bundle is preserved, with the whole assessment,
//! and says what will be done. Neither changes anything.

use proto::{Code, RunState, Verb, VmState};

use crate::bundle::Preserved;
use crate::capture::Unresponsive;
use crate::lock::Locked;
use crate::probe::observe::{Observation, Process, observe};
use crate::pve::{Config, Ha};
use crate::rate::Rates;
use crate::run::{Run, Stop};
use crate::text::say;
use crate::{deadline, facts, host};

/// What will be done.
#[derive(Clone, Debug)]
pub enum Plan {
    /// Nothing: the VM is in the wanted state.
    Already,
    /// `system_reset` over QMP.
    Reset,
    /// `cont` over QMP.
    Resume,
    /// `qm start`.
    Start,
    /// `qm stop`.
    Stop,
    /// SIGKILL through a pidfd; then, for `stop`, `qm stop` to clean up.
    Kill(Unresponsive),
}

impl Plan {
    /// The plan as people read it.
    pub fn sentence(&self, verb: Verb) -> String {
        let then = if verb == Verb::Cycle { ", then qm start" } else { "" };
        match self {
            Self::Already => "nothing: the VM is in the wanted state".to_owned(),
            Self::Reset => "system_reset over QMP".to_owned(),
            Self::Resume => "cont over QMP".to_owned(),
            Self::Start => "qm start".to_owned(),
            Self::Stop => format!("qm stop{then}"),
            Self::Kill(proved) => format!("kill QEMU {} ({}){then}", proved.qemu.pid, proved.why),
        }
    }
}

/// The checks on the first look.
///
/// # Errors
/// Busy or precondition, each with its own sentence.
pub fn quick(run: &mut Run, locked: &Locked, seen: &Observation) -> Result<(), Stop> {
    let authorised = locked.authorised();
    let (verb, vmid) = (authorised.verb(), authorised.vmid());
    rates(run, locked)?;
    if !verb.mutates() {
        return Ok(());
    }
    let state = facts::state_without_qmp(seen);
    let precondition = |message| Err(Stop::precondition(message, state));
    match &seen.config {
        Config::Here => {}
        Config::Missing => return precondition(say::missing(vmid)),
        Config::Elsewhere(node) => return precondition(say::elsewhere(vmid, node)),
        Config::Unreadable(why) => match verb {
            Verb::Start | Verb::Cycle => return precondition(say::pve_hung(verb, why)),
            _ => run.degrade(format!("/etc/pve could not be read ({why}): lock, HA and node are unknown")),
        },
    }
    if let Some(survivor) = &seen.survivor {
        return precondition(say::survivor(vmid, survivor));
    }
    let stopped = state == VmState::Stopped;
    if verb == Verb::Stop && stopped {
        return Ok(()); // `already` wins over a lock
    }
    if verb == Verb::Reset && stopped {
        return precondition(say::reset_of_stopped(vmid));
    }
    // Whether the process that `start` finds runs already, QMP says later; that wins over HA, quorum and a lock: see `plan`.
    let may_be_already = verb == Verb::Start && !stopped;
    if seen.ha.acts() && verb != Verb::Reset && !may_be_already {
        return precondition(say::ha_managed(vmid, verb));
    }
    if let (Ha::Unknown(why), true) = (&seen.ha, verb != Verb::Reset) {
        run.degrade(format!("whether HA manages the VM could not be told: {why}"));
    }
    if matches!(verb, Verb::Start | Verb::Cycle) && !may_be_already {
        match seen.quorum {
            Some(true) => {}
            Some(false) => return precondition(say::no_quorum(verb)),
            None => run.degrade("whether the cluster has quorum could not be told".to_owned()),
        }
        match seen.volumes_missing.as_deref() {
            Some([]) => {}
            Some(missing) => return precondition(say::volumes_missing(vmid, verb, missing)),
            None => run.degrade("whether the VM's volumes are there could not be told".to_owned()),
        }
    }
    match &seen.lock {
        Some(lock) if verb != Verb::Start || (stopped && forbids(lock, &Plan::Start)) => {
            Err(Stop::busy_pve(pve_lock(vmid, lock, seen), state))
        }
        _ => Ok(()),
    }
}

/// Whether PVE's lock stands in the way of this plan: `qm` starts a VM that is `suspended` to disk, and resumes one in a `backup`.
fn forbids(lock: &str, plan: &Plan) -> bool {
    match plan {
        Plan::Already => false,
        Plan::Start => lock != "suspended",
        Plan::Resume => lock != "backup",
        Plan::Reset | Plan::Stop | Plan::Kill(_) => true,
    }
}

/// PVE's lock, with or without a live task.
fn pve_lock(vmid: proto::Vmid, lock: &str, seen: &Observation) -> proto::Message {
    match &seen.lock_task {
        Some(false) => say::locked_by_nobody(vmid, lock),
        Some(true) => say::locked_by_task(lock, &seen.tasks.join(", ")),
        None => say::locked_by_unknown(vmid, lock),
    }
}

/// A key that asks too often waits, without touching another key's allowance.
fn rates(run: &Run, locked: &Locked) -> Result<(), Stop> {
    let authorised = locked.authorised();
    let key = &authorised.caller().key_name;
    if authorised.caller().is_console() || authorised.dry_run() {
        return Ok(());
    }
    let now = host::boot_ms();
    let limits = run.limits();
    let at =
        |wait: std::time::Duration| proto::Timestamp::from_unix_ms(host::now().unix_ms() + u64::try_from(wait.as_millis()).unwrap_or(0));
    let message = match authorised.verb() {
        Verb::Reset | Verb::Stop | Verb::Cycle => match Rates::load().mutation_wait(key, &limits, now) {
            Some(wait) if wait.as_secs() < u64::from(limits.min_interval_s) => {
                Some(say::too_soon(u64::from(limits.min_interval_s), at(wait)))
            }
            Some(wait) => Some(say::too_many(limits.mutations_per_hour, at(wait))),
            None => None,
        },
        Verb::Forensics => {
            let counted = Rates::update(|rates| {
                let wait = rates.forensics_wait(key, &limits, now);
                if wait.is_none() {
                    rates.count_forensics(key, now);
                }
                wait
            });
            // A count that can't be kept is no reason to refuse evidence.
            let wait = counted.unwrap_or_else(|_| Rates::load().forensics_wait(key, &limits, now));
            wait.map(|wait| say::too_many_forensics(limits.forensics_per_minute, at(wait)))
        }
        Verb::Status | Verb::Start => None,
    };
    message.map_or(Ok(()), |message| Err(Stop::policy(message)))
}

/// What will be done, now that the evidence is safe.
///
/// # Errors
/// Precondition: what would make it worse.
pub fn plan(preserved: &Preserved) -> Result<Plan, Stop> {
    let authorised = preserved.authorised();
    let (vmid, state) = (authorised.vmid(), preserved.seen().state);
    let precondition = |message| Err(Stop::precondition(message, state));
    let run_state = match state {
        VmState::Qmp(run_state) => Some(run_state),
        VmState::Host(_) => None,
    };
    match authorised.verb() {
        Verb::Status | Verb::Forensics => Ok(Plan::Already),
        Verb::Reset => {
            if preserved.seen().assessment.code == Code::BlockStalled {
                return precondition(say::reset_of_block_stalled(vmid));
            }
            if run_state == Some(RunState::IoError) && facts::has_iothread(&preserved.seen().answers) {
                return precondition(say::reset_of_io_error(vmid));
            }
            if preserved.seen().unresponsive.is_some() {
                return precondition(say::reset_of_unresponsive(vmid));
            }
            Ok(Plan::Reset)
        }
        Verb::Start => match (state, run_state) {
            (VmState::Stopped, _) => Ok(Plan::Start),
            (_, Some(RunState::Running)) => Ok(Plan::Already),
            (_, Some(RunState::Paused | RunState::Prelaunch)) => resume(preserved),
            (_, Some(other)) => precondition(say::start_of(vmid, other)),
            _ => precondition(say::not_from(vmid, Verb::Start, state)),
        },
        Verb::Stop if state == VmState::Stopped => Ok(Plan::Already),
        Verb::Cycle if state == VmState::Stopped => Ok(Plan::Start),
        Verb::Stop | Verb::Cycle => match &preserved.seen().unresponsive {
            Some(proved) => Ok(Plan::Kill(proved.clone())),
            None if matches!(preserved.seen().before.config, Config::Unreadable(_)) => {
                precondition(say::pve_hung(authorised.verb(), "it did not answer"))
            }
            None => Ok(Plan::Stop),
        },
    }
}

/// A paused VM that is to be started goes on, where neither HA nor a lock of PVE's is in the way; quorum and volumes it does not need.
fn resume(preserved: &Preserved) -> Result<Plan, Stop> {
    let (vmid, state, before) = (preserved.authorised().vmid(), preserved.seen().state, &preserved.seen().before);
    match &before.lock {
        _ if before.ha.acts() => Err(Stop::precondition(say::ha_managed(vmid, Verb::Start), state)),
        Some(lock) if forbids(lock, &Plan::Resume) => Err(Stop::busy_pve(pve_lock(vmid, lock, before), state)),
        _ => Ok(Plan::Resume),
    }
}

/// The look again, right before acting: a lock that somebody took meanwhile, and for what is sent to QEMU itself another QEMU than
/// the one that the evidence is of.
///
/// # Errors
/// Busy or precondition.
pub fn again(run: &mut Run, preserved: &Preserved, plan: &Plan) -> Result<(), Stop> {
    let vmid = preserved.authorised().vmid();
    let seen = observe(vmid, deadline::OBSERVE);
    if let (Plan::Reset | Plan::Resume, Process::Unknown(why)) = (plan, &seen.process) {
        run.degrade(format!("whether QEMU is still the one that was captured could not be told: {why}"));
    }
    unchanged(&preserved.seen().before, &seen, plan, preserved.verb(), vmid).map_err(|stop| stop.seen(preserved.seen().state))
}

/// Nothing that stands in the way of this plan came between two looks.
fn unchanged(before: &Observation, now: &Observation, plan: &Plan, verb: Verb, vmid: proto::Vmid) -> Result<(), Stop> {
    let state = facts::state_without_qmp(before);
    if let Some(lock) = now.lock.as_ref().filter(|lock| forbids(lock, plan) && before.lock.as_ref() != Some(lock)) {
        return Err(Stop::busy_pve(pve_lock(vmid, lock, now), state));
    }
    let other = facts::qemu(before) != facts::qemu(now) && !matches!(now.process, Process::Unknown(_));
    if other && matches!(plan, Plan::Reset | Plan::Resume) {
        return Err(Stop::precondition(say::another_qemu(vmid, verb), state));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
