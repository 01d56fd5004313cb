//! The flock around every change of a VM's configuration, with the real one's ten seconds and its words.
//!
//! The lock file stays for ever and its existence means nothing. The real `qm` blocks in `flock` under an alarm; we poll, because
//! an alarm needs a signal handler.

use std::fs::{File, OpenOptions};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::{Fail, Run, out, task};

const DIR: &str = "/var/lock/qemu-server";
const LIMIT: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(50);

/// Takes the VM's configuration lock; it lasts as long as the file that is returned.
pub fn take(vmid: u32) -> Run<File> {
    let path = format!("{DIR}/lock-{vmid}.conf");
    let cannot = |code: i32, why: &str| Fail::errno(code, format!("can't lock file '{path}' - {why}"));
    // Left behind by no one: PVE creates the directory at boot and here.
    let _ = std::fs::create_dir_all(DIR);
    let file = OpenOptions::new().append(true).create(true).open(&path).map_err(|why| cannot(255, &why.to_string()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        return Ok(file);
    }
    out::warn("trying to acquire lock...");
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            out::warn(" OK");
            return Ok(file);
        }
        task::pause(STEP)?;
    }
    // EINTR is what the real one's alarm leaves in errno.
    Err(cannot(4, "got timeout"))
}
