//! The observation that the pipeline, mutations and `status` act on: which process, which configuration, which lock. Seconds must not
//! pass here, and a hung `/etc/pve` must not hide the process: the parts are separate questions, and each may stay unknown.

use super::{Answer, Planned, Set};
use crate::helper::run::Task as Thread;
use crate::helper::{Helper, Job, Kind};
use crate::procfs::{self, Identity, MainThread, Pidfile};
use crate::pve::{self, Config, Ha, Memory};
use proto::{ProbeOutcome, Vmid};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;
use std::time::{Duration, Instant};

/// The VM's process, as PVE's rule finds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Process {
    /// None. There may be a survivor all the same.
    Absent,
    /// This one.
    Running(Identity),
    /// It could not be found out in time: why. This is not "stopped".
    Unknown(String),
}

/// What `/proc` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ProcessPart {
    process: Process,
    pidfile_stale: Option<String>,
    scope: Option<Vec<u32>>,
    threads_d: Vec<String>,
    main_thread: Option<MainThread>,
}

/// What `/etc/pve` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PvePart {
    config: Config,
    lock: Option<String>,
    quorum: Option<bool>,
    ha: Ha,
}

/// Everything that decides what a verb may do, as far as it could be seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// Where the configuration is.
    pub config: Config,
    /// The value of `lock:`.
    pub lock: Option<String>,
    /// Whether a live task of PVE's may own that lock; none without a lock, or where it could not be seen.
    pub lock_task: Option<bool>,
    /// The VM's live tasks, by UPID.
    pub tasks: Vec<String>,
    /// Whether the cluster has quorum, where it could be seen.
    pub quorum: Option<bool>,
    /// Whether the HA manager has a say.
    pub ha: Ha,
    /// The VM's process.
    pub process: Process,
    /// Why the pidfile names no process of the VM, where there is one that doesn't.
    pub pidfile_stale: Option<String>,
    /// The processes in the VM's scope; none where there is no scope to be seen.
    pub scope: Option<Vec<u32>>,
    /// What holds the disk although PVE sees no process.
    pub survivor: Option<String>,
    /// Whether the search for survivors came to its end; if not, none is not proved.
    pub survivor_searched: bool,
    /// The volumes that are proved to be missing; none where that could not be looked at.
    pub volumes_missing: Option<Vec<String>>,
    /// What a start asks of the host's memory, where that could be read.
    pub memory: Option<Memory>,
    /// Threads in state D: `name (tid) in wchan`.
    pub threads_d: Vec<String>,
    /// The main thread, for [`procfs::unresponsive_proof`].
    pub main_thread: Option<MainThread>,
}

impl Observation {
    /// The VM's process, where it has one that PVE sees.
    pub const fn running(&self) -> Option<&Identity> {
        match &self.process {
            Process::Running(identity) => Some(identity),
            Process::Absent | Process::Unknown(_) => None,
        }
    }

    /// Whether certainly no process of this VM is left anywhere.
    pub fn certainly_stopped(&self) -> bool {
        self.process == Process::Absent && self.survivor_searched && self.survivor.is_none()
    }
}

/// Observes, for at most `within`. What did not answer by then is unknown.
pub fn observe(vmid: Vmid, within: Duration) -> Observation {
    let until = Instant::now() + within;
    let job = Job { vmid, set: Set::Observe, qemu: None, screens: None, request: String::new() };
    let mut helper = Helper::start(Kind::Host, &job);
    let mut answers = Vec::new();
    while let Some(answer) = helper.next(until) {
        answers.push(answer);
    }
    answers.extend(helper.abandon(until - within));
    assemble(&answers)
}

