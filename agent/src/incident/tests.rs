//! Incidents on a real folder: they survive crashes, are watched, share nothing.

use std::io::Write;

use super::*;
use crate::evals::case::Case;
use crate::evals::world::World;
use crate::hands::Hands;

mod held;

fn store(folder: &Path) -> Arc<Store> {
    Store::open(folder, 1 << 30, false).unwrap()
}

fn said(text: &str) -> What {
    What::Said { text: text.to_owned() }
}

fn world() -> Arc<World> {
    let text = r#"
        about = "a test"
        says = "help"
        start = "stalled"
        [state.stalled]
        vm = "running"
        code = "block-stalled"
        sentence = "VM 102 is block-stalled."
        recommend = "cycle"
        why = "Only a fresh QEMU process completes I/O again."
        artifacts = { "qmp/query-status.json" = '{"status":"running"}' }
        on.cycle = { to = "stalled" }
        [expect]
        ends = ["stalled"]
    "#;
    Arc::new(World::new(Case::parse("test", text).unwrap()).unwrap())
}

/// The numbers and events of a log, as anybody reads them.
fn lines(store: &Store, id: &IncidentId) -> Vec<(u64, What)> {
    let mut lines = Vec::new();
    store.lines(id, 1, |line, _| lines.push((line.n, line.what))).unwrap();
    lines
}

#[test]
fn a_torn_last_line_is_repaired_and_the_rest_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let id = {
        let store = store(folder.path());
        let incident = store.create("it hangs", By::Human, Some("anna")).unwrap();
        incident.note(incident.task(), By::Human, said("one"));
        incident.id().clone()
    };
    let path = folder.path().join("incidents").join(id.as_str()).join("events.jsonl");
    fs_append(&path, br#"{"v":1,"n":3,"at":"20"#);
    let store = store(folder.path());
    assert_eq!(store.unfinished(), std::slice::from_ref(&id));
    let incident = store.resume(&id).unwrap();
    assert_eq!((incident.facts().title.as_str(), incident.facts().last_task), ("it hangs", 1));
    let all = lines(&store, &id);
    assert!(matches!(all[2], (3, What::Repaired { bytes: 21 })) && matches!(all[3], (4, What::Resumed)), "{all:?}");
}

fn fs_append(path: &Path, bytes: &[u8]) {
    std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[test]
fn a_changed_line_breaks_the_chain_and_the_log_is_not_continued() {
    let folder = tempfile::tempdir().unwrap();
    let id = {
        let incident = store(folder.path()).create("it hangs", By::Human, None).unwrap();
        incident.note(Task(0), By::Human, said("one"));
        incident.note(Task(0), By::Human, said("two"));
        incident.id().clone()
    };
    let path = folder.path().join("incidents").join(id.as_str()).join("events.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"one\"", "\"ONE\"")).unwrap();
    let store = store(folder.path());
    let why = store.resume(&id).unwrap_err();
    assert!(why.what.contains("Line 3"), "{why}");
    assert!(store.list()[0].facts.lines > 0);
}

#[test]
fn one_process_writes_an_incident() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (store(folder.path()), store(folder.path()));
    let incident = one.create("it hangs", By::Human, None).unwrap();
    assert!(two.resume(incident.id()).unwrap_err().what.contains("another breakglass"));
    let none = "1f0c9a2e-7c1e-4b57-9a52-0d6b2f3c1a02".parse().unwrap();
    for said in [two.resume(&none).unwrap_err(), two.lines(&none, 1, |_, _| ()).unwrap_err()] {
        assert!(said.what == "There is no incident of this id." && said.next.ends_with("incidents."), "{said}");
    }
    assert!(two.list()[0].open && two.unfinished().is_empty());
}

