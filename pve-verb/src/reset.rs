//! `reset`: `system_reset` over our own QMP connection, with PVE's configuration lock held, done when QEMU said RESET and runs.
//!
//! Not `qm reset`: that only queues the reset, does not look whether it happened, and leaves a paused VM in `prelaunch`.

use proto::{RunState, StepName, StepOutcome, Vmid};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::deadline;
use crate::flock::Flocked;
use crate::mutate::{Mutated, declare_intent, door, open};
use crate::preflight::{self, Plan};
use crate::qmp::{Change, Query, Session};
use crate::run::{Run, Stop};
use crate::text::say;

/// Resets the guest; what came of it is in `done`.
///
/// # Errors
/// Where PVE holds the configuration's lock, something changed since the evidence was taken, or QEMU can't be spoken to: then nothing
/// was sent.
pub(crate) fn reset(run: &mut Run, done: &mut Mutated, plan: &Plan) -> Result<(), Stop> {
    let (vmid, state) = (done.vmid(), done.preserved().seen().state);
    // `qm` must not start, stop or migrate the VM under our hands.
    let _config = match config_lock(Path::new("/run/lock/qemu-server"), vmid) {
        Ok(lock) => Some(lock),
        Err(ConfigLock::Busy) => return Err(Stop::busy_pve(say::config_busy(vmid), state)),
        // Not proved to be in anybody's hands: that is no reason to leave the VM as it is.
        Err(ConfigLock::Unusable(why)) => {
            run.degrade(format!("PVE's file lock on the VM's configuration could not be taken, so a qm could act meanwhile: {why}"));
            None
        }
    };
    // Only now: what was seen before the lock was ours may have changed until it was.
    preflight::again(run, done.preserved(), plan)?;
    let door = door(run, vmid).map_err(|e| done.busy(&e))?;
    let mut qmp = open(&door, done)?;
    declare_intent(run, done.preserved(), plan)?;
    done.parts().1.touched = true;
    let began = run.step_started(StepName::SystemReset);
    let (outcome, said) = match qmp.change(Change::SystemReset, done.preserved(), deadline::QMP_ASK) {
        Err(e) => (StepOutcome::Failed, e.to_string()),
        Ok(_) if qmp.await_event("RESET", deadline::QMP_RESET).is_some() => (StepOutcome::Done, "QEMU said RESET".to_owned()),
        Ok(_) => (StepOutcome::TimedOut, "system_reset was taken, but QEMU did not say RESET".to_owned()),
    };
    run.step_ended(StepName::SystemReset, began, outcome, Some(said.clone()));
    if outcome == StepOutcome::Done {
        done.parts().1.reset_seen = true;
        resume_if_left_prelaunch(run, done, &mut qmp);
    } else {
        done.parts().1.trouble = Some(said);
    }
    Ok(())
}

/// A VM that did not run before is `prelaunch` after the reset, and would stay so.
fn resume_if_left_prelaunch(run: &mut Run, done: &mut Mutated, qmp: &mut Session<'_>) {
    let status = qmp.ask(&Query::Status, deadline::QMP_ASK).ok();
    let state = status.as_ref().and_then(|s| s.get("status")?.as_str());
    if state.and_then(RunState::from_qmp) != Some(RunState::Prelaunch) {
        return;
    }
    let began = run.step_started(StepName::Resume);
    match qmp.change(Change::Cont, done.preserved(), deadline::QMP_ASK) {
        Ok(_) => run.step_ended(StepName::Resume, began, StepOutcome::Done, None),
        Err(e) => {
            done.parts().1.trouble = Some(format!("cont after the reset: {e}"));
            run.step_ended(StepName::Resume, began, StepOutcome::Failed, Some(e.to_string()));
        }
    }
}

/// Why PVE's flock is not ours.
#[derive(Debug, PartialEq, Eq)]
enum ConfigLock {
    /// Another process holds it.
    Busy,
    /// The file can't be opened or locked: why.
    Unusable(String),
}

/// PVE's own flock on the VM's configuration, in this folder; freed on drop.
fn config_lock(folder: &Path, vmid: Vmid) -> Result<Flocked<File>, ConfigLock> {
    let path = folder.join(format!("lock-{vmid}.conf"));
    let unusable = |e: &dyn std::fmt::Display| ConfigLock::Unusable(format!("{}: {e}", path.display()));
    let open = std::fs::OpenOptions::new().read(true).append(true).create(true).mode(0o644).open(&path);
    let file = open.map_err(|e| unusable(&e))?;
    let until = Instant::now() + deadline::CONFIG_LOCK;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Flocked::new(file)),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Err(ConfigLock::Busy),
            Err(e) => return Err(unusable(&e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lock_that_somebody_holds_is_busy() {
        let folder = tempfile::tempdir().unwrap();
        let held = config_lock(folder.path(), Vmid::DEVVM).unwrap();
        assert_eq!(config_lock(folder.path(), Vmid::DEVVM).unwrap_err(), ConfigLock::Busy);
        drop(held);
        assert!(config_lock(folder.path(), Vmid::DEVVM).is_ok());
        let nowhere = config_lock(&folder.path().join("absent"), Vmid::DEVVM).unwrap_err();
        assert!(matches!(nowhere, ConfigLock::Unusable(why) if why.contains("lock-102.conf")));
    }
}
