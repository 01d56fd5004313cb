//! What is proved impossible or harmful (PROTOCOL.md, section 8, "What stands in the way"): refused with 6, and nothing is sent.

use std::fs;
use std::time::Duration;

use lab::fuse::Hang;
use lab::installed::{Stamp, agent, ask, look, prompt};
use lab::lab::Scenario;
use lab::process::until;
use lab::qemu_cmd::{CONF, PID_FILE, SCOPE};
use lab::{Lab, Observed, Result, wedge};
use serde_json::json;

use crate::refused::refused;

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("when_no_node_has_the_vm_then_mutations_are_refused", missing),
    ("when_the_vm_is_on_another_node_then_reads_answer_and_mutations_are_refused", elsewhere),
    ("when_there_is_no_quorum_then_start_and_cycle_are_refused_and_reset_and_stop_work", no_quorum),
    ("when_ha_manages_the_vm_then_the_ha_manager_command_is_named", ha),
    ("when_ha_ignores_the_vm_then_verbs_work", ha_ignored),
    ("when_etc_pve_hangs_then_reads_answer_and_only_reset_acts", pve_hung),
    ("when_etc_pve_is_gone_then_the_vm_is_not_taken_for_missing", pve_gone),
    ("when_the_guest_powered_off_then_start_says_cycle_and_cycle_works", shutdown),
    ("when_the_vm_is_stopped_then_reset_is_refused", reset_of_stopped),
    ("when_the_pidfile_is_gone_then_the_process_is_found_and_nothing_is_started_beside_it", survivor),
    ("when_the_scope_is_not_there_then_a_running_vm_is_not_taken_for_stopped", no_scope),
    ("when_the_pidfile_names_another_process_then_that_one_is_left_alone", reused_pid),
    ("when_qemu_was_killed_behind_everyones_back_then_start_works", stale_pidfile),
    ("when_another_task_holds_pves_file_lock_then_reset_waits_and_does_not_send", config_flock),
    ("when_another_task_holds_pves_file_lock_then_nothing_is_stopped_that_could_not_be_started", config_flock_before_qm),
    ("when_the_configuration_asks_for_more_memory_than_the_host_has_then_a_running_vm_is_left_running", too_much_memory),
];

const MUTATING: [&str; 4] = ["reset", "stop", "start", "cycle"];

fn vm_list(ids: &str) {
    fs::write("/etc/pve/.vmlist", format!("{{\n\"version\": 2,\n\"ids\": {{{ids}}}\n\n}}\n")).unwrap();
}

const HERE: &str = "\n\"102\": { \"node\": \"pve\", \"type\": \"qemu\", \"version\": 1 }";

fn missing(lab: &Lab) -> Result<()> {
    let vm = lab.stopped()?;
    fs::rename(CONF, "/etc/pve/102.conf.away").unwrap();
    vm_list("");
    let mut before = Stamp::of(vm);
    for verb in MUTATING {
        refused(vm, &mut before, &agent(lab)?, verb, 6, "No node of this cluster has a VM 102")?;
    }
    let status = ask(&agent(lab)?, "status")?.done();
    fs::rename("/etc/pve/102.conf.away", CONF).unwrap();
    vm_list(HERE);
    assert_eq!(status.body["state_after"], "missing");
    Ok(())
}

fn elsewhere(lab: &Lab) -> Result<()> {
    let vm = lab.stopped()?;
    fs::create_dir_all("/etc/pve/nodes/other/qemu-server").unwrap();
    fs::rename(CONF, "/etc/pve/nodes/other/qemu-server/102.conf").unwrap();
    vm_list("\n\"102\": { \"node\": \"other\", \"type\": \"qemu\", \"version\": 2 }");
    let mut before = Stamp::of(vm);
    for verb in MUTATING {
        refused(vm, &mut before, &agent(lab)?, verb, 6, "is not on this node but on other. Call pve-verb on other.")?;
    }
    for read in ["status", "forensics"] {
        let told = ask(&agent(lab)?, read)?.done();
        assert_eq!((told.code().as_str(), &told.body["state_after"]), ("elsewhere", &json!("elsewhere")), "{read}");
    }
    fs::rename("/etc/pve/nodes/other/qemu-server/102.conf", CONF).unwrap();
    vm_list(HERE);
    Ok(())
}

