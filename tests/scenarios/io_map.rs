//! SECURITY.md's I/O map against traces of the real programs: every path, socket and program that `pve-verb` and `breakglass` touch while
//! the lab's VM is looked at, cycled, stalled and recovered stands in the map, and a touch that does not stand there fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)] // a scenario fails by panicking

#[path = "../../agent/tests/api/mod.rs"]
mod api;
#[path = "io_map/breakglass.rs"]
mod breakglass;
#[path = "agent/browser.rs"]
#[allow(dead_code)]
mod browser;
#[path = "agent/desk.rs"]
#[allow(dead_code)] // each scenario file uses its part
mod desk;
#[path = "agent/keyholder.rs"]
mod keyholder;
#[path = "io_map/page.rs"]
mod page;
#[path = "io_map/trace.rs"]
mod trace;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use lab::installed::{Told, agent, ask, prepare};
use lab::lab::{Scenario, run_scenarios};
use lab::process::{start, until};
use lab::{Lab, Result, wedge};
use trace::{CALLS, map, outside, touched};

const SCENARIOS: &[Scenario] = &[
    ("when_every_verb_is_traced_then_nothing_outside_the_io_map_is_touched", full_run),
    ("when_an_admin_s_commands_are_traced_then_nothing_outside_the_io_map_is_touched", by_hand),
    ("when_a_touch_is_not_in_the_io_map_then_it_is_found", a_touch_more),
    ("when_breakglass_is_traced_then_nothing_outside_its_io_map_is_touched", breakglass::full_run),
    ("when_the_page_claude_and_mcp_are_traced_then_nothing_outside_its_io_map_is_touched", page::full_run),
    ("when_breakglass_touches_one_thing_more_then_it_is_found", breakglass::a_touch_more),
];

/// The program.
const PVE_VERB: &str = "/usr/sbin/pve-verb";
const TRACE: &str = "/run/lab/io.trace";

fn main() {
    run_scenarios(SCENARIOS, prepare)
}

/// Follows sshd and all that it starts while `what` happens.
fn traced(lab: &Lab, what: impl FnOnce() -> Result<()>) -> Result<BTreeSet<String>> {
    let pid = lab.host.sshd_pid().unwrap();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-I", "2", "-y", "-s", "300", "-e", CALLS, "-e", "signal=none", "-o", TRACE, "-p", &pid.to_string()]);
    let running = start(strace.current_dir("/"), &[])?;
    until("strace's grip", Duration::from_secs(30), || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0")).then_some(())
    })?;
    let done = what();
    std::thread::sleep(Duration::from_millis(500));
    lab::vm::send(running.pid(), rustix::process::Signal::INT)?;
    // From its start, and seven verbs under strace lie between.
    running.finish(Duration::from_secs(900))?;
    done?;
    Ok(touched(&String::from_utf8_lossy(&fs::read(TRACE).expect("a trace")), PVE_VERB))
}

fn full_run(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let ssh = agent(lab)?;
    let all = traced(lab, || {
        ask(&ssh, "status")?.done();
        ask(&ssh, "forensics")?.done();
        ask(&ssh, "reset --reason=map")?.done();
        ask(&ssh, "stop --reason=map")?.done();
        ask(&ssh, "start --reason=map")?.done();
        let stopped = wedge::qemu_stopped(vm)?;
        Told::read(ssh.call("cycle --json --reason=stopped")?)?.done();
        drop(stopped);
        let refused = ssh.call("cycle --nonsense")?;
        assert_eq!(refused.status, 2);
        Ok(())
    })?;
    let map = map("pve-verb");
    assert!(map.len() > 20, "{map:?}");
    assert!(all.len() > 100, "a trace of {} paths saw nothing", all.len());
    for must in ["/run/qemu-server/102.qmp", "/usr/sbin/qm", "/run/pve-verb/"] {
        assert!(all.iter().any(|path| path.starts_with(must)), "the trace lacks {must}, so it is not one: {all:#?}");
    }
    let outside = outside(&all, &map);
    println!("{} paths touched, {} patterns in the map.", all.len(), map.len());
    assert!(outside.is_empty(), "touched and not in SECURITY.md's I/O map: {outside:#?}");
    Ok(())
}

/// Every command of the admin's, as root types it.
fn by_hand(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    ask(&agent(lab)?, "forensics")?.done();
    let key = lab.host.key("agent")?.with_extension("pub");
    fs::copy(key, "/run/lab/KEY.pub").unwrap();
    let mut all = BTreeSet::new();
    for line in [
        "init",
        "authorize /run/lab/KEY.pub --key-name traced",
        "check",
        "recover",
        "status",
        "review --note traced",
        "log show",
        "log head",
        "log verify",
        "bundle list",
        "bundle verify @",
        "bundle show @",
        "bundle export @ --output /run/lab/bundle.tar",
        "rotate",
    ] {
        let kept = fs::read_dir(lab::installed::EVIDENCE).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
        let newest = kept.filter(|name| name.contains("-forensics-")).max();
        let words = line.split(' ').map(|word| if word == "@" { newest.clone().unwrap() } else { word.to_owned() });
        let mut strace = Command::new("strace");
        strace.args(["-f", "-y", "-s", "300", "-e", CALLS, "-e", "signal=none", "-o", TRACE, PVE_VERB]).args(words);
        let end = lab::process::run(strace.current_dir("/"), Duration::from_secs(60))?;
        // What a laboratory lacks is `check`'s to say.
        assert!(end.status == 0 || line == "check", "{line}: {} {}", end.text(), String::from_utf8_lossy(&end.stderr));
        let touched = touched(&String::from_utf8_lossy(&fs::read(TRACE).expect("a trace")), PVE_VERB);
        assert!(touched.len() > 3, "{line}: a trace of {touched:?} saw nothing");
        all.extend(touched);
    }
    let named = |path: &String| ["/run/lab/KEY.pub", "/run/lab/bundle.tar", "/run/lab"].contains(&path.as_str());
    let outside: Vec<String> = outside(&all, &map("pve-verb")).into_iter().filter(|path| !named(path)).collect();
    println!("{} paths touched by hand.", all.len());
    assert!(all.contains("/etc/shadow"), "the trace of check lacks what it reads: {all:#?}");
    assert!(outside.is_empty(), "touched and not in SECURITY.md's I/O map: {outside:#?}");
    Ok(())
}

fn a_touch_more(lab: &Lab) -> Result<()> {
    let ssh = agent(lab)?;
    let (ours, kept) = (PVE_VERB, "/usr/sbin/pve-verb.kept");
    fs::rename(ours, kept).unwrap();
    // A program behind the same name that reads one file more.
    lab::host::write(ours, "#!/bin/sh\nread -r line < /etc/hosts\nexit 0\n", 0o755)?;
    let found = traced(lab, || ssh.call("status").map(drop));
    fs::rename(kept, ours).unwrap();
    let found = outside(&found?, &map("pve-verb"));
    assert!(found.iter().any(|path| path == "/etc/hosts"), "the touch was not found among {found:?}");
    Ok(())
}
