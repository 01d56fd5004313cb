//! What a running verb tells, as progress: seconds so far, of the seconds that it may take. And the courtesy of asking a person.

use std::time::{Duration, Instant};

use proto::{Body, Event, RequestId, Vmid};
use rmcp::RoleServer;
use rmcp::model::{ElicitRequestParams, ElicitationAction, ElicitationSchema, ProgressNotificationParam, ProgressToken, ProtocolVersion};
use rmcp::service::{Peer, RequestContext};

use super::plans::Plan;
use crate::incident::{Line, What};

/// A person who was asked has this long.
const ASKED: Duration = Duration::from_secs(120);

/// Where progress goes.
pub(super) struct Progress {
    to: Option<(Peer<RoleServer>, ProgressToken)>,
    began: Instant,
    bound: Duration,
}

impl Progress {
    /// To the client, where it wants to hear of this request.
    pub(super) fn of(context: &RequestContext<RoleServer>) -> Self {
        let to = context.meta.get_progress_token().map(|token| (context.peer.clone(), token));
        Self { to, began: Instant::now(), bound: Duration::ZERO }
    }

    /// A verb begins, which may take this long.
    pub(super) const fn within(&mut self, bound: Duration) {
        self.bound = bound;
    }

    /// Tells.
    pub(super) async fn tell(&self, message: String) {
        let Some((peer, token)) = &self.to else { return };
        let (so_far, total) = (self.began.elapsed().as_secs_f64(), self.bound.as_secs_f64());
        let told = ProgressNotificationParam::new(token.clone(), so_far).with_total(total.max(so_far)).with_message(message);
        // Whoever does not listen misses it; the result says all of it again.
        let _nobody_listens = peer.notify_progress(told).await;
    }

    /// Nothing new, and it still runs.
    pub(super) async fn beat(&self, what: &str) {
        let left = self.bound.saturating_sub(self.began.elapsed()).as_secs();
        self.tell(format!("{what} runs, at most {left} s more")).await;
    }

    /// Asks a person through the client, where it says that it can; gives why nothing is done. A client may answer by itself: what
    /// holds is the token, so this may say no, and never yes.
    pub(super) async fn ask_a_person(&self, context: &RequestContext<RoleServer>, vmid: Vmid, plan: Option<Plan>) -> Option<String> {
        let plan = plan?;
        let asks = context.client_capabilities().is_some_and(|can| can.elicitation.is_some());
        // Newer clients are not called from here: they show their own question before a tool that says it is destructive.
        let older = context.protocol_version().is_some_and(|version| version.as_str() < ProtocolVersion::V_2026_07_28.as_str());
        if !(asks && older) {
            return None;
        }
        let question = ElicitRequestParams::FormElicitationParams {
            meta: None,
            message: format!(
                "{} of VM {vmid}? {} The reason given: {}",
                plan.verb,
                plan.would,
                proto::escape_cut(plan.reason.as_bytes(), 200)
            ),
            requested_schema: ElicitationSchema::new(std::collections::BTreeMap::new()),
        };
        match context.peer.create_elicitation_with_timeout(question, Some(ASKED)).await {
            Ok(answer) if answer.action == ElicitationAction::Accept => None,
            Ok(_) => Some("The person was asked, and DENIED it. Nothing was done, and the token is still open.".to_owned()),
            Err(rmcp::ServiceError::Timeout { .. }) => {
                Some("The person was asked and did not answer in two minutes. Nothing was done, and the token is still open.".to_owned())
            }
            // It said that it can, and can't.
            Err(_) => None,
        }
    }
}

/// What a line of the incident's log says about this request, in a few words; none where it says nothing new.
pub(super) fn words(line: &str, id: &RequestId) -> Option<String> {
    let line: Line = serde_json::from_str(line).ok()?;
    match line.what {
        What::VerbNews { request_id, news } if request_id == *id => said(&news),
        What::VerbAgain { request_id, why, after_ms } if request_id == *id => Some(format!("{why}; again in {} s", after_ms / 1000)),
        _ => None,
    }
}

fn said(news: &Event) -> Option<String> {
    let word = |value: serde_json::Value| value.as_str().map(str::to_owned).unwrap_or_default();
    let told = match &news.body {
        Body::Accepted(accepted) => format!("the host took it, for at most {} s", accepted.deadline_ms / 1000),
        Body::Probe(probe) => format!("{}: {}", probe.name, word(serde_json::to_value(probe.outcome).ok()?)),
        Body::Assessment(judged) => judged.sentence.clone(),
        Body::Preserved(kept) => format!("the evidence is safe: {}", kept.bundle),
        Body::Step(step) => {
            format!("{}: {}", word(serde_json::to_value(step.name).ok()?), word(serde_json::to_value(step.outcome).ok()?))
        }
        Body::Artifact(_) | Body::Offered(_) | Body::Receipt(_) => return None,
    };
    Some(proto::escape_cut(told.as_bytes(), 200))
}
