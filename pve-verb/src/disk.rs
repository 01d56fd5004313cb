//! The parent's side of the writer: one question, one answer, one deadline.
//!
//! A writer that is late is killed and never waited for (it may sit in state D, where waiting has no bound), and from then on this
//! [`Disk`] answers [`DiskError::Late`] at once: a hung disk isn't asked twice by the same worker. One that is slow each time uses up an
//! allowance for all questions of a part of the request together, and then counts as late.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::spawn;
use crate::writer::{self, Abandoned, Op, Reply};

/// Why the disk did not do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// No answer in time, now or earlier. It may still happen.
    Late,
    /// It answered with an error, or its writer broke.
    Failed(String),
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Late => f.write_str("the disk did not answer in time"),
            Self::Failed(why) => write!(f, "the disk answered: {}", proto::escape(why.as_bytes())),
        }
    }
}

/// The host's disk, behind a writer that is started at the first question. Clones ask the same writer.
#[derive(Clone)]
pub struct Disk {
    state: Arc<Mutex<State>>,
    allowance: Arc<Mutex<Allowance>>,
}

/// What may be waited in all, for the disk and for whoever has its locks.
#[derive(Debug, Default)]
struct Allowance {
    /// None: as long as each question says.
    left: Option<Duration>,
    /// While something waits: when what was left is used up. What waits within that is part of it.
    until: Option<Option<Instant>>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}

type Starter = Box<dyn Fn() -> io::Result<Writer> + Send>;

struct State {
    start: Starter,
    writer: Option<Writer>,
    late: bool,
}

/// A running writer.
pub(crate) struct Writer {
    to: File,
    from: File,
    child: Option<Child>,
    abandoned: Abandoned,
}

impl Writer {
    pub(crate) fn new(to: OwnedFd, from: OwnedFd, child: Option<Child>) -> io::Result<Self> {
        for fd in [&to, &from] {
            fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
        }
        Ok(Self { to: to.into(), from: from.into(), child, abandoned: Abandoned::default() })
    }

    fn start() -> io::Result<Self> {
        let mut child = spawn::reexec("writer", Stdio::piped(), Stdio::piped())?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(to), Some(from)) => Self::new(to.into(), from.into(), Some(child)),
            _ => Err(io::Error::other("the writer has no pipes")),
        }
    }

    /// The same protocol, spoken with a thread.
    fn in_thread() -> io::Result<Self> {
        let (theirs, to) = pipe_with(PipeFlags::CLOEXEC)?;
        let (from, back) = pipe_with(PipeFlags::CLOEXEC)?;
        let writer = Self::new(to, from, None)?;
        let abandoned = Abandoned::clone(&writer.abandoned);
        std::thread::Builder::new().spawn(move || {
            // It ends when our ends close; an error means that they did.
            let _ = writer::serve_here(abandoned, &mut File::from(theirs), &mut File::from(back));
        })?;
        Ok(writer)
    }

    fn ask(&mut self, message: &[u8], until: Instant) -> Result<Reply, Broken> {
        send(&self.to, message, until)?;
        let mut prefix = [0; 8];
        receive(&self.from, &mut prefix, until)?;
        let (header, payload) = writer::lengths(prefix).map_err(|e| Broken::Pipe(e.to_string()))?;
        let (mut a, mut b) = (vec![0; header], vec![0; payload]);
        receive(&self.from, &mut a, until)?;
        receive(&self.from, &mut b, until)?;
        let mut reply = serde_json::from_slice(&a).map_err(|e| Broken::Pipe(e.to_string()))?;
        if let Reply::Bytes { bytes } = &mut reply {
            *bytes = b;
        }
        Ok(reply)
    }

    /// SIGKILL, and no waiting. What has ended already is reaped.
    fn abandon(mut self) {
        self.abandoned.store(true, Ordering::SeqCst);
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.try_wait();
        }
    }
}

enum Broken {
    Late,
    Pipe(String),
}

impl Disk {
    /// The disk of this host. No process is started yet.
    pub fn spawn() -> Self {
        Self::with(Box::new(Writer::start))
    }

