//! The crash sweep: SIGKILL, ENOSPC and EIO at each call with which a mutating verb changes something outside itself.
//!
//! CI takes three minutes of it, in an order that `LAB_SEED` decides; `LAB_ALL=1` takes all of it, `LAB_SECONDS` another time.
//! `LAB_SHARD=0 LAB_SHARDS=3` takes every third point, for several labs at once.
//! `LAB_POINT="cycle worker write#7 signal=KILL"` takes one. QEMU is real and boots no guest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking
#![allow(clippy::print_stderr)] // the figures are what the sweep is for

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::chain::Chain;
use lab::lab::{Scenario, run_scenarios};
use lab::process::start;
use lab::station::{self, BUNDLES, OPERATIONS, Traces, bare_stopped, bare_vm, body, console, fresh_id, processes};
use lab::sweep::{Point, Role, finding, points, shuffled};
use lab::worker::{arrival, attach, spool, status, traced};
use lab::{Error, Lab, Observed, Result, Vm};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const SCENARIOS: &[Scenario] = &[("when_a_mutation_dies_or_fails_at_any_call_then_nothing_is_half_done_in_silence", sweep)];

const VERBS: [&str; 4] = ["cycle", "stop", "start", "reset"];
const ROLES: [Role; 5] = [Role::Worker, Role::Front, Role::Writer, Role::ProbeGuest, Role::ProbeHost];
const CI: Duration = Duration::from_secs(180);
const SEED: u64 = 20_261_121;
const AMPLE: Duration = Duration::from_secs(150);
const TRACE: &str = "/run/lab/point.strace";
const TASKS: &str = "/var/log/pve/tasks/index";

fn main() {
    run_scenarios(SCENARIOS, station::install)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn sweep(lab: &Lab) -> Result<()> {
    let began = Instant::now();
    let seed = number("LAB_SEED").unwrap_or(SEED);
    let all = find(lab)?;
    let total = all.len();
    let chosen = std::env::var("LAB_POINT").ok();
    let mut all = shuffled(all, seed);
    if let (Some(shard), Some(of)) = (number("LAB_SHARD"), number("LAB_SHARDS")) {
        all = all.into_iter().enumerate().filter(|(n, _)| *n as u64 % of == shard).map(|(_, point)| point).collect();
    }
    all.retain(|point| chosen.as_ref().is_none_or(|name| *name == point.to_string()));
    let limit = match (number("LAB_SECONDS"), std::env::var_os("LAB_ALL")) {
        (Some(seconds), _) => Duration::from_secs(seconds),
        (None, Some(_)) => Duration::MAX,
        (None, None) => CI,
    };
    let mut by_role: BTreeMap<Role, (usize, usize)> = BTreeMap::new();
    let (mut tried, mut hit, mut failed) = (0, 0, Vec::new());
    for point in &all {
        if began.elapsed() > limit {
            break;
        }
        tried += 1;
        let count = by_role.entry(point.role).or_default();
        count.0 += 1;
        match std::panic::catch_unwind(|| holds(lab, point)) {
            Ok(Ok(was_hit)) => {
                hit += usize::from(was_hit);
                count.1 += 1;
            }
            Ok(Err(error)) => failed.push(format!("{point}: {error}")),
            Err(_) => failed.push(format!("{point}: see the panic above")),
        }
        if let Some(last) = failed.last().filter(|line| line.starts_with(&point.to_string())) {
            eprintln!("DID NOT HOLD {last}");
        }
        if tried % 50 == 0 {
            eprintln!("crash sweep: {tried} tried, {} held, {:?}", tried - failed.len(), began.elapsed());
        }
    }
    eprintln!(
        "crash sweep: seed {seed}, {total} points; {tried} tried, {hit} of them hit, {} held, {:?}",
        tried - failed.len(),
        began.elapsed()
    );
    for (role, (tried, held)) in by_role {
        eprintln!("crash sweep: {}: {tried} tried, {held} held", role.word());
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::new(failed.join("\n"), "Run one of them again with LAB_POINT")) }
}

