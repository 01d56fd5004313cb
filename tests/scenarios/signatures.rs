//! What this host signs is checked by stock `ssh-keygen -Y verify` with the line that `init` printed, and by nothing of ours.
//!
//! The audit log's raw line signatures and its chain are checked by `lab::chain`, which shares no code with their writer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use base64ct::{Base64, Encoding};
use lab::chain::Chain;
use lab::installed::{Told, agent, ask, log_lines, prepare};
use lab::lab::{Scenario, run_scenarios};
use lab::process::{must, start};
use lab::{Lab, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};

const SCENARIOS: &[Scenario] = &[
    ("when_a_manifest_is_checked_then_ssh_keygen_accepts_it_and_no_flipped_byte_or_other_namespace", manifest),
    ("when_a_manifest_is_read_then_it_lists_every_file_with_its_hash_and_no_other", listed),
    ("when_a_receipt_is_checked_then_ssh_keygen_accepts_it_and_no_flipped_byte_or_other_namespace", receipt),
    ("when_a_refusal_or_a_mutation_ends_then_its_receipt_is_signed_as_well", other_receipts),
    ("when_the_log_s_head_is_checked_then_ssh_keygen_accepts_it_and_no_flipped_byte_or_other_namespace", head),
    ("when_the_log_is_read_then_every_line_is_signed_and_chained_and_receipts_point_into_it", chained),
    ("when_the_answer_is_text_then_its_last_line_names_the_record", last_line),
];

fn main() {
    run_scenarios(SCENARIOS, prepare)
}

const SIGNERS: &str = "/run/lab/allowed_signers";
const PRINCIPAL: &str = "pve-verb@pve";
const NAMESPACES: [&str; 4] = ["pve-verb-manifest", "pve-verb-receipt", "pve-verb-log", "file"];

/// The line that `init` prints, when it is run again.
fn signers() -> Result<()> {
    let printed = must("/usr/sbin/pve-verb", ["init"])?.text();
    assert_eq!(printed.lines().count(), 1, "{printed}");
    lab::host::write(SIGNERS, &printed, 0o644)
}

/// Something signed: its bytes, and the armoured signature as a file.
struct Signed {
    bytes: Vec<u8>,
    sig: String,
    namespace: &'static str,
}

impl Signed {
    /// The README's way: one line of base64 between the two marks.
    fn of(name: &str, bytes: Vec<u8>, blob: &str, namespace: &'static str) -> Self {
        let sig = format!("/run/lab/{name}.sig");
        fs::write(&sig, format!("-----BEGIN SSH SIGNATURE-----\n{blob}\n-----END SSH SIGNATURE-----\n")).unwrap();
        Self { bytes, sig, namespace }
    }

    fn verifies(&self, bytes: &[u8], namespace: &str, principal: &str) -> bool {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-Y", "verify", "-f", SIGNERS, "-I", principal, "-n", namespace, "-s", &self.sig]);
        start(&mut command, bytes).and_then(|running| running.finish(Duration::from_secs(20))).is_ok_and(|end| end.status == 0)
    }

    /// Good as it is; bad under any other name, and with any of these bytes flipped.
    fn check(&self, positions: impl Iterator<Item = usize> + Send) {
        assert!(self.verifies(&self.bytes, self.namespace, PRINCIPAL), "{} is not accepted", self.sig);
        for other in NAMESPACES.iter().filter(|other| **other != self.namespace) {
            assert!(!self.verifies(&self.bytes, other, PRINCIPAL), "{} is accepted as {other}", self.sig);
        }
        assert!(!self.verifies(&self.bytes, self.namespace, "pve-verb@other"), "{} is accepted of another host", self.sig);
        let queue = Mutex::new(positions);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    loop {
                        let Some(at) = queue.lock().unwrap().next() else { break };
                        let mut bytes = self.bytes.clone();
                        bytes[at] ^= 1 << (at % 8);
                        assert!(!self.verifies(&bytes, self.namespace, PRINCIPAL), "{} is accepted with byte {at} flipped", self.sig);
                    }
                });
            }
        });
        assert!(!self.verifies(&self.bytes[..self.bytes.len() - 1], self.namespace, PRINCIPAL));
        assert!(!self.verifies(&[&self.bytes[..], b"\n"].concat(), self.namespace, PRINCIPAL));
    }

    /// The middle, the ends, and an even sample.
    fn sample(&self, of: usize) -> impl Iterator<Item = usize> + Send + use<> {
        let length = self.bytes.len();
        (0..of).map(move |n| n * (length - 1) / (of - 1))
    }
}

fn receipt_of(name: &str, told: &Told) -> Signed {
    let event = told.answer.receipt().unwrap();
    let body = Base64::decode_vec(event["body"].as_str().unwrap()).unwrap();
    Signed::of(name, body, event["sig"].as_str().expect("it is not signed"), "pve-verb-receipt")
}

fn manifest(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    signers()?;
    let told = ask(&agent(lab)?, "forensics")?.done();
    let bytes = fs::read(format!("{}/manifest.json", told.bundle())).unwrap();
    let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(told.body["manifest_sha256"], hash);
    // The bundle's own armour, as it stands in the folder.
    let signed = Signed { bytes, sig: format!("{}/manifest.json.sig", told.bundle()), namespace: "pve-verb-manifest" };
    signed.check(signed.sample(60));
    Ok(())
}

