//! The qmp group, with the screens, over one connection; and the dispatch of everything that the helper `probe-guest` asks.
//!
//! ```text
//! greeting, status, block samples 1, the quick queries, screen 1 … at least 1 s … block samples 2, screen 2, registers, events
//! ```
//!
//! One command that does not come back ends the group: QEMU serves one at a time, so that the next would only wait behind it.

use super::host::WINDOW;
use super::sketch::Sketch;
use super::{Planned, Set, console, guest};
use crate::assess;
use crate::helper::Job;
use crate::helper::run::{Outbox, Task, UNHEARD, UNSERVED};
use crate::host::qemu_server;
use crate::qmp::{Door, Hmp, Purpose, QmpError, Query, ScreenFile, Session, VirtioPath};
use proto::ProbeOutcome;
use rustix::fs::{Mode, OFlags, open};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long QEMU may take for its greeting (protocol, section 8: "no answer in 3 s"); `status` has no 3 s, and proves nothing.
const GREETING: Duration = Duration::from_millis(3_000);
const GREETING_STATUS: Duration = Duration::from_millis(1_200);
/// Answered once QEMU has not only greeted.
const GREETED: &str = "qmp/greeting";
/// How long it may take for one answer.
const ANSWER: Duration = Duration::from_millis(1_000);
/// How long a read waits for another read of ours.
const DOOR: Duration = Duration::from_millis(1_000);
/// Bounds on what a guest's devices can make us ask.
const DEVICES: usize = 32;
const QUEUES: u16 = 64;

/// Queries whose answer is the artifact, in the order in which they are asked.
const QUICK: [(&str, Query); 7] = [
    ("qmp/query-block", Query::Block),
    ("qmp/query-iothreads", Query::Iothreads),
    ("qmp/query-cpus-fast", Query::CpusFast),
    ("qmp/query-named-block-nodes", Query::NamedBlockNodes),
    ("qmp/query-block-jobs", Query::BlockJobs),
    ("qmp/query-balloon", Query::Balloon),
    ("qmp/query-migrate", Query::Migrate),
];

/// The folder for the pictures: its path, which QEMU is told, and the folder itself, open.
struct Screens {
    path: PathBuf,
    folder: OwnedFd,
}

impl Screens {
    fn open(path: &Path) -> Option<Self> {
        let folder = open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).ok()?;
        Some(Self { path: path.to_owned(), folder })
    }
}

/// Everything that the helper is to ask. What it will need is opened here and now, before the sandbox closes; nothing foreign is read.
pub(crate) fn tasks(job: &Job, planned: &[Planned]) -> Vec<Task> {
    if planned.is_empty() {
        return Vec::new();
    }
    let names = |groups: &[&str]| -> Vec<String> {
        planned.iter().map(|p| p.name.clone()).filter(|n| groups.iter().any(|g| n.starts_with(g))).collect()
    };
    let (vmid, set, screens) = (job.vmid, job.set, job.screens.as_deref().and_then(Screens::open));
    // The working folder is the one of QEMU's sockets, and before long there is no other.
    let door = Door::take_for(Path::new("."), vmid, &Purpose::Read(job.request.clone()), DOOR);
    let greeting = if job.set == Set::Status { GREETING_STATUS } else { GREETING };
    let port = Arc::new(OnceLock::new());
    let (qmp, agent) = (names(&["qmp/", "console/screen"]), names(&["guest/"]));
    let mut tasks = Vec::new();
    match door {
        Ok(door) => {
            let (door, again, port) = (Arc::new(door), port.clone(), port.clone());
            let also = door.clone();
            tasks.push(group(&qmp, move |out, wanted| {
                Group { out, wanted, set, screens: &screens, first: Arc::default(), port: &port, greeting }.ask(&door)
            }));
            tasks.push(group(&agent, move |out, wanted| guest::ask(&also, &again, out, &wanted)));
        }
        Err(in_use) => tasks.push(group(&[qmp, agent].concat(), move |out, wanted| {
            for name in &wanted {
                out.without(name, Instant::now(), ProbeOutcome::Unavailable, &format!("the socket is in use by {}", in_use.by));
            }
        })),
    }
    if planned.iter().any(|p| p.name == "console/serial") {
        let sockets = console::Sockets::open(qemu_server(vmid, "serial0"));
        tasks.push(Task::new(&["console/serial"], move |out| match sign_of_life(&port, || true) {
            Some(_) => console::serial(Path::new(&format!("./{vmid}.serial0")), sockets, out),
            None => out.without("console/serial", Instant::now(), ProbeOutcome::Unavailable, LEFT_ALONE),
        }));
    }
    tasks
}

fn group(names: &[String], work: impl FnOnce(&Outbox, BTreeSet<String>) + Send + 'static) -> Task {
    let wanted: BTreeSet<String> = names.iter().cloned().collect();
    Task::new(&names.iter().map(String::as_str).collect::<Vec<_>>(), move |out| work(out, wanted))
}

