//! What may be said is not yet what may be done: the lock is between.
use pve_verb::{capture, policy::Authorised, run::Run};

fn attempt(run: &mut Run, authorised: Authorised) {
    let _ = capture::capture(run, authorised);
}

fn main() {}
