//! Request ids: joined while running, replayed afterwards, never run twice; and two callers at once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking

#[path = "ids/disk.rs"]
mod disk;

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use lab::chain::Chain;
use lab::lab::{Scenario, run_scenarios};
use lab::process::until;
use lab::station::{self, MODEL, Traces, anna, bare_stopped, bare_vm, body, fresh_id, processes, told};
use lab::vm::send;
use lab::{Answer, Lab, Result, wedge};
use rustix::process::Signal;
use serde_json::{Value, json};

const SCENARIOS: &[Scenario] = &[
    ("when_an_id_is_asked_again_while_it_runs_then_the_caller_is_attached_from_the_start", attaches),
    ("when_an_id_is_asked_again_after_its_end_then_it_is_replayed_and_not_run", replays),
    ("when_an_id_belongs_to_another_key_verb_or_dry_run_then_it_is_refused", bound),
    ("when_attach_names_an_unknown_id_then_nothing_is_started", unknown),
    ("when_two_callers_come_at_once_then_one_is_told_who_since_when_and_how_to_attach", busy),
    ("when_two_callers_bring_the_same_new_id_then_it_runs_once_and_both_get_its_receipt", same_new_id),
    ("when_a_refused_id_is_asked_again_then_it_may_run", refused_again),
    ("when_the_spool_is_deleted_then_a_finished_id_is_replayed_from_disk", spool_deleted),
    ("when_the_disk_hangs_after_its_end_then_a_finished_id_is_replayed_and_never_run_again", disk::hangs_later),
    ("when_the_disk_that_would_know_an_id_hangs_then_attach_says_unknown", disk::not_looked_up),
    ("when_what_is_stored_of_an_id_is_damaged_then_it_is_not_run_again", disk::damaged),
    ("when_a_worker_does_not_come_up_in_time_then_it_never_does", disk::slow_worker),
    ("when_somebody_attaches_then_a_read_record_says_so", attach_recorded),
    ("when_many_come_upon_a_late_holder_then_one_takes_over_and_one_mutates", one_takes_over),
    ("when_the_holder_is_past_its_deadline_then_it_is_killed_and_taken_over", taken_over),
    ("when_a_late_holder_s_pid_was_reused_then_that_process_is_spared", reused_holder),
];

const AMPLE: Duration = Duration::from_secs(60);
const LOCK: &str = "/run/pve-verb/mutation.lock";

fn main() {
    run_scenarios(SCENARIOS, station::install)
}

fn kinds(answer: &Answer) -> Vec<String> {
    answer.events().iter().map(|e| e["event"].as_str().unwrap_or_default().to_owned()).collect()
}

fn attached(answer: &Answer) -> Value {
    answer.events_of("accepted")[0]["attached"].clone()
}

/// Until a worker has taken the lock.
fn locked() -> Result<Value> {
    until("a worker's lock", AMPLE, || {
        let text = fs::read_to_string(LOCK).ok()?;
        let holder: Value = serde_json::from_str(&text).ok()?;
        processes("worker").iter().any(|pid| holder["pid"] == *pid).then_some(holder)
    })
}

fn attaches(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    station::slow_stop()?;
    let (ssh, id) = (anna(lab)?, fresh_id()?);
    let first = ssh.spawn(format!("cycle --json --request-id={id}"))?;
    locked()?;
    let others = [
        ssh.spawn(format!("cycle --json --request-id={id}"))?,
        ssh.spawn(format!("cycle --json --attach --request-id={id}"))?,
        ssh.spawn(format!("cycle --attach --request-id={id}"))?,
    ];
    let first: Answer = first.finish(AMPLE)?.into();
    assert_eq!((first.status, attached(&first)), (0, json!(false)), "{}", first.text());
    let [same, joined, text] = others.map(|other| Answer::from(other.finish(AMPLE).unwrap()));
    for other in [same, joined] {
        assert_eq!((other.status, attached(&other)), (0, json!(true)));
        assert_eq!(kinds(&other), kinds(&first), "the events come from the start");
        assert_eq!(other.receipt().unwrap()["body"], first.receipt().unwrap()["body"]);
    }
    let head = first.receipt_body().unwrap()["audit"]["head"].as_str().unwrap().to_owned();
    assert!(text.status == 0 && text.lines().last().unwrap().contains(&head), "{}", text.text());
    let left = Traces::of(&id)?;
    assert_eq!((left.intents, left.outcomes, left.bundles.len()), (1, 1, 1));
    Ok(())
}

