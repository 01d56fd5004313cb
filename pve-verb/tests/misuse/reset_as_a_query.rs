//! What a probe can send is a closed list of questions.
use pve_verb::qmp::{Change, Session};

fn attempt(session: &mut Session<'_>) {
    let _ = session.ask(&Change::SystemReset, std::time::Duration::ZERO);
}

fn main() {}
