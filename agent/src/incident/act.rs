//! The way from an incident to the hands: everything that is done is a line before it is tried, and again when it ended.
//!
//! What was begun runs on in a task of its own, whoever stops waiting for it: its end comes into the log all the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::{Assessment, Message, Outcome, Preserved, Probe, Unit64, Unit200, Verb};
use tokio::sync::{mpsc, oneshot};

use super::event::{By, Task, What};
use super::facts::Pending;
use super::hears::{Hears, Prints};
use super::{Incident, fresh_id};
use crate::hands::{ExecAsk, ExecEnd, Hands, VerbAsk, VerbEnd};
use crate::untrusted::Untrusted;

/// News that wait for a slow disk.
const WAITING: usize = 64;

/// Between two attempts to reach a devvm that boots.
const AGAIN: Duration = Duration::from_secs(3);

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

impl VerbTold {
    /// Whether a valid receipt says what became of it.
    pub fn is_known(&self) -> bool {
        self.end.checked.as_ref().is_ok_and(|proved| !matches!(proved.body().outcome, Outcome::Unknown | Outcome::Internal))
    }
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
    /// A devvm that can't be reached is tried again within that time, as long as somebody waits: it may be booting.
    pub patient: bool,
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
            return self.write_off(task, pending, "by a restart").map(|()| None);
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

    /// The end of a look that nobody will hear of, and what cut it off.
    fn write_off(&self, task: Task, pending: &Pending, by: &str) -> Result<(), Message> {
        let said = Message::new(format!("{} was cut off {by}.", pending.verb), "It changed nothing: ask again.");
        self.write(task, By::Agent, ended(pending.request_id.clone(), pending.verb, crate::UNKNOWN, said)).map(drop)
    }

    /// Fetches the results of all verbs that a restart cut off, but those that a call of Claude's waits for where `calls` is false: its own
    /// conversation answers these. Gives what stays unknown of the first whose result can't be had: nothing more may be done then.
    pub async fn catch_up(self: &Arc<Self>, hands: &Arc<dyn Hands>, task: Task, calls: bool) -> Option<Message> {
        for pending in self.facts().running.into_iter().filter(|pending| calls || pending.call.is_none()) {
            let told = match self.reattach(hands, task, &pending) {
                Ok(None) => continue,
                Ok(Some(running)) => running.end().await,
                Err(why) => Err(why),
            };
            match told {
                Ok(told) if told.is_known() => {}
                Ok(told) => return Some(told.end.said),
                Err(why) => return Some(why),
            }
        }
        None
    }

    /// Fetches what the runbook left running when it was stopped or its time was over, as its own wait for it is gone: the end comes into
    /// the log all the same.
    pub fn fetch_the_runbook_s(self: &Arc<Self>, hands: &Arc<dyn Hands>, task: Task) {
        for pending in self.facts().running.into_iter().filter(|pending| pending.by == By::Runbook) {
            let left = if pending.verb.mutates() {
                self.reattach(hands, task, &pending).map(drop)
            } else {
                self.write_off(task, &pending, "by the runbook's end")
            };
            if let Err(why) = left {
                tracing::warn!(event = "degraded", incident = self.id().as_str(), "{why}");
            }
        }
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
        let Exec { command, reason, timeout, patient, call } = exec;
        let asked = What::ExecAsked { exec: number, command: command.clone(), reason, timeout_s: timeout.as_secs(), call };
        self.write(task, by, asked)?;
        let (tell, end) = oneshot::channel();
        let (incident, hands) = (Arc::clone(self), Arc::clone(hands));
        tokio::spawn(async move {
            let until = Instant::now() + timeout;
            let mut prints = Prints::new(&incident, task, by, number);
            let end = loop {
                let timeout = until.saturating_duration_since(Instant::now());
                let end = once(&*hands, ExecAsk { command: command.clone(), timeout }, &mut prints).await;
                // Only where nothing ran, and never for somebody who has left meanwhile. A guest that boots refuses logins for a while.
                let again = patient && matches!(end, ExecEnd::Unreachable(_) | ExecEnd::Refused(_)) && until > Instant::now() + AGAIN;
                if !again {
                    break end;
                }
                tokio::time::sleep(AGAIN).await;
                if tell.is_closed() {
                    break end;
                }
            };
            let _nobody_waits = tell.send(prints.ended(end));
        });
        Ok(Running { id: format!("command {number}"), end })
    }
}

/// One attempt at a command.
async fn once(hands: &dyn Hands, ask: ExecAsk, prints: &mut Prints<'_>) -> ExecEnd {
    let (news, mut told) = mpsc::channel(WAITING);
    let mut doing = hands.exec(ask, news);
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
    end
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
    What::VerbEnded { request_id, verb, sent: true, status, said, receipt: None, assessment: None, bundle: None }
}
