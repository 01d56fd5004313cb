//! VM 102 as it was when it had just booted: its memory and its disk, kept in the lab's own memory and loaded in a second instead of
//! booting for six. One for each lab; what a scenario changed is gone with it.
//!
//! QEMU's migration writes and reads it, so the guest that goes on is the one that was saved, clock and all.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::error::{Context, Error, Result};
use crate::host::DISK;
use crate::process::until;
use crate::vm::{Observed, Vm};

const FOLDER: &str = "/run/lab/snapshot";
const STATE: &str = "/run/lab/snapshot/state";
const SAVED_DISK: &str = "/run/lab/snapshot/disk.qcow2";
const AMPLE: Duration = Duration::from_secs(60);

/// What QEMU's command line needs to load it.
pub(crate) const INCOMING: [&str; 2] = ["-incoming", "exec:cat /run/lab/snapshot/state"];

/// Whether there is one.
pub fn is_there() -> bool {
    Path::new(SAVED_DISK).exists()
}

/// Saves a VM that is healthy, and lets it go on.
pub fn take(vm: &Vm) -> Result<()> {
    fs::create_dir_all(FOLDER).context("make a folder for the snapshot")?;
    vm.qmp("stop", json!({}))?;
    vm.qmp("migrate-set-parameters", json!({"max-bandwidth": 1_u64 << 34}))?;
    vm.qmp("migrate", json!({"uri": format!("exec:cat > {STATE}")}))?;
    let status = until("the snapshot of VM 102", AMPLE, || {
        let status = vm.qmp("query-migrate", json!({})).ok()?["status"].as_str()?.to_owned();
        ["completed", "failed"].contains(&status.as_str()).then_some(status)
    })?;
    if status != "completed" {
        return Err(Error::new("QEMU could not save VM 102", "Look at `query-migrate` on the lab's monitor"));
    }
    // QEMU has let go of the disk: what is in the file is what the saved guest believes.
    fs::copy(DISK, SAVED_DISK).context("copy the disk of the snapshot")?;
    vm.qmp("cont", json!({})).map(drop)
}

/// Loads it into a fresh QEMU process. The VM must be stopped and its configuration that of a fresh lab.
pub fn load(vm: &Vm) -> Result<()> {
    fs::copy(SAVED_DISK, DISK).context("put the snapshot's disk in place")?;
    vm.start_from_snapshot()?;
    // It was saved while it was paused, and is so again when it is loaded.
    until("VM 102 from its snapshot", AMPLE, || (vm.observe() == Observed::State("paused".into())).then_some(()))?;
    vm.qmp("cont", json!({}))?;
    vm.wait_for_ssh(AMPLE)
}
