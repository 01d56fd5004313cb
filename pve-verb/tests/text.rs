//! Whole answers as a person reads them, one file each in `tests/text/`. `UPDATE=1 cargo test` rewrites them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use proto::*;
use pve_verb::assess::Interrupted;
use pve_verb::text::{Renderer, say, usage};

fn at(s: u64) -> Timestamp {
    Timestamp::from_unix_ms(1_795_220_999_000 + s * 1000)
}

fn id() -> RequestId {
    "1f0c9a2e-1f1f-4f1f-9f1f-1f1f1f1f1f1f".parse().unwrap()
}

fn event(s: u64, body: Body) -> Event {
    Event::new(at(s), id(), body)
}

fn accepted(verb: Verb, reason: Option<&str>) -> Body {
    Body::Accepted(Accepted {
        verb,
        vmid: Vmid::DEVVM,
        node: "pve".into(),
        key_name: "agent".parse().unwrap(),
        key_fingerprint: None,
        origin: Origin::Model,
        actor: Some("alice".to_owned().try_into().unwrap()),
        reason: reason.map(|r| r.to_owned().try_into().unwrap()),
        deadline_ms: verb.deadline_ms(),
        binary: Binary { version: "0.1.0".into(), sha256: None },
        attached: false,
    })
}

fn probe(name: &str, outcome: ProbeOutcome, detail: Option<&str>) -> Body {
    Body::Probe(Probe { name: name.into(), outcome, ms: 3, detail: detail.map(str::to_owned), artifact: None, data: None })
}

fn step(name: StepName, outcome: StepOutcome, ms: u64, detail: Option<&str>) -> Body {
    Body::Step(Step { name, outcome, ms, detail: detail.map(str::to_owned) })
}

fn bundle() -> BundleName {
    "20261121T003000.123Z-cycle-1f0c9a2e".parse().unwrap()
}

fn body(verb: Option<Verb>, outcome: Outcome, message: Message, state_after: VmState) -> ReceiptBody {
    ReceiptBody {
        v: VERSION,
        request_id: id(),
        verb,
        vmid: Vmid::DEVVM,
        node: "pve".into(),
        dry_run: false,
        key_name: "agent".parse().unwrap(),
        origin: Origin::Model,
        actor: None,
        reason: None,
        outcome,
        exit_code: outcome.exit_code(),
        already: false,
        replayed: false,
        interrupted: false,
        state_before: VmState::Running,
        state_after,
        qemu_before: None,
        qemu_after: None,
        assessment: None,
        bundle: None,
        preserved_where: None,
        manifest_sha256: None,
        degraded: vec![],
        message,
        started: at(0),
        finished: at(9),
        audit: Some(AuditPosition { seq: 812, prev: Sha256Hex::zero(), head: Sha256Hex::from_bytes([0xab; 32]) }),
        witness: None,
        binary_sha256: None,
        unreviewed: Some(0),
        unsigned_reason: None,
    }
}

fn receipt(body: &ReceiptBody) -> Body {
    Body::Receipt(Receipt { body: encode_body(body).unwrap().0, sig: body.unsigned_reason.is_none().then(|| "AAAA".into()) })
}

fn stalled() -> Assessment {
    Assessment {
        code: Code::BlockStalled, healthy: false,
        sentence: "VM 102 is block-stalled: QEMU answers, but no block operation completed in 1.2 s although request queue 2 of virtioscsi0 holds 14 unanswered requests in both samples.".into(),
        findings: vec![Finding { code: Code::BlockStalled, text: "0 block operations completed in 1.2 s on scsi0. Setting: scsi0: throttle bps_wr=60000000.".into(), evidence: vec!["qmp/virtqueues.1.json".into()] }],
        recommend: Recommendation { verb: Some(Verb::Cycle), why: "Only a fresh QEMU process has a working block layer again: cycle.".into() },
    }
}

fn healthy() -> Assessment {
    let s = "VM 102 looks healthy: QEMU answers and says running, 132 block operations completed in 1.2 s.";
    Assessment {
        code: Code::Healthy,
        healthy: true,
        sentence: s.into(),
        findings: vec![Finding { code: Code::Healthy, text: s.into(), evidence: vec!["qmp/query-status.json".into()] }],
        recommend: Recommendation { verb: None, why: "Nothing needs doing.".into() },
    }
}

