//! The client's own part: each of its commands under strace, against the map of `breakglass`. What the configuration names stands in the
//! map by its key, and is here what this run's configuration says.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::host::write;
use lab::process::{run, start, until};
use lab::{Lab, Result, station, wedge};

use lab::agent::{CONFIG, STATE, configure};

use crate::desk::Hook;
use crate::keyholder::{BREAKGLASS, SOCKET, keyholder_under};
use crate::trace::{CALLS, map, outside, touched};

/// The keyholder's trace.
const KEYS: &str = "/run/lab/keyholder.trace";
/// That of the command that runs.
pub(crate) const TRACE: &str = "/run/lab/breakglass.trace";
const TOKEN: &str = "/run/lab/vault-token";
/// Any certificates do: nobody listens there.
const CA: &str = "/etc/ssl/certs/ca-certificates.crt";

/// `strace` and its options, for a program that it starts.
pub(crate) fn strace(out: &str) -> [&str; 11] {
    ["strace", "-f", "-y", "-s", "300", "-e", CALLS, "-e", "signal=none", "-o", out]
}

pub(crate) fn read(trace: &str) -> BTreeSet<String> {
    touched(&String::from_utf8_lossy(&fs::read(trace).expect("a trace")), BREAKGLASS)
}

/// Runs a command of the client's to its end, which is one of these; what it touched.
pub(crate) fn traced(words: &[&str], statuses: &[i32]) -> Result<BTreeSet<String>> {
    let mut command = Command::new("strace");
    command.args(&strace(TRACE)[1..]).arg(BREAKGLASS).args(words).env_clear().current_dir("/run/lab");
    let end = run(&mut command, Duration::from_secs(420))?;
    assert!(statuses.contains(&end.status), "{words:?} ended with {}: {}{}", end.status, end.text(), String::from_utf8_lossy(&end.stderr));
    Ok(read(TRACE))
}

/// Nothing was touched but what stands in the map, with these values and those of every run in the place of the keys.
pub(crate) fn judged(all: &BTreeSet<String>, values: &[(&str, &str)]) -> Result<()> {
    let patterns = resolved(values);
    let outside = outside(all, &patterns);
    println!("{} paths and addresses touched, {} patterns in the map.", all.len(), patterns.len());
    assert!(outside.is_empty(), "touched and not in SECURITY.md's I/O map: {outside:#?}");
    Ok(())
}

/// The map, with the values of this run's configuration in the place of the keys.
fn resolved(more: &[(&str, &str)]) -> Vec<String> {
    let socket_until_it_is_whole = SOCKET.replace("agent.sock", ".agent.sock.*");
    let values = [
        ("--config", CONFIG),
        ("--config", "/run/lab/keyholder/config.toml"),
        ("[host] address", "127.0.0.1:22"),
        ("[devvm] address", "127.0.0.1:2222"),
        ("[ssh] auth_sock", SOCKET),
        ("[keyholder] socket", SOCKET),
        ("[keyholder] socket", &socket_until_it_is_whole),
        ("[keyholder] key_files", "/run/lab/keyholder/verbs"),
        ("[keyholder] key_files", "/run/lab/keyholder/devvm"),
        ("[vault] address", "127.0.0.1:8200"),
        ("[vault] jwt_file", TOKEN),
        ("[vault] ca_file", CA),
        ("[state] dir", "/var/lib/breakglass/"),
        ("--grant-file", "/run/lab/grant"),
        ("FILE", "/run/lab/answer"),
    ];
    let value = |pattern: String| -> Vec<String> {
        let own: Vec<String> = values.iter().chain(more).filter(|(key, _)| *key == pattern).map(|(_, value)| (*value).to_owned()).collect();
        if own.is_empty() { vec![pattern] } else { own }
    };
    map("breakglass").into_iter().flat_map(value).collect()
}

