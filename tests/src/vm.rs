//! VM 102: started as `qm start` starts it, watched through the lab's own monitor, spoken to over SSH.
//!
//! It never touches `102.qmp`, which takes a single client and belongs to the programs under test.

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::client::{Answer, Ssh};
use crate::error::{Context, Error, Result};
use crate::guest::Image;
use crate::namespace::{SNAPSHOT, qemu_in_scope};
use crate::process::{run, until};
use crate::qemu_cmd::{LAB_MONITOR, PID_FILE, QGA, QMP, SCOPE, SERIAL, SERIAL_LOG, VNC};
use crate::qmp::Qmp;

/// From `qm start` to a login in the guest. Measured: 4 to 9 s; other work on the machine may triple it.
pub const BOOT: Duration = Duration::from_secs(60);
const QMP_DEADLINE: Duration = Duration::from_secs(5);

/// What the lab sees of VM 102, from the pidfile, `/proc` and its own monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// No process.
    Stopped,
    /// A process whose monitor says this RunState.
    State(String),
    /// A process whose monitor does not answer.
    Unresponsive,
}

/// VM 102.
#[derive(Debug, Clone)]
pub struct Vm {
    ssh: Ssh,
}

impl Vm {
    /// The VM that boots this image.
    pub fn new(image: &Image) -> Self {
        Self { ssh: Ssh::new("root@127.0.0.1", 2222, &image.key(), &image.known_hosts()).known_as("devvm") }
    }

    /// Starts it: through `qm start 102` where a `qm` is installed, else directly. Does not wait for the guest.
    pub fn start(&self) -> Result<()> {
        if !Path::new("/usr/sbin/qm").exists() {
            return self.start_without_qm();
        }
        run(Command::new("/usr/sbin/qm").args(["start", "102"]), Duration::from_secs(60))?.success("qm start 102").map(drop)
    }

    /// Starts its QEMU in its scope, as `qm start` would do at the end.
    pub fn start_without_qm(&self) -> Result<()> {
        run(&mut qemu_in_scope()?, Duration::from_secs(30))?.success("QEMU").map(drop)
    }

    /// Starts its QEMU in its scope, with the state that [`crate::snapshot`] saved.
    pub(crate) fn start_from_snapshot(&self) -> Result<()> {
        run(qemu_in_scope()?.env(SNAPSHOT, "load"), Duration::from_secs(30))?.success("QEMU").map(drop)
    }

    /// Starts it and waits until the guest can be logged into; says how long that took.
    pub fn boot(&self) -> Result<Duration> {
        let started = Instant::now();
        self.start()?;
        self.wait_for_ssh(BOOT)?;
        Ok(started.elapsed())
    }

    /// Waits until the guest lets root in; if it does not, the error has the end of its console.
    pub fn wait_for_ssh(&self, deadline: Duration) -> Result<()> {
        self.logged_in(deadline).map_err(|error| {
            let log = fs::read(SERIAL_LOG).unwrap_or_default();
            let log = String::from_utf8_lossy(&log[log.len().saturating_sub(800)..]).into_owned();
            Error::new(format!("{error} The guest's console ended with: {}", log.trim()), "Boot it by hand with `lab host -- qm start 102`")
        })
    }

    fn logged_in(&self, deadline: Duration) -> Result<()> {
        let started = Instant::now();
        // A connection that is forwarded too early is not refused but left hanging, so ask for the banner first, briefly.
        until("the guest's sshd", deadline, || banner().then_some(()))?;
        let left = deadline.saturating_sub(started.elapsed());
        until("a login in the guest", left, || self.guest_within("true", Duration::from_secs(8)).ok().filter(|answer| answer.status == 0))
            .map(drop)
    }

    /// Runs a command in the guest as root, at most for 30 s.
    pub fn guest(&self, command: &str) -> Result<Answer> {
        self.guest_within(command, Duration::from_secs(30))
    }

    /// The same with another deadline.
    pub fn guest_within(&self, command: &str, deadline: Duration) -> Result<Answer> {
        self.ssh.clone().within(deadline).call(command)
    }

