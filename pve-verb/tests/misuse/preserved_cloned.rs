//! A copy of the proof would be a second mutation.
use pve_verb::bundle::Preserved;

fn attempt(preserved: &Preserved) -> Preserved {
    preserved.clone()
}

fn main() {}
