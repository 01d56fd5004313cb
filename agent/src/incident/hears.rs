//! What verbs and commands tell while they run, on its way into the log and the files.

use std::sync::Arc;

use proto::{Assessment, Body, Preserved, Probe, Verb};

use super::act::{ExecTold, Kept, VerbTold};
use super::artifacts::Output;
use super::event::{By, Task, What};
use super::{Incident, log};
use crate::hands::{ExecEnd, ExecNews, VerbAsk, VerbEnd, VerbNews};
use crate::redact::settled;
use crate::untrusted::{Room, Untrusted};

/// An event of the host's that is longer is not kept as a line.
const MAX_NEWS: usize = 64 << 10;
/// Lines of output in the log, of one command; the file has all of it.
const MAX_OUTPUT_LINES: u32 = 200;
/// One of them.
const MAX_OUTPUT: usize = 4000;
/// Output that may be the first half of a secret waits for the rest of its line, up to this.
const MAX_HELD: usize = 16 << 10;

/// What a running verb tells, on its way into the log.
pub(super) struct Hears {
    incident: Arc<Incident>,
    task: Task,
    by: By,
    verb: Verb,
    request_id: proto::RequestId,
    assessment: Option<Assessment>,
    probes: Vec<Probe>,
    kept: Vec<Kept>,
    preserved: Option<Preserved>,
}

impl Hears {
    pub(super) fn new(incident: &Arc<Incident>, task: Task, by: By, ask: &VerbAsk) -> Self {
        let request_id = ask.request_id.clone();
        Self {
            incident: Arc::clone(incident),
            task,
            by,
            verb: ask.verb,
            request_id,
            assessment: None,
            probes: Vec::new(),
            kept: Vec::new(),
            preserved: None,
        }
    }

    pub(super) fn news(&mut self, news: VerbNews) {
        let request_id = self.request_id.clone();
        match news {
            VerbNews::Event(event) => {
                match &event.body {
                    Body::Assessment(judged) => self.assessment = Some(judged.clone()),
                    Body::Probe(probe) if self.probes.len() < 500 => self.probes.push(probe.clone()),
                    Body::Preserved(preserved) => self.preserved = Some(preserved.clone()),
                    _ => {}
                }
                if serde_json::to_string(&event).is_ok_and(|text| text.len() <= MAX_NEWS) {
                    self.incident.note(self.task, self.by, What::VerbNews { request_id, news: event });
                }
            }
            VerbNews::Artifact { path, media_type, bytes } => match self.incident.keep(&request_id, &path, &bytes) {
                Ok(file) => {
                    let media_type = proto::escape_cut(media_type.as_bytes(), 80);
                    let (length, sha256) = (bytes.len() as u64, log::hash(&bytes));
                    self.kept.push(Kept { path: path.clone(), file: file.clone(), media_type: media_type.clone(), bytes: length });
                    self.incident.note(self.task, self.by, What::Artifact { request_id, path, file, media_type, bytes: length, sha256 });
                }
                Err(why) => {
                    let text = format!("The artifact {} is not kept: {why}.", proto::escape_cut(path.as_bytes(), 80));
                    self.incident.note(self.task, By::Agent, What::Said { text });
                }
            },
            VerbNews::Again { why, after } => {
                let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                self.incident.note(
                    self.task,
                    By::Agent,
                    What::VerbAgain { request_id, why: proto::escape_cut(why.as_bytes(), 400), after_ms },
                );
            }
        }
    }

    /// Its end, on its way into the log.
    pub(super) fn ended(&mut self, end: &VerbEnd) {
        let body = end.checked.as_ref().ok().map(|proved| proved.body());
        self.assessment = self.assessment.take().filter(|judged| body.is_some_and(|body| body.assessment == Some(judged.code)));
        let signed = body.and_then(|body| body.preserved_where.and(body.bundle.clone()));
        self.preserved = self.preserved.take().filter(|told| signed.as_ref() == Some(&told.bundle));
        let what = What::VerbEnded {
            request_id: end.request_id.clone(),
            verb: self.verb,
            sent: end.sent,
            status: end.status,
            said: end.said.clone(),
            receipt: body.map(|body| Box::new(body.clone())),
            assessment: self.assessment.clone().map(Box::new),
            bundle: signed,
        };
        self.incident.note(self.task, self.by, what);
    }

