//! The points of the crash sweep: each call with which a process of ours changes something outside itself, and each fault there.
//!
//! A point is found by tracing one run, and hit in another by counting: `strace -e inject=SYSCALL:FAULT:when=N`. Two runs of the
//! same verb make the same calls but for a few; a point that is not reached is a run without a fault, and is said to be one.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

/// What changes the world outside the process. Of `openat` only those that create.
pub const CALLS: [&str; 24] = [
    "write",
    "writev",
    "pwrite64",
    "ftruncate",
    "fsync",
    "fdatasync",
    "rename",
    "renameat2",
    "link",
    "linkat",
    "mkdir",
    "mkdirat",
    "unlink",
    "unlinkat",
    "rmdir",
    "openat",
    "clone",
    "clone3",
    "vfork",
    "execve",
    "kill",
    "pidfd_send_signal",
    "connect",
    "sendto",
];

/// Which process is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// It takes the lock and acts.
    Worker,
    /// It relays.
    Front,
    /// It writes to the disk. Traced from a few milliseconds after its start.
    Writer,
    /// It talks with QEMU. As the writer.
    ProbeGuest,
    /// It reads the host. As the writer.
    ProbeHost,
}

impl Role {
    /// Its word on a command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Front => "front",
            Self::Writer => "writer",
            Self::ProbeGuest => "probe-guest",
            Self::ProbeHost => "probe-host",
        }
    }
}

/// A fault at a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// The verb that is swept.
    pub verb: &'static str,
    /// The process.
    pub role: Role,
    /// The call.
    pub call: String,
    /// Which one of its name, from 1.
    pub nth: usize,
    /// `signal=KILL` or `error=…`.
    pub fault: &'static str,
    /// Whether it is about a bundle's files: there are many, and one is much like the other.
    pub bundle: bool,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}#{} {}", self.verb, self.role.word(), self.call, self.nth, self.fault)
    }
}

impl Point {
    /// What makes `strace` hit it; its own words go to this file.
    pub fn options(&self, trace: &str) -> Vec<String> {
        let Self { call, nth, fault, .. } = self;
        ["-o", trace, "-e", &format!("trace={call}"), "-e", &format!("inject={call}:{fault}:when={nth}")].map(str::to_owned).to_vec()
    }

    /// Whether the trace shows that it was hit.
    pub fn hit(trace: &str) -> bool {
        let text = fs::read_to_string(trace).unwrap_or_default();
        text.contains("(INJECTED)") || text.contains("+++ killed by SIGKILL +++")
    }
}

/// What makes `strace` find the points.
pub fn finding(trace: &str) -> Vec<String> {
    // A name that this machine's strace or kernel does not know is left out, not an error.
    let calls: Vec<String> = CALLS.iter().map(|call| format!("?{call}")).collect();
    ["-y", "-o", trace, "-e", &format!("trace={}", calls.join(","))].map(str::to_owned).to_vec()
}

/// The points of a traced run: KILL at each, and the errors that this call can give.
pub fn points(verb: &'static str, role: Role, trace: &str) -> Vec<Point> {
    let text = fs::read_to_string(trace).unwrap_or_default();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut all = Vec::new();
    for line in text.lines() {
        let Some((call, rest)) = line.split_once('(').filter(|(call, _)| CALLS.contains(call)) else { continue };
        let nth = seen.entry(call.to_owned()).or_default();
        *nth += 1;
        if call == "openat" && !rest.contains("O_CREAT") {
            continue;
        }
        let errors: &[&'static str] = match call {
            "clone" | "clone3" | "vfork" => &["error=EAGAIN"],
            "kill" | "pidfd_send_signal" | "execve" | "unlink" | "unlinkat" | "rmdir" | "connect" | "sendto" => &["error=EIO"],
            _ => &["error=ENOSPC", "error=EIO"],
        };
        for fault in std::iter::once(&"signal=KILL").chain(errors) {
            all.push(Point { verb, role, call: call.to_owned(), nth: *nth, fault, bundle: rest.contains("/evidence/") });
        }
    }
    all
}

/// The same points in an order that this number decides: one of each group first, then a second one, and so on.
pub fn shuffled(mut points: Vec<Point>, seed: u64) -> Vec<Point> {
    let mut state = seed;
    for n in (1..points.len()).rev() {
        // splitmix64: small, and good enough to mix a list.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        points.swap(n, usize::try_from(z % (n as u64 + 1)).unwrap_or(0));
    }
    let mut seen: BTreeMap<(Role, String, &str, bool), usize> = BTreeMap::new();
    let mut ranked: Vec<(usize, Point)> = Vec::new();
    for point in points {
        let rank = seen.entry((point.role, point.call.clone(), point.fault, point.bundle)).or_default();
        *rank += 1;
        ranked.push((*rank, point));
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, point)| point).collect()
}
