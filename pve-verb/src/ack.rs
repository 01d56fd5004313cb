//! The caller's word that it keeps a bundle which no rung of the host's could take: `ack MANIFEST_SHA256` on stdin, and nothing else.
//!
//! Exactly that line's bytes are read, and only while a bundle is offered; nobody else ever reads a caller's stdin.

use proto::{Ack, Sha256Hex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::time::Instant;

/// Reads one acknowledgement.
///
/// # Errors
/// Why there is none, fit to stand in a sentence.
pub fn read(from: impl AsFd, until: Instant) -> Result<Ack, &'static str> {
    let mut line = [0; Ack::BYTES];
    let mut got = 0;
    while got < line.len() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("it said nothing in time");
        }
        let wait = Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::from_borrowed_fd(from.as_fd(), PollFlags::IN)], Some(&wait)) {
            Ok(0) => return Err("it said nothing in time"),
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return Err("its input can't be waited for"),
        }
        let room = line.get_mut(got..).unwrap_or_default();
        match rustix::io::read(&from, room) {
            Ok(0) => return Err("its input ended"),
            Ok(n) => got += n,
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => return Err("its input can't be read"),
        }
        if line.get(..got).is_some_and(|said| said.contains(&b'\n') && got < Ack::BYTES) {
            break;
        }
    }
    line.get(..got).and_then(Ack::parse).ok_or("what it said is no acknowledgement")
}

/// Waits for the acknowledgement of this very bundle.
///
/// # Errors
/// As [`read`]; and where it is another one's.
pub fn of(manifest: &Sha256Hex, from: impl AsFd, until: Instant) -> Result<(), &'static str> {
    let Ack(said) = read(from, until)?;
    if said == *manifest { Ok(()) } else { Err("it acknowledged another manifest") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Duration;

    fn told(parts: &[&[u8]], close: bool) -> Result<(), &'static str> {
        told_within(Duration::from_secs(20), parts, close)
    }

    fn told_within(time: Duration, parts: &[&[u8]], close: bool) -> Result<(), &'static str> {
        let (from, mut to) = std::io::pipe().unwrap();
        let parts: Vec<Vec<u8>> = parts.iter().map(|p| p.to_vec()).collect();
        let (over, open) = std::sync::mpsc::channel::<()>();
        let writer = std::thread::spawn(move || {
            for part in parts {
                // Who reads may have given up by now.
                let _ = to.write_all(&part);
                std::thread::sleep(Duration::from_millis(20));
            }
            if !close {
                let _ = open.recv();
            }
        });
        let end = of(&Sha256Hex::zero(), from, Instant::now() + time);
        drop(over);
        writer.join().unwrap();
        end
    }

    #[test]
    fn only_the_one_line_for_the_one_bundle_is_an_acknowledgement() {
        let good = format!("ack {}\n", Sha256Hex::zero());
        let (a, b) = good.as_bytes().split_at(30);
        assert_eq!(told(&[a, b], false), Ok(()));
        assert_eq!(told(&[format!("ack {}\n", "1".repeat(64)).as_bytes()], false), Err("it acknowledged another manifest"));
        assert_eq!(told(&[b"ack\n"], false), Err("what it said is no acknowledgement"));
        assert_eq!(told(&[&[b'a'; 200]], false), Err("what it said is no acknowledgement"));
        assert_eq!(told(&[a], true), Err("its input ended"));
        assert_eq!(told_within(Duration::from_millis(300), &[a], false), Err("it said nothing in time"));
    }

    #[test]
    fn not_one_byte_more_than_the_line_is_read() {
        let (mut from, mut to) = std::io::pipe().unwrap();
        to.write_all(format!("ack {}\nmore", Sha256Hex::zero()).as_bytes()).unwrap();
        drop(to);
        assert_eq!(of(&Sha256Hex::zero(), &from, Instant::now() + Duration::from_secs(5)), Ok(()));
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut from, &mut rest).unwrap();
        assert_eq!(rest, "more");
    }
}
