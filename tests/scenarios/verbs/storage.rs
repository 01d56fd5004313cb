//! A VM whose disk does not answer: what is seen of it, what a reset would do, what a cycle cures.

use std::fs;
use std::path::Path;
use std::time::Duration;

use lab::bundle::{in_time, judged};
use lab::host::DISK;
use lab::installed::{Stamp, agent, ask, look};
use lab::lab::Scenario;
use lab::process::until;
use lab::vm::BOOT;
use lab::{Lab, Observed, Result, wedge};
use serde_json::json;

use crate::refused::refused;

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("when_the_block_layer_stalls_then_a_ping_proves_nothing_reset_is_refused_and_cycle_cures", block_stall),
    ("when_the_disk_is_full_then_start_and_reset_are_refused_and_cycle_cures", io_error),
    ("when_a_worker_thread_is_in_d_then_it_is_named_and_what_survives_a_kill_is_never_stopped", d_state),
    ("when_qemus_main_thread_is_in_d_then_that_is_the_proof_and_a_kill_that_does_not_end_it_is_told", main_thread_in_d),
];

fn block_stall(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let old = vm.pid();
    let stall = wedge::block_stall(vm)?;
    let process = (vm.pid(), vm.start_ticks());
    let told = in_time(&["guest/ping.json"], || look(&agent(lab)?, "forensics"))?.told;
    assert_eq!(told.code(), "block-stalled", "{:#}", told.body);
    assert_eq!(told.probe("guest/ping")["outcome"], "captured", "the agent answers all the same");
    let reset = ask(&agent(lab)?, "reset")?;
    assert_eq!((reset.answer.status, reset.steps().len()), (6, 0), "{:#}", reset.body);
    assert!(reset.message().contains("block-stalled") && reset.message().contains("Use cycle"), "{}", reset.message());
    assert_eq!((vm.observe(), (vm.pid(), vm.start_ticks())), (Observed::State("running".into()), process), "QMP must be alive still");
    // Two polls show it as well.
    look(&agent(lab)?, "status")?.done();
    std::thread::sleep(Duration::from_millis(1500));
    let status = look(&agent(lab)?, "status")?.done();
    assert_eq!(status.code(), "block-stalled", "{:#}", status.body);
    ask(&agent(lab)?, "cycle")?.done();
    stall.forget();
    assert_ne!(vm.pid(), old);
    vm.wait_for_ssh(BOOT)?;
    assert!(vm.healthy());
    Ok(())
}

fn io_error(lab: &Lab) -> Result<()> {
    let vm = lab.stopped()?;
    let folder = Path::new(DISK).parent().unwrap().to_str().unwrap();
    let disk = fs::read(DISK).unwrap();
    lab::namespace::tmpfs(folder, &format!("size={}k", disk.len() / 1024 + 1500))?;
    fs::write(DISK, &disk).unwrap();
    vm.boot()?;
    vm.guest_background("dd if=/dev/urandom of=/data/fill bs=64k oflag=direct")?;
    until("the io-error", Duration::from_secs(60), || (vm.observe() == Observed::State("io-error".into())).then_some(()))?;
    let mut before = Stamp::of(vm);
    let start = refused(vm, &mut before, &agent(lab)?, "start", 6, "is in io-error: a write to the host's storage failed")?;
    assert!(start.message().contains("Make room on the host's storage, then use cycle"), "{}", start.message());
    refused(vm, &mut before, &agent(lab)?, "reset", 6, "is in io-error and has an iothread")?;
    assert_eq!(look(&agent(lab)?, "status")?.done().code(), "paused");
    lab.host.console(&["/bin/mount", "-o", "remount,size=200m", folder], Duration::from_secs(5))?.success("make room")?;
    ask(&agent(lab)?, "cycle")?.done();
    vm.wait_for_ssh(BOOT)?;
    vm.kill()?;
    // The kernel may still be closing the files of the QEMU that was killed.
    until("the unmounting", Duration::from_secs(20), || {
        let end = lab.host.console(&["/bin/umount", folder], Duration::from_secs(5)).ok()?;
        (end.status == 0).then_some(())
    })
}

