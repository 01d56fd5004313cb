//! A turn of the conversation: from a person's words to Claude's report, with every answer, call and failure on the way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::Message;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::answer::{Answer, Heard, Usage};
use super::client::{Failed, Means, News};
use super::history::{History, Role};
use super::{Mind, settings};
use crate::incident::{By, Incident, Line, Live, Task, What};
use crate::redact::redact;

/// A person's words beyond this are cut.
const MAX_PROMPT: usize = 32_000;

/// How a turn ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turned {
    /// Claude has said what it had to say.
    Said,
    /// A limit stopped it.
    Stopped(Message),
    /// A person stopped it.
    Cancelled(Message),
    /// No model can be had: the runbook can.
    Unavailable(Message),
}

/// The conversation of one incident.
pub struct Session {
    pub(super) mind: Arc<Mind>,
    pub(super) incident: Arc<Incident>,
    history: History,
    /// Up to which line of the log Claude was told what people did.
    told: u64,
    pub(super) task: Task,
    /// Since when Claude's time runs: the last answer, or the end of a wait for a person.
    pub(super) mark: Instant,
}

/// Why a turn goes no further.
pub(super) enum Halt {
    Turned(Turned),
    /// The log or the conversation can't be written.
    Broken(Message),
}

impl From<Message> for Halt {
    fn from(why: Message) -> Self {
        Self::Broken(why)
    }
}

/// A limit is reached.
fn used_up(limit: &str) -> Halt {
    Halt::Turned(Turned::Stopped(Message::new(
        format!("Claude has used this incident's budget of {limit}."),
        "The buttons and the runbook still work; [budget] in the configuration holds the limits.",
    )))
}

impl Session {
    /// The conversation of this incident, from before a restart where there was one.
    ///
    /// # Errors
    /// It can't be read or written.
    pub fn open(mind: &Arc<Mind>, incident: &Arc<Incident>) -> Result<Self, Message> {
        let history = History::open(incident, mind.hands.vmid())?;
        // What people did is told in system messages alone: whatever came after the last of them is still to be told.
        let line = |n: &u64| incident.line(*n).and_then(|text| serde_json::from_str::<Line>(&text).ok());
        let tells = |n: &u64| line(n).is_some_and(|line| matches!(line.what, What::Message { role, .. } if role == "system"));
        let told = (1..=incident.facts().lines).rev().find(tells).unwrap_or(0);
        Ok(Self { mind: Arc::clone(mind), incident: Arc::clone(incident), history, told, task: Task(0), mark: Instant::now() })
    }

    /// A person says something; what follows from it.
    pub async fn prompt(&mut self, text: &str, actor: Option<&str>) -> Turned {
        self.said(text, By::Human, actor).await
    }

    /// The same for words that no person typed: the watch's.
    pub async fn said(&mut self, text: &str, by: By, actor: Option<&str>) -> Turned {
        let mut cancelled = self.incident.cancellations();
        self.task = self.incident.task();
        self.mark = Instant::now();
        let begun = self.begin(text, by, actor);
        let ended = match begun {
            Ok(()) => self.turns(&mut cancelled).await,
            Err(why) => Halt::Broken(why),
        };
        self.settle(ended)
    }

    /// Goes on with a turn that a restart cut off, where there was one: the results of verbs that ran are fetched by their ids.
    pub async fn resume(&mut self) -> Option<Turned> {
        if self.history.last().is_none_or(|last| last == Role::Assistant) && self.open_calls().is_empty() {
            return None;
        }
        let mut cancelled = self.incident.cancellations();
        self.task = self.incident.task();
        self.mark = Instant::now();
        let calls = self.open_calls();
        let ended = if calls.is_empty() {
            self.turns(&mut cancelled).await
        } else {
            let results = self.fetch(&calls).await;
            match self.history.append(self.task, By::Agent, Role::User, &Value::Array(results)) {
                Ok(()) => self.turns(&mut cancelled).await,
                Err(why) => Halt::Broken(why),
            }
        };
        Some(self.settle(ended))
    }

