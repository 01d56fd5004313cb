//! Captured → Preserved: the bundle is written, hashed, signed and sealed outside the VM. Only after this may the VM change.
//!
//! On tmpfs first, because the disk may hang with the VM's; then the writer child carries it to disk. If that is late or fails the
//! bundle stays on tmpfs, and everybody is told. Where tmpfs does not take it, the disk alone does; where neither, the request is refused.

use proto::{Body, BundleName, Manifest, NotCaptured, Predicate, ProbeOutcome, RequestFacts, Sha256Hex, Subject, Vmid, Where};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::capture::{Captured, Seen, event};
use crate::disk::Disk;
use crate::host::path;
use crate::lock::Locked;
use crate::policy::Authorised;
use crate::run::{Run, Stop};
use crate::text::say;
use crate::writer::Op;
use crate::{deadline, sign};

/// Proof that the evidence of this request is durable. Whatever changes the VM asks for it. Made by [`preserve`] only.
#[derive(Debug)]
pub struct Preserved {
    locked: Locked,
    seen: Seen,
    name: BundleName,
}

impl Preserved {
    /// The request.
    pub const fn authorised(&self) -> &Authorised {
        self.locked.authorised()
    }

    /// What was seen before.
    pub const fn seen(&self) -> &Seen {
        &self.seen
    }

    /// The bundle.
    pub const fn name(&self) -> &BundleName {
        &self.name
    }

    /// The verb that it was captured for.
    pub const fn verb(&self) -> proto::Verb {
        self.authorised().verb()
    }
}

/// What a bundle consists of: paths in it, and bytes.
type Files<'a> = Vec<(String, Cow<'a, [u8]>)>;

/// Seals the bundle on the best rung there is.
///
/// # Errors
/// Refused-evidence where no rung takes it.
pub fn preserve(run: &mut Run, captured: Captured) -> Result<Preserved, Stop> {
    let authorised = captured.locked().authorised();
    let name = BundleName::new(run.started(), authorised.verb(), authorised.id());
    let vmid = authorised.vmid();
    let manifest = manifest(run, &captured);
    let shelf = PathBuf::from(format!("{}/{vmid}", path::RUN_EVIDENCE));
    let (files, manifest_sha256) = files(run, &captured, &manifest).map_err(|e| Stop::evidence(say::evidence_nowhere(&e.to_string())))?;
    let place = match seal(&shelf, &name, &files) {
        Ok(()) => match run.disk.call(&Op::CarryBundle { vmid, name: name.clone() }, &[], deadline::CARRY) {
            Ok(_) => Where::Disk,
            Err(e) => {
                run.degrade(format!("the bundle is on tmpfs only: {e}"));
                Where::Tmpfs
            }
        },
        Err(no_tmpfs) => {
            put(&run.disk, vmid, &name, &files)
                .map_err(|no_disk| Stop::evidence(say::evidence_nowhere(&format!("{no_tmpfs}; {no_disk}"))))?;
            run.degrade(format!("/run took no bundle ({no_tmpfs}); it was sealed on disk alone"));
            Where::Disk
        }
    };
    if place == Where::Disk {
        let _ = std::fs::remove_dir_all(shelf.join(name.as_str()));
    }
    let said = proto::Preserved { bundle: name.clone(), place, manifest_sha256, degraded: run.degraded().to_vec() };
    run.preserved(&said);
    run.answer.say(Body::Preserved(said));
    let (locked, seen) = captured.open();
    Ok(Preserved { locked, seen, name })
}

