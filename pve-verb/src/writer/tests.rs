//! The writer child: its few operations, and the names and folders that it refuses.

use super::*;
use crate::host::path;
use std::os::unix::fs::PermissionsExt;

mod hostile;

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }
    fn root(&self) -> Root {
        Root::at(self.folder.path().to_owned())
    }
    fn path(&self, constant: &str) -> PathBuf {
        self.root().path(constant)
    }
    fn does(&self, op: Op, payload: &[u8]) -> Reply {
        self.root().perform(op, payload)
    }
    fn append(&self, segment: u64, at: u64, torn: u64, payload: &[u8]) -> Reply {
        self.does(Op::LogAppend { segment, at, torn, head: "{}".to_owned() }, payload)
    }
    fn tail(&self) -> Tail {
        match self.does(Op::LogTail {}, &[]) {
            Reply::Tail { tail: Some(tail), .. } => *tail,
            other => panic!("{other:?}"),
        }
    }
}

const VMID: Vmid = Vmid::DEVVM;

fn bundle() -> BundleName {
    "20261121T003000.123Z-cycle-1f0c9a2e".parse().unwrap()
}

fn failed(reply: &Reply, word: &str) -> bool {
    matches!(reply, Reply::Failed { why } if why.contains(word))
}

#[test]
fn a_late_writer_cannot_write_a_line_twice() {
    let place = Place::new();
    let line = b"{\"seq\":1,\"kind\":\"read\"}\n";
    assert_eq!(place.append(1, 0, 0, line), Reply::Done {});
    assert_eq!(place.append(1, 0, 0, line), Reply::Mismatch { length: line.len() as u64 });
    assert_eq!(std::fs::read(place.path(path::LOG).join("audit-00000000000000000001.jsonl")).unwrap(), line);
}

#[test]
fn the_tail_is_the_last_whole_line_and_the_torn_bytes_behind_it_are_replaced() {
    let place = Place::new();
    assert_eq!(place.does(Op::LogTail {}, &[]), Reply::Tail { tail: None, head: None });
    place.append(1, 0, 0, b"{\"seq\":1,\"kind\":\"intent\"}\n{\"seq\":2,\"kind\":\"intent\"}\n");
    let file = place.path(path::LOG).join("audit-00000000000000000001.jsonl");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, [whole.as_slice(), b"{\"seq\":3,\"ki"].concat()).unwrap();
    let tail = place.tail();
    assert_eq!((tail.segment, tail.length, tail.torn, tail.seq, tail.unreviewed), (1, whole.len() as u64, 12, 2, Some(2)));
    assert_eq!((tail.hash, tail.torn_text.as_str()), (log::hash(b"{\"seq\":2,\"kind\":\"intent\"}"), "{\"seq\":3,\"ki"));
    assert_eq!(place.append(1, tail.length, 12, b"{\"seq\":3,\"kind\":\"review\"}\n"), Reply::Done {});
    assert_eq!((place.tail().seq, place.tail().torn, place.tail().unreviewed), (3, 0, Some(0)));
}

#[test]
fn the_tail_knows_the_newest_intent_across_segments_and_reviews_and_what_became_of_it() {
    let place = Place::new();
    let id = |n: u8| RequestId::from_random([n; 16]);
    let operation = |n: u8| {
        serde_json::json!({
            "request_id": id(n), "verb": "cycle", "vmid": 102, "key_name": "anna", "boot_id": "b", "pid": 1, "started": 2,
            "at": "2026-11-21T00:30:00.000Z", "bundle": null, "deadline_boot_ms": 3,
        })
    };
    let line = |seq: u64, kind: &str, n: u8| {
        format!("{{\"seq\":{seq},\"kind\":\"{kind}\",\"request_id\":\"{}\",\"operation\":{}}}\n", id(n), operation(n))
    };
    let seen = || place.tail().intent.map(|last| (last.operation.request_id, last.end));
    let mut ends = 0;
    let mut add = |segment, text: String| {
        place.append(segment, ends, 0, text.as_bytes());
        ends += text.len() as u64;
    };
    add(1, line(1, "intent", 1) + &line(2, "outcome", 1) + &line(3, "intent", 2));
    assert_eq!(seen(), Some((id(2), None)));
    add(1, "{\"seq\":4,\"kind\":\"review\"}\n".to_owned());
    assert_eq!((seen(), place.tail().unreviewed), (Some((id(2), None)), Some(0)));
    place.append(5, 0, 0, (line(5, "outcome", 1) + "{\"seq\":6,\"kind\":\"read\"}\n").as_bytes());
    assert_eq!((seen(), place.tail().unreviewed), (Some((id(2), None)), Some(0)), "another request's end");
    place.append(7, 0, 0, (line(7, "outcome", 2) + &line(8, "interrupted", 2)).as_bytes());
    assert_eq!(seen(), Some((id(2), Some(crate::operation::End::Interrupted))), "the newest end counts");
}

