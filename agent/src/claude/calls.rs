//! Runs the tool calls of one answer: each is held against the policy, recorded, run, and answered. All of them are answered, whatever
//! happens, as a call without an answer ends a conversation.

use std::time::{Duration, Instant};

use proto::Message;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::answer::Call;
use super::evidence::{self, Given};
use super::settings::Autonomy;
use super::tools::{self, Tool};
use super::turn::{Halt, Session};
use crate::incident::{Asks, By, Exec, What};

/// How long a call waits for a person.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Calls of one answer that are run.
const MOST: usize = 16;
/// An input that is longer is not kept as a line; the conversation has it.
const MAX_INPUT: usize = 64 << 10;

impl Session {
    /// Runs them in their order; `whole`: the answer ended because it calls. Gives their results, and why the turn goes no further.
    pub(super) async fn run(&mut self, calls: &[Call], whole: bool, cancelled: &mut watch::Receiver<u64>) -> (Vec<Value>, Option<Halt>) {
        let (mut results, mut halt) = (Vec::new(), None);
        // A look in the same answer does not help: what came after it was decided without it.
        let mut unknown = self.incident.facts().unread.is_some();
        for (n, call) in calls.iter().enumerate() {
            let mut input = Value::Object(call.input.clone().unwrap_or_default());
            let length = input.to_string().len();
            if length > MAX_INPUT {
                input = json!({ "too_long_for_the_log": length });
            }
            let what = What::Call { call: call.id.clone(), tool: proto::escape_cut(call.tool.as_bytes(), 80), input };
            self.incident.note(self.task, By::Model, what);
            let given = match &call.input {
                _ if halt.is_some() => Given::refused("The turn was stopped before this ran."),
                _ if n >= MOST => Given::refused(format!("More than {MOST} calls in one answer: this one did not run. Call it again.")),
                Some(input) if whole => match self.one(&call.id, &call.tool, input, &mut unknown, cancelled).await {
                    Ok(given) => given,
                    Err((given, why)) => {
                        halt = Some(why);
                        given
                    }
                },
                _ => Given::refused("This call was cut off, so nothing of it ran. Call it again."),
            };
            let what = What::Result {
                call: call.id.clone(),
                error: given.error,
                text: proto::escape_cut(given.text.as_bytes(), 16_000),
                images: given.pictures.len(),
            };
            self.incident.note(self.task, By::Model, what);
            results.push(given.block(&call.id));
        }
        (results, halt)
    }

    /// One call.
    async fn one(
        &mut self,
        id: &str,
        tool: &str,
        input: &serde_json::Map<String, Value>,
        unknown: &mut bool,
        cancelled: &mut watch::Receiver<u64>,
    ) -> Result<Given, (Given, Halt)> {
        let tool = match tools::read(tool, input) {
            Ok(tool) => tool,
            Err(why) => return Ok(Given::refused(why)),
        };
        if let Err(why) = self.may(&tool, *unknown) {
            return Ok(Given::refused(format!("{} {}", why.what, why.next)));
        }
        if self.mind.settings.autonomy == Autonomy::Approve && tool.can_change() {
            match self.asked(id, &tool, cancelled).await {
                Ok(true) => {}
                Ok(false) => {
                    return Ok(Given::refused("DENIED: a person denied this call. Nothing was sent. Do not try the same in another way."));
                }
                Err(halt) => return Err((Given::refused("The turn was stopped before this ran."), halt)),
            }
        }
        match tool {
            Tool::Verb { verb, reason } => {
                // After the approval: a denied call is none. Before it is sent, whatever becomes of it.
                if verb.mutates()
                    && let Err(why) = self.mind.store.take_mutation(self.mind.budget.mutations_per_hour)
                {
                    self.incident.note(self.task, By::Agent, What::Limit { limit: "mutations".to_owned(), said: why.clone() });
                    return Ok(Given::refused(format!("LIMIT: {} {} Nothing was sent.", why.what, why.next)));
                }
                let asks = Asks { reason: Some(reason), call: Some(id.to_owned()), ..Asks::default() };
                let running = match self.incident.verb(&self.mind.hands, self.task, By::Model, verb, asks) {
                    Ok(running) => running,
                    Err(why) => return Ok(Given::refused(format!("It could not be recorded, so nothing was sent. {why}"))),
                };
                let request = running.id.clone();
                tokio::select! {
                    biased;
                    _ = cancelled.changed() => {
                        let given = format!("A person stopped the turn. {verb} (request {request}) goes on to its own end, which is not known here.");
                        Err((Given::refused(given), self.cancelled()))
                    }
                    told = running.end() => Ok(match told {
                        Ok(told) => {
                            *unknown |= self.incident.facts().unread.is_some();
                            evidence::verb(&self.incident, &told)
                        }
                        Err(why) => {
                            *unknown |= verb.mutates();
                            Given::refused(format!("UNKNOWN: {} {}", why.what, why.next))
                        }
                    }),
                }
            }
            Tool::Exec { command, timeout, reason } => {
                // No longer than Claude has: sixteen commands of ten minutes each would be hours.
                let timeout = timeout.min(self.left().max(Duration::from_secs(1)));
                let patient = self.mind.waits && self.incident.facts().mutated;
                let exec = Exec { command, reason: Some(reason), timeout, patient, call: Some(id.to_owned()) };
                let running = match self.incident.exec(&self.mind.hands, self.task, By::Model, exec) {
                    Ok(running) => running,
                    Err(why) => return Ok(Given::refused(format!("It could not be recorded, so nothing ran. {why}"))),
                };
                tokio::select! {
                    biased;
                    _ = cancelled.changed() => {
                        Err((Given::refused("A person stopped the turn. The command may still be running on the devvm."), self.cancelled()))
                    }
                    told = running.end() => Ok(match told {
                        Ok(told) => evidence::exec(&told),
                        Err(why) => Given::refused(format!("{} {}", why.what, why.next)),
                    }),
                }
            }
        }
    }