fn no_quorum(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    lab.host.set_quorum(false)?;
    let mut before = Stamp::of(vm);
    refused(vm, &mut before, &agent(lab)?, "cycle", 6, "no quorum, so what is stopped now could not be started again")?;
    // Running already wins over what a start would need; and a paused VM goes on without it.
    assert_eq!(ask(&agent(lab)?, "start")?.done().body["already"], true);
    before.untouched(vm, "start of a running VM");
    vm.qmp("stop", json!({}))?;
    ask(&agent(lab)?, "start")?.done();
    ask(&agent(lab)?, "reset")?.done();
    ask(&agent(lab)?, "stop")?.done();
    refused(vm, &mut Stamp::of(vm), &agent(lab)?, "start", 6, "no quorum, so nothing can be started")?;
    lab.host.set_quorum(true)
}

fn ha(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    lab.host.set_ha(Some("started"))?;
    assert_eq!(ask(&agent(lab)?, "start")?.done().body["already"], true, "running already wins over HA");
    vm.qmp("stop", json!({}))?;
    let mut before = Stamp::of(vm);
    for (verb, command) in [
        ("stop", "`ha-manager crm-command stop vm:102 60` (or `ha-manager set vm:102 --state stopped`)"),
        ("start", "`ha-manager set vm:102 --state started`"),
        ("cycle", "`ha-manager crm-command stop vm:102 60`, wait for stopped, then `ha-manager set vm:102 --state started`"),
    ] {
        refused(vm, &mut before, &agent(lab)?, verb, 6, command)?;
    }
    vm.qmp("cont", json!({}))?;
    // Only reset acts directly.
    ask(&agent(lab)?, "reset")?.done();
    lab.host.set_ha(None)
}

fn ha_ignored(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    lab.host.set_ha(Some("ignored"))?;
    ask(&agent(lab)?, "cycle")?.done();
    assert_eq!(vm.observe(), Observed::State("running".into()));
    lab.host.set_ha(None)
}

fn pve_hung(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let hung = wedge::etc_pve_hung(Hang::Killable)?;
    let mut before = Stamp::of(vm);
    let status = prompt(&agent(lab)?, "status", Duration::from_secs(4))?.done();
    assert_eq!(status.code(), "pve-unresponsive");
    let forensics = prompt(&agent(lab)?, "forensics", Duration::from_secs(16))?.done();
    assert_eq!(forensics.probe("pve/102")["outcome"], "timed_out");
    for verb in ["start", "cycle", "stop"] {
        let told = refused(vm, &mut before, &agent(lab)?, verb, 6, "`systemctl restart pve-cluster`")?;
        assert!(told.answer.wall < Duration::from_secs(16), "{verb}: {:?}", told.answer.wall);
    }
    let reset = ask(&agent(lab)?, "reset")?.done();
    drop(hung);
    assert!(reset.body["degraded"].to_string().contains("/etc/pve could not be read"), "{}", reset.body["degraded"]);
    assert_eq!(vm.observe(), Observed::State("running".into()));
    Ok(())
}

fn pve_gone(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    lab::namespace::tmpfs("/etc/pve", "mode=755")?;
    let mut before = Stamp::of(vm);
    let status = look(&agent(lab)?, "status")?.done();
    assert_eq!(status.code(), "pve-unresponsive");
    for verb in ["cycle", "start"] {
        refused(vm, &mut before, &agent(lab)?, verb, 6, "`systemctl restart pve-cluster`")?;
    }
    lab.host.console(&["/bin/umount", "/etc/pve"], Duration::from_secs(5))?.success("umount").map(drop)
}

