//! What is proved impossible or harmful is refused before anything is begun; what is unknown proceeds, and is said.
//!
//! [`quick`] runs before the capture, on the first look. [`plan`] runs after the bundle is preserved, with the whole assessment,
//! and says what will be done. Neither changes anything.

use proto::{Code, RunState, Verb, VmState};
use std::time::Duration;

use crate::bundle::Preserved;
use crate::capture::Unresponsive;
use crate::config_lock::{self, ConfigLock};
use crate::lock::Locked;
use crate::probe::observe::{Observation, Process, observe};
use crate::pve::{Config, Ha, mib};
use crate::rate::{Idle, Rates};
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
        match &seen.memory {
            Some(memory) => match memory.beyond() {
                Some(most) => return precondition(say::too_little_memory(vmid, verb, (mib(memory.need), mib(most)))),
                None if memory.need > memory.to_be_had() => run.degrade(format!(
                    "the VM asks for {} MiB of memory and about {} MiB are to be had: the start may fail, or the host may end something for it",
                    mib(memory.need),
                    mib(memory.to_be_had())
                )),
                None => {}
            },
            None => run.degrade("whether the host has the memory for the VM could not be told".to_owned()),
        }
    }
    // A cycle of a stopped VM is a start.
    let starts = verb == Verb::Start || (verb == Verb::Cycle && stopped);
    match &seen.lock {
        Some(lock) if !starts || (stopped && forbids(lock, &Plan::Start)) => Err(Stop::busy_pve(pve_lock(vmid, lock, seen), state)),
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
    let (key, verb) = (&authorised.caller().key_name, authorised.verb());
    if authorised.caller().is_console() {
        return Ok(());
    }
    let now = host::boot_ms();
    let limits = run.limits();
    let at = |wait: Duration| proto::Timestamp::from_unix_ms(host::now().unix_ms() + u64::try_from(wait.as_millis()).unwrap_or(0));
    let idle = |wait| say::too_many_idle(limits.forensics_per_minute, at(wait));
    let message = match verb {
        Verb::Status => None,
        Verb::Forensics => {
            let wait = counted(|r| r.forensics_wait(key, &limits, now), |r| r.count_forensics(key, now));
            wait.map(|wait| say::too_many_forensics(limits.forensics_per_minute, at(wait)))
        }
        _ if authorised.dry_run() => {
            counted(|r| r.idle_wait(Idle::Dry, key, &limits, now), |r| r.count_idle(Idle::Dry, key, now)).map(idle)
        }
        _ => {
            let rates = Rates::load();
            // What a `start` does is never too often, only what it does not do.
            let mutation = rates.mutation_wait(key, &limits, now).filter(|_| verb != Verb::Start).map(|wait| {
                if wait.as_secs() < u64::from(limits.min_interval_s) {
                    say::too_soon(u64::from(limits.min_interval_s), at(wait))
                } else {
                    say::too_many(limits.mutations_per_hour, at(wait))
                }
            });
            mutation.or_else(|| rates.idle_wait(Idle::Call(verb), key, &limits, now).map(idle))
        }
    };
    message.map_or(Ok(()), |message| Err(Stop::policy(message)))
}

/// Asks how long to wait and, where that is not at all, counts: as one act. A count that can't be kept is no reason to refuse evidence.
fn counted(wait: impl Fn(&Rates) -> Option<Duration>, count: impl Fn(&mut Rates)) -> Option<Duration> {
    let asked = Rates::update(|rates| {
        let must = wait(rates);
        if must.is_none() {
            count(rates);
        }
        must
    });
    asked.unwrap_or_else(|_| wait(&Rates::load()))
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

/// The last look before anything is begun, for a dry run too: whether somebody else holds PVE's file lock. Gives what was found not to be
/// in the way. `reset` takes the lock itself.
///
/// # Errors
/// Busy: `qm` would wait for it, give up, and leave off a VM whose QEMU was ended for a start.
pub fn free(run: &mut Run, preserved: &Preserved, plan: &Plan) -> Result<Vec<String>, Stop> {
    let (verb, vmid, before) = (preserved.verb(), preserved.authorised().vmid(), &preserved.seen().before);
    let mut checked = Vec::new();
    if !needs_config_lock(plan) || (matches!(plan, Plan::Reset) && !preserved.authorised().dry_run()) {
        return Ok(checked);
    }
    match config_lock::look(vmid) {
        Ok(()) => checked.push("PVE's file lock is free".to_owned()),
        Err(ConfigLock::Busy(by)) if goes_without(plan, verb, &before.config) => {
            let by = by.map_or_else(String::new, |by| format!(" ({by})"));
            run.degrade(format!("another process{by} holds PVE's file lock on the VM's configuration"));
        }
        Err(ConfigLock::Busy(by)) => return Err(Stop::busy_pve(say::config_busy(vmid, by.as_deref()), preserved.seen().state)),
        Err(ConfigLock::Unusable(why)) => run.degrade(format!("whether somebody holds PVE's file lock on the VM could not be told: {why}")),
    }
    if let (Verb::Start | Verb::Cycle, Some(memory)) = (verb, &before.memory) {
        checked.push(format!("{} MiB of memory asked for, about {} MiB to be had", mib(memory.need), mib(memory.to_be_had())));
    }
    Ok(checked)
}

/// Whether a process that works on the VM's configuration stands in the way of this plan.
const fn needs_config_lock(plan: &Plan) -> bool {
    match plan {
        Plan::Already | Plan::Resume => false,
        Plan::Reset | Plan::Start | Plan::Stop | Plan::Kill(_) => true,
    }
}

/// A `stop` by a proved kill starts nothing. Where `/etc/pve` hangs it is the only way to stop, and tasks that hang with it hold the lock.
fn goes_without(plan: &Plan, verb: Verb, config: &Config) -> bool {
    matches!((plan, verb, config), (Plan::Kill(_), Verb::Stop, Config::Unreadable(_)))
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
