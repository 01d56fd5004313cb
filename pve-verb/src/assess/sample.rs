//! One look at the block layer: counters, request queues, threads in state D. Two of them show whether anything completes.
//!
//! Knows the artifacts' shapes and nothing of judgement. A [`Sample`] is also what `status` leaves in /run for the next `status`.

use proto::QemuProcess;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

use super::returned;

/// The block layer at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// Whose: samples of two processes are never compared. The maker fills it in.
    pub qemu: Option<QemuProcess>,
    /// When, in milliseconds since boot without those that the host slept. The maker fills it in.
    pub at_ms: Option<u64>,
    /// Completed operations (failed ones too: they completed) for each device.
    pub operations: BTreeMap<String, u64>,
    /// Request queues of virtio-blk and virtio-scsi.
    pub queues: Vec<Queue>,
    /// I/O threads in state D.
    pub blocked: Vec<Blocked>,
    /// What the guest's kernel has in flight, disk by disk, where it is above 0; none where the agent did not say.
    pub in_flight: Option<BTreeMap<String, u64>>,
}

/// A queue by which the guest asks for I/O.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// QOM path of its device.
    pub device: String,
    /// Its index.
    pub index: u64,
    /// Requests that QEMU took and has not answered.
    pub inuse: u64,
    /// How far QEMU's answers are, modulo 2^16; not every QEMU says it.
    pub used: Option<u64>,
}

/// A thread of QEMU's that waits in the kernel for I/O.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// Its thread id.
    pub tid: u64,
    /// Its name, `iou-wrk-4711`.
    pub name: String,
    /// Where in the kernel.
    pub wchan: String,
}

impl Sample {
    /// Sample `n` (1 or 2) of these artifacts; none where the block counters are missing, as everything rests on them.
    /// Where the first has no number (`qmp/query-blockstats.json`), that one is taken.
    pub fn take<'a>(artifact: &dyn Fn(&str) -> Option<&'a [u8]>, n: u8) -> Option<Self> {
        let read = |stem: &str| {
            let numbered = artifact(&format!("{stem}.{n}.json"));
            let bytes = if n == 1 { numbered.or_else(|| artifact(&format!("{stem}.json"))) } else { numbered };
            bytes.and_then(returned)
        };
        let operations = operations(&read("qmp/query-blockstats")?)?;
        let queues = read("qmp/virtqueues").map(|v| queues(&v)).unwrap_or_default();
        let blocked = read("process/threads").map(|v| blocked(&v)).unwrap_or_default();
        let in_flight = read("guest/diskstats").and_then(|v| in_flight(&v));
        Some(Self { qemu: None, at_ms: None, operations, queues, blocked, in_flight })
    }

    /// How many operations completed until `later`, disk by disk; none where the two can't be compared.
    pub fn completed_until(&self, later: &Self) -> Option<BTreeMap<&str, u64>> {
        if self.operations.is_empty() || !self.operations.keys().eq(later.operations.keys()) {
            return None;
        }
        let both = self.operations.iter().zip(&later.operations);
        // A counter that goes back belongs to another process or a replaced disk.
        both.map(|((name, before), (_, after))| Some((name.as_str(), after.checked_sub(*before)?))).collect()
    }

    /// What waits at this moment for an answer to its I/O, in words; none where nothing is seen to.
    pub(super) fn waiting(&self) -> Option<String> {
        let requests: u64 = self.queues.iter().map(|q| q.inuse).fold(0, u64::saturating_add);
        let in_guest = self.in_flight.iter().flat_map(BTreeMap::values).copied().fold(0, u64::saturating_add);
        let many = |n: u64| if n == 1 { "1 request waits".to_owned() } else { format!("{n} requests wait") };
        match (requests.max(in_guest), self.blocked.first()) {
            (0, None) => None,
            (0, Some(thread)) => Some(format!("QEMU's I/O thread {} waits", super::show(&thread.name))),
            (n, _) => Some(many(n)),
        }
    }
}

/// QEMU counts an operation when it ends: well, with an error, or refused as invalid.
const COUNTERS: [&str; 15] = [
    "rd_operations",
    "wr_operations",
    "flush_operations",
    "unmap_operations",
    "zone_append_operations",
    "failed_rd_operations",
    "failed_wr_operations",
    "failed_flush_operations",
    "failed_unmap_operations",
    "failed_zone_append_operations",
    "invalid_rd_operations",
    "invalid_wr_operations",
    "invalid_flush_operations",
    "invalid_unmap_operations",
    "invalid_zone_append_operations",
];

