//! QMP, over `serde_json::Value`: forensics keep every field that QEMU sent, and typed bindings drop what they do not know.
//!
//! What may be asked is [`Query`] and [`Hmp`], two closed enums without a command that changes the VM. What changes it is [`Change`],
//! and sending one takes proof that evidence was preserved. A connection exists only through the [`Door`].

mod door;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

pub(crate) use door::Claim;
pub use door::{Door, InUse, Purpose};

use crate::bundle::Preserved;
use crate::probe::Raw;
use proto::escape_cut;
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wire::{NoConnection, NoLine, Wire};

/// Events that are kept of one connection; a guest can cause them without end.
const EVENTS: usize = 1_000;
/// And the most of their text: parsed, it takes many times as much.
const EVENTS_TEXT: usize = 256 * 1024;
/// The longest line: `info registers` of a hundred vCPUs, and then some.
const LINE: usize = 1024 * 1024;

/// A question; none of them changes the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are QMP's own")]
pub enum Query {
    Status,
    Block,
    Blockstats,
    NamedBlockNodes,
    BlockJobs,
    Iothreads,
    CpusFast,
    Balloon,
    Migrate,
    Chardev,
    Virtio,
    /// One queue of a device that QEMU itself named.
    VirtioQueueStatus(VirtioPath, u16),
    /// The first screen, as PPM, into a file of ours.
    Screendump(ScreenFile),
    /// A read-only command of the human monitor.
    Human(Hmp),
}

/// A command of the human monitor that only shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hmp {
    /// `info registers -a`
    Registers,
}

impl Hmp {
    const fn line(self) -> &'static str {
        match self {
            Self::Registers => "info registers -a",
        }
    }
}

/// A device's path in QEMU's object tree. Made only from what looks like one: it goes back into a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtioPath(String);

impl VirtioPath {
    /// Reads a path that QEMU gave.
    pub fn from_qemu(text: &str) -> Option<Self> {
        let fits = text.len() <= 256
            && text.starts_with("/machine/")
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_-.[]:".contains(&b));
        fits.then(|| Self(text.to_owned()))
    }
}

/// Where QEMU may write a screen: an absolute path of ours. QEMU writes it itself, relative names into `/`, and a disk that hangs
/// would hang QEMU: so the folder is one that the worker made on tmpfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScreenFile(PathBuf);

impl ScreenFile {
    /// A file of constant name in that folder; none where the folder is not an absolute path in plain ASCII.
    pub fn within(folder: &Path, name: &'static str) -> Option<Self> {
        let plain = folder.to_str().is_some_and(|t| t.is_ascii() && !t.bytes().any(|b| b.is_ascii_control()) && !t.contains(".."));
        (folder.is_absolute() && plain).then(|| Self(folder.join(name)))
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Its name in its folder.
    pub fn name(&self) -> &OsStr {
        self.0.file_name().unwrap_or_default()
    }
}

impl Query {
    fn command(&self) -> (&'static str, Option<Value>) {
        match self {
            Self::Status => ("query-status", None),
            Self::Block => ("query-block", None),
            Self::Blockstats => ("query-blockstats", None),
            Self::NamedBlockNodes => ("query-named-block-nodes", None),
            Self::BlockJobs => ("query-block-jobs", None),
            Self::Iothreads => ("query-iothreads", None),
            Self::CpusFast => ("query-cpus-fast", None),
            Self::Balloon => ("query-balloon", None),
            Self::Migrate => ("query-migrate", None),
            Self::Chardev => ("query-chardev", None),
            Self::Virtio => ("x-query-virtio", None),
            Self::VirtioQueueStatus(path, queue) => ("x-query-virtio-queue-status", Some(json!({"path": path.0, "queue": queue}))),
            Self::Screendump(file) => ("screendump", Some(json!({"filename": file.0.to_string_lossy(), "format": "ppm"}))),
            Self::Human(hmp) => ("human-monitor-command", Some(json!({"command-line": hmp.line()}))),
        }
    }
}

/// A command that changes the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// `system_reset`
    SystemReset,
    /// `cont`
    Cont,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QmpError {
    /// No such socket.
    NoSocket,
    /// Nobody listens on it.
    Refused,
    /// Its backlog is full: somebody else waits there, or QEMU hangs. This leaves no entry in the backlog.
    Busy,
    /// Connected, but no greeting in time: QEMU hangs, or serves another client.
    NoGreeting,
    /// No answer in time.
    Timeout,
    /// QEMU closed the connection.
    Closed,
    /// What came is not QMP; escaped.
    Protocol(String),
    /// A mutation wanted the socket while this read held it: whose.
    GaveWay(String),
    /// QEMU's own error; escaped.
    Qemu {
        /// Its class, such as `CommandNotFound`.
        class: String,
        /// Its description.
        desc: String,
    },
}

impl fmt::Display for QmpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSocket => f.write_str("there is no such socket"),
            Self::Refused => f.write_str("nobody listens on the socket"),
            Self::Busy => f.write_str("the socket's backlog is full: somebody else waits there, or QEMU hangs"),
            Self::NoGreeting => f.write_str("connected, but no greeting came: QEMU hangs, or serves another client"),
            Self::Timeout => f.write_str("no answer in time"),
            Self::Closed => f.write_str("the connection was closed"),
            Self::Protocol(what) => write!(f, "not QMP: {what}"),
            Self::GaveWay(to) => write!(f, "the socket is in use by {to}, to which this read gave way"),
            Self::Qemu { class, desc } => write!(f, "{class}: {desc}"),
        }
    }
}