fn assemble(answers: &[Answer]) -> Observation {
    let process = part::<ProcessPart>(answers, "observe/process");
    let pve = part::<PvePart>(answers, "observe/pve");
    let tasks = part::<Vec<String>>(answers, "observe/tasks");
    let volumes = part::<Vec<String>>(answers, "observe/volumes");
    let survivor = part::<Option<String>>(answers, "observe/scan");
    let process = process.unwrap_or_else(|why| ProcessPart {
        process: Process::Unknown(why),
        pidfile_stale: None,
        scope: None,
        threads_d: Vec::new(),
        main_thread: None,
    });
    let pve = pve.unwrap_or_else(|why| PvePart { config: Config::Unreadable(why.clone()), lock: None, quorum: None, ha: Ha::Unknown(why) });
    Observation {
        lock_task: pve.lock.as_ref().and_then(|_| tasks.as_ref().ok().map(|t| !t.is_empty())),
        config: pve.config,
        lock: pve.lock,
        tasks: tasks.unwrap_or_default(),
        quorum: pve.quorum,
        ha: pve.ha,
        process: process.process,
        pidfile_stale: process.pidfile_stale,
        scope: process.scope,
        volumes_missing: volumes.ok(),
        memory: part::<Memory>(answers, "observe/memory").ok(),
        survivor_searched: survivor.is_ok(),
        survivor: survivor.ok().flatten(),
        threads_d: process.threads_d,
        main_thread: process.main_thread,
    }
}

fn part<T: DeserializeOwned>(answers: &[Answer], name: &str) -> Result<T, String> {
    let answer = answers.iter().find(|a| a.name == name).ok_or_else(|| "it was not asked".to_owned())?;
    if answer.outcome != ProbeOutcome::Captured {
        return Err(answer.detail.clone().unwrap_or_default());
    }
    serde_json::from_value(answer.facts.clone().unwrap_or_default()).map_err(|e| format!("the helper's answer does not fit: {e}"))
}

/// The helper's half.
pub(crate) fn tasks(vmid: Vmid, planned: &[Planned]) -> Vec<Thread> {
    if !planned.iter().any(|p| p.name == "observe/process") {
        return Vec::new();
    }
    vec![
        Thread::new(&["observe/process"], move |out| {
            let since = Instant::now();
            out.facts("observe/process", since, None, json!(process_part(vmid)));
        }),
        Thread::new(&["observe/scan"], move |out| {
            let since = Instant::now();
            let skip = match procfs::by_pidfile(vmid) {
                Ok(Pidfile::Runs(identity)) => Some(identity.pid),
                _ => None,
            };
            match procfs::survivor(vmid, skip) {
                Ok(found) => out.facts("observe/scan", since, None, json!(found.map(|left| left.text))),
                Err(why) => out.without("observe/scan", since, ProbeOutcome::TimedOut, &why),
            }
        }),
        Thread::new(&["observe/pve"], move |out| {
            let since = Instant::now();
            out.facts("observe/pve", since, None, json!(pve_part(vmid)));
        }),
        Thread::new(&["observe/volumes"], move |out| {
            let since = Instant::now();
            match pve::missing(vmid) {
                Ok(missing) => out.facts("observe/volumes", since, None, json!(missing)),
                Err(e) => out.without("observe/volumes", since, ProbeOutcome::Failed, &e.to_string()),
            }
        }),
        Thread::new(&["observe/memory"], move |out| {
            let since = Instant::now();
            match pve::memory(vmid) {
                Ok(memory) => out.facts("observe/memory", since, None, json!(memory)),
                Err(e) => out.without("observe/memory", since, ProbeOutcome::Failed, &e.to_string()),
            }
        }),
        Thread::new(&["observe/tasks"], move |out| {
            let since = Instant::now();
            match pve::live_tasks(vmid) {
                Ok(tasks) => out.facts("observe/tasks", since, None, json!(tasks.into_iter().map(|t| t.upid).collect::<Vec<_>>())),
                Err(e) => out.without("observe/tasks", since, ProbeOutcome::Failed, &e.to_string()),
            }
        }),
    ]
}

