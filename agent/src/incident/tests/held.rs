//! Incidents that others hold, and a disk that holds no more.

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
