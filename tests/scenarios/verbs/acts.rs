//! What each verb does to a VM that can be asked.

use std::fs;
use std::time::{Duration, Instant};

use lab::installed::{Stamp, Told, agent, ask, log, processes, prompt, qm_script};
use lab::lab::Scenario;
use lab::process::until;
use lab::qmp::Qmp;
use lab::vm::BOOT;
use lab::{Lab, Observed, Result, wedge};
use serde_json::json;

use crate::refused::refused;

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("when_status_or_forensics_is_asked_then_nothing_changes", reads_change_nothing),
    ("when_a_dry_run_is_asked_then_the_plan_is_shown_and_nothing_changes", dry_run),
    ("when_reset_is_sent_then_the_guest_boots_again_in_the_same_process", reset),
    ("when_start_is_sent_to_a_running_vm_then_it_is_already_and_nothing_is_sent", start_already),
    ("when_start_is_sent_to_a_paused_vm_then_it_goes_on", start_paused),
    ("when_a_paused_vm_is_locked_by_pve_then_start_resumes_it_in_a_backup_only", start_locked),
    ("when_a_read_is_at_the_qmp_socket_then_it_gives_way_to_a_mutation", reads_give_way),
    ("when_start_is_sent_to_a_prelaunch_vm_then_it_goes_on", start_prelaunch),
    ("when_reset_is_sent_to_a_paused_vm_then_it_ends_running", reset_paused),
    ("when_configuration_is_pending_then_reset_leaves_it_and_cycle_applies_it", pending),
    ("when_a_mutation_runs_qm_then_a_read_says_whose_socket_it_is_and_none_of_ours_is_open", read_during_a_mutation),
    ("when_stop_is_sent_then_no_process_is_left_and_a_second_stop_is_already", stop),
    ("when_start_is_sent_to_a_stopped_vm_then_it_runs", start),
    ("when_cycle_is_sent_to_a_stopped_vm_then_it_is_started", cycle_of_stopped),
    ("when_qm_says_success_and_did_nothing_then_the_verb_failed", qm_lies),
    ("when_qm_says_failure_and_did_its_work_then_the_verb_is_done", qm_exits_255),
    ("when_the_first_start_of_a_cycle_fails_then_it_is_tried_once_more", cycle_retries),
];

fn state(word: &str) -> Observed {
    Observed::State(word.into())
}

fn reads_change_nothing(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let before = Stamp::of(vm);
    let status = prompt(&agent(lab)?, "status", Duration::from_secs(4))?.done();
    assert_eq!((status.code().as_str(), &status.body["state_after"]), ("healthy", &json!("running")), "{:#}", status.body);
    assert_eq!(status.body["bundle"], json!(null));
    assert_eq!(status.body["qemu_before"], json!({"pid": vm.pid().unwrap(), "started": vm.start_ticks().unwrap()}));
    let forensics = prompt(&agent(lab)?, "forensics", Duration::from_secs(16))?.done();
    assert!(fs::exists(format!("{}/manifest.json", forensics.bundle())).unwrap());
    before.untouched(vm, "status and forensics");
    Ok(())
}

fn dry_run(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let mut before = Stamp::of(vm);
    for (verb, plan) in [("reset", "system_reset over QMP"), ("stop", "qm stop"), ("start", "already"), ("cycle", "qm stop, then qm start")]
    {
        let told = ask(&agent(lab)?, &format!("{verb} --dry-run"))?.done();
        before = before.untouched(vm, verb);
        assert_eq!((&told.body["dry_run"], told.steps().len()), (&json!(true), 0), "{verb}");
        assert!(told.message().contains(plan), "{verb}: {}", told.message());
        assert!(fs::exists(format!("{}/manifest.json", told.bundle())).unwrap(), "{verb}: a dry run captures");
        assert!(log()?.iter().all(|record| record["kind"] != "intent" || record["request_id"] != told.body["request_id"]));
    }
    let text = agent(lab)?.call("cycle --dry-run")?.text();
    // Its lines fit a phone.
    let unwrapped = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(unwrapped.contains("qm stop, then qm start"), "{text}");
    before.untouched(vm, "a dry run as text");
    Ok(())
}

fn reset(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let process = (vm.pid(), vm.start_ticks());
    let sent = Instant::now();
    let told = ask(&agent(lab)?, "reset")?.done();
    assert_eq!((vm.pid(), vm.start_ticks()), process);
    assert_eq!(told.steps(), ["system-reset", "observe"]);
    vm.wait_for_ssh(BOOT)?;
    let (uptime, since) = (vm.uptime()?, sent.elapsed());
    assert!(uptime < since, "the guest is up for {uptime:?}, the reset was sent {since:?} ago");
    Ok(())
}

fn start_already(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let before = Stamp::of(vm);
    let told = ask(&agent(lab)?, "start")?.done();
    before.untouched(vm, "start of a running VM");
    assert_eq!((&told.body["already"], told.steps().len()), (&json!(true), 0));
    Ok(())
}