    /// The ids of calls that the last message makes and nobody answered.
    fn open_calls(&mut self) -> Vec<String> {
        if self.history.last() != Some(Role::Assistant) {
            return Vec::new();
        }
        let content = self.history.content().unwrap_or_default();
        content.iter().filter(|block| block["type"] == "tool_use").filter_map(|block| Some(block["id"].as_str()?.to_owned())).collect()
    }

    fn begin(&mut self, text: &str, by: By, actor: Option<&str>) -> Result<(), Message> {
        let text = redact(text.trim());
        let text = &text[..text.floor_char_boundary(MAX_PROMPT)];
        self.incident.write(self.task, by, What::Prompt { text: text.to_owned(), actor: actor.map(str::to_owned) })?;
        let results = self.unanswered("A restart came between: nothing is known of it.");
        if !results.is_empty() {
            self.history.append(self.task, By::Agent, Role::User, &Value::Array(results))?;
        }
        self.close("(no answer)")?;
        // An empty text block is an error, and so is a message without one.
        let text = if text.is_empty() { "(nothing)" } else { text };
        self.history.append(self.task, by, Role::User, &json!([{ "type": "text", "text": text }]))
    }

    fn unanswered(&mut self, why: &str) -> Vec<Value> {
        self.open_calls().iter().map(|call| super::evidence::Given::refused(why).block(call)).collect()
    }

    /// Roles alternate: what was not answered gets an answer in our words.
    fn close(&mut self, text: &str) -> Result<(), Message> {
        if self.history.last().is_some_and(|last| last != Role::Assistant) {
            self.history.append(self.task, By::Agent, Role::Assistant, &json!([{ "type": "text", "text": text }]))?;
        }
        Ok(())
    }

    /// The end of a turn, said and the history left so that another can follow.
    fn settle(&mut self, halt: Halt) -> Turned {
        let turned = match halt {
            Halt::Turned(turned) => turned,
            Halt::Broken(why) => Turned::Unavailable(why),
        };
        let (note, what) = match &turned {
            Turned::Said => return turned,
            Turned::Stopped(said) => ("(stopped by a limit)", What::Limit { limit: said.what.clone(), said: said.clone() }),
            Turned::Cancelled(said) => ("(stopped by the person)", What::Cancelled { actor: None, said: said.to_string() }),
            Turned::Unavailable(said) => ("(no answer could be had)", What::Said { text: said.to_string() }),
        };
        self.incident.note(self.task, By::Agent, what);
        let results = self.unanswered("The turn was stopped before this ran.");
        let closed =
            if results.is_empty() { Ok(()) } else { self.history.append(self.task, By::Agent, Role::User, &Value::Array(results)) };
        if let Err(why) = closed.and_then(|()| self.close(note)) {
            tracing::warn!(event = "degraded", incident = self.incident.id().as_str(), "{why}");
        }
        turned
    }

    /// What is said when a person stops it.
    pub(super) fn cancelled(&self) -> Halt {
        let running = self.incident.facts().running_said();
        Halt::Turned(Turned::Cancelled(Message::new(
            format!("You stopped the turn. {running}"),
            "Say what to do next, or ask with status.",
        )))
    }

    /// Answer after answer.
    async fn turns(&mut self, cancelled: &mut watch::Receiver<u64>) -> Halt {
        let mut model = 0;
        loop {
            match self.step(&mut model, cancelled).await {
                Ok(true) => {}
                Ok(false) => return Halt::Turned(Turned::Said),
                Err(halt) => return halt,
            }
        }
    }

    /// One answer and what it calls for; whether another has to follow.
    async fn step(&mut self, model: &mut usize, cancelled: &mut watch::Receiver<u64>) -> Result<bool, Halt> {
        self.operator()?;
        self.within()?;
        let answer = self.answer(model, cancelled).await?;
        let mut content = answer.content;
        if content.is_empty() {
            content.push(json!({ "type": "text", "text": "(nothing)" }));
        }
        self.history.append(self.task, By::Model, Role::Assistant, &Value::Array(content))?;
        let runs = answer.stop == "tool_use";
        if !answer.calls.is_empty() {
            let (results, halt) = self.run(&answer.calls, runs, cancelled).await;
            self.history.append(self.task, By::Model, Role::User, &Value::Array(results))?;
            return halt.map_or(Ok(true), Err);
        }
        let on = match answer.stop.as_str() {
            "max_tokens" => "Your answer was cut off at its longest. Go on, and be shorter.",
            "pause_turn" => "Go on.",
            "model_context_window_exceeded" => {
                let said = Message::new(
                    "The conversation is longer than the model can read.",
                    "Open another incident; the buttons and the runbook work.",
                );
                return Err(Halt::Turned(Turned::Stopped(said)));
            }
            _ => return Ok(false),
        };
        self.history.append(self.task, By::Agent, Role::User, &json!([{ "type": "text", "text": on }]))?;
        Ok(true)
    }

