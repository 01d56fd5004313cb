//! Receipts: made of closed records only, signed or said to be unsigned.

use super::*;
use crate::audit::{Closing, Log, Record, ample};
use crate::disk::tests::disk_at;
use crate::sign::verify_sshsig;
use proto::{Outcome, decode_body};
use ssh_key::private::{Ed25519Keypair, PrivateKey};

fn signer() -> Signer {
    Signer::new(PrivateKey::from(Ed25519Keypair::from_seed(&[5; 32]))).unwrap()
}

fn closed(outcome: Outcome) -> Closed {
    let once = |_| {
        let root = ample::folder();
        let mut log = Log::open_at(&root.path().join("run"), disk_at(root.path()), Some(signer()), 1 << 30, None);
        Record::open("pve1").close(&mut log, Closing::Outcome, outcome, serde_json::Map::new())
    };
    // A busy machine may take the second that the disk has: then once more.
    (0..5).map(once).find(|closed| closed.degraded.is_empty()).unwrap()
}

fn facts() -> Facts {
    Facts {
        request_id: RequestId::from_random([7; 16]),
        verb: Some(Verb::Cycle),
        vmid: Vmid::DEVVM,
        node: "pve1".to_owned(),
        dry_run: false,
        key_name: "agent".parse().unwrap(),
        origin: Origin::Human,
        actor: None,
        reason: None,
        already: false,
        interrupted: false,
        state_before: VmState::Unresponsive,
        state_after: VmState::Running,
        qemu_before: None,
        qemu_after: Some(QemuProcess { pid: 1, started: 2 }),
        assessment: Some(Code::QemuUnresponsive),
        bundle: None,
        preserved_where: None,
        manifest_sha256: None,
        degraded: vec!["one".to_owned()],
        message: Message::new("It runs.", "Nothing."),
        witness: None,
        binary_sha256: None,
    }
}

#[test]
fn a_receipt_is_signed_over_exactly_its_bodys_bytes_and_says_where_its_record_is() {
    let (receipt, body) = make(closed(Outcome::Done), facts(), Ok(&signer())).unwrap();
    let (decoded, bytes) = decode_body(&receipt.body).unwrap();
    assert_eq!(decoded, body);
    let blob = Base64::decode_vec(&receipt.sig.unwrap()).unwrap();
    assert!(verify_sshsig(signer().public(), namespace::RECEIPT, &bytes, &blob));
    assert_eq!((body.audit.map(|a| a.seq), body.exit_code, body.unreviewed, body.unsigned_reason), (Some(1), 0, Some(0), None));
}

#[test]
fn without_a_key_the_receipt_says_that_it_is_unsigned_and_why() {
    let (receipt, body) = make(closed(Outcome::Failed), facts(), Err("/etc/pve-verb/signing_key does not exist")).unwrap();
    assert_eq!((receipt.sig, body.exit_code), (None, 10));
    assert_eq!(body.unsigned_reason.as_deref(), Some("/etc/pve-verb/signing_key does not exist"));
    assert_eq!(body.degraded.len(), 2);
    assert_eq!(decode_body(&receipt.body).unwrap().0, body);
}

#[test]
fn a_replay_is_signed_anew_and_keeps_the_originals_outcome_and_audit_position() {
    let (_, stored) = make(closed(Outcome::Failed), facts(), Err("no key")).unwrap();
    let (receipt, body) = replay(closed(Outcome::Done), stored.clone(), Ok(&signer())).unwrap();
    assert!(receipt.sig.is_some() && body.replayed && !stored.replayed);
    assert_eq!((body.outcome, &body.audit, body.unsigned_reason), (Outcome::Failed, &stored.audit, None));
}
