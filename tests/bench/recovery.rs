//! From the request to a login in the guest: `cycle`, with its evidence, against `qm stop; qm start`, with an admin's evidence and without.

use std::process::Command;
use std::time::{Duration, Instant};

use lab::vm::BOOT;
use lab::{Lab, Result, Vm, wedge};

use crate::Bench;
use crate::disk;
use crate::measure::{Table, Target, Times, verb, whole};
use crate::status::script;

/// A way to wedge the VM, for good.
type Wedge = fn(&Vm) -> Result<()>;

fn stalled(vm: &Vm) -> Result<()> {
    wedge::block_stall(vm).map(wedge::Undo::forget)
}

fn stopped(vm: &Vm) -> Result<()> {
    wedge::qemu_stopped(vm).map(wedge::Undo::forget)
}

/// Wedges a fresh VM, recovers it, waits for its login.
fn recovered(lab: &Lab, wedge: Wedge, recover: &mut [Command]) -> Result<Duration> {
    let vm = lab.fresh()?;
    wedge(vm)?;
    let began = Instant::now();
    recover.iter_mut().try_for_each(|command| whole(command).map(drop))?;
    vm.wait_for_ssh(BOOT.saturating_mul(2))?;
    Ok(began.elapsed())
}

pub(crate) fn tables(bench: &Bench) -> Result<Vec<Table>> {
    let folder = disk::folder()?;
    let qm = |verb: &str| {
        let mut command = Command::new("/usr/sbin/qm");
        command.args([verb, "102"]);
        command
    };
    let by_hand = || {
        let mut command = Command::new(script("evidence-by-hand.sh"));
        command.arg(folder.path().join("by-hand"));
        command
    };
    let mut table = Table::of_times("from the request to a login in the guest, by turns");
    let wedges: [(&str, Wedge, f64); 2] = [("block-stalled", stalled, 1.5), ("QEMU SIGSTOPped", stopped, 2.0)];
    for (what, wedge, wanted) in wedges {
        let [mut ours, mut bare, mut kept] = [const { Times::new() }; 3];
        for _ in 0..bench.rounds(3) {
            ours.push(recovered(&bench.lab, wedge, &mut [verb("cycle")])?);
            bare.push(recovered(&bench.lab, wedge, &mut [qm("stop"), qm("start")])?);
            kept.push(recovered(&bench.lab, wedge, &mut [by_hand(), qm("stop"), qm("start")])?);
        }
        table.times(&format!("{what}: `pve-verb cycle`, evidence preserved first"), &ours);
        table.times(&format!("{what}: script, `qm stop; qm start`, no evidence"), &bare);
        table.times(&format!("{what}: script, its evidence, then `qm stop; qm start`"), &kept);
        table.target(&format!("{what}: the script without evidence over `cycle`"), bare.over(&ours), Target::AtLeast(wanted));
        table.target(&format!("{what}: the script with evidence over `cycle`"), kept.over(&ours), Target::AtLeast(wanted));
    }
    Ok(vec![table])
}