    pub(super) fn told(mut self, end: VerbEnd) -> VerbTold {
        self.ended(&end);
        VerbTold { verb: self.verb, end, assessment: self.assessment, probes: self.probes, kept: self.kept, preserved: self.preserved }
    }
}

/// What a running command prints, on its way into the log and its file.
pub(super) struct Prints<'a> {
    incident: &'a Incident,
    task: Task,
    by: By,
    number: u64,
    lines: u32,
    /// What is not shown yet, of standard output and standard error.
    held: [Vec<u8>; 2],
    output: Untrusted,
    file: Option<Output>,
    whole: bool,
}

impl<'a> Prints<'a> {
    pub(super) fn new(incident: &'a Incident, task: Task, by: By, number: u64) -> Self {
        let output = Untrusted::bounded(Room { head: 64 << 10, tail: 64 << 10 });
        Self { incident, task, by, number, lines: 0, held: Default::default(), output, file: None, whole: true }
    }

    pub(super) fn news(&mut self, news: &ExecNews) {
        self.output.push(&news.bytes);
        if self.file.is_none() && self.whole {
            self.file = self.incident.output(self.number);
        }
        self.whole &= self.file.as_mut().is_some_and(|file| self.incident.append(file, &news.bytes));
        if self.lines < MAX_OUTPUT_LINES {
            let held = &mut self.held[usize::from(news.stderr)];
            held.extend_from_slice(&news.bytes);
            let settled = if held.len() > MAX_HELD { held.len() } else { settled(held) };
            let rest = held.split_off(settled);
            let shown = std::mem::replace(held, rest);
            self.line(news.stderr, shown);
        }
    }

    fn line(&mut self, stderr: bool, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.lines += 1;
            let text = Untrusted::from(bytes).line(MAX_OUTPUT);
            self.incident.note(self.task, self.by, What::ExecOutput { exec: self.number, stderr, text });
        }
    }

    pub(super) fn ended(mut self, end: ExecEnd) -> ExecTold {
        for (stderr, held) in [false, true].into_iter().zip(std::mem::take(&mut self.held)) {
            self.line(stderr, held);
        }
        let file = self.file.map(|file| (file.name, self.whole));
        let what = What::ExecEnded {
            exec: self.number,
            how: how(&end),
            exit: if let ExecEnd::Exited(status) = end { Some(status) } else { None },
            bytes: self.output.len(),
            file: file.as_ref().map(|(name, _)| name.clone()),
        };
        self.incident.note(self.task, self.by, what);
        ExecTold { end, output: self.output, file }
    }
}

/// How a command ended, in words; what SSH or the devvm said is escaped.
pub(super) fn how(end: &ExecEnd) -> String {
    let plain = |text: &str| proto::escape_cut(text.as_bytes(), 200);
    match end {
        ExecEnd::Exited(status) => format!("exit status {status}"),
        ExecEnd::Signalled(signal) => format!("ended by signal {}", plain(signal)),
        ExecEnd::TimedOut => "its time was over; it may still be running there".to_owned(),
        ExecEnd::Lost(why) => format!("the connection was lost ({}); it may still be running there", plain(why)),
        ExecEnd::Unreachable(why) => format!("no connection to the devvm ({}): nothing ran", plain(why)),
        ExecEnd::Refused(why) => format!("the devvm can't be asked ({}): nothing ran", plain(why)),
        ExecEnd::Absent => "the configuration has no [devvm]: nothing ran".to_owned(),
        ExecEnd::HostKeyChanged { pinned, shown } => format!(
            "the devvm shows another host key ({}, pinned is {}): nothing ran; a person has to compare them and accept the new one",
            plain(shown),
            plain(pinned)
        ),
    }
}
