//! A worker in the hand of a test: followed by its spool, killed at a step of its work, or run under `strace` with faults.
//!
//! The worker is the shipped binary, started with what its front would hand it; the front's own words are taken from a real one.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::chain::OVERFLOW;
use crate::client::Answer;
use crate::error::{Context, Error, Result};
use crate::process::{Running, run, start, until};
use crate::station::{console, fresh_id, processes, quiet};
use crate::vm::send;

/// The event spool of a request.
pub fn spool(id: &str) -> String {
    format!("/run/pve-verb/spool/{id}.jsonl")
}

/// The events that a worker has told so far.
pub fn events(id: &str) -> Vec<Value> {
    let text = fs::read_to_string(spool(id)).unwrap_or_default();
    text.lines().skip(1).filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// A moment of a mutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// An event of this kind was told.
    Told(&'static str),
    /// A step of this name was told with this outcome.
    Step(&'static str, &'static str),
}

impl Moment {
    fn is(self, event: &Value) -> bool {
        match self {
            Self::Told(kind) => event["event"] == kind,
            Self::Step(name, outcome) => event["event"] == "step" && event["name"] == name && event["outcome"] == outcome,
        }
    }
}

/// Whether that moment of a request has come.
pub fn passed(id: &str, moment: Moment) -> bool {
    events(id).iter().any(|event| moment.is(event))
}

/// Waits for that moment of a request that runs.
pub fn reaches(id: &str, moment: Moment, deadline: Duration) -> Result<()> {
    until(&format!("{moment:?}"), deadline, || passed(id, moment).then_some(()))
}

/// Kills the worker that runs, at once. Beside it there may be a child that has not become its own program yet, and dies with it.
pub fn kill() -> Result<()> {
    let killed = processes("worker").into_iter().filter(|pid| send(*pid, Signal::KILL).is_ok()).count();
    if killed > 0 {
        return Ok(());
    }
    Err(Error::new("There is no worker to be killed", "Kill it at an earlier moment: it had come to its end"))
}

/// What a front hands to the worker of a request, its length first: taken from the console's own front, with another line and id.
pub fn arrival(words: &str, id: &str) -> Result<Vec<u8>> {
    static REAL: OnceLock<Value> = OnceLock::new();
    let mut arrival = match REAL.get() {
        Some(real) => real.clone(),
        None => {
            let real = real_arrival()?;
            REAL.get_or_init(|| real).clone()
        }
    };
    arrival["line"] = json!(format!("{words} --request-id={id}").into_bytes());
    arrival["fresh_id"] = json!(id);
    let text = arrival.to_string().into_bytes();
    let length = u32::try_from(text.len()).context("send an arrival")?;
    Ok([&length.to_be_bytes(), text.as_slice()].concat())
}

fn real_arrival() -> Result<Value> {
    let trace = "/run/lab/arrival.strace";
    let id = fresh_id()?;
    let mut command = Command::new("strace");
    command.args(["-o", trace, "-e", "trace=write", "-xx", "-s", "65536", "/usr/sbin/pve-verb", "cycle", "--dry-run"]);
    run(command.arg(format!("--request-id={id}")), Duration::from_secs(60))?.success("a dry run")?;
    let text = fs::read_to_string(trace).unwrap_or_default();
    let said = text.lines().filter_map(|line| serde_json::from_slice::<Value>(unhex(line.split('"').nth(1)?)?.get(4..)?).ok());
    said.into_iter()
        .find(|said| said["fresh_id"].is_string() && said["line"].is_array())
        .ok_or_else(|| Error::new("The front did not hand its worker an arrival", "Look at pve-verb/src/worker.rs"))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    text.split("\\x").skip(1).map(|two| u8::from_str_radix(two.get(..2)?, 16).ok()).collect()
}

/// Starts a worker under `strace` with these options. It follows no child: the fault is the worker's alone.
pub fn traced(options: &[String], arrival: &[u8]) -> Result<Running> {
    let mut command = Command::new("strace");
    command.args(options).args(["/usr/sbin/pve-verb", "worker"]).current_dir("/");
    start(&mut command, arrival)
}

/// Attaches `strace` with these options to the first process of this role that is not among `before`. None where the request had come
/// to its end by then: a helper lives for a second, and who looks for it may be off the processor for longer.
pub fn attach(role: &str, before: &[u32], options: &[String], id: &str) -> Result<Option<Running>> {
    let met = until(&format!("the start of a {role}"), Duration::from_secs(60), || {
        let over = passed(id, Moment::Told("receipt"));
        let pid = processes(role).into_iter().find(|pid| !before.contains(pid));
        (pid.is_some() || over).then_some(pid)
    })?;
    met.map(|pid| start(Command::new("strace").args(options).args(["-p", &pid.to_string()]), &[])).transpose()
}

/// `status` on the console, and its receipt's body. One that had no time to ask QEMU says so, and is asked again.
pub fn status() -> Result<(Answer, Value)> {
    let mut tries = 0;
    loop {
        let answer = console("status --json", Duration::from_secs(20))?;
        let body = crate::station::body(&answer)?;
        tries += 1;
        if body["state_after"] != "unknown" || tries == 5 {
            return Ok((answer, body));
        }
    }
}

/// Waits until the disk has every record. What a call could not write in its time, as on a machine that is busy elsewhere, stays on tmpfs
/// for the next call: so there is one as long as something is there.
pub fn carried() -> Result<()> {
    let patience = Duration::from_secs(60);
    until("the way of every record to the disk", patience, || {
        quiet(patience).ok()?;
        if fs::metadata(OVERFLOW).map_or(0, |file| file.len()) == 0 {
            return Some(());
        }
        let _whatever_it_says = console("status", Duration::from_secs(20));
        None
    })
}
