//! The grammar from outside: what is in it, what is not and where it stops, and that both directions agree.

use super::*;
use proptest::prelude::*;

const ID: &str = "1f0c9a2e-0000-4000-8000-000000000001";

fn rejected(line: &[u8]) -> (usize, Why) {
    match Request::parse(line) {
        Err(Rejected { position, why }) => (position, why),
        Ok(request) => panic!("{:?} was taken as {request}", String::from_utf8_lossy(line)),
    }
}

#[test]
fn the_six_verbs_alone_are_requests() {
    for verb in Verb::ALL {
        let request = Request::parse(verb.as_str().as_bytes()).unwrap();
        assert_eq!((request.verb(), request.options()), (verb, &Draft::default()));
    }
}

#[test]
fn every_option_in_its_place() {
    let hex = "a".repeat(64);
    for line in [
        "status --json --inline".to_owned(),
        "forensics --tar".to_owned(),
        "forensics --bundle=20261121T003000.123Z-cycle-1f0c9a2e --json".to_owned(),
        format!("cycle --attach --request-id={ID}"),
        format!(
            "cycle --request-id={ID} --dry-run --origin=model --actor=claude --reason=disk%20stalled --witness=7:{hex} --grant=a-b_c.d"
        ),
        format!("status --witness=18446744073709551615:{hex}"),
        "start --reason=%c3%bcber".to_owned(),
    ] {
        let request = Request::parse(line.as_bytes()).unwrap_or_else(|r| panic!("{line}: {r} at {}", r.position));
        assert_eq!(Request::parse(request.to_string().as_bytes()).as_ref(), Ok(&request), "{line}");
    }
}

#[test]
fn the_first_offending_position_is_named() {
    for (line, position) in [
        ("", 0),
        (" status", 0),
        ("status ", 6),
        ("status  --json", 7),
        ("Status", 0),
        ("status;reboot", 0),
        ("status\n", 6),
        ("status --json --json", 14),
        ("status --reason=a --reason=b", 18),
        ("status --reason=a;b", 17),
        ("status --reason=%", 16),
        ("status --reason=", 16),
        ("status --jso", 7),
        ("status --json=1", 7),
        ("status --origin=console", 16),
        ("status --tar", 7),
        ("status --inline", 7),
        ("forensics --json --tar", 17),
        ("cycle --attach", 6),
        ("status\t--json", 6),
        ("status 103", 7),
        // Several that are wrong: the first one.
        ("status --dry-run --bogus", 7),
        ("status --grant=x --dry-run", 7),
        ("status --grant=!", 7),
        ("reset --bundle=nonsense", 6),
        ("start --json --json --tar", 13),
        ("cycle --attach --inline", 6),
        ("cycle --inline --attach", 6),
        ("forensics --tar --json --bogus", 10),
        ("forensics --inline --tar", 10),
        ("forensics --inline --tar --bogus", 19),
        // What follows might have mended it.
        ("cycle --attach --bogus", 15),
        ("status --inline --bogus", 16),
    ] {
        assert_eq!(rejected(line.as_bytes()).0, position, "{line:?}");
    }
    let long = format!("status --reason={}", "a".repeat(5000));
    assert_eq!(rejected(long.as_bytes()), (MAX_REQUEST_BYTES, Why::TooLong));
    let nul = rejected(b"status\0");
    assert_eq!(nul, (6, Why::Byte(0)));
}

#[test]
fn free_text_is_counted_before_decoding() {
    let reason = |n: usize, unit: &str| Request::parse(format!("stop --reason={}", unit.repeat(n)).as_bytes());
    assert!(reason(200, "a").is_ok() && reason(201, "a").is_err());
    assert!(reason(200, "%20").is_ok() && reason(201, "%20").is_err());
    assert!(reason(1, "%c3").is_err() && reason(1, "%0a").is_err() && reason(1, "%c2%85").is_err() && reason(1, "%7f").is_err());
    assert_eq!(Unit64::from_free_text("  two\nlines  ").unwrap().as_str(), "two lines");
    assert_eq!(Unit64::from_free_text(&"ü".repeat(40)).unwrap().as_str(), "ü".repeat(32));
    assert_eq!(Unit64::from_free_text(" \n"), None);
}

