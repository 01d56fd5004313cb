//! So does the kill.
use pve_verb::{capture::Unresponsive, kill};

fn attempt(proved: &Unresponsive) {
    let _ = kill::kill(proved, proto::Vmid::DEVVM, &(), |_| true);
}

fn main() {}
