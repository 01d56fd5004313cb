//! The way from an incident to the hands: everything that is done is a line before it is tried, and again when it ended.
//! What was begun runs on in a task of its own, whoever stops waiting for it: its end comes into the log all the same.

use std::sync::Arc;
use std::time::Duration;

use proto::{Assessment, Body, Message, Preserved, Probe, Unit64, Unit200, Verb};
use tokio::sync::{mpsc, oneshot};

use super::artifacts::Output;
use super::event::{By, Task, What};
use super::facts::Pending;
use super::{Incident, fresh_id, log};
use crate::hands::{ExecAsk, ExecEnd, ExecNews, Hands, VerbAsk, VerbEnd, VerbNews};
use crate::untrusted::{Room, Untrusted};

/// News that wait for a slow disk.
const WAITING: usize = 64;
/// An event of the host's that is longer is not kept as a line.
const MAX_NEWS: usize = 64 << 10;
/// Lines of output in the log, of one command; the file has all of it.
const MAX_OUTPUT_LINES: u32 = 200;
/// One of them.
const MAX_OUTPUT: usize = 4000;
/// What somebody wants done.
#[derive(Clone, Debug, Default)]
pub struct Asks {
    /// Who.
    pub actor: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// Plan, and change nothing.
    pub dry_run: bool,
    /// The tool call that it serves.
    pub call: Option<String>,
    /// The second key.
    pub grant: Option<proto::Grant>,
    /// The id to ask with; absent: a fresh one.
    pub request_id: Option<proto::RequestId>,
}

/// A file that came with a verb and is kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its path in the bundle: checked.
    pub path: String,
    /// Its path in the incident's folder.
    pub file: String,
    /// Its type, as the host says.
    pub media_type: String,
    /// Its length.
    pub bytes: u64,
}

/// How a verb ended, with what came on the way.
#[derive(Debug)]
pub struct VerbTold {
    /// The verb.
    pub verb: Verb,
    /// Its end.
    pub end: VerbEnd,
    /// The host's judgement, where its code is the signed one.
    pub assessment: Option<Assessment>,
    /// The probes, in their order.
    pub probes: Vec<Probe>,
    /// The files.
    pub kept: Vec<Kept>,
    /// Where the evidence is, where a valid receipt names the same bundle.
    pub preserved: Option<Preserved>,
}

/// A verb that runs.
#[derive(Debug)]
pub struct Running<T> {
    /// What it is about: a request id, a command's number.
    pub id: String,
    end: oneshot::Receiver<T>,
}

impl<T> Running<T> {
    /// Its end. Dropping this leaves it running.
    ///
    /// # Errors
    /// The task that ran it is gone: a bug, or this program is ending.
    pub async fn end(self) -> Result<T, Message> {
        let gone = |_| Message::new(format!("What became of {} is not known: its task is gone.", self.id), "Ask with status.");
        self.end.await.map_err(gone)
    }
}

/// A command.
#[derive(Clone, Debug)]
pub struct Exec {
    /// As the devvm's shell reads it.
    pub command: String,
    /// Why.
    pub reason: Option<String>,
    /// Its time.
    pub timeout: Duration,
    /// The tool call that it serves.
    pub call: Option<String>,
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct ExecTold {
    /// Its end.
    pub end: ExecEnd,
    /// What it printed on both outputs, in the order in which it came; of much, the beginning and the end.
    pub output: Untrusted,
    /// Where all of it is, in the incident's folder; and whether it is all.
    pub file: Option<(String, bool)>,
}

impl Incident {
    /// The next command's number.
    pub(super) fn next_exec(&self) -> u64 {
        let mut state = self.state();
        state.facts.execs += 1;
        state.facts.execs
    }

    /// Runs a verb. Its id is on the disk before the first attempt.
    ///
    /// # Errors
    /// It could not be recorded: nothing was sent.
    pub fn verb(
        self: &Arc<Self>,
        hands: &Arc<dyn Hands>,
        task: Task,
        by: By,
        verb: Verb,
        asks: Asks,
    ) -> Result<Running<VerbTold>, Message> {
        let ask = VerbAsk {
            verb,
            request_id: asks.request_id.map_or_else(fresh_id, Ok)?,
            origin: by.origin(),
            actor: asks.actor.as_deref().and_then(Unit64::from_free_text),
            reason: asks.reason.as_deref().and_then(Unit200::from_free_text),
            dry_run: asks.dry_run,
            attach: false,
            grant: asks.grant,
        };
        self.begin(hands, task, by, ask, asks.call)
    }

    /// Fetches the result of a verb that a restart cut off: asked by its id with `--attach`, which starts nothing. One that changes
    /// nothing can't be asked after and is written off.
    ///
    /// # Errors
    /// It could not be recorded.
    pub fn reattach(self: &Arc<Self>, hands: &Arc<dyn Hands>, task: Task, pending: &Pending) -> Result<Option<Running<VerbTold>>, Message> {
        if !pending.verb.mutates() {
            let said = Message::new(format!("{} was cut off by a restart.", pending.verb), "It changed nothing: ask again.");
            self.write(task, By::Agent, ended(pending.request_id.clone(), pending.verb, crate::UNKNOWN, said))?;
            return Ok(None);
        }
        let ask = VerbAsk {
            verb: pending.verb,
            request_id: pending.request_id.clone(),
            origin: pending.by.origin(),
            actor: None,
            reason: pending.reason.as_deref().and_then(Unit200::from_free_text),
            dry_run: pending.dry_run,
            attach: true,
            grant: None,
        };
        self.begin(hands, task, pending.by, ask, pending.call.clone()).map(Some)
    }

