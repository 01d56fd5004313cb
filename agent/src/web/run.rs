//! A run: one verb under its request id, folded out of its incident's lines. Live, ended, or found again after a restart, it is the same.

use std::sync::Arc;

use proto::{
    Assessment, Body, Code, Message, Preserved, Probe, ProbeOutcome, ReceiptBody, RequestId, Step, StepName, StepOutcome, Timestamp, Verb,
};

use super::app::App;
use super::home::{self, capital};
use crate::incident::{By, IncidentId, Line, Summary, What};
use crate::shown::plain;

/// More lines than this no verb has.
const MOST: u64 = 4000;

/// A file that came with it.
#[derive(Clone, Debug)]
pub(super) struct File {
    /// Its path in the bundle.
    pub(super) path: String,
    /// Its path in the incident's folder.
    pub(super) file: String,
    /// Its length.
    pub(super) bytes: u64,
}

/// A run.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) id: RequestId,
    pub(super) incident: IncidentId,
    pub(super) verb: Verb,
    pub(super) by: By,
    pub(super) actor: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) dry_run: bool,
    pub(super) asked: Timestamp,
    /// When its time is over: by the host's word where it gave one.
    pub(super) until: Timestamp,
    /// The host that took it.
    pub(super) node: Option<String>,
    pub(super) probes: Vec<Probe>,
    pub(super) judged: Option<Assessment>,
    pub(super) preserved: Option<Preserved>,
    pub(super) steps: Vec<(Timestamp, Step)>,
    /// The last loss of the connection, while nothing came after it.
    pub(super) again: Option<String>,
    /// Whether it was asked after, since this program was started again.
    pub(super) attached: bool,
    pub(super) files: Vec<File>,
    pub(super) end: Option<End>,
}

/// Its end.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) at: Timestamp,
    pub(super) said: Message,
    /// Whether it may have reached the host.
    pub(super) sent: bool,
    /// What the host signed; absent: nothing is known, but where nothing was sent.
    pub(super) receipt: Option<Box<ReceiptBody>>,
}

/// How an end is to be shown. There is no way from an unknown to a good one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// The wanted state was observed, and the host signed that.
    Good,
    /// Nothing was sent to the VM.
    Refused,
    /// The VM may have changed, and is not as wanted.
    Bad,
    /// Nobody knows.
    Unknown,
}

impl Tone {
    /// The class by which it is drawn.
    pub(super) const fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Refused => "calm",
            Self::Bad => "bad",
            Self::Unknown => "unknown",
        }
    }
}

impl End {
    /// Its tone.
    pub(super) fn tone(&self) -> Tone {
        match self.receipt.as_ref().map(|body| body.outcome) {
            None if !self.sent => Tone::Refused,
            None | Some(proto::Outcome::Unknown) => Tone::Unknown,
            Some(proto::Outcome::Done) => Tone::Good,
            Some(proto::Outcome::Failed | proto::Outcome::Internal) => Tone::Bad,
            Some(_) => Tone::Refused,
        }
    }
}

impl Run {
    /// The run of this id, if any incident has it.
    pub(super) fn find(app: &App, id: &RequestId) -> Option<Self> {
        Self::of(app, &app.store.of_run(id)?, id)
    }

    /// The run of this id in this incident.
    pub(super) fn of(app: &App, summary: &Summary, id: &RequestId) -> Option<Self> {
        let (_, verb, first) = summary.facts.runs.iter().find(|(known, ..)| known == id)?.clone();
        let mut run: Option<Self> = None;
        let mut take = |line: &Line| match &mut run {
            None => run = Self::begun(line, id, verb),
            Some(run) => run.fold(line),
        };
        match app.store.get(&summary.id) {
            Some(incident) => {
                for n in first..=incident.facts().lines.min(first + MOST) {
                    if let Some(line) = incident.line(n).and_then(|text| serde_json::from_str::<Line>(&text).ok()) {
                        take(&line);
                    }
                }
            }
            None => {
                let _what_can_be_read_is_shown = app.store.lines(&summary.id, first, |line, _| {
                    if line.n <= first + MOST {
                        take(&line);
                    }
                });
            }
        }
        run
    }

