//! The newest intent, and what became of it: known whatever the disk does, and after a boot from what the disk has.

use super::ample::AMPLE;
use super::tests::{Host, kinds};
use super::*;
use crate::disk::tests::{broken_disk, hung_disk};
use crate::operation::{End, Operation};
use proto::RequestId;

fn operation(n: u8) -> Operation {
    Operation {
        request_id: RequestId::from_random([n; 16]),
        verb: proto::Verb::Cycle,
        vmid: proto::Vmid::DEVVM,
        key_name: "anna".parse().unwrap(),
        boot_id: "b".to_owned(),
        pid: 1,
        started: Some(2),
        at: Timestamp::from_unix_ms(0),
        bundle: None,
        step: None,
        qemu_before: None,
        deadline_boot_ms: 3,
    }
}

fn facts(n: u8) -> Map<String, Value> {
    let operation = operation(n);
    [("request_id".to_owned(), json!(operation.request_id)), ("operation".to_owned(), json!(operation))].into_iter().collect()
}

fn last(log: &mut Log, within: Duration) -> Option<(Operation, Option<End>)> {
    log.last_intent(within).map(|last| (last.operation, last.end))
}

#[test]
fn the_newest_intent_is_known_from_tmpfs_from_the_disk_and_from_both() {
    let host = Host::new();
    assert_eq!(last(&mut host.log(), AMPLE), None);
    // On disk; then its end on tmpfs only; then carried.
    host.log().put(Kind::Intent, facts(1));
    assert_eq!(last(&mut host.log(), Duration::ZERO), Some((operation(1), None)));
    host.log_with(broken_disk()).put(Kind::Outcome, facts(1));
    assert_eq!(last(&mut host.log(), Duration::ZERO), Some((operation(1), Some(End::Outcome))));
    host.log_with(hung_disk()).append_within(Kind::Intent, facts(2), Duration::from_millis(100)).unwrap();
    assert_eq!(last(&mut host.log_with(hung_disk()), Duration::ZERO), Some((operation(2), None)));
    host.log().put(Kind::Read, Map::new());
    assert_eq!(host.overflow(), b"");
    assert_eq!(last(&mut host.log(), Duration::ZERO), Some((operation(2), None)));
    // After a boot the disk knows; without any time it is not asked.
    host.restart();
    assert_eq!(last(&mut host.log(), Duration::ZERO), None);
    assert_eq!(last(&mut host.log(), AMPLE), Some((operation(2), None)));
    host.log().put(Kind::Interrupted, facts(2));
    assert_eq!(last(&mut host.log(), Duration::ZERO), Some((operation(2), Some(End::Interrupted))));
    host.restart();
    assert_eq!(last(&mut host.log(), AMPLE), Some((operation(2), Some(End::Interrupted))));
}

#[test]
fn a_lost_tally_is_counted_again_from_what_the_disk_has() {
    let host = Host::new();
    host.log().put(Kind::Intent, facts(1));
    host.log_with(broken_disk()).put(Kind::Step, facts(1));
    std::fs::remove_file(host.run().join("audit-pending.json")).unwrap();
    assert_eq!(last(&mut host.log(), Duration::ZERO), Some((operation(1), None)));
    host.log_with(broken_disk()).put(Kind::Outcome, facts(1));
    std::fs::remove_file(host.run().join("audit-pending.json")).unwrap();
    assert_eq!(last(&mut host.log(), Duration::ZERO), Some((operation(1), Some(End::Outcome))));
}

#[test]
fn an_intent_that_a_repair_record_took_in_is_still_known() {
    let host = Host::new();
    host.log().put(Kind::Intent, facts(1));
    host.restart();
    host.log_with(hung_disk()).append_within(Kind::Intent, facts(2), Duration::from_millis(100)).unwrap();
    let open = |log: &mut Log| -> Vec<Operation> { log.last_intent(AMPLE).iter().flat_map(|last| last.open().cloned()).collect() };
    host.log().put(Kind::Read, Map::new());
    assert_eq!(kinds(&host.sound())[1..], ["repair", "repair", "read"]);
    assert_eq!(open(&mut host.log()), [operation(1), operation(2)]);
    host.restart();
    assert_eq!(open(&mut host.log()), [operation(1), operation(2)], "after a boot as well");
}