fn start_paused(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let process = (vm.pid(), vm.start_ticks());
    vm.qmp("stop", json!({}))?;
    assert_eq!(vm.observe(), state("paused"));
    let told = ask(&agent(lab)?, "start")?.done();
    assert_eq!((vm.observe(), (vm.pid(), vm.start_ticks())), (state("running"), process));
    assert_eq!((&told.body["state_before"], &told.body["already"]), (&json!("paused"), &json!(false)));
    assert!(vm.healthy());
    Ok(())
}

fn start_locked(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    vm.qmp("stop", json!({}))?;
    let lock = wedge::config_lock(&lab.host, "snapshot")?;
    refused(vm, &mut Stamp::of(vm), &agent(lab)?, "start", 4, "PVE holds the lock \"snapshot\" on VM 102")?;
    lock.now();
    let lock = wedge::config_lock(&lab.host, "backup")?;
    let told = ask(&agent(lab)?, "start")?.done();
    lock.now();
    assert_eq!((vm.observe(), told.steps()), (state("running"), vec!["resume".into(), "observe".into()]));
    Ok(())
}

fn reads_give_way(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    for verb in ["start", "reset"] {
        let mut reads = Vec::new();
        // It is at the sockets for a second and more; where the login of the mutation took longer, there was nothing to give way to.
        while !reads.last().is_some_and(|read: &Told| read.answer.events_of("probe").iter().any(gave_way)) {
            assert!(reads.len() < 5, "{verb}: {:#?}", reads.last().map(|read| read.answer.events_of("probe")));
            vm.qmp("stop", json!({}))?;
            let forensics = agent(lab)?.spawn("forensics --json")?;
            until("the read's first answer", Duration::from_secs(30), || {
                String::from_utf8_lossy(&forensics.output_so_far()).contains("\"qmp/greeting\"").then_some(())
            })?;
            let told = ask(&agent(lab)?, verb)?.done();
            reads.push(Told::read(forensics.finish(Duration::from_secs(60))?.into())?.done());
            assert_eq!((told.probe("qmp/query-status")["outcome"].clone(), vm.observe()), (json!("captured"), state("running")), "{verb}");
        }
    }
    Ok(())
}

fn gave_way(probe: &serde_json::Value) -> bool {
    probe["detail"].as_str().is_some_and(|why| why.contains("to which this read gave way"))
}

fn start_prelaunch(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let process = (vm.pid(), vm.start_ticks());
    vm.qmp("stop", json!({}))?;
    vm.qmp("system_reset", json!({}))?;
    assert_eq!(vm.observe(), state("prelaunch"));
    let told = ask(&agent(lab)?, "start")?.done();
    assert_eq!((vm.observe(), (vm.pid(), vm.start_ticks())), (state("running"), process));
    assert_eq!(told.body["state_before"], "prelaunch");
    Ok(())
}

fn reset_paused(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let process = (vm.pid(), vm.start_ticks());
    vm.qmp("stop", json!({}))?;
    let sent = Instant::now();
    let told = ask(&agent(lab)?, "reset")?.done();
    assert_eq!((vm.observe(), (vm.pid(), vm.start_ticks())), (state("running"), process));
    assert_eq!(told.steps(), ["system-reset", "resume", "observe"]);
    vm.wait_for_ssh(BOOT)?;
    assert!(vm.uptime()? < sent.elapsed());
    Ok(())
}

fn pending(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let memory = || -> Result<u64> {
        let total = vm.guest("awk '/MemTotal/{print $2}' /proc/meminfo; grep -c ^processor /proc/cpuinfo")?;
        Ok(total.lines()[0].parse::<u64>().unwrap() / 1024 * 10 + total.lines()[1].parse::<u64>().unwrap())
    };
    let old = (vm.pid(), vm.start_ticks(), memory()?);
    lab.host.console(&["/usr/sbin/qm", "set", "102", "--memory", "320", "--cores", "2"], Duration::from_secs(30))?.success("qm set")?;
    assert!(!lab.host.conf()?.pending.is_empty());

    ask(&agent(lab)?, "reset")?.done();
    assert_eq!((vm.pid(), vm.start_ticks()), (old.0, old.1));
    assert!(!lab.host.conf()?.pending.is_empty(), "a reset applied pending configuration");
    vm.wait_for_ssh(BOOT)?;
    assert_eq!(memory()?, old.2);

    let told = ask(&agent(lab)?, "cycle")?.done();
    assert_eq!(told.steps(), ["qm-stop", "qm-start", "observe"]);
    assert_ne!(vm.pid(), old.0);
    reaped(old.0.unwrap())?;
    assert_eq!(told.body["qemu_after"], json!({"pid": vm.pid().unwrap(), "started": vm.start_ticks().unwrap()}));
    assert!(lab.host.conf()?.pending.is_empty());
    vm.wait_for_ssh(BOOT)?;
    let now = memory()?;
    assert!(now / 10 > old.2 / 10 + 50 && now % 10 == 2, "memory in MiB and processors: {} before, {now} now", old.2);
    Ok(())
}

