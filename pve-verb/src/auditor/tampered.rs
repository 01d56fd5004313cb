//! Every way in which somebody could change a log of fifty records, and what the verifier calls it.

use super::tests::{Host, shown, signer};
use super::{Asked, raw};
use crate::audit::signed_head;
use crate::sign::Signer;
use serde_json::{Map, Value, json};

/// Writes a chain from these records' members with this key, as somebody with all the time in the world would.
fn forged(lines: &[Vec<u8>], signer: Option<&Signer>) -> Vec<Vec<u8>> {
    rechained(lines, |_, _| signer.cloned())
}

/// The same with changes, and a key for each record.
pub(super) fn rechained(lines: &[Vec<u8>], change: impl Fn(usize, &mut Map<String, Value>) -> Option<Signer>) -> Vec<Vec<u8>> {
    use base64ct::{Base64, Encoding};
    let mut prev = "0".repeat(64);
    let mut all = Vec::new();
    for (n, line) in lines.iter().enumerate() {
        let mut record: Map<String, Value> = serde_json::from_slice(line).unwrap();
        record.insert("seq".to_owned(), json!(n + 1));
        record.insert("prev".to_owned(), json!(prev));
        record.remove("sig");
        let signer = change(n, &mut record);
        let mut text = serde_json::to_string(&record).unwrap();
        text.pop();
        let sig = signer.as_ref().map(|s| Base64::encode_string(&s.raw(&crate::audit::signed_part(text.as_bytes()))));
        text.push_str(&format!(",\"sig\":{}}}", json!(sig)));
        prev = raw::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
        all.push((text + "\n").into_bytes());
    }
    all
}

/// Flips each bit of these bytes, in a copy of the host; the exit codes.
fn flip(host: &Host, bytes: &[u8], which: &[usize]) -> Vec<u8> {
    let copy = Host::new(1);
    std::fs::create_dir_all(copy.at("var/log/pve-verb")).unwrap();
    std::fs::copy(host.head(), copy.head()).unwrap();
    let mut codes = Vec::new();
    for (byte, bit) in which.iter().flat_map(|byte| (0..8).map(move |bit| (*byte, bit))) {
        let mut bad = bytes.to_vec();
        bad[byte] ^= 1 << bit;
        std::fs::write(copy.segment(), &bad).unwrap();
        let report = copy.asked(&Asked::default());
        // Without its last newline the last line is torn, and the head covers it.
        let right = if byte + 1 == bytes.len() { 32 } else { 30 };
        assert_eq!(report.exit_code(), right, "bit {bit} of byte {byte}: {}", shown(&report));
        codes.push(right);
    }
    codes
}

