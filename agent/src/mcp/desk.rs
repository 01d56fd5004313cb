//! Where calls become verbs: each goes through an incident of this session, opened by its first call, and from there to the hands.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64ct::{Base64, Encoding};
use proto::{Message, Outcome, RequestId, Timestamp, Verb};
use rmcp::ErrorData;
use rmcp::model::{ReadResourceResult, Resource};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::BY;
use super::evidence::Held;
use super::plans::{Plan, Plans, Seen};
use super::progress::{Progress, words};
use super::tools::Call;
use crate::claude::evidence as told_as;
use crate::hands::Hands;
use crate::incident::{Asks, Incident, Pending, Running, Seen as Line, Store, Task, VerbTold};

/// Ends when the caller cancels its call, or goes.
pub(super) type Leaves = Pin<Box<dyn Future<Output = ()> + Send>>;

const NOT_OPEN: &str =
    "This token is not open: it was used, it is older than ten minutes, or it never was one. Nothing was done. Plan with pve_plan.";

/// Between two signs of life.
const BEAT: Duration = Duration::from_secs(2);
/// Resources that are listed: the newest.
const MOST_HELD: usize = 500;

/// What a tool gives.
#[derive(Clone, Debug, Default)]
pub(super) struct Given {
    /// In words; what comes from elsewhere is quoted in them.
    pub(super) text: String,
    /// What a receipt proves, for a program.
    pub(super) signed: Option<Value>,
    /// The screens: PNG in base64.
    pub(super) pictures: Vec<String>,
    /// The evidence.
    pub(super) links: Vec<Resource>,
    /// Whether it is told as an error.
    pub(super) error: bool,
}

impl Given {
    /// Our own words about why nothing ran.
    pub(super) fn refused(text: impl Into<String>) -> Self {
        Self { text: text.into(), error: true, ..Self::default() }
    }
}

/// A verb that its caller left, and how it ended.
struct Left {
    verb: Verb,
    end: watch::Receiver<Option<Given>>,
}

#[derive(Default)]
struct Inner {
    incident: Option<(Arc<Incident>, Task)>,
    held: Vec<Held>,
    left: HashMap<RequestId, Left>,
}

/// One client's desk.
pub(super) struct Desk {
    hands: Arc<dyn Hands>,
    store: Arc<Store>,
    mutations_per_hour: u32,
    plans: Plans,
    inner: Mutex<Inner>,
}

