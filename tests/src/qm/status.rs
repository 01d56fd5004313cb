//! `qm status` and `qm list`: what the real one makes of the pid file, the configuration and, if it answers within 3 s, QMP.
//!
//! A QEMU that does not answer is printed as `running`, as the real one prints it. The per-VM dirty bitmaps, network counters and
//! the guest's own memory accounting without a balloon are not computed.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::cli::Request;
use super::conf::{self, Conf};
use super::{Run, out, process, pve, qmp};

/// What only Proxmox's QEMU answers to `query-proxmox-support`; Debian's does not know the command, so this is what was recorded.
const SUPPORT: [&str; 9] = [
    "backup-access-api",
    "backup-fleecing",
    "backup-max-workers",
    "pbs-dirty-bitmap",
    "pbs-dirty-bitmap-migration",
    "pbs-dirty-bitmap-savevm",
    "pbs-library-version",
    "pbs-masterkey",
    "query-bitmap-info",
];

/// A printed value: PVE's nested hashes.
enum Tree {
    Leaf(String),
    Node(BTreeMap<String, Tree>),
}

fn leaf(value: impl ToString) -> Tree {
    Tree::Leaf(value.to_string())
}

/// `qm status VM [--verbose]`.
pub fn status(request: &Request) -> Run {
    let vmid = request.vmid;
    let conf = conf::load(vmid)?;
    let mut values = basic(vmid, &conf);
    if process::running(vmid).is_some() {
        full(vmid, &conf, &mut values);
    }
    if request.flag("verbose") {
        let mut text = String::new();
        print(&values, 0, &mut text);
        out::raw(text.as_bytes());
    } else if let Some(Tree::Leaf(state)) = values.get("qmpstatus") {
        out::say(&format!("status: {state}"));
    }
    Ok(())
}

fn print(values: &BTreeMap<String, Tree>, depth: usize, text: &mut String) {
    let indent = "\t".repeat(depth);
    for (key, value) in values {
        // Writing to a String can't fail.
        match value {
            Tree::Leaf(value) => drop(writeln!(text, "{indent}{key}: {value}")),
            Tree::Node(values) => {
                let _ = writeln!(text, "{indent}{key}:");
                print(values, depth + 1, text);
            }
        }
    }
}

/// What needs no QMP.
fn basic(vmid: u32, conf: &Conf) -> BTreeMap<String, Tree> {
    let pid = process::running(vmid);
    let state = if pid.is_some() { "running" } else { "stopped" };
    let mut values = BTreeMap::from([
        ("cpus".to_owned(), leaf(conf.cpus())),
        ("disk".to_owned(), leaf(0)),
        ("maxdisk".to_owned(), leaf(conf.boot_disk())),
        ("maxmem".to_owned(), leaf(conf.memory() << 20)),
        ("mem".to_owned(), leaf(pid.map_or(0, process::memory))),
        ("name".to_owned(), leaf(conf.name(vmid))),
        ("netin".to_owned(), leaf(0)),
        ("netout".to_owned(), leaf(0)),
        ("qmpstatus".to_owned(), leaf(state)),
        ("status".to_owned(), leaf(state)),
        ("uptime".to_owned(), leaf(pid.and_then(process::uptime).unwrap_or(0))),
        ("vmid".to_owned(), leaf(vmid)),
    ]);
    for key in ["lock", "template", "tags"] {
        if let Some(value) = conf.get(key) {
            values.insert(key.to_owned(), leaf(value));
        }
    }
    if (0..4).any(|n| conf.get(&format!("serial{n}")).is_some()) {
        values.insert("serial".to_owned(), leaf(1));
    }
    if let Some(pid) = pid {
        values.insert("pid".to_owned(), leaf(pid));
    }
    values
}

