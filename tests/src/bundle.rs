//! A sealed bundle, read as somebody reads it who has nothing else; and what every judgement owes to its evidence. It panics where
//! a bundle does not hold what it must: scenarios call it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // as a scenario fails

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::error::Result;
use crate::installed::{Told, agent, ask, look};
use crate::lab::Lab;

/// What a finding may name beside the bundle's own files and questions.
const BESIDE: [&str; 2] = ["the audit log", "the sample of the last status"];

/// A bundle on disk.
#[derive(Debug)]
pub struct Bundle {
    folder: String,
    manifest: Value,
    /// `assessment.json`.
    pub judgement: Value,
    /// The answer that made it.
    pub told: Told,
}

impl Bundle {
    /// The bundle of this answer.
    pub fn of(told: Told) -> Self {
        let folder = told.bundle();
        let json = |name: &str| serde_json::from_slice(&fs::read(format!("{folder}/{name}")).unwrap()).unwrap();
        Self { manifest: json("manifest.json"), judgement: json("assessment.json"), folder, told }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        Path::new(&self.folder)
    }

    /// An artifact as text.
    pub fn text(&self, path: &str) -> String {
        let bytes = fs::read(format!("{}/{path}", self.folder)).unwrap_or_else(|e| panic!("{path} of the bundle: {e}"));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// An artifact as JSON.
    pub fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.text(path)).unwrap_or_else(|e| panic!("{path} is no JSON: {e}"))
    }

    /// Whether the manifest lists this file.
    pub fn has(&self, path: &str) -> bool {
        self.manifest["subject"].as_array().unwrap().iter().any(|file| file["name"] == path)
    }

    /// Why there is no answer to this question, where there is none.
    pub fn why_not(&self, question: &str) -> Option<String> {
        let missing = self.manifest["predicate"]["not_captured"].as_array().unwrap();
        missing.iter().find(|entry| entry["name"] == question).map(|entry| entry["why"].as_str().unwrap().to_owned())
    }

    /// Whether one of these artifacts is missing for want of time: the question, or QEMU's greeting before it, was not answered in its own.
    pub fn is_late(&self, needed: &[&str]) -> bool {
        let missing = self.manifest["predicate"]["not_captured"].as_array().unwrap();
        let late = |entry: &Value| entry["outcome"] == "timed_out" || entry["why"].as_str().unwrap().contains("QEMU did not answer QMP");
        let stem = |path: &str| path.rsplit_once('.').unwrap().0.to_owned();
        let mut absent = needed.iter().filter(|path| !self.has(path)).map(|path| stem(path));
        absent.any(|question| missing.iter().any(|entry| entry["name"] == question.as_str() && late(entry)))
    }

    /// What a finding of this code says.
    pub fn finding(&self, code: &str) -> String {
        let finding = self.judgement["findings"].as_array().unwrap().iter().find(|finding| finding["code"] == code);
        finding.unwrap_or_else(|| panic!("no finding {code}: {:#}", self.judgement))["text"].as_str().unwrap().to_owned()
    }

    /// Why the recommended verb, or none, is right.
    pub fn advice(&self) -> String {
        self.judgement["recommend"]["why"].as_str().unwrap().to_owned()
    }

    /// Every file that a finding names is in the bundle, or the bundle says why it is not; a person's page says what the data say.
    fn holds(&self) {
        for finding in self.judgement["findings"].as_array().unwrap() {
            for named in finding["evidence"].as_array().unwrap().iter().map(|named| named.as_str().unwrap()) {
                let question = named.rsplit_once('.').map_or(named, |(stem, _)| stem);
                let there = self.has(named) && fs::metadata(self.folder().join(named)).is_ok_and(|file| file.len() > 0);
                let said = self.why_not(question).is_some_and(|why| !why.is_empty());
                assert!(there || said || BESIDE.contains(&named), "{} names {named}, which is nowhere: {finding:#}", finding["code"]);
            }
        }
        let flat = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let summary = flat(&self.text("summary.txt"));
        for said in [&self.judgement["sentence"], &self.judgement["recommend"]["why"]] {
            assert!(summary.contains(&flat(said.as_str().unwrap())), "summary.txt does not say {said}: {summary}");
        }
    }
}

/// What this captures, three times at most, until none of the needed artifacts is late: a busy machine takes QEMU, or who asks it, off the
/// CPU for as long as a question has. What is missing for another reason is missing at once.
pub fn in_time(needed: &[&str], mut capture: impl FnMut() -> Result<Told>) -> Result<Bundle> {
    let mut bundle = Bundle::of(capture()?.done());
    for _ in 0..2 {
        if bundle.is_late(needed) {
            bundle = Bundle::of(capture()?.done());
        }
    }
    Ok(bundle)
}

/// `forensics`, which must judge so and recommend this verb (or none).
pub fn judged(lab: &Lab, code: &str, verb: Option<&str>) -> Result<Bundle> {
    judged_with(lab, code, verb, &[])
}

/// The same, [`in_time`] for these artifacts.
pub fn judged_with(lab: &Lab, code: &str, verb: Option<&str>, needed: &[&str]) -> Result<Bundle> {
    let asked = if code == "qmp-unavailable" { ask } else { look };
    let ssh = agent(lab)?;
    let bundle = in_time(needed, || asked(&ssh, "forensics"))?;
    let said = &bundle.judgement;
    assert_eq!(
        (&said["code"], said["recommend"]["verb"].as_str()),
        (&Value::from(code), verb),
        "{said:#}; not captured: {:#}",
        bundle.manifest["predicate"]["not_captured"]
    );
    assert_eq!((bundle.told.code().as_str(), &said["healthy"]), (code, &Value::from(code == "healthy")), "{said:#}");
    bundle.holds();
    Ok(bundle)
}
