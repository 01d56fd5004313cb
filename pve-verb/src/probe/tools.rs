//! The external tools of the pve and host groups, all at the same time. They are started by the worker, since a sandboxed helper may
//! start nothing, and each can hang by itself: `pvesm` on a dead NFS, `lvs` on a suspended device, `df` on either.

use super::{Answer, Asker, Planned, Set, plan};
use crate::spawn::{ToolOutcome, tool};
use proto::{ProbeOutcome, Vmid};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The most of one tool's output.
const MOST: usize = 4 * 1024 * 1024;

/// From a tool's deadline until its answer is here.
const HAND_OVER: Duration = Duration::from_millis(30);

struct Tool {
    name: &'static str,
    program: &'static str,
    args: &'static [&'static str],
}

const TOOLS: [Tool; 5] = [
    Tool { name: "host/df", program: "/usr/bin/df", args: &["-P", "-k", "-T"] },
    Tool { name: "host/lvs", program: "/usr/sbin/lvs", args: &["--readonly", "-a", "-o", "+data_percent,metadata_percent"] },
    Tool { name: "host/zpool", program: "/usr/sbin/zpool", args: &["status", "-x"] },
    Tool {
        name: "host/journal",
        program: "/usr/bin/journalctl",
        args: &["-b", "-n", "1000", "-o", "short-iso-precise", "--no-pager", "--utc"],
    },
    Tool { name: "pve/storage", program: "/usr/sbin/pvesm", args: &["status"] },
];

/// The tools' part of the plan; it is the same for every VM.
fn planned() -> Vec<Planned> {
    plan(Set::Full, Vmid::DEVVM).into_iter().filter(|p| p.asker == Asker::Tool).collect()
}

/// Runs them all, each within its own deadline, and none beyond `until`. No thread is joined: one that starts a program from a disk that
/// hangs does not come back.
pub fn run_tools(until: Instant) -> Vec<Answer> {
    let left = until.saturating_duration_since(Instant::now());
    let (to, from) = mpsc::channel();
    let mut waited_for = planned();
    for p in planned() {
        let (to, within) = (to.clone(), p.deadline.min(left));
        // One that can't be started gives no answer.
        let _ = std::thread::Builder::new().spawn(move || drop(to.send(run(&p, within))));
    }
    drop(to);
    let mut answers = Vec::new();
    // What ends at the deadline has to hand over what it got.
    let last = until + HAND_OVER;
    while let Ok(answer) = from.recv_timeout(last.saturating_duration_since(Instant::now())) {
        waited_for.retain(|p| p.name != answer.name);
        answers.push(answer);
    }
    answers.extend(waited_for.iter().map(late));
    answers
}

fn late(p: &Planned) -> Answer {
    Answer::without(&p.name, ProbeOutcome::TimedOut, 0, "no answer by the deadline; abandoned")
}

/// The answers where not even that came back.
pub(crate) fn unanswered() -> Vec<Answer> {
    planned().iter().map(late).collect()
}

fn run(p: &Planned, within: Duration) -> Answer {
    let Some(which) = TOOLS.iter().find(|t| t.name == p.name) else {
        return Answer::without(&p.name, ProbeOutcome::Failed, 0, "no tool answers this");
    };
    let since = Instant::now();
    let ended = tool(which.program, which.args, within, MOST);
    let ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    answer(p, which.program, ms, within, ended)
}

fn answer(p: &Planned, program: &str, ms: u64, within: Duration, ended: ToolOutcome) -> Answer {
    match ended {
        ToolOutcome::Finished { status: Some(0), output, cut, .. } => Answer::captured(p, ms, output).noting(cut.then_some("cut at 4 MiB")),
        ToolOutcome::Finished { status, output, errors, .. } => {
            let status = status.map_or_else(|| "a signal".to_owned(), |s| format!("exit status {s}"));
            let said = String::from_utf8_lossy(errors.as_bytes().get(..300).unwrap_or(errors.as_bytes())).trim().to_owned();
            Answer::partial(p, ProbeOutcome::Failed, ms, &format!("{program} ended with {status}: {said}"), output)
        }
        ToolOutcome::TimedOut { output } => {
            let why = format!("{program} did not end within {} ms; abandoned", within.as_millis());
            Answer::partial(p, ProbeOutcome::TimedOut, ms, &why, output)
        }
        ToolOutcome::Unavailable(why) => Answer::without(&p.name, ProbeOutcome::Unavailable, ms, &why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_planned_tool_has_a_command_and_the_reverse() {
        let mut planned: Vec<_> = planned().into_iter().map(|p| p.name).collect();
        let mut commands: Vec<_> = TOOLS.iter().map(|t| t.name.to_owned()).collect();
        planned.sort();
        commands.sort();
        assert_eq!(planned, commands);
    }

    #[test]
    fn what_a_late_or_failing_tool_had_said_is_kept_and_is_no_captured_answer() {
        use crate::probe::Raw;
        let p = planned().into_iter().find(|p| p.name == "host/journal").unwrap();
        let raw = |text: &str| Raw::new(text.as_bytes().to_vec());
        let late = |output| answer(&p, "/bin/x", 7, Duration::from_secs(1), ToolOutcome::TimedOut { output });
        let kept = late(raw("a line\nhalf of"));
        assert_eq!((kept.outcome, kept.ms), (ProbeOutcome::TimedOut, 7));
        assert_eq!(kept.artifact.unwrap().bytes.as_bytes(), b"a line\nhalf of");
        assert_eq!(kept.detail.unwrap(), "/bin/x did not end within 1000 ms; abandoned; what it had written by then is kept, 14 bytes");
        let nothing = late(raw(""));
        assert!(nothing.artifact.is_none() && nothing.detail.unwrap().ends_with("abandoned"));
        let failed = ToolOutcome::Finished { status: Some(1), output: raw("one mount"), errors: raw("stale"), cut: false };
        let failed = answer(&p, "/bin/x", 7, Duration::from_secs(1), failed);
        assert_eq!((failed.outcome, failed.artifact.unwrap().path.as_str()), (ProbeOutcome::Failed, "host/journal.txt"));
        assert!(failed.detail.unwrap().starts_with("/bin/x ended with exit status 1: stale; what it had"));
    }
}