impl Desk {
    pub(super) fn new(hands: Arc<dyn Hands>, store: Arc<Store>, mutations_per_hour: u32) -> Self {
        Self { hands, store, mutations_per_hour, plans: Plans::default(), inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session's incident, opened by its first call.
    fn incident(&self, actor: Option<&str>) -> Result<(Arc<Incident>, Task), Message> {
        let mut inner = self.inner();
        if let Some(open) = &inner.incident {
            return Ok(open.clone());
        }
        let incident = self.store.create("an MCP client", BY, actor)?;
        let task = incident.task();
        inner.incident = Some((Arc::clone(&incident), task));
        Ok((incident, task))
    }

    /// The client leaves: gives what runs on, where something does.
    pub(super) fn leave(&self) -> Option<String> {
        let (incident, task) = self.inner().incident.take()?;
        let running = incident.facts().running_said();
        let runs = !incident.facts().running.is_empty();
        incident.end(task, false, &Message::new(format!("The MCP client left. {running}"), "Ask with status what is so now."));
        runs.then_some(running)
    }

    /// What the plan of this token would do.
    pub(super) fn would(&self, token: &str) -> Option<Plan> {
        self.plans.look(token)
    }

    /// Does what is asked; what was left behind is told first.
    pub(super) async fn call(self: &Arc<Self>, call: Call, actor: Option<String>, mut progress: Progress, mut leaves: Leaves) -> Given {
        let about = if let Call::Attach { request_id, .. } = &call { Some(request_id.clone()) } else { None };
        let mut given = match self.run(call, actor, &mut progress, &mut leaves).await {
            Ok(given) => given,
            Err(message) => Given::refused(message.to_string()),
        };
        if let Some(notice) = self.left_behind(about.as_ref()) {
            given.text = format!("{notice}\n{}", given.text);
        }
        given
    }

    async fn run(
        self: &Arc<Self>,
        call: Call,
        actor: Option<String>,
        progress: &mut Progress,
        leaves: &mut Leaves,
    ) -> Result<Given, Message> {
        let (incident, task) = self.incident(actor.as_deref())?;
        let begin = |verb, reason: &str, dry_run| {
            let reason = Some(reason.to_owned());
            incident.verb(&self.hands, task, BY, verb, Asks { actor: actor.clone(), reason, dry_run, ..Asks::default() })
        };
        match call {
            Call::Look { verb, reason } => {
                let running = begin(verb, &reason, false)?;
                let told = self.wait(&incident, (verb, false), running, progress, leaves).await?;
                Ok(self.given(&incident, &told))
            }
            Call::Plan { verb, reason } => {
                let running = begin(verb, &reason, true)?;
                let told = self.wait(&incident, (verb, false), running, progress, leaves).await?;
                Ok(self.planned(&incident, &told, verb, reason))
            }
            Call::Apply { token } => {
                let Some(plan) = self.plans.spend(&token) else { return Ok(Given::refused(NOT_OPEN)) };
                let running = begin(Verb::Status, &format!("before {}: {}", plan.verb, plan.reason), false)?;
                let look = self.wait(&incident, (Verb::Status, false), running, progress, leaves).await?;
                if let Some(refusal) = moved_on(&look, &plan) {
                    return Ok(refusal);
                }
                self.store.take_mutation(self.mutations_per_hour)?;
                let running = begin(plan.verb, &plan.reason, false)?;
                let told = self.wait(&incident, (plan.verb, true), running, progress, leaves).await?;
                Ok(self.given(&incident, &told))
            }
            Call::Attach { verb, request_id } => {
                let known = self.inner().left.get(&request_id).map(|left| left.end.clone());
                if let Some(end) = known {
                    return self.rejoin(verb, request_id, end, progress, leaves).await;
                }
                let pending = Pending {
                    request_id,
                    verb,
                    by: BY,
                    reason: None,
                    dry_run: false,
                    call: None,
                    since: Timestamp::from_unix_ms(0),
                    deadline_ms: verb.deadline_ms(),
                };
                let Some(running) = incident.reattach(&self.hands, task, &pending)? else { return Ok(Given::refused(NOT_OPEN)) };
                let told = self.wait(&incident, (verb, true), running, progress, leaves).await?;
                Ok(self.given(&incident, &told))
            }
        }
    }

    /// Waits for a verb's end and tells what comes. Whoever leaves in between leaves it running: its end is kept for when it is asked
    /// for. `acts` where it may change the VM.
    async fn wait(
        self: &Arc<Self>,
        incident: &Arc<Incident>,
        (verb, acts): (Verb, bool),
        running: Running<VerbTold>,
        progress: &mut Progress,
        leaves: &mut Leaves,
    ) -> Result<VerbTold, Message> {
        let said = format!("{verb} (request {})", running.id);
        let id: Option<RequestId> = running.id.parse().ok();
        progress.within(Duration::from_millis(verb.deadline_ms()));
        progress.tell(format!("{said} begins")).await;
        let mut lines = incident.watch(incident.facts().lines);
        let mut end = Box::pin(running.end());
        let mut beat = tokio::time::interval(BEAT);
        beat.tick().await;
        loop {
            tokio::select! {
                biased;
                told = &mut end => return told,
                () = &mut *leaves => break,
                line = lines.next() => {
                    if let (Line::Line(_, text), Some(id)) = (line, &id)
                        && let Some(words) = words(&text, id)
                    {
                        progress.tell(words).await;
                    }
                }
                _ = beat.tick() => progress.beat(&said).await,
            }
        }
        let (Some(id), true) = (id, acts) else {
            return Err(Message::new(format!("You left; {said} changes nothing."), "Ask again when you like."));
        };
        let (tell, ended) = watch::channel(None);
        self.inner().left.insert(id.clone(), Left { verb, end: ended });
        let (desk, incident) = (Arc::clone(self), Arc::clone(incident));
        tokio::spawn(async move {
            let given = match end.await {
                Ok(told) => desk.given(&incident, &told),
                Err(message) => Given::refused(message.to_string()),
            };
            tell.send_replace(Some(given));
        });
        Err(Message::new(
            format!("You left; {said} goes on on the host, to its own end."),
            format!("pve_attach with verb {verb} and request_id {id} tells how it ended."),
        ))
    }

    /// Waits for the end of one that was left in this session.
    async fn rejoin(
        &self,
        verb: Verb,
        id: RequestId,
        mut end: watch::Receiver<Option<Given>>,
        progress: &mut Progress,
        leaves: &mut Leaves,
    ) -> Result<Given, Message> {
        progress.within(Duration::from_millis(verb.deadline_ms()));
        let mut beat = tokio::time::interval(BEAT);
        loop {
            let ended = end.borrow_and_update().clone();
            if let Some(given) = ended {
                self.inner().left.remove(&id);
                return Ok(given);
            }
            tokio::select! {
                changed = end.changed() => {
                    if changed.is_err() {
                        return Err(Message::new(format!("What became of {id} is not known here."), "Look with pve_status."));
                    }
                }
                () = &mut *leaves => return Err(Message::new("You left; it goes on.", "Ask again with pve_attach.")),
                _ = beat.tick() => progress.beat(&format!("{verb} (request {id})")).await,
            }
        }
    }

    /// What this client has left behind, in a line each; what has ended is told once.
    fn left_behind(&self, but: Option<&RequestId>) -> Option<String> {
        let mut inner = self.inner();
        let mut lines = Vec::new();
        inner.left.retain(|id, left| {
            if but == Some(id) {
                return true;
            }
            let ended = left.end.borrow();
            let first = ended.as_ref().map(|given| given.text.lines().next().unwrap_or_default().to_owned());
            let verb = left.verb;
            lines.push(match &first {
                Some(first) => format!("NOTE: {verb} (request {id}), which you left, has ended. {first}"),
                None => format!("NOTE: {verb} (request {id}), which you left, still runs on the host; pve_attach tells how it ends."),
            });
            first.is_none()
        });
        (!lines.is_empty()).then(|| lines.join("\n"))
    }

    /// What a verb's end gives; its files are resources from now on.
    fn given(&self, incident: &Incident, told: &VerbTold) -> Given {
        let held: Vec<Held> = told.kept.iter().map(|kept| Held { request_id: told.end.request_id.clone(), kept: kept.clone() }).collect();
        // What the findings stand on; the rest is in the list.
        let findings = told.assessment.iter().flat_map(|assessment| &assessment.findings);
        let named: Vec<&str> = findings.flat_map(|finding| &finding.evidence).map(String::as_str).collect();
        let links = held.iter().filter(|held| named.contains(&held.kept.path.as_str())).map(Held::resource).collect();
        {
            let mut inner = self.inner();
            inner.held.retain(|old| held.iter().all(|new| new.uri() != old.uri()));
            inner.held.extend(held);
            let over = inner.held.len().saturating_sub(MOST_HELD);
            inner.held.drain(..over);
        }
        let pictures = told_as::pictures(incident, &told.kept).iter().map(|picture| Base64::encode_string(picture)).collect();
        let mut text = vec![format!("{} (request {})", told.verb, told.end.request_id)];
        text.extend(told_as::summary(told));
        Given {
            text: text.join("\n"),
            signed: Some(signed(told)),
            pictures,
            links,
            error: told.end.checked.is_err() || told.end.status != 0,
        }
    }

    /// What a plan gives: a token, where there is something to do and the host would do it.
    fn planned(&self, incident: &Incident, told: &VerbTold, verb: Verb, reason: String) -> Given {
        let mut given = self.given(incident, told);
        let Ok(proved) = &told.end.checked else { return given };
        let body = proved.body();
        if body.outcome != Outcome::Done || !body.dry_run {
            given.text = format!("There is no plan: the host would refuse {verb} now.\n{}", given.text);
            return given;
        }
        if body.already {
            given.text = format!("There is nothing to do: the VM is in the state that {verb} leads to.\n{}", given.text);
            return given;
        }
        let would = proto::escape_cut(body.message.what.as_bytes(), 300);
        let Some(token) = self.plans.keep(Plan::new(verb, reason, Seen::by(body), would)) else {
            return Given::refused("The kernel gave no random bytes for a token. Nothing was done.");
        };
        given.text = format!("PLANNED, not done: {verb}. To do it: pve_apply with token {token} (ten minutes, one use).\n{}", given.text);
        if let Some(Value::Object(signed)) = &mut given.signed {
            signed.insert("token".to_owned(), json!(token));
        }
        given
    }

    /// The evidence of this session's answers.
    pub(super) fn resources(&self) -> Vec<Resource> {
        self.inner().held.iter().rev().map(Held::resource).collect()
    }

    /// One piece of it.
    pub(super) fn resource(&self, uri: &str) -> Result<ReadResourceResult, ErrorData> {
        let inner = self.inner();
        let held = inner.held.iter().find(|held| held.uri() == uri);
        match (held, &inner.incident) {
            (Some(held), Some((incident, _))) => held.read(incident),
            _ => Err(ErrorData::resource_not_found("No answer of this session came with that file.", None)),
        }
    }
}

/// Why nothing is done: the VM could not be looked at, or is another than the plan's.
fn moved_on(look: &VerbTold, plan: &Plan) -> Option<Given> {
    let Ok(proved) = &look.end.checked else {
        return Some(Given::refused(format!(
            "Whether the VM is still as it was planned for could not be looked up: {} Nothing was done, and the token is spent. Plan anew.",
            look.end.said
        )));
    };
    let now = Seen::by(proved.body());
    if now.is_still(&plan.seen) {
        return None;
    }
    let of = |seen: Seen| match seen.qemu {
        Some(qemu) => format!("{} with QEMU {}", seen.state, qemu.pid),
        None => seen.state.to_string(),
    };
    Some(Given::refused(format!(
        "The VM is not as it was when {} was planned: it was {}, it is {}. Nothing was done, and the token is spent. Look, and plan anew.",
        plan.verb,
        of(plan.seen),
        of(now)
    )))
}

/// What the receipt proves, for a program; without one: that nothing is known.
fn signed(told: &VerbTold) -> Value {
    let id = &told.end.request_id;
    match &told.end.checked {
        Err(_) => {
            let outcome = if told.end.sent { "unknown" } else { "not-sent" };
            json!({ "request_id": id, "verb": told.verb, "receipt": "none", "outcome": outcome, "exit_code": told.end.status })
        }
        Ok(proved) => {
            let body = proved.body();
            json!({
                "request_id": id, "verb": told.verb, "receipt": "valid", "outcome": body.outcome, "exit_code": body.exit_code,
                "already": body.already, "dry_run": body.dry_run, "interrupted": body.interrupted,
                "state_before": body.state_before, "state_after": body.state_after, "assessment": body.assessment,
                "bundle": body.bundle, "preserved_where": body.preserved_where,
            })
        }
    }
}
