//! Random and mutated evidence: the judgement is total, and its shape holds whatever comes.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const PATHS: [&str; 16] = [
    "qmp/query-status.json",
    "qmp/query-block.json",
    "qmp/query-blockstats.1.json",
    "qmp/query-blockstats.2.json",
    "qmp/virtqueues.1.json",
    "qmp/virtqueues.2.json",
    "qmp/query-iothreads.json",
    "qmp/query-chardev.json",
    "process/threads.1.json",
    "process/threads.2.json",
    "guest/diskstats.json",
    "guest/fsinfo.json",
    "guest/ping.json",
    "console/serial.txt",
    "pve/rrd",
    "cgroup/memory.events",
];

/// One sound artifact for each path, so that mutations get past the first check.
const SOUND: [&str; 16] = [
    r#"{"return":{"status":"running","running":true}}"#,
    r#"{"return":[{"device":"drive-scsi0","qdev":"scsi0","io-status":"ok","inserted":{"bps":0,"bps_wr":1,"iops":0,"drv":"raw","file":"f"}}]}"#,
    r#"{"return":[{"qdev":"scsi0","stats":{"rd_operations":1,"wr_operations":2}}]}"#,
    r#"{"return":[{"qdev":"scsi0","stats":{"rd_operations":1,"wr_operations":2}}]}"#,
    r#"{"devices":[{"path":"/machine/peripheral/a/virtio-backend","name":"virtio-scsi","queues":[{"index":2,"inuse":1,"used-idx":4}]}]}"#,
    r#"{"devices":[{"path":"/machine/peripheral/a/virtio-backend","name":"virtio-scsi","queues":[{"index":2,"inuse":1,"used-idx":4}]}]}"#,
    r#"{"return":[{"id":"iothread-virtioscsi0","thread-id":9}]}"#,
    r#"{"return":[{"label":"qga0","frontend-open":true}]}"#,
    r#"{"pid":1,"threads":[{"tid":2,"name":"iou-wrk-1","state":"D","wchan":"io_schedule"},{"tid":3,"name":"CPU 0/KVM","state":"S","utime":1,"stime":1}]}"#,
    r#"{"pid":1,"threads":[{"tid":2,"name":"iou-wrk-1","state":"D","wchan":"io_schedule"},{"tid":3,"name":"CPU 0/KVM","state":"S","utime":90,"stime":1}]}"#,
    r#"{"return":[{"name":"sda","stats":{"ios-pgr":3}}]}"#,
    r#"{"return":[{"mountpoint":"/","type":"ext4","used-bytes":100,"total-bytes":100}]}"#,
    r#"{"return":{}}"#,
    "[    1.0] Linux version 6\n[    2.0] Out of memory: Killed process 7\n[    3.0] Kernel panic - not syncing: x\n",
    r#"[{"time":100,"diskwrite":5,"cpu":0.5},{"time":160,"diskwrite":0,"cpu":0.5},{"time":220,"diskwrite":0,"cpu":0.5},{"time":280,"diskwrite":0,"cpu":0.5}]"#,
    "oom 0\noom_kill 3\n",
];

fn judge(artifacts: &BTreeMap<String, Vec<u8>>, facts: Facts) -> Assessment {
    assess(&Evidence {
        artifact: &|path| artifacts.get(path).map(Vec::as_slice),
        outcome: &|_| Some((ProbeOutcome::TimedOut, None)),
        facts,
    })
}

fn facts() -> Facts {
    Facts {
        running: Some(true),
        qmp: Some(Qmp::Answered),
        window_ms: Some(1200),
        now_unix_s: Some(300),
        qemu_age_s: Some(60),
        ..Facts::default()
    }
}

