//! Who else is connected to a VM's socket.
//!
//! `/proc/net/unix` names only the server's end of a connection, so the client's is asked for over the kernel's socket diagnosis
//! (as `ss -x` does), and its holder found among `/proc/*/fd`. Where the kernel has no such diagnosis, the answer is "unknown".

use super::read_text;
use rustix::fs::{major, minor};
use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// A process that holds the client's end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its pid; none where nobody (any more) holds the socket: a dead entry of the backlog.
    pub pid: Option<u32>,
    /// Its name; escaped.
    pub comm: String,
    /// Whether the server has accepted it; else it waits in the backlog.
    pub accepted: bool,
}

/// Everybody but this program's own processes who is connected to a socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Peers {
    /// These.
    Known(Vec<Peer>),
    /// It could not be found out: why.
    Unknown(String),
}

impl Peers {
    /// "in use by PID (comm)", where somebody uses it.
    pub fn text(&self) -> Option<String> {
        let Self::Known(peers) = self else { return None };
        let words: Vec<_> = peers.iter().filter_map(|p| p.pid.map(|pid| format!("{pid} ({})", p.comm))).collect();
        (!words.is_empty()).then(|| format!("in use by {}", words.join(", ")))
    }

    /// Whether a foreign process certainly has no connection to it; what protocol, section 8, demands of a proof.
    pub fn nobody(&self) -> bool {
        matches!(self, Self::Known(peers) if peers.iter().all(|p| p.pid.is_none()))
    }
}

/// Who is connected to this socket, apart from this program. Takes a bounded time, give or take a read of `/proc`.
pub fn peer_of(socket: &Path, within: Duration) -> Peers {
    let until = Instant::now() + within;
    let table = match Diagnosis::open().and_then(|diagnosis| diagnosis.table()) {
        Ok(table) => table,
        Err(e) => return Peers::Unknown(format!("the kernel's socket diagnosis is not to be had: {e}")),
    };
    let Some(file) = file_of(socket) else { return Peers::Known(Vec::new()) };
    let clients = clients_of(&table, file);
    if clients.is_empty() {
        return Peers::Known(Vec::new());
    }
    match holders(until) {
        Some((by_inode, own)) => Peers::Known(
            clients
                .into_iter()
                .filter_map(|(inode, accepted)| match by_inode.get(&inode) {
                    Some(pid) if own.contains(pid) => None,
                    Some(&pid) => {
                        let comm = read_text(format!("/proc/{pid}/comm")).unwrap_or_default();
                        Some(Peer { pid: Some(pid), comm: proto::escape_cut(comm.trim_end().as_bytes(), 32), accepted })
                    }
                    None => Some(Peer { pid: None, comm: String::new(), accepted }),
                })
                .collect(),
        ),
        None => Peers::Unknown("there was no time to look at every process".to_owned()),
    }
}

/// The kernel's socket diagnosis, open. It tells of the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Diagnosis(OwnedFd);

impl Diagnosis {
    /// Opens it.
    ///
    /// # Errors
    /// Where the kernel has none.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(Self(socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(SOCK_DIAG))?))
    }

    /// Whether anybody at all is connected to this socket, or waits to be. Names nobody, and so needs no `/proc`.
    ///
    /// # Errors
    /// Where the kernel does not say.
    pub(crate) fn anybody_on(&self, socket: &Path) -> io::Result<bool> {
        let table = self.table()?;
        Ok(file_of(socket).is_some_and(|file| !clients_of(&table, file).is_empty()))
    }

    /// Asks for every unix socket with its file, peer and backlog (`sock_diag`, `unix_diag_req`).
    fn table(&self) -> io::Result<Vec<Entry>> {
        const REQUEST_DUMP: u16 = 0x301;
        const BY_FAMILY: u16 = 20;
        const FILE_PEER_WAITING: u32 = 2 | 4 | 8;
        let mut request = Vec::new();
        request.extend(40_u32.to_ne_bytes());
        request.extend(BY_FAMILY.to_ne_bytes());
        request.extend(REQUEST_DUMP.to_ne_bytes());
        request.extend([0; 8]);
        request.extend([1, 0, 0, 0]); // AF_UNIX
        request.extend(u32::MAX.to_ne_bytes());
        request.extend(0_u32.to_ne_bytes());
        request.extend(FILE_PEER_WAITING.to_ne_bytes());
        request.extend(u64::MAX.to_ne_bytes());
        sendto(self.0.as_fd(), &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut table = Vec::new();
        let mut chunk = vec![0; 64 * 1024];
        loop {
            let (n, _) = recv(&self.0, &mut chunk, RecvFlags::empty())?;
            if parse(chunk.get(..n).unwrap_or_default(), &mut table)? {
                return Ok(table);
            }
        }
    }
}

/// By the file's inode, not by its name: a container, or a test in a namespace of its own, may have a socket of the same name.
fn file_of(socket: &Path) -> Option<File> {
    let meta = std::fs::metadata(socket).ok()?;
    Some(File {
        inode: u32::try_from(meta.ino() & u64::from(u32::MAX)).unwrap_or(0),
        device: (major(meta.dev()) << 20) | minor(meta.dev()),
    })
}

/// A socket's file, as the kernel's diagnosis names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct File {
    inode: u32,
    device: u32,
}

/// One unix socket, as the kernel describes it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Entry {
    inode: u32,
    file: Option<File>,
    peer: Option<u32>,
    waiting: Vec<u32>,
}