fn shutdown(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    vm.guest_last("sleep 0.3; poweroff -f")?;
    until("the guest's power-off", Duration::from_secs(60), || (vm.observe() == Observed::State("shutdown".into())).then_some(()))?;
    let told = refused(vm, &mut Stamp::of(vm), &agent(lab)?, "start", 6, "is in shutdown: its guest powered off")?;
    assert!(told.message().contains("Use cycle"), "{}", told.message());
    ask(&agent(lab)?, "cycle")?.done();
    assert_eq!(vm.observe(), Observed::State("running".into()));
    Ok(())
}

fn reset_of_stopped(lab: &Lab) -> Result<()> {
    let vm = lab.stopped()?;
    refused(vm, &mut Stamp::of(vm), &agent(lab)?, "reset", 6, "is stopped, so there is nothing to reset. Use start.")?;
    Ok(())
}

fn survivor(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let pid = vm.pid().unwrap();
    fs::remove_file(PID_FILE).unwrap();
    assert!(String::from_utf8_lossy(&wedge::other_qm(&["status", "102"])?.stdout).contains("status: stopped"), "for qm it is stopped");
    let status = ask(&agent(lab)?, "status")?.done();
    assert_eq!((status.code().as_str(), &status.body["state_after"]), ("survivor", &json!("survivor")));
    let mut before = Stamp::of(vm);
    for verb in MUTATING {
        refused(vm, &mut before, &agent(lab)?, verb, 6, "a part of its old QEMU still holds the disk")?;
    }
    fs::write(PID_FILE, format!("{pid}\n")).unwrap();
    assert!(vm.healthy());
    Ok(())
}

fn no_scope(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let pid = vm.pid().unwrap();
    let before = Stamp::of(vm);
    lab.host.console(&["/bin/umount", "-l", "/sys/fs/cgroup"], Duration::from_secs(5))?.success("umount")?;
    assert!(!fs::exists(SCOPE).unwrap());
    let with = look(&agent(lab)?, "status");
    fs::remove_file(PID_FILE).unwrap();
    let without = look(&agent(lab)?, "status");
    fs::write(PID_FILE, format!("{pid}\n")).unwrap();
    let mounted = lab.host.console(&["/bin/mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"], Duration::from_secs(5))?;
    mounted.success("mount")?;
    assert_eq!(with?.body["state_after"], "running");
    assert_eq!(without?.body["state_after"], "survivor", "without pidfile and scope /proc still shows it");
    before.untouched(vm, "a host without the scope");
    Ok(())
}

fn reused_pid(lab: &Lab) -> Result<()> {
    let vm = lab.stopped()?;
    let (pid, undo) = wedge::reused_pid()?;
    let alive = || fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n");
    let stop = ask(&agent(lab)?, "stop")?.done();
    assert_eq!(stop.body["already"], true);
    assert!(alive());
    ask(&agent(lab)?, "cycle")?.done();
    assert!(alive(), "the process that the pidfile named was killed");
    let running = vm.pid().unwrap();
    undo.now();
    fs::write(PID_FILE, format!("{running}\n")).unwrap();
    assert_eq!(vm.observe(), Observed::State("running".into()));
    Ok(())
}

fn stale_pidfile(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    wedge::stale_pidfile(vm)?;
    let status = ask(&agent(lab)?, "status")?.done();
    assert_eq!((status.code().as_str(), &status.body["state_after"]), ("stopped", &json!("stopped")));
    ask(&agent(lab)?, "start")?.done();
    assert_eq!(vm.observe(), Observed::State("running".into()));
    Ok(())
}

/// Another process holds PVE's file lock until it is told to go.
#[allow(clippy::zombie_processes, reason = "a failing scenario ends its pid namespace, and with it the child")]
fn flock_held() -> Result<std::process::Child> {
    let lock = ["--no-fork", "/run/lock/qemu-server/lock-102.conf", "sleep", "300"];
    let holder = std::process::Command::new("flock").args(lock).spawn().unwrap();
    // With the lock taken it becomes `sleep`.
    let name = format!("/proc/{}/comm", holder.id());
    until("the file lock", Duration::from_secs(20), || (fs::read_to_string(&name).ok()? == "sleep\n").then_some(()))?;
    Ok(holder)
}

