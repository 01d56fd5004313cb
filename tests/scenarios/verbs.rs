//! Each verb does what its name says, and a refusal sends nothing: through the lab's sshd, with the binary as shipped, seen from outside.
//!
//! The VM is looked at through `/proc`, its scope, the lab's own monitor and a login in the guest. What a receipt says is compared
//! with that, never taken for it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking

#[path = "verbs/acts.rs"]
mod acts;
#[path = "verbs/grants.rs"]
mod grants;
#[path = "verbs/refused.rs"]
mod refused;
#[path = "verbs/stands_in_the_way.rs"]
mod stands_in_the_way;
#[path = "verbs/storage.rs"]
mod storage;

use lab::lab::run_scenarios;

fn main() {
    let all = [acts::SCENARIOS, refused::SCENARIOS, grants::SCENARIOS, stands_in_the_way::SCENARIOS, storage::SCENARIOS].concat();
    run_scenarios(&all, lab::installed::prepare)
}
