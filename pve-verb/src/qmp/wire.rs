//! Lines over a unix socket, with a deadline on everything and a cap on every line and on their sum.
//!
//! The peer may be hung, hostile, or both: it may drip a byte a second, send a gigabyte without a newline, or close half-way. This
//! file knows no protocol.

use crate::probe::Raw;
use crate::probe::wait::ready;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send, socket_with};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

/// The most that one connection may bring.
const TOTAL: usize = 32 * 1024 * 1024;

/// Why there is no connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoConnection {
    /// No such socket.
    NoSocket,
    /// Nobody listens on it any more.
    Refused,
    /// Its backlog is full. Such a connect leaves no entry in it.
    Busy,
    /// Something else.
    Other(String),
}

/// Why there is no line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoLine {
    /// Not in time.
    Timeout,
    /// The peer closed.
    Closed,
    /// Too long, or too much in all.
    TooMuch(String),
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: OwnedFd,
    buffer: Vec<u8>,
    searched: usize,
    total: usize,
    longest: usize,
}

impl Wire {
    /// Connects without ever blocking: a full backlog is an answer (EAGAIN), not something to wait for, since a client that waits and
    /// then gives up leaves a dead entry in it. `longest` is the longest line that is taken.
    #[allow(clippy::disallowed_methods, reason = "this file is the door")]
    pub(crate) fn connect(path: &Path, longest: usize) -> Result<Self, NoConnection> {
        let other = |e: Errno| NoConnection::Other(e.to_string());
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None).map_err(other)?;
        match connect(&socket, &SocketAddrUnix::new(path).map_err(other)?) {
            Ok(()) => Ok(Self { socket, buffer: Vec::new(), searched: 0, total: 0, longest }),
            Err(Errno::NOENT) => Err(NoConnection::NoSocket),
            Err(Errno::CONNREFUSED) => Err(NoConnection::Refused),
            Err(Errno::AGAIN) => Err(NoConnection::Busy),
            Err(e) => Err(other(e)),
        }
    }

    /// Sends everything, or not in time.
    pub(crate) fn send(&mut self, mut bytes: &[u8], until: Instant) -> Result<(), NoLine> {
        while !bytes.is_empty() {
            match send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(Errno::AGAIN) if !ready(self.socket.as_fd(), PollFlags::OUT, until).unwrap_or(false) => return Err(NoLine::Timeout),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return Err(NoLine::Closed),
            }
        }
        Ok(())
    }

    /// The next line, without its newline.
    pub(crate) fn line(&mut self, until: Instant) -> Result<Raw, NoLine> {
        loop {
            let fresh = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(at) = fresh.iter().position(|&b| b == b'\n') {
                let rest = self.buffer.split_off(self.searched + at + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                self.searched = 0;
                line.pop();
                return Ok(Raw::new(line));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > self.longest {
                return Err(NoLine::TooMuch(format!("a line of more than {} bytes", self.longest)));
            }
            self.fill(until)?;
        }
    }

    /// Whatever comes until then or until the cap, lines or not.
    pub(crate) fn listen(&mut self, until: Instant, most: usize) -> Raw {
        while self.buffer.len() < most && self.fill(until).is_ok() {}
        self.buffer.truncate(most);
        Raw::new(std::mem::take(&mut self.buffer))
    }

    fn fill(&mut self, until: Instant) -> Result<(), NoLine> {
        // Not only where nothing is there: a peer that never stops sending must not outrun the deadline either.
        if Instant::now() >= until || !ready(self.socket.as_fd(), PollFlags::IN, until).unwrap_or(false) {
            return Err(NoLine::Timeout);
        }
        let mut chunk = [0; 64 * 1024];
        match recv(&self.socket, &mut chunk, RecvFlags::empty()) {
            Ok((0, _)) => Err(NoLine::Closed),
            Ok((n, _)) => {
                self.total += n;
                if self.total > TOTAL {
                    return Err(NoLine::TooMuch(format!("more than {TOTAL} bytes in all")));
                }
                self.buffer.extend_from_slice(chunk.get(..n).unwrap_or_default());
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(_) => Err(NoLine::Closed),
        }
    }
}
