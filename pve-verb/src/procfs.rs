//! Which process is the VM, and what its threads wait for: parsers of `/proc`, and readers that use them.
//!
//! Any read here may hang in the kernel (a process in state D holds locks that `cmdline` and `smaps_rollup` take), so the readers
//! run in the probe helper's threads. The rule for "this is VM 102's QEMU" is PVE's own, so that we and `qm` mean the same process;
//! what PVE's rule overlooks (a zombie whose threads hold the disk, a QEMU without its pidfile) is reported as a survivor.

mod peer;
mod survivor;
mod thread;

pub(crate) use peer::Diagnosis;
pub use peer::{Peer, Peers, peer_of};
pub use survivor::{Survivor, survivor};
pub use thread::{Count, MainThread, Proof, Thread, threads, unresponsive_proof};

use crate::host;
use proto::{QemuProcess, Vmid};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The VM's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its pid.
    pub pid: u32,
    /// Its start in clock ticks since boot (field 22 of `stat`): with the pid, this names one process for ever.
    pub started: u64,
    /// How long it has run, in milliseconds.
    pub age_ms: u64,
    /// The program as it was called.
    pub argv0: String,
    /// The leader thread's name.
    pub comm: String,
    /// The leader thread's state, a letter.
    pub state: String,
    /// The program's file, where it could be read.
    pub exe: Option<String>,
    /// Its cgroup (version 2), where it could be read.
    pub cgroup: Option<String>,
}

impl Identity {
    /// The process as receipts name it.
    pub const fn process(&self) -> QemuProcess {
        QemuProcess { pid: self.pid, started: self.started }
    }
}

/// What a pidfile led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pidfile {
    /// There is none.
    Absent,
    /// It names a process that passes PVE's rule.
    Runs(Identity),
    /// It names one that doesn't: why.
    Stale {
        /// The pid in it, where it has one.
        pid: Option<u32>,
        /// Why it is not the VM's process.
        why: String,
    },
}

/// A line of `/proc/PID/stat`, as far as it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The thread's name; its parentheses and spaces are part of it.
    pub comm: String,
    /// Its state, a letter.
    pub state: char,
    /// CPU time in user mode, ticks.
    pub utime: u64,
    /// CPU time in the kernel, ticks.
    pub stime: u64,
    /// How many threads its process has.
    pub threads: u64,
    /// Start since boot, ticks.
    pub started: u64,
}

/// Parses a `stat` line. The name is between the first `(` and the **last** `)`: a name may contain both.
pub fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.split_once('(')?;
    let (comm, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
    Some(Stat {
        comm: comm.to_owned(),
        state: fields.first()?.chars().next()?,
        utime: number(14)?,
        stime: number(15)?,
        threads: number(20)?,
        started: number(22)?,
    })
}

/// PVE's rule on a command line: `argv[0]` ends in `kvm` or is a `qemu-system-…`, and the value of `-pidfile` is this VM's, in either
/// spelling of `/run`. Returns `argv[0]`.
pub fn is_qemu_of(cmdline: &[u8], vmid: Vmid) -> Option<String> {
    let mut args = cmdline.split(|&b| b == 0);
    let argv0 = String::from_utf8_lossy(args.next()?).into_owned();
    let name = argv0.rsplit('/').next().unwrap_or_default();
    if !argv0.ends_with("kvm") && !name.starts_with("qemu-system-") {
        return None;
    }
    let mut args = args.skip_while(|a| !matches!(*a, b"-pidfile" | b"--pidfile"));
    args.next()?;
    let pidfile = args.next()?;
    let ours = ["/var/run", "/run"].iter().any(|run| pidfile == format!("{run}/qemu-server/{vmid}.pid").as_bytes());
    ours.then_some(argv0)
}

/// A pidfile's text: digits and a newline, nothing else.
pub fn parse_pidfile(text: &str) -> Option<u32> {
    let digits = text.strip_suffix('\n').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|&pid| pid > 0)
}

