//! The worker itself dies: SIGKILL at each stage of a `cycle`, and at the edges of its end. QEMU is real and boots no guest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking

use std::cell::Cell;
use std::fs;
use std::process::Command;
use std::time::Duration;

use lab::chain::Chain;
use lab::lab::{Scenario, run_scenarios};
use lab::process::{start, until};
use lab::station::{self, OPERATIONS, Traces, anna, bare_vm, body, console, fresh_id, processes, told};
use lab::vm::{send, stop};
use lab::worker::{self, Moment, reaches};
use lab::{Answer, Error, Lab, Observed, Result, Vm};
use rustix::process::Signal;
use serde_json::{Value, json};

const SCENARIOS: &[Scenario] = &[
    ("when_the_worker_is_killed_before_its_intent_then_nothing_was_begun", before_intent),
    ("when_the_worker_is_killed_while_qm_stop_runs_then_its_id_says_interrupted_and_the_next_cycle_works", in_stop),
    ("when_the_worker_is_killed_between_stop_and_start_then_its_id_says_interrupted_and_the_next_cycle_works", between),
    ("when_the_worker_is_killed_while_qm_start_runs_then_its_id_says_interrupted_and_the_next_cycle_works", in_start),
    ("when_the_worker_is_killed_while_it_observes_then_its_id_says_interrupted_and_the_next_cycle_works", in_observe),
    ("when_the_worker_is_killed_before_operation_json_stands_then_the_log_knows_also_after_a_boot", only_the_log_knows),
    ("when_whoever_tells_of_a_killed_worker_is_killed_itself_then_it_is_recorded_once", told_by_the_killed),
    ("when_the_host_comes_up_after_a_killed_worker_then_recover_records_it", recovered),
    ("when_the_worker_is_killed_after_its_end_is_stored_then_its_id_is_replayed_not_interrupted", after_its_end),
    ("when_a_cycle_is_about_to_record_its_end_then_another_one_does_not_take_it_for_killed", about_to_end),
    ("when_the_spool_loses_the_receipt_then_the_caller_still_gets_it", spool_loses),
];

const AMPLE: Duration = Duration::from_secs(60);

fn main() {
    run_scenarios(SCENARIOS, station::install)
}

fn state(vm: &Vm) -> Value {
    match vm.observe() {
        Observed::Stopped => json!("stopped"),
        Observed::State(state) => json!(state),
        Observed::Unresponsive => json!("unresponsive"),
    }
}

fn operations() -> Vec<Value> {
    OPERATIONS.iter().filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok()).collect()
}

/// A `cycle` whose worker is killed at this moment: its id, and what its caller was told.
fn killed_at(lab: &Lab, moment: Moment) -> Result<(String, Answer)> {
    killed(lab, moment, || bare_vm(lab).map(drop))
}

/// The same, with the VM and `qm` as `ready` makes them. Who is to kill may be off the processor while the moment passes, and the disk be
/// late with operation.json: then it is done again.
fn killed(lab: &Lab, moment: Moment, ready: impl Fn() -> Result<()>) -> Result<(String, Answer)> {
    // Behind it comes the intent, or nothing any more.
    let begun = matches!(moment, Moment::Step(..));
    let too_late = Moment::Told(if begun { "receipt" } else { "preserved" });
    for _ in 0..5 {
        ready()?;
        let id = fresh_id()?;
        let caller = anna(lab)?.spawn(format!("cycle --json --request-id={id}"))?;
        reaches(&id, moment, AMPLE)?;
        let hit = worker::kill();
        let answer = caller.finish(AMPLE)?.into();
        station::quiet(AMPLE)?;
        if worker::passed(&id, too_late) || begun && (operations().len() != OPERATIONS.len() || Traces::of(&id)?.outcomes > 0) {
            continue;
        }
        hit?;
        return Ok((id, answer));
    }
    Err(Error::new(format!("{moment:?} was missed, or operation.json was not on disk, five times"), "Look at the spools"))
}