    /// From here on without a child process: a thread of ours does the writing. For refusals, which must start no process
    /// (PROTOCOL.md, section 2), and only where tmpfs does not take their record: a disk that hangs then keeps this process from
    /// ending, though not from answering.
    pub fn without_child(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.writer.is_none() {
            state.start = Box::new(Writer::in_thread);
        }
    }

    pub(crate) fn with(start: Starter) -> Self {
        Self { state: Arc::new(Mutex::new(State { start, writer: None, late: false })), allowance: Arc::default() }
    }

    /// From here on all that waits for the disk may take this long together; none: as long as each question says.
    pub fn allow(&self, most: Option<Duration>) {
        self.allowed().left = most;
    }

    fn allowed(&self) -> MutexGuard<'_, Allowance> {
        self.allowance.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the disk, or for whoever is at it: `with` is told until when it may, at most `within` from now, and what it takes goes
    /// off the allowance.
    pub fn waiting<T>(&self, within: Duration, with: impl FnOnce(Instant) -> T) -> T {
        let began = Instant::now();
        let wanted = began + within;
        let (outermost, used_up) = {
            let mut allowed = self.allowed();
            let outermost = allowed.until.is_none();
            let ends = allowed.left.map(|left| began + left);
            (outermost, *allowed.until.get_or_insert(ends))
        };
        let given = with(used_up.map_or(wanted, |used_up| used_up.min(wanted)));
        if outermost {
            let mut allowed = self.allowed();
            allowed.until = None;
            allowed.left = allowed.left.map(|left| left.saturating_sub(began.elapsed()));
        }
        given
    }

    /// Asks the writer to do this, for at most `within`.
    ///
    /// # Errors
    /// [`DiskError`], each kind as it says.
    pub fn call(&self, op: &Op, payload: &[u8], within: Duration) -> Result<Reply, DiskError> {
        self.waiting(within, |until| self.call_until(op, payload, until))
    }

    fn call_until(&self, op: &Op, payload: &[u8], until: Instant) -> Result<Reply, DiskError> {
        if Instant::now() >= until {
            // The caller's time is up; that says nothing about the disk, so it may be asked again.
            return Err(DiskError::Late);
        }
        // A panic elsewhere leaves no half state here that the next call could not see.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.late {
            return Err(DiskError::Late);
        }
        let failed = |e: &dyn fmt::Display| DiskError::Failed(e.to_string());
        let header = serde_json::to_vec(op).map_err(|e| failed(&e))?;
        let message = writer::frame(&header, payload).map_err(|e| failed(&e))?;
        let mut writer = match state.writer.take() {
            Some(writer) => writer,
            None => (state.start)().map_err(|e| DiskError::Failed(format!("the writer could not be started: {e}")))?,
        };
        match writer.ask(&message, until) {
            Ok(reply) => {
                state.writer = Some(writer);
                match reply {
                    Reply::Failed { why } => Err(DiskError::Failed(why)),
                    reply => Ok(reply),
                }
            }
            Err(Broken::Late) => {
                writer.abandon();
                state.late = true;
                Err(DiskError::Late)
            }
            Err(Broken::Pipe(why)) => {
                // The next question gets a new writer: this one may have been killed by the kernel's OOM killer.
                writer.abandon();
                Err(DiskError::Failed(format!("the writer broke: {why}")))
            }
        }
    }

    /// Whether the disk was late once, so that it won't be asked again; or has used up what it is allowed for now.
    pub fn is_late(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).late || self.allowed().left.is_some_and(|left| left.is_zero())
    }
}

fn send(to: &File, mut bytes: &[u8], until: Instant) -> Result<(), Broken> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::AGAIN) => await_ready(to, PollFlags::OUT, until)?,
            Err(Errno::INTR) => {}
            Err(e) => return Err(Broken::Pipe(e.to_string())),
        }
    }
    Ok(())
}

fn receive(from: &File, mut bytes: &mut [u8], until: Instant) -> Result<(), Broken> {
    while !bytes.is_empty() {
        match rustix::io::read(from, &mut *bytes) {
            Ok(0) => return Err(Broken::Pipe("it ended".to_owned())),
            Ok(n) => bytes = bytes.get_mut(n..).unwrap_or_default(),
            Err(Errno::AGAIN) => await_ready(from, PollFlags::IN, until)?,
            Err(Errno::INTR) => {}
            Err(e) => return Err(Broken::Pipe(e.to_string())),
        }
    }
    Ok(())
}

