//! The program itself: what it prints and its exit status, on recorded answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;
use std::process::{Command, Stdio};

const ANSWERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/answers/");

/// Exit status and both streams.
fn breakglass(arguments: &[&str], stdin: &[u8]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_breakglass"));
    command.args(arguments).current_dir(ANSWERS).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _it_need_not_read = child.stdin.take().unwrap().write_all(stdin);
    let end = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (end.status.code().unwrap(), text(end.stdout), text(end.stderr))
}

#[test]
fn the_exit_status_is_the_host_s_where_its_receipt_is_valid() {
    for (file, status, said) in [
        ("cycle.ndjson", 0, "cycle of VM 102 was done and observed (request 4f0a3c52"),
        ("replayed.ndjson", 0, "was done and observed, told again (request"),
        ("status.ndjson", 0, "status of VM 102 was done"),
        ("too-soon.ndjson", 3, "cycle of VM 102 was refused, and nothing was sent to the VM"),
    ] {
        let (code, text, errors) = breakglass(&["receipt", "--signing-key", "allowed_signers", file], b"");
        assert_eq!((code, errors.as_str()), (status, ""), "{file}: {text}");
        assert!(text.contains(said), "{file}: {text}");
    }
}

#[test]
fn without_a_valid_receipt_it_is_20_and_unknown() {
    let cut = &std::fs::read(format!("{ANSWERS}cycle.ndjson")).unwrap()[..20_000];
    for (arguments, stdin, said) in [
        (&["receipt", "cycle.ndjson"][..], &b""[..], "no key was given"),
        (&["receipt", "--signing-key", "signing_key.pub", "unsigned.ndjson"], b"", "not signed"),
        (&["receipt", "--signing-key", "signing_key.pub", "not-in-the-grammar.ndjson"], b"", "Ask with --json"),
        (&["receipt", "--signing-key", "signing_key.pub", "--verb", "reset", "cycle.ndjson"], b"", "another verb: reset was wanted"),
        (&["receipt", "--signing-key", "signing_key.pub"], b"", "there is no answer"),
        (&["receipt", "--signing-key", "signing_key.pub", "-"], cut, "--attach --request-id=4f0a3c52-7c1e-4b57-9a52-0d6b2f3c1a02"),
    ] {
        let (code, text, _) = breakglass(arguments, stdin);
        assert_eq!(code, 20, "{arguments:?}: {text}");
        assert!(text.starts_with("The result is UNKNOWN: ") && text.contains(said), "{arguments:?}: {text}");
    }
    let (code, _, errors) = breakglass(&["receipt", "--signing-key", "no-such-file", "cycle.ndjson"], b"");
    assert!(code == 20 && errors.contains("The signing key can't be used"), "{code} {errors}");
}

#[test]
fn a_key_may_stand_on_the_command_line() {
    let key = std::fs::read_to_string(format!("{ANSWERS}signing_key.pub")).unwrap();
    let cycle = std::fs::read(format!("{ANSWERS}cycle.ndjson")).unwrap();
    assert_eq!(breakglass(&["receipt", "--signing-key", key.trim()], &cycle).0, 0);
}

#[test]
fn a_wrong_command_line_is_not_taken_for_a_refusal() {
    let (code, _, errors) = breakglass(&["verb", "reboot"], b"");
    assert_eq!(code, 64, "{errors}");
    let (code, help, _) = breakglass(&["--help"], b"");
    assert!(code == 0 && help.contains("20 where there is no valid receipt"), "{help}");
}