/// The points of all verbs and processes, from two runs of each verb.
fn find(lab: &Lab) -> Result<Vec<Point>> {
    let mut all = Vec::new();
    for verb in VERBS {
        let traces = ROLES.map(|role| format!("/run/lab/{}.strace", role.word()));
        let options = traces.clone().map(|trace| finding(&trace));
        let met = (0..5).find_map(|_| all_met(lab, verb, &options).map(|met| met.then_some(())).transpose()).transpose()?;
        must(met.is_some(), || format!("{verb}: a helper was gone before strace met it, five times"))?;
        ready(lab, verb)?;
        run_one(verb, Role::Front, &fresh_id()?, &options[1])?;
        for (role, trace) in ROLES.into_iter().zip(&traces) {
            all.append(&mut points(verb, role, trace));
            let _absent = fs::remove_file(trace);
        }
    }
    Ok(all)
}

/// Runs the verb with its worker and what that starts under `strace`; whether each was met before it had ended.
fn all_met(lab: &Lab, verb: &str, [worker, _, writer, guest, host]: &[Vec<String>; 5]) -> Result<bool> {
    ready(lab, verb)?;
    let id = fresh_id()?;
    let run = traced(worker, &arrival(&format!("{verb} --json"), &id)?)?;
    // The probes ask the same whatever the verb is.
    let probes = [(Role::ProbeGuest, guest), (Role::ProbeHost, host)].into_iter().filter(|_| verb == "cycle");
    let mut others = Vec::new();
    for (role, options) in probes.chain([(Role::Writer, writer)]) {
        others.push(attach(role.word(), &[], options, &id)?);
    }
    run.finish(AMPLE)?;
    let met = others.iter().all(Option::is_some);
    for other in others.into_iter().flatten() {
        other.finish(AMPLE)?;
    }
    station::quiet(AMPLE)?;
    Ok(met)
}

/// The VM as the verb needs it.
fn ready<'a>(lab: &'a Lab, verb: &str) -> Result<&'a Vm> {
    if verb == "start" { bare_stopped(lab) } else { bare_vm(lab) }
}

/// Runs the verb with one of its processes under `strace`, to the end of all of them.
fn run_one(verb: &str, role: Role, id: &str, options: &[String]) -> Result<()> {
    let _absent = fs::remove_file(TRACE);
    let words = format!("{verb} --json");
    match role {
        Role::Worker => drop(traced(options, &arrival(&words, id)?)?.finish(AMPLE)?),
        Role::Front => {
            let mut front = Command::new("strace");
            front.args(options).args(["/usr/sbin/pve-verb", verb, "--json", &format!("--request-id={id}")]).current_dir("/");
            start(&mut front, &[])?.finish(AMPLE)?;
        }
        Role::Writer | Role::ProbeGuest | Role::ProbeHost => {
            let before = processes(role.word());
            // Not through a front, which has a writer of its own.
            let worker = traced(&["-o".into(), "/dev/null".into(), "-e".into(), "trace=none".into()], &arrival(&words, id)?)?;
            let tracer = attach(role.word(), &before, options, id)?;
            worker.finish(AMPLE)?;
            // None: it came and went unmet, which is a run without a fault.
            tracer.map(|tracer| tracer.finish(AMPLE)).transpose()?;
        }
    }
    station::quiet(AMPLE)
}

/// What of the VM a mutation would have changed.
#[derive(Debug, PartialEq, Eq)]
struct Before {
    process: (Option<u32>, Option<u64>),
    tasks: usize,
}

fn look(vm: &Vm) -> Before {
    Before { process: (vm.pid(), vm.start_ticks()), tasks: fs::read_to_string(TASKS).unwrap_or_default().lines().count() }
}

fn state(vm: &Vm) -> Value {
    match vm.observe() {
        Observed::Stopped => json!("stopped"),
        Observed::State(state) => json!(state),
        Observed::Unresponsive => json!("unresponsive"),
    }
}

fn must(is: bool, what: impl FnOnce() -> String) -> Result<()> {
    if is { Ok(()) } else { Err(Error::new(what(), "Run it again with LAB_POINT")) }
}

