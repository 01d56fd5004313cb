//! Ways to wedge VM 102 and its host, each a function. Those that can be undone give a guard that undoes them.
//!
//! They cause faults and judge nothing. Faults inside the guest have no undo but a reset or [`crate::Lab::fresh`].

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};
use rustix::process::Signal;
use serde_json::json;

use crate::error::{Context, Error, Result};
use crate::fuse::{self, Hang, Served, hang};
use crate::host::{DISK, Host};
use crate::namespace::tmpfs;
use crate::process::{must, run, until};
use crate::qemu_cmd::{PID_FILE, QMP, SERIAL_LOG};
use crate::vm::{Vm, send, stop};

const GUEST_WRITER: &str = "while :; do dd if=/dev/zero of=/data/load bs=64k count=64 oflag=direct conv=notrunc 2>/dev/null; done";

/// Undoes a fault when it is dropped, or earlier by [`Undo::now`].
#[must_use = "the fault ends when this is dropped"]
pub struct Undo(Option<Box<dyn FnOnce() + Send>>);

impl std::fmt::Debug for Undo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Undo")
    }
}

impl Undo {
    fn by(undo: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(undo)))
    }
    /// Ends the fault now.
    pub fn now(self) {}
    /// Leaves the fault as it is, for ever.
    pub fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(undo) = self.0.take() {
            undo();
        }
    }
}

/// QEMU's block layer stalls while the guest writes: QMP answers, `io-status` is ok, writes are flat.
///
/// Undone by lifting the throttle; after a `system_reset` in this state QMP is dead and only a kill helps.
pub fn block_stall(vm: &Vm) -> Result<Undo> {
    vm.guest_background(GUEST_WRITER)?;
    let before = vm.writes()?;
    until("the guest's writing", Duration::from_secs(30), || vm.writes().ok().filter(|now| *now > before + 5))?;
    throttle(vm, 1)?;
    // What was in flight, and one request that the bucket still holds, may pass. It is a stall once the guest waits and nothing did for
    // longer than a busy machine keeps the I/O thread from its work.
    let (mut last, mut flat) = (u64::MAX, 0);
    until("the stall", Duration::from_secs(40), || {
        std::thread::sleep(Duration::from_millis(700));
        let now = vm.writes().ok()?;
        flat = if std::mem::replace(&mut last, now) == now { flat + 1 } else { 0 };
        (flat >= 2 && vm.waiting().is_ok_and(|n| n > 0)).then_some(())
    })?;
    let vm = vm.clone();
    Ok(Undo::by(move || {
        let _restarted = throttle(&vm, 0);
        let _restarted = vm.guest_within("pkill -f 'of=/data/load'; pkill dd", Duration::from_secs(30));
    }))
}

fn throttle(vm: &Vm, bytes: u64) -> Result<()> {
    let none = json!({"device": "drive-scsi0", "bps": bytes, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0});
    vm.qmp("block_set_io_throttle", none).map(drop)
}

/// QEMU itself hangs: SIGSTOP, undone by SIGCONT.
pub fn qemu_stopped(vm: &Vm) -> Result<Undo> {
    let pid = vm.pid().ok_or_else(|| Error::new("VM 102 has no process to stop", "Start it first"))?;
    stop(pid)?;
    Ok(Undo::by(move || drop(send(pid, Signal::CONT))))
}

/// The guest's kernel panics and stays so: QMP says `running`, nothing inside answers.
pub fn guest_panic(vm: &Vm) -> Result<()> {
    vm.guest_last("sleep 0.3; echo c > /proc/sysrq-trigger")?;
    gone(vm, "the guest's panic")?;
    // A login that failed for another reason is not the panic.
    let said = || String::from_utf8_lossy(&fs::read(SERIAL_LOG).unwrap_or_default()).contains("Kernel panic - not syncing");
    until("the panic on the guest's console", Duration::from_secs(30), || said().then_some(()))
}

/// The guest runs out of memory for good: what eats it is no process that could be killed.
pub fn guest_oom(vm: &Vm) -> Result<()> {
    vm.guest_background("mkdir -p /eat; mount -t tmpfs -o size=200% eat /eat; dd if=/dev/zero of=/eat/all bs=1M")?;
    gone(vm, "the guest's lack of memory")
}

fn gone(vm: &Vm, what: &str) -> Result<()> {
    let dead = || vm.guest_within("true", Duration::from_secs(5)).map_or(Some(()), |answer| (answer.status != 0).then_some(()));
    until(what, Duration::from_secs(60), dead)
}

/// The guest's disk is full; undone by removing what fills it.
pub fn guest_disk_full(vm: &Vm) -> Result<Undo> {
    vm.guest("dd if=/dev/zero of=/data/fill bs=1M 2>/dev/null; sync; true")?;
    let vm = vm.clone();
    Ok(Undo::by(move || drop(vm.guest("rm -f /data/fill; sync"))))
}

