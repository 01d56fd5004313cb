//! File systems that stop answering: a folder that hangs from the start, and a disk that hangs when told to.
//!
//! It speaks the little of the FUSE protocol that one file needs. A kernel that was never greeted lets waiters be killed;
//! one whose request was *read* and is not answered leaves them in state D, deaf to SIGKILL, as failing storage does.
//! When the process that serves it ends, however it ends, everyone who waits gets an error: nothing outlives a lab.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::error::{Context, Result};
use crate::process::until;

/// How those who touch a hung folder wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hang {
    /// Killable, as on a pmxcfs that was SIGSTOPped before it read the request.
    Killable,
    /// In state D, deaf to SIGKILL, as on a disk that does not answer.
    Uninterruptible,
}

/// A mount of the lab's. Dropping it lets everyone go (they get an error) and shows again what was under it.
#[derive(Debug)]
pub struct Served {
    path: String,
    // Last to go: closing it is what wakes those who wait.
    device: Option<Arc<File>>,
    reader: Option<JoinHandle<()>>,
    switch: Arc<Switch>,
}

#[derive(Debug, Default)]
struct Switch {
    stopped: AtomicBool,
    quit: AtomicBool,
    // Of the start: a first request was taken, and the kernel knows that we can't interrupt any.
    holding: AtomicBool,
    uninterruptible: AtomicBool,
}

const FOLDER: u32 = 0o40_755;
const FILE: u32 = 0o100_600;
const PROGRAM: u32 = 0o100_755;

/// Covers a folder with a file system that hangs.
pub fn hang(path: &str, how: Hang) -> Result<Served> {
    serve(path, FOLDER, None, (how == Hang::Uninterruptible).then_some(true))
}

/// Shows the file `content` at `path`, where a file has to be; it answers until [`Served::stop`].
pub fn disk(path: &str, content: File) -> Result<Served> {
    serve(path, FILE, Some(content), Some(false))
}

/// The same for a program.
pub fn program(path: &str, content: File) -> Result<Served> {
    serve(path, PROGRAM, Some(content), Some(false))
}

/// Mounts; with `stopped` a thread takes requests, without it nobody ever does.
fn serve(path: &str, root_mode: u32, content: Option<File>, stopped: Option<bool>) -> Result<Served> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").context("open /dev/fuse")?;
    let options = format!("fd={},rootmode={root_mode:o},user_id=0,group_id=0,allow_other", device.as_raw_fd());
    let options = std::ffi::CString::new(options).context("name the options of a mount")?;
    mount("lab", path, "fuse", MountFlags::NOSUID | MountFlags::NODEV, Some(options.as_c_str()))
        .context(format!("mount a file system at {path}"))?;
    let device = Arc::new(device);
    let switch = Arc::new(Switch::default());
    switch.stopped.store(true, Ordering::Relaxed);
    let reader = stopped.map(|_| {
        let server = Server { device: Arc::clone(&device), switch: Arc::clone(&switch), content, mode: root_mode };
        std::thread::spawn(move || server.run())
    });
    let served = Served { path: path.to_owned(), device: Some(device), reader, switch };
    if let Some(stopped) = stopped {
        served.forbid_interrupts()?;
        served.switch.stopped.store(stopped, Ordering::Relaxed);
    }
    Ok(served)
}

impl Served {
    /// Has the kernel learn that requests can't be interrupted, by interrupting one: until then waiters are in state S.
    fn forbid_interrupts(&self) -> Result<()> {
        let mut dd = Command::new("dd");
        dd.args([&format!("if={}", self.path), "of=/dev/null", "bs=4096", "count=1", "iflag=direct", "status=none"]).stderr(Stdio::null());
        let mut reader = dd.spawn().context("start dd")?;
        let soon = Duration::from_secs(20);
        until("the first request", soon, || self.switch.holding.load(Ordering::Relaxed).then_some(()))?;
        reader.kill().context("interrupt dd")?;
        until("the first interrupt", soon, || self.switch.uninterruptible.load(Ordering::Relaxed).then_some(()))?;
        reader.wait().context("reap dd").map(drop)
    }

    /// From now on it takes requests and answers none.
    pub fn stop(&self) {
        self.switch.stopped.store(true, Ordering::Relaxed);
    }

    /// It answers again, first what it has taken meanwhile.
    pub fn go_on(&self) {
        self.switch.stopped.store(false, Ordering::Relaxed);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Lazily: whoever hangs in it keeps it busy.
        let _already_gone = unmount(self.path.as_str(), UnmountFlags::DETACH);
        self.switch.quit.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _panicked = reader.join();
        }
        self.device.take();
    }
}

struct Server {
    device: Arc<File>,
    switch: Arc<Switch>,
    content: Option<File>,
    mode: u32,
}

/// Opcodes, as in the kernel's include/uapi/linux/fuse.h.
mod op {
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FSYNC: u32 = 20;
    pub(super) const FLUSH: u32 = 25;
    pub(super) const INIT: u32 = 26;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const BATCH_FORGET: u32 = 42;
}
const HEADER: usize = 40;
const MAX_WRITE: u32 = 128 * 1024;
const ENOSYS: i32 = 38;
const EIO: i32 = 5;

