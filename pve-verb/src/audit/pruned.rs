//! A log that is larger than it may be: the oldest segments go, several at once, and what was missed is made up.

use super::tests::Host;
use super::*;
use crate::disk::tests::disk_at;

const AMPLE: Duration = Duration::from_secs(60);

/// This many segments of one record each, and a log that may keep none of them.
fn segments(host: &Host, many: usize) -> Log {
    for _ in 0..many {
        host.log().put(Kind::Read, Map::new());
    }
    let (whole, one) = (host.on_disk(), host.segments().remove(0));
    for (seq, line) in (1..).zip(whole.split_inclusive(|b| *b == b'\n')) {
        std::fs::write(one.with_file_name(host::segment(seq)), line).unwrap();
    }
    host.restart();
    Log::open_at(&host.run(), disk_at(host.root.path()), Some(host.signer.clone()), 0, None)
}

/// The `pruned` records name the segments in their order, and the last one what the log's beginning follows.
fn follows_what_was_dropped(host: &Host, dropped: u64) {
    let lines: Vec<Value> =
        host.on_disk().split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect();
    let pruned: Vec<&Value> = lines.iter().filter(|l| l["kind"] == "pruned").collect();
    assert_eq!(pruned.iter().map(|l| l["segment"].as_u64().unwrap()).collect::<Vec<_>>(), (1..=dropped).collect::<Vec<_>>());
    assert_eq!(pruned.last().unwrap()["last_hash"], lines[0]["prev"]);
}

#[test]
fn a_log_that_is_far_too_large_shrinks_after_one_answer_and_the_next() {
    let host = Host::new();
    let mut log = segments(&host, 12);
    log.prune(AMPLE);
    assert_eq!(host.segments().len(), 12 - DROP_AT_ONCE);
    follows_what_was_dropped(&host, 8);
    log.prune(AMPLE);
    assert_eq!(host.segments().len(), 1, "the newest stays");
    follows_what_was_dropped(&host, 11);
    let before = host.on_disk();
    log.prune(AMPLE);
    assert_eq!(host.on_disk(), before, "nothing to drop, nothing to say");
}

#[test]
fn a_read_that_opens_a_segment_drops_all_that_is_too_much_and_a_mutations_record_one() {
    for (kind, left) in [(Kind::Read, 1), (Kind::Outcome, 3)] {
        let host = Host::new();
        let mut log = segments(&host, 3);
        // The newest is full: whatever stands before its last line.
        let newest = host.segments().remove(2);
        let full = [vec![b'x'; 16 << 20], b"\n".to_vec(), std::fs::read(&newest).unwrap()].concat();
        std::fs::write(&newest, full).unwrap();
        log.append_within(kind, Map::new(), AMPLE).unwrap();
        assert_eq!(host.segments().len(), left, "{kind:?}");
    }
}