fn listed(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    let told = ask(&agent(lab)?, "forensics")?.done();
    let folder = told.bundle();
    let manifest: Value = serde_json::from_slice(&fs::read(format!("{folder}/manifest.json")).unwrap()).unwrap();
    let mut listed: BTreeMap<String, String> = BTreeMap::new();
    for subject in manifest["subject"].as_array().unwrap() {
        let twice = listed.insert(subject["name"].as_str().unwrap().into(), subject["digest"]["sha256"].as_str().unwrap().into());
        assert!(twice.is_none(), "{subject} stands there twice");
    }
    let sums = must("find", [folder.as_str(), "-type", "f", "-exec", "sha256sum", "{}", "+"])?.text();
    let prefix = format!("{folder}/");
    let mut there: BTreeMap<String, String> = sums
        .lines()
        .filter_map(|line| line.split_once("  "))
        .map(|(sum, path)| (path.strip_prefix(&prefix).unwrap().into(), sum.into()))
        .collect();
    assert!(there.remove("manifest.json").is_some() && there.remove("manifest.json.sig").is_some());
    assert_eq!(there, listed);
    assert!(listed.len() > 40, "{listed:#?}");
    assert_eq!(
        (&manifest["_type"], &manifest["predicateType"]),
        (&"https://in-toto.io/Statement/v1".into(), &"urn:pve-verb:forensics:v1".into())
    );
    // What is not there is named, with a reason.
    for missing in manifest["predicate"]["not_captured"].as_array().unwrap() {
        assert!(missing["why"].as_str().is_some_and(|why| !why.is_empty()), "{missing}");
    }
    Ok(())
}

fn receipt(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    signers()?;
    let told = ask(&agent(lab)?, "status")?.done();
    let signed = receipt_of("receipt", &told);
    signed.check(0..signed.bytes.len());
    Ok(())
}

fn other_receipts(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    signers()?;
    for (name, line) in
        [("refusal", "reset --attach --request-id=1f0c9a2e-0000-4000-8000-00000000c001"), ("already", "start"), ("plan", "cycle --dry-run")]
    {
        let told = ask(&agent(lab)?, line)?;
        let signed = receipt_of(name, &told);
        signed.check(signed.sample(3));
    }
    // Asked again, the answer is signed anew and good.
    let line = "start --request-id=1f0c9a2e-0000-4000-8000-00000000c002";
    let first = ask(&agent(lab)?, line)?.done();
    let again = ask(&agent(lab)?, line)?.done();
    assert_eq!(
        (&first.body["replayed"], &again.body["replayed"], &again.body["audit"]),
        (&false.into(), &true.into(), &first.body["audit"])
    );
    let signed = receipt_of("replayed", &again);
    signed.check(signed.sample(3));
    Ok(())
}

fn head(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    signers()?;
    ask(&agent(lab)?, "status")?.done();
    let printed: Value = serde_json::from_str(&must("/usr/sbin/pve-verb", ["log", "head"])?.text()).unwrap();
    let body = Base64::decode_vec(printed["body"].as_str().unwrap()).unwrap();
    let claim: Value = serde_json::from_slice(&body).unwrap();
    let lines = log_lines()?;
    let hash: String = Sha256::digest(lines.last().unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((usize::try_from(claim["seq"].as_u64().unwrap()).unwrap(), &claim["head"]), (lines.len(), &hash.into()));
    let signed = Signed::of("head", body, printed["sig"].as_str().unwrap(), "pve-verb-log");
    signed.check(0..signed.bytes.len());
    Ok(())
}

fn chained(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    let mut told = Vec::new();
    for line in
        ["status", "forensics", "cycle --dry-run", "start", "stop --attach --request-id=1f0c9a2e-0000-4000-8000-00000000c003", "reset"]
    {
        told.push(ask(&agent(lab)?, line)?);
    }
    agent(lab)?.call("nonsense")?;
    let chain = Chain::read()?;
    assert!(!chain.torn);
    let lines = log_lines()?;
    let hash = |line: &[u8]| -> String { Sha256::digest(line).iter().map(|byte| format!("{byte:02x}")).collect() };
    for told in &told {
        let audit = &told.body["audit"];
        let seq = usize::try_from(audit["seq"].as_u64().unwrap()).unwrap();
        let record = &chain.records[seq - 1];
        assert_eq!(record["request_id"], told.body["request_id"]);
        assert!(["read", "refused", "outcome"].contains(&record["kind"].as_str().unwrap()), "its own last record: {record}");
        assert_eq!((&audit["head"], &audit["prev"]), (&hash(&lines[seq - 1]).into(), &record["prev"]));
        assert!(chain.records[seq..].iter().all(|later| later["request_id"] != told.body["request_id"]), "not the last of its own");
    }
    assert_eq!(chain.records.last().unwrap()["kind"], "refused");
    Ok(())
}

fn last_line(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    for (line, outcome, kind) in [
        ("status", "done", "read"),
        ("forensics", "done", "read"),
        ("start", "done", "outcome"),
        ("nonsense", "refused-request", "refused"),
        ("cycle --attach --request-id=1f0c9a2e-0000-4000-8000-00000000c004", "refused-precondition", "refused"),
    ] {
        let answer = agent(lab)?.call(line)?;
        let last = answer.lines().pop().unwrap();
        let words: Vec<&str> = last.split(' ').collect();
        let [receipt, seq, head, said] = words[..] else { panic!("{line}: {last}") };
        assert_eq!((receipt, said), ("receipt", outcome), "{line}: {last}");
        let lines = log_lines()?;
        assert_eq!(seq.parse::<usize>().unwrap(), lines.len(), "{line}");
        let hash: String = Sha256::digest(lines.last().unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(head, hash, "{line}");
        let record: Value = serde_json::from_slice(lines.last().unwrap()).unwrap();
        assert_eq!((&record["kind"], &record["outcome"]), (&kind.into(), &outcome.into()), "{line}");
    }
    Ok(())
}