#[test]
fn a_segment_with_nothing_but_a_torn_line_continues_the_one_before() {
    let place = Place::new();
    place.append(1, 0, 0, b"{\"seq\":1,\"kind\":\"read\"}\n");
    std::fs::write(place.path(path::LOG).join("audit-00000000000000000002.jsonl"), "{\"se").unwrap();
    std::fs::write(place.path(path::LOG).join("audit-00000000000000000003.jsonl"), "").unwrap();
    let tail = place.tail();
    assert_eq!((tail.segment, tail.length, tail.torn, tail.seq), (2, 0, 4, 1));
    assert_eq!(tail.hash, log::hash(b"{\"seq\":1,\"kind\":\"read\"}"));
}

#[test]
fn lines_that_are_no_records_do_not_stop_the_log() {
    let place = Place::new();
    place.append(1, 0, 0, b"{\"seq\":7,\"kind\":\"read\"}\nrubbish\n");
    let tail = place.tail();
    assert_eq!((tail.seq, tail.hash), (8, log::hash(b"rubbish")));
    assert!(tail.damaged.is_some());
}

#[test]
fn a_witness_is_looked_up_by_number_and_hash() {
    let place = Place::new();
    let line = b"{\"seq\":5,\"kind\":\"read\"}";
    place.append(5, 0, 0, &[line.as_slice(), b"\n"].concat());
    let asks = |seq, hash| place.does(Op::LogContains { seq, hash }, &[]);
    assert_eq!(asks(5, log::hash(line)), Reply::Contains { found: Some(true) });
    assert_eq!(asks(5, log::hash(b"other")), Reply::Contains { found: Some(false) });
    assert_eq!(asks(6, log::hash(line)), Reply::Contains { found: Some(false) });
    assert_eq!(asks(4, log::hash(line)), Reply::Contains { found: None }, "pruned");
    let kept = br#"{"seq":2,"kind":"repair","line":"{\"seq\":1,}"}"#;
    place.append(7, 0, 0, &[kept.as_slice(), b"\n"].concat());
    assert_eq!(asks(1, log::hash(br#"{"seq":1,}"#)), Reply::Contains { found: Some(true) }, "taken in, whatever was pruned");
}

#[test]
fn the_oldest_segment_goes_and_the_newest_never() {
    let place = Place::new();
    place.append(1, 0, 0, b"{\"seq\":1,\"kind\":\"read\"}\n");
    place.append(2, 0, 0, b"{\"seq\":2,\"kind\":\"read\"}\n");
    let Reply::Oldest { oldest: Some(oldest) } = place.does(Op::LogOldest { keep_bytes: 30 }, &[]) else { panic!() };
    assert_eq!((oldest.segment, oldest.last_seq), (1, 1));
    assert_eq!(place.does(Op::LogOldest { keep_bytes: 3000 }, &[]), Reply::Oldest { oldest: None });
    assert_eq!(place.does(Op::LogDrop { segment: 1 }, &[]), Reply::Done {});
    assert!(failed(&place.does(Op::LogDrop { segment: 2 }, &[]), "newest"));
    assert_eq!(place.does(Op::LogOldest { keep_bytes: 0 }, &[]), Reply::Oldest { oldest: None });
}

fn seal(place: &Place) -> PathBuf {
    let from = place.path(path::RUN_EVIDENCE).join("102").join(bundle().as_str());
    std::fs::create_dir_all(from.join("qmp")).unwrap();
    std::fs::write(from.join("qmp/greeting.json"), "{}").unwrap();
    std::fs::write(from.join("manifest.json"), "[]").unwrap();
    from
}

#[test]
fn a_bundle_is_carried_once_and_a_leftover_partial_is_replaced() {
    let place = Place::new();
    seal(&place);
    let to = place.path(path::EVIDENCE).join("102").join(bundle().as_str());
    std::fs::create_dir_all(to.with_file_name(format!("{}.partial", bundle())).join("old")).unwrap();
    for _ in 0..2 {
        assert_eq!(place.does(Op::CarryBundle { vmid: VMID, name: bundle() }, &[]), Reply::Done {});
    }
    assert_eq!(std::fs::read_to_string(to.join("qmp/greeting.json")).unwrap(), "{}");
    assert!(!to.join("old").exists() && !to.with_file_name(format!("{}.partial", bundle())).exists());
    assert_eq!(std::fs::metadata(to.join("manifest.json")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(place.does(Op::BundleList { vmid: VMID }, &[]), Reply::Bundles { names: vec![bundle()] });
    let read = |path: &str| place.does(Op::BundleRead { vmid: VMID, name: bundle(), path: path.to_owned().try_into().unwrap() }, &[]);
    assert_eq!(read("manifest.json"), Reply::Bytes { bytes: b"[]".to_vec() });
    assert_eq!(read("qmp/none.json"), Reply::Absent {});
}

#[test]
fn two_that_carry_the_same_bundle_at_once_leave_it_whole() {
    let place = Place::new();
    let from = seal(&place);
    for n in 0..200 {
        std::fs::write(from.join(format!("qmp/{n}.json")), "{}").unwrap();
    }
    let to = place.path(path::EVIDENCE).join("102").join(bundle().as_str());
    for _ in 0..5 {
        let _ = std::fs::remove_dir_all(&to);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    // Who waited longer than it may says so, and the next call carries it.
                    let carry = || format!("{:?}", place.does(Op::CarryBundle { vmid: VMID, name: bundle() }, &[]));
                    assert_eq!(std::iter::repeat_with(carry).find(|said| !said.contains("busy: ")).unwrap(), "Done");
                });
            }
        });
        assert_eq!(std::fs::read_dir(to.join("qmp")).unwrap().count(), 201);
    }
}

