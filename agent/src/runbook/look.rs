//! The runbook's calls: a verb with what its receipt proves and its events advise, a command with its output, each told to the journal.

use std::time::Duration;

use proto::{Body, Code, Message, Origin, Outcome, RequestId, Unit200, Verb, VmState, Vmid};
use tokio::sync::mpsc;

use super::Patience;
use super::guest::{self, Guest};
use crate::hands::{ExecAsk, ExecEnd, Hands, VerbAsk, VerbEnd, VerbNews};
use crate::silence::Silence;

/// A command's output beyond this is not looked at; the journal gets all of it.
const MAX_OUTPUT: usize = 64 * 1024;
/// News that wait for a slow journal.
const WAITING: usize = 64;
/// A command that only reads.
const READ: Duration = Duration::from_secs(15);

/// Where the runbook tells what it does: the incident's log. What is asked is durable there before it is sent.
pub trait Journal: Send {
    /// A verb is about to be asked for.
    ///
    /// # Errors
    /// It could not be recorded: it is not sent.
    fn asks(&mut self, ask: &VerbAsk) -> Result<(), Message>;
    /// A running verb tells something.
    fn news(&mut self, ask: &VerbAsk, news: &VerbNews);
    /// A verb ended.
    fn ended(&mut self, ask: &VerbAsk, end: &VerbEnd);
    /// A command is about to run on the devvm.
    ///
    /// # Errors
    /// It could not be recorded: it does not run.
    fn runs(&mut self, command: &str) -> Result<(), Message>;
    /// It ended; its whole output.
    fn ran(&mut self, command: &str, output: &[u8], end: &ExecEnd);
    /// What the runbook itself has to say.
    fn said(&mut self, text: &str);
}

/// Nobody listens.
#[derive(Clone, Copy, Debug)]
pub struct Nowhere;

impl Journal for Nowhere {
    fn asks(&mut self, _: &VerbAsk) -> Result<(), Message> {
        Ok(())
    }
    fn news(&mut self, _: &VerbAsk, _: &VerbNews) {}
    fn ended(&mut self, _: &VerbAsk, _: &VerbEnd) {}
    fn runs(&mut self, _: &str) -> Result<(), Message> {
        Ok(())
    }
    fn ran(&mut self, _: &str, _: &[u8], _: &ExecEnd) {}
    fn said(&mut self, _: &str) {}
}

/// What a verb's answer says. All but sentence, recommendation and why is signed; these count only where the signed code is theirs.
#[derive(Clone, Debug)]
pub struct Looked {
    /// The VM.
    pub vmid: Vmid,
    /// How it ended.
    pub outcome: Outcome,
    /// The VM now.
    pub state: VmState,
    /// The judgement.
    pub code: Option<Code>,
    /// Its sentence.
    pub sentence: String,
    /// The verb that it recommends.
    pub recommend: Option<Verb>,
    /// Why.
    pub why: String,
    /// What the host says: what happened, what to do.
    pub said: Message,
}

impl Default for Looked {
    fn default() -> Self {
        let said = Message::new("", "");
        let (sentence, why) = (String::new(), String::new());
        Self { vmid: Vmid::DEVVM, outcome: Outcome::Unknown, state: VmState::Unknown, code: None, sentence, recommend: None, why, said }
    }
}

/// What is known after a verb.
pub(super) enum Verdict {
    /// A valid receipt says this.
    Known(Box<Looked>),
    /// There is none; the two sentences say why.
    Unknown(Message),
    /// The request never reached the host, so it did nothing there; the two sentences say why.
    Unsent(Message),
}

/// A runbook at work.
pub(super) struct Acting<'a> {
    pub(super) hands: &'a dyn Hands,
    pub(super) journal: &'a mut dyn Journal,
    pub(super) patience: Patience,
    /// Nobody asked.
    pub(super) unattended: bool,
    pub(super) mutations: u8,
    /// What it said last.
    pub(super) said: String,
}

