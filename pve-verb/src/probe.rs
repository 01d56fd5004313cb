//! Every question that forensics asks, in one table: where its answer goes, who asks it, how long it may take.
//!
//! The table is the plan; nothing that is not in it can get into a bundle, and whatever is in it and was not answered is recorded as
//! such. The questions themselves are asked in this folder, a file for each group of evidence.md. This file asks nothing.

pub mod autopsy;
pub mod console;
mod gather;
pub mod guest;
pub mod host;
pub mod observe;
pub mod process;
pub mod pve;
pub mod qmp;
pub mod rrd;
pub mod sketch;
pub mod tools;
pub mod wait;

pub use gather::gather;
use proto::{ProbeOutcome, Vmid};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::time::Duration;

/// Bytes that a guest, or anybody else, may have chosen. Kept raw; shown only escaped.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Raw(Vec<u8>);

impl Raw {
    /// Takes the bytes as they are.
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes, for storing, hashing or parsing; not for showing.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, for storing, hashing or parsing; not for showing.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// The first `most` bytes, fit for a person's terminal.
    pub fn escaped(&self, most: usize) -> String {
        proto::escape_cut(&self.0, most)
    }
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Raw({} bytes)", self.0.len())
    }
}

/// How much is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Set {
    /// For `status`: what is cheap, and no sampling pause.
    Status,
    /// For a bundle: everything.
    Full,
    /// For the pipeline itself: which process, which configuration, which lock. Leaves no artifacts.
    Observe,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Asker {
    /// The helper that speaks with QEMU and the guest: hostile bytes.
    Guest,
    /// The helper that reads `/proc`, cgroups, `/etc/pve`, logs.
    Host,
    /// An external tool, started by the worker.
    Tool,
    /// The debugger, started by the worker after everything else, and not for every verb.
    Debugger,
}

/// A question of the plan, for one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// `group/question`: the artifact's path without its ending.
    pub name: String,
    /// The artifact's path within the bundle.
    pub path: String,
    /// The artifact's media type.
    pub media_type: &'static str,
    /// How long the question may take, counted from the start of the capture.
    pub deadline: Duration,
    /// Who asks it.
    pub asker: Asker,
    /// Whether there is nobody to ask while the VM is not running.
    pub needs_vm: bool,
}

/// A file for the bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// Its path within the bundle; always one of the plan's.
    pub path: String,
    /// Its media type; always the plan's.
    pub media_type: &'static str,
    /// Its content.
    pub bytes: Raw,
}

/// What became of a question.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The question's name in the plan.
    pub name: String,
    /// How it ended.
    pub outcome: ProbeOutcome,
    /// How long it took.
    pub ms: u64,
    /// Why there is no artifact, or what is odd about it; escaped.
    pub detail: Option<String>,
    /// The artifact; where it was not captured, what had come by then.
    pub artifact: Option<Artifact>,
    /// What the probe itself concluded, where that is more than the artifact (two screens alike, who holds a socket).
    pub facts: Option<Value>,
}

/// The longest detail that is kept, in bytes of its source.
const DETAIL: usize = 600;

impl Answer {
    /// An answer without an artifact.
    pub fn without(name: &str, outcome: ProbeOutcome, ms: u64, detail: &str) -> Self {
        Self { name: name.to_owned(), outcome, ms, detail: Some(proto::escape_cut(detail.as_bytes(), DETAIL)), artifact: None, facts: None }
    }

    /// An answer with its artifact.
    pub fn captured(planned: &Planned, ms: u64, bytes: Raw) -> Self {
        let artifact = Artifact { path: planned.path.clone(), media_type: planned.media_type, bytes };
        Self { name: planned.name.clone(), outcome: ProbeOutcome::Captured, ms, detail: None, artifact: Some(artifact), facts: None }
    }

