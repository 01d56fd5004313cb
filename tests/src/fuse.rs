//! A file system that hangs: what stands on it can't be read, written or looked at, and nobody gets an answer.
//!
//! It speaks just enough of the FUSE protocol to hang properly. A kernel that was never greeted lets waiters be killed;
//! one whose request was *read* and not answered leaves them in state D, deaf to SIGKILL, as failing storage does.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::error::{Context, Result};

const FUSE_INIT: u32 = 26;
const HEADER: usize = 40;

/// How those who touch it wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hang {
    /// In state S or D but killable, as on a pmxcfs that was SIGSTOPped before it read the request.
    Killable,
    /// In state D, deaf to SIGKILL, as on a disk that does not answer.
    Uninterruptible,
}

/// A hung mount. Dropping it lets everyone go (they get an error) and shows again what was under it.
#[derive(Debug)]
pub struct Hung {
    path: String,
    device: Option<Arc<File>>,
    reader: Option<std::thread::JoinHandle<()>>,
    stop: Arc<std::sync::atomic::AtomicBool>,
}

/// Covers a folder with a file system that hangs.
pub fn hang(path: &str, how: Hang) -> Result<Hung> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").context("open /dev/fuse")?;
    let options = format!("fd={},rootmode=40755,user_id=0,group_id=0,allow_other", device.as_raw_fd());
    let options = std::ffi::CString::new(options).context("name the options of a mount")?;
    mount("lab-hung", path, "fuse", MountFlags::NOSUID | MountFlags::NODEV, Some(options.as_c_str()))
        .context(format!("mount a hung file system at {path}"))?;
    let device = Arc::new(device);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let reader = (how == Hang::Uninterruptible).then(|| {
        let (device, stop) = (Arc::clone(&device), Arc::clone(&stop));
        std::thread::spawn(move || swallow(&device, &stop))
    });
    Ok(Hung { path: path.to_owned(), device: Some(device), reader, stop })
}

/// Greets the kernel, then takes every request and answers none.
fn swallow(device: &File, stop: &std::sync::atomic::AtomicBool) {
    let mut request = vec![0_u8; 256 * 1024];
    let tick = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        let mut ready = [PollFd::new(device, PollFlags::IN)];
        if !matches!(poll(&mut ready, Some(&tick)), Ok(1..)) {
            continue;
        }
        let Ok(length) = (&mut &*device).read(&mut request) else { return };
        if let Some(answer) = greeting(&request[..length])
            && (&mut &*device).write_all(&answer).is_err()
        {
            return;
        }
    }
}

/// The answer to FUSE_INIT: version 7.31, the kernel's own limits. Every other request has none.
fn greeting(request: &[u8]) -> Option<Vec<u8>> {
    let word = |at: usize| -> Option<[u8; 4]> { request.get(at..at + 4)?.try_into().ok() };
    if request.len() < HEADER || u32::from_ne_bytes(word(4)?) != FUSE_INIT {
        return None;
    }
    let mut body = [0_u8; 64];
    body[0..4].copy_from_slice(&7_u32.to_ne_bytes());
    body[4..8].copy_from_slice(&31_u32.to_ne_bytes());
    body[8..12].copy_from_slice(&word(HEADER + 8)?); // max_readahead, as offered
    body[20..24].copy_from_slice(&4096_u32.to_ne_bytes()); // max_write
    let mut answer = Vec::new();
    answer.extend_from_slice(&(16 + 64_u32).to_ne_bytes());
    answer.extend_from_slice(&0_i32.to_ne_bytes());
    answer.extend_from_slice(request.get(8..16)?); // unique
    answer.extend_from_slice(&body);
    Some(answer)
}

impl Drop for Hung {
    fn drop(&mut self) {
        // Lazily: whoever hangs in it keeps it busy. Closing the device then wakes them with an error.
        let _already_gone = unmount(self.path.as_str(), UnmountFlags::DETACH);
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _panicked = reader.join();
        }
        self.device.take();
    }
}
