//! The task logs under `/var/log/pve/tasks`: one file a task, `index` of ended and `active` of recent ones.
//!
//! Formats are the real ones; the first line of each task's log is a comment which says that a stand-in wrote it. The journal
//! lines of the real one are absent: a disposable namespace has no journal of its own.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};

use super::{process, pve, task::Job};

const DIR: &str = "/var/log/pve/tasks";
/// So many ended tasks stay in `active`.
const KEEP: usize = 25;

/// A task that has begun.
#[derive(Debug)]
pub struct Task {
    /// Its name everywhere.
    pub upid: String,
    path: PathBuf,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl Task {
    /// Names the task of the worker and enters it as running.
    pub fn begin(job: &Job, worker: u32) -> Task {
        let start = now();
        let ticks = process::start_ticks(worker).unwrap_or_default();
        let upid = format!("UPID:{}:{worker:08X}:{ticks:08X}:{start:08X}:{}:{}:root@pam:", pve::node(), job.kind, job.vmid);
        let path = PathBuf::from(format!("{DIR}/{:X}/{upid}", start & 0xf));
        let task = Task { upid, path };
        let _ = task.path.parent().map(fs::create_dir_all);
        if let Some(mut log) = task.log() {
            let _ = log.write_all(b"# written by the laboratory's stand-in for qm, not by Proxmox VE\n");
        }
        update(&task.upid, None);
        task
    }

    /// The task's log, open for appending. Without one the task goes on.
    pub fn log(&self) -> Option<File> {
        OpenOptions::new().append(true).create(true).open(&self.path).ok()
    }

    /// Enters the task's end.
    pub fn end(&self, log: &mut Option<File>, error: Option<&str>) {
        let line = error.map_or_else(|| "TASK OK\n".to_owned(), |words| format!("TASK ERROR: {}\n", words.replace('\n', " ")));
        if let Some(log) = log {
            let _ = log.write_all(line.as_bytes());
        }
        update(&self.upid, Some(&error.unwrap_or("OK").replace('\n', " ")));
    }
}

/// Rewrites `active` with this task's state, and ends the tasks whose worker is gone.
fn update(upid: &str, ended: Option<&str>) {
    let Ok(lock) = OpenOptions::new().append(true).create(true).open(format!("{DIR}/.active.lock")) else {
        return;
    };
    if flock(&lock, FlockOperation::LockExclusive).is_err() {
        return;
    }
    let end = now();
    let mut lines = vec![ended.map_or_else(|| format!("{upid} 0"), |status| format!("{upid} 1 {end:08X} {status}"))];
    let mut index = ended.map_or_else(String::new, |status| format!("{upid} {end:08X} {status}\n"));
    for line in fs::read_to_string(format!("{DIR}/active")).unwrap_or_default().lines() {
        let Some((other, state)) = line.split_once(' ').filter(|(other, _)| *other != upid) else {
            continue;
        };
        if state.trim() == "0" && !alive(other) {
            lines.push(format!("{other} 1 {end:08X} unexpected status"));
            index.push_str(&format!("{other} {end:08X} unexpected status\n"));
        } else {
            lines.push(line.to_owned());
        }
    }
    let mut kept = 0;
    lines.retain(|line| {
        kept += usize::from(line.contains(" 1 "));
        !line.contains(" 1 ") || kept <= KEEP
    });
    // Logs are the last thing to fail a task for: a full or read-only disk leaves them as they are.
    let _ = fs::write(format!("{DIR}/active"), lines.join("\n") + "\n");
    if !index.is_empty() {
        let _ =
            OpenOptions::new().append(true).create(true).open(format!("{DIR}/index")).and_then(|mut file| file.write_all(index.as_bytes()));
    }
}

fn alive(upid: &str) -> bool {
    let mut fields = upid.split(':').skip(2);
    let mut hex = || fields.next().and_then(|field| u64::from_str_radix(field, 16).ok());
    let (Some(pid), Some(ticks)) = (hex(), hex()) else {
        return false;
    };
    u32::try_from(pid).ok().and_then(process::start_ticks) == Some(ticks)
}
