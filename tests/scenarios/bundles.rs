//! Bundles after they were made: listed, shown, verified, exported, sent again, kept by a caller, and dropped when there are too many.
//! QEMU is real and boots no guest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking
#![allow(clippy::print_stderr)] // the figures are worth a line

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64ct::{Base64, Encoding};
use lab::chain::Chain;
use lab::lab::{Scenario, run_scenarios};
use lab::process::{must, start, until};
use lab::station::{self, BUNDLES, anna, bare_vm, body, console, fresh_id};
use lab::{Answer, Lab, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

#[path = "bundles/rungs.rs"]
mod rungs;

const SCENARIOS: &[Scenario] = &[
    ("when_a_bundle_is_made_then_it_is_listed_shown_verified_and_exported", admin),
    ("when_a_bit_of_a_bundle_is_flipped_then_verify_finds_it", flipped),
    ("when_a_tar_is_asked_for_over_ssh_then_stock_tar_reads_it_and_it_verifies", tarred),
    ("when_the_reader_of_a_tar_goes_away_then_the_record_is_written_all_the_same", tar_reader_gone),
    ("when_an_existing_bundle_is_asked_for_then_it_is_the_answer_and_nothing_is_captured", shown),
    ("when_there_are_more_than_twenty_bundles_of_no_mutation_then_the_oldest_go_and_are_recorded", retention),
    ("when_tmpfs_is_too_small_then_the_bundle_goes_straight_to_disk", rungs::straight_to_disk),
    // Last: its small disks stay.
    ("when_neither_tmpfs_nor_disk_takes_the_evidence_then_the_caller_who_acknowledges_keeps_it", rungs::acknowledged),
];

const AMPLE: Duration = Duration::from_secs(60);
const SIGNERS: &str = "/run/lab/allowed_signers";

fn main() {
    run_scenarios(SCENARIOS, station::install)
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A fresh bundle: its name and folder.
fn forensics(lab: &Lab) -> Result<(String, PathBuf)> {
    bare_vm(lab)?;
    let told = body(&anna(lab)?.call("forensics --json")?)?;
    assert_eq!((&told["outcome"], &told["preserved_where"]), (&json!("done"), &json!("disk")), "{told}");
    let name = told["bundle"].as_str().unwrap().to_owned();
    Ok((name.clone(), Path::new(BUNDLES[0]).join(name)))
}

/// Every file below a folder, by path.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                let path = entry.path().strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                all.insert(path, fs::read(entry.path()).unwrap());
            }
        }
    }
    all
}

/// Checked by stock `ssh-keygen` and SHA-256, and by nothing of ours.
fn sound(files: &BTreeMap<String, Vec<u8>>) {
    let printed = must("/usr/sbin/pve-verb", ["init"]).unwrap().text();
    lab::host::write(SIGNERS, &printed, 0o644).unwrap();
    fs::write("/run/lab/sound.sig", &files["manifest.json.sig"]).unwrap();
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-Y", "verify", "-f", SIGNERS, "-I", "pve-verb@pve", "-n", "pve-verb-manifest", "-s", "/run/lab/sound.sig"]);
    assert_eq!(start(&mut keygen, &files["manifest.json"]).unwrap().finish(AMPLE).unwrap().status, 0, "the manifest's signature");
    let manifest: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
    let named: BTreeMap<&str, &str> = manifest["subject"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (s["name"].as_str().unwrap(), s["digest"]["sha256"].as_str().unwrap()))
        .collect();
    for (path, bytes) in files.iter().filter(|(path, _)| !path.starts_with("manifest.json") && *path != "receipt.json") {
        assert_eq!(named.get(path.as_str()), Some(&hex(bytes).as_str()), "{path}");
    }
    assert!(named.len() > 30 && named.keys().all(|path| files.contains_key(*path)), "{} named", named.len());
}

fn bundle(words: &str) -> Answer {
    console(&format!("bundle {words}"), AMPLE).unwrap()
}

