//! A frame between helper and worker: `u32` length (big-endian), a JSON header of that length, then the artifact's raw bytes.
//!
//! The reading half trusts nothing: a name that was not planned, a second answer, another path than the plan's, a header or a total
//! beyond its cap ends the helper.

use crate::probe::{Answer, Artifact, Planned, Raw};
use crate::sandbox::Layer;
use proto::{ProbeOutcome, escape_cut};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::{self, Write};

/// The longest header.
pub const HEADER: usize = 1024 * 1024;
/// The most that one helper may send in all.
pub const TOTAL: usize = 64 * 1024 * 1024;

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    name: String,
    outcome: ProbeOutcome,
    ms: u64,
    detail: Option<String>,
    artifact: Option<Content>,
    facts: Option<Value>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    path: String,
    media_type: String,
    bytes: usize,
}

/// A helper's first frame: what its sandbox lacks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hello {
    missing: Vec<Layer>,
}

/// What a helper has to say about one question. Its detail is raw: the worker escapes it.
#[derive(Debug)]
pub struct Reply {
    /// The question's name.
    pub name: String,
    /// How it ended.
    pub outcome: ProbeOutcome,
    /// How long it took.
    pub ms: u64,
    /// What there is to say, as it came.
    pub detail: Option<String>,
    /// The artifact's content.
    pub bytes: Option<Raw>,
    /// What the probe concluded.
    pub facts: Option<Value>,
}

/// Writes the first frame.
///
/// # Errors
/// Where the worker has closed the pipe.
pub fn write_hello(out: &mut impl Write, missing: Vec<Layer>) -> io::Result<()> {
    let header = serde_json::to_vec(&Hello { missing })?;
    out.write_all(&u32::try_from(header.len()).map_err(io::Error::other)?.to_be_bytes())?;
    out.write_all(&header)
}

/// Writes one frame.
///
/// # Errors
/// Where the worker has closed the pipe, or the header can't be made.
pub fn write(out: &mut impl Write, planned: &Planned, reply: &Reply) -> io::Result<()> {
    let content = reply.bytes.as_ref().map(|b| Content {
        path: planned.path.clone(),
        media_type: planned.media_type.to_owned(),
        bytes: b.as_bytes().len(),
    });
    let header = Header {
        name: reply.name.clone(),
        outcome: reply.outcome,
        ms: reply.ms,
        detail: reply.detail.clone(),
        artifact: content,
        facts: reply.facts.clone(),
    };
    let header = serde_json::to_vec(&header)?;
    let length = u32::try_from(header.len()).map_err(io::Error::other)?;
    out.write_all(&length.to_be_bytes())?;
    out.write_all(&header)?;
    out.write_all(reply.bytes.as_ref().map_or(&[], Raw::as_bytes))
}

/// The reading half: bytes in, answers out.
#[derive(Debug)]
pub struct Incoming {
    unanswered: Vec<Planned>,
    buffer: Vec<u8>,
    total: usize,
    missing: Option<Vec<Layer>>,
}

impl Incoming {
    /// Expects answers to these questions.
    pub const fn new(planned: Vec<Planned>) -> Self {
        Self { unanswered: planned, buffer: Vec::new(), total: 0, missing: None }
    }

    /// What has not been answered.
    pub fn unanswered(&self) -> &[Planned] {
        &self.unanswered
    }

    /// What the helper's sandbox lacks, as it said before it read anything foreign.
    pub fn missing(&self) -> &[Layer] {
        self.missing.as_deref().unwrap_or_default()
    }

    /// Takes bytes as they come from the pipe.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.total = self.total.saturating_add(bytes.len());
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole answer, if it is there.
    ///
    /// # Errors
    /// Where the helper said something that it may not say.
    pub fn take(&mut self) -> Result<Option<Answer>, String> {
        if self.total > TOTAL {
            return Err(format!("more than {TOTAL} bytes"));
        }
        let Some((length, rest)) = self.buffer.split_first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > HEADER {
            return Err(format!("a header of {length} bytes"));
        }
        let Some((header, rest)) = rest.split_at_checked(length) else { return Ok(None) };
        if self.missing.is_none() {
            let hello: Hello = serde_json::from_slice(header).map_err(|e| format!("a bad first frame: {e}"))?;
            self.missing = Some(hello.missing);
            self.buffer.drain(..4 + length);
            return self.take();
        }
        let header: Header = serde_json::from_slice(header).map_err(|e| format!("a bad header: {e}"))?;
        let content = header.artifact.as_ref().map_or(0, |a| a.bytes);
        if content > TOTAL {
            return Err(format!("an artifact of {content} bytes"));
        }
        let Some(bytes) = rest.get(..content) else { return Ok(None) };
        let bytes = bytes.to_vec();
        let answer = self.accept(header, bytes)?;
        self.buffer.drain(..4 + length + content);
        Ok(Some(answer))
    }

