//! Parsed is not authorised.
use pve_verb::{door::Parsed, lock, run::Run};

fn attempt(run: &mut Run, parsed: Parsed) {
    let _ = lock::acquire(run, parsed);
}

fn main() {}
