//! The order of a mutation, seen from outside by strace: evidence and intent are durable before the first byte that changes the VM.
//! And what children get: constant arguments, a constant environment, nothing of the caller's channel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking

#[path = "order/trace.rs"]
mod trace;

use std::fs;
use std::time::Duration;

use lab::installed::{Told, agent, ask, prepare, qm_script};
use lab::lab::{Scenario, run_scenarios};
use lab::process::until;
use lab::station::matching;
use lab::vm::BOOT;
use lab::{Lab, Observed, Result, wedge};
use serde_json::json;
use trace::Trace;

const SCENARIOS: &[Scenario] = &[
    ("when_a_line_is_rejected_then_no_process_is_started", rejected),
    ("when_reset_acts_then_evidence_and_intent_are_durable_first", reset),
    ("when_start_resumes_then_evidence_and_intent_are_durable_first", resume),
    ("when_cycle_acts_through_sshd_then_evidence_and_intent_are_durable_first", cycle_through_sshd),
    ("when_stop_acts_then_evidence_and_intent_are_durable_first", stop),
    ("when_start_acts_then_evidence_and_intent_are_durable_first", start),
    ("when_a_hung_qemu_is_killed_then_evidence_and_intent_are_durable_first_and_only_a_pidfd_kills", kill),
    ("when_qm_runs_then_nobody_but_the_front_holds_the_callers_channel", channel),
];

fn main() {
    run_scenarios(SCENARIOS, prepare)
}

/// Words that nobody else would write.
const CLAIM: &str = "--actor=zqxactor --reason=zqx%20reason";

