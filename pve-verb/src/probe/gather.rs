//! One capture: both helpers and the tools at the same time, until everything planned is answered or the deadline has come.
//! Guarantees one answer to every question of the plan, whatever the helpers do. Judges nothing and writes nothing.

use super::{Answer, NOT_RUNNING, Set, plan, tools};
use crate::deadline;
use crate::helper::run::UNSERVED;
use crate::helper::{Helper, Job, Kind};
use crate::host::qemu_server;
use crate::procfs::peer_of;
use proto::{ProbeOutcome, Vmid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Captures, calling `each` with every answer as it comes. Comes back at `until` at the latest, with what the helpers' sandboxes lack.
pub fn gather(job: &Job, until: Instant, each: &mut dyn FnMut(Answer)) -> Vec<String> {
    let mut others = Others { vmid: job.vmid, until: until + deadline::OTHERS, text: None };
    let each = &mut |answer| each(others.named(answer));
    let started = Instant::now();
    let mut helpers = [Helper::start(Kind::Guest, job), Helper::start(Kind::Host, job)];
    let tools = (job.set == Set::Full).then(|| {
        let (to, from) = mpsc::channel();
        let thread = std::thread::Builder::new().spawn(move || drop(to.send(tools::run_tools(until))));
        (from, thread)
    });
    if job.qemu.is_none() {
        for p in plan(job.set, job.vmid).iter().filter(|p| p.needs_vm) {
            each(Answer::without(&p.name, ProbeOutcome::Unavailable, 0, NOT_RUNNING));
        }
    }
    while Instant::now() < until && !helpers.iter().all(done) {
        for helper in &mut helpers {
            while let Some(answer) = helper.next(Instant::now()) {
                each(answer);
            }
        }
        wait(&helpers, until);
    }
    let degraded = helpers.iter().flat_map(Helper::degraded).collect();
    for helper in helpers {
        helper.abandon(started).into_iter().for_each(&mut *each);
    }
    if let Some((from, _)) = tools {
        // The tools keep their own deadlines; the little more is for the threads' hand-over.
        let grace = until.saturating_duration_since(Instant::now()) + deadline::HAND_OVER;
        let answers = from.recv_timeout(grace).unwrap_or_else(|_| tools::unanswered());
        answers.into_iter().for_each(each);
    }
    degraded
}

/// Who else is on the QMP socket, asked once, where QEMU served none of ours. The helper's sandbox hides other processes from it.
struct Others {
    vmid: Vmid,
    until: Instant,
    text: Option<Option<String>>,
}

impl Others {
    fn named(&mut self, mut answer: Answer) -> Answer {
        if answer.facts.as_ref().is_none_or(|f| f.get(UNSERVED).is_none()) {
            return answer;
        }
        let within = self.until.saturating_duration_since(Instant::now()).min(Duration::from_millis(200));
        let text = self.text.get_or_insert_with(|| peer_of(&qemu_server(self.vmid, "qmp"), within).text());
        if let (Some(detail), Some(text)) = (&mut answer.detail, text) {
            *detail = format!("{detail}; {text}");
        }
        answer
    }
}

fn done(helper: &Helper) -> bool {
    helper.finished() || helper.fault().is_some()
}

fn wait(helpers: &[Helper], until: Instant) {
    let mut fds: Vec<_> = helpers.iter().filter(|h| !done(h)).filter_map(Helper::pipe).map(|p| PollFd::new(p, PollFlags::IN)).collect();
    if fds.is_empty() {
        return;
    }
    let left = until.saturating_duration_since(Instant::now());
    let left = Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(left.subsec_nanos()) };
    let _ = poll(&mut fds, Some(&left));
}
