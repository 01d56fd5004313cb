//! The caller vanishes: the ssh client, sshd's child or the front is killed, at moments spread over a whole `cycle`.
//!
//! CI takes a quarter of the moments; `LAB_ALL=1` takes all fifty. QEMU is real and boots no guest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking
#![allow(clippy::print_stderr)] // which moment it was is what a failure is worth

use std::path::Path;
use std::time::{Duration, Instant};

use lab::lab::{Scenario, run_scenarios};
use lab::station::{self, Traces, anna, bare_vm, body, fresh_id, processes, told};
use lab::vm::send;
use lab::{Lab, Observed, Result};
use rustix::process::Signal;

const SCENARIOS: &[Scenario] = &[("when_the_caller_vanishes_at_any_moment_of_a_cycle_then_it_is_done_once_and_told_again", vanishes)];

/// All the moments.
const MOMENTS: u32 = 50;
const AMPLE: Duration = Duration::from_secs(60);

fn main() {
    run_scenarios(SCENARIOS, station::install)
}

/// Who is killed.
#[derive(Debug, Clone, Copy)]
enum Whom {
    Client,
    Sshd,
    Front,
}

fn vanishes(lab: &Lab) -> Result<()> {
    let all = std::env::var_os("LAB_ALL").is_some();
    bare_vm(lab)?;
    let began = Instant::now();
    assert_eq!(anna(lab)?.call("cycle")?.status, 0);
    let whole = began.elapsed();
    let step = if all { 1 } else { 4 };
    let (mut tried, mut reached) = (0, 0);
    for n in (1..=MOMENTS).step_by(step) {
        let whom = [Whom::Client, Whom::Sshd, Whom::Front][(n as usize / step) % 3];
        let moment = whole * n / MOMENTS;
        let began_at_all = vanishes_at(lab, whom, moment).map_err(|e| {
            eprintln!("{whom:?} killed after {moment:?}: {e}");
            e
        })?;
        tried += 1;
        reached += usize::from(began_at_all);
    }
    eprintln!("disconnect: {tried} moments over {whole:?}, all held; in {reached} the request had reached the host");
    assert!(reached * 2 > tried, "most moments should hit a running verb");
    Ok(())
}

/// Whether the request had reached the host.
fn vanishes_at(lab: &Lab, whom: Whom, moment: Duration) -> Result<bool> {
    let vm = bare_vm(lab)?;
    let before = (vm.pid(), vm.start_ticks());
    let id = fresh_id()?;
    let request = format!("cycle --json --request-id={id}");
    let ssh = anna(lab)?;
    let caller = ssh.spawn(&request)?;
    std::thread::sleep(moment);
    match whom {
        Whom::Client => drop(send(caller.pid(), Signal::KILL)),
        Whom::Sshd => sshd_children(lab).into_iter().for_each(|pid| drop(send(pid, Signal::KILL))),
        Whom::Front => processes("forced").into_iter().for_each(|pid| drop(send(pid, Signal::KILL))),
    }
    let _its_end = caller.finish(AMPLE)?;
    station::quiet(AMPLE)?;
    // Nobody asks again yet: what was begun has to come to its end by itself.
    let begun = Path::new(&format!("/run/pve-verb/spool/{id}.jsonl")).exists();
    let left = Traces::of(&id)?;
    if begun {
        assert_eq!((left.intents, left.outcomes, left.bundles.len()), (1, 1, 1), "{left:?}");
        let stored = left.stored.as_ref().expect("the finished request is stored");
        assert_eq!((&stored["outcome"], &stored["exit_code"]), (&"done".into(), &0.into()), "{stored}");
    } else {
        assert!(left.none(), "{left:?}");
    }
    let first = ssh.call(&request)?;
    let told_first = body(&first)?;
    assert_eq!((first.status, &told_first["replayed"]), (0, &begun.into()), "{told_first}");
    assert_eq!(vm.observe(), Observed::State("running".into()));
    let after = (vm.pid(), vm.start_ticks());
    assert_ne!(after, before, "the same QEMU");
    assert_eq!(told_first["qemu_after"]["pid"].as_u64(), after.0.map(u64::from));
    let again = ssh.call(&request)?;
    let told_again = body(&again)?;
    assert_eq!((again.status, &told_again["replayed"]), (0, &true.into()));
    assert_eq!(told(told_again), told(told_first.clone()));
    if let Some(stored) = left.stored {
        assert_eq!(told(stored), told(told_first));
    }
    let left = Traces::of(&id)?;
    assert_eq!((left.intents, left.outcomes, left.bundles.len()), (1, 1, 1), "{left:?}");
    assert_eq!((vm.pid(), vm.start_ticks()), after, "asking again did it again");
    Ok(begun)
}

/// Every sshd but the listener.
fn sshd_children(lab: &Lab) -> Vec<u32> {
    let listener = lab.host.sshd_pid();
    let all = station::matching(|words| words.first().is_some_and(|name| name.starts_with("sshd")));
    all.into_iter().filter(|pid| Some(*pid) != listener).collect()
}