fn replays(lab: &Lab) -> Result<()> {
    let vm = bare_vm(lab)?;
    let (ssh, id) = (anna(lab)?, fresh_id()?);
    let request = format!("cycle --json --request-id={id}");
    let first = body(&ssh.call(&request)?)?;
    let after = (vm.pid(), vm.start_ticks());
    for request in [request.clone(), format!("cycle --json --attach --request-id={id}")] {
        let again = ssh.call(&request)?;
        assert_eq!(kinds(&again).last().unwrap(), "receipt");
        let again = body(&again)?;
        assert_eq!((&again["replayed"], &again["exit_code"]), (&json!(true), &json!(0)));
        assert_eq!(told(again), told(first.clone()));
    }
    assert_eq!((vm.pid(), vm.start_ticks()), after, "a replay does nothing");
    let chain = Chain::read()?;
    assert_eq!((chain.count(&id, "intent"), chain.count(&id, "outcome"), chain.count(&id, "read")), (1, 1, 2), "each replay is one read");
    // An answer that was `already` is as good as any other.
    let id = fresh_id()?;
    let request = format!("start --json --request-id={id}");
    let first = body(&ssh.call(&request)?)?;
    assert_eq!((&first["already"], &first["exit_code"]), (&json!(true), &json!(0)));
    let again = body(&ssh.call(&request)?)?;
    assert_eq!((&again["replayed"], told(again.clone())), (&json!(true), told(first)));
    Ok(())
}

fn bound(lab: &Lab) -> Result<()> {
    let vm = bare_vm(lab)?;
    station::slow_stop()?;
    let (ssh, other, id) = (anna(lab)?, lab.host.ssh(MODEL)?, fresh_id()?);
    let running = ssh.spawn(format!("cycle --json --request-id={id}"))?;
    locked()?;
    let refused = |ssh: &lab::Ssh, request: String| -> Result<()> {
        let answer = ssh.call(format!("{request} --json --request-id={id}"))?;
        let told = body(&answer)?;
        assert_eq!((answer.status, told["outcome"].as_str()), (2, Some("refused-request")), "{request}: {told}");
        Ok(())
    };
    for _while_it_runs_and_afterwards in 0..2 {
        refused(&other, "cycle".into())?;
        refused(&ssh, "stop".into())?;
        refused(&ssh, "cycle --dry-run".into())?;
        refused(&ssh, "stop --attach".into())?;
        station::quiet(AMPLE)?;
    }
    assert_eq!(running.finish(AMPLE)?.status, 0);
    let after = vm.pid();
    // A dry run's id is no permission to do it.
    let id = fresh_id()?;
    assert_eq!(ssh.call(format!("cycle --dry-run --request-id={id}"))?.status, 0);
    assert_eq!(ssh.call(format!("cycle --request-id={id}"))?.status, 2);
    assert_eq!(vm.pid(), after);
    Ok(())
}

fn unknown(lab: &Lab) -> Result<()> {
    let vm = bare_vm(lab)?;
    let (before, id) = (vm.pid(), fresh_id()?);
    for verb in ["reset", "stop", "start", "cycle"] {
        let answer = anna(lab)?.call(format!("{verb} --attach --json --request-id={id}"))?;
        assert_eq!((answer.status, body(&answer)?["outcome"].as_str()), (6, Some("refused-precondition")));
    }
    assert_eq!(vm.pid(), before);
    let left = Traces::of(&id)?;
    assert!(left.none(), "{left:?}");
    assert_eq!(Chain::read()?.count(&id, "refused"), 4);
    Ok(())
}

