//! For `tests/bench/log`: makes a log as long as a busy host's in years, and times a command by its median. Not a test.
//!
//!     bench-log grow RECORDS        continue the log in /var/log/pve-verb with the host's own key
//!     bench-log time N COMMAND …    run it N times, print the median in microseconds

use base64ct::{Base64, Encoding};
use ed25519_dalek::{Signer, SigningKey};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

const LOG: &str = "/var/log/pve-verb";
const SEGMENT: usize = 16 << 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["grow", records] => records.parse().map_err(|_| "a number of records".to_owned()).and_then(grow),
        ["time", times, program, rest @ ..] => {
            times.parse().map_err(|_| "a number of times".to_owned()).and_then(|n| time(n, program, rest))
        }
        _ => Err("bench-log grow RECORDS | bench-log time N COMMAND …".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "{why}");
            ExitCode::FAILURE
        }
    }
}

fn time(times: usize, program: &str, rest: &[&str]) -> Result<(), String> {
    let mut all = Vec::new();
    for _ in 0..times {
        let began = Instant::now();
        let status = Command::new(program).args(rest).stdout(Stdio::null()).status().map_err(|e| e.to_string())?;
        all.push(began.elapsed().as_micros());
        if !status.success() {
            return Err(format!("{program} ended with {status}"));
        }
    }
    all.sort_unstable();
    writeln!(std::io::stdout(), "{}", all.get(times / 2).copied().unwrap_or(0)).map_err(|e| e.to_string())
}

fn grow(records: u64) -> Result<(), String> {
    let key = host_key().ok_or("the host's signing key could not be read")?;
    let mut names: Vec<_> = fs::read_dir(LOG)
        .map_err(|e| e.to_string())?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "jsonl"))
        .collect();
    names.sort();
    let mut name = names.pop().ok_or("the log has no record yet")?;
    let mut segment = fs::read(&name).map_err(|e| e.to_string())?;
    let last = segment.split(|b| *b == b'\n').rfind(|l| !l.is_empty()).ok_or("the newest segment is empty")?;
    let value: serde_json::Value = serde_json::from_slice(last).map_err(|e| e.to_string())?;
    let mut seq = value["seq"].as_u64().ok_or("the last record has no number")?;
    let mut prev = hex(last);
    while seq < records {
        seq += 1;
        if segment.len() >= SEGMENT {
            fs::write(&name, &segment).map_err(|e| e.to_string())?;
            segment.clear();
            name = format!("{LOG}/audit-{seq:020}.jsonl").into();
        }
        let line = record(seq, &prev, &key);
        prev = hex(line.as_bytes());
        segment.extend_from_slice(line.as_bytes());
        segment.push(b'\n');
    }
    fs::write(&name, &segment).map_err(|e| e.to_string())
}

/// What a `status` leaves: the most frequent record, and the shortest of a request.
fn record(seq: u64, prev: &str, key: &SigningKey) -> String {
    let before = format!(
        concat!(
            r#"{{"seq":{},"at":"2026-11-21T00:30:00.123Z","boot_id":"a0df3ef8-4c4b-484f-a633-bb3b4f31298e","monotonic_ns":{},"prev":"{}","kind":"read","#,
            r#""started":"2026-11-21T00:30:00.012Z","started_monotonic_ns":{},"node":"pve1","request_id":"1f0c9a2e-1f1f-4f1f-9f1f-{:012}","vmid":102,"#,
            r#""key_name":"agent","key_fingerprint":"SHA256:fe85JkIjo8VPe+XqXJGH5Mau1EMFdK1OdKvJUFicyA8","ssh_connection":"10.0.0.7 50122 10.0.0.2 22","#,
            r#""verb":"status","origin":"model","actor":"alice","reason":"no answer over SSH","dry_run":false,"grant_sha256":null,"witness":null,"#,
            r#""outcome":"done","exit_code":0,"already":false,"interrupted":false,"state_before":"running","state_after":"running","#,
            r#""qemu_before":{{"pid":5123,"started":812345}},"qemu_after":{{"pid":5123,"started":812345}},"assessment":"healthy","bundle":null,"#,
            r#""preserved_where":null,"manifest_sha256":null,"degraded":[],"message":{{"what":"VM 102 is running.","do":"Nothing."}}"#
        ),
        seq,
        seq * 1_000,
        prev,
        seq * 999,
        seq
    );
    let sig = key.sign(&[b"pve-verb-log\n", before.as_bytes()].concat());
    format!("{before},\"sig\":\"{}\"}}", Base64::encode_string(&sig.to_bytes()))
}

fn hex(line: &[u8]) -> String {
    Sha256::digest(line).iter().map(|b| format!("{b:02x}")).collect()
}

/// The seed in an unencrypted OpenSSH ed25519 key: it follows the public half in the private part.
fn host_key() -> Option<SigningKey> {
    let text = fs::read_to_string("/etc/pve-verb/signing_key").ok()?;
    let body: String = text.lines().filter(|l| !l.starts_with("-----")).collect();
    let bytes = Base64::decode_vec(&body).ok()?;
    let mark = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20";
    let at = bytes.windows(mark.len()).rposition(|w| w == mark)? + mark.len() + 32 + 4;
    Some(SigningKey::from_bytes(bytes.get(at..at + 32)?.try_into().ok()?))
}
