//! The autopsy: where every thread of QEMU stands, by gdb where it is installed, before a verb ends this QEMU or resets its guest.
//!
//! The one probe that touches QEMU: it halts it for some tenths of a second. So it is asked last, never where it could not succeed
//! (a thread in D can't be halted), and afterwards it is made sure, and said, whether QEMU is as it was.

use super::{Answer, Planned, Set, plan};
use crate::procfs::{is_still, read_text};
use crate::spawn::{ToolOutcome, debugger};
use crate::{deadline, kill};
use proto::{ProbeOutcome, QemuProcess, Vmid};
use std::time::{Duration, Instant};

/// Its name in the plan.
pub(crate) const NAME: &str = "autopsy/threads";
/// The most of gdb's output.
const MOST: usize = 4 * 1024 * 1024;
/// With less than this there is no sense in halting QEMU: gdb would be killed before it has said anything.
const LEAST: Duration = Duration::from_millis(300);

/// Not asked, and why.
pub(crate) fn not_asked(why: &str) -> Answer {
    Answer::without(NAME, ProbeOutcome::Unavailable, 0, &format!("not asked: {why}"))
}

/// Asks, for at most `within`, and at most [`deadline::AUTOPSY`]. Beside the answer, a sentence where QEMU is not as it was.
pub fn ask(vmid: Vmid, qemu: QemuProcess, within: Duration) -> (Answer, Option<String>) {
    let since = Instant::now();
    let Some(planned) = plan(Set::Full, vmid).into_iter().find(|p| p.name == NAME) else { return (not_asked("it is not planned"), None) };
    let within = within.min(deadline::AUTOPSY).saturating_sub(deadline::SETTLE);
    let before = Threads::of(qemu.pid);
    if let Err(why) = fit(qemu, &before, within) {
        return (not_asked(&why), None);
    }
    let ended = debugger(qemu.pid, within, MOST);
    let killed = matches!(ended, ToolOutcome::TimedOut { .. });
    let trouble = match ended {
        ToolOutcome::Unavailable(_) => None,
        _ => settle(qemu, before.stopped(), killed),
    };
    (answer(&planned, since, ended, within), trouble)
}

/// Whether it may be tried.
fn fit(qemu: QemuProcess, before: &Threads, within: Duration) -> Result<(), String> {
    if within < LEAST {
        return Err("the other probes took all the time that there is".to_owned());
    }
    if !is_still(qemu) || before.0.is_empty() {
        return Err(format!("process {} is gone", qemu.pid));
    }
    if let Some(tracer) = before.0.iter().map(|t| t.tracer).find(|tracer| *tracer != 0) {
        return Err(format!("process {tracer} traces QEMU already"));
    }
    match before.0.iter().filter(|t| t.state == 'D').count() {
        0 => Ok(()),
        n => Err(format!("{n} of its threads are in state D, where no debugger can halt them; see process/threads.2.json")),
    }
}

fn answer(p: &Planned, since: Instant, ended: ToolOutcome, within: Duration) -> Answer {
    let ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    match ended {
        ToolOutcome::Finished { status: Some(0), output, cut, .. } => Answer::captured(p, ms, output).noting(cut.then_some("cut at 4 MiB")),
        ToolOutcome::Finished { status, output, errors, .. } => {
            let status = status.map_or_else(|| "a signal".to_owned(), |s| format!("exit status {s}"));
            Answer::partial(p, ProbeOutcome::Failed, ms, &format!("gdb ended with {status}: {}", errors.escaped(300)), output)
        }
        ToolOutcome::TimedOut { output } => {
            let why = format!("gdb did not end within {} ms and was killed", within.as_millis());
            Answer::partial(p, ProbeOutcome::TimedOut, ms, &why, output)
        }
        ToolOutcome::Unavailable(why) => Answer::without(NAME, ProbeOutcome::Unavailable, ms, &why),
    }
}