/// What is left to ask; `port` tells the agent's thread whether the guest has opened its port.
struct Group<'a> {
    out: &'a Outbox,
    wanted: BTreeSet<String>,
    set: Set,
    screens: &'a Option<Screens>,
    first: Arc<OnceLock<Sketch>>,
    port: &'a OnceLock<Port>,
    greeting: Duration,
}

/// What QMP said about the guest agent's port; until it has said something, QEMU may be hung, and a client that connects to one of
/// its sockets and gives up leaves a dead entry in that socket's backlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// An agent has opened it.
    Open,
    /// None has.
    Closed,
    /// QEMU is alive, and does not say.
    Unknown,
}

/// How long the agent's and the serial line's threads wait for a sign of life from QEMU.
const SIGN_OF_LIFE: Duration = Duration::from_millis(1_000);

/// What QMP said about the port; none where QEMU gave no sign of life.
pub(crate) fn sign_of_life(port: &OnceLock<Port>, go_on: impl Fn() -> bool) -> Option<Port> {
    let started = Instant::now();
    while port.get().is_none() && started.elapsed() < SIGN_OF_LIFE && go_on() {
        std::thread::sleep(Duration::from_millis(2));
    }
    port.get().copied()
}

/// Why a socket was not touched.
pub(crate) const LEFT_ALONE: &str =
    "not asked: QEMU did not answer QMP, and a client that gives up would leave a dead entry in the socket's backlog";

