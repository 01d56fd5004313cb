//! What `status` costs as a whole process: against the least that a recorded answer costs, against a shell script, against `qm`.

use std::process::Command;

use lab::Result;
use lab::error::Context;

use crate::Bench;
use crate::disk;
use crate::measure::{Table, Target, Times, verb, whole};

/// A script that stands beside this program's source.
pub(crate) fn script(name: &str) -> String {
    format!("{}/bench/{name}", env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn tables(bench: &Bench) -> Result<Vec<Table>> {
    bench.lab.fresh()?;
    let folder = disk::folder()?;
    let log = folder.path().join("log");
    let floor = std::env::current_exe().context("find its own program")?.with_file_name("bench-floor");
    let mut ways: [(&str, Command, Times); 5] = [
        ("a minimal QMP client that appends and syncs one log line: the floor", Command::new(floor), Times::default()),
        ("the same with `socat` and a shell script", Command::new(script("socat-status.sh")), Times::default()),
        ("`pve-verb status`", verb("status"), Times::default()),
        ("`pve-verb --version`: the process alone", verb("--version"), Times::default()),
        ("`qm status 102`: the stand-in, as slow as the real one", Command::new("/usr/sbin/qm"), Times::default()),
    ];
    ways[0].1.arg(&log);
    ways[1].1.arg(&log);
    ways[4].1.args(["status", "102"]);
    for round in 0..=bench.rounds(31) {
        for (_, command, times) in &mut ways {
            let took = whole(command)?;
            // The first of each is for what it reads.
            if round > 0 {
                times.push(took);
            }
        }
    }
    let mut table = Table::of_times("whole process, by turns");
    ways.iter().for_each(|(what, _, times)| table.times(what, times));
    let [(.., floor), _, (.., status), _, (.., qm)] = &ways;
    table.target("`status` over the floor", status.over(floor), Target::AtMost(2.0));
    table.target("`status` over `qm status`", status.over(qm), Target::AtMost(0.02));
    Ok(vec![table])
}
