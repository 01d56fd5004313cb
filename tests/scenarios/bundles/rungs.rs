//! The rungs below tmpfs-then-disk: straight to disk, and the caller who acknowledges.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use base64ct::{Base64, Encoding};
use lab::chain::Chain;
use lab::station::{self, BUNDLES, anna, bare_vm, body};
use lab::{Lab, Observed, Result, Ssh, wedge};
use serde_json::{Value, json};

use crate::{AMPLE, bundle, hex, sound};

/// `/run/pve-verb` with room for a worker's spool and its records, and for no bundle.
fn narrow_run(lab: &Lab) -> Result<impl Drop> {
    // The folder is pve-verb's own, from its first call on.
    assert_eq!(anna(lab)?.call("status")?.status, 0);
    station::quiet(AMPLE)?;
    let undo = wedge::disk_full("/run/pve-verb")?;
    leave_little();
    Ok(undo)
}

/// Just that much room again: what earlier requests said is gone, and what they left free is filled.
fn leave_little() {
    const ROOM: u64 = 340 << 10;
    // A worker tidies behind its answer, and what it takes away meanwhile would be counted as taken.
    station::quiet(AMPLE).unwrap();
    for spool in fs::read_dir("/run/pve-verb/spool").into_iter().flatten().flatten() {
        fs::remove_file(spool.path()).unwrap();
    }
    let disk = rustix::fs::statvfs("/run/pve-verb").unwrap();
    let free = disk.f_bavail * disk.f_frsize;
    let mut fill = fs::OpenOptions::new().append(true).open("/run/pve-verb/.fill").unwrap();
    match free.checked_sub(ROOM) {
        Some(over) => fill.write_all(&vec![0; usize::try_from(over).unwrap()]).unwrap(),
        None => fill.set_len(fill.metadata().unwrap().len() - (ROOM - free)).unwrap(),
    }
}

pub(crate) fn straight_to_disk(lab: &Lab) -> Result<()> {
    let vm = bare_vm(lab)?;
    let before = vm.pid();
    let narrow = narrow_run(lab)?;
    for verb in ["forensics", "cycle"] {
        leave_little();
        let answer = anna(lab)?.call(format!("{verb} --json"))?;
        let told = body(&answer)?;
        assert_eq!((answer.status, &told["preserved_where"]), (0, &json!("disk")), "{verb}: {told}");
        assert!(told["degraded"].to_string().contains("the bundle is not on tmpfs: "), "{told}");
        let name = told["bundle"].as_str().unwrap();
        assert_eq!(bundle(&format!("verify {name}")).status, 0);
        assert_eq!(fs::read_dir(BUNDLES[1]).map_or(0, Iterator::count), 0, "a half of it is still on tmpfs");
    }
    station::quiet(AMPLE)?;
    drop(narrow);
    assert_ne!(vm.pid(), before);
    Ok(())
}

/// A caller that keeps what it is offered, and says `ack` with this hash (none: the right one).
fn keeps(ssh: &Ssh, request: &str, ack: Option<&str>) -> (i32, Vec<Value>, BTreeMap<String, Vec<u8>>) {
    leave_little();
    let mut command = ssh.command(request.as_bytes());
    let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = client.stdin.take().unwrap();
    let (mut events, mut kept) = (Vec::new(), BTreeMap::new());
    for line in BufReader::new(client.stdout.take().unwrap()).lines() {
        let mut event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if event["event"] == "artifact" {
            let bytes = Base64::decode_vec(event["data"].as_str().unwrap()).unwrap();
            assert_eq!((&event["sha256"], &event["bytes"]), (&json!(hex(&bytes)), &json!(bytes.len())));
            kept.insert(event["path"].as_str().unwrap().to_owned(), bytes);
        }
        if event["event"] == "offered" {
            assert_eq!(event["files"], json!(kept.len()));
            assert_eq!(event["manifest_sha256"], json!(hex(&kept["manifest.json"])));
            let said = ack.unwrap_or_else(|| event["manifest_sha256"].as_str().unwrap());
            writeln!(stdin, "ack {said}").unwrap();
        }
        event["data"].take();
        events.push(event);
    }
    (client.wait().unwrap().code().unwrap_or(255), events, kept)
}

