//! Reads and writes a VM's configuration as PVE keeps it: `/etc/pve/qemu-server/102.conf`.
//!
//! It knows the lines, the `[PENDING]` and the snapshot sections, and the few keys the lab acts on. It does not
//! validate: like PVE it keeps what it can't parse, so that a stand-in `qm` can complain about it in PVE's words.

/// One section of the file: keys in the order in which they stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Section(Vec<(String, String)>);

impl Section {
    /// The value of `key`, if the section has it.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Sets `key`, in place where it already stands.
    pub fn set(&mut self, key: &str, value: &str) {
        match self.0.iter_mut().find(|(k, _)| k == key) {
            Some((_, v)) => *v = value.to_owned(),
            None => self.0.push((key.to_owned(), value.to_owned())),
        }
    }

    /// Removes `key` and says what it was.
    pub fn remove(&mut self, key: &str) -> Option<String> {
        let at = self.0.iter().position(|(k, _)| k == key)?;
        Some(self.0.remove(at).1)
    }

    /// All keys and values, in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// Whether nothing stands in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A disk of the VM: `scsi0: local:102/vm-102-disk-0.qcow2,iothread=1,size=1G,mbps_wr=5`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The volume, as `local:102/vm-102-disk-0.qcow2`, an absolute path, or (in the lab only) `nbd+unix:///?socket=…`.
    pub volume: String,
    /// Every `key=value` after it.
    pub options: Section,
}

impl Disk {
    /// Reads the value of a `scsiN:` line.
    pub fn parse(value: &str) -> Self {
        let mut parts = value.split(',');
        let volume = parts.next().unwrap_or_default();
        let mut options = Section::default();
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, "1"));
            options.set(key, value);
        }
        Self { volume: volume.trim_start_matches("file=").to_owned(), options }
    }

    /// Where the volume is on the host: directory storage `local` is under `/var/lib/vz`.
    pub fn path(&self) -> String {
        match self.volume.strip_prefix("local:") {
            Some(rest) => format!("/var/lib/vz/images/{rest}"),
            None => self.volume.clone(),
        }
    }

    /// The image format, which PVE takes from the volume's name.
    pub fn format(&self) -> &str {
        if let Some(format) = self.options.get("format") {
            return format;
        }
        if self.volume.ends_with(".qcow2") { "qcow2" } else { "raw" }
    }

    /// Whether the disk has an I/O thread of its own.
    pub fn iothread(&self) -> bool {
        self.options.get("iothread") == Some("1")
    }

    /// QEMU's throttling options for PVE's `mbps*` and `iops*`, in PVE's order.
    pub fn throttling(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (suffix, direction) in [("", "-total"), ("_rd", "-read"), ("_wr", "-write")] {
            for (key, name, factor) in [("mbps", "bps", 1024.0 * 1024.0), ("iops", "iops", 1.0)] {
                let burst = format!("{key}{suffix}_max");
                if let Some(limit) = self.number(&format!("{key}{suffix}"), factor) {
                    all.push(format!("throttling.{name}{direction}={limit}"));
                }
                if let Some(limit) = self.number(&burst, factor) {
                    all.push(format!("throttling.{name}{direction}-max={limit}"));
                }
            }
        }
        all
    }

    fn number(&self, key: &str, factor: f64) -> Option<u64> {
        let value: f64 = self.options.get(key)?.parse().ok()?;
        // PVE allows fractions of MB/s; QEMU wants whole bytes.
        Some((value * factor) as u64).filter(|n| *n > 0)
    }
}

/// A VM's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmConf {
    /// What stands before the first section: the running configuration.
    pub current: Section,
    /// `[PENDING]`: what the next fresh QEMU process gets. `delete` names keys to drop.
    pub pending: Section,
    /// Snapshots by name.
    pub snapshots: Vec<(String, Section)>,
    /// Lines that are no `key: value`; PVE says `vm 102 - unable to parse config: LINE`.
    pub unparsable: Vec<String>,
    /// Comment lines (PVE's description), without their `#`.
    pub description: Vec<String>,
}

