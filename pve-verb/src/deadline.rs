//! Every timer of the program, in one place, so that a test can add them up: each inner one is shorter than what encloses it.
//!
//! Published bounds are `proto::Verb::deadline_ms`; here is what they are made of. All figures are upper bounds, not waits.

use std::time::Duration;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Asking `/proc`, `/etc/pve` and the scope what is there. A part that hangs costs this much, once.
pub const OBSERVE: Duration = ms(1_100);
/// All probes of a bundle, side by side. QEMU that says nothing for 3 s is proved silent within it.
pub const CAPTURE: Duration = ms(4_200);
/// gdb over QEMU, what it leaves behind put right included. Only where the other probes left that much of [`CAPTURE`].
pub const AUTOPSY: Duration = ms(1_300);
/// Until nobody traces QEMU any more, once gdb has ended.
pub const SETTLE: Duration = ms(300);
/// All probes of `status`.
pub const CAPTURE_STATUS: Duration = ms(1_300);
/// How long QEMU may be silent before that is a fact (PROTOCOL.md, section 8).
pub const QMP_SILENT: Duration = s(3);
/// Waiting for a moment without a foreign client on the QMP socket.
pub const PEERS: Duration = ms(600);
/// Sealing a bundle on tmpfs: memory speed, but thousands of small writes on a loaded host.
pub const SEAL: Duration = ms(800);
/// Carrying the bundle to disk.
pub const CARRY: Duration = s(3);
/// One audit record's way to disk; then it goes to the overflow.
pub const RECORD: Duration = s(1);
/// One other write to disk (operation, finished request, nonce).
pub const WRITE: Duration = ms(700);
/// Looking for a caller's head in the log.
pub const WITNESS: Duration = ms(300);
/// Waiting for PVE's own lock on the VM's configuration before `reset`.
pub const CONFIG_LOCK: Duration = s(1);
/// Looking whether somebody else holds it before `qm` is called or QEMU killed: a `qm` that only reads or writes is done by then.
pub const CONFIG_LOOK: Duration = ms(400);
/// Waiting for another of our own connections to QMP to end. A read gives way in less (`qmp::door`).
pub const QMP_DOOR: Duration = ms(800);
/// How long a QEMU that moved since the proof is watched before it is killed, or not.
pub const STILL_PROVED: Duration = ms(1_050);
/// `system_reset` until its RESET event.
pub const QMP_RESET: Duration = s(2);
/// Opening a connection to QMP, or one short command on it, from the worker.
pub const QMP_ASK: Duration = ms(700);
/// After SIGKILL, until the process is gone. In state D it does not go; then it is a survivor.
pub const DIES: Duration = s(5);
/// `qm stop` before it gets SIGTERM. qemu-server 9.2.1 needs 72 s for a hung QEMU.
pub const QM_STOP: Duration = s(75);
/// `qm start` before it gets SIGTERM: 30 s for QEMU, 20 s for the old scope, 10 s for the lock, and as much again.
pub const QM_START: Duration = s(90);
/// A mutating `qm` after SIGTERM, before it is abandoned. It is never killed: that aborts it silently.
pub const QM_TERM: Duration = s(15);
/// Until the wanted state is observed after a step.
pub const OBSERVE_AFTER: Duration = s(2);
/// One look at the VM: the process table, then QEMU.
pub const LOOK: Duration = ms(1_100 + 800 + 2 * 700);
/// A caller that takes no byte for this long is taken for gone.
pub const CALLER_STALLED: Duration = s(20);
/// So is one that keeps us waiting for this long altogether. Eight megabytes of artifacts over a phone's link take less.
pub const CALLER_PATIENCE: Duration = s(120);

/// Sending a bundle that only the caller can keep. Where the caller may be asked to (`--json --inline`), this and [`ACK`] are added to
/// what is published.
pub const OFFER: Duration = s(10);
/// Its acknowledgement.
pub const ACK: Duration = s(10);
/// Reading an existing bundle for `--bundle=`.
pub const SHOW: Duration = s(8);

