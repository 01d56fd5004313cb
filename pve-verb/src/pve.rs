//! What PVE's own files say about the VM: where its configuration is, what locks it, who may touch it. Readers and pure parsers.
//!
//! `/etc/pve` is FUSE: any of these reads may hang for ever, so they run in the probe helper's threads. Nothing is written, and no
//! PVE program is asked: `qm` hangs where this only times out.

mod memory;
mod redact;
mod storage;

pub use memory::{Memory, look as memory, mib};
pub use redact::{redact_cmdline, redact_config};
pub use storage::missing;

use crate::host::{self, path::PVE};
use crate::procfs::{parse_stat, read_text};
use proto::Vmid;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io;

/// Where the VM's configuration is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Config {
    /// On this node.
    Here,
    /// On that node.
    Elsewhere(String),
    /// On none.
    Missing,
    /// It could not be found out: why.
    Unreadable(String),
}

/// Whether PVE's HA manager has a say over the VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ha {
    /// It has none.
    Unmanaged,
    /// It is to keep the VM in this state (`started`, `stopped`, `ignored`, …).
    Managed(String),
    /// It could not be found out: why.
    Unknown(String),
}

impl Ha {
    /// Whether PVE hands `start` and `stop` on to the HA manager.
    pub fn acts(&self) -> bool {
        matches!(self, Self::Managed(state) if state != "ignored")
    }
}

/// Where `.vmlist` says the VM is. `local` is this node's name.
pub fn locate(vmlist: &str, local: &str, vmid: Vmid) -> Config {
    let Ok(list) = serde_json::from_str::<Value>(vmlist) else { return Config::Unreadable(format!("{PVE}/.vmlist is no JSON")) };
    let Some(ids) = list.get("ids").and_then(Value::as_object) else { return Config::Unreadable(format!("{PVE}/.vmlist has no ids")) };
    let Some(entry) = ids.get(&vmid.to_string()) else { return Config::Missing };
    // A container may have the number; that is no VM.
    match (entry.get("type").and_then(Value::as_str), entry.get("node").and_then(Value::as_str)) {
        (Some(kind), _) if kind != "qemu" => Config::Missing,
        (_, Some(node)) if node == local => Config::Here,
        (_, Some(node)) => Config::Elsewhere(proto::escape_cut(node.as_bytes(), 64)),
        _ => Config::Unreadable(format!("{PVE}/.vmlist does not name the node of {vmid}")),
    }
}

/// This node's name as the cluster file system has it; the host's name where it does not say.
pub fn local_node() -> String {
    let link = std::fs::read_link(format!("{PVE}/local")).ok();
    link.and_then(|l| Some(l.file_name()?.to_str()?.to_owned())).unwrap_or_else(host::hostname)
}

/// Finds the VM's configuration.
pub fn find(vmid: Vmid) -> Config {
    match read_text(format!("{PVE}/.vmlist")) {
        Ok(text) => locate(&text, &local_node(), vmid),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Config::Unreadable(format!("{PVE} is not mounted")),
        Err(e) => Config::Unreadable(format!("{PVE}/.vmlist could not be read: {e}")),
    }
}

/// The VM's configuration as it stands in the file, pending values and snapshots with it.
///
/// # Errors
/// Where it can't be read.
pub fn config_text(vmid: Vmid) -> io::Result<String> {
    read_text(format!("{PVE}/qemu-server/{vmid}.conf"))
}

/// The current values of a configuration: the lines before the first section. The last of two lines wins, as in PVE.
pub fn current(config: &str) -> BTreeMap<&str, &str> {
    let head = config.lines().take_while(|l| !l.starts_with('['));
    head.filter(|l| !l.starts_with('#')).filter_map(|l| l.split_once(':')).map(|(k, v)| (k.trim(), v.trim())).collect()
}

/// The value of `lock:`, escaped.
pub fn lock_of(config: &str) -> Option<String> {
    current(config).get("lock").map(|l| proto::escape_cut(l.as_bytes(), 64))
}

