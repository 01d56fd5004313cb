//! Captured → Preserved: the bundle is written, hashed, signed and sealed outside the VM. Only after this may the VM change.
//!
//! On tmpfs first, because the disk may hang with the VM's; then the writer child carries it to disk. If that is late or fails the
//! bundle stays on tmpfs, and everybody is told. Where not even tmpfs takes it the request is refused.

use proto::{Body, BundleName, Manifest, NotCaptured, Predicate, ProbeOutcome, RequestFacts, Sha256Hex, Subject, Where};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::capture::{Captured, Seen, event};
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

/// Seals the bundle on the best rung there is.
///
/// # Errors
/// Refused-evidence where no rung takes it.
pub fn preserve(run: &mut Run, captured: Captured) -> Result<Preserved, Stop> {
    let authorised = captured.locked().authorised();
    let name = BundleName::new(run.started(), authorised.verb(), authorised.id());
    let vmid = authorised.vmid();
    let manifest = manifest(run, &captured);
    let sealed = seal(run, &format!("{}/{vmid}", path::RUN_EVIDENCE), &name, &captured, &manifest);
    let manifest_sha256 = sealed.map_err(|e| Stop::evidence(say::evidence_nowhere(&e.to_string())))?;

    let place = match run.disk.call(&Op::CarryBundle { vmid, name: name.clone() }, &[], deadline::CARRY) {
        Ok(_) => Where::Disk,
        Err(e) => {
            run.degrade(format!("the bundle is on tmpfs only: {e}"));
            Where::Tmpfs
        }
    };
    if place == Where::Disk {
        let _ = std::fs::remove_dir_all(format!("{}/{vmid}/{name}", path::RUN_EVIDENCE));
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

/// Writes everything below `parent`, and gives the folder its name last.
fn seal(run: &mut Run, parent: &str, name: &BundleName, captured: &Captured, manifest: &Manifest) -> std::io::Result<Sha256Hex> {
    let partial = PathBuf::from(format!("{parent}/{name}.partial"));
    folder(Path::new(parent))?;
    folder(&partial)?;
    for artifact in captured.seen().answers.iter().filter_map(|a| a.artifact.as_ref()) {
        write(&partial, &artifact.path, artifact.bytes.as_bytes())?;
    }
    for (path, bytes) in extras(captured) {
        write(&partial, path, &bytes)?;
    }
    let bytes = serde_json::to_vec_pretty(manifest)?;
    write(&partial, "manifest.json", &bytes)?;
    match run.sign(proto::namespace::MANIFEST, &bytes) {
        Ok(blob) => write(&partial, "manifest.json.sig", sign::armour(&blob).as_bytes())?,
        Err(why) => run.degrade(format!("the manifest is not signed: {why}")),
    }
    File::open(&partial)?.sync_all()?;
    std::fs::rename(&partial, format!("{parent}/{name}"))?;
    File::open(parent)?.sync_all()?;
    Ok(hash(&bytes))
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
