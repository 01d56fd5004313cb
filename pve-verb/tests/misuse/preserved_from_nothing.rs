//! Nobody but `bundle::preserve` makes the proof.
use pve_verb::{bundle::Preserved, capture::Seen, lock::Locked};

fn attempt(locked: Locked, seen: Seen, name: proto::BundleName) -> Preserved {
    Preserved { locked, seen, name }
}

fn main() {}
