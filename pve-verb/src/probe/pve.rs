//! The pve group: PVE's files about the VM, as they are, apart from secrets. A hung `/etc/pve` costs its own questions only.

use super::host::{MOST, answer, file};
use super::{Planned, rrd};
use crate::helper::run::{Outbox, Task};
use crate::host::path::PVE;
use crate::procfs::{read_capped, read_text};
use crate::pve;
use proto::{ProbeOutcome, Vmid};
use serde_json::{Value, json};
use std::io;
use std::time::Instant;

/// The questions about PVE.
pub(crate) fn tasks(vmid: Vmid, planned: &[Planned]) -> Vec<Task> {
    planned.iter().filter(|p| p.name.starts_with("pve/")).filter_map(|p| one(vmid, &p.name)).collect()
}

fn one(vmid: Vmid, name: &str) -> Option<Task> {
    Some(match name {
        "pve/vmlist" => file(name, format!("{PVE}/.vmlist")),
        "pve/members" => file(name, format!("{PVE}/.members")),
        "pve/ha" => Task::new(&["pve/ha"], move |out| ha(vmid, out)),
        "pve/lock" => Task::new(&["pve/lock"], move |out| lock(vmid, out)),
        "pve/tasks" => Task::new(&["pve/tasks"], move |out| {
            let since = Instant::now();
            answer(out, "pve/tasks", since, task_lines(vmid));
        }),
        "pve/rrd" => {
            let daemon = rrd::daemon();
            Task::new(&["pve/rrd"], move |out| rrd::probe(vmid, daemon, out))
        }
        config if config == format!("pve/{vmid}") => {
            let name = config.to_owned();
            Task::new(&[config], move |out| {
                let since = Instant::now();
                match pve::config_text(vmid) {
                    Ok(text) => out.facts(&name, since, Some(pve::redact_config(&text).into_bytes()), pve::config_facts(&text)),
                    Err(e) => answer(out, &name, since, Err(e)),
                }
            })
        }
        _ => return None,
    })
}

fn ha(vmid: Vmid, out: &Outbox) {
    let since = Instant::now();
    let ha = pve::ha(vmid);
    if let pve::Ha::Unknown(why) = &ha {
        return out.without("pve/ha", since, ProbeOutcome::Failed, why);
    }
    let text = |file: &str| read_text(format!("{PVE}/ha/{file}")).ok();
    let manager = text("manager_status").map(|t| serde_json::from_str::<Value>(&t).unwrap_or(Value::String(t)));
    out.json(
        "pve/ha",
        since,
        &json!({"vm": ha, "acts": ha.acts(), "resources": text("resources.cfg"), "manager_status": manager, "quorum": pve::quorum()}),
    );
}

/// Both locks: the word in the configuration, and the flock that a running task holds.
fn lock(vmid: Vmid, out: &Outbox) {
    let since = Instant::now();
    let config = match pve::config_text(vmid) {
        Ok(text) => text,
        Err(e) => return answer(out, "pve/lock", since, Err(e)),
    };
    let tasks = pve::live_tasks(vmid).map_err(|e| e.to_string());
    let value = json!({"lock": pve::lock_of(&config), "live_tasks": tasks.as_ref().ok(), "live_tasks_unknown": tasks.as_ref().err(), "config_flock": flock_holder(vmid)});
    out.facts("pve/lock", since, serde_json::to_vec_pretty(&value).ok(), value);
}

/// Who holds PVE's flock on the configuration, by `/proc/locks`; the file's being there means nothing.
fn flock_holder(vmid: Vmid) -> Option<Value> {
    use std::os::unix::fs::MetadataExt;
    let inode = std::fs::metadata(format!("/run/lock/qemu-server/lock-{vmid}.conf")).ok()?.ino();
    let pid = flock_pid(&read_text("/proc/locks").ok()?, inode)?;
    let comm = read_text(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(json!({"pid": pid, "comm": proto::escape_cut(comm.trim_end().as_bytes(), 32)}))
}

fn flock_pid(locks: &str, inode: u64) -> Option<u32> {
    let ending = format!(":{inode}");
    locks.lines().find_map(|l| match l.split_ascii_whitespace().collect::<Vec<_>>().as_slice() {
        [_, "FLOCK", _, _, pid, file, ..] if file.ends_with(&ending) => pid.parse().ok(),
        _ => None,
    })
}

/// What is going on, and the VM's newest finished tasks.
fn task_lines(vmid: Vmid) -> io::Result<Vec<u8>> {
    let active = read_capped("/var/log/pve/tasks/active", MOST)?;
    let index = read_capped("/var/log/pve/tasks/index", MOST).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let field = format!(":{vmid}:");
    let mut newest: Vec<_> = index.lines().rev().filter(|l| l.contains(&field)).take(100).collect();
    newest.reverse();
    let mut all = b"# active\n".to_vec();
    all.extend(active);
    all.extend(format!("# index, lines of {vmid}, oldest first\n{}\n", newest.join("\n")).as_bytes());
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_flock_is_found_by_the_files_inode() {
        let locks = "1: POSIX  ADVISORY  WRITE 700 00:19:4711 0 EOF\n2: FLOCK  ADVISORY  WRITE 800 00:19:47110 0 EOF\n3: FLOCK  ADVISORY  WRITE 900 00:19:4711 0 EOF\n3: -> FLOCK  ADVISORY  WRITE 901 00:19:4711 0 EOF\n";
        assert_eq!(flock_pid(locks, 4711), Some(900));
        assert_eq!(flock_pid(locks, 1), None);
    }
}