/// The in-toto statement about the artifacts.
fn manifest(run: &Run, captured: &Captured) -> Manifest {
    let parsed = captured.locked().authorised().parsed();
    let options = parsed.request().options();
    let probes: Vec<_> = captured.seen().answers.iter().map(event).collect();
    let mut subject: Vec<_> = probes
        .iter()
        .filter_map(|p| p.artifact.as_ref())
        .map(|a| Subject { name: a.path.clone(), digest: [("sha256".to_owned(), a.sha256.clone())].into() })
        .collect();
    for (name, bytes) in extras(captured) {
        subject.push(Subject { name: name.to_owned(), digest: [("sha256".to_owned(), hash(&bytes))].into() });
    }
    Manifest {
        statement: proto::IN_TOTO_STATEMENT.to_owned(),
        subject,
        predicate_type: proto::PREDICATE_TYPE.to_owned(),
        predicate: Predicate {
            request: RequestFacts {
                request_id: parsed.id().clone(),
                verb: parsed.request().verb(),
                vmid: parsed.caller().vmid,
                key_name: parsed.caller().key_name.clone(),
                key_fingerprint: parsed.caller().key_fp.clone(),
                origin: parsed.origin(),
                actor: options.actor.clone(),
                reason: options.reason.clone(),
                dry_run: options.dry_run,
                started: run.started(),
            },
            host: proto::Host { node: run.host.node.clone(), boot_id: run.host.boot_id.clone() },
            binary: run.host.binary.clone(),
            not_captured: probes
                .iter()
                .filter(|p| p.outcome != ProbeOutcome::Captured)
                .map(|p| NotCaptured { name: p.name.clone(), outcome: p.outcome, why: p.detail.clone().unwrap_or_default() })
                .collect(),
            probes,
            assessment: captured.seen().assessment.clone(),
            degraded: run.degraded().to_vec(),
        },
    }
}

/// What belongs to every bundle beside the probes' artifacts.
fn extras(captured: &Captured) -> [(&'static str, Vec<u8>); 2] {
    let assessment = serde_json::to_vec_pretty(&captured.seen().assessment).unwrap_or_default();
    [("assessment.json", assessment), ("summary.txt", summary(captured).into_bytes())]
}

/// One screen for a person who has only the bundle.
fn summary(captured: &Captured) -> String {
    let (authorised, seen) = (captured.locked().authorised(), captured.seen());
    let a = &seen.assessment;
    let mut lines = vec![format!("VM {} is {}: {}", authorised.vmid(), seen.state, a.code), a.sentence.clone(), String::new()];
    for finding in &a.findings {
        lines.push(format!("- {} [{}]", finding.text, finding.evidence.join(", ")));
    }
    let advice = a.recommend.verb.map_or_else(|| "no verb".to_owned(), |v| v.to_string());
    lines.push(format!("Recommended: {advice}. {}", a.recommend.why));
    lines.push(String::new());
    lines.push("Not captured:".to_owned());
    lines.extend(
        seen.answers
            .iter()
            .filter(|p| p.outcome != ProbeOutcome::Captured)
            .map(|p| format!("- {}: {}", p.name, p.detail.as_deref().unwrap_or("no reason given"))),
    );
    lines.push(String::new());
    lines.join("\n")
}

/// Everything that belongs to the bundle, by its path in it, and the manifest's hash.
fn files<'a>(run: &mut Run, captured: &'a Captured, manifest: &Manifest) -> std::io::Result<(Files<'a>, Sha256Hex)> {
    let artifacts = captured.seen().answers.iter().filter_map(|a| a.artifact.as_ref());
    let mut files: Files<'a> = artifacts.map(|a| (a.path.clone(), Cow::Borrowed(a.bytes.as_bytes()))).collect();
    files.extend(extras(captured).map(|(path, bytes)| (path.to_owned(), Cow::Owned(bytes))));
    let bytes = serde_json::to_vec_pretty(manifest)?;
    let (sha256, signed) = (hash(&bytes), run.sign(proto::namespace::MANIFEST, &bytes));
    files.push(("manifest.json".to_owned(), Cow::Owned(bytes)));
    match signed {
        Ok(blob) => files.push(("manifest.json.sig".to_owned(), Cow::Owned(sign::armour(&blob).into_bytes()))),
        Err(why) => run.degrade(format!("the manifest is not signed: {why}")),
    }
    Ok((files, sha256))
}

