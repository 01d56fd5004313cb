//! `forensics --bundle=NAME`: an existing bundle is the answer. Captures nothing, takes no lock, asks neither QEMU nor the guest.
//!
//! Only the bundles of the key's own VM are looked for, and only whole ones have such a name. What is shown is what the manifest says;
//! where its signature or an artifact is not as it was sealed, that is told.

use proto::{BundleName, Manifest, Where, namespace};
use std::path::PathBuf;
use std::time::Instant;

use crate::answer::Files;
use crate::bundle::hash;
use crate::deadline;
use crate::host::path;
use crate::policy::Authorised;
use crate::run::{Run, Stop};
use crate::text::say;
use crate::tree::Tree;
use crate::verify::{self, Verified};
use crate::writer::{ArtifactPath, Op, Reply};

/// More than any bundle is; a tar of it is made in memory.
const MOST: usize = 256 << 20;
/// More than any manifest is.
const MOST_MANIFEST: usize = 8 << 20;

/// Where a bundle was found.
struct Found {
    place: Where,
    tmpfs: Option<Tree>,
    until: Instant,
}

/// Answers with this bundle.
///
/// # Errors
/// No such bundle of this VM; or one that can't be read in time.
pub fn show(run: &mut Run, authorised: &Authorised, name: &BundleName) -> Result<Verified, Stop> {
    run.accepted(authorised);
    let unreadable = |why: &str| Stop::precondition(say::bundle_unreadable(name, why), proto::VmState::Unknown);
    let tmpfs = Tree::open(&PathBuf::from(format!("{}/{}/{name}", path::RUN_EVIDENCE, run.vmid()))).ok().flatten();
    let place = if tmpfs.is_some() { Where::Tmpfs } else { Where::Disk };
    let found = Found { place, tmpfs, until: Instant::now() + deadline::SHOW };
    let bytes = match found.read(run, name, "manifest.json") {
        Ok(Some(bytes)) if bytes.len() <= MOST_MANIFEST => bytes,
        Ok(Some(_)) => return Err(unreadable("its manifest is too long")),
        Ok(None) => return Err(Stop::request(say::no_such_bundle(name))),
        Err(why) => return Err(unreadable(&why)),
    };
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|_| unreadable("its manifest is none"))?;
    let request = &manifest.predicate.request;
    if request.vmid != run.vmid() || BundleName::new(request.started, request.verb, &request.request_id) != *name {
        return Err(unreadable("its manifest is another bundle's"));
    }
    let sig = found.read(run, name, "manifest.json.sig").ok().flatten();
    if !sig.as_ref().is_some_and(|sig| run.signed_here(namespace::MANIFEST, &bytes, sig)) {
        run.degrade(format!("the manifest of {name} does not carry a good signature of this host's present key"));
    }
    let files = read_files(run, &found, name, &manifest);
    for probe in &manifest.predicate.probes {
        let artifact = probe.artifact.as_ref().and_then(|a| files.iter().find(|(path, _)| *path == a.path));
        run.probe(proto::Probe { data: None, ..probe.clone() }, artifact.map(|(_, bytes)| bytes.as_slice()));
    }
    run.answer.say(proto::Body::Assessment(manifest.predicate.assessment.clone()));
    let mut degraded = manifest.predicate.degraded.clone();
    degraded.extend(run.degraded().iter().filter(|d| !manifest.predicate.degraded.contains(d)).cloned());
    let said = proto::Preserved { bundle: name.clone(), place: found.place, manifest_sha256: hash(&bytes), degraded };
    run.tells_of(&said);
    run.judged_then(manifest.predicate.assessment.code);
    run.answer.say(proto::Body::Preserved(said));
    run.answer.before_the_receipt(name, || {
        let mut all = files;
        all.push(("manifest.json".to_owned(), bytes));
        all.extend(sig.map(|sig| ("manifest.json.sig".to_owned(), sig)));
        all
    });
    Ok(verify::shown(name))
}

/// The artifacts that the answer will hold, those only that are what the manifest says.
fn read_files(run: &mut Run, found: &Found, name: &BundleName, manifest: &Manifest) -> Files {
    let mut files = Files::new();
    if !run.inline() && !run.answer.is_tar() {
        return files;
    }
    let mut left = MOST;
    for subject in &manifest.subject {
        let sound = found.read(run, name, &subject.name).and_then(|read| match read {
            None => Err("it is missing".to_owned()),
            Some(bytes) if subject.digest.get("sha256") != Some(&hash(&bytes)) => Err("it is not what the manifest says".to_owned()),
            Some(bytes) => left.checked_sub(bytes.len()).map(|rest| (rest, bytes)).ok_or_else(|| "the bundle is too long".to_owned()),
        });
        match sound {
            Ok((rest, bytes)) => {
                left = rest;
                files.push((subject.name.clone(), bytes));
            }
            Err(why) => run.degrade(format!("{} is left out: {why}", proto::escape_cut(subject.name.as_bytes(), 100))),
        }
    }
    files
}

impl Found {
    /// One file of it: from tmpfs here, from disk through the writer.
    fn read(&self, run: &Run, name: &BundleName, path: &str) -> Result<Option<Vec<u8>>, String> {
        let path = ArtifactPath::try_from(path.to_owned())?;
        if let Some(tree) = &self.tmpfs {
            return tree.read(path.as_str(), MOST as u64).map_err(|e| e.to_string());
        }
        let op = Op::BundleRead { vmid: run.vmid(), name: name.clone(), path };
        match run.disk.call(&op, &[], self.until.saturating_duration_since(Instant::now())) {
            Ok(Reply::Bytes { bytes }) => Ok(Some(bytes)),
            Ok(_) => Ok(None),
            Err(e) => Err(e.to_string()),
        }
    }
}
