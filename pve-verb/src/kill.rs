//! Ends a QEMU that is proved unresponsive, and never another process: through a pidfd whose pid, start time and command line
//! were checked after it was opened. `qm stop` would take 17 to 72 seconds for the same.
//!
//! Seconds lie between the proof and the kill: evidence was written, perhaps to a slow disk. So it is proved again right before: a QEMU
//! that answers again can flush its caches and gets `qm stop`.

use proto::QemuProcess;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::time::{Duration, Instant};

use crate::bundle::Preserved;
use crate::capture::Unresponsive;
use crate::probe::observe::observe;
use crate::procfs::{self, Diagnosis, MainThread, unresponsive_proof};
use crate::{deadline, facts, host};

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Killed {
    /// No thread of it is left.
    Gone,
    /// SIGKILL is pending, but a thread does not die: state D. It still holds the disk.
    Survives,
    /// Nothing was sent: the process was not, or not any more, the one that was proved unresponsive; or it is unresponsive no more.
    NotIt(String),
}

/// Kills it. `silent`: whether QEMU, asked once more, answers nothing for that long; asked only where that has to be known.
#[allow(clippy::disallowed_methods, reason = "this file is the door: what the pidfd means is checked above")]
pub fn kill(proved: &Unresponsive, vmid: proto::Vmid, _permit: &Preserved, silent: impl FnOnce(Duration) -> bool) -> Killed {
    let Some(pid) = i32::try_from(proved.qemu.pid).ok().and_then(Pid::from_raw) else {
        return Killed::NotIt("its pid is no pid".to_owned());
    };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::SRCH) => return Killed::Gone,
        Err(e) => return Killed::NotIt(format!("no pidfd for it: {e}")),
    };
    // From here the pidfd can't come to mean another process. If what we see now under this pid is what was proved, it is what the pidfd means.
    let now = observe(vmid, deadline::OBSERVE);
    if facts::qemu(&now) != Some(proved.qemu) {
        return Killed::NotIt("the process under its pid is not the one that was proved unresponsive".to_owned());
    }
    let waiting = || Diagnosis::open().and_then(|d| d.anybody_on(&host::qemu_server(vmid, "qmp"))).unwrap_or(false);
    let again = || {
        let until = Instant::now() + deadline::STILL_PROVED;
        // Whoever connected in vain may still wait to be accepted. If nobody does, its monitor has a thread of its own, which greets and lets
        // go whatever the main thread does: then it is asked.
        let waits = waiting();
        let silent = waits || silent(deadline::STILL_PROVED);
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        MainThread::of(proved.qemu.pid).filter(|_| silent && (!waits || waiting()))
    };
    if !still_proved(&proved.main_thread, now.main_thread.as_ref(), again) {
        return Killed::NotIt("it was on a CPU since the proof, and may answer again".to_owned());
    }
    if let Err(e) = pidfd_send_signal(&pidfd, Signal::KILL) {
        return if e == rustix::io::Errno::SRCH { Killed::Gone } else { Killed::NotIt(format!("SIGKILL could not be sent: {e}")) };
    }
    if gone(&pidfd, deadline::DIES) { Killed::Gone } else { Killed::Survives }
}

/// Whether the proof still holds: nothing moved since its last look. Where something did, our own debugger may have moved it; then the
/// thread is watched `again`, while QEMU goes on being silent.
fn still_proved(proof: &MainThread, now: Option<&MainThread>, again: impl FnOnce() -> Option<MainThread>) -> bool {
    let proves = |before: &MainThread, after: &MainThread| {
        unresponsive_proof(before, after, Duration::from_millis(after.at_ms.saturating_sub(before.at_ms))).is_some()
    };
    let Some(now) = now else { return false };
    proves(proof, now) || again().is_some_and(|later| proves(now, &later))
}

/// Lets a QEMU go on that our own debugger left stopped: SIGCONT to this very process. Whether it helped is to be seen.
#[allow(clippy::disallowed_methods, reason = "this file is the door: what the pidfd means is checked above")]
pub(crate) fn resume(qemu: QemuProcess) {
    let pidfd = i32::try_from(qemu.pid).ok().and_then(Pid::from_raw).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    // The pidfd is open: if the start time still fits now, the pid was not reused.
    if let Some(pidfd) = pidfd.filter(|_| procfs::is_still(qemu)) {
        let _ = pidfd_send_signal(&pidfd, Signal::CONT);
    }
}

/// A pidfd becomes readable when the last thread of the process is gone, not when its leader is a zombie.
fn gone(pidfd: &impl std::os::fd::AsFd, within: Duration) -> bool {
    let until = Instant::now() + within;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let wait = Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(0), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&wait)) {
            Ok(n) => return n > 0,
            Err(rustix::io::Errno::INTR) if Instant::now() < until => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::Count;

    fn look(at_ms: u64, state: &str, switches: u64) -> MainThread {
        let switches = Some(Count { voluntary: switches, nonvoluntary: 0 });
        let process = QemuProcess { pid: 9, started: 5 };
        MainThread { process, at_ms, state: state.into(), wchan: "futex_wait".into(), switches, ticks: 3 }
    }

    #[test]
    fn what_moved_since_the_proof_is_not_killed() {
        let never = || -> Option<MainThread> { panic!("it need not be watched again") };
        for unmoved in [look(0, "T", 7), look(0, "D", 7), look(0, "S", 7)] {
            let now = MainThread { at_ms: 3_000, ..unmoved.clone() };
            assert!(still_proved(&unmoved, Some(&now), never), "{unmoved:?}");
        }
        assert!(still_proved(&look(0, "S", 7), Some(&look(100, "Z", 9)), never), "a zombie answers nobody, whenever it became one");
        // It went on: stopped, in D or idle before, and on a CPU since.
        for was in ["T", "D", "S"] {
            let (proof, now) = (look(0, was, 7), look(3_000, "S", 8));
            assert!(!still_proved(&proof, Some(&now), || Some(look(4_050, "S", 12))), "{was}: it runs");
            // An idle QEMU that is well may sleep for a second; but then it accepts whoever waits, and answers.
            assert!(!still_proved(&proof, Some(&now), || None), "{was}: it is idle");
            // Our debugger made it switch, and it hangs as before.
            assert!(still_proved(&proof, Some(&now), || Some(look(4_050, "S", 8))), "{was}: it hangs");
        }
        assert!(!still_proved(&look(0, "T", 7), None, never), "what could not be looked at is not killed");
    }
}
