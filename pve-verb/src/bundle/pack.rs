//! What a bundle is made of: the artifacts, the judgement, the summary, the manifest over all of them and its signature. In memory;
//! where it goes is the stage's.

use base64ct::{Base64, Encoding};
use proto::{Body, BundleName, Manifest, NotCaptured, Offered, Predicate, Probe, ProbeOutcome, RequestFacts, Sha256Hex, Subject};
use std::borrow::Cow;

use super::hash;
use crate::capture::{Captured, event};
use crate::run::Run;
use crate::{deadline, sign};

/// What a caller is given at most, all files together.
const MOST_TO_THE_CALLER: usize = 8 << 20;

/// The files of a bundle, the manifest and its signature last.
pub(super) struct Pack<'a> {
    pub(super) files: Vec<(String, Cow<'a, [u8]>)>,
    /// The manifest's hash.
    pub(super) sha256: Sha256Hex,
}

impl<'a> Pack<'a> {
    /// All of it, without the artifacts of these questions. Unsigned where there is no key, and then it says so itself.
    pub(super) fn of(run: &mut Run, captured: &'a Captured, left_out: &[String]) -> Self {
        let answers = &captured.seen().answers;
        let mut probes: Vec<Probe> = answers.iter().map(event).collect();
        for probe in probes.iter_mut().filter(|p| left_out.contains(&p.name)) {
            probe.artifact = None;
            probe.outcome = ProbeOutcome::Unavailable;
            probe.detail = Some("it was captured and left out: the caller, who alone could keep it, takes 8 MiB".to_owned());
        }
        let kept = answers.iter().filter(|a| !left_out.contains(&a.name)).filter_map(|a| a.artifact.as_ref());
        let mut files: Vec<(String, Cow<'a, [u8]>)> = kept.map(|a| (a.path.clone(), Cow::Borrowed(a.bytes.as_bytes()))).collect();
        let assessment = serde_json::to_vec_pretty(&captured.seen().assessment).unwrap_or_default();
        files.push(("assessment.json".to_owned(), assessment.into()));
        files.push(("summary.txt".to_owned(), summary(captured, &probes).into_bytes().into()));
        let manifest = serde_json::to_vec_pretty(&manifest(run, captured, probes, &files)).unwrap_or_default();
        let sha256 = hash(&manifest);
        let signed = run.sign(proto::namespace::MANIFEST, &manifest);
        files.push(("manifest.json".to_owned(), manifest.into()));
        match signed {
            Ok(blob) => files.push(("manifest.json.sig".to_owned(), sign::armour(&blob).into_bytes().into())),
            Err(why) => run.degrade(format!("the manifest is not signed: {why}")),
        }
        Self { files, sha256 }
    }

    /// As much as the caller takes, and what was left out: the autopsy, the host's group, then the largest first.
    pub(super) fn for_the_caller(run: &mut Run, captured: &'a Captured) -> (Self, Vec<String>) {
        let group = |name: &str| if name.starts_with("autopsy/") { 0 } else { 1 + u8::from(!name.starts_with("host/")) };
        let answers = captured.seen().answers.iter();
        let mut rest: Vec<_> = answers.filter_map(|a| Some((a.artifact.as_ref()?.bytes.as_bytes().len(), a.name.as_str()))).collect();
        rest.sort_by_key(|(bytes, name)| (group(name), usize::MAX - bytes));
        let mut left_out: Vec<String> = Vec::new();
        let mut rest = rest.into_iter().peekable();
        loop {
            let pack = Self::of(run, captured, &left_out);
            let mut over = pack.bytes().saturating_sub(MOST_TO_THE_CALLER);
            if over == 0 || rest.peek().is_none() {
                return (pack, left_out);
            }
            while over > 0
                && let Some((bytes, name)) = rest.next()
            {
                over = over.saturating_sub(bytes);
                left_out.push(name.to_owned());
            }
        }
    }

    fn bytes(&self) -> usize {
        self.files.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    /// Each file as the caller gets it.
    pub(super) fn events(&self) -> impl Iterator<Item = Body> + '_ {
        self.files.iter().map(|(path, bytes)| {
            Body::Artifact(proto::Artifact {
                path: path.clone(),
                bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
                sha256: hash(bytes),
                data: Base64::encode_string(bytes),
            })
        })
    }

    /// What follows them.
    pub(super) fn offered(&self, name: &BundleName, left_out: Vec<String>) -> Offered {
        Offered {
            bundle: name.clone(),
            manifest_sha256: self.sha256.clone(),
            files: u64::try_from(self.files.len()).unwrap_or(u64::MAX),
            left_out,
            wait_ms: u64::try_from(deadline::ACK.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// The in-toto statement about the artifacts.
fn manifest(run: &Run, captured: &Captured, probes: Vec<Probe>, files: &[(String, Cow<'_, [u8]>)]) -> Manifest {
    let parsed = captured.locked().authorised().parsed();
    let options = parsed.request().options();
    let digest = |bytes: &[u8]| [("sha256".to_owned(), hash(bytes))].into();
    let subject = files.iter().map(|(name, bytes)| Subject { name: name.clone(), digest: digest(bytes) }).collect();
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

/// One screen for a person who has only the bundle.
fn summary(captured: &Captured, probes: &[Probe]) -> String {
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
        probes
            .iter()
            .filter(|p| p.outcome != ProbeOutcome::Captured)
            .map(|p| format!("- {}: {}", p.name, p.detail.as_deref().unwrap_or("no reason given"))),
    );
    lines.push(String::new());
    lines.join("\n")
}
