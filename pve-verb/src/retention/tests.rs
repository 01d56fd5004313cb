//! Which bundles go, and which may not: by age, number, size and whether somebody has looked at them.

use super::*;
use proptest::prelude::*;
use proto::{RequestId, Timestamp};

/// A bundle whose name says any time: the order is the shelf's.
fn shelved(n: u64, verb: Verb, bytes: u64, days: u64) -> Shelved {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    let at = Timestamp::from_unix_ms(1_795_220_999_123 - n * 1000);
    Shelved {
        name: BundleName::new(at, verb, &RequestId::from_random(id)),
        seq: n * 10,
        bytes,
        aged_ms: days * 24 * 3_600_000,
        idle: false,
    }
}

const TEN: Quota = Quota { keep: 10, keep_bytes: 1000 };

#[test]
fn the_oldest_forensics_go_beyond_twenty_or_a_gibibyte() {
    let many: Vec<_> = (0..25).map(|n| shelved(n, Verb::Forensics, 1, 0)).collect();
    assert_eq!(due(&many, TEN, None), many[..5].iter().collect::<Vec<_>>());
    let large: Vec<_> = (0..4).map(|n| shelved(n, Verb::Forensics, 400 << 20, 0)).collect();
    assert_eq!(due(&large, TEN, None), large[..2].iter().collect::<Vec<_>>());
    let huge = [shelved(1, Verb::Forensics, 2 << 30, 0)];
    assert_eq!(due(&huge, TEN, None), Vec::<&Shelved>::new(), "the newest never");
}

#[test]
fn a_mutations_bundle_stays_until_it_is_reviewed_and_thirty_days_old() {
    let old: Vec<_> = (0..15).map(|n| shelved(n, Verb::Cycle, 1, 30)).collect();
    assert_eq!(due(&old, TEN, None).len(), 0, "nobody has looked at them");
    assert_eq!(due(&old, TEN, Some(1_000)), old[..5].iter().collect::<Vec<_>>());
    assert_eq!(due(&old, TEN, Some(21)), old[..3].iter().collect::<Vec<_>>(), "made before the review");
    let young: Vec<_> = (0..15).map(|n| shelved(n, Verb::Stop, 1, if n == 1 { 30 } else { 29 })).collect();
    assert_eq!(due(&young, TEN, Some(1_000)), [&young[1]]);
}

#[test]
fn what_changed_nothing_goes_like_forensics_and_a_mutations_bundle_never_for_it() {
    let idle = |n, verb, bytes| Shelved { idle: true, ..shelved(n, verb, bytes, 0) };
    // Two mutations, then `start` of a running VM, dry runs and refused resets in a loop: far above the quota, and reviewed by nobody.
    let mut all = vec![shelved(0, Verb::Cycle, 1, 0), shelved(1, Verb::Reset, 1, 0)];
    all.extend((2..52).map(|n| idle(n, [Verb::Start, Verb::Cycle, Verb::Reset][n as usize % 3], 1)));
    assert_eq!(due(&all, TEN, None), all[2..32].iter().collect::<Vec<_>>());
    // They share the quota of forensics, by number and by bytes.
    let mixed: Vec<_> = (0..24).map(|n| if n % 2 == 0 { idle(n, Verb::Start, 1) } else { shelved(n, Verb::Forensics, 1, 0) }).collect();
    assert_eq!(due(&mixed, TEN, None), mixed[..4].iter().collect::<Vec<_>>());
    let large: Vec<_> = (0..4).map(|n| idle(n, Verb::Stop, 400 << 20)).collect();
    assert_eq!(due(&large, TEN, None), large[..2].iter().collect::<Vec<_>>());
}

#[test]
fn the_two_kinds_do_not_push_each_other_out() {
    let mut all: Vec<_> = (0..10).map(|n| shelved(n, Verb::Cycle, 100, 99)).collect();
    all.extend((10..30).map(|n| shelved(n, Verb::Forensics, 100, 0)));
    assert_eq!(due(&all, TEN, Some(u64::MAX)), Vec::<&Shelved>::new());
}

proptest! {
    #[test]
    fn whatever_the_shelf_holds(
        kinds in proptest::collection::vec((0..3u8, 0..200u64, 0..60u64), 0..60),
        reviewed in proptest::option::of(0..700u64),
    ) {
        let shelf: Vec<_> = kinds.iter().enumerate().map(|(n, (kind, bytes, days))| {
            let verb = if *kind == 0 { Verb::Forensics } else { Verb::Reset };
            Shelved { idle: *kind == 1, ..shelved(n as u64, verb, *bytes, *days) }
        }).collect();
        let gone = due(&shelf, TEN, reviewed);
        if let Some(newest) = shelf.last() {
            prop_assert!(!gone.contains(&newest));
        }
        for bundle in &gone {
            if mutations(bundle) {
                prop_assert!(reviewed.is_some_and(|at| bundle.seq < at) && bundle.aged_ms >= YOUNG_MS);
            }
        }
        // What is left is within its quota, or nothing more of it may go.
        let left: Vec<_> = shelf.iter().filter(|b| !gone.contains(b)).cloned().collect();
        prop_assert_eq!(due(&left, TEN, reviewed), Vec::<&Shelved>::new());
        prop_assert!(left.iter().filter(|b| !mutations(b)).count() <= FORENSICS.keep);
    }
}
