//! A `qm` that lies: the outcome follows what is seen of the VM, never what `qm` says. And a kernel that keeps a layer of the sandbox back. QEMU
//! is real and boots no guest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::host::write;
use lab::lab::{Scenario, run_scenarios};
use lab::process::{run, until};
use lab::station::{self, Traces, anna, bare_stopped, bare_vm, body, honest, lies, matching};
use lab::vm::send;
use lab::{Answer, Lab, Observed, Result};
use rustix::process::Signal;
use serde_json::{Value, json};

const SCENARIOS: &[Scenario] = &[
    ("when_qm_stop_says_done_without_acting_then_stop_and_cycle_failed", idle_stop),
    ("when_qm_stop_prints_garbage_then_the_state_decides", garbage_stop),
    ("when_qm_stop_acts_and_then_fails_then_it_is_done", failing_stop),
    ("when_qm_start_says_done_without_acting_then_start_and_cycle_failed", idle_start),
    ("when_qm_start_prints_garbage_then_the_state_decides", garbage_start),
    ("when_qm_start_acts_and_then_fails_then_it_is_done", failing_start),
    ("when_qm_start_fails_once_then_cycle_tries_again", start_fails_once),
    ("when_qm_is_missing_then_the_vm_is_left_as_it_is", missing),
    ("when_qm_prints_ten_megabytes_then_it_is_not_blocked", flood),
    ("when_qm_stop_hangs_for_ever_then_it_gets_sigterm_never_sigkill_and_the_verb_ends_in_time", hangs),
    ("when_the_kernel_lacks_a_layer_of_the_sandbox_then_the_evidence_is_taken_and_the_answer_says_which", lacks_a_layer),
];

const QM: &str = "/usr/sbin/qm";
const REAL: &str = "/usr/sbin/qm.real";
const AMPLE: Duration = Duration::from_secs(60);

fn main() {
    run_scenarios(SCENARIOS, station::install)
}

/// Without this capability there is no root folder of its own for whoever talks with QEMU.
fn lacks_a_layer(lab: &Lab) -> Result<()> {
    let _vm = bare_vm(lab)?;
    for (verb, place) in [("status", &json!(null)), ("forensics", &json!("disk")), ("cycle", &json!("disk"))] {
        let mut call = Command::new("/usr/bin/setpriv");
        call.args(["--bounding-set=-sys_chroot", "--inh-caps=-sys_chroot", "/usr/sbin/pve-verb", verb, "--json"]).current_dir("/");
        let answer: Answer = run(&mut call, AMPLE)?.into();
        let told = body(&answer)?;
        assert_eq!((answer.status, &told["state_after"], &told["preserved_where"]), (0, &json!("running"), place), "{verb}: {told}");
        let weaker = told["degraded"].to_string();
        assert!(weaker.contains("probe-guest runs without a root folder of its own, which this kernel does not give"), "{verb}: {weaker}");
        assert!(!weaker.contains("without Landlock") && !weaker.contains("without seccomp"), "the others hold: {weaker}");
    }
    Ok(())
}

/// A verb under this lie: the answer, and the receipt's body.
fn under(lab: &Lab, lie: &str, verb: &str) -> Result<(Answer, Value)> {
    lies(lie)?;
    let answer = anna(lab)?.call(format!("{verb} --json"));
    honest();
    let answer = answer?;
    let told = body(&answer)?;
    Ok((answer, told))
}

/// What a step said of itself, its last word.
fn step(answer: &Answer, name: &str) -> Option<Value> {
    answer.events_of("step").into_iter().rfind(|step| step["name"] == name)
}

fn stop_does_nothing(lab: &Lab, lie: &str) -> Result<()> {
    for verb in ["stop", "cycle"] {
        let before = bare_vm(lab)?.pid();
        let (answer, told) = under(lab, lie, verb)?;
        assert_eq!((answer.status, &told["state_after"]), (10, &json!("running")), "{verb} with {lie}: {told}");
        assert_eq!(lab.vm.pid(), before);
        assert_eq!(step(&answer, "qm-stop").unwrap()["outcome"], "done", "what it said of itself is kept");
        assert_eq!(step(&answer, "qm-start"), None, "no second QEMU is started beside the first");
    }
    Ok(())
}

fn idle_stop(lab: &Lab) -> Result<()> {
    stop_does_nothing(lab, "stop success-without-acting")
}

fn garbage_stop(lab: &Lab) -> Result<()> {
    stop_does_nothing(lab, "stop garbage")?;
    bare_vm(lab)?;
    let (answer, told) = under(lab, "stop garbage", "stop")?;
    assert!(!answer.stdout.contains(&0x1b) && !told["message"].to_string().contains('\u{1b}'), "garbage is shown escaped");
    Ok(())
}

fn failing_stop(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    let (answer, told) = under(lab, "stop fail-after-acting", "stop")?;
    assert_eq!((answer.status, &told["state_after"]), (0, &json!("stopped")), "{told}");
    assert_eq!(step(&answer, "qm-stop").unwrap()["outcome"], "failed");
    assert_eq!(lab.vm.observe(), Observed::Stopped);
    let before = (bare_vm(lab)?.pid(), lab.vm.start_ticks());
    let (answer, told) = under(lab, "stop fail-after-acting", "cycle")?;
    assert_eq!((answer.status, &told["state_after"]), (0, &json!("running")), "{told}");
    assert_ne!((lab.vm.pid(), lab.vm.start_ticks()), before);
    Ok(())
}

