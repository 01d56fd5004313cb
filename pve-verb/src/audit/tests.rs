//! The chain, its rungs and what a crash, a full or a hung disk makes of it.

use super::*;
use crate::disk::tests::{broken_disk, counted_hung_disk, disk_at, hung_disk};
use crate::sign::{self, verify_raw, verify_sshsig};
use base64ct::{Base64, Encoding};
use line::Line;
use proto::{Outcome, Request};
use ssh_key::private::{Ed25519Keypair, PrivateKey};
use std::sync::atomic::Ordering;

pub(super) struct Host {
    pub(super) root: tempfile::TempDir,
    pub(super) signer: Signer,
}

impl Host {
    pub(super) fn new() -> Self {
        let signer = Signer::new(PrivateKey::from(Ed25519Keypair::from_seed(&[9; 32]))).unwrap();
        Self { root: ample::folder(), signer }
    }
    pub(super) fn run(&self) -> PathBuf {
        self.root.path().join("run/pve-verb")
    }
    pub(super) fn log_with(&self, disk: Disk) -> Log {
        Log::open_at(&self.run(), disk, Some(self.signer.clone()), 1 << 30, None)
    }
    pub(super) fn log(&self) -> Log {
        self.log_with(disk_at(self.root.path()))
    }
    pub(super) fn restart(&self) {
        std::fs::remove_dir_all(self.run()).unwrap();
    }
    fn folder(&self) -> PathBuf {
        self.root.path().join("var/log/pve-verb")
    }
    pub(super) fn segments(&self) -> Vec<PathBuf> {
        let mut all: Vec<_> = std::fs::read_dir(self.folder())
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.extension().is_some_and(|e| e == "jsonl"))
            .collect();
        all.sort();
        all
    }
    pub(super) fn on_disk(&self) -> Vec<u8> {
        self.segments().iter().flat_map(|p| std::fs::read(p).unwrap()).collect()
    }
    pub(super) fn overflow(&self) -> Vec<u8> {
        std::fs::read(self.run().join("audit-overflow.jsonl")).unwrap_or_default()
    }

    /// Every line on disk, after checking that they are one signed chain and that `head.json` is its signed end.
    pub(super) fn sound(&self) -> Vec<Value> {
        let lines = chain_of(&self.on_disk(), &self.signer);
        let head: Value = serde_json::from_slice(&std::fs::read(self.folder().join("head.json")).unwrap()).unwrap();
        let member = |name: &str| Base64::decode_vec(head[name].as_str().unwrap()).unwrap();
        assert!(verify_sshsig(self.signer.public(), "pve-verb-log", &member("body"), &member("sig")));
        let body: Value = serde_json::from_slice(&member("body")).unwrap();
        assert_eq!(body["seq"], lines.last().unwrap()["seq"]);
        lines
    }
}

/// Checks numbers, hashes and signatures as a stranger would, from the bytes alone.
fn chain_of(bytes: &[u8], signer: &Signer) -> Vec<Value> {
    let (mut seq, mut prev, mut all) = (0, "0".repeat(64), Vec::new());
    for text in bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        let value: Value = serde_json::from_slice(text).unwrap();
        seq += 1;
        assert_eq!((value["seq"].as_u64().unwrap(), value["prev"].as_str().unwrap()), (seq, prev.as_str()));
        let string = std::str::from_utf8(text).unwrap();
        let at = string.rfind(",\"sig\":").unwrap();
        let signature = Base64::decode_vec(value["sig"].as_str().unwrap()).unwrap();
        assert!(verify_raw(signer.public(), &[b"pve-verb-log\n", &string.as_bytes()[..at]].concat(), &signature));
        prev = line::hash(text).as_str().to_owned();
        all.push(value);
    }
    all
}

pub(super) fn kinds(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|l| l["kind"].as_str().unwrap()).collect()
}

pub(super) fn fact(name: &str, value: &str) -> Map<String, Value> {
    [(name.to_owned(), json!(value))].into_iter().collect()
}

#[test]
fn records_are_one_signed_chain_on_disk_under_a_signed_head() {
    let host = Host::new();
    for n in 1..=3 {
        let position = host.log().put(Kind::Intent, fact("n", "x"));
        assert_eq!((position.seq, position.degraded), (n, None));
    }
    assert_eq!(kinds(&host.sound()), ["intent"; 3]);
    assert_eq!(host.overflow(), b"");
}

#[test]
fn the_chain_goes_on_after_a_restart() {
    let host = Host::new();
    host.log().put(Kind::Intent, Map::new());
    host.log().put(Kind::Review, Map::new());
    host.log().put(Kind::Intent, Map::new());
    host.restart();
    let mut log = host.log();
    assert_eq!(log.put(Kind::Step, Map::new()).seq, 4);
    assert_eq!(log.unreviewed(), Some(1), "counted from the log on disk");
    assert_eq!(kinds(&host.sound()), ["intent", "review", "intent", "step"]);
}