/// The guest agent dies; undone by starting it again.
pub fn agent_killed(vm: &Vm) -> Result<Undo> {
    vm.guest("killall -9 qemu-ga; rm -f /run/qemu-ga.pid")?;
    let vm = vm.clone();
    let again = "p=$(grep -lx org.qemu.guest_agent.0 /sys/class/virtio-ports/*/name); p=${p%/name}; qemu-ga -d -m virtio-serial -p /dev/${p##*/} -f /run/qemu-ga.pid";
    Ok(Undo::by(move || drop(vm.guest(again))))
}

/// The guest's sshd drops what comes: the port answers no more. No undo from outside: boot again.
pub fn guest_ssh_dropped(vm: &Vm) -> Result<()> {
    vm.guest_last("sleep 0.3; killall -9 dropbear")?;
    gone(vm, "the end of the guest's sshd")
}

/// `lock: WORD` stands in the configuration; undone by removing it.
pub fn config_lock(host: &Host, word: &str) -> Result<Undo> {
    host.set_conf(|conf| conf.current.set("lock", word))?;
    Ok(Undo::by(|| {
        if let Ok(text) = fs::read_to_string(crate::qemu_cmd::CONF) {
            let mut conf = crate::qemu_cmd::VmConf::parse(&text);
            conf.current.remove("lock");
            let _hung = fs::write(crate::qemu_cmd::CONF, conf.to_text());
        }
    }))
}

/// A task that owns such a lock and lives: a process, and its line in `tasks/active`. Undone by ending it.
pub fn live_task(kind: &str) -> Result<Undo> {
    let mut child = Command::new("/usr/bin/sleep").arg("600").spawn().context("start a task")?;
    let (pid, stat) = (child.id(), fs::read_to_string(format!("/proc/{}/stat", child.id())).context("look at the task")?);
    let started: u64 = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(19)?.parse().ok()).unwrap_or(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let upid = format!("UPID:pve:{pid:08X}:{started:08X}:{now:08X}:{kind}:102:root@pam:");
    let active = "/var/log/pve/tasks/active";
    let before = fs::read_to_string(active).unwrap_or_default();
    fs::write(active, format!("{upid} 0\n{before}")).context("write the active tasks")?;
    Ok(Undo::by(move || {
        let _gone = child.kill();
        let _reaped = child.wait();
        let _unwritable = fs::write(active, before);
    }))
}

/// QEMU was killed behind everyone's back: pidfile and sockets stay behind.
pub fn stale_pidfile(vm: &Vm) -> Result<()> {
    let pid = vm.pid().ok_or_else(|| Error::new("VM 102 has no process to kill", "Start it first"))?;
    send(pid, Signal::KILL)?;
    until("QEMU's end", Duration::from_secs(30), || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()))
}

/// The pidfile names a process that is not QEMU; QEMU must not run. Undone by removing both. Gives the process's id.
pub fn reused_pid() -> Result<(u32, Undo)> {
    let mut child = Command::new("/usr/bin/sleep").arg("600").spawn().context("start a process")?;
    let pid = child.id();
    fs::write(PID_FILE, format!("{pid}\n")).context("write the pidfile")?;
    let undo = Undo::by(move || {
        let _gone = child.kill();
        let _reaped = child.wait();
        let _gone = fs::remove_file(PID_FILE);
    });
    Ok((pid, undo))
}

/// `/etc/pve` hangs: whoever looks at it waits. Undone by dropping it.
pub fn etc_pve_hung(how: Hang) -> Result<Served> {
    hang("/etc/pve", how)
}

/// The folder's disk hangs, what is in it included.
pub fn disk_hung(folder: &str) -> Result<Served> {
    fs::create_dir_all(folder).context(format!("create {folder}"))?;
    hang(folder, Hang::Uninterruptible)
}

/// The folder's disk is full, to the last byte; what was there still is. Undone by uncovering the former one.
pub fn disk_full(folder: &str) -> Result<Undo> {
    let undo = replace_by_tmpfs(folder, "size=4m,mode=700")?;
    let mut fill = File::create(Path::new(folder).join(".fill")).context("fill a disk")?;
    for block in [65536, 4096, 1] {
        while fill.write_all(&vec![0; block]).is_ok() {}
    }
    Ok(undo)
}

/// The folder's disk is read-only. Undone by making it writable.
pub fn disk_read_only(folder: &str) -> Result<Undo> {
    fs::create_dir_all(folder).context(format!("create {folder}"))?;
    mount_bind(folder, folder).context(format!("bind {folder}"))?;
    mount_remount(folder, MountFlags::BIND | MountFlags::RDONLY, "").context(format!("make {folder} read-only"))?;
    Ok(uncover(folder))
}

fn replace_by_tmpfs(folder: &str, options: &str) -> Result<Undo> {
    fs::create_dir_all(folder).context(format!("create {folder}"))?;
    let kept = tempfile::tempdir_in("/run/lab").context("make room for a copy")?;
    let inside = format!("{folder}/.");
    must("cp", ["-a", &inside, &kept.path().to_string_lossy()])?;
    tmpfs(folder, options)?;
    let undo = uncover(folder);
    must("cp", ["-a", &format!("{}/.", kept.path().display()), folder])?;
    Ok(undo)
}

