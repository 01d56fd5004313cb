//! One request, one end.
use pve_verb::audit::Record;

fn attempt(record: Record) {
    record.hand_over();
    record.hand_over();
}

fn main() {}
