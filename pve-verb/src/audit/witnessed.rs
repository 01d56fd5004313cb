//! What a caller's witness is told: the record is in the log, in a repair record, not there, or that could not be told.

use super::tests::{Host, fact, kinds};
use super::*;
use crate::disk::tests::{broken_disk, hung_disk};

fn says(log: &Log, seq: u64, head: &Sha256Hex) -> Option<bool> {
    log.contains(&Witness { seq, head: head.clone() }, Duration::from_secs(20))
}

#[test]
fn a_witness_is_known_unknown_or_cannot_be_told() {
    let host = Host::new();
    let first = host.log().put(Kind::Start, Map::new());
    let second = host.log().put(Kind::Read, Map::new());
    let pending = host.log_with(broken_disk()).put(Kind::Read, Map::new());
    let log = host.log();
    for p in [&first, &second, &pending] {
        assert_eq!(says(&log, p.seq, &p.head), Some(true));
        assert_eq!(says(&log, p.seq, &Sha256Hex::zero()), Some(false));
    }
    assert_eq!(says(&log, 4, &pending.head), Some(false), "newer than the log");
    assert_eq!(says(&host.log_with(broken_disk()), first.seq, &first.head), None);
}

#[test]
fn a_record_that_a_repair_record_took_in_is_still_in_the_log() {
    let host = Host::new();
    let real = [Kind::Start, Kind::Read].map(|kind| host.log().put(kind, Map::new()));
    host.restart();
    let lost = host.log_with(hung_disk()).append_within(Kind::Intent, fact("what", "cycle"), Duration::from_millis(100)).unwrap();
    assert_eq!(lost.seq, real[1].seq, "nobody knew where the log ends");
    assert_eq!(says(&host.log_with(broken_disk()), lost.seq, &lost.head), Some(true));
    assert_eq!(says(&host.log_with(broken_disk()), real[1].seq, &real[1].head), None, "the disk was not asked what it has of this number");
    host.log().put(Kind::Read, Map::new());
    let lines = host.sound();
    assert_eq!(kinds(&lines), ["start", "read", "repair", "repair", "read"]);
    for p in real.iter().chain([&lost]) {
        assert_eq!(says(&host.log(), p.seq, &p.head), Some(true));
    }
    assert_eq!(says(&host.log(), lost.seq + 1, &lost.head), Some(false), "under its own number only");
    // While the repair record is on tmpfs only.
    let on_tmpfs = host.on_disk();
    host.restart();
    std::fs::create_dir(host.run()).unwrap();
    std::fs::write(host.run().join("audit-overflow.jsonl"), on_tmpfs).unwrap();
    assert_eq!(says(&host.log_with(broken_disk()), lost.seq, &lost.head), Some(true));
}

#[test]
fn a_number_beyond_the_log_is_looked_for_in_repair_records_and_is_else_gone() {
    let host = Host::new();
    let written: Vec<_> = (0..5).map(|_| host.log().put(Kind::Read, Map::new())).collect();
    let pending = host.log_with(broken_disk()).put(Kind::Read, Map::new());
    let end = host.on_disk().iter().position(|b| *b == b'\n').unwrap() + 1;
    std::fs::write(&host.segments()[0], &host.on_disk()[..end]).unwrap();
    host.log().put(Kind::Read, Map::new());
    assert_eq!(kinds(&host.sound()), ["read", "repair", "repair", "read"]);
    assert_eq!(says(&host.log(), pending.seq, &pending.head), Some(true));
    assert_eq!(says(&host.log(), 5, &written[4].head), Some(false));
    assert_eq!(says(&host.log_with(broken_disk()), 5, &written[4].head), Some(false), "its number is enough to tell");
}