/// The volumes of a configuration's disks: (key, volume).
pub fn volumes(config: &str) -> Vec<(String, String)> {
    let disk = |key: &str| {
        let bus = key.trim_end_matches(|c: char| c.is_ascii_digit());
        bus.len() < key.len() && matches!(bus, "ide" | "sata" | "scsi" | "virtio" | "efidisk" | "tpmstate")
    };
    let volume = |v: &str| v.split(',').next().map(|v| v.trim_start_matches("file=").to_owned());
    current(config)
        .into_iter()
        .filter(|(k, _)| disk(k))
        .filter_map(|(k, v)| Some((k.to_owned(), volume(v).filter(|v| v != "none")?)))
        .collect()
}

/// Facts of a configuration that a judgement may name.
pub fn config_facts(config: &str) -> Value {
    let now = current(config);
    let picked: Map<String, Value> = ["lock", "agent", "scsihw", "machine", "memory", "onboot", "template", "serial0", "vga"]
        .into_iter()
        .filter_map(|k| Some((k.to_owned(), json!(proto::escape_cut(now.get(k)?.as_bytes(), 200)))))
        .collect();
    let pending = config.lines().any(|l| l.trim() == "[PENDING]");
    json!({"config": picked, "volumes": volumes(config).iter().map(|(k, v)| json!({"key": k, "volume": proto::escape_cut(v.as_bytes(), 200)})).collect::<Vec<_>>(), "pending": pending})
}

/// Whether the cluster has quorum: PVE's own sign is that the node's folder is writable for its owner. None where it can't be seen.
pub fn quorum() -> Option<bool> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(format!("{PVE}/local")).ok().map(|m| m.mode() & 0o200 != 0)
}

/// What `ha/resources.cfg` says about the VM.
pub fn parse_ha(resources: &str, vmid: Vmid) -> Ha {
    let heading = vmid.to_string();
    let mut lines = resources.lines().skip_while(|l| l.split_once(':').is_none_or(|(kind, id)| kind != "vm" || id.trim() != heading));
    if lines.next().is_none() {
        return Ha::Unmanaged;
    }
    let state = lines.take_while(|l| l.starts_with([' ', '\t'])).find_map(|l| l.trim().strip_prefix("state").map(|s| s.trim().to_owned()));
    Ha::Managed(state.map_or_else(|| "started".to_owned(), |s| proto::escape_cut(s.as_bytes(), 32)))
}

/// Whether the HA manager has a say over the VM.
pub fn ha(vmid: Vmid) -> Ha {
    match read_text(format!("{PVE}/ha/resources.cfg")) {
        Ok(text) => parse_ha(&text, vmid),
        // No file where HA was never used; but an unmounted /etc/pve has none either.
        Err(e) if e.kind() == io::ErrorKind::NotFound && std::fs::metadata(format!("{PVE}/.vmlist")).is_ok() => Ha::Unmanaged,
        Err(e) => Ha::Unknown(format!("{PVE}/ha/resources.cfg could not be read: {e}")),
    }
}

/// A task of PVE's by its UPID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The whole UPID, escaped.
    pub upid: String,
    /// Its worker's pid.
    pub pid: u32,
    /// Its worker's start, ticks since boot.
    pub started: u64,
    /// What it does (`qmstart`, `vzdump`, …).
    pub kind: String,
    /// For which VM; empty for none.
    pub id: String,
}

/// Parses `UPID:node:PID:PSTART:TIME:type:id:user:`.
pub fn parse_upid(text: &str) -> Option<Task> {
    let fields: Vec<&str> = text.split(':').collect();
    let ["UPID", _, pid, started, _, kind, id, _, ..] = fields.as_slice() else { return None };
    let safe = |t: &str| proto::escape_cut(t.as_bytes(), 200);
    Some(Task {
        upid: safe(text),
        pid: u32::from_str_radix(pid, 16).ok()?,
        started: u64::from_str_radix(started, 16).ok()?,
        kind: safe(kind),
        id: safe(id),
    })
}

/// The tasks of `tasks/active` that have no end yet: `UPID 0`.
pub fn unfinished(active: &str) -> Vec<Task> {
    let open = active.lines().filter_map(|l| l.split_once(' ')).filter(|(_, rest)| rest.split(' ').next() == Some("0"));
    open.filter_map(|(upid, _)| parse_upid(upid)).collect()
}

