//! Claude at the wheel on the real VM, by a scripted Messages API that checks every request as the real one would: one sentence, or nobody
//! at all; and the program killed in the middle. Real QEMU, both real sshds, the binary as shipped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking
#![allow(clippy::print_stderr)] // the figures are worth a line

#[path = "../../agent/tests/api/mod.rs"]
mod api;
#[path = "agent/desk.rs"]
mod desk;
#[path = "agent/keyholder.rs"]
mod keyholder;

use std::time::{Duration, Instant};

use api::actors::{called, results, trusted};
use api::{Api, Reply, call, exec, say, text, verb};
use desk::{Desk, Hook, desk, newest};
use keyholder::holds;
use lab::installed::prepare;
use lab::lab::{Scenario, run_scenarios};
use lab::process::{Running, start, until};
use lab::{Lab, Result, station, wedge};
use serde_json::{Value, json};

const SCENARIOS: &[Scenario] = &[
    ("when_a_process_eats_the_memory_then_claude_ends_it_over_ssh_without_a_power_verb", memory),
    ("when_the_block_layer_stalls_then_one_sentence_brings_the_guest_back", stall),
    ("when_nobody_asks_and_claude_is_killed_in_mid_cycle_then_it_goes_on_and_the_vm_is_recovered", unattended),
    ("when_a_conversation_is_killed_in_mid_cycle_then_it_is_taken_up_with_the_receipt", killed),
];

/// More than any conversation takes here.
const AMPLE: Duration = Duration::from_secs(420);
/// What the process may have resident.
const RESIDENT_KIB: u64 = 40 * 1024;

fn main() {
    run_scenarios(SCENARIOS, prepare)
}

/// A desk whose model follows this script.
fn with(lab: &Lab, more: &str, script: impl FnMut(&Value, usize) -> Reply + Send + 'static) -> Result<(Desk, Api)> {
    let api = Api::start(script);
    let more = format!("[claude]\nbase_url = \"{}\"\napi_key_file = \"/etc/breakglass/api-key\"\n{more}", api.url);
    let desk = desk(lab, &more)?;
    lab::host::write("/etc/breakglass/api-key", &format!("{}\n", api::KEY), 0o600)?;
    Ok((desk, api))
}

/// Waits for the boot in one call, as the tool's description says.
fn back() -> Value {
    call("devvm_exec", json!({ "command": "uptime", "timeout_s": 240, "reason": "is the guest back?" }))
}

/// Looks first; cycles what is stalled, for the reason that it saw; waits until it is back; reports.
fn careful(body: &Value, _: usize) -> Reply {
    let Some(results) = results(body) else { return say(vec![text("I look first."), verb("pve_forensics")]) };
    let ours = trusted(&results);
    match called(body).last().map(String::as_str) {
        Some("pve_forensics") if ours.contains("Assessment: block-stalled.") => {
            let reason = json!({ "reason": "block-stalled in two samples: only a fresh QEMU process helps" });
            say(vec![text("The block layer is stalled. I cycle the VM."), call("pve_cycle", reason)])
        }
        Some("pve_cycle") if ours.contains("Signed receipt: cycle done") => say(vec![text("Is it back?"), back()]),
        Some("uptime") if ours.contains("exit status 0") => say(vec![verb("pve_status")]),
        Some("pve_status") => say(vec![text("The block layer was stalled; a cycle cured it, and the guest answers again.")]),
        other => say(vec![text(&format!("I stop here after {other:?}: {ours}"))]),
    }
}

/// The mutating verbs of an incident, each with its id and reason, as they were first asked for.
fn mutations(lines: &[Value]) -> Vec<(String, String, String)> {
    let word = |line: &Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
    let asked = lines.iter().filter(|line| line["event"] == "verb_asked" && line["attach"] == false);
    let asked = asked.filter(|line| !matches!(line["verb"].as_str(), Some("status" | "forensics")));
    asked.map(|line| (word(line, "verb"), word(line, "request_id"), word(line, "reason"))).collect()
}

fn count(lines: &[Value], event: &str) -> usize {
    lines.iter().filter(|line| line["event"] == event).count()
}