/// Writes everything below `shelf`, and gives the folder its name last. Where that fails nothing of it stays.
fn seal(shelf: &Path, name: &BundleName, files: &Files<'_>) -> std::io::Result<()> {
    let partial = shelf.join(format!("{name}.partial"));
    let sealed = (|| {
        folder(shelf)?;
        folder(&partial)?;
        // Locked until it has its name: what is there without a lock is a dead one's (litter.rs).
        let opened = File::open(&partial)?;
        flock(&opened, FlockOperation::NonBlockingLockExclusive)?;
        for (path, bytes) in files {
            write(&partial, path, bytes)?;
        }
        opened.sync_all()?;
        std::fs::rename(&partial, shelf.join(name.as_str()))?;
        File::open(shelf)?.sync_all()
    })();
    if sealed.is_err() {
        // What took the last room would be in the way of everything else that is in /run.
        let _ = std::fs::remove_dir_all(&partial);
    }
    sealed
}

/// The same on disk, file by file through the writer, where tmpfs takes no bundle.
fn put(disk: &Disk, vmid: Vmid, name: &BundleName, files: &Files<'_>) -> Result<(), String> {
    let until = Instant::now() + deadline::CARRY;
    let call = |op: &Op, payload: &[u8]| {
        disk.call(op, payload, until.saturating_duration_since(Instant::now())).map(drop).map_err(|e| e.to_string())
    };
    for (path, bytes) in files {
        let path = path.clone().try_into().map_err(|e| format!("{e}"))?;
        call(&Op::BundlePut { vmid, name: name.clone(), path }, bytes)?;
    }
    call(&Op::BundleSeal { vmid, name: name.clone() }, &[])
}

fn folder(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes one file, whose path is one of our plan's, and syncs it.
fn write(root: &Path, path: &str, bytes: &[u8]) -> std::io::Result<()> {
    let full = root.join(path);
    if let Some(parent) = full.parent() {
        folder(parent)?;
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&full)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn hash(bytes: &[u8]) -> Sha256Hex {
    Sha256Hex::from_bytes(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tests::{broken_disk, disk_at};

    fn files() -> Files<'static> {
        vec![("qmp/greeting.json".to_owned(), Cow::Borrowed(&b"{}"[..])), ("manifest.json".to_owned(), Cow::Borrowed(&b"[]"[..]))]
    }

    fn name() -> BundleName {
        "20261121T003000.123Z-cycle-1f0c9a2e".parse().unwrap()
    }

    #[test]
    fn a_seal_that_fails_leaves_nothing_and_the_disk_takes_the_bundle_alone() {
        let root = tempfile::tempdir().unwrap();
        let shelf = root.path().join("run/102");
        // The second file can't be made: as on a tmpfs that has just become full, half of the bundle is there by then.
        let mut doomed = files();
        doomed.push(("manifest.json/x".to_owned(), Cow::Borrowed(b"x")));
        assert!(seal(&shelf, &name(), &doomed).is_err());
        assert_eq!(std::fs::read_dir(&shelf).unwrap().count(), 0, "half a bundle stays on tmpfs");
        put(&disk_at(root.path()), Vmid::DEVVM, &name(), &files()).unwrap();
        let on_disk = root.path().join(&path::EVIDENCE[1..]).join("102").join(name().as_str());
        assert_eq!(std::fs::read(on_disk.join("qmp/greeting.json")).unwrap(), b"{}");
        assert_eq!(std::fs::read(on_disk.join("manifest.json")).unwrap(), b"[]");
        assert_eq!(std::fs::read_dir(on_disk.parent().unwrap()).unwrap().count(), 1);
        assert!(put(&broken_disk(), Vmid::DEVVM, &name(), &files()).unwrap_err().contains("No space left"));
    }

    #[test]
    fn a_seal_that_succeeds_has_its_name() {
        let root = tempfile::tempdir().unwrap();
        seal(root.path(), &name(), &files()).unwrap();
        assert_eq!(std::fs::read(root.path().join(name().as_str()).join("manifest.json")).unwrap(), b"[]");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
