//! What `strace -f` saw of a call: its lines, which process began which, and who executed what.
//!
//! Lines stand in the order in which calls ended; one that another process's line cut in two stands where it began and where it ended.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use lab::process::{Finished, Running, start, until};
use lab::{Error, Result};

/// The calls that matter. No `openat` of everything: the helpers' thousands would be most of the trace.
const CALLS: &str = "trace=execve,execveat,clone,clone3,fork,vfork,fsync,fdatasync,rename,renameat,renameat2,connect,write,pwrite64,writev,\
    sendto,sendmsg,kill,tgkill,tkill,rt_sigqueueinfo,pidfd_send_signal,close,dup2,dup3,exit_group,memfd_create";

/// One line.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) pid: u32,
    pub(crate) text: String,
}

impl Line {
    /// The call's name; none for a line's second half, a signal or an exit.
    pub(crate) fn call(&self) -> Option<&str> {
        self.text.split_once('(').map(|(name, _)| name).filter(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'))
    }

    /// Whether it ended well, here.
    fn ended_well(&self) -> bool {
        self.text.rsplit_once(" = ").is_some_and(|(_, result)| !result.starts_with('-'))
    }
}

/// What was executed, by whom, and how.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) at: usize,
    pub(crate) pid: u32,
    pub(crate) program: String,
    pub(crate) argv: String,
    pub(crate) env: String,
}

/// The whole.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) lines: Vec<Line>,
    parents: BTreeMap<u32, u32>,
}

fn strace(output: &str) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-I", "2", "-yy", "-v", "-s", "1500", "-e", CALLS, "-e", "signal=none", "-o", output]).current_dir("/");
    command
}

/// Runs a command line of pve-verb's under strace; an environment, where it is given, is the whole one.
pub(crate) fn of(arguments: &[&str], env: &[(&str, &str)]) -> Result<(Finished, Trace)> {
    let output = "/run/lab/trace";
    let mut command = strace(output);
    command.arg("/usr/sbin/pve-verb").args(arguments);
    if !env.is_empty() {
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs(env.iter().copied());
    }
    // strace ends when the last process that it follows has: QEMU, where one was started. So it is left when ours has answered.
    let running = start(&mut command, &[])?;
    let ended = until("the answer under strace", Duration::from_secs(100), || {
        let said = String::from_utf8_lossy(&running.output_so_far()).into_owned();
        said.lines().last().is_some_and(|line| line.contains("\"event\":\"receipt\"") || line.starts_with("receipt ")).then_some(())
    });
    std::thread::sleep(Duration::from_millis(500));
    let finished = let_go(running)?;
    ended?;
    Ok((finished, Trace::read(output)?))
}

/// Follows a process that runs already, and all that it starts, while `what` happens.
pub(crate) fn attached<T>(pid: u32, what: impl FnOnce() -> Result<T>) -> Result<(T, Trace)> {
    let output = "/run/lab/trace-sshd";
    let running = start(strace(output).args(["-p", &pid.to_string()]), &[])?;
    until("strace's grip", Duration::from_secs(30), || {
        std::fs::read_to_string(format!("/proc/{pid}/status"))
            .ok()?
            .lines()
            .any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
            .then_some(())
    })?;
    let value = what();
    std::thread::sleep(Duration::from_millis(500));
    let_go(running)?;
    Ok((value?, Trace::read(output)?))
}

/// strace detaches at SIGINT and leaves what it followed alone.
fn let_go(running: Running) -> Result<Finished> {
    lab::vm::send(running.pid(), rustix::process::Signal::INT)?;
    running.finish(Duration::from_secs(600))
}

impl Trace {
    fn read(path: &str) -> Result<Self> {
        // Bytes of a picture may stand in it.
        let bytes = std::fs::read(path)
            .map_err(|error| Error::new(format!("There is no trace: {error}"), "Look whether strace may attach here"))?;
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = Vec::new();
        let mut begun = BTreeMap::new();
        let mut parents = BTreeMap::new();
        for line in text.lines() {
            let Some((pid, text)) = line.split_once(' ').and_then(|(pid, text)| Some((pid.parse().ok()?, text.trim_start()))) else {
                continue;
            };
            let mut text = text.to_owned();
            if let Some(start) = text.strip_suffix(" <unfinished ...>") {
                begun.insert(pid, start.to_owned());
            } else if text.starts_with("<... ")
                && let Some(start) = begun.remove(&pid)
            {
                // Its end carries the whole, so that a result can be read; its beginning stays where it was.
                text = format!("ended {start}{}", text.split_once(" resumed>").map_or("", |(_, rest)| rest));
            }
            let line = Line { pid, text };
            let call = line.text.trim_start_matches("ended ");
            if ["clone", "clone3", "fork", "vfork"].iter().any(|name| call.starts_with(&format!("{name}(")))
                && let Some(child) = line.text.rsplit_once(" = ").and_then(|(_, pid)| pid.trim().split(' ').next()?.parse().ok())
            {
                parents.insert(child, pid);
            }
            lines.push(line);
        }
        Ok(Self { lines, parents })
    }

    /// The first line for which `what` holds.
    pub(crate) fn first(&self, from: usize, what: impl Fn(&Line) -> bool) -> Option<usize> {
        self.lines.iter().enumerate().skip(from).find(|(_, line)| what(line)).map(|(at, _)| at)
    }

    /// The first of these calls that ended well and whose text has all of `words`.
    pub(crate) fn done(&self, from: usize, calls: &[&str], words: &[&str]) -> Option<usize> {
        self.first(from, |line| {
            let text = line.text.trim_start_matches("ended ");
            let of = calls.iter().any(|call| text.starts_with(&format!("{call}(")));
            of && words.iter().all(|word| text.contains(word)) && line.ended_well()
        })
    }

    /// Every program that was executed.
    pub(crate) fn execs(&self) -> Vec<Exec> {
        let all = self.lines.iter().enumerate().filter_map(|(at, line)| {
            let rest = line.text.trim_start_matches("ended ").strip_prefix("execve(\"")?;
            if !line.ended_well() {
                return None;
            }
            let (program, rest) = rest.split_once("\", [")?;
            let (argv, rest) = rest.split_once("], [")?;
            let env = rest.rsplit_once("])")?.0;
            Some(Exec { at, pid: line.pid, program: program.into(), argv: argv.into(), env: env.into() })
        });
        all.collect()
    }

    /// Whether `pid` is `of` or was begun by it or by one of its own.
    pub(crate) fn below(&self, pid: u32, of: u32) -> bool {
        let mut now = pid;
        for _ in 0..100 {
            if now == of {
                return true;
            }
            match self.parents.get(&now) {
                Some(parent) => now = *parent,
                None => return false,
            }
        }
        false
    }

    /// Processes that were begun; threads are none.
    pub(crate) fn processes_begun(&self) -> Vec<&str> {
        let begins = |line: &&Line| matches!(line.call(), Some("clone" | "clone3" | "fork" | "vfork"));
        self.lines.iter().filter(begins).map(|line| line.text.as_str()).filter(|text| !text.contains("CLONE_THREAD")).collect()
    }
}
