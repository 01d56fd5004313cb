//! Replays what the real `qm` was recorded to say (`tests/golden`) against the stand-in, each case in a host of its own.
//!
//! No guest is booted; what needs one is listed with its reason in `tests/golden/NOT-STAGED`, and a test holds that list to be
//! complete. Cases over nine seconds run only with `LAB_ALL=1`, but for one. Needs root, QEMU and util-linux.
#![allow(clippy::expect_used, clippy::panic, reason = "a test that can't be set up must say so and stop")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the inner process reports on its output")]

#[path = "golden/case.rs"]
mod case;
#[path = "golden/extra.rs"]
mod extra;
#[path = "golden/host.rs"]
mod host;
#[path = "golden/inside.rs"]
mod inside;
#[path = "golden/skipped.rs"]
mod skipped;
#[path = "golden/stage.rs"]
mod stage;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};

use case::Case;

/// Longer ones are run only on request, but for this one.
const QUICK: f64 = 9.0;
const ALWAYS: &str = "E-sigstop-stop";
/// Staging is at most this long.
const STAGING: Duration = Duration::from_secs(60);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(code) = inside::hidden(args.get(1..).unwrap_or_default()) {
        std::process::exit(code);
    }
    let mut arguments = Arguments::from_args();
    // The cases mostly wait, so two cores carry more than two of them.
    arguments.test_threads.get_or_insert_with(|| std::thread::available_parallelism().map_or(2, usize::from) * 2);
    let all = std::env::var_os("LAB_ALL").is_some();
    let mut trials = vec![Trial::test("golden::every_recording_is_staged_or_listed", every_recording_is_staged_or_listed)];
    let mut slow_ones = BTreeSet::new();
    for (name, text) in recordings() {
        let Some(script) = stage::script(&name, &text) else {
            continue;
        };
        let Some(case) = Case::parse(&name, &text) else {
            continue;
        };
        let slow = case.recorded.wall > QUICK && name != ALWAYS && case.recorded.code != case::HUNG;
        if slow {
            slow_ones.insert(format!("golden::{name}"));
        }
        let limit = STAGING + case.limit();
        let trial = Trial::test(format!("golden::{name}"), move || verdict(host::run(&[inside::CASE, &name, &script, &text], limit)));
        trials.push(trial.with_ignored_flag(slow && !all));
    }
    for (name, slow) in extra::NAMES {
        if slow {
            slow_ones.insert(format!("qm::{name}"));
        }
        let trial = Trial::test(format!("qm::{name}"), move || verdict(host::run(&[inside::EXTRA, name], STAGING)));
        trials.push(trial.with_ignored_flag(slow && !all));
    }
    trials.push(Trial::test("golden::what_is_ignored_is_what_is_listed", move || skipped::are_listed(&slow_ones)));
    libtest_mimic::run(&arguments, trials).exit();
}

fn verdict((fine, text): (bool, String)) -> Result<(), Failed> {
    if fine { Ok(()) } else { Err(Failed::from(text)) }
}

/// The directory of the recordings.
fn directory() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/golden"))
}

fn recordings() -> Vec<(String, String)> {
    let read = |path: &Path| {
        let name = path.file_name()?.to_str()?.strip_suffix(".txt")?.to_owned();
        Some((name, String::from_utf8_lossy(&std::fs::read(path).ok()?).into_owned()))
    };
    let dir = std::fs::read_dir(directory()).expect("the recordings are there");
    let mut all: Vec<_> = dir.flatten().filter_map(|entry| read(&entry.path())).collect();
    all.sort();
    all
}

fn every_recording_is_staged_or_listed() -> Result<(), Failed> {
    let list = std::fs::read_to_string(directory().join("NOT-STAGED"))?;
    let mut listed = BTreeSet::new();
    for line in list.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (name, reason) = line.split_once(' ').ok_or_else(|| format!("no reason: {line}"))?;
        if reason.trim().len() < 10 || !listed.insert(name.to_owned()) {
            return Err(format!("no reason, or listed twice: {line}").into());
        }
    }
    let mut wrong = Vec::new();
    for (name, text) in recordings() {
        let staged = stage::script(&name, &text).is_some() && Case::parse(&name, &text).is_some();
        if staged == listed.remove(&name) {
            wrong.push(format!("{name}: {}", if staged { "staged and listed" } else { "neither staged nor listed" }));
        }
    }
    wrong.extend(listed.into_iter().map(|name| format!("{name}: listed, but there is no such recording")));
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}