    /// An answer that did not come to its end: what had come by then is kept, and said to be no more than that. It is for a person to
    /// read; nothing is judged by it.
    pub fn partial(planned: &Planned, outcome: ProbeOutcome, ms: u64, why: &str, bytes: Raw) -> Self {
        if bytes.as_bytes().is_empty() {
            return Self::without(&planned.name, outcome, ms, why);
        }
        let note = format!("; what it had written by then is kept, {} bytes", bytes.as_bytes().len());
        let detail = proto::escape_cut(why.as_bytes(), DETAIL - note.len()) + &note;
        Self { outcome, detail: Some(detail), ..Self::captured(planned, ms, bytes) }
    }

    /// The same, with something to say about it.
    #[must_use]
    pub fn noting(mut self, detail: Option<&str>) -> Self {
        self.detail = detail.map(|d| proto::escape_cut(d.as_bytes(), DETAIL)).or(self.detail);
        self
    }
}

/// What is said of every question to a VM that does not run.
pub const NOT_RUNNING: &str = "the VM is not running";

/// The plan for this VM, in the order in which the questions are asked.
pub fn plan(set: Set, vmid: Vmid) -> Vec<Planned> {
    TABLE.iter().filter(|row| row.sets.contains(&set)).map(|row| row.planned(vmid)).collect()
}

/// What this asker is to be asked; the questions to a VM that does not run are left out where it does not.
pub(crate) fn asked_of(asker: Asker, set: Set, vmid: Vmid, running: bool) -> Vec<Planned> {
    plan(set, vmid).into_iter().filter(|p| p.asker == asker && (running || !p.needs_vm)).collect()
}

struct Row {
    path: &'static str,
    ms: u64,
    asker: Asker,
    needs_vm: bool,
    sets: &'static [Set],
}

impl Row {
    fn planned(&self, vmid: Vmid) -> Planned {
        let path = self.path.replace("VMID", &vmid.to_string());
        let (stem, media_type) = match path.rsplit_once('.') {
            Some((stem, "json")) => (stem, "application/json"),
            Some((stem, "png")) => (stem, "image/png"),
            Some((stem, "txt" | "conf")) => (stem, "text/plain"),
            _ => (path.as_str(), "application/json"),
        };
        Planned {
            name: stem.to_owned(),
            media_type,
            deadline: Duration::from_millis(self.ms),
            asker: self.asker,
            needs_vm: self.needs_vm,
            path: path.clone(),
        }
    }
}

const BOTH: &[Set] = &[Set::Status, Set::Full];
const FULL: &[Set] = &[Set::Full];
const OBSERVE: &[Set] = &[Set::Observe];

const fn vm(path: &'static str, ms: u64, sets: &'static [Set]) -> Row {
    Row { path, ms, asker: Asker::Guest, needs_vm: true, sets }
}
const fn process(path: &'static str, ms: u64, sets: &'static [Set]) -> Row {
    Row { path, ms, asker: Asker::Host, needs_vm: true, sets }
}
const fn host(path: &'static str, ms: u64, sets: &'static [Set]) -> Row {
    Row { path, ms, asker: Asker::Host, needs_vm: false, sets }
}
const fn tool(path: &'static str, ms: u64) -> Row {
    Row { path, ms, asker: Asker::Tool, needs_vm: false, sets: FULL }
}

/// A silent QEMU is given 3 s (protocol, section 8) and some to say so; a healthy one answers everything within the sampling window.
const QMP: u64 = 3_600;

