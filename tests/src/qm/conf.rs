//! A VM's configuration file: current values, `[PENDING]`, complaints about lines that the real one can't parse.
//!
//! Snapshot sections are kept as they are and never looked at. Of the real schema only what the laboratory meets is known: the
//! names of the keys, and which are integers.

use std::collections::BTreeMap;
use std::fs;

use super::{Fail, Run, out, pve};

/// A configuration as it stands in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conf {
    /// Current values, sorted as PVE prints them.
    pub now: BTreeMap<String, String>,
    /// Values that the next start or stop makes current.
    pub pending: BTreeMap<String, String>,
    /// Keys that the next start or stop deletes.
    pub delete: Vec<String>,
    description: String,
    rest: String,
}

/// Keys with a number behind them, such as `scsi0`.
const NUMBERED: [&str; 14] =
    ["scsi", "virtio", "sata", "ide", "net", "serial", "parallel", "usb", "hostpci", "numa", "unused", "ipconfig", "virtiofs", "audio"];
const INTEGERS: [&str; 6] = ["cores", "sockets", "vcpus", "balloon", "shares", "smp"];
const PLAIN: [&str; 52] = [
    "acpi",
    "affinity",
    "agent",
    "allow-ksm",
    "amd-sev",
    "arch",
    "args",
    "autostart",
    "bios",
    "boot",
    "bootdisk",
    "cdrom",
    "cicustom",
    "cipassword",
    "citype",
    "ciupgrade",
    "ciuser",
    "cpu",
    "cpulimit",
    "cpuunits",
    "description",
    "efidisk0",
    "freeze",
    "hookscript",
    "hotplug",
    "hugepages",
    "intel-tdx",
    "ivshmem",
    "keephugepages",
    "keyboard",
    "kvm",
    "localtime",
    "lock",
    "machine",
    "memory",
    "meta",
    "migrate_downtime",
    "migrate_speed",
    "name",
    "nameserver",
    "numa",
    "onboot",
    "ostype",
    "protection",
    "reboot",
    "rng0",
    "scsihw",
    "searchdomain",
    "smbios1",
    "spice_enhancements",
    "startdate",
    "startup",
];
const MORE: [&str; 13] = [
    "sshkeys",
    "tablet",
    "tags",
    "tdf",
    "template",
    "tpmstate0",
    "vga",
    "vmgenid",
    "vmstate",
    "vmstatestorage",
    "watchdog",
    "runningcpu",
    "runningmachine",
];

/// Whether a VM may have this key.
pub fn known(key: &str) -> bool {
    let stem = key.trim_end_matches(|c: char| c.is_ascii_digit());
    let numbered = stem.len() < key.len() && NUMBERED.contains(&stem);
    numbered || INTEGERS.contains(&key) || PLAIN.contains(&key) || MORE.contains(&key)
}

/// Why a value does not fit its key, in PVE's words.
pub fn misfit(key: &str, value: &str) -> Option<String> {
    let bad = INTEGERS.contains(&key) && (value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()));
    bad.then(|| format!("type check ('integer') failed - got '{value}'"))
}

/// The VM's configuration as text, or PVE's complaint that there is none here.
fn read(vmid: u32) -> Run<String> {
    fs::read_to_string(pve::configs().join(format!("{vmid}.conf")))
        .map_err(|_| Fail::errno(2, format!("Configuration file 'nodes/{}/qemu-server/{vmid}.conf' does not exist", pve::node())))
}

/// Fails in the words of the commands that only look whether the VM is on this node.
pub fn on_this_node(vmid: u32) -> Run {
    if pve::configs().join(format!("{vmid}.conf")).exists() {
        return Ok(());
    }
    Err(Fail::errno(2, format!("unable to find configuration file for VM {vmid} on node '{}'", pve::node())))
}

/// Reads the VM's configuration, complaining on stderr about what can't be parsed.
pub fn load(vmid: u32) -> Run<Conf> {
    let (conf, complaints) = parse(vmid, &read(vmid)?);
    complaints.iter().for_each(|line| out::warn(line));
    Ok(conf)
}

