//! Many records that the disk did not take, floods, refusals, a clock that goes back; and what journald gets of it all.

use super::ample::AMPLE;
use super::tests::{Host, fact, kinds};
use super::*;
use crate::disk::tests::{broken_disk, counted_hung_disk, disk_at, hung_disk};
use proto::Outcome;
use std::sync::atomic::Ordering;

#[test]
fn a_record_costs_the_same_however_many_the_disk_did_not_take() {
    let host = Host::new();
    host.log().put(Kind::Start, Map::new());
    let mut log = host.log_with(broken_disk());
    log.leave_on_tmpfs();
    // What this thread reads for one record, in bytes: a time would depend on what else the machine does.
    let read_so_far = || -> u64 {
        let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
        io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
    };
    let cost = |log: &mut Log| {
        let before = read_so_far();
        for _ in 0..15 {
            log.put(Kind::Intent, Map::new());
            assert!(log.unreviewed().is_some());
        }
        read_so_far() - before
    };
    let few = cost(&mut log);
    for _ in 0..3_000 {
        log.put(Kind::Step, fact("text", &"x".repeat(1000)));
    }
    let many = cost(&mut log);
    println!("15 records: {few} bytes read behind few, {many} behind 3,000 that the disk did not take");
    assert!(few > 0 && many < few + few / 10 + 1_000, "{few} bytes behind few, {many} behind many");
    assert_eq!(log.unreviewed(), Some(30));
    // Carrying is not what is measured here, and this may be a slow build on a busy machine.
    host.log().put(Kind::Outcome, Map::new());
    assert_eq!(host.sound().len(), 1 + 15 + 3_000 + 15 + 1);
}

#[test]
fn what_was_killed_before_it_was_tallied_is_counted_all_the_same() {
    let host = Host::new();
    host.log().put(Kind::Start, Map::new());
    let tally = host.run().join("audit-pending.json");
    let push = || host.log_with(broken_disk()).put(Kind::Intent, Map::new()).seq;
    push();
    let old = std::fs::read(&tally).unwrap();
    push();
    std::fs::write(&tally, &old).unwrap();
    assert_eq!((push(), host.log().unreviewed()), (4, Some(3)));
    std::fs::write(&tally, "rubbish").unwrap();
    assert_eq!(push(), 5);
    std::fs::remove_file(&tally).unwrap();
    assert_eq!((push(), host.log().unreviewed()), (6, Some(5)));
    host.log().put(Kind::Outcome, Map::new());
    assert_eq!(kinds(&host.sound()), ["start", "intent", "intent", "intent", "intent", "intent", "outcome"]);
}

#[test]
fn a_refusal_asks_no_disk_and_the_next_call_carries_its_record() {
    let host = Host::new();
    host.log().put(Kind::Start, Map::new());
    let (disk, asked) = counted_hung_disk();
    let mut log = host.log_with(disk);
    log.leave_on_tmpfs();
    let closed = Record::open("pve1").close(&mut log, Closing::Refused, Outcome::RefusedRequest, Map::new());
    assert_eq!((closed.position.map(|p| p.seq), asked.load(Ordering::SeqCst)), (Some(2), 0));
    assert!(closed.degraded[0].contains("the audit record 2 is on tmpfs only"), "{:?}", closed.degraded);
    let told = host.log().end(Kind::Read, &Map::new(), AMPLE).unwrap();
    assert!(matches!(&told, Ended::Recorded(position) if position.degraded.is_none()), "{told:?}");
    assert_eq!(kinds(&host.sound()), ["start", "refused", "read"]);
}

