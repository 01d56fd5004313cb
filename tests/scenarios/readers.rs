//! Callers that are in the way: one that never reads, many that ask `status`, several that follow one verb.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking
#![allow(clippy::print_stderr)] // the figures are worth a line

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::chain::Chain;
use lab::client::unix_ms;
use lab::lab::{Scenario, run_scenarios};
use lab::process::until;
use lab::station::{self, MODEL, Traces, anna, bare_vm, body, fresh_id};
use lab::worker::{Moment, reaches};
use lab::{Answer, Lab, Result, Ssh, wedge};
use serde_json::json;

const SCENARIOS: &[Scenario] = &[
    ("when_the_caller_never_reads_then_the_verb_finishes_all_the_same", never_reads),
    ("when_a_reader_of_forensics_never_reads_then_its_processes_end", forensics_never_reads),
    ("when_a_reader_of_forensics_is_slow_then_evidence_and_record_are_there_in_time_and_it_gets_all", slow_reader),
    ("when_64_ask_status_during_a_cycle_then_nobody_waits_and_qm_stop_stays_gentle", sixty_four),
    ("when_several_follow_one_verb_then_each_gets_all_of_it", followers),
];

const AMPLE: Duration = Duration::from_secs(90);

fn main() {
    run_scenarios(SCENARIOS, station::install)
}

/// A caller whose output nobody reads. It ends with this.
struct Deaf(Child);

