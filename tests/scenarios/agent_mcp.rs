//! The verbs for an MCP client: the official Python client recovers a stalled VM, in the newest protocol and in the one before, and the MCP
//! Inspector's command line reads the tools. Real QEMU, real sshd, the binary as shipped. `tests/mcp/setup` fetches both clients.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking

#[path = "agent/desk.rs"]
#[allow(dead_code)]
mod desk;
#[path = "agent/keyholder.rs"]
mod keyholder;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use desk::{desk, newest};
use keyholder::BREAKGLASS;
use lab::installed::prepare;
use lab::lab::{Scenario, run_scenarios};
use lab::process::{Finished, run};
use lab::{Lab, Result, wedge};
use serde_json::{Value, json};

const SCENARIOS: &[Scenario] = &[
    ("when_the_inspector_asks_then_the_tools_are_strict_and_a_verb_answers", inspector),
    ("when_the_block_layer_stalls_then_the_newest_python_client_plans_and_applies_a_cycle_once", newest_client),
    ("when_the_client_speaks_the_older_protocol_then_it_can_do_the_same", older_client),
];

fn main() {
    run_scenarios(SCENARIOS, prepare)
}

/// A file that `tests/mcp/setup` fetched.
fn fetched(path: &str) -> PathBuf {
    let target = std::env::current_exe().unwrap();
    let target = target.ancestors().find(|folder| folder.join("venv-mcp").is_dir()).expect("run tests/mcp/setup first");
    target.join(path)
}

/// Runs a client, whose server finds its configuration where it is by default.
fn client(command: &mut Command) -> Result<Finished> {
    command.env_clear().env("PATH", format!("{}:/usr/bin:/bin", fetched("venv-mcp/bin").display())).env("HOME", "/root").current_dir("/");
    run(command, Duration::from_secs(300))
}

fn inspect(words: &[&str]) -> Result<Value> {
    let mut command = Command::new(fetched("venv-mcp/bin/node"));
    command.arg(fetched("mcp-inspector/node_modules/.bin/mcp-inspector")).args(["--cli", BREAKGLASS, "mcp"]).args(words);
    let end = client(&mut command)?;
    assert_eq!(end.status, 0, "{words:?}: {end:?}");
    Ok(serde_json::from_slice(&end.stdout).unwrap_or_else(|error| panic!("{error}: {end:?}")))
}

fn inspector(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    let _desk = desk(lab, "")?;
    let tools = inspect(&["--method", "tools/list", "--strict"])?;
    let tools = tools["tools"].as_array().unwrap();
    assert_eq!(tools.len(), 5, "{tools:?}");
    for tool in tools {
        assert_eq!(tool["inputSchema"]["additionalProperties"], json!(false), "{tool}");
        assert_eq!(tool["annotations"]["destructiveHint"], json!(tool["name"] == "pve_apply"), "{tool}");
    }
    let status = inspect(&["--method", "tools/call", "--tool-name", "pve_status", "--tool-arg", "reason=inspected"])?;
    assert_eq!(status["structuredContent"]["receipt"], json!("valid"), "{status}");
    assert_eq!(status["structuredContent"]["assessment"], json!("healthy"), "{status}");
    Ok(())
}

/// The Python client cures a stall; what it saw.
fn cures(lab: &Lab, mode: &str) -> Result<Value> {
    let vm = lab.fresh()?;
    let before = vm.pid();
    let _desk = desk(lab, "")?;
    let stalled = wedge::block_stall(vm)?;
    let mut command = Command::new(fetched("venv-mcp/bin/python"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("mcp/client.py")).args([mode, BREAKGLASS, "mcp"]);
    let end = client(&mut command)?;
    stalled.forget();
    assert_eq!(end.status, 0, "{end:?}");
    let saw: Value = serde_json::from_slice(&end.stdout).unwrap();
    assert_ne!(vm.pid(), before, "a fresh QEMU process: {saw}");
    assert_eq!((&saw["planned"]["assessment"], &saw["done"]["outcome"]), (&json!("block-stalled"), &json!("done")), "{saw}");
    assert_eq!((&saw["planned"]["dry_run"], &saw["done"]["dry_run"]), (&json!(true), &json!(false)), "{saw}");
    assert!(saw["screens"].as_u64() >= Some(1) && saw["resources"].as_u64() > Some(20), "{saw}");
    assert!(saw["acted"].as_array().unwrap().contains(&json!("qm-start: done")), "{saw}");
    let (_, lines) = newest();
    let cycles = |dry_run| {
        let asked = lines.iter().filter(|line| line["event"] == "verb_asked" && line["verb"] == "cycle" && line["dry_run"] == dry_run);
        asked.count()
    };
    assert_eq!((cycles(true), cycles(false)), (1, 1), "one plan, one cycle: {lines:#?}");
    Ok(saw)
}

fn newest_client(lab: &Lab) -> Result<()> {
    let saw = cures(lab, "auto")?;
    assert_eq!(saw["protocol"], json!("2026-07-28"), "{saw}");
    Ok(())
}

fn older_client(lab: &Lab) -> Result<()> {
    let saw = cures(lab, "legacy")?;
    assert_eq!(saw["protocol"], json!("2025-11-25"), "{saw}");
    Ok(())
}
