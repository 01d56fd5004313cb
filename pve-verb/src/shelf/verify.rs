//! `bundle verify`: is a bundle what this host sealed, all of it and nothing else? One line of two sentences for each finding, with the
//! numbers of `log verify` as exit status. Needs as much memory for large artifacts as for small ones.

use base64ct::{Base64, Encoding};
use proto::{BundleName, IN_TOTO_STATEMENT, Manifest, PREDICATE_TYPE, Receipt, Sha256Hex, Vmid, namespace};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use super::{Found, MANIFEST, MOST_MANIFEST, Rungs, SIGNATURE, is_path};
use crate::auditor::{Code, Keys, whole};
use crate::bundle::hash;
use crate::host::path;
use crate::sign;

/// No artifact is longer, so a longer file needs no reading to be another one.
const MOST_ARTIFACT: u64 = 64 << 20;
/// How many findings are told one by one.
const TOLD: usize = 20;

/// What to verify.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Whose.
    pub vmid: Vmid,
    /// Which.
    pub name: BundleName,
    /// What callers kept.
    pub receipts: Option<PathBuf>,
    /// Public keys or `allowed_signers` lines, instead of the host's own.
    pub key: Option<PathBuf>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) code: Code,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, next) = match self.code {
            Code::Edited => ("edited", "Don't believe this file; the others are as they were sealed where nothing says otherwise."),
            Code::Reordered => ("spliced", "Take what does not belong here for somebody else's, and find out who put it here."),
            Code::Truncated => ("truncated", "Look for the file in a copy of the bundle, and at whoever writes to this disk."),
            Code::RolledBack => ("rolled back", "Keep the receipts, and find out who replaced this bundle."),
            Code::ForgedHead => ("forged manifest", "Believe none of it, unless an older key of this host's, given with --key, signed it."),
            Code::Unreadable => ("unreadable", "Make it readable, then verify again."),
            Code::Unsigned => ("unsigned", "Hold its manifest's hash against the receipt that its caller got, with --receipts."),
        };
        write!(f, "{} {name}: {}. {next}", self.code.exit_code(), self.what)
    }
}

/// What was found, and how to say it in a line.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) findings: Vec<Finding>,
    summary: String,
}

impl Report {
    fn add(&mut self, code: Code, what: impl Into<String>) {
        self.findings.push(Finding { code, what: what.into() });
    }

    /// 0, or the number of the finding that comes first in the order of `log verify`.
    pub(super) fn exit_code(&self) -> u8 {
        self.findings.iter().map(|f| f.code).min().map_or(0, Code::exit_code)
    }
}

/// Verifies a bundle of this host; prints one line for each finding and gives the exit status.
pub fn verify(asked: &Asked, out: &mut dyn Write) -> u8 {
    let report = verify_at(&Rungs::here(), asked);
    // Whoever closed the output still gets the status.
    let _ = print(&report, out);
    report.exit_code()
}

pub(super) fn print(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    for finding in report.findings.iter().take(TOLD) {
        writeln!(out, "{finding}")?;
    }
    if let Some(more) = report.findings.len().checked_sub(TOLD).filter(|n| *n > 0) {
        writeln!(out, "and {more} findings more.")?;
    }
    writeln!(out, "{}{}", if report.findings.is_empty() { "intact: " } else { "NOT intact: " }, report.summary)
}

pub(super) fn verify_at(rungs: &Rungs, asked: &Asked) -> Report {
    let mut report = Report { findings: Vec::new(), summary: "it could not be read to its end.".to_owned() };
    if let Err(why) = look(rungs, asked, &mut report) {
        report.add(Code::Unreadable, why);
    }
    report
}

fn look(rungs: &Rungs, asked: &Asked, report: &mut Report) -> Result<(), String> {
    let host = rungs.path(path::SIGNING_PUB);
    let file = asked.key.as_deref().unwrap_or(&host);
    let text = whole(file).map_err(|e| format!("{} could not be read: {e}", file.display()))?;
    let keys = Keys::read(&String::from_utf8_lossy(&text.unwrap_or_default()));
    let found = rungs.find(asked.vmid, &asked.name).map_err(|e| format!("the bundles could not be read: {e}"))?;
    let found = found.ok_or_else(|| format!("there is no bundle {} of VM {}", asked.name, asked.vmid))?;
    let bytes = found.tree.read(MANIFEST, MOST_MANIFEST).map_err(|e| format!("{MANIFEST} could not be read: {e}"))?;
    let bytes = bytes.ok_or_else(|| format!("{MANIFEST} is missing, so nobody can tell what belongs to it"))?;
    let manifest: Option<Manifest> = serde_json::from_slice(&bytes).ok();
    signature(&found, &keys, &bytes, manifest.as_ref(), report)?;
    let sha256 = hash(&bytes);
    if let Some(file) = &asked.receipts {
        receipts(file, &asked.name, &sha256, &keys, report)?;
    }
    let Some(manifest) = manifest.filter(|m| m.statement == IN_TOTO_STATEMENT && m.predicate_type == PREDICATE_TYPE) else {
        report.add(Code::Edited, format!("{MANIFEST} is not the manifest of a bundle"));
        return Ok(());
    };
    let request = &manifest.predicate.request;
    let whose = BundleName::new(request.started, request.verb, &request.request_id);
    if (request.vmid, &whose) != (asked.vmid, &asked.name) {
        report.add(Code::Reordered, format!("{MANIFEST} is that of bundle {whose} of VM {}", request.vmid));
    }
    let bytes = artifacts(&found, &manifest, report)?;
    report.summary = format!("{} artifacts, {bytes} bytes, manifest {sha256}; the key is {}.", manifest.subject.len(), keys.fingerprint());
    Ok(())
}

