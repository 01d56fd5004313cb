//! The promise, checked exhaustively: every order of crashes, power cuts, disks that hang, deadlines and callers within a bound, decided by
//! the functions that ship (`pve_verb::promise`). docs/adr/0035 says what the model leaves out.
//!
//! With MODEL_FURTHER=1 it goes further, for minutes: more callers, more faults together.

#[path = "model/promise.rs"]
mod promise;
#[path = "model/rules.rs"]
mod rules;
#[path = "model/world.rs"]
mod world;

use std::io::Write;
use std::time::Instant;

use promise::Promise;
use pve_verb::promise::{Due, Ended, Event, Rest, Sight, Stage, Turn, turn};
use rules::Rules;
use stateright::{Checker, Model};
use world::Left;

fn check(rules: Rules, left: Left) -> impl Checker<Promise> {
    let (began, bound) = (Instant::now(), format!("{left:?}"));
    let checker = Promise { rules, left }.checker().threads(2).spawn_bfs().join();
    // Past the test harness, which would keep it: the counts belong into what a run says.
    let _nobody_reads = writeln!(
        std::io::stderr(),
        "{bound}: {} states, {} of them different, {} steps deep, {:.1} s",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f64()
    );
    checker
}

const fn left(asks: u8, kills: u8, cuts: u8, disk: u8, tmpfs: u8) -> Left {
    Left { asks, kills, cuts, disk, tmpfs }
}

#[test]
fn the_shipped_rules_keep_the_promise_whatever_happens() {
    let mut bounds = vec![left(3, 1, 0, 0, 0), left(2, 1, 1, 0, 0), left(2, 0, 1, 1, 0), left(2, 1, 0, 1, 0), left(2, 0, 0, 1, 1)];
    if std::env::var_os("MODEL_FURTHER").is_some() {
        bounds = vec![left(3, 2, 1, 0, 0), left(2, 1, 1, 1, 1), left(2, 2, 1, 2, 0), left(3, 1, 0, 1, 1), left(3, 1, 1, 1, 0)];
    }
    for bound in bounds {
        check(Rules::shipped(), bound).assert_properties();
    }
}

/// What the checker says of these rules: the property that they break.
fn broken(rules: Rules, left: Left) -> Vec<&'static str> {
    let checker = check(rules, left);
    let always = checker.model().properties().into_iter().filter(|property| property.expectation == stateright::Expectation::Always);
    always.map(|property| property.name).filter(|name| checker.discovery(name).is_some()).collect()
}

#[test]
fn a_mutation_that_may_leave_out_its_evidence_is_found() {
    fn after(stage: Stage, event: Event) -> Option<Stage> {
        match (stage, event) {
            (Stage::Captured, Event::Intended) => Some(Stage::Intended),
            _ => stage.after(event),
        }
    }
    assert_eq!(broken(Rules { after, ..Rules::shipped() }, left(1, 0, 0, 0, 0)), ["no mutation without preserved evidence"]);
}

#[test]
fn a_mutation_that_may_act_before_its_intent_is_found() {
    fn after(stage: Stage, event: Event) -> Option<Stage> {
        match (stage, event) {
            (Stage::Preserved, Event::Acts) => Some(Stage::Acting),
            _ => stage.after(event),
        }
    }
    assert_eq!(broken(Rules { after, ..Rules::shipped() }, left(1, 0, 0, 0, 0)), ["no mutation without an intent"]);
}

#[test]
fn a_lock_that_is_taken_from_one_that_lives_is_found() {
    fn taken(sight: Sight, taken_over: usize, looks: u32) -> Turn {
        match sight {
            Sight::Lives => Turn::Take,
            sight => turn(sight, taken_over, looks),
        }
    }
    assert!(broken(Rules { turn: taken, ..Rules::shipped() }, left(2, 0, 0, 0, 0)).contains(&"never two mutations at once"));
}

#[test]
fn a_lock_that_is_let_go_before_the_end_is_stored_is_found() {
    fn after(stage: Stage, event: Event) -> Option<Stage> {
        match (stage, event) {
            (Stage::Closed(Ended::Begun), Event::Released) => Some(Stage::Released),
            _ => stage.after(event),
        }
    }
    assert!(broken(Rules { after, ..Rules::shipped() }, left(2, 0, 0, 0, 0)).contains(&"nobody is called killed who runs"));
}

#[test]
fn a_killed_one_that_is_stored_but_not_told_is_found() {
    fn due(rest: Rest) -> Option<Due> {
        match rest {
            Rest { stored: true, .. } => rest.stands.then_some(Due::Clear),
            rest => rest.due(),
        }
    }
    assert_eq!(broken(Rules { due, ..Rules::shipped() }, left(2, 1, 0, 0, 0)), ["what was begun is observed, or told by the next"]);
}
