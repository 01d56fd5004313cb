//! The guest group: what the agent inside the VM says of itself. A silent agent is no witness of anything.

use super::host::WINDOW;
use super::qmp::{LEFT_ALONE, Port, sign_of_life};
use crate::helper::run::Outbox;
use crate::qga::{Agent, Query};
use crate::qmp::{Door, QmpError};
use proto::ProbeOutcome;
use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long the agent may take for the first answer, and for each next.
const SYNC: Duration = Duration::from_millis(800);
const ANSWER: Duration = Duration::from_millis(500);

/// In this order: decisive first, then a second look at the disks, and last what can hang in the guest (statfs of a dead mount).
const FIRST: [(&str, Query); 7] = [
    ("guest/ping", Query::Ping),
    ("guest/diskstats", Query::Diskstats),
    ("guest/load", Query::Load),
    ("guest/time", Query::Time),
    ("guest/vcpus", Query::Vcpus),
    ("guest/osinfo", Query::Osinfo),
    ("guest/info", Query::Info),
];
const LAST: [(&str, Query); 2] = [("guest/diskstats.2", Query::Diskstats), ("guest/fsinfo", Query::Fsinfo)];

/// Asks everything that is wanted; `port` is QMP's word on whether the guest has opened the port.
pub(crate) fn ask(door: &Door, port: &OnceLock<Port>, out: &Outbox, wanted: &BTreeSet<String>) {
    let started = Instant::now();
    let why = match sign_of_life(port, || door.still_ours().is_ok()) {
        Some(Port::Open | Port::Unknown) => None,
        Some(Port::Closed) => Some("no agent runs in the guest: it has not opened the port"),
        None => Some(LEFT_ALONE),
    };
    if let Some(why) = why {
        for name in wanted {
            out.without(name, started, ProbeOutcome::Unavailable, why);
        }
        return;
    }
    let mut left = wanted.clone();
    if let Err(e) = session(door, out, &mut left) {
        let why = match e {
            QmpError::NoSocket => "the VM has no agent port".to_owned(),
            QmpError::Timeout => "the guest agent does not answer".to_owned(),
            ref other => other.to_string(),
        };
        for name in left {
            out.without(&name, started, ProbeOutcome::from(&e), &why);
        }
    }
}

fn session(door: &Door, out: &Outbox, left: &mut BTreeSet<String>) -> Result<(), QmpError> {
    let nonce = u32::from_ne_bytes(crate::host::random().unwrap_or([1; 4])) & 0x7fff_ffff;
    let mut agent = Agent::open(door, nonce, SYNC)?;
    let mut sampled = None;
    for (name, query) in FIRST {
        one(&mut agent, out, left, name, query)?;
        if name == "guest/diskstats" {
            sampled = Some(Instant::now());
        }
    }
    if left.contains("guest/diskstats.2") {
        let since: Instant = sampled.unwrap_or_else(Instant::now);
        door.pause(WINDOW.saturating_sub(since.elapsed()))?;
    }
    for (name, query) in LAST {
        one(&mut agent, out, left, name, query)?;
    }
    Ok(())
}

fn one(agent: &mut Agent<'_>, out: &Outbox, left: &mut BTreeSet<String>, name: &str, query: Query) -> Result<(), QmpError> {
    if !left.contains(name) {
        return Ok(());
    }
    let since = Instant::now();
    match agent.ask(query, ANSWER) {
        Ok(value) => out.json(name, since, &value),
        Err(e) if e.is_answer() => out.without(name, since, ProbeOutcome::from(&e), &e.to_string()),
        Err(e) => return Err(e),
    }
    left.remove(name);
    Ok(())
}