fn start_does_nothing(lab: &Lab, lie: &str) -> Result<()> {
    bare_stopped(lab)?;
    let (answer, told) = under(lab, lie, "start")?;
    assert_eq!((answer.status, &told["state_after"]), (10, &json!("stopped")), "{told}");
    bare_vm(lab)?;
    let (answer, told) = under(lab, lie, "cycle")?;
    assert_eq!((answer.status, &told["state_after"], &told["qemu_after"]), (10, &json!("stopped"), &Value::Null), "{told}");
    assert!(told["message"]["what"].as_str().unwrap().contains("stopped") && told["message"]["do"].as_str().unwrap().contains("start"));
    assert_eq!(lab.vm.observe(), Observed::Stopped);
    Ok(())
}

fn idle_start(lab: &Lab) -> Result<()> {
    start_does_nothing(lab, "start success-without-acting")
}

fn garbage_start(lab: &Lab) -> Result<()> {
    start_does_nothing(lab, "start garbage")
}

fn failing_start(lab: &Lab) -> Result<()> {
    for verb in ["start", "cycle"] {
        if verb == "start" {
            bare_stopped(lab)?
        } else {
            bare_vm(lab)?
        };
        let (answer, told) = under(lab, "start fail-after-acting", verb)?;
        assert_eq!((answer.status, &told["state_after"]), (0, &json!("running")), "{told}");
        assert_eq!(step(&answer, "qm-start").unwrap()["outcome"], "failed");
        assert_eq!(lab.vm.observe(), Observed::State("running".into()));
    }
    Ok(())
}

/// Puts a script in `qm`'s place, with the real one at `/usr/sbin/qm.real`; put back when this is dropped.
struct Script;

impl Script {
    fn put(text: &str) -> Result<Self> {
        fs::rename(QM, REAL).unwrap();
        write(QM, text, 0o755)?;
        Ok(Self)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _in_place = fs::rename(REAL, QM);
    }
}

fn start_fails_once(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    let _absent = fs::remove_file("/run/lab/failed-once");
    let once = "#!/bin/sh\n[ $1 = stop ] || [ -e /run/lab/failed-once ] || { touch /run/lab/failed-once; echo no >&2; exit 255; }\n\
                exec /usr/sbin/qm.real \"$@\"\n";
    let script = Script::put(once)?;
    let answer = anna(lab)?.call("cycle --json")?;
    drop(script);
    assert_eq!(answer.status, 0, "{}", answer.text());
    assert_eq!(answer.events_of("step").iter().filter(|s| s["name"] == "qm-start" && s["outcome"] == "started").count(), 2);
    Ok(())
}

fn missing(lab: &Lab) -> Result<()> {
    for verb in ["stop", "cycle"] {
        let before = bare_vm(lab)?.pid();
        fs::rename(QM, REAL).unwrap();
        let answer = anna(lab)?.call(format!("{verb} --json"));
        fs::rename(REAL, QM).unwrap();
        let answer = answer?;
        let told = body(&answer)?;
        assert!([6, 10].contains(&answer.status) && told["state_after"] == "running", "{told}");
        assert!(told["message"].to_string().contains("qm"), "{told}");
        assert_eq!(lab.vm.pid(), before);
    }
    Ok(())
}

fn flood(lab: &Lab) -> Result<()> {
    let before = bare_vm(lab)?.pid();
    let script = Script::put("#!/bin/sh\nhead -c 10485760 /dev/zero\nhead -c 10485760 /dev/zero >&2\nexec /usr/sbin/qm.real \"$@\"\n")?;
    let answer = anna(lab)?.call("cycle --json")?;
    drop(script);
    assert_eq!(answer.status, 0, "{}", answer.text());
    assert_ne!(lab.vm.pid(), before);
    assert!(answer.stdout.len() < 4 << 20, "{} bytes", answer.stdout.len());
    Ok(())
}

/// Both kinds in one run, because the published deadline is long: it notes SIGTERM and goes on.
fn hangs(lab: &Lab) -> Result<()> {
    let before = bare_vm(lab)?.pid();
    let _absent = fs::remove_file("/run/lab/qm-signals");
    let script = Script::put("#!/bin/sh\ntrap 'echo TERM >> /run/lab/qm-signals' TERM INT HUP\nwhile :; do sleep 1; done\n")?;
    let answer = anna(lab)?.call("stop --json")?;
    drop(script);
    let told = body(&answer)?;
    // Until it has become `sleep`, a child of the script's has the script's command line.
    let mut left: Vec<u32> = Vec::new();
    let one = until("one qm that is left", Duration::from_secs(20), || {
        left = matching(|words| words.iter().any(|word| word == QM));
        (left.len() == 1).then_some(())
    });
    assert_eq!(fs::read_to_string("/run/lab/qm-signals").unwrap_or_default(), "TERM\n", "one SIGTERM");
    assert!(one.is_ok(), "it was killed, or another one was started: {left:?}");
    assert_eq!((answer.status, &told["state_after"]), (10, &json!("running")), "{told}");
    assert_eq!(step(&answer, "qm-stop").unwrap()["outcome"], "timed_out");
    assert!(answer.wall < Duration::from_secs(120), "{:?}", answer.wall);
    assert_eq!(lab.vm.pid(), before);
    let traces = Traces::of(told["request_id"].as_str().unwrap())?;
    assert_eq!((traces.intents, traces.outcomes, traces.bundles.len()), (1, 1, 1));
    for pid in left {
        send(pid, Signal::KILL)?;
    }
    assert!(Path::new(QM).exists());
    station::quiet(AMPLE)?;
    assert_eq!(anna(lab)?.call("cycle")?.status, 0);
    Ok(())
}
