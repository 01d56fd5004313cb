//! The one door for process spawning, apart from `qm`'s. Two ways through it: this binary again, and an evidence tool.
//!
//! Neither takes a word from a caller: programs and arguments are `'static`, the environment is constant, the working folder is `/`
//! (a child must not keep a file system busy), and 0, 1, 2 are `/dev/null` or our own pipes. A mutating `qm` does not go through
//! [`tool`]: this door kills what is late, and a killed `qm stop` aborts without a word.

use crate::probe::Raw;
use crate::probe::wait::ready;
use rustix::event::PollFlags;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What every child finds in its environment, and nothing else.
const ENVIRONMENT: [(&str, &str); 2] = [("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("LC_ALL", "C")];

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
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
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
    let mut command = command(program);
    command.args(args);
    attend(program, command, within, most)
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
    let mut command = command(GDB);
    command.args(BEFORE).arg(format!("--pid={pid}"));
    attend(GDB, command, within, most)
}

/// Starts a child in a thread of its own: whoever starts a program waits until its file is read, and a disk that hangs under `/usr`
/// never gives it. None where that did not happen in time. The thread is never joined; a child that comes after all goes to `late`.
///
/// # Errors
/// Where it could not be started: the kernel's reason.
pub(crate) fn start_within(
    start: impl FnOnce() -> io::Result<Child> + Send + 'static,
    until: Instant,
    late: fn(Child),
) -> io::Result<Option<Child>> {
    enum Meeting {
        Waiting,
        Here(io::Result<Child>),
        Left,
    }
    let meeting = Arc::new((Mutex::new(Meeting::Waiting), Condvar::new()));
    let theirs = Arc::clone(&meeting);
    std::thread::Builder::new().spawn(move || {
        let started = start();
        let mut now = theirs.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*now, started) {
            (Meeting::Left, Ok(child)) => late(child),
            (Meeting::Left, Err(_)) => {}
            (_, started) => *now = Meeting::Here(started),
        }
        theirs.1.notify_one();
    })?;
    let left = until.saturating_duration_since(Instant::now());
    let waiting = |now: &mut Meeting| matches!(now, Meeting::Waiting);
    let now = meeting.0.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut now, _) = meeting.1.wait_timeout_while(now, left, waiting).unwrap_or_else(PoisonError::into_inner);
    match std::mem::replace(&mut *now, Meeting::Left) {
        Meeting::Here(started) => started.map(Some),
        Meeting::Waiting | Meeting::Left => Ok(None),
    }
}

/// A tool that came too late to be of use.
fn dismiss(mut child: Child) {
    let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    let _ = child.try_wait();
}

fn attend(program: &str, mut command: Command, within: Duration, most: usize) -> ToolOutcome {
    let until = Instant::now() + within;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = match start_within(move || command.spawn(), until, dismiss) {
        Ok(Some(child)) => child,
        Ok(None) => return ToolOutcome::TimedOut { output: Raw::new(Vec::new()) },
        Err(e) if e.kind() == io::ErrorKind::NotFound => return ToolOutcome::Unavailable(format!("{program} is not installed")),
        Err(e) => return ToolOutcome::Unavailable(format!("{program} could not be started: {e}")),
    };
    let pid = Pid::from_child(&child);
    let mut output = Stream::new(child.stdout.take(), most);
    let mut errors = Stream::new(child.stderr.take(), most);
    let status = loop {
        let (output_ended, errors_ended) = (output.pump(until), errors.pump(until));
        if output_ended && errors_ended || Instant::now() >= until {
            break await_exit(&mut child, pid, until);
        }
    };
    if status.is_none() {
        let _ = kill_process_group(pid, Signal::KILL);
        let _ = child.try_wait();
        output.drain();
        return ToolOutcome::TimedOut { output: Raw::new(output.kept) };
    }
    let cut = output.cut || errors.cut;
    ToolOutcome::Finished { status: status.flatten(), output: Raw::new(output.kept), errors: Raw::new(errors.kept), cut }
}

/// The exit status, or none where it did not come in time.
fn await_exit(child: &mut Child, pid: Pid, until: Instant) -> Option<Option<i32>> {
    if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
        let _ = ready(pidfd.as_fd(), PollFlags::IN, until);
    }
    child.try_wait().ok().flatten().map(|status| status.code())
}

/// One stream of a tool: read as it comes, kept up to a cap, read on beyond it so that the tool does not block on a full pipe.
struct Stream<R> {
    from: Option<R>,
    kept: Vec<u8>,
    most: usize,
    cut: bool,
}

impl<R: Read + AsFd> Stream<R> {
    const fn new(from: Option<R>, most: usize) -> Self {
        Self { from, kept: Vec::new(), most, cut: false }
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
    fn a_tool_gets_a_constant_environment_and_its_streams_are_apart() {
        let ToolOutcome::Finished { status, output, errors, cut } =
            tool("/bin/sh", &["-c", "env; pwd; echo e >&2; exit 3"], Duration::from_secs(20), 1000)
        else {
            panic!()
        };
        assert_eq!((status, cut, errors.as_bytes()), (Some(3), false, b"e\n".as_slice()));
        let text = String::from_utf8(output.into_bytes()).unwrap();
        assert!(text.contains("LC_ALL=C\n") && text.ends_with("/\n") && !text.contains("HOME="), "{text}");
    }

    #[test]
    fn a_late_tool_is_killed_with_its_children_and_what_it_said_is_kept() {
        let started = Instant::now();
        // Longer than a shell may need for its first word on a busy machine.
        let ToolOutcome::TimedOut { output } = tool("/bin/sh", &["-c", "echo first; sleep 60 & sleep 60"], Duration::from_secs(3), 1000)
        else {
            panic!()
        };
        assert_eq!(output.as_bytes(), b"first\n");
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn what_stands_in_the_pipe_at_the_end_is_taken_too() {
        let (from, to) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&to, &[7; 40_000]).unwrap();
        let mut stream = Stream::new(Some(std::fs::File::from(from)), 39_000);
        stream.drain();
        assert_eq!((stream.kept.len(), stream.cut), (39_000, true));
    }

    #[test]
    fn a_flood_is_cut_and_does_not_block_the_tool() {
        let ToolOutcome::Finished { status, output, cut, .. } =
            tool("/bin/sh", &["-c", "head -c 3000000 /dev/zero"], Duration::from_secs(60), 1000)
        else {
            panic!()
        };
        assert_eq!((status, output.as_bytes().len(), cut), (Some(0), 1000, true));
    }

    #[test]
    fn a_start_that_hangs_costs_its_deadline_and_what_comes_late_is_killed() {
        let started = Instant::now();
        let (tell, told) = std::sync::mpsc::channel();
        let (end, hang) = std::sync::mpsc::channel();
        let slow = move || {
            let _ended = hang.recv_timeout(Duration::from_secs(60));
            let child = Command::new("sleep").arg("60").process_group(0).spawn()?;
            let _ = tell.send(child.id());
            Ok(child)
        };
        let came = start_within(slow, started + Duration::from_millis(100), dismiss).unwrap();
        assert!(came.is_none() && started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
        end.send(()).unwrap();
        let pid = told.recv_timeout(Duration::from_secs(20)).unwrap();
        // Not reaped perhaps, but not running either.
        let ended = || std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
        let until = Instant::now() + Duration::from_secs(20);
        while !ended() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(ended(), "the late tool runs");
    }

    #[test]
    fn an_absent_tool_is_unavailable() {
        assert!(matches!(tool("/nonexistent/tool", &[], Duration::from_secs(1), 10), ToolOutcome::Unavailable(_)));
    }
}
