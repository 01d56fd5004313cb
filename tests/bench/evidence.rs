//! For `tests/bench/evidence.sh`: times from the request to preserved evidence. Figures, not a test.
#![allow(clippy::print_stdout, clippy::print_stderr)] // it prints a table, or why there is none

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use lab::error::Context;
use lab::fuse::Hang;
use lab::installed::{GENEROUS, limits, prepare, qm_script};
use lab::{Lab, Result, enter, wedge};
use serde_json::Value;

/// One line of the table.
struct Line {
    what: &'static str,
    bound_ms: u128,
    /// Milliseconds to `preserved`, and to the end of the process.
    runs: Vec<(u128, u128)>,
}

fn main() -> ExitCode {
    if lab::namespace::becomes_qemu() {
        let _never_returns = enter();
        return ExitCode::FAILURE;
    }
    let rounds = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(5);
    match enter().and_then(Lab::new).and_then(|lab| measure(&lab, rounds)) {
        Ok(lines) => {
            table(&lines);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench-evidence: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the verb on the console: milliseconds to its `preserved` event, and to its end.
fn preserved(words: &str) -> Result<(u128, u128)> {
    let began = Instant::now();
    let mut command = Command::new("/usr/sbin/pve-verb");
    command.args(words.split(' ')).current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().context("start pve-verb")?;
    let mut at = None;
    for line in BufReader::new(child.stdout.take().ok_or_else(no_output)?).lines().map_while(std::result::Result::ok) {
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        if event["event"] == "preserved" {
            at.get_or_insert(began.elapsed().as_millis());
        }
    }
    child.wait().context("wait for pve-verb")?;
    Ok((at.ok_or_else(no_output)?, began.elapsed().as_millis()))
}

fn no_output() -> lab::Error {
    lab::Error::new("The verb preserved nothing", "Run it by hand in `lab exec`")
}

fn times(what: &'static str, bound_ms: u128, rounds: u32, mut one: impl FnMut() -> Result<(u128, u128)>) -> Result<Line> {
    eprintln!("{what} …");
    Ok(Line { what, bound_ms, runs: (0..rounds).map(|_| one()).collect::<Result<_>>()? })
}

fn measure(lab: &Lab, rounds: u32) -> Result<Vec<Line>> {
    prepare(lab)?;
    let vm = lab.fresh()?;
    let mut lines = vec![times("healthy", 2_000, rounds, || preserved("forensics --json"))?];

    let stopped = wedge::qemu_stopped(vm)?;
    lines.push(times("QMP dead (SIGSTOP)", 4_500, rounds, || preserved("forensics --json"))?);
    stopped.now();

    lines.push(times("everything dead", 8_000, rounds, || {
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
    })?);

    for (what, autopsy) in [("stalled, before a cycle, no autopsy", "never"), ("stalled, before a cycle, autopsy", "always")] {
        limits(&format!("{GENEROUS}[evidence]\nautopsy = \"{autopsy}\"\n"))?;
        lines.push(times(what, if autopsy == "never" { 2_000 } else { 3_000 }, rounds, || {
            let vm = lab.fresh()?;
            wedge::block_stall(vm)?.forget();
            let took = preserved("cycle --json");
            vm.wait_for_ssh(lab::vm::BOOT)?;
            took
        })?);
    }
    Ok(lines)
}

fn table(lines: &[Line]) {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("\nload average (1, 5, 15 min): {}\n", load.split(' ').take(3).collect::<Vec<_>>().join(" "));
    println!("{:<38} {:>8} {:>8} {:>8} {:>8} {:>10}", "ms to preserved evidence", "bound", "least", "median", "most", "whole, med");
    let median = |mut all: Vec<u128>| {
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or_default()
    };
    let mut stalled = Vec::new();
    for line in lines {
        let at: Vec<u128> = line.runs.iter().map(|(at, _)| *at).collect();
        let whole = median(line.runs.iter().map(|(_, whole)| *whole).collect());
        let (least, most) = (at.iter().min().copied().unwrap_or_default(), at.iter().max().copied().unwrap_or_default());
        println!("{:<38} {:>8} {least:>8} {:>8} {most:>8} {whole:>10}", line.what, line.bound_ms, median(at.clone()));
        if line.what.starts_with("stalled") {
            stalled.push(median(at));
        }
    }
    if let [without, with] = stalled[..] {
        println!("{:<38} {:>8} {:>8} {:>8}", "the autopsy adds", 1_000, "", with.saturating_sub(without));
    }
}
