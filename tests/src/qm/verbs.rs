//! Which code carries out a sub-command: the client's part before the task, and the worker's part of it.
//!
//! The order of the checks is the real one's, because it decides which of several complaints is made.

use std::time::Duration;

use serde_json::{Value, json};

use super::cli::Request;
use super::task::{self, Job};
use super::{Fail, Run, agent, conf, config, ha, lock, monitor, out, process, pve, qmp, start, status, stop};

/// `query-status` in `qm resume` has a minute.
const RESUME: Duration = Duration::from_secs(60);

/// The client.
pub fn run(request: &Request) -> Run {
    let vmid = request.vmid;
    match request.verb.as_str() {
        "status" => status::status(request),
        "list" => status::list(),
        "config" => config::config(request),
        "pending" => config::pending(request),
        "set" => config::set(request),
        "unlock" => config::unlock(request),
        "guest cmd" => agent::command(request),
        "monitor" => monitor::monitor(request),
        "sendkey" => sendkey(request),
        "start" => {
            pve::check_quorum()?;
            task(request, if ha::managed(vmid) { "hastart" } else { "qmstart" }, &[])
        }
        "stop" => task(request, if ha::managed(vmid) { "hastop" } else { "qmstop" }, &[]),
        "shutdown" => shutdown(request),
        "reset" => {
            conf::on_this_node(vmid)?;
            must_run(vmid)?;
            task(request, "qmreset", &[])
        }
        "suspend" => {
            must_run(vmid)?;
            task(request, "qmpause", &[])
        }
        "resume" => {
            must_run(vmid)?;
            task(request, "qmresume", &[])
        }
        "reboot" => {
            if let Err(fail) = paused(vmid) {
                out::warn(&format!("{}\n", fail.words));
            }
            must_run(vmid)?;
            task(request, "qmreboot", &[])
        }
        "terminal" => {
            must_run(vmid)?;
            Err(Fail::die("the laboratory's stand-in for qm can't 'terminal'"))
        }
        "showcmd" => {
            let conf = conf::load(vmid)?;
            out::say(&start::line(vmid, &conf)?.join(" "));
            Ok(())
        }
        other => Err(Fail::die(format!("the laboratory's stand-in for qm can't '{other}'"))),
    }
}

fn must_run(vmid: u32) -> Run {
    process::running(vmid).map_or_else(|| Err(Fail::errno(2, format!("VM {vmid} not running"))), |_| Ok(()))
}

fn task(request: &Request, kind: &str, flags: &[&str]) -> Run {
    let mut flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
    flags.extend(["nocheck", "forceStop"].into_iter().filter(|flag| request.flag(flag)).map(str::to_owned));
    let (vmid, skiplock, timeout) = (request.vmid, request.flag("skiplock"), request.timeout());
    task::run(&Job { kind: kind.to_owned(), vmid, skiplock, timeout, flags })
}

fn paused(vmid: u32) -> Run<bool> {
    let state = qmp::command(vmid, "query-status", &Value::Null, qmp::USUAL)?;
    Ok(matches!(state["status"].as_str(), Some("paused" | "prelaunch")))
}

fn shutdown(request: &Request) -> Run {
    let vmid = request.vmid;
    conf::on_this_node(vmid)?;
    if ha::managed(vmid) {
        return task(request, "hastop", &[]);
    }
    match paused(vmid) {
        Ok(true) if !request.flag("forceStop") => {
            return Err(Fail::die("VM is paused - cannot shutdown"));
        }
        Ok(_) => {}
        Err(fail) => out::warn(&format!("{}\n", fail.words)),
    }
    task(request, "qmshutdown", &[])
}

fn sendkey(request: &Request) -> Run {
    let vmid = request.vmid;
    conf::load(vmid)?;
    let key = request.args.first().map_or("", String::as_str);
    let answer = qmp::command(vmid, "human-monitor-command", &json!({ "command-line": format!("sendkey {key}") }), qmp::USUAL)?;
    match answer.as_str().map(str::trim) {
        None | Some("") => Ok(()),
        Some(words) => Err(Fail::die(words)),
    }
}

/// The worker.
pub fn work(job: &Job) -> Run {
    match job.kind.as_str() {
        "qmstart" => start::work(job),
        "qmstop" => stop::work(job, false),
        "qmshutdown" | "qmreboot" => stop::work(job, true),
        "qmreset" => locked(job, false, "system_reset"),
        "qmpause" => locked(job, true, "stop"),
        "qmresume" => {
            let _lock = lock::take(job.vmid)?;
            resume_locked(job)
        }
        "hastart" => ha::ask(job.vmid, ha::Ask::Start),
        "hastop" => ha::ask(job.vmid, ha::Ask::Stop(job.timeout.unwrap_or(0))),
        other => Err(Fail::die(format!("no such task {other}"))),
    }
}

/// One monitor command under the flock, unless the VM is locked.
fn locked(job: &Job, backup_is_fine: bool, name: &str) -> Run {
    let _lock = lock::take(job.vmid)?;
    let conf = conf::load(job.vmid)?;
    let excused = job.skiplock || (backup_is_fine && conf.has_lock("backup"));
    if !excused {
        conf.check_lock()?;
    }
    qmp::command(job.vmid, name, &Value::Null, qmp::USUAL).map(drop)
}

/// Makes a VM go on; the flock is taken already.
pub fn resume_locked(job: &Job) -> Run {
    let state = qmp::command(job.vmid, "query-status", &Value::Null, RESUME)?;
    let state = state["status"].as_str().unwrap_or_default();
    if state == "running" {
        return Ok(());
    }
    if !job.flags.iter().any(|flag| flag == "nocheck") {
        let conf = conf::load(job.vmid)?;
        if !job.skiplock && !conf.has_lock("backup") {
            conf.check_lock()?;
        }
    }
    if state == "shutdown" {
        qmp::command(job.vmid, "system_reset", &Value::Null, qmp::USUAL)?;
    }
    let go = if state == "suspended" { "system_wakeup" } else { "cont" };
    qmp::command(job.vmid, go, &Value::Null, qmp::USUAL).map(drop)
}
