//! The host group, and the dispatch of everything that the helper `probe-host` asks: each question on a thread of its own, since each
//! may hang in the kernel by itself; samples that belong together share a thread and the window between them.

use super::{Planned, observe, process, pve};
use crate::helper::Job;
use crate::helper::run::{Outbox, Task};
use crate::host::path;
use crate::procfs::read_capped;
use proto::ProbeOutcome;
use std::io;
use std::time::{Duration, Instant};

/// Between two samples.
pub(crate) const WINDOW: Duration = Duration::from_millis(1_000);
/// The most of one file.
pub(crate) const MOST: u64 = 4 * 1024 * 1024;

/// One file each.
const FILES: [(&str, &str); 5] = [
    ("host/uptime", "/proc/uptime"),
    ("host/loadavg", "/proc/loadavg"),
    ("host/meminfo", "/proc/meminfo"),
    ("host/vmstat", "/proc/vmstat"),
    ("host/mounts", "/proc/self/mounts"),
];

/// Everything that the helper is to ask.
pub(crate) fn tasks(job: &Job, planned: &[Planned]) -> Vec<Task> {
    let mut tasks = observe::tasks(job.vmid, planned);
    tasks.extend(process::tasks(job, planned));
    tasks.extend(pve::tasks(job.vmid, planned));
    for p in planned {
        if let Some((name, path)) = FILES.iter().find(|(name, _)| *name == p.name) {
            tasks.push(file(name, (*path).to_owned()));
        }
    }
    for (names, read) in [
        (["host/pressure.1", "host/pressure.2"], pressure as fn() -> io::Result<Vec<u8>>),
        (["host/diskstats.1", "host/diskstats.2"], diskstats as fn() -> io::Result<Vec<u8>>),
    ] {
        if planned.iter().any(|p| p.name == names[0]) {
            let again = planned.iter().any(|p| p.name == names[1]);
            tasks.push(sampled(names, again, read));
        }
    }
    if planned.iter().any(|p| p.name == "host/operation") {
        tasks.push(Task::new(&["host/operation"], |out| {
            let since = Instant::now();
            // tmpfs first: the disk may hang.
            let read = [crate::operation::RUN_OPERATION, path::OPERATION].map(|at| move || read_capped(at, MOST));
            answer(out, "host/operation", since, read[0]().or_else(|_| read[1]()));
        }));
    }
    if planned.iter().any(|p| p.name == "host/kmsg") {
        tasks.push(Task::new(&["host/kmsg"], |out| answer(out, "host/kmsg", Instant::now(), kmsg())));
    }
    tasks
}

/// One file, as it is.
pub(crate) fn file(name: &str, path: String) -> Task {
    let owned = name.to_owned();
    Task::new(&[name], move |out| {
        let since = Instant::now();
        answer(out, &owned, since, read_capped(path, MOST));
    })
}

/// Two samples, a window apart.
pub(crate) fn sampled(names: [&'static str; 2], again: bool, read: impl Fn() -> io::Result<Vec<u8>> + Send + 'static) -> Task {
    let names_here = if again { &names[..] } else { &names[..1] };
    Task::new(names_here, move |out| {
        let since = Instant::now();
        answer(out, names[0], since, read());
        let first = Instant::now();
        if again {
            std::thread::sleep(WINDOW.saturating_sub(first.elapsed()));
            let since = Instant::now();
            answer(out, names[1], since, read());
        }
    })
}

/// What reading came to: nothing there is `unavailable`, everything else an error.
pub(crate) fn answer(out: &Outbox, name: &str, since: Instant, read: io::Result<Vec<u8>>) {
    match read {
        Ok(bytes) => out.captured(name, since, bytes),
        Err(e) => out.without(name, since, outcome(&e), &e.to_string()),
    }
}

pub(crate) fn outcome(e: &io::Error) -> ProbeOutcome {
    match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::Unsupported => ProbeOutcome::Unavailable,
        _ => ProbeOutcome::Failed,
    }
}

fn pressure() -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    for what in ["cpu", "memory", "io"] {
        all.extend(format!("{what}\n").as_bytes());
        all.extend(read_capped(format!("/proc/pressure/{what}"), MOST)?);
    }
    Ok(all)
}

fn diskstats() -> io::Result<Vec<u8>> {
    read_capped("/proc/diskstats", MOST)
}

/// The kernel's log: a record a read, without waiting for the next. The newest are kept.
fn kmsg() -> io::Result<Vec<u8>> {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let mut device = std::fs::File::options().read(true).custom_flags(nonblock).open("/dev/kmsg")?;
    let mut all = Vec::new();
    let mut record = [0; 8 * 1024];
    loop {
        match device.read(&mut record) {
            Ok(0) => return Ok(all),
            Ok(n) => all.extend(record.get(..n).unwrap_or_default()),
            // The record was overwritten while we read: the next one is there.
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::PIPE.raw_os_error()) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(all),
            Err(e) => return Err(e),
        }
        if let Some(too_much) = all.len().checked_sub(usize::try_from(MOST).unwrap_or(usize::MAX)) {
            all.drain(..too_much);
        }
    }
}
