//! Every message, in one file that a person can review: `tests/say.txt`. `UPDATE=1 cargo test` rewrites it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use proto::{HostState, KeyName, Message, QemuProcess, Request, RequestId, RunState, StepName, Timestamp, Verb, VerbSet, VmState, Vmid};
use pve_verb::assess::Interrupted;
use pve_verb::text::refusal_text;
use pve_verb::text::say::{self, BadGrant};
use std::fmt::Write as _;

fn id() -> RequestId {
    RequestId::from_random([0x1f; 16])
}

fn all() -> Vec<(&'static str, Vec<(&'static str, Message)>)> {
    let vm = Vmid::DEVVM;
    let at = Timestamp::from_unix_ms(1_795_220_999_123);
    let key: KeyName = "agent".parse().unwrap();
    let bundle: proto::BundleName = "20261121T003000.123Z-cycle-1f0c9a2e".parse().unwrap();
    let rejected = |line: &[u8]| say::rejected(&Request::parse(line).unwrap_err());
    let grant = |why| say::grant(Verb::Cycle, &why);
    let now = Some(QemuProcess { pid: 4711, started: 1 });
    let checked = ["PVE's file lock is free".to_owned(), "4096 MiB of memory asked for, about 9000 MiB to be had".to_owned()];
    vec![
        (
            "2 refused-request",
            vec![
                ("empty", rejected(b"")),
                ("too long", rejected(&[b'a'; 5000])),
                ("byte", rejected(b"status\x00")),
                ("space", rejected(b"status ")),
                ("verb", rejected(b"reboot")),
                ("word", rejected(b"status; id")),
                ("value", rejected(b"status --origin=cat")),
                ("twice", rejected(b"status --json --json")),
                ("misplaced", rejected(b"status --tar")),
                ("id_of_another_request", say::id_of_another_request(&id())),
                ("no_such_bundle", say::no_such_bundle(&bundle)),
            ],
        ),
        (
            "3 refused-policy",
            vec![
                ("not_allowed", say::not_allowed(Verb::Cycle, VerbSet::READ)),
                ("too_many", say::too_many(12, at)),
                ("too_soon", say::too_soon(10, at)),
                ("too_many_forensics", say::too_many_forensics(6, at)),
                ("too_many_idle", say::too_many_idle(6, at)),
                ("grant missing", grant(BadGrant::Missing)),
                ("grant expired", grant(BadGrant::Expired(at))),
                ("grant not yet", grant(BadGrant::NotYet(at))),
                ("grant spent", grant(BadGrant::Spent(None))),
                ("grant spent, by whom", grant(BadGrant::Spent(Some(id())))),
                ("grant other VM", grant(BadGrant::OtherVm(103.try_into().unwrap()))),
                ("grant other node", grant(BadGrant::OtherNode("pve2".into()))),
                ("grant other verb", grant(BadGrant::OtherVerb("reset,start".into()))),
                ("grant other key", grant(BadGrant::OtherKey("laptop".into()))),
                ("grant too long", grant(BadGrant::TooLong)),
                ("grant bad signature", grant(BadGrant::BadSignature)),
                ("grant unknown signer", grant(BadGrant::UnknownSigner)),
                ("grant signer may not", grant(BadGrant::SignerMayNot("alice could sign until 2026-11-20T00:00:00.000Z".into()))),
                ("grant no touch", grant(BadGrant::NoTouch)),
                ("grant no signers", grant(BadGrant::NoSigners("/etc/pve-verb/allowed_signers does not exist".into()))),
                ("grant malformed", grant(BadGrant::Malformed("no dot between its two parts".into()))),
                ("grant not recorded", grant(BadGrant::NotRecorded("the disk did not answer in 1 s".into()))),
            ],
        ),
        (
            "4 refused-busy",
            vec![
                ("busy", say::busy(Verb::Cycle, &id(), key.as_str(), at)),
                ("busy_unknown", say::busy_unknown("the lock file is empty")),
                ("locked_by_task", say::locked_by_task("backup", "UPID:pve:00001400:0009C2A1:6A01B2C3:vzdump:102:root@pam:")),
                ("locked_by_nobody", say::locked_by_nobody(vm, "backup")),
                ("locked_by_unknown", say::locked_by_unknown(vm, "backup")),
                ("config_busy", say::config_busy(vm, Some("task UPID:pve:0, pid 4711"))),
                ("config_busy, nobody named", say::config_busy(vm, None)),
                ("sockets_busy", say::sockets_busy(vm, "read 1f1f1f1f-1f1f-4f1f-9f1f-1f1f1f1f1f1f")),
            ],
        ),
        (
            "5 refused-evidence",
            vec![
                ("evidence_nowhere", say::evidence_nowhere("/run: no space left on device; /var: no answer in 3 s")),
                ("no_room_for_a_worker", say::no_room_for_a_worker("No space left on device (os error 28)")),
                ("not_acknowledged", say::not_acknowledged("it said nothing in time")),
                ("bundle_unreadable", say::bundle_unreadable(&bundle, "its manifest is not there")),
                ("intent_nowhere", say::intent_nowhere("/run: no space left on device")),
                ("killed_nowhere", say::killed_nowhere("/run: no space left on device")),
                ("disk_did_not_say", say::disk_did_not_say()),
            ],
        ),
        (
            "6 refused-precondition",
            vec![
                ("missing", say::missing(vm)),
                ("elsewhere", say::elsewhere(vm, "pve2")),
                ("no_quorum", say::no_quorum(Verb::Cycle)),
                ("no_quorum, start", say::no_quorum(Verb::Start)),
                ("ha_managed, start", say::ha_managed(vm, Verb::Start)),
                ("ha_managed, stop", say::ha_managed(vm, Verb::Stop)),
                ("ha_managed, cycle", say::ha_managed(vm, Verb::Cycle)),
                ("survivor", say::survivor(vm, "pid 4711 is a zombie, its thread 4801 is in D at percpu_rwsem_wait")),
                ("pve_hung, cycle", say::pve_hung(Verb::Cycle, "no answer in 1 s")),
                ("pve_hung, start", say::pve_hung(Verb::Start, "no answer in 1 s")),
                ("volumes_missing", say::volumes_missing(vm, Verb::Cycle, &["scsi0 (local:102/vm-102-disk-0.qcow2)".to_owned()])),
                ("too_little_memory", say::too_little_memory(vm, Verb::Cycle, (65_536, 32_000))),
                ("reset_of_stopped", say::reset_of_stopped(vm)),
                ("reset_of_block_stalled", say::reset_of_block_stalled(vm)),
                ("reset_of_io_error", say::reset_of_io_error(vm)),
                ("reset_of_unresponsive", say::reset_of_unresponsive(vm)),
                ("another_qemu", say::another_qemu(vm, Verb::Reset)),
                ("without_qmp", say::without_qmp(vm, Verb::Reset, "its socket is in use by vzdump")),
                ("without_qmp, paused", say::without_qmp(vm, Verb::Start, "its socket is in use by vzdump")),
                ("start_of shutdown", say::start_of(vm, RunState::Shutdown)),
                ("start_of io-error", say::start_of(vm, RunState::IoError)),
                ("start_of internal-error", say::start_of(vm, RunState::InternalError)),
                ("not_from", say::not_from(vm, Verb::Start, VmState::Qmp(RunState::Postmigrate))),
                ("not_from unknown", say::not_from(vm, Verb::Reset, VmState::Host(HostState::Unknown))),
                ("unknown_id", say::unknown_id(&id())),
                ("id_not_looked_up", say::id_not_looked_up(&id())),
                ("stored_answer_damaged", say::stored_answer_damaged(&id())),
                ("ran_meanwhile", say::ran_meanwhile(&id())),
                ("worker_hangs", say::worker_hangs(&id())),
            ],
        ),
        (
            "7 refused-host",
            vec![
                ("not_root", say::not_root()),
                ("not_set_up", say::not_set_up()),
                ("open_to_others", say::open_to_others("has mode 0755, which lets others than root look into it")),
                ("bad_forced_arguments", say::bad_forced_arguments("\"reboot\" is not one of the six verbs")),
                ("host_unfit", say::host_unfit("/run/pve-verb is not a folder of root's")),
            ],
        ),
        (
            "0 done",
            vec![
                ("status", say::status("VM 102 looks healthy: QEMU answers and says running.", "Nothing needs doing.")),
                ("captured", say::captured(vm, 61, 4)),
                ("shown", say::shown(&bundle)),
                ("reset", say::done(Verb::Reset, vm, now, 1234)),
                ("stop", say::done(Verb::Stop, vm, None, 16_600)),
                ("start", say::done(Verb::Start, vm, now, 660)),
                ("cycle", say::done(Verb::Cycle, vm, now, 4_900)),
                ("already, start", say::already(Verb::Start, vm, VmState::Running)),
                ("already, stop", say::already(Verb::Stop, vm, VmState::Stopped)),
                ("plan", say::plan(Verb::Cycle, vm, &checked, &["kill pid 4711", "qm start 102", "observe"])),
                ("plan, nothing", say::plan(Verb::Start, vm, &[], &[])),
            ],
        ),
        (
            "10 failed",
            vec![
                ("still_there", say::still_there(vm, "pid 4711, in D at io_schedule")),
                (
                    "not_told_to_stop",
                    say::not_told_to_stop(vm, "qm stop did not begin and will not: its program could not be read in time"),
                ),
                ("did_not_start", say::did_not_start(vm, "volume 'local:102/vm-102-disk-0.qcow2' does not exist")),
                ("stopped_but_not_started", say::stopped_but_not_started(vm, 2, "start failed: QEMU exited with code 1")),
                ("did_not_reset", say::did_not_reset(vm, VmState::Unresponsive, "no RESET event in 5 s")),
                ("did_not_resume", say::did_not_resume(vm, VmState::Qmp(RunState::IoError))),
                ("failed", say::failed(Verb::Stop, vm, VmState::Running, "qm: VM is locked (backup)")),
            ],
        ),
        (
            "11 unknown",
            vec![
                ("not_observed", say::not_observed(Verb::Cycle, vm, "no answer over QMP in 10 s")),
                (
                    "interrupted",
                    say::interrupted(
                        vm,
                        &Interrupted { step: Some(StepName::QmStop), ..Interrupted::of(Verb::Cycle) },
                        (Some(Verb::Start), "The VM is off."),
                    ),
                ),
                (
                    "interrupted, nothing left",
                    say::interrupted(vm, &Interrupted::of(Verb::Stop), (None, "The VM is stopped, as was wanted: nothing is left to do.")),
                ),
                ("worker_lost", say::worker_lost(&id())),
                ("taken_over", say::taken_over(Verb::Cycle, at)),
            ],
        ),
        (
            "70 internal, and what is not built",
            vec![
                ("internal, touched", say::internal(Some(true), "a thread panicked")),
                ("internal, not touched", say::internal(Some(false), "a thread panicked")),
                ("internal, not known", say::internal(None, "a thread panicked")),
                ("internal, a panic", say::panicked(Some(false))),
                ("hostile words", say::did_not_start(vm, "\x1b[2J\nreceipt 1 00 done\n\u{202e}")),
            ],
        ),
    ]
}

#[test]
fn every_message_reads_as_reviewed() {
    let mut got = "Every message, by outcome. Made by tests/say.rs; a person reads it.\n".to_owned();
    for (outcome, messages) in all() {
        write!(got, "\n==== {outcome}\n").unwrap();
        for (name, message) in messages {
            write!(got, "\n[{name}]\n{}", refusal_text(&message)).unwrap();
        }
    }
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/say.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&file, &got).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap_or_default(), got, "UPDATE=1 rewrites it");
}

#[test]
fn every_message_is_two_sentences() {
    for (outcome, messages) in all() {
        for (name, m) in messages {
            for sentence in [&m.what, &m.next] {
                assert!(sentence.ends_with('.') && !sentence.ends_with(".."), "{outcome}, {name}: {sentence}");
                assert!(!sentence.contains(". "), "{outcome}, {name} has more than one sentence: {sentence}");
                assert!(!sentence.chars().any(char::is_control), "{outcome}, {name}");
            }
        }
    }
}
