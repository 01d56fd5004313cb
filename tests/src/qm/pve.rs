//! The cluster file system as `qm` meets it: does it answer, has it quorum, which node is this, is the VM under HA.
//!
//! The laboratory's `/etc/pve` is a plain directory or a hanging FUSE mount. `.version` stands for the daemon: without it pmxcfs
//! is down. A hanging mount needs nothing here: our reads hang by themselves, as the real ones do.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Fail, Run};

/// Where pmxcfs is mounted.
pub const ROOT: &str = "/etc/pve";
/// The laboratory's own directory, of which the real `qm` knows nothing.
pub const LAB: &str = "/run/lab";
/// The first caller after pmxcfs went down waits ten seconds for it; the next ones do not (recorded, not understood).
const FIRST_WAIT: Duration = Duration::from_secs(10);

/// Fails as the real one does when pmxcfs is down or the caller is not root.
pub fn answers() -> Run {
    let refuse = |code: i32, why: &str| {
        let tries: Vec<String> = (1..=3).map(|n| format!("ipcc_send_rec[{n}] failed: {why}")).collect();
        Err(Fail::errno(code, format!("{}\nUnable to load access control list: {why}", tries.join("\n"))))
    };
    if !rustix::process::geteuid().is_root() {
        return refuse(255, "Unknown error -1");
    }
    let seen = Path::new(LAB).join("qm-saw-pmxcfs-down");
    if fs::read(Path::new(ROOT).join(".version")).is_ok() {
        // Forgotten so that the next failure is a first one again; there is nothing to forget outside of that.
        let _ = fs::remove_file(seen);
        return Ok(());
    }
    if !seen.exists() {
        let _ = fs::create_dir_all(LAB);
        let _ = fs::write(seen, "");
        std::thread::sleep(FIRST_WAIT);
    }
    refuse(111, "Connection refused")
}

/// This node's name: where `/etc/pve/local` points to.
pub fn node() -> String {
    let link = fs::read_link(Path::new(ROOT).join("local")).ok();
    let name = link.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "pve".to_owned())
}

/// The directory of this node's VM configurations.
pub fn configs() -> PathBuf {
    let dir = Path::new(ROOT).join("nodes").join(node()).join("qemu-server");
    if dir.is_dir() { dir } else { Path::new(ROOT).join("qemu-server") }
}

/// Whether the cluster has quorum: pmxcfs takes the write bit from `local` when it has not.
pub fn quorate() -> bool {
    fs::metadata(Path::new(ROOT).join("local")).is_ok_and(|meta| meta.permissions().mode() & 0o200 != 0)
}

/// Fails without quorum, as `qm start` does before anything else.
pub fn check_quorum() -> Run {
    if quorate() { Ok(()) } else { Err(Fail::errno(2, "cluster not ready - no quorum?")) }
}
