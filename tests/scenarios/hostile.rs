//! What a key's owner can say that is no request, and what ssh could do beside requests: every row of `proto/tests/hostile.txt` goes
//! through the lab's sshd, is refused, recorded on one line, and touches nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)] // a scenario fails by panicking

use std::collections::HashMap;
use std::fs;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use lab::installed::{Stamp, Told, agent, ask, log_lines, prepare};
use lab::lab::{Scenario, run_scenarios};
use lab::process::{run, start};
use lab::{Answer, Lab, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const SCENARIOS: &[Scenario] = &[
    ("when_a_hostile_line_comes_then_it_is_refused_recorded_escaped_and_nothing_is_touched", hostile_lines),
    ("when_a_request_is_longer_than_the_grammar_allows_then_it_is_refused_and_recorded", too_long),
    ("when_nothing_is_said_then_the_six_verbs_are_printed", nothing_said),
    ("when_a_program_says_json_then_it_is_refused_in_json_with_a_receipt", refused_in_json),
    ("when_a_key_s_line_can_t_be_read_then_it_is_refused_and_recorded", unreadable_line),
    ("when_a_key_asks_for_more_than_a_command_then_sshd_says_no", sshd_services),
    ("when_a_caller_sends_an_environment_then_only_the_connection_is_recorded", environment),
    ("when_a_reason_holds_a_newline_then_no_record_is_forged", newline_in_reason),
];

fn main() {
    run_scenarios(SCENARIOS, prepare)
}

/// Why ssh can't carry a row, where it can't.
fn not_for_ssh(line: &[u8]) -> Option<&'static str> {
    if line.contains(&0) {
        Some("it holds a NUL, which no argument of ssh and no environment variable can")
    } else if line.is_empty() {
        Some("it is empty: ssh then asks for a login; see when_nothing_is_said")
    } else if line.len() > 100_000 {
        Some("it is longer than one argument may be")
    } else {
        None
    }
}

/// The rows of hostile.txt, as the parser's own test reads them.
fn rows() -> Vec<Vec<u8>> {
    let text = include_str!("../../proto/tests/hostile.txt");
    text.lines().filter(|row| !row.is_empty() && !row.starts_with("# ")).map(unescape).collect()
}

fn unescape(row: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), row.as_bytes());
    while let Some((&first, tail)) = rest.split_first() {
        match (first, tail) {
            (b'\\', [b'\\', after @ ..]) => (bytes.push(b'\\'), rest = after).1,
            (b'\\', [b'x', high, low, after @ ..]) => {
                bytes.push(u8::from_str_radix(std::str::from_utf8(&[*high, *low]).unwrap(), 16).unwrap());
                rest = after;
            }
            _ => (bytes.push(first), rest = tail).1,
        }
    }
    bytes
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A client that shares one connection: a key exchange for each of 270 requests would be most of the time.
fn master(lab: &Lab, name: &str) -> Result<(lab::process::Running, String)> {
    let socket = format!("/run/lab/master-{name}");
    let mut command = agent(lab)?.command(b"");
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    command = Command::new("ssh");
    command.args(["-M", "-N", "-S", &socket]).args(arguments);
    let running = start(&mut command, &[])?;
    lab::process::until("a shared connection", Duration::from_secs(60), || fs::exists(&socket).unwrap_or(false).then_some(()))?;
    Ok((running, socket))
}

fn through(lab: &Lab, socket: &str, line: &[u8]) -> Result<Answer> {
    let plain = agent(lab)?.command(line);
    let mut command = Command::new("ssh");
    command.args(["-S", socket]).args(plain.get_args());
    Ok(run(&mut command, Duration::from_secs(60))?.into())
}

