//! Standard output towards a caller who may be slow, gone, or reading nothing for ever.
//!
//! sshd gives us a pipe or a socket pair and no sign that the client is gone. So every write waits for room with a limit, and
//! after the first failure nothing is written any more: the caller's absence is never a reason to stop what has begun.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::Write;
use std::time::{Duration, Instant};

/// A write of at most this many bytes does not block once poll said that there is room (PIPE_BUF).
const CHUNK: usize = 4096;

/// The caller's end.
#[derive(Debug)]
pub struct Out {
    stalled_after: Duration,
    until: Option<Instant>,
    gone: bool,
}

impl Out {
    /// Standard output; a caller that takes no byte for `stalled_after` is taken for gone.
    pub const fn new(stalled_after: Duration) -> Self {
        Self { stalled_after, until: None, gone: false }
    }

    /// From here on all of it has to be taken by then, or the caller counts as gone; none: each piece has its own time again.
    pub const fn within(&mut self, until: Option<Instant>) {
        self.until = until;
    }

    /// Whether the caller is gone, as far as we could notice.
    pub const fn is_gone(&self) -> bool {
        self.gone
    }

    /// Writes all of it, or finds that the caller is gone.
    pub fn write(&mut self, bytes: &[u8]) {
        let mut stdout = std::io::stdout();
        for chunk in bytes.chunks(CHUNK) {
            if self.gone {
                return;
            }
            let left = self.until.map_or(self.stalled_after, |until| until.saturating_duration_since(Instant::now()));
            self.gone = !room(&stdout, left.min(self.stalled_after)) || stdout.write_all(chunk).and_then(|()| stdout.flush()).is_err();
        }
    }

    /// Writes a line.
    pub fn line(&mut self, text: &str) {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(b'\n');
        self.write(&bytes);
    }
}

/// The same for what only knows writers.
impl Write for &mut Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Out::write(self, bytes);
        if self.gone { Err(std::io::ErrorKind::BrokenPipe.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Waits until there is room; false where there is none in time, or the other end is closed.
fn room(stdout: &std::io::Stdout, within: Duration) -> bool {
    let until = Instant::now() + within;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(stdout, PollFlags::OUT)];
        let wait = Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut fds, Some(&wait)) {
            Ok(0) => return false,
            Ok(_) => return !fds[0].revents().intersects(PollFlags::ERR | PollFlags::NVAL),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
