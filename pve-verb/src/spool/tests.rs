//! Spools: lines that were cut off, what is kept, and what is taken away.

use super::*;
use proto::{Body, Step, StepName, StepOutcome, Timestamp};

fn id(n: u8) -> RequestId {
    RequestId::from_random([n; 16])
}

fn binding() -> Binding {
    Binding { key_name: KeyName::console("-"), verb: Verb::Cycle, vmid: Vmid::DEVVM, dry_run: false }
}

fn event(detail: usize) -> Event {
    let step = Step { name: StepName::Preflight, outcome: StepOutcome::Done, ms: 1, detail: Some("x".repeat(detail)) };
    Event::new(Timestamp::from_unix_ms(0), id(1), Body::Step(step))
}

fn detail(next: &Next) -> usize {
    match next {
        Next::Event(event) => match &event.body {
            Body::Step(step) => step.detail.as_ref().map_or(0, String::len),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_line_that_was_cut_off_half_way_does_not_spoil_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::create_in(folder.path(), &id(1), &binding()).unwrap();
    let mut follower = Follower::open_in(folder.path(), &id(1)).unwrap();
    spool.append(&event(1));
    assert_eq!(detail(&follower.follow()), 1);
    // What a write that met a full tmpfs leaves, seen by who follows before it is cut off.
    spool.file.write_all(&[b'{'; 3000]).unwrap();
    assert!(matches!(follower.follow(), Next::Nothing));
    spool.cut_back();
    spool.append(&event(2));
    assert_eq!(detail(&follower.follow()), 2);
    assert!(matches!(follower.follow(), Next::Nothing));
    drop(spool);
    assert!(matches!(follower.follow(), Next::WorkerGone));
}

#[test]
fn a_spool_that_took_the_place_of_a_refused_one_is_not_discarded() {
    let folder = tempfile::tempdir().unwrap();
    let there = || path_of(folder.path(), &id(1)).exists();
    drop(Spool::create_in(folder.path(), &id(1), &binding()).unwrap());
    let looked = [(); 2].map(|()| Follower::open_in(folder.path(), &id(1)).unwrap());
    assert_eq!(looked[0].worker, std::process::id());
    let [one, two] = looked;
    one.discard_in(folder.path(), &id(1));
    assert!(!there());
    let running = Spool::create_in(folder.path(), &id(1), &binding()).unwrap();
    two.discard_in(folder.path(), &id(1));
    assert!(there(), "the spool of a running worker was taken away");
    drop(running);
    // Of many who look at one refused spool, and make a new one, one alone makes it: nobody takes that away.
    let line = [serde_json::to_vec(&binding()).unwrap(), b"\n".to_vec()].concat();
    for _ in 0..50 {
        let made = std::sync::atomic::AtomicUsize::new(0);
        let all: Vec<_> = (0..8).map(|_| Follower::open_in(folder.path(), &id(1)).unwrap()).collect();
        std::thread::scope(|scope| {
            for (n, one) in all.into_iter().enumerate() {
                let (folder, line, made) = (folder.path(), &line, &made);
                scope.spawn(move || {
                    one.discard_in(folder, &id(1));
                    let hidden = folder.join(format!(".{n}"));
                    std::fs::write(&hidden, line).unwrap();
                    let linked = std::fs::hard_link(&hidden, path_of(folder, &id(1))).is_ok();
                    std::fs::remove_file(&hidden).unwrap();
                    made.fetch_add(usize::from(linked), std::sync::atomic::Ordering::SeqCst);
                });
            }
        });
        assert_eq!(made.into_inner(), 1, "two workers would have come up");
    }
}

#[test]
fn spools_of_the_ended_are_kept_up_to_a_number_and_a_size_and_those_of_the_living_always() {
    let folder = tempfile::tempdir().unwrap();
    let made = |n: u8, bytes: usize| {
        let mut spool = Spool::create_in(folder.path(), &id(n), &binding()).unwrap();
        spool.append(&event(bytes));
        // Timestamps of files are as coarse as the kernel's tick.
        std::thread::sleep(Duration::from_millis(12));
        spool
    };
    let living = made(0, 12 << 20);
    for n in 1..4 {
        drop(made(n, 7 << 20));
    }
    prune_in(folder.path());
    let there = |n: u8| path_of(folder.path(), &id(n)).exists();
    assert_eq!((0..4).map(there).collect::<Vec<_>>(), [true, false, true, true]);
    for n in 4..120 {
        drop(Spool::create_in(folder.path(), &id(n), &binding()).unwrap());
    }
    prune_in(folder.path());
    assert!(there(0) && std::fs::read_dir(folder.path()).unwrap().count() <= KEPT + 1);
    drop(living);
}
