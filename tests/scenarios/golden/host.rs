//! A disposable Proxmox-like host for one case: namespaces of its own, PVE's paths on tmpfs, the stand-in as `/usr/sbin/qm`.
//!
//! The laboratory's own namespace is not used: it brings a guest's image and an sshd and serves a group of scenarios, while each
//! case here wants a fresh host that is there in a tenth of a second, several at a time.
//!
//! Everything in it ends with its first process. Nothing is booted and no sshd runs here. The machine's own `/etc`, `/run`, `/tmp`
//! and `/usr/sbin` are covered, never written.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount};
use rustix::process::{WaitOptions, wait};

/// The hidden argument of a host's first process.
pub(crate) const INIT: &str = "--init";

const CONF: &str = "agent: 1
boot: order=scsi0
cores: 1
cpu: qemu64
kvm: 0
memory: 256
meta: creation-qemu=9.2.0,ctime=1735689600
name: devvm
numa: 0
onboot: 1
ostype: l26
scsi0: local:102/vm-102-disk-0.qcow2,iothread=1,size=1G
scsihw: virtio-scsi-single
serial0: socket
smbios1: uuid=3d3e5f8e-0000-4000-8000-000000000102
sockets: 1
vga: std
";

/// Where the unified hierarchy is on the machine, if it has one.
fn unified() -> Option<PathBuf> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from).into_iter().find(|dir| dir.join("cgroup.procs").exists())
}

/// Runs this program again with `args` inside a new host; gives whether it succeeded, and what it printed.
pub(crate) fn run(args: &[&str], limit: Duration) -> (bool, String) {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    let group = unified().map(|dir| dir.join(format!("lab-golden-{}-{number}", std::process::id())));
    let group = group.filter(|dir| fs::create_dir(dir).is_ok());
    let me = std::env::current_exe().expect("this program has a path");
    // A control group of its own first: what is its root then is the root of the namespace that unshare makes.
    let enter = "test -z \"$1\" || echo $$ > \"$1/cgroup.procs\" || exit 1; shift; exec unshare --mount --pid --fork --mount-proc --kill-child --uts --cgroup \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", enter, "sh"]).arg(group.as_deref().unwrap_or(Path::new(""))).arg(me).arg(INIT).args(args);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("sh starts");
    let mut pipes: Vec<_> = Vec::new();
    for mut pipe in
        [child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>), child.stderr.take().map(|pipe| Box::new(pipe) as _)]
            .into_iter()
            .flatten()
    {
        pipes.push(std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = pipe.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        }));
    }
    let end = Instant::now() + limit;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            _ if Instant::now() > end => {
                // --kill-child takes the host with it.
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let mut text: String = pipes.into_iter().filter_map(|pipe| pipe.join().ok()).collect();
    if status.is_none() {
        text.push_str("the host took too long and was ended\n");
    }
    if let Some(group) = group {
        remove(&group);
    }
    (status.is_some_and(|status| status.success()), text)
}

/// Removes a control group and those in it; the kernel needs a moment until the last process has left.
fn remove(group: &Path) {
    for _ in 0..50 {
        for inner in ["qemu.slice/102.scope", "qemu.slice", ""] {
            let _ = fs::remove_dir(group.join(inner));
        }
        if !group.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The host's first process: makes the host, runs the rest of the arguments and collects whoever ends.
pub(crate) fn init(args: &[String]) -> i32 {
    if let Err(why) = furnish() {
        eprintln!("the host could not be made: {why}");
        return 1;
    }
    // Where this program came from may be covered by now. It is waited for below, with all the others.
    #[allow(clippy::zombie_processes, reason = "the loop waits for every child")]
    let child = Command::new("/usr/sbin/golden").args(args).spawn().expect("this program starts again");
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get().cast_unsigned() == child.id() => {
                return status.exit_status().unwrap_or(1);
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(why) => {
                eprintln!("the first process can't wait: {why}");
                return 1;
            }
        }
    }
}

fn tmpfs(at: &str) -> std::io::Result<()> {
    fs::create_dir_all(at)?;
    mount("tmpfs", at, "tmpfs", MountFlags::empty(), None)?;
    Ok(())
}

/// Covers a directory of the machine with a writable copy.
fn cover(dir: &str, scratch: &str) -> std::io::Result<()> {
    let (upper, work) = (format!("{scratch}/upper"), format!("{scratch}/work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let options = std::ffi::CString::new(format!("lowerdir={dir},upperdir={upper},workdir={work}"))?;
    mount("overlay", dir, "overlay", MountFlags::empty(), Some(options.as_c_str()))?;
    Ok(())
}

fn furnish() -> std::io::Result<()> {
    // Read before anything is covered.
    let qm = fs::read(env!("CARGO_BIN_EXE_qm"))?;
    let me = fs::read(std::env::current_exe()?)?;
    for dir in ["/run", "/var/log", "/var/lib"] {
        tmpfs(dir)?;
    }
    for dir in ["/run/lock/qemu-server", "/run/qemu-server", "/run/lab", "/var/lib/vz/images/102", "/var/log/pve/tasks"] {
        fs::create_dir_all(dir)?;
    }
    cover("/etc", "/run/lab/etc")?;
    cover("/usr/sbin", "/run/lab/sbin")?;
    for (path, bytes) in [("/usr/sbin/qm", qm), ("/usr/sbin/golden", me)] {
        fs::write(path, bytes)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    tmpfs("/etc/pve")?;
    for dir in ["nodes/pve/qemu-server", "nodes/other/qemu-server", "ha"] {
        fs::create_dir_all(Path::new("/etc/pve").join(dir))?;
    }
    symlink("nodes/pve", "/etc/pve/local")?;
    symlink("local/qemu-server", "/etc/pve/qemu-server")?;
    fs::write("/etc/pve/.version", "{\"starttime\":1,\"clinfo\":1,\"vmlist\":1}\n")?;
    fs::write("/etc/pve/.vmlist", "{\"version\":1,\"ids\":{\"102\":{\"node\":\"pve\",\"type\":\"qemu\",\"version\":1}}}\n")?;
    fs::write("/etc/pve/qemu-server/102.conf", CONF)?;
    tmpfs("/tmp")?;
    rustix::system::sethostname(b"pve")?;
    if unified().is_some() {
        mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MountFlags::empty(), None)?;
    }
    let image =
        Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", "/var/lib/vz/images/102/vm-102-disk-0.qcow2", "1G"]).status()?;
    if image.success() { Ok(()) } else { Err(std::io::Error::other("qemu-img failed")) }
}