    /// The run that a line begins.
    pub(super) fn begun(line: &Line, id: &RequestId, verb: Verb) -> Option<Self> {
        let What::VerbAsked { request_id, actor, reason, dry_run, deadline_ms, attach, .. } = &line.what else { return None };
        (request_id == id).then(|| Self {
            id: id.clone(),
            incident: line.incident.clone(),
            verb,
            by: line.origin,
            actor: actor.clone(),
            reason: reason.clone(),
            dry_run: *dry_run,
            asked: line.at,
            until: Timestamp::from_unix_ms(line.at.unix_ms() + deadline_ms),
            node: None,
            probes: Vec::new(),
            judged: None,
            preserved: None,
            steps: Vec::new(),
            again: None,
            attached: *attach,
            files: Vec::new(),
            end: None,
        })
    }

    /// Takes the next line.
    pub(super) fn fold(&mut self, line: &Line) {
        match &line.what {
            What::VerbAsked { request_id, attach, .. } if *request_id == self.id => {
                self.attached |= attach;
                (self.end, self.again) = (None, None);
            }
            What::VerbNews { request_id, news } if *request_id == self.id => {
                self.again = None;
                self.news(&news.body, news.at);
            }
            What::VerbAgain { request_id, why, .. } if *request_id == self.id => self.again = Some(why.clone()),
            What::Artifact { request_id, path, file, bytes, .. } if *request_id == self.id => {
                self.files.retain(|known| known.path != *path);
                self.files.push(File { path: path.clone(), file: file.clone(), bytes: *bytes });
            }
            What::VerbEnded { request_id, said, sent, receipt, .. } if *request_id == self.id => {
                self.again = None;
                let said = receipt.as_ref().map_or_else(|| said.clone(), |body| body.message.clone());
                // An unsigned judgement that the receipt does not name is worth nothing.
                let signed = receipt.as_ref().and_then(|body| body.assessment);
                self.judged = self.judged.take().filter(|judged| Some(judged.code) == signed);
                self.end = Some(End { at: line.at, said, sent: *sent, receipt: receipt.clone() });
            }
            _ => {}
        }
    }

    fn news(&mut self, body: &Body, at: Timestamp) {
        match body {
            Body::Accepted(accepted) => {
                // An answer from its beginning: after a lost connection it tells everything again.
                (self.probes, self.steps) = (Vec::new(), Vec::new());
                self.node = Some(accepted.node.clone());
                self.until = Timestamp::from_unix_ms(at.unix_ms() + accepted.deadline_ms);
            }
            Body::Probe(probe) => {
                self.probes.retain(|known| known.name != probe.name);
                self.probes.push(probe.clone());
            }
            Body::Assessment(judged) => self.judged = Some(judged.clone()),
            Body::Preserved(preserved) => self.preserved = Some(preserved.clone()),
            Body::Step(step) => {
                // A step's end takes the place of its beginning.
                let open = |(_, known): &(Timestamp, Step)| known.name == step.name && known.outcome == StepOutcome::Started;
                match self.steps.iter().rposition(open) {
                    Some(at) if step.outcome != StepOutcome::Started => self.steps[at].1 = step.clone(),
                    _ => self.steps.push((at, step.clone())),
                }
            }
            _ => {}
        }
    }

    /// How many pieces of evidence were captured, and the others.
    pub(super) fn captured(&self) -> (usize, Vec<&Probe>) {
        let others: Vec<&Probe> = self.probes.iter().filter(|probe| probe.outcome != ProbeOutcome::Captured).collect();
        (self.probes.len() - others.len(), others)
    }

    /// The console's pictures, oldest first.
    pub(super) fn screens(&self) -> Vec<&File> {
        let mut screens: Vec<&File> =
            self.files.iter().filter(|file| file.path.starts_with("console/") && file.path.ends_with(".png")).collect();
        screens.sort_by(|a, b| a.path.cmp(&b.path));
        screens
    }

