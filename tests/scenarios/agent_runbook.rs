//! Recovery without any API: the runbook by hand, and by the watch when nobody asks. Real QEMU, both real sshds, the binary as shipped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking
#![allow(clippy::print_stderr)] // the figures are worth a line

#[path = "agent/desk.rs"]
mod desk;
#[path = "agent/keyholder.rs"]
mod keyholder;

use std::time::{Duration, Instant};

use desk::{Hook, desk, newest};
use keyholder::holds;
use lab::installed::prepare;
use lab::lab::{Scenario, run_scenarios};
use lab::process::{run, start, until};
use lab::worker::{Moment, reaches};
use lab::{Lab, Result, station, wedge};
use serde_json::Value;

const SCENARIOS: &[Scenario] = &[
    ("when_nothing_is_wrong_then_the_runbook_takes_evidence_and_changes_nothing", healthy),
    ("when_a_process_eats_the_memory_then_the_runbook_ends_it_over_ssh_without_a_power_verb", memory),
    ("when_the_block_layer_stalls_then_the_runbook_cycles_and_the_guest_is_back", stall),
    ("when_nobody_asks_then_the_watch_tells_within_130_s_and_the_vm_is_recovered_and_explained", unattended),
    ("when_the_watch_is_killed_in_mid_cycle_then_its_incident_goes_on_and_nothing_is_done_twice", killed),
];

fn main() {
    run_scenarios(SCENARIOS, prepare)
}

/// The mutating verbs that an incident asked for.
fn asked(lines: &[Value]) -> Vec<String> {
    let verbs = lines.iter().filter_map(|line| line["verb"].as_str()).filter(|verb| !matches!(*verb, "status" | "forensics"));
    let mut verbs: Vec<String> = verbs.map(str::to_owned).collect();
    verbs.dedup();
    verbs
}

/// Runs `breakglass runbook`; exit status, what it said, and the incident's lines.
fn runbook(desk: &desk::Desk) -> Result<(i32, String, Vec<Value>)> {
    let end = run(&mut desk.command(&["runbook"]), Duration::from_secs(420))?;
    let text = end.text();
    let (folder, lines) = newest();
    assert_eq!(text.lines().last(), folder.to_str(), "the folder stands last: {text}");
    Ok((end.status, text, lines))
}

fn healthy(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let before = vm.pid();
    let (status, text, lines) = runbook(&desk(lab, "")?)?;
    assert_eq!((status, vm.pid()), (0, before), "{text}");
    assert!(text.contains("nothing was changed") && asked(&lines).is_empty(), "{text}");
    Ok(())
}

fn memory(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let (before, booted) = (vm.pid(), vm.uptime()?);
    // One process that holds nearly all of it and can be ended: what it has read, nobody takes from it.
    vm.guest_background("k=$(awk '/MemAvailable/ { print $2 }' /proc/meminfo); dd if=/dev/zero bs=$((k - 8000))k count=1 | sleep 1000")?;
    let free = || {
        let text = vm.guest_within("cat /proc/meminfo", Duration::from_secs(20)).ok()?.text();
        let figure = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok());
        Some(figure("MemAvailable:")? * 100 / figure("MemTotal:")?)
    };
    until("the lack of memory", Duration::from_secs(60), || free().filter(|percent| *percent < 5))?;
    let (status, text, lines) = runbook(&desk(lab, "")?)?;
    assert_eq!((status, vm.pid()), (0, before), "{text}");
    assert!(text.contains("no power verb was used") && asked(&lines).is_empty(), "{text}");
    assert!(vm.uptime()? > booted && free().unwrap() > 20, "the same guest, with memory again");
    Ok(())
}

fn stall(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let before = vm.pid();
    let stalled = wedge::block_stall(vm)?;
    let (status, text, lines) = runbook(&desk(lab, "")?)?;
    stalled.forget();
    assert_eq!(status, 0, "{text}");
    assert_ne!(vm.pid(), before, "a fresh QEMU process: {text}");
    assert_eq!(asked(&lines), ["cycle"], "{text}");
    assert!(text.contains("block-stalled") && text.contains("the devvm answers over SSH again"), "{text}");
    let guest = vm.guest("dd if=/dev/zero of=/data/proof bs=4k count=4 conv=fsync")?;
    assert_eq!(guest.status, 0, "its disk works: {guest:?}");
    Ok(())
}

