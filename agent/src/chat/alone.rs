//! An incident that nobody talks in: Claude alone, the runbook without a model.

use std::sync::Arc;

use proto::Message;

use crate::claude::{Autonomy, Mind, Session, Turned, verdict_unless};
use crate::hands::Hands;
use crate::incident::{By, Incident, Notes};
use crate::runbook::{Patience, run as runbook};

/// The runbook, in this incident; a person's Ctrl-C stops it like any turn.
pub(super) async fn without_a_model(hands: &Arc<dyn Hands>, incident: &Arc<Incident>, unattended: bool) -> (bool, Message) {
    let task = incident.task();
    let mut cancelled = incident.cancellations();
    let mut notes = Notes::new(Arc::clone(incident), task);
    let ended = tokio::select! {
        biased;
        _ = cancelled.changed() => {
            let running = incident.facts().running_said();
            (false, Message::new(format!("The runbook was stopped. {running}"), "Ask with status what is so now."))
        }
        ended = runbook(&**hands, &mut notes, Patience::default(), unattended) => (ended.healthy, ended.said),
    };
    incident.fetch_the_runbook_s(hands, task);
    ended
}

/// An incident that nobody watches: Claude, or the runbook where Claude can't be had and the owner lets it act alone.
pub async fn alone(mind: Option<&Arc<Mind>>, hands: &Arc<dyn Hands>, incident: &Arc<Incident>, text: &str) -> (bool, Message) {
    let mut cancelled = incident.cancellations();
    let turned = match mind.map(|mind| (mind, Session::open(mind, incident))) {
        None => Turned::Unavailable(Message::new("There is no API key.", "The runbook does it.")),
        Some((_, Err(why))) => Turned::Unavailable(why),
        Some((_, Ok(mut session))) => {
            let resumed = session.resume().await;
            let quoted = crate::untrusted::Untrusted::from(text).quote("what the watch noticed", crate::untrusted::Room::SMALL);
            let words = format!(
                "Nobody asked: the watch opened this incident, and nobody may read along. Find out what is wrong, and cure it if it has to be cured. A VM that somebody stopped or paused stays as it is.\n{}",
                quoted.as_str()
            );
            match resumed {
                Some(turned) => turned,
                None => session.said(&words, By::Watch, None).await,
            }
        }
    };
    match turned {
        // Whatever it was that keeps Claude away: where a person has to allow it the runbook does not act alone either.
        Turned::Unavailable(why) if mind.is_some_and(|mind| mind.autonomy() == Autonomy::Approve) => (false, why),
        Turned::Unavailable(_) => without_a_model(hands, incident, true).await,
        Turned::Said => verdict_unless(&mut cancelled, hands, incident, incident.task()).await,
        // Whoever stopped it is there, and is not kept waiting by a look.
        Turned::Cancelled(said) => (false, said),
        Turned::Stopped(said) => {
            let (healthy, now) = verdict_unless(&mut cancelled, hands, incident, incident.task()).await;
            (healthy, Message::new(format!("{} {}", said.what, now.what), now.next))
        }
    }
}
