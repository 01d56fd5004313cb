//! Evidence in memory is not evidence: what is captured is not yet preserved.
use pve_verb::{capture::Captured, mutate, run::Run};

fn attempt(run: &mut Run, captured: Captured) {
    let _ = mutate::apply(run, captured);
}

fn main() {}