impl Deaf {
    fn call(ssh: &Ssh, request: &str) -> Self {
        let mut command = ssh.command(request.as_bytes());
        Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn never_reads(lab: &Lab) -> Result<()> {
    let vm = bare_vm(lab)?;
    let (before, id) = (vm.pid(), fresh_id()?);
    // All artifacts inside the events: far more than pipe, ssh window and sshd's buffers hold.
    let deaf = Deaf::call(&anna(lab)?, &format!("cycle --json --inline --request-id={id}"));
    let ended = until("the cycle's end", AMPLE, || Traces::of(&id).ok().filter(|left| left.stored.is_some()))?;
    assert_eq!((ended.intents, ended.outcomes, ended.bundles.len()), (1, 1, 1));
    assert_eq!(ended.stored.unwrap()["outcome"], "done");
    assert_ne!(vm.pid(), before);
    assert!(
        station::processes("worker").is_empty()
            || until("the worker's end", AMPLE, || station::processes("worker").is_empty().then_some(())).is_ok()
    );
    // And another caller is not kept waiting by the deaf one.
    assert_eq!(anna(lab)?.call("cycle")?.status, 0);
    drop(deaf);
    station::quiet(AMPLE)
}

fn forensics_never_reads(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    let id = fresh_id()?;
    let deaf = Deaf::call(&anna(lab)?, &format!("forensics --json --inline --request-id={id}"));
    until("the bundle", AMPLE, || (station::bundles(&id).len() == 1).then_some(()))?;
    // Twenty seconds without a byte taken, and the caller is taken for gone; its ssh still lives.
    station::quiet(AMPLE)?;
    drop(deaf);
    Ok(())
}

/// By hand, because a pipe holds less than what ssh and sshd take for a reader who does not.
#[allow(clippy::zombie_processes, reason = "a failing scenario ends its pid namespace, and with it the child")]
fn slow_reader(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    let (id, began) = (fresh_id()?, Instant::now());
    let mut command = Command::new("/usr/sbin/pve-verb");
    command.args(["forensics", "--json", "--inline", &format!("--request-id={id}")]).current_dir("/");
    let mut child = Deaf(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    until("the record", AMPLE, || Chain::read().ok().filter(|chain| chain.count(&id, "read") == 1).map(drop))?;
    // All evidence, and the record of who gets it, while not a byte was read.
    let recorded = began.elapsed();
    let chain = Chain::read()?;
    let record = chain.of(&id)[0];
    assert!(recorded < Duration::from_secs(17), "{recorded:?}");
    assert_eq!((&record["outcome"], &record["preserved_where"]), (&json!("done"), &json!("disk")), "{record}");
    std::thread::sleep(Duration::from_secs(3));
    let mut said = Vec::new();
    child.0.stdout.take().unwrap().read_to_end(&mut said).unwrap();
    assert!(child.0.wait().unwrap().success());
    assert!(said.len() > 100_000, "a pipe would have held all {} bytes", said.len());
    let events: Vec<serde_json::Value> = said.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let probes: Vec<_> = events.iter().filter(|event| event["event"] == "probe").collect();
    eprintln!("readers: recorded after {recorded:?}, {} bytes, {} probes", said.len(), probes.len());
    assert!(probes.iter().all(|probe| probe["artifact"].is_null() || probe["data"].is_string()), "an artifact is missing");
    let late: Vec<_> = probes.iter().filter(|probe| probe["outcome"] == "timed_out" && probe["ms"].as_u64() > Some(4_500)).collect();
    assert!(late.is_empty(), "the reader spoiled {late:?}");
    assert_eq!(events.last().unwrap()["event"], "receipt");
    station::quiet(AMPLE)
}

fn sixty_four(lab: &Lab) -> Result<()> {
    let vm = bare_vm(lab)?;
    let (before, id) = (vm.pid(), fresh_id()?);
    // The mutation does not end before all of them have: whoever waited for it would not answer at all.
    let qm = wedge::qm_stop_waits(lab)?;
    let cycle = anna(lab)?.spawn(format!("cycle --json --request-id={id}"))?;
    reaches(&id, Moment::Told("accepted"), AMPLE)?;
    let ssh = lab.host.ssh(MODEL)?;
    let began = Instant::now();
    let asked: Vec<_> = (0..64).map(|_| ssh.spawn("status --json").unwrap()).collect();
    let answers: Vec<Answer> = asked.into_iter().map(|one| one.finish(AMPLE).unwrap().into()).collect();
    let all = began.elapsed();
    assert_eq!(Traces::of(&id)?.outcomes, 0, "the mutation ended meanwhile, so nothing is shown");
    qm.go_on();
    let cycle: Answer = cycle.finish(AMPLE)?.into();
    assert_eq!(cycle.status, 0, "{}", cycle.text());
    assert_ne!(vm.pid(), before);
    for step in cycle.events_of("step") {
        assert!(!step["detail"].to_string().contains("terminating now"), "{step}");
        assert_ne!(step["outcome"], "failed", "{step}");
    }
    let mut longest = 0;
    for answer in &answers {
        let told = body(answer)?;
        assert_eq!(answer.status, 0, "{told}");
        let at = |member: &str| unix_ms(&told[member]).unwrap();
        longest = longest.max(at("finished") - at("started"));
    }
    // Two processors serve 64 of them, so the published 3 s are not theirs; a mutation's seconds are not in it either.
    eprintln!("readers: 64 status in {all:?}, the longest {longest} ms; the cycle {:?}", cycle.wall);
    assert!(longest < 20_000, "a status took {longest} ms");
    Ok(())
}

fn followers(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    let (ssh, id) = (anna(lab)?, fresh_id()?);
    // Who comes when it has ended is told its end only: it waits until all of them follow.
    let qm = wedge::qm_stop_waits(lab)?;
    let first = ssh.spawn(format!("cycle --json --request-id={id}"))?;
    reaches(&id, Moment::Told("probe"), AMPLE)?;
    let others: Vec<_> = (0..8).map(|_| ssh.spawn(format!("cycle --json --attach --request-id={id}")).unwrap()).collect();
    // One of them stops reading and one goes away: that is nobody else's business.
    let deaf = Deaf::call(&ssh, &format!("cycle --json --attach --request-id={id}"));
    drop(ssh.spawn(format!("cycle --json --attach --request-id={id}"))?.kill()?);
    let follow = || others.iter().all(|other| String::from_utf8_lossy(&other.output_so_far()).contains("\"attached\":true"));
    until("eight who follow", Duration::from_secs(45), || follow().then_some(()))?;
    qm.go_on();
    let first: Answer = first.finish(AMPLE)?.into();
    assert_eq!(first.status, 0);
    let lines = first.lines();
    for other in others {
        let other: Answer = other.finish(AMPLE)?.into();
        assert_eq!((other.status, &other.events_of("accepted")[0]["attached"]), (0, &json!(true)));
        assert_eq!(other.lines()[1..], lines[1..], "all but the first line is the same");
    }
    drop(deaf);
    Ok(())
}
