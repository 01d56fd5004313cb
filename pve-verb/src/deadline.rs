//! Every timer of the program, in one table: what it is, how long, and in which part of a request it is waited for how often. The program waits
//! by the constants, a test adds the same table up against the published bounds (`proto::Verb::deadline_ms`), and another one finds a timer that
//! stands somewhere else. All figures are upper bounds, not waits.
//!
//! A disk that is slow but not late would cost its deadline once for each question, and so in a sum of any length. So what waits for the disk, or
//! for its locks, has an allowance for each part together (`DISK_…`): when it is used up the disk counts as late.

use std::time::Duration;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A part of a request. Its timers follow one another, so they add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The front, until there is a worker.
    Front,
    /// All of `status`, its record included.
    Status,
    /// Evidence, until it is preserved.
    Evidence,
    /// What a mutation has beside its evidence, until its intent is durable: the lock, the claim, the last look.
    Permit,
    /// `system_reset`, and `cont` where it is needed.
    Reset,
    /// A proved kill.
    Kill,
    /// `qm stop`: to stop, to clean up behind a kill, or because the kill found another process.
    Stop,
    /// Between the halves of a cycle.
    Between,
    /// `qm start`.
    Start,
    /// From the last step to the receipt, with the records of all steps.
    End,
    /// From a read's evidence to its receipt.
    ReadEnd,
    /// Beside the published bound, where the caller may have to keep the evidence: what `--json --inline` adds.
    Caller,
    /// `forensics --bundle=`.
    Shown,
    /// Behind the answer, or bounding somebody else's patience: in nobody's bound.
    Beside,
}

/// Where a timer is waited for.
#[derive(Clone, Copy, Debug)]
enum At {
    /// So often in this part.
    Part(Part, u32),
    /// Within another timer of the table, which is longer.
    #[cfg_attr(not(test), expect(dead_code, reason = "the test's"))]
    Inside(Duration),
}

struct Timer {
    #[cfg_attr(not(test), expect(dead_code, reason = "the test's"))]
    name: &'static str,
    length: Duration,
    at: &'static [At],
}