    /// Leaves a command running in the guest.
    pub fn guest_background(&self, command: &str) -> Result<()> {
        let answer = self.guest(&in_background(command))?;
        if answer.status == 0 { Ok(()) } else { Err(guest_failed(command, &answer)) }
    }

    /// The same for a command that ends the guest or its sshd: it may cut off the login that brought it, so how that ended says nothing.
    /// Wait for what the command does.
    pub fn guest_last(&self, command: &str) -> Result<()> {
        self.guest_within(&in_background(command), Duration::from_secs(10)).map(drop)
    }

    /// The client that logs into the guest.
    pub fn ssh(&self) -> &Ssh {
        &self.ssh
    }

    /// For how long the guest has been up: it starts again at a reset and at a cycle.
    pub fn uptime(&self) -> Result<Duration> {
        let answer = self.guest("cat /proc/uptime")?;
        let seconds = answer.text().split(' ').next().and_then(|word| word.parse().ok());
        seconds.map(Duration::from_secs_f64).ok_or_else(|| guest_failed("cat /proc/uptime", &answer))
    }

    /// The process of the pidfile, if it lives and is this VM's.
    pub fn pid(&self) -> Option<u32> {
        let pid: u32 = fs::read_to_string(PID_FILE).ok()?.trim().parse().ok()?;
        is_qemu(pid).then_some(pid)
    }

    /// Every live process in the VM's scope.
    pub fn scope(&self) -> Vec<u32> {
        let list = fs::read_to_string(Path::new(SCOPE).join("cgroup.procs")).unwrap_or_default();
        list.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// When its process started, in clock ticks since the boot: with the pid it names a process for good.
    pub fn start_ticks(&self) -> Option<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()?)).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
    }

    /// A conversation over the lab's own monitor. One at a time.
    pub fn monitor(&self) -> Result<Qmp> {
        Qmp::connect(LAB_MONITOR, QMP_DEADLINE)
    }

    /// One command over the lab's own monitor.
    pub fn qmp(&self, command: &str, arguments: Value) -> Result<Value> {
        self.monitor()?.call(command, arguments, QMP_DEADLINE)
    }

    /// One command to the guest agent, over PVE's socket: only while no program under test uses it.
    pub fn agent(&self, command: &str, deadline: Duration) -> Result<Value> {
        Qmp::raw(QGA, deadline)?.call(command, json!({}), deadline)
    }

    /// What the lab sees of it now.
    pub fn observe(&self) -> Observed {
        if self.pid().is_none() && self.scope().is_empty() {
            return Observed::Stopped;
        }
        match self.qmp("query-status", json!({})) {
            Ok(answer) => Observed::State(answer["status"].as_str().unwrap_or("unknown").to_owned()),
            Err(_) => Observed::Unresponsive,
        }
    }

    /// Whether it runs, its disk takes writes and its guest lets root in.
    pub fn healthy(&self) -> bool {
        self.healthy_within(Duration::from_secs(20))
    }

    /// The same for one who boots another where it is not, so that a wrong no costs only time.
    pub(crate) fn healthy_within(&self, patience: Duration) -> bool {
        self.observe() == Observed::State("running".into())
            && self
                .guest_within("dd if=/dev/zero of=/data/.probe bs=4k count=1 oflag=direct 2>/dev/null", patience)
                .is_ok_and(|a| a.status == 0)
            && self.agent("guest-ping", patience / 2).is_ok()
    }

    /// Sends a signal to its QEMU.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().ok_or_else(|| Error::new("VM 102 has no process to signal", "Start it first"))?;
        send(pid, signal)
    }

    /// Ends it at once, whatever state it is in, and removes what it leaves behind, as `qm stop` would.
    pub fn kill(&self) -> Result<()> {
        for pid in self.scope().into_iter().chain(self.pid()) {
            // A stopped process dies of SIGKILL too; one that is gone by now is what was asked for.
            let _gone = send(pid, Signal::KILL);
        }
        until("the end of VM 102", Duration::from_secs(30), || (self.scope().is_empty() && self.pid().is_none()).then_some(()))?;
        for path in [PID_FILE, QMP, QGA, VNC, SERIAL, LAB_MONITOR] {
            let _absent = fs::remove_file(path);
        }
        let _absent = fs::remove_dir(SCOPE);
        Ok(())
    }

    /// `wr_operations` of the VM's disk: flat while it is stalled.
    pub fn writes(&self) -> Result<u64> {
        self.operations(&["wr_operations"])
    }

    /// Whatever the VM's disk has completed.
    pub fn completed(&self) -> Result<u64> {
        self.operations(&["rd_operations", "wr_operations", "flush_operations"])
    }

    fn operations(&self, kinds: &[&str]) -> Result<u64> {
        let stats = self.qmp("query-blockstats", json!({}))?;
        let disk = stats.as_array().and_then(|all| all.iter().find(|one| one["device"] == "drive-scsi0"));
        disk.and_then(|disk| kinds.iter().map(|kind| disk["stats"][*kind].as_u64()).sum())
            .ok_or_else(|| Error::new("QEMU has no statistics of drive-scsi0", "Look at `query-blockstats`"))
    }

    /// How many of the guest's requests to its disk QEMU has taken and not answered.
    pub fn waiting(&self) -> Result<u64> {
        let mut monitor = self.monitor()?;
        let devices = monitor.call("x-query-virtio", json!({}), QMP_DEADLINE)?;
        let scsi = devices.as_array().and_then(|all| all.iter().find(|one| one["name"] == "virtio-scsi"));
        let scsi = scsi.ok_or_else(|| Error::new("QEMU has no virtio-scsi", "Look at `x-query-virtio`"))?;
        // 0 and 1 are control and events.
        let queue = monitor.call("x-query-virtio-queue-status", json!({"path": scsi["path"], "queue": 2}), QMP_DEADLINE)?;
        queue["inuse"].as_u64().ok_or_else(|| Error::new("QEMU does not count a queue's requests", "Look at `x-query-virtio-queue-status`"))
    }
}