fn before_intent(lab: &Lab) -> Result<()> {
    for moment in [Moment::Told("accepted"), Moment::Told("probe")] {
        let before = Cell::new(None);
        let (id, answer) = killed(lab, moment, || bare_vm(lab).map(|vm| before.set(vm.pid())))?;
        assert_eq!((answer.status, &body(&answer)?["interrupted"]), (11, &json!(true)));
        let left = Traces::of(&id)?;
        assert_eq!((left.intents, left.outcomes, operations().len()), (0, 0, 0), "{left:?}");
        assert_eq!(lab.vm.pid(), before.get(), "the VM was touched");
        // Nothing was begun: nothing to be told by others.
        let (end, told) = worker::status()?;
        assert_eq!((end.status, &told["state_after"]), (0, &json!("running")));
        assert_ne!(told["assessment"], "interrupted");
    }
    let answer = anna(lab)?.call("cycle")?;
    assert_eq!(answer.status, 0, "{}", answer.text());
    Ok(())
}

fn in_stop(lab: &Lab) -> Result<()> {
    interrupted(lab, Moment::Step("qm-stop", "started"))
}

fn between(lab: &Lab) -> Result<()> {
    interrupted(lab, Moment::Step("qm-stop", "done"))
}

/// `qm start` goes on without its worker: the VM that came back is not to lose its power once more.
fn in_start(lab: &Lab) -> Result<()> {
    let (id, answer) = killed_at(lab, Moment::Step("qm-start", "started"))?;
    until("qm start brings the VM up without its worker", AMPLE, || (lab.vm.observe() == Observed::State("running".into())).then_some(()))?;
    let again = anna(lab)?.call(format!("cycle --json --request-id={id}"))?;
    for message in [body(&again)?, worker::status()?.1].map(|told| told["message"].clone()) {
        assert_eq!(message["do"], "The VM runs again, as was wanted: nothing is left to do.", "{message}");
        assert!(message["what"].as_str().unwrap().contains("at its step qm-start"), "{message}");
    }
    told_as_interrupted(lab, (id, answer))
}

/// As long as the VM does not run, although `qm start` said so, there is something to wait for.
fn in_observe(lab: &Lab) -> Result<()> {
    let _honest_again = Honest;
    let ready = || bare_vm(lab).and_then(|_| station::lies("start success-without-acting"));
    told_as_interrupted(lab, killed(lab, Moment::Step("observe", "started"), ready)?)
}

struct Honest;

impl Drop for Honest {
    fn drop(&mut self) {
        station::honest();
    }
}

fn interrupted(lab: &Lab, moment: Moment) -> Result<()> {
    told_as_interrupted(lab, killed_at(lab, moment)?)
}

fn told_as_interrupted(lab: &Lab, (id, answer): (String, Answer)) -> Result<()> {
    station::honest();
    let ssh = anna(lab)?;
    let first = body(&answer)?;
    assert_eq!((answer.status, &first["interrupted"], &first["outcome"]), (11, &json!(true), &json!("unknown")));
    assert!(operations().iter().all(|o| o["request_id"] == *id) && operations().len() == 2, "{:?}", operations());
    let (end, told) = worker::status()?;
    assert_eq!((end.status, &told["assessment"], &told["state_after"]), (0, &json!("interrupted"), &state(&lab.vm)), "{told}");
    for _ in 0..2 {
        let again = ssh.call(format!("cycle --json --request-id={id}"))?;
        let told = body(&again)?;
        assert_eq!((again.status, &told["interrupted"]), (11, &json!(true)));
        assert_eq!(told["state_after"], state(&lab.vm), "the state is the one that is seen now");
        assert_eq!(Some(told["bundle"].as_str().unwrap_or_default()), station::bundles(&id).first().map(String::as_str));
    }
    let (pid, ticks) = (lab.vm.pid(), lab.vm.start_ticks());
    let next = ssh.call("cycle --json")?;
    assert_eq!(next.status, 0, "{}", next.text());
    assert!(body(&next)?["degraded"].to_string().contains(&id), "the next call says so");
    assert_ne!((lab.vm.pid(), lab.vm.start_ticks()), (pid, ticks));
    told_once_and_for_all(lab, &id)
}

