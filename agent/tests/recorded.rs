//! Answers of the laboratory's host, as `ssh … --json` printed them: each proves what it should, and damaged in any way nothing else.
//!
//! The events before the receipt are not signed: a bit that flips in one of them can't be seen. So what holds is that an answer which
//! still counts has exactly the signed body that the host signed, and that nothing within the receipt's line can change.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use agent::answer::{Broken, Reader};
use agent::receipt::{Asked, Proved, Unproved, check};
use agent::signers::Pinned;
use proptest::prelude::*;
use proto::{Outcome, Verb};

const STATUS: &[u8] = include_bytes!("answers/status.ndjson");
const CYCLE: &[u8] = include_bytes!("answers/cycle.ndjson");
const REPLAYED: &[u8] = include_bytes!("answers/replayed.ndjson");
const TOO_SOON: &[u8] = include_bytes!("answers/too-soon.ndjson");
const UNSIGNED: &[u8] = include_bytes!("answers/unsigned.ndjson");
const TEXT: &[u8] = include_bytes!("answers/not-in-the-grammar.ndjson");
const KEY: &str = include_str!("answers/signing_key.pub");
const SIGNERS: &str = include_str!("answers/allowed_signers");

fn judged(answer: &[u8], asked: &Asked) -> Result<Proved, Unproved> {
    let mut reader = Reader::new();
    reader.feed(answer, |_| ());
    let unchecked = reader.end().map_err(Unproved::Answer)?;
    check(&unchecked, Some(&Pinned::read(SIGNERS).unwrap()), asked)
}

fn alone(answer: &[u8]) -> Result<Proved, Unproved> {
    judged(answer, &Asked::default())
}

/// Where the last line begins.
fn last_line(answer: &[u8]) -> usize {
    answer[..answer.len() - 1].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
}

#[test]
fn a_signed_answer_proves_its_outcome() {
    for (answer, outcome, verb, replayed) in [
        (STATUS, Outcome::Done, Verb::Status, false),
        (CYCLE, Outcome::Done, Verb::Cycle, false),
        (REPLAYED, Outcome::Done, Verb::Cycle, true),
        (TOO_SOON, Outcome::RefusedPolicy, Verb::Cycle, false),
    ] {
        let proved = alone(answer).unwrap();
        assert_eq!((proved.body().outcome, proved.body().verb, proved.body().replayed), (outcome, Some(verb), replayed));
        assert_eq!(proved.is_success(), outcome == Outcome::Done);
    }
    assert_eq!(Pinned::read(KEY).unwrap().fingerprint(), alone(STATUS).unwrap().by());
}

#[test]
fn an_answer_without_a_signature_proves_nothing() {
    assert_eq!(alone(UNSIGNED).unwrap_err(), Unproved::Unsigned);
    assert_eq!(alone(TEXT).unwrap_err(), Unproved::Answer(Broken::NotAnEvent(1)));
    let mut reader = Reader::new();
    reader.feed(STATUS, |_| ());
    assert_eq!(check(&reader.end().unwrap(), None, &Asked::default()).unwrap_err(), Unproved::NoKey);
}

#[test]
fn a_receipt_of_something_else_is_no_answer() {
    let other_id = Asked { request_id: Some("00000000-0000-4000-8000-000000000000".parse().unwrap()), ..Asked::default() };
    let other_verb = Asked { verb: Some(Verb::Reset), ..Asked::default() };
    for (asked, what) in [(other_id, "request"), (other_verb, "verb")] {
        assert!(matches!(judged(CYCLE, &asked).unwrap_err(), Unproved::Foreign { what: named, .. } if named == what));
    }
    let wanted = "103".parse().unwrap();
    let other_vm = judged(CYCLE, &Asked { vmid: Some(wanted), ..Asked::default() }).unwrap_err();
    assert_eq!(other_vm, Unproved::OtherVm { wanted, got: "102".parse().unwrap() });
    let own = Asked {
        request_id: Some(alone(CYCLE).unwrap().body().request_id.clone()),
        verb: Some(Verb::Cycle),
        vmid: Some("102".parse().unwrap()),
    };
    assert!(judged(CYCLE, &own).unwrap().is_success());
    // The end of one answer behind the events of another.
    let spliced = [&CYCLE[..last_line(CYCLE)], &STATUS[last_line(STATUS)..]].concat();
    assert!(judged(&spliced, &own).is_err());
    // The same body under another key's name for the host.
    let other_host = Pinned::read(&SIGNERS.replace("pve-verb@pve ", "pve-verb@pve2 ")).unwrap();
    let mut reader = Reader::new();
    reader.feed(CYCLE, |_| ());
    assert!(matches!(check(&reader.end().unwrap(), Some(&other_host), &Asked::default()), Err(Unproved::Foreign { what: "host", .. })));
}

#[test]
fn no_truncation_is_a_success() {
    for answer in [STATUS, CYCLE, REPLAYED] {
        // After every line, at every byte of the last one, and at some in between, where all that counts is that no newline came.
        let all = (0..answer.len()).filter(|cut| *cut >= last_line(answer) || cut % 41 == 0 || answer[..*cut].ends_with(b"\n"));
        for cut in all {
            assert!(alone(&answer[..cut]).is_err(), "cut at {cut} of {}", answer.len());
        }
    }
}

/// Flips bits of an answer, one at a time: what still counts has the signed body unchanged.
fn flips(answer: &[u8], bits: impl Iterator<Item = usize>) {
    let whole = alone(answer).unwrap();
    let mut damaged = answer.to_vec();
    for bit in bits {
        damaged[bit / 8] ^= 1 << (bit % 8);
        if let Ok(proved) = alone(&damaged) {
            assert_eq!(proved.body(), whole.body(), "bit {bit}");
            assert!(!signed(answer).contains(&(bit / 8)), "bit {bit} is signed or a signature");
        }
        damaged[bit / 8] ^= 1 << (bit % 8);
    }
}

/// Where the body and the signature stand: they end the answer.
fn signed(answer: &[u8]) -> std::ops::Range<usize> {
    let begin = answer.windows(7).rposition(|part| part == b"\"body\":").unwrap();
    begin..answer.len()
}

#[test]
fn every_flipped_bit_of_a_receipt_is_no_other_success() {
    for answer in [STATUS, CYCLE, REPLAYED] {
        let alone = &answer[last_line(answer)..];
        flips(alone, 0..alone.len() * 8);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn chunks_make_no_difference(cuts in proptest::collection::vec(0..CYCLE.len(), 0..40)) {
        let mut cuts = cuts;
        cuts.extend([0, CYCLE.len()]);
        cuts.sort_unstable();
        let (mut reader, mut told) = (Reader::new(), 0);
        for pair in cuts.windows(2) {
            reader.feed(&CYCLE[pair[0]..pair[1]], |_| told += 1);
        }
        let lines = CYCLE.iter().filter(|byte| **byte == b'\n').count();
        prop_assert_eq!(told, lines - 1);
        let pinned = Pinned::read(KEY).unwrap();
        prop_assert!(check(&reader.end().unwrap(), Some(&pinned), &Asked::default()).unwrap().is_success());
    }

    #[test]
    fn any_flipped_bit_of_a_cycle_is_no_other_success(bit in 0..CYCLE.len() * 8) {
        flips(CYCLE, std::iter::once(bit));
    }

    #[test]
    fn no_bytes_are_a_success(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(alone(&bytes).is_err());
    }
}
