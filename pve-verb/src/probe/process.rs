//! The process and cgroup groups: QEMU as the kernel sees it. The one witness that a hung QEMU can't withhold.

use super::Planned;
use super::host::{MOST, answer, file, sampled};
use crate::helper::Job;
use crate::helper::run::{Outbox, Task};
use crate::host::qemu_server;
use crate::procfs::{self, Peers, Pidfile, read_capped, scope_dirs};
use crate::pve::redact_cmdline;
use proto::{ProbeOutcome, QemuProcess, Vmid};
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde_json::json;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The most of a serial console's log: its end.
const LOG: u64 = 1024 * 1024;

/// Files of `/proc/PID` that are taken as they are.
const FILES: [&str; 5] = ["stat", "status", "io", "limits", "smaps_rollup"];

/// The questions to the process and to its scope.
pub(crate) fn tasks(job: &Job, planned: &[Planned]) -> Vec<Task> {
    let mut tasks: Vec<Task> = planned.iter().filter_map(|p| p.name.strip_prefix("cgroup/")).map(|f| cgroup(job.vmid, f)).collect();
    let vmid = job.vmid;
    if planned.iter().any(|p| p.name == "host/survivor") {
        tasks.push(Task::new(&["host/survivor"], move |out| survivor(vmid, out)));
    }
    let Some(qemu) = job.qemu else { return tasks };
    let wanted = |name: &str| planned.iter().any(|p| p.name == name);
    for name in FILES.map(|f| (f, format!("process/{f}"))).iter().filter(|(_, n)| wanted(n)) {
        tasks.push(own_file(qemu, name.0, &name.1));
    }
    if wanted("process/identity") {
        tasks.push(Task::new(&["process/identity"], move |out| {
            let since = Instant::now();
            match procfs::by_pidfile(vmid) {
                Ok(Pidfile::Runs(identity)) if identity.process() == qemu => {
                    let value = json!(identity);
                    out.facts("process/identity", since, serde_json::to_vec_pretty(&value).ok(), value);
                }
                Ok(other) => {
                    out.without("process/identity", since, ProbeOutcome::Failed, &format!("the process changed meanwhile: {other:?}"))
                }
                Err(e) => answer(out, "process/identity", since, Err(e)),
            }
        }));
    }
    if wanted("process/threads.1") {
        tasks.push(sampled(["process/threads.1", "process/threads.2"], wanted("process/threads.2"), move || threads(qemu)));
    }
    if wanted("process/peers") {
        tasks.push(Task::new(&["process/peers"], move |out| peers(vmid, out)));
    }
    if wanted("process/cmdline") {
        tasks.push(Task::new(&["process/cmdline"], move |out| {
            let since = Instant::now();
            let text = check(qemu)
                .and_then(|()| read_capped(format!("/proc/{}/cmdline", qemu.pid), MOST))
                .map(|b| redact_cmdline(&b).into_bytes());
            answer(out, "process/cmdline", since, text);
        }));
    }
    if wanted("console/log") {
        tasks.push(Task::new(&["console/log"], move |out| {
            let since = Instant::now();
            let line = check(qemu).and_then(|()| read_capped(format!("/proc/{}/cmdline", qemu.pid), MOST));
            match line.map(|line| serial_log(&line)) {
                Ok(Some(path)) => answer(out, "console/log", since, tail(&path)),
                Ok(None) => out.without("console/log", since, ProbeOutcome::Unavailable, "QEMU keeps no log of a serial console"),
                Err(e) => answer(out, "console/log", since, Err(e)),
            }
        }));
    }
    if wanted("process/fds") {
        tasks.push(Task::new(&["process/fds"], move |out| {
            let since = Instant::now();
            answer(out, "process/fds", since, check(qemu).and_then(|()| fds(qemu.pid)));
        }));
    }
    tasks
}

/// A pid may have been given to another process since it was observed.
fn check(qemu: QemuProcess) -> io::Result<()> {
    if procfs::is_still(qemu) { Ok(()) } else { Err(io::Error::new(io::ErrorKind::NotFound, format!("process {} is gone", qemu.pid))) }
}

fn own_file(qemu: QemuProcess, of: &'static str, name: &str) -> Task {
    let owned = name.to_owned();
    Task::new(&[name], move |out| {
        let since = Instant::now();
        answer(out, &owned, since, check(qemu).and_then(|()| read_capped(format!("/proc/{}/{of}", qemu.pid), MOST)));
    })
}

fn threads(qemu: QemuProcess) -> io::Result<Vec<u8>> {
    check(qemu)?;
    let at_ms = u64::try_from(crate::host::boottime().as_millis()).unwrap_or(u64::MAX);
    let threads = procfs::threads(qemu.pid);
    Ok(serde_json::to_vec_pretty(
        &json!({"pid": qemu.pid, "started": qemu.started, "at_ms": at_ms, "ticks_per_second": 100, "threads": threads}),
    )?)
}