#[test]
fn a_busy_shelf_is_said_to_be_busy_and_is_no_hung_disk() {
    let place = Place::new();
    seal(&place);
    std::fs::create_dir_all(place.path(path::RUN)).unwrap();
    let _held = durable::lock(&place.path(path::RUN).join("shelf.lock"), std::time::Duration::ZERO).unwrap();
    let disk = crate::disk::tests::disk_at(place.folder.path());
    let carried = disk.call(&Op::CarryBundle { vmid: VMID, name: bundle() }, &[], crate::deadline::CARRY * 4);
    assert!(matches!(&carried, Err(crate::disk::DiskError::Failed(why)) if why.contains("busy")), "{carried:?}");
    assert!(!disk.is_late(), "somebody else's copying was taken for a dead disk");
    assert_eq!(
        disk.call(&Op::OperationSet { id: RequestId::from_random([1; 16]) }, b"x", std::time::Duration::from_secs(20)),
        Ok(Reply::Done {})
    );
}

#[test]
fn while_an_abandoned_append_may_still_land_nobody_else_appends() {
    let place = Place::new();
    place.append(1, 0, 0, b"{\"seq\":1,\"kind\":\"read\"}\n");
    let held = durable::lock(&place.path(path::RUN).join("append.lock"), std::time::Duration::ZERO).unwrap();
    assert!(failed(&place.append(1, 24, 0, b"x\n"), "busy"));
    drop(held);
    assert_eq!(place.append(1, 24, 0, b"{\"seq\":2,\"kind\":\"read\"}\n"), Reply::Done {});
    // A thread can't be killed: it is told, and then changes nothing more.
    let gone = place.root();
    gone.abandoned.store(true, Ordering::SeqCst);
    let op = Op::LogAppend { segment: 1, at: 48, torn: 0, head: "{}".to_owned() };
    assert!(failed(&gone.perform(op, b"{\"seq\":3,\"kind\":\"read\"}\n"), "nobody waits"));
    assert_eq!(place.tail().seq, 2);
}