/// Reads at most `most` bytes; does not block on what has nothing to say (a pipe, a device).
///
/// # Errors
/// As reading does.
pub fn read_capped(path: impl AsRef<Path>, most: u64) -> io::Result<Vec<u8>> {
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    // A file of /proc has no length, and without room the reading begins with 32 bytes: six calls in place of two.
    let mut bytes = Vec::with_capacity(usize::try_from(most).unwrap_or(usize::MAX).min(4096));
    File::options().read(true).custom_flags(nonblock).open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The same as text; what is no UTF-8 is replaced.
///
/// # Errors
/// As reading does.
pub fn read_text(path: impl AsRef<Path>) -> io::Result<String> {
    read_capped(path, 1024 * 1024).map(|b| String::from_utf8_lossy(&b).into_owned())
}

/// This VM's process by its pidfile, as PVE finds it.
///
/// # Errors
/// Where the pidfile is there and can't be read.
pub fn by_pidfile(vmid: Vmid) -> io::Result<Pidfile> {
    by_pidfile_at(&host::qemu_server(vmid, "pid"), Path::new("/proc"), vmid)
}

fn by_pidfile_at(pidfile: &Path, proc: &Path, vmid: Vmid) -> io::Result<Pidfile> {
    let text = match read_text(pidfile) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Pidfile::Absent),
        Err(e) => return Err(e),
    };
    let Some(pid) = parse_pidfile(&text) else {
        return Ok(Pidfile::Stale { pid: None, why: "the pidfile holds something else than a number".to_owned() });
    };
    Ok(match identify(proc, pid, vmid) {
        Ok(identity) => Pidfile::Runs(identity),
        Err(why) => Pidfile::Stale { pid: Some(pid), why },
    })
}

/// The process with this pid, if it passes PVE's rule.
fn identify(proc: &Path, pid: u32, vmid: Vmid) -> Result<Identity, String> {
    let dir = proc.join(pid.to_string());
    let stat = read_text(dir.join("stat")).ok().and_then(|t| parse_stat(&t)).ok_or_else(|| format!("there is no process {pid}"))?;
    if stat.state == 'Z' {
        return Err(format!("process {pid} is a zombie"));
    }
    let cmdline =
        read_capped(dir.join("cmdline"), 1024 * 1024).map_err(|e| format!("the command line of process {pid} could not be read: {e}"))?;
    let argv0 = is_qemu_of(&cmdline, vmid).ok_or_else(|| format!("process {pid} is not the QEMU of VM {vmid}"))?;
    Ok(Identity {
        pid,
        started: stat.started,
        age_ms: age_ms(stat.started),
        argv0,
        comm: stat.comm,
        state: stat.state.to_string(),
        exe: std::fs::read_link(dir.join("exe")).ok().map(|p| p.to_string_lossy().into_owned()),
        cgroup: read_text(dir.join("cgroup")).ok().and_then(|t| cgroup_v2(&t)),
    })
}

fn age_ms(started: u64) -> u64 {
    u64::try_from(host::boottime().as_millis()).unwrap_or(u64::MAX).saturating_sub(started.saturating_mul(1000 / thread::TICKS))
}

fn cgroup_v2(text: &str) -> Option<String> {
    text.lines().find_map(|l| l.strip_prefix("0::")).map(str::to_owned)
}

/// Where a VM's scope is mounted; hybrid hosts have version 2 one level deeper.
pub fn scope_dirs(vmid: Vmid) -> [String; 2] {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(|root| format!("{root}/qemu.slice/{vmid}.scope"))
}

/// The processes in the VM's scope; none where there is no scope, which does not mean that there is no process.
pub fn scope(vmid: Vmid) -> Option<Vec<u32>> {
    let text = scope_dirs(vmid).iter().find_map(|dir| read_text(format!("{dir}/cgroup.procs")).ok())?;
    // A zombie is listed as 0 in some kernels' view from another namespace; that names nobody.
    Some(text.lines().filter_map(|l| l.parse().ok()).filter(|&pid| pid != 0).collect())
}