    /// What was seen, where that is what an end tells: that a look was taken says nothing of the VM.
    fn saw(&self, end: &End) -> Option<Option<Code>> {
        (!self.verb.mutates() && end.tone() == Tone::Good).then(|| end.receipt.as_ref().and_then(|body| body.assessment))
    }

    /// The class by which an end is drawn.
    pub(super) fn class(&self, end: &End) -> &'static str {
        self.saw(end).map_or_else(|| end.tone().class(), home::tone)
    }

    /// An end in a word or a few.
    pub(super) fn word(&self, end: &End) -> &'static str {
        self.saw(end).map_or_else(|| word(end), home::headline)
    }

    /// An end as a heading.
    pub(super) fn heading(&self, end: &End) -> String {
        if self.saw(end).is_none() { self.word(end).to_owned() } else { format!("{}: {}", capital(self.verb), lowered(self.word(end))) }
    }

    /// What to do after it.
    pub(super) fn next(&self, end: &End) -> String {
        let planned = end.tone() == Tone::Good && end.receipt.as_ref().is_some_and(|body| body.dry_run);
        if planned { format!("Press {} to do it.", capital(self.verb)) } else { plain(&end.said.next) }
    }

    /// What it does right now, in a few words.
    pub(super) fn doing(&self) -> String {
        if let Some(end) = &self.end {
            return self.word(end).to_owned();
        }
        if self.again.is_some() {
            return "Connection lost, asking again".to_owned();
        }
        match self.steps.last() {
            Some((_, step)) => match step.outcome {
                StepOutcome::Started => step_words(step.name).to_owned(),
                StepOutcome::Done => format!("{}: done", step_words(step.name)),
                outcome => format!("{}: {}", step_words(step.name), super::shell::word(&outcome)),
            },
            None if self.preserved.is_some() => "Evidence is safe".to_owned(),
            None if !self.probes.is_empty() => format!("Taking evidence: {} pieces", self.probes.len()),
            None if self.node.is_some() => "Running on the host".to_owned(),
            None => "Asking the host".to_owned(),
        }
    }
}

/// What a step is about, for somebody who does not know `qm`; the list of steps has its own name.
const fn step_words(name: StepName) -> &'static str {
    match name {
        StepName::Preflight => "Checking what is in the way",
        StepName::Kill => "Ending the old QEMU",
        StepName::QmStop => "Stopping the VM",
        StepName::QmStart => "Starting the VM",
        StepName::SystemReset => "Restarting the guest",
        StepName::Resume => "Resuming the VM",
        StepName::Cleanup => "Clearing up what was left",
        StepName::Takeover => "Taking over from a verb that died",
        StepName::Observe => "Looking whether it worked",
    }
}

/// What begins a sentence, within one; a name stays one.
fn lowered(words: &str) -> String {
    let second_is_small = words.chars().nth(1).is_some_and(|second| !second.is_uppercase());
    let first = words.chars().take(1).flat_map(|first| if second_is_small { first.to_lowercase().collect() } else { vec![first] });
    first.chain(words.chars().skip(1)).collect()
}

/// An end in one word.
fn word(end: &End) -> &'static str {
    match end.tone() {
        Tone::Good if end.receipt.as_ref().is_some_and(|body| body.dry_run) => "Planned, nothing changed",
        Tone::Good if end.receipt.as_ref().is_some_and(|body| body.already) => "Done: it was so already",
        Tone::Good => "Done",
        Tone::Refused if end.receipt.is_none() => "Not sent",
        Tone::Refused => "Refused",
        Tone::Bad => "Failed",
        Tone::Unknown => "Result unknown",
    }
}

/// The newest picture of the console that any incident has, and its run.
pub(super) fn newest_screen(app: &Arc<App>) -> Option<(Run, File)> {
    for summary in app.store.list().into_iter().take(10) {
        for (id, verb, _) in summary.facts.runs.iter().rev() {
            if *verb == Verb::Status {
                continue;
            }
            if let Some(run) = Run::of(app, &summary, id)
                && let Some(file) = run.screens().last().map(|file| (*file).clone())
            {
                return Some((run, file));
            }
        }
    }
    None
}