fn holds(assessment: &Assessment) -> Result<(), TestCaseError> {
    prop_assert_eq!(assessment.healthy, assessment.code == Code::Healthy);
    prop_assert_eq!(Some(assessment.code), assessment.findings.first().map(|f| f.code));
    prop_assert!(!assessment.sentence.chars().any(char::is_control));
    prop_assert!(assessment.findings.iter().all(|f| !f.evidence.is_empty() && !f.text.chars().any(char::is_control)));
    prop_assert!(!assessment.recommend.why.is_empty());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_bytes_never_panic(artifacts in prop::collection::btree_map(prop::sample::select(PATHS.to_vec()).prop_map(str::to_owned), prop::collection::vec(any::<u8>(), 0..200), 0..16)) {
        holds(&judge(&artifacts, facts()))?;
        holds(&judge(&artifacts, Facts::default()))?;
    }

    #[test]
    fn mutated_artifacts_never_panic(edits in prop::collection::vec((0..16_usize, any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 0..12)) {
        let mut artifacts: BTreeMap<String, Vec<u8>> = PATHS.iter().zip(SOUND).map(|(p, s)| ((*p).to_owned(), s.as_bytes().to_vec())).collect();
        for (which, at, byte, how) in edits {
            let bytes = artifacts.entry(PATHS[which].to_owned()).or_default();
            if bytes.is_empty() { continue }
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.truncate(at),
                2 => bytes.insert(at, b'9'),
                _ => { bytes.remove(at); }
            }
        }
        holds(&judge(&artifacts, facts()))?;
    }

    #[test]
    fn a_missing_artifact_never_makes_it_graver(keep in prop::collection::vec(any::<bool>(), 16)) {
        let all: BTreeMap<String, Vec<u8>> = PATHS.iter().zip(SOUND).map(|(p, s)| ((*p).to_owned(), s.as_bytes().to_vec())).collect();
        let some = all.iter().zip(keep).filter(|(_, keep)| *keep).map(|((p, b), _)| (p.clone(), b.clone())).collect();
        let whole: Vec<Code> = judge(&all, facts()).findings.iter().map(|f| f.code).collect();
        let part = judge(&some, facts());
        // `guest/ping.json` and `guest/diskstats.json` speak *against* alarms, as do boots in the console; what is left is at most
        // what the whole has, or the word that little is known.
        let allowed = |code: Code| whole.contains(&code) || matches!(code, Code::Healthy | Code::QmpUnavailable | Code::GuestPanicked | Code::GuestUnresponsive);
        prop_assert!(part.findings.iter().all(|f| allowed(f.code)), "{:?} of {:?}", part.findings, whole);
    }
}

#[test]
fn the_sound_artifacts_are_a_stall() {
    let all: BTreeMap<String, Vec<u8>> = PATHS.iter().zip(SOUND).map(|(p, s)| ((*p).to_owned(), s.as_bytes().to_vec())).collect();
    assert_eq!(judge(&all, facts()).code, Code::BlockStalled);
}

#[test]
fn no_evidence_is_no_alarm() {
    let nothing = judge(&BTreeMap::new(), Facts::default());
    assert_eq!((nothing.code, nothing.recommend.verb), (Code::QmpUnavailable, None));
}

#[test]
fn an_artifact_that_is_too_long_to_parse_is_no_evidence() {
    let mut all: BTreeMap<String, Vec<u8>> = PATHS.iter().zip(SOUND).map(|(p, s)| ((*p).to_owned(), s.as_bytes().to_vec())).collect();
    all.remove("pve/rrd");
    // Sound JSON behind more white space than is read.
    let pad = |bytes: &mut Vec<u8>, most: usize| bytes.splice(0..0, vec![b' '; most - bytes.len()]).count();
    let stats = all.get_mut("qmp/query-blockstats.2.json").unwrap();
    pad(stats, MOST_JSON);
    assert_eq!(judge(&all, facts()).code, Code::BlockStalled, "as long as allowed");
    let stats = all.get_mut("qmp/query-blockstats.2.json").unwrap();
    pad(stats, MOST_JSON + 1);
    assert_ne!(judge(&all, facts()).code, Code::BlockStalled, "a byte longer");
    let row = br#"[{"time":100,"diskwrite":5}]"#.to_vec();
    assert_eq!(rrd::minutes(&row).len(), 1);
    assert!(rrd::minutes(&[row, vec![b' '; MOST_JSON]].concat()).is_empty());
}
