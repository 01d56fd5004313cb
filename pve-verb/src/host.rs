//! This host: where things are (constants, no override: the lab brings a host that has them), which node and boot this is,
//! and the clocks. Reads files that never hang (`/proc/sys`, `/etc/hostname` at start-up); decides nothing.

use crate::text::say;
use proto::{Message, RequestId, Timestamp, Vmid};
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Every fixed path. SECURITY.md's I/O map lists the same.
pub mod path {
    /// Configuration and keys, 0700 root.
    pub const ETC: &str = "/etc/pve-verb";
    /// The optional configuration file.
    pub const CONFIG: &str = "/etc/pve-verb/config.toml";
    /// The host's signing key (OpenSSH, ed25519).
    pub const SIGNING_KEY: &str = "/etc/pve-verb/signing_key";
    /// Its public half.
    pub const SIGNING_PUB: &str = "/etc/pve-verb/signing_key.pub";
    /// State on disk: evidence, finished requests, grants, the operation in progress.
    pub const VAR: &str = "/var/lib/pve-verb";
    /// Bundles on disk, `VMID/BUNDLE/` below it.
    pub const EVIDENCE: &str = "/var/lib/pve-verb/evidence";
    /// Finished receipts of mutating verbs, `ID.json`.
    pub const REQUESTS: &str = "/var/lib/pve-verb/requests";
    /// The mutation in progress.
    pub const OPERATION: &str = "/var/lib/pve-verb/operation.json";
    /// Who may sign grants.
    pub const ALLOWED_SIGNERS: &str = "/etc/pve-verb/allowed_signers";
    /// The nonces of spent grants.
    pub const GRANTS: &str = "/var/lib/pve-verb/grants";
    /// The audit log's segments and `head.json`.
    pub const LOG: &str = "/var/log/pve-verb";
    /// Locks, spools, the tmpfs rung; 0700 root.
    pub const RUN: &str = "/run/pve-verb";
    /// Bundles on tmpfs, `VMID/BUNDLE/` below it.
    pub const RUN_EVIDENCE: &str = "/run/pve-verb/evidence";
    /// Event spools of running and finished workers, `ID.jsonl`.
    pub const SPOOL: &str = "/run/pve-verb/spool";
    /// PVE's runtime folder: pidfile and sockets.
    pub const QEMU_SERVER: &str = "/run/qemu-server";
    /// The cluster file system.
    pub const PVE: &str = "/etc/pve";
}

/// A path of PVE's for this VM.
pub fn qemu_server(vmid: Vmid, ending: &str) -> PathBuf {
    PathBuf::from(format!("{}/{vmid}.{ending}", path::QEMU_SERVER))
}

/// The name of the log's segment that begins with this record.
pub fn segment(first_seq: u64) -> String {
    format!("audit-{first_seq:020}.jsonl")
}

/// Every segment in the log's folder by its first record, with its length in bytes, oldest first. None where there is no folder.
///
/// # Errors
/// Where the folder or a segment can't be looked at.
pub fn segments(folder: &Path) -> io::Result<Vec<(u64, u64)>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix("audit-")?.strip_suffix(".jsonl")).filter(|n| n.len() == 20);
        if let Some(first_seq) = number.and_then(|n| n.parse().ok()) {
            all.push((first_seq, entry.metadata()?.len()));
        }
    }
    all.sort_unstable();
    Ok(all)
}

/// UTC now.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp::from_unix_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Time since boot, suspend included. Rates and deadlines use it: the wall clock may jump.
pub fn boottime() -> Duration {
    let t = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0))
}

/// [`boottime`] in milliseconds.
pub fn boot_ms() -> u64 {
    u64::try_from(boottime().as_millis()).unwrap_or(u64::MAX)
}

/// CLOCK_MONOTONIC in milliseconds: time in which something could happen. Two looks are compared over it, for in a host that sleeps
/// nothing moves and nothing is proved.
pub fn awake_ms() -> u64 {
    monotonic_ns() / 1_000_000
}

/// CLOCK_MONOTONIC in nanoseconds, for the audit log.
pub fn monotonic_ns() -> u64 {
    let t = clock_gettime(ClockId::Monotonic);
    u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0)
}

/// The kernel's boot id, or `unknown`.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(|_| "unknown".to_owned(), |t| t.trim().to_owned())
}

/// The host's name up to the first dot, as PVE names its node.
pub fn hostname() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().split('.').next().unwrap_or_default().to_owned()
}

/// Random bytes from the kernel.
///
/// # Errors
/// Where getrandom fails, which no supported kernel does after boot.
pub fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).map_err(|e| e.to_string())?;
    if got == N { Ok(bytes) } else { Err("the kernel gave too few random bytes".to_owned()) }
}

/// A fresh request id.
///
/// # Errors
/// As [`random`].
pub fn fresh_request_id() -> Result<RequestId, String> {
    Ok(RequestId::from_random(random()?))
}

/// Whether requests can be served here at all: we are root, `init` ran, and /run has our folder. Makes the latter.
///
/// # Errors
/// What is missing, and what to do.
pub fn ready() -> Result<(), Message> {
    if !rustix::process::geteuid().is_root() {
        return Err(say::not_root());
    }
    match root_only(Path::new(path::ETC), 0) {
        Ok(()) => {}
        Err(None) => return Err(say::not_set_up()),
        Err(Some(how)) => return Err(say::open_to_others(&how)),
    }
    for folder in [path::RUN, path::SPOOL, path::RUN_EVIDENCE] {
        // A folder that is there already is looked at below; any other error shows as its absence.
        let _ = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    }
    root_only(Path::new(path::RUN), 0)
        .map_err(|how| say::host_unfit(&how.map_or_else(|| "/run/pve-verb can't be made".to_owned(), |how| format!("/run/pve-verb {how}"))))
}

/// Whether this is a folder into which its owner alone may look. The error says how it is not; none where it is not there.
fn root_only(path: &Path, owner: u32) -> Result<(), Option<String>> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(None),
        Err(e) => return Err(Some(format!("could not be looked at: {e}"))),
    };
    if !found.is_dir() {
        return Err(Some("is no folder".to_owned()));
    }
    if found.uid() != owner {
        return Err(Some(format!("belongs to uid {} and not to root", found.uid())));
    }
    match found.mode() & 0o7777 {
        mode if mode & 0o077 != 0 => Err(Some(format!("has mode {mode:04o}, which lets others than root look into it"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_folder_that_others_may_look_into_is_not_missing() {
        let folder = tempfile::tempdir().unwrap();
        let (me, path) = (rustix::process::getuid().as_raw(), folder.path().join("pve-verb"));
        assert_eq!(root_only(&path, me), Err(None), "it is missing");
        std::fs::create_dir(&path).unwrap();
        for (mode, wrong) in [(0o755, Some("mode 0755")), (0o710, Some("mode 0710")), (0o700, None), (0o500, None)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let how = root_only(&path, me).err().flatten();
            assert_eq!(how.is_some(), wrong.is_some(), "{mode:o}");
            assert!(wrong.is_none_or(|words| how.as_deref().unwrap_or_default().contains(words)), "{how:?}");
        }
        assert!(root_only(&path, me + 1).unwrap_err().unwrap().contains("belongs to uid"));
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert_eq!(root_only(&folder.path().join("file"), me), Err(Some("is no folder".to_owned())));
    }
}