/// That this process never held a key, and is small.
fn holds_no_key(desk: &Desk, running: &Running, what: &str) {
    for seed in &desk.keys.seeds {
        assert!(!holds(running.pid(), seed), "a key is in the memory of {what}, which talks to Claude");
        assert!(holds(desk.keys.pid(), seed), "and the keyholder has it, so that this way of looking finds one");
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
    let resident: u64 =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    eprintln!("{what} has {resident} KiB resident");
    assert!(resident < RESIDENT_KIB, "{resident} KiB");
}

/// A conversation that begins with this sentence; exit status, what it said, and the incident's lines.
fn chat(desk: &Desk, sentence: &str, in_the_middle: impl FnOnce(&Running)) -> Result<(i32, String, Vec<Value>)> {
    let running = start(&mut desk.command(&["chat", sentence]), &[])?;
    until("the evidence", Duration::from_secs(90), || {
        String::from_utf8_lossy(&running.output_so_far()).contains("  evidence: ").then_some(())
    })?;
    in_the_middle(&running);
    let end = running.finish(AMPLE)?;
    let text = end.text() + &String::from_utf8_lossy(&end.stderr);
    let (folder, lines) = newest();
    assert_eq!(end.text().lines().last(), folder.to_str(), "the folder stands last: {text}");
    Ok((end.status, text, lines))
}

fn faultless(api: &Api) {
    assert_eq!(api.faults(), Vec::<String>::new(), "the real API would have refused");
}

fn stall(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let before = vm.pid();
    let (desk, api) = with(lab, "", careful)?;
    let stalled = wedge::block_stall(vm)?;
    let (status, text, lines) = chat(&desk, "The devvm hangs.", |running| holds_no_key(&desk, running, "chat"))?;
    stalled.forget();
    faultless(&api);
    assert_eq!(status, 0, "{text}");
    assert_ne!(vm.pid(), before, "a fresh QEMU process: {text}");
    assert!(text.contains("The devvm hangs.") && text.contains("a cycle cured it") && text.contains("healthy"), "{text}");
    let [(verb, id, reason)] = &mutations(&lines)[..] else { panic!("one mutation: {text}") };
    assert!(verb == "cycle" && reason.contains("only a fresh QEMU process"), "{verb}: {reason}");
    let log = lab::chain::Chain::read()?;
    let outcome = log.of(id).into_iter().find(|record| record["kind"] == "outcome").unwrap();
    assert_eq!((&outcome["origin"], outcome["reason"].as_str()), (&"model".into(), Some(reason.as_str())), "{outcome}");
    // Claude saw the console as pictures, and the evidence as data.
    let pictures = api.requests().last().unwrap().to_string().matches("\"type\":\"image\"").count();
    assert!(pictures >= 1, "{pictures}");
    assert_eq!(vm.guest("dd if=/dev/zero of=/data/proof bs=4k count=4 conv=fsync")?.status, 0, "its disk works");
    Ok(())
}

fn memory(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let (before, booted) = (vm.pid(), vm.uptime()?);
    let script = |body: &Value, _| match called(body).len() {
        0 => say(vec![text("I look first."), verb("pve_forensics")]),
        1 => say(vec![exec("grep Mem /proc/meminfo"), exec("ps -o pid,rss,comm | sort -k2 -n | tail -n 5")]),
        3 => {
            // The largest, out of what ps printed.
            let seen = results(body).unwrap_or_default();
            let rows = seen.lines().filter_map(|line| line.strip_prefix("| "));
            let sleeper = rows.filter_map(|row| row.split_whitespace().collect::<Vec<_>>().try_into().ok());
            let sleeper = sleeper.filter(|[_, _, comm]: &[&str; 3]| *comm == "dd").map(|[pid, ..]| pid.to_owned()).next();
            match sleeper {
                Some(pid) => say(vec![
                    text("One process has all of it."),
                    exec(&format!("kill -9 {pid}")),
                    exec("grep Mem /proc/meminfo"),
                    exec("uptime"),
                ]),
                None => say(vec![text(&format!("I see nobody who has it: {seen}"))]),
            }
        }
        _ => say(vec![text("A dd held the memory; it is ended, and the guest has memory again. No power verb was needed.")]),
    };
    let (desk, api) = with(lab, "", script)?;
    // One process that holds nearly all of it and can be ended: what it has read, nobody takes from it.
    vm.guest_background("k=$(awk '/MemAvailable/ { print $2 }' /proc/meminfo); dd if=/dev/zero bs=$((k - 8000))k count=1 | sleep 1000")?;
    let free = || {
        let text = vm.guest_within("cat /proc/meminfo", Duration::from_secs(20)).ok()?.text();
        let figure = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok());
        Some(figure("MemAvailable:")? * 100 / figure("MemTotal:")?)
    };
    until("the lack of memory", Duration::from_secs(60), || free().filter(|percent| *percent < 5))?;
    let (status, text, lines) = chat(&desk, "Everything crawls on the devvm.", |_| ())?;
    faultless(&api);
    assert_eq!((status, vm.pid()), (0, before), "{text}");
    assert!(mutations(&lines).is_empty() && text.contains("No power verb was needed"), "{text}");
    assert!(vm.uptime()? > booted && free().unwrap() > 20, "the same guest, with memory again: {text}");
    Ok(())
}

