//! The host with Breakglass installed as an admin would: the shipped binary, keys, limits; and what a request left behind on it.
//!
//! It reads files and processes and judges little; the verdicts are the scenarios'.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::chain::Chain;
use crate::client::Answer;
use crate::error::{Error, Result};
use crate::host::write;
use crate::lab::{Lab, built};
use crate::process::{Finished, run, until};
use crate::vm::{Observed, Vm};
use crate::{Host, Ssh};

/// The key of the scenarios' usual caller.
pub const ANNA: &str = "anna";
/// The key of another one.
pub const MODEL: &str = "model";
/// Where the finished requests are.
pub const REQUESTS: &str = "/var/lib/pve-verb/requests";
/// Where a mutation in progress is named, on disk and on tmpfs.
pub const OPERATIONS: [&str; 2] = ["/var/lib/pve-verb/operation.json", "/run/pve-verb/operation.json"];
/// Where bundles are, on disk and on tmpfs.
pub const BUNDLES: [&str; 2] = ["/var/lib/pve-verb/evidence/102", "/run/pve-verb/evidence/102"];
/// What the stand-in `qm` reads its lies from.
pub const QM_MODE: &str = "/run/lab/qm-mode";

/// Limits that no scenario reaches; rates have scenarios of their own.
const CONFIG: &str = "[limits]\nmutations_per_hour = 1000000\nmin_interval_s = 0\nforensics_per_minute = 1000000\n";

/// Installs both programs, raises the limits and authorizes both keys: the `prepare` of a scenario file.
pub fn install(lab: &Lab) -> Result<()> {
    lab.host.install(&built("pve-verb")?, &built("qm")?)?;
    write("/etc/pve-verb/config.toml", CONFIG, 0o600)?;
    for key in [ANNA, MODEL] {
        lab.host.authorize(key, "")?;
    }
    Ok(())
}

/// The usual caller.
pub fn anna(lab: &Lab) -> Result<Ssh> {
    lab.host.ssh(ANNA)
}

/// VM 102 running, without a guest: QEMU is real and its firmware finds nothing to boot. The one that runs, if there is one.
pub fn bare_vm(lab: &Lab) -> Result<&Vm> {
    honest();
    bare_conf(&lab.host)?;
    if lab.vm.observe() != Observed::State("running".into()) {
        lab.vm.kill()?;
        lab.vm.start()?;
    }
    Ok(&lab.vm)
}

/// The same, stopped.
pub fn bare_stopped(lab: &Lab) -> Result<&Vm> {
    honest();
    lab.vm.kill()?;
    bare_conf(&lab.host)?;
    Ok(&lab.vm)
}

fn bare_conf(host: &Host) -> Result<()> {
    host.set_quorum(true)?;
    host.set_ha(None)?;
    let mut conf = crate::qemu_cmd::VmConf::parse(&Host::default_conf());
    conf.current.remove("args");
    write(crate::qemu_cmd::CONF, &conf.to_text(), 0o640)
}

/// `qm` misbehaves in this way from now on: lines of `VERB HOW`.
pub fn lies(how: &str) -> Result<()> {
    write(QM_MODE, how, 0o644)
}

/// `qm stop` does its work 8 s later, until [`honest`] or the next [`bare_vm`]: so that a mutation has a middle, also where whoever does
/// something in it is off the CPU for a second or two.
pub fn slow_stop() -> Result<()> {
    lies("stop slow 8\n")
}

/// `qm` is honest again.
pub fn honest() {
    let _absent = fs::remove_file(QM_MODE);
}

/// A request id that was never used.
pub fn fresh_id() -> Result<String> {
    use crate::error::Context;
    Ok(fs::read_to_string("/proc/sys/kernel/random/uuid").context("make a request id")?.trim().to_owned())
}

/// Runs the binary on the host's console.
pub fn console(words: &str, deadline: Duration) -> Result<Answer> {
    run(Command::new("/usr/sbin/pve-verb").args(words.split(' ')).current_dir("/"), deadline).map(Finished::into)
}

/// The processes that are this binary in this role: `worker`, `writer`, `probe-guest`, `probe-host`, `forced`.
pub fn processes(role: &str) -> Vec<u32> {
    matching(|words| words.first().is_some_and(|name| name.ends_with("pve-verb")) && words.get(1).is_some_and(|word| word == role))
}

/// The `qm` processes, clients and tasks.
pub fn qm_processes() -> Vec<u32> {
    matching(|words| words.first().is_some_and(|name| name.ends_with("/qm") || name == "qm" || name.starts_with("task UPID:")))
}

/// The processes whose command line this is true for.
pub fn matching(is: impl Fn(&[String]) -> bool) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<String> = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        is(&words)
    })
    .collect()
}

/// Waits until nothing of Breakglass and no `qm` runs any more.
pub fn quiet(deadline: Duration) -> Result<()> {
    // Twice in a row: a process that is just becoming another program has no command line for a moment.
    let mut looks = 0;
    let idle = || {
        let ours = matching(|words| words.first().is_some_and(|name| name.ends_with("pve-verb")));
        looks = if ours.is_empty() && qm_processes().is_empty() { looks + 1 } else { 0 };
        (looks == 2).then_some(())
    };
    until("the end of every worker and every qm", deadline, idle)
}

/// What a request left behind on the host.
#[derive(Debug)]
pub struct Traces {
    /// `intent` records.
    pub intents: usize,
    /// `outcome` records.
    pub outcomes: usize,
    /// Sealed bundles of its id, wherever they are.
    pub bundles: Vec<String>,
    /// The body of the receipt that is stored for it.
    pub stored: Option<Value>,
}

impl Traces {
    /// Reads them; the log has to be one chain.
    pub fn of(id: &str) -> Result<Self> {
        let chain = Chain::read()?;
        Ok(Self { intents: chain.count(id, "intent"), outcomes: chain.count(id, "outcome"), bundles: bundles(id), stored: stored(id) })
    }

    /// Whether nothing at all is known of it.
    pub fn none(&self) -> bool {
        self.intents + self.outcomes + self.bundles.len() == 0 && self.stored.is_none()
    }
}

/// The sealed bundles of a request: the last part of their names is the first of the id.
pub fn bundles(id: &str) -> Vec<String> {
    let end = format!("-{}", id.get(..8).unwrap_or(id));
    let mut names: Vec<String> = BUNDLES
        .iter()
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(&end))
        .collect();
    names.sort();
    names.dedup();
    names
}

fn stored(id: &str) -> Option<Value> {
    let read = |folder: &str| fs::read(Path::new(folder).join(format!("{id}.json"))).ok();
    let text = read(REQUESTS).or_else(|| read("/run/pve-verb/requests"))?;
    let finished: Value = serde_json::from_slice(&text).ok()?;
    crate::client::decoded(finished["receipt"]["body"].as_str()?)
}

/// A receipt's body without what a replay may say otherwise.
pub fn told(mut body: Value) -> Value {
    if let Some(members) = body.as_object_mut() {
        for member in ["replayed", "unreviewed", "degraded", "unsigned_reason"] {
            members.remove(member);
        }
    }
    body
}

/// The body of an answer's receipt; an answer without one is an error.
pub fn body(answer: &Answer) -> Result<Value> {
    let said = || format!("exit {}, {:?}{}", answer.status, answer.text().lines().last(), String::from_utf8_lossy(&answer.stderr));
    answer.receipt_body().ok_or_else(|| Error::new(format!("There is no receipt: {}", said()), "Look at the worker's spool"))
}