fn admin(lab: &Lab) -> Result<()> {
    let (name, folder) = forensics(lab)?;
    let records = Chain::read()?.records.len();
    let listed = bundle("list").text();
    assert!(listed.contains(&format!("{name}\n  disk, ")), "{listed}");
    let shown = bundle(&format!("show {name}")).text();
    assert!(shown.contains("VM 102 is running") && shown.contains("  qmp/query-status.json ("), "{shown}");
    assert!(shown.contains(&folder.display().to_string()));
    let verified = bundle(&format!("verify {name}"));
    assert!(verified.status == 0 && verified.text().starts_with("intact: "), "{}", verified.text());
    assert!(verified.text().contains(&hex(&fs::read(folder.join("manifest.json")).unwrap())), "{}", verified.text());

    let tar = bundle(&format!("export {name}"));
    let again = bundle(&format!("export {name}"));
    assert!(tar.status == 0 && tar.stdout == again.stdout, "the same bundle gives the same bytes");
    let _absent = fs::remove_file("/run/lab/out.tar");
    assert_eq!(bundle(&format!("export {name} --output /run/lab/out.tar")).status, 0);
    assert_eq!(fs::read("/run/lab/out.tar").unwrap(), tar.stdout);
    let over = bundle(&format!("export {name} -o /run/lab/out.tar"));
    assert!(over.status == 1 && String::from_utf8_lossy(&over.stderr).contains("not overwritten"));
    let unpacked = untar(&tar.stdout);
    assert_eq!(files(&unpacked.path().join(&name)), files(&folder));
    sound(&files(&folder));

    for bad in ["show", "verify", "export"] {
        assert!(bundle(&format!("{bad} {name} --vmid 103")).status != 0, "{bad} of another VM");
        assert_eq!(bundle(&format!("{bad} {name}.partial")).status, 2, "{bad} of half a bundle");
        assert_eq!(bundle(&format!("{bad} ../102/{name}")).status, 2, "{bad} of a path");
    }
    assert_eq!(Chain::read()?.records.len(), records, "the admin's commands write no record");
    Ok(())
}

/// What stock tar makes of it.
fn untar(bytes: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir_in("/run/lab").unwrap();
    let mut tar = Command::new("tar");
    tar.args(["-x", "-f", "-", "-C", folder.path().to_str().unwrap()]);
    let end = start(&mut tar, bytes).unwrap().finish(AMPLE).unwrap();
    assert_eq!(end.status, 0, "{}", String::from_utf8_lossy(&end.stderr));
    folder
}

fn flipped(lab: &Lab) -> Result<()> {
    let (name, folder) = forensics(lab)?;
    let whole = files(&folder);
    let mut tried = 0;
    let mut flip = |path: &str, at: usize, right: i32| {
        let mut bad = whole[path].clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(folder.join(path), &bad).unwrap();
        let answer = bundle(&format!("verify {name}"));
        assert_eq!(answer.status, right, "{path}, byte {at}: {}", answer.text());
        fs::write(folder.join(path), &whole[path]).unwrap();
        tried += 1;
    };
    for (path, bytes) in &whole {
        let (right, step) = match path.as_str() {
            "manifest.json" => (34, bytes.len() / 97),
            "manifest.json.sig" => (34, bytes.len() / 29),
            _ => (30, bytes.len() / 2),
        };
        // The first, the last, and those between.
        let places = (0..bytes.len()).step_by(step.max(1)).chain(bytes.len().checked_sub(1));
        places.for_each(|at| flip(path, at, right));
    }
    eprintln!("bundles: {} files, {tried} flipped bits, all found", whole.len());
    fs::remove_file(folder.join("host/meminfo.txt")).unwrap();
    assert_eq!(bundle(&format!("verify {name}")).status, 32);
    fs::write(folder.join("host/meminfo.txt"), &whole["host/meminfo.txt"]).unwrap();
    fs::write(folder.join("qmp/extra.json"), "{}").unwrap();
    assert_eq!(bundle(&format!("verify {name}")).status, 31);
    fs::remove_file(folder.join("qmp/extra.json")).unwrap();
    assert_eq!(bundle(&format!("verify {name}")).status, 0);
    Ok(())
}