/// Whether something at the guest's SSH port greets like an sshd.
fn banner() -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", 2222)) else { return false };
    let mut start = [0; 4];
    stream.set_read_timeout(Some(Duration::from_millis(400))).is_ok() && stream.read_exact(&mut start).is_ok() && start == *b"SSH-"
}

/// Whether a process is VM 102's QEMU, by the same signs as `qm`'s.
pub fn is_qemu(pid: u32) -> bool {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
    words.first().is_some_and(|word| word.ends_with(b"kvm") || word.windows(12).any(|part| part == b"qemu-system-"))
        && words.windows(2).any(|pair| pair[0] == b"-pidfile" && pair[1] == PID_FILE.as_bytes())
}

/// Sends a signal to a process of the lab.
pub fn send(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| Error::new("That is no process id", "Give one above 0"))?;
    kill_process(pid, signal).context("signal a process of the lab")
}

/// Stops a process of the lab as SIGSTOP does, and waits until each thread stands: until then one may still take a connection. One in
/// state D stands as well, and does not stop before its disk answers.
pub fn stop(pid: u32) -> Result<()> {
    send(pid, Signal::STOP)?;
    until("the stop of every thread", Duration::from_secs(20), || {
        let mut threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
        // One that strace follows stands in `t`.
        let stands = |text: String| ["\nState:\tT", "\nState:\tt", "\nState:\tD"].iter().any(|state| text.contains(state));
        threads.all(|thread| fs::read_to_string(thread.path().join("status")).is_ok_and(stands)).then_some(())
    })
}

fn in_background(command: &str) -> String {
    let quoted = command.replace('\'', "'\\''");
    format!("setsid sh -c '{quoted}' </dev/null >/dev/null 2>&1 &")
}

fn guest_failed(command: &str, answer: &Answer) -> Error {
    let said = String::from_utf8_lossy(&answer.stderr).trim().to_owned();
    Error::new(format!("`{command}` in the guest ended with {}: {said}", answer.status), "Look at the guest's console")
}
