//! Grants: what is taken, what is refused, and that none is spent twice.

use super::*;
use crate::disk::tests::{broken_disk, disk_at, hung_disk};
use crate::host::path;
use crate::sign::armour;
use base64ct::Base64;
use ed25519_dalek::{Signer as _, SigningKey};
use sha2::{Digest, Sha256};
use ssh_key::private::{Ed25519Keypair, PrivateKey};
use ssh_key::public::{KeyData, PublicKey, SkEd25519};
use ssh_key::{HashAlg, SshSig};
use std::process::Command;

const NOW: &str = "2026-11-21T00:30:00.000Z";

fn now() -> Timestamp {
    Timestamp::parse(NOW).unwrap()
}

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
}

fn line_of(key: &PrivateKey) -> String {
    PublicKey::from(key.public_key().key_data().clone()).to_openssh().unwrap()
}

fn blob(pem: &str) -> Vec<u8> {
    let body: String = pem.lines().filter(|l| !l.starts_with("-----")).collect();
    Base64::decode_vec(&body).unwrap()
}

fn json_of(change: &[(&str, Value)]) -> String {
    let mut said = json!({
        "vmid": 102, "node": "pve1", "verbs": ["cycle", "stop"], "key_name": "agent", "not_before": "2026-11-21T00:00:00Z",
        "not_after": "2026-11-21T01:00:00.000Z", "nonce": "k7Jc2v-1", "reason": "disk stalled",
    });
    for (name, value) in change {
        said[*name] = value.clone();
    }
    said.to_string()
}

fn text_of(body: &str, blob: &[u8]) -> String {
    format!("{}.{}", Base64UrlUnpadded::encode_string(body.as_bytes()), Base64UrlUnpadded::encode_string(blob))
}

fn signed_for(namespace: &str, body: &str, by: &PrivateKey) -> String {
    let sig = by.sign(namespace, HashAlg::Sha512, body.as_bytes()).unwrap();
    text_of(body, &blob(&sig.to_pem(ssh_key::LineEnding::LF).unwrap()))
}

fn made(change: &[(&str, Value)]) -> String {
    signed_for(namespace::GRANT, &json_of(change), &key(7))
}

/// What a security key would answer, made of software: signature, flags, counter, inside an SSHSIG.
fn touched(body: &str, flags: u8) -> (PublicKey, String) {
    let secret = SigningKey::from_bytes(&[8; 32]);
    let public = SkEd25519::new(ssh_key::public::Ed25519PublicKey(secret.verifying_key().to_bytes()), "ssh:");
    let signed = SshSig::signed_data(namespace::GRANT, HashAlg::Sha512, body.as_bytes()).unwrap();
    let trailer = [flags, 0, 0, 0, 9];
    let message = [&Sha256::digest(b"ssh:")[..], &trailer, &Sha256::digest(&signed)[..]].concat();
    let string = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
    let name = b"sk-ssh-ed25519@openssh.com";
    let public_blob = [string(name), string(&secret.verifying_key().to_bytes()), string(b"ssh:")].concat();
    let signature = [string(name), string(&secret.sign(&message).to_bytes()), trailer.to_vec()].concat();
    let blob = [
        b"SSHSIG".to_vec(),
        1u32.to_be_bytes().to_vec(),
        string(&public_blob),
        string(namespace::GRANT.as_bytes()),
        string(b""),
        string(b"sha512"),
        string(&signature),
    ]
    .concat();
    (PublicKey::from(KeyData::from(public)), text_of(body, &blob))
}

fn signers() -> Signers {
    Signers::read(&format!("alice {} at home\n", line_of(&key(7))))
}

fn checked_by(text: &str, signers: &Signers, at: Timestamp) -> Result<Granted, BadGrant> {
    let agent: KeyName = "agent".parse().unwrap();
    check(text, &Need { vmid: Vmid::DEVVM, node: "pve1", verb: Verb::Cycle, key_name: &agent }, signers, at)
}

fn use_it(granted: &Granted, by: &RequestId, clocks: (Timestamp, Option<Timestamp>), disk: &Disk) -> Result<(), BadGrant> {
    spend(granted, by, clocks, disk, Duration::from_secs(20))
}

fn refused(text: &str) -> BadGrant {
    checked_by(text, &signers(), now()).unwrap_err()
}

#[test]
fn a_good_grant_is_good() {
    let granted = checked_by(&made(&[]), &signers(), now()).unwrap();
    assert_eq!((granted.principal.as_str(), granted.said.reason.as_str()), ("alice", "disk stalled"));
    assert!(made(&[("reason", json!("x".repeat(200)))]).len() < 3500 / 2);
}