/// A tar that came over ssh: its bundle's name and files, the receipt last.
fn received(answer: &Answer) -> (String, BTreeMap<String, Vec<u8>>, Value) {
    let mut list = Command::new("tar");
    list.args(["-t", "-f", "-"]);
    let names = start(&mut list, &answer.stdout).unwrap().finish(AMPLE).unwrap();
    assert_eq!(names.status, 0, "{}", String::from_utf8_lossy(&names.stderr));
    let last = names.text().lines().last().unwrap().to_owned();
    let name = last.strip_suffix("/receipt.json").expect("the last member is the receipt").to_owned();
    let all = files(&untar(&answer.stdout).path().join(&name));
    let event: Value = serde_json::from_slice(&all["receipt.json"]).unwrap();
    let told = lab::client::decoded(event["body"].as_str().unwrap()).unwrap();
    (name, all, told)
}

fn tarred(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    let ssh = anna(lab)?;
    let answer = ssh.call("forensics --tar")?;
    assert_eq!(answer.status, 0);
    let (name, all, told) = received(&answer);
    assert_eq!((&told["outcome"], &told["bundle"]), (&json!("done"), &json!(name)));
    assert_eq!(told["manifest_sha256"], json!(hex(&all["manifest.json"])));
    sound(&all);
    let mut kept = all;
    kept.remove("receipt.json");
    assert_eq!(kept, files(&Path::new(BUNDLES[0]).join(&name)), "what came is what is kept");

    let again = ssh.call(format!("forensics --tar --bundle={name}"))?;
    let (other, mut all, told) = received(&again);
    assert_eq!((again.status, &other, &told["bundle"]), (0, &name, &json!(name)));
    all.remove("receipt.json");
    assert_eq!(all, kept);
    // A refusal is a tar as well, and says why.
    let refused = ssh.call("forensics --tar --bundle=20201121T003000.123Z-cycle-1f0c9a2e")?;
    let (folder, all, told) = received(&refused);
    assert_eq!((refused.status, folder.as_str(), &told["outcome"]), (2, "refused", &json!("refused-request")));
    assert!(String::from_utf8_lossy(&all["answer.txt"]).contains("There is no bundle"));
    Ok(())
}

fn tar_reader_gone(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    let id = fresh_id()?;
    let mut ssh = anna(lab)?.command(format!("forensics --tar --request-id={id}").as_bytes());
    let mut client = ssh.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let made = until("the bundle", AMPLE, || (station::bundles(&id).len() == 1).then_some(()));
    client.kill().unwrap();
    client.wait().unwrap();
    made?;
    station::quiet(AMPLE)?;
    assert_eq!(Chain::read()?.count(&id, "read"), 1);
    Ok(())
}