pub(crate) fn acknowledged(lab: &Lab) -> Result<()> {
    let vm = bare_vm(lab)?;
    let before = (vm.pid(), vm.start_ticks());
    let ssh = anna(lab)?;
    let _absent = fs::remove_dir_all("/var/lib/pve-verb/evidence");
    let narrow = narrow_run(lab)?;
    wedge::disk_full("/var/lib/pve-verb")?.forget();

    // Nobody who could keep it: nothing is done, and what is advised is there.
    for request in ["cycle --json", "forensics --json"] {
        leave_little();
        let answer = ssh.call(request)?;
        let told = body(&answer)?;
        assert_eq!((answer.status, &told["outcome"]), (5, &json!("refused-evidence")), "{told}");
        assert!(told["message"]["do"].as_str().unwrap().contains("--json --inline"), "{told}");
    }
    // One who is offered it and says nothing, or something else.
    for wrong in [Some("0".repeat(64)), Some("nonsense".to_owned())] {
        let (status, events, _) = keeps(&ssh, "cycle --json --inline", wrong.as_deref());
        let told = lab::client::decoded(events.last().unwrap()["body"].as_str().unwrap()).unwrap();
        assert_eq!((status, &told["outcome"]), (5, &json!("refused-evidence")), "{told}");
        assert!(told["message"]["what"].as_str().unwrap().contains("did not acknowledge"), "{told}");
    }
    leave_little();
    let silent = ssh.call("cycle --json --inline")?;
    assert_eq!((silent.status, &body(&silent)?["outcome"]), (5, &json!("refused-evidence")));
    assert_eq!((vm.pid(), vm.start_ticks(), vm.observe()), (before.0, before.1, Observed::State("running".into())), "untouched");

    for request in ["forensics --json --inline", "cycle --json --inline"] {
        let (status, events, kept) = keeps(&ssh, request, None);
        let told = lab::client::decoded(events.last().unwrap()["body"].as_str().unwrap()).unwrap();
        assert_eq!((status, &told["preserved_where"], &told["outcome"]), (0, &json!("caller"), &json!("done")), "{told}");
        let weaker = told["degraded"].to_string();
        for step in ["the bundle is not on tmpfs: ", "the bundle is not on disk either: ", "the bundle is with the caller only"] {
            assert!(weaker.contains(step), "{step}: {weaker}");
        }
        assert_eq!(told["manifest_sha256"], json!(hex(&kept["manifest.json"])));
        sound(&kept);
        let at = |kind: &str| events.iter().position(|event| event["event"] == kind).unwrap_or_else(|| panic!("no {kind}"));
        assert!(at("artifact") < at("offered") && at("offered") < at("preserved"));
        assert_eq!(events[at("preserved")]["where"], "caller");
        if request.starts_with("cycle") {
            assert!(at("preserved") < at("step"), "the first act comes after the acknowledgement");
            let id = events[0]["request_id"].as_str().unwrap();
            station::quiet(AMPLE)?;
            let chain = Chain::read()?;
            assert_eq!((chain.count(id, "intent"), chain.count(id, "outcome")), (1, 1));
            let outcome = chain.records.iter().find(|r| r["kind"] == "outcome" && r["request_id"] == json!(id)).unwrap();
            assert_eq!((&outcome["preserved_where"], &outcome["manifest_sha256"]), (&json!("caller"), &told["manifest_sha256"]));
        }
    }
    assert_ne!((vm.pid(), vm.start_ticks()), before, "the mutation went on");
    drop(narrow);
    Ok(())
}