#[test]
fn each_refusal_has_its_own_name() {
    let time = |text: &str| Timestamp::parse(text).unwrap();
    assert_eq!(refused(&made(&[("vmid", json!(103))])), BadGrant::OtherVm(103.try_into().unwrap()));
    assert_eq!(refused(&made(&[("node", json!("pve2"))])), BadGrant::OtherNode("pve2".to_owned()));
    assert_eq!(refused(&made(&[("verbs", json!(["start", "stop"]))])), BadGrant::OtherVerb("start, stop".to_owned()));
    assert_eq!(refused(&made(&[("verbs", json!([]))])), BadGrant::OtherVerb("no verb".to_owned()));
    assert_eq!(refused(&made(&[("key_name", json!("laptop"))])), BadGrant::OtherKey("laptop".to_owned()));
    assert_eq!(refused(&made(&[("not_before", json!("2026-11-21T00:30:01Z"))])), BadGrant::NotYet(time("2026-11-21T00:30:01.000Z")));
    assert_eq!(refused(&made(&[("not_after", json!("2026-11-21T00:29:59Z"))])), BadGrant::Expired(time("2026-11-21T00:29:59.000Z")));
    assert_eq!(refused(&made(&[("not_after", json!("2026-11-22T00:00:00.001Z"))])), BadGrant::TooLong);
    assert!(checked_by(&made(&[("not_after", json!("2026-11-22T00:00:00.000Z"))]), &signers(), now()).is_ok(), "24 h are allowed");
    assert_eq!(refused(&signed_for(namespace::GRANT, &json_of(&[]), &key(6))), BadGrant::UnknownSigner);
    assert_eq!(refused(&signed_for(namespace::RECEIPT, &json_of(&[]), &key(7))), BadGrant::BadSignature, "made for something else");
    let good = made(&[]);
    let (_, sig) = good.split_once('.').unwrap();
    let other_body =
        format!("{}.{sig}", Base64UrlUnpadded::encode_string(json_of(&[("vmid", json!(102)), ("nonce", json!("other"))]).as_bytes()));
    assert_eq!(refused(&other_body), BadGrant::BadSignature);
    for bad in [
        good.replace('.', ""),
        good.replace('.', ".."),
        format!("{good}="),
        format!(".{sig}"),
        made(&[("nonce", json!("../x"))]),
        made(&[("nonce", json!(""))]),
        made(&[("more", json!(1))]),
        made(&[("verbs", json!(["reboot"]))]),
        made(&[("not_after", json!("tomorrow"))]),
        made(&[("not_after", json!("2026-11-20T23:00:00Z"))]),
        signed_for(namespace::GRANT, "{}", &key(7)),
        signed_for(namespace::GRANT, "rubbish", &key(7)),
    ] {
        assert!(matches!(refused(&bad), BadGrant::Malformed(_)), "{bad}: {:?}", refused(&bad));
    }
}

#[test]
fn each_flipped_bit_of_a_grant_is_refused() {
    let good = made(&[]);
    let (body, sig) =
        good.split_once('.').map(|(a, b)| (Base64UrlUnpadded::decode_vec(a).unwrap(), Base64UrlUnpadded::decode_vec(b).unwrap())).unwrap();
    for bit in 0..(body.len() + sig.len()) * 8 {
        let (mut body, mut sig) = (body.clone(), sig.clone());
        let at = bit / 8;
        if at < body.len() {
            body[at] ^= 1 << (bit % 8)
        } else {
            sig[at - body.len()] ^= 1 << (bit % 8)
        }
        let text = format!("{}.{}", Base64UrlUnpadded::encode_string(&body), Base64UrlUnpadded::encode_string(&sig));
        assert!(checked_by(&text, &signers(), now()).is_err(), "bit {bit}");
    }
    println!("flipped bits of a grant refused: {}; taken: 0", (body.len() + sig.len()) * 8);
}