fn shown(lab: &Lab) -> Result<()> {
    let (name, folder) = forensics(lab)?;
    let ssh = anna(lab)?;
    let before = fs::read_dir(BUNDLES[0]).unwrap().count();
    let answer = ssh.call(format!("forensics --json --inline --bundle={name}"))?;
    let told = body(&answer)?;
    assert_eq!((answer.status, &told["bundle"], &told["preserved_where"]), (0, &json!(name), &json!("disk")), "{told}");
    // But for its own record, for whose way to the disk a read has only a part of a second.
    let mut weaker = told["degraded"].as_array().unwrap().iter().map(|text| text.as_str().unwrap());
    assert!(weaker.all(|text| text.starts_with("the audit record ") && text.contains(" is on tmpfs only: ")), "{told}");
    assert!(told["message"].to_string().contains("nothing new was captured"));
    let mut inside = 0;
    for probe in answer.events_of("probe") {
        if let Some(data) = probe["data"].as_str() {
            inside += 1;
            let path = folder.join(probe["artifact"]["path"].as_str().unwrap());
            assert_eq!(Base64::decode_vec(data).unwrap(), fs::read(path).unwrap());
        }
    }
    assert!(inside > 20, "{inside} artifacts");
    assert_eq!((answer.events_of("assessment").len(), answer.events_of("preserved")[0]["where"].as_str()), (1, Some("disk")));
    let text = ssh.call(format!("forensics --bundle={name}"))?.flat();
    assert!(text.contains(&name) && !text.contains("Now:"), "{text}");

    // An artifact that somebody changed is not sent, and that is told.
    let path = folder.join("host/meminfo.txt");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, "MemTotal: 1 kB\n").unwrap();
    let told = body(&ssh.call(format!("forensics --json --inline --bundle={name}"))?)?;
    assert!(told["degraded"].to_string().contains("host/meminfo.txt is left out: it is not what the manifest says"), "{told}");
    fs::write(&path, whole).unwrap();

    // Another VM's is not there, half of one has no name, and a name is no path.
    lab.host.authorize("other-vm", "--vmid 103")?;
    let half = Path::new(BUNDLES[0]).join("20261121T003000.123Z-cycle-1f0c9a2e.partial");
    fs::create_dir_all(&half).unwrap();
    for (ssh, asked) in [
        (lab.host.ssh("other-vm")?, name.clone()),
        (ssh.clone(), "20261121T003000.123Z-cycle-1f0c9a2e".to_owned()),
        (ssh.clone(), "20261121T003000.123Z-cycle-1f0c9a2e.partial".to_owned()),
        (ssh.clone(), format!("../102/{name}")),
    ] {
        let answer = ssh.call(format!("forensics --bundle={asked}"))?;
        assert_eq!(answer.status, 2, "{asked}: {}", answer.text());
        assert!(answer.lines().last().unwrap().ends_with(" refused-request"), "{}", answer.text());
    }
    fs::remove_dir_all(half).unwrap();
    assert_eq!(fs::read_dir(BUNDLES[0]).unwrap().count(), before, "nothing was captured");
    Ok(())
}

#[allow(clippy::zombie_processes, reason = "a failing scenario ends its pid namespace, and with it the child")]
fn retention(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    let ssh = anna(lab)?;
    assert_eq!(ssh.call("cycle --json")?.status, 0);
    let mut made = Vec::new();
    // What changes nothing is of the same kind: a dry run, a `start` of what runs, and a verb that is refused behind its evidence.
    let mut holder = Command::new("flock").args(["--no-fork", "/run/lock/qemu-server/lock-102.conf", "sleep", "600"]).spawn().unwrap();
    let lines = ["stop --dry-run --json", "start --json", "stop --json"].into_iter().chain(std::iter::repeat_n("forensics --json", 22));
    for line in lines {
        let told = body(&ssh.call(line)?)?;
        made.push(told["bundle"].as_str().unwrap_or_else(|| panic!("{line}: {told:#}")).to_owned());
    }
    let _gone = holder.kill();
    let _reaped = holder.wait();
    station::quiet(AMPLE)?;
    let kept: Vec<String> = fs::read_dir(BUNDLES[0]).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap()).collect();
    let forensics: Vec<_> = kept.iter().filter(|name| name.contains("-forensics-")).collect();
    assert_eq!(forensics.len(), 20, "{kept:?}");
    assert!(made[5..].iter().all(|name| kept.contains(name)) && made[..5].iter().all(|name| !kept.contains(name)), "{kept:?}");
    assert!(kept.iter().any(|name| name.contains("-cycle-")), "a mutation's bundle stays: {kept:?}");
    assert!(!kept.iter().any(|name| name.ends_with(".dropped")));
    let chain = Chain::read()?;
    for name in &made[..5] {
        let record = chain.records.iter().find(|r| r["kind"] == "pruned" && r["bundle"] == json!(name)).expect("no record of it");
        let its = chain.records.iter().find(|r| r["kind"] != "pruned" && r["bundle"] == json!(name)).unwrap();
        assert_eq!((&record["bundle_seq"], &record["manifest_sha256"]), (&its["seq"], &its["manifest_sha256"]));
    }
    assert_eq!(console("log verify", AMPLE)?.status, 0);
    assert_eq!(ssh.call(format!("forensics --bundle={}", made[0]))?.status, 2);
    assert_eq!(ssh.call(format!("forensics --bundle={}", made[5]))?.status, 0);
    Ok(())
}
