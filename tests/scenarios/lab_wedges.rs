//! Shows that every fault the lab can cause does what it is called, and that its undo undoes it.
//!
//! No program under test takes part; what Breakglass does about these faults is in the other scenario files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::fuse::Hang;
use lab::lab::{Scenario, run_scenarios};
use lab::process::{run, start, until};
use lab::wedge::Backend;
use lab::{Host, Lab, Observed, Result, wedge};

const SCENARIOS: &[Scenario] = &[
    ("when_a_key_is_authorized_then_sshd_runs_its_forced_command_only", forced_command),
    ("when_etc_pve_hangs_then_its_readers_wait_until_it_is_let_go", etc_pve_hung),
    ("when_a_disk_hangs_then_its_writers_are_deaf_to_sigkill", disk_hung),
    ("when_a_disk_is_full_then_writing_fails_and_reading_works", disk_full),
    ("when_a_disk_is_read_only_then_writing_fails", disk_read_only),
    ("when_the_configuration_is_locked_then_the_lock_stands_there", config_lock),
    ("when_a_task_lives_then_the_active_list_names_it", live_task),
    ("when_the_qmp_socket_is_held_then_nobody_else_is_greeted", qmp_held),
    ("when_the_guest_disk_is_full_then_the_guest_says_so", guest_disk_full),
    ("when_the_guest_drops_ssh_then_the_agent_still_answers", guest_ssh_dropped),
    ("when_the_guest_panics_then_qemu_runs_and_the_agent_is_silent", guest_panic),
    ("when_the_guest_is_out_of_memory_then_qemu_runs_and_ssh_is_dead", guest_oom),
    ("when_qemu_is_killed_then_its_pidfile_is_stale", stale_pidfile),
    ("when_a_pid_is_reused_then_the_pidfile_names_another_process", reused_pid),
    ("when_an_nbd_backend_stops_then_writes_are_flat_and_qmp_answers", nbd_backend),
    ("when_the_disk_s_file_system_stops_then_a_thread_of_qemu_is_in_state_d", file_backend),
];

const SHORT: Duration = Duration::from_secs(2);
const AMPLE: Duration = Duration::from_secs(20);

fn main() {
    run_scenarios(SCENARIOS, |_| Ok(()))
}

fn running() -> Observed {
    Observed::State("running".into())
}

fn forced_command(lab: &Lab) -> Result<()> {
    let stub = "#!/bin/sh\necho \"$@: $SSH_ORIGINAL_COMMAND\"\nid -un\nexit 7\n";
    lab::host::write("/run/lab/stub", stub, 0o755)?;
    lab.host.install_program(Path::new("/run/lab/stub"), "/usr/sbin/pve-verb")?;
    let ssh = lab.host.authorize("reader", "--allow read")?;
    let answer = ssh.call("status --json; rm -rf /")?;
    assert_eq!(answer.lines()[0], "forced --key-name reader --allow read: status --json; rm -rf /", "{answer:?}");
    assert_eq!((answer.status, answer.lines()[1].as_str()), (7, "root"));
    let odd = [b"a\x01\xff\t".as_slice(), b" \"'$(id)\n"].concat();
    assert!(ssh.call(&odd)?.stdout.windows(odd.len()).any(|part| part == odd), "the bytes were changed on their way");
    lab.host.revoke_all()?;
    assert_eq!(ssh.call("status")?.status, 255);
    fs::remove_file("/usr/sbin/pve-verb").unwrap();
    Ok(())
}

fn etc_pve_hung(_: &Lab) -> Result<()> {
    for how in [Hang::Killable, Hang::Uninterruptible] {
        let hung = wedge::etc_pve_hung(how)?;
        let end = run(Command::new("/usr/bin/stat").arg("/etc/pve/qemu-server"), SHORT)?;
        assert!(end.timed_out, "{how:?}: {end:?}");
        drop(hung);
        assert!(Path::new("/etc/pve/qemu-server/102.conf").exists());
    }
    Ok(())
}

fn disk_hung(_: &Lab) -> Result<()> {
    let hung = wedge::disk_hung("/var/lib/pve-verb")?;
    let writer = start(Command::new("/usr/bin/touch").arg("/var/lib/pve-verb/x"), &[])?;
    let pid = writer.pid();
    let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // One that comes and goes in D is only being loaded.
    let waits = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.contains("State:\tD").then(|| status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).map(str::to_owned))
    };
    until("a writer that stays in state D", AMPLE, || {
        let then = waits()?;
        std::thread::sleep(Duration::from_millis(300));
        (waits()? == then).then_some(())
    })?;
    lab::vm::send(pid, rustix::process::Signal::KILL)?;
    std::thread::sleep(Duration::from_millis(300));
    assert!(stat().contains(") D "), "{}", stat());
    drop(hung);
    assert_ne!(writer.finish(2 * AMPLE)?.status, 0);
    fs::write("/var/lib/pve-verb/x", "again").unwrap();
    Ok(())
}