fn operations(blockstats: &Value) -> Option<BTreeMap<String, u64>> {
    let mut sum = BTreeMap::new();
    for device in blockstats.as_array()? {
        let stats = device.get("stats")?;
        // Both are needed: a device without them has another shape than we know, and a guess is no evidence.
        stats.get("rd_operations")?.as_u64()?;
        stats.get("wr_operations")?.as_u64()?;
        let total = COUNTERS.iter().filter_map(|c| stats.get(*c)?.as_u64()).fold(0_u64, u64::saturating_add);
        sum.insert(device_name(device)?, total);
    }
    Some(sum)
}

/// With -blockdev (PVE 9) `device` is empty and `qdev` has the name; a virtio-blk disk's `qdev` is a QOM path.
pub(super) fn device_name(device: &Value) -> Option<String> {
    let named = |member: &str| device.get(member).and_then(Value::as_str).filter(|name| !name.is_empty());
    named("qdev").or_else(|| named("device")).or_else(|| named("node-name")).map(|name| short(name).to_owned())
}

/// `/machine/peripheral/virtio0/virtio-backend` → `virtio0`.
pub(super) fn short(path: &str) -> &str {
    path.trim_end_matches("/virtio-backend").rsplit('/').next().unwrap_or(path)
}

/// Whether a guest asks for I/O by this virtio device, by its name in QEMU.
pub(crate) fn asks_for_io(name: &str) -> bool {
    ["virtio-blk", "virtio-scsi"].iter().any(|kind| name.starts_with(kind))
}

/// Only queues by which a guest asks for I/O. A balloon's statistics queue always holds one buffer, and so may virtio-scsi's
/// queues 0 (control) and 1 (events).
fn queues(artifact: &Value) -> Vec<Queue> {
    let mut found = Vec::new();
    let devices =
        ["virtio", "devices"].into_iter().find_map(|member| artifact.get(member)?.as_array()).map(Vec::as_slice).unwrap_or_default();
    for device in devices {
        let name = device.get("name").and_then(Value::as_str).unwrap_or_default();
        if !asks_for_io(name) {
            continue;
        }
        let first = if name.starts_with("virtio-scsi") { 2 } else { 0 };
        let path = device.get("path").and_then(Value::as_str).unwrap_or(name);
        for queue in device.get("queues").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default() {
            let queue = queue.get("return").unwrap_or(queue);
            let number = |names: &[&str]| names.iter().find_map(|n| queue.get(*n)?.as_u64());
            let (Some(index), Some(inuse)) = (number(&["index", "queue-index"]), number(&["inuse"])) else { continue };
            if index >= first {
                found.push(Queue { device: path.to_owned(), index, inuse, used: number(&["used-idx", "used_idx"]) });
            }
        }
    }
    found
}

/// The worker threads that do the guest's I/O; the leader looks idle while they wait (facts: measured).
fn blocked(artifact: &Value) -> Vec<Blocked> {
    threads(artifact)
        .filter(|t| word(t, "state").starts_with('D') && (word(t, "name").starts_with("iou-wrk") || word(t, "name").starts_with("worker")))
        .filter_map(|t| {
            let wchan = match word(t, "wchan") {
                "" | "0" => top_of_stack(t).unwrap_or_else(|| "an unknown place".to_owned()),
                name => name.to_owned(),
            };
            Some(Blocked { tid: t.get("tid")?.as_u64()?, name: word(t, "name").to_owned(), wchan })
        })
        .collect()
}

fn in_flight(diskstats: &Value) -> Option<BTreeMap<String, u64>> {
    // Devices stacked on others count the same request twice; removable and memory ones are not this VM's disks.
    let stacked = ["loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd"];
    let disks = diskstats.as_array()?.iter().filter_map(|disk| {
        let name = disk.get("name")?.as_str()?;
        let n = disk.get("stats")?.get("ios-pgr")?.as_u64()?;
        Some((name.to_owned(), n))
    });
    Some(disks.filter(|(name, n)| *n > 0 && !stacked.iter().any(|s| name.starts_with(s))).collect())
}

fn top_of_stack(thread: &Value) -> Option<String> {
    thread.get("stack")?.as_array()?.first()?.as_str().map(str::to_owned)
}

fn threads(artifact: &Value) -> impl Iterator<Item = &Value> {
    artifact.as_array().or_else(|| artifact.get("threads")?.as_array()).into_iter().flatten()
}

fn word<'a>(thread: &'a Value, member: &str) -> &'a str {
    thread.get(member).and_then(Value::as_str).unwrap_or_default()
}

/// CPU time of the vCPU threads in clock ticks: `CPU 0/KVM`, `CPU 0/TCG`.
pub(super) fn vcpu_ticks(artifact: &Value) -> u64 {
    threads(artifact)
        .filter(|t| word(t, "name").starts_with("CPU "))
        .flat_map(|t| ["utime", "stime"].into_iter().filter_map(|m| t.get(m)?.as_u64()))
        .fold(0, u64::saturating_add)
}