/// What QMP adds. Every failure is swallowed, as the real one does; what had come by then stays.
fn full(vmid: u32, conf: &Conf, values: &mut BTreeMap<String, Tree>) {
    let Ok(mut session) = qmp::Session::monitor(vmid, qmp::SHORT) else {
        return;
    };
    let mut ask = |name: &str| session.ask(name, &Value::Null);
    let Ok(state) = ask("query-status") else {
        return;
    };
    values.insert("qmpstatus".to_owned(), leaf(state["status"].as_str().unwrap_or("unknown")));

    let support = SUPPORT.iter().map(|key| ((*key).to_owned(), leaf(if key.ends_with("version") { "stub" } else { "1" })));
    values.insert("proxmox-support".to_owned(), Tree::Node(support.collect()));
    if let Ok(stats) = ask("query-blockstats") {
        blocks(conf, &stats, values);
    }
    if let Ok(Value::Array(machines)) = ask("query-machines")
        && let Some(name) =
            machines.iter().find(|machine| machine["is-default"] == json!(true)).and_then(|machine| machine["name"].as_str())
    {
        values.insert("running-machine".to_owned(), leaf(format!("{name}+pve0")));
    }
    if let Ok(version) = ask("query-version") {
        let part = |name: &str| version["qemu"][name].as_u64().unwrap_or(0);
        values.insert("running-qemu".to_owned(), leaf(format!("{}.{}.{}", part("major"), part("minor"), part("micro"))));
    }
    if let Ok(balloon) = ask("query-balloon") {
        let actual = balloon["actual"].as_u64().unwrap_or(0);
        values.insert("balloon".to_owned(), leaf(actual));
        let info = [("actual", actual), ("max_mem", conf.memory() << 20)];
        values.insert("ballooninfo".to_owned(), Tree::Node(info.into_iter().map(|(key, value)| (key.to_owned(), leaf(value))).collect()));
    }
}

fn blocks(conf: &Conf, stats: &Value, values: &mut BTreeMap<String, Tree>) {
    let mut node = BTreeMap::new();
    let (mut read, mut written) = (0, 0);
    for one in stats.as_array().map_or(&[][..], Vec::as_slice) {
        // Our disks are named as PVE names them: drive-scsi0.
        let key = one["device"].as_str().unwrap_or_default().trim_start_matches("drive-").to_owned();
        if conf.get(&key).is_none() {
            continue;
        }
        let mut counters = BTreeMap::new();
        for (name, value) in one["stats"].as_object().into_iter().flatten() {
            let shown = match value {
                Value::Bool(yes) => leaf(u8::from(*yes)),
                Value::Number(number) => leaf(number),
                _ => Tree::Node(BTreeMap::new()),
            };
            counters.insert(name.clone(), shown);
        }
        read += one["stats"]["rd_bytes"].as_u64().unwrap_or(0);
        written += one["stats"]["wr_bytes"].as_u64().unwrap_or(0);
        node.insert(key, Tree::Node(counters));
    }
    values.insert("blockstat".to_owned(), Tree::Node(node));
    values.insert("diskread".to_owned(), leaf(read));
    values.insert("diskwrite".to_owned(), leaf(written));
}

/// `qm list`: never asks QMP.
pub fn list() -> Run {
    let mut vms: Vec<u32> = std::fs::read_dir(pve::configs())
        .map(|dir| dir.flatten().filter_map(|entry| entry.file_name().to_string_lossy().strip_suffix(".conf")?.parse().ok()).collect())
        .unwrap_or_default();
    vms.sort_unstable();
    if vms.is_empty() {
        return Ok(());
    }
    out::say(&format!("{:>10} {:<20} {:<10} {:<10} {:>12} {:<10}", "VMID", "NAME", "STATUS", "MEM(MB)", "BOOTDISK(GB)", "PID"));
    for vmid in vms {
        let conf = conf::load(vmid)?;
        let pid = process::running(vmid);
        let state = if pid.is_some() { "running" } else { "stopped" };
        #[allow(clippy::cast_precision_loss, reason = "two decimals of a size in GiB")]
        let disk = conf.boot_disk() as f64 / f64::from(1 << 30);
        let (name, memory, pid) = (conf.name(vmid), conf.memory(), pid.unwrap_or(0));
        out::say(&format!("{vmid:>10} {name:<20} {state:<10} {memory:<10} {disk:>12.2} {pid:<10}"));
    }
    Ok(())
}