impl Server {
    fn run(&self) {
        let mut held: Vec<Vec<u8>> = Vec::new();
        let mut block = vec![0_u8; MAX_WRITE as usize + 4096];
        let tick = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        while !self.switch.quit.load(Ordering::Relaxed) {
            if !self.switch.stopped.load(Ordering::Relaxed) {
                held.drain(..).for_each(|request| self.answer(&request));
            }
            let mut ready = [PollFd::new(&*self.device, PollFlags::IN)];
            if !matches!(poll(&mut ready, Some(&tick)), Ok(1..)) {
                continue;
            }
            let Ok(length) = (&mut &*self.device).read(&mut block) else { return };
            let request = &block[..length];
            if number(request, 4) == op::INTERRUPT {
                self.reply(request, Err(ENOSYS));
                if !self.switch.uninterruptible.swap(true, Ordering::Relaxed) {
                    held.drain(..).for_each(|first| self.reply(&first, Err(EIO)));
                }
            } else if self.switch.stopped.load(Ordering::Relaxed) && self.holds(number(request, 4)) {
                held.push(request.to_vec());
                self.switch.holding.store(true, Ordering::Relaxed);
            } else {
                self.answer(request);
            }
        }
    }

    /// What is not answered while it is stopped.
    fn holds(&self, opcode: u32) -> bool {
        match opcode {
            // Without the greeting the kernel would keep requests to itself, and waiters would stay killable.
            op::INIT => false,
            // A local file system whose disk is dead still knows a file's size; QEMU's main thread asks for it, and lives.
            op::GETATTR => self.content.is_none(),
            _ => true,
        }
    }

    fn answer(&self, request: &[u8]) {
        let outcome = match number(request, 4) {
            op::FORGET | op::BATCH_FORGET => return,
            op::INIT => Ok(greeting(request)),
            op::GETATTR | op::SETATTR => self.attributes(),
            op::OPEN => Ok(vec![0; 16]),
            op::READ => self.read(request),
            op::WRITE => self.write(request),
            op::RELEASE | op::FSYNC | op::FLUSH => Ok(Vec::new()),
            _ => Err(ENOSYS),
        };
        self.reply(request, outcome);
    }

    fn reply(&self, request: &[u8], outcome: std::result::Result<Vec<u8>, i32>) {
        let (error, body) = outcome.map_or_else(|error| (-error, Vec::new()), |body| (0, body));
        let mut answer = u32::try_from(16 + body.len()).unwrap_or(16).to_ne_bytes().to_vec();
        answer.extend_from_slice(&error.to_ne_bytes());
        answer.extend_from_slice(request.get(8..16).unwrap_or(&[0; 8]));
        answer.extend_from_slice(&body);
        // ENOENT: the one who asked was killed meanwhile.
        let _interrupted = (&mut &*self.device).write(&answer);
    }

    /// struct fuse_attr_out; valid for no time, so that it is asked for again.
    fn attributes(&self) -> std::result::Result<Vec<u8>, i32> {
        let size = self.content.as_ref().ok_or(ENOSYS)?.metadata().map_err(|_| EIO)?.len();
        let mut body = vec![0_u8; 16];
        for long in [1, size, size / 512, 0, 0, 0] {
            body.extend_from_slice(&long.to_ne_bytes());
        }
        for word in [0, 0, 0, self.mode, 1, 0, 0, 0, 4096, 0_u32] {
            body.extend_from_slice(&word.to_ne_bytes());
        }
        Ok(body)
    }

    fn read(&self, request: &[u8]) -> std::result::Result<Vec<u8>, i32> {
        let mut data = vec![0; number(request, HEADER + 16).min(MAX_WRITE) as usize];
        let length = self.content.as_ref().ok_or(ENOSYS)?.read_at(&mut data, offset(request)).map_err(|_| EIO)?;
        data.truncate(length);
        Ok(data)
    }

    fn write(&self, request: &[u8]) -> std::result::Result<Vec<u8>, i32> {
        let size = number(request, HEADER + 16);
        let data = request.get(HEADER + 40..HEADER + 40 + size as usize).ok_or(EIO)?;
        self.content.as_ref().ok_or(ENOSYS)?.write_all_at(data, offset(request)).map_err(|_| EIO)?;
        Ok([size.to_ne_bytes(), [0; 4]].concat())
    }
}

/// struct fuse_init_out: version 7.31, read-ahead as offered, writes of up to [`MAX_WRITE`].
fn greeting(request: &[u8]) -> Vec<u8> {
    let mut body = vec![0_u8; 64];
    body[0..4].copy_from_slice(&7_u32.to_ne_bytes());
    body[4..8].copy_from_slice(&31_u32.to_ne_bytes());
    body[8..12].copy_from_slice(&number(request, HEADER + 8).to_ne_bytes());
    body[12..16].copy_from_slice(&(1_u32 << 5).to_ne_bytes()); // FUSE_BIG_WRITES
    body[20..24].copy_from_slice(&MAX_WRITE.to_ne_bytes());
    body
}

/// The offset of a read or write, which stands after the file handle.
fn offset(request: &[u8]) -> u64 {
    request.get(HEADER + 8..HEADER + 16).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

fn number(request: &[u8], at: usize) -> u32 {
    request.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}
