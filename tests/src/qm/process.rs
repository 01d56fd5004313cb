//! Whether the VM runs, decided exactly as the real `qm` decides it, and where its control group is.
//!
//! No start time, no executable, no control group is looked at: a reused pid passes if its command line does. That is a weakness
//! of the real one, kept on purpose.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{Fail, Run, task};

/// Where PVE keeps pid files and sockets.
pub const RUN: &str = "/var/run/qemu-server";
/// PVE waits so long for the scope of an earlier QEMU to vanish.
const SCOPE_LIMIT: Duration = Duration::from_secs(20);
/// The scope is looked at so often.
const SCOPE_STEP: Duration = Duration::from_millis(100);

/// A file of the VM in the run-time directory.
pub fn run_file(vmid: u32, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{RUN}/{vmid}.{suffix}"))
}

/// The fields of `/proc/PID/stat` after the command's name; the first is the state.
pub fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// When the process was started, in clock ticks since boot.
pub fn start_ticks(pid: u32) -> Option<u64> {
    stat(pid)?.get(19)?.parse().ok()
}

/// Seconds since the process was started.
pub fn uptime(pid: u32) -> Option<u64> {
    let up = fs::read_to_string("/proc/uptime").ok()?;
    let up: f64 = up.split_whitespace().next()?.parse().ok()?;
    let ticks = start_ticks(pid)?;
    // 100 ticks a second is fixed in Linux's interface to user space.
    Some((up as u64).saturating_sub(ticks / 100))
}

/// The process's resident memory in bytes.
pub fn memory(pid: u32) -> u64 {
    let pages = stat(pid).and_then(|fields| fields.get(21)?.parse::<u64>().ok()).unwrap_or_default();
    pages * 4096
}

/// The pid of the VM's QEMU, if one passes the real one's test.
pub fn running(vmid: u32) -> Option<u32> {
    let path = format!("{RUN}/{vmid}.pid");
    let pid: u32 = fs::read_to_string(&path).ok()?.lines().next()?.parse().ok()?;
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let args: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let name = String::from_utf8_lossy(args.first()?).into_owned();
    let base = name.rsplit('/').next().unwrap_or_default();
    if !(name.ends_with("kvm") || base.starts_with("qemu-system-")) {
        return None;
    }
    let at = args.iter().position(|arg| matches!(*arg, b"-pidfile" | b"--pidfile"))?;
    if *args.get(at + 1)? != path.as_bytes() {
        return None;
    }
    (stat(pid)?.first()? != "Z").then_some(pid)
}

/// The VM's control group, which systemd makes on a real host.
pub fn scope(vmid: u32) -> PathBuf {
    PathBuf::from(format!("/sys/fs/cgroup/qemu.slice/{vmid}.scope"))
}

/// Who is in the scope. Without a unified hierarchy every process whose command line names the VM's pid file stands for it.
fn survivors(vmid: u32) -> bool {
    if let Ok(text) = fs::read_to_string(scope(vmid).join("cgroup.procs")) {
        return !text.trim().is_empty();
    }
    if fs::metadata("/sys/fs/cgroup/cgroup.procs").is_ok() {
        return false;
    }
    let wanted = format!("{RUN}/{vmid}.pid");
    let Ok(dir) = fs::read_dir("/proc") else {
        return false;
    };
    dir.flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.starts_with(b"/usr/bin/kvm\0") && line.split(|byte| *byte == 0).any(|arg| arg == wanted.as_bytes())
    })
}

/// Waits until no earlier QEMU is in the scope, and makes the scope anew.
pub fn fresh_scope(vmid: u32) -> Run {
    let end = Instant::now() + SCOPE_LIMIT;
    while survivors(vmid) {
        if Instant::now() >= end {
            return Err(Fail::die("timeout waiting on systemd"));
        }
        task::pause(SCOPE_STEP)?;
    }
    if fs::metadata("/sys/fs/cgroup/cgroup.procs").is_ok() {
        // An empty one may be there; systemd would make it anew, which differs only in its counters.
        let _ = fs::remove_dir(scope(vmid));
        fs::create_dir_all(scope(vmid)).map_err(|why| Fail::die(format!("unable to create scope: {why}")))?;
    }
    Ok(())
}

/// Removes the scope when it is empty, as systemd does.
pub fn drop_scope(vmid: u32) {
    // It fails while a process is in it, and then the scope has to stay.
    let _ = fs::remove_dir(scope(vmid));
}