    /// Tells Claude what people did by hand since the last message, in the operator's channel: words of ours and closed sets only, as
    /// whatever else stands in a log line may come from the guest.
    fn operator(&mut self) -> Result<(), Message> {
        let mut notes = Vec::new();
        let lines = self.incident.facts().lines;
        for n in self.told + 1..=lines {
            let Some(line) = self.incident.line(n).and_then(|text| serde_json::from_str::<Line>(&text).ok()) else { continue };
            match line.what {
                What::Decided { call, allowed, .. } => {
                    let word = match (line.origin, allowed) {
                        (By::Human, true) => "A person ALLOWED",
                        (By::Human, false) => "A person DENIED",
                        _ => "Nobody decided in time on",
                    };
                    notes.push(format!("{word} the call {}.", proto::escape_cut(call.as_bytes(), 80)));
                }
                What::VerbAsked { verb, request_id, call: None, .. } if matches!(line.origin, By::Human | By::Runbook) => {
                    let who = if line.origin == By::Human { "A person" } else { "The runbook" };
                    notes.push(format!("{who} asked for {verb} by hand (request {request_id})."));
                }
                What::VerbEnded { verb, request_id, sent, receipt, .. } if matches!(line.origin, By::Human | By::Runbook) => {
                    notes.push(receipt.map_or_else(
                        || format!("That {verb} (request {request_id}) {}.", if sent { "has an UNKNOWN result" } else { "was NOT SENT" }),
                        |body| format!("That {verb} (request {request_id}) ended: {}, the VM is {}.", body.outcome, body.state_after),
                    ));
                }
                _ => {}
            }
        }
        let last = self.history.last();
        if notes.is_empty() || last != Some(Role::User) {
            // Where one can't be said now it is said later.
            self.told = if notes.is_empty() { lines } else { self.told };
            return Ok(());
        }
        self.told = lines;
        self.history.append(self.task, By::Human, Role::System, &json!([{ "type": "text", "text": notes.join("\n") }]))
    }

    /// Whether there is budget for another answer.
    fn within(&self) -> Result<(), Halt> {
        let (spent, budget) = (self.incident.facts().spent, self.mind.budget);
        let limit = [
            (spent.turns >= budget.turns, format!("{} answers", budget.turns)),
            (spent.tokens >= budget.tokens, format!("{} tokens", budget.tokens)),
            (spent.usd >= budget.usd, format!("{} dollars", budget.usd)),
            (self.left() == Duration::ZERO, format!("{} minutes", budget.minutes)),
        ];
        match limit.into_iter().find(|(reached, _)| *reached) {
            None => Ok(()),
            Some((_, limit)) => Err(used_up(&limit)),
        }
    }

    /// What is left of Claude's minutes.
    pub(super) fn left(&self) -> Duration {
        let all = Duration::from_secs(self.mind.budget.minutes.saturating_mul(60));
        all.saturating_sub(Duration::from_millis(self.incident.facts().spent.ms)).saturating_sub(self.mark.elapsed())
    }

