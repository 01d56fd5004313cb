//! The worker: the same binary, started again by the front for a mutating verb. It parses and authorises once more, takes the
//! lock, owns the deadline and finishes whatever becomes of its caller.
//!
//! Own session, own cgroup (a logout kills the session's), low OOM score, signals that hang-ups bring blocked; nothing of the SSH
//! channel is inherited: stdin and stdout are pipes of the front's (channel.rs), stderr is /dev/null.

use nix::sys::signal::{SigSet, Signal};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use crate::answer::Answer;
use crate::channel::{Front, Worker};
use crate::door::{self, Arrival};
use crate::run::Run;
use crate::spool::Spool;
use crate::{pipeline, policy, spawn};

/// Where cgroups of the second version are; on hybrid hosts one level deeper.
const CGROUPS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

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
    let left_behind = detach();
    let (front, bytes) = Front::take().map_err(|e| e.to_string())?;
    let arrival: Arrival = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    let parsed = door::parse(arrival).map_err(|rejection| rejection.1.to_string())?;
    // Another worker has this id: the fronts follow that one.
    let spool = Spool::create(parsed.id(), &parsed.binding()).map_err(|e| e.to_string())?;
    let mut run = Run::begin(parsed.arrival(), Answer::to_spool(parsed.id().clone(), spool, front));
    run.understood(&parsed);
    left_behind.into_iter().for_each(|sentence| run.degrade(sentence));
    let end = policy::authorise(&run.host.node, parsed).and_then(|authorised| pipeline::work(&mut run, authorised));
    run.finish(end);
    Ok(())
}

/// Steps out of whatever the caller's end could take down with it. Says what it could not step out of.
fn detach() -> Option<String> {
    let _ = rustix::process::setsid();
    let mut blocked = SigSet::empty();
    for signal in [Signal::SIGHUP, Signal::SIGPIPE, Signal::SIGINT, Signal::SIGTERM] {
        blocked.add(signal);
    }
    // std starts every child with an empty mask, so `qm` can still be told to end.
    let _ = blocked.thread_block();
    spawn::protect();
    leave_cgroup(CGROUPS, std::process::id()).err().map(|why| {
        format!("the worker is still in its caller's cgroup ({why}): where a logout ends a session's processes, it ends this one too")
    })
}

/// Moves into a cgroup of our own, below the first of these that is a hierarchy of the second version.
fn leave_cgroup(hierarchies: [&str; 2], pid: u32) -> Result<(), String> {
    // On a hybrid host the first is a plain tmpfs, which would take our folder and a file of that name, and move nobody.
    let is_v2 = |root: &&&str| Path::new(root).join("cgroup.procs").exists();
    let root = hierarchies.iter().find(is_v2).ok_or("this host has no cgroups of version 2 at a place that is known")?;
    let own = Path::new(root).join("pve-verb");
    match std::fs::create_dir(&own) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(format!("{}: {e}", own.display())),
        _ => {}
    }
    let procs = own.join("cgroup.procs");
    // Opened, not created: only the kernel's own file moves anybody.
    let moved = std::fs::OpenOptions::new().write(true).open(&procs).and_then(|mut f| f.write_all(pid.to_string().as_bytes()));
    moved.map_err(|e| format!("{}: {e}", procs.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_hybrid_host_the_worker_goes_into_the_second_version_and_says_where_it_could_not() {
        let host = tempfile::tempdir().unwrap();
        let (first, second) = (host.path().join("cgroup"), host.path().join("cgroup/unified"));
        std::fs::create_dir_all(second.join("pve-verb")).unwrap();
        let leave = || leave_cgroup([first.to_str().unwrap(), second.to_str().unwrap()], 42);
        assert!(leave().unwrap_err().contains("version 2"));
        assert!(!first.join("pve-verb").exists(), "nothing is left in the tmpfs");
        std::fs::write(second.join("cgroup.procs"), "").unwrap();
        assert!(leave().unwrap_err().contains("unified/pve-verb/cgroup.procs"), "a file that the kernel did not make is not made");
        std::fs::write(second.join("pve-verb/cgroup.procs"), "").unwrap();
        assert_eq!(leave(), Ok(()));
        assert_eq!(std::fs::read_to_string(second.join("pve-verb/cgroup.procs")).unwrap(), "42");
    }
}
