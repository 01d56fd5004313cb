//! A disk that is slow and never late: what it costs in all, and how much of that is one part of a request's.

use super::tests::{Host, kinds};
use super::*;
use crate::disk::Writer;
use crate::disk::tests::disk_at;
use crate::writer::{Root, serve};
use std::io::Read;

/// Begins each question late.
struct Slow<R>(R, Duration);

impl<R: Read> Read for Slow<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let got = self.0.read(into)?;
        if into.len() == 8 {
            std::thread::sleep(self.1);
        }
        Ok(got)
    }
}

fn slow_disk(host: &Host, after: Duration) -> Disk {
    let root = host.root.path().to_owned();
    Disk::with(Box::new(move || {
        let (child_in, to) = std::io::pipe()?;
        let (from, mut child_out) = std::io::pipe()?;
        let root = Root::at(root.clone());
        std::thread::spawn(move || serve(&root, &mut Slow(child_in, after), &mut child_out));
        Writer::new(to.into(), from.into(), None)
    }))
}

#[test]
fn a_disk_that_is_slow_each_time_uses_up_its_allowance_and_the_records_go_to_tmpfs() {
    const EACH: Duration = Duration::from_millis(200);
    let host = Host::new();
    host.log().put(Kind::Read, Map::new());
    let disk = slow_disk(&host, EACH);
    let mut log = host.log_with(disk.clone());
    disk.allow(Some(EACH * 5 / 2));
    let on_disk: Vec<bool> = (0..8).map(|_| log.append(Kind::Step, Map::new()).unwrap().degraded.is_none()).collect();
    // Two fit, whatever else the machine does; the third one's time is not there any more.
    assert!(on_disk.iter().filter(|on_disk| **on_disk).count() <= 2, "{on_disk:?}");
    assert!(disk.is_late());
    let began = Instant::now();
    assert!(log.contains(&Witness { seq: 1, head: Sha256Hex::zero() }, Duration::from_secs(60)).is_none());
    assert!(began.elapsed() < Duration::from_secs(30), "it is not asked again");
    // All is in the one chain, and the next call carries it.
    host.log().put(Kind::Outcome, Map::new());
    assert_eq!(kinds(&host.sound()), ["read", "step", "step", "step", "step", "step", "step", "step", "step", "outcome"]);
}

#[test]
fn what_waits_within_another_wait_is_counted_once_and_waiting_for_a_lock_counts_too() {
    let (host, allowed) = (Host::new(), Duration::from_secs(2));
    let disk = disk_at(host.root.path());
    disk.allow(Some(allowed));
    let nap = Duration::from_millis(100);
    let left = disk.waiting(Duration::from_secs(60), |until| {
        disk.waiting(Duration::from_secs(60), |inner| {
            assert_eq!(inner, until, "the allowance ends both");
            std::thread::sleep(nap);
        });
        until
    });
    let again = disk.waiting(Duration::from_secs(60), |until| until);
    assert!(again >= left, "it was counted twice");
    assert!(again <= Instant::now() + allowed - nap, "it was not counted");
    assert!(!disk.is_late());
    disk.allow(Some(Duration::ZERO));
    assert!(disk.is_late());
    assert!(disk.call(&Op::LogTail {}, &[], Duration::from_secs(60)).is_err());
    disk.allow(None);
    assert!(disk.call(&Op::LogTail {}, &[], Duration::from_secs(60)).is_ok());
}