fn uncover(folder: &str) -> Undo {
    let folder = folder.to_owned();
    Undo::by(move || {
        let _already_gone = unmount(folder.as_str(), UnmountFlags::DETACH);
    })
}

/// Someone holds `102.qmp` open and says nothing: it takes one client. Undone by closing it.
///
/// It is held from QEMU's greeting on: until then QEMU may be stopped before it has let this client in.
pub fn qmp_held() -> Result<UnixStream> {
    let mut held = UnixStream::connect(QMP).context("connect to 102.qmp")?;
    held.set_read_timeout(Some(Duration::from_secs(20))).context("set a time limit")?;
    held.read_exact(&mut [0]).context("be greeted on 102.qmp")?;
    Ok(held)
}

/// A `qm` that waits before it stops the VM, a minute at most, until it is let go: a mutation stays where it is meanwhile.
#[derive(Debug)]
#[must_use = "qm is itself again when this is dropped"]
pub struct WaitingQm {
    _in_place: crate::installed::Script,
}

const QM_WAITS: &str = "/run/lab/qm-waits";

/// See [`WaitingQm`].
pub fn qm_stop_waits(lab: &crate::Lab) -> Result<WaitingQm> {
    fs::write(QM_WAITS, "").context("have qm wait")?;
    let wait = format!("n=0; while [ \"$1\" = stop ] && [ -e {QM_WAITS} ] && [ $n -lt 600 ]; do n=$((n + 1)); sleep 0.1; done");
    crate::installed::qm_script(lab, &format!("{wait}\nexec /usr/sbin/qm.real \"$@\"")).map(|script| WaitingQm { _in_place: script })
}

impl WaitingQm {
    /// It goes on. Keep this until it has ended: its second half is only there as long.
    pub fn go_on(&self) {
        let _already = fs::remove_file(QM_WAITS);
    }
}

impl Drop for WaitingQm {
    fn drop(&mut self) {
        self.go_on();
    }
}

/// A backend in front of VM 102's disk that can stop answering under QEMU. The VM must be stopped to put it there.
#[derive(Debug)]
pub enum Backend {
    /// A file system, at PVE's own path: QEMU's I/O threads hang in state D, deaf to SIGKILL.
    File(Served),
    /// An NBD server that `scsi0:` names (which no PVE configuration would): QEMU waits in user space.
    Nbd(Child),
}

const BACKEND: &str = "/var/lib/vz/lab/backend.raw";

/// Shows the disk through a file system of the lab's. Boot afterwards.
pub fn file_backend(host: &Host) -> Result<Backend> {
    let raw = "/var/lib/vz/images/102/vm-102-disk-0.raw";
    must("qemu-img", ["convert", "-O", "raw", DISK, BACKEND])?;
    File::create(raw).context("create the disk's place")?;
    let content = File::options().read(true).write(true).open(BACKEND).context("open the disk")?;
    let served = fuse::disk(raw, content)?;
    // Not io_uring, PVE's default: on FUSE it does not hand a read to a worker but blocks in the I/O thread, and QMP with it.
    host.set_conf(|conf| conf.current.set("scsi0", "local:102/vm-102-disk-0.raw,iothread=1,aio=threads,size=64M"))?;
    Ok(Backend::File(served))
}

/// Serves the disk over NBD. Boot afterwards.
pub fn nbd_backend(host: &Host) -> Result<Backend> {
    let socket = "/run/lab/nbd.sock";
    let _absent = fs::remove_file(socket);
    must("qemu-img", ["convert", "-O", "raw", DISK, BACKEND])?;
    let arguments = ["--persistent", "--shared=8", "--format=raw", "--export-name=disk", "--socket", socket, BACKEND];
    let server = Command::new("qemu-nbd").args(arguments).spawn().context("start qemu-nbd")?;
    until("the NBD server's start", Duration::from_secs(30), || Path::new(socket).exists().then_some(()))?;
    let disk = format!("nbd+unix:///disk?socket={socket},iothread=1,aio=threads,size=64M");
    host.set_conf(|conf| conf.current.set("scsi0", &disk))?;
    Ok(Backend::Nbd(server))
}

impl Backend {
    /// It stops answering, until [`Backend::go_on`].
    pub fn stop(&self) -> Result<()> {
        match self {
            Self::File(served) => {
                served.stop();
                Ok(())
            }
            Self::Nbd(server) => stop(server.id()),
        }
    }

    /// It answers again.
    pub fn go_on(&self) -> Result<()> {
        match self {
            Self::File(served) => {
                served.go_on();
                Ok(())
            }
            Self::Nbd(server) => send(server.id(), Signal::CONT),
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Self::Nbd(server) = self {
            let _gone = server.kill();
            let _reaped = server.wait();
        }
    }
}

/// Runs `qm` as another task would, for scenarios with two at once.
pub fn other_qm(arguments: &[&str]) -> Result<crate::process::Finished> {
    run(Command::new("/usr/sbin/qm").args(arguments), Duration::from_secs(120))
}
