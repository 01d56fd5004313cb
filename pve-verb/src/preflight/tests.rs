//! What stands in the way of which plan.

use super::*;
use crate::procfs::Identity;
use proto::{QemuProcess, Vmid};

fn seen(process: Process, lock: Option<&str>) -> Observation {
    Observation {
        config: Config::Here,
        lock: lock.map(str::to_owned),
        lock_task: None,
        tasks: Vec::new(),
        quorum: Some(true),
        ha: Ha::Unmanaged,
        process,
        pidfile_stale: None,
        scope: None,
        survivor: None,
        survivor_searched: true,
        volumes_missing: Some(Vec::new()),
        memory: None,
        threads_d: Vec::new(),
        main_thread: None,
    }
}

fn qemu(pid: u32, started: u64) -> Process {
    Process::Running(Identity {
        pid,
        started,
        age_ms: 1,
        argv0: "/usr/bin/kvm".to_owned(),
        comm: "kvm".to_owned(),
        state: "S".to_owned(),
        exe: None,
        cgroup: None,
    })
}

fn kill() -> Plan {
    let process = QemuProcess { pid: 9, started: 5 };
    let main_thread =
        crate::procfs::MainThread { process, at_ms: 0, state: "T".to_owned(), wchan: String::new(), switches: None, ticks: 0 };
    Plan::Kill(Unresponsive { qemu: process, why: String::new(), main_thread })
}

#[test]
fn a_lock_of_pves_stands_in_the_way_as_it_does_for_qm() {
    for (lock, allowed) in [("backup", "Resume"), ("suspended", "Start"), ("snapshot", ""), ("migrate", ""), ("an invalid one", "")] {
        for (name, plan) in
            [("Reset", Plan::Reset), ("Resume", Plan::Resume), ("Start", Plan::Start), ("Stop", Plan::Stop), ("Kill", kill())]
        {
            assert_eq!(forbids(lock, &plan), name != allowed, "{lock}, {name}");
        }
        assert!(!forbids(lock, &Plan::Already), "{lock}");
    }
}

#[test]
fn what_changed_since_the_evidence_was_taken_stops_what_it_harms() {
    let outcome = |before: &Observation, now: &Observation, plan: &Plan| match unchanged(before, now, plan, Verb::Reset, Vmid::DEVVM) {
        Ok(()) => "goes on",
        Err(stop) if format!("{stop:?}").contains("RefusedBusy") => "busy",
        Err(_) => "precondition",
    };
    let before = seen(qemu(9, 5), None);
    let locked = seen(qemu(9, 5), Some("migrate"));
    for (now, plan, wanted) in [
        (before.clone(), Plan::Reset, "goes on"),
        (locked.clone(), Plan::Reset, "busy"),
        (locked.clone(), Plan::Stop, "busy"),
        (seen(qemu(9, 5), Some("backup")), Plan::Resume, "goes on"),
        // The same pid, another process: not the one that the evidence is of.
        (seen(qemu(9, 6), None), Plan::Reset, "precondition"),
        (seen(qemu(10, 7), None), Plan::Resume, "precondition"),
        (seen(Process::Absent, None), Plan::Reset, "precondition"),
        // `qm` finds the VM by itself, and a stopped one needs no stop.
        (seen(Process::Absent, None), Plan::Stop, "goes on"),
        (seen(Process::Unknown("it hung".to_owned()), None), Plan::Reset, "goes on"),
    ] {
        assert_eq!(outcome(&before, &now, &plan), wanted, "{plan:?} with {now:?}");
    }
    assert_eq!(outcome(&locked, &locked, &Plan::Start), "goes on", "it was judged before");
}

#[test]
fn only_a_stop_by_a_proved_kill_under_a_hung_pve_goes_on_beside_somebody_s_file_lock() {
    let hung = Config::Unreadable("it hung".to_owned());
    for (plan, verb, config, goes) in [
        (kill(), Verb::Stop, &hung, true),
        (kill(), Verb::Stop, &Config::Here, false),
        (kill(), Verb::Cycle, &hung, false),
        (kill(), Verb::Cycle, &Config::Here, false),
        (Plan::Stop, Verb::Stop, &hung, false),
        (Plan::Start, Verb::Start, &Config::Here, false),
    ] {
        assert!(needs_config_lock(&plan), "{plan:?}");
        assert_eq!(goes_without(&plan, verb, config), goes, "{plan:?}, {verb}, {config:?}");
    }
    assert!(needs_config_lock(&Plan::Reset) && !needs_config_lock(&Plan::Resume) && !needs_config_lock(&Plan::Already));
}
