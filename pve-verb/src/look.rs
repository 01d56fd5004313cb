//! One look at the VM as it is now: the process table first, then QEMU's own word where there is a process. For the verdict after a
//! mutation, and for telling what a killed one left behind. Changes nothing.

use std::time::Instant;

use proto::{QemuProcess, RunState, VmState, Vmid};

use crate::probe::observe::observe;
use crate::qmp::{Door, Purpose, QmpError, Query, Session};
use crate::{deadline, facts};

/// What is seen.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The state; unknown where nobody said it in time.
    pub state: VmState,
    /// The process.
    pub qemu: Option<QemuProcess>,
    /// Whether it took our connection and said nothing: another one would only stand behind that in its backlog.
    pub silent: bool,
}

/// Looks, for at most [`deadline::LOOK`].
pub fn look(vmid: Vmid, purpose: &Purpose) -> Seen {
    let now = observe(vmid, deadline::OBSERVE);
    let (state, silent) = match facts::state_without_qmp(&now) {
        VmState::Unknown if now.running().is_some() => match ask(vmid, purpose) {
            Ok(state) => (state.map_or(VmState::Unknown, VmState::Qmp), false),
            Err(e) => (VmState::Unknown, e.is_silence()),
        },
        host => (host, false),
    };
    Seen { state, qemu: facts::qemu(&now), silent }
}

/// The same, of a VM whose QEMU said nothing before: it is asked once more only if it is another one.
pub fn look_again(vmid: Vmid, purpose: &Purpose, before: Seen) -> Seen {
    if before.silent && facts::qemu(&observe(vmid, deadline::OBSERVE)) == before.qemu { before } else { look(vmid, purpose) }
}

/// One connection, and for both of its answers together what each may take.
fn ask(vmid: Vmid, purpose: &Purpose) -> Result<Option<RunState>, QmpError> {
    let until = Instant::now() + 2 * deadline::QMP_ASK;
    let Ok(door) = Door::take(vmid, purpose, deadline::QMP_DOOR) else { return Ok(None) };
    let mut qmp = Session::open(&door, 2 * deadline::QMP_ASK)?;
    let status = qmp.ask(&Query::Status, until.saturating_duration_since(Instant::now()))?;
    Ok(status.get("status").and_then(|word| RunState::from_qmp(word.as_str()?)))
}
