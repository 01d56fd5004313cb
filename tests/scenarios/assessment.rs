//! Every row of the assessment's table, with the fault really caused: the right code, evidence in the bundle that says it, the advice.
//! And no wrong alarm: a VM that is well is never called ill.
//!
//! What a row's code does to the verbs is in `verbs/`; here only the bundle and what can be read from it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking

#[path = "assessment/autopsy.rs"]
mod autopsy;
#[path = "assessment/guest.rs"]
mod guest;
#[path = "assessment/healthy.rs"]
mod healthy;
#[path = "assessment/host.rs"]
mod host;
#[path = "assessment/stalled.rs"]
mod stalled;

use lab::lab::run_scenarios;

fn main() {
    // In this order most of them find the VM as they need it.
    let all = [healthy::SCENARIOS, host::SCENARIOS, stalled::SCENARIOS, autopsy::SCENARIOS, guest::SCENARIOS].concat();
    run_scenarios(&all, lab::installed::prepare)
}