#[test]
fn a_security_key_must_have_been_touched() {
    for (flags, good) in [(1, true), (5, true), (0, false), (4, false)] {
        let (public, text) = touched(&json_of(&[]), flags);
        let signers = Signers::read(&format!("bob {}", public.to_openssh().unwrap()));
        match checked_by(&text, &signers, now()) {
            Ok(granted) => assert!(good && granted.principal == "bob", "{flags}"),
            Err(why) => assert_eq!((good, why), (false, BadGrant::NoTouch), "{flags}"),
        }
    }
    // Flags that were changed afterwards are no longer signed.
    let (public, text) = touched(&json_of(&[]), 0);
    let (body, sig) = text.split_once('.').unwrap();
    let mut sig = Base64UrlUnpadded::decode_vec(sig).unwrap();
    let flags = sig.len() - 5;
    sig[flags] = 1;
    let signers = Signers::read(&format!("bob {}", public.to_openssh().unwrap()));
    assert_eq!(
        checked_by(&format!("{body}.{}", Base64UrlUnpadded::encode_string(&sig)), &signers, now()).unwrap_err(),
        BadGrant::BadSignature
    );
}

#[test]
fn the_options_of_allowed_signers_count() {
    let public = line_of(&key(7));
    let says = |line: &str| checked_by(&made(&[]), &Signers::read(&format!("{line} {public} comment")), now()).map(|g| g.principal);
    for good in [
        "alice",
        "alice namespaces=\"pve-verb-grant\"",
        "alice namespaces=\"git,pve-verb-*\"",
        "alice valid-after=\"20261121Z\",valid-before=\"20261121010000Z\"",
        "alice NAMESPACES=\"pve-verb-grant\",valid-after=202611210030Z",
        "alice\tnamespaces=\"pve-verb-gran?\"",
    ] {
        assert_eq!(says(good).as_deref(), Ok("alice"), "{good}");
    }
    for (bad, word) in [
        ("alice namespaces=\"git\"", "namespace"),
        ("alice namespaces=\"pve-verb-*,!pve-verb-grant\"", "namespace"),
        ("alice valid-after=\"20261122Z\"", "from 2026-11-22"),
        ("alice valid-before=\"202611210029Z\"", "until 2026-11-21T00:29"),
    ] {
        assert!(matches!(says(bad), Err(BadGrant::SignerMayNot(how)) if how.contains(word)), "{bad}");
    }
    for unread in [
        "alice cert-authority",
        "alice valid-before=\"20261231\"",
        "alice valid-before=\"never\"",
        "alice verify-required",
        "alice namespaces",
        "alice namespaces=\"pve-verb-grant",
    ] {
        assert_eq!(says(unread), Err(BadGrant::UnknownSigner), "{unread}");
    }
    // Of several lines of one key, one that allows it is enough.
    let two = format!("old valid-before=\"20260101Z\" {public}\n# comment\n\nnew {public}\n");
    assert_eq!(checked_by(&made(&[]), &Signers::read(&two), now()).unwrap().principal, "new");
}

#[test]
fn a_file_of_signers_that_others_can_write_lets_nobody_in() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("allowed_signers");
    let me = rustix::process::getuid().as_raw();
    let says = || checked_by(&made(&[]), &Signers::load_from(&file, me), now()).map(|g| g.principal);
    assert!(matches!(says(), Err(BadGrant::NoSigners(why)) if why.ends_with("does not exist")));
    std::fs::write(&file, format!("alice {}\n", line_of(&key(7)))).unwrap();
    for (mode, good) in [(0o600, true), (0o644, true), (0o664, false), (0o606, false)] {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(says().is_ok(), good, "{mode:o}");
    }
}

#[test]
fn a_grant_is_spent_once_whatever_came_of_its_first_use() {
    let root = tempfile::tempdir().unwrap();
    let granted = checked_by(&made(&[]), &signers(), now()).unwrap();
    let (one, two) = (RequestId::from_random([1; 16]), RequestId::from_random([2; 16]));
    assert_eq!(use_it(&granted, &one, (now(), None), &disk_at(root.path())), Ok(()));
    // The first was killed right here, before its intent: nothing of it is in memory or in /run any more.
    for id in [&two, &one] {
        assert_eq!(use_it(&granted, id, (now(), None), &disk_at(root.path())), Err(BadGrant::Spent(Some(one.clone()))));
    }
    // Another signature over the same nonce is the same grant.
    let again = checked_by(&made(&[("reason", json!("again"))]), &signers(), now()).unwrap();
    assert_eq!(use_it(&again, &two, (now(), None), &disk_at(root.path())), Err(BadGrant::Spent(Some(one))));
}

#[test]
fn of_two_uses_at_once_exactly_one_wins() {
    let root = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let granted = checked_by(&made(&[("nonce", json!(format!("round-{round}")))]), &signers(), now()).unwrap();
        let barrier = std::sync::Barrier::new(4);
        let won = std::thread::scope(|scope| {
            let uses: Vec<_> = (0..4)
                .map(|n| {
                    let (granted, barrier, disk) = (&granted, &barrier, disk_at(root.path()));
                    scope.spawn(move || {
                        barrier.wait();
                        use_it(granted, &RequestId::from_random([n; 16]), (now(), None), &disk)
                    })
                })
                .collect();
            uses.into_iter().map(|u| u.join().unwrap()).filter(Result::is_ok).count()
        });
        assert_eq!(won, 1, "round {round}");
    }
}

