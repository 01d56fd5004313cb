//! 6, refused-precondition: what is *proved* impossible or harmful. Nothing was sent to the VM.

use proto::{HostState, Message, RequestId, RunState, Verb, VmState, Vmid};

use super::show;

/// No node has this VM.
pub fn missing(vmid: Vmid) -> Message {
    Message::new(
        format!("No node of this cluster has a VM {vmid}."),
        "Look for its backup and for who removed it in PVE's task history, and check --vmid in authorized_keys.",
    )
}

/// The VM is on another node.
pub fn elsewhere(vmid: Vmid, node: &str) -> Message {
    let node = show(node);
    Message::new(format!("VM {vmid} is not on this node but on {node}."), format!("Call pve-verb on {node}."))
}

/// The cluster has no quorum.
pub fn no_quorum(verb: Verb) -> Message {
    let so = if verb == Verb::Start { "nothing can be started" } else { "what is stopped now could not be started again" };
    Message::new(
        format!("The cluster has no quorum, so {so}."),
        "Bring the other nodes back, or on the host run `pvecm expected 1` where you know that they are down; reset works without.",
    )
}

/// HA manages the VM: it would undo what is done behind its back.
pub fn ha_managed(vmid: Vmid, verb: Verb) -> Message {
    let next = match verb {
        Verb::Start => format!("On the host run `ha-manager set vm:{vmid} --state started`."),
        Verb::Stop => {
            format!("On the host run `ha-manager crm-command stop vm:{vmid} 60` (or `ha-manager set vm:{vmid} --state stopped`).")
        }
        _ => format!(
            "On the host run `ha-manager crm-command stop vm:{vmid} 60`, wait for stopped, then `ha-manager set vm:{vmid} --state started`."
        ),
    };
    Message::new(format!("HA manages VM {vmid}, and would undo a {verb} that it did not order."), next)
}

/// Something of an old QEMU still holds the disk.
pub fn survivor(vmid: Vmid, left: &str) -> Message {
    Message::new(
        format!("PVE takes VM {vmid} for stopped, but a part of its old QEMU still holds the disk: {}.", show(left)),
        "Wait until its I/O ends or repair the host's storage; a second QEMU on the same disk would destroy it.",
    )
}

/// `/etc/pve` hangs or is gone.
pub fn pve_hung(verb: Verb, how: &str) -> Message {
    let next = match verb {
        Verb::Reset => "On the host run `systemctl restart pve-cluster`, then try reset again.".to_owned(),
        _ => format!("On the host run `systemctl restart pve-cluster`, then {verb} again; reset works meanwhile."),
    };
    Message::new(format!("PVE's /etc/pve does not answer ({}), and {verb} needs it.", show(how)), next)
}

/// `reset` of a VM without a process.
pub fn reset_of_stopped(vmid: Vmid) -> Message {
    Message::new(format!("VM {vmid} is stopped, so there is nothing to reset."), "Use start.")
}

/// `reset` where the block layer is dead.
pub fn reset_of_block_stalled(vmid: Vmid) -> Message {
    Message::new(
        format!("VM {vmid} is block-stalled: a reset would wait for the stuck I/O and hang QMP for good."),
        "Use cycle, which makes a fresh QEMU process.",
    )
}

/// `reset` of an io-error with an iothread.
pub fn reset_of_io_error(vmid: Vmid) -> Message {
    Message::new(
        format!("VM {vmid} is in io-error and has an iothread: a reset would hang QMP for good."),
        "Make room on the host's storage, then use cycle.",
    )
}

/// `reset` of a QEMU that is proved unresponsive.
pub fn reset_of_unresponsive(vmid: Vmid) -> Message {
    Message::new(format!("VM {vmid}'s QEMU is proved unresponsive, so it can't take a reset."), "Use cycle, which replaces the process.")
}

/// QEMU is another process than the one that the evidence is of.
pub fn another_qemu(vmid: Vmid, verb: Verb) -> Message {
    Message::new(
        format!("VM {vmid}'s QEMU was ended or replaced by somebody else while the evidence was taken, so {verb} was not sent."),
        "Ask for status, and only where it is still needed for the verb again.",
    )
}

