//! Shows that the laboratory is what it says: the VM is real, and its faults are what they are called.
//!
//! Several scenarios share one booted VM. Each starts with `lab.fresh()`, which boots again only if the last one left
//! the VM unwell.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking

use std::time::Duration;

use lab::lab::{Scenario, run_scenarios};
use lab::{Lab, Observed, Result, wedge};
use serde_json::json;

const SCENARIOS: &[Scenario] = &[
    ("when_the_vm_boots_then_ssh_agent_and_disk_work", boots),
    ("when_the_console_is_asked_for_then_a_picture_is_written", screendump),
    ("when_the_block_layer_stalls_then_qmp_answers_and_writes_are_flat", block_stall),
    ("when_qemu_is_stopped_then_it_is_unresponsive_until_continued", qemu_stopped),
    ("when_the_agent_is_killed_then_it_is_silent_until_started", agent_killed),
];

fn main() {
    run_scenarios(SCENARIOS, |_| Ok(()))
}

fn running() -> Observed {
    Observed::State("running".into())
}

fn boots(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    assert_eq!(vm.guest("hostname; sudo -n id -u; su breakglass -c 'sudo -n id -u'")?.lines(), ["devvm", "0", "0"]);
    assert_eq!(vm.guest("grep -c /data /proc/mounts")?.text().trim(), "1");
    let info = vm.agent("guest-get-osinfo", Duration::from_secs(20))?;
    assert_eq!(info["id"], "devvm-lab");
    assert_eq!(vm.scope(), [vm.pid().unwrap()]);
    let line = std::fs::read_to_string(format!("/proc/{}/cgroup", vm.pid().unwrap())).unwrap();
    assert!(line.contains("0::/qemu.slice/102.scope\n"), "{line}");
    Ok(())
}

fn screendump(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    vm.qmp("screendump", json!({"filename": "/run/lab/console.ppm"}))?;
    let picture = std::fs::read("/run/lab/console.ppm").unwrap();
    assert!(picture.starts_with(b"P6\n"));
    let lit = picture.iter().skip(20).filter(|byte| **byte > 100).count();
    assert!(lit > 1000, "the console is dark: {lit} lit bytes");
    Ok(())
}

fn block_stall(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let stall = wedge::block_stall(vm)?;
    let before = vm.writes()?;
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(vm.writes()?, before, "writes go on");
    assert_eq!(vm.observe(), running());
    assert_eq!(vm.qmp("query-block", json!({}))?[0]["io-status"], "ok");
    assert!(vm.agent("guest-ping", Duration::from_secs(20)).is_ok(), "the agent should still answer");
    stall.now();
    assert!(vm.healthy(), "the stall was not undone");
    Ok(())
}

fn qemu_stopped(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let stopped = wedge::qemu_stopped(vm)?;
    assert_eq!(vm.observe(), Observed::Unresponsive);
    stopped.now();
    assert!(vm.healthy());
    Ok(())
}

fn agent_killed(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let killed = wedge::agent_killed(vm)?;
    assert!(vm.agent("guest-ping", Duration::from_secs(2)).is_err());
    killed.now();
    assert!(vm.agent("guest-ping", Duration::from_secs(20)).is_ok());
    Ok(())
}
