//! Many at once: ten incidents with Claude in one process, twenty watchers on two of them. Nobody sees another's line, nobody misses one of
//! their own, and the process stays small. Alone in its file: what is measured is the process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stderr)] // the figures are worth a line

mod api;
#[path = "support/mind.rs"]
mod support;

use std::sync::Arc;
use std::time::Duration;

use agent::claude::{Budget, Session, Settings, Turned};
use agent::incident::{By, Incident, Line, Seen, What};
use api::{Api, actors};
use support::{recorded, with};

/// What the process may have resident.
const RESIDENT_KIB: u64 = 40 * 1024;

/// Watches from after a line until the incident ends; the numbers and texts that came.
async fn seen(incident: Arc<Incident>, after: u64, slow: Duration) -> Vec<(u64, String)> {
    let mut watcher = incident.watch(after);
    let mut all = Vec::new();
    loop {
        if let Seen::Line(n, text) = watcher.next().await {
            let ended = matches!(serde_json::from_str::<Line>(&text).unwrap().what, What::Ended { .. });
            all.push((n, text));
            if ended {
                return all;
            }
            tokio::time::sleep(slow).await;
        }
    }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_incidents_and_twenty_watchers_at_once_share_nothing_and_fit_in_40_mib() {
    let budget = Budget { mutations_per_hour: 100, ..Budget::default() };
    let desks: Vec<_> = (0..10)
        .map(|_| {
            with(
                Api::forgetful(|body, _| actors::good(body)),
                recorded("2026-06-11-block-stall"),
                Settings::default(),
                budget,
                Duration::ZERO,
            )
        })
        .collect();
    // One store, as one process has one; each incident has a VM of its own to act on.
    let incidents: Vec<_> =
        desks.iter().map(|desk| desks[0].store.create("many at once", By::Human, None).map(|i| (desk, i)).unwrap()).collect();
    let mut watchers = Vec::new();
    for (_, incident) in &incidents[..2] {
        for n in 0..10u64 {
            // Some come late to it, one reads slowly.
            let slow = Duration::from_millis(if n == 9 { 5 } else { 0 });
            watchers.push((incident.id().clone(), n % 3, tokio::spawn(seen(Arc::clone(incident), n % 3, slow))));
        }
    }
    let talks: Vec<_> = incidents
        .iter()
        .map(|(desk, incident)| {
            let (mut session, incident) = (Session::open(&desk.mind, incident).unwrap(), Arc::clone(incident));
            tokio::spawn(async move {
                let turned = session.prompt(&format!("This is about {}.", incident.id()), None).await;
                (turned, session)
            })
        })
        .collect();
    let mut open = Vec::new();
    for talk in talks {
        let (turned, session) = talk.await.unwrap();
        assert_eq!(turned, Turned::Said);
        open.push(session);
    }
    let kib = resident();
    eprintln!("ten incidents open, twenty watchers: {kib} KiB resident, with the scripted API and all VMs in the same process");
    assert!(kib < RESIDENT_KIB, "{kib} KiB");
    for (desk, incident) in &incidents {
        incident.end(incident.task(), true, &proto::Message::new("It is over.", "Nothing."));
        desk.faultless();
        assert_eq!(desk.world.state(), "well");
        let text = std::fs::read_to_string(incident.folder().join("messages.jsonl")).unwrap();
        for (_, other) in &incidents {
            assert_eq!(text.contains(other.id().as_str()), other.id() == incident.id());
        }
    }
    for (id, after, watcher) in watchers {
        let lines = watcher.await.unwrap();
        let mut logged = Vec::new();
        desks[0].store.lines(&id, after + 1, |line, text| logged.push((line.n, text.to_owned()))).unwrap();
        assert_eq!(lines, logged, "each line of its own incident, once, in order");
        assert!(lines.iter().all(|(_, text)| text.contains(id.as_str())));
    }
    // No message stands in two conversations: each has words or a signature of its own.
    let read = |incident: &Incident| std::fs::read_to_string(incident.folder().join("messages.jsonl")).unwrap();
    let mut messages: Vec<String> =
        incidents.iter().flat_map(|(_, one)| read(one).lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    let all = messages.len();
    messages.sort();
    messages.dedup();
    assert_eq!(messages.len(), all);
}
