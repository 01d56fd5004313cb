//! Disks that are full, read-only or hung, and an `/etc/pve` that hangs: the verbs act in time, and what they could not store is
//! carried to its place later. QEMU is real and boots no guest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking
#![allow(clippy::print_stderr)] // the figures are worth a line

use std::any::Any;
use std::fs;
use std::path::Path;
use std::time::Duration;

use lab::chain::{Chain, OVERFLOW};
use lab::fuse::Hang;
use lab::lab::{Scenario, run_scenarios};
use lab::station::{self, BUNDLES, REQUESTS, Traces, anna, bare_stopped, bare_vm, body, fresh_id, qm_processes, told};
use lab::worker::carried;
use lab::{Answer, Lab, Observed, Result, Ssh, wedge};
use serde_json::{Value, json};

const SCENARIOS: &[Scenario] = &[
    ("when_both_disks_are_read_only_then_cycle_keeps_its_evidence_on_tmpfs_and_carries_it_later", read_only),
    ("when_both_disks_hang_then_cycle_keeps_its_evidence_on_tmpfs_and_carries_it_later", hung),
    ("when_run_is_full_then_mutations_are_refused_and_the_vm_is_untouched", run_full),
    ("when_etc_pve_hangs_then_reads_answer_in_time_and_only_what_needs_it_is_refused", etc_pve_killable),
    ("when_etc_pve_hangs_in_state_d_then_reads_answer_in_time_and_only_what_needs_it_is_refused", etc_pve_uninterruptible),
    // Last: its small disks stay.
    ("when_both_disks_are_full_then_cycle_keeps_its_evidence_on_tmpfs_and_carries_it_later", full),
];

const FOLDERS: [&str; 2] = ["/var/lib/pve-verb", "/var/log/pve-verb"];
/// What ssh and a loaded machine may add to a published bound: half a second for the one; the other may take us off the processor for two.
const OVERHEAD: Duration = Duration::from_secs(4);
/// What is published: the seconds of a `status`, and of evidence.
const STATUS: Duration = Duration::from_secs(3);
const FORENSICS: Duration = Duration::from_secs(15);
const AMPLE: Duration = Duration::from_secs(60);

fn main() {
    run_scenarios(SCENARIOS, station::install)
}

