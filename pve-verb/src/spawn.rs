//! The one door for process spawning. Two ways through it: this binary again, and a program, of which it is the first half
//! (started.rs): an evidence tool, or `qm`.
//!
//! Neither takes a word from a caller: programs and arguments are `'static`, the environment is constant, the working folder is `/`
//! (a child must not keep a file system busy), and 0, 1, 2 are `/dev/null` or our own pipes. A mutating `qm` does not go through
//! [`tool`], which kills what is late: a killed `qm stop` aborts without a word.

use crate::probe::Raw;
use crate::probe::wait::ready;
use rustix::event::PollFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

mod started;

pub use started::{Ended, Started, begin, start};

/// What every child finds in its environment, and nothing else.
const ENVIRONMENT: [(&str, &str); 2] = [("LC_ALL", "C"), ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")];

/// The worker's oom_score_adj.
const PROTECTED: &str = "-900";

/// How much is read of a stream at once.
const CHUNK: usize = 16 * 1024;
/// What a pipe holds.
const PIPE: usize = 64 * 1024;

/// How an evidence tool ended.
#[derive(Debug)]
pub enum ToolOutcome {
    /// It ended by itself.
    Finished {
        /// Its exit status; none where a signal ended it.
        status: Option<i32>,
        /// What it wrote to stdout.
        output: Raw,
        /// What it wrote to stderr.
        errors: Raw,
        /// Whether more than the cap came, and was dropped.
        cut: bool,
    },
    /// It was late: killed and abandoned. What it had written by then is here.
    TimedOut {
        /// What it wrote to stdout.
        output: Raw,
    },
    /// There is no such tool, or it could not be started: why.
    Unavailable(String),
}

/// A command with the constant environment, in `/`. The caller sets its arguments, which are constants and a checked VM id.
#[allow(clippy::disallowed_methods, reason = "this file is the door")]
fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(ENVIRONMENT).current_dir("/");
    command
}

/// Closes every descriptor beyond 0, 1, 2: what sshd or a shell left open must not reach a child that may outlive us. For the very
/// start of `main`, when none of them is ours yet.
pub fn close_inherited() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<i32> = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).filter(|fd| *fd > 2).collect();
    for fd in open {
        // The listing's own descriptor is among them and gone already.
        let _ = nix::unistd::close(fd);
    }
}

/// Makes the kernel's OOM killer look elsewhere: a recovery must survive the memory pressure that it is there for.
pub fn protect() {
    let _ = std::fs::write("/proc/self/oom_score_adj", PROTECTED);
}

/// Starts a child that does not inherit the protection: QEMU, grandchild of `qm start`, would keep it for ever.
pub fn unprotected<T>(start: impl FnOnce() -> T) -> T {
    let before = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let lowered = before.trim() == PROTECTED;
    if lowered {
        let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    }
    let started = start();
    if lowered {
        protect();
    }
    started
}

/// Starts this binary again under a hidden subcommand. The child calls `setsid` first thing: without unsafe code nobody can do it for it.
///
/// # Errors
/// Where the kernel refuses a new process.
pub fn reexec(subcommand: &'static str, stdin: Stdio, stdout: Stdio) -> io::Result<Child> {
    // Not by its path: the file may have been replaced by an upgrade, and both halves must be the same program.
    command("/proc/self/exe").arg0("pve-verb").arg(subcommand).stdin(stdin).stdout(stdout).stderr(Stdio::null()).spawn()
}

