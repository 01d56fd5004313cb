//! `pve-verb` installed on the lab's host as an admin installs it, and what scenarios ask about it again and again.
//!
//! It calls through the lab's sshd and looks at the VM from outside; what a receipt says is never taken for what happened.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::{Answer, Ssh};
use crate::error::{Context, Error, Result};
use crate::host::write;
use crate::lab::{Lab, built};
use crate::vm::{Observed, Vm};

/// Where the host's configuration of the forced command is.
pub const CONFIG: &str = "/etc/pve-verb/config.toml";
/// Limits that no scenario meets by accident.
pub const GENEROUS: &str = "[limits]\nmutations_per_hour = 1000\nmin_interval_s = 0\nforensics_per_minute = 1000\n";
/// Where bundles of VM 102 are on disk.
pub const EVIDENCE: &str = "/var/lib/pve-verb/evidence/102";
/// PVE's task index: `qm` adds a line at the end of each task.
const TASKS: &str = "/var/log/pve/tasks/index";

/// Installs both programs, the generous limits, and the key `agent` that may say everything.
pub fn prepare(lab: &Lab) -> Result<()> {
    lab.host.install(&built("pve-verb")?, &built("qm")?)?;
    limits(GENEROUS)?;
    // As the unit does when a host comes up: from then on it is known where the log ends.
    lab.host.console(&["/usr/sbin/pve-verb", "recover"], Duration::from_secs(20))?.success("pve-verb recover")?;
    lab.host.authorize("agent", "").map(drop)
}

/// Replaces the configuration of the forced command.
pub fn limits(text: &str) -> Result<()> {
    write(CONFIG, text, 0o600)
}

/// The key that may say everything.
pub fn agent(lab: &Lab) -> Result<Ssh> {
    lab.host.ssh("agent")
}

/// An answer with `--json`, and the body of its receipt.
#[derive(Debug)]
pub struct Told {
    /// All of it.
    pub answer: Answer,
    /// The receipt's body.
    pub body: Value,
}

impl Told {
    /// Reads an answer; one without a receipt is an error, as is a receipt that contradicts the exit status.
    pub fn read(answer: Answer) -> Result<Self> {
        let body = answer.receipt_body().ok_or_else(|| {
            let said = format!("{} {}", answer.text(), String::from_utf8_lossy(&answer.stderr));
            Error::new(format!("The answer ended with {} and without a receipt: {said}", answer.status), "Look at /run/lab/sshd.log")
        })?;
        assert_eq!(body["exit_code"], answer.status, "the receipt contradicts the exit status: {body:#}");
        Ok(Self { answer, body })
    }

    /// Itself, if it is `done`.
    pub fn done(self) -> Self {
        assert_eq!(self.body["outcome"], "done", "{:#}", self.body);
        self
    }

    /// The two sentences.
    pub fn message(&self) -> String {
        format!("{} {}", self.body["message"]["what"].as_str().unwrap_or_default(), self.body["message"]["do"].as_str().unwrap_or_default())
    }

    /// The names of the steps that began, in order.
    pub fn steps(&self) -> Vec<String> {
        let started = self.answer.events_of("step").into_iter().filter(|step| step["outcome"] == "started");
        started.filter_map(|step| step["name"].as_str().map(str::to_owned)).collect()
    }

    /// One probe's event.
    pub fn probe(&self, name: &str) -> Value {
        self.answer.events_of("probe").into_iter().find(|probe| probe["name"] == name).unwrap_or_default()
    }

    /// The judgement's code.
    pub fn code(&self) -> String {
        self.body["assessment"].as_str().unwrap_or_default().to_owned()
    }

    /// The folder of its bundle on disk.
    pub fn bundle(&self) -> String {
        format!("{EVIDENCE}/{}", self.body["bundle"].as_str().unwrap_or_default())
    }
}

/// Says `line --json` with this key.
pub fn ask(ssh: &Ssh, line: &str) -> Result<Told> {
    Told::read(ssh.call(format!("{line} --json"))?)
}

/// Asks a read, and does as the answer says where it is that QEMU could not be asked: twice more at most. QEMU, or who asks it, may have
/// been off the CPU for longer than a question has.
pub fn look(ssh: &Ssh, read: &str) -> Result<Told> {
    let mut told = ask(ssh, read)?;
    for _ in 0..2 {
        if told.code() == "qmp-unavailable" {
            told = ask(ssh, read)?;
        }
    }
    Ok(told)
}

