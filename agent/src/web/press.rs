//! A button: the question before a verb that changes something, and the verb itself. The confirmation is bound to the state that was
//! shown and counts once; what happens to the VM meanwhile makes it ask again.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{FormRejection, PathRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Form, Json};
use maud::html;
use proto::{Message, RequestId, Verb};
use serde::Deserialize;

use super::app::App;
use super::auth::{How, Who};
use super::guard::wants_json;
use super::home::{at_work, banners, capital, does, state};
use super::look::Look;
use super::shell::{self, Fresh, page, see_other};
use super::tokens::{About, Stale};
use crate::incident::{Asks, BY_HAND, By, Incident, IncidentId, Running, VerbTold, What, fresh_id};

/// Before a question the state is looked at once more, and waited for this long.
pub(super) const RECENT: Duration = Duration::from_secs(8);
pub(super) const WAIT: Duration = Duration::from_millis(1500);
/// After a mutation: how often, and how far apart, the VM is looked at until it is well.
const LOOKS: u32 = 24;
const APART: Duration = Duration::from_secs(5);

/// What a form says.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Press {
    token: Option<String>,
    reason: Option<String>,
    incident: Option<String>,
    dry_run: Option<String>,
}

fn about(who: &Who, verb: Verb, look: &Look) -> About {
    About { who: who.name.clone(), purpose: verb.as_str().to_owned(), state: Some(look.key().to_owned()) }
}

/// `GET /verbs/{verb}/confirm`.
pub(super) async fn confirm(
    State(app): State<Arc<App>>,
    Extension(who): Extension<Who>,
    verb: Result<Path<Verb>, PathRejection>,
    Query(press): Query<Press>,
    headers: HeaderMap,
) -> Response {
    let Ok(Path(verb)) = verb else { return no_verb(wants_json(&headers, &who)) };
    app.looks.interest();
    let look = app.looks.fresh(RECENT, WAIT).await;
    if let Some(said) = look.is_for_another_vm().filter(|_| verb.mutates()) {
        return shell::refusal(StatusCode::CONFLICT, said, wants_json(&headers, &who));
    }
    ask(&app, &who, verb, &press, &look, None, wants_json(&headers, &who))
}

fn no_verb(json: bool) -> Response {
    shell::refusal(StatusCode::NOT_FOUND, &Message::new("There is no such verb.", "The six are on the first screen."), json)
}

/// The question.
fn ask(app: &Arc<App>, who: &Who, verb: Verb, press: &Press, look: &Look, stale: Option<Stale>, json: bool) -> Response {
    let token = app.tokens.issue(about(who, verb, look));
    let status = if stale.is_some() { StatusCode::CONFLICT } else { StatusCode::OK };
    let known = look.seen.as_ref().ok();
    let changed = stale.map(Stale::said);
    if json {
        let seen = known.map(|known| serde_json::json!({ "state": known.state(), "assessment": known.code(), "advised": known.advised() }));
        let said = changed.map(|what| Message::new(what, "Use the new token."));
        return (status, Json(serde_json::json!({ "token": token, "seen": seen, "at": look.at, "said": said }))).into_response();
    }
    let advised = known.and_then(super::look::Known::advised);
    let other = advised.filter(|advised| *advised != verb);
    // Not "healthy": why somebody changes what is well only that person can say.
    let found = known.and_then(super::look::Known::code).filter(|code| *code != proto::Code::Healthy);
    let reason = press.reason.clone().unwrap_or_else(|| found.map(|code| code.to_string()).unwrap_or_default());
    let body = html! {
        @if let Some(changed) = changed { p.banner.warn role="alert" { (changed) } }
        (banners(&at_work(app, &app.store.list())))
        section.card {
            h1 { (capital(verb)) " VM " (app.hands.vmid()) "?" }
            p.lead { (what_it_does(verb)) }
            @if let Some(other) = other {
                p.note.warn { "The host advises " b { (other) } ", not " (verb) "." }
                a.button.primary.wide href={ "/verbs/" (other) "/confirm" } { "Go to " (other) " instead" }
            } @else if advised == Some(verb) {
                p.note.good { "The host advises this." }
            } @else if let Some(judged) = known.and_then(|known| known.judged.as_ref()) {
                p.note.warn {
                    b { "The host advises nothing: " }
                    @if judged.code == proto::Code::Healthy { "the VM looks healthy." } @else { (crate::shown::plain(&judged.recommend.why)) }
                }
            }
            form method="post" action={ "/verbs/" (verb) } {
                input type="hidden" name="token" value=(token);
                @if let Some(incident) = &press.incident { input type="hidden" name="incident" value=(incident); }
                label for="reason" { "Why (for the record)" }
                // Not a field of one line: the "go" of a phone's keyboard would send the form.
                textarea #reason name="reason" rows="1" maxlength="200" autocomplete="off" { (crate::shown::plain(&reason)) }
                // Against the advice it is there, and is not what a thumb falls on.
                button.wide.primary[other.is_none()].danger[other.is_none()].risky[other.is_some()] type="submit" { (capital(verb)) " now" }
                div.row {
                    a.button href="/" { "Not now" }
                    button type="submit" name="dry_run" value="yes" { "Only plan it" }
                }
            }
            p.quiet { "Evidence is taken first, either way. A plan changes nothing." }
        }
        h2.over { "As it looks now" }
        (state(app, look, false))
    };
    shell::html(status, page(&format!("{} VM {}?", capital(verb), app.hands.vmid()), "", Some(who), &Fresh::default(), &body))
}