/// The records since `from`, by the hash of what was refused; each line of the log is one JSON object.
fn rejected_since(from: usize) -> Result<HashMap<String, Vec<Value>>> {
    let mut by_hash = HashMap::<String, Vec<Value>>::new();
    for line in log_lines()?.split_off(from) {
        // Letters of other scripts stay as they are; what moves a cursor or turns a line around does not.
        let turns = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        let sound = |c: char| !c.is_control() && !turns(c);
        assert!(
            std::str::from_utf8(&line).is_ok_and(|text| text.chars().all(sound)),
            "a record holds raw bytes: {}",
            String::from_utf8_lossy(&line).escape_default()
        );
        let record: Value = serde_json::from_slice(&line).unwrap();
        if record["kind"] == "start" {
            continue; // this binary with this configuration was new: no caller's doing
        }
        let hash = record["rejected"]["sha256"].as_str().unwrap_or_default().to_owned();
        by_hash.entry(hash).or_default().push(record);
    }
    Ok(by_hash)
}

fn hostile_lines(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let (before, from, began) = (Stamp::of(vm), log_lines()?.len(), Instant::now());
    let (carried, not): (Vec<_>, Vec<_>) = rows().into_iter().partition(|line| not_for_ssh(line).is_none());
    for line in &not {
        println!("not through ssh: {:?}: {}", String::from_utf8_lossy(&line[..line.len().min(40)]), not_for_ssh(line).unwrap_or_default());
    }
    assert!(carried.len() >= 200 && not.len() <= 8, "{} of the rows can be carried, {} can't", carried.len(), not.len());
    let queue = Mutex::new(carried.clone());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|n| {
                let queue = &queue;
                scope.spawn(move || -> Result<()> {
                    let (master, socket) = master(lab, &n.to_string())?;
                    loop {
                        let Some(line) = queue.lock().unwrap().pop() else { break };
                        let answer = through(lab, &socket, &line)?;
                        let shown = String::from_utf8_lossy(&line).into_owned();
                        assert_eq!(answer.status, 2, "{shown:?}: {answer:?}");
                        // Who says --json is answered so, also where the rest is nothing that anybody could understand.
                        if line.split(|b| *b == b' ').any(|word| word == b"--json") {
                            let told = answer.receipt_body().unwrap_or_else(|| panic!("{shown:?}: {}", answer.text()));
                            assert_eq!((&told["outcome"], &told["verb"]), (&json!("refused-request"), &Value::Null), "{shown:?}");
                        } else {
                            assert!(answer.lines().last().unwrap().ends_with(" refused-request"), "{shown:?}: {}", answer.text());
                        }
                        let printable = |byte: &u8| *byte == b'\n' || (0x20..0x7f).contains(byte);
                        assert!(answer.stdout.iter().all(printable), "{shown:?} came back raw: {answer:?}");
                    }
                    master.kill().map(drop)
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a caller panicked"))
    })?;
    println!("{} rows took {:.1} s", carried.len(), began.elapsed().as_secs_f32());
    let records = rejected_since(from)?;
    for line in &carried {
        // Length and hash are of the whole line, however little of it is kept.
        let found = records.get(&hex(line)).unwrap_or_else(|| panic!("no record of {:?}", String::from_utf8_lossy(line)));
        assert_eq!(found.len(), 1, "more than one record of {:?}", String::from_utf8_lossy(line));
        let rejected = &found[0]["rejected"];
        assert_eq!((&found[0]["kind"], &found[0]["exit_code"]), (&json!("refused"), &json!(2)));
        assert_eq!(rejected["bytes"], line.len(), "{rejected}");
        assert_eq!(rejected["raw"], proto::escape_ascii(&line[..line.len().min(256)]), "{rejected}");
    }
    assert_eq!(records.values().map(Vec::len).sum::<usize>(), carried.len(), "one record for each line, and no other");
    before.untouched(vm, "hostile lines");
    Ok(())
}

fn too_long(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let (before, from) = (Stamp::of(vm), log_lines()?.len());
    for length in [4097, 65_536] {
        let line = format!("cycle --reason={}", "a".repeat(length - 15));
        let answer = agent(lab)?.call(&line)?;
        assert_eq!(answer.status, 2, "{answer:?}");
    }
    let records: Vec<Value> = log_lines()?.split_off(from).iter().map(|line| serde_json::from_slice(line).unwrap()).collect();
    assert_eq!(records.iter().map(|record| record["kind"].as_str().unwrap()).collect::<Vec<_>>(), ["refused", "refused"]);
    assert_eq!(
        (&records[0]["rejected"]["bytes"], &records[0]["rejected"]["sha256"]),
        (&json!(4097), &json!(hex(format!("cycle --reason={}", "a".repeat(4082)))))
    );
    assert_eq!(
        (&records[1]["rejected"]["bytes"], &records[1]["rejected"]["sha256"]),
        (&json!(65_536), &json!(hex(format!("cycle --reason={}", "a".repeat(65_521))))),
        "of the whole line, however little of it is kept"
    );
    before.untouched(vm, "long lines");
    Ok(())
}

fn nothing_said(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let before = Stamp::of(vm);
    let none = agent(lab)?.call("")?;
    // An empty SSH_ORIGINAL_COMMAND can't be sent by ssh, but by sshd's successors: as sshd would, without one in between.
    let mut forced = Command::new("/usr/sbin/pve-verb");
    forced.args(["forced", "--key-name", "agent"]).env("SSH_ORIGINAL_COMMAND", "").current_dir("/");
    let empty: Answer = run(&mut forced, Duration::from_secs(30))?.into();
    for answer in [none, empty] {
        assert_eq!(answer.status, 2, "{answer:?}");
        for verb in ["status", "forensics", "reset", "stop", "start", "cycle"] {
            assert!(answer.lines().iter().any(|line| line.trim_start().starts_with(&format!("{verb} "))), "{verb}: {}", answer.text());
        }
        assert!(answer.text().contains("ssh breakglass@HOST status") && answer.text().ends_with("refused-request\n"), "{}", answer.text());
    }
    before.untouched(vm, "nothing said");
    Ok(())
}

/// As from a client that is newer than this host.
fn refused_in_json(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let before = Stamp::of(vm);
    for line in ["status --json --from-the-future", "--json", "cycle --json --tar", "cycle --json --json"] {
        let answer = agent(lab)?.call(line)?;
        let told = answer.receipt_body().unwrap_or_else(|| panic!("{line}: {}", answer.text()));
        assert_eq!((answer.status, answer.events().len()), (2, 1), "{line}: {}", answer.text());
        assert_eq!((&told["outcome"], &told["verb"]), (&json!("refused-request"), &Value::Null), "{line}: {told:#}");
        assert!(!answer.receipt().unwrap()["sig"].is_null() && told["audit"]["seq"].is_u64(), "{line}: {told:#}");
    }
    // A value is no word, and neither is a part of one.
    for line in ["status --actor=a --jsonx", "status --reason=--json", "status --json=1"] {
        let answer = agent(lab)?.call(line)?;
        assert!(answer.events().is_empty() || answer.status == 0, "{line}: {}", answer.text());
    }
    before.untouched(vm, "refused in JSON");
    Ok(())
}

/// A line of authorized_keys that nobody meant: somebody holds that key, and knocks.
fn unreadable_line(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let before = Stamp::of(vm);
    for request in ["cycle", "cycle --json"] {
        let from = log_lines()?.len();
        let mut forced = Command::new("/usr/sbin/pve-verb");
        forced.args(["forced", "--key-name", "agent", "--allow", "everything"]);
        forced.env("SSH_ORIGINAL_COMMAND", request).env("SSH_CONNECTION", "192.0.2.1 1 192.0.2.2 22").current_dir("/");
        let answer: Answer = run(&mut forced, Duration::from_secs(30))?.into();
        assert_eq!(answer.status, 7, "{answer:?}");
        let record: Value = serde_json::from_slice(log_lines()?.split_off(from).last().expect("a record")).unwrap();
        let said = (&record["kind"], &record["exit_code"], &record["key_name"], &record["ssh_connection"]);
        assert_eq!(said, (&json!("refused"), &json!(7), &json!("unreadable-line"), &json!("192.0.2.1 1 192.0.2.2 22")), "{record:#}");
        assert_eq!(answer.receipt_body().map(|told| told["exit_code"].clone()), request.contains("json").then_some(json!(7)), "{answer:?}");
    }
    before.untouched(vm, "an unreadable line");
    Ok(())
}

/// ssh with options of its own, then the request.
fn odd_ssh(lab: &Lab, program: &str, options: &[&str], after: &[&str]) -> Result<Answer> {
    let plain = agent(lab)?.command(b"");
    let mut command = Command::new(program);
    let mut plain: Vec<String> = plain.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    plain.truncate(plain.len() - 2); // -- and the host
    for word in &mut plain {
        if word == "LogLevel=ERROR" {
            *word = "LogLevel=VERBOSE".into();
        }
    }
    if program != "ssh" {
        plain.retain(|word| word != "-T");
        plain.iter_mut().filter(|word| *word == "-p").for_each(|word| *word = "-P".into());
    }
    command.args(&plain).args(options).args(after);
    Ok(run(&mut command, Duration::from_secs(60))?.into())
}

fn sshd_services(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let before = Stamp::of(vm);
    let (from, host) = (log_lines()?.len(), "breakglass@127.0.0.1");
    let said = |answer: &Answer| format!("{}{}", answer.text(), String::from_utf8_lossy(&answer.stderr));

    let pty = odd_ssh(lab, "ssh", &["-tt"], &[host, "status"])?;
    assert!(said(&pty).contains("PTY allocation request failed"), "{pty:?}");

    let forward = odd_ssh(lab, "ssh", &["-o", "ExitOnForwardFailure=yes", "-R", "39999:127.0.0.1:22"], &[host, "status"])?;
    assert!(forward.status == 255 && said(&forward).contains("remote port forwarding failed"), "{forward:?}");
    let direct = odd_ssh(lab, "ssh", &["-W", "127.0.0.1:2222"], &[host])?;
    assert!(direct.status == 255 && said(&direct).contains("administratively prohibited"), "{direct:?}");

    // Forwarding of an agent or of X11 fails softly: the command runs, and finds no channel for it.
    let spy = "#!/bin/sh\nenv\n";
    let kept = fs::read("/usr/sbin/pve-verb").unwrap();
    lab::host::write("/run/lab/spy", spy, 0o755)?;
    lab.host.install_program(std::path::Path::new("/run/lab/spy"), "/usr/sbin/pve-verb")?;
    let soft = odd_ssh(lab, "ssh", &["-A", "-X"], &[host, "status"]);
    fs::write("/run/lab/kept", kept).unwrap();
    lab.host.install_program(std::path::Path::new("/run/lab/kept"), "/usr/sbin/pve-verb")?;
    let soft = said(&soft?);
    assert!(soft.contains("SSH_ORIGINAL_COMMAND=status") && !soft.contains("SSH_AUTH_SOCK") && !soft.contains("DISPLAY"), "{soft}");

    // sftp and scp reach the forced command, which knows no such verb.
    lab::host::write("/run/lab/file", "x", 0o600)?;
    let sftp = odd_ssh(lab, "sftp", &["-b", "/dev/null"], &[host])?;
    assert_ne!(sftp.status, 0, "{sftp:?}");
    for flags in [&["-O"][..], &[]] {
        let scp = odd_ssh(lab, "scp", flags, &["/run/lab/file", &format!("{host}:/etc/owned")])?;
        assert_ne!(scp.status, 0, "{scp:?}");
    }
    assert!(!fs::exists("/etc/owned").unwrap());
    let raws: Vec<String> = log_lines()?
        .split_off(from)
        .iter()
        .map(|line| serde_json::from_slice::<Value>(line).unwrap()["rejected"]["raw"].to_string())
        .collect();
    assert!(raws.iter().any(|raw| raw.contains("scp -t")) && raws.iter().any(|raw| raw.contains("sftp")), "{raws:?}");
    before.untouched(vm, "services of sshd");
    Ok(())
}

fn environment(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    let sent =
        [("LD_PRELOAD", "/run/lab/evil.so"), ("LC_ALL", "tlh_QO"), ("RUST_LOG", "trace"), ("RUST_BACKTRACE", "full"), ("PATH", "/run/lab")];
    let options: Vec<String> = sent.iter().map(|(name, value)| format!("SetEnv={name}={value}")).collect();
    let options: Vec<&str> = options.iter().flat_map(|option| ["-o", option.as_str()]).collect();
    // sshd that accepts all of it: the worst case, and not Debian's default (LANG and LC_*).
    let wide = "AcceptEnv *\n";
    lab::host::write("/etc/ssh/sshd_config.d/wide.conf", wide, 0o644)?;
    let sshd = lab.host.sshd_pid().unwrap();
    let reload = || {
        // It starts anew and listens again before it says so here.
        fs::remove_file("/run/lab/sshd.pid").unwrap();
        lab::vm::send(sshd, rustix::process::Signal::HUP)?;
        let listens = || fs::read_to_string("/run/lab/sshd.pid").is_ok_and(|pid| !pid.is_empty()).then_some(());
        lab::process::until("sshd's new start", Duration::from_secs(60), listens)
    };
    reload()?;
    let outcomes = |answer: &Answer| -> HashMap<String, String> {
        answer.events_of("probe").iter().map(|probe| (probe["name"].to_string(), probe["outcome"].to_string())).collect()
    };
    let pair = || -> Result<(Told, Answer)> {
        let plain = ask(&agent(lab)?, "forensics")?.done();
        Ok((plain, odd_ssh(lab, "ssh", &options, &["breakglass@127.0.0.1", "forensics --json"])?))
    };
    // On a busy machine one question of many may get no answer in its time, once; what an environment changes, it changes each time.
    let mut taken = pair();
    for _ in 0..2 {
        if taken.as_ref().is_ok_and(|(plain, odd)| outcomes(odd) != outcomes(&plain.answer)) {
            taken = pair();
        }
    }
    fs::remove_file("/etc/ssh/sshd_config.d/wide.conf").unwrap();
    reload()?;
    let (plain, odd) = taken?;
    assert_eq!(odd.status, 0, "{odd:?}");
    // ssh's own words at LogLevel=VERBOSE are on stderr; the program adds none.
    assert!(!String::from_utf8_lossy(&odd.stderr).contains("pve-verb"), "{odd:?}");
    assert_eq!(outcomes(&odd), outcomes(&plain.answer), "the environment changed what was captured");
    let line = log_lines()?.pop().unwrap();
    let record: Value = serde_json::from_slice(&line).unwrap();
    let connection = record["ssh_connection"].as_str().unwrap();
    assert!(connection.starts_with("127.0.0.1 ") && connection.ends_with(" 127.0.0.1 22"), "{connection}");
    let text = String::from_utf8(line).unwrap();
    assert!(sent.iter().all(|(_, value)| !text.contains(value)), "{text}");
    Ok(())
}

fn newline_in_reason(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    let from = log_lines()?.len();
    let forged = "x%0Averb=cycle%20COMPLETE";
    let answer = agent(lab)?.call(format!("status --reason={forged}"))?;
    assert_eq!(answer.status, 2, "a control character is not in the grammar: {answer:?}");
    let raw = agent(lab)?.call("status --reason=x\nverb=cycle COMPLETE")?;
    assert_eq!(raw.status, 2);
    let lines = log_lines()?.split_off(from);
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|line| serde_json::from_slice::<Value>(line).is_ok_and(|record| record["kind"] == "refused")));
    Ok(())
}
