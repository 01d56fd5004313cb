//! `qm start`: the checks in the real one's order, then QEMU in its own scope, daemonized as PVE does it.
//!
//! Success means that QEMU daemonized, not that a guest boots. Cloud-init, hook scripts, network devices and PCI reservations are
//! absent.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::conf::{self, Conf};
use super::task::{self, Job};
use super::{Fail, Run, lock, out, process, pve, verbs};
use crate::qemu_cmd::command_line;
use crate::vm_conf::VmConf;

/// The hidden sub-command that enters a scope before it becomes QEMU.
pub const SCOPED: &str = "__scoped";
/// QEMU may need so many seconds until it daemonized, unless `--timeout` says otherwise.
const LIMIT: u64 = 30;

/// The worker of `qm start`.
pub fn work(job: &Job) -> Run {
    let vmid = job.vmid;
    let _lock = lock::take(vmid)?;
    let mut conf = conf::load(vmid)?;
    if conf.get("template") == Some("1") {
        return Err(Fail::die("you can't start a vm if it's a template"));
    }
    let running = process::running(vmid).is_some();
    if conf.has_lock("backup") && running {
        // A backup of a stopped VM has its QEMU already, paused.
        return verbs::resume_locked(job);
    }
    let suspended = conf.has_lock("suspended");
    if !job.skiplock && !suspended {
        conf.check_lock()?;
    }
    if running {
        return Err(Fail::die(format!("VM {vmid} already running")));
    }
    if conf.has_pending() {
        conf.apply_pending();
        conf.write(vmid)?;
    }
    disks(&conf)?;
    if suspended {
        out::say("Resuming suspended VM");
    }
    process::fresh_scope(vmid)?;
    for suffix in ["mon", "qmp", "pid", "vnc", "qga"] {
        // Stale ones of a QEMU that was killed.
        let _ = std::fs::remove_file(process::run_file(vmid, suffix));
    }
    launch(vmid, &conf, Duration::from_secs(job.timeout.filter(|seconds| *seconds > 0).unwrap_or(LIMIT)))?;
    if suspended {
        out::say("Resumed VM, removing state");
        conf.now.remove("lock");
        conf.now.remove("vmstate");
        conf.write(vmid)?;
    }
    Ok(())
}

/// QEMU's command line, `argv[0]` first. The laboratory has one VM, so it has one line.
pub fn line(vmid: u32, conf: &Conf) -> Run<Vec<String>> {
    if vmid != 102 {
        return Err(Fail::die(format!("the laboratory's stand-in for qm starts VM 102 only, not {vmid}")));
    }
    let line = command_line(&VmConf::parse(&conf.current_text()));
    Ok(line.into_iter().map(|word| word.to_string_lossy().into_owned()).collect())
}

fn disks(conf: &Conf) -> Run {
    for (_, disk) in VmConf::parse(&conf.current_text()).disks() {
        // Only what is on a storage of PVE's is checked; the laboratory also has network and absolute paths.
        if disk.volume.starts_with("local:") && !Path::new(&disk.path()).exists() {
            return Err(Fail::die(format!("volume '{}' does not exist", disk.volume)));
        }
    }
    Ok(())
}

/// Runs QEMU until it daemonized.
fn launch(vmid: u32, conf: &Conf, limit: Duration) -> Run {
    let args = line(vmid, conf)?;
    std::fs::create_dir_all(process::RUN).map_err(|why| Fail::die(format!("unable to create {}: {why}", process::RUN)))?;
    let cannot = |why: std::io::Error| Fail::die(format!("start failed: {why}"));
    // QEMU's second monitor, which only the laboratory has, lies there.
    std::fs::create_dir_all(pve::LAB).map_err(cannot)?;
    let program = std::env::current_exe().map_err(cannot)?;
    let (mut reader, writer) = std::io::pipe().map_err(cannot)?;
    let mut command = Command::new(program);
    command.arg0("qm").arg(SCOPED).arg(process::scope(vmid)).args(&args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(writer)).env_remove("QM_STANDIN_JOB");
    let mut child = command.spawn().map_err(cannot)?;
    drop(command);
    // QEMU's daemon lets go of stderr when it is ready; the thread ends then, or with us.
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = reader.read_to_end(&mut text);
        let _ = sender.send(text);
    });
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(cannot)? {
            break status;
        }
        let late = Instant::now() >= end;
        if let Err(fail) = if late { Err(Fail::die("got timeout")) } else { task::pause(Duration::from_millis(20)) } {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Fail::die(format!("start failed: command '/usr/bin/kvm -id {vmid} ...' failed: {}", fail.words)));
        }
    };
    let text = receiver.recv_timeout(Duration::from_secs(2)).unwrap_or_default();
    out::warn_raw(&String::from_utf8_lossy(&text));
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(Fail::die(format!("start failed: QEMU exited with code {code}"))),
        None => Err(Fail::die("start failed: QEMU exited with signal")),
    }
}

/// The hidden sub-command: enters the scope, then becomes QEMU.
pub fn scoped(args: &[String]) -> i32 {
    let Some((scope, args)) = args.split_first() else {
        return 1;
    };
    let procs = Path::new(scope).join("cgroup.procs");
    if procs.exists()
        && let Err(why) = std::fs::write(&procs, "0")
    {
        out::warn(&format!("unable to enter {scope}: {why}"));
        return 1;
    }
    let Some((name, args)) = args.split_first() else {
        return 1;
    };
    // What the daemon's files (a screen dump) get on a real host.
    rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o027));
    let why = Command::new(name).args(args).exec();
    out::warn(&format!("{name}: {why}"));
    1
}