fn busy(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    station::slow_stop()?;
    let (ssh, id) = (anna(lab)?, fresh_id()?);
    let first = ssh.spawn(format!("cycle --json --request-id={id}"))?;
    let holder = locked()?;
    let answer = ssh.call("stop --json")?;
    let told = body(&answer)?;
    assert_eq!((answer.status, told["outcome"].as_str()), (4, Some("refused-busy")), "{told}");
    let (what, how) = (told["message"]["what"].as_str().unwrap(), told["message"]["do"].as_str().unwrap());
    assert!(what.contains("cycle") && what.contains("anna") && what.contains(holder["since"].as_str().unwrap()), "{what}");
    let line = how.split('`').nth(1).expect("a line to copy");
    assert!(line.contains(&id), "{how}");
    let joined = ssh.call(format!("{line} --json"))?;
    let first: Answer = first.finish(AMPLE)?.into();
    assert_eq!((joined.status, first.status), (0, 0));
    assert_eq!(joined.receipt().unwrap()["body"], first.receipt().unwrap()["body"]);
    Ok(())
}

fn same_new_id(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    station::slow_stop()?;
    for _ in 0..3 {
        let (ssh, id) = (anna(lab)?, fresh_id()?);
        let request = format!("cycle --json --request-id={id}");
        let both = [ssh.spawn(&request)?, ssh.spawn(&request)?, ssh.spawn(&request)?];
        let both = both.map(|one| Answer::from(one.finish(AMPLE).unwrap()));
        for one in &both {
            assert_eq!(one.status, 0, "{}", one.text());
            assert_eq!(one.receipt().unwrap()["body"], both[0].receipt().unwrap()["body"]);
        }
        let left = Traces::of(&id)?;
        assert_eq!((left.intents, left.outcomes, left.bundles.len()), (1, 1, 1), "{left:?}");
        // Whoever came second is told so, and leaves a record of its own.
        let second = both.iter().filter(|one| attached(one) == json!(true)).count();
        let records = Chain::read()?.kind("read").into_iter().filter(|r| r["request_id"] == *id && r["attached"] == true).count();
        assert_eq!((second, records), (2, 2));
    }
    Ok(())
}

fn refused_again(lab: &Lab) -> Result<()> {
    let vm = bare_vm(lab)?;
    let (ssh, id, before) = (anna(lab)?, fresh_id()?, vm.pid());
    let request = format!("cycle --json --request-id={id}");
    let lock = wedge::config_lock(&lab.host, "backup")?;
    for _ in 0..2 {
        let answer = ssh.call(&request)?;
        let told = body(&answer)?;
        assert_eq!((answer.status, &told["replayed"]), (4, &json!(false)), "{told}");
        assert!(told["message"]["do"].as_str().unwrap().contains("qm unlock 102"), "{told}");
    }
    assert_eq!((vm.pid(), lab.host.conf()?.lock()), (before, Some("backup")));
    lock.now();
    let answer = ssh.call(&request)?;
    assert_eq!((answer.status, &body(&answer)?["replayed"]), (0, &json!(false)));
    assert_ne!(vm.pid(), before);
    Ok(())
}

fn spool_deleted(lab: &Lab) -> Result<()> {
    let vm = bare_vm(lab)?;
    let (ssh, id) = (anna(lab)?, fresh_id()?);
    let request = format!("cycle --json --request-id={id}");
    let first = body(&ssh.call(&request)?)?;
    let after = vm.pid();
    // The worker tidies there behind its answer.
    station::quiet(AMPLE)?;
    for entry in fs::read_dir("/run/pve-verb/spool").unwrap().flatten() {
        fs::remove_file(entry.path()).unwrap();
    }
    let again = body(&ssh.call(&request)?)?;
    assert_eq!((&again["replayed"], told(again.clone())), (&json!(true), told(first)));
    assert_eq!(vm.pid(), after);
    Ok(())
}

fn attach_recorded(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    station::slow_stop()?;
    let (ssh, id) = (anna(lab)?, fresh_id()?);
    let running = ssh.spawn(format!("cycle --json --request-id={id}"))?;
    locked()?;
    let joined = ssh.call(format!("cycle --json --attach --request-id={id} --actor=watcher"))?;
    assert_eq!((joined.status, attached(&joined)), (0, json!(true)));
    running.finish(AMPLE)?;
    let of_the_id = |record: &&Value| record["request_id"] == *id.to_string() && record["kind"] == "read";
    let log = lab::installed::log()?;
    let reads: Vec<&Value> = log.iter().filter(of_the_id).collect();
    assert_eq!(reads.len(), 1, "{reads:#?}");
    assert_eq!((&reads[0]["attached"], &reads[0]["actor"], &reads[0]["exit_code"]), (&json!(true), &json!("watcher"), &json!(0)));
    Ok(())
}

