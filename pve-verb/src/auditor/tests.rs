//! Logs that are sound, and what the auditor says of those that are not.

use super::*;
use crate::audit::{Kind, Log};
use crate::disk::tests::{broken_disk, disk_at, hung_disk};
use crate::sign::Signer;
use proto::Verb;
use serde_json::{Map, Value, json};
use ssh_key::private::{Ed25519Keypair, PrivateKey};

/// A host whose log can be spoiled and put right again.
pub(super) struct Host {
    pub(super) root: tempfile::TempDir,
    pub(super) signer: Signer,
}

impl Host {
    pub(super) fn new(seed: u8) -> Self {
        let host = Self { root: crate::audit::ample::folder(), signer: signer(seed) };
        std::fs::create_dir_all(host.at("etc/pve-verb")).unwrap();
        std::fs::write(host.at("etc/pve-verb/signing_key.pub"), host.signer.public_openssh() + " pve-verb@pve1\n").unwrap();
        host
    }
    pub(super) fn with_records(seed: u8, records: u64) -> Self {
        let host = Self::new(seed);
        let mut log = host.log(disk_at(host.root.path()));
        for n in 1..=records {
            let kind = if n % 3 == 0 { Kind::Intent } else { Kind::Read };
            log.put(
                kind,
                facts(json!({"n": n, "key_name": "agent", "verb": "status", "reason": "J*\u{fc} \"{\\\"seq\\\":1", "deep": {"seq": 3}})),
            );
        }
        host
    }
    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }
    fn log(&self, disk: crate::disk::Disk) -> Log {
        self.log_of(disk, Some(&self.signer))
    }
    pub(super) fn log_of(&self, disk: crate::disk::Disk, signer: Option<&Signer>) -> Log {
        Log::open_at(&self.at("run/pve-verb"), disk, signer.cloned(), 1 << 30, None)
    }
    pub(super) fn append(&self, kind: Kind) -> crate::audit::Position {
        self.log(disk_at(self.root.path())).put(kind, Map::new())
    }
    pub(super) fn restart(&self) {
        std::fs::remove_dir_all(self.at("run/pve-verb")).unwrap();
    }
    pub(super) fn segment(&self) -> PathBuf {
        self.at("var/log/pve-verb/audit-00000000000000000001.jsonl")
    }
    pub(super) fn head(&self) -> PathBuf {
        self.at("var/log/pve-verb/head.json")
    }
    pub(super) fn lines(&self) -> Vec<Vec<u8>> {
        std::fs::read(self.segment()).unwrap().split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect()
    }
    pub(super) fn write(&self, lines: &[Vec<u8>]) {
        std::fs::write(self.segment(), lines.concat()).unwrap();
    }
    pub(super) fn asked(&self, asked: &Asked) -> Report {
        verify_at(&Files(self.root.path().to_owned()), asked)
    }
    pub(super) fn exit(&self) -> u8 {
        self.asked(&Asked::default()).exit_code()
    }
    pub(super) fn exit_of_all(&self) -> u8 {
        self.asked(&Asked { all: true, ..Asked::default() }).exit_code()
    }
    fn with_receipts(&self, text: &str) -> Report {
        std::fs::write(self.at("receipts"), text).unwrap();
        self.asked(&Asked { receipts: Some(self.at("receipts")), ..Asked::default() })
    }
}

pub(super) fn signer(seed: u8) -> Signer {
    Signer::new(PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))).unwrap()
}