fn read_during_a_mutation(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let qm = wedge::qm_stop_waits(lab)?;
    let stop = agent(lab)?.spawn("stop --json")?;
    until("the stop's step", Duration::from_secs(30), || {
        String::from_utf8_lossy(&stop.output_so_far()).contains("\"qm-stop\"").then_some(())
    })?;
    // The mutation does not end before the read has: one that waited for it would take more than a minute.
    let status = prompt(&agent(lab)?, "status", Duration::from_secs(3))?.done();
    let greeting = status.probe("qmp/greeting");
    assert!(greeting["outcome"] == "unavailable" && greeting["detail"].as_str().unwrap().contains("in use by mutation"), "{greeting}");
    // None of ours is connected while qm runs: a stranger is greeted.
    assert!(Qmp::connect(lab::qemu_cmd::QMP, Duration::from_secs(10)).is_ok(), "a connection of ours is open across a qm call");
    qm.go_on();
    let stopped = stop.finish(Duration::from_secs(180))?;
    drop(qm);
    assert_eq!(stopped.status, 0, "{}", stopped.text());
    assert_eq!(vm.observe(), Observed::Stopped);
    Ok(())
}

/// A dead process is seen in /proc until the lab's process 1 reaps it, which is nobody's but the lab's to do.
fn reaped(pid: u32) -> Result<()> {
    until("the reaping of the old QEMU", Duration::from_secs(20), || (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(()))
}

fn stop(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let pid = vm.pid().unwrap();
    let told = ask(&agent(lab)?, "stop")?.done();
    reaped(pid)?;
    assert_eq!((processes(), vm.scope(), vm.observe()), (vec![], vec![], Observed::Stopped));
    assert_eq!((&told.body["state_after"], &told.body["qemu_after"]), (&json!("stopped"), &json!(null)));

    let before = Stamp::of(vm);
    // Already stopped wins over a lock of PVE's.
    let lock = wedge::config_lock(&lab.host, "backup")?;
    let again = ask(&agent(lab)?, "stop")?.done();
    lock.now();
    before.untouched(vm, "stop of a stopped VM");
    assert_eq!((&again.body["already"], again.steps().len()), (&json!(true), 0));
    Ok(())
}

fn start(lab: &Lab) -> Result<()> {
    let vm = lab.stopped()?;
    let told = ask(&agent(lab)?, "start")?.done();
    assert_eq!((vm.observe(), told.steps()), (state("running"), vec!["qm-start".into(), "observe".into()]));
    assert_eq!(told.body["state_before"], "stopped");
    // Running already wins over a lock of PVE's.
    let lock = wedge::config_lock(&lab.host, "backup")?;
    let again = ask(&agent(lab)?, "start")?.done();
    lock.now();
    assert_eq!(again.body["already"], true);
    vm.wait_for_ssh(BOOT)
}

fn cycle_of_stopped(lab: &Lab) -> Result<()> {
    let vm = lab.stopped()?;
    let ssh = agent(lab)?;
    // PVE's way to remember that a VM is on disk: `qm start` takes it away.
    let lock = wedge::config_lock(&lab.host, "suspended")?;
    let seen = ask(&ssh, "status")?.done();
    assert!(seen.message().contains("suspended it to disk") && !seen.message().contains("unlock"), "{}", seen.message());
    let told = ask(&ssh, "cycle")?.done();
    lock.now();
    assert_eq!((vm.observe(), told.steps()), (state("running"), vec!["qm-start".into(), "observe".into()]));
    assert!(!told.message().contains("was stopped"), "nobody stopped it: {}", told.message());
    Ok(())
}

fn qm_lies(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let before = Stamp::of(vm);
    let lying = qm_script(lab, "echo 'status: stopped'; exit 0")?;
    let told = ask(&agent(lab)?, "stop")?;
    drop(lying);
    assert_eq!((&told.body["outcome"], &told.body["state_after"]), (&json!("failed"), &json!("running")), "{:#}", told.body);
    before.untouched(vm, "a qm that lies");
    Ok(())
}

fn qm_exits_255(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let sour = qm_script(lab, "/usr/sbin/qm.real \"$@\"; echo 'ipcc_send_rec[1] failed: Unknown error -1' >&2; exit 255")?;
    let told = ask(&agent(lab)?, "stop")?.done();
    drop(sour);
    let step = told.answer.events_of("step").into_iter().find(|step| step["outcome"] == "failed").expect("the step failed");
    assert!(step["detail"].as_str().unwrap().contains("ipcc_send_rec[1] failed"), "{step}");
    assert_eq!(vm.observe(), Observed::Stopped);
    Ok(())
}

fn cycle_retries(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let old = vm.pid();
    let once =
        "[ \"$1\" = start ] && [ ! -e /run/lab/failed-once ] && { touch /run/lab/failed-once; echo 'start failed: no luck'; exit 255; }\n";
    let flaky = qm_script(lab, &format!("{once}exec /usr/sbin/qm.real \"$@\""))?;
    let told = ask(&agent(lab)?, "cycle")?.done();
    drop(flaky);
    assert_eq!(told.steps(), ["qm-stop", "qm-start", "qm-start", "observe"]);
    assert!(vm.observe() == state("running") && vm.pid() != old);
    Ok(())
}