#[test]
fn what_a_hung_disk_did_not_take_stays_in_the_one_chain_and_is_carried_later() {
    let host = Host::new();
    host.log().put(Kind::Start, Map::new());
    let (disk, asked) = counted_hung_disk();
    let mut log = host.log_with(disk.clone());
    let position = log.append(Kind::Intent, Map::new()).unwrap();
    assert!(position.degraded.unwrap().contains("tmpfs only"));
    assert!(disk.is_late() && asked.load(Ordering::SeqCst) == 1);
    assert_eq!(log.append(Kind::Step, Map::new()).unwrap().seq, 3);
    assert_eq!(asked.load(Ordering::SeqCst), 1, "a hung disk isn't waited for twice");
    assert_eq!(kinds(&chain_of(&[host.on_disk(), host.overflow()].concat(), &host.signer)), ["start", "intent", "step"]);
    assert_eq!(host.log().put(Kind::Outcome, Map::new()).degraded, None);
    assert_eq!(kinds(&host.sound()), ["start", "intent", "step", "outcome"]);
    assert_eq!(host.overflow(), b"");
}

#[test]
fn a_full_disk_is_the_same_as_a_late_one() {
    let host = Host::new();
    host.log().put(Kind::Start, Map::new());
    let why = host.log_with(broken_disk()).put(Kind::Refused, Map::new()).degraded.unwrap();
    assert!(why.contains("No space left"), "{why}");
    host.log().put(Kind::Read, Map::new());
    assert_eq!(kinds(&host.sound()), ["start", "refused", "read"]);
}

#[test]
fn a_read_waits_less_for_a_disk_than_status_has() {
    let host = Host::new();
    host.log().put(Kind::Start, Map::new());
    // Once of five is enough: whoever measures may have been off the processor.
    let in_time = (2..7).any(|seq| {
        let mut log = host.log_with(hung_disk());
        let started = Instant::now();
        let closed = Record::open("pve1").close(&mut log, Closing::Read, Outcome::Done, Map::new());
        let in_time = started.elapsed() < Duration::from_millis(900);
        assert_eq!((closed.position.unwrap().seq, closed.degraded.len()), (seq, 1));
        in_time
    });
    assert!(in_time);
}

#[test]
fn a_read_is_not_held_up_by_somebody_who_waits_for_the_disk() {
    let host = Host::new();
    host.log().put(Kind::Start, Map::new());
    let chain = Chain::at(host.run());
    let _carrying = chain.carrying(Instant::now()).unwrap();
    let in_time = (0..5).any(|_| {
        let started = Instant::now();
        let closed = Record::open("pve1").close(&mut host.log(), Closing::Read, Outcome::Done, Map::new());
        closed.position.is_some() && started.elapsed() < Duration::from_millis(900)
    });
    assert!(in_time);
}

#[test]
fn a_line_that_is_on_disk_already_is_skipped() {
    let host = Host::new();
    host.log().put(Kind::Start, Map::new());
    host.log_with(broken_disk()).put(Kind::Intent, Map::new());
    // Killed between the write and the cutting: the line is in both places, with and without a new tail in /run.
    let (overflow, tail) = (host.overflow(), std::fs::read(host.run().join("audit-tail.json")).unwrap());
    host.log().put(Kind::Step, Map::new());
    std::fs::write(host.run().join("audit-overflow.jsonl"), &overflow).unwrap();
    host.log().put(Kind::Outcome, Map::new());
    assert_eq!(kinds(&host.sound()), ["start", "intent", "step", "outcome"]);
    let newest: Vec<u8> = host.on_disk().split_inclusive(|b| *b == b'\n').skip(1).flatten().copied().collect();
    std::fs::write(host.run().join("audit-overflow.jsonl"), newest).unwrap();
    std::fs::write(host.run().join("audit-tail.json"), tail).unwrap();
    host.log().put(Kind::Review, Map::new());
    assert_eq!(kinds(&host.sound()), ["start", "intent", "step", "outcome", "review"]);
}

#[test]
fn a_torn_last_line_is_cut_and_a_repair_record_shows_it() {
    let host = Host::new();
    host.log().put(Kind::Start, Map::new());
    let segment = host.segments().remove(0);
    std::fs::write(&segment, [host.on_disk().as_slice(), b"{\"seq\":2,\"at"].concat()).unwrap();
    host.restart();
    assert_eq!(host.log().put(Kind::Read, Map::new()).seq, 3);
    let lines = host.sound();
    assert_eq!(kinds(&lines), ["start", "repair", "read"]);
    assert_eq!((lines[1]["torn"].as_str(), lines[1]["torn_bytes"].as_u64()), (Some("{\"seq\":2,\"at"), Some(12)));
}

