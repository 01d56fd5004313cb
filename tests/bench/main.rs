//! `tests/bench/run`'s program: measures one part after the other on the lab, side by side in one run, and prints the tables.
//!
//! Figures, not a test: it fails where something could not be measured, never because something was slow. What is compared runs by turns, so
//! that a busy machine is as busy for the one as for the other. What `pve-verb` keeps is on the machine's real disk, not in the lab's memory.
#![allow(clippy::print_stdout, clippy::print_stderr)] // it prints tables, or why there are none

#[path = "../scenarios/agent/desk.rs"]
#[allow(dead_code, clippy::unwrap_used)] // the scenarios' own way to set the agent up
mod desk;
mod disk;
mod evidence;
mod growth;
#[path = "../scenarios/agent/keyholder.rs"]
#[allow(clippy::unwrap_used)]
mod keyholder;
mod log;
mod many;
mod measure;
mod memory;
mod recovery;
mod status;
mod warm;

use std::process::ExitCode;

use lab::{Lab, Result, enter};
use measure::Table;

/// What a part is measured with.
#[derive(Debug)]
pub(crate) struct Bench {
    /// The host and its VM.
    pub(crate) lab: Lab,
    /// Whether it only has to run: one round of each, small sizes.
    pub(crate) once: bool,
}

impl Bench {
    /// So many rounds, or one.
    pub(crate) const fn rounds(&self, many: usize) -> usize {
        if self.once { 1 } else { many }
    }
}

type Part = (&'static str, fn(&Bench) -> Result<Vec<Table>>);

const PARTS: [Part; 8] = [
    ("status", status::tables),
    ("evidence", evidence::tables),
    ("recovery", recovery::tables),
    ("warm", warm::tables),
    ("many", many::tables),
    ("log", log::tables),
    ("memory", memory::tables),
    ("growth", growth::tables),
];

fn main() -> ExitCode {
    if lab::namespace::becomes_qemu() {
        let _never_returns = enter();
        return ExitCode::FAILURE;
    }
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let once = words.iter().any(|word| word == "--once");
    words.retain(|word| word != "--once");
    if let Some(unknown) = words.iter().find(|word| PARTS.iter().all(|(name, _)| name != word)) {
        let names: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
        eprintln!("bench: there is no part `{unknown}`. Name some of: {}.", names.join(", "));
        return ExitCode::from(2);
    }
    match enter().and_then(Lab::new).and_then(|lab| run(&Bench { lab, once }, &words)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(bench: &Bench, wanted: &[String]) -> Result<()> {
    println!("{}", measure::machine());
    let _real = disk::real()?;
    lab::installed::prepare(&bench.lab)?;
    for (name, tables) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            eprintln!("{name} …");
            let before = measure::load();
            let all = tables(bench)?;
            println!("\n## {name}\n\nLoad average (1, 5, 15 min): {before} before, {} after.", measure::load());
            all.iter().for_each(|table| println!("{table}"));
        }
    }
    bench.lab.vm.kill()
}
