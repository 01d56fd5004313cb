//! HA: a managed VM is not started and stopped by `qm` but by the cluster resource manager, which `qm` only asks.
//!
//! Nobody carries out the request in the laboratory, as nobody did in the recordings: the status is 0 and the VM stays as it is.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use super::{Fail, Run, out, pve};

/// `ha-manager` is a Perl program of its own that `qm` waits for.
const MANAGER: Duration = Duration::from_millis(400);
/// A warning that the recorded version always printed here.
const NOISE: &str = "Use of uninitialized value in string eq at /usr/share/perl5/PVE/API2/HA/Resources.pm line 40.";

/// What the task asks of the resource manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Ask {
    /// Set the wanted state to started.
    Start,
    /// Stop, with so many seconds for a shutdown.
    Stop(u64),
}

fn resources() -> std::path::PathBuf {
    Path::new(pve::ROOT).join("ha/resources.cfg")
}

/// Whether the VM is managed: it has a `vm:` section whose state is not `ignored`.
pub fn managed(vmid: u32) -> bool {
    let text = fs::read_to_string(resources()).unwrap_or_default();
    let mut ours = false;
    let mut found = false;
    for line in text.lines() {
        if !line.starts_with([' ', '\t']) {
            ours = line.split_once(':').is_some_and(|(kind, id)| kind == "vm" && id.trim() == vmid.to_string());
            found |= ours;
        } else if ours && line.split_whitespace().eq(["state", "ignored"]) {
            return false;
        }
    }
    found
}

/// The request itself; runs in the task's worker.
pub fn ask(vmid: u32, what: Ask) -> Run {
    let word = if what == Ask::Start { "start" } else { "stop" };
    out::say(&format!("Requesting HA {word} for VM {vmid}"));
    std::thread::sleep(MANAGER);
    out::warn(NOISE);
    match what {
        // ha-manager writes its file anew; each section then ends in an empty line.
        Ask::Start => {
            let text = fs::read_to_string(resources()).unwrap_or_default();
            fs::write(resources(), format!("{}\n\n", text.trim_end()))
        }
        Ask::Stop(seconds) => {
            let commands = Path::new(pve::ROOT).join("ha/crm_commands");
            OpenOptions::new().append(true).create(true).open(commands).and_then(|mut file| writeln!(file, "stop vm:{vmid} {seconds}"))
        }
    }
    .map_err(|why| Fail::die(format!("unable to write HA configuration - {why}")))
}