#[tokio::test]
async fn twenty_watchers_of_two_incidents_see_every_line_once_and_a_slow_one_stops_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let incidents = [store.create("a", By::Human, None).unwrap(), store.create("b", By::Human, None).unwrap()];
    let idle = incidents[0].watch(0);
    let mut tasks = Vec::new();
    for (which, incident) in incidents.iter().enumerate() {
        for _ in 0..10 {
            let mut watcher = incident.watch(1);
            tasks.push(tokio::spawn(async move {
                let mut numbers = Vec::new();
                while watcher.after() < 501 {
                    if let Seen::Line(n, text) = watcher.next().await {
                        assert!(text.contains(&format!("\"{which}-")), "{text}");
                        numbers.push(n);
                    }
                }
                assert_eq!(numbers, (2..=501).collect::<Vec<u64>>());
            }));
        }
    }
    for n in 0..500 {
        for (which, incident) in incidents.iter().enumerate() {
            incident.note(Task(0), By::Human, said(&format!("{which}-{n}")));
            incident.show(Live { task: Task(0), thinking: false, text: "…".to_owned() });
        }
        tokio::task::yield_now().await;
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(idle.after(), 0);
    let mut late = incidents[1].watch(499);
    assert!(matches!(late.next().await, Seen::Line(500, _)));
}

#[tokio::test]
async fn a_verb_s_id_is_in_the_log_before_it_is_asked_and_its_end_comes_though_nobody_waits() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let incident = store.create("it hangs", By::Human, None).unwrap();
    let world = world();
    let hands: Arc<dyn Hands> = world.clone();
    let asks = Asks { reason: Some("a look".to_owned()), ..Asks::default() };
    let running = incident.verb(&hands, incident.task(), By::Model, proto::Verb::Forensics, asks).unwrap();
    let all = lines(&store, incident.id());
    assert!(matches!(&all[1].1, What::VerbAsked { request_id, .. } if request_id.as_str() == running.id), "{all:?}");
    assert!(world.acts().is_empty());
    drop(running);
    let mut watcher = incident.watch(0);
    while !incident.facts().running.is_empty() {
        watcher.next().await;
    }
    let facts = incident.facts();
    assert!(facts.evidence.is_some() && facts.state.is_some());
    let file = lines(&store, incident.id())
        .into_iter()
        .find_map(|(_, what)| if let What::Artifact { file, .. } = what { Some(file) } else { None });
    assert_eq!(std::fs::read(incident.file(&file.unwrap()).unwrap()).unwrap(), br#"{"status":"running"}"#);
}

#[tokio::test]
async fn after_a_restart_the_receipt_is_fetched_by_its_id_and_nothing_is_started() {
    let folder = tempfile::tempdir().unwrap();
    let world = world();
    let hands: Arc<dyn Hands> = world.clone();
    let (id, pending) = {
        let store = store(folder.path());
        let incident = store.create("it hangs", By::Human, None).unwrap();
        let running = incident.verb(&hands, incident.task(), By::Human, proto::Verb::Cycle, Asks::default()).unwrap();
        let pending = incident.facts().running[0].clone();
        running.end().await.unwrap();
        // As kill -9 leaves it: asked, and no end.
        let path = incident.folder().join("events.jsonl");
        let text = std::fs::read_to_string(&path).unwrap();
        let kept: String = text.lines().take(2).map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, kept).unwrap();
        (incident.id().clone(), pending)
    };
    let store = store(folder.path());
    let incident = store.resume(&id).unwrap();
    assert_eq!(incident.facts().running, std::slice::from_ref(&pending));
    let told = incident.reattach(&hands, incident.task(), &pending).unwrap().unwrap().end().await.unwrap();
    assert_eq!((told.end.request_id, told.end.status), (pending.request_id, 0));
    assert!(incident.facts().running.is_empty());
    assert_eq!(world.acts().len(), 1);
}

#[test]
fn retention_removes_the_oldest_that_ended_and_never_an_open_one() {
    let folder = tempfile::tempdir().unwrap();
    let big = "x".repeat(20_000);
    let make = |store: &Store, end: bool| {
        let incident = store.create("a", By::Human, None).unwrap();
        incident.note(Task(0), By::Human, said(&big));
        if end {
            incident.end(Task(0), true, &Message::new("Well.", "Sleep."));
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
        incident.id().clone()
    };
    let first = store(folder.path());
    let (unended, old) = (make(&first, false), make(&first, true));
    drop(first);
    let store = Store::open(folder.path(), 60_000, false).unwrap();
    let held = store.create("held", By::Human, None).unwrap();
    let new = make(&store, true);
    held.note(Task(0), By::Human, said(&big));
    held.end(Task(0), true, &Message::new("Well.", "Sleep."));
    store.retain();
    let left: Vec<IncidentId> = store.list().into_iter().map(|one| one.id).collect();
    assert!(left.contains(&unended) && left.contains(held.id()) && !left.contains(&old), "{left:?}");
    assert_eq!(left.len(), 2, "{new} fits no more either");
}

#[test]
fn mutations_are_counted_over_all_incidents_and_processes() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (store(folder.path()), store(folder.path()));
    one.take_mutation(3).unwrap();
    two.take_mutation(3).unwrap();
    one.take_mutation(3).unwrap();
    assert!(two.take_mutation(3).unwrap_err().what.contains("3 mutations"));
}

