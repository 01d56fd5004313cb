//! `qm stop` and `qm shutdown`: QMP first, then SIGTERM, then SIGKILL, and no look whether that one worked.
//!
//! The steps, their seconds and their words are the real ones; the hook script and the storage's deactivation are absent.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::conf::{self, Conf};
use super::task::{self, Job};
use super::{Fail, Run, lock, out, process, qmp};

const SECOND: Duration = Duration::from_secs(1);
/// What Perl needs between QEMU's answer and its first look at the pid file, at most.
const GRACE: Duration = Duration::from_millis(300);
/// Seconds that a QEMU gets after SIGTERM.
const AFTER_TERM: u64 = 10;
/// Seconds that a QEMU gets after it took the `quit`, unless `--timeout` says otherwise.
const AFTER_QUIT: u64 = 60;

/// The worker of `qm stop` and `qm shutdown`.
pub fn work(job: &Job, shutdown: bool) -> Run {
    let vmid = job.vmid;
    conf::on_this_node(vmid)?;
    // A VM that does not run is stopped whatever its lock says; the real one returns here, before it looks.
    if process::running(vmid).is_none() {
        return Ok(());
    }
    let _lock = lock::take(vmid)?;
    let Some(pid) = process::running(vmid) else {
        return Ok(());
    };
    let conf = conf::load(vmid)?;
    if !job.skiplock {
        conf.check_lock()?;
    }
    let force = !shutdown || job.flags.iter().any(|flag| flag == "forceStop");
    match ask(&conf, job, shutdown) {
        Ok(()) => {
            let gone = wait(vmid, job.timeout.unwrap_or(AFTER_QUIT));
            if matches!(gone, Ok(true)) {
                clean_up(vmid, conf);
                return Ok(());
            }
            if !force {
                gone?;
                return Err(Fail::die("VM quit/powerdown failed - got timeout"));
            }
            out::warn("VM still running - terminating now with SIGTERM");
        }
        Err(_) if process::running(vmid).is_none() => {
            out::warn("Unexpected: VM shutdown command failed, but VM not running anymore..");
            return Ok(());
        }
        Err(_) if !force => return Err(Fail::die("VM quit/powerdown failed")),
        Err(_) => out::warn("VM quit/powerdown failed - terminating now with SIGTERM"),
    }
    send(pid, Signal::TERM);
    if !wait(vmid, AFTER_TERM)? {
        out::warn("VM still running - terminating now with SIGKILL");
        send(pid, Signal::KILL);
        task::pause(SECOND)?;
    }
    clean_up(vmid, conf);
    Ok(())
}

/// Asks the guest to shut down or QEMU to quit.
fn ask(conf: &Conf, job: &Job, shutdown: bool) -> Run {
    let vmid = job.vmid;
    if !shutdown {
        qmp::command(vmid, "quit", &Value::Null, qmp::USUAL)?;
        // The real one is slow enough that a healthy QEMU is gone at its first look; else it would cost a second each time.
        let end = Instant::now() + GRACE;
        while Instant::now() < end && process::running(vmid).is_some() {
            task::pause(Duration::from_millis(20))?;
        }
        return Ok(());
    }
    if super::agent::enabled(conf) {
        match super::agent::ping(vmid) {
            Ok(()) => {
                // An agent that takes it says nothing; only a refusal is an answer.
                return match qmp::agent(vmid, "guest-shutdown", &json!({}), SECOND) {
                    Err(fail) if !fail.words.ends_with("got timeout") => Err(fail),
                    _ => Ok(()),
                };
            }
            Err(fail) => out::warn(&format!("QEMU Guest Agent is not running - {}", fail.words)),
        }
    }
    qmp::command(vmid, "system_powerdown", &Value::Null, qmp::USUAL).map(drop)
}

/// Whether the VM is gone within so many looks, a second apart.
fn wait(vmid: u32, seconds: u64) -> Run<bool> {
    for _ in 0..seconds {
        if process::running(vmid).is_none() {
            return Ok(true);
        }
        task::pause(SECOND)?;
    }
    Ok(false)
}

fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may be gone by now, which is what we want.
        let _ = kill_process(pid, signal);
    }
}

/// Unlinks what the VM left and makes its pending configuration current; whether it died is not checked.
fn clean_up(vmid: u32, mut conf: Conf) {
    for suffix in ["mon", "qmp", "pid", "vnc", "qga"] {
        // Most of them are gone when QEMU ended by itself.
        let _ = std::fs::remove_file(process::run_file(vmid, suffix));
    }
    process::drop_scope(vmid);
    if conf.has_pending() {
        conf.apply_pending();
        if let Err(fail) = conf.write(vmid) {
            out::warn(&fail.words);
        }
    }
}
