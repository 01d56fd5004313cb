//! QEMU's arguments for a VM: the real one's, as far as Debian's QEMU knows them, for a guest that needs no kernel.
//!
//! `-id`, `+pve0` machine types and `io_uring` are Proxmox's or this kernel's own and are left out.

use super::conf::Conf;
use super::{Fail, Run, process, start};

/// What stands after `/usr/bin/kvm`.
pub fn arguments(vmid: u32, conf: &Conf) -> Run<Vec<String>> {
    let file = |suffix: &str| process::run_file(vmid, suffix).display().to_string();
    let mut args: Vec<String> = Vec::new();
    let mut add = |name: &str, value: String| {
        args.push(name.to_owned());
        args.push(value);
    };
    add("-name", format!("{},debug-threads=on", conf.name(vmid)));
    add(
        "-chardev",
        format!("socket,id=qmp,path={},server=on,wait=off", file("qmp")),
    );
    add("-mon", "chardev=qmp,mode=control".to_owned());
    add("-pidfile", file("pid"));
    add(
        "-smp",
        format!("{0},sockets=1,cores={0},maxcpus={0}", conf.cpus()),
    );
    add("-vnc", format!("unix:{}", file("vnc")));
    add("-cpu", conf.get("cpu").unwrap_or("qemu64").to_owned());
    add("-m", conf.memory().to_string());
    add("-accel", "tcg".to_owned());
    if super::agent::enabled(conf) {
        add(
            "-chardev",
            format!("socket,path={},server=on,wait=off,id=qga0", file("qga")),
        );
        add("-device", "virtio-serial,id=qga0".to_owned());
        add(
            "-device",
            "virtserialport,chardev=qga0,name=org.qemu.guest_agent.0".to_owned(),
        );
    }
    if conf.get("serial0") == Some("socket") {
        add(
            "-chardev",
            format!(
                "socket,id=serial0,path={},server=on,wait=off",
                file("serial0")
            ),
        );
        add("-device", "isa-serial,chardev=serial0".to_owned());
    }
    if conf.get("vga").is_some() {
        add("-device", "VGA,id=vga".to_owned());
    }
    add("-device", "virtio-balloon-pci,id=balloon0".to_owned());
    for (at, (key, id, options)) in conf.disks().into_iter().enumerate() {
        let Some(path) = start::volume(&id) else {
            return Err(Fail::die(format!("no such volume '{id}'")));
        };
        let Some(lun) = key.strip_prefix("scsi") else {
            return Err(Fail::die(format!("the stand-in can't attach {key}")));
        };
        let format = if path
            .extension()
            .is_some_and(|extension| extension == "qcow2")
        {
            "qcow2"
        } else {
            "raw"
        };
        let thread = options.contains("iothread=1");
        if thread {
            add("-object", format!("iothread,id=iothread-virtioscsi{at}"));
        }
        let with = if thread {
            format!(",iothread=iothread-virtioscsi{at}")
        } else {
            String::new()
        };
        add(
            "-device",
            format!("virtio-scsi-pci,id=virtioscsi{at}{with}"),
        );
        add(
            "-drive",
            format!(
                "file={},if=none,id=drive-{key},format={format},cache=none,aio=threads,detect-zeroes=on",
                path.display()
            ),
        );
        add(
            "-device",
            format!(
                "scsi-hd,bus=virtioscsi{at}.0,lun={lun},drive=drive-{key},id={key},bootindex=100"
            ),
        );
    }
    args.extend(["-no-shutdown", "-daemonize", "-nodefaults"].map(str::to_owned));
    Ok(args)
}