fn config_flock(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let mut holder = flock_held()?;
    let result = refused(vm, &mut Stamp::of(vm), &agent(lab)?, "reset", 4, "holds its file lock");
    let _gone = holder.kill();
    let _reaped = holder.wait();
    result?;
    // A lock that can't be opened is in nobody's hands.
    fs::rename("/run/lock/qemu-server", "/run/lock/qemu-server.away").unwrap();
    let told = ask(&agent(lab)?, "reset");
    fs::rename("/run/lock/qemu-server.away", "/run/lock/qemu-server").unwrap();
    let told = told?.done();
    assert!(told.body["degraded"].to_string().contains("file lock on the VM's configuration could not be taken"), "{:#}", told.body);
    Ok(())
}

fn config_flock_before_qm(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let planned = ask(&agent(lab)?, "cycle --dry-run")?.done();
    let said = planned.message();
    assert!(said.contains("PVE's file lock is free; 256 MiB of memory asked for, about "), "{said}");
    let mut holder = flock_held()?;
    let by = format!("(sleep, pid {}) works on VM 102's configuration and holds its file lock", holder.id());
    let tried = || -> Result<()> {
        let mut before = Stamp::of(vm);
        for line in ["stop", "cycle", "cycle --dry-run", "reset --dry-run"] {
            refused(vm, &mut before, &agent(lab)?, line, 4, &by)?;
        }
        assert_eq!(ask(&agent(lab)?, "start")?.done().body["already"], true, "what needs nothing waits for nobody");
        // A QEMU that would be killed too: `qm start` would give up behind it.
        let pid = vm.pid();
        let hung = wedge::qemu_stopped(vm)?;
        let told = ask(&agent(lab)?, "cycle")?;
        assert_eq!((told.answer.status, told.code().as_str(), told.steps().len()), (4, "qemu-unresponsive", 0), "{:#}", told.body);
        drop(hung);
        assert_eq!((vm.pid(), vm.observe()), (pid, Observed::State("running".into())));
        let vm = lab.stopped()?;
        refused(vm, &mut Stamp::of(vm), &agent(lab)?, "start", 4, &by).map(drop)
    };
    let tried = tried();
    let _gone = holder.kill();
    let _reaped = holder.wait();
    tried?;
    ask(&agent(lab)?, "start")?.done();
    Ok(())
}

fn too_much_memory(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    // Pending, so the QEMU that runs has what it needs, and the next one would not start.
    lab.host.set_conf(|conf| conf.pending.set("memory", "4000000"))?;
    let overcommit = fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap();
    if overcommit.trim() == "1" {
        // This kernel promises anything to anybody: nothing is proved, and it is said.
        let told = ask(&agent(lab)?, "cycle --dry-run")?.done();
        assert!(told.body["degraded"].to_string().contains("asks for 4000000 MiB of memory"), "{:#}", told.body);
        return Ok(());
    }
    let mut before = Stamp::of(vm);
    for line in ["cycle", "cycle --dry-run"] {
        let told = refused(vm, &mut before, &agent(lab)?, line, 6, "its configuration asks for 4000000 MiB, and this host can give ")?;
        assert!(told.message().contains("the VM was left as it is"), "{}", told.message());
    }
    assert_eq!(ask(&agent(lab)?, "start")?.done().body["already"], true, "what runs already needs no more");
    ask(&agent(lab)?, "stop")?.done();
    refused(vm, &mut Stamp::of(vm), &agent(lab)?, "start", 6, "its configuration asks for 4000000 MiB")?;
    lab.stopped()?;
    ask(&agent(lab)?, "start")?.done();
    Ok(())
}