const fn what_it_does(verb: Verb) -> &'static str {
    match verb {
        Verb::Status | Verb::Forensics => does(verb),
        Verb::Reset => "Restarts the guest in the same QEMU process, without asking the guest. A stalled block layer stays stalled.",
        Verb::Stop => "Pulls the plug and leaves the VM off. What the guest has not written is lost.",
        Verb::Start => "Starts the stopped VM, or resumes a paused one.",
        Verb::Cycle => "Pulls the plug and starts the VM with a fresh QEMU process. What the guest has not written is lost.",
    }
}

/// `POST /verbs/{verb}`.
pub(super) async fn press(
    State(app): State<Arc<App>>,
    Extension(who): Extension<Who>,
    verb: Result<Path<Verb>, PathRejection>,
    headers: HeaderMap,
    form: Result<Form<Press>, FormRejection>,
) -> Response {
    let Ok(Path(verb)) = verb else { return no_verb(wants_json(&headers, &who)) };
    let press = match form {
        Ok(Form(press)) => press,
        // A machine may send no body at all where none is needed.
        Err(FormRejection::InvalidFormContentType(_)) => Press::default(),
        Err(bad) => return bad.into_response(),
    };
    let json = wants_json(&headers, &who);
    if verb.mutates() {
        let look = app.looks.latest();
        if let Some(said) = look.is_for_another_vm() {
            return shell::refusal(StatusCode::CONFLICT, said, json);
        }
        if let Err(stale) = app.tokens.spend(press.token.as_deref().unwrap_or_default(), &about(&who, verb, &look)) {
            return ask(&app, &who, verb, &press, &look, Some(stale), json);
        }
    }
    match begin(&app, &who, verb, &press).await {
        Ok((id, incident)) if json => (
            StatusCode::ACCEPTED,
            Json(serde_json::json!({ "request_id": id, "incident": incident, "run": format!("/runs/{id}"), "events": format!("/incidents/{incident}/events") })),
        )
            .into_response(),
        Ok((id, _)) => see_other(&format!("/runs/{id}")),
        Err(said) => shell::refusal(StatusCode::SERVICE_UNAVAILABLE, &said, json),
    }
}