/// The clients' inodes, and whether each was accepted.
fn clients_of(table: &[Entry], file: File) -> Vec<(u32, bool)> {
    let ours = || table.iter().filter(|e| e.file == Some(file));
    let accepted = ours().filter_map(|e| Some((e.peer.filter(|&p| p != 0)?, true)));
    // A listener names the *client* sockets that wait in its backlog; one that gave up has the inode 0.
    let waiting = ours().flat_map(|e| e.waiting.iter().map(|&i| (i, false)));
    let mut all: Vec<_> = accepted.chain(waiting).collect();
    all.sort_unstable();
    all.dedup_by_key(|(inode, _)| *inode);
    all
}

/// Which process holds which socket, and which processes are this program.
fn holders(until: Instant) -> Option<(HashMap<u32, u32>, Vec<u32>)> {
    let me = std::fs::read_link("/proc/self/exe").ok();
    let mut by_inode = HashMap::new();
    let mut own = Vec::new();
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|t| t.parse::<u32>().ok()) else { continue };
        if Instant::now() >= until {
            return None;
        }
        if me.is_some() && std::fs::read_link(entry.path().join("exe")).ok() == me {
            own.push(pid);
        }
        let Ok(fds) = std::fs::read_dir(entry.path().join("fd")) else { continue };
        for fd in fds.flatten() {
            let inode =
                std::fs::read_link(fd.path()).ok().and_then(|t| t.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                by_inode.entry(inode).or_insert(pid);
            }
        }
    }
    Some((by_inode, own))
}

/// Reads one datagram of messages; true at the last.
fn parse(mut bytes: &[u8], table: &mut Vec<Entry>) -> io::Result<bool> {
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    while let Some((length, kind)) = u32_at(bytes, 0).zip(bytes.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes)) {
        let length = length as usize;
        let message = bytes.get(16..length).unwrap_or_default();
        match kind {
            DONE => return Ok(true),
            ERROR => {
                return Err(io::Error::from_raw_os_error(i32::try_from(u32_at(message, 0).unwrap_or(0).wrapping_neg()).unwrap_or(0)));
            }
            _ => table.extend(entry(message)),
        }
        bytes = bytes.get(length.next_multiple_of(4).max(16)..).unwrap_or_default();
    }
    Ok(false)
}

fn entry(message: &[u8]) -> Option<Entry> {
    let mut entry = Entry { inode: u32_at(message, 4)?, ..Entry::default() };
    let mut attributes = message.get(16..)?;
    while let Some((length, kind)) = u16_at(attributes, 0).zip(u16_at(attributes, 2)) {
        let length = usize::from(length);
        let value = attributes.get(4..length)?;
        match kind {
            1 => entry.file = u32_at(value, 0).zip(u32_at(value, 4)).map(|(inode, device)| File { inode, device }),
            2 => entry.peer = u32_at(value, 0),
            3 => entry.waiting = value.chunks_exact(4).filter_map(|c| u32_at(c, 0)).collect(),
            _ => {}
        }
        attributes = attributes.get(length.next_multiple_of(4).max(4)..).unwrap_or_default();
    }
    Some(entry)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Command, Stdio};

    #[test]
    fn a_listeners_backlog_and_its_accepted_clients_are_told_apart() {
        let ours = File { inode: 70, device: 5 };
        let table = [
            Entry { inode: 1, file: Some(ours), peer: None, waiting: vec![7] },
            Entry { inode: 2, file: Some(ours), peer: Some(8), waiting: vec![] },
            Entry { inode: 3, file: Some(File { device: 6, ..ours }), peer: Some(9), waiting: vec![10] },
            Entry { inode: 4, file: None, peer: Some(11), waiting: vec![] },
        ];
        assert_eq!(clients_of(&table, ours), [(7, false), (8, true)]);
    }

    #[test]
    fn the_kernel_names_a_foreign_client_and_our_own_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let _own = UnixStream::connect(&path).unwrap();
        assert_eq!(peer_of(&path, Duration::from_secs(5)), Peers::Known(Vec::new()));
        // A child of another program that holds a client's end.
        let client = UnixStream::connect(&path).unwrap();
        let _accepted = (listener.accept().unwrap(), listener.accept().unwrap());
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::from(OwnedFd::from(client))).spawn().unwrap();
        let peers = peer_of(&path, Duration::from_secs(5));
        let _ = child.kill();
        let _ = child.wait();
        assert_eq!(peers.text(), Some(format!("in use by {} (sleep)", child.id())));
        assert!(!peers.nobody());
    }

    #[test]
    fn a_diagnosis_tells_of_the_network_that_it_was_opened_in() {
        use nix::sched::{CloneFlags, unshare};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        let before = Diagnosis::open().unwrap();
        assert!(!before.anybody_on(&path).unwrap());
        // As the sandbox of probe-guest does it, which needs root: a thread of its own, since the namespace is the thread's.
        let alone = std::thread::spawn(move || {
            let apart = unshare(CloneFlags::CLONE_NEWNET).is_ok();
            let _client = UnixStream::connect(&path).unwrap();
            assert!(before.anybody_on(&path).unwrap());
            assert_eq!(Diagnosis::open().unwrap().anybody_on(&path).unwrap(), !apart);
            apart
        });
        assert_eq!(alone.join().unwrap(), rustix::process::geteuid().is_root());
    }
}
