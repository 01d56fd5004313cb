//! One look at the VM as it is now: the process table first, then QEMU's own word where there is a process. For the verdict after a
//! mutation, and for telling what a killed one left behind. Changes nothing.

use proto::{QemuProcess, RunState, VmState, Vmid};

use crate::probe::observe::observe;
use crate::qmp::{Door, Purpose, Query, Session};
use crate::{deadline, facts};

/// What is seen.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The state; unknown where nobody said it in time.
    pub state: VmState,
    /// The process.
    pub qemu: Option<QemuProcess>,
}

/// Looks, for at most [`deadline::LOOK`].
pub fn look(vmid: Vmid, purpose: &Purpose) -> Seen {
    let now = observe(vmid, deadline::OBSERVE);
    let state = match facts::state_without_qmp(&now) {
        VmState::Unknown if now.running().is_some() => ask(vmid, purpose).map_or(VmState::Unknown, VmState::Qmp),
        host => host,
    };
    Seen { state, qemu: facts::qemu(&now) }
}

fn ask(vmid: Vmid, purpose: &Purpose) -> Option<RunState> {
    let door = Door::take(vmid, purpose, deadline::QMP_DOOR).ok()?;
    let mut qmp = Session::open(&door, deadline::QMP_ASK).ok()?;
    let status = qmp.ask(&Query::Status, deadline::QMP_ASK).ok()?;
    RunState::from_qmp(status.get("status")?.as_str()?)
}
