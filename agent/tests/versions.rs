//! A newer and an older host, played to this agent by a real sshd: what either may do within protocol 1 costs no receipt, and what it may
//! not do is no success. And what 0.1.0 has said, every later version reads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]

#[path = "support/keyholder.rs"]
mod keyholder;
#[path = "support/sshd.rs"]
mod sshd;

use agent::config::Config;
use agent::hands::{Hands, VerbAsk, VerbEnd, VerbNews};
use agent::host::Ssh;
use agent::receipt::Unproved;
use base64ct::{Base64, Encoding};
use keyholder::key;
use proto::{Body, Code, NotAReceipt, Origin, Outcome, Request, Verb, VmState};
use serde_json::{Map, Value, json};
use ssh_key::{HashAlg, LineEnding, SshSig};
use sshd::{HOST_KEY, Sshd, me};
use tokio::sync::mpsc;

/// The seed of the played host's signing key.
const SIGNING: u8 = 30;
const CYCLE: &str = "4f0a3c52-7c1e-4b57-9a52-0d6b2f3c1a02";
const REQUESTS: &str = include_str!("requests/0.1.0.txt");

/// The answer that 0.1.0's host gave, line by line.
fn recorded() -> Vec<Map<String, Value>> {
    include_str!("answers/cycle.ndjson").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Its receipt's body.
fn body(answer: &[Map<String, Value>]) -> Map<String, Value> {
    let body = answer.last().unwrap()["body"].as_str().unwrap();
    serde_json::from_slice(&Base64::decode_vec(body).unwrap()).unwrap()
}

/// Puts a body into the answer's receipt and signs it.
fn sign(answer: &mut [Map<String, Value>], body: &Map<String, Value>) {
    let bytes = serde_json::to_vec(body).unwrap();
    let key = ssh_key::PrivateKey::from_openssh(key(SIGNING).0).unwrap();
    let signature = SshSig::sign(&key, proto::namespace::RECEIPT, HashAlg::Sha512, &bytes).unwrap().to_pem(LineEnding::LF).unwrap();
    let signature: String = signature.lines().filter(|line| !line.starts_with("-----")).collect();
    let receipt = answer.last_mut().unwrap();
    receipt.insert("body".into(), Base64::encode_string(&bytes).into());
    receipt.insert("sig".into(), signature.into());
}

/// What came of a cycle for which this answer was played: its end, and the events that were understood.
fn played(answer: &[Map<String, Value>], status: i32) -> (VerbEnd, Vec<Body>, Vec<String>) {
    let text: String = answer.iter().map(|line| format!("{}\n", serde_json::to_string(line).unwrap())).collect();
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("answer");
    std::fs::write(&file, text).unwrap();
    let sshd = Sshd::playing(&[("play", &format!("cat {}; exit {status}", file.display()))]);
    let (user, port, shown, signing) = (me(), sshd.port, key(HOST_KEY).1, key(SIGNING).1);
    let config = format!(
        "[host]\naddress = \"127.0.0.1:{port}\"\nuser = \"{user}\"\nhost_key = \"{shown}\"\nsigning_key = \"{signing}\"\n\
         [ssh]\nauth_sock = \"{}\"\n[state]\ndir = \"{}\"\n",
        sshd.socket().display(),
        state.path().display()
    );
    let ssh = Ssh::open(&Config::parse(&config).unwrap()).unwrap();
    let ask = VerbAsk {
        verb: Verb::Cycle,
        request_id: CYCLE.parse().unwrap(),
        origin: Origin::Human,
        actor: Some("anna".to_owned().try_into().unwrap()),
        reason: Some("disk stalled".to_owned().try_into().unwrap()),
        dry_run: false,
        attach: false,
        grant: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (end, events) = runtime.block_on(async {
        let (tell, mut news) = mpsc::channel(16);
        let events = async {
            let mut events = Vec::new();
            while let Some(said) = news.recv().await {
                if let VerbNews::Event(event) = said {
                    events.push(event.body);
                }
            }
            events
        };
        tokio::join!(ssh.verb(ask, tell), events)
    });
    (end, events, sshd.asked())
}

#[test]
fn an_answer_of_0_1_0_is_read_whole() {
    let mut answer = recorded();
    let body = body(&answer);
    sign(&mut answer, &body);
    let (end, events, asked) = played(&answer, 0);
    assert!(end.checked.unwrap().is_success(), "{}", end.said);
    assert_eq!(events.len(), answer.len() - 1, "every event but the receipt");
    // And it was asked for with a line that 0.1.0's host knows.
    assert!(REQUESTS.lines().any(|line| line == asked[0]), "{asked:?} is none of 0.1.0's");
}

#[test]
fn a_newer_host_may_say_more_and_the_receipt_still_counts() {
    let mut answer = recorded();
    let mut body = body(&answer);
    // New members everywhere, new events, known events with new words or in a new form.
    for line in &mut answer {
        line.insert("later".into(), json!({ "deep": [1, null] }));
    }
    let at = answer[0]["at"].clone();
    let event = |more: Value| {
        let mut line: Map<String, Value> = serde_json::from_value(json!({ "v": 1, "at": at, "request_id": CYCLE })).unwrap();
        line.extend(more.as_object().unwrap().clone());
        line
    };
    let newer = [
        json!({ "event": "weather", "rain": true }),
        json!({ "event": "step", "name": "defrost", "outcome": "started", "ms": 0, "detail": null }),
        json!({ "event": "probe", "name": "qmp/query-later", "outcome": "postponed", "ms": 1, "detail": null, "artifact": null }),
        json!({ "event": "step", "name": { "now": "an object" } }),
    ];
    let known = answer.len() - 1;
    for (n, more) in newer.into_iter().enumerate() {
        answer.insert(1 + n, event(more));
    }
    for line in answer.iter_mut().filter(|line| line["event"] == "assessment") {
        line["code"] = "guest-dreaming".into();
        line["findings"][0]["code"] = "guest-dreaming".into();
        line["sentence"] = "The guest dreams.".into();
    }
    body.insert("later".into(), json!([{}]));
    body["assessment"] = "guest-dreaming".into();
    body["state_before"] = "hibernated".into();
    sign(&mut answer, &body);

    let (end, events, _) = played(&answer, 0);
    let proved = end.checked.unwrap_or_else(|why| panic!("{why:?}"));
    assert_eq!((end.status, proved.is_success()), (0, true));
    assert_eq!((proved.body().assessment, proved.body().state_before), (Some(Code::Newer), VmState::Unknown));
    assert_eq!(events.len(), known, "the new events are as if they were not there, the others are");
    let judged = events.iter().find_map(|body| if let Body::Assessment(judged) = body { Some(judged) } else { None }).unwrap();
    assert_eq!((judged.code, judged.sentence.as_str()), (Code::Newer, "The guest dreams."), "a person reads what it means");
}

#[test]
fn what_a_newer_host_may_not_change_is_never_a_success() {
    let changes: [(&str, Value); 5] = [
        ("outcome", "done-mostly".into()),
        ("verb", "hibernate".into()),
        ("preserved_where", "cloud".into()),
        ("exit_code", 12.into()),
        ("v", 2.into()),
    ];
    for (member, value) in changes {
        let mut answer = recorded();
        let mut body = body(&answer);
        body[member] = value;
        sign(&mut answer, &body);
        let (end, ..) = played(&answer, 0);
        assert_eq!(end.status, agent::UNKNOWN, "{member}: {}", end.said);
        assert!(matches!(end.checked, Err(Unproved::Body(_))), "{member}: {:?}", end.checked);
    }
    // A member that is gone.
    let mut answer = recorded();
    let mut less = body(&answer);
    less.remove("outcome");
    sign(&mut answer, &less);
    assert!(matches!(played(&answer, 0).0.checked, Err(Unproved::Body(NotAReceipt::Json(_)))));
}

#[test]
fn a_host_of_another_protocol_is_named_and_asked_once() {
    let mut answer = recorded();
    let body = body(&answer);
    sign(&mut answer, &body);
    for line in &mut answer {
        line["v"] = 2.into();
    }
    let (end, events, asked) = played(&answer, 0);
    assert_eq!((end.status, events.len(), asked.len()), (agent::UNKNOWN, 0, 1), "{}", end.said);
    assert!(end.said.what.contains("version 2 of the protocol, and this program version 1"), "{}", end.said);
}

#[test]
fn an_older_host_that_does_not_know_an_option_is_named_as_one() {
    // What 0.1.0's host says to an option that it does not have: id and verb are not the request's, because it understood neither. So it
    // could be the answer to another request, and proves nothing about this one.
    let mut answer = vec![recorded().pop().unwrap()];
    let mut body = body(&answer);
    for (member, value) in [
        ("outcome", json!("refused-request")),
        ("exit_code", json!(2)),
        ("verb", Value::Null),
        ("request_id", json!("00000000-0000-4000-8000-000000000001")),
        ("bundle", Value::Null),
        ("message", json!({ "what": "Position 47 is not in the grammar.", "do": "Say one of the six verbs." })),
    ] {
        body[member] = value;
    }
    answer[0]["request_id"] = body["request_id"].clone();
    sign(&mut answer, &body);
    let (end, _, asked) = played(&answer, 2);
    assert_eq!((end.status, asked.len()), (agent::UNKNOWN, 1), "{}", end.said);
    let said = end.said.to_string();
    assert!(said.contains("Position 47 is not in the grammar") && said.contains("older than this breakglass"), "{said}");
}

#[test]
fn every_request_of_0_1_0_is_still_in_the_grammar() {
    let lines: Vec<&str> = REQUESTS.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(lines.len() >= 12, "{lines:?}");
    for line in lines {
        let request = Request::parse(line.as_bytes()).unwrap_or_else(|why| panic!("{line}: {why:?}"));
        assert_eq!(request.to_string(), line, "and is spelt in the same way");
    }
    assert_eq!(Outcome::ALL.len(), 10, "what decides never grows within a protocol");
}
