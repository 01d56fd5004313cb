//! What the recordings hold in free form (`S-screendump-and-signals`) and what only a stand-in can do: lie.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::case::{HUNG, Outcome};
use crate::inside::{perform, prepare};

/// The tests, and whether each is over nine seconds.
pub(crate) const NAMES: [(&str, bool); 7] = [
    ("when_the_client_gets_sigterm_then_qemu_is_signalled_at_once", true),
    ("when_the_client_is_killed_then_the_stop_is_abandoned", false),
    ("when_it_lies_then_only_as_told", false),
    ("when_a_task_ran_then_its_logs_are_proxmoxs", false),
    ("when_qemu_runs_then_it_is_in_its_scope", false),
    ("when_help_is_asked_then_it_says_what_it_is", false),
    ("when_qemu_refuses_then_its_words_are_in_the_task", false),
];

/// Runs one of them inside its host.
pub(crate) fn run(name: &str) -> i32 {
    let result = match name {
        "when_the_client_gets_sigterm_then_qemu_is_signalled_at_once" => terminated(),
        "when_the_client_is_killed_then_the_stop_is_abandoned" => abandoned(),
        "when_it_lies_then_only_as_told" => lies(),
        "when_a_task_ran_then_its_logs_are_proxmoxs" => logs(),
        "when_qemu_runs_then_it_is_in_its_scope" => scope(),
        "when_help_is_asked_then_it_says_what_it_is" => help(),
        "when_qemu_refuses_then_its_words_are_in_the_task" => refused(),
        other => Err(format!("there is no {other}")),
    };
    if let Err(why) = &result {
        println!("{name}: {why}");
    }
    i32::from(result.is_err())
}

type Checked = Result<(), String>;

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(what()) }
}

fn qm(args: &str, limit: u64) -> Result<Outcome, String> {
    let words: Vec<String> = format!("qm {args}").split_whitespace().map(str::to_owned).collect();
    perform(&words, "", Duration::from_secs(limit))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn shell(script: &str) -> Result<String, String> {
    let output = Command::new("bash").args(["-c", script]).output().map_err(|why| why.to_string())?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// S, "TERM timing": 13.0 s from the start, with the signal about two seconds into the stop.
fn terminated() -> Checked {
    prepare("hung")?;
    let begin = Instant::now();
    let text = shell("qm stop 102 & client=$!; sleep 2; kill -TERM $client; wait $client; echo rc=$?; qm status 102")?;
    let wall = begin.elapsed().as_secs_f64();
    let wanted =
        "VM quit/powerdown failed - terminating now with SIGTERM\nVM still running - terminating now with SIGKILL\nrc=0\nstatus: stopped\n";
    ensure(text == wanted && (12.5..15.5).contains(&wall), || format!("after {wall:.1} s: {text}"))
}

/// S, "after client SIGKILL": the worker ends at its first message, QEMU is not signalled, the task never ends.
fn abandoned() -> Checked {
    prepare("hung")?;
    let text = shell(
        "tasks() { ps -eo args | grep -c '^task UPID.*:qmstop:102:root@pam:'; }
         count() { for _ in $(seq 300); do [ $(tasks) = $1 ] && return; sleep .1; done; }
         p=$(cat /run/qemu-server/102.pid); qm stop 102 & client=$!; count 1; kill -KILL $client; tasks
         count 0; ps -eo args | grep -c '^task UPID'; grep -o '^State.*T' /proc/$p/status; grep -c ':qmstop:.* 0$' /var/log/pve/tasks/active
         grep -c qmstop /var/log/pve/tasks/index; grep -hv '^#' /var/log/pve/tasks/*/*:qmstop:*; kill -CONT $p; sleep 1; qm status 102",
    )?;
    ensure(text == "1\n0\nState:\tT\n1\n0\nstatus: running\n", || text)
}

fn lies() -> Checked {
    prepare("running")?;
    let mode = |text: &str| std::fs::write("/run/lab/qm-mode", text).map_err(|why| why.to_string());
    let pid = || read("/run/qemu-server/102.pid");
    let before = pid();
    mode("stop success-without-acting\nstatus garbage\nreset hang\nstart fail-after-acting\n")?;
    let got = qm("stop 102", 30)?;
    ensure(got.code == "0" && pid() == before, || format!("success without acting: {got:?}"))?;
    let got = qm("status 102", 30)?;
    ensure(got.code == "0" && got.stdout.contains('\u{fffd}'), || format!("garbage: {got:?}"))?;
    let got = qm("reset 102", 3)?;
    ensure(got.code == HUNG, || format!("hang: {got:?}"))?;
    mode("stop slow 1\nstart fail-after-acting\n")?;
    let got = qm("stop 102", 30)?;
    ensure(got.code == "0" && got.wall > 1.4 && pid().is_empty(), || format!("slow: {got:?}"))?;
    let got = qm("start 102", 30)?;
    ensure(got.code == "255" && !pid().is_empty(), || format!("fail after acting: {got:?}"))?;
    mode("")?;
    let got = qm("status 102", 30)?;
    ensure(got.stdout == "status: running\n", || format!("honest again: {got:?}"))
}

fn logs() -> Checked {
    prepare("running; qm start 102 || :")?;
    let index = read("/var/log/pve/tasks/index");
    let lines: Vec<&str> = index.lines().collect();
    let [first, second] = lines.as_slice() else {
        return Err(format!("index: {index}"));
    };
    ensure(first.starts_with("UPID:pve:") && first.contains(":qmstart:102:root@pam: ") && first.ends_with(" OK"), || index.clone())?;
    ensure(second.ends_with(" VM 102 already running"), || index.clone())?;
    let upid = first.split(' ').next().unwrap_or_default();
    let digit = upid.split(':').nth(4).and_then(|start| start.chars().last()).unwrap_or('?');
    let log = read(&format!("/var/log/pve/tasks/{digit}/{upid}"));
    ensure(log.starts_with("# ") && log.contains("stand-in") && log.ends_with("TASK OK\n"), || format!("log: {log}"))?;
    let active = read("/var/log/pve/tasks/active");
    ensure(active.lines().all(|line| line.split(' ').nth(1) == Some("1")), || format!("active: {active}"))
}

fn scope() -> Checked {
    prepare("running")?;
    // A laboratory without it would leave all that scopes are for untested.
    ensure(std::path::Path::new("/sys/fs/cgroup/cgroup.procs").exists(), || "there is no cgroup2".to_owned())?;
    let pid = read("/run/qemu-server/102.pid");
    let procs = read("/sys/fs/cgroup/qemu.slice/102.scope/cgroup.procs");
    let own = read(&format!("/proc/{}/cgroup", pid.trim()));
    let comm = read(&format!("/proc/{}/comm", pid.trim()));
    ensure(procs == pid && own.contains("0::/qemu.slice/102.scope\n") && comm == "kvm\n", || format!("{pid:?} {procs:?} {own:?} {comm:?}"))
}

fn help() -> Checked {
    let got = qm("help", 30)?;
    ensure(got.code == "0" && got.stdout.contains("STAND-IN"), || format!("{got:?}"))
}

fn refused() -> Checked {
    prepare("echo 'args: -nonsense' >> $conf")?;
    let got = qm("start 102", 30)?;
    let said = got.stdout.contains("kvm: -nonsense") && got.stderr == "start failed: QEMU exited with code 1\n";
    ensure(got.code == "255" && said, || format!("{got:?}"))
}