fn one_takes_over(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    let ssh = anna(lab)?;
    let from = lab::installed::log()?.len();
    let (mut child, _) = late_holder(None)?;
    let callers: Vec<_> = (0..8).map(|_| ssh.spawn("cycle --json --reason=takeover")).collect::<Result<_>>()?;
    let answers: Vec<Answer> = callers.into_iter().map(|caller| caller.finish(AMPLE).map(Answer::from)).collect::<Result<_>>()?;
    child.wait().unwrap();
    let count = |status: i32| answers.iter().filter(|answer| answer.status == status).count();
    assert!(count(0) >= 1 && count(0) + count(4) == answers.len(), "{:?}", answers.iter().map(|a| a.status).collect::<Vec<_>>());
    let log = lab::installed::log()?.split_off(from);
    assert_eq!(log.iter().filter(|record| record["kind"] == "takeover").count(), 1, "taken over once");
    // Nobody's intent stands between another's intent and its outcome.
    let marks = log.iter().filter(|record| ["intent", "outcome"].iter().any(|kind| record["kind"] == *kind));
    let marks: Vec<_> = marks.map(|record| (record["kind"].as_str().unwrap(), record["request_id"].as_str().unwrap())).collect();
    for pair in marks.chunks(2) {
        assert!(pair.len() == 2 && pair[0].0 == "intent" && pair[1].0 == "outcome" && pair[0].1 == pair[1].1, "{marks:#?}");
    }
    assert_eq!(marks.len(), 2 * count(0));
    Ok(())
}

/// Somebody who holds the lock, with a deadline long past. With `started` wrong it is as if its pid had been reused.
#[allow(clippy::zombie_processes, reason = "a failing scenario ends its pid namespace, and with it the child")]
fn late_holder(started: Option<u64>) -> Result<(Child, Value)> {
    station::quiet(AMPLE)?;
    let child = Command::new("flock").args(["--exclusive", "--no-fork", LOCK, "sleep", "600"]).spawn().expect("flock is there");
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).ok()?;
        stat.starts_with(&format!("{} (sleep)", child.id())).then_some(())?;
        stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse::<u64>().ok()
    };
    let real = until("the holder's start", AMPLE, ticks)?;
    let holder = json!({
        "pid": child.id(), "started": started.unwrap_or(real), "request_id": fresh_id()?, "verb": "cycle", "vmid": 102,
        "key_name": "late", "since": "2026-01-01T00:00:00.000Z", "deadline_boot_ms": 1,
    });
    fs::write(LOCK, holder.to_string()).unwrap();
    Ok((child, holder))
}

fn taken_over(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    let (mut child, holder) = late_holder(None)?;
    let answer = anna(lab)?.call("cycle --json")?;
    let ended = until("the holder's end", Duration::from_secs(20), || child.try_wait().unwrap());
    let _gone = child.kill();
    assert_eq!(answer.status, 0, "{}", answer.text());
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended?), Some(9));
    let told = body(&answer)?;
    assert!(told["degraded"].to_string().contains(holder["request_id"].as_str().unwrap()), "{told}");
    let chain = Chain::read()?;
    let record = chain.kind("takeover").pop().expect("a takeover record");
    assert_eq!((&record["request_id"], &record["holder"], &record["killed"]), (&told["request_id"], &holder, &json!(true)), "{record}");
    Ok(())
}

fn reused_holder(lab: &Lab) -> Result<()> {
    bare_stopped(lab)?;
    let (mut child, _) = late_holder(Some(1))?;
    let answer = anna(lab)?.call("cycle --json")?;
    let spared = child.try_wait().unwrap().is_none();
    let _gone = child.kill();
    let _reaped = child.wait();
    assert!(spared, "another process was killed");
    assert_eq!(answer.status, 0, "{}", answer.text());
    assert_eq!(Chain::read()?.kind("takeover").pop().expect("a takeover record")["killed"], json!(false));
    assert!(!Path::new(&format!("/proc/{}", child.id())).exists());
    // The worker tidies behind its answer, and then ends too.
    station::quiet(AMPLE)?;
    assert!(send(child.id(), Signal::KILL).is_err());
    Ok(())
}