#[test]
fn what_another_writer_left_half_written_is_not_in_the_way() {
    let place = Place::new();
    let folder = place.path(path::LOG);
    std::fs::create_dir_all(folder.join("head.json.new")).unwrap();
    // Larger than any pid.
    std::fs::write(folder.join("head.json.new.4999999.0"), "half").unwrap();
    assert_eq!(place.append(1, 0, 0, b"{\"seq\":1,\"kind\":\"read\"}\n"), Reply::Done {});
    assert_eq!(std::fs::read(folder.join("head.json")).unwrap(), b"{}");
    place.does(Op::RequestStore { id: RequestId::from_random([1; 16]) }, b"x");
    assert_eq!(place.does(Op::RequestsPrune { keep: 9 }, &[]), Reply::Done {});
    assert!(!folder.join("head.json.new.4999999.0").exists());
}

#[test]
fn a_carrier_that_fails_leaves_nothing_and_what_killed_ones_left_goes() {
    let place = Place::new();
    let from = seal(&place);
    std::os::unix::fs::symlink("/etc/shadow", from.join("qmp/x.json")).unwrap();
    let shelf = place.path(path::EVIDENCE).join("102");
    let left = shelf.join("20261121T003000.124Z-cycle-1f0c9a2e.partial");
    std::fs::create_dir_all(left.join("qmp")).unwrap();
    std::fs::File::open(&left).unwrap().set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(3600)).unwrap();
    assert!(failed(&place.does(Op::CarryBundle { vmid: VMID, name: bundle() }, &[]), "does not belong"));
    assert_eq!(std::fs::read_dir(&shelf).unwrap().count(), 0);
}

#[test]
fn a_link_in_a_bundle_is_not_followed() {
    let place = Place::new();
    let from = seal(&place);
    std::os::unix::fs::symlink("/etc/shadow", from.join("qmp/x.json")).unwrap();
    assert!(failed(&place.does(Op::CarryBundle { vmid: VMID, name: bundle() }, &[]), "does not belong"));
    assert!(!place.path(path::EVIDENCE).join("102").join(bundle().as_str()).exists());
}

#[test]
fn a_bundle_is_built_on_disk_file_by_file_and_a_half_of_one_is_taken_away() {
    let place = Place::new();
    let put = |path: &str, bytes: &[u8]| {
        place.does(Op::BundlePut { vmid: VMID, name: bundle(), path: path.to_owned().try_into().unwrap() }, bytes)
    };
    assert_eq!(put("qmp/greeting.json", b"{}"), Reply::Done {});
    assert_eq!(put("manifest.json", b"[]"), Reply::Done {});
    assert!(matches!(put("manifest.json", b"[1]"), Reply::Failed { .. }), "never written twice");
    assert_eq!(place.does(Op::BundleList { vmid: VMID }, &[]), Reply::Bundles { names: vec![] });
    let sealed = || place.does(Op::BundleSeal { vmid: VMID, name: bundle() }, &[]);
    assert_eq!(sealed(), Reply::Done {});
    assert_eq!(place.does(Op::BundleList { vmid: VMID }, &[]), Reply::Bundles { names: vec![bundle()] });
    assert!(matches!(sealed(), Reply::Failed { .. }), "there is nothing to seal");
    put("manifest.json", b"[]");
    for _ in 0..2 {
        assert_eq!(place.does(Op::BundleAbandon { vmid: VMID, name: bundle() }, &[]), Reply::Done {});
    }
    let shelf = place.path(path::EVIDENCE).join("102");
    assert_eq!(std::fs::read_dir(&shelf).unwrap().count(), 1, "the whole one stays");
}