/// Parses a configuration; the second part is what the real one complains about.
pub fn parse(vmid: u32, text: &str) -> (Conf, Vec<String>) {
    let mut conf = Conf::default();
    let mut complaints = Vec::new();
    let mut section = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.trim_end().strip_suffix(']')) {
            section = name;
        }
        if !matches!(section, "" | "PENDING") {
            conf.rest.push_str(line);
            conf.rest.push('\n');
            continue;
        }
        if line.trim().is_empty() || line.starts_with('[') {
            continue;
        }
        if let Some(comment) = line.strip_prefix('#') {
            conf.description.push_str(&format!("#{comment}\n"));
            continue;
        }
        let Some((key, value)) = line.split_once(": ").filter(|(key, _)| !key.contains(' ')) else {
            complaints.push(format!("vm {vmid} - unable to parse config: {line}"));
            continue;
        };
        let value = value.trim();
        if section == "PENDING" && key == "delete" {
            conf.delete = value.split(',').map(|key| key.trim().to_owned()).collect();
            continue;
        }
        let why = if known(key) { misfit(key, value) } else { Some(format!("unknown setting '{key}'")) };
        if let Some(why) = why {
            complaints.push(format!("vm {vmid} - unable to parse value of '{key}' - {why}"));
            continue;
        }
        let to = if section == "PENDING" { &mut conf.pending } else { &mut conf.now };
        to.insert(key.to_owned(), value.to_owned());
    }
    (conf, complaints)
}

impl Conf {
    /// A current value.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.now.get(key).map(String::as_str)
    }

    /// Fails when the VM is locked.
    pub fn check_lock(&self) -> Run {
        self.get("lock").map_or(Ok(()), |lock| Err(Fail::die(format!("VM is locked ({lock})"))))
    }

    /// Whether the lock is this one.
    pub fn has_lock(&self, lock: &str) -> bool {
        self.get("lock") == Some(lock)
    }

    /// Whether something waits for the next start or stop.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty() || !self.delete.is_empty()
    }

    /// The values with the pending ones applied.
    pub fn wanted(&self) -> BTreeMap<String, String> {
        let mut values = self.now.clone();
        values.extend(self.pending.clone());
        values.retain(|key, _| !self.delete.contains(key));
        values
    }

    /// Makes the pending values current.
    pub fn apply_pending(&mut self) {
        self.now = self.wanted();
        self.pending.clear();
        self.delete.clear();
    }

    /// The values as a configuration file without pending ones.
    pub fn current_text(&self) -> String {
        self.now.iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
    }

    fn text(&self) -> String {
        let mut text = self.description.clone() + &self.current_text();
        if self.has_pending() {
            text.push_str("\n[PENDING]\n");
            if !self.delete.is_empty() {
                text.push_str(&format!("delete: {}\n", self.delete.join(",")));
            }
            text.extend(self.pending.iter().map(|(key, value)| format!("{key}: {value}\n")));
        }
        if !self.rest.is_empty() {
            text.push('\n');
            text.push_str(&self.rest);
        }
        text
    }

    /// Writes the file as PVE does: under a temporary name, then renamed. Refused without quorum.
    pub fn write(&self, vmid: u32) -> Run {
        let path = pve::configs().join(format!("{vmid}.conf"));
        let temporary = path.with_extension(format!("conf.tmp.{}", std::process::id()));
        let cannot = |why: &str| Err(Fail::errno(2, format!("unable to open file '{}' - {why}", temporary.display())));
        if !pve::quorate() {
            return cannot("Permission denied");
        }
        match fs::write(&temporary, self.text()).and_then(|()| fs::rename(&temporary, &path)) {
            Ok(()) => Ok(()),
            Err(why) => cannot(&why.to_string()),
        }
    }

    /// The number of virtual processors.
    pub fn cpus(&self) -> u64 {
        let number = |key: &str| self.get(key).and_then(|value| value.parse::<u64>().ok()).unwrap_or(1);
        number("sockets") * number("cores")
    }

    /// The memory in MiB.
    pub fn memory(&self) -> u64 {
        let value = self.get("memory").unwrap_or("512");
        value.trim_start_matches("current=").parse().unwrap_or(512)
    }

    /// The VM's name.
    pub fn name(&self, vmid: u32) -> String {
        self.get("name").map_or_else(|| format!("VM {vmid}"), str::to_owned)
    }

    /// The size of the disk that the VM boots from, in bytes.
    pub fn boot_disk(&self) -> u64 {
        let order = self.get("boot").unwrap_or_default().trim_start_matches("order=").to_owned();
        let first = order.split(';').find_map(|key| self.get(key)).unwrap_or_default();
        first.split(',').find_map(|option| option.strip_prefix("size=")).map_or(0, size)
    }
}

/// A size such as `1G` in bytes.
fn size(text: &str) -> u64 {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text.chars().last() {
        Some('T') => 40,
        Some('G') => 30,
        Some('M') => 20,
        Some('K') => 10,
        _ => 0,
    };
    digits.parse::<u64>().unwrap_or(0) << shift
}