/// Whether a line sends the VM something that changes it.
fn acts(line: &trace::Line, qemu: u32) -> bool {
    let Some(call) = line.call() else { return false };
    let sends = ["write", "writev", "sendto", "sendmsg"].contains(&call) && !line.text.contains(".jsonl");
    let qmp =
        [r#"\"execute\":\"system_reset\""#, r#"\"execute\":\"cont\""#, r#"\"execute\": \"system_reset\""#, r#"\"execute\": \"cont\""#];
    let signals = ["kill", "tgkill", "tkill", "rt_sigqueueinfo"].contains(&call) && line.text.contains(&format!("({qemu}"));
    let pidfd = call == "pidfd_send_signal" && (line.text.contains("SIGKILL") || line.text.contains("SIGTERM"));
    let qm = call == "execve"
        && line.text.starts_with("execve(\"/usr/sbin/qm\"")
        && (line.text.contains("\"stop\"") || line.text.contains("\"start\""));
    sends && qmp.iter().any(|words| line.text.contains(words)) || signals || pidfd || qm
}

/// Holds the trace of a mutation against the promised order; gives the line of the first act.
fn in_order(trace: &Trace, bundle: &str, qemu: u32) -> usize {
    let act = trace.first(0, |line| acts(line, qemu)).expect("nothing was sent to the VM");
    let what = &trace.lines[act].text[..trace.lines[act].text.len().min(120)];
    for rung in ["/run/pve-verb/evidence/102", "/var/lib/pve-verb/evidence/102"] {
        let manifest =
            trace.done(0, &["fsync"], &[rung, bundle, "/manifest.json>"]).unwrap_or_else(|| panic!("no fsync of {rung}'s manifest"));
        let named = trace.done(manifest, &["rename", "renameat", "renameat2"], &[rung, &format!("{bundle}.partial"), bundle]);
        let named = named.unwrap_or_else(|| panic!("{rung}: the bundle was not renamed after its manifest's fsync"));
        let folder = trace.done(named, &["fsync"], &[&format!("{rung}>")]).unwrap_or_else(|| panic!("{rung} was not synced"));
        assert!(folder < act, "{rung}: sealed in line {folder}, but line {act} acts: {what}");
    }
    let intent = trace
        .done(0, &["write", "pwrite64", "writev"], &["/var/log/pve-verb/audit-", r#"\"kind\":\"intent\""#])
        .expect("no intent was written");
    let durable = trace.done(intent, &["fdatasync", "fsync"], &["/var/log/pve-verb/audit-"]).expect("the intent was not synced");
    assert!(durable < act, "the intent is durable in line {durable}, but line {act} acts: {what}");
    let operation = trace.done(durable, &["rename", "renameat", "renameat2"], &["operation.json"]).expect("no operation.json");
    assert!(operation < act, "operation.json stands in line {operation}, but line {act} acts: {what}");
    act
}

/// What children of ours get, from the line on in which the program itself was executed.
fn children(trace: &Trace, from: usize) {
    let execs = trace.execs();
    // What qm starts, itself under another name among it, is qm's.
    let called = |exec: &trace::Exec| exec.argv.starts_with("\"/usr/sbin/qm\", ");
    let qms: Vec<u32> = execs.iter().filter(|exec| called(exec)).map(|exec| exec.pid).collect();
    // A program is begun by a child that is this program first.
    let begins = |exec: &trace::Exec| exec.argv.starts_with("\"pve-verb\", \"begin\", ");
    let of_qm = |exec: &trace::Exec| !called(exec) && !begins(exec) && qms.iter().any(|qm| trace.below(exec.pid, *qm));
    let ours: Vec<_> = execs.iter().filter(|exec| exec.at > from && !of_qm(exec)).collect();
    assert!(ours.len() >= 4, "helpers, worker, writer: {ours:#?}");
    for exec in &ours {
        assert!(!exec.argv.contains("zqx") && !exec.env.contains("zqx"), "a child was told what the caller said: {exec:?}");
        assert_eq!(exec.env, r#""LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin""#, "{exec:?}");
        if ours.iter().any(|before| before.pid == exec.pid && before.at < exec.at && begins(before)) {
            // Its streams are those that it began with.
            continue;
        }
        for stream in 0..=2 {
            let given = trace.lines[..exec.at]
                .iter()
                .rev()
                .take_while(|line| !(line.pid == exec.pid && line.text.contains("execve(") && line.text.ends_with("= 0")));
            let given = given.filter(|line| line.pid == exec.pid).find(|line| {
                let text = line.text.trim_start_matches("ended ");
                (text.starts_with("dup2(") || text.starts_with("dup3("))
                    && text.rsplit_once(" = ").is_some_and(|(_, to)| to.starts_with(&format!("{stream}<")))
            });
            let text = given.map(|line| line.text.clone()).unwrap_or_else(|| panic!("stream {stream} of {exec:?} was inherited"));
            assert!(["</dev/null", "<pipe:[", "</memfd:"].iter().any(|kind| text.contains(kind)), "stream {stream} of {exec:?}: {text}");
        }
    }
}

/// No QMP or agent connection of ours is open when `qm` is executed.
fn no_connection_at(trace: &Trace, at: usize) {
    for (n, line) in trace.lines[..at].iter().enumerate() {
        let text = line.text.trim_start_matches("ended ");
        if !(text.starts_with("connect(") && (text.contains("102.qmp\"") || text.contains("102.qga\"")) && text.ends_with("= 0")) {
            continue;
        }
        let fd = text["connect(".len()..].split('<').next().unwrap();
        let gone = |later: &trace::Line| {
            later.pid == line.pid && later.text.trim_start_matches("ended ").starts_with(&format!("close({fd}<"))
                || later.text.starts_with("+++ exited") && (later.pid == line.pid || trace.below(line.pid, later.pid))
                || later.text.starts_with("+++ killed") && (later.pid == line.pid || trace.below(line.pid, later.pid))
        };
        assert!(trace.lines[n..at].iter().any(gone), "still open when qm is executed: {text}");
    }
}

/// What a mutation answered, and its trace, of a VM that `ready` makes, whose pid is the last. The disk has seconds, which under strace on a
/// busy machine it may miss: what is promised then other scenarios show, and here it is done once more.
fn with_the_disk_in_time(ready: impl Fn() -> Result<u32>, act: impl Fn() -> Result<(Told, Trace)>) -> Result<(Told, Trace, u32)> {
    let mut tries = 0;
    loop {
        let qemu = ready()?;
        let (told, trace) = act()?;
        let told = told.done();
        let late = told.body["preserved_where"] != "disk" || told.body["degraded"].to_string().contains("on tmpfs only");
        tries += 1;
        if !late || tries == 3 {
            return Ok((told, trace, qemu));
        }
    }
}

fn by_hand(verb: &str, ready: impl Fn() -> Result<u32>) -> Result<(Told, Trace, u32)> {
    let words: Vec<&str> = [verb, "--json"].into_iter().chain(CLAIM.split(' ')).collect();
    with_the_disk_in_time(ready, || {
        let (end, trace) = trace::of(&words, &[])?;
        Ok((Told { body: lab::Answer::from(end.clone()).receipt_body().unwrap_or_default(), answer: end.into() }, trace))
    })
}

fn fresh(lab: &Lab) -> Result<u32> {
    Ok(lab.fresh()?.pid().unwrap())
}

fn bundle_of(told: &Told) -> String {
    told.body["bundle"].as_str().unwrap().to_owned()
}

fn rejected(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    for (line, arguments) in [
        ("status;reboot", &["forced", "--key-name", "agent"][..]),
        ("cycle --request-id=../../x", &["forced", "--key-name", "agent"]),
        ("cycle", &["forced", "--key-name", "agent", "--allow", "read"]),
    ] {
        let (end, trace) = trace::of(arguments, &[("SSH_ORIGINAL_COMMAND", line)])?;
        assert!(end.text().contains("refused-"), "{line}: {}", end.text());
        assert_eq!(trace.processes_begun(), Vec::<&str>::new(), "{line} started a process");
        assert_eq!(trace.execs().len(), 1, "{line}: {:#?}", trace.execs());
        assert!(trace.done(0, &["write", "pwrite64", "writev"], &["/var/"]).is_none(), "{line}: the refusing process wrote to the disk");
    }
    // Their records are on disk with the next call; and so are not in the way of what the next trace is held against.
    assert_eq!(ask(&agent(lab)?, "status")?.answer.status, 0);
    lab::worker::carried()
}

fn reset(lab: &Lab) -> Result<()> {
    let vm = &lab.vm;
    let (told, trace, qemu) = by_hand("reset", || fresh(lab))?;
    let act = in_order(&trace, &bundle_of(&told), qemu);
    assert!(trace.lines[act].text.contains("system_reset"), "{}", trace.lines[act].text);
    children(&trace, trace.execs()[0].at);
    assert!(trace.execs().iter().all(|exec| exec.program != "/usr/sbin/qm"), "reset goes over our own connection");
    vm.wait_for_ssh(BOOT)
}

fn resume(lab: &Lab) -> Result<()> {
    let vm = &lab.vm;
    let paused = || fresh(lab).and_then(|qemu| vm.qmp("stop", json!({})).map(|_| qemu));
    let (told, trace, qemu) = by_hand("start", paused)?;
    let act = in_order(&trace, &bundle_of(&told), qemu);
    assert!(trace.lines[act].text.contains("cont"), "{}", trace.lines[act].text);
    children(&trace, trace.execs()[0].at);
    assert_eq!(vm.observe(), Observed::State("running".into()));
    Ok(())
}

fn cycle_through_sshd(lab: &Lab) -> Result<()> {
    let vm = &lab.vm;
    let cycle = || trace::attached(lab.host.sshd_pid().unwrap(), || ask(&agent(lab)?, &format!("cycle {CLAIM}")));
    let (told, trace, qemu) = with_the_disk_in_time(|| fresh(lab), cycle)?;
    let act = in_order(&trace, &bundle_of(&told), qemu);
    assert!(trace.lines[act].text.contains("/usr/sbin/qm"), "{}", trace.lines[act].text);
    no_connection_at(&trace, act);
    let own = trace.execs().into_iter().find(|exec| exec.program == "/usr/sbin/pve-verb").unwrap_or_else(|| {
        panic!("sshd did not start it: {:#?}", trace.execs().iter().map(|exec| (&exec.program, &exec.argv)).collect::<Vec<_>>())
    });
    assert!(own.env.contains("zqx") && !own.argv.contains("zqx"), "the request comes in the environment: {own:?}");
    children(&trace, own.at);
    let qm: Vec<_> = trace.execs().into_iter().filter(|exec| exec.program == "/usr/sbin/qm").map(|exec| exec.argv).collect();
    assert!(
        qm.iter().any(|argv| argv == r#""/usr/sbin/qm", "stop", "102""#)
            && qm.iter().any(|argv| argv == r#""/usr/sbin/qm", "start", "102""#),
        "{qm:?}"
    );
    vm.wait_for_ssh(BOOT)
}

fn stop(lab: &Lab) -> Result<()> {
    let vm = &lab.vm;
    let (told, trace, _) = by_hand("stop", || fresh(lab))?;
    let act = in_order(&trace, &bundle_of(&told), 0);
    no_connection_at(&trace, act);
    children(&trace, trace.execs()[0].at);
    // A mutating qm never gets SIGKILL; a helper that is late may.
    let qms: Vec<u32> = trace.execs().iter().filter(|exec| exec.program == "/usr/sbin/qm").map(|exec| exec.pid).collect();
    let to_qm = |line: &&trace::Line| {
        let killed = matches!(line.call(), Some("kill" | "tgkill" | "tkill")) && line.text.contains("SIGKILL");
        killed && qms.iter().any(|qm| line.text.contains(&format!("({qm}")) || line.text.contains(&format!("(-{qm}")))
    };
    assert!(!qms.is_empty() && !trace.lines.iter().any(|line| to_qm(&line)), "qm was killed");
    assert_eq!(vm.observe(), Observed::Stopped);
    Ok(())
}

fn start(lab: &Lab) -> Result<()> {
    let vm = &lab.vm;
    let (told, trace, _) = by_hand("start", || lab.stopped().map(|_| 0))?;
    in_order(&trace, &bundle_of(&told), 0);
    children(&trace, trace.execs()[0].at);
    vm.wait_for_ssh(BOOT)
}

fn kill(lab: &Lab) -> Result<()> {
    let vm = &lab.vm;
    let hung = || {
        let qemu = fresh(lab)?;
        wedge::qemu_stopped(vm)?.forget();
        Ok(qemu)
    };
    let (told, trace, qemu) = by_hand("cycle", hung)?;
    let act = in_order(&trace, &bundle_of(&told), qemu);
    assert!(trace.lines[act].text.starts_with("pidfd_send_signal("), "{}", trace.lines[act].text);
    let by_number =
        trace.first(0, |line| matches!(line.call(), Some("kill" | "tgkill" | "tkill")) && line.text.contains(&format!("({qemu}")));
    assert!(by_number.is_none(), "killed by number, which may be another process by then");
    // One connection for the one process that did not answer.
    let connected = trace.lines[..act].iter().map(|line| line.text.trim_start_matches("ended "));
    let connected: Vec<_> =
        connected.filter(|text| text.starts_with("connect(") && text.contains("102.qmp\"") && text.ends_with("= 0")).collect();
    assert_eq!(connected.len(), 1, "{connected:#?}");
    vm.wait_for_ssh(BOOT)
}

/// What a process's descriptors are.
fn descriptors(pid: u32) -> Vec<(u32, String)> {
    let all = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    all.filter_map(|entry| {
        Some((entry.file_name().to_str()?.parse().ok()?, fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
    })
    .collect()
}

fn channel(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let slow = qm_script(lab, "sleep 9\nexec /usr/sbin/qm.real \"$@\"")?;
    let sleeps = ["sleep", "9"].map(str::to_owned);
    let call = agent(lab)?.spawn(format!("stop --json {CLAIM}"))?;
    // Its shell has begun its wait, so all that its start has to close is closed.
    until("qm's start", Duration::from_secs(60), || (!matching(|words| words.starts_with(&sleeps)).is_empty()).then_some(()))?;
    let all: Vec<u32> = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let command = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
    let front = all.iter().copied().find(|pid| command(pid).starts_with("/usr/sbin/pve-verb forced ")).expect("no front");
    let channel: Vec<String> = descriptors(front).into_iter().filter(|(fd, _)| *fd <= 2).map(|(_, target)| target).collect();
    assert_eq!(channel.len(), 3, "{channel:?}");
    let others: Vec<u32> = all
        .into_iter()
        .filter(|pid| {
            let line = command(pid);
            line.starts_with("pve-verb ") || line.contains("/usr/sbin/qm ") || line.starts_with("sleep 9")
        })
        .collect();
    let (mut worker, mut qm) = (0, 0);
    for pid in others {
        let (line, open) = (command(&pid), descriptors(pid));
        assert!(
            open.iter().all(|(_, target)| target.starts_with("/dev/") || !channel.contains(target)),
            "{line} holds the caller's channel: {open:?}"
        );
        let fine = |target: &str| target == "/dev/null" || target.starts_with("pipe:[") || target.starts_with("/memfd:");
        assert!(open.iter().filter(|(fd, _)| *fd <= 2).all(|(_, target)| fine(target)), "{line}: {open:?}");
        worker += u32::from(line.starts_with("pve-verb worker"));
        if line.contains("/usr/sbin/qm ") {
            qm += 1;
            // The script itself is open in its shell, as descriptor 10.
            assert!(open.iter().all(|(fd, target)| *fd <= 2 || target.ends_with("/usr/sbin/qm")), "{line} inherited more: {open:?}");
            let env = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
            assert_eq!(env, "LC_ALL=C\0PATH=/usr/sbin:/usr/bin:/sbin:/bin\0");
        }
        assert!(!line.contains("zqx"), "{line}");
    }
    assert!(worker == 1 && qm >= 1, "{worker} workers, {qm} qm");
    let end = call.finish(Duration::from_secs(120))?;
    drop(slow);
    assert_eq!((end.status, vm.observe()), (0, Observed::Stopped));
    Ok(())
}