/// Asks a read up to three times and gives the first answer that came within a contract's seconds and for which QEMU could be asked, or else
/// the last that came within them: in those a busy machine, which takes a process off the CPU for as long, leaves no room. What is slow by
/// itself is slow each time, and an error.
pub fn prompt(ssh: &Ssh, read: &str, within: Duration) -> Result<Told> {
    let (mut took, mut quick) = (Vec::new(), None);
    for _ in 0..3 {
        let told = ask(ssh, read)?;
        took.push(told.answer.wall);
        if told.answer.wall < within {
            if told.code() != "qmp-unavailable" {
                return Ok(told);
            }
            quick = Some(told);
        }
    }
    quick.ok_or_else(|| Error::new(format!("{read} took {took:?}, each time more than {within:?}"), "See which probe took that long"))
}

/// VM 102 at one moment, as far as something that was sent to it would show.
#[derive(Debug)]
pub struct Stamp {
    /// Before and after the guest was asked.
    at: (Instant, Instant),
    process: (Option<u32>, Option<u64>),
    state: Observed,
    uptime: Option<Duration>,
    tasks: String,
}

impl Stamp {
    /// Looks at it. The guest is asked for its uptime where it runs.
    pub fn of(vm: &Vm) -> Self {
        let began = Instant::now();
        let state = vm.observe();
        let uptime = if state == Observed::State("running".into()) { vm.uptime().ok() } else { None };
        let process = (vm.pid().or_else(|| vm.scope().first().copied()), vm.start_ticks());
        Self { at: (began, Instant::now()), process, state, uptime, tasks: fs::read_to_string(TASKS).unwrap_or_default() }
    }

    /// Panics where anything was sent to the VM since.
    pub fn untouched(&self, vm: &Vm, why: &str) -> Self {
        let now = Self::of(vm);
        assert_eq!((now.process, &now.state), (self.process, &self.state), "the VM changed: {why}");
        assert_eq!(now.tasks, self.tasks, "a qm task ran: {why}");
        if let Some(before) = self.uptime {
            // Between the two answers of the guest there is at least this much, however long each took to come.
            let least = before + (now.at.0 - self.at.1).saturating_sub(Duration::from_secs(2));
            assert!(now.uptime.is_some_and(|after| after >= least), "the guest started again: {:?} then {:?}: {why}", before, now.uptime);
        }
        now
    }
}

/// Every line of the audit log, in order, with those that the next call carries to disk.
pub fn log_lines() -> Result<Vec<Vec<u8>>> {
    // Before the segments: what is carried to disk meanwhile stands in both then, and not in neither.
    let pending = fs::read(crate::chain::OVERFLOW).unwrap_or_default();
    let mut segments: Vec<_> =
        fs::read_dir("/var/log/pve-verb").context("read the log's folder")?.flatten().map(|entry| entry.path()).collect();
    segments.retain(|path| path.extension().is_some_and(|ending| ending == "jsonl"));
    segments.sort();
    let mut lines = Vec::new();
    for segment in segments {
        let bytes = fs::read(&segment).context(format!("read {}", segment.display()))?;
        lines.extend(bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec));
    }
    let pending: Vec<_> = pending.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && !lines.contains(&line.to_vec())).collect();
    lines.extend(pending.into_iter().map(<[u8]>::to_vec));
    Ok(lines)
}

/// Every record of the audit log, in order.
pub fn log() -> Result<Vec<Value>> {
    log_lines()?.iter().map(|line| serde_json::from_slice(line).context("read a record of the log")).collect()
}

/// Every process whose command line names VM 102's pidfile, dead leaders left out.
pub fn processes() -> Vec<u32> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| crate::vm::is_qemu(*pid)).collect()
}

/// Puts a shell script in `qm`'s place; the stand-in itself is `/usr/sbin/qm.real` meanwhile. Undone when dropped.
#[derive(Debug)]
#[must_use = "the script goes when this is dropped"]
pub struct Script(());

/// See [`Script`].
pub fn qm_script(lab: &Lab, body: &str) -> Result<Script> {
    lab.host.install_program(&built("qm")?, "/usr/sbin/qm.real")?;
    write("/run/lab/qm.sh", &format!("#!/bin/sh\n# Of the laboratory: stands in for qm, and misbehaves.\n{body}\n"), 0o755)?;
    lab.host.install_program(Path::new("/run/lab/qm.sh"), "/usr/sbin/qm")?;
    Ok(Script(()))
}

impl Drop for Script {
    fn drop(&mut self) {
        let _shown_by_the_next_start = fs::rename("/usr/sbin/qm.real", "/usr/sbin/qm");
    }
}
