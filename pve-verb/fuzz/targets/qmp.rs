//! A QMP peer's whole stream: greeting, answers, events, garbage. What is understood of it becomes evidence, and is judged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pve_verb::qmp::{Hmp, QmpError, Query, Session, VirtioPath};
use pve_verb_fuzz::{Artifacts, Peer, judge, keep, shown};
use std::sync::LazyLock;
use std::time::Duration;

static PEER: LazyLock<Peer> = LazyLock::new(|| Peer::listen("102.qmp"));
const AMPLE: Duration = Duration::from_secs(10);

const QUERIES: [(&str, Query); 8] = [
    ("qmp/query-status.json", Query::Status),
    ("qmp/query-chardev.json", Query::Chardev),
    ("qmp/query-blockstats.1.json", Query::Blockstats),
    ("qmp/query-block.json", Query::Block),
    ("qmp/query-iothreads.json", Query::Iothreads),
    ("qmp/query-cpus-fast.json", Query::CpusFast),
    ("qmp/query-blockstats.2.json", Query::Blockstats),
    ("qmp/registers.txt", Query::Human(Hmp::Registers)),
];

fn converse(artifacts: &mut Artifacts) -> Result<(), QmpError> {
    let mut qmp = Session::open(&PEER.door, AMPLE)?;
    for (path, query) in &QUERIES {
        match qmp.ask(query, AMPLE) {
            Ok(value) => keep(artifacts, path, &value),
            Err(e) if e.is_answer() => shown(&e.to_string()),
            Err(e) => return Err(e),
        }
    }
    for path in ["qmp/virtqueues.1.json", "qmp/virtqueues.2.json"] {
        let devices = qmp.ask(&Query::Virtio, AMPLE)?;
        let mut all = Vec::new();
        for device in devices.as_array().into_iter().flatten().take(4) {
            let mut device = device.clone();
            let Some(name) = device.get("path").and_then(|p| p.as_str()).and_then(VirtioPath::from_qemu) else { continue };
            let status = qmp.ask(&Query::VirtioQueueStatus(name, 2), AMPLE)?;
            if let Some(object) = device.as_object_mut() {
                object.insert("queues".to_owned(), serde_json::json!([status]));
            }
            all.push(device);
        }
        keep(artifacts, path, &serde_json::json!({"virtio": all}));
    }
    let _ = qmp.await_event("RESET", AMPLE);
    assert!(qmp.events().0.len() <= 1_000);
    Ok(())
}

fuzz_target!(|stream: &[u8]| {
    PEER.say(stream);
    let mut artifacts = Artifacts::new();
    if let Err(e) = converse(&mut artifacts) {
        assert!(e != QmpError::Timeout && e != QmpError::NoGreeting, "a peer that closed was waited for");
        shown(&e.to_string());
    }
    judge(&artifacts);
});
