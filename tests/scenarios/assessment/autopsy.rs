//! The autopsy with the real gdb: every thread's backtrace where QEMU is wedged, QEMU as it was where it lives on, and a word where gdb is
//! not installed.

use std::fs;

use lab::bundle::Bundle;
use lab::installed::{GENEROUS, agent, ask, limits};
use lab::lab::Scenario;
use lab::{Lab, Observed, Result, wedge};

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("when_a_stalled_vm_is_cycled_then_every_thread_s_backtrace_is_in_the_bundle", stalled),
    ("when_an_autopsy_halts_a_healthy_qemu_then_it_runs_on_as_before", healthy),
    ("when_gdb_is_not_installed_then_the_bundle_says_so_and_the_verb_acts", absent),
];

/// QEMU's own threads by number, as `/proc` had them; the kernel's workers have no backtrace.
fn threads(bundle: &Bundle) -> Vec<u64> {
    let threads = bundle.json("process/threads.2.json");
    let own = threads["threads"].as_array().unwrap().iter().filter(|thread| !thread["name"].as_str().unwrap().starts_with("iou-"));
    own.map(|thread| thread["tid"].as_u64().unwrap()).collect()
}

/// The backtrace of each of them: its frames are numbered from 0.
fn backtraces(bundle: &Bundle) {
    let text = bundle.text("autopsy/threads.txt");
    let iothread = bundle.json("qmp/query-iothreads.json")[0]["thread-id"].as_u64().unwrap();
    let own = threads(bundle);
    assert!(own.len() >= 3 && own.contains(&iothread), "main thread, iothread and vCPU: {own:?}");
    // Workers come and go between the sample and the autopsy; these stay.
    for tid in [own[0], iothread] {
        let (_, of_it) = text.split_once(&format!("(LWP {tid})")).unwrap_or_else(|| panic!("no thread {tid} in {text}"));
        let frames = of_it.split("\nThread ").next().unwrap().lines().filter(|line| line.starts_with('#')).count();
        assert!(frames >= 3, "{frames} frames of thread {tid}: {text}");
    }
    // Where a thread rests is libc's, whose symbols every Debian has.
    assert!(text.contains("poll"), "{text}");
}

/// Three times at most, until gdb, and what its threads are compared with, had its time: it gets what the other probes leave of the evidence's seconds, and where a busy machine
/// leaves it none, the bundle says so and the verb acts all the same.
fn in_time(mut once: impl FnMut() -> Result<Bundle>) -> Result<Bundle> {
    let no_time = |why: &str| why.contains("gdb did not end within") || why.contains("took all the time that there is");
    let mut bundle = once()?;
    for _ in 0..2 {
        let late = bundle.is_late(&["process/threads.2.json", "qmp/query-iothreads.json"]);
        if late || bundle.why_not("autopsy/threads").is_some_and(|why| no_time(&why)) {
            bundle = once()?;
        }
    }
    Ok(bundle)
}

fn stalled(lab: &Lab) -> Result<()> {
    let bundle = in_time(|| {
        let stall = wedge::block_stall(lab.fresh()?)?;
        let told = ask(&agent(lab)?, "cycle")?.done();
        stall.forget();
        assert_eq!(told.code(), "block-stalled");
        Ok(Bundle::of(told))
    })?;
    backtraces(&bundle);
    Ok(())
}

fn healthy(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let before = (vm.pid(), vm.start_ticks());
    limits(&format!("{GENEROUS}[evidence]\nautopsy = \"always\"\n"))?;
    let bundle = in_time(|| Ok(Bundle::of(ask(&agent(lab)?, "reset")?.done())));
    limits(GENEROUS)?;
    let bundle = bundle?;
    backtraces(&bundle);
    let degraded = bundle.told.body["degraded"].to_string();
    assert!(!degraded.contains("traced") && !degraded.contains("stopped"), "{degraded}");
    assert_eq!((vm.pid(), vm.start_ticks()), before, "the same QEMU");
    assert_eq!(vm.observe(), Observed::State("running".into()));
    for task in fs::read_dir(format!("/proc/{}/task", before.0.unwrap())).unwrap().flatten() {
        // A worker of a pool may end meanwhile.
        let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
        assert!(status.contains("TracerPid:\t0") && !status.contains("State:\tT") && !status.contains("State:\tt"), "{status}");
    }
    Ok(())
}

fn absent(lab: &Lab) -> Result<()> {
    let stall = wedge::block_stall(lab.fresh()?)?;
    fs::rename("/usr/bin/gdb", "/usr/bin/gdb.away").unwrap();
    let told = ask(&agent(lab)?, "cycle");
    fs::rename("/usr/bin/gdb.away", "/usr/bin/gdb").unwrap();
    stall.forget();
    let bundle = Bundle::of(told?.done());
    assert!(!bundle.has("autopsy/threads.txt"));
    let why = bundle.why_not("autopsy/threads").unwrap();
    assert!(why.contains("gdb"), "{why}");
    Ok(())
}
