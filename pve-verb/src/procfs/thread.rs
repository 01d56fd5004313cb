//! Threads: what each waits for, and when the main thread proves that QEMU can't answer.

use super::{parse_stat, read_text};
use crate::host;
use proto::QemuProcess;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Clock ticks a second, as `/proc` counts CPU time (USER_HZ; 100 on every x86).
pub(super) const TICKS: u64 = 100;
/// Over how long an idle or spinning thread must be watched before that proves anything.
const WATCHED: Duration = Duration::from_millis(1_000);
/// More threads than any VM of PVE's has; a fork bomb must not fill a bundle.
const MOST: usize = 2_048;

/// Context switches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The thread gave up the CPU, to wait.
    pub voluntary: u64,
    /// The CPU was taken from it.
    pub nonvoluntary: u64,
}

/// One thread of the VM's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// Its id.
    pub tid: u32,
    /// Its name.
    pub name: String,
    /// Its state, a letter.
    pub state: String,
    /// The kernel function in which it waits; `0` where it doesn't, or the kernel won't say.
    pub wchan: String,
    /// Its kernel stack, a line a frame; empty where the kernel won't say.
    pub stack: Vec<String>,
    /// Its system call with arguments, `running`, or empty.
    pub syscall: String,
    /// CPU time in user mode, ticks.
    pub utime: u64,
    /// CPU time in the kernel, ticks.
    pub stime: u64,
    /// Context switches; none where they could not be read.
    pub switches: Option<Count>,
}

/// Every thread of a process, by id. A thread that ends meanwhile is left out.
pub fn threads(pid: u32) -> Vec<Thread> {
    let Ok(dir) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut tids: Vec<u32> = dir.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).take(MOST).collect();
    tids.sort_unstable();
    tids.into_iter().filter_map(|tid| thread(pid, tid)).collect()
}

fn thread(pid: u32, tid: u32) -> Option<Thread> {
    let of = |file: &str| read_text(format!("/proc/{pid}/task/{tid}/{file}"));
    let stat = parse_stat(&of("stat").ok()?)?;
    let line = |file| of(file).map(|t| t.trim_end().to_owned()).unwrap_or_default();
    Some(Thread {
        tid,
        name: stat.comm,
        state: stat.state.to_string(),
        wchan: line("wchan"),
        stack: of("stack").map(|t| t.lines().map(str::to_owned).collect()).unwrap_or_default(),
        syscall: line("syscall"),
        utime: stat.utime,
        stime: stat.stime,
        switches: of("status").ok().and_then(|t| switches(&t)),
    })
}

/// The context switches in a `status` file.
fn switches(status: &str) -> Option<Count> {
    let of = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok());
    Some(Count { voluntary: of("voluntary_ctxt_switches:")?, nonvoluntary: of("nonvoluntary_ctxt_switches:")? })
}

/// The main thread at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MainThread {
    /// Whose.
    pub process: QemuProcess,
    /// When, in milliseconds since boot without those that the host slept: asleep, nothing could have moved.
    pub at_ms: u64,
    /// Its state, a letter.
    pub state: String,
    /// The kernel function in which it waits.
    pub wchan: String,
    /// Context switches; none where they could not be read.
    pub switches: Option<Count>,
    /// CPU time, ticks.
    pub ticks: u64,
}

impl MainThread {
    /// Looks at it now; none where the process is gone.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = parse_stat(&read_text(format!("/proc/{pid}/stat")).ok()?)?;
        let thread = thread(pid, pid)?;
        Some(Self {
            process: QemuProcess { pid, started: stat.started },
            at_ms: host::awake_ms(),
            state: thread.state,
            wchan: thread.wchan,
            switches: thread.switches,
            ticks: thread.utime.saturating_add(thread.stime),
        })
    }
}

/// Why a QEMU that does not answer QMP can't answer it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "proof")]
pub enum Proof {
    /// A signal or a debugger has stopped it (T).
    Stopped,
    /// It has ended, and is not gone.
    Zombie,
    /// It waits in the kernel and can't be interrupted (D).
    Uninterruptible {
        /// In which function.
        wchan: String,
    },
    /// It was not on a CPU for that long, although a client waits for it.
    Idle {
        /// How long it was watched.
        ms: u64,
    },
    /// It takes a CPU for itself and serves nobody.
    Spinning {
        /// How much of the CPU.
        percent: u64,
    },
}