fn named(n: u32) -> BundleName {
    // Later ones have earlier times: the names' order is not the shelf's.
    format!("202611{:02}T003000.123Z-forensics-{n:08x}", 28 - n).parse().unwrap()
}

#[test]
fn the_shelf_is_in_the_order_of_the_log_and_grows_older_by_the_hosts_uptime() {
    let place = Place::new();
    let shelf = place.path(path::EVIDENCE).join("102");
    let shelve = |seq: u64, own: Option<u32>, boot: &str, boot_ms: u64| {
        let now = Uptime { boot_id: boot.to_owned(), boot_ms };
        match place.does(Op::Shelve { vmid: VMID, seq, own: own.map(named), idle: false, now }, &[]) {
            Reply::Shelf { bundles } => bundles.into_iter().map(|b| (b.name, b.seq, b.bytes, b.aged_ms)).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        }
    };
    let make = |n: u32| {
        std::fs::create_dir_all(shelf.join(named(n).as_str()).join("qmp")).unwrap();
        std::fs::write(shelf.join(named(n).as_str()).join("qmp/x.json"), vec![b' '; n as usize]).unwrap();
    };
    make(1);
    assert_eq!(shelve(10, Some(1), "a", 5_000), [(named(1), 10, 1, 0)]);
    make(3);
    make(2);
    // A request that was killed left number 3; 2 is of the call that notices it.
    assert_eq!(shelve(20, Some(2), "a", 6_000), [(named(1), 10, 1, 1_000), (named(3), 20, 3, 0), (named(2), 20, 2, 0)]);
    // After a boot only what is certain counts; a clock of another boot is never subtracted.
    assert_eq!(shelve(30, None, "b", 400), [(named(1), 10, 1, 1_400), (named(3), 20, 3, 400), (named(2), 20, 2, 400)]);
    assert_eq!(shelve(30, None, "b", 300)[0].3, 1_400, "never younger");
    let drops = |n: u32| place.does(Op::BundleDrop { vmid: VMID, name: named(n) }, &[]);
    assert!(failed(&drops(2), "newest") && failed(&drops(9), "index"));
    assert_eq!(drops(1), Reply::Done {});
    // Killed in the middle of a drop: renamed, and half of it gone. It is no bundle, and the next call ends it.
    std::fs::rename(shelf.join(named(3).as_str()), shelf.join(format!("{}.dropped", named(3)))).unwrap();
    assert_eq!(place.does(Op::BundleList { vmid: VMID }, &[]), Reply::Bundles { names: vec![named(2)] });
    assert_eq!(shelve(31, None, "b", 300), [(named(2), 20, 2, 400)]);
    assert!(!shelf.join(format!("{}.dropped", named(3))).exists());
    // An index that was spoiled: everything is as young as its first sight.
    std::fs::write(shelf.join(INDEX), "rubbish").unwrap();
    assert_eq!(shelve(40, None, "b", 500), [(named(2), 40, 2, 0)]);
}

#[test]
fn the_newest_review_is_found() {
    let place = Place::new();
    let reviewed = || place.does(Op::LogReviewed {}, &[]);
    assert_eq!(reviewed(), Reply::Reviewed { seq: None });
    place.append(1, 0, 0, b"{\"seq\":1,\"kind\":\"review\"}\n{\"seq\":2,\"kind\":\"review\"}\n");
    place.append(3, 0, 0, b"{\"seq\":3,\"kind\":\"read\",\"note\":\"\\\"kind\\\":\\\"review\\\"\"}\n");
    assert_eq!(reviewed(), Reply::Reviewed { seq: Some(2) });
}