fn disk_full(_: &Lab) -> Result<()> {
    fs::create_dir_all("/var/lib/pve-verb").unwrap();
    fs::write("/var/lib/pve-verb/before", "kept").unwrap();
    let full = wedge::disk_full("/var/lib/pve-verb")?;
    assert_eq!(fs::read_to_string("/var/lib/pve-verb/before").unwrap(), "kept");
    let error = fs::write("/var/lib/pve-verb/new", "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    full.now();
    fs::write("/var/lib/pve-verb/new", "x").unwrap();
    Ok(())
}

fn disk_read_only(_: &Lab) -> Result<()> {
    let read_only = wedge::disk_read_only("/var/log/pve-verb")?;
    let error = fs::write("/var/log/pve-verb/new", "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    read_only.now();
    fs::write("/var/log/pve-verb/new", "x").unwrap();
    Ok(())
}

fn config_lock(lab: &Lab) -> Result<()> {
    let lock = wedge::config_lock(&lab.host, "backup")?;
    assert_eq!(lab.host.conf()?.lock(), Some("backup"));
    lock.now();
    assert_eq!(lab.host.conf()?.to_text(), Host::default_conf());
    Ok(())
}

fn live_task(_: &Lab) -> Result<()> {
    let active = || fs::read_to_string("/var/log/pve/tasks/active").unwrap();
    let task = wedge::live_task("vzdump")?;
    assert!(active().starts_with("UPID:pve:") && active().contains(":vzdump:102:root@pam: 0\n"), "{}", active());
    task.now();
    assert_eq!(active(), "");
    Ok(())
}

fn qmp_held(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    let held = wedge::qmp_held()?;
    assert!(lab::qmp::Qmp::connect(lab::qemu_cmd::QMP, SHORT).is_err());
    drop(held);
    assert!(lab::qmp::Qmp::connect(lab::qemu_cmd::QMP, AMPLE).is_ok());
    Ok(())
}

fn guest_disk_full(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let full = wedge::guest_disk_full(vm)?;
    assert_ne!(vm.guest("echo something > /data/new && sync")?.status, 0);
    full.now();
    assert!(vm.healthy());
    Ok(())
}

fn guest_ssh_dropped(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    wedge::guest_ssh_dropped(vm)?;
    assert!(vm.agent("guest-ping", AMPLE).is_ok());
    Ok(())
}

fn guest_panic(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    wedge::guest_panic(vm)?;
    assert_eq!(vm.observe(), running());
    assert!(vm.agent("guest-ping", SHORT).is_err());
    Ok(())
}

fn guest_oom(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    wedge::guest_oom(vm)?;
    assert_eq!(vm.observe(), running());
    Ok(())
}

fn stale_pidfile(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    wedge::stale_pidfile(vm)?;
    assert!(Path::new(lab::qemu_cmd::PID_FILE).exists() && Path::new(lab::qemu_cmd::QMP).exists());
    assert_eq!(vm.observe(), Observed::Stopped);
    Ok(())
}

fn reused_pid(lab: &Lab) -> Result<()> {
    let vm = lab.stopped()?;
    let (pid, undo) = wedge::reused_pid()?;
    assert_eq!(fs::read_to_string(lab::qemu_cmd::PID_FILE).unwrap(), format!("{pid}\n"));
    assert_eq!(vm.pid(), None);
    undo.now();
    assert!(!Path::new(lab::qemu_cmd::PID_FILE).exists());
    Ok(())
}

fn nbd_backend(lab: &Lab) -> Result<()> {
    backend_stops(lab, wedge::nbd_backend, |_| true)
}

fn file_backend(lab: &Lab) -> Result<()> {
    backend_stops(lab, wedge::file_backend, |pid| {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let stuck = threads.filter(|thread| fs::read_to_string(thread.path().join("stat")).is_ok_and(|stat| stat.contains(") D "))).count();
        stuck > 0
    })
}

fn backend_stops(lab: &Lab, backend: fn(&Host) -> Result<Backend>, stuck: fn(u32) -> bool) -> Result<()> {
    let vm = lab.stopped()?;
    let backend = backend(&lab.host)?;
    vm.boot()?;
    assert!(vm.healthy());
    backend.stop()?;
    vm.guest_background("dd if=/dev/zero of=/data/x bs=4k count=64 oflag=direct")?;
    // Without a request that waits, flat writes would show nothing.
    until("a request that waits", AMPLE, || (vm.waiting().ok()? > 0).then_some(()))?;
    let pid = vm.pid().unwrap();
    until("a thread that waits for the backend", AMPLE, || stuck(pid).then_some(()))?;
    let before = vm.writes()?;
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((vm.writes()?, vm.observe()), (before, running()));
    assert!(stuck(pid), "nothing waits any more");
    backend.go_on()?;
    assert!(vm.healthy());
    vm.kill()
}