#[test]
fn witnesses_have_one_spelling() {
    let hex = "0".repeat(64);
    for bad in [
        format!("0:{hex}"),
        format!("01:{hex}"),
        format!("+1:{hex}"),
        format!("18446744073709551616:{hex}"),
        format!("1:{}", "A".repeat(64)),
        format!("1:{}", "0".repeat(63)),
        format!("1{hex}"),
    ] {
        assert!(bad.parse::<Witness>().is_err(), "{bad}");
    }
}

#[test]
fn no_one_or_two_bytes_are_a_request() {
    for a in 0..=255 {
        assert!(Request::parse(&[a]).is_err());
        for b in 0..=255 {
            assert!(Request::parse(&[a, b]).is_err());
        }
    }
}

#[test]
fn no_byte_can_be_added_to_a_request_anywhere() {
    // Inserting one byte never gives a request; no verb is another plus one byte.
    for verb in Verb::ALL {
        for at in 0..=verb.as_str().len() {
            for byte in 0..=255 {
                let mut line = verb.as_str().as_bytes().to_vec();
                line.insert(at, byte);
                assert!(Request::parse(&line).is_err(), "{line:?}");
            }
        }
    }
}

prop_compose! {
    fn any_request()(
        verb in 0usize..6, flags in any::<[bool; 5]>(), has in any::<[bool; 5]>(), id in any::<[u8; 16]>(), origin in 0usize..5,
        actor in "[^\\p{Cc}]{1,16}", reason in "[^\\p{Cc}]{1,50}", seq in 1u64.., hash in any::<[u8; 32]>(), grant in "[A-Za-z0-9_.-]{1,3500}",
    ) -> Option<Request> {
        let verb = Verb::ALL[verb];
        let [json, inline, tar, dry_run, attach] = flags;
        let id = RequestId::from_random(id);
        let draft = Draft {
            json, inline, tar, dry_run, attach,
            bundle: (has[0] && verb == Verb::Forensics).then(|| BundleName::new(crate::Timestamp::from_unix_ms(seq >> 20), verb, &id)),
            request_id: (has[1] || attach).then_some(id),
            origin: Origin::ON_THE_WIRE.get(origin).map_or(Origin::Unstated, |(_, o)| *o),
            actor: has[2].then(|| Unit64::from_free_text(&actor)).flatten(),
            reason: has[3].then(|| Unit200::from_free_text(&reason)).flatten(),
            witness: has[4].then(|| Witness { seq, head: Sha256Hex::from_bytes(hash) }),
            grant: (has[4] && verb.mutates()).then(|| grant.parse().unwrap()),
        };
        draft.finish(verb).ok()
    }
}

proptest! {
    #[test]
    fn requests_survive_the_wire(request in any_request()) {
        if let Some(request) = request {
            prop_assert_eq!(Request::parse(request.to_string().as_bytes()), Ok(request.clone()), "{}", request);
        }
    }

    #[test]
    fn parsing_is_total(line: Vec<u8>) {
        if let Err(r) = Request::parse(&line) {
            prop_assert!(r.position <= line.len().min(MAX_REQUEST_BYTES));
        }
    }

    #[test]
    fn near_misses_never_panic(line in "(status|forensics|reset|stop|start|cycle)( --?(json|inline|tar|attach|reason=|actor=|witness=|bundle=)[%a-f0-9:. -]{0,9}){0,4}") {
        if let Ok(request) = Request::parse(line.as_bytes()) {
            prop_assert_eq!(Request::parse(request.to_string().as_bytes()), Ok(request));
        }
    }
}

/// The rows of hostile.txt as bytes.
fn hostile() -> Vec<Vec<u8>> {
    include_str!("../../tests/hostile.txt").lines().filter(|row| !row.is_empty() && !row.starts_with("# ")).map(unescape).collect()
}

fn unescape(row: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = row.as_bytes();
    while let Some((&b, tail)) = rest.split_first() {
        rest = tail;
        match (b, tail) {
            (b'\\', [b'\\', tail @ ..]) => {
                bytes.push(b'\\');
                rest = tail;
            }
            (b'\\', [b'x', high, low, tail @ ..]) => {
                let hex = [*high, *low];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
                rest = tail;
            }
            _ => bytes.push(b),
        }
    }
    bytes
}

#[test]
fn every_hostile_line_is_refused() {
    let lines = hostile();
    assert!(lines.len() >= 150, "{} lines", lines.len());
    for line in &lines {
        rejected(line);
    }
    let distinct: std::collections::HashSet<_> = lines.iter().collect();
    assert_eq!(distinct.len(), lines.len(), "a line stands there twice");
}
