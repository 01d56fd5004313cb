//! A newer and an older agent, played to the real host: what 0.1.0's agent says is done and answered with all that it was answered then; an
//! option that only a later one has is refused, signed, with nothing sent to the VM.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking

use lab::installed::{Stamp, Told, agent, prepare};
use lab::lab::{Scenario, run_scenarios};
use lab::{Lab, Result};
use serde_json::{Map, Value};

const SCENARIOS: &[Scenario] = &[
    ("when_an_agent_of_0_1_0_asks_then_it_is_answered_with_all_that_it_knows", older),
    ("when_a_newer_agent_asks_with_an_option_of_its_own_then_it_is_refused_and_nothing_is_touched", newer),
];

/// What 0.1.0's agent says, and what a host of 0.1.0 answered.
const REQUESTS: &str = include_str!("../../agent/tests/requests/0.1.0.txt");
const CYCLE: &str = include_str!("../../agent/tests/answers/cycle.ndjson");

fn main() {
    run_scenarios(SCENARIOS, prepare)
}

/// The members of each kind of event, the receipt's body among them.
fn members(lines: impl Iterator<Item = Value>) -> Map<String, Value> {
    let mut all = Map::new();
    for line in lines {
        let event = line["event"].as_str().unwrap().to_owned();
        if let Some(body) = line["body"].as_str() {
            all.insert("body".to_owned(), lab::client::decoded(body).unwrap());
        }
        all.entry(event).or_insert(line);
    }
    all
}

fn older(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    let ssh = agent(lab)?;
    // Its cycle, to its end; under another id, since this host's log is another.
    let line = REQUESTS.lines().find(|line| line.starts_with("cycle") && line.contains("--reason=")).unwrap();
    let told = Told::read(ssh.call(line)?)?.done();
    let now = members(told.answer.events().into_iter());
    let then = members(CYCLE.lines().map(|line| serde_json::from_str(line).unwrap()));
    for (event, line) in &then {
        for member in line.as_object().unwrap().keys() {
            assert!(now[event].as_object().unwrap().contains_key(member), "{event} has no {member} any more");
        }
        assert_eq!(now[event]["v"], line["v"], "{event}");
    }
    Ok(())
}

fn newer(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let ssh = agent(lab)?;
    let before = Stamp::of(vm);
    let id = lab::station::fresh_id()?;
    for option in ["--protocol=2", "--compress", "--vmid=103"] {
        let told = Told::read(ssh.call(format!("cycle --json --request-id={id} {option}"))?)?;
        assert_eq!((told.answer.status, &told.body["outcome"], &told.body["v"]), (2, &"refused-request".into(), &1.into()), "{option}");
        assert!(told.message().contains("status, forensics, reset, stop, start, cycle"), "{}", told.message());
        assert!(told.answer.receipt().unwrap()["sig"].is_string(), "{option}: it is signed");
    }
    before.untouched(vm, "an option of a later version");
    // Nothing of it is remembered: without the option the same id is a request like any other.
    let told = Told::read(ssh.call(format!("cycle --json --dry-run --request-id={id}"))?)?.done();
    assert_eq!(told.body["dry_run"], true);
    Ok(())
}
