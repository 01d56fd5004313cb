//! Rows about what is wrong inside the guest, while QEMU works.

use std::time::Duration;

use lab::bundle::{judged, judged_with};
use lab::lab::Scenario;
use lab::process::until;
use lab::{Lab, Observed, Result, wedge};
use serde_json::json;

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("when_the_guests_disk_is_full_then_the_file_system_is_named_and_nothing_is_cycled", disk_full),
    ("when_the_agent_hangs_and_the_screen_stands_still_then_the_guest_is_unresponsive", agent_hangs),
    ("when_the_guest_is_paused_then_the_advice_is_start", paused),
    ("when_the_guest_powered_itself_off_then_the_advice_is_cycle", shutdown),
    ("when_the_guest_runs_out_of_memory_then_its_console_says_so_and_ssh_comes_first", out_of_memory),
    ("when_the_guest_panics_then_its_console_says_so_and_the_advice_is_reset", panicked),
];

fn disk_full(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let full = wedge::guest_disk_full(vm)?;
    let bundle = judged_with(lab, "guest-disk-full", None, &["guest/fsinfo.json"])?;
    full.now();
    assert!(bundle.judgement["sentence"].as_str().unwrap().contains("no room left on /data"), "{:#}", bundle.judgement);
    let data = bundle.json("guest/fsinfo.json").as_array().unwrap().iter().find(|fs| fs["mountpoint"] == "/data").cloned().unwrap();
    let (used, total) = (data["used-bytes"].as_u64().unwrap(), data["total-bytes"].as_u64().unwrap());
    assert!(total - used <= total / 100, "{data}");
    assert!(bundle.advice().contains("over SSH"), "{}", bundle.advice());
    Ok(())
}

fn agent_hangs(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    vm.guest("killall -STOP qemu-ga")?;
    let needed = ["qmp/query-chardev.json", "console/screen-1.png", "console/screen-2.png"];
    let bundle = judged_with(lab, "guest-unresponsive", Some("reset"), &needed);
    vm.guest("killall -CONT qemu-ga")?;
    let bundle = bundle?;
    assert!(bundle.why_not("guest/ping").unwrap().contains("does not answer"), "{:?}", bundle.why_not("guest/ping"));
    let chardevs = bundle.json("qmp/query-chardev.json");
    let port = chardevs.as_array().unwrap().iter().find(|device| device["label"] == "qga0").unwrap();
    assert_eq!(port["frontend-open"], true, "an agent that is not there is no silent one");
    assert!(bundle.has("console/screen-1.png") && bundle.has("console/screen-2.png"));
    // The cursor of a text screen blinks for the dead too: equal files would be luck.
    assert!(bundle.finding("guest-unresponsive").contains("the screen stands still"), "{}", bundle.finding("guest-unresponsive"));
    assert!(bundle.advice().contains("cycle"), "if a reset does not last: {}", bundle.advice());
    Ok(())
}

fn paused(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    vm.qmp("stop", json!({}))?;
    let bundle = judged(lab, "paused", Some("start"));
    vm.qmp("cont", json!({}))?;
    assert_eq!(bundle?.json("qmp/query-status.json")["status"], "paused");
    Ok(())
}

fn shutdown(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    vm.guest_last("sleep 0.3; poweroff -f")?;
    until("the guest's end", Duration::from_secs(60), || (vm.observe() == Observed::State("shutdown".into())).then_some(()))?;
    let bundle = judged(lab, "paused", Some("cycle"))?;
    assert_eq!(bundle.json("qmp/query-status.json")["status"], "shutdown");
    assert!(bundle.finding("paused").contains("powered itself off"), "{}", bundle.finding("paused"));
    vm.kill()
}

fn out_of_memory(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    // What eats the memory can be killed here, and begins again: the guest lives, and is of no use.
    vm.guest_background("while :; do tail /dev/zero; done")?;
    let log = || std::fs::read_to_string(lab::qemu_cmd::SERIAL_LOG).unwrap_or_default();
    until("the guest's OOM killer", Duration::from_secs(60), || log().contains("Out of memory: Killed process").then_some(()))?;
    let bundle = judged(lab, "guest-oom", None)?;
    assert!(bundle.text("console/log.txt").contains("Out of memory: Killed process"));
    assert!(bundle.finding("guest-oom").contains("Out of memory: Killed process"), "{}", bundle.finding("guest-oom"));
    assert!(bundle.advice().contains("over SSH first") && bundle.advice().contains("reset"), "{}", bundle.advice());
    vm.kill()
}

fn panicked(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    wedge::guest_panic(vm)?;
    let bundle = judged(lab, "guest-panicked", Some("reset"))?;
    assert_eq!(bundle.json("qmp/query-status.json")["status"], "running", "QEMU does not know of it");
    assert!(bundle.text("console/log.txt").contains("Kernel panic - not syncing"));
    assert!(bundle.finding("guest-panicked").contains("sysrq triggered crash"), "{}", bundle.finding("guest-panicked"));
    vm.kill()
}
