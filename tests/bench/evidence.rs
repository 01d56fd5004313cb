//! The time until evidence is safe on disk: `pve-verb`'s, whose `preserved` event says so, against an admin's script that runs the usual
//! commands one after the other. Then where it takes longest: QEMU dead, everything dead, and what the autopsy adds.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::error::{Context, Error};
use lab::fuse::Hang;
use lab::installed::{EVIDENCE, GENEROUS, limits, qm_script};
use lab::{Lab, Result, wedge};
use serde_json::Value;

use crate::Bench;
use crate::disk;
use crate::measure::{Table, Target, Times, ms, verb, whole};
use crate::status::script;

/// From a request to its `preserved` event, to its end, and how many artifacts its bundle has.
struct Preserved {
    at: Duration,
    end: Duration,
    artifacts: usize,
}

/// Runs the verb on the console.
pub(crate) fn preserved(words: &str) -> Result<(Duration, Duration)> {
    run(words).map(|run| (run.at, run.end))
}

fn run(words: &str) -> Result<Preserved> {
    let nothing = || Error::new(format!("`{words}` preserved nothing"), "Run it by hand in `lab exec`");
    let began = Instant::now();
    let mut command = verb(words);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().context("start pve-verb")?;
    let mut preserved = None;
    for line in BufReader::new(child.stdout.take().ok_or_else(nothing)?).lines().map_while(std::result::Result::ok) {
        // Read at once, parsed only where it is the one.
        let at = began.elapsed();
        if preserved.is_none() && line.contains("\"preserved\"") {
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            preserved = (event["event"] == "preserved").then(|| (at, event["bundle"].as_str().unwrap_or_default().to_owned()));
        }
    }
    child.wait().context("wait for pve-verb")?;
    let end = began.elapsed();
    let (at, bundle) = preserved.ok_or_else(nothing)?;
    let manifest = fs::read(format!("{EVIDENCE}/{bundle}/manifest.json")).unwrap_or_default();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap_or_default();
    Ok(Preserved { at, end, artifacts: manifest["subject"].as_array().map_or(0, Vec::len) })
}

/// Runs the admin's script; the time until it has synced, and its files that have something in them.
fn by_hand(folder: &Path) -> Result<(Duration, usize)> {
    let _from_before = fs::remove_dir_all(folder);
    let took = whole(Command::new(script("evidence-by-hand.sh")).arg(folder))?;
    let files = fs::read_dir(folder).context("read the script's folder")?.flatten();
    Ok((took, files.filter(|file| file.metadata().is_ok_and(|meta| meta.len() > 0)).count()))
}

pub(crate) fn tables(bench: &Bench) -> Result<Vec<Table>> {
    let mut all = vec![against_the_script(bench)?];
    if !bench.once {
        all.push(where_it_takes_longest(&bench.lab, 3)?);
    }
    Ok(all)
}

fn against_the_script(bench: &Bench) -> Result<Table> {
    let folder = disk::folder()?;
    let mut table = Table::new(&["until it is on disk, by turns", "runs", "least", "median", "most", "artifacts"]);
    let vm = bench.lab.fresh()?;
    let mut stalled = None;
    for what in ["healthy", "block-stalled"] {
        if what == "block-stalled" {
            if bench.once {
                break;
            }
            stalled = Some(wedge::block_stall(vm)?);
        }
        let (mut ours, mut theirs) = (Times::default(), Times::default());
        let (mut artifacts, mut files) = (usize::MAX, 0);
        for _ in 0..bench.rounds(5) {
            let run = run("forensics --json")?;
            ours.push(run.at);
            artifacts = artifacts.min(run.artifacts);
            let (took, kept) = by_hand(&folder.path().join("by-hand"))?;
            theirs.push(took);
            files = files.max(kept);
        }
        for (who, times, count) in [("`pve-verb forensics`", &ours, artifacts), ("the script", &theirs, files)] {
            let [least, median, most] = [0.0, 0.5, 1.0].map(|part| ms(times.quantile(part)));
            table.row(&[format!("{what}: {who}"), bench.rounds(5).to_string(), least, median, most, count.to_string()]);
        }
        table.target(&format!("{what}: time over the script's"), ours.over(&theirs), Target::AtMost(1.0 / 3.0));
        #[allow(clippy::cast_precision_loss)] // dozens
        let more = artifacts as f64 / files as f64;
        table.target(&format!("{what}: artifacts over the script's"), more, Target::AtLeast(3.0));
    }
    drop(stalled);
    Ok(table)
}

fn where_it_takes_longest(lab: &Lab, rounds: usize) -> Result<Table> {
    let mut table = Table::new(&["until it is preserved", "bound", "least", "median", "most", "whole, median"]);
    let mut add = |what: &str, bound: &str, one: &mut dyn FnMut() -> Result<(Duration, Duration)>| -> Result<f64> {
        let (mut at, mut whole) = (Times::default(), Times::default());
        for _ in 0..rounds {
            let (preserved, end) = one()?;
            at.push(preserved);
            whole.push(end);
        }
        let [least, median, most] = [0.0, 0.5, 1.0].map(|part| ms(at.quantile(part)));
        table.row(&[what.to_owned(), bound.to_owned(), least, median, most, ms(whole.median())]);
        Ok(at.median())
    };
    let vm = lab.fresh()?;
    let stopped = wedge::qemu_stopped(vm)?;
    add("QEMU answers nothing (SIGSTOP)", "4.5 s", &mut || preserved("forensics --json"))?;
    stopped.now();

    add("everything dead: QEMU, `qm`, `/etc/pve`, the disks", "8 s", &mut || {
        let vm = lab.fresh()?;
        let script = qm_script(lab, "sleep 600")?;
        let stopped = wedge::qemu_stopped(vm)?;
        let pve = wedge::etc_pve_hung(Hang::Uninterruptible)?;
        let disks = ["/var/lib/pve-verb", "/var/log/pve-verb"].map(wedge::disk_hung);
        let took = preserved("forensics --json");
        drop(disks);
        drop(pve);
        stopped.now();
        drop(script);
        took
    })?;

    let mut medians = Vec::new();
    for (what, bound, autopsy) in
        [("block-stalled, before a cycle, no autopsy", "2 s", "never"), ("the same with an autopsy", "3 s", "always")]
    {
        limits(&format!("{GENEROUS}[evidence]\nautopsy = \"{autopsy}\"\n"))?;
        medians.push(add(what, bound, &mut || {
            let vm = lab.fresh()?;
            wedge::block_stall(vm)?.forget();
            let took = preserved("cycle --json");
            vm.wait_for_ssh(lab::vm::BOOT)?;
            took
        })?);
    }
    limits(GENEROUS)?;
    if let [without, with] = medians[..] {
        table.note(format!("The autopsy adds {} (bound: 1 s).", ms((with - without).max(0.0))));
    }
    Ok(table)
}
