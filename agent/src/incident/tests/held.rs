//! Incidents that others hold, what is let go of and cut off, and a disk that holds no more.

use super::*;

/// A chat or an MCP client beside the page holds the incident that a button means.
#[test]
fn who_waits_to_take_up_an_incident_keeps_no_page_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let (other, page) = (store(folder.path()), store(folder.path()));
    let id = other.create("it hangs", By::Human, None).unwrap().id().clone();
    // The waiting ends after a second: on a machine with no time a look may begin only then, not ten times in a row.
    let waited_for = (0..10).all(|_| {
        let press = std::thread::spawn({
            let (page, id) = (Arc::clone(&page), id.clone());
            move || page.resume(&id).unwrap_err()
        });
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(page.get(&id).is_none() && page.list()[0].open);
        let pressed_all_along = !press.is_finished();
        assert!(press.join().unwrap().what.contains("another breakglass"));
        !pressed_all_along
    });
    assert!(!waited_for);
}

#[test]
fn two_presses_at_once_take_up_one_incident() {
    let folder = tempfile::tempdir().unwrap();
    let id = store(folder.path()).create("it hangs", By::Human, None).unwrap().id().clone();
    let store = store(folder.path());
    let presses: Vec<_> = (0..8)
        .map(|_| {
            let (store, id) = (Arc::clone(&store), id.clone());
            std::thread::spawn(move || store.resume(&id).unwrap())
        })
        .collect();
    let all: Vec<_> = presses.into_iter().map(|press| press.join().unwrap()).collect();
    assert!(all.iter().all(|one| Arc::ptr_eq(one, &all[0])));
    assert_eq!(lines(&store, &id).iter().filter(|(_, what)| matches!(what, What::Resumed)).count(), 1);
}

/// What ended is let go of when another begins.
#[test]
fn who_takes_up_again_what_it_had_let_go_of_says_nothing_of_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let page = store(folder.path());
    let incident = page.create("it hangs", By::Human, None).unwrap();
    let id = incident.id().clone();
    incident.end(incident.task(), true, &Message::new("It is well.", "Nothing."));
    drop(incident);
    let restarts = || lines(&page, &id).iter().filter(|(_, what)| matches!(what, What::Resumed)).count();
    let let_go = || {
        page.retain();
        assert!(page.get(&id).is_none());
    };
    let_go();
    page.resume(&id).unwrap();
    assert_eq!(restarts(), 0);
    let_go();
    // Another program had it meanwhile.
    drop(store(folder.path()).resume(&id).unwrap());
    assert_eq!(restarts(), 1);
    page.resume(&id).unwrap();
    assert_eq!(restarts(), 2);
}

/// No restart: a person, or its own time.
#[test]
fn a_look_that_a_stopped_runbook_had_begun_is_cut_off_by_the_runbook_s_end() {
    use crate::runbook::Journal;
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let incident = store.create("it hangs", By::Human, None).unwrap();
    let (verb, request_id, origin) = (proto::Verb::Forensics, fresh_id().unwrap(), proto::Origin::Runbook);
    let (actor, reason, grant) = (None, None, None);
    let ask = crate::hands::VerbAsk { verb, request_id, origin, actor, reason, dry_run: false, attach: false, grant };
    Notes::new(Arc::clone(&incident), incident.task()).asks(&ask).unwrap();
    let hands: Arc<dyn Hands> = world();
    incident.fetch_the_runbook_s(&hands, incident.task());
    let all = lines(&store, incident.id());
    let Some((_, What::VerbEnded { said, .. })) = all.last() else { panic!("{all:?}") };
    assert!(said.what == "forensics was cut off by the runbook's end." && incident.facts().running.is_empty(), "{said}");
}

#[test]
fn a_line_on_a_full_disk_costs_the_oldest_evidence() {
    let folder = tempfile::tempdir().unwrap();
    let evidence = |name: &str| {
        let path = folder.path().join("evidence").join(name);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("a"), "x").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5));
        path
    };
    let (old, newest) = (evidence("1"), evidence("2"));
    let full = log::Log::on(std::fs::OpenOptions::new().append(true).open("/dev/full").unwrap());
    let bound = Arc::new(Bound::new(folder.path(), u64::MAX));
    let (id, at) = (IncidentId::fresh().unwrap(), folder.path().to_owned());
    let incident = Incident::around(id, at, full, Facts::default(), artifacts::ROOM, Mirror::default(), bound);
    let why = incident.write(Task(0), By::Human, said("one")).unwrap_err();
    assert!(why.what.contains("No space left on device"), "{why}");
    assert!(!old.exists() && newest.exists() && incident.facts().lines == 0);
}
