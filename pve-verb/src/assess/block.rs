//! `block-stalled`: QEMU lives, no block operation completes, and a witness says that the guest waits for one. The stall of
//! 2026-06-11 is this row's reason.
//!
//! Zero completed operations alone are an idle VM. A silent agent is no witness: it may not be installed. Each disk is judged by
//! itself, as far as a witness can be told to be its own: one that is dead beside a busy one is a stall.

use proto::{Code, Verb};
use serde_json::Value;
use std::collections::BTreeMap;

use super::sample::{device_name, short, vcpu_ticks};
use super::{Evidence, Row, Sample, rrd, seconds, show};

/// Samples closer together than this can't tell a stall from a slow flush (evidence.md: at least 1,000 ms apart).
const LEAST_WINDOW_MS: u64 = 1000;
/// What completed within this says that the block layer works now.
const RECENT_MS: u64 = 10_000;
/// "vCPUs run": more than timers of an idle guest. In the incident it was 11 %, rising to 50 %.
const BUSY_VCPU: f64 = 0.05;

/// Two samples of one QEMU process, and the time between them.
struct Pair {
    first: Sample,
    second: Sample,
    window_ms: Option<u64>,
    /// Both are of this call; else the first is what an earlier `status` left.
    same_call: bool,
}

/// A reason to believe that the guest wants I/O in both samples.
struct Witness {
    text: String,
    evidence: Vec<&'static str>,
}

pub(super) fn block_stalled(e: &Evidence<'_>) -> Option<Row> {
    if e.status().as_deref() != Some("running") {
        return None; // the guest of a paused VM asks for nothing
    }
    let pair = pair(e)?;
    let window = pair.window_ms.filter(|ms| *ms >= LEAST_WINDOW_MS)?;
    let completed = pair.first.completed_until(&pair.second)?;
    let silent: Vec<&str> = completed.iter().filter(|(_, n)| **n == 0).map(|(name, _)| *name).collect();
    let all = silent.len() == completed.len();
    let (silent, witnesses): (_, Vec<Witness>) = if all {
        (silent, [queue(&pair, |_| true), in_flight(&pair), worker(&pair), history(e, &pair)].into_iter().flatten().collect())
    } else {
        // Beside a busy disk only a witness that names its own disk counts: the others may be the busy one's.
        let dead: Vec<&str> = silent.into_iter().filter(|disk| queue(&pair, |device| is_queue_of(device, disk)).is_some()).collect();
        let witness = queue(&pair, |device| dead.iter().any(|disk| is_queue_of(device, disk)));
        (dead, witness.into_iter().collect())
    };
    let first = witnesses.first()?;
    let vm = e.vm();
    let mut evidence = vec!["qmp/query-status.json", "qmp/query-blockstats.1.json"];
    evidence.extend(pair.same_call.then_some("qmp/query-blockstats.2.json"));
    if !pair.same_call {
        evidence.push("the sample of the last status");
    }
    evidence.extend(witnesses.iter().flat_map(|w| w.evidence.iter().copied()));
    let disks = silent.iter().map(|name| show(name)).take(8).collect::<Vec<_>>().join(", ");
    let on = if all { String::new() } else { format!(" on {disks}") };
    let sentence = format!(
        "{vm} is block-stalled{on}: QEMU answers, but no block operation completed{on} in {} although {}.",
        seconds(window),
        first.text
    );
    let mut text = format!("0 block operations completed in {} on {disks}", seconds(window));
    if !all {
        let busy: u64 = completed.values().copied().fold(0, u64::saturating_add);
        text.push_str(&format!(" ({busy} on its other disks)"));
    }
    for w in &witnesses {
        text.push_str(&format!("; {}", w.text));
    }
    if let Some(setting) = setting(e) {
        text.push_str(&format!(". Setting: {setting}"));
        evidence.push("qmp/query-block.json");
    }
    if let Some(iothreads) = iothreads(e) {
        text.push_str(&format!(". {iothreads}"));
        evidence.push("qmp/query-iothreads.json");
    }
    text.push('.');
    let why = "Only a fresh QEMU process has a working block layer again: cycle. A reset keeps this process and can hang QMP for good.";
    Some(Row::new(Code::BlockStalled, sentence, &evidence, Some(Verb::Cycle), why).text(text))
}

/// Whether a queue's device serves this disk and no other: PVE gives `virtioN` and, with one controller for each, `scsiN` their own.
fn is_queue_of(device: &str, disk: &str) -> bool {
    let (device, disk) = (short(device), disk.trim_start_matches("drive-"));
    device == disk || device.strip_prefix("virtio").is_some_and(|rest| rest == disk)
}

