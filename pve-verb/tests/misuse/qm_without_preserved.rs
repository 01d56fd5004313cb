//! The door to `qm` asks for the proof.
use pve_verb::{capture::Captured, qm};

fn attempt(captured: &Captured) {
    let _ = qm::call(qm::Call::Stop, proto::Vmid::DEVVM, std::path::Path::new("/usr/sbin/qm"), std::time::Duration::ZERO, captured);
}

fn main() {}