/// Waits until nobody traces QEMU any more and it runs, or is stopped, as before. A sentence where that does not come.
///
/// A killed gdb lets go of QEMU by itself, but may leave it stopped, or a thread with a SIGSTOP to come: SIGCONT takes back both.
fn settle(qemu: QemuProcess, stopped: bool, killed: bool) -> Option<String> {
    let until = Instant::now() + deadline::SETTLE;
    let mut continued = false;
    loop {
        // Judged is only what was looked at after the time was over, and after the SIGCONT.
        let late = Instant::now() >= until;
        let now = Threads::of(qemu.pid);
        let traced = now.0.iter().any(|t| t.tracer != 0);
        if !traced && !stopped && !continued && (killed || now.stopped()) {
            continued = true;
            kill::resume(qemu);
            continue;
        }
        if !traced && now.stopped() == stopped {
            return None;
        }
        if late {
            let how = match (traced, now.stopped()) {
                (true, _) => "still traces it",
                (false, true) => "left it stopped",
                (false, false) => "left it running, and it was stopped before",
            };
            return Some(format!("QEMU is not as it was before the autopsy: the debugger {how}"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A thread, as far as it matters here.
struct Thread {
    state: char,
    tracer: u32,
}

/// QEMU's threads.
struct Threads(Vec<Thread>);

impl Threads {
    fn of(pid: u32) -> Self {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        Self(tasks.filter_map(|task| parse(&read_text(task.path().join("status")).ok()?)).collect())
    }

    /// Whether a stop signal holds all of it.
    fn stopped(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|t| t.state == 'T')
    }
}

/// A task's `status`, as far as it matters here.
fn parse(status: &str) -> Option<Thread> {
    let value = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim_start);
    Some(Thread { state: value("State:")?.chars().next()?, tracer: value("TracerPid:")?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, Signal, kill_process};
    use std::process::{Child, Command};

    fn sleeper() -> (Child, QemuProcess) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let qemu = QemuProcess { pid: child.id(), started: crate::procfs::start_time(child.id()).unwrap() };
        (child, qemu)
    }

    fn stop(child: &Child) {
        kill_process(Pid::from_child(child), Signal::STOP).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while !Threads::of(child.id()).stopped() {
            assert!(Instant::now() < until, "SIGSTOP does not stop it");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_a_killed_debugger_left_stopped_runs_again() {
        let (mut child, qemu) = sleeper();
        stop(&child);
        assert_eq!(settle(qemu, false, true), None);
        assert!(!Threads::of(qemu.pid).stopped());
        let _ = child.kill();
        let _ = child.wait();
    }

    #[test]
    fn what_was_stopped_stays_stopped_and_else_it_is_said() {
        let (mut child, qemu) = sleeper();
        assert!(settle(qemu, true, false).is_some_and(|s| s.contains("stopped before")));
        stop(&child);
        assert_eq!(settle(qemu, true, true), None);
        assert!(Threads::of(qemu.pid).stopped());
        let _ = child.kill();
        let _ = child.wait();
    }

    #[test]
    fn a_debugger_is_not_tried_on_the_dead_or_without_time() {
        let (mut child, qemu) = sleeper();
        let (answer, _) = ask(Vmid::DEVVM, qemu, Duration::from_millis(400));
        assert!(answer.detail.is_some_and(|d| d.contains("all the time")));
        let _ = child.kill();
        let _ = child.wait();
        let (answer, trouble) = ask(Vmid::DEVVM, qemu, Duration::from_secs(2));
        assert_eq!((answer.outcome, trouble), (ProbeOutcome::Unavailable, None));
    }

    #[test]
    fn a_thread_in_d_is_not_halted() {
        let threads = Threads(vec![parse("Name:\tkvm\nState:\tD (disk sleep)\nTracerPid:\t0\n").unwrap()]);
        let own = std::process::id();
        let me = QemuProcess { pid: own, started: crate::procfs::start_time(own).unwrap() };
        assert!(fit(me, &threads, Duration::from_secs(1)).unwrap_err().contains("state D"));
    }

    #[test]
    fn what_a_killed_debugger_had_printed_is_kept() {
        let planned = plan(Set::Full, Vmid::DEVVM).into_iter().find(|p| p.name == NAME).unwrap();
        let late = ToolOutcome::TimedOut { output: crate::probe::Raw::new(b"Thread 2 (LWP 7):\n#0  poll".to_vec()) };
        let answer = answer(&planned, Instant::now(), late, Duration::from_secs(1));
        assert_eq!((answer.outcome, answer.artifact.unwrap().bytes.as_bytes().len()), (ProbeOutcome::TimedOut, 26));
        let detail = answer.detail.unwrap();
        assert!(detail.starts_with("gdb did not end within 1000 ms and was killed; ") && detail.contains("is kept, 26 bytes"), "{detail}");
    }
}