    /// What no approval can change.
    fn may(&self, tool: &Tool, unknown: bool) -> Result<(), Message> {
        if self.left() == Duration::ZERO {
            return Err(Message::new(
                format!("LIMIT: this incident's budget of {} minutes is used up, so nothing ran.", self.mind.budget.minutes),
                "A person's buttons still work.",
            ));
        }
        match tool {
            Tool::Exec { .. } if self.incident.facts().evidence.is_none() => Err(Message::new(
                "No bundle of this incident is preserved yet, and a command in the guest can destroy evidence: nothing ran.",
                "Call pve_forensics first.",
            )),
            Tool::Verb { verb, .. } if verb.mutates() && unknown => Err(Message::new(
                "The result of an earlier mutation is UNKNOWN, so this one was not sent.",
                "Look with pve_status, read what it says, then decide.",
            )),
            _ => Ok(()),
        }
    }

    /// Asks a person.
    async fn asked(&mut self, id: &str, tool: &Tool, cancelled: &mut watch::Receiver<u64>) -> Result<bool, Halt> {
        let name = match tool {
            Tool::Verb { verb, .. } => format!("pve_{verb}"),
            Tool::Exec { .. } => "devvm_exec".to_owned(),
        };
        let waits = self.incident.await_person(self.task, id, &name, &tool.said())?;
        let asked = Instant::now();
        let (decision, stopped) = tokio::select! {
            biased;
            _ = cancelled.changed() => (None, true),
            decided = tokio::time::timeout(PATIENCE, waits) => (decided.ok().and_then(Result::ok), false),
        };
        // A person's time is not Claude's; what Claude used before is.
        self.mark += asked.elapsed();
        // Nobody's answer is a no.
        let by = if decision.is_some() { By::Human } else { By::Agent };
        let allowed = decision.as_ref().is_some_and(|decision| decision.allowed);
        let actor = decision.and_then(|decision| decision.actor);
        self.incident.write(self.task, by, What::Decided { call: id.to_owned(), allowed, actor })?;
        if stopped { Err(self.cancelled()) } else { Ok(allowed) }
    }

    /// The results of calls that a restart cut off: of a verb that was asked for, by its id; of anything else, that nothing is known.
    pub(super) async fn fetch(&mut self, calls: &[String]) -> Vec<Value> {
        let mut results = Vec::new();
        for call in calls {
            let pending = self.incident.facts().running.into_iter().find(|pending| pending.call.as_ref() == Some(call));
            let given = match pending {
                None => Given::refused(
                    "The program was restarted before the result of this was written down. Nothing is known of it: look first.",
                ),
                Some(pending) => match self.incident.reattach(&self.mind.hands, self.task, &pending) {
                    Ok(None) => Given::refused("The program was restarted in the middle of this. It changed nothing: call it again."),
                    Ok(Some(running)) => match running.end().await {
                        Ok(told) => evidence::verb(&self.incident, &told),
                        Err(why) => Given::refused(why.to_string()),
                    },
                    Err(why) => Given::refused(why.to_string()),
                },
            };
            let what = What::Result {
                call: call.clone(),
                error: given.error,
                text: proto::escape_cut(given.text.as_bytes(), 16_000),
                images: given.pictures.len(),
            };
            self.incident.note(self.task, By::Agent, what);
            results.push(given.block(call));
        }
        results
    }
}
