//! The receipt as it came, where scripts and the log shipper read: the program itself, against a real sshd that plays a recorded answer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]

#[path = "support/keyholder.rs"]
mod keyholder;
#[path = "support/sshd.rs"]
mod sshd;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use agent::incident::{By, Store, What};
use keyholder::key;
use proto::Verb;
use sshd::{HOST_KEY, Sshd, me};

const ANSWERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/answers");
const CYCLE: &str = "4f0a3c52-7c1e-4b57-9a52-0d6b2f3c1a02";

fn configured(sshd: &Sshd, folder: &Path) -> PathBuf {
    let signing = std::fs::read_to_string(format!("{ANSWERS}/signing_key.pub")).unwrap();
    let text = format!(
        "[host]\naddress = \"127.0.0.1:{}\"\nuser = \"{}\"\nhost_key = \"{}\"\nsigning_key = \"{}\"\n[ssh]\nauth_sock = \"{}\"\n\
         [state]\ndir = \"{}\"\n[web]\nlisten = \"127.0.0.1:0\"\n",
        sshd.port,
        me(),
        key(HOST_KEY).1,
        signing.trim(),
        sshd.socket().display(),
        folder.join("state").display()
    );
    let config = folder.join("config.toml");
    std::fs::write(&config, text).unwrap();
    config
}

fn breakglass(words: &[&str], config: Option<&Path>, stdin: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_breakglass"));
    command.args(words).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    let mut child = command.spawn().unwrap();
    let _it_need_not_read = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

/// What `breakglass receipt` says of an answer.
fn checked(answer: &[u8]) -> Option<i32> {
    breakglass(&["receipt", "--signing-key", &format!("{ANSWERS}/allowed_signers"), "--request-id", CYCLE], None, answer).status.code()
}

/// The last line of the recorded answer.
fn signed() -> String {
    std::fs::read_to_string(format!("{ANSWERS}/cycle.ndjson")).unwrap().lines().last().unwrap().to_owned()
}

#[test]
fn a_script_gets_the_receipt_as_the_last_line_and_only_where_it_proves_something() {
    let sshd = Sshd::playing(&[("play", &format!("cat {ANSWERS}/cycle.ndjson"))]);
    let folder = tempfile::tempdir().unwrap();
    let config = configured(&sshd, folder.path());
    let end = breakglass(&["verb", "cycle", "--json", "--request-id", CYCLE], Some(&config), b"");
    let said = String::from_utf8(end.stdout).unwrap();
    assert_eq!((end.status.code(), said.lines().last()), (Some(0), Some(signed().as_str())), "{said}");
    assert_eq!(checked(said.as_bytes()), Some(0), "{said}");
    // The same answer to another question: a signed receipt, and none of this request.
    let other = CYCLE.replacen('4', "5", 1);
    let end = breakglass(&["verb", "cycle", "--json", "--request-id", &other], Some(&config), b"");
    let said = String::from_utf8(end.stdout).unwrap();
    assert!(end.status.code() == Some(20) && !said.is_empty() && !said.contains(r#""event":"receipt""#), "{said}");
    assert_eq!(checked(said.as_bytes()), Some(20), "{said}");
}

#[test]
fn the_server_s_log_has_the_receipt_as_it_was_signed() {
    let sshd = Sshd::playing(&[("play", &format!("cat {ANSWERS}/cycle.ndjson"))]);
    let folder = tempfile::tempdir().unwrap();
    let config = configured(&sshd, folder.path());
    // A restart in the middle of a cycle: the server asks after it by its id.
    let store = Store::open(&folder.path().join("state"), 1 << 30, false).unwrap();
    let incident = store.create("it hangs", By::Human, None).unwrap();
    let asked = What::VerbAsked {
        request_id: CYCLE.parse().unwrap(),
        verb: Verb::Cycle,
        actor: None,
        reason: None,
        dry_run: false,
        attach: false,
        call: None,
        deadline_ms: 1000,
    };
    incident.write(incident.task(), By::Human, asked).unwrap();
    drop((incident, store));
    let mut command = Command::new(env!("CARGO_BIN_EXE_breakglass"));
    command.args(["serve", "--config"]).arg(&config).env_clear().stdout(Stdio::piped()).stderr(Stdio::null());
    let mut server = command.spawn().unwrap();
    let (tell, told) = mpsc::channel();
    let out = BufReader::new(server.stdout.take().unwrap());
    let reads = std::thread::spawn(move || out.lines().map_while(Result::ok).for_each(|line| drop(tell.send(line))));
    let mut lines = Vec::new();
    // The incident's own line of the end comes after the receipt's.
    while !lines.last().is_some_and(|line: &String| line.contains(r#""event":"verb_ended""#)) {
        match told.recv_timeout(Duration::from_secs(60)) {
            Ok(line) => lines.push(line),
            Err(why) => panic!("{why}: {lines:#?}"),
        }
    }
    server.kill().unwrap();
    server.wait().unwrap();
    reads.join().unwrap();
    let receipts: Vec<_> = lines.iter().filter(|line| line.contains(r#""event":"receipt""#)).collect();
    assert_eq!(receipts, [&signed()], "once, byte for byte: {lines:#?}");
    assert_eq!(checked(format!("{}\n", receipts[0]).as_bytes()), Some(0));
}