#[test]
fn a_line_that_an_abandoned_writer_half_wrote_is_completed_without_a_repair() {
    let host = Host::new();
    host.log().put(Kind::Start, Map::new());
    host.log_with(broken_disk()).put(Kind::Intent, Map::new());
    let segment = host.segments().remove(0);
    std::fs::write(&segment, [host.on_disk().as_slice(), &host.overflow()[..40]].concat()).unwrap();
    host.log().put(Kind::Step, Map::new());
    assert_eq!(kinds(&host.sound()), ["start", "intent", "step"]);
}

#[test]
fn a_truncated_log_is_continued_with_a_repair_record_that_names_what_is_missing() {
    for after_restart in [false, true] {
        let host = Host::new();
        let mut heads = Vec::new();
        for _ in 0..3 {
            heads.push(host.log().put(Kind::Intent, Map::new()).head);
        }
        let bytes = host.on_disk();
        let first = bytes.split_inclusive(|b| *b == b'\n').next().unwrap();
        std::fs::write(host.segments().remove(0), first).unwrap();
        if after_restart {
            host.restart();
        }
        host.log().put(Kind::Read, Map::new());
        let lines = host.sound();
        assert_eq!(kinds(&lines), ["intent", "repair", "read"]);
        let claimed = claimed_head(lines[1]["head_json"].as_str().unwrap());
        assert_eq!(claimed, Some((3, heads[2].clone())), "the head that covered what is missing is kept");
        assert_eq!(lines[1]["lost"]["seq"].as_u64(), (!after_restart).then_some(3));
    }
}

#[test]
fn records_made_while_nobody_knew_where_the_log_ends_are_taken_in_by_repair_records() {
    let host = Host::new();
    host.log().put(Kind::Start, Map::new());
    host.restart();
    let lost = host.log_with(hung_disk()).append(Kind::Intent, fact("what", "cycle")).unwrap();
    assert!(lost.degraded.is_some());
    host.log().put(Kind::Read, Map::new());
    let lines = host.sound();
    assert_eq!(kinds(&lines), ["start", "repair", "repair", "read"]);
    let carried = lines[2]["line"].as_str().unwrap();
    assert_eq!(Line::read(carried.as_bytes()).map(|l| (l.kind, l.hash)), Some((Kind::Intent, lost.head)));
}

#[test]
fn a_damaged_log_is_never_a_reason_to_refuse() {
    let damages: [&dyn Fn(&Host); 5] = [
        &|h| std::fs::write(h.segments().remove(0), "rubbish\nmore\n").unwrap(),
        &|h| std::fs::write(h.segments().remove(0), "").unwrap(),
        &|h| std::fs::remove_dir_all(h.folder()).unwrap(),
        &|h| std::fs::write(h.run().join("audit-overflow.jsonl"), "rubbish\nmore").unwrap(),
        &|h| std::fs::write(h.run().join("audit-tail.json"), "rubbish").unwrap(),
    ];
    for (n, damage) in damages.iter().enumerate() {
        let host = Host::new();
        host.log().put(Kind::Start, Map::new());
        damage(&host);
        for _ in 0..2 {
            let position = host.log().append_within(Kind::Intent, Map::new(), ample::AMPLE);
            assert!(position.as_ref().is_ok_and(|p| p.degraded.is_none()), "{n}: {position:?}");
        }
    }
}

#[test]
fn where_tmpfs_takes_nothing_the_record_goes_to_the_disk_alone() {
    let host = Host::new();
    host.log().put(Kind::Start, Map::new());
    // A folder in the file's place fails every write, for root too.
    std::fs::remove_file(host.run().join("audit-overflow.jsonl")).unwrap();
    std::fs::create_dir(host.run().join("audit-overflow.jsonl")).unwrap();
    let position = host.log().put(Kind::Intent, Map::new());
    assert_eq!((position.seq, position.degraded.is_some()), (2, true));
    assert_eq!(kinds(&host.sound()), ["start", "intent"]);
    assert!(host.log_with(broken_disk()).append(Kind::Intent, Map::new()).is_err(), "neither tmpfs nor disk");
    let closed = Record::open("pve1").close(&mut host.log_with(broken_disk()), Closing::Read, Outcome::Done, Map::new());
    assert!(closed.position.is_none() && closed.degraded[0].contains("no audit record"));
}