#[test]
fn a_grant_is_spent_once() {
    let place = Place::new();
    let nonce: Nonce = "n-1".to_owned().try_into().unwrap();
    let id = RequestId::from_random([1; 16]);
    let note = format!("{{\"request_id\":\"{id}\"}}");
    assert_eq!(place.does(Op::GrantSpend { nonce: nonce.clone() }, note.as_bytes()), Reply::Done {});
    assert_eq!(place.does(Op::GrantSpend { nonce: nonce.clone() }, b"other"), Reply::Spent { by: Some(id) });
    // Killed between making the file and filling it.
    std::fs::write(place.path(path::GRANTS).join("n-1"), "").unwrap();
    assert_eq!(place.does(Op::GrantSpend { nonce }, &[]), Reply::Spent { by: None });
}

#[test]
fn requests_and_the_operation_are_kept_replaced_and_pruned() {
    let place = Place::new();
    let ids: Vec<_> = (0..3).map(|n| RequestId::from_random([n; 16])).collect();
    for id in &ids {
        assert_eq!(place.does(Op::RequestStore { id: id.clone() }, id.as_str().as_bytes()), Reply::Done {});
        std::thread::sleep(std::time::Duration::from_millis(15));
    }
    assert_eq!(place.does(Op::RequestsPrune { keep: 2 }, &[]), Reply::Done {});
    let load = |id: &RequestId| place.does(Op::RequestLoad { id: id.clone() }, &[]);
    assert_eq!((load(&ids[0]), load(&ids[2])), (Reply::Absent {}, Reply::Bytes { bytes: ids[2].as_str().into() }));
    assert_eq!(place.does(Op::OperationGet {}, &[]), Reply::Absent {});
    // Who could not read an end says that nobody saw it; that replaces none.
    let stored = |payload: &str| (place.does(Op::RequestStore { id: ids[1].clone() }, payload.as_bytes()), load(&ids[1])).1;
    let end = Reply::Bytes { bytes: br#"{"receipt":{}}"#.into() };
    assert_eq!((stored(r#"{"receipt":{}}"#), stored(r#"{"receipt":null}"#)), (end.clone(), end));
}

#[test]
fn what_an_unfinished_mutation_left_is_replaced_and_taken_away_by_its_own_id_only() {
    let place = Place::new();
    let id = |n| RequestId::from_random([n; 16]);
    let text = |n, step: &str| serde_json::json!({"request_id": id(n), "step": step}).to_string().into_bytes();
    let stands = || match place.does(Op::OperationGet {}, &[]) {
        Reply::Bytes { bytes } => Some(bytes),
        _ => None,
    };
    assert_eq!(place.does(Op::OperationSet { id: id(1) }, &text(1, "one")), Reply::Done {});
    assert_eq!(place.does(Op::OperationSet { id: id(1) }, &text(1, "two")), Reply::Done {});
    assert!(matches!(place.does(Op::OperationSet { id: id(2) }, &text(2, "one")), Reply::Failed { .. }));
    assert_eq!(place.does(Op::OperationClear { id: id(2) }, &[]), Reply::Done {});
    assert_eq!(stands(), Some(text(1, "two")));
    for _ in 0..2 {
        assert_eq!(place.does(Op::OperationClear { id: id(1) }, &[]), Reply::Done {});
        assert_eq!(stands(), None);
    }
    // What nobody can read tells of nobody.
    place.does(Op::OperationSet { id: id(1) }, b"rubbish");
    assert_eq!(place.does(Op::OperationSet { id: id(2) }, &text(2, "one")), Reply::Done {});
}

#[test]
fn a_disk_that_refuses_says_so() {
    let place = Place::new();
    std::fs::write(place.folder.path().join("var"), "not a folder").unwrap();
    assert!(matches!(place.does(Op::OperationSet { id: RequestId::from_random([1; 16]) }, b"x"), Reply::Failed { .. }));
    assert!(matches!(place.append(1, 0, 0, b"x\n"), Reply::Failed { .. }));
}