impl Group<'_> {
    fn ask(mut self, door: &Door) {
        if let Err((since, e)) = self.session(door) {
            // What went wrong first is what every later question has to say too. Who else is on the socket may be why, and only the
            // worker may look at other processes.
            let how = match e {
                QmpError::Busy | QmpError::NoGreeting => Some(UNSERVED),
                QmpError::Timeout if self.wanted.contains(GREETED) => Some(UNHEARD),
                _ => None,
            };
            for name in std::mem::take(&mut self.wanted) {
                self.out.waited(&name, since, ProbeOutcome::from(&e), &e.to_string(), how);
            }
        }
    }

    fn session(&mut self, door: &Door) -> Result<(), (Instant, QmpError)> {
        let since = Instant::now();
        let mut qmp = self.open(door, since).map_err(|e| (since, e))?;
        self.json(GREETED, since, &qmp.greeting().clone());
        self.query(&mut qmp, "qmp/query-status", &Query::Status)?;
        self.query(&mut qmp, "qmp/query-chardev", &Query::Chardev)?;
        let _ = self.port.set(Port::Unknown);
        self.query(&mut qmp, "qmp/query-blockstats.1", &Query::Blockstats)?;
        let first = Instant::now();
        self.virtqueues(&mut qmp, "qmp/virtqueues.1")?;
        for (name, query) in &QUICK {
            self.query(&mut qmp, name, query)?;
        }
        self.screen(&mut qmp, "console/screen-1", "screen-1.ppm", false)?;
        if self.wanted.contains("qmp/query-blockstats.2") {
            door.pause(WINDOW.saturating_sub(first.elapsed())).map_err(|e| (Instant::now(), e))?;
            self.query(&mut qmp, "qmp/query-blockstats.2", &Query::Blockstats)?;
            self.virtqueues(&mut qmp, "qmp/virtqueues.2")?;
            self.screen(&mut qmp, "console/screen-2", "screen-2.ppm", true)?;
            self.registers(&mut qmp)?;
        }
        let (events, dropped) = qmp.events();
        let value = json!({"events": events, "dropped": dropped});
        self.json("qmp/events", Instant::now(), &value);
        Ok(())
    }

    /// Connects. A full backlog is asked again until the time is up: a refused connect leaves nothing behind, and whether QEMU takes
    /// nobody for 3 s is part of the proof that it hangs.
    fn open<'d>(&self, door: &'d Door, since: Instant) -> Result<Session<'d>, QmpError> {
        loop {
            match Session::open(door, self.greeting.saturating_sub(since.elapsed())) {
                Err(QmpError::Busy) if since.elapsed() < self.greeting => door.pause(Duration::from_millis(50))?,
                opened => return opened,
            }
        }
    }

    /// Whether this is asked at all; marks it as answered.
    fn take(&mut self, name: &str) -> bool {
        self.wanted.remove(name)
    }

    fn json(&mut self, name: &str, since: Instant, value: &Value) {
        if self.take(name) {
            self.out.json(name, since, value);
        }
    }

    /// Asks one question. QEMU's own error is its answer; anything else ends the group.
    fn query(&mut self, qmp: &mut Session<'_>, name: &str, query: &Query) -> Result<(), (Instant, QmpError)> {
        if !self.wanted.contains(name) {
            return Ok(());
        }
        let since = Instant::now();
        match qmp.ask(query, ANSWER) {
            Ok(value) => {
                if *query == Query::Chardev {
                    let _ = self.port.set(agent_port(&value));
                }
                self.json(name, since, &value);
            }
            Err(e) if e.is_answer() => self.declined(name, since, &e),
            Err(e) => return Err((since, e)),
        }
        Ok(())
    }

    fn declined(&mut self, name: &str, since: Instant, e: &QmpError) {
        if self.take(name) {
            self.out.without(name, since, ProbeOutcome::from(e), &e.to_string());
        }
    }

    /// Every queue of every virtio device: `{"virtio": [{path, name, queues: [status…]}]}`. For `status`, which keeps no artifact, only of
    /// those that are judged: each queue is a question of its own, and a VM has dozens.
    fn virtqueues(&mut self, qmp: &mut Session<'_>, name: &str) -> Result<(), (Instant, QmpError)> {
        if !self.wanted.contains(name) {
            return Ok(());
        }
        let since = Instant::now();
        let devices = match qmp.ask(&Query::Virtio, ANSWER) {
            Ok(value) => value,
            Err(e) if e.is_answer() => {
                self.declined(name, since, &e);
                return Ok(());
            }
            Err(e) => return Err((since, e)),
        };
        let mut all = Vec::new();
        for device in devices.as_array().into_iter().flatten().take(DEVICES) {
            let mut device = device.clone();
            if self.set == Set::Status && !device.get("name").and_then(Value::as_str).is_some_and(assess::asks_for_io) {
                continue;
            }
            let Some(path) = device.get("path").and_then(Value::as_str).and_then(VirtioPath::from_qemu) else { continue };
            let mut queues = Vec::new();
            for number in 0..QUEUES {
                match qmp.ask(&Query::VirtioQueueStatus(path.clone(), number), ANSWER) {
                    Ok(status) => queues.push(status),
                    Err(e) if e.is_answer() => break, // there is no such queue
                    Err(e) => return Err((since, e)),
                }
            }
            if let Some(object) = device.as_object_mut() {
                object.insert("queues".to_owned(), Value::Array(queues));
            }
            all.push(device);
        }
        self.json(name, since, &json!({"virtio": all}));
        Ok(())
    }

    /// One screen. It is encoded on another thread: the next sample must not wait for that.
    fn screen(&mut self, qmp: &mut Session<'_>, name: &'static str, file: &'static str, again: bool) -> Result<(), (Instant, QmpError)> {
        if !self.take(name) {
            return Ok(());
        }
        let since = Instant::now();
        let place = self.screens.as_ref().and_then(|s| Some((ScreenFile::within(&s.path, file)?, s.folder.as_fd())));
        let Some((file, folder)) = place else {
            self.out.without(name, since, ProbeOutcome::Unavailable, "there is no folder for QEMU to write a screen into");
            return Ok(());
        };
        match qmp.ask(&Query::Screendump(file.clone()), ANSWER) {
            Ok(_) => {}
            Err(e) if e.is_answer() => {
                self.out.without(name, since, ProbeOutcome::Unavailable, &e.to_string());
                return Ok(());
            }
            Err(e) => {
                self.wanted.insert(name.to_owned());
                return Err((since, e));
            }
        }
        match console::read_screen(folder, &file) {
            Ok(picture) => {
                let (out, first) = (self.out.clone(), self.first.clone());
                // A thread that can't be started leaves the question to its deadline.
                let _ = std::thread::Builder::new().spawn(move || console::answer(&out, name, since, &picture, &first, again));
            }
            Err(e) => self.out.without(name, since, ProbeOutcome::Failed, &e),
        }
        Ok(())
    }

    /// Last, because each vCPU has to stop for it: one that hangs in the kernel would hang QEMU's main loop with it.
    fn registers(&mut self, qmp: &mut Session<'_>) -> Result<(), (Instant, QmpError)> {
        let since = Instant::now();
        match qmp.ask(&Query::Human(Hmp::Registers), ANSWER) {
            Ok(value) if self.take("qmp/registers") => {
                self.out.captured("qmp/registers", since, value.as_str().unwrap_or_default().as_bytes().to_vec())
            }
            Ok(_) => {}
            Err(e) if e.is_answer() => self.declined("qmp/registers", since, &e),
            Err(e) => return Err((since, e)),
        }
        Ok(())
    }
}

/// Whether the guest has opened the agent's port, as `query-chardev` says of `qga0`.
fn agent_port(chardevs: &Value) -> Port {
    let qga =
        chardevs.as_array().into_iter().flatten().find(|c| c.get("label").and_then(Value::as_str).is_some_and(|l| l.starts_with("qga")));
    match qga.and_then(|c| c.get("frontend-open")).and_then(Value::as_bool) {
        Some(true) => Port::Open,
        Some(false) => Port::Closed,
        None => Port::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_the_guest_has_not_opened_is_seen() {
        assert_eq!(
            agent_port(&json!([{"label": "charmonitor", "frontend-open": true}, {"label": "qga0", "frontend-open": false}])),
            Port::Closed
        );
        assert_eq!(agent_port(&json!([{"label": "qga0", "frontend-open": true}])), Port::Open);
        assert_eq!(agent_port(&json!([])), Port::Unknown);
    }
}