pub(crate) fn full_run(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let (hook, url) = Hook::listen();
    // By name: the webhook and Claude are the two that may have one.
    let port = url.rsplit(':').next().unwrap().split('/').next().unwrap().to_owned();
    let named = format!("[watch]\ninterval_s = 10\non = \"notify\"\nnotify_url = \"http://localhost:{port}/hook\"\n");
    write(TOKEN, "token", 0o644)?;
    let vault = format!(
        "[vault]\naddress = \"https://127.0.0.1:8200\"\nrole = \"r\"\npath = \"secret/data/r\"\njwt_file = \"{TOKEN}\"\nca_file = \"{CA}\"\n"
    );
    let keys = keyholder_under(lab, &strace(KEYS), &vault)?;
    configure(&lab.host, SOCKET, &named)?;

    let mut all = BTreeSet::new();
    let mut traced = |words: &[&str], statuses: &[i32]| traced(words, statuses).map(|mut touched| all.append(&mut touched));
    traced(&["verb", "status"], &[0])?;
    traced(&["verb", "cycle", "--reason=map"], &[0])?;
    let receipt = fs::read_dir(format!("{STATE}/receipts")).unwrap().flatten().map(|entry| entry.path()).max().unwrap();
    fs::copy(receipt, "/run/lab/answer").unwrap();
    let signer = fs::read_to_string("/etc/pve-verb/signing_key.pub").unwrap();
    traced(&["receipt", "--signing-key", signer.trim(), "/run/lab/answer"], &[0])?;
    traced(&["receipts", "verify"], &[0])?;
    // The cycle ended with QEMU's start: the guest still boots.
    vm.wait_for_ssh(Duration::from_secs(120))?;
    traced(&["doctor"], &[0])?;
    traced(&["runbook"], &[0, 1])?;
    traced(&["evals", "--runbook", "--list"], &[0])?;
    traced(&["--help"], &[0])?;

    let mut watch = Command::new("strace");
    watch.args(&strace(TRACE)[1..]).args([BREAKGLASS, "watch"]).env_clear().current_dir("/run/lab");
    let watch = start(&mut watch, &[])?;
    let stopped = wedge::qemu_stopped(vm)?;
    until("the webhook", Duration::from_secs(120), || hook.told("worse"))?;
    drop(stopped);
    for role in ["watch", "keyholder"] {
        let ours = |words: &[String]| words.first().is_some_and(|name| name == BREAKGLASS) && words.get(1).is_some_and(|word| word == role);
        for pid in station::matching(ours) {
            lab::vm::send(pid, rustix::process::Signal::TERM)?;
        }
    }
    // From its start, and the webhook alone may have taken two minutes.
    watch.finish(Duration::from_secs(240))?;
    all.append(&mut read(TRACE));
    until("the keyholder's end", Duration::from_secs(60), || (!Path::new(SOCKET).exists()).then_some(()))?;
    // And strace's, which has then written all that it saw.
    let tracer = |words: &[String]| words.first().is_some_and(|name| name == "strace") && words.iter().any(|word| word == KEYS);
    until("the end of the keyholder's trace", Duration::from_secs(60), || station::matching(tracer).is_empty().then_some(()))?;
    drop(keys);
    let mut keyholder = read(KEYS);
    // What each has to be seen doing, or the trace is none.
    for (seen, musts) in [
        (&all, vec![CONFIG, SOCKET, "127.0.0.1:22", "127.0.0.1:2222", &format!("127.0.0.1:{port}")]),
        (&keyholder, vec![SOCKET, "127.0.0.1:8200", TOKEN, "/run/lab/keyholder/verbs"]),
    ] {
        for must in musts {
            assert!(seen.contains(must), "the trace lacks {must}, so it is not one: {seen:#?}");
        }
    }
    assert!(all.iter().any(|path| path.starts_with(&format!("{STATE}/incidents/"))), "{all:#?}");
    // The two are apart: no part of the one touches what is the other's alone.
    let secret = |path: &&String| {
        path.starts_with("/run/lab/keyholder/") && *path != SOCKET || [TOKEN, CA, "127.0.0.1:8200"].contains(&path.as_str())
    };
    assert_eq!(all.iter().filter(secret).collect::<Vec<_>>(), Vec::<&String>::new(), "of the keyholder's, touched by the client");
    assert_eq!(keyholder.iter().filter(|path| path.starts_with(STATE) || path.ends_with(":22")).count(), 0, "{keyholder:#?}");
    all.append(&mut keyholder);
    judged(&all, &[("[watch] notify_url", &format!("127.0.0.1:{port}"))])
}

pub(crate) fn a_touch_more(_: &Lab) -> Result<()> {
    // A program behind the same name that reads one file more, and calls somebody else.
    write(BREAKGLASS, "#!/bin/bash\nread -r line < /etc/shadow\n: < /dev/tcp/127.0.0.9/9 || exit 0\n", 0o755)?;
    run(Command::new("strace").args(&strace(TRACE)[1..]).arg(BREAKGLASS), Duration::from_secs(20))?;
    // Whoever needs the program puts it there.
    fs::remove_file(BREAKGLASS).unwrap();
    let found = outside(&read(TRACE), &resolved(&[]));
    for touch in ["/etc/shadow", "127.0.0.9:9"] {
        assert!(found.iter().any(|path| path == touch), "{touch} was not found among {found:?}");
    }
    Ok(())
}