/// Cheap and decisive first, slow and disturbing last. `VMID` stands for the VM's number. QMP's questions share one connection and are
/// asked in this order; everything else runs at the same time.
static TABLE: &[Row] = &[
    host("observe/process", 500, OBSERVE),
    host("observe/scan", 500, OBSERVE),
    host("observe/pve", 1_000, OBSERVE),
    host("observe/tasks", 500, OBSERVE),
    host("observe/volumes", 500, OBSERVE),
    // QEMU's own word.
    vm("qmp/greeting.json", QMP, BOTH),
    vm("qmp/query-status.json", QMP, BOTH),
    vm("qmp/query-chardev.json", QMP, BOTH),
    vm("qmp/query-blockstats.1.json", QMP, BOTH),
    vm("qmp/virtqueues.1.json", QMP, BOTH),
    vm("qmp/query-block.json", QMP, BOTH),
    vm("console/screen-1.png", QMP, FULL),
    vm("qmp/query-named-block-nodes.json", QMP, FULL),
    vm("qmp/query-block-jobs.json", QMP, FULL),
    vm("qmp/query-iothreads.json", QMP, BOTH),
    vm("qmp/query-cpus-fast.json", QMP, BOTH),
    vm("qmp/query-balloon.json", QMP, FULL),
    vm("qmp/query-migrate.json", QMP, FULL),
    vm("qmp/query-blockstats.2.json", QMP, FULL),
    vm("qmp/virtqueues.2.json", QMP, FULL),
    vm("console/screen-2.png", QMP + 400, FULL),
    vm("qmp/registers.txt", QMP + 400, FULL),
    vm("qmp/events.json", QMP + 400, FULL),
    // The process, seen from outside.
    process("process/identity.json", 500, BOTH),
    process("process/threads.1.json", 1_500, BOTH),
    process("process/peers.json", 1_000, BOTH),
    process("process/stat.txt", 500, FULL),
    process("process/status.txt", 500, FULL),
    process("process/cmdline.txt", 1_000, FULL),
    process("process/io.txt", 1_000, FULL),
    process("process/limits.txt", 1_000, FULL),
    process("process/fds.txt", 1_000, FULL),
    process("process/smaps_rollup.txt", 1_500, FULL),
    process("process/threads.2.json", 3_000, FULL),
    process("console/log.txt", 2_500, FULL),
    host("cgroup/procs.txt", 500, BOTH),
    host("cgroup/memory.events.txt", 500, BOTH),
    host("cgroup/memory.current.txt", 500, FULL),
    host("cgroup/memory.max.txt", 500, FULL),
    host("cgroup/memory.high.txt", 500, FULL),
    host("cgroup/memory.swap.current.txt", 500, FULL),
    host("cgroup/memory.stat.txt", 500, FULL),
    host("cgroup/memory.pressure.txt", 500, FULL),
    host("cgroup/cpu.stat.txt", 500, FULL),
    host("cgroup/cpu.max.txt", 500, FULL),
    host("cgroup/cpu.pressure.txt", 500, FULL),
    host("cgroup/io.stat.txt", 500, FULL),
    host("cgroup/io.max.txt", 500, FULL),
    host("cgroup/io.pressure.txt", 500, FULL),
    // The guest's own word, where its agent has one.
    vm("guest/ping.json", 2_000, BOTH),
    vm("guest/diskstats.json", 2_300, BOTH),
    vm("guest/load.json", 2_300, BOTH),
    vm("guest/time.json", 2_600, FULL),
    vm("guest/vcpus.json", 2_600, FULL),
    vm("guest/osinfo.json", 2_600, FULL),
    vm("guest/info.json", 2_600, FULL),
    vm("guest/diskstats.2.json", 3_500, FULL),
    vm("guest/fsinfo.json", 4_000, FULL),
    vm("console/serial.txt", 1_800, FULL),
    // What PVE says about it.
    host("pve/VMID.conf", 1_000, BOTH),
    host("pve/vmlist.json", 1_000, BOTH),
    host("pve/members.json", 1_000, FULL),
    host("pve/ha.json", 1_000, BOTH),
    host("pve/lock.json", 1_000, BOTH),
    host("pve/tasks.txt", 1_000, BOTH),
    host("pve/rrd", 1_500, BOTH),
    tool("pve/storage.txt", 1_900),
    // The host below it.
    host("host/pressure.1.txt", 500, BOTH),
    host("host/diskstats.1.txt", 500, FULL),
    host("host/uptime.txt", 500, BOTH),
    host("host/loadavg.txt", 500, BOTH),
    host("host/meminfo.txt", 500, BOTH),
    host("host/vmstat.txt", 500, FULL),
    host("host/mounts.txt", 500, FULL),
    host("host/kmsg.txt", 1_000, FULL),
    host("host/survivor.json", 1_500, FULL),
    host("host/operation.json", 500, FULL),
    host("host/pressure.2.txt", 2_000, FULL),
    host("host/diskstats.2.txt", 2_000, FULL),
    tool("host/df.txt", 1_900),
    tool("host/lvs.txt", 1_900),
    tool("host/zpool.txt", 1_900),
    tool("host/journal.txt", 1_900),
    // Last, and before a verb that ends this QEMU only: it halts QEMU for a moment.
    Row { path: "autopsy/threads.txt", ms: 1_300, asker: Asker::Debugger, needs_vm: true, sets: FULL },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_and_paths_are_unique_and_as_evidence_md_has_them() {
        let plan = plan(Set::Full, Vmid::DEVVM);
        let paths: BTreeSet<_> = plan.iter().map(|p| p.path.as_str()).collect();
        assert_eq!(paths.len(), plan.len());
        assert_eq!(plan.iter().map(|p| p.name.as_str()).collect::<BTreeSet<_>>().len(), plan.len());
        let mut demanded: Vec<String> = Vec::new();
        for (prefix, names, ending) in [
            (
                "qmp/query-",
                "status block named-block-nodes block-jobs iothreads cpus-fast balloon migrate chardev blockstats.1 blockstats.2",
                ".json",
            ),
            ("qmp/", "greeting.json virtqueues.1.json virtqueues.2.json registers.txt events.json", ""),
            ("console/", "screen-1.png screen-2.png serial.txt log.txt", ""),
            (
                "process/",
                "identity.json cmdline.txt status.txt stat.txt io.txt limits.txt smaps_rollup.txt fds.txt threads.1.json threads.2.json",
                "",
            ),
            ("guest/", "ping osinfo time fsinfo diskstats load vcpus", ".json"),
            ("pve/", "102.conf vmlist.json members.json ha.json lock.json tasks.txt storage.txt rrd", ""),
            (
                "host/",
                "uptime loadavg pressure.1 pressure.2 meminfo vmstat diskstats.1 diskstats.2 mounts df kmsg journal lvs zpool",
                ".txt",
            ),
        ] {
            demanded.extend(names.split(' ').map(|n| format!("{prefix}{n}{ending}")));
        }
        demanded.push("autopsy/threads.txt".to_owned());
        for path in demanded {
            assert!(paths.contains(path.as_str()), "{path}");
        }
    }

    #[test]
    fn every_deadline_lies_within_what_a_verb_grants() {
        for p in plan(Set::Full, Vmid::DEVVM) {
            assert!(p.deadline <= Duration::from_millis(4_500), "{}", p.name);
        }
    }

    #[test]
    fn a_stopped_vm_is_not_asked_but_its_host_is() {
        let groups = |running| -> BTreeSet<String> {
            [Asker::Guest, Asker::Host, Asker::Tool]
                .into_iter()
                .flat_map(|a| asked_of(a, Set::Full, Vmid::DEVVM, running))
                .filter_map(|p| Some(p.name.split_once('/')?.0.to_owned()))
                .collect()
        };
        assert_eq!(groups(false).into_iter().collect::<Vec<_>>(), ["cgroup", "host", "pve"]);
        assert_eq!(groups(true).len(), 7);
    }

    #[test]
    fn guest_bytes_do_not_show_in_debug_output() {
        assert_eq!(format!("{:?}", Raw::new(b"\x1b[2J".to_vec())), "Raw(4 bytes)");
    }
}
