//! Bundles on their shelf: what was changed in them is found, and what is listed, shown or exported is clean.

use super::verify::{Report, print, verify_at};
use super::*;
use crate::bundle::hash;
use crate::sign::{self, Signer};
use proto::{
    Assessment, Binary, Code, Host, KeyName, Origin, Predicate, Recommendation, RequestFacts, RequestId, Subject, Timestamp, Verb,
};
use std::os::unix::fs::symlink;

/// A host with one sealed bundle on disk.
struct Place {
    root: tempfile::TempDir,
    signer: Signer,
    name: BundleName,
}

const FILES: [(&str, &[u8]); 5] = [
    ("assessment.json", b"{}"),
    ("qmp/query-status.json", b"{\"status\":\"running\"}"),
    ("console/serial.txt", b"\x1b[2Jraw \xff bytes"),
    ("guest/empty.json", b""),
    ("summary.txt", b"VM 102 is running: healthy\n\x1b]0;owned\x07 and a line\n"),
];

fn signer(seed: u8) -> Signer {
    Signer::new(ssh_key::PrivateKey::from(ssh_key::private::Ed25519Keypair::from_seed(&[seed; 32]))).unwrap()
}

fn request() -> RequestFacts {
    RequestFacts {
        request_id: RequestId::from_random([0x1f; 16]),
        verb: Verb::Cycle,
        vmid: Vmid::DEVVM,
        key_name: "agent".parse::<KeyName>().unwrap(),
        key_fingerprint: None,
        origin: Origin::Unstated,
        actor: None,
        reason: None,
        dry_run: false,
        started: Timestamp::from_unix_ms(1_795_220_999_123),
    }
}

fn manifest(degraded: &[&str]) -> Manifest {
    let recommend = Recommendation { verb: None, why: "Nothing is to be done.".to_owned() };
    let assessment =
        Assessment { code: Code::Healthy, healthy: true, sentence: "All is well.".to_owned(), findings: Vec::new(), recommend };
    Manifest {
        statement: proto::IN_TOTO_STATEMENT.to_owned(),
        subject: FILES
            .iter()
            .map(|(path, bytes)| Subject { name: (*path).to_owned(), digest: [("sha256".to_owned(), hash(bytes))].into() })
            .collect(),
        predicate_type: proto::PREDICATE_TYPE.to_owned(),
        predicate: Predicate {
            request: request(),
            host: Host { node: "pve".to_owned(), boot_id: "b".to_owned() },
            binary: Binary { version: "0".to_owned(), sha256: None },
            probes: Vec::new(),
            not_captured: Vec::new(),
            assessment,
            degraded: degraded.iter().map(|d| (*d).to_owned()).collect(),
        },
    }
}

impl Place {
    fn new() -> Self {
        let request = request();
        let name = BundleName::new(request.started, request.verb, &request.request_id);
        let place = Self { root: tempfile::tempdir().unwrap(), signer: signer(1), name };
        std::fs::create_dir_all(place.root.path().join("etc/pve-verb")).unwrap();
        std::fs::write(place.root.path().join("etc/pve-verb/signing_key.pub"), place.signer.public_openssh()).unwrap();
        for (path, bytes) in FILES {
            place.put(path, bytes);
        }
        place.sign(&serde_json::to_vec(&manifest(&[])).unwrap(), &signer(1));
        place
    }

    fn rungs(&self) -> Rungs {
        Rungs(self.root.path().to_owned())
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.path().join("var/lib/pve-verb/evidence/102").join(self.name.as_str()).join(path)
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        std::fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        std::fs::write(self.at(path), bytes).unwrap();
    }

    fn sign(&self, manifest: &[u8], signer: &Signer) {
        self.put(MANIFEST, manifest);
        self.put(SIGNATURE, sign::armour(&signer.sshsig(proto::namespace::MANIFEST, manifest).unwrap()).as_bytes());
    }

