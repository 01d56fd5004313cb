//! A guest agent's whole stream. What is understood of it becomes evidence beside that of a QEMU that is well, and is judged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pve_verb::qga::{Agent, Query};
use pve_verb::qmp::QmpError;
use pve_verb_fuzz::{Artifacts, Peer, judge, keep, shown};
use std::sync::LazyLock;
use std::time::Duration;

static PEER: LazyLock<Peer> = LazyLock::new(|| Peer::listen("102.qga"));
const AMPLE: Duration = Duration::from_secs(10);

const QUERIES: [(&str, Query); 8] = [
    ("guest/ping.json", Query::Ping),
    ("guest/diskstats.json", Query::Diskstats),
    ("guest/load.json", Query::Load),
    ("guest/time.json", Query::Time),
    ("guest/vcpus.json", Query::Vcpus),
    ("guest/osinfo.json", Query::Osinfo),
    ("guest/diskstats.2.json", Query::Diskstats),
    ("guest/fsinfo.json", Query::Fsinfo),
];

/// A QEMU that is well, on whose disk nothing happens.
const QEMU: [(&str, &str); 4] = [
    ("qmp/query-status.json", r#"{"status":"running"}"#),
    ("qmp/query-chardev.json", r#"[{"label":"qga0","frontend-open":true}]"#),
    ("qmp/query-blockstats.1.json", r#"[{"qdev":"scsi0","stats":{"rd_operations":1,"wr_operations":2}}]"#),
    ("qmp/query-blockstats.2.json", r#"[{"qdev":"scsi0","stats":{"rd_operations":1,"wr_operations":2}}]"#),
];

fn converse(artifacts: &mut Artifacts) -> Result<(), QmpError> {
    let mut agent = Agent::open(&PEER.door, 7, AMPLE)?;
    for (path, query) in QUERIES {
        match agent.ask(query, AMPLE) {
            Ok(value) => keep(artifacts, path, &value),
            Err(e) if e.is_answer() => shown(&e.to_string()),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fuzz_target!(|stream: &[u8]| {
    PEER.say(stream);
    let mut artifacts: Artifacts = QEMU.iter().map(|(path, text)| (*path, text.as_bytes().to_vec())).collect();
    if let Err(e) = converse(&mut artifacts) {
        assert!(e != QmpError::Timeout, "an agent that closed was waited for");
        shown(&e.to_string());
    }
    judge(&artifacts);
});
