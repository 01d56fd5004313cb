//! The probe helpers: this binary re-executed, once to talk with QEMU and the guest, once to read the host.
//!
//! ```text
//! worker ──job (one JSON line, stdin)──▶ helper ──frames (stdout)──▶ worker
//! ```
//!
//! A helper may hang in the kernel for ever, and may have been taken over by what it parsed. So the worker waits for it only until
//! a deadline, never for its exit, and believes nothing but what the plan allows: planned names, each once, a bounded total.
//! A helper writes nothing but its frames; only the worker writes the bundle. Its first frame says what its sandbox lacks.

pub mod frame;
pub(crate) mod run;

use crate::probe::wait::ready;
use crate::probe::{self, Answer, Asker, Planned, Set};
use crate::{sandbox, spawn};
use frame::Incoming;
use proto::{ProbeOutcome, QemuProcess, Vmid};
use rustix::event::PollFlags;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::time::Instant;

/// The hidden subcommand of the helper that talks with QEMU and the guest.
pub const PROBE_GUEST: &str = "probe-guest";
/// The hidden subcommand of the helper that reads the host.
pub const PROBE_HOST: &str = "probe-host";

/// Which helper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// QMP, guest agent, serial console, screens: hostile bytes.
    Guest,
    /// `/proc`, cgroups, `/etc/pve`, logs, RRD.
    Host,
}

impl Kind {
    const fn subcommand(self) -> &'static str {
        match self {
            Self::Guest => PROBE_GUEST,
            Self::Host => PROBE_HOST,
        }
    }

    /// Whose questions of the plan it asks.
    pub const fn asker(self) -> Asker {
        match self {
            Self::Guest => Asker::Guest,
            Self::Host => Asker::Host,
        }
    }
}

/// What a helper is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// The VM.
    pub vmid: Vmid,
    /// How much to ask.
    pub set: Set,
    /// The VM's process, where one was observed; none: QMP, console, process and guest are not asked.
    pub qemu: Option<QemuProcess>,
    /// An absolute folder, 0700, on tmpfs, into which QEMU may write the screens; none: no screens.
    pub screens: Option<PathBuf>,
    /// Who asks, for the sentence "in use by …" that another reader sees: the request id.
    pub request: String,
}

/// The worker's end of a running helper. Dropping it closes the pipe and kills, and waits for nothing.
#[derive(Debug)]
pub struct Helper {
    name: &'static str,
    child: Option<Child>,
    pipe: Option<ChildStdout>,
    incoming: Incoming,
    fault: Option<String>,
}

impl Helper {
    /// Starts it. A helper that could not be started is one that has ended: see [`Helper::fault`].
    pub fn start(kind: Kind, job: &Job) -> Self {
        let planned = probe::asked_of(kind.asker(), job.set, job.vmid, job.qemu.is_some());
        let mut helper = Self { name: kind.subcommand(), child: None, pipe: None, incoming: Incoming::new(planned), fault: None };
        if helper.incoming.unanswered().is_empty() {
            return helper;
        }
        match spawn::reexec(kind.subcommand(), Stdio::piped(), Stdio::piped()) {
            Ok(mut child) => {
                helper.pipe = child.stdout.take();
                // A job is smaller than a pipe's buffer: this does not block, whatever the child does.
                let sent = serde_json::to_vec(job)
                    .map_err(std::io::Error::from)
                    .and_then(|line| child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(&line)));
                helper.child = Some(child);
                if let Err(e) = sent {
                    helper.end(format!("the probe helper did not take its job: {e}"));
                }
            }
            Err(e) => helper.end(format!("the probe helper could not be started: {e}")),
        }
        helper
    }

    /// The next answer; none where `until` came, everything planned was answered, or the helper ended.
    pub fn next(&mut self, until: Instant) -> Option<Answer> {
        loop {
            match self.incoming.take() {
                Ok(Some(answer)) => return Some(answer),
                Ok(None) if self.incoming.unanswered().is_empty() => return None,
                Ok(None) => {}
                Err(why) => self.end(format!("the probe helper broke its protocol: {why}")),
            }
            let pipe = self.pipe.as_mut()?;
            if !ready(pipe.as_fd(), PollFlags::IN, until).unwrap_or(true) {
                return None;
            }
            let mut chunk = [0; 64 * 1024];
            match pipe.read(&mut chunk) {
                Ok(0) => self.end("the probe helper ended early".to_owned()),
                Ok(n) => self.incoming.feed(chunk.get(..n).unwrap_or_default()),
                Err(e) => self.end(format!("the probe helper could not be read: {e}")),
            }
        }
    }

    /// Whether everything planned was answered.
    pub fn finished(&self) -> bool {
        self.incoming.unanswered().is_empty()
    }

    /// Why it ended before it had answered everything, where it did.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Gives up on it: the answers to everything that was planned and not answered. `timed_out`, or `failed` where it ended early.
    pub fn abandon(self, started: Instant) -> Vec<Answer> {
        let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (outcome, why) = match self.fault() {
            Some(fault) => (ProbeOutcome::Failed, fault),
            None => (ProbeOutcome::TimedOut, "no answer by the deadline; abandoned"),
        };
        self.incoming.unanswered().iter().map(|p| Answer::without(&p.name, outcome, ms, why)).collect()
    }

    /// What its sandbox lacks, in words for a person.
    pub fn degraded(&self) -> impl Iterator<Item = String> {
        self.incoming.missing().iter().map(|layer| format!("{} runs without {}, which this kernel does not give", self.name, layer.name()))
    }

    /// What it was to ask.
    pub fn unanswered(&self) -> &[Planned] {
        self.incoming.unanswered()
    }

    /// The pipe, to poll several helpers at once; none once it ended.
    pub(crate) const fn pipe(&self) -> Option<&ChildStdout> {
        self.pipe.as_ref()
    }

    fn end(&mut self, why: String) {
        self.fault.get_or_insert(why);
        self.pipe = None;
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // The pipe first: a helper that wakes late can't put anything into a bundle that may be sealed by then.
        self.pipe = None;
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.try_wait();
        }
    }
}

/// The helper's whole life: its own session, its sandbox, one job from stdin, its answers to stdout.
pub fn serve(kind: Kind) -> u8 {
    // Without a session of its own a helper would die of the caller's hang-up, half-way through its answers.
    let _ = rustix::process::setsid();
    let mut line = Vec::new();
    let job = std::io::stdin().take(64 * 1024).read_to_end(&mut line).ok().and_then(|_| serde_json::from_slice::<Job>(&line).ok());
    let (Some(job), Ok(out)) = (job, std::io::stdout().as_fd().try_clone_to_owned()) else { return 1 };
    let planned = probe::asked_of(kind.asker(), job.set, job.vmid, job.qemu.is_some());
    let mut out = std::fs::File::from(out);
    // The first look at the clock finds out how the kernel offers it, with calls that nothing needs afterwards.
    let _ = crate::host::boottime();
    // The tasks open what they can't open later. The sandbox closes before the first of them runs, that is before the first byte
    // that anybody but the worker has chosen.
    let (tasks, missing) = match kind {
        Kind::Guest => {
            let sockets = Path::new(crate::host::path::QEMU_SERVER);
            let _ = rustix::process::chdir(sockets);
            (probe::qmp::tasks(&job, &planned), sandbox::guest(job.screens.as_deref()))
        }
        Kind::Host => (probe::host::tasks(&job, &planned), sandbox::host()),
    };
    if frame::write_hello(&mut out, missing).is_err() {
        return 1;
    }
    run::all(planned, tasks, &mut out)
}