pub(super) fn facts(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

pub(super) fn shown(report: &Report) -> String {
    let mut out = Vec::new();
    print(report, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn an_intact_log_is_intact_at_every_length_and_with_all_signatures() {
    let host = Host::new(1);
    for n in 1..=20 {
        host.append(Kind::Read);
        let report = host.asked(&Asked { all: true, ..Asked::default() });
        assert_eq!((report.exit_code(), report.records), (0, n), "{}", shown(&report));
    }
    assert!(
        shown(&host.asked(&Asked::default())).starts_with("intact: 20 records, 1 to 20, in 1 segments, 0 on tmpfs; the key is SHA256:")
    );
}

#[test]
fn going_back_to_an_earlier_state_is_found_by_what_callers_kept() {
    let host = Host::with_records(1, 30);
    let earlier = (host.lines(), std::fs::read(host.head()).unwrap());
    let kept: Vec<_> = (0..5).map(|_| host.append(Kind::Outcome)).collect();
    let newest = kept.last().unwrap();
    let text = format!("Now: VM 102 is running.\nreceipt {} {} done\n", newest.seq, newest.head);
    let witness = format!("{}:{}\n", kept[0].seq, kept[0].head);
    let head = host.log(disk_at(host.root.path())).head().unwrap();
    for held in [&text, &witness, &head] {
        assert_eq!(host.with_receipts(held).exit_code(), 0, "{held}");
    }
    host.write(&earlier.0);
    std::fs::write(host.head(), &earlier.1).unwrap();
    host.restart();
    assert_eq!(host.exit(), 0, "by itself it is a sound log");
    for held in [&text, &witness, &head] {
        let report = host.with_receipts(held);
        assert_eq!(report.exit_code(), 33, "{held}: {}", shown(&report));
    }
    // And once it has grown past them again, they are other records.
    for _ in 0..10 {
        host.append(Kind::Outcome);
    }
    for held in [&text, &witness, &head] {
        assert_eq!(host.with_receipts(held).exit_code(), 33, "{held}");
    }
    assert_eq!(host.with_receipts("nothing in here\n").exit_code(), 35);
}

#[test]
fn a_record_that_a_power_cut_took_from_tmpfs_is_named_so() {
    let host = Host::with_records(1, 5);
    let lost = host.log(broken_disk()).put(Kind::Outcome, Map::new());
    let said = format!("Weaker: {}\nreceipt {} {} done\n", lost.degraded.unwrap().replace("on tmpfs", "on\n  tmpfs"), lost.seq, lost.head);
    assert_eq!(host.with_receipts(&said).exit_code(), 0, "still on tmpfs");
    host.restart();
    let report = host.with_receipts(&said);
    assert_eq!(report.exit_code(), 0);
    assert!(shown(&report).contains("record 6: lost-with-tmpfs"), "{}", shown(&report));
    assert_eq!(host.with_receipts(&format!("receipt {} {} done", lost.seq, lost.head)).exit_code(), 33, "it does not say so");
}

#[test]
fn disk_and_tmpfs_are_one_chain() {
    let host = Host::with_records(1, 5);
    let mut log = host.log(hung_disk());
    let pending = log.append(Kind::Intent, Map::new()).unwrap();
    log.append(Kind::Step, Map::new()).unwrap();
    let report = host.asked(&Asked { all: true, ..Asked::default() });
    assert_eq!((report.exit_code(), report.records), (0, 7), "{}", shown(&report));
    assert_eq!(host.with_receipts(&format!("{}:{}", pending.seq, pending.head)).exit_code(), 0);
    let overflow = host.at("run/pve-verb/audit-overflow.jsonl");
    let bytes = std::fs::read(&overflow).unwrap();
    // Already carried, not yet cut.
    host.append(Kind::Outcome);
    std::fs::write(&overflow, &bytes).unwrap();
    assert_eq!(host.exit(), 0);
    // An unfinished line on tmpfs is nobody's.
    std::fs::write(&overflow, [&bytes[..], b"{\"seq\":9,\"at"].concat()).unwrap();
    assert_eq!(host.exit(), 0);
    let edited = String::from_utf8(bytes).unwrap().replace("intent", "refuse");
    std::fs::write(&overflow, edited).unwrap();
    assert_ne!(host.exit(), 0);
}

#[test]
fn records_made_while_nobody_knew_the_end_are_sound_before_and_after_they_are_taken_in() {
    let host = Host::with_records(1, 5);
    host.restart();
    let lost = host.log(hung_disk()).append(Kind::Intent, Map::new()).unwrap();
    let witness = format!("{}:{}", lost.seq, lost.head);
    for when in ["on tmpfs", "taken in"] {
        let report = host.with_receipts(&witness);
        assert_eq!(report.exit_code(), 0, "{when}: {}", shown(&report));
        host.append(Kind::Read);
    }
    assert!(shown(&host.asked(&Asked::default())).contains("kept inside repair records"));
}

#[test]
fn a_truncation_that_was_repaired_is_still_told() {
    for after_restart in [false, true] {
        let host = Host::with_records(1, 10);
        let lines = host.lines();
        host.write(&lines[..6]);
        if after_restart {
            host.restart();
        }
        host.append(Kind::Read);
        let report = host.asked(&Asked { all: true, ..Asked::default() });
        assert_eq!(report.exit_code(), 32, "{}", shown(&report));
        assert!(shown(&report).contains("records 7 to 10 were gone"), "{}", shown(&report));
    }
}

#[test]
fn a_torn_line_is_no_finding_where_nobody_was_told_of_it() {
    let host = Host::with_records(1, 5);
    let torn = [std::fs::read(host.segment()).unwrap().as_slice(), b"{\"seq\":6,\"at"].concat();
    std::fs::write(host.segment(), torn).unwrap();
    let report = host.asked(&Asked::default());
    assert_eq!(report.exit_code(), 0);
    assert!(shown(&report).contains("12 bytes of a torn line follow record 5"), "{}", shown(&report));
    host.restart();
    host.append(Kind::Read);
    assert_eq!(host.exit_of_all(), 0, "nor after its repair");
}

#[test]
fn a_log_ahead_of_its_head_is_intact_and_says_by_how_many() {
    let host = Host::with_records(1, 5);
    let head = std::fs::read(host.head()).unwrap();
    host.append(Kind::Read);
    host.append(Kind::Read);
    std::fs::write(host.head(), head).unwrap();
    let report = host.asked(&Asked::default());
    assert_eq!(report.exit_code(), 0);
    assert!(shown(&report).contains("2 records ahead of its head"));
    std::fs::remove_file(host.head()).unwrap();
    assert_eq!(host.exit(), 35);
}

#[test]
fn records_without_a_signature_are_named_and_the_rest_still_counts() {
    let host = Host::with_records(1, 5);
    host.log_of(disk_at(host.root.path()), None).put(Kind::Intent, Map::new());
    let report = host.asked(&Asked { all: true, ..Asked::default() });
    assert_eq!(report.exit_code(), 36);
    assert!(shown(&report).contains("line 6 of audit-00000000000000000001.jsonl (record 6)"), "{}", shown(&report));
    host.append(Kind::Read);
    assert_eq!(host.exit_of_all(), 36);
    let mut lines = host.lines();
    lines.swap(1, 2);
    host.write(&lines);
    assert_eq!(host.exit(), 31, "what is proved comes before what can't be");
    let without = Host::new(3);
    std::fs::remove_file(without.at("etc/pve-verb/signing_key.pub")).unwrap();
    without.log_of(disk_at(without.root.path()), None).put(Kind::Read, Map::new());
    assert_eq!(without.exit(), 36, "a host that never had a key");
}

#[test]
fn a_pruned_beginning_is_vouched_for_and_a_removed_one_is_not() {
    let host = Host::new(1);
    let mut log = Log::open_at(&host.at("run/pve-verb"), disk_at(host.root.path()), Some(host.signer.clone()), 1 << 20, None);
    let text = "x".repeat(3 << 20);
    for _ in 0..14 {
        log.append_within(Kind::Step, facts(json!({"text": text})), std::time::Duration::from_secs(30)).unwrap();
    }
    let report = host.asked(&Asked { all: true, ..Asked::default() });
    assert_eq!(report.exit_code(), 0, "{}", shown(&report));
    assert!(!host.segment().exists() && report.records < 14, "{}", shown(&report));
    let first = Files(host.root.path().to_owned()).segments().unwrap();
    std::fs::remove_file(host.at(&format!("var/log/pve-verb/audit-{:020}.jsonl", first[0]))).unwrap();
    assert_ne!(host.exit(), 0);
}

#[test]
fn what_can_not_be_read_is_said() {
    let host = Host::with_records(1, 5);
    std::fs::remove_file(host.at("etc/pve-verb/signing_key.pub")).unwrap();
    assert_eq!(host.exit(), 35, "no key to check with");
    assert_eq!(host.asked(&Asked { key: Some(host.at("none")), ..Asked::default() }).exit_code(), 35);
    std::fs::remove_file(host.segment()).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", host.segment()).unwrap();
    assert_eq!(host.exit(), 35, "a link");
}

#[test]
fn people_are_shown_records_in_order_escaped_and_by_what_they_ask_for() {
    let host = Host::new(1);
    let mut log = host.log(disk_at(host.root.path()));
    for (key, verb) in [("agent", "status"), ("laptop", "cycle"), ("agent", "cycle")] {
        let id = format!("1f0c9a2e-0000-4000-8000-{:012}", key.len() + verb.len());
        let all = json!({"key_name": key, "verb": verb, "request_id": id, "reason": "a\u{1b}[2J", "outcome": "done", "message": {"what": "VM 102 runs.", "do": "x"}});
        log.put(Kind::Outcome, facts(all));
    }
    let show = |wanted: &Wanted| {
        let mut out = Vec::new();
        show::show_at(&Files(host.root.path().to_owned()), wanted, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    let all = show(&Wanted::default());
    assert!(all.lines().all(|l| l.chars().count() <= 60) && !all.contains('\u{1b}'), "{all}");
    assert!(all.find("by laptop").unwrap() > all.find("by agent").unwrap());
    assert_eq!(show(&Wanted { key: Some("laptop".to_owned()), ..Wanted::default() }).matches("by laptop").count(), 1);
    assert_eq!(show(&Wanted { verb: Some(Verb::Cycle), ..Wanted::default() }).matches(" outcome").count(), 2);
    assert_eq!(show(&Wanted { until: Some(proto::Timestamp::from_unix_ms(0)), ..Wanted::default() }), "");
    assert_eq!(show(&Wanted { json: true, ..Wanted::default() }).into_bytes(), std::fs::read(host.segment()).unwrap());
}

#[test]
fn a_summary_is_no_finding_and_both_verifier_and_reader_say_what_it_counts() {
    let host = Host::with_records(7, 3);
    let summary = json!({
        "key_name": "agent", "of": "refused", "count": 40, "from": "2026-11-21T00:30:00.000Z", "to": "2026-11-21T00:31:00.000Z",
        "outcomes": {"refused-request": 40}, "what": "40 refusals of this key were counted and not recorded one by one",
    });
    host.log(disk_at(host.root.path())).put(Kind::Summary, facts(summary));
    let report = host.asked(&Asked { all: true, ..Asked::default() });
    assert_eq!(report.exit_code(), 0, "{}", shown(&report));
    assert!(report.notes.iter().any(|note| note.starts_with("40 reads and refusals came in floods")), "{:?}", report.notes);
    let mut out = Vec::new();
    let wanted = Wanted { key: Some("agent".to_owned()), ..Wanted::default() };
    show::show_at(&Files(host.root.path().to_owned()), &wanted, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("summary by agent 40 refusals of this key were counted and not recorded one by one"), "{text}");
    assert!(text.contains("from 2026-11-21T00:30:00.000Z to 2026-11-21T00:31:00.000Z"), "{text}");
}