/// What the block layer did, for the sentence of a healthy VM; its artifacts; and what is not known for all that.
pub(super) fn activity(e: &Evidence<'_>) -> (String, Vec<String>, Option<String>) {
    let far_enough = |pair: &Pair| pair.window_ms.is_some_and(|ms| ms >= LEAST_WINDOW_MS);
    let Some(pair) = pair(e).filter(far_enough) else {
        let waits = Sample::take(e.artifact, 1).and_then(|now| now.waiting());
        return ("block counters were not compared".to_owned(), Vec::new(), waits);
    };
    let mut paths = vec!["qmp/query-blockstats.1.json".to_owned()];
    if pair.same_call {
        paths.push("qmp/query-blockstats.2.json".to_owned());
    }
    let within = pair.window_ms.map(|ms| format!(" in {}", seconds(ms))).unwrap_or_default();
    let completed: Option<u64> = pair.first.completed_until(&pair.second).map(|each| each.into_values().fold(0, u64::saturating_add));
    let text = match completed {
        Some(0) => format!("no block operation{within} and nothing is seen waiting for one"),
        Some(1) => format!("1 block operation completed{within}"),
        Some(n) => format!("{n} block operations completed{within}"),
        None => "block counters could not be compared".to_owned(),
    };
    // What completed in a long window may all have done so before a stall that began within it.
    let long = pair.window_ms.is_some_and(|ms| ms > RECENT_MS) && !pair.same_call;
    let waits = pair.second.waiting().filter(|_| long || completed.is_none());
    (text, paths, waits)
}

/// Whether two samples could be compared: only then is "no stall" known, and not merely unproved.
pub(super) fn is_compared(e: &Evidence<'_>) -> bool {
    pair(e).is_some_and(|pair| pair.first.completed_until(&pair.second).is_some())
}

fn pair(e: &Evidence<'_>) -> Option<Pair> {
    let first = Sample::take(e.artifact, 1)?;
    let window_ms = e.facts.window_ms;
    if let Some(second) = Sample::take(e.artifact, 2) {
        return Some(Pair { first, second, window_ms, same_call: true });
    }
    let previous = e.facts.previous.clone()?;
    // The counters of two processes have nothing to do with one another.
    (previous.qemu.is_some() && previous.qemu == e.facts.qemu).then_some(Pair {
        first: previous,
        second: first,
        window_ms,
        same_call: false,
    })
}

/// A request queue of such a device that QEMU took requests from and did not answer, in both samples.
fn queue(pair: &Pair, of: impl Fn(&str) -> bool) -> Option<Witness> {
    let stuck: Vec<String> = pair
        .first
        .queues
        .iter()
        .filter(|a| of(&a.device))
        .filter_map(|a| {
            let b = pair.second.queues.iter().find(|b| b.device == a.device && b.index == a.index)?;
            let unmoved = match (a.used, b.used) {
                (Some(before), Some(after)) => before == after,
                _ => a.inuse == b.inuse,
            };
            let holds = match (a.inuse, b.inuse) {
                (then, now) if then == now => format!("{} in both samples", unanswered(now)),
                (then, now) => format!("{}, and {then} in the sample before", unanswered(now)),
            };
            (a.inuse > 0 && b.inuse > 0 && unmoved)
                .then(|| format!("request queue {} of {} holds {holds}", a.index, show(short(&a.device))))
        })
        .collect();
    (!stuck.is_empty())
        .then(|| Witness { text: stuck.join(", "), evidence: both(pair, ["qmp/virtqueues.1.json", "qmp/virtqueues.2.json"]) })
}

fn unanswered(n: u64) -> String {
    if n == 1 { "1 unanswered request".to_owned() } else { format!("{n} unanswered requests") }
}

/// What the guest's kernel has in flight, on one disk in both readings. One reading is not enough: a guest that is well has a
/// request in flight now and then.
fn in_flight(pair: &Pair) -> Option<Witness> {
    let (first, second) = (pair.first.in_flight.as_ref()?, pair.second.in_flight.as_ref()?);
    let (disk, n) = second.iter().find(|(disk, _)| first.contains_key(*disk))?;
    let text = format!("the guest has {n} {} in flight on {}", if *n == 1 { "request" } else { "requests" }, show(disk));
    Some(Witness { text, evidence: both(pair, ["guest/diskstats.json", "guest/diskstats.2.json"]) })
}

