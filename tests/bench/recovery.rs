//! From the request to a login in the guest: `cycle`, with its evidence, against `qm stop; qm start`, with an admin's evidence and without.

use std::process::Command;
use std::time::Instant;

use lab::vm::BOOT;
use lab::{Lab, Result, Vm, wedge};

use crate::Bench;
use crate::disk;
use crate::measure::{Table, Target, Times, ms, verb, whole};
use crate::status::script;

/// A way to wedge the VM, for good.
type Wedge = fn(&Vm) -> Result<()>;

fn stalled(vm: &Vm) -> Result<()> {
    wedge::block_stall(vm).map(wedge::Undo::forget)
}

fn stopped(vm: &Vm) -> Result<()> {
    wedge::qemu_stopped(vm).map(wedge::Undo::forget)
}

/// Times until a fresh QEMU runs, and until its guest lets root in.
#[derive(Default)]
struct Way {
    qemu: Times,
    login: Times,
}

/// Wedges a fresh VM, recovers it, waits for its login.
fn recovered(lab: &Lab, wedge: Wedge, way: &mut Way, recover: &mut [Command]) -> Result<()> {
    let vm = lab.fresh()?;
    wedge(vm)?;
    let began = Instant::now();
    recover.iter_mut().try_for_each(|command| whole(command).map(drop))?;
    way.qemu.push(began.elapsed());
    vm.wait_for_ssh(BOOT.saturating_mul(2))?;
    way.login.push(began.elapsed());
    Ok(())
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
    let mut table =
        Table::new(&["from the request, by turns", "runs", "QEMU runs afresh, median", "login in the guest, least", "median", "most"]);
    let wedges: [(&str, Wedge, f64); 2] = [("block-stalled", stalled, 1.5), ("QEMU SIGSTOPped", stopped, 2.0)];
    for (what, wedge, wanted) in wedges {
        let [mut ours, mut bare, mut kept] = <[Way; 3]>::default();
        for _ in 0..bench.rounds(3) {
            recovered(&bench.lab, wedge, &mut ours, &mut [verb("cycle")])?;
            recovered(&bench.lab, wedge, &mut bare, &mut [qm("stop"), qm("start")])?;
            recovered(&bench.lab, wedge, &mut kept, &mut [by_hand(), qm("stop"), qm("start")])?;
        }
        for (who, way) in [
            ("`pve-verb cycle`, evidence preserved first", &ours),
            ("script, `qm stop; qm start`, no evidence", &bare),
            ("script, its evidence, then `qm stop; qm start`", &kept),
        ] {
            let [least, median, most] = [0.0, 0.5, 1.0].map(|part| ms(way.login.quantile(part)));
            let runs = bench.rounds(3).to_string();
            table.row(&[format!("{what}: {who}"), runs, ms(way.qemu.median()), least, median, most]);
        }
        for (who, way) in [("without evidence", &bare), ("with evidence", &kept)] {
            let to = |times: &str| format!("{what}: the script {who} over `cycle`, until {times}");
            table.target(&to("the login"), way.login.over(&ours.login), Target::AtLeast(wanted));
            table.note(format!("{}: {:.3}.", to("QEMU runs afresh"), way.qemu.over(&ours.qemu)));
        }
    }
    table.note("The guest's boot is the same for all of them, and takes seconds because the CPU is emulated.");
    Ok(vec![table])
}
