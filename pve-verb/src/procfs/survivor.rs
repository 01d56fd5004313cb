//! What holds a VM's disk although PVE calls it stopped: a zombie whose threads live on, a QEMU without its pidfile.
//!
//! Command lines are read only where nothing else tells, and each on a thread of its own: a process that hangs in the kernel with its
//! memory locked lets nobody read its command line, and must not hide the state of a VM that it has nothing to do with.

use super::{is_qemu_of, parse_stat, read_capped, read_text};
use proto::Vmid;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// A process that holds the VM's disk although PVE calls the VM stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survivor {
    /// Its pid.
    pub pid: u32,
    /// What it is, in a sentence.
    pub text: String,
}

/// How long all command lines may take together; reading one takes microseconds.
const WITHIN: Duration = Duration::from_millis(300);

/// What reads a command line; it may never come back.
type Read = Arc<dyn Fn(&Path) -> io::Result<Vec<u8>> + Send + Sync>;

/// What holds the VM's disk; `skip` is the process that PVE does see. Nothing, where every process was looked at and none does.
///
/// # Errors
/// Where that could not be found out: which process did not let itself be looked at.
pub fn survivor(vmid: Vmid, skip: Option<u32>) -> Result<Option<Survivor>, String> {
    let read = |path: &Path| read_capped(path, 1024 * 1024);
    survivor_in(Path::new("/proc"), vmid, skip, Arc::new(read), WITHIN)
}

/// Whose a process is, by its cgroup. That can always be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Ours,
    AnotherVms,
    NoVms,
}

fn survivor_in(proc: &Path, vmid: Vmid, skip: Option<u32>, read: Read, within: Duration) -> Result<Option<Survivor>, String> {
    let entries = std::fs::read_dir(proc).map_err(|e| format!("{}: {e}", proc.display()))?;
    let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let survivor = |pid, text| Survivor { pid, text };
    let mut asked = BTreeMap::new();
    let (to, from) = mpsc::channel();
    for pid in pids.filter(|pid| Some(*pid) != skip) {
        let dir = proc.join(pid.to_string());
        let Some(stat) = read_text(dir.join("stat")).ok().and_then(|t| parse_stat(&t)) else { continue };
        // By its name first: of all the host's processes a few are QEMUs.
        if !(stat.comm.contains("kvm") || stat.comm.starts_with("qemu")) {
            continue;
        }
        let scope = read_text(dir.join("cgroup")).map_or(Scope::NoVms, |text| scope(&text, vmid));
        match (scope, stat.state) {
            (Scope::AnotherVms, _) => continue,
            // An ended process keeps its scope only while threads of it live on, which then hold what they were doing.
            (Scope::Ours, 'Z') if stat.threads > 1 => {
                let left = stat.threads - 1;
                return Ok(Some(survivor(
                    pid,
                    format!("process {pid} was killed, but {left} of its threads live on in the kernel and hold the disk"),
                )));
            }
            (_, 'Z') => continue,
            _ if !on_this_host(proc, pid) => continue,
            _ => {}
        }
        asked.insert(pid, (scope, stat.state));
        let (to, read) = (to.clone(), Arc::clone(&read));
        // A thread that can't be started leaves its question open, as one that hangs does.
        let _ = std::thread::Builder::new().spawn(move || to.send((pid, read(&dir.join("cmdline")))));
    }
    drop(to);
    let until = Instant::now() + within;
    while let Ok((pid, cmdline)) = from.recv_timeout(until.saturating_duration_since(Instant::now())) {
        let Some((scope, state)) = asked.remove(&pid) else { continue };
        // One that can't be read is one that has ended meanwhile.
        let Ok(cmdline) = cmdline else { continue };
        // An ending process gives its memory back, and its command line with it, before it closes its files: that may take long.
        if cmdline.is_empty() && scope == Scope::Ours {
            return Ok(Some(survivor(pid, format!("process {pid} is ending and has not let go of its files (state {state})"))));
        }
        if is_qemu_of(&cmdline, vmid).is_some() {
            return Ok(Some(survivor(pid, format!("process {pid} is a QEMU of VM {vmid} that its pidfile does not name (state {state})"))));
        }
    }
    let hidden = asked.iter().find(|(_, (scope, _))| *scope == Scope::Ours).or_else(|| asked.iter().next());
    match hidden {
        None => Ok(None),
        Some((pid, (Scope::Ours, state))) => Ok(Some(survivor(
            *pid,
            format!("process {pid} is in the VM's scope and hangs so that its command line can't be read (state {state})"),
        ))),
        Some((pid, (_, state))) => Err(format!("the command line of process {pid}, perhaps a QEMU, could not be read (state {state})")),
    }
}

