//! The worker: the same binary, started again by the front for a mutating verb. It parses and authorises once more, takes the
//! lock, owns the deadline and finishes whatever becomes of its caller.
//!
//! Own session, own cgroup (a logout kills the session's), low OOM score, signals that hang-ups bring blocked; nothing of the SSH
//! channel is inherited: stdin and stdout are pipes of the front's (channel.rs), stderr is /dev/null.

use nix::sys::signal::{SigSet, Signal};
use std::process::Stdio;

use crate::answer::Answer;
use crate::channel::{Front, Worker};
use crate::door::{self, Arrival};
use crate::run::Run;
use crate::spool::Spool;
use crate::{pipeline, policy, spawn};

/// Starts the worker of this request. It makes the spool of its id, by which the front finds it.
///
/// # Errors
/// Where the host can't start a process, or the pipe breaks: then nothing was begun.
pub fn start(arrival: &Arrival) -> std::io::Result<Worker> {
    let bytes = serde_json::to_vec(arrival)?;
    Worker::hand(spawn::reexec("worker", Stdio::piped(), Stdio::piped())?, &bytes)
}

/// The worker's own main. Its exit status tells nobody anything; the receipt does.
pub fn main() -> Result<(), String> {
    detach();
    let (front, bytes) = Front::take().map_err(|e| e.to_string())?;
    let arrival: Arrival = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    let parsed = door::parse(arrival).map_err(|rejection| rejection.1.to_string())?;
    // Another worker has this id: the fronts follow that one.
    let spool = Spool::create(parsed.id(), &parsed.binding()).map_err(|e| e.to_string())?;
    let mut run = Run::begin(parsed.arrival(), Answer::to_spool(parsed.id().clone(), spool, front));
    run.understood(&parsed);
    let end = policy::authorise(&run.host.node, parsed).and_then(|authorised| pipeline::work(&mut run, authorised));
    run.finish(end);
    Ok(())
}

/// Steps out of whatever the caller's end could take down with it.
fn detach() {
    let _ = rustix::process::setsid();
    let mut blocked = SigSet::empty();
    for signal in [Signal::SIGHUP, Signal::SIGPIPE, Signal::SIGINT, Signal::SIGTERM] {
        blocked.add(signal);
    }
    // std starts every child with an empty mask, so `qm` can still be told to end.
    let _ = blocked.thread_block();
    let own = "/sys/fs/cgroup/pve-verb";
    let _ = std::fs::create_dir(own);
    let _ = std::fs::write(format!("{own}/cgroup.procs"), std::process::id().to_string());
    spawn::protect();
}