impl VmConf {
    /// Reads the file's text. Never fails: see [`VmConf::unparsable`].
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        // None: the running configuration.
        let mut section: Option<String> = None;
        for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                if !name.eq_ignore_ascii_case("PENDING") {
                    conf.snapshots.push((name.to_owned(), Section::default()));
                }
                section = Some(name.to_owned());
            } else if let Some(comment) = line.strip_prefix('#') {
                conf.description.push(comment.to_owned());
            } else if let Some((key, value)) = key_value(line) {
                match (&section, conf.snapshots.last_mut()) {
                    (None, _) => conf.current.set(key, value),
                    (Some(name), Some((_, last))) if !name.eq_ignore_ascii_case("PENDING") => last.set(key, value),
                    (Some(_), _) => conf.pending.set(key, value),
                }
            } else {
                conf.unparsable.push(line.to_owned());
            }
        }
        conf
    }

    /// The file's text again; lines that could not be parsed are dropped, as PVE drops them when it writes.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let lines = |section: &Section| -> String { section.iter().map(|(k, v)| format!("{k}: {v}\n")).collect() };
        for comment in &self.description {
            text.push_str(&format!("#{comment}\n"));
        }
        text.push_str(&lines(&self.current));
        if !self.pending.is_empty() {
            text.push_str(&format!("\n[PENDING]\n{}", lines(&self.pending)));
        }
        for (name, section) in &self.snapshots {
            text.push_str(&format!("\n[{name}]\n{}", lines(section)));
        }
        text
    }

    /// Moves what is pending into the running configuration, as `qm start` and the clean-up of `qm stop` do.
    pub fn apply_pending(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        for (key, value) in pending.iter() {
            if key == "delete" {
                for gone in value.split(',') {
                    // A leading `!` is PVE's "forced".
                    self.current.remove(gone.trim().trim_start_matches('!'));
                }
            } else {
                self.current.set(key, value);
            }
        }
    }

    /// `name:`, which becomes QEMU's process name.
    pub fn name(&self) -> &str {
        self.current.get("name").unwrap_or("VM102")
    }

    /// `memory:` in MiB; PVE's default is 512.
    pub fn memory_mib(&self) -> u64 {
        self.whole("memory").unwrap_or(512)
    }

    /// `cores:`, at least one.
    pub fn cores(&self) -> u64 {
        self.whole("cores").unwrap_or(1).max(1)
    }

    /// `sockets:`, at least one.
    pub fn sockets(&self) -> u64 {
        self.whole("sockets").unwrap_or(1).max(1)
    }

    /// Whether the guest agent's channel is there: `agent: 1` or `agent: enabled=1,…`.
    pub fn agent(&self) -> bool {
        let first = self.current.get("agent").and_then(|value| value.split(',').next());
        matches!(first, Some("1" | "enabled=1"))
    }

    /// `lock:`, such as `backup`.
    pub fn lock(&self) -> Option<&str> {
        self.current.get("lock")
    }

    /// Whether `serial0: socket` stands there.
    pub fn serial_socket(&self) -> bool {
        self.current.get("serial0") == Some("socket")
    }

    /// Whether it is a template, which PVE refuses to start.
    pub fn template(&self) -> bool {
        self.current.get("template") == Some("1")
    }

    /// The disks `scsiN`, in order of N.
    pub fn disks(&self) -> Vec<(u32, Disk)> {
        let mut all: Vec<_> =
            self.current.iter().filter_map(|(key, value)| Some((key.strip_prefix("scsi")?.parse().ok()?, Disk::parse(value)))).collect();
        all.sort_by_key(|(n, _)| *n);
        all
    }

    fn whole(&self, key: &str) -> Option<u64> {
        self.current.get(key)?.parse().ok()
    }
}

/// `key: value` as PVE's own expression has it: a word, a colon, white space, something.
fn key_value(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once(':')?;
    let word = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let value = value.trim();
    (word && !value.is_empty()).then_some((key, value))
}

#[cfg(test)]
mod tests {
    use super::{Disk, VmConf};

    const TEXT: &str = "#a note\nagent: 1\nmemory: 256\nname: devvm\nscsi0: local:102/vm-102-disk-0.qcow2,iothread=1,mbps_wr=5\nlock: backup\n\n[PENDING]\ndelete: lock\nmemory: 300\n\n[before]\nmemory: 128\n";

    #[test]
    fn when_a_configuration_is_read_then_writing_it_gives_the_same_text() {
        assert_eq!(VmConf::parse(TEXT).to_text(), TEXT);
    }

    #[test]
    fn when_pending_is_applied_then_the_next_process_gets_it() {
        let mut conf = VmConf::parse(TEXT);
        assert_eq!((conf.memory_mib(), conf.lock()), (256, Some("backup")));
        conf.apply_pending();
        assert_eq!((conf.memory_mib(), conf.lock()), (300, None));
        assert_eq!(conf.snapshots[0].1.get("memory"), Some("128"));
    }

    #[test]
    fn when_a_line_is_garbage_then_it_is_kept_apart() {
        assert_eq!(VmConf::parse("name: x\nfoo bar baz\n").unparsable, ["foo bar baz"]);
    }

    #[test]
    fn when_a_disk_is_throttled_then_qemu_gets_bytes() {
        let disk = Disk::parse("local:102/vm-102-disk-0.qcow2,iothread=1,iops=10,mbps_wr=5,mbps_wr_max=6");
        assert_eq!(disk.path(), "/var/lib/vz/images/102/vm-102-disk-0.qcow2");
        assert_eq!(disk.throttling(), ["throttling.iops-total=10", "throttling.bps-write=5242880", "throttling.bps-write-max=6291456"]);
    }
}