impl Acting<'_> {
    /// Says it; not twice in a row, as where the assessment is all that there is to report.
    pub(super) fn say(&mut self, text: &str) {
        if self.said != text {
            text.clone_into(&mut self.said);
            self.journal.said(text);
        }
    }

    /// Whether it is left as it is: nobody asked, and somebody may want it so.
    pub(super) fn hands_off(&self, looked: &Looked) -> bool {
        self.unattended && looked.code.is_some_and(|code| super::somebody_did_it(code, looked.state))
    }

    /// Runs a verb to its end.
    pub(super) async fn verb(&mut self, verb: Verb, reason: &str) -> Verdict {
        let Some(request_id) = fresh_id() else {
            return Verdict::Unsent(Message::new("There were no random bytes for a request id.", "Try again."));
        };
        let ask = VerbAsk {
            verb,
            request_id,
            origin: Origin::Runbook,
            actor: None,
            reason: Unit200::from_free_text(reason),
            dry_run: false,
            attach: false,
            grant: None,
        };
        if let Err(why) = self.journal.asks(&ask) {
            return Verdict::Unsent(why);
        }
        let (tell, mut told) = mpsc::channel(WAITING);
        let mut doing = self.hands.verb(ask.clone(), tell);
        let mut assessment = None;
        let mut hear = |journal: &mut dyn Journal, news: VerbNews| {
            if let VerbNews::Event(event) = &news
                && let Body::Assessment(judged) = &event.body
            {
                assessment = Some(judged.clone());
            }
            journal.news(&ask, &news);
        };
        let end = loop {
            tokio::select! {
                biased;
                Some(news) = told.recv() => hear(self.journal, news),
                end = &mut doing => break end,
            }
        };
        while let Ok(news) = told.try_recv() {
            hear(self.journal, news);
        }
        self.journal.ended(&ask, &end);
        match &end.checked {
            Err(_) if !end.sent => Verdict::Unsent(end.said),
            Err(_) => Verdict::Unknown(end.said),
            Ok(proved) => {
                let body = proved.body();
                let own = assessment.filter(|judged| body.assessment == Some(judged.code));
                Verdict::Known(Box::new(Looked {
                    vmid: body.vmid,
                    outcome: body.outcome,
                    state: body.state_after,
                    code: body.assessment,
                    sentence: own.as_ref().map_or_else(|| body.message.what.clone(), |judged| judged.sentence.clone()),
                    recommend: own.as_ref().and_then(|judged| judged.recommend.verb),
                    why: own.map_or_else(|| body.message.next.clone(), |judged| judged.recommend.why),
                    said: body.message.clone(),
                }))
            }
        }
    }

    /// Runs a command; its output where it ended with 0, else how it ended.
    async fn exec(&mut self, command: &str, timeout: Duration) -> Result<Vec<u8>, ExecEnd> {
        if let Err(why) = self.journal.runs(command) {
            return Err(ExecEnd::Refused(why.what));
        }
        let (tell, mut told) = mpsc::channel(WAITING);
        let mut doing = self.hands.exec(ExecAsk { command: command.to_owned(), timeout }, tell);
        let mut output = Vec::new();
        let mut hear = |news: crate::hands::ExecNews| {
            let room = MAX_OUTPUT.saturating_sub(output.len());
            output.extend_from_slice(&news.bytes[..news.bytes.len().min(room)]);
        };
        let end = loop {
            tokio::select! {
                biased;
                Some(news) = told.recv() => hear(news),
                end = &mut doing => break end,
            }
        };
        while let Ok(news) = told.try_recv() {
            hear(news);
        }
        self.journal.ran(command, &output, &end);
        if end == ExecEnd::Exited(0) { Ok(output) } else { Err(end) }
    }

    /// The devvm, or why it gave no answer.
    pub(super) async fn asked(&mut self) -> Result<Guest, Silence> {
        let unread = || Silence::Shut("its sshd answers, and what it says can't be read".to_owned());
        match self.exec(guest::ASK, READ).await {
            Ok(output) => Guest::read(&output).ok_or_else(unread),
            Err(end) => Err(Silence::of(&end).unwrap_or_else(unread)),
        }
    }

    /// Waits until the devvm answers; the error is why it did not.
    pub(super) async fn back(&mut self, within: Duration) -> Result<Guest, Silence> {
        let end = tokio::time::Instant::now() + within;
        loop {
            match self.asked().await {
                Err(silence) if !silence.is_for_good() && tokio::time::Instant::now() < end => {
                    tokio::time::sleep(self.patience.pause).await
                }
                answer => return answer,
            }
        }
    }

    /// Has the guest's kernel end its largest process, after it was written down who that is.
    pub(super) async fn end_largest(&mut self) -> guest::Killed {
        let _for_the_record = self.exec(guest::WHO, READ).await;
        let told = self.exec(guest::END_LARGEST, READ).await;
        guest::Killed::of(told.as_ref().map(|_| ()))
    }
}

/// An id that nobody has used.
fn fresh_id() -> Option<RequestId> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).ok()?;
    Some(RequestId::from_random(bytes))
}