macro_rules! timers {
    ($($(#[$doc:meta])+ $name:ident = $length:expr, $(in $($part:ident * $times:literal)+)? $(inside $($outer:ident)+)?;)+) => {
        $($(#[$doc])+ pub const $name: Duration = $length;)+
        const TIMERS: &[Timer] = &[$(Timer {
            name: stringify!($name),
            length: $name,
            at: &[$($(At::Part(Part::$part, $times)),+)? $($(At::Inside($outer)),+)?],
        }),+];
    };
}

timers! {
    /// Asking `/proc`, `/etc/pve` and the scope what is there. A part that hangs costs this much, once.
    OBSERVE = ms(1_100), in Status * 1 Evidence * 2 Permit * 1 Kill * 1 Between * 1;
    /// All probes of a bundle, side by side. QEMU that says nothing for 3 s is proved silent within it.
    CAPTURE = ms(4_200), in Evidence * 1;
    /// gdb over QEMU, what it leaves behind put right included. Only where the other probes left that much of [`CAPTURE`].
    AUTOPSY = ms(1_300), inside CAPTURE;
    /// Until nobody traces QEMU any more, once gdb has ended.
    SETTLE = ms(300), inside AUTOPSY;
    /// All probes of `status`.
    CAPTURE_STATUS = ms(1_300), in Status * 1;
    /// Beyond those: the hand-over of the tools' threads.
    HAND_OVER = ms(50), in Evidence * 1;
    /// Beyond those: looking who else is on the QMP socket, where it turned out at their very end that QEMU serves nobody.
    OTHERS = ms(100), in Status * 1 Evidence * 1;
    /// How long QEMU may be silent before that is a fact (PROTOCOL.md, section 8).
    QMP_SILENT = s(3), inside CAPTURE;
    /// Waiting for a moment without a foreign client on the QMP socket.
    PEERS = ms(600), in Evidence * 1;
    /// Sealing a bundle on tmpfs: memory speed, but thousands of small writes on a loaded host.
    SEAL = ms(800), in Evidence * 1;
    /// Waiting for others who count at this moment. Long enough for all of them.
    COUNTS = ms(300), in Evidence * 1;
    /// Waiting for the gate before the mutation lock: whoever stands in it needs milliseconds.
    GATE = ms(500), in Permit * 1;
    /// In the gate: waiting for a holder without a name, who is letting go or was killed a moment ago.
    NAMELESS = ms(200), in Permit * 1;
    /// Waiting for who looks at a claim of QEMU's sockets: a read that does holds it for microseconds.
    CLAIM = ms(300), in Permit * 1;

    /// All that a front waits for a disk until it knows what became of an id that it was given.
    DISK_FRONT = s(1), in Front * 1;
    /// All that `status` waits for a disk.
    DISK_STATUS = ms(450), in Status * 1;
    /// All that is waited for a disk from the request to the intent.
    DISK_EVIDENCE = ms(3_700), in Evidence * 1;
    /// All that is waited for a disk to record steps.
    DISK_STEPS = ms(1_500), in End * 1;
    /// All that is waited for a disk at the end: the last record, the stored answer.
    DISK_END = ms(1_100), in End * 1 ReadEnd * 1;
    /// Reading an existing bundle for `--bundle=`.
    SHOW = s(8), in Shown * 1;
    /// Carrying the bundle to disk.
    CARRY = s(3), inside DISK_EVIDENCE;
    /// What a record that belongs to a mutation, or a refusal, may wait for locks and disk together; then it stays in the overflow.
    RECORD = s(1), inside DISK_EVIDENCE DISK_END;
    /// What a read's record may.
    RECORD_HASTY = ms(400), inside DISK_STATUS;
    /// One other write to disk (operation, finished request, nonce).
    WRITE = ms(700), inside DISK_FRONT DISK_EVIDENCE DISK_END;
    /// Looking for a caller's head in the log; what a read may ask of the disk.
    WITNESS = ms(300), inside DISK_STATUS;

    /// Waiting for PVE's own lock on the VM's configuration before `reset`.
    CONFIG_LOCK = s(1), in Reset * 1;
    /// Looking whether somebody else holds it before `qm` is called or QEMU killed: a `qm` that only reads or writes is done by then.
    CONFIG_LOOK = ms(400), in Stop * 1 Start * 1;
    /// Waiting for another of our own connections to QMP to end. A read gives way in less (`qmp::door`).
    QMP_DOOR = ms(800), in Reset * 1 Stop * 1 Start * 1;
    /// How long a QEMU that moved since the proof is watched before it is killed, or not.
    STILL_PROVED = ms(1_050), in Kill * 1;
    /// `system_reset` until its RESET event.
    QMP_RESET = s(2), in Reset * 1;
    /// Opening a connection to QMP, or one short command on it, from the worker.
    QMP_ASK = ms(700), in Reset * 4;
    /// After SIGKILL, until the process is gone. In state D it does not go; then it is a survivor.
    DIES = s(5), in Kill * 1;
    /// `qm stop` before it gets SIGTERM. qemu-server 9.2.1 needs 72 s for a hung QEMU.
    QM_STOP = ms(73_500), in Stop * 1;
    /// `qm start` before it gets SIGTERM: 30 s for QEMU, 20 s for the old scope, 10 s for the lock, and as much again.
    QM_START = s(90), in Start * 1;
    /// A mutating `qm` after SIGTERM, before it is abandoned. It is never killed: that aborts it silently.
    QM_TERM = s(15), in Stop * 1 Start * 1;
    /// Until the wanted state is observed after a step.
    OBSERVE_AFTER = s(2), in Between * 1 End * 1;
    /// One look at the VM: the process table, then QEMU.
    LOOK = ms(1_100 + 800 + 2 * 700), in End * 1;

    /// Sending a bundle that only the caller can keep.
    OFFER = s(10), in Caller * 1;
    /// Its acknowledgement.
    ACK = s(10), in Caller * 1;
    /// A worker makes its spool within milliseconds; a host this slow gets this long. What comes later is killed before it did anything.
    APPEARS = s(5), in Beside * 1;
    /// A caller that takes no byte for this long is taken for gone.
    CALLER_STALLED = s(20), in Beside * 1;
    /// So is one that keeps us waiting for this long altogether. Eight megabytes of artifacts over a phone's link take less.
    CALLER_PATIENCE = s(120), in Beside * 1;
    /// Beyond its worker's published deadline a front waits this long for the receipt.
    SILENT_WORKER = s(30), in Beside * 1;
    /// Beyond its published deadline the lock's holder gets this long, for its last records.
    GRACE = s(5), in Beside * 1;
}

/// How long this part takes at most: its timers, added up.
pub const fn longest(part: Part) -> Duration {
    let mut sum = Duration::ZERO;
    let mut timer = 0;
    while timer < TIMERS.len() {
        let mut at = 0;
        while at < TIMERS[timer].at.len() {
            if let At::Part(of, times) = TIMERS[timer].at[at]
                && of as u8 == part as u8
                && let Some(more) = TIMERS[timer].length.checked_mul(times)
            {
                sum = sum.saturating_add(more);
            }
            at += 1;
        }
        timer += 1;
    }
    sum
}

/// What a `qm` must leave of the published bound: to be ended itself, and for the end of the request.
pub const BEHIND_QM: Duration = longest(Part::End).saturating_add(QM_TERM);

/// What is published in addition where the caller may have to keep the evidence.
pub const FOR_THE_CALLER: Duration = longest(Part::Caller);

#[cfg(test)]
mod tests {
    use super::*;
    use Part::{Between, End, Evidence, Front, Kill, Permit, ReadEnd, Reset, Shown, Start, Status, Stop};
    use proto::Verb;
    use std::collections::BTreeMap;
    use std::path::Path;

    /// What follows one another in a request with this verb, at its longest.
    const fn parts(verb: Verb) -> &'static [Part] {
        match verb {
            Verb::Status => &[Status],
            Verb::Forensics => &[Evidence, ReadEnd],
            Verb::Reset => &[Front, Permit, Evidence, Reset, End],
            Verb::Stop => &[Front, Permit, Evidence, Kill, Stop, End],
            Verb::Start => &[Front, Permit, Evidence, Start, End],
            Verb::Cycle => &[Front, Permit, Evidence, Kill, Stop, Between, Start, End],
        }
    }

    fn sum(parts: &[Part]) -> Duration {
        parts.iter().map(|part| longest(*part)).sum()
    }

    fn published(verb: Verb) -> Duration {
        Duration::from_millis(verb.deadline_ms())
    }

    #[test]
    fn every_verb_fits_what_is_published_with_all_of_its_timers() {
        for verb in Verb::ALL {
            let all = sum(parts(verb));
            println!("{verb}: {all:?} of {:?}", published(verb));
            assert!(all < published(verb), "{verb}: {all:?} of {:?}", published(verb));
        }
        assert!(sum(&[Permit, Evidence]) < s(15), "{:?}", sum(&[Permit, Evidence]));
        assert!(sum(&[Shown, ReadEnd]) < published(Verb::Forensics));
        // The second try of a cycle's start has at least what `mutate` asks for before it begins one; each `qm` is cut to what is left.
        assert!(sum(parts(Verb::Cycle)) + s(5) < published(Verb::Cycle));
        // Who waits for a holder that is past its deadline waits for nobody who is still at it.
        assert!(sum(parts(Verb::Reset)) < published(Verb::Reset) + GRACE);
    }

    #[test]
    fn every_timer_is_waited_for_somewhere_and_an_inner_one_is_shorter() {
        for Timer { name, length, at } in TIMERS {
            assert!(!at.is_empty(), "{name} is in no sum");
            for at in *at {
                if let At::Inside(outer) = at {
                    assert!(length < outer, "{name} is longer than what it is in");
                }
            }
        }
        assert!(QMP_SILENT + ms(1_000) < CAPTURE);
        assert_eq!(AUTOPSY - SETTLE, s(1), "what PROTOCOL.md gives gdb");
        assert_eq!(LOOK, OBSERVE + QMP_DOOR + 2 * QMP_ASK);
    }

    /// The source without its tests.
    fn sources(folder: &Path, into: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, into);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let name = path.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap().to_str().unwrap().to_owned();
                into.push((name, text.split("\nmod tests {").next().unwrap().split("\npub(crate) mod tests {").next().unwrap().to_owned()));
            }
        }
    }

    /// A figure that stands beside the table is no timer of a request's, or one inside a timer of the table; it is counted here so that the
    /// next one is thought about.
    #[test]
    fn no_timer_stands_beside_the_table() {
        const ELSEWHERE: &[(&str, usize, &str)] = &[
            ("audit/chain.rs", 1, "a lock that is held for microseconds"),
            ("channel.rs", 1, "a front whose worker did not appear"),
            ("facts.rs", 1, "PEERS"),
            ("litter.rs", 1, "an age"),
            ("mutate.rs", 1, "what a second try has to have left"),
            ("probe/autopsy.rs", 1, "AUTOPSY"),
            ("probe/console.rs", 1, "CAPTURE"),
            ("probe/gather.rs", 1, "OTHERS"),
            ("probe/guest.rs", 2, "CAPTURE"),
            ("probe/host.rs", 1, "CAPTURE"),
            ("probe/process.rs", 1, "CAPTURE"),
            ("probe/qmp.rs", 5, "CAPTURE"),
            ("probe/rrd.rs", 1, "CAPTURE"),
            ("probe/tools.rs", 1, "CAPTURE"),
            ("procfs/survivor.rs", 1, "OBSERVE"),
            ("procfs/thread.rs", 1, "what is spinning, not a wait"),
            ("qmp/door.rs", 2, "QMP_DOOR"),
            ("sample.rs", 2, "ages"),
            ("setup/check.rs", 1, "by hand"),
            ("spawn.rs", 1, "the tool's own"),
            ("spawn/started.rs", 1, "between two looks"),
            ("spool.rs", 1, "a front that makes room for a refused id"),
            ("writer/bundle.rs", 2, "CARRY, and an age"),
            ("writer/log.rs", 1, "RECORD"),
        ];
        let mut all = Vec::new();
        sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut all);
        let test = |name: &str| {
            name.ends_with("tests.rs")
                || ["ample", "begun", "crowded", "pruned", "slow", "told", "witnessed"].iter().any(|t| name == format!("audit/{t}.rs"))
        };
        let figure = |line: &&str| {
            let digits = |unit: &str| line.split(unit).skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
            !line.contains("sleep(") && !line.contains(".pause(") && (digits("Duration::from_millis(") || digits("Duration::from_secs("))
        };
        let found: BTreeMap<&str, usize> = all
            .iter()
            .filter(|(name, _)| name != "deadline.rs" && !test(name))
            .map(|(name, text)| (name.as_str(), text.lines().filter(figure).count()))
            .filter(|(_, figures)| *figures > 0)
            .collect();
        let known: BTreeMap<&str, usize> = ELSEWHERE.iter().map(|(name, figures, _)| (*name, *figures)).collect();
        assert_eq!(found, known, "give it a line in the table, or say here what bounds it");
    }

    #[test]
    fn a_bundle_that_only_the_caller_keeps_has_its_own_time() {
        use crate::door::{Arrival, Caller, parse};
        let bound = |line: &str| {
            let fresh_id = proto::RequestId::from_random([1; 16]);
            let arrival = Arrival::new(Caller::console(proto::Vmid::DEVVM), line.as_bytes().to_vec(), fresh_id);
            let parsed = parse(arrival).unwrap();
            Duration::from_millis(crate::policy::authorise("pve", parsed).unwrap().deadline_ms())
        };
        assert_eq!(bound("cycle --json --inline"), published(Verb::Cycle) + OFFER + ACK);
        assert_eq!(bound("forensics --json --inline"), published(Verb::Forensics) + OFFER + ACK);
        assert_eq!(bound("cycle --json"), published(Verb::Cycle));
        assert_eq!(bound("status --json --inline"), published(Verb::Status));
    }
}