    /// An answer of the first model that gives one.
    async fn answer(&mut self, model: &mut usize, cancelled: &mut watch::Receiver<u64>) -> Result<Answer, Halt> {
        let models = self.mind.settings.models();
        loop {
            let name = models[(*model).min(models.len() - 1)].clone();
            let failed = match self.ask(&name, cancelled).await? {
                Ok((answer, request)) => {
                    self.count(&name, &answer.stop, request.clone(), answer.usage);
                    let Some(why) = answer.is_of_no_use(&self.incident.facts().calls) else {
                        self.show(&answer);
                        return Ok(answer);
                    };
                    Failed { why: why.to_owned(), request, means: Means::AnotherModel, usage: Usage::default() }
                }
                Err(failed) => failed,
            };
            if failed.usage != Usage::default() {
                self.count(&name, "broken", failed.request.clone(), failed.usage);
            }
            self.failed(&name, failed.why.clone(), failed.request, None);
            *model += 1;
            if failed.means == Means::NoModel || *model >= models.len() {
                *model = 0;
                return Err(Halt::Turned(Turned::Unavailable(Message::new(
                    format!("Claude can't be had now: {}.", failed.why),
                    "The runbook does the same without it, and so do the six verbs.",
                ))));
            }
            self.within()?;
        }
    }

    /// One request; the outer error is a person's or the log's.
    async fn ask(&mut self, model: &str, cancelled: &mut watch::Receiver<u64>) -> Result<Result<(Answer, Option<String>), Failed>, Halt> {
        let body = self.history.request(model)?;
        let (incident, task) = (Arc::clone(&self.incident), self.task);
        let name = model.to_owned();
        let tell = move |news: News| match news {
            News::Heard(heard) => {
                let (thinking, text) = match heard {
                    Heard::Text(text) => (false, text),
                    Heard::Thinking(text) => (true, text),
                };
                incident.show(Live { task, thinking, text });
            }
            News::Again { why, request, after } => {
                let again_ms = Some(u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
                incident.note(task, By::Agent, What::Failed { model: name.clone(), why, api_request: request, again_ms });
            }
        };
        // A longer turn than the budget's minutes is cut off in the middle of an answer too.
        let left = self.left();
        let asking = self.mind.client.ask(body, tell);
        tokio::select! {
            biased;
            _ = cancelled.changed() => {
                self.count(model, "stopped", None, Usage::default());
                Err(self.cancelled())
            }
            asked = tokio::time::timeout(left, asking) => match asked {
                Ok(asked) => Ok(asked),
                // Its time is used up all the same: the next prompt does not have it again.
                Err(_) => {
                    self.count(model, "stopped", None, Usage::default());
                    Err(used_up(&format!("{} minutes", self.mind.budget.minutes)))
                }
            },
        }
    }

    /// What the answer says, as lines.
    fn show(&self, answer: &Answer) {
        for block in &answer.content {
            let text = |member: &str| block[member].as_str().filter(|text| !text.trim().is_empty()).map(str::to_owned);
            match block["type"].as_str() {
                Some("text") => text("text").into_iter().for_each(|text| self.incident.note(self.task, By::Model, What::Text { text })),
                Some("thinking") => {
                    text("thinking").into_iter().for_each(|text| self.incident.note(self.task, By::Model, What::Thinking { text }));
                }
                _ => {}
            }
        }
    }

    fn count(&mut self, model: &str, stop: &str, api_request: Option<String>, usage: Usage) {
        let (input, output) = settings::price(model);
        let ms = std::mem::replace(&mut self.mark, Instant::now()).elapsed();
        let (fresh, read, write) =
            (usage.input_tokens as f64, usage.cache_read_input_tokens as f64, usage.cache_creation_input_tokens as f64);
        // Read from the cache: a tenth. Put there for an hour: twice.
        let usd = (input * (fresh + read / 10.0 + write * 2.0) + output * usage.output_tokens as f64) / 1e6;
        self.incident.note(
            self.task,
            By::Agent,
            What::Turn {
                model: model.to_owned(),
                stop: proto::escape_cut(stop.as_bytes(), 80),
                api_request,
                input: usage.input_tokens,
                output: usage.output_tokens,
                cache_read: usage.cache_read_input_tokens,
                cache_write: usage.cache_creation_input_tokens,
                usd,
                ms: u64::try_from(ms.as_millis()).unwrap_or(u64::MAX),
            },
        );
    }

    fn failed(&self, model: &str, why: String, api_request: Option<String>, again_ms: Option<u64>) {
        self.incident.note(self.task, By::Agent, What::Failed { model: model.to_owned(), why, api_request, again_ms });
    }
}
