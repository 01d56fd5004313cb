//! The one door to Proxmox's `qm`, for the two calls that change the VM. Constant arguments, an emptied environment, a deadline.
//!
//! What it prints and how it exits is evidence, never the verdict (PROTOCOL.md, section 8). It never gets SIGKILL: its worker
//! would then die of SIGPIPE before it signals QEMU, and the stop would be undone in silence. For the same reason its output goes
//! into a memory file and not into a pipe of ours: if we die, `qm` goes on and finishes.

use proto::Vmid;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::bundle::Preserved;
use crate::{deadline, spawn};

/// The two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `qm stop VMID`
    Stop,
    /// `qm start VMID`
    Start,
}

impl Call {
    /// The sub-command.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Start => "start",
        }
    }

    const fn within(self) -> Duration {
        match self {
            Self::Stop => deadline::QM_STOP,
            Self::Start => deadline::QM_START,
        }
    }
}

/// How it ended.
#[derive(Debug)]
pub enum Ended {
    /// By itself, with this exit status (none: by a signal).
    Exit(Option<i32>),
    /// After our SIGTERM, with this exit status.
    AfterTerm(Option<i32>),
    /// Not within [`deadline::QM_TERM`] after SIGTERM either; it may still be running.
    Abandoned,
    /// Its program could not be read in time, as on a disk that hangs. Should it begin after all, it gets SIGTERM first thing.
    NotBegun,
    /// It could not be started.
    NotStarted(String),
}

/// What a call gave.
#[derive(Debug)]
pub struct Report {
    /// How it ended.
    pub ended: Ended,
    /// What it printed on both streams, cut at 64 KiB. Not escaped.
    pub said: Vec<u8>,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// One line for a step's detail: exit and output, escaped.
    pub fn detail(&self, call: Call) -> String {
        let how = match &self.ended {
            Ended::Exit(Some(code)) => format!("qm {} ended with {code}", call.word()),
            Ended::Exit(None) => format!("qm {} was killed by a signal that was not ours", call.word()),
            Ended::AfterTerm(Some(code)) => format!("qm {} got SIGTERM at its deadline and ended with {code}", call.word()),
            Ended::AfterTerm(None) => format!("qm {} got SIGTERM at its deadline and died of it", call.word()),
            Ended::Abandoned => format!("qm {} ran on after SIGTERM and was left behind", call.word()),
            Ended::NotBegun => format!("qm {} did not begin: its program could not be read in time", call.word()),
            Ended::NotStarted(why) => format!("qm {} could not be started: {why}", call.word()),
        };
        let said = String::from_utf8_lossy(&self.said);
        let said = said.trim();
        if said.is_empty() { how } else { format!("{how}; it said: {}", proto::escape_cut(said.as_bytes(), 400)) }
    }
}

/// Calls `qm`. Asks for the proof that evidence is preserved, because this changes the VM.
pub fn call(call: Call, vmid: Vmid, program: &std::path::Path, most: Duration, _permit: &Preserved) -> Report {
    let began = Instant::now();
    let within = call.within().min(most);
    let failed = |why: String| Report { ended: Ended::NotStarted(why), said: Vec::new(), took: began.elapsed() };
    let output = match rustix::fs::memfd_create("qm", rustix::fs::MemfdFlags::CLOEXEC) {
        Ok(fd) => File::from(fd),
        Err(e) => return failed(e.to_string()),
    };
    let (Ok(stdout), Ok(stderr)) = (output.try_clone(), output.try_clone()) else { return failed("no descriptor left".to_owned()) };
    let number = vmid.to_string();
    let mut command = spawn::command(program);
    command.args([call.word(), &number]).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    let started = spawn::unprotected(|| spawn::start_within(move || command.spawn(), began + within, terminate));
    let ended = match started {
        Ok(Some(mut child)) => wait(&mut child, within.saturating_sub(began.elapsed())),
        Ok(None) => Ended::NotBegun,
        Err(e) => return failed(e.to_string()),
    };
    Report { ended, said: read_all(&output), took: began.elapsed() }
}

fn wait(child: &mut Child, within: Duration) -> Ended {
    if let Some(code) = exit_within(child, within) {
        return Ended::Exit(code);
    }
    term(child);
    exit_within(child, deadline::QM_TERM).map_or(Ended::Abandoned, Ended::AfterTerm)
}

#[allow(clippy::disallowed_methods, reason = "our own child, not yet reaped")]
fn term(child: &Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // The child is ours and not yet reaped, so the pid is still its own.
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// One that began when nobody waited for it any more.
fn terminate(child: Child) {
    term(&child);
}

fn exit_within(child: &mut Child, within: Duration) -> Option<Option<i32>> {
    let until = Instant::now() + within;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.code()),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) | Err(_) => return None,
        }
    }
}

fn read_all(output: &File) -> Vec<u8> {
    let mut said = vec![0; 64 * 1024];
    let n = output.read_at(&mut said, 0).unwrap_or(0);
    said.truncate(n);
    said
}