#[test]
fn what_the_disk_does_not_take_is_not_granted() {
    let granted = checked_by(&made(&[]), &signers(), now()).unwrap();
    for disk in [hung_disk(), broken_disk()] {
        let why = spend(&granted, &RequestId::from_random([1; 16]), (now(), None), &disk, Duration::from_secs(1)).unwrap_err();
        assert!(matches!(why, BadGrant::NotRecorded(_)), "{why:?}");
    }
}

#[test]
fn a_clock_that_is_set_back_a_year_revives_nothing() {
    let root = tempfile::tempdir().unwrap();
    let (year_ago, id) = (Timestamp::from_unix_ms(now().unix_ms() - 365 * 86_400_000), RequestId::from_random([1; 16]));
    let good = made(&[]);
    assert!(matches!(checked_by(&good, &signers(), year_ago), Err(BadGrant::NotYet(_))), "today's is not valid yet");
    let old = made(&[("not_before", json!("2025-11-21T00:00:00Z")), ("not_after", json!("2025-11-21T01:00:00Z")), ("nonce", json!("old"))]);
    assert!(matches!(refused(&old), BadGrant::Expired(_)));
    // By the clock alone last year's is good again; the log knows better.
    let granted = checked_by(&old, &signers(), year_ago).unwrap();
    assert!(matches!(use_it(&granted, &id, (year_ago, Some(now())), &disk_at(root.path())), Err(BadGrant::Expired(_))));
    assert!(!root.path().join(path::GRANTS.trim_start_matches('/')).join("old").exists());
    // And one that was spent stays spent, whatever the clock says.
    let spent = checked_by(&good, &signers(), now()).unwrap();
    use_it(&spent, &id, (now(), None), &disk_at(root.path())).unwrap();
    assert_eq!(use_it(&spent, &id, (now(), Some(year_ago)), &disk_at(root.path())), Err(BadGrant::Spent(Some(id.clone()))));
}

#[test]
fn inspect_says_what_it_is_and_whether_it_would_be_taken() {
    let folder = tempfile::tempdir().unwrap();
    let inspect = |text: &str, at| {
        let mut out = Vec::new();
        let told = inspect::inspect_at(text, &signers(), at, folder.path(), &mut out);
        (String::from_utf8(out).unwrap(), told)
    };
    let (text, told) = inspect(&made(&[("reason", json!("a\u{1b}[2J"))]), now());
    assert!(told.is_ok() && text.contains("for: cycle, stop of VM 102 on pve1\n") && text.ends_with("It would be taken now.\n"), "{text}");
    assert!(!text.contains('\u{1b}'));
    let (text, told) = inspect(&made(&[]), Timestamp::from_unix_ms(now().unix_ms() + 86_400_000));
    assert!(text.contains("signed by: alice") && told.unwrap_err().what.contains("expired"), "{text}");
    std::fs::write(folder.path().join("k7Jc2v-1"), "").unwrap();
    assert!(inspect(&made(&[]), now()).1.unwrap_err().what.contains("spent"));
    assert!(inspect("rubbish", now()).1.is_err());
}

#[test]
fn stock_ssh_keygen_makes_a_grant() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("key"), key(7).to_openssh(ssh_key::LineEnding::LF).unwrap().as_bytes()).unwrap();
    std::fs::set_permissions(at("key"), std::fs::Permissions::from_mode(0o600)).unwrap();
    for (name, arguments) in [("sha512", &[][..]), ("sha256", &["-O", "hashalg=sha256"][..])] {
        let body = json_of(&[("nonce", json!(name))]);
        std::fs::write(at("grant.json"), &body).unwrap();
        let _ = std::fs::remove_file(at("grant.json.sig"));
        let made = Command::new("ssh-keygen")
            .current_dir(folder.path())
            .args(["-Y", "sign", "-n", "pve-verb-grant", "-f", "key"])
            .args(arguments)
            .arg("grant.json")
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let pem = std::fs::read_to_string(at("grant.json.sig")).unwrap();
        let text = text_of(&body, &blob(&pem));
        assert!(checked_by(&text, &signers(), now()).is_ok(), "{name}");
        assert_eq!(armour(&blob(&pem)), pem);
    }
}
