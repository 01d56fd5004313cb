//! What follows from an incident's lines: its title, what runs, what was spent, how it ended. Pure; after a restart the same lines
//! give the same facts.

use std::collections::{BTreeMap, BTreeSet};

use proto::{BundleName, Code, Message, Outcome, ReceiptBody, RequestId, Timestamp, Verb, VmState};

use super::event::{By, Line, What};

/// How the title of what began with a button ends: nobody has said yet what is wrong.
pub const BY_HAND: &str = ", by hand";

/// What was used up of the budget.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// Answers of the API.
    pub turns: u64,
    /// Tokens, read and written, cached or not.
    pub tokens: u64,
    /// Dollars.
    pub usd: f64,
    /// Time that Claude's turns took, in milliseconds.
    pub ms: u64,
}

/// A verb that was asked for and has no end yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Its id.
    pub request_id: RequestId,
    /// The verb.
    pub verb: Verb,
    /// Who decided.
    pub by: By,
    /// Why.
    pub reason: Option<String>,
    /// Whether it only plans.
    pub dry_run: bool,
    /// The tool call that waits for it.
    pub call: Option<String>,
    /// When it was asked for first.
    pub since: Timestamp,
    /// Its bound, in milliseconds.
    pub deadline_ms: u64,
}

/// Something that a person asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// The runbook, and no words.
    pub runbook: bool,
}

/// A mutation whose result nobody knows, and how far the model is with the look that it needs then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// The line that says so.
    line: u64,
    /// The call of a look that was asked for later and has told the state.
    look: Option<String>,
    /// Whether that call was answered with it. What comes into the conversation next is that answer.
    answered: bool,
}

/// The facts.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// What it was opened for.
    pub title: String,
    /// When.
    pub opened: Option<Timestamp>,
    /// The last line's time.
    pub changed: Option<Timestamp>,
    /// The last line's number.
    pub lines: u64,
    /// The first preserved bundle of this incident.
    pub evidence: Option<BundleName>,
    /// Verbs without an end, oldest first.
    pub running: Vec<Pending>,
    /// Every verb that was asked for, with the line that first says so; oldest first.
    pub runs: Vec<(RequestId, Verb, u64)>,
    /// Calls of the API that failed.
    pub failures: u64,
    /// Commands without an end: number and command.
    pub commands: BTreeMap<u64, String>,
    /// The ids of all calls so far: none comes twice, as a person's yes to one must not be one to another.
    pub calls: BTreeSet<String>,
    /// Calls that wait for a person: id, and what it would do.
    pub awaiting: BTreeMap<String, String>,
    /// What was spent.
    pub spent: Spent,
    /// The last proved judgement and state, and when.
    pub state: Option<(VmState, Option<Code>, Timestamp)>,
    /// The last judgement in one sentence, as the host wrote it; escaped.
    pub sentence: Option<String>,
    /// Whether a mutation was sent after the last look at the VM.
    pub touched: bool,
    /// Whether one was sent at all: the guest may be booting.
    pub mutated: bool,
    /// Mutations that sent something, or may have, and whether what came of it is known.
    pub changes: BTreeMap<RequestId, bool>,
    /// What the host found wrong first, and when, before anything was changed.
    pub found: Option<(Code, Timestamp)>,
    /// A mutation whose result nobody knows, until the VM is looked at.
    pub unknown: Option<Verb>,
    /// The same for the model, until it has read a look of its own that it asked for later: others' looks are not in its conversation.
    pub unread: Option<Unread>,
    /// What people asked for that has not begun yet, in its order.
    pub waits: Vec<Waits>,
    /// How it ended, where nothing came after.
    pub ended: Option<(bool, Message)>,
    /// How many commands there were.
    pub(super) execs: u64,
    /// The last task's number.
    pub(super) last_task: u64,
    /// Lines of Claude's history.
    pub(crate) messages: Vec<(String, proto::Sha256Hex)>,
}