#[test]
fn what_waits_for_a_person_is_decided_once() {
    let folder = tempfile::tempdir().unwrap();
    let incident = store(folder.path()).create("a", By::Human, None).unwrap();
    let mut waits = incident.await_person(Task(1), "toolu_1", "pve_cycle", "cycle: disk stalled").unwrap();
    assert_eq!(incident.facts().awaiting.len(), 1);
    let yes = Decision { allowed: true, actor: None };
    assert!(!incident.decide("toolu_2", yes.clone()));
    assert!(incident.decide("toolu_1", yes.clone()) && !incident.decide("toolu_1", yes.clone()));
    assert_eq!(waits.try_recv().unwrap(), yes);
}

#[tokio::test]
async fn words_that_a_line_has_overtaken_are_not_said_again_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let incident = store(folder.path()).create("words", By::Human, None).unwrap();
    let words = |text: &str| Live { task: Task(0), thinking: false, text: text.to_owned() };
    let mut watcher = incident.watch(1);
    incident.show(words("It is "));
    incident.show(words("well."));
    incident.note(Task(0), By::Model, said("It is well."));
    incident.show(words("And now"));
    assert!(matches!(watcher.next().await, Seen::Line(2, _)), "a line comes before words: it is what is kept");
    assert_eq!(watcher.next().await, Seen::Live(words("And now")));
}

#[test]
fn a_title_is_kept_without_its_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let incident = store(folder.path()).create("it hangs, password=hunter2222 does not help", By::Human, None).unwrap();
    let log = std::fs::read_to_string(incident.folder().join("events.jsonl")).unwrap();
    assert!(!log.contains("hunter2222") && !incident.facts().title.contains("hunter2222"), "{log}");
}

/// Whoever lists incidents asks of each whether somebody writes it, by a lock that is held for a moment; or longer on a machine with no time.
#[test]
fn who_only_looks_keeps_nobody_from_writing() {
    let folder = tempfile::tempdir().unwrap();
    let id = store(folder.path()).create("it hangs", By::Human, None).unwrap().id().clone();
    // A looker that is off the CPU holds it for longer than anybody waits: not ten times in a row.
    let outwaited = (0..10).any(|_| {
        let looks = std::fs::File::open(folder.path().join("incidents").join(id.as_str()).join("events.jsonl")).unwrap();
        rustix::fs::flock(&looks, rustix::fs::FlockOperation::LockShared).unwrap();
        let looker = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(30));
            drop(looks);
        });
        let resumed = store(folder.path()).resume(&id);
        looker.join().unwrap();
        resumed.is_ok()
    });
    assert!(outwaited);
}

/// A person stopped the turn, and the cycle that it had begun went on; then the program was killed.
#[tokio::test]
async fn what_a_stopped_turn_left_running_is_fetched_after_a_restart_and_not_removed_before() {
    let folder = tempfile::tempdir().unwrap();
    let world = world();
    let hands: Arc<dyn Hands> = world.clone();
    let id = {
        let store = store(folder.path());
        let incident = store.create("it hangs", By::Human, None).unwrap();
        let asks = Asks { call: Some("toolu_1".to_owned()), ..Asks::default() };
        let running = incident.verb(&hands, incident.task(), By::Model, proto::Verb::Cycle, asks).unwrap();
        let path = incident.folder().join("events.jsonl");
        let asked = std::fs::read_to_string(&path).unwrap();
        running.end().await.unwrap();
        let id = incident.id().clone();
        drop(incident);
        drop(store);
        std::fs::write(&path, asked).unwrap();
        id
    };
    {
        let store = store(folder.path());
        let incident = store.resume(&id).unwrap();
        let text = "A person stopped the turn.".to_owned();
        incident.note(Task(1), By::Model, What::Result { call: "toolu_1".to_owned(), error: true, text, images: 0 });
        incident.end(Task(1), false, &Message::new("You stopped it.", "Look."));
    }
    let store = Store::open(folder.path(), 1, false).unwrap();
    store.retain();
    assert_eq!(store.unfinished(), std::slice::from_ref(&id), "its receipt is still to be had");
    let incident = store.resume(&id).unwrap();
    assert_eq!(incident.catch_up(&hands, incident.task(), false).await, None);
    let ends = lines(&store, &id).into_iter().filter(|(_, what)| matches!(what, What::VerbEnded { receipt: Some(_), .. })).count();
    assert_eq!((ends, incident.facts().running.len(), world.acts().len()), (1, 0, 1));
}

