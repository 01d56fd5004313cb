//! Signatures: what stock ssh-keygen accepts and what it does not.

use super::*;
use ssh_key::private::Ed25519Keypair;
use std::process::{Command, Stdio};

fn signer(seed: u8) -> Signer {
    Signer::new(PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))).unwrap()
}

#[test]
fn each_flipped_bit_of_a_signature_is_seen() {
    let signer = signer(1);
    let blob = signer.sshsig("pve-verb-receipt", b"the body").unwrap();
    assert!(verify_sshsig(signer.public(), "pve-verb-receipt", b"the body", &blob));
    for bit in 0..blob.len() * 8 {
        let mut bad = blob.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(!verify_sshsig(signer.public(), "pve-verb-receipt", b"the body", &bad), "bit {bit}");
    }
    for end in 0..blob.len() {
        assert!(!verify_sshsig(signer.public(), "pve-verb-receipt", b"the body", &blob[..end]), "cut at {end}");
    }
    assert!(!verify_sshsig(signer.public(), "pve-verb-receipt", b"the body", &[blob.as_slice(), b"x"].concat()));
}

#[test]
fn a_signature_is_for_one_key_one_purpose_and_one_text() {
    let (one, other) = (signer(1), signer(2));
    let blob = one.sshsig("pve-verb-receipt", b"the body").unwrap();
    assert!(!verify_sshsig(other.public(), "pve-verb-receipt", b"the body", &blob));
    assert!(!verify_sshsig(one.public(), "pve-verb-manifest", b"the body", &blob));
    assert!(!verify_sshsig(one.public(), "pve-verb-receipt", b"the bodY", &blob));
}

#[test]
fn raw_signatures_are_for_one_key_and_one_text() {
    let signature = signer(1).raw(b"pve-verb-log\nline");
    assert!(verify_raw(signer(1).public(), b"pve-verb-log\nline", &signature));
    assert!(!verify_raw(signer(2).public(), b"pve-verb-log\nline", &signature));
    assert!(!verify_raw(signer(1).public(), b"pve-verb-log\nlinE", &signature));
    assert!(!verify_raw(signer(1).public(), b"pve-verb-log\nline", &signature[..63]));
}

#[test]
fn armour_has_one_spelling() {
    let blob = signer(1).sshsig("pve-verb-receipt", b"x").unwrap();
    let text = armour(&blob);
    assert_eq!(dearmour(&text), Some(blob));
    assert!(text.lines().all(|l| l.len() <= 70));
    let flipped_padding = text.replace("==\n-----END", "=\n-----END").replace("=\n-----END", "\n-----END");
    for bad in [
        text.replace('\n', "\r\n"),
        format!("{text}\n"),
        format!(" {text}"),
        text.replacen('\n', "\n\n", 1),
        text.trim_end().to_owned(),
        text.replace("SSH SIGNATURE", "SSH Signature"),
        text.replace(BEGIN, ""),
    ] {
        assert_eq!(dearmour(&bad), None, "{bad:?}");
    }
    if flipped_padding != text {
        assert_eq!(dearmour(&flipped_padding), None);
    }
}

#[test]
fn every_flipped_bit_of_the_armour_is_seen() {
    let signer = signer(1);
    let text = armour(&signer.sshsig("pve-verb-manifest", b"x").unwrap()).into_bytes();
    for bit in 0..text.len() * 8 {
        let mut bad = text.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let accepted = String::from_utf8(bad)
            .ok()
            .and_then(|t| dearmour(&t))
            .is_some_and(|b| verify_sshsig(signer.public(), "pve-verb-manifest", b"x", &b));
        assert!(!accepted, "bit {bit}");
    }
}

#[test]
fn stock_ssh_keygen_accepts_our_signature_under_the_line_that_init_prints() {
    let folder = tempfile::tempdir().unwrap();
    let signer = signer(3);
    let line = crate::setup::allowed_signers_line("pve1", &signer);
    std::fs::write(folder.path().join("allowed"), line + "\n").unwrap();
    for (namespace, good) in [("pve-verb-receipt", true), ("pve-verb-manifest", true), ("pve-verb-log", true), ("pve-verb-grant", false)] {
        let blob = signer.sshsig(namespace, b"the bytes").unwrap();
        std::fs::write(folder.path().join("sig"), armour(&blob)).unwrap();
        std::fs::write(folder.path().join("bytes"), b"the bytes").unwrap();
        let verdict = Command::new("ssh-keygen")
            .current_dir(folder.path())
            .args(["-Y", "verify", "-f", "allowed", "-I", "pve-verb@pve1", "-n", namespace, "-s", "sig"])
            .stdin(Stdio::from(std::fs::File::open(folder.path().join("bytes")).unwrap()))
            .output()
            .unwrap();
        assert_eq!(verdict.status.success(), good, "{namespace}: {verdict:?}");
    }
}

#[test]
fn a_key_that_others_can_read_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let me = rustix::process::getuid().as_raw();
    let path = folder.path().join("signing_key");
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&[4; 32]));
    std::fs::write(&path, key.to_openssh(ssh_key::LineEnding::LF).unwrap().as_bytes()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(Signer::load_from(&path, me).unwrap().public_openssh(), signer(4).public_openssh());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(Signer::load_from(&path, me).unwrap_err().contains("mode 0640"));
    std::fs::remove_file(&path).unwrap();
    assert!(Signer::load_from(&path, me).unwrap_err().ends_with("does not exist"));
}