impl From<NoConnection> for QmpError {
    fn from(e: NoConnection) -> Self {
        match e {
            NoConnection::NoSocket => Self::NoSocket,
            NoConnection::Refused => Self::Refused,
            NoConnection::Busy => Self::Busy,
            NoConnection::Other(what) => Self::Protocol(what),
        }
    }
}

impl From<NoLine> for QmpError {
    fn from(e: NoLine) -> Self {
        match e {
            NoLine::Timeout => Self::Timeout,
            NoLine::Closed => Self::Closed,
            NoLine::TooMuch(what) => Self::Protocol(what),
        }
    }
}

impl QmpError {
    /// Whether the connection is still good for another question.
    pub const fn is_answer(&self) -> bool {
        matches!(self, Self::Qemu { .. })
    }

    /// Whether QEMU took the connection and said nothing on it, or greeted and no more.
    pub const fn is_silence(&self) -> bool {
        matches!(self, Self::NoGreeting | Self::Timeout)
    }
}

/// What QEMU said without being asked.
#[derive(Debug, Default)]
struct Events {
    kept: Vec<Value>,
    dropped: u64,
    text: usize,
}

/// A connection that QEMU has greeted.
#[derive(Debug)]
pub struct Session<'door> {
    wire: Wire,
    greeting: Value,
    events: Events,
    next_id: u64,
    broken: Option<QmpError>,
    door: &'door Door,
}

