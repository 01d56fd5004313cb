//! The two pipes between a front and the worker that it started: the request goes in; where only the caller can keep the evidence, the
//! evidence comes out, and that the caller was sent it all and its acknowledgement go in. Everything else that a worker says is in its
//! spool, which outlives the front.
//!
//! The worker believes the front no more than the front believes the caller: each end parses what it gets. A front that dies closes
//! both pipes, and its worker has no caller any more.

use proto::{Ack, Event, Sha256Hex};
use rustix::event::PollFlags;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::time::{Duration, Instant};

use crate::probe::wait::ready;
use crate::{ack, deadline};

/// No request is longer, with who brought it.
const MOST_REQUEST: u32 = 64 * 1024;
/// No event is longer: one artifact in base64.
const MOST_EVENT: usize = 12 << 20;
/// From the front: the caller was sent all of it.
const SENT: u8 = b'\n';
/// Why a caller without a front keeps nothing.
const GONE: &str = "it is gone";

/// The front's end.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    to: File,
    from: File,
    pending: Vec<u8>,
    looked_at: usize,
}

impl Worker {
    /// The pipes of a child that was just started, and its request.
    ///
    /// # Errors
    /// Where the child has no pipes, or ended before it took its request.
    pub fn hand(mut child: Child, request: &[u8]) -> io::Result<Self> {
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("no pipes to the worker"));
        };
        let (mut to, from) = (File::from(OwnedFd::from(to)), File::from(OwnedFd::from(from)));
        let length =
            u32::try_from(request.len()).ok().filter(|n| *n <= MOST_REQUEST).ok_or_else(|| io::Error::other("too long a request"))?;
        to.write_all(&[&length.to_be_bytes(), request].concat())?;
        fcntl_setfl(&from, fcntl_getfl(&from)? | OFlags::NONBLOCK)?;
        // The child is not waited for: it outlives us, and init reaps it.
        Ok(Self { child, to, from, pending: Vec::new(), looked_at: 0 })
    }

    /// Its pid.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends a worker that did not come up. It is our own child and not reaped, so its pid can't be another's.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// Whether it has ended; given a second for it, as one that was killed in state D does not.
    pub fn has_ended(&mut self) -> bool {
        let until = Instant::now() + Duration::from_secs(1);
        loop {
            match self.child.try_wait() {
                Ok(Some(_)) => return true,
                Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
                _ => return false,
            }
        }
    }

    /// The next event that came through the pipe; none where none is whole yet. Never waits.
    pub fn next_event(&mut self) -> Option<Event> {
        let mut block = [0; 64 * 1024];
        loop {
            // Only what is new is looked at again and again: a line can have megabytes.
            if let Some(end) = self.pending.iter().skip(self.looked_at).position(|b| *b == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=self.looked_at + end).collect();
                self.looked_at = 0;
                return serde_json::from_slice(&line).ok();
            }
            self.looked_at = self.pending.len();
            match self.from.read(&mut block) {
                Ok(n) if n > 0 && self.pending.len() + n <= MOST_EVENT => self.pending.extend_from_slice(block.get(..n)?),
                _ => return None,
            }
        }
    }

    /// Says that the caller was sent all that it is offered: its time to acknowledge begins.
    pub fn all_is_sent(&mut self) {
        let _ = self.to.write_all(&[SENT]);
    }

    /// Passes the caller's acknowledgement on. A worker that is gone has no use for it.
    pub fn acknowledge(&mut self, said: &Ack) {
        let _ = self.to.write_all(said.to_string().as_bytes());
    }
}

/// The worker's end.
#[derive(Debug)]
pub struct Front {
    from: File,
    to: File,
}