/// One `interrupted` record; operation.json is gone; the id answers as before and never runs again.
fn told_once_and_for_all(lab: &Lab, id: &str) -> Result<()> {
    let chain = Chain::read()?;
    let records: Vec<_> = chain.kind("interrupted").into_iter().filter(|r| r["operation"]["request_id"] == *id).collect();
    assert_eq!(records.len(), 1);
    assert_eq!(operations().len(), 0);
    let before = lab.vm.pid();
    let again = anna(lab)?.call(format!("cycle --json --request-id={id}"))?;
    assert_eq!((again.status, &body(&again)?["interrupted"]), (11, &json!(true)));
    let left = Traces::of(id)?;
    assert_eq!((left.intents, left.outcomes, left.bundles.len(), lab.vm.pid()), (1, 0, 1, before), "{left:?}");
    Ok(())
}

fn recovered(lab: &Lab) -> Result<()> {
    let (id, _) = killed_at(lab, Moment::Step("qm-stop", "done"))?;
    // As after a boot: what was in /run is gone, but for what a boot makes.
    for name in ["spool", "operation.json", "mutation.lock"] {
        let path = format!("/run/pve-verb/{name}");
        let _absent = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
    }
    let end = console("recover", AMPLE)?;
    assert!(end.status == 0 && end.text().contains(&id), "{end:?}");
    told_once_and_for_all(lab, &id)
}

/// As if the worker had been killed right behind its intent.
fn only_the_log_knows(lab: &Lab) -> Result<()> {
    for (boots, by_recover) in [(false, false), (true, false), (true, true)] {
        let (id, _) = killed_at(lab, Moment::Step("qm-stop", "started"))?;
        OPERATIONS.iter().for_each(|path| fs::remove_file(path).unwrap());
        if boots {
            for entry in fs::read_dir("/run/pve-verb").unwrap().flatten() {
                let _a_file_or_a_folder = fs::remove_file(entry.path()).or_else(|_| fs::remove_dir_all(entry.path()));
            }
        } else {
            let (_, told) = worker::status()?;
            assert_eq!(told["assessment"], "interrupted");
        }
        let told = if by_recover {
            console("recover", AMPLE)?
        } else {
            for option in ["--attach ", ""] {
                let again = anna(lab)?.call(format!("cycle --json {option}--request-id={id}"))?;
                assert_eq!((again.status, &body(&again)?["interrupted"]), (11, &json!(true)), "{option}: {}", again.text());
            }
            anna(lab)?.call("cycle")?
        };
        assert!(told.status == 0 && told.text().contains(&id), "{}", told.text());
        told_once_and_for_all(lab, &id)?;
    }
    Ok(())
}

/// As if that one had been killed after it recorded it, and before anything else.
fn told_by_the_killed(lab: &Lab) -> Result<()> {
    let (id, _) = killed_at(lab, Moment::Step("qm-stop", "done"))?;
    let kept = fs::read(OPERATIONS[1]).unwrap();
    // A dry run tells of it like any other, and has no intent of its own.
    assert_eq!(anna(lab)?.call("cycle --dry-run")?.status, 0);
    station::quiet(AMPLE)?;
    for path in OPERATIONS {
        fs::write(path, &kept).unwrap();
    }
    // The disk may have been late with it.
    let stored = ["/var/lib/pve-verb/requests", "/run/pve-verb/requests"].map(|folder| fs::remove_file(format!("{folder}/{id}.json")));
    assert!(stored.iter().any(std::result::Result::is_ok), "{stored:?}");
    assert_eq!(anna(lab)?.call("cycle")?.status, 0);
    told_once_and_for_all(lab, &id)
}

