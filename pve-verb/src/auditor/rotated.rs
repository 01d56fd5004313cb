//! Another key from here on: the verifier follows where the old key said so, and only there.

use super::Asked;
use super::tests::{Host, facts, shown, signer};
use crate::audit::Kind;
use crate::disk::tests::{broken_disk, disk_at};
use crate::setup::{Site, rotate_at};
use crate::sign::Signer;
use serde_json::json;
use ssh_key::private::{Ed25519Keypair, PrivateKey};
use std::os::unix::fs::PermissionsExt;

fn with_key(seed: u8) -> Host {
    let host = Host::with_records(seed, 5);
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]));
    let file = host.at("etc/pve-verb/signing_key");
    std::fs::write(&file, key.to_openssh(ssh_key::LineEnding::LF).unwrap().as_bytes()).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    host
}

fn site(host: &Host) -> Site {
    Site { root: host.at(""), owner: rustix::process::getuid().as_raw() }
}

/// The new key.
fn rotate(host: &Host) -> (Signer, String) {
    let mut out = Vec::new();
    let disk = || disk_at(host.root.path());
    rotate_at(&site(host), "pve1", "console:root", crate::host::now(), |by| host.log_of(disk(), Some(by)), &mut out).unwrap();
    (Signer::load_from(&host.at("etc/pve-verb/signing_key"), site(host).owner).unwrap(), String::from_utf8(out).unwrap())
}

fn append(host: &Host, by: &Signer) {
    host.log_of(disk_at(host.root.path()), Some(by)).put(Kind::Read, serde_json::Map::new());
}

#[test]
fn a_log_over_two_rotations_is_intact_for_whoever_trusts_any_of_its_keys() {
    let host = with_key(1);
    let (second, said) = rotate(&host);
    append(&host, &second);
    let (third, _) = rotate(&host);
    append(&host, &third);
    assert!(
        said.contains("Record 6 of the log") && said.contains(&second.public_openssh()) && said.contains("valid-before=\"20"),
        "{said}"
    );
    for key in [&signer(1), &second, &third] {
        std::fs::write(host.at("key"), key.public_openssh()).unwrap();
        for all in [false, true] {
            let report = host.asked(&Asked { key: Some(host.at("key")), all, ..Asked::default() });
            assert_eq!((report.exit_code(), report.records), (0, 9), "{}", shown(&report));
        }
    }
    assert_eq!(host.exit_of_all(), 0, "with the key that is there now");
    std::fs::write(host.at("key"), signer(9).public_openssh()).unwrap();
    assert_eq!(host.asked(&Asked { key: Some(host.at("key")), ..Asked::default() }).exit_code(), 34);
}

#[test]
fn a_rotation_that_the_old_key_did_not_sign_is_an_edit() {
    let host = with_key(1);
    let thief = signer(9);
    let record = json!({"old_key": signer(1).public_openssh(), "new_key": thief.public_openssh()});
    host.log_of(disk_at(host.root.path()), Some(&thief)).put(Kind::Rotate, facts(record));
    append(&host, &thief);
    assert_eq!(host.exit(), 34, "the head is the thief's");
    assert!(shown(&host.asked(&Asked::default())).contains("the key before did not sign that"));
}

#[test]
fn the_old_key_signs_a_moment_longer_and_then_no_more() {
    let host = with_key(1);
    let (second, _) = rotate(&host);
    append(&host, &signer(1));
    append(&host, &second);
    assert_eq!(host.exit_of_all(), 0, "a call that began before the rotation");
    let lines = host.lines();
    let rotated: serde_json::Value = serde_json::from_slice(&lines[5]).unwrap();
    let late = rotated["monotonic_ns"].as_u64().unwrap() + 61_000_000_000;
    // The same record, a minute later by the host's own clock, signed again by the old key, and all that follows by the new one.
    let again = super::tampered::rechained(&lines, |n, record| {
        if n == 6 {
            record.insert("monotonic_ns".to_owned(), json!(late));
        }
        Some(if n <= 6 { signer(1) } else { second.clone() })
    });
    host.write(&again);
    host.restart();
    assert_eq!(host.exit_of_all(), 30);
}

#[test]
fn a_rotation_that_does_not_reach_the_disk_leaves_the_old_key_and_can_be_run_again() {
    let host = with_key(1);
    let told = rotate_at(&site(&host), "pve1", "x", crate::host::now(), |by| host.log_of(broken_disk(), Some(by)), &mut Vec::new());
    assert!(told.unwrap_err().what.starts_with("The old key stays"));
    let owner = site(&host).owner;
    assert_eq!(Signer::load_from(&host.at("etc/pve-verb/signing_key"), owner).unwrap().public_openssh(), signer(1).public_openssh());
    append(&host, &signer(1));
    assert_eq!(host.exit_of_all(), 0);
    let next = Signer::load_from(&host.at("etc/pve-verb/signing_key.next"), owner).unwrap();
    let (second, _) = rotate(&host);
    assert_eq!(second.public_openssh(), next.public_openssh(), "the key that was announced is the one that is used");
    append(&host, &second);
    let report = host.asked(&Asked { all: true, ..Asked::default() });
    assert_eq!(report.exit_code(), 0, "{}", shown(&report));
}