/// Tries a point; whether the fault happened.
fn holds(lab: &Lab, point: &Point) -> Result<bool> {
    let vm = ready(lab, point.verb)?;
    let before = look(vm);
    let mut monitor = if point.verb == "reset" { Some(vm.monitor()?) } else { None };
    let id = fresh_id()?;
    run_one(point.verb, point.role, &id, &point.options(TRACE))?;
    let was_hit = Point::hit(TRACE);
    let reset = monitor.as_mut().is_some_and(|qmp| {
        let _answered = qmp.call("query-status", json!({}), Duration::from_secs(5));
        qmp.events.iter().any(|event| event["event"] == "RESET" && event["data"]["reason"] == "host-qmp-system-reset")
    });
    drop(monitor);

    // The log verifies; nothing was changed without evidence and intent.
    let left = Traces::of(&id)?;
    let acted = reset || look(vm) != before;
    let begun = left.intents > 0;
    must(left.intents <= 1 && left.outcomes <= left.intents.max(1) && left.bundles.len() <= 1, || format!("more than once: {left:?}"))?;
    must(!acted || begun, || format!("the VM was changed without an intent: {left:?}"))?;
    must(!begun || left.bundles.iter().any(|name| sealed(name)), || format!("an intent without a sealed bundle: {left:?}"))?;
    let ended = left.stored.as_ref().map(|body| body["outcome"].clone());
    let after = state(vm);
    if ended == Some(json!("done")) && begun {
        let wanted = match point.verb {
            "stop" => after == "stopped",
            "reset" => reset && after == "running" && look(vm).process == before.process,
            "cycle" => after == "running" && look(vm).process != before.process,
            _ => after == "running",
        };
        must(wanted, || format!("`done`, and the VM is {after}"))?;
    }
    // A front is only an onlooker.
    if point.role == Role::Front && Path::new(&spool(&id)).exists() {
        must(ended == Some(json!("done")), || format!("the worker did not come to its end: {left:?}"))?;
    }

    // The next status tells the truth.
    let (answer, told) = status()?;
    must(answer.status == 0 && told["state_after"] == after, || format!("status says {}, it is {after}", told["state_after"]))?;
    let unfinished = begun && ended.is_none();
    if unfinished {
        must(told["assessment"] == "interrupted", || format!("status does not tell of it: {}", told["assessment"]))?;
    }
    must(unfinished || told["assessment"] != "interrupted", || "status tells of an interruption that was none".to_owned())?;

    // An id with an intent never runs again.
    if begun {
        let again = console(&format!("{} --json --request-id={id}", point.verb), AMPLE)?;
        let said = body(&again)?;
        let good = if ended.is_some() { said["replayed"] == true } else { again.status == 11 && said["interrupted"] == true };
        must(good && Chain::read()?.count(&id, "intent") == 1, || format!("asked again: {said}"))?;
    }

    // The next cycle works, and what was interrupted is recorded once.
    let process = look(vm).process;
    let next = console("cycle --json", AMPLE)?;
    must(next.status == 0, || format!("the next cycle: {} {:?}", next.status, next.receipt_body()))?;
    must(state(vm) == "running" && look(vm).process != process, || "the next cycle did nothing".to_owned())?;
    station::quiet(AMPLE)?;
    let chain = Chain::read()?;
    must(!chain.torn, || "the log still ends torn".to_owned())?;
    let recorded = chain.kind("interrupted").into_iter().filter(|record| record["operation"]["request_id"] == *id).count();
    must(recorded == usize::from(unfinished), || format!("{recorded} interrupted records"))?;
    must(!OPERATIONS.iter().any(|path| Path::new(path).exists()), || "operation.json stands".to_owned())?;
    Ok(was_hit)
}

/// Whether a bundle is whole: its manifest is there, and everything that it lists.
fn sealed(name: &str) -> bool {
    BUNDLES.iter().any(|shelf| {
        let folder = Path::new(shelf).join(name);
        let manifest: Option<Value> = fs::read(folder.join("manifest.json")).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let listed = manifest.as_ref().and_then(|m| m["subject"].as_array());
        listed.is_some_and(|all| {
            !all.is_empty()
                && all.iter().all(|one| {
                    let bytes = fs::read(folder.join(one["name"].as_str().unwrap_or_default())).unwrap_or_default();
                    let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
                    one["digest"]["sha256"] == hash
                })
        })
    })
}
