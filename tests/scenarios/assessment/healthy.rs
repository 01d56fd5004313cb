//! No wrong alarm: a VM that is well, in the ways in which it may look odd. CI takes one run of each; `LAB_ALL=1` takes all twenty.

use std::time::Duration;

use lab::bundle::judged;
use lab::installed::{agent, ask, look};
use lab::lab::Scenario;
use lab::process::until;
use lab::{Lab, Result, Vm, wedge};

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("when_the_vm_is_idle_then_it_is_healthy", |lab| runs(4, || idle(lab))),
    ("when_the_disk_is_busy_then_it_is_healthy", |lab| busy(lab, 4, DISK)),
    ("when_the_cpu_is_busy_then_it_is_healthy", |lab| busy(lab, 4, "while :; do :; done")),
    ("when_somebody_else_is_on_the_socket_then_he_is_named_and_nothing_is_called_ill", |lab| runs(2, || held(lab))),
    ("when_no_agent_runs_then_it_is_healthy", |lab| without_agent(lab, 3)),
    ("when_the_guest_boots_then_it_is_healthy", |lab| booting(lab, 3)),
];

const DISK: &str = "while :; do dd if=/dev/zero of=/data/load bs=64k count=64 oflag=direct conv=notrunc 2>/dev/null; sync; done";

fn runs(all: u32, mut one: impl FnMut() -> Result<()>) -> Result<()> {
    let all = if std::env::var_os("LAB_ALL").is_some() { all } else { 1 };
    (0..all).try_for_each(|_| one())
}

/// A bundle, and then two polls of `status`, of which the second compares with the first.
fn healthy(lab: &Lab) -> Result<()> {
    judged(lab, "healthy", None)?;
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(1_100));
        let status = look(&agent(lab)?, "status")?.done();
        assert_eq!(status.code(), "healthy", "{:#?}", status.answer.events_of("assessment"));
    }
    Ok(())
}

fn idle(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    healthy(lab)
}

fn busy(lab: &Lab, all: u32, with: &str) -> Result<()> {
    let vm = lab.fresh()?;
    vm.guest_background(&format!("echo $$ > /tmp/busy; {with}"))?;
    let before = vm.writes()?;
    if with == DISK {
        until("the guest's writing", Duration::from_secs(30), || vm.writes().ok().filter(|now| *now > before + 20))?;
    }
    let end = runs(all, || healthy(lab));
    vm.guest("kill $(cat /tmp/busy); pkill dd; rm -f /data/load")?;
    end
}

/// The honest answer is that QEMU could not be asked, by whom it was in use, and that nothing is wrong.
fn held(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    let socket = wedge::qmp_held()?;
    let bundle = judged(lab, "qmp-unavailable", None);
    let status = ask(&agent(lab)?, "status");
    drop(socket);
    let bundle = bundle?;
    let (own, said) = (std::process::id(), bundle.finding("qmp-unavailable"));
    assert!(said.contains(&format!("in use by {own} (")), "{said} does not name {own}");
    assert!(bundle.json("process/peers.json")["qmp"].to_string().contains(&own.to_string()));
    assert!(bundle.advice().contains("nothing shows that the VM is ill"), "{}", bundle.advice());
    assert_eq!(status?.done().code(), "qmp-unavailable");
    Ok(())
}

fn without_agent(lab: &Lab, all: u32) -> Result<()> {
    let vm = lab.fresh()?;
    let dead = wedge::agent_killed(vm)?;
    let end = runs(all, || healthy(lab));
    dead.now();
    end
}

fn booting(lab: &Lab, all: u32) -> Result<()> {
    let mut moment = 0;
    runs(all, || {
        let vm: &Vm = lab.stopped()?;
        vm.start()?;
        std::thread::sleep(Duration::from_millis(1_500 * moment));
        moment += 1;
        judged(lab, "healthy", None)?;
        vm.wait_for_ssh(lab::vm::BOOT)
    })
}