    fn asked(&self, change: impl FnOnce(&mut Asked)) -> Report {
        let mut asked = Asked { vmid: Vmid::DEVVM, name: self.name.clone(), receipts: None, key: None };
        change(&mut asked);
        verify_at(&self.rungs(), &asked)
    }

    fn report(&self) -> Report {
        self.asked(|_| {})
    }

    /// The exit status, and that every word of the report may be printed.
    fn code(&self) -> u8 {
        let report = self.report();
        let text = printed(&report);
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        assert_eq!(text.lines().last().unwrap().starts_with("intact: "), report.exit_code() == 0, "{text}");
        report.exit_code()
    }

    fn tar(&self, to: Option<&Path>) -> (Result<(), Message>, Vec<u8>, String) {
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        let end = export::export_at(&self.rungs(), Vmid::DEVVM, &self.name, to, &mut out, &mut notes);
        (end, out, String::from_utf8(notes).unwrap())
    }
}

fn printed(report: &Report) -> String {
    let mut out = Vec::new();
    print(report, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn every_flipped_bit_of_a_bundle_is_found_under_the_right_name() {
    let place = Place::new();
    assert_eq!(place.code(), 0, "{}", printed(&place.report()));
    for (path, right) in FILES.iter().map(|(path, _)| (*path, 30)).chain([(MANIFEST, 34), (SIGNATURE, 34)]) {
        let whole = std::fs::read(place.at(path)).unwrap();
        // Every bit takes half a minute, so the quick loop flips every seventh of the manifest's; tests/run sets this.
        let step = if path == MANIFEST && std::env::var_os("VERIFIER_EVERY_BIT").is_none() { 7 } else { 1 };
        for bit in (0..whole.len() * 8).step_by(step) {
            let mut bad = whole.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(place.at(path), &bad).unwrap();
            assert_eq!(place.code(), right, "{path}: bit {bit}: {}", printed(&place.report()));
        }
        for bad in [[whole.as_slice(), b"x"].concat(), whole.get(1..).unwrap_or(b"other").to_vec()] {
            std::fs::write(place.at(path), bad).unwrap();
            assert_eq!(place.code(), right, "{path}: another length");
        }
        std::fs::write(place.at(path), &whole).unwrap();
    }
    assert_eq!(place.code(), 0);
}

#[test]
fn what_is_missing_too_much_or_elsewhere_is_named() {
    let place = Place::new();
    std::fs::remove_file(place.at("guest/empty.json")).unwrap();
    assert_eq!(place.code(), 32);
    assert!(printed(&place.report()).contains("32 truncated: guest/empty.json is missing. "), "{}", printed(&place.report()));
    place.put("guest/empty.json", b"");
    place.put("guest/\u{1b}[2J.json", b"x");
    assert_eq!(place.code(), 31);
    assert!(printed(&place.report()).contains("is not in the manifest. "));
    std::fs::remove_file(place.at("guest/\u{1b}[2J.json")).unwrap();
    // Another bundle's folder.
    let other: BundleName = "20261121T003000.123Z-cycle-1f0c9a2e".parse().unwrap();
    std::fs::rename(place.at(""), place.at("").with_file_name(other.as_str())).unwrap();
    assert_eq!(place.asked(|a| a.name = other.clone()).exit_code(), 31);
    assert_eq!(place.code(), 35, "no such bundle");
    std::fs::rename(place.at("").with_file_name(other.as_str()), place.at("").with_file_name(format!("{}.partial", place.name))).unwrap();
    assert_eq!(place.code(), 35, "a half of a bundle is none");
}

#[test]
fn a_manifest_is_this_hosts_or_it_is_forged() {
    let place = Place::new();
    let bytes = serde_json::to_vec(&manifest(&[])).unwrap();
    place.sign(&bytes, &signer(2));
    assert_eq!(place.code(), 34);
    let key = place.root.path().join("old.pub");
    std::fs::write(&key, signer(2).public_openssh()).unwrap();
    assert_eq!(place.asked(|a| a.key = Some(key.clone())).exit_code(), 0, "an older key of this host's");
    // Another purpose, another armour of the same signature.
    place.put(SIGNATURE, sign::armour(&signer(1).sshsig(proto::namespace::RECEIPT, &bytes).unwrap()).as_bytes());
    assert_eq!(place.code(), 34);
    place.sign(&bytes, &signer(1));
    let armour = std::fs::read_to_string(place.at(SIGNATURE)).unwrap();
    place.put(SIGNATURE, armour.replace('\n', "\r\n").as_bytes());
    assert_eq!(place.code(), 34);
    std::fs::remove_file(place.at(SIGNATURE)).unwrap();
    assert_eq!(place.code(), 34, "a signature that was taken away");
    place.put(MANIFEST, &serde_json::to_vec(&manifest(&["receipts and evidence are not signed: no key"])).unwrap());
    assert_eq!(place.code(), 36, "a host that had no key");
    std::fs::remove_file(place.root.path().join("etc/pve-verb/signing_key.pub")).unwrap();
    place.sign(&bytes, &signer(1));
    assert_eq!(place.code(), 35, "nothing to check with");
    std::fs::remove_file(place.at(MANIFEST)).unwrap();
    assert_eq!(place.code(), 35);
}

#[test]
fn a_receipt_that_names_another_manifest_is_believed() {
    let place = Place::new();
    let body = |sha256: &str| {
        let request = request();
        proto::ReceiptBody {
            v: proto::VERSION,
            request_id: request.request_id,
            verb: Some(request.verb),
            vmid: request.vmid,
            node: "pve".to_owned(),
            dry_run: false,
            key_name: request.key_name,
            origin: request.origin,
            actor: None,
            reason: None,
            outcome: proto::Outcome::Done,
            exit_code: 0,
            already: false,
            replayed: false,
            interrupted: false,
            state_before: proto::VmState::Unknown,
            state_after: proto::VmState::Unknown,
            qemu_before: None,
            qemu_after: None,
            assessment: None,
            bundle: Some(place.name.clone()),
            preserved_where: None,
            manifest_sha256: Some(sha256.parse().unwrap()),
            degraded: Vec::new(),
            message: Message::new("", ""),
            started: request.started,
            finished: request.started,
            audit: None,
            witness: None,
            binary_sha256: None,
            unreviewed: None,
            unsigned_reason: None,
        }
    };
    let file = place.root.path().join("receipts");
    let held = |sha256: &str, signer: &Signer| {
        use base64ct::{Base64, Encoding};
        let (encoded, bytes) = proto::encode_body(&body(sha256)).unwrap();
        let sig = Base64::encode_string(&signer.sshsig(proto::namespace::RECEIPT, &bytes).unwrap());
        std::fs::write(&file, format!("an answer\n{}\n", serde_json::json!({"body": encoded, "sig": sig}))).unwrap();
        place.asked(|a| a.receipts = Some(file.clone())).exit_code()
    };
    let ours = hash(&std::fs::read(place.at(MANIFEST)).unwrap());
    assert_eq!(held(ours.as_str(), &signer(1)), 0);
    assert_eq!(held(&"0".repeat(64), &signer(1)), 33);
    assert_eq!(held(&"0".repeat(64), &signer(2)), 35, "nobody's receipt is none");
}

#[test]
fn hostile_contents_are_neither_followed_nor_waited_for_nor_printed() {
    let place = Place::new();
    let status = "qmp/query-status.json";
    let spoil = |make: &dyn Fn(&Path)| {
        std::fs::remove_file(place.at(status)).unwrap();
        make(&place.at(status));
        let code = place.code();
        let (end, _, _) = place.tar(None);
        assert!(end.is_err(), "exported");
        std::fs::remove_file(place.at(status)).unwrap();
        place.put(status, FILES[1].1);
        code
    };
    std::fs::write(place.root.path().join("same"), FILES[1].1).unwrap();
    assert_eq!(spoil(&|at| symlink(place.root.path().join("same"), at).unwrap()), 30, "a link to the very bytes");
    assert_eq!(spoil(&|at| assert!(std::process::Command::new("mkfifo").arg(at).status().unwrap().success())), 30);
    // A file of a terabyte, with nothing in it: not read.
    let huge = place.at("huge");
    std::fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(place.code(), 31);
    std::fs::remove_file(&huge).unwrap();
    std::fs::File::options().write(true).open(place.at(status)).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(place.code(), 30);
    place.put(status, FILES[1].1);
    // A folder on the way that leads elsewhere.
    std::fs::rename(place.at("qmp"), place.root.path().join("qmp")).unwrap();
    symlink(place.root.path().join("qmp"), place.at("qmp")).unwrap();
    assert!([31, 32].contains(&place.code()));
    std::fs::remove_file(place.at("qmp")).unwrap();
    std::fs::rename(place.root.path().join("qmp"), place.at("qmp")).unwrap();
    // A manifest that names what is not in a bundle, signed even.
    let mut bad = manifest(&[]);
    for name in ["../../../../etc/passwd", "/etc/passwd", "a/./b", "", "qmp/query-status.json"] {
        bad.subject.push(Subject { name: name.to_owned(), digest: [("sha256".to_owned(), hash(b""))].into() });
    }
    place.sign(&serde_json::to_vec(&bad).unwrap(), &signer(1));
    assert_eq!((place.code(), place.report().findings.len()), (30, 5));
    place.put(MANIFEST, &vec![b' '; 9 << 20]);
    assert_eq!(place.code(), 35, "a manifest without end");
}

#[test]
fn the_list_and_one_bundle_are_shown_for_a_person() {
    let place = Place::new();
    let on_tmpfs = place.root.path().join("run/pve-verb/evidence/102/20251121T003000.123Z-forensics-1f0c9a2e");
    std::fs::create_dir_all(&on_tmpfs).unwrap();
    std::fs::create_dir_all(place.at("").with_file_name(format!("{}.partial", place.name))).unwrap();
    let mut out = Vec::new();
    list_at(&place.rungs(), Vmid::DEVVM, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    let name = &place.name;
    assert_eq!(
        text,
        format!(
            "{name}\n  disk, 7 files, 2 KiB: healthy\n20251121T003000.123Z-forensics-1f0c9a2e\n  tmpfs, 0 files, 0 KiB: its manifest can't be read\n"
        )
    );
    let mut out = Vec::new();
    show_at(&place.rungs(), Vmid::DEVVM, name, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("VM 102 is running: healthy") && text.contains("  console/serial.txt (15)\n"), "{text}");
    assert!(text.contains(&format!("In /var/lib/pve-verb/evidence/102/{name}:")), "{text}");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    let other = Vmid::try_from(103).unwrap();
    assert!(show_at(&place.rungs(), other, name, &mut Vec::new()).unwrap_err().what.contains("no bundle"));
}

#[test]
fn an_export_is_the_same_each_time_and_overwrites_nothing() {
    let place = Place::new();
    place.put("extra", b"x");
    let (end, bytes, notes) = place.tar(None);
    assert!(end.is_ok() && notes == "left out, as the manifest does not name it: extra\n", "{end:?} {notes}");
    assert_eq!(bytes, place.tar(None).1);
    let file = place.root.path().join("out.tar");
    assert!(place.tar(Some(&file)).0.is_ok());
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
    assert!(place.tar(Some(&file)).0.unwrap_err().what.contains("not overwritten"));
    symlink(place.root.path().join("nowhere"), place.root.path().join("link.tar")).unwrap();
    assert!(place.tar(Some(&place.root.path().join("link.tar"))).0.is_err());
    std::fs::remove_file(place.at("summary.txt")).unwrap();
    let half = place.root.path().join("half.tar");
    assert!(place.tar(Some(&half)).0.unwrap_err().what.contains("summary.txt"));
    assert!(!half.exists(), "half a tar");
}
