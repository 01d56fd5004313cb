//! `reset`: `system_reset` over our own QMP connection, with PVE's configuration lock held, done when QEMU said RESET and runs.
//!
//! Not `qm reset`: that only queues the reset, does not look whether it happened, and leaves a paused VM in `prelaunch`.

use proto::{RunState, StepName, StepOutcome, Vmid};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use crate::deadline;
use crate::mutate::{Mutated, door};
use crate::qmp::{Change, Query, Session};
use crate::run::Run;

/// Resets the guest; what came of it is in `done`.
pub(crate) fn reset(run: &mut Run, done: &mut Mutated) {
    let began = run.step_started(StepName::SystemReset);
    let said = locked_reset(run, done);
    match said {
        Ok(detail) => run.step_ended(StepName::SystemReset, began, StepOutcome::Done, Some(detail)),
        Err((outcome, why)) => {
            run.step_ended(StepName::SystemReset, began, outcome, Some(why.clone()));
            done.parts().1.trouble = Some(why);
            return;
        }
    }
    resume_if_left_prelaunch(run, done);
}

fn locked_reset(run: &mut Run, done: &mut Mutated) -> Result<String, (StepOutcome, String)> {
    let vmid = done.vmid();
    let failed = |why: String| (StepOutcome::Failed, why);
    // `qm` must not start, stop or migrate the VM under our hands.
    let _config = config_lock(vmid).map_err(failed)?;
    let door = door(run, vmid).map_err(|e| failed(format!("the QMP socket is in use by {}", e.by)))?;
    let mut qmp = Session::open(&door, deadline::QMP_ASK).map_err(|e| failed(e.to_string()))?;
    qmp.change(Change::SystemReset, done.preserved(), deadline::QMP_ASK).map_err(|e| failed(e.to_string()))?;
    if qmp.await_event("RESET", deadline::QMP_RESET).is_some() {
        done.parts().1.reset_seen = true;
        Ok("QEMU said RESET".to_owned())
    } else {
        Err((StepOutcome::TimedOut, "system_reset was taken, but QEMU did not say RESET".to_owned()))
    }
}

/// A VM that did not run before is `prelaunch` after the reset, and would stay so.
fn resume_if_left_prelaunch(run: &mut Run, done: &mut Mutated) {
    let vmid = done.vmid();
    let Ok(door) = door(run, vmid) else { return };
    let Ok(mut qmp) = Session::open(&door, deadline::QMP_ASK) else { return };
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

/// PVE's own flock on the VM's configuration; freed on drop.
fn config_lock(vmid: Vmid) -> Result<File, String> {
    let path = format!("/run/lock/qemu-server/lock-{vmid}.conf");
    let file =
        std::fs::OpenOptions::new().read(true).append(true).create(true).mode(0o644).open(&path).map_err(|e| format!("{path}: {e}"))?;
    let until = Instant::now() + deadline::CONFIG_LOCK;
    loop {
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(file);
        }
        if Instant::now() >= until {
            return Err("another PVE task holds the lock on the VM's configuration".to_owned());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