impl Facts {
    /// Takes the next line.
    pub(super) fn fold(&mut self, line: &Line) {
        self.lines = line.n;
        self.changed = Some(line.at);
        self.last_task = self.last_task.max(line.task.0);
        match &line.what {
            What::Opened { title, .. } => {
                self.title.clone_from(title);
                self.opened = Some(line.at);
            }
            What::Waits { text, .. } => {
                self.ended = None;
                self.waits.push(Waits { runbook: text.is_none() });
            }
            What::Prompt { .. } | What::Runbook { .. } => {
                self.ended = None;
                let runbook = matches!(line.what, What::Runbook { .. });
                if let Some(at) = self.waits.iter().position(|one| one.runbook == runbook) {
                    self.waits.remove(at);
                }
            }
            What::Button { .. } => self.ended = None,
            // What waited waits no more, and the end before it is none.
            What::Resumed if !self.waits.is_empty() => {
                self.waits.clear();
                self.ended = None;
            }
            What::Call { call, .. } => drop(self.calls.insert(call.clone())),
            What::Awaiting { call, said, .. } => drop(self.awaiting.insert(call.clone(), said.clone())),
            What::Decided { call, .. } => drop(self.awaiting.remove(call)),
            What::VerbAsked { request_id, verb, reason, dry_run, call, deadline_ms, .. } => {
                self.touched |= verb.mutates() && !dry_run;
                self.mutated |= verb.mutates() && !dry_run;
                if !self.runs.iter().any(|(known, ..)| known == request_id) {
                    self.runs.push((request_id.clone(), *verb, line.n));
                }
                // Asked again with --attach after a restart: the same verb, since when it was.
                if !self.running.iter().any(|pending| pending.request_id == *request_id) {
                    self.running.push(Pending {
                        request_id: request_id.clone(),
                        verb: *verb,
                        by: line.origin,
                        reason: reason.clone(),
                        dry_run: *dry_run,
                        call: call.clone(),
                        since: line.at,
                        deadline_ms: *deadline_ms,
                    });
                }
            }
            What::VerbEnded { request_id, verb, sent, receipt, assessment, bundle, .. } => {
                let planned = self.running.iter().any(|pending| pending.request_id == *request_id && pending.dry_run);
                let call = self.running.iter().find(|pending| pending.request_id == *request_id).and_then(|pending| pending.call.clone());
                let asked = self.runs.iter().find(|(id, ..)| id == request_id).map_or(0, |(.., n)| *n);
                self.running.retain(|pending| pending.request_id != *request_id);
                if self.changes.is_empty() {
                    let wrong = receipt.as_ref().and_then(|body| body.assessment).filter(|code| *code != Code::Healthy);
                    self.found = self.found.or_else(|| wrong.map(|code| (code, line.at)));
                }
                if verb.mutates() && !planned {
                    // Told twice after a restart: what is known last counts.
                    match changed(*sent, receipt.as_deref()) {
                        Some(known) => drop(self.changes.insert(request_id.clone(), known)),
                        None => drop(self.changes.remove(request_id)),
                    }
                }
                let known = receipt.as_ref().is_some_and(|body| !matches!(body.outcome, Outcome::Unknown | Outcome::Internal));
                match (known, verb.mutates()) {
                    (true, false) => {
                        self.unknown = None;
                        if let Some(unread) = self.unread.as_mut().filter(|unread| unread.line < asked && !unread.answered) {
                            unread.look = call.or(unread.look.take());
                        }
                    }
                    (false, true) if *sent => {
                        self.unknown = Some(*verb);
                        self.unread = Some(Unread { line: line.n, look: None, answered: false });
                    }
                    _ => {}
                }
                if let Some(receipt) = receipt {
                    if !verb.mutates() {
                        self.touched = false;
                    }
                    self.state = Some((receipt.state_after, receipt.assessment, line.at));
                    self.sentence = assessment.as_ref().map(|judged| judged.sentence.clone());
                    self.evidence = self.evidence.take().or_else(|| bundle.clone());
                }
            }
            // A call that was answered waits for nothing more: what it began and a person's stop left running is fetched like any verb.
            What::Result { call, .. } => {
                self.unread
                    .as_mut()
                    .filter(|unread| unread.look.as_ref() == Some(call))
                    .into_iter()
                    .for_each(|unread| unread.answered = true);
                for pending in self.running.iter_mut().filter(|pending| pending.call.as_ref() == Some(call)) {
                    pending.call = None;
                }
            }
            What::ExecAsked { exec, command, .. } => {
                self.execs = self.execs.max(*exec);
                self.commands.insert(*exec, command.clone());
            }
            What::ExecEnded { exec, .. } => drop(self.commands.remove(exec)),
            What::Message { role, sha256, .. } => {
                // Others than the model's calls put something else there for an answer that was cut off.
                if role == "user" && self.unread.take_if(|unread| unread.answered && line.origin == By::Model).is_none() {
                    self.unread.iter_mut().for_each(|unread| (unread.look, unread.answered) = (None, false));
                }
                self.messages.push((role.clone(), sha256.clone()));
            }
            What::Turn { input, output, cache_read, cache_write, usd, ms, .. } => {
                self.spent.turns += 1;
                self.spent.tokens += input + output + cache_read + cache_write;
                self.spent.usd += usd;
                self.spent.ms += ms;
            }
            What::Failed { .. } => {
                self.spent.turns += 1;
                self.failures += 1;
            }
            What::Ended { healthy, said } => self.ended = Some((*healthy, said.clone())),
            _ => {}
        }
    }

    /// What it is called: what somebody said, or what the host found where nobody said anything.
    pub fn name(&self) -> String {
        match &self.found {
            Some((code, at)) if self.title.ends_with(BY_HAND) => format!("{code}, {} UTC", at.to_string().get(11..16).unwrap_or_default()),
            _ => self.title.clone(),
        }
    }

    /// How many things were changed, and of how many mutations nobody knows what came.
    pub fn changed_things(&self) -> (usize, usize) {
        let known = self.changes.values().filter(|known| **known).count();
        (known, self.changes.len() - known)
    }

    /// Whether it has ended and left nothing behind whose receipt is still to be fetched.
    pub fn is_over(&self) -> bool {
        self.ended.is_some() && self.waits.is_empty() && !self.running.iter().any(|pending| pending.verb.mutates())
    }

    /// What runs now, in words: for whoever leaves or cancels.
    pub fn running_said(&self) -> String {
        let verbs = self.running.iter().map(|verb| format!("{} (request {})", verb.verb, verb.request_id));
        let commands = self.commands.values().map(|command| format!("the command {}", proto::escape_cut(command.as_bytes(), 80)));
        let all: Vec<String> = verbs.chain(commands).collect();
        if all.is_empty() {
            "Nothing of it runs on.".to_owned()
        } else {
            format!("This goes on running to its own end: {}.", all.join(", "))
        }
    }
}

/// Whether a mutation's end means that something was sent to the VM, and then whether what came of it is known.
fn changed(sent: bool, receipt: Option<&ReceiptBody>) -> Option<bool> {
    match receipt {
        Some(body) if body.dry_run || body.already => None,
        Some(body) => match body.outcome {
            Outcome::Done | Outcome::Failed => Some(true),
            Outcome::Unknown | Outcome::Internal => Some(false),
            _ => None,
        },
        None => sent.then_some(false),
    }
}
