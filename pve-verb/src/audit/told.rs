//! Who answers is told once, and again when it is another.

use super::tests::{Host, fact, kinds};
use super::*;
use crate::disk::tests::{disk_at, hung_disk};

fn log(host: &Host, disk: Disk, version: &str) -> Log {
    host.log_with(disk).attesting(fact("binary", version))
}

#[test]
fn a_new_binary_is_told_once_before_its_first_record() {
    let host = Host::new();
    for version in ["1", "1", "2", "2", "1"] {
        log(&host, disk_at(host.root.path()), version).put(Kind::Read, Map::new());
    }
    let lines = host.sound();
    assert_eq!(kinds(&lines), ["start", "read", "read", "start", "read", "read", "start", "read"]);
    assert_eq!((lines[0]["binary"].as_str(), lines[3]["binary"].as_str()), (Some("1"), Some("2")));
    // After a restart nobody remembers what was told, so it is told again.
    host.restart();
    log(&host, disk_at(host.root.path()), "1").put(Kind::Read, Map::new());
    assert_eq!(kinds(&host.sound())[8..], ["start", "read"]);
}

#[test]
fn a_hung_disk_takes_it_later() {
    let host = Host::new();
    log(&host, disk_at(host.root.path()), "1").put(Kind::Read, Map::new());
    log(&host, hung_disk(), "2").append(Kind::Intent, Map::new()).unwrap();
    log(&host, disk_at(host.root.path()), "2").put(Kind::Outcome, Map::new());
    assert_eq!(kinds(&host.sound()), ["start", "read", "start", "intent", "outcome"]);
}

#[test]
fn many_at_once_tell_it_once() {
    let host = Host::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| log(&host, disk_at(host.root.path()), "1").put(Kind::Read, Map::new()));
        }
    });
    log(&host, disk_at(host.root.path()), "1").put(Kind::Read, Map::new());
    assert_eq!(kinds(&host.sound()).iter().filter(|k| **k == "start").count(), 1);
}
