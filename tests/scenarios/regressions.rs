//! What the shell script before us got wrong and no other scenario shows: one scenario for each, named in `tests/REGRESSIONS.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::bundle::in_time;
use lab::chain::Chain;
use lab::host::write;
use lab::installed::ask;
use lab::lab::{Scenario, run_scenarios};
use lab::process::{must, run};
use lab::station::{self, anna, bare_vm, body, console, honest, lies};
use lab::{Answer, Lab, Result, Ssh};
use serde_json::json;

const SCENARIOS: &[Scenario] = &[
    ("when_evidence_is_captured_then_block_layer_threads_and_console_are_in_it", evidence),
    ("when_a_newline_is_in_the_request_then_the_log_has_one_escaped_record", newline),
    ("when_it_is_run_by_hand_without_an_environment_then_it_captures_and_records", by_hand),
    ("when_a_verb_fails_then_its_exit_status_is_its_own_and_the_failure_is_logged_and_signed", failure),
    ("when_roots_bashrc_hangs_then_the_accounts_shell_never_reads_it", bashrc),
    ("when_wrong_keys_knock_again_and_again_then_the_right_one_still_gets_in", wrong_keys),
    ("when_a_regression_is_listed_then_its_tests_exist", listed),
];

const AMPLE: Duration = Duration::from_secs(60);

fn main() {
    run_scenarios(SCENARIOS, station::install)
}

fn evidence(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    let needed = [
        "qmp/query-block.json",
        "qmp/query-blockstats.1.json",
        "qmp/query-blockstats.2.json",
        "qmp/query-iothreads.json",
        "process/threads.1.json",
        "process/threads.2.json",
        "console/screen-1.png",
    ];
    let ssh = anna(lab)?;
    let bundle = in_time(&needed, || ask(&ssh, "cycle"))?;
    for artifact in needed {
        assert!(fs::metadata(bundle.folder().join(artifact)).is_ok_and(|m| m.len() > 0), "{artifact} is not in the bundle");
    }
    Ok(())
}

fn newline(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    // What the request before has still to write is not of this one.
    station::quiet(AMPLE)?;
    let forged = "status\n2026-01-01 verb=cycle COMPLETE {\"seq\":1}";
    let before = Chain::read()?.records.len();
    let answer = anna(lab)?.call(forged)?;
    assert_eq!(answer.status, 2, "{}", answer.text());
    let chain = Chain::read()?;
    assert_eq!(chain.records[before..].iter().filter(|record| record["kind"] != "start").count(), 1);
    let record = chain.records.last().unwrap();
    assert_eq!(record["kind"], "refused");
    let raw = record["rejected"]["raw"].as_str().unwrap();
    assert!(raw.contains("COMPLETE") && !raw.contains('\n'), "{raw:?}");
    Ok(())
}

fn by_hand(lab: &Lab) -> Result<()> {
    let before = bare_vm(lab)?.pid();
    let mut bare = Command::new("/usr/bin/env");
    bare.args(["-i", "/usr/sbin/pve-verb", "cycle", "--json"]).current_dir("/");
    let answer: Answer = run(&mut bare, AMPLE)?.into();
    let told = body(&answer)?;
    assert_eq!((answer.status, &told["outcome"], &told["preserved_where"]), (0, &json!("done"), &json!("disk")), "{told}");
    assert!(told["key_name"].as_str().unwrap().starts_with("console:"), "{told}");
    assert_ne!(lab.vm.pid(), before);
    let chain = Chain::read()?;
    let id = told["request_id"].as_str().unwrap();
    assert_eq!((chain.count(id, "intent"), chain.count(id, "outcome")), (1, 1));
    Ok(())
}

fn failure(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    lies("stop fail-after-acting\nstart success-without-acting")?;
    let answer = anna(lab)?.call("cycle --json");
    honest();
    let answer = answer?;
    let told = body(&answer)?;
    assert_eq!((answer.status, &told["outcome"]), (10, &json!("failed")), "never ssh's 255: {told}");
    // `Chain::read` checks every signature; when it began and when it ended both stand there.
    let chain = Chain::read()?;
    let id = told["request_id"].as_str().unwrap();
    let outcome = chain.of(id).into_iter().rfind(|record| record["kind"] == "outcome").expect("the failure is logged");
    assert_eq!((&outcome["exit_code"], &outcome["message"]["what"]), (&json!(10), &told["message"]["what"]));
    assert!(outcome["started"].as_str().unwrap() < outcome["at"].as_str().unwrap());
    let failed: Vec<_> = chain.of(id).into_iter().filter(|record| record["kind"] == "step" && record["outcome"] == "failed").collect();
    assert!(failed.iter().any(|step| step["name"] == "qm-stop"), "a step that failed is logged: {failed:?}");
    Ok(())
}

fn bashrc(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    for file in ["/root/.bashrc", "/root/.profile", "/root/.bash_profile", "/.bashrc", "/.profile", "/etc/bash.bashrc"] {
        write(file, "sleep 600\n", 0o644)?;
    }
    let answer = anna(lab)?.within(Duration::from_secs(15)).call("status --json")?;
    assert!(answer.status == 0 && !answer.timed_out, "{answer:?}");
    // With bash as its shell it would hang, and `check` says so.
    must("usermod", ["-s", "/bin/bash", "breakglass"])?;
    let hung = anna(lab)?.within(Duration::from_secs(5)).call("status --json");
    let check = console("check", AMPLE);
    must("usermod", ["-s", "/bin/dash", "breakglass"])?;
    for file in ["/root/.bashrc", "/root/.profile", "/root/.bash_profile", "/.bashrc", "/.profile", "/etc/bash.bashrc"] {
        let _absent = fs::remove_file(file);
    }
    assert!(hung?.timed_out, "the trap is not what it was");
    assert!(check?.text().contains("start-up files"), "check does not tell of the shell");
    Ok(())
}

fn wrong_keys(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    // A key of the lab's that stands in no authorized_keys.
    let stranger = Ssh::new("breakglass@127.0.0.1", 22, &lab.host.key("stranger")?, Path::new("/run/lab/known_hosts"));
    for _ in 0..8 {
        assert_eq!(stranger.call("status")?.status, 255);
    }
    assert_eq!(anna(lab)?.call("status")?.status, 0);
    Ok(())
}

/// The list beside the tests says which test shows what; a name in it that is no test's is a promise that nobody keeps.
fn listed(_: &Lab) -> Result<()> {
    let list = include_str!("../REGRESSIONS.md");
    let sources = [
        include_str!("regressions.rs"),
        include_str!("disconnect.rs"),
        include_str!("ids.rs"),
        include_str!("interrupted.rs"),
        include_str!("liars.rs"),
        include_str!("disks.rs"),
        include_str!("readers.rs"),
        include_str!("crash.rs"),
        include_str!("verbs/acts.rs"),
        include_str!("hung.rs"),
        include_str!("verbs/refused.rs"),
        include_str!("verbs/stands_in_the_way.rs"),
        include_str!("verbs/storage.rs"),
    ];
    let names: Vec<&str> = list.split('`').skip(1).step_by(2).filter(|word| word.starts_with("when_")).collect();
    assert!(names.len() >= 20, "only {} names", names.len());
    for name in names {
        assert!(sources.iter().any(|source| source.contains(&format!("(\"{name}\","))), "{name} is no test");
    }
    let rows = list.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what") && !line.starts_with("| ---"));
    for row in rows {
        assert!(row.contains("`when_"), "no test stands for: {row}");
    }
    Ok(())
}
