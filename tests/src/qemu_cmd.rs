//! The command line with which PVE starts a VM's QEMU, from its configuration.
//!
//! The lab and the stand-in `qm` both start VM 102 through [`command_line`], so there is one place that says what
//! stands on it. It starts nothing. Against PVE 8.4 it differs in four ways, each for a reason:
//! - no `-id 102` and no `+pve0` machine type: PVE patches both into its QEMU, Debian's refuses them;
//! - `-accel tcg` always: a `/dev/kvm` may exist on which no guest boots;
//! - a second monitor at [`LAB_MONITOR`] in the place of qmeventd's, so that tests inject faults and observe without
//!   occupying `102.qmp`, which takes a single client;
//! - what the serial console says is also written to [`SERIAL_LOG`], for whoever asks why a guest did not boot.
//!
//! Kernel, initrd and network come from the `args:` key, which real PVE has too.

use std::ffi::OsString;

pub use crate::vm_conf::{Disk, Section, VmConf};

/// PVE's argv\[0\]; in the lab a link to `qemu-system-x86_64`, as on PVE.
pub const KVM: &str = "/usr/bin/kvm";
/// Where pidfile and sockets are, spelt as PVE spells it.
pub const RUN_DIR: &str = "/var/run/qemu-server";
/// `-pidfile`.
pub const PID_FILE: &str = "/var/run/qemu-server/102.pid";
/// QMP, one client at a time.
pub const QMP: &str = "/var/run/qemu-server/102.qmp";
/// The guest agent's channel.
pub const QGA: &str = "/var/run/qemu-server/102.qga";
/// VNC.
pub const VNC: &str = "/var/run/qemu-server/102.vnc";
/// The serial console.
pub const SERIAL: &str = "/var/run/qemu-server/102.serial0";
/// The lab's own monitor. No PVE host has it; the shipped binary must never look at it.
pub const LAB_MONITOR: &str = "/run/lab/102.mon";
/// What the serial console said since QEMU's start. The lab's own too.
pub const SERIAL_LOG: &str = "/run/lab/serial.log";
/// The cgroup of the VM's scope, below `/sys/fs/cgroup`.
pub const SCOPE: &str = "/sys/fs/cgroup/qemu.slice/102.scope";
/// The configuration.
pub const CONF: &str = "/etc/pve/qemu-server/102.conf";

/// QEMU's whole command line for VM 102, `argv[0]` included.
///
/// The caller moves itself into [`SCOPE`] before it executes it, as systemd does on PVE, with umask 0027 (the daemon
/// keeps it; what `screendump` writes has mode 640).
pub fn command_line(conf: &VmConf) -> Vec<OsString> {
    let mut line = Line(vec![KVM.into()]);
    line.option("-name", format!("{},debug-threads=on", conf.name()));
    line.flag("-no-shutdown");
    line.option("-chardev", format!("socket,id=qmp,path={QMP},server=on,wait=off"));
    line.option("-mon", "chardev=qmp,mode=control");
    line.option("-chardev", format!("socket,id=lab,path={LAB_MONITOR},server=on,wait=off"));
    line.option("-mon", "chardev=lab,mode=control");
    line.option("-pidfile", PID_FILE);
    line.flag("-daemonize");
    if let Some(smbios) = conf.current.get("smbios1") {
        line.option("-smbios", format!("type=1,{smbios}"));
    }
    let cpus = conf.cores() * conf.sockets();
    line.option("-smp", format!("{cpus},sockets={},cores={},maxcpus={cpus}", conf.sockets(), conf.cores()));
    line.flag("-nodefaults");
    line.option("-boot", "menu=on,strict=on,reboot-timeout=1000");
    line.option("-vnc", format!("unix:{VNC},password=on"));
    line.option("-cpu", conf.current.get("cpu").unwrap_or("qemu64"));
    line.option("-m", conf.memory_mib().to_string());
    line.option("-machine", "type=pc");
    line.option("-accel", "tcg");
    line.display(conf);
    line.agent(conf);
    line.option("-device", "virtio-balloon-pci,id=balloon0,bus=pci.0,addr=0x3");
    for (n, disk) in conf.disks() {
        line.disk(n, &disk, conf.current.get("scsihw") == Some("virtio-scsi-single"));
    }
    for word in conf.current.get("args").map(split_words).unwrap_or_default() {
        line.0.push(word.into());
    }
    line.0
}

struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn option(&mut self, flag: &str, value: impl Into<String>) {
        self.flag(flag);
        self.0.push(value.into().into());
    }

    fn display(&mut self, conf: &VmConf) {
        if conf.serial_socket() {
            self.option("-chardev", format!("socket,id=serial0,path={SERIAL},server=on,wait=off,logfile={SERIAL_LOG}"));
            self.option("-device", "isa-serial,chardev=serial0");
        }
        match conf.current.get("vga") {
            None | Some("std") => self.option("-device", "VGA,id=vga,bus=pci.0,addr=0x2"),
            Some("none" | "serial0") => self.option("-vga", "none"),
            Some(other) => self.option("-vga", other),
        }
    }

    fn agent(&mut self, conf: &VmConf) {
        if conf.agent() {
            self.option("-chardev", format!("socket,path={QGA},server=on,wait=off,id=qga0"));
            self.option("-device", "virtio-serial,id=qga0,bus=pci.0,addr=0x8");
            self.option("-device", "virtserialport,chardev=qga0,name=org.qemu.guest_agent.0");
        }
    }

    /// A disk and its controller, as with `scsihw: virtio-scsi-single` (a controller for each disk) or without.
    fn disk(&mut self, n: u32, disk: &Disk, own_controller: bool) {
        let iothread = disk.iothread() && own_controller;
        if iothread {
            self.option("-object", format!("iothread,id=iothread-virtioscsi{n}"));
        }
        let (controller, scsi_id, unit) = if own_controller { (format!("virtioscsi{n}"), 0, n) } else { ("scsihw0".into(), n, 0) };
        if own_controller || n == 0 {
            let thread = if iothread { format!(",iothread=iothread-virtioscsi{n}") } else { String::new() };
            // PVE puts it behind a bridge (bus=pci.3); one bus is enough here.
            self.option("-device", format!("virtio-scsi-pci,id={controller},bus=pci.0,addr={:#x}{thread}", 0x10 + unit));
        }
        let get = |key: &str, default: &'static str| disk.options.get(key).unwrap_or(default).to_owned();
        let throttling: String = disk.throttling().iter().map(|limit| format!("{limit},")).collect();
        self.option(
            "-drive",
            format!(
                "file={},if=none,id=drive-scsi{n},{throttling}format={},cache={},aio={},detect-zeroes=on",
                disk.path(),
                disk.format(),
                get("cache", "none"),
                get("aio", "io_uring"),
            ),
        );
        let boot = 100 + n;
        self.option(
            "-device",
            format!("scsi-hd,bus={controller}.0,channel=0,scsi-id={scsi_id},lun=0,drive=drive-scsi{n},id=scsi{n},bootindex={boot}"),
        );
    }
}

/// Splits `args:` as PVE does (Perl's shellwords): white space, single and double quotes, backslash.
pub fn split_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(chars.next()),
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::{VmConf, command_line, split_words};

    fn words(text: &str) -> String {
        let all: Vec<_> = command_line(&VmConf::parse(text)).iter().map(|w| w.to_string_lossy().into_owned()).collect();
        all.join(" ")
    }

    #[test]
    fn when_words_are_quoted_then_they_stay_one_word() {
        assert_eq!(split_words("-a 'b c' \"d \\\" e\" f\\ g ''"), ["-a", "b c", "d \" e", "f g", ""]);
    }

    #[test]
    fn when_the_vm_is_devvm_then_the_line_is_what_pve_would_use() {
        let line = words("name: devvm\nagent: 1\nscsihw: virtio-scsi-single\nserial0: socket\nscsi0: local:102/d.qcow2,iothread=1,mbps_wr=5\nargs: -kernel /k");
        for part in [
            "/usr/bin/kvm -name devvm,debug-threads=on",
            "-pidfile /var/run/qemu-server/102.pid -daemonize",
            "-accel tcg",
            "iothread=iothread-virtioscsi0",
            "file=/var/lib/vz/images/102/d.qcow2,if=none,id=drive-scsi0,throttling.bps-write=5242880,format=qcow2,cache=none,aio=io_uring",
            "name=org.qemu.guest_agent.0",
            "-kernel /k",
        ] {
            assert!(line.contains(part), "expected {part:?} in {line}");
        }
    }

    #[test]
    fn when_the_agent_is_off_then_there_is_no_channel_for_it() {
        assert!(!words("name: devvm").contains("guest_agent"));
    }
}