    fn accept(&mut self, header: Header, bytes: Vec<u8>) -> Result<Answer, String> {
        let known = self.unanswered.iter().position(|p| p.name == header.name);
        let planned = match known {
            Some(at) => self.unanswered.remove(at),
            None => {
                return Err(format!("an answer to \"{}\", which was not asked or was answered", escape_cut(header.name.as_bytes(), 80)));
            }
        };
        let artifact = match header.artifact {
            Some(a) if a.path != planned.path || a.media_type != planned.media_type => {
                return Err(format!("{} at another path or of another type", planned.name));
            }
            Some(_) if header.outcome != ProbeOutcome::Captured => {
                return Err(format!("{} has an artifact and was not captured", planned.name));
            }
            Some(_) => Some(Artifact { path: planned.path, media_type: planned.media_type, bytes: Raw::new(bytes) }),
            None => None,
        };
        let detail = header.detail.map(|d| escape_cut(d.as_bytes(), 600));
        Ok(Answer { name: planned.name, outcome: header.outcome, ms: header.ms, detail, artifact, facts: header.facts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{Set, plan};
    use proptest::prelude::*;
    use proto::Vmid;

    fn planned() -> Vec<Planned> {
        plan(Set::Full, Vmid::DEVVM)
    }

    fn reply(name: &str, bytes: Option<&[u8]>) -> Reply {
        let outcome = if bytes.is_some() { ProbeOutcome::Captured } else { ProbeOutcome::Failed };
        Reply {
            name: name.to_owned(),
            outcome,
            ms: 3,
            detail: Some("a\x1b[2J".to_owned()),
            bytes: bytes.map(|b| Raw::new(b.to_vec())),
            facts: Some(serde_json::json!({"equal": true})),
        }
    }

    fn hello() -> Vec<u8> {
        let mut out = Vec::new();
        write_hello(&mut out, vec![Layer::Landlock]).unwrap();
        out
    }

    fn framed(name: &str, bytes: Option<&[u8]>) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out, planned().iter().find(|p| p.name == name).unwrap(), &reply(name, bytes)).unwrap();
        out
    }

    #[test]
    fn answers_survive_any_cut_of_the_stream_and_their_details_are_escaped() {
        let stream = [hello(), framed("qmp/query-status", Some(b"\0\xff")), framed("pve/102", None)].concat();
        for step in [1, 3, 1000] {
            let mut incoming = Incoming::new(planned());
            let mut got = Vec::new();
            for chunk in stream.chunks(step) {
                incoming.feed(chunk);
                while let Some(answer) = incoming.take().unwrap() {
                    got.push(answer);
                }
            }
            assert_eq!((got.len(), incoming.missing()), (2, &[Layer::Landlock][..]));
            assert_eq!(got[0].artifact.as_ref().unwrap().bytes.as_bytes(), b"\0\xff");
            assert_eq!(got[1].detail.as_deref(), Some("a\\x1b[2J"));
            assert_eq!(incoming.unanswered().len(), planned().len() - 2);
        }
    }

    #[test]
    fn what_was_not_planned_or_comes_twice_ends_the_helper() {
        let mut twice = Incoming::new(planned());
        twice.feed(&[hello(), framed("qmp/greeting", Some(b"1")), framed("qmp/greeting", Some(b"2"))].concat());
        assert!(twice.take().unwrap().is_some());
        assert!(twice.take().unwrap_err().contains("qmp/greeting"));

        let text = String::from_utf8(framed("qmp/greeting", Some(b"1"))[4..].to_vec()).unwrap();
        for (from, to) in [
            ("\"name\":\"qmp/greeting\"", "\"name\":\"../../etc/x\""),
            ("\"path\":\"qmp/greeting.json\"", "\"path\":\"../../etc/passwd\""),
            ("\"captured\"", "\"failed\""),
            ("\"bytes\":1", "\"bytes\":99999999999"),
        ] {
            let text = text.replace(from, to);
            let header = text.strip_suffix('1').unwrap();
            let mut incoming = Incoming::new(planned());
            incoming.feed(&hello());
            incoming.feed(&u32::try_from(header.len()).unwrap().to_be_bytes());
            incoming.feed(header.as_bytes());
            incoming.feed(b"1");
            assert!(incoming.take().is_err(), "{to}");
        }
    }

    #[test]
    fn a_helper_that_does_not_say_first_what_its_sandbox_lacks_is_not_believed() {
        let mut incoming = Incoming::new(planned());
        incoming.feed(&framed("qmp/greeting", Some(b"1")));
        assert!(incoming.take().is_err());
    }

    #[test]
    fn a_flood_is_an_error_not_a_full_memory() {
        let mut incoming = Incoming::new(planned());
        incoming.feed(&[0xff; 8]);
        assert!(incoming.take().is_err());
        let mut incoming = Incoming::new(planned());
        incoming.total = TOTAL;
        incoming.feed(&[0]);
        assert!(incoming.take().is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_never_make_an_answer_that_was_not_planned(bytes: Vec<u8>) {
            let mut incoming = Incoming::new(Vec::new());
            incoming.feed(&bytes);
            prop_assert!(!matches!(incoming.take(), Ok(Some(_))));
        }
    }
}
