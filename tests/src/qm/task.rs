//! Tasks: start, stop and reset run in a worker of their own session, whose output the client logs and repeats.
//!
//! The shape is the real one's, because what happens when somebody kills the client depends on it: SIGTERM and SIGINT are passed
//! on to the worker as "received interrupt", SIGKILL leaves a worker that ends at its next message and a task that never ends in
//! the logs. We can't fork without unsafe code, so the worker is this program again: first as a prelude, which becomes a session
//! of its own and waits for its UPID (it contains the worker's pid), then under the UPID as its name, as `ps` shows the real one.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group, setsid};
use serde::{Deserialize, Serialize};

use super::{Fail, Run, out, tasklog, verbs};

/// The hidden sub-command of a worker that has no UPID yet.
pub const PRELUDE: &str = "__worker";
/// What an interrupted step says.
pub const INTERRUPT: &str = "received interrupt";
const JOB: &str = "QM_STANDIN_JOB";
const SLICE: Duration = Duration::from_millis(50);

static SIGNALLED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// What a worker is to do; `verbs::work` carries it out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// The task's type as the UPID names it, such as `qmstop`.
    pub kind: String,
    /// Which VM.
    pub vmid: u32,
    /// `--skiplock`.
    pub skiplock: bool,
    /// `--timeout`.
    pub timeout: Option<u64>,
    /// The other options that a job may need, such as `nocheck`.
    pub flags: Vec<String>,
}

fn catch() {
    let flag = SIGNALLED.get_or_init(|| Arc::new(AtomicBool::new(false)));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGQUIT] {
        // If a handler cannot be set the signal ends us, which is what it did without one.
        let _ = signal_hook::flag::register(signal, Arc::clone(flag));
    }
}

fn take_signal() -> bool {
    SIGNALLED.get().is_some_and(|flag| flag.swap(false, Ordering::SeqCst))
}

/// Fails once after each signal that a worker got.
pub fn interrupted() -> Run {
    if out::is_worker() && take_signal() { Err(Fail::die(INTERRUPT)) } else { Ok(()) }
}

/// Sleeps, unless a signal comes.
pub fn pause(time: Duration) -> Run {
    let end = Instant::now() + time;
    loop {
        interrupted()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(SLICE));
    }
}

/// Runs a job in a worker and waits for it, as the command-line client does.
pub fn run(job: &Job) -> Run {
    let broken = |why: &dyn std::fmt::Display| Fail::die(format!("fork failed - {why}"));
    let (ours, theirs) = UnixStream::pair().map_err(|why| broken(&why))?;
    let (reader, writer) = io::pipe().map_err(|why| broken(&why))?;
    let program = std::env::current_exe().map_err(|why| broken(&why))?;
    let mut command = Command::new(program);
    command.arg0("qm").arg(PRELUDE).stdin(Stdio::from(OwnedFd::from(theirs)));
    command.stderr(Stdio::from(writer.try_clone().map_err(|why| broken(&why))?)).stdout(Stdio::from(writer));
    let mut child = command.spawn().map_err(|why| broken(&why))?;
    // The command holds our copies of the worker's ends; while we have them the pipe never ends.
    drop(command);
    catch();

    let task = tasklog::Task::begin(job, child.id());
    let order = format!("{}\n", serde_json::json!({ "upid": task.upid, "job": job }));
    (&ours).write_all(order.as_bytes()).map_err(|why| broken(&why))?;
    let mut log = task.log();
    copy(reader.into(), &mut log, child.id());

    let mut result = String::new();
    let _ = ours.set_read_timeout(Some(Duration::from_secs(5)));
    // A worker that died said nothing, which is the case below.
    let _ = (&ours).read_to_string(&mut result);
    let _ = child.wait();
    let outcome = match serde_json::from_str::<Option<String>>(&result) {
        Ok(None) => Ok(()),
        Ok(Some(words)) => Err(words),
        Err(_) => Err("unexpected status".to_owned()),
    };
    task.end(&mut log, outcome.as_ref().err().map(String::as_str));
    outcome.map_err(Fail::die)
}

/// Repeats the worker's output to the log and to stdout until it ends, and passes signals on.
fn copy(reader: OwnedFd, log: &mut Option<File>, worker: u32) {
    static PASSED: AtomicU32 = AtomicU32::new(0);
    let mut reader = File::from(reader);
    let step = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    let mut chunk = [0; 4096];
    loop {
        if take_signal()
            && let Some(group) = i32::try_from(worker).ok().and_then(Pid::from_raw)
        {
            let hard = PASSED.fetch_add(1, Ordering::SeqCst) >= 3;
            // The group may be gone already.
            let _ = kill_process_group(group, if hard { Signal::KILL } else { Signal::TERM });
        }
        match poll(&mut [PollFd::new(&reader, PollFlags::IN)], Some(&step)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => return,
        }
        match reader.read(&mut chunk) {
            Ok(0) => return,
            Ok(n) => {
                let bytes = chunk.get(..n).unwrap_or_default();
                if let Some(log) = log {
                    // A full disk must not stop the task.
                    let _ = log.write_all(bytes);
                }
                out::raw(bytes);
            }
            Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// The worker before it has its name: a session of its own that waits for the order.
pub fn prelude() -> i32 {
    let _ = setsid();
    let mut line = String::new();
    if BufReader::new(io::stdin()).read_line(&mut line).unwrap_or(0) == 0 {
        return 1;
    }
    let Ok(order) = serde_json::from_str::<serde_json::Value>(&line) else {
        return 1;
    };
    let Ok(program) = std::env::current_exe() else {
        return 1;
    };
    let upid = order["upid"].as_str().unwrap_or_default();
    let why = Command::new(program).arg0(format!("task {upid}")).env(JOB, order["job"].to_string()).exec();
    out::warn(&why.to_string());
    1
}

/// The worker under its name: does the job and says on its stdin's socket how it ended.
pub fn worker() -> i32 {
    out::i_am_a_worker();
    catch();
    let job = std::env::var(JOB).ok().and_then(|text| serde_json::from_str::<Job>(&text).ok());
    let result = match job {
        Some(job) => verbs::work(&job).err().map(|fail| fail.words),
        None => Some("no job".to_owned()),
    };
    let text = serde_json::json!(result).to_string();
    // Nobody listens any more if the client was killed.
    let _ = rustix::io::write(io::stdin(), text.as_bytes());
    i32::from(result.is_some())
}
