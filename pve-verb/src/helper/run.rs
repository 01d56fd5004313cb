//! The helper's side of a capture: each task on its own thread, each question with its own deadline.
//!
//! A thread that hangs in the kernel keeps nobody waiting: its questions are answered `timed_out` at their deadlines, what it finds
//! later is dropped, and the process ends without it (or is killed: a thread in state D can't be ended).

use super::frame::{self, Reply};
use crate::probe::{Planned, Raw};
use proto::ProbeOutcome;
use serde_json::Value;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Instant;

/// Some questions that are asked one after the other.
pub(crate) struct Task {
    names: Vec<String>,
    work: Box<dyn FnOnce(&Outbox) + Send>,
}

impl Task {
    /// One thread's work, and the questions it answers.
    pub(crate) fn new(names: &[&str], work: impl FnOnce(&Outbox) + Send + 'static) -> Self {
        Self { names: names.iter().map(|&n| n.to_owned()).collect(), work: Box::new(work) }
    }
}

/// A fact: QEMU served somebody else, or nobody.
pub(crate) const UNSERVED: &str = "unserved";
/// A fact: QEMU took our connection, greeted, and answered nothing. Its monitor greets from a thread of its own, so that does a QEMU too
/// whose main thread hangs.
pub(crate) const UNHEARD: &str = "unheard";

/// Where a task leaves its answers.
#[derive(Clone)]
pub(crate) struct Outbox {
    to: Sender<Reply>,
}

impl Outbox {
    /// Leaves an answer; one that was not planned, or has come already, is dropped.
    pub(crate) fn put(&self, reply: Reply) {
        let _ = self.to.send(reply);
    }

    /// An artifact.
    pub(crate) fn captured(&self, name: &str, since: Instant, bytes: Vec<u8>) {
        self.put(Reply {
            name: name.to_owned(),
            outcome: ProbeOutcome::Captured,
            ms: ms(since),
            detail: None,
            bytes: Some(Raw::new(bytes)),
            facts: None,
        });
    }

    /// A JSON artifact.
    pub(crate) fn json(&self, name: &str, since: Instant, value: &Value) {
        let mut bytes = serde_json::to_vec_pretty(value).unwrap_or_default();
        bytes.push(b'\n');
        self.captured(name, since, bytes);
    }

    /// No artifact, and why.
    pub(crate) fn without(&self, name: &str, since: Instant, outcome: ProbeOutcome, why: &str) {
        self.put(Reply { name: name.to_owned(), outcome, ms: ms(since), detail: Some(why.to_owned()), bytes: None, facts: None });
    }

    /// No artifact; and how QEMU let us wait: where it served somebody else, the worker finds out whom.
    pub(crate) fn waited(&self, name: &str, since: Instant, outcome: ProbeOutcome, why: &str, how: Option<&'static str>) {
        let facts = how.map(|how| serde_json::json!({ how: true }));
        self.put(Reply { name: name.to_owned(), outcome, ms: ms(since), detail: Some(why.to_owned()), bytes: None, facts });
    }

    /// Facts, with or without an artifact.
    pub(crate) fn facts(&self, name: &str, since: Instant, bytes: Option<Vec<u8>>, facts: Value) {
        self.put(Reply {
            name: name.to_owned(),
            outcome: ProbeOutcome::Captured,
            ms: ms(since),
            detail: None,
            bytes: bytes.map(Raw::new),
            facts: Some(facts),
        });
    }
}

fn ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Does the tasks and writes their answers as they come, until every question has one.
pub(crate) fn all(planned: Vec<Planned>, tasks: Vec<Task>, out: &mut impl Write) -> u8 {
    let started = Instant::now();
    let (to, from) = mpsc::channel();
    for task in tasks {
        let outbox = Outbox { to: to.clone() };
        let Task { names, work } = task;
        let spare = (outbox.clone(), names.clone());
        let thread = std::thread::Builder::new().spawn(move || {
            if catch_unwind(AssertUnwindSafe(|| work(&outbox))).is_err() {
                fail(&outbox, &names, "the probe panicked");
            }
        });
        if thread.is_err() {
            fail(&spare.0, &spare.1, "the kernel refused a thread");
        }
    }
    // The last sender lives in the threads: when all have ended, the questions that none of them answered are known to stay so.
    drop(to);
    let mut left = planned;
    while let Some(next) = left.iter().map(|p| started + p.deadline).min() {
        let replies = match from.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(reply) => vec![reply],
            Err(RecvTimeoutError::Timeout) => late(&left, started),
            Err(RecvTimeoutError::Disconnected) => {
                left.iter().map(|p| unanswered(p, started, ProbeOutcome::Failed, "nobody answered")).collect()
            }
        };
        for reply in replies {
            let Some(at) = left.iter().position(|p| p.name == reply.name) else { continue };
            if frame::write(out, &left.remove(at), &reply).is_err() {
                return 1; // the worker has closed the pipe
            }
        }
    }
    0
}

fn late(left: &[Planned], started: Instant) -> Vec<Reply> {
    let now = Instant::now();
    let why = |p: &Planned| format!("no answer within {} ms; abandoned", p.deadline.as_millis());
    left.iter().filter(|p| started + p.deadline <= now).map(|p| unanswered(p, started, ProbeOutcome::TimedOut, &why(p))).collect()
}

fn unanswered(p: &Planned, started: Instant, outcome: ProbeOutcome, why: &str) -> Reply {
    Reply { name: p.name.clone(), outcome, ms: ms(started), detail: Some(why.to_owned()), bytes: None, facts: None }
}

fn fail(outbox: &Outbox, names: &[String], why: &str) {
    for name in names {
        outbox.without(name, Instant::now(), ProbeOutcome::Failed, why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::helper::frame::Incoming;
    use crate::probe::{Asker, Set, asked_of};
    use proto::Vmid;
    use std::time::Duration;

    #[test]
    fn a_hung_probe_and_a_panicking_one_cost_only_their_own_answers() {
        let planned: Vec<_> = asked_of(Asker::Host, Set::Observe, Vmid::DEVVM, true);
        let started = Instant::now();
        let (mut out_first, mut out) = (Vec::new(), Vec::new());
        let tasks = vec![
            Task::new(&["observe/process"], |_| std::thread::sleep(Duration::from_secs(60))),
            Task::new(&["observe/pve"], |_| panic!("in a test")),
            Task::new(&["observe/tasks"], |out| out.facts("observe/tasks", Instant::now(), None, Value::Null)),
            Task::new(&["observe/scan"], |_| {}),
        ];
        all(planned.clone(), tasks, &mut out);
        assert!(started.elapsed() < Duration::from_secs(30));
        let mut incoming = Incoming::new(planned);
        frame::write_hello(&mut out_first, Vec::new()).unwrap();
        incoming.feed(&[out_first, out].concat());
        let mut got = Vec::new();
        while let Some(answer) = incoming.take().unwrap() {
            got.push((answer.name, answer.outcome));
        }
        got.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(
            got.iter().map(|(n, o)| (n.as_str(), *o)).collect::<Vec<_>>(),
            [
                ("observe/memory", ProbeOutcome::TimedOut),
                ("observe/process", ProbeOutcome::TimedOut),
                ("observe/pve", ProbeOutcome::Failed),
                ("observe/scan", ProbeOutcome::TimedOut),
                ("observe/tasks", ProbeOutcome::Captured),
                ("observe/volumes", ProbeOutcome::TimedOut),
            ]
        );
    }
}
