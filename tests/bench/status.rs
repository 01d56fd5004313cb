//! What `status` costs as a whole process: against the least that a recorded answer costs, against a shell script, against `qm`.

use std::path::Path;
use std::process::Command;

use lab::error::Context;
use lab::{Result, wedge};

use crate::Bench;
use crate::disk;
use crate::measure::{Table, Target, Times, verb, whole};

/// A script that stands beside this program's source.
pub(crate) fn script(name: &str) -> String {
    format!("{}/bench/{name}", env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn tables(bench: &Bench) -> Result<Vec<Table>> {
    let vm = bench.lab.fresh()?;
    let mut table = Table::of_times("whole process, by turns");
    let folder = disk::folder()?;
    by_turns(bench, &folder.path().join("log"), &mut table, "")?;
    // The guest's agent looks for a host ten times a second: what is left without it is ours.
    let killed = wedge::agent_killed(vm)?;
    by_turns(bench, &folder.path().join("log"), &mut table, "no guest agent: ")?;
    killed.now();
    Ok(vec![table])
}

fn by_turns(bench: &Bench, log: &Path, table: &mut Table, when: &str) -> Result<()> {
    let floor = std::env::current_exe().context("find its own program")?.with_file_name("bench-floor");
    let mut ways: [(&str, Command, Times); 5] = [
        ("a minimal QMP client that appends and syncs one log line: the floor", Command::new(floor), Times::new()),
        ("the same with `socat` and a shell script", Command::new(script("socat-status.sh")), Times::new()),
        ("`pve-verb status`", verb("status"), Times::new()),
        ("`pve-verb --version`: the process alone", verb("--version"), Times::new()),
        ("`qm status 102`: the stand-in, as slow as the real one", Command::new("/usr/sbin/qm"), Times::new()),
    ];
    ways[0].1.arg(log);
    ways[1].1.arg(log);
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
    ways.iter().for_each(|(what, _, times)| table.times(&format!("{when}{what}"), times));
    let [(.., floor), _, (.., status), _, (.., qm)] = &ways;
    table.target(&format!("{when}`status` over the floor"), status.over(floor), Target::AtMost(2.0));
    table.target(&format!("{when}`status` over `qm status`"), status.over(qm), Target::AtMost(0.02));
    Ok(())
}