fn unattended(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let (hook, url) = Hook::listen();
    let (desk, api) = with(lab, &format!("[watch]\ninterval_s = 60\non = \"incident\"\nnotify_url = \"{url}\"\n"), careful)?;
    let watch = start(&mut desk.command(&["watch"]), &[])?;
    let log = |watch: &Running| String::from_utf8_lossy(&watch.output_so_far()).into_owned();
    until("the first look", Duration::from_secs(30), || log(&watch).contains("watching").then_some(()))?;
    std::thread::sleep(Duration::from_secs(8));
    let before = vm.pid();
    station::slow_stop()?;
    let stalled = wedge::block_stall(vm)?;
    let begun = Instant::now();
    let (told, notice) = until("the webhook", Duration::from_secs(130), || hook.told("worse"))?;
    eprintln!("the webhook had it after {:.0} s", (told - begun).as_secs_f32());
    assert_eq!((&notice["code"], &notice["recommend"]), (&"block-stalled".into(), &"cycle".into()), "{notice}");
    until("Claude's cycle", Duration::from_secs(120), || {
        let (_, lines) = hook.told("opened").map(|_| newest())?;
        let (_, id, _) = mutations(&lines).pop()?;
        let preserved = |line: &Value| line["request_id"] == *id && line["news"]["event"] == "preserved";
        lines.iter().any(preserved).then_some(())
    })?;
    watch.kill()?;
    let again = start(&mut desk.command(&["watch"]), &[])?;
    let (_, ended) = until("the incident's end", AMPLE, || hook.told("ended"))?;
    station::honest();
    stalled.forget();
    holds_no_key(&desk, &again, "watch with Claude");
    faultless(&api);
    let said = log(&again);
    assert_eq!(ended["healthy"], true, "{ended} {said}");
    assert_ne!(vm.pid(), before);
    assert_eq!(vm.guest("true")?.status, 0);
    let (folder, lines) = newest();
    assert!(folder.ends_with(ended["incident"].as_str().unwrap()), "{ended}");
    once_and_fetched(&lines)?;
    let text = std::fs::read_to_string(folder.join("events.jsonl")).unwrap();
    assert!(text.contains("a cycle cured it"), "it explains: {text}");
    assert_eq!(std::fs::read_dir(format!("{}/incidents", lab::agent::STATE)).unwrap().flatten().filter(|e| e.path().is_dir()).count(), 1);
    again.kill()?;
    Ok(())
}

/// One cycle, asked for once and then fetched by its id, which the host did once.
fn once_and_fetched(lines: &[Value]) -> Result<()> {
    let [(verb, id, _)] = &mutations(lines)[..] else { panic!("one mutation: {lines:?}") };
    assert_eq!(verb, "cycle");
    let fetched = lines.iter().filter(|line| line["event"] == "verb_asked" && line["attach"] == true).collect::<Vec<_>>();
    assert!(fetched.len() == 1 && fetched[0]["request_id"] == **id, "{fetched:?}");
    assert_eq!(count(lines, "resumed"), 1);
    let log = lab::chain::Chain::read()?;
    assert_eq!((log.count(id, "intent"), log.count(id, "outcome")), (1, 1));
    Ok(())
}

fn killed(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let before = vm.pid();
    let script = |body: &Value, _| match called(body).len() {
        0 => say(vec![verb("pve_cycle")]),
        _ => say(vec![text("The cycle is done; I have its receipt.")]),
    };
    let (desk, api) = with(lab, "", script)?;
    station::slow_stop()?;
    let running = start(&mut desk.command(&["chat", "Cycle it."]), &[])?;
    until("the cycle's evidence", Duration::from_secs(90), || {
        String::from_utf8_lossy(&running.output_so_far()).contains("  evidence: ").then_some(())
    })?;
    running.kill()?;
    let (folder, _) = newest();
    let id = folder.file_name().unwrap().to_str().unwrap().to_owned();
    let end = start(&mut desk.command(&["chat", "--incident", &id]), &[])?.finish(AMPLE)?;
    station::honest();
    faultless(&api);
    let text = end.text() + &String::from_utf8_lossy(&end.stderr);
    assert!(end.status == 0 && text.contains("I have its receipt"), "{} {text}", end.status);
    assert_ne!(vm.pid(), before, "a fresh QEMU process");
    let (_, lines) = newest();
    once_and_fetched(&lines)?;
    let told = results(&api.requests()[1]).unwrap();
    assert!(told.contains("Signed receipt: cycle done"), "{told}");
    Ok(())
}