/// Hands whose devvm prints these pieces.
struct Pieces(&'static [&'static str]);

impl Hands for Pieces {
    fn vmid(&self) -> proto::Vmid {
        proto::Vmid::DEVVM
    }

    fn verb(
        &self,
        _: crate::hands::VerbAsk,
        _: tokio::sync::mpsc::Sender<crate::hands::VerbNews>,
    ) -> crate::hands::Doing<'_, crate::hands::VerbEnd> {
        Box::pin(std::future::pending())
    }

    fn exec(
        &self,
        _: crate::hands::ExecAsk,
        news: tokio::sync::mpsc::Sender<crate::hands::ExecNews>,
    ) -> crate::hands::Doing<'_, crate::hands::ExecEnd> {
        Box::pin(async move {
            for piece in self.0 {
                let _told = news.send(crate::hands::ExecNews { stderr: false, bytes: piece.as_bytes().to_vec() }).await;
            }
            crate::hands::ExecEnd::Exited(0)
        })
    }
}

#[tokio::test]
async fn a_secret_that_comes_in_pieces_is_in_no_line_and_every_other_word_is() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let incident = store.create("it hangs", By::Human, None).unwrap();
    let pieces: &[&str] = &[
        "first\nVAULT_TOKEN=hvs.CAES",
        "IJ1234567890abcdefghij\nsecond\npassw",
        "ord: hunter2222\n",
        "-----BEGIN OPENSSH PRIV",
        "ATE KEY-----\nb3BlbnNzaC1rZXk",
        "AAAA\nBBBBB3BlbnNz\n",
        "-----END OPENSSH PRIVATE KEY-----\nthird\nno newline",
    ];
    let hands: Arc<dyn Hands> = Arc::new(Pieces(pieces));
    let exec = Exec { command: "env".to_owned(), reason: None, timeout: std::time::Duration::from_secs(5), patient: false, call: None };
    incident.exec(&hands, incident.task(), By::Model, exec).unwrap().end().await.unwrap();
    let log = std::fs::read_to_string(incident.folder().join("events.jsonl")).unwrap();
    for secret in ["CAES", "1234567890abcdefghij", "hunter", "b3Blbn", "BBBBB3"] {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
    for word in ["first", "second", "third", "no newline"] {
        assert!(log.contains(word), "{word}: {log}");
    }
    assert_eq!(std::fs::read_to_string(incident.folder().join("artifacts/exec/1.txt")).unwrap(), pieces.concat());
}

#[tokio::test(start_paused = true)]
async fn what_the_log_does_not_take_nobody_sends_neither_a_person_nor_the_runbook() {
    let (folder, world) = (tempfile::tempdir().unwrap(), world());
    let incident = store(folder.path()).create("it hangs", By::Watch, None).unwrap();
    incident.state().log.dies();
    let hands: Arc<dyn Hands> = world.clone();
    assert!(incident.verb(&hands, incident.task(), By::Human, proto::Verb::Cycle, Asks::default()).is_err());
    let mut notes = Notes::new(Arc::clone(&incident), incident.task());
    let ended = crate::runbook::run(&*world, &mut notes, crate::runbook::Patience::default(), true).await;
    assert!(!ended.healthy && ended.said.to_string().contains("can't be written"), "{ended:?}");
    assert_eq!(world.acts(), [], "what is asked is on the disk before it is sent");
}
