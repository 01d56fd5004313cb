//! What a long audit log costs: appending and verifying from ten records to a million, against `sha256sum` of the same files.
//!
//! Two hosts by turns: one whose log stays at ten records, one whose log is made as long as a busy host's in years, with the host's own key.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64ct::{Base64, Encoding};
use ed25519_dalek::{Signer, SigningKey};
use lab::Result;
use lab::error::{Context, Error};
use sha2::{Digest, Sha256};

use crate::Bench;
use crate::disk::Own;
use crate::measure::{Table, Times, ms, verb, whole};

const LOG: &str = "/var/log/pve-verb";
const SEGMENT: usize = 16 << 20;

pub(crate) fn tables(bench: &Bench) -> Result<Vec<Table>> {
    let (few, many) = (Own::new("few")?, Own::new("many")?);
    for own in [&few, &many] {
        let _mounted = own.mounted()?;
        whole(&mut verb("init"))?;
        append(10)?;
    }
    let sizes: &[u64] = if bench.once { &[1_000] } else { &[10, 1_000, 10_000, 100_000, 1_000_000] };
    let head = [
        "records",
        "log",
        "append",
        "over 10 records'",
        "first append after a boot",
        "`log verify`",
        "`--all`",
        "`sha256sum`",
        "`log verify`'s memory",
    ];
    let mut table = Table::new(&head);
    for size in sizes {
        let first = {
            let _mounted = many.mounted()?;
            grow(*size)?;
            many.boots()?;
            append(1)?
        };
        let (mut at_few, mut at_many) = (Times::new(), Times::new());
        for _ in 0..bench.rounds(11) {
            for (own, times) in [(&few, &mut at_few), (&many, &mut at_many)] {
                let _mounted = own.mounted()?;
                times.push(append(5)?);
            }
        }
        let _mounted = many.mounted()?;
        let segments = segments()?;
        let bytes: u64 = segments.iter().filter_map(|path| Some(fs::metadata(path).ok()?.len())).sum();
        let best = |command: &mut dyn FnMut() -> Command| -> Result<f64> {
            let mut times = Times::new();
            for _ in 0..bench.rounds(3) {
                times.push(whole(&mut command())?);
            }
            Ok(times.quantile(0.0))
        };
        let hash = best(&mut || {
            let mut command = Command::new("sha256sum");
            command.args(&segments);
            command
        })?;
        let verify = best(&mut || verb("log verify"))?;
        let all = best(&mut || verb("log verify --all"))?;
        table.row(&[
            size.to_string(),
            format!("{} KiB, {} segments", bytes >> 10, segments.len()),
            ms(at_many.median()),
            format!("{:.2}", at_many.over(&at_few)),
            ms(first.as_secs_f64() * 1e3),
            ms(verify),
            ms(all),
            ms(hash),
            crate::memory::of_verify()?,
        ]);
    }
    table.note("An append is `pve-verb review` as a whole process, the median of its turns; the others are the best of three.");
    Ok(vec![table])
}

/// Appends so many records, each by a process of its own; the median of them.
fn append(times: usize) -> Result<Duration> {
    let mut all = Vec::new();
    for _ in 0..times {
        let mut command = Command::new("/usr/sbin/pve-verb");
        all.push(whole(command.args(["review", "--note", "bench"]).current_dir("/").stdin(Stdio::null()))?);
    }
    all.sort_unstable();
    Ok(all.get(times / 2).copied().unwrap_or_default())
}

fn segments() -> Result<Vec<std::path::PathBuf>> {
    let mut all: Vec<_> = fs::read_dir(LOG).context("read the log's folder")?.flatten().map(|entry| entry.path()).collect();
    all.retain(|path| path.extension().is_some_and(|ending| ending == "jsonl"));
    all.sort();
    Ok(all)
}

/// Continues the log until it has so many records.
fn grow(records: u64) -> Result<()> {
    let none = || Error::new("The log has no record to continue", "Look at /var/log/pve-verb");
    let key = host_key().ok_or_else(|| Error::new("The host's signing key could not be read", "Look at /etc/pve-verb"))?;
    let mut name = segments()?.pop().ok_or_else(none)?;
    let mut segment = fs::read(&name).context("read a segment")?;
    let last = segment.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).ok_or_else(none)?;
    let value: serde_json::Value = serde_json::from_slice(last).context("read a record")?;
    let mut seq = value["seq"].as_u64().ok_or_else(none)?;
    let mut prev = hex(last);
    while seq < records {
        seq += 1;
        if segment.len() >= SEGMENT {
            fs::write(&name, &segment).context("write a segment")?;
            segment.clear();
            name = format!("{LOG}/audit-{seq:020}.jsonl").into();
        }
        let line = record(seq, &prev, &key);
        prev = hex(line.as_bytes());
        segment.extend_from_slice(line.as_bytes());
        segment.push(b'\n');
    }
    fs::write(&name, &segment).context("write a segment")
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
    Sha256::digest(line).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The seed in an unencrypted OpenSSH ed25519 key: it follows the public half in the private part.
fn host_key() -> Option<SigningKey> {
    let text = fs::read_to_string("/etc/pve-verb/signing_key").ok()?;
    let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
    let bytes = Base64::decode_vec(&body).ok()?;
    let mark = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20";
    let at = bytes.windows(mark.len()).rposition(|window| window == mark)? + mark.len() + 32 + 4;
    Some(SigningKey::from_bytes(bytes.get(at..at + 32)?.try_into().ok()?))
}
