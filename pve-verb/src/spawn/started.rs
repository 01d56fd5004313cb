//! A program in a child whose pid is known at once, also where the program's file can't be read: a disk that hangs under `/usr` keeps
//! whoever calls execve in it, without end.
//!
//! So the child is this binary first, whose text is in memory: from then on it has no descriptor of ours but 0, 1, 2, and every signal's
//! action is the default. Then it becomes the program. A SIGTERM or SIGKILL that comes meanwhile is pending in the kernel, also when we
//! are gone, and ends the child on its way out of execve, before the program's first instruction. Until the kernel gives it the program's
//! name, which it does before that instruction, the child has a name of its own: by that it is told whether the program has begun.

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::SigSet;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getppid, kill_process, kill_process_group, waitid};
use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use super::{ENVIRONMENT, command};

/// The hidden subcommand, as which the child begins.
const SUBCOMMAND: &str = "begin";
/// The child's name until it is the program.
const NAME: &CStr = c"pve-verb-begin";
/// Between two looks whether it has ended.
const PAUSE: Duration = Duration::from_millis(2);

/// How a child ended.
#[derive(Debug)]
pub enum Ended {
    /// The program ended, with this exit status (none: by a signal).
    Exit(Option<i32>),
    /// The child never was the program: the kernel's reason (none: a signal ended it).
    NotBegun(Option<io::Error>),
}

/// A child that is the program, or is about to be. Its pid is its own until [`Started::ended_by`] has told its end.
#[derive(Debug)]
pub struct Started {
    pid: Pid,
    reaped: bool,
}

/// Starts it: in `/`, with the constant environment, these as 0, 1, 2, and no signal blocked or ignored; in a process group of its own
/// where `own_group`. Waits for no disk.
///
/// # Errors
/// Where the kernel refuses a new process.
pub fn start(program: &OsStr, args: &[&str], stdio: [BorrowedFd<'_>; 3], own_group: bool) -> io::Result<Started> {
    let words = [OsStr::new("pve-verb"), OsStr::new(SUBCOMMAND), program].into_iter().chain(args.iter().map(OsStr::new));
    let words = words.map(|w| CString::new(w.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    let environment = ENVIRONMENT.map(|(name, value)| CString::new(format!("{name}={value}")));
    let environment = environment.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut files = PosixSpawnFileActions::init()?;
    for (fd, number) in stdio.iter().zip(0..) {
        files.add_dup2(fd.as_raw_fd(), number)?;
    }
    let mut attributes = PosixSpawnAttr::init()?;
    let mut flags = PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK;
    flags.set(PosixSpawnFlags::POSIX_SPAWN_SETPGROUP, own_group);
    attributes.set_flags(flags)?;
    // What our own caller ignored we ignore, and a child would: a signal that it must obey.
    attributes.set_sigdefault(&SigSet::all())?;
    attributes.set_sigmask(&SigSet::empty())?;
    attributes.set_pgroup(nix::unistd::Pid::from_raw(0))?;
    #[allow(clippy::disallowed_methods, reason = "this file is the door")]
    let pid = posix_spawn(c"/proc/self/exe", &files, &attributes, &words, &environment)?;
    let pid = Pid::from_raw(pid.as_raw()).ok_or_else(|| io::Error::other("the new process has no pid"))?;
    Ok(Started { pid, reaped: false })
}

/// The child's own main: becomes the program. Where it can't, its exit status is the kernel's reason.
pub fn begin(words: &[OsString]) -> u8 {
    let _ = rustix::thread::set_name(NAME);
    let reason = match words {
        // Whoever started us is gone: nobody would end the program at its deadline.
        _ if orphaned() => io::Error::from(rustix::io::Errno::SRCH),
        [program, args @ ..] => command(program).args(args).exec(),
        [] => io::Error::from(rustix::io::Errno::INVAL),
    };
    reason.raw_os_error().and_then(|e| u8::try_from(e).ok()).unwrap_or(u8::MAX)
}

/// Whether the parent is another program than this one.
fn orphaned() -> bool {
    let program = |pid: &str| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    let parent = getppid().map(|pid| pid.as_raw_nonzero().to_string());
    let theirs = parent.and_then(|pid| program(&pid));
    theirs.is_some_and(|theirs| program("self").is_some_and(|ours| ours != theirs))
}

impl Started {
    /// Its pid.
    pub const fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it is the program already. Where it is not, and got a signal before that was asked, the program never runs.
    pub fn has_begun(&self) -> bool {
        let name = std::fs::read(format!("/proc/{}/comm", self.pid.as_raw_nonzero()));
        name.map_or(true, |name| name.trim_ascii_end() != NAME.to_bytes())
    }

    /// How it ended; none where it did not until then. Told once.
    pub fn ended_by(&mut self, until: Instant) -> Option<Ended> {
        let look = |how| waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG | how);
        // It is left a zombie for the moment in which its name is read: before its end the name would mean nothing.
        let status = loop {
            match look(WaitIdOptions::NOWAIT) {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < until => std::thread::sleep(PAUSE),
                Ok(None) | Err(_) => return None,
            }
        };
        let begun = self.has_begun();
        let _ = look(WaitIdOptions::empty());
        self.reaped = true;
        let code = status.exit_status();
        Some(if begun { Ended::Exit(code) } else { Ended::NotBegun(code.map(io::Error::from_raw_os_error)) })
    }

    /// SIGTERM, in whatever phase it is.
    #[allow(clippy::disallowed_methods, reason = "our own child, not yet reaped: the pid is still its own")]
    pub fn term(&self) {
        if !self.reaped {
            let _ = kill_process(self.pid, Signal::TERM);
        }
    }

    /// SIGKILL to the process group that it was started in as the first: not for a `qm` that changes the VM.
    pub fn kill_group(&self) {
        if !self.reaped {
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
    }
}