/// Runs an evidence tool with constant arguments, for at most `within`, keeping at most `most` bytes of each of its streams.
///
/// At the deadline its process group gets SIGKILL and is abandoned: it may be in state D, where waiting has no bound.
pub fn tool(program: &'static str, args: &'static [&'static str], within: Duration, most: usize) -> ToolOutcome {
    attend(program, args, within, most)
}

/// Runs gdb over this process: every thread's backtrace, nothing else. The pid is the one word of its arguments that is not constant.
///
/// Nothing of the process is called, no start-up file or script is read, nothing is fetched. `may-insert-breakpoints off` and its like
/// look safer and are not: gdb 13 then gives up half-way and leaves the process stopped (tried).
pub(crate) fn debugger(pid: u32, within: Duration, most: usize) -> ToolOutcome {
    const GDB: &str = "/usr/bin/gdb";
    const BEFORE: [&str; 10] = [
        "-nx",
        "-nh",
        "-batch",
        "-iex=set auto-load no",
        "-iex=set debuginfod enabled off",
        "-iex=set may-call-functions off",
        "-iex=set pagination off",
        "-iex=set width 0",
        "-iex=set backtrace limit 64",
        "-ex=thread apply all backtrace",
    ];
    let pid = format!("--pid={pid}");
    attend(GDB, &[&BEFORE[..], &[pid.as_str()]].concat(), within, most)
}

fn attend(program: &'static str, args: &[&str], within: Duration, most: usize) -> ToolOutcome {
    let until = Instant::now() + within;
    let (mut child, output, errors) = match begin_tool(program, args) {
        Ok(started) => started,
        Err(e) => return ToolOutcome::Unavailable(format!("{program} could not be started: {e}")),
    };
    let mut output = Stream::new(output, most);
    let mut errors = Stream::new(errors, most);
    loop {
        let (output_ended, errors_ended) = (output.pump(until), errors.pump(until));
        if output_ended && errors_ended || Instant::now() >= until {
            break;
        }
    }
    let cut = output.cut || errors.cut;
    match child.ended_by(until) {
        None => {
            child.kill_group();
            let _ = child.ended_by(Instant::now());
            output.drain();
            ToolOutcome::TimedOut { output: Raw::new(output.kept) }
        }
        Some(Ended::Exit(status)) => ToolOutcome::Finished { status, output: Raw::new(output.kept), errors: Raw::new(errors.kept), cut },
        Some(Ended::NotBegun(Some(e))) if e.kind() == io::ErrorKind::NotFound => {
            ToolOutcome::Unavailable(format!("{program} is not installed"))
        }
        Some(Ended::NotBegun(Some(e))) => ToolOutcome::Unavailable(format!("{program} could not be started: {e}")),
        Some(Ended::NotBegun(None)) => ToolOutcome::Unavailable(format!("{program} was killed before it began")),
    }
}

/// A tool and what it writes to stdout and stderr.
fn begin_tool(program: &str, args: &[&str]) -> io::Result<(Started, File, File)> {
    let nothing = File::open("/dev/null")?;
    let (output, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    let (errors, their_errors) = pipe_with(PipeFlags::CLOEXEC)?;
    let child = start(program.as_ref(), args, [nothing.as_fd(), theirs.as_fd(), their_errors.as_fd()], true)?;
    Ok((child, File::from(output), File::from(errors)))
}

/// One stream of a tool: read as it comes, kept up to a cap, read on beyond it so that the tool does not block on a full pipe.
struct Stream<R> {
    from: Option<R>,
    kept: Vec<u8>,
    most: usize,
    cut: bool,
}

impl<R: Read + AsFd> Stream<R> {
    const fn new(from: R, most: usize) -> Self {
        Self { from: Some(from), kept: Vec::new(), most, cut: false }
    }

    /// Takes what stands in the pipe already: no more than fits in one, since whoever writes may not have stopped.
    fn drain(&mut self) {
        let now = Instant::now();
        for _ in 0..PIPE / CHUNK {
            if self.pump(now) {
                break;
            }
        }
    }

    /// Reads once if something comes within 20 ms (the other stream must not fill up meanwhile); true at its end.
    fn pump(&mut self, until: Instant) -> bool {
        let Some(from) = &mut self.from else { return true };
        let soon = until.min(Instant::now() + Duration::from_millis(20));
        if !ready(from.as_fd(), PollFlags::IN, soon).unwrap_or(true) {
            return false;
        }
        let mut chunk = [0; CHUNK];
        match from.read(&mut chunk) {
            Ok(0) | Err(_) => self.from = None,
            Ok(n) => {
                let room = (self.most - self.kept.len()).min(n);
                self.kept.extend(chunk.get(..room).unwrap_or_default());
                self.cut |= room < n;
            }
        }
        self.from.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_the_pipe_at_the_end_is_taken_too() {
        let (from, to) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&to, &[7; 40_000]).unwrap();
        let mut stream = Stream::new(File::from(from), 39_000);
        stream.drain();
        assert_eq!((stream.kept.len(), stream.cut), (39_000, true));
    }
}