fn signature(found: &Found, keys: &Keys, bytes: &[u8], manifest: Option<&Manifest>, report: &mut Report) -> Result<(), String> {
    let sig = found.tree.read(SIGNATURE, 64 << 10).map_err(|e| format!("{SIGNATURE} could not be read: {e}"))?;
    let Some(sig) = sig else {
        // A host without a key says so in what it seals.
        let said = manifest.is_some_and(|m| m.predicate.degraded.iter().any(|d| d.contains("not signed")));
        let (code, what) = if said { (Code::Unsigned, "the host had no key") } else { (Code::ForgedHead, "its signature is missing") };
        report.add(code, format!("{MANIFEST} is not signed: {what}"));
        return Ok(());
    };
    if keys.none() {
        return Err("there is no public key to check the signature with (/etc/pve-verb/signing_key.pub, or --key)".to_owned());
    }
    match std::str::from_utf8(&sig).ok().and_then(sign::dearmour) {
        None => report.add(Code::ForgedHead, format!("{SIGNATURE} is not a signature in its one form")),
        Some(blob) if !keys.signed(namespace::MANIFEST, bytes, &blob) => {
            report.add(Code::ForgedHead, format!("{MANIFEST} is not signed by this host's key as it stands"));
        }
        Some(_) => {}
    }
    Ok(())
}

/// Receipts of this bundle that name another manifest.
fn receipts(file: &std::path::Path, name: &BundleName, manifest: &Sha256Hex, keys: &Keys, report: &mut Report) -> Result<(), String> {
    let named = |e: &dyn fmt::Display| format!("{} could not be read: {e}", file.display());
    let text = whole(file).map_err(|e| named(&e))?.ok_or_else(|| named(&"it does not exist"))?;
    let mut held = 0;
    for (n, line) in String::from_utf8_lossy(&text).lines().enumerate() {
        let Ok(receipt) = serde_json::from_str::<Receipt>(line.trim()) else { continue };
        let Ok((body, bytes)) = proto::decode_body(&receipt.body) else { continue };
        let sig = receipt.sig.and_then(|sig| Base64::decode_vec(&sig).ok());
        let ours = sig.is_some_and(|sig| keys.signed(namespace::RECEIPT, &bytes, &sig));
        if body.bundle.as_ref() != Some(name) || !ours {
            continue;
        }
        held += 1;
        if let Some(other) = body.manifest_sha256.filter(|hash| hash != manifest) {
            report.add(
                Code::RolledBack,
                format!("the receipt in line {} of the receipts names manifest {other}, and here is {manifest}", n + 1),
            );
        }
    }
    if held == 0 { Err(format!("{} holds no receipt of this bundle that this host signed", file.display())) } else { Ok(()) }
}

/// Every file against the manifest, both ways; gives their bytes.
fn artifacts(found: &Found, manifest: &Manifest, report: &mut Report) -> Result<u64, String> {
    let entries = found.tree.entries().map_err(|e| format!("its files could not be listed: {e}"))?;
    let mut here: BTreeMap<Vec<u8>, Option<u64>> = entries.into_iter().map(|e| (e.path, e.bytes)).collect();
    let mut total: u64 = 0;
    here.remove(MANIFEST.as_bytes());
    here.remove(SIGNATURE.as_bytes());
    let mut seen: Vec<&str> = Vec::new();
    for subject in &manifest.subject {
        let shown = proto::escape_cut(subject.name.as_bytes(), 160);
        if !is_path(&subject.name) || seen.contains(&subject.name.as_str()) {
            report.add(Code::Edited, format!("the manifest names {shown}, which can't be or is there twice"));
            continue;
        }
        seen.push(&subject.name);
        match here.remove(subject.name.as_bytes()) {
            None => report.add(Code::Truncated, format!("{shown} is missing")),
            Some(None) => report.add(Code::Edited, format!("{shown} is no regular file")),
            Some(Some(bytes)) => {
                total = total.saturating_add(bytes);
                let sound = bytes <= MOST_ARTIFACT && Some(&digest(found, &subject.name)?) == subject.digest.get("sha256");
                if !sound {
                    report.add(Code::Edited, format!("{shown} is not the file that the manifest names"));
                }
            }
        }
    }
    for path in here.keys() {
        report.add(Code::Reordered, format!("{} is not in the manifest", proto::escape_cut(path, 160)));
    }
    Ok(total)
}

/// A file's hash, a block at a time; one that grows meanwhile is not read for ever.
fn digest(found: &Found, path: &str) -> Result<Sha256Hex, String> {
    let unreadable = |e: io::Error| format!("{path} could not be read: {e}");
    let (file, _) = found.tree.file(path).map_err(unreadable)?;
    let mut from = file.take(MOST_ARTIFACT + 1);
    let mut hasher = Sha256::new();
    let mut block = vec![0; 64 << 10];
    loop {
        match from.read(&mut block) {
            Ok(0) => return Ok(Sha256Hex::from_bytes(hasher.finalize().into())),
            Ok(n) => hasher.update(block.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(unreadable(e)),
        }
    }
}