    fn begin(
        self: &Arc<Self>,
        hands: &Arc<dyn Hands>,
        task: Task,
        by: By,
        ask: VerbAsk,
        call: Option<String>,
    ) -> Result<Running<VerbTold>, Message> {
        self.write(task, by, asked(&ask, call))?;
        let id = ask.request_id.to_string();
        let (tell, end) = oneshot::channel();
        let (incident, hands) = (Arc::clone(self), Arc::clone(hands));
        tokio::spawn(async move {
            let (news, mut told) = mpsc::channel(WAITING);
            let mut hears = Hears::new(&incident, task, by, &ask);
            let mut doing = hands.verb(ask.clone(), news);
            let end = loop {
                tokio::select! {
                    biased;
                    Some(news) = told.recv() => hears.news(news),
                    end = &mut doing => break end,
                }
            };
            while let Ok(news) = told.try_recv() {
                hears.news(news);
            }
            let _nobody_waits = tell.send(hears.told(end));
        });
        Ok(Running { id, end })
    }

    /// Runs a command on the devvm.
    ///
    /// # Errors
    /// It could not be recorded: nothing ran.
    pub fn exec(self: &Arc<Self>, hands: &Arc<dyn Hands>, task: Task, by: By, exec: Exec) -> Result<Running<ExecTold>, Message> {
        let number = self.next_exec();
        let Exec { command, reason, timeout, call } = exec;
        let asked = What::ExecAsked { exec: number, command: command.clone(), reason, timeout_s: timeout.as_secs(), call };
        self.write(task, by, asked)?;
        let (tell, end) = oneshot::channel();
        let (incident, hands) = (Arc::clone(self), Arc::clone(hands));
        tokio::spawn(async move {
            let (news, mut told) = mpsc::channel(WAITING);
            let mut prints = Prints::new(&incident, task, by, number);
            let mut doing = hands.exec(ExecAsk { command, timeout }, news);
            let end = loop {
                tokio::select! {
                    biased;
                    Some(news) = told.recv() => prints.news(&news),
                    end = &mut doing => break end,
                }
            };
            while let Ok(news) = told.try_recv() {
                prints.news(&news);
            }
            let _nobody_waits = tell.send(prints.ended(end));
        });
        Ok(Running { id: format!("command {number}"), end })
    }
}

/// The line before the first attempt.
pub(super) fn asked(ask: &VerbAsk, call: Option<String>) -> What {
    What::VerbAsked {
        request_id: ask.request_id.clone(),
        verb: ask.verb,
        actor: ask.actor.as_ref().map(ToString::to_string),
        reason: ask.reason.as_ref().map(|reason| reason.as_str().to_owned()),
        dry_run: ask.dry_run,
        attach: ask.attach,
        call,
        deadline_ms: ask.verb.deadline_ms(),
    }
}

fn ended(request_id: proto::RequestId, verb: Verb, status: u8, said: Message) -> What {
    What::VerbEnded { request_id, verb, status, said, receipt: None, assessment: None, bundle: None }
}

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
            status: end.status,
            said: end.said.clone(),
            receipt: body.map(|body| Box::new(body.clone())),
            assessment: self.assessment.clone().map(Box::new),
            bundle: signed,
        };
        self.incident.note(self.task, self.by, what);
    }

    fn told(mut self, end: VerbEnd) -> VerbTold {
        self.ended(&end);
        VerbTold { verb: self.verb, end, assessment: self.assessment, probes: self.probes, kept: self.kept, preserved: self.preserved }
    }
}

/// What a running command prints, on its way into the log and its file.
struct Prints<'a> {
    incident: &'a Incident,
    task: Task,
    by: By,
    number: u64,
    lines: u32,
    output: Untrusted,
    file: Option<Output>,
    whole: bool,
}

impl<'a> Prints<'a> {
    fn new(incident: &'a Incident, task: Task, by: By, number: u64) -> Self {
        let output = Untrusted::bounded(Room { head: 64 << 10, tail: 64 << 10 });
        Self { incident, task, by, number, lines: 0, output, file: None, whole: true }
    }

    fn news(&mut self, news: &ExecNews) {
        self.output.push(&news.bytes);
        if self.file.is_none() && self.whole {
            self.file = self.incident.output(self.number);
        }
        self.whole &= self.file.as_mut().is_some_and(|file| self.incident.append(file, &news.bytes));
        if self.lines < MAX_OUTPUT_LINES {
            self.lines += 1;
            let text = Untrusted::from(news.bytes.clone()).line(MAX_OUTPUT);
            self.incident.note(self.task, self.by, What::ExecOutput { exec: self.number, stderr: news.stderr, text });
        }
    }

    fn ended(self, end: ExecEnd) -> ExecTold {
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
        ExecEnd::HostKeyChanged { pinned, shown } => format!(
            "the devvm shows another host key ({}, pinned is {}): nothing ran; a person has to compare them and accept the new one",
            plain(shown),
            plain(pinned)
        ),
    }
}
