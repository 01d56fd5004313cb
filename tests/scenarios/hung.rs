//! A QEMU that does not answer, and a socket that somebody else holds: the first is killed only where it is proved, the second never.
//! Says how long that may take, so it runs alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use lab::installed::{Stamp, Told, agent, ask, processes};
use lab::lab::{Scenario, run_scenarios};
use lab::process::{must, until};
use lab::qmp::Qmp;
use lab::station::{OPERATIONS, fresh_id};
use lab::vm::BOOT;
use lab::{Lab, Observed, Result, Vm, wedge, worker};
use serde_json::{Value, json};

const SCENARIOS: &[Scenario] = &[
    ("when_qemu_hangs_then_reads_answer_in_time_and_name_what_did_not", reads_of_a_hung_qemu),
    ("when_qemu_hangs_then_qm_says_running_and_status_does_not", qm_says_running),
    ("when_qemu_hangs_then_reset_is_refused", reset_of_a_hung_qemu),
    ("when_qemu_hangs_then_cycle_brings_the_guest_back_and_vm_1020_survives", cycle_of_a_hung_qemu),
    ("when_earlier_reads_left_dead_entries_in_the_backlog_then_cycle_is_as_quick", cycle_after_reads),
    ("when_qemu_hangs_then_stop_is_quick", stop_of_a_hung_qemu),
    ("when_etc_pve_and_qemu_hang_then_stop_is_a_proved_kill", stop_with_hung_pve),
    ("when_qemu_goes_on_then_it_is_not_killed", goes_on),
    ("when_qemu_goes_on_after_it_was_proved_unresponsive_then_it_is_not_killed_either", goes_on_after_the_proof),
    ("when_a_foreign_client_holds_the_socket_then_no_greeting_proves_nothing", socket_held),
    ("when_a_foreign_client_holds_the_socket_of_a_hung_qemu_then_qm_stop_is_used", socket_of_hung_held),
    ("when_the_console_is_captured_then_qemu_writes_into_a_private_folder_and_nothing_is_left", screendump),
];

fn reads_of_a_hung_qemu(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let stopped = wedge::qemu_stopped(vm)?;
    let status = ask(&agent(lab)?, "status")?.done();
    assert!(status.answer.wall < Duration::from_secs(4), "{:?}", status.answer.wall);
    assert!(["qemu-unresponsive", "qmp-unavailable"].contains(&status.code().as_str()), "{}", status.code());
    let told = ask(&agent(lab)?, "forensics")?.done();
    assert!(told.answer.wall < Duration::from_secs(15), "{:?}", told.answer.wall);
    stopped.now();
    let manifest: Value = serde_json::from_slice(&fs::read(format!("{}/manifest.json", told.bundle())).unwrap()).unwrap();
    let missing = manifest["predicate"]["not_captured"].as_array().unwrap();
    for name in ["qmp/greeting", "qmp/query-status", "qmp/query-block", "console/screen-1"] {
        let entry = missing.iter().find(|entry| entry["name"] == name).unwrap_or_else(|| panic!("{name} is not named: {missing:#?}"));
        assert!(!entry["why"].as_str().unwrap().is_empty(), "{entry}");
    }
    // What does not need QEMU is there all the same.
    for path in ["process/threads.1.json", "pve/102.conf", "host/meminfo.txt", "summary.txt"] {
        assert!(fs::metadata(format!("{}/{path}", told.bundle())).is_ok_and(|file| file.len() > 0), "{path}");
    }
    assert!(vm.healthy(), "a read harmed it");
    Ok(())
}

fn qm_says_running(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let stopped = wedge::qemu_stopped(vm)?;
    let qm = wedge::other_qm(&["status", "102"])?;
    assert_eq!((qm.status, qm.text().as_str()), (0, "status: running\n"));
    let told = ask(&agent(lab)?, "forensics")?.done();
    stopped.now();
    assert_eq!((told.code().as_str(), &told.body["state_after"]), ("qemu-unresponsive", &json!("unresponsive")), "{:#}", told.body);
    Ok(())
}

fn reset_of_a_hung_qemu(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let stopped = wedge::qemu_stopped(vm)?;
    let before = Stamp::of(vm);
    let told = ask(&agent(lab)?, "reset")?;
    assert_eq!((told.answer.status, told.steps().len()), (6, 0), "{:#}", told.body);
    assert!(told.message().contains("Use cycle"), "{}", told.message());
    before.untouched(vm, "reset of a hung QEMU");
    stopped.now();
    assert!(vm.healthy());
    Ok(())
}