#[cfg(test)]
mod tests {
    use super::*;
    use proto::Verb;

    /// Until the bundle is preserved; a QEMU that is silent is looked at once more.
    fn preserved() -> Duration {
        OBSERVE + CAPTURE + PEERS + OBSERVE + SEAL + CARRY
    }

    /// Until the bundle is preserved, the grant is spent (the log asked for its newest record first) and the intent is durable.
    fn evidence() -> Duration {
        preserved() + OBSERVE + WITNESS + WRITE + RECORD + WRITE
    }

    /// From the last step to the receipt.
    fn end() -> Duration {
        OBSERVE_AFTER + LOOK + RECORD + WRITE
    }

    fn published(verb: Verb) -> Duration {
        Duration::from_millis(verb.deadline_ms())
    }

    #[test]
    fn evidence_fits_its_fifteen_seconds() {
        assert!(evidence() < s(15), "{:?}", evidence());
        assert!(QMP_SILENT + ms(1_000) < CAPTURE);
        assert_eq!(AUTOPSY - SETTLE, s(1), "what PROTOCOL.md gives gdb");
        assert!(preserved() + RECORD < published(Verb::Forensics));
        assert!(OBSERVE + CAPTURE_STATUS + ms(500) < published(Verb::Status));
        assert_eq!(LOOK, OBSERVE + QMP_DOOR + 2 * QMP_ASK);
    }

    #[test]
    fn a_bundle_that_only_the_caller_keeps_has_its_own_time() {
        use crate::door::{Arrival, Caller, parse};
        let bound = |line: &str| {
            let fresh_id = proto::RequestId::from_random([1; 16]);
            let arrival = Arrival::new(Caller::console(proto::Vmid::DEVVM), line.as_bytes().to_vec(), fresh_id);
            let parsed = parse(arrival).unwrap();
            Duration::from_millis(crate::policy::authorise("pve", parsed).unwrap().deadline_ms())
        };
        assert_eq!(bound("cycle --json --inline"), published(Verb::Cycle) + OFFER + ACK);
        assert_eq!(bound("forensics --json --inline"), published(Verb::Forensics) + OFFER + ACK);
        assert_eq!(bound("cycle --json"), published(Verb::Cycle));
        assert_eq!(bound("status --json --inline"), published(Verb::Status));
        assert!(SHOW + RECORD < published(Verb::Forensics));
    }

    #[test]
    fn reset_fits() {
        let reset = CONFIG_LOCK + QMP_DOOR + 2 * QMP_ASK + QMP_RESET;
        let resume = 2 * QMP_ASK;
        let all = evidence() + reset + resume + end();
        assert!(all < published(Verb::Reset), "{all:?}");
    }

    /// A proved kill, then `qm stop` (to clean up, or because the kill found another process).
    fn stop() -> Duration {
        CONFIG_LOOK + OBSERVE + STILL_PROVED + DIES + QMP_DOOR + QM_STOP + QM_TERM
    }

    fn start() -> Duration {
        QMP_DOOR + QM_START + QM_TERM
    }

    #[test]
    fn stop_fits() {
        let all = evidence() + stop() + end();
        assert!(all < published(Verb::Stop), "{all:?}");
    }

    #[test]
    fn start_fits() {
        let all = evidence() + CONFIG_LOOK + start() + end();
        assert!(all < published(Verb::Start), "{all:?}");
    }

    #[test]
    fn cycle_fits_one_stop_and_one_start() {
        let all = evidence() + stop() + OBSERVE_AFTER + OBSERVE + start() + end();
        assert!(all < published(Verb::Cycle), "{all:?}");
        // The second try has at least what `mutate` asks for before it begins one; each `qm` is cut to what is left.
        assert!(all + s(5) < published(Verb::Cycle));
    }
}