/// As if the worker had been killed after it stored its end and before it took operation.json away.
fn after_its_end(lab: &Lab) -> Result<()> {
    for by_recover in [false, true] {
        bare_vm(lab)?;
        let (ssh, id) = (anna(lab)?, fresh_id()?);
        // Long enough to be read in the middle of it.
        station::slow_stop()?;
        let caller = ssh.spawn(format!("cycle --json --request-id={id}"))?;
        reaches(&id, Moment::Step("qm-stop", "started"), AMPLE)?;
        let kept = until("operation.json", AMPLE, || fs::read(OPERATIONS[1]).ok())?;
        let first: Answer = caller.finish(AMPLE)?.into();
        station::honest();
        assert_eq!(first.status, 0);
        station::quiet(AMPLE)?;
        for path in OPERATIONS {
            fs::write(path, &kept).unwrap();
        }
        let (_, seen) = worker::status()?;
        assert_ne!(seen["assessment"], "interrupted", "it came to its end");
        let next = if by_recover { console("recover", AMPLE)? } else { ssh.call("cycle")? };
        assert_eq!(next.status, 0, "{}", next.text());
        let chain = Chain::read()?;
        assert!(chain.kind("interrupted").iter().all(|r| r["operation"]["request_id"] != *id), "it was not interrupted");
        assert_eq!(operations().len(), 0);
        let again = ssh.call(format!("cycle --json --request-id={id}"))?;
        assert_eq!((again.status, told(body(&again)?)), (0, told(body(&first)?)));
    }
    Ok(())
}

/// The worker sleeps right after it let go of the mutation lock: what is not stored by then another one finds unfinished.
fn about_to_end(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    let id = fresh_id()?;
    let lock = "/run/pve-verb/mutation.lock";
    let options = ["-o", "/run/lab/close.strace", "-P", lock, "-e", "trace=close", "-e", "inject=close:delay_exit=4000000"];
    let worker = worker::traced(&options.map(str::to_owned), &worker::arrival("cycle --json", &id)?)?;
    reaches(&id, Moment::Step("observe", "done"), AMPLE)?;
    let next = until("the lock's end", AMPLE, || console("cycle --json", AMPLE).ok().filter(|answer| answer.status != 4))?;
    assert_eq!(next.status, 0, "{}", next.text());
    assert!(!body(&next)?["degraded"].to_string().contains(&id), "{}", next.text());
    let _its_end = worker.finish(AMPLE)?;
    let left = Traces::of(&id)?;
    assert_eq!((left.intents, left.outcomes, left.bundles.len()), (1, 1, 1));
    assert_eq!(left.stored.expect("its end is stored")["outcome"], "done");
    assert!(Chain::read()?.kind("interrupted").iter().all(|r| r["operation"]["request_id"] != *id));
    Ok(())
}

/// As on a full /run: the front is held up, and the last line is gone when it goes on.
fn spool_loses(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    // Long enough for the front to be stopped in the middle of it.
    station::slow_stop()?;
    let id = fresh_id()?;
    let mut front = Command::new("/usr/sbin/pve-verb");
    let front = start(front.args(["cycle", "--json", &format!("--request-id={id}")]).current_dir("/"), &[])?;
    reaches(&id, Moment::Told("accepted"), AMPLE)?;
    stop(front.pid())?;
    until("the worker's end", AMPLE, || processes("worker").is_empty().then_some(()))?;
    let spool = fs::File::options().write(true).open(worker::spool(&id)).unwrap();
    let text = fs::read_to_string(worker::spool(&id)).unwrap();
    let (kept, receipt) = text.trim_end().rsplit_once('\n').unwrap();
    assert!(receipt.contains("\"event\":\"receipt\""), "{receipt}");
    spool.set_len(kept.len() as u64 + 1).unwrap();
    send(front.pid(), Signal::CONT)?;
    let answer: Answer = front.finish(AMPLE)?.into();
    let got = body(&answer)?;
    assert_eq!((answer.status, &got["outcome"], &got["interrupted"]), (0, &json!("done"), &json!(false)), "{got}");
    assert!(!got["qemu_after"].is_null() && answer.events_of("receipt").len() == 1);
    Ok(())
}