impl<'door> Session<'door> {
    /// Connects (one attempt), awaits the greeting, negotiates.
    ///
    /// # Errors
    /// Where there is no socket, no room in its backlog, or no greeting in time.
    pub fn open(door: &'door Door, within: Duration) -> Result<Self, QmpError> {
        let until = Instant::now() + within;
        let mut wire = Wire::connect(&door.qmp(), LINE)?;
        let greeting = match door.line(&mut wire, until) {
            Ok(line) => parse(&line)?,
            Err(QmpError::Timeout) => return Err(QmpError::NoGreeting),
            Err(e) => return Err(e),
        };
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Protocol("the first line is no greeting".to_owned()));
        }
        let mut session = Self { wire, greeting, events: Events::default(), next_id: 1, broken: None, door };
        session.execute("qmp_capabilities", None, until)?;
        Ok(session)
    }

    /// QEMU's greeting.
    pub const fn greeting(&self) -> &Value {
        &self.greeting
    }

    /// Whose QEMU it is.
    pub const fn vmid(&self) -> proto::Vmid {
        self.door.vmid()
    }

    /// Asks, and returns what stands under `return`.
    ///
    /// # Errors
    /// Where QEMU says so, or does not answer in time. After anything but QEMU's own error the connection is given up: an answer that
    /// comes late would be taken for the next question's.
    pub fn ask(&mut self, query: &Query, within: Duration) -> Result<Value, QmpError> {
        let (command, arguments) = query.command();
        self.execute(command, arguments, Instant::now() + within)
    }

    /// Changes the VM, which takes proof that evidence was preserved.
    ///
    /// # Errors
    /// As [`Session::ask`]; the change may have happened all the same.
    pub fn change(&mut self, change: Change, _permit: &Preserved, within: Duration) -> Result<Value, QmpError> {
        let command = match change {
            Change::SystemReset => "system_reset",
            Change::Cont => "cont",
        };
        self.execute(command, None, Instant::now() + within)
    }

    /// Awaits an event by its name; one that has come since the connection was made counts.
    pub fn await_event(&mut self, name: &str, within: Duration) -> Option<Value> {
        let until = Instant::now() + within;
        let mut looked_at = 0;
        loop {
            let found = self.events.kept.iter().skip(looked_at).find(|e| e.get("event").and_then(Value::as_str) == Some(name));
            if let Some(event) = found {
                return Some(event.clone());
            }
            looked_at = self.events.kept.len();
            if self.broken.is_some() || self.events.kept.len() >= EVENTS {
                return None;
            }
            match self.door.line(&mut self.wire, until).and_then(|line| Ok((parse(&line)?, line.as_bytes().len()))) {
                Ok((value, length)) => self.notice(value, length),
                Err(QmpError::Timeout) => return None,
                Err(e) => self.broken = Some(e),
            }
        }
    }

    /// Every event so far, and how many more were dropped.
    pub fn events(&self) -> (&[Value], u64) {
        (&self.events.kept, self.events.dropped)
    }

    fn notice(&mut self, value: Value, length: usize) {
        if value.get("event").is_none() {
            return;
        }
        if self.events.kept.len() < EVENTS && self.events.text + length <= EVENTS_TEXT {
            self.events.text += length;
            self.events.kept.push(value);
        } else {
            self.events.dropped += 1;
        }
    }

    fn execute(&mut self, command: &'static str, arguments: Option<Value>, until: Instant) -> Result<Value, QmpError> {
        if let Some(e) = &self.broken {
            return Err(e.clone());
        }
        let result = self.exchange(command, arguments, until);
        if let Err(e) = &result
            && !e.is_answer()
        {
            self.broken = Some(e.clone());
        }
        result
    }

    fn exchange(&mut self, command: &'static str, arguments: Option<Value>, until: Instant) -> Result<Value, QmpError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut request = json!({"execute": command, "id": id});
        if let (Some(arguments), Some(object)) = (arguments, request.as_object_mut()) {
            object.insert("arguments".to_owned(), arguments);
        }
        self.door.still_ours()?;
        self.wire.send(format!("{request}\n").as_bytes(), until)?;
        loop {
            let line = self.door.line(&mut self.wire, until)?;
            let mut answer = parse(&line)?;
            if answer.get("id").and_then(Value::as_u64) != Some(id) {
                self.notice(answer, line.as_bytes().len());
                continue;
            }
            if let Some(error) = answer.get("error") {
                return Err(qemu_error(error));
            }
            return answer
                .get_mut("return")
                .map(Value::take)
                .ok_or_else(|| QmpError::Protocol("an answer with neither return nor error".to_owned()));
        }
    }
}

/// QEMU's `error` member.
pub(crate) fn qemu_error(error: &Value) -> QmpError {
    let text = |name| escape_cut(error.get(name).and_then(Value::as_str).unwrap_or("?").as_bytes(), 200);
    QmpError::Qemu { class: text("class"), desc: text("desc") }
}

pub(crate) fn parse(line: &Raw) -> Result<Value, QmpError> {
    match serde_json::from_slice::<Value>(line.as_bytes()) {
        Ok(value) if value.is_object() => Ok(value),
        _ => Err(QmpError::Protocol(line.escaped(80))),
    }
}