impl Front {
    /// Standard input and output, and the request that came with them.
    ///
    /// # Errors
    /// Where it did not come whole.
    pub fn take() -> io::Result<(Self, Vec<u8>)> {
        let mut from = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let to = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length);
        if length > MOST_REQUEST {
            return Err(io::Error::other("too long a request"));
        }
        let mut request = vec![0; length as usize];
        from.read_exact(&mut request)?;
        Ok((Self { from, to }, request))
    }

    /// Sends these events through the pipe, waits until the caller was sent them all, by `sent`, and then for the acknowledgement of this
    /// manifest. Only the front can tell how far the caller is: what left this pipe may wait in its memory.
    ///
    /// # Errors
    /// Why there is none.
    pub fn offer(&mut self, events: impl Iterator<Item = Event>, manifest: &Sha256Hex, sent: Instant) -> Result<(), &'static str> {
        let flags = fcntl_getfl(&self.to).map_err(|_| GONE)?;
        fcntl_setfl(&self.to, flags | OFlags::NONBLOCK).map_err(|_| GONE)?;
        for event in events {
            let mut line = serde_json::to_vec(&event).map_err(|_| "an event has no JSON form")?;
            line.push(b'\n');
            let mut rest = line.as_slice();
            while !rest.is_empty() {
                match rustix::io::write(&self.to, rest) {
                    Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => in_time(&self.to, PollFlags::OUT, sent)?,
                    Err(_) => return Err(GONE),
                }
            }
        }
        in_time(&self.from, PollFlags::IN, sent)?;
        let mut said = [0];
        if !matches!(rustix::io::read(&self.from, &mut said), Ok(1)) || said != [SENT] {
            return Err(GONE);
        }
        ack::of(manifest, &self.from, Instant::now() + deadline::ACK)
    }
}

/// Waits until the front takes or says something.
fn in_time(pipe: &File, flags: PollFlags, until: Instant) -> Result<(), &'static str> {
    match ready(pipe.as_fd(), flags, until) {
        Ok(false) => Err("it was too slow to take it"),
        Ok(true) => Ok(()),
        Err(_) => Err(GONE),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proto::{Body, RequestId, Timestamp};
    use std::time::Duration;

    /// Both ends, as two processes have them.
    pub(crate) fn pipes() -> (Worker, Front) {
        let (a, b) = io::pipe().unwrap();
        let (c, d) = io::pipe().unwrap();
        let file = |end: OwnedFd| File::from(end);
        let child = std::process::Command::new("true").spawn().unwrap();
        let worker = Worker { child, to: file(b.into()), from: file(c.into()), pending: Vec::new(), looked_at: 0 };
        fcntl_setfl(&worker.from, fcntl_getfl(&worker.from).unwrap() | OFlags::NONBLOCK).unwrap();
        (worker, Front { from: file(a.into()), to: file(d.into()) })
    }

    pub(crate) fn event(data: String) -> Event {
        let artifact = proto::Artifact { path: "qmp/x.json".to_owned(), bytes: 1, sha256: Sha256Hex::zero(), data };
        Event::new(Timestamp::from_unix_ms(0), RequestId::from_random([1; 16]), Body::Artifact(artifact))
    }

    #[test]
    fn events_larger_than_the_pipe_come_whole_and_the_acknowledgement_goes_back() {
        let (mut worker, mut front) = pipes();
        let events = [event("a".repeat(3 << 20)), event(String::new()), event("b".repeat(70_000))];
        let sent = events.clone();
        let offering =
            std::thread::spawn(move || front.offer(sent.into_iter(), &Sha256Hex::zero(), Instant::now() + Duration::from_secs(20)));
        for wanted in events {
            let until = Instant::now() + Duration::from_secs(20);
            let got = loop {
                match worker.next_event() {
                    Some(got) => break got,
                    None => assert!(Instant::now() < until),
                }
            };
            assert!(got == wanted);
        }
        worker.all_is_sent();
        worker.acknowledge(&Ack(Sha256Hex::zero()));
        assert_eq!(offering.join().unwrap(), Ok(()));
    }

    #[test]
    fn a_front_that_is_gone_or_does_not_read_is_no_keeper() {
        let soon = || Instant::now() + Duration::from_millis(200);
        let (_worker, mut front) = pipes();
        assert_eq!(front.offer([event("a".repeat(1 << 20))].into_iter(), &Sha256Hex::zero(), soon()), Err("it was too slow to take it"));
        let small = || [event(String::new())].into_iter();
        let (mut worker, mut front) = pipes();
        assert_eq!(front.offer(small(), &Sha256Hex::zero(), soon()), Err("it was too slow to take it"), "the front has it, the caller not");
        worker.acknowledge(&Ack(Sha256Hex::zero()));
        assert_eq!(front.offer(small(), &Sha256Hex::zero(), soon()), Err("it is gone"), "it can't have been acknowledged yet");
        drop(worker);
        assert_eq!(front.offer(small(), &Sha256Hex::zero(), soon()), Err("it is gone"));
    }
}