/// The scope in `/proc/PID/cgroup`, in either version: `0::/qemu.slice/102.scope`.
fn scope(text: &str, vmid: Vmid) -> Scope {
    let number = |line: &str| {
        let path = line.splitn(3, ':').nth(2)?;
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        path.strip_prefix("/qemu.slice/")?.strip_suffix(".scope")?.parse::<u32>().ok()
    };
    match text.lines().find_map(number) {
        Some(number) if number.to_string() == vmid.to_string() => Scope::Ours,
        Some(_) => Scope::AnotherVms,
        None => Scope::NoVms,
    }
}

/// Whether a process sees our files, or those that the host's first process sees: a PVE in a container may have a VM of the same
/// number. One that does not say counts as ours.
fn on_this_host(proc: &Path, pid: u32) -> bool {
    let mounts = |of: &str| std::fs::read_link(proc.join(of).join("ns/mnt")).ok();
    let theirs = mounts(&pid.to_string());
    theirs.is_none() || theirs == mounts("self") || theirs == mounts("1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    const QEMU: &str = "/usr/bin/kvm\0-pidfile\0/run/qemu-server/102.pid\0";

    struct Proc(tempfile::TempDir);

    impl Proc {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn process(&self, pid: u32, state: char, scope: &str, cmdline: &str) {
            let dir = self.0.path().join(pid.to_string());
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join("stat"), format!("{pid} (kvm) {state} 1 1 1 0 -1 0 0 0 0 0 7 3 0 0 20 0 7 0 5 0 0")).unwrap();
            std::fs::write(dir.join("cgroup"), format!("1:name=systemd:{scope}\n0::{scope}\n")).unwrap();
            std::fs::write(dir.join("cmdline"), cmdline).unwrap();
        }

        /// Searches; the command lines of the processes in `hang` can't be read.
        fn survivor(&self, skip: Option<u32>, hang: &'static [u32]) -> (Result<Option<String>, String>, bool) {
            let asked = Arc::new(AtomicBool::new(false));
            let touched = Arc::clone(&asked);
            let read = move |path: &Path| {
                if hang.iter().any(|pid| path.parent().unwrap().ends_with(pid.to_string())) {
                    touched.store(true, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_secs(3_600));
                }
                read_capped(path, 1024)
            };
            // Where nothing hangs nobody waits that long; where something does, the others have a second to be read.
            let within = Duration::from_secs(if hang.is_empty() { 20 } else { 1 });
            let found = survivor_in(self.0.path(), Vmid::DEVVM, skip, Arc::new(read), within);
            let found = found.map(|left| left.map(|left| left.text));
            (found, asked.load(Ordering::SeqCst))
        }
    }

    #[test]
    fn another_vms_hung_process_is_not_even_looked_at() {
        let proc = Proc::new();
        proc.process(40, 'D', "/qemu.slice/103.scope", "");
        proc.process(41, 'D', "/qemu.slice/1020.scope (deleted)", "");
        assert_eq!(proc.survivor(None, &[40, 41]), (Ok(None), false));
    }

    #[test]
    fn a_process_that_hangs_is_a_survivor_in_our_scope_and_unknown_outside_of_any() {
        let proc = Proc::new();
        proc.process(40, 'D', "/system.slice", "");
        let (found, asked) = proc.survivor(None, &[40]);
        assert!(asked && found.as_ref().is_err_and(|why| why.contains("process 40")), "{found:?}");
        proc.process(41, 'D', "/qemu.slice/102.scope", "");
        let (found, _) = proc.survivor(None, &[40, 41]);
        assert!(found.as_ref().is_ok_and(|s| s.as_ref().is_some_and(|s| s.contains("process 41") && s.contains("hangs"))), "{found:?}");
        assert!(proc.survivor(Some(41), &[40, 41]).0.is_err(), "the process that PVE sees is none");
        // What does not hang tells all the same.
        proc.process(42, 'S', "/elsewhere", QEMU);
        assert!(proc.survivor(Some(41), &[40]).0.unwrap().unwrap().contains("process 42 is a QEMU"));
    }

    #[test]
    fn what_holds_the_disk_of_a_stopped_vm_is_named() {
        for (state, scope, cmdline, words) in [
            ('S', "/user.slice", QEMU, Some("that its pidfile does not name")),
            ('S', "/qemu.slice/102.scope", "", Some("has not let go of its files")),
            ('Z', "/qemu.slice/102.scope (deleted)", "", Some("6 of its threads live on")),
            ('Z', "/user.slice", "", None),
            ('S', "/user.slice", "/usr/bin/kvm\0-pidfile\0/run/qemu-server/1020.pid\0", None),
            ('S', "/user.slice", "", None),
        ] {
            let proc = Proc::new();
            proc.process(40, state, scope, cmdline);
            let found = proc.survivor(None, &[]).0.unwrap();
            assert_eq!(found.is_some(), words.is_some(), "{state} {scope}: {found:?}");
            assert!(words.is_none_or(|words| found.as_deref().unwrap_or_default().contains(words)), "{found:?}");
        }
    }
}
