//! What the targets share: a peer that sends the fuzzer's bytes over a real socket, and the judgement over what was understood.

#![forbid(unsafe_code)]

use proto::ProbeOutcome;
use pve_verb::assess::{Evidence, Facts, Qmp, assess};
use pve_verb::qmp::Door;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Sender, channel};
use tempfile::TempDir;

/// A socket whose peer says what it is given, then closes its side.
pub struct Peer {
    /// The door to it.
    pub door: Door,
    bytes: Sender<Vec<u8>>,
    _folder: TempDir,
}

impl Peer {
    /// Listens on `name`, `102.qmp` or `102.qga`.
    pub fn listen(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(folder.path().join(name)).expect("a socket");
        let (bytes, from) = channel::<Vec<u8>>();
        std::thread::spawn(move || {
            for bytes in from {
                let Ok((mut client, _)) = listener.accept() else { return };
                let _ = client.write_all(&bytes);
                let _ = client.shutdown(Shutdown::Write);
                let _ = client.read_to_end(&mut Vec::new());
            }
        });
        let door = pve_verb::fuzz::door(folder.path()).expect("the door");
        Self { door, bytes, _folder: folder }
    }

    /// What the next client hears.
    pub fn say(&self, bytes: &[u8]) {
        self.bytes.send(bytes.to_vec()).expect("the peer lives");
    }
}

/// Artifacts by their paths.
pub type Artifacts = BTreeMap<&'static str, Vec<u8>>;

/// Keeps an answer as the probe keeps it.
pub fn keep(artifacts: &mut Artifacts, path: &'static str, value: &Value) {
    artifacts.insert(path, serde_json::to_vec_pretty(value).expect("JSON that was parsed can be written"));
}

/// Judges what came, and holds the judgement to what every judgement has.
pub fn judge(artifacts: &Artifacts) {
    let facts = Facts {
        running: Some(true),
        qmp: Some(Qmp::Answered),
        window_ms: Some(1_000),
        now_unix_s: Some(1_800_000_000),
        qemu_age_s: Some(60),
        serial_is_live: Some(true),
        ..Facts::default()
    };
    let assessment = assess(&Evidence {
        artifact: &|path| artifacts.get(path).map(Vec::as_slice),
        outcome: &|probe| (!artifacts.keys().any(|path| path.starts_with(probe))).then_some((ProbeOutcome::TimedOut, None)),
        facts,
    });
    assert_eq!(assessment.healthy, assessment.code == proto::Code::Healthy);
    shown(&assessment.sentence);
    shown(&assessment.recommend.why);
    for finding in &assessment.findings {
        shown(&finding.text);
        assert!(!finding.evidence.is_empty(), "a finding without evidence");
    }
}

/// What a person is shown moves no cursor.
pub fn shown(text: &str) {
    assert!(!text.chars().any(char::is_control), "a control character reaches a person: {text:?}");
}