/// What a dead storage does to QEMU itself: its main thread waits for a file.
fn main_thread_in_d(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let pid = vm.pid().unwrap();
    let hung = wedge::disk_hung("/run/lab/hung")?;
    let mut monitor = vm.monitor()?;
    let picture = json!({"filename": "/run/lab/hung/screen.ppm"});
    let asked = std::thread::spawn(move || monitor.call("screendump", picture, Duration::from_secs(300)).is_ok());
    let in_d = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") D "));
    until("the main thread in D", Duration::from_secs(30), || in_d().then_some(()))?;
    let bundle = judged(lab, "qemu-unresponsive", Some("cycle"))?;
    let said = bundle.finding("qemu-unresponsive");
    assert!(said.contains("its main thread is in D at "), "{said}");

    let stop = ask(&agent(lab)?, "stop")?;
    assert_eq!(stop.answer.status, 10, "{:#}", stop.body);
    assert!(stop.message().contains("tate D"), "{}", stop.message());
    let mut before = Stamp::of(vm);
    for verb in ["start", "reset"] {
        refused(vm, &mut before, &agent(lab)?, verb, 6, "")?;
    }
    assert!(in_d(), "it is there all the time");
    drop(hung);
    assert!(!asked.join().unwrap(), "it was killed");
    until("its end", Duration::from_secs(30), || vm.scope().is_empty().then_some(()))?;
    ask(&agent(lab)?, "start")?.done();
    vm.wait_for_ssh(BOOT)
}

fn d_state(lab: &Lab) -> Result<()> {
    let vm = lab.stopped()?;
    let backend = wedge::file_backend(&lab.host)?;
    vm.boot()?;
    backend.stop()?;
    vm.guest_background("dd if=/dev/zero of=/data/x bs=4k count=64 oflag=direct")?;
    let pid = vm.pid().unwrap();
    let in_d = || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        threads.filter(|thread| fs::read_to_string(thread.path().join("stat")).is_ok_and(|stat| stat.contains(") D "))).count()
    };
    until("a thread in D", Duration::from_secs(30), || (in_d() > 0).then_some(()))?;
    let leader = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    assert!(!leader.contains(") D "), "the leader looks idle: {leader}");
    let bundle = in_time(&["process/threads.1.json"], || look(&agent(lab)?, "forensics"))?;
    let told = &bundle.told;
    assert_eq!(told.code(), "block-stalled", "{:#}", told.body);
    let said = told.answer.events_of("assessment")[0].to_string();
    assert!(said.contains("iou-wrk") || said.contains("worker"), "the thread is not named: {said}");
    let threads = bundle.text("process/threads.1.json");
    assert!(threads.contains("\"D\""), "{threads}");

    // Hung as well: the kill is proved, and does not end it.
    wedge::qemu_stopped(vm)?.forget();
    let stop = ask(&agent(lab)?, "stop")?;
    assert_eq!((stop.answer.status, &stop.body["state_after"]), (10, &json!("survivor")), "{:#}", stop.body);
    assert!(stop.message().contains("State D") || stop.message().contains("state D"), "{}", stop.message());
    assert!(String::from_utf8_lossy(&wedge::other_qm(&["status", "102"])?.stdout).contains("stopped"), "for qm it is stopped");
    let mut before = Stamp::of(vm);
    assert_eq!(ask(&agent(lab)?, "status")?.done().code(), "survivor");
    for verb in ["start", "cycle", "stop", "reset"] {
        refused(vm, &mut before, &agent(lab)?, verb, 6, "still holds the disk")?;
    }
    backend.go_on()?;
    until("the survivor's end", Duration::from_secs(30), || (in_d() == 0 && vm.scope().is_empty()).then_some(()))?;
    ask(&agent(lab)?, "start")?.done();
    vm.kill()
}