fn process_part(vmid: Vmid) -> ProcessPart {
    let (process, pidfile_stale, watched) = match procfs::by_pidfile(vmid) {
        Ok(Pidfile::Runs(identity)) => {
            let pid = identity.pid;
            (Process::Running(identity), None, Some(pid))
        }
        Ok(Pidfile::Absent) => (Process::Absent, None, None),
        // A zombie leader's threads are what holds the disk: look at them.
        Ok(Pidfile::Stale { pid, why }) => (Process::Absent, Some(why), pid),
        Err(e) => (Process::Unknown(format!("the pidfile could not be read: {e}")), None, None),
    };
    let in_d = |pid| {
        let all = procfs::threads(pid).into_iter().filter(|t| t.state == "D");
        all.map(|t| format!("{} ({}) in {}", proto::escape_cut(t.name.as_bytes(), 32), t.tid, proto::escape_cut(t.wchan.as_bytes(), 64)))
            .collect()
    };
    let ours = matches!(process, Process::Running(_)) || pidfile_stale.as_deref().is_some_and(|why| why.ends_with("zombie"));
    ProcessPart {
        threads_d: watched.filter(|_| ours).map(in_d).unwrap_or_default(),
        main_thread: watched.filter(|_| ours).and_then(MainThread::of),
        scope: procfs::scope(vmid),
        process,
        pidfile_stale,
    }
}

fn pve_part(vmid: Vmid) -> PvePart {
    let mut config = pve::find(vmid);
    let mut lock = None;
    if config == Config::Here {
        match pve::config_text(vmid) {
            Ok(text) => lock = pve::lock_of(&text),
            Err(e) => config = Config::Unreadable(format!("the configuration could not be read: {e}")),
        }
    }
    PvePart { config, lock, quorum: pve::quorum(), ha: pve::ha(vmid) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(name: &str, facts: serde_json::Value) -> Answer {
        Answer { name: name.into(), outcome: ProbeOutcome::Captured, ms: 1, detail: None, artifact: None, facts: Some(facts) }
    }

    #[test]
    fn a_hung_etc_pve_does_not_hide_the_process() {
        let part = ProcessPart { process: Process::Absent, pidfile_stale: None, scope: Some(vec![]), threads_d: vec![], main_thread: None };
        let seen = assemble(&[
            answer("observe/process", json!(part)),
            Answer::without("observe/pve", ProbeOutcome::TimedOut, 1000, "hung"),
            answer("observe/scan", json!(null)),
            answer("observe/tasks", json!([])),
        ]);
        assert_eq!((seen.process.clone(), &seen.config), (Process::Absent, &Config::Unreadable("hung".into())));
        assert_eq!((seen.quorum, &seen.ha), (None, &Ha::Unknown("hung".into())));
        assert!(seen.certainly_stopped());
    }

    #[test]
    fn what_was_not_seen_is_never_stopped() {
        let seen = assemble(&[]);
        assert!(matches!(seen.process, Process::Unknown(_)) && !seen.certainly_stopped());
        let part = ProcessPart { process: Process::Absent, pidfile_stale: None, scope: None, threads_d: vec![], main_thread: None };
        assert!(!assemble(&[answer("observe/process", json!(part))]).certainly_stopped(), "the search for survivors did not end");
    }

    #[test]
    fn a_lock_is_owned_only_where_there_is_one_and_tasks_could_be_read() {
        let part = |lock: Option<&str>| {
            answer(
                "observe/pve",
                json!(PvePart { config: Config::Here, lock: lock.map(str::to_owned), quorum: Some(true), ha: Ha::Unmanaged }),
            )
        };
        assert_eq!(assemble(&[part(Some("backup")), answer("observe/tasks", json!(["UPID:x"]))]).lock_task, Some(true));
        assert_eq!(assemble(&[part(Some("backup")), answer("observe/tasks", json!([]))]).lock_task, Some(false));
        assert_eq!(assemble(&[part(Some("backup"))]).lock_task, None);
        assert_eq!(assemble(&[part(None), answer("observe/tasks", json!(["UPID:x"]))]).lock_task, None);
    }
}
