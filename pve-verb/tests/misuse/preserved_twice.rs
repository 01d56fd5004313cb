//! One bundle, one mutation: the proof is spent.
use pve_verb::{bundle::Preserved, mutate, run::Run};

fn attempt(run: &mut Run, preserved: Preserved) {
    let _ = mutate::apply(run, preserved);
    let _ = mutate::apply(run, preserved);
}

fn main() {}