fn main() {
    run_scenarios(SCENARIOS, lab::installed::prepare)
}

/// Says `verb` and measures from the request to the first sight of `there`.
fn timed<T>(lab: &Lab, line: &str, within: Duration, there: impl FnMut() -> Option<T>) -> Result<(Told, Duration)> {
    let sent = Instant::now();
    let running = agent(lab)?.spawn(format!("{line} --json"))?;
    until(line, Duration::from_secs(60), there)?;
    let took = sent.elapsed();
    let told = Told::read(running.finish(Duration::from_secs(120))?.into())?.done();
    assert!(took < within, "{line} took {took:?}");
    Ok((told, took))
}

fn other_than(vm: &Vm, old: Option<u32>) -> Option<u32> {
    vm.pid().filter(|pid| Some(*pid) != old)
}

/// VM 1020, whose command line holds what `pkill -f -- "-id 102"` would look for.
struct Neighbour(Child);

impl Neighbour {
    fn start() -> Self {
        let child = Command::new("/usr/bin/kvm")
            .args(["-name", "devvm -id 1020,debug-threads=on", "-machine", "none", "-display", "none", "-S"])
            .args(["-pidfile", "/var/run/qemu-server/1020.pid"])
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
        let _absent = fs::remove_file("/var/run/qemu-server/1020.pid");
    }
}

fn cycle_of_a_hung_qemu(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let mut neighbour = Neighbour::start();
    let old = vm.pid();
    wedge::qemu_stopped(vm)?.forget();
    let (told, took) = timed(lab, "cycle", Duration::from_secs(8), || other_than(vm, old))?;
    assert_eq!(told.steps(), ["kill", "qm-start", "observe"], "{took:?}");
    assert!(neighbour.0.try_wait().unwrap().is_none(), "VM 1020 was killed");
    assert_eq!(told.body["state_before"], "unresponsive");
    assert!(
        told.answer.events_of("assessment")[0]["sentence"].as_str().unwrap().contains("stopped"),
        "{:#?}",
        told.answer.events_of("assessment")
    );
    vm.wait_for_ssh(BOOT)
}

fn cycle_after_reads(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let old = vm.pid();
    wedge::qemu_stopped(vm)?.forget();
    for read in ["status", "forensics", "status", "forensics"] {
        ask(&agent(lab)?, read)?.done();
    }
    let (told, _) = timed(lab, "cycle", Duration::from_secs(8), || other_than(vm, old))?;
    assert_eq!(told.steps(), ["kill", "qm-start", "observe"]);
    assert_eq!(vm.observe(), Observed::State("running".into()));
    Ok(())
}

fn stop_of_a_hung_qemu(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    wedge::qemu_stopped(vm)?.forget();
    let (told, took) = timed(lab, "stop", Duration::from_secs(7), || (vm.observe() == Observed::Stopped).then_some(()))?;
    assert_eq!(told.steps(), ["kill", "qm-stop", "observe"], "{took:?}");
    assert_eq!((processes(), vm.scope()), (vec![], vec![]));
    Ok(())
}

fn stop_with_hung_pve(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    wedge::qemu_stopped(vm)?.forget();
    let hung = wedge::etc_pve_hung(lab::fuse::Hang::Killable)?;
    let told = ask(&agent(lab)?, "stop")?.done();
    drop(hung);
    assert_eq!((told.steps(), vm.observe()), (vec!["kill".into(), "observe".into()], Observed::Stopped), "no qm where /etc/pve hangs");
    Ok(())
}

fn goes_on(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let stopped = wedge::qemu_stopped(vm)?;
    let stop = agent(lab)?.spawn("stop --json")?;
    // Within the 3 s after which silence counts.
    std::thread::sleep(Duration::from_millis(1800));
    stopped.now();
    let told = Told::read(stop.finish(Duration::from_secs(60))?.into())?.done();
    assert_eq!(told.steps(), ["qm-stop", "observe"], "{:#}", told.body);
    Ok(())
}

