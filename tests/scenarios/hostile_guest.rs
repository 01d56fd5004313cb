//! A guest, and a QEMU, that answer with garbage, floods, drips or nothing: what the probe helpers need of memory, what reaches a
//! person, and that all other evidence is there. The peers stand on the VM's own sockets, in QEMU's place.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking
#![allow(clippy::print_stderr)] // the figures are worth a line

#[path = "hostile_guest/peers.rs"]
mod peers;

use std::fs::{self, File};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lab::bundle::Bundle;
use lab::installed::{Stamp, Told, agent, ask, prepare};
use lab::lab::{Scenario, run_scenarios};
use lab::process::until;
use lab::qemu_cmd::{QGA, QMP, SERIAL, SERIAL_LOG};
use lab::station::processes;
use lab::vm::{send, stop};
use lab::{Lab, Result};
use peers::{Agent, Flood, Impostor};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde_json::Value;
use sha2::{Digest, Sha256};

const SCENARIOS: &[Scenario] = &[
    ("when_the_agent_is_hostile_then_only_its_own_answers_are_missing", hostile_agent),
    ("when_the_serial_console_floods_then_its_end_is_kept_and_nothing_raw_is_shown", serial_flood),
    ("when_qmp_floods_events_then_the_answers_between_them_are_there", qmp_flood),
    ("when_qmp_never_stops_then_it_is_cut_and_the_host_still_tells", qmp_endless),
    ("when_everything_is_hostile_then_a_person_sees_clean_text", all_at_once),
    ("when_the_helpers_are_stopped_then_qemu_is_not_accused_and_the_sealed_bundle_stays_as_it_is", helpers_stopped),
];

/// The most that a helper may have had in memory.
const MOST_KIB: u64 = 64 * 1024;

fn main() {
    run_scenarios(SCENARIOS, prepare)
}

/// Watches how much memory the helpers had at most, until it is asked.
struct Memory {
    most: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    watcher: Option<JoinHandle<()>>,
}

