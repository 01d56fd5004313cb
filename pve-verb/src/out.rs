//! Standard output towards a caller who may be slow, gone, or reading nothing for ever.
//!
//! sshd gives us a pipe or a socket pair and no sign that the client is gone. What is said is queued here and goes out as far as there is
//! room at once; only [`Out::flush`] waits, with a limit for each byte and one for all, and nothing else of the work waits for it. After
//! the first failure nothing is written any more: the caller's absence is never a reason to stop what has begun.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// A write of at most this many bytes does not block once poll said that there is room (PIPE_BUF).
const CHUNK: usize = 4096;

/// More is not queued where it can wait.
const MOST_QUEUED: usize = 1 << 20;

/// The caller's end.
#[derive(Debug)]
pub struct Out {
    /// None once the caller is gone.
    to: Option<File>,
    stalled_after: Duration,
    /// What is left of the time that may be waited for this caller altogether.
    patience: Duration,
    queue: Vec<u8>,
    held: bool,
}

/// For what only knows writers. Waits where much is queued: it is for what comes behind the record.
impl Write for &mut Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Out::write(self, bytes);
        if self.queue.len() > MOST_QUEUED {
            Out::flush(self);
        }
        if self.is_gone() { Err(std::io::ErrorKind::BrokenPipe.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Whether there is room.
enum Room {
    Yes,
    NotYet,
    Never,
}

impl Out {
    /// Standard output; a caller that takes no byte for `stalled_after`, or keeps us waiting for `patience` altogether, is taken for gone.
    pub fn new(stalled_after: Duration, patience: Duration) -> Self {
        let stdout = std::io::stdout().as_fd().try_clone_to_owned().ok();
        Self::to(stdout.map(File::from), stalled_after, patience)
    }

    pub(crate) const fn to(to: Option<File>, stalled_after: Duration, patience: Duration) -> Self {
        Self { to, stalled_after, patience, queue: Vec::new(), held: false }
    }

    /// Whether the caller is gone, as far as we could notice.
    pub const fn is_gone(&self) -> bool {
        self.to.is_none()
    }

    /// Says it: now as far as there is room, the rest later. Waits for nothing.
    pub fn write(&mut self, bytes: &[u8]) {
        if self.to.is_some() {
            self.queue.extend_from_slice(bytes);
            self.drain(false);
        }
    }

    /// Writes a line.
    pub fn line(&mut self, text: &str) {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(b'\n');
        self.write(&bytes);
    }

    /// What is said from here on stays here until [`Out::release`].
    pub const fn hold(&mut self) {
        self.held = true;
    }

    /// It may go out.
    pub const fn release(&mut self) {
        self.held = false;
    }

    /// Waits until all that may go out has gone, or the caller is gone.
    pub fn flush(&mut self) {
        self.drain(true);
    }

    /// The same, until then at most.
    pub fn flush_by(&mut self, until: Instant) {
        let kept = std::mem::replace(&mut self.patience, until.saturating_duration_since(Instant::now()));
        self.drain(true);
        self.patience = kept;
    }

    fn drain(&mut self, waits: bool) {
        let mut gone_out = 0;
        while let (Some(to), false) = (&mut self.to, self.held) {
            let rest = self.queue.get(gone_out..).unwrap_or_default();
            let chunk = rest.get(..CHUNK).unwrap_or(rest);
            if chunk.is_empty() {
                break;
            }
            let began = Instant::now();
            let room = room(to, if waits { self.stalled_after.min(self.patience) } else { Duration::ZERO });
            self.patience = self.patience.saturating_sub(began.elapsed());
            match room {
                Room::Yes if to.write_all(chunk).is_ok() => gone_out += chunk.len(),
                Room::NotYet if !waits => break,
                _ => self.to = None,
            }
        }
        if self.to.is_none() {
            self.queue = Vec::new();
        } else {
            self.queue.drain(..gone_out);
        }
    }
}

fn room(to: &File, within: Duration) -> Room {
    let until = Instant::now() + within;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(to, PollFlags::OUT)];
        let wait = Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut fds, Some(&wait)) {
            Ok(0) => return Room::NotYet,
            Ok(_) if fds[0].revents().intersects(PollFlags::ERR | PollFlags::NVAL) => return Room::Never,
            Ok(_) => return Room::Yes,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return Room::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    const LONG: Duration = Duration::from_secs(60);

    fn pipe(stalled_after: Duration, patience: Duration) -> (File, Out) {
        let (from, to) = std::io::pipe().unwrap();
        (File::from(std::os::fd::OwnedFd::from(from)), Out::to(Some(File::from(std::os::fd::OwnedFd::from(to))), stalled_after, patience))
    }

    #[test]
    fn saying_a_lot_to_somebody_who_reads_nothing_takes_no_time_and_is_all_there_later() {
        let (mut from, mut out) = pipe(LONG, LONG);
        let began = Instant::now();
        for _ in 0..100 {
            out.write(&[b'x'; 10_000]);
        }
        assert!(began.elapsed() < Duration::from_secs(5) && !out.is_gone());
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            from.read_to_end(&mut all).unwrap();
            all.len()
        });
        out.flush();
        drop(out);
        assert_eq!(reader.join().unwrap(), 1_000_000);
    }

    #[test]
    fn one_that_takes_a_little_now_and_then_is_given_up_in_the_end() {
        let (mut from, mut out) = pipe(LONG, Duration::from_millis(300));
        out.write(&vec![b'x'; 10_000_000]);
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let reader = std::thread::spawn(move || {
            let mut little = [0; 8192];
            while stopped.recv_timeout(Duration::from_millis(50)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                from.read_exact(&mut little).unwrap();
            }
        });
        let began = Instant::now();
        out.flush();
        assert!(out.is_gone() && began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        drop((stop, out));
        reader.join().unwrap();
    }

    #[test]
    fn what_is_held_goes_out_when_it_is_released() {
        let (mut from, mut out) = pipe(LONG, LONG);
        out.line("before");
        out.hold();
        out.line("secret");
        out.flush();
        let mut got = [0; 100];
        assert_eq!(from.read(&mut got).unwrap(), 7);
        out.release();
        out.line("after");
        assert_eq!(from.read(&mut got).unwrap(), 13);
    }
}