#[test]
fn a_flood_while_the_disk_is_away_is_summarised_and_costs_no_mutation_its_intent() {
    let host = Host::new();
    host.log().put(Kind::Start, Map::new());
    let close = |log: &mut Log, how, outcome| Record::open("pve1").close(log, how, outcome, fact("key_name", "agent"));
    let mut log = host.log_with(broken_disk());
    for _ in 0..6 {
        log.put(Kind::Step, fact("text", &"x".repeat(1 << 20)));
    }
    let before = host.overflow().len();
    let mut refuses = host.log_with(broken_disk());
    refuses.leave_on_tmpfs();
    for n in 0..50 {
        let closed = match n % 10 {
            0 => close(&mut log, Closing::Read, Outcome::Done),
            _ => close(&mut refuses, Closing::Refused, Outcome::RefusedPolicy),
        };
        assert!(closed.position.is_none() && closed.degraded[0].contains("counted for the next summary"), "{:?}", closed.degraded);
    }
    assert_eq!(host.overflow().len(), before, "reads fill /run");
    assert!(log.append(Kind::Intent, Map::new()).is_ok());
    assert!(close(&mut log, Closing::Outcome, Outcome::Done).position.is_some(), "an outcome is never counted");
    // A minute later, whoever comes tells it.
    let floods = host.run().join("audit-floods.json");
    let mut kept: Value = serde_json::from_slice(&std::fs::read(&floods).unwrap()).unwrap();
    for flood in kept.as_object_mut().unwrap().values_mut() {
        flood["told_ms"] = json!(0);
    }
    std::fs::write(&floods, kept.to_string()).unwrap();
    let told = host.log().end(Kind::Read, &fact("key_name", "agent"), AMPLE).unwrap();
    assert!(matches!(told, Ended::Recorded(_)), "the disk is back, so there is room: {told:?}");
    let lines = host.sound();
    assert_eq!(kinds(&lines)[7..], ["intent", "outcome", "summary", "summary", "read"]);
    let told: Vec<_> = lines[9..11].iter().map(|l| (l["of"].clone(), l["count"].clone(), l["key_name"].clone())).collect();
    assert_eq!(told, [(json!("read"), json!(5), json!("agent")), (json!("refused"), json!(45), json!("agent"))]);
}

#[test]
fn a_clock_that_went_back_is_in_the_record_and_in_the_receipt() {
    let host = Host::new();
    host.log().put(Kind::Start, Map::new());
    let (tail, hour) = (host.run().join("audit-tail.json"), 3_600_000);
    let mut known: Value = serde_json::from_slice(&std::fs::read(&tail).unwrap()).unwrap();
    known["newest"] = json!(Timestamp::from_unix_ms(host::now().unix_ms() + hour));
    std::fs::write(&tail, known.to_string()).unwrap();
    let closed = Record::open("pve1").close(&mut host.log(), Closing::Outcome, Outcome::Done, Map::new());
    // A busy machine may take the second that the disk has: then the next call carries it.
    let said: Vec<_> = closed.degraded.iter().filter(|why| !why.contains("is on tmpfs only")).collect();
    assert!(said.len() == 1 && said[0].contains("s behind the newest audit record"), "{:?}", closed.degraded);
    host.log().put(Kind::Read, Map::new());
    let behind = host.sound()[1]["clock_behind_ms"].as_u64().unwrap();
    assert!(behind > hour - 60_000 && behind <= hour, "{behind}");
}

#[test]
fn journald_gets_every_record_with_all_its_fields_and_none_of_its_own() {
    let host = Host::new();
    let socket = host.root.path().join("journal");
    let journal = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    let leaked: &'static str = Box::leak(socket.to_str().unwrap().to_owned().into_boxed_str());
    let open = |disk| Log::open_at(&host.run(), disk, Some(host.signer.clone()), 1 << 30, Some(leaked));
    open(disk_at(host.root.path())).put(Kind::Intent, fact("_UID", "0"));
    host.restart();
    // Nobody knows where the log ends: the provisional chain is told too.
    open(hung_disk()).append(Kind::Step, fact("reason", "a\n_UID=0")).unwrap();
    let written = [host.on_disk(), host.overflow()].concat();
    let lines: Vec<&[u8]> = written.split(|b| *b == b'\n').filter(|l| !l.is_empty()).collect();
    assert_eq!(lines.len(), 3);
    journal.set_nonblocking(true).unwrap();
    for line in lines {
        let mut buffer = vec![0; 1 << 16];
        let n = journal.recv(&mut buffer).unwrap();
        let mut rest = &buffer[..n];
        let mut fields = std::collections::BTreeMap::new();
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let name = String::from_utf8(rest[..end].to_vec()).unwrap();
            let length = u64::from_le_bytes(rest[end + 1..end + 9].try_into().unwrap()) as usize;
            let value = rest[end + 9..end + 9 + length].to_vec();
            assert_eq!(rest[end + 9 + length], b'\n');
            // What begins so is journald's own word (_UID, _PID), by the kernel's; a sender's would be dropped, with all of the record.
            assert!(!name.starts_with('_') && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_'), "{name}");
            fields.insert(name, value);
            rest = &rest[end + 10 + length..];
        }
        assert_eq!(fields["MESSAGE"], line);
        let record: Value = serde_json::from_slice(line).unwrap();
        for (name, value) in record.as_object().unwrap().iter().filter(|(name, _)| *name != "_UID") {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            assert_eq!(fields[&format!("PVE_VERB_{}", name.to_uppercase())], text.as_bytes(), "{name}");
        }
    }
    assert!(journal.recv(&mut [0; 10]).is_err(), "more than was recorded");
}