fn unattended(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let (hook, url) = Hook::listen();
    let desk = desk(lab, &format!("[watch]\ninterval_s = 60\non = \"incident\"\nnotify_url = \"{url}\"\n"))?;
    let watch = start(&mut desk.command(&["watch"]), &[])?;
    let log = || String::from_utf8_lossy(&watch.output_so_far()).into_owned();
    until("the first look", Duration::from_secs(30), || log().contains("watching").then_some(()))?;
    std::thread::sleep(Duration::from_secs(8));
    let before = vm.pid();
    let stalled = wedge::block_stall(vm)?;
    let begun = Instant::now();
    let (told, notice) = until("the webhook", Duration::from_secs(130), || hook.told("worse"))?;
    eprintln!("the webhook had it after {:.0} s", (told - begun).as_secs_f32());
    assert_eq!((&notice["code"], &notice["recommend"]), (&"block-stalled".into(), &"cycle".into()), "{notice}");
    let (_, ended) = until("the incident's end", Duration::from_secs(420), || hook.told("ended"))?;
    stalled.forget();
    assert_eq!(ended["healthy"], true, "{ended} {}", log());
    assert_ne!(vm.pid(), before);
    assert_eq!(vm.guest("true")?.status, 0);
    let (folder, lines) = newest();
    assert!(folder.ends_with(ended["incident"].as_str().unwrap()), "{ended}");
    assert_eq!(asked(&lines), ["cycle"]);
    let text = std::fs::read_to_string(folder.join("events.jsonl")).unwrap();
    assert!(text.contains("block operation") && text.contains("cycle was done and observed"), "it explains: {text}");

    let status = std::fs::read_to_string(format!("/proc/{}/status", watch.pid())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().split_whitespace().next().unwrap().to_owned();
    eprintln!("the watch's process has {resident} KiB resident");
    assert!(resident.parse::<u64>().unwrap() < 40 * 1024);

    // The process that did all this never held a key.
    for seed in &desk.keys.seeds {
        assert!(!holds(watch.pid(), seed), "a key is in the memory of the process that watches");
        assert!(holds(desk.keys.pid(), seed), "and the keyholder has it, so that this way of looking finds one");
    }
    watch.kill()?;
    Ok(())
}

fn killed(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let (hook, url) = Hook::listen();
    let desk = desk(lab, &format!("[watch]\ninterval_s = 10\non = \"incident\"\nnotify_url = \"{url}\"\n"))?;
    let watch = start(&mut desk.command(&["watch"]), &[])?;
    std::thread::sleep(Duration::from_secs(8));
    let before = vm.pid();
    station::slow_stop()?;
    let stalled = wedge::block_stall(vm)?;
    let cycles = || -> Vec<String> {
        let (_, lines) = newest();
        let asked = lines.iter().filter(|line| line["event"] == "verb_asked" && line["verb"] == "cycle");
        asked.filter_map(|line| line["request_id"].as_str().map(str::to_owned)).collect()
    };
    until("an incident", Duration::from_secs(90), || hook.told("opened"))?;
    let id = until("its cycle", Duration::from_secs(90), || cycles().pop())?;
    // Not before the host has it: one that was never sent would be no middle, and another one would be asked for.
    reaches(&id, Moment::Told("preserved"), Duration::from_secs(90))?;
    watch.kill()?;
    let again = start(&mut desk.command(&["watch"]), &[])?;
    let (_, ended) = until("the incident's end", Duration::from_secs(420), || hook.told("ended"))?;
    station::honest();
    stalled.forget();
    let said = String::from_utf8_lossy(&again.output_so_far()).into_owned();
    assert_eq!(ended["healthy"], true, "{ended} {said}");
    assert_ne!(vm.pid(), before);
    let mut ids = cycles();
    assert_eq!(ids.len(), 2, "asked, and asked again after the restart: {ids:?}");
    ids.dedup();
    assert_eq!(ids.len(), 1, "under the same id");
    let log = lab::chain::Chain::read()?;
    assert_eq!((log.count(&ids[0], "intent"), log.count(&ids[0], "outcome")), (1, 1));
    assert_eq!(std::fs::read_dir(format!("{}/incidents", lab::agent::STATE)).unwrap().flatten().filter(|e| e.path().is_dir()).count(), 1);
    again.kill()?;
    Ok(())
}