/// What fills a disk, removed at the end: the disk itself stays, with what could still be written in its last block.
struct Fill(&'static str);

impl Drop for Fill {
    fn drop(&mut self) {
        let _absent = fs::remove_file(format!("{}/.fill", self.0));
    }
}

fn full(lab: &Lab) -> Result<()> {
    // The small disk that takes their place has no room for the other scenarios' evidence.
    let _absent = fs::remove_dir_all("/var/lib/pve-verb/evidence");
    let fill = |folder| {
        wedge::disk_full(folder).unwrap().forget();
        Fill(folder)
    };
    without_a_disk(lab, || Ok(Box::new(FOLDERS.map(fill))))
}

fn read_only(lab: &Lab) -> Result<()> {
    without_a_disk(lab, || Ok(Box::new(FOLDERS.map(|folder| wedge::disk_read_only(folder).unwrap()))))
}

fn hung(lab: &Lab) -> Result<()> {
    without_a_disk(lab, || Ok(Box::new(FOLDERS.map(|folder| wedge::disk_hung(folder).unwrap()))))
}

/// A read up to three times while a fault stands: the first answer that came within its published seconds, by the host's own clock from its
/// first event to its receipt, and knows the VM's state. Hung disks and a hung `/etc/pve` leave of them less than a busy machine takes
/// off; what is slow by itself is slow each time.
fn in_its_own_time(ssh: &Ssh, read: &str, within: Duration) -> Result<(Answer, Value)> {
    let mut tries = Vec::new();
    for _ in 0..3 {
        let answer = ssh.call(format!("{read} --json"))?;
        let told = body(&answer)?;
        assert_eq!(answer.status, 0, "{told}");
        let own = Duration::from_millis(answer.after_ms("receipt").unwrap());
        eprintln!("disks: {read} took {own:?} of its own, of {within:?}, and {:?} with ssh", answer.wall);
        // Not only the answer comes in time: the session ends with it.
        if own < within && answer.wall < within + OVERHEAD && told["state_after"] != "unknown" {
            return Ok((answer, told));
        }
        tries.push((own, answer.wall, told));
    }
    panic!("{read}: not once within {within:?} and with a state: {tries:#?}")
}

fn without_a_disk(lab: &Lab, fault: impl FnOnce() -> Result<Box<dyn Any>>) -> Result<()> {
    let vm = bare_vm(lab)?;
    let ssh = anna(lab)?;
    assert_eq!(ssh.call("cycle")?.status, 0, "with its disks it works");
    let before = (vm.pid(), vm.start_ticks());
    // Its worker tidies behind its answer, and is not to be caught in that.
    station::quiet(AMPLE)?;
    let fault = fault()?;
    let id = fresh_id()?;
    let request = format!("cycle --json --request-id={id}");
    let answer = ssh.call(&request)?;
    let (first, preserved) = (body(&answer)?, answer.after_ms("preserved"));
    let (status, _) = in_its_own_time(&ssh, "status", STATUS)?;
    let again = ssh.call(&request)?;
    let (forensics, kept) = in_its_own_time(&ssh, "forensics", FORENSICS)?;
    let refused = ssh.call("status;reboot")?;
    drop(fault);
    eprintln!(
        "disks: cycle {:?} (evidence safe after {preserved:?} ms), status {:?}, forensics {:?}, asked again {:?}, refused {:?}",
        answer.wall, status.wall, forensics.wall, again.wall, refused.wall
    );
    assert_eq!((answer.status, &first["preserved_where"]), (0, &json!("tmpfs")), "{first}");
    assert!(first["degraded"].to_string().contains("tmpfs"), "{first}");
    assert_ne!((vm.pid(), vm.start_ticks()), before);
    assert!(preserved.is_some_and(|ms| ms < 15_000) && answer.wall < Duration::from_secs(25), "{:?}", answer.wall);
    let bundle = first["bundle"].as_str().unwrap();
    assert!(Path::new(BUNDLES[1]).join(bundle).join("manifest.json").exists(), "the evidence is not where the receipt says");
    let told_again = body(&again)?;
    assert_eq!((again.status, &told_again["replayed"], told(told_again.clone())), (0, &json!(true), told(first.clone())));
    assert_eq!(kept["preserved_where"], "tmpfs");
    assert!(refused.status == 2 && refused.wall < STATUS + OVERHEAD, "{:?}", refused.wall);
    station::quiet(AMPLE)?;
    let chain = Chain::read()?;
    assert!(chain.on_disk < chain.records.len() && chain.count(&id, "outcome") == 1, "the log goes on in the overflow");

    // The disk is back: one more mutation, and all of it is where it belongs.
    assert_eq!(ssh.call("cycle")?.status, 0);
    assert_eq!(ssh.call("status")?.status, 0);
    carried()?;
    let chain = Chain::read()?;
    assert_eq!(chain.on_disk, chain.records.len(), "the overflow was not carried over");
    assert!(fs::metadata(OVERFLOW).map_or(0, |m| m.len()) == 0);
    assert!(Path::new(BUNDLES[0]).join(bundle).join("manifest.json").exists(), "the bundle was not carried to disk");
    assert!(!Path::new(BUNDLES[1]).join(bundle).exists(), "the bundle is still on tmpfs");
    assert!(Path::new(REQUESTS).join(format!("{id}.json")).exists(), "the finished request was not carried to disk");
    let later = ssh.call(&request)?;
    assert_eq!((later.status, told(body(&later)?)), (0, told(first)));
    let left = Traces::of(&id)?;
    assert_eq!((left.intents, left.outcomes, left.bundles.len()), (1, 1, 1));
    Ok(())
}

fn run_full(lab: &Lab) -> Result<()> {
    let vm = bare_vm(lab)?;
    let ssh = anna(lab)?;
    assert_eq!(ssh.call("status")?.status, 0);
    let before = (vm.pid(), vm.start_ticks());
    let full = wedge::disk_full("/run/pve-verb")?;
    let answers: Vec<_> = ["cycle --json", "stop --json", "reset --json"].map(|request| ssh.call(request)).into_iter().collect();
    let status = ssh.call("status --json")?;
    station::quiet(AMPLE)?;
    full.now();
    for answer in answers {
        let answer = answer?;
        let told = body(&answer)?;
        assert_eq!((answer.status, told["outcome"].as_str()), (5, Some("refused-evidence")), "{told}");
        assert!(answer.wall < Duration::from_secs(15));
    }
    assert_eq!((vm.pid(), vm.start_ticks(), vm.observe()), (before.0, before.1, Observed::State("running".into())));
    assert!(status.status == 0 && status.wall < STATUS + OVERHEAD, "{:?}", status.wall);
    assert_eq!(ssh.call("cycle")?.status, 0);
    Ok(())
}

fn etc_pve_killable(lab: &Lab) -> Result<()> {
    etc_pve(lab, Hang::Killable)
}

fn etc_pve_uninterruptible(lab: &Lab) -> Result<()> {
    etc_pve(lab, Hang::Uninterruptible)
}

fn etc_pve(lab: &Lab, how: Hang) -> Result<()> {
    let vm = bare_vm(lab)?;
    let ssh = anna(lab)?;
    let before = (vm.pid(), vm.start_ticks());
    let asks = |request: &str| -> Result<(Answer, Value)> {
        let answer = ssh.call(format!("{request} --json"))?;
        let told = body(&answer)?;
        Ok((answer, told))
    };
    let hung = wedge::etc_pve_hung(how)?;
    let (_, told) = in_its_own_time(&ssh, "status", STATUS)?;
    assert_eq!((&told["state_after"], &told["assessment"]), (&json!("running"), &json!("pve-unresponsive")), "{told}");
    // Nor does a disk that hangs as well cost it more than that.
    let disks = FOLDERS.map(|folder| wedge::disk_hung(folder).unwrap());
    let (_, told) = in_its_own_time(&ssh, "status", STATUS)?;
    drop(disks);
    assert_eq!(told["state_after"], "running", "{told}");
    let (_, told) = in_its_own_time(&ssh, "forensics", FORENSICS)?;
    assert_eq!(told["preserved_where"], "disk");
    for verb in ["start", "cycle", "stop"] {
        let (answer, told) = asks(verb)?;
        assert_eq!((answer.status, told["outcome"].as_str()), (6, Some("refused-precondition")), "{verb}: {told}");
        assert!(told["message"].to_string().contains("pve-cluster"), "{told}");
    }
    assert_eq!((vm.pid(), vm.start_ticks()), before);
    let (reset, told) = asks("reset")?;
    assert_eq!((reset.status, &told["state_after"]), (0, &json!("running")), "{told}");
    assert!(reset.wall < Duration::from_secs(30) + OVERHEAD && told["degraded"].to_string().contains("/etc/pve"), "{told}");
    assert_eq!((vm.pid(), vm.start_ticks()), before, "a reset keeps the process");
    // A QEMU that is proved unresponsive is stopped without `qm`, which would hang.
    wedge::qemu_stopped(vm)?.forget();
    let (stop, told) = asks("stop")?;
    assert_eq!((stop.status, &told["state_after"]), (0, &json!("stopped")), "{told}");
    assert!(stop.wall < Duration::from_secs(20), "{:?}", stop.wall);
    assert!(qm_processes().is_empty(), "qm was called, and hangs");
    assert_eq!(vm.observe(), Observed::Stopped);
    let (start, _) = asks("start")?;
    assert_eq!(start.status, 6);
    drop(hung);
    bare_stopped(lab)?;
    assert_eq!(ssh.call("cycle")?.status, 0);
    assert_eq!(vm.observe(), Observed::State("running".into()));
    Ok(())
}
