//! Ends a QEMU that is proved unresponsive, and never another process: through a pidfd whose pid, start time and command line
//! were checked after it was opened. `qm stop` would take 17 to 72 seconds for the same.

use proto::QemuProcess;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::time::{Duration, Instant};

use crate::bundle::Preserved;
use crate::capture::Unresponsive;
use crate::probe::observe::observe;
use crate::{deadline, facts};

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Killed {
    /// No thread of it is left.
    Gone,
    /// SIGKILL is pending, but a thread does not die: state D. It still holds the disk.
    Survives,
    /// Nothing was sent: the process was not, or not any more, the one that was proved unresponsive.
    NotIt(String),
}

/// Kills it.
#[allow(clippy::disallowed_methods, reason = "this file is the door: what the pidfd means is checked above")]
pub fn kill(proved: &Unresponsive, vmid: proto::Vmid, _permit: &Preserved) -> Killed {
    let Some(pid) = i32::try_from(proved.qemu.pid).ok().and_then(Pid::from_raw) else {
        return Killed::NotIt("its pid is no pid".to_owned());
    };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::SRCH) => return Killed::Gone,
        Err(e) => return Killed::NotIt(format!("no pidfd for it: {e}")),
    };
    // From here the pidfd can't come to mean another process. If what we see now under this pid is what was proved, it is what the pidfd means.
    if facts::qemu(&observe(vmid, deadline::OBSERVE)) != Some(proved.qemu) {
        return Killed::NotIt("the process under its pid is not the one that was proved unresponsive".to_owned());
    }
    if let Err(e) = pidfd_send_signal(&pidfd, Signal::KILL) {
        return if e == rustix::io::Errno::SRCH { Killed::Gone } else { Killed::NotIt(format!("SIGKILL could not be sent: {e}")) };
    }
    if gone(&pidfd, deadline::DIES) { Killed::Gone } else { Killed::Survives }
}

/// Lets a QEMU go on that our own debugger left stopped: SIGCONT to this very process. Whether it helped is to be seen.
#[allow(clippy::disallowed_methods, reason = "this file is the door: what the pidfd means is checked above")]
pub(crate) fn resume(qemu: QemuProcess) {
    let pidfd = i32::try_from(qemu.pid).ok().and_then(Pid::from_raw).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    // The pidfd is open: if the start time still fits now, the pid was not reused.
    if let Some(pidfd) = pidfd.filter(|_| crate::procfs::is_still(qemu)) {
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
