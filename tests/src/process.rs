//! Runs programs with a deadline and keeps what they said.
//!
//! No shell, and no wait without an end: past the deadline the program gets SIGKILL, and its output so far is kept. A
//! grandchild that holds the pipes open delays nothing.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{Context, Error, Result};

/// For a grandchild that holds a pipe open.
const PATIENCE: Duration = Duration::from_millis(300);
/// For one that writes into it for ever.
const BEHIND: Duration = Duration::from_secs(10);

/// How a program ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The exit status; 128 + the signal's number where a signal ended it.
    pub status: i32,
    /// Whether the lab killed it at the deadline.
    pub timed_out: bool,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// From start to end.
    pub wall: Duration,
}

impl Finished {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Itself if the program ended with 0.
    pub fn success(self, what: &str) -> Result<Self> {
        if self.status == 0 {
            return Ok(self);
        }
        let how = if self.timed_out { "took too long".to_owned() } else { format!("ended with {}", self.status) };
        Err(Error::new(
            format!("{what} {how}: {}{}", String::from_utf8_lossy(&self.stderr).trim(), self.text().trim()),
            "Run the same command by hand in `lab up` to see why",
        ))
    }
}

/// A program that runs, its output being collected.
#[derive(Debug)]
pub struct Running {
    child: Child,
    started: Instant,
    stdout: Pipe,
    stderr: Pipe,
}

#[derive(Debug)]
struct Pipe {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// The same end once more, only to see whether the reader is behind.
    end: Option<OwnedFd>,
    reader: Option<JoinHandle<()>>,
}

impl Pipe {
    fn collect(source: Option<impl Read + AsFd + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let end = source.as_ref().and_then(|source| source.as_fd().try_clone_to_owned().ok());
        let reader = source.map(|mut source| {
            let sink = Arc::clone(&bytes);
            std::thread::spawn(move || {
                let mut block = [0; 8192];
                while let Ok(n @ 1..) = source.read(&mut block) {
                    locked(&sink).extend_from_slice(&block[..n]);
                }
            })
        });
        Self { bytes, end, reader }
    }

    /// All that was written. Patience ends only where a grandchild holds the pipe open and writes nothing: a reader of ours that is off
    /// the CPU comes back, and what it has not read yet would be missing at the end of an answer.
    fn take(&mut self, mut patience: Instant) -> Vec<u8> {
        let longest = Instant::now() + BEHIND;
        while self.reader.as_ref().is_some_and(|reader| !reader.is_finished()) && Instant::now() < patience.min(longest) {
            if self.is_behind() {
                patience = Instant::now() + PATIENCE;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        locked(&self.bytes).clone()
    }

    /// Whether there are bytes, or the pipe's end, that the reader has not seen.
    fn is_behind(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.end.as_ref().is_some_and(|end| matches!(poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&now)), Ok(1..)))
    }
}

fn locked(bytes: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    bytes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to standard output so far.
    pub fn output_so_far(&self) -> Vec<u8> {
        locked(&self.stdout.bytes).clone()
    }

    /// Waits for its end, at most until `deadline` from its start; then kills it.
    pub fn finish(self, deadline: Duration) -> Result<Finished> {
        self.finish_showing(deadline, |_| ())
    }

    /// The same; what it writes to standard output is shown as it comes.
    pub fn finish_showing(mut self, deadline: Duration, mut show: impl FnMut(&[u8])) -> Result<Finished> {
        let mut timed_out = false;
        let mut shown = 0;
        let status = loop {
            let so_far = locked(&self.stdout.bytes);
            show(&so_far[shown..]);
            shown = so_far.len();
            drop(so_far);
            if let Some(status) = self.child.try_wait().context("wait for a program")? {
                break status;
            }
            if self.started.elapsed() > deadline {
                timed_out = true;
                self.child.kill().context("kill a program at its deadline")?;
                break self.reap()?;
            }
            std::thread::sleep(Duration::from_millis(3));
        };
        let wall = self.started.elapsed();
        let patience = Instant::now() + PATIENCE;
        let stdout = self.stdout.take(patience);
        show(&stdout[shown..]);
        Ok(Finished {
            status: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            timed_out,
            stdout,
            stderr: self.stderr.take(patience),
            wall,
        })
    }

    /// A process in state D does not die of SIGKILL: don't wait for it longer than 2 s.
    fn reap(&mut self) -> Result<std::process::ExitStatus> {
        let patience = Instant::now() + Duration::from_secs(2);
        while Instant::now() < patience {
            if let Some(status) = self.child.try_wait().context("reap a program")? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        Ok(std::process::ExitStatus::from_raw(9))
    }

    /// Kills it at once (SIGKILL) and keeps what it said.
    pub fn kill(mut self) -> Result<Finished> {
        self.child.kill().context("kill a program")?;
        self.finish(Duration::ZERO)
    }
}

/// Starts a program; `stdin` is given to it and closed.
pub fn start(command: &mut Command, stdin: &[u8]) -> Result<Running> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if stdin.is_empty() { Stdio::null() } else { Stdio::piped() });
    let started = Instant::now();
    let mut child = command.spawn().context(format!("start {name}"))?;
    if let Some(mut pipe) = child.stdin.take() {
        let bytes = stdin.to_vec();
        // In a thread: a program that reads slowly, or not at all, must not hold up its own deadline.
        std::thread::spawn(move || pipe.write_all(&bytes));
    }
    let stdout = Pipe::collect(child.stdout.take());
    let stderr = Pipe::collect(child.stderr.take());
    Ok(Running { child, started, stdout, stderr })
}

/// Runs a program to its end or the deadline.
pub fn run(command: &mut Command, deadline: Duration) -> Result<Finished> {
    start(command, &[])?.finish(deadline)
}

/// Runs a program that has to succeed, within a minute.
pub fn must<S: AsRef<std::ffi::OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Result<Finished> {
    run(Command::new(program).args(arguments), Duration::from_secs(60))?.success(program)
}

/// Tries `check` every 20 ms until it gives a value; `what` completes "… did not happen in time".
pub fn until<T>(what: &str, deadline: Duration, mut check: impl FnMut() -> Option<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = check() {
            return Ok(value);
        }
        if started.elapsed() > deadline {
            return Err(Error::new(
                format!("{what} did not happen within {:.1} s", deadline.as_secs_f32()),
                "Look at the VM's console and at the host's log in `lab up`",
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
