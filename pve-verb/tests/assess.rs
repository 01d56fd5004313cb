//! The judgement on recorded cases: `tests/assess/CASE/` has the artifacts as they stand in a bundle, `facts.json`, `outcomes.json`
//! where a probe failed, and `expected.txt`. `UPDATE=1 cargo test` rewrites what is expected; review the difference.
//!
//! Some cases are recorded from a real QEMU, most are cut down by hand to what they are about; each says so in its `about.txt`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use proto::{Assessment, Code, ProbeOutcome};
use pve_verb::assess::{Evidence, Facts, assess};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/assess")
}

fn cases() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    all.sort();
    all
}

fn files(root: &Path, at: &Path, into: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(root, &path, into);
        } else {
            into.insert(path.strip_prefix(root).unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap());
        }
    }
}

fn judge(case: &Path) -> (Assessment, BTreeMap<String, Vec<u8>>) {
    let mut artifacts = BTreeMap::new();
    files(case, case, &mut artifacts);
    let facts: Facts = serde_json::from_slice(&artifacts.remove("facts.json").unwrap()).unwrap();
    let outcomes: BTreeMap<String, (ProbeOutcome, Option<String>)> =
        artifacts.remove("outcomes.json").map(|b| serde_json::from_slice(&b).unwrap()).unwrap_or_default();
    let assessment = assess(&Evidence {
        artifact: &|path| artifacts.get(path).map(Vec::as_slice),
        outcome: &|name| outcomes.get(name).map(|(how, detail)| (*how, detail.as_deref())),
        facts,
    });
    (assessment, artifacts)
}

fn shown(a: &Assessment) -> String {
    let mut out = format!("{}{}\n{}\n", a.code, if a.healthy { " (healthy)" } else { "" }, a.sentence);
    for f in &a.findings {
        writeln!(out, "\n- {}: {}\n  see {}", f.code, f.text, f.evidence.join(", ")).unwrap();
    }
    let verb = a.recommend.verb.map_or("no verb".to_owned(), |v| v.to_string());
    writeln!(out, "\nrecommends {verb}: {}", a.recommend.why).unwrap();
    out
}

#[test]
fn every_recorded_case_is_judged_as_expected() {
    let mut wrong = Vec::new();
    for case in cases() {
        let got = shown(&judge(&case).0);
        let expected = case.join("expected.txt");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&expected, &got).unwrap();
        } else if std::fs::read_to_string(&expected).unwrap_or_default() != got {
            wrong.push(format!("{}:\n{got}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "{} cases differ (UPDATE=1 rewrites them):\n{}", wrong.len(), wrong.join("\n"));
}

/// A case's name begins with the code that it is a case of, so that an UPDATE can't hide a wrong verdict.
#[test]
fn the_verdict_is_the_one_in_the_cases_name() {
    for case in cases() {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let code = judge(&case).0.code.to_string();
        assert!(name == code || name.starts_with(&format!("{code}--")), "{name} is judged {code}");
    }
}

#[test]
fn every_code_has_two_cases_and_healthy_has_more() {
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for case in cases() {
        *count.entry(judge(&case).0.code.to_string()).or_default() += 1;
    }
    let all = [
        Code::Healthy,
        Code::BlockStalled,
        Code::QemuUnresponsive,
        Code::QmpUnavailable,
        Code::GuestUnresponsive,
        Code::GuestPanicked,
        Code::GuestDiskFull,
        Code::GuestOom,
        Code::Paused,
        Code::Stopped,
        Code::Survivor,
        Code::Locked,
        Code::PveUnresponsive,
        Code::Elsewhere,
        Code::Interrupted,
    ];
    let missing: BTreeSet<String> = all.iter().map(Code::to_string).filter(|c| count.get(c).copied().unwrap_or(0) < 2).collect();
    assert!(missing.is_empty(), "fewer than two cases: {missing:?}");
    assert!(count.get("healthy").copied().unwrap_or(0) >= 8);
}

/// Evidence may be lost on the way; taking any one artifact away must never turn a healthy VM into an ill one. One exception, which
/// is the table's own: where PVE's history looks like a stall, the queues or the agent are all that speaks against it.
#[test]
fn a_lost_artifact_never_makes_a_healthy_vm_ill() {
    for case in cases() {
        let (whole, artifacts) = judge(&case);
        if !whole.healthy {
            continue;
        }
        let facts: Facts = serde_json::from_slice(&std::fs::read(case.join("facts.json")).unwrap()).unwrap();
        for lost in artifacts.keys() {
            if artifacts.contains_key("pve/rrd") && (lost.starts_with("qmp/virtqueues") || lost == "guest/diskstats.json") {
                continue;
            }
            let part = assess(&Evidence {
                artifact: &|path| artifacts.get(path).filter(|_| path != lost).map(Vec::as_slice),
                outcome: &|_| None,
                facts: facts.clone(),
            });
            assert!(
                part.recommend.verb.is_none() && (part.healthy || lost == "qmp/query-status.json"),
                "{} without {lost}: {}",
                case.display(),
                part.sentence
            );
        }
    }
}
