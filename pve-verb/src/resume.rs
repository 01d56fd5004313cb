//! `start` on a paused or prelaunch VM: `cont` over our own QMP connection, which is opened before anything is declared or sent.

use proto::{StepName, StepOutcome};

use crate::deadline;
use crate::mutate::{Mutated, declare_intent, door, open};
use crate::preflight::{self, Plan};
use crate::qmp::Change;
use crate::run::{Run, Stop};

/// Resumes the VM; what came of it is in `done`.
///
/// # Errors
/// Where something changed since the evidence was taken, or QEMU can't be spoken to: then nothing was sent.
pub(crate) fn resume(run: &mut Run, done: &mut Mutated, plan: &Plan) -> Result<(), Stop> {
    preflight::again(run, done.preserved(), plan)?;
    let door = door(run, done.vmid()).map_err(|e| done.busy(&e))?;
    let mut qmp = open(&door, done)?;
    declare_intent(run, done.preserved(), plan)?;
    done.parts().1.touched = true;
    let began = run.step_started(StepName::Resume);
    match qmp.change(Change::Cont, done.preserved(), deadline::QMP_ASK) {
        Ok(_) => run.step_ended(StepName::Resume, began, StepOutcome::Done, None),
        Err(e) => {
            done.parts().1.trouble = Some(format!("cont over QMP: {e}"));
            run.step_ended(StepName::Resume, began, StepOutcome::Failed, Some(e.to_string()));
        }
    }
    Ok(())
}