/// The same I/O thread in state D in both samples: the wait that names the backend.
fn worker(pair: &Pair) -> Option<Witness> {
    let stuck = pair.second.blocked.iter().filter(|b| pair.first.blocked.iter().any(|a| a.tid == b.tid));
    let names: Vec<String> = stuck.map(|b| format!("{} ({}) in D at {}", show(&b.name), b.tid, show(&b.wchan))).take(4).collect();
    (!names.is_empty()).then(|| {
        let text = format!("QEMU's I/O thread {} waits in the kernel in both samples", names.join(", "));
        Witness { text, evidence: both(pair, ["process/threads.1.json", "process/threads.2.json"]) }
    })
}

/// PVE saw writes within the hour and none for three minutes, while vCPUs run. An agent that says "nothing in flight", or request
/// queues that are all empty, overrule it: a guest that computes and does not write looks the same in the history.
fn history(e: &Evidence<'_>, pair: &Pair) -> Option<Witness> {
    let newest = pair.second.in_flight.as_ref().or(pair.first.in_flight.as_ref().filter(|_| pair.same_call));
    if newest.is_some_and(BTreeMap::is_empty) || every_queue_is_empty(pair) {
        return None;
    }
    let (path, bytes) = ["pve/rrd", "pve/rrd.json", "pve/rrd.txt"].into_iter().find_map(|p| Some((p, (e.artifact)(p)?)))?;
    let silence = rrd::silence(&rrd::minutes(bytes), e.facts.now_unix_s?)?;
    let share = silence.cpu.or_else(|| vcpu_share(e, pair))?;
    if share < BUSY_VCPU {
        return None;
    }
    let text = format!(
        "PVE's history has no write for {} min, after {:.0} kB/s, while the vCPUs run at {:.0} %",
        silence.seconds / 60,
        silence.before / 1000.0,
        share * 100.0
    );
    Some(Witness { text, evidence: vec![path] })
}

/// All of the guest's requests go through virtio, and QEMU owes it no answer in either sample. A disk on IDE or SATA has no queue
/// that could be asked, so where one was ever used this is not known.
fn every_queue_is_empty(pair: &Pair) -> bool {
    let unseen = pair.second.operations.iter().any(|(name, n)| {
        let name = name.trim_start_matches("drive-");
        *n > 0 && !name.starts_with("scsi") && !name.starts_with("virtio")
    });
    let seen = !pair.first.queues.is_empty() && !pair.second.queues.is_empty();
    seen && !unseen && pair.first.queues.iter().chain(&pair.second.queues).all(|q| q.inuse == 0)
}

/// Share of one CPU that the vCPU threads used between the samples; a clock tick is 10 ms.
fn vcpu_share(e: &Evidence<'_>, pair: &Pair) -> Option<f64> {
    let (a, b) = (e.json("process/threads.1.json")?, e.json("process/threads.2.json")?);
    let window = pair.window_ms.filter(|ms| pair.same_call && *ms > 0)?;
    let ticks = vcpu_ticks(&b).checked_sub(vcpu_ticks(&a))?;
    Some(ticks as f64 * 10.0 / window as f64)
}

/// The second sample has its own artifact only where this call took both.
fn both(pair: &Pair, [first, second]: [&'static str; 2]) -> Vec<&'static str> {
    if pair.same_call { vec![first, second] } else { vec![first] }
}

/// Throttle limits and backend of each disk that has a medium.
fn setting(e: &Evidence<'_>) -> Option<String> {
    let blocks = e.json("qmp/query-block.json")?;
    let disks: Vec<String> = blocks
        .as_array()?
        .iter()
        .filter_map(|block| {
            let medium = block.get("inserted")?;
            let limits: Vec<String> = ["bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"]
                .into_iter()
                .filter_map(|name| Some((name, medium.get(name)?.as_u64().filter(|n| *n > 0)?)))
                .map(|(name, n)| format!("{name}={n}"))
                .collect();
            let limits = if limits.is_empty() { "no throttle limit".to_owned() } else { format!("throttle {}", limits.join(" ")) };
            let word = |member: &str| medium.get(member).and_then(Value::as_str).map_or_else(|| "?".to_owned(), show);
            let status = block.get("io-status").and_then(Value::as_str).map(|s| format!(", io-status {}", show(s))).unwrap_or_default();
            Some(format!("{}: {limits}, backend {} {}{status}", show(&device_name(block)?), word("drv"), word("file")))
        })
        .take(8)
        .collect();
    (!disks.is_empty()).then(|| disks.join("; "))
}

fn iothreads(e: &Evidence<'_>) -> Option<String> {
    let list = e.json("qmp/query-iothreads.json")?;
    let names: Vec<String> = list.as_array()?.iter().filter_map(|t| Some(show(t.get("id")?.as_str()?))).take(8).collect();
    Some(if names.is_empty() { "No iothread".to_owned() } else { format!("Iothreads: {}", names.join(", ")) })
}