async fn begin(app: &Arc<App>, who: &Who, verb: Verb, press: &Press) -> Result<(RequestId, IncidentId), Message> {
    let named = press.incident.as_deref().and_then(|id| id.parse().ok());
    let incident = app.incident(named.as_ref(), &format!("{verb}{BY_HAND}"), &who.name).await?;
    let actor = person(who);
    let request_id = fresh_id()?;
    let task = incident.task();
    incident.write(task, By::Human, What::Button { verb, request_id: request_id.clone(), actor: Some(actor.clone()) })?;
    let asks = Asks {
        actor: Some(actor),
        reason: press.reason.as_deref().map(one_line).filter(|reason| !reason.is_empty()),
        dry_run: press.dry_run.is_some() && verb.mutates(),
        request_id: Some(request_id.clone()),
        ..Asks::default()
    };
    let running = incident.verb(&app.hands, task, By::Human, verb, asks)?;
    tokio::spawn(settle(Arc::clone(app), Arc::clone(&incident), running));
    Ok((request_id, incident.id().clone()))
}

/// A reason as records show it, however many lines it was typed in.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A person in records: the name, and how it is known.
pub(super) fn person(who: &Who) -> String {
    format!("{} ({})", who.name, who.how.word())
}

/// Waits for a verb's end, looks until the VM is well or has had its time, and says so in the incident.
async fn settle(app: Arc<App>, incident: Arc<Incident>, running: Running<VerbTold>) {
    let ended = running.end().await;
    let over = crate::incident::now();
    app.looks.want();
    let mutated =
        ended.as_ref().is_ok_and(|told| told.verb.mutates() && told.end.checked.as_ref().is_ok_and(|proved| !proved.body().dry_run));
    let mut hear = app.looks.hear();
    for _ in 0..if mutated { LOOKS } else { 0 } {
        let _in_time = tokio::time::timeout(APART, hear.changed()).await;
        // A look that began before the end says nothing of what came of it.
        if (app.looks.latest().at >= over && app.looks.latest().is_healthy_still())
            || incident.facts().running.iter().any(|pending| pending.verb.mutates())
        {
            break;
        }
        tokio::time::sleep(APART).await;
        app.looks.want();
    }
    // A conversation ends its incident itself, and so does a later verb.
    if app.talks.is_busy(incident.id()) || !incident.facts().running.is_empty() {
        return;
    }
    let (healthy, said) = match ended {
        Err(why) => (false, why),
        Ok(told) => match &told.end.checked {
            Err(_) => (false, told.end.said),
            Ok(proved) if mutated => {
                let look = app.looks.latest();
                let what = look.seen.as_ref().map_or_else(|unseen| unseen.said.what.clone(), |known| known.body.message.what.clone());
                (look.is_healthy_still() && proved.is_success(), Message::new(what, "Look into the guest when you are awake."))
            }
            Ok(proved) => (proved.body().assessment == Some(proto::Code::Healthy), proved.body().message.clone()),
        },
    };
    incident.end(incident.task(), healthy, &said);
}

/// After a start: what a restart cut off is taken up. Verbs are asked after by their ids, which starts nothing.
pub(super) fn take_up(app: &Arc<App>) {
    for id in app.store.unfinished() {
        let incident = match app.store.resume(&id) {
            Ok(incident) => incident,
            Err(why) => {
                tracing::warn!(event = "degraded", incident = id.as_str(), "{why}");
                continue;
            }
        };
        let (mut claudes, over) = (false, incident.facts().ended.is_some());
        for pending in incident.facts().running {
            if pending.call.is_some() && app.talks.has_a_model() {
                // A call of Claude's is answered in its own conversation.
                claudes = true;
                continue;
            }
            match incident.reattach(&app.hands, incident.task(), &pending) {
                Ok(Some(running)) => drop(tokio::spawn(settle(Arc::clone(app), Arc::clone(&incident), running))),
                Ok(None) => {}
                Err(why) => tracing::warn!(event = "degraded", incident = id.as_str(), "{why}"),
            }
        }
        if over {
            // What a person had stopped is not gone on with: only its verbs' ends were still to be had.
        } else if claudes || app.talks.has_a_model() {
            app.talks.resume(&incident);
        } else if incident.facts().running.is_empty() {
            incident.end(incident.task(), false, &started_again());
        }
    }
}

/// The end of what a restart cut off, where nothing was proved since.
pub(super) fn started_again() -> Message {
    Message::new("The program was started again in the middle of this.", "Look what is so now, with status.")
}

/// Whether a machine asks.
pub(super) fn is_machine(who: &Who) -> bool {
    who.how == How::Token
}