fn fds(pid: u32) -> io::Result<Vec<u8>> {
    let mut all: Vec<(u32, String)> = std::fs::read_dir(format!("/proc/{pid}/fd"))?
        .filter_map(|e| {
            let e = e.ok()?;
            let target = std::fs::read_link(e.path()).map_or_else(|e| format!("? ({e})"), |t| t.to_string_lossy().into_owned());
            Some((e.file_name().to_str()?.parse().ok()?, target))
        })
        .take(8_192)
        .collect();
    all.sort_unstable();
    Ok(all.into_iter().map(|(fd, target)| format!("{fd} {}\n", proto::escape(target.as_bytes()))).collect::<String>().into_bytes())
}

/// What is left of a VM that PVE calls stopped: its threads, and where in the kernel they wait.
fn survivor(vmid: Vmid, out: &Outbox) {
    let since = Instant::now();
    let skip = match procfs::by_pidfile(vmid) {
        Ok(Pidfile::Runs(identity)) => Some(identity.pid),
        _ => None,
    };
    match procfs::survivor(vmid, skip) {
        Ok(Some(left)) => {
            out.json("host/survivor", since, &json!({"pid": left.pid, "text": left.text, "threads": procfs::threads(left.pid)}))
        }
        Ok(None) => {
            let why = "nothing of this VM is left but what PVE sees";
            out.without("host/survivor", since, ProbeOutcome::Unavailable, why);
        }
        Err(why) => out.without("host/survivor", since, ProbeOutcome::TimedOut, &why),
    }
}

/// The file into which this QEMU writes what a serial console says: `logfile=` of a character device, or `-serial file:`. Absolute,
/// since nobody knows in which folder QEMU was started.
fn serial_log(cmdline: &[u8]) -> Option<PathBuf> {
    let args: Vec<&[u8]> = cmdline.split(|&b| b == 0).collect();
    let of = |pair: &[&[u8]]| match pair {
        [b"-chardev", device] => device.split(|&b| b == b',').find_map(|member| member.strip_prefix(b"logfile=")).map(<[u8]>::to_vec),
        [b"-serial", device] => device.strip_prefix(b"file:").map(<[u8]>::to_vec),
        _ => None,
    };
    let path = args.windows(2).find_map(of)?;
    Some(PathBuf::from(OsString::from_vec(path))).filter(|path| path.is_absolute())
}

/// The end of a regular file. Its content is the guest's: it is carried, and not looked at.
fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(CWD, path, flags, Mode::empty())?);
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "what QEMU logs the serial console to is no regular file"));
    }
    file.seek(SeekFrom::Start(about.len().saturating_sub(LOG)))?;
    let mut bytes = Vec::new();
    file.take(LOG).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Who else is on the sockets that take one client each.
fn peers(vmid: Vmid, out: &Outbox) {
    let since = Instant::now();
    let all = ["qmp", "qga", "serial0"].map(|s| (s, procfs::peer_of(&qemu_server(vmid, s), Duration::from_millis(400))));
    let value: serde_json::Map<_, _> = all.iter().map(|(s, p)| ((*s).to_owned(), json!({"peers": p, "text": Peers::text(p)}))).collect();
    let value = serde_json::Value::Object(value);
    out.facts("process/peers", since, serde_json::to_vec_pretty(&value).ok(), value);
}

/// A file of the scope: `procs` is the kernel's `cgroup.procs`.
fn cgroup(vmid: Vmid, of: &str) -> Task {
    let kernel = if of == "procs" { "cgroup.procs" } else { of };
    let [first, second] = scope_dirs(vmid).map(|dir| format!("{dir}/{kernel}"));
    let here = if std::fs::symlink_metadata(&second).is_ok() { second } else { first };
    file(&format!("cgroup/{of}"), here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_a_serial_console_is_found_on_the_command_line() {
        let found = |line: &str| serial_log(line.replace(' ', "\0").as_bytes());
        assert_eq!(found("kvm -chardev socket,id=serial0,path=/x,logfile=/var/log/102.log,server=on"), Some("/var/log/102.log".into()));
        assert_eq!(found("kvm -serial file:/var/log/102.log"), Some("/var/log/102.log".into()));
        for none in ["kvm -chardev socket,id=serial0,path=/x", "kvm -serial stdio", "kvm -serial file:102.log", "kvm -D logfile=/x", ""] {
            assert_eq!(found(none), None, "{none}");
        }
    }

    #[test]
    fn of_a_log_the_end_is_kept_and_what_is_no_file_is_not_opened_through() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        std::fs::write(&log, [vec![b'a'; usize::try_from(LOG).unwrap()], b"the end".to_vec()].concat()).unwrap();
        let kept = tail(&log).unwrap();
        assert!(kept.len() == usize::try_from(LOG).unwrap() && kept.ends_with(b"the end"));
        std::os::unix::fs::symlink(&log, folder.path().join("link")).unwrap();
        assert!(tail(&folder.path().join("link")).is_err());
        assert!(tail(folder.path()).is_err());
    }
}