/// When a process started, in ticks since boot; none where there is no such process.
pub fn start_time(pid: u32) -> Option<u64> {
    read_text(format!("/proc/{pid}/stat")).ok().and_then(|t| parse_stat(&t)).map(|s| s.started)
}

/// Whether a process is still the one that was observed: the same pid, started at the same tick.
pub fn is_still(process: QemuProcess) -> bool {
    start_time(process.pid) == Some(process.started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = parse_stat("1571 (kv) m) S) S 1 1571 1571 0 -1 4194624 9 0 0 0 77 33 0 0 20 0 7 0 188337 99 5").unwrap();
        assert_eq!(stat, Stat { comm: "kv) m) S".into(), state: 'S', utime: 77, stime: 33, threads: 7, started: 188_337 });
        for bad in ["", "1 (x", "1 (x) S", "1 (x) S 1 2 3"] {
            assert_eq!(parse_stat(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_rule_for_the_vms_process_is_pves() {
        let line = |args: &[&str]| args.join("\0").into_bytes();
        for good in [
            &["/usr/bin/kvm", "-id", "102", "-pidfile", "/var/run/qemu-server/102.pid", "-x"][..],
            &["qemu-system-x86_64", "-pidfile", "/run/qemu-server/102.pid"][..],
        ] {
            assert!(is_qemu_of(&line(good), Vmid::DEVVM).is_some(), "{good:?}");
        }
        for bad in [
            &["/usr/bin/kvm", "-pidfile", "/var/run/qemu-server/1020.pid"][..],
            &["/usr/bin/kvm", "-pidfile", "/var/run/qemu-server/102.pid.x"][..],
            &["/usr/bin/kvm", "-id", "102"][..],
            &["/usr/bin/kvm", "-pidfile"][..],
            &["/bin/cat", "-pidfile", "/var/run/qemu-server/102.pid"][..],
            &["/usr/bin/vim", "/usr/bin/kvm", "-pidfile", "/var/run/qemu-server/102.pid"][..],
            &[""][..],
        ] {
            assert_eq!(is_qemu_of(&line(bad), Vmid::DEVVM), None, "{bad:?}");
        }
    }

    #[test]
    fn a_pidfile_is_digits_only() {
        assert_eq!(parse_pidfile("1571\n"), Some(1571));
        for bad in ["", "\n", "-1", "+1", " 1", "1 ", "1\n\n", "0", "99999999999", "1571x"] {
            assert_eq!(parse_pidfile(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_zombie_leader_and_another_program_are_stale_not_running() {
        let dir = tempfile::tempdir().unwrap();
        let pidfile = dir.path().join("102.pid");
        assert_eq!(by_pidfile_at(&pidfile, dir.path(), Vmid::DEVVM).unwrap(), Pidfile::Absent);
        std::fs::write(&pidfile, "42\n").unwrap();
        let process = dir.path().join("42");
        std::fs::create_dir(&process).unwrap();
        let check = |state: &str, cmdline: &str| {
            std::fs::write(process.join("stat"), format!("42 (kvm) {state} 1 1 1 0 -1 0 0 0 0 0 7 3 0 0 20 0 7 0 5 0 0")).unwrap();
            std::fs::write(process.join("cmdline"), cmdline).unwrap();
            by_pidfile_at(&pidfile, dir.path(), Vmid::DEVVM).unwrap()
        };
        let qemu = "/usr/bin/kvm\0-pidfile\0/run/qemu-server/102.pid\0";
        assert!(matches!(check("Z", ""), Pidfile::Stale { pid: Some(42), why } if why.contains("zombie")));
        assert!(matches!(check("S", "/bin/cat\0"), Pidfile::Stale { pid: Some(42), .. }));
        assert!(matches!(check("D", qemu), Pidfile::Runs(i) if i.process() == QemuProcess { pid: 42, started: 5 } && i.state == "D"));
    }
}