/// Protocol, section 8: the main thread's half of "proved unresponsive". The other half, no answer in 3 s to the only client of the
/// socket, is the caller's to know. Two looks at the same process, `wall` apart; less than a second apart, only a zombie and a
/// stopped process prove anything.
pub fn unresponsive_proof(before: &MainThread, after: &MainThread, wall: Duration) -> Option<Proof> {
    if before.process != after.process {
        return None;
    }
    match (before.state.as_str(), after.state.as_str()) {
        (_, "Z" | "X") => return Some(Proof::Zombie),
        ("T" | "t", "T" | "t") => return Some(Proof::Stopped),
        _ => {}
    }
    if wall < WATCHED {
        return None;
    }
    if before.state == "D" && after.state == "D" && before.switches == after.switches {
        return Some(Proof::Uninterruptible { wchan: after.wchan.clone() });
    }
    let ms = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
    let percent = after.ticks.saturating_sub(before.ticks).saturating_mul(1000 / TICKS * 100) / ms;
    if percent >= 90 {
        return Some(Proof::Spinning { percent: percent.min(100) });
    }
    // Unread counters are no proof of anything; and a thread that used the CPU was on it, whatever they say.
    let idle = before.switches.is_some() && before.switches == after.switches && before.ticks == after.ticks && after.state != "R";
    idle.then_some(Proof::Idle { ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(state: &str, switches: u64, ticks: u64) -> MainThread {
        MainThread {
            process: QemuProcess { pid: 9, started: 5 },
            at_ms: 0,
            state: state.into(),
            wchan: "folio_wait_bit".into(),
            switches: Some(Count { voluntary: switches, nonvoluntary: 0 }),
            ticks,
        }
    }

    #[test]
    fn what_proves_that_qemu_cannot_answer() {
        let s = Duration::from_secs(1);
        for (before, after, wall, proof) in [
            (look("T", 1, 1), look("T", 1, 1), Duration::ZERO, Some(Proof::Stopped)),
            (look("S", 1, 1), look("T", 1, 1), Duration::ZERO, None),
            (look("S", 1, 1), look("Z", 9, 9), Duration::ZERO, Some(Proof::Zombie)),
            (look("D", 1, 1), look("D", 1, 1), s, Some(Proof::Uninterruptible { wchan: "folio_wait_bit".into() })),
            (look("D", 1, 1), look("D", 1, 1), s / 2, None),
            (look("D", 1, 1), look("D", 7, 3), s, None),
            (look("S", 1, 1), look("S", 1, 1), s, Some(Proof::Idle { ms: 1000 })),
            (look("S", 1, 1), look("S", 1, 1), s / 2, None),
            (look("S", 1, 1), look("S", 2, 1), s, None),
            (look("R", 1, 1), look("R", 9, 96), s, Some(Proof::Spinning { percent: 95 })),
            (look("R", 1, 1), look("R", 1, 80), s, None),
            (look("R", 1, 1), look("R", 1, 1), s, None),
        ] {
            assert_eq!(unresponsive_proof(&before, &after, wall), proof, "{before:?} {after:?} {wall:?}");
        }
        let mut other = look("T", 1, 1);
        other.process.started = 6;
        assert_eq!(unresponsive_proof(&look("T", 1, 1), &other, s), None, "another process under the same pid");
        let unread = MainThread { switches: None, ..look("S", 0, 1) };
        assert_eq!(unresponsive_proof(&unread, &unread, s), None, "unread counters prove nothing");
    }

    #[test]
    fn our_own_threads_can_be_read() {
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::Builder::new().name("odd (name)".into()).spawn(move || wait.recv()).unwrap();
        let until = std::time::Instant::now() + Duration::from_secs(20);
        // It names itself, and then it waits.
        let odd = loop {
            let odd = threads(std::process::id()).into_iter().find(|t| t.name == "odd (name)" && t.state == "S");
            if let Some(odd) = odd {
                break odd;
            }
            assert!(std::time::Instant::now() < until, "no thread of that name waits");
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(odd.switches.unwrap().voluntary > 0);
        assert!(MainThread::of(std::process::id()).is_some());
        drop(stop);
        let _ = other.join();
    }
}