#[test]
fn many_callers_at_once_make_one_chain() {
    let host = Host::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    host.log().put(Kind::Step, Map::new());
                }
            });
        }
    });
    host.log().put(Kind::Review, Map::new());
    assert_eq!(host.sound().len(), 21);
}

#[test]
fn a_full_segment_is_followed_by_one_named_by_its_first_record_and_the_oldest_goes() {
    let host = Host::new();
    let mut log = Log::open_at(&host.run(), disk_at(host.root.path()), None, 1 << 20, None);
    let text = "x".repeat(3 << 20);
    let mut seq = 0;
    while seq < 12 {
        seq = log.append_within(Kind::Step, fact("text", &text), Duration::from_secs(30)).unwrap().seq;
    }
    let lines: Vec<Line> = host.on_disk().split(|b| *b == b'\n').filter_map(Line::read).collect();
    assert!(lines.iter().any(|l| l.kind == Kind::Pruned));
    let first = lines.first().unwrap();
    assert!(first.seq > 1 && host.segments()[0].to_str().unwrap().ends_with(&format!("audit-{:020}.jsonl", first.seq)));
    assert!(lines.windows(2).all(|w| w[0].hash == w[1].prev && w[0].seq + 1 == w[1].seq));
}

#[test]
fn facts_cannot_pass_for_the_chains_own_members() {
    let host = Host::new();
    let mut log = host.log();
    for name in ["seq", "prev", "kind", "sig", "at"] {
        log.put(Kind::Read, fact(name, "forged\",\"sig\":\"x"));
    }
    assert_eq!(host.sound().len(), 5);
}

#[test]
fn an_unsigned_host_says_null() {
    let host = Host::new();
    Log::open_at(&host.run(), disk_at(host.root.path()), None, 1 << 30, None).put(Kind::Read, Map::new());
    assert!(host.on_disk().ends_with(b",\"sig\":null}\n"));
}

#[test]
fn a_rejected_request_is_kept_escaped_and_cut_and_a_grant_only_by_its_hash() {
    let host = Host::new();
    let mut log = host.log();
    let raw = [b"cycle\nverb=cycle COMPLETE ".as_slice(), &[b'a'; 300]].concat();
    let mut record = Record::open("pve1");
    let whole = crate::door::Whole { bytes: 70_000, sha256: Sha256Hex::from_bytes([7; 32]) };
    record.rejected(&raw, &whole, 5, "byte 0x0a is not printable ASCII");
    let _ = record.close(&mut log, Closing::Refused, Outcome::RefusedRequest, Map::new());
    let mut record = Record::open("pve1");
    let request = Request::parse(b"cycle --grant=SECRET.grant --reason=why").unwrap();
    record.request(&request, &proto::RequestId::from_random([1; 16]), proto::Vmid::DEVVM);
    let _ = record.close(&mut log, Closing::Outcome, Outcome::Done, Map::new());
    // What a busy machine kept the disk from taking in its second is carried now.
    host.log().put(Kind::Review, Map::new());
    let lines = host.sound();
    let rejected = &lines[0]["rejected"];
    assert_eq!(
        (rejected["bytes"].as_u64(), rejected["sha256"].as_str()),
        (Some(70_000), Some(whole.sha256.as_str())),
        "of the line before it was cut"
    );
    assert!(rejected["raw"].as_str().is_some_and(|r| r.starts_with("cycle\\nverb") && r.len() == 257));
    assert_eq!(
        (lines[1]["outcome"].as_str(), lines[1]["exit_code"].as_u64(), lines[1]["verb"].as_str()),
        (Some("done"), Some(0), Some("cycle"))
    );
    assert!(!String::from_utf8(host.on_disk()).unwrap().contains("SECRET"));
}

#[test]
fn stock_ssh_keygen_checks_a_head() {
    let host = Host::new();
    host.log().put(Kind::Start, Map::new());
    let head: Value = serde_json::from_str(&host.log().head().unwrap()).unwrap();
    let member = |name: &str| Base64::decode_vec(head[name].as_str().unwrap()).unwrap();
    let at = |name: &str| host.root.path().join(name);
    std::fs::write(at("allowed"), crate::setup::allowed_signers_line("pve1", &host.signer) + "\n").unwrap();
    std::fs::write(at("sig"), sign::armour(&member("sig"))).unwrap();
    std::fs::write(at("body"), member("body")).unwrap();
    let verdict = std::process::Command::new("ssh-keygen")
        .current_dir(host.root.path())
        .args(["-Y", "verify", "-f", "allowed", "-I", "pve-verb@pve1", "-n", "pve-verb-log", "-s", "sig"])
        .stdin(std::fs::File::open(at("body")).unwrap())
        .output()
        .unwrap();
    assert!(verdict.status.success(), "{verdict:?}");
}
