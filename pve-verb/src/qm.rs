//! The one door to Proxmox's `qm`, for the two calls that change the VM. Constant arguments, an emptied environment, a deadline.
//!
//! What it prints and how it exits is evidence, never the verdict (PROTOCOL.md, section 8). It never gets SIGKILL: its worker
//! would then die of SIGPIPE before it signals QEMU, and the stop would be undone in silence. For the same reason its output goes
//! into a memory file and not into a pipe of ours: if we die, `qm` goes on and finishes.

use proto::Vmid;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::bundle::Preserved;
use crate::deadline;
use crate::spawn::{self, Started};

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
    /// Its program could not be read in time, as on a disk that hangs. It never runs: the SIGTERM that is pending comes first.
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
            Ended::NotBegun => format!("qm {} did not begin and will not: its program could not be read in time", call.word()),
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
    let nothing = match File::open("/dev/null") {
        Ok(file) => file,
        Err(e) => return failed(e.to_string()),
    };
    let number = vmid.to_string();
    let stdio = [nothing.as_fd(), output.as_fd(), output.as_fd()];
    let ended = match spawn::unprotected(|| spawn::start(program.as_os_str(), &[call.word(), &number], stdio, false)) {
        Ok(mut child) => wait(&mut child, began + within),
        Err(e) => return failed(e.to_string()),
    };
    Report { ended, said: read_all(&output), took: began.elapsed() }
}

fn wait(child: &mut Started, until: Instant) -> Ended {
    match child.ended_by(until) {
        Some(spawn::Ended::Exit(code)) => return Ended::Exit(code),
        Some(spawn::Ended::NotBegun(why)) => {
            return Ended::NotStarted(why.map_or_else(|| "a signal ended it before it began".to_owned(), |e| e.to_string()));
        }
        None => {}
    }
    child.term();
    // Asked behind the signal: what has not begun by now never will. It is not waited for: it may hang for hours.
    if !child.has_begun() {
        return Ended::NotBegun;
    }
    match child.ended_by(Instant::now() + deadline::QM_TERM) {
        Some(spawn::Ended::Exit(code)) => Ended::AfterTerm(code),
        Some(spawn::Ended::NotBegun(_)) => Ended::NotBegun,
        None => Ended::Abandoned,
    }
}

fn read_all(output: &File) -> Vec<u8> {
    let mut said = vec![0; 64 * 1024];
    let n = output.read_at(&mut said, 0).unwrap_or(0);
    said.truncate(n);
    said
}