fn answers() -> Vec<(&'static str, bool, Vec<Event>)> {
    use {ProbeOutcome as P, StepOutcome as S};
    let mut cycled = body(
        Some(Verb::Cycle),
        Outcome::Done,
        say::done(Verb::Cycle, Vmid::DEVVM, Some(QemuProcess { pid: 5123, started: 7 }), 4900),
        VmState::Running,
    );
    (cycled.bundle, cycled.preserved_where, cycled.unreviewed) = (Some(bundle()), Some(Where::Disk), Some(3));
    cycled.degraded = vec!["quorum could not be asked in time".into()];
    let cycle = vec![
        event(0, accepted(Verb::Cycle, Some("no answer over SSH for 5 minutes"))),
        event(1, probe("qmp/query-status", P::Captured, None)),
        event(1, probe("qmp/query-block", P::Captured, None)),
        event(1, probe("guest/ping", P::TimedOut, Some("no answer in 1 s"))),
        event(1, probe("host/zpool", P::Unavailable, Some("no such tool"))),
        event(3, Body::Assessment(stalled())),
        event(3, Body::Preserved(Preserved { bundle: bundle(), place: Where::Disk, manifest_sha256: Sha256Hex::zero(), degraded: vec![] })),
        event(3, step(StepName::Preflight, S::Done, 20, None)),
        event(3, step(StepName::QmStop, S::Started, 0, None)),
        event(5, step(StepName::QmStop, S::Done, 1700, None)),
        event(5, step(StepName::QmStart, S::Started, 0, None)),
        event(6, step(StepName::QmStart, S::TimedOut, 700, Some("qm said: x\x1b[2J"))),
        event(6, step(StepName::Observe, S::Done, 40, Some("QMP says running"))),
        event(7, receipt(&cycled)),
    ];
    let status = |a: Assessment, state| {
        let message = say::status(&a.sentence, &a.recommend.why);
        vec![
            event(0, accepted(Verb::Status, None)),
            event(0, probe("qmp/query-status", P::Captured, None)),
            event(0, Body::Assessment(a)),
            event(0, receipt(&body(Some(Verb::Status), Outcome::Done, message, state))),
        ]
    };
    let mut busy = body(None, Outcome::RefusedRequest, say::rejected(&Request::parse(b"reboot").unwrap_err()), VmState::Unknown);
    busy.audit = None;
    let mut worst = body(
        Some(Verb::Stop),
        Outcome::Unknown,
        say::interrupted(Vmid::DEVVM, &Interrupted::of(Verb::Stop), (Some(Verb::Stop), "Stop completes it.")),
        VmState::Unresponsive,
    );
    (worst.replayed, worst.interrupted, worst.bundle, worst.preserved_where, worst.unreviewed) =
        (true, true, Some(bundle()), Some(Where::Tmpfs), Some(1));
    worst.degraded = vec!["the disk did not take the bundle in 3 s".into(), "signing key missing".into()];
    worst.unsigned_reason = Some("no usable signing key".into());
    worst.witness = Some(WitnessAnswer { given: format!("9:{}", Sha256Hex::zero()).parse().unwrap(), ok: Some(false) });
    let hostile = vec![
        event(0, accepted(Verb::Reset, Some("\u{202e}receipt 1 00 done"))),
        event(1, probe("qmp/x\nreceipt 1 00 done", P::Failed, Some("\x1b]0;title\x07"))),
        event(2, Body::Receipt(Receipt { body: "not base64".into(), sig: None })),
    ];
    vec![
        ("cycle-of-a-stalled-vm", false, cycle.clone()),
        ("cycle-on-a-terminal", true, cycle),
        ("status-healthy", false, status(healthy(), VmState::Running)),
        ("status-stalled", false, status(stalled(), VmState::Running)),
        ("refused-before-a-record", false, vec![event(0, receipt(&busy))]),
        ("everything-weak", false, vec![event(0, receipt(&worst))]),
        ("hostile-words", false, hostile),
    ]
}

fn check(name: &str, got: &str) {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/text/{name}.txt"));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, got).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap_or_default(), got, "{name}: UPDATE=1 rewrites it");
}

fn render(events: &[Event], terminal: bool) -> String {
    let mut renderer = Renderer::new(terminal);
    events.iter().map(|e| renderer.line(e)).collect()
}

#[test]
fn whole_answers_read_as_reviewed() {
    for (name, terminal, events) in answers() {
        check(name, &render(&events, terminal));
    }
    check("usage", usage());
}

#[test]
fn the_last_line_is_the_receipt_and_nothing_else_looks_like_one() {
    for (name, terminal, events) in answers() {
        let text = render(&events, terminal);
        let lines: Vec<&str> = text.lines().collect();
        let (last, before) = lines.split_last().unwrap();
        assert_eq!(last.split(' ').count(), 4, "{name}");
        assert!(last.starts_with("receipt ") && text.ends_with('\n'), "{name}");
        assert!(before.iter().all(|l| !l.starts_with("receipt ")), "{name}");
        assert!(terminal || !text.chars().any(|c| c.is_control() && c != '\n'), "{name}");
        assert!(terminal || before.iter().all(|l| l.chars().count() <= 60 || l.trim_start_matches("Evidence: ").split(' ').filter(|w| w.len() > 30).count() == 1), "{name}");
    }
}

#[test]
fn a_status_begins_with_state_and_judgement() {
    let answers = answers();
    let (_, _, events) = answers.iter().find(|(n, _, _)| *n == "status-healthy").unwrap();
    assert!(render(events, false).starts_with("running: VM 102 looks healthy"));
}