impl Memory {
    fn watch() -> Self {
        let (most, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, end) = (most.clone(), stop.clone());
        let watcher = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                for pid in ["probe-guest", "probe-host"].into_iter().flat_map(processes) {
                    // The high-water mark: a peak between two looks counts as well.
                    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                    let mark = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
                    seen.fetch_max(mark.unwrap_or(0), Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Self { most, stop, watcher: Some(watcher) }
    }

    fn at_most(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.watcher.take().unwrap().join().unwrap();
        self.most.load(Ordering::Relaxed)
    }
}

/// `forensics` under observation: done in time, helpers small, nothing raw in what people read, and these artifacts there, besides what no
/// guest has a say in. Up to three times until they are: an answer that comes late on a busy machine is missing once; what is drowned is
/// drowned every time.
fn under(lab: &Lab, what: &str, needed: &[&str]) -> Result<Bundle> {
    let mut tries = Vec::new();
    for _ in 0..3 {
        let bundle = observed(lab, what)?;
        let missing: Vec<_> = needed.iter().chain(&HOST_EVIDENCE).filter(|path| !bundle.has(path)).collect();
        let wall = bundle.told.answer.wall;
        if missing.is_empty() && wall < Duration::from_secs(16) {
            return Ok(bundle);
        }
        let why = |path: &str| bundle.why_not(path.rsplit_once('.').unwrap().0);
        tries.push((wall, missing.into_iter().map(|path| (*path, why(path))).collect::<Vec<_>>()));
    }
    panic!("{what}: late, or missing for its sake, three times: {tries:#?}")
}

fn observed(lab: &Lab, what: &str) -> Result<Bundle> {
    let memory = Memory::watch();
    let told = ask(&agent(lab)?, "forensics")?.done();
    let most = memory.at_most();
    eprintln!("hostile guest: {what}: {most} KiB at most in a helper, {:?}", told.answer.wall);
    assert!(most > 0 && most <= MOST_KIB, "{what}: a helper had {most} KiB");
    clean(what, &told.answer.stdout);
    let bundle = Bundle::of(told);
    for path in ["summary.txt", "assessment.json", "manifest.json"] {
        clean(&format!("{what}: {path}"), bundle.text(path).as_bytes());
    }
    Ok(bundle)
}

/// No control character but the newline, no byte that is no text, nothing that turns a line around.
fn clean(what: &str, bytes: &[u8]) {
    let text = std::str::from_utf8(bytes).unwrap_or_else(|e| panic!("{what}: not UTF-8: {e}"));
    let turns = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let raw = text.chars().find(|c| c.is_control() && *c != '\n' || turns(*c));
    assert_eq!(raw, None, "{what}: {}", text.escape_debug());
}

/// What needs neither QEMU nor the guest.
const HOST_EVIDENCE: [&str; 5] =
    ["process/threads.2.json", "process/status.txt", "pve/102.conf", "host/diskstats.2.txt", "host/mounts.txt"];

const QMP_EVIDENCE: [&str; 8] = [
    "qmp/greeting.json",
    "qmp/query-status.json",
    "qmp/query-block.json",
    "qmp/query-blockstats.2.json",
    "qmp/virtqueues.2.json",
    "qmp/registers.txt",
    "qmp/events.json",
    "console/screen-2.png",
];

fn hostile_agent(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let before = Stamp::of(vm);
    for how in Agent::ALL {
        let impostor = Impostor::put(QGA, move |client| how.serve(client))?;
        // Much JSON is an answer too.
        let answered = matches!(how, Agent::Bomb).then_some("guest/fsinfo.json");
        let bundle = under(lab, &format!("agent, {how:?}"), &QMP_EVIDENCE.into_iter().chain(answered).collect::<Vec<_>>());
        drop(impostor);
        let bundle = bundle?;
        // A reason, or what it answered.
        let why = bundle.why_not("guest/fsinfo");
        assert_eq!(bundle.has("guest/fsinfo.json"), matches!(how, Agent::Bomb), "{how:?}: {why:?}");
        assert!(matches!(how, Agent::Bomb) || why.as_ref().is_some_and(|why| !why.is_empty()), "{how:?}: {why:?}");
    }
    before.untouched(vm, "a hostile agent");
    assert!(vm.healthy());
    Ok(())
}

fn serial_flood(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    let line = b"\x1b[2J\x1b]0;owned\x07\x9b31m\xff\xfe Out of mem\r\n";
    let log = fs::read(SERIAL_LOG).unwrap();
    let mut file = File::options().append(true).open(SERIAL_LOG).unwrap();
    let block = line.repeat(1 << 15);
    (0..(100 << 20) / block.len() + 1).for_each(|_| file.write_all(&block).unwrap());
    let impostor = Impostor::put(SERIAL, move |mut client| {
        let block = line.repeat(1 << 12);
        while client.write_all(&block).is_ok() {}
    })?;
    let agent = ["guest/ping.json", "guest/fsinfo.json"];
    let bundle = under(lab, "serial console, 100 MiB", &[QMP_EVIDENCE.as_slice(), &agent].concat());
    drop(impostor);
    fs::write(SERIAL_LOG, log).unwrap();
    let bundle = bundle?;
    assert_eq!(bundle.judgement["code"], "healthy", "{:#}", bundle.judgement);
    for path in ["console/serial.txt", "console/log.txt"] {
        let kept = fs::read(bundle.folder().join(path)).unwrap();
        assert!(kept.len() == 1 << 20 && kept.windows(4).any(|part| part == b"\x1b[2J"), "{path}: {} bytes, stored raw", kept.len());
    }
    Ok(())
}

fn qmp_flood(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    let impostor = Impostor::put(QMP, |client| Flood { each: 200, bomb: false }.serve(client))?;
    let bundle = under(lab, "QMP, 200 events before each answer", &QMP_EVIDENCE);
    drop(impostor);
    let bundle = bundle?;
    assert_eq!(bundle.judgement["code"], "healthy", "{:#}", bundle.judgement);
    let events = bundle.json("qmp/events.json");
    assert!(events["events"].as_array().unwrap().len() <= 1_000 && events["dropped"].as_u64().unwrap() > 5_000, "{}", events["dropped"]);
    Ok(())
}

fn qmp_endless(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let before = Stamp::of(vm);
    for flood in [Flood { each: u64::MAX, bomb: false }, Flood { each: 0, bomb: true }] {
        let impostor = Impostor::put(QMP, move |client| flood.serve(client))?;
        let bundle = under(lab, &format!("QMP, {flood:?}"), &[]);
        drop(impostor);
        let bundle = bundle?;
        assert!(bundle.has("qmp/query-block.json") != bundle.why_not("qmp/query-block").is_some_and(|why| !why.is_empty()), "{flood:?}");
        let code = bundle.judgement["code"].as_str().unwrap();
        assert!(["healthy", "qmp-unavailable"].contains(&code), "{flood:?} is no proof of anything: {:#}", bundle.judgement);
    }
    before.untouched(vm, "a QMP that never stops");
    Ok(())
}

fn all_at_once(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    let _agent = Impostor::put(QGA, |client| Agent::Garbage.serve(client))?;
    let _qmp = Impostor::put(QMP, |client| Flood { each: 200, bomb: false }.serve(client))?;
    let _serial = Impostor::put(SERIAL, |mut client| while client.write_all(b"\x1b[2J Kernel panic \xff\r").is_ok() {})?;
    for verb in ["forensics", "status"] {
        let answer = agent(lab)?.call(verb)?;
        assert_eq!(answer.status, 0, "{answer:?}");
        clean(verb, &answer.stdout);
        clean(verb, &answer.stderr);
        assert!(answer.lines().iter().all(|line| line.chars().count() <= 120), "{}", answer.text());
    }
    Ok(())
}

/// A capture whose helpers were stopped before the first question to QEMU, and they. None where one was gone, or had given up its wait for
/// the door, before it stood: who stops them may be off the processor for longer.
fn with_helpers_stopped(lab: &Lab) -> Result<Option<(Told, Vec<u32>)>> {
    // Behind the door that only one of ours may open, `probe-guest` waits a second: long enough to be met before its first question.
    let door = File::options().create(true).truncate(true).write(true).open("/run/pve-verb/qmp-102.lock").unwrap();
    flock(&door, FlockOperation::LockExclusive).unwrap();
    write!(&door, "read by-the-lab").unwrap();
    let running = agent(lab)?.spawn("forensics --json")?;
    let helpers = until("both helpers of the capture", Duration::from_secs(60), || {
        // The first `probe-host` is the observation's, which is over before there is a `probe-guest`.
        let pids = [processes("probe-guest"), processes("probe-host")].concat();
        let over = String::from_utf8_lossy(&running.output_so_far()).contains("\"event\":\"receipt\"");
        (pids.len() == 2 || over).then_some(pids)
    })?;
    let stand = helpers.len() == 2 && helpers.iter().all(|pid| stop(*pid).is_ok());
    drop(door);
    let began = Instant::now();
    let told = Told::read(running.finish(Duration::from_secs(120))?.into())?.done();
    eprintln!("hostile guest: helpers stopped: {:?}", began.elapsed());
    let gave_up = told.probe("qmp/query-block")["detail"].as_str().is_some_and(|why| why.contains("in use by"));
    if stand && !gave_up {
        return Ok(Some((told, helpers)));
    }
    let_go(helpers)?;
    Ok(None)
}

/// What may be left of them goes on, and ends.
fn let_go(helpers: Vec<u32>) -> Result<()> {
    for pid in helpers {
        let _gone = send(pid, Signal::CONT);
    }
    until("the helpers' end", Duration::from_secs(30), || {
        [processes("probe-guest"), processes("probe-host")].concat().is_empty().then_some(())
    })
}

fn helpers_stopped(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let met = (0..5).find_map(|_| with_helpers_stopped(lab).transpose()).transpose()?;
    let (told, stopped) = met.expect("helpers that were met before their first question, of five captures");
    let bundle = Bundle::of(told);
    assert_eq!(bundle.judgement["code"], "qmp-unavailable", "silence of our own helper is no proof: {:#}", bundle.judgement);
    assert!(bundle.why_not("qmp/query-block").unwrap().contains("abandoned"));
    // What may be left of them goes on now, and has nowhere to write.
    let manifest: Value = bundle.json("manifest.json");
    let_go(stopped)?;
    let files = manifest["subject"].as_array().unwrap();
    for file in files {
        let bytes = fs::read(bundle.folder().join(file["name"].as_str().unwrap())).unwrap();
        let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(file["digest"]["sha256"], hash, "{} changed after its seal", file["name"]);
    }
    let found = lab::process::must("find", [bundle.folder().to_str().unwrap(), "-type", "f"])?.text().lines().count();
    assert_eq!(found, files.len() + 2, "the manifest's files, itself and its signature");
    assert!(vm.healthy());
    Ok(())
}