/// Whether a task's worker lives. `active` keeps the lines of workers that were killed.
pub fn is_live(task: &Task) -> bool {
    let stat = read_text(format!("/proc/{}/stat", task.pid)).ok().and_then(|t| parse_stat(&t));
    stat.is_some_and(|s| s.started == task.started && s.state != 'Z')
}

/// The VM's live tasks. A backup job of several VMs carries no VM's number, and counts for each.
///
/// # Errors
/// Where the list can't be read.
pub fn live_tasks(vmid: Vmid) -> io::Result<Vec<Task>> {
    let active = match read_text("/var/log/pve/tasks/active") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    let wanted = vmid.to_string();
    Ok(unfinished(&active).into_iter().filter(|t| t.id == wanted || t.kind == "vzdump" && t.id.is_empty()).filter(is_live).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str = "#lock: in a comment\nagent: 1\nscsi0: local:102/vm-102-disk-0.qcow2,iothread=1,size=1G\nide2: none,media=cdrom\nscsihw: virtio-scsi-single\nlock: backup\n[PENDING]\nscsi1: x:y\n[snap]\nlock: snapshot\n";

    #[test]
    fn where_a_vm_is() {
        let list =
            r#"{"version": 5, "ids": {"102": {"node": "pve", "type": "qemu", "version": 2}, "103": {"node": "pve", "type": "lxc"}}}"#;
        assert_eq!(locate(list, "pve", Vmid::DEVVM), Config::Here);
        assert_eq!(locate(list, "other", Vmid::DEVVM), Config::Elsewhere("pve".into()));
        assert_eq!(locate(list, "pve", Vmid::try_from(103).unwrap()), Config::Missing);
        assert_eq!(locate(list, "pve", Vmid::try_from(999).unwrap()), Config::Missing);
        for bad in ["", "{}", "[]", r#"{"ids": {"102": {}}}"#] {
            assert!(matches!(locate(bad, "pve", Vmid::DEVVM), Config::Unreadable(_)), "{bad}");
        }
    }

    #[test]
    fn only_the_current_values_lock_a_vm() {
        assert_eq!(lock_of(CONF).as_deref(), Some("backup"));
        assert_eq!(lock_of("agent: 1\n[snap]\nlock: snapshot\n"), None);
        assert_eq!(volumes(CONF), [("scsi0".to_owned(), "local:102/vm-102-disk-0.qcow2".to_owned())]);
        assert_eq!(config_facts(CONF)["pending"], true);
    }

    #[test]
    fn what_ha_is_to_do() {
        let text = "ct: 102\n\tstate stopped\n\nvm: 1020\n\tstate ignored\n\nvm: 102\n\tgroup g\n\tstate stopped\n\nvm: 103\n\tcomment x\n";
        assert_eq!(parse_ha(text, Vmid::DEVVM), Ha::Managed("stopped".into()));
        assert_eq!(parse_ha(text, Vmid::try_from(103).unwrap()), Ha::Managed("started".into()));
        assert!(!parse_ha(text, Vmid::try_from(1020).unwrap()).acts());
        assert_eq!(parse_ha(text, Vmid::try_from(104).unwrap()), Ha::Unmanaged);
    }

    #[test]
    fn a_task_lives_only_while_its_own_process_does() {
        let own = parse_stat(&read_text("/proc/self/stat").unwrap()).unwrap();
        let upid = |started: u64| format!("UPID:pve:{:08X}:{started:08X}:6741A2B3:qmstart:102:root@pam:", std::process::id());
        let text = format!("{} 0\n{} 1 6741A2B4 OK\ngarbage\nUPID:x 0\n", upid(own.started), upid(own.started));
        let tasks = unfinished(&text);
        assert_eq!(tasks.len(), 1);
        assert_eq!((tasks[0].kind.as_str(), tasks[0].id.as_str()), ("qmstart", "102"));
        assert!(is_live(&tasks[0]));
        assert!(!is_live(&parse_upid(&upid(own.started + 1)).unwrap()));
    }
}