fn goes_on_after_the_proof(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let stopped = wedge::qemu_stopped(vm)?;
    let id = fresh_id()?;
    // The worker sleeps after it has put its operation.json in place: behind the proof, which is told with the judgement, and before the kill.
    let options = ["-o", "/run/lab/rename.strace", "-P", OPERATIONS[1], "-e", "trace=rename,renameat,renameat2"];
    let delay = ["-e", "inject=rename,renameat,renameat2:delay_exit=5000000:when=1"];
    let worker = worker::traced(
        &[&options[..], &delay].concat().iter().map(|word| (*word).to_owned()).collect::<Vec<_>>(),
        &worker::arrival("stop --json", &id)?,
    )?;
    let told = |event: &Value| event["event"] == "assessment" && event["code"] == "qemu-unresponsive";
    until("the proof", Duration::from_secs(30), || worker::events(&id).iter().any(told).then_some(()))?;
    assert!(!worker::events(&id).iter().any(|event| event["event"] == "step"), "there was no time between the proof and the kill");
    stopped.now();
    let _its_end = worker.finish(Duration::from_secs(60))?;
    let events = worker::events(&id);
    let steps: Vec<_> = events.iter().filter(|event| event["event"] == "step").collect();
    let began: Vec<_> = steps.iter().filter(|step| step["outcome"] == "started").map(|step| step["name"].clone()).collect();
    assert_eq!(began, ["kill", "qm-stop", "observe"], "{steps:#?}");
    let kill = steps.iter().find(|step| step["name"] == "kill" && step["outcome"] == "failed");
    assert!(kill.is_some_and(|step| step["detail"].as_str().unwrap().contains("nothing was killed")), "{steps:#?}");
    assert_eq!(vm.observe(), Observed::Stopped);
    Ok(())
}

fn socket_held(lab: &Lab) -> Result<()> {
    for (verb, steps) in [("stop", ["qm-stop", "observe"].as_slice()), ("cycle", &["qm-stop", "qm-start", "observe"])] {
        let vm = lab.fresh()?;
        let old = vm.pid();
        let held = wedge::qmp_held()?;
        let status = ask(&agent(lab)?, "status")?.done();
        assert_eq!(status.code(), "qmp-unavailable", "{:#}", status.body);
        // A reset goes over our own connection or not at all, and is not said to have been sent.
        let reset = ask(&agent(lab)?, "reset")?;
        assert_eq!((reset.answer.status, reset.steps().len()), (6, 0), "{:#}", reset.body);
        assert_eq!(vm.pid(), old);
        let told = ask(&agent(lab)?, verb)?.done();
        drop(held);
        assert_eq!(told.steps(), steps, "{verb}: killed by us although nothing was proved");
        assert!(vm.pid().is_none() || vm.pid() != old);
    }
    Ok(())
}

fn socket_of_hung_held(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let held = wedge::qmp_held()?;
    wedge::qemu_stopped(vm)?.forget();
    let told = ask(&agent(lab)?, "stop")?.done();
    drop(held);
    assert_eq!(told.steps(), ["qm-stop", "observe"]);
    assert_eq!((processes(), vm.scope()), (vec![], vec![]));
    Ok(())
}

fn screendump(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let list = || must("find", ["/", "-xdev", "-maxdepth", "1"]).map(|found| found.text());
    let before = list()?;
    let running = agent(lab)?.spawn("forensics --json")?;
    // QEMU writes with its own umask: the folder is what keeps the picture private.
    let mut folders = Vec::new();
    let seen = until("a folder for pictures", Duration::from_secs(6), || {
        let found = must("find", ["/run/pve-verb", "-name", "*screen*"]).ok()?.text();
        let parent = found.lines().next().map(std::path::PathBuf::from)?;
        let folder = if parent.is_dir() { parent } else { parent.parent()?.to_owned() };
        let mode = fs::metadata(&folder).ok()?.mode();
        folders.push(folder);
        Some(mode & 0o777)
    })?;
    assert_eq!(seen, 0o700, "{folders:?}");
    let told = Told::read(running.finish(Duration::from_secs(30))?.into())?.done();
    assert_eq!(list()?, before, "something was left in /");
    let left = must("find", ["/run/pve-verb", "-name", "*screen*"])?.text();
    assert_eq!(left, "");
    for n in [1, 2] {
        let picture = fs::read(format!("{}/console/screen-{n}.png", told.bundle())).unwrap();
        assert!(picture.starts_with(b"\x89PNG") && picture.len() > 500);
    }
    assert!(Qmp::connect(lab::qemu_cmd::QMP, Duration::from_secs(2)).is_ok() && vm.healthy());
    Ok(())
}
