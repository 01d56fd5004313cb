//! So does the sending end of QMP.
use pve_verb::qmp::{Change, Session};

fn attempt(session: &mut Session<'_>) {
    let _ = session.change(Change::SystemReset, &(), std::time::Duration::ZERO);
}

fn main() {}