fn await_ready(file: &File, flags: PollFlags, until: Instant) -> Result<(), Broken> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Broken::Late);
        }
        let timeout = Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::from_borrowed_fd(file.as_fd(), flags)], Some(&timeout)) {
            Ok(0) => return Err(Broken::Late),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(Broken::Pipe(e.to_string())),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::path::Path;
    use std::sync::atomic::AtomicU32;

    /// A disk whose root is this folder, with the real writer's loop behind real pipes.
    pub(crate) fn disk_at(root: &Path) -> Disk {
        let root = root.to_owned();
        Disk::with(Box::new(move || {
            let (mut child_in, to) = io::pipe()?;
            let (from, mut child_out) = io::pipe()?;
            let root = writer::Root::at(root.clone());
            std::thread::spawn(move || writer::serve(&root, &mut child_in, &mut child_out));
            Writer::new(to.into(), from.into(), None)
        }))
    }

    /// A disk that hangs: a process that reads nothing and says nothing.
    pub(crate) fn hung_disk() -> Disk {
        Disk::with(Box::new(hung_writer))
    }

    pub(crate) fn hung_writer() -> io::Result<Writer> {
        let mut child = std::process::Command::new("sleep").arg("60").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else { panic!("no pipes") };
        Writer::new(to.into(), from.into(), Some(child))
    }

    /// A disk that hangs, and how often it was asked from the beginning.
    pub(crate) fn counted_hung_disk() -> (Disk, Arc<AtomicU32>) {
        let asked = Arc::new(AtomicU32::new(0));
        let counts = Arc::clone(&asked);
        let disk = Disk::with(Box::new(move || {
            counts.fetch_add(1, Ordering::SeqCst);
            hung_writer()
        }));
        (disk, asked)
    }

    /// A disk whose every operation fails, as a full or read-only one's.
    pub(crate) fn broken_disk() -> Disk {
        Disk::with(Box::new(|| Err(io::Error::other("No space left on device"))))
    }

    #[test]
    fn a_hung_disk_costs_its_deadline_once() {
        let disk = hung_disk();
        let started = Instant::now();
        assert_eq!(disk.call(&Op::OperationGet {}, &[], Duration::from_millis(200)), Err(DiskError::Late));
        assert!(started.elapsed() >= Duration::from_millis(200) && started.elapsed() < Duration::from_secs(20));
        let again = Instant::now();
        assert_eq!(disk.call(&Op::OperationGet {}, &[], Duration::from_secs(60)), Err(DiskError::Late));
        assert!(again.elapsed() < Duration::from_secs(20), "a hung disk isn't asked twice");
    }

    #[test]
    fn a_payload_larger_than_the_pipe_does_not_block_on_a_hung_disk() {
        let started = Instant::now();
        assert_eq!(
            hung_disk().call(
                &Op::OperationSet { id: proto::RequestId::from_random([1; 16]) },
                &vec![0; 1 << 20],
                Duration::from_millis(200)
            ),
            Err(DiskError::Late)
        );
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_large_payload_comes_back_whole() {
        let root = tempfile::tempdir().unwrap();
        let disk = disk_at(root.path());
        let payload: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[0]).collect();
        assert_eq!(
            disk.call(&Op::OperationSet { id: proto::RequestId::from_random([1; 16]) }, &payload, Duration::from_secs(20)),
            Ok(Reply::Done {})
        );
        assert_eq!(disk.call(&Op::OperationGet {}, &[], Duration::from_secs(20)), Ok(Reply::Bytes { bytes: payload }));
    }

    #[test]
    fn a_writer_that_dies_is_a_failure_and_the_next_question_gets_a_new_one() {
        let disk = Disk::with(Box::new(|| {
            let mut child = std::process::Command::new("true").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else { panic!("no pipes") };
            Writer::new(to.into(), from.into(), Some(child))
        }));
        for _ in 0..2 {
            let answer = disk.call(&Op::OperationGet {}, &[], Duration::from_secs(20));
            assert!(matches!(&answer, Err(DiskError::Failed(why)) if why.contains("broke")), "{answer:?}");
        }
        assert!(!disk.is_late());
    }
}