/// `reset`, or `start` of a paused VM, whose QEMU did not greet us.
pub fn without_qmp(vmid: Vmid, verb: Verb, by: &str) -> Message {
    let only = if verb == Verb::Start { "a paused VM goes on only through it" } else { "a reset goes only through it" };
    Message::new(
        format!("VM {vmid}'s QEMU could not be asked, and {only}: {}.", show(by)),
        "Try again in a minute; if it stays so, use cycle.",
    )
}

/// A volume that a start needs is proved missing.
pub fn volumes_missing(vmid: Vmid, verb: Verb, missing: &[String]) -> Message {
    let stays = if verb == Verb::Cycle { "; the VM was left as it is" } else { "" };
    Message::new(
        format!("VM {vmid} could not be started, because its volume is not there: {}{stays}.", show(&missing.join(", "))),
        "Bring the volume or its storage back, then ask again.",
    )
}

/// The configuration asks for more memory than the kernel could give at all; both in MiB.
pub fn too_little_memory(vmid: Vmid, verb: Verb, (need, most): (u64, u64)) -> Message {
    let stays = if verb == Verb::Cycle { "; the VM was left as it is" } else { "" };
    Message::new(
        format!("VM {vmid} could not be started: its configuration asks for {need} MiB, and this host can give {most} MiB at most{stays}."),
        format!("Ask for less: on the host run `qm set {vmid} --memory MIB`, then {verb} again."),
    )
}

/// `start` on a process that can't be resumed.
pub fn start_of(vmid: Vmid, state: RunState) -> Message {
    let cause = match state {
        RunState::Shutdown => "its guest powered off and QEMU is still there",
        RunState::IoError => "a write to the host's storage failed",
        RunState::InternalError => "KVM could not go on",
        _ => "it can't be resumed from there",
    };
    let next = match state {
        RunState::IoError => "Make room on the host's storage, then use cycle.",
        _ => "Use cycle, which makes a fresh QEMU process.",
    };
    Message::new(format!("VM {vmid} is in {}: {cause}, and start would not help.", VmState::Qmp(state)), next)
}

/// The state in which a verb has no meaning, where no other message fits.
pub fn not_from(vmid: Vmid, verb: Verb, state: VmState) -> Message {
    let next = match state {
        VmState::Host(HostState::Unknown) => "Ask for status until the state is known, then try again.",
        _ => "Ask for status: it says which verb helps.",
    };
    Message::new(format!("VM {vmid} is {state}, and {verb} does nothing good from there."), next)
}

/// `--attach` with an id of which this boot knows nothing, while the disk, which may know it, does not answer.
pub fn id_not_looked_up(id: &RequestId) -> Message {
    Message::new(
        format!("Whether request {id} ran before this host last booted is not known: the disk that would tell does not answer."),
        "Look with status; ask again with --attach when the disk answers.",
    )
}

/// An id whose end is stored in a file that can't be read.
pub fn stored_answer_damaged(id: &RequestId) -> Message {
    Message::new(
        format!("Request {id} ran, and what is stored of its end on the host can't be read, so it was not run again."),
        format!("Look with status, and at what `pve-verb log show --request {id}` says on the host."),
    )
}

/// Another worker had this id between the front's look and the lock.
pub fn ran_meanwhile(id: &RequestId) -> Message {
    Message::new(
        format!("Request {id} was run by another call, so it was not run again."),
        "Ask again with the same id: the answer is what came of it.",
    )
}

/// A worker that neither came up nor could be ended.
pub fn worker_hangs(id: &RequestId) -> Message {
    Message::new(
        format!("The process for request {id} hangs while it starts, and could not be ended."),
        format!("Look with status; ask again with --attach --request-id={id}, and look at the host's storage."),
    )
}

/// `--attach` with an id that was never used here.
pub fn unknown_id(id: &RequestId) -> Message {
    Message::new(
        format!("No request {id} ever began on this host."),
        "Nothing was done under it, so the verb may be sent again, without --attach.",
    )
}