#[test]
fn every_flipped_bit_of_fifty_records_and_their_head_is_found_under_the_right_name() {
    let host = Host::with_records(1, 50);
    assert_eq!((host.exit(), host.exit_of_all()), (0, 0));
    let bytes = std::fs::read(host.segment()).unwrap();
    // Every bit of every line takes a minute, so the quick loop flips those of five lines; tests/run sets this.
    let every = std::env::var_os("VERIFIER_EVERY_BIT").is_some();
    let numbered = bytes.split_inclusive(|b| *b == b'\n').enumerate().flat_map(|(n, l)| std::iter::repeat_n(n + 1, l.len()));
    let flipped: Vec<usize> =
        numbered.enumerate().filter(|(_, line)| every || [1, 2, 25, 49, 50].contains(line)).map(|(byte, _)| byte).collect();
    let mut by_code = std::collections::BTreeMap::<u8, u64>::new();
    let parts = flipped.chunks(flipped.len().div_ceil(2));
    let found: Vec<u8> = std::thread::scope(|scope| {
        let running: Vec<_> = parts.map(|part| scope.spawn(|| flip(&host, &bytes, part))).collect();
        running.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    for code in found {
        *by_code.entry(code).or_default() += 1;
    }
    let head = std::fs::read(host.head()).unwrap();
    for bit in 0..head.len() * 8 {
        let mut bad = head.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(host.head(), &bad).unwrap();
        assert_eq!(host.exit(), 34, "bit {bit} of head.json");
        *by_code.entry(34).or_default() += 1;
    }
    std::fs::write(host.head(), &head).unwrap();
    assert_eq!(host.exit(), 0);
    println!(
        "flipped bits found: {} of {} of the log, {} of its head, by exit code {by_code:?}; missed: 0",
        flipped.len() * 8,
        bytes.len() * 8,
        head.len() * 8
    );
}

#[test]
fn truncation_is_found_at_every_line_and_at_every_byte_of_the_last() {
    let host = Host::with_records(1, 50);
    let lines = host.lines();
    for keep in 1..lines.len() {
        host.write(&lines[..keep]);
        assert_eq!(host.exit(), 32, "{keep} lines left");
    }
    let last = lines.last().unwrap();
    for keep in 0..last.len() {
        host.write(&[&lines[..49], &[last[..keep].to_vec()]].concat());
        assert_eq!(host.exit(), 32, "{keep} bytes of the last line left");
    }
    std::fs::write(host.segment(), "").unwrap();
    assert_eq!(host.exit(), 32, "nothing left");
    std::fs::remove_file(host.segment()).unwrap();
    assert_eq!(host.exit(), 32, "no file left");
    std::fs::remove_file(host.head()).unwrap();
    assert_eq!(host.exit(), 32, "no head left either, but the host is still up and remembers");
    host.restart();
    assert_eq!(host.exit(), 35, "nothing left at all");
    println!("truncations found: {} lines, {} bytes of the last; missed: 0", lines.len() - 1, last.len());
}

#[test]
fn removed_repeated_and_swapped_lines_are_found_wherever_they_are() {
    let host = Host::with_records(1, 50);
    let lines = host.lines();
    let mut tried = 0;
    let mut expect = |what: &str, changed: Vec<Vec<u8>>, right: u8| {
        host.write(&changed);
        let report = host.asked(&Asked::default());
        assert_eq!(report.exit_code(), right, "{what}: {}", shown(&report));
        tried += 1;
    };
    for n in 0..49 {
        let without = [&lines[..n], &lines[n + 1..]].concat();
        expect(&format!("line {} removed", n + 1), without, 31);
        expect(&format!("line {} twice", n + 1), [&lines[..=n], &lines[n..]].concat(), 31);
        for m in n + 1..49 {
            let mut swapped = lines.clone();
            swapped.swap(n, m);
            expect(&format!("lines {} and {} swapped", n + 1, m + 1), swapped, 31);
        }
    }
    println!("removed, repeated and swapped lines found: {tried}; missed: 0");
}

#[test]
fn another_hosts_lines_are_found() {
    let (host, other) = (Host::with_records(1, 50), Host::with_records(2, 60));
    let (lines, theirs) = (host.lines(), other.lines());
    for n in 0..50 {
        let mut one = lines.clone();
        one[n] = theirs[n].clone();
        host.write(&one);
        assert_eq!(host.exit(), 30, "their line {} in the place of ours: in order, but not ours", n + 1);
        if n > 0 {
            host.write(&[&lines[..n], &theirs[n - 1..n + 1], &lines[n..]].concat());
            assert_eq!(host.exit(), 31, "two of theirs between ours at {n}");
        }
    }
    host.write(&theirs);
    std::fs::copy(other.head(), host.head()).unwrap();
    assert_eq!(host.exit(), 34, "their whole log with their head");
    std::fs::write(host.at("key"), other.signer.public_openssh()).unwrap();
    let with_their_key = Asked { key: Some(host.at("key")), all: true, ..Asked::default() };
    assert_eq!(host.asked(&with_their_key).exit_code(), 30, "this host remembers a 50th record of its own");
    host.restart();
    assert_eq!(host.asked(&with_their_key).exit_code(), 0, "elsewhere and with their key it is theirs");
}

#[test]
fn a_log_that_was_written_anew_is_found_by_its_signatures() {
    let host = Host::with_records(1, 50);
    let lines = host.lines();
    assert_eq!(forged(&lines, Some(&host.signer)), lines, "the forger writes as the host does");
    let mut changed = lines.clone();
    changed[20] = String::from_utf8(lines[20].clone()).unwrap().replace("agent", "nobody").into_bytes();
    let last = |all: &[Vec<u8>]| {
        let line = all.last().unwrap();
        let hash: String = raw::digest(line.strip_suffix(b"\n").unwrap()).iter().map(|b| format!("{b:02x}")).collect();
        (all.len() as u64, hash.parse().unwrap())
    };
    // /run would give him away; he waits for a restart.
    host.restart();
    for (key, head_key, right) in [(Some(signer(2)), Some(signer(2)), 34), (Some(signer(2)), None, 34), (None, None, 36)] {
        let all = forged(&changed, key.as_ref());
        host.write(&all);
        let (seq, hash) = last(&all);
        std::fs::write(host.head(), signed_head(seq, &hash, head_key.as_ref()).unwrap()).unwrap();
        assert_eq!(host.exit(), right);
    }
    // With the genuine head, and with a head that is gone.
    let all = forged(&changed, Some(&signer(2)));
    host.write(&all);
    std::fs::write(host.head(), signed_head(50, &last(&lines).1, Some(&host.signer)).unwrap()).unwrap();
    assert_eq!(host.exit(), 30);
    // A forger who has no key keeps the host's own last lines: their hashes give him away, and --all every signature of his.
    let mixed = [&all[..40], &lines[40..]].concat();
    host.write(&mixed);
    assert_eq!((host.exit(), host.exit_of_all()), (30, 30));
}

#[test]
fn other_spellings_of_the_same_record_are_edits() {
    let host = Host::with_records(1, 50);
    let lines = host.lines();
    let head = std::fs::read_to_string(host.head()).unwrap();
    let mut tried = 0;
    for n in [0, 24, 49] {
        let text = String::from_utf8(lines[n].clone()).unwrap();
        let sig = text.rfind("\",\"sig\":\"").map_or(0, |at| at + 9);
        let padded = text.trim_end().trim_end_matches("\"}").to_owned();
        let last = padded.trim_end_matches('=').chars().last().unwrap();
        // The last character of 64 bytes has four bits that decode to nothing.
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let other = alphabet.chars().nth(alphabet.find(last).unwrap() ^ 1).unwrap();
        for bad in [
            text.replace("\"seq\":", "\"seq\": "),
            text.replace("{\"seq\":", "{\"seq\":0"),
            text.replace("\"seq\"", "\"s\\u0065q\""),
            text.replace("agent", "\\u0061gent"),
            text.replace(",\"sig\"", " ,\"sig\""),
            text.replace("}\n", "} \n"),
            text.replace('\n', "\r\n"),
            text.replace("==\"}", "\"}"),
            format!("{}{}==\"}}\n", &padded[..padded.len() - 3], other),
            text[..sig].to_owned() + &text[sig..].replace('/', "_").replace('+', "-").replace("==", ""),
            format!("\n{text}"),
            format!("{text}\n"),
            format!("\u{feff}{text}"),
        ] {
            assert_ne!(bad, text);
            let mut changed = lines.clone();
            changed[n] = bad.clone().into_bytes();
            host.write(&changed);
            let report = host.asked(&Asked::default());
            assert_eq!(report.exit_code(), 30, "line {}: {bad:?}: {}", n + 1, shown(&report));
            tried += 1;
        }
    }
    host.write(&lines);
    for bad in [
        format!("{head}\n"),
        head.replace(':', ": "),
        head.replace("\"body\"", "\"b\\u006fdy\""),
        head.replace("{", "{\"more\":1,"),
        head.replace("\"}", "\",\"more\":1}"),
        format!("\u{feff}{head}"),
    ] {
        std::fs::write(host.head(), &bad).unwrap();
        assert_eq!(host.exit(), 34, "{bad:?}");
        tried += 1;
    }
    println!("other spellings found: {tried}; missed: 0");
}
