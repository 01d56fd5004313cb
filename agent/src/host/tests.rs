//! The request that is sent, and what is believed of the artifacts that come.

use super::keep::Evidence;
use super::*;
use proto::{Origin, RequestId, Sha256Hex};
use sha2::{Digest, Sha256};

fn ask(verb: Verb) -> VerbAsk {
    VerbAsk {
        verb,
        request_id: RequestId::from_random([7; 16]),
        origin: Origin::Human,
        actor: proto::Unit64::from_free_text("anna"),
        reason: proto::Unit200::from_free_text("disk stalled"),
        dry_run: false,
        attach: false,
        grant: None,
    }
}

#[test]
fn a_request_is_in_the_grammar_and_a_read_asks_for_no_more_than_it_may() {
    for verb in ["status", "forensics", "reset", "stop", "start", "cycle"] {
        let verb: Verb = verb.parse().unwrap();
        let line = request(&ask(verb), "3:".parse().ok()).unwrap();
        assert_eq!(Request::parse(line.as_bytes()).unwrap().to_string(), line);
        assert_eq!(line.contains("--inline"), verb != Verb::Status, "{line}");
        assert!(line.contains("--reason=disk%20stalled") && line.contains("--origin=human"), "{line}");
    }
    let attach = request(&VerbAsk { attach: true, ..ask(Verb::Cycle) }, None).unwrap();
    assert!(attach.contains("--attach") && !attach.contains("--inline"), "{attach}");
    assert!(request(&VerbAsk { attach: true, ..ask(Verb::Status) }, None).is_err());
}

#[test]
fn an_artifact_counts_with_its_hash_and_a_plain_path_only() {
    let folder = tempfile::tempdir().unwrap();
    let hash = |bytes: &[u8]| Sha256Hex::from_bytes(Sha256::digest(bytes).into());
    let evidence = || Evidence::new(folder.path().join("e"), Arc::new(Bound::new(folder.path(), 1 << 30)));
    assert!(evidence().put("qmp/query-status.json", &hash(b"{}"), Some(b"{}".to_vec())).is_some());
    assert_eq!(std::fs::read(folder.path().join("e/qmp/query-status.json")).unwrap(), b"{}");
    for path in ["../x", "/etc/passwd", "a/../../x", "", "a\0b", "a b", "qmp/.."] {
        assert!(evidence().put(path, &hash(b"x"), Some(b"x".to_vec())).is_none(), "{path}");
    }
    assert!(evidence().put("a", &hash(b"x"), Some(b"y".to_vec())).is_none());
    assert!(evidence().put("a", &hash(b"x"), None).is_none());
    assert!(!folder.path().join("x").exists());
}

#[test]
fn only_a_whole_bundle_is_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let hash = |bytes: &[u8]| Sha256Hex::from_bytes(Sha256::digest(bytes).into());
    let mut evidence = Evidence::new(folder.path().to_owned(), Arc::new(Bound::new(folder.path(), 1 << 30)));
    assert!(!evidence.whole(&hash(b"")), "nothing came");
    evidence.put("manifest.json", &hash(b"{}"), Some(b"{}".to_vec())).unwrap();
    assert!(!evidence.whole(&hash(b"{}")), "that is no manifest");
}

#[test]
fn nothing_was_sent_is_said_of_what_never_left_and_of_nothing_else() {
    let all = [
        Failure::Unreachable("192.0.2.1:22 can't be reached".to_owned()),
        Failure::Refused("sshd accepts no key".to_owned()),
        Failure::NoKey("the ssh-agent has no key".to_owned()),
        Failure::HostKey { pinned: "SHA256:a".to_owned(), shown: "SHA256:b".to_owned() },
    ];
    let id = ask(Verb::Cycle).request_id;
    for failure in all {
        let refused = matches!(failure, Failure::Refused(_) | Failure::NoKey(_));
        let why = Lost::By(failure);
        // A host that boots may refuse for a while what it took before.
        assert!(!refused || why.is_final(false) && !why.is_final(true), "{why}");
        let (never, began) = (unsent(&why, &ask(Verb::Cycle), false).to_string(), lost(&why, &ask(Verb::Cycle)).to_string());
        assert!(never.starts_with(&format!("Nothing was sent: {why}. ")) && !never.contains("known"), "{never}");
        assert!(!began.contains("Nothing was sent") && began.contains(&format!("--attach --request-id={id}")), "{began}");
        let after_it = unsent(&why, &ask(Verb::Cycle), true).to_string();
        assert!(after_it.contains(&format!("request {id} is not known")), "{after_it}");
    }
}
