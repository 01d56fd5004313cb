//! Incidents: the list, and what a person does in one: say something, decide about a call, stop what is at work.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Form, Json};
use maud::{Markup, html};
use proto::Message;
use serde::Deserialize;

use super::app::App;
use super::auth::Who;
use super::guard::wants_json;
use super::press::person;
use super::shell::{self, Fresh, aged, page, see_other};
use super::tokens::About;
use crate::incident::{By, Decision, Incident, IncidentId, Summary, What};
use crate::shown::plain;

/// How many stand in the list.
const MOST: usize = 60;
/// A sentence is not longer.
const MAX_TEXT: usize = 8000;

/// One in a list.
pub(super) fn row(app: &App, one: &Summary) -> Markup {
    let (class, word) = match (&one.facts.ended, &one.damaged) {
        (_, Some(_)) => ("bad", "damaged"),
        _ if app.talks.is_busy(&one.id) || !one.facts.running.is_empty() && one.open => ("running", "at work"),
        (Some((true, _)), _) => ("good", "healthy"),
        (Some((false, _)), _) => ("bad", "not healthy"),
        (None, _) => ("calm", "open"),
    };
    html! {
        li {
            a.row-link href={ "/incidents/" (one.id) } {
                span class={ "pill " (class) } { (word) }
                @let name = one.facts.name();
                b { (plain(&name[..name.floor_char_boundary(120)])) }
                small {
                    @if let Some(at) = one.facts.opened { (aged(at)) }
                    @let (changes, unknown) = one.facts.changed_things();
                    @if changes > 0 { " · " (changes) @if changes == 1 { " change" } @else { " changes" } }
                    @if unknown > 0 { " · " (unknown) @if unknown == 1 { " result unknown" } @else { " results unknown" } }
                    @if one.facts.spent.usd > 0.0 { " · $" (format!("{:.2}", one.facts.spent.usd)) }
                }
            }
        }
    }
}

/// `GET /incidents`.
pub(super) async fn list(State(app): State<Arc<App>>, Extension(who): Extension<Who>, headers: HeaderMap) -> Response {
    let all = app.store.list();
    if wants_json(&headers, &who) {
        let told: Vec<_> = all
            .iter()
            .take(MOST)
            .map(|one| serde_json::json!({ "id": one.id, "title": one.facts.title, "opened": one.facts.opened, "changed": one.facts.changed,
                "ended": one.facts.ended.as_ref().map(|(healthy, said)| serde_json::json!({ "healthy": healthy, "said": said })), "runs": one.facts.runs.iter().map(|(id, ..)| id).collect::<Vec<_>>() }))
            .collect();
        return Json(told).into_response();
    }
    let body = html! {
        h1 { "Incidents" }
        section.card {
            @if all.is_empty() { p.quiet { "None yet. A button or a sentence opens one." } }
            ul.rows { @for one in all.iter().take(MOST) { (row(&app, one)) } }
            @if all.len() > MOST { p.quiet { "And " (all.len() - MOST) " older ones, in the state folder." } }
        }
    };
    shell::html(StatusCode::OK, page("Incidents", "/incidents", Some(&who), &Fresh::default(), &body))
}

/// What a form of an incident says. A word that it does not know may have meant something else than words for Claude.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Said {
    token: Option<String>,
    text: Option<String>,
    call: Option<String>,
    allow: Option<String>,
}

/// What the forms of an incident are about.
pub(super) fn about(who: &Who, purpose: &str, incident: Option<&IncidentId>) -> About {
    About { who: who.name.clone(), purpose: incident.map_or_else(|| purpose.to_owned(), |id| format!("{purpose} {id}")), state: None }
}

/// Spends a form's token, or says that it has to be sent again: what was typed is not lost.
fn spend(app: &App, who: &Who, about: &About, said: &Said, to: &str, json: bool) -> Result<(), Response> {
    if app.tokens.spend(said.token.as_deref().unwrap_or_default(), about).is_ok() {
        return Ok(());
    }
    let what = "This form was sent before, or is too old. Nothing was done now.";
    if json {
        let token = app.tokens.issue(about.clone());
        let said = Message::new(what, "Send it again with the new token.");
        return Err((StatusCode::CONFLICT, Json(serde_json::json!({ "token": token, "said": said }))).into_response());
    }
    let token = app.tokens.issue(about.clone());
    let body = html! {
        p.banner.warn role="alert" { (what) }
        section.card {
            h1 { "Send it again?" }
            form method="post" action=(to) {
                input type="hidden" name="token" value=(token);
                @if let Some(call) = &said.call { input type="hidden" name="call" value=(call); }
                @if let Some(text) = &said.text { label for="text" { "What you typed" } textarea #text name="text" rows="4" { (crate::shown::lines(text)) } }
                div.row {
                    @if said.call.is_some() { button.primary type="submit" name="allow" value="yes" { "Approve" } button type="submit" name="allow" value="no" { "Deny" } }
                    @else { button.primary type="submit" { "Send" } }
                }
            }
        }
    };
    Err(shell::html(StatusCode::CONFLICT, page("Send it again?", "", Some(who), &Fresh::default(), &body)))
}

pub(super) fn text_of(text: Option<&str>) -> Option<String> {
    let text = text.unwrap_or_default().trim();
    (!text.is_empty()).then(|| text[..text.floor_char_boundary(MAX_TEXT)].to_owned())
}

/// `POST /incidents`: a sentence that opens one.
pub(super) async fn open(
    State(app): State<Arc<App>>,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
    Form(said): Form<Said>,
) -> Response {
    let json = wants_json(&headers, &who);
    if let Err(again) = spend(&app, &who, &about(&who, "chat", None), &said, "/incidents", json) {
        return again;
    }
    let Some(text) = text_of(said.text.as_deref()) else { return see_other("/") };
    if !app.talks.has_a_model() {
        return shell::refusal(StatusCode::SERVICE_UNAVAILABLE, &no_model(), json);
    }
    let title = crate::redact::redact(&text);
    let opened = app.store.create(&title[..title.floor_char_boundary(200)], By::Human, Some(&person(&who)));
    let begun = opened.and_then(|incident| app.talks.say(&incident, text, person(&who)).map(|()| incident.id().clone()));
    match begun {
        Ok(id) if json => {
            (StatusCode::ACCEPTED, Json(serde_json::json!({ "incident": id, "events": format!("/incidents/{id}/events") }))).into_response()
        }
        Ok(id) => see_other(&format!("/incidents/{id}")),
        Err(said) => shell::refusal(StatusCode::SERVICE_UNAVAILABLE, &said, json),
    }
}

fn no_model() -> Message {
    Message::new("No API key is set, so nobody reads it.", "Run the runbook: it does without a model.")
}

/// What a person can do in an incident.
#[derive(Clone, Copy)]
enum Does {
    Say,
    Decide,
    Cancel,
}

/// `POST /incidents/{id}/{what}`.
pub(super) async fn act(
    State(app): State<Arc<App>>,
    Extension(who): Extension<Who>,
    Path((id, what)): Path<(String, String)>,
    headers: HeaderMap,
    Form(said): Form<Said>,
) -> Response {
    let json = wants_json(&headers, &who);
    let does = match what.as_str() {
        "say" => Does::Say,
        "decide" => Does::Decide,
        "cancel" => Does::Cancel,
        _ => return none(json),
    };
    let Some(id) = id.parse::<IncidentId>().ok().filter(|id| app.store.folder(id).is_some()) else { return none(json) };
    let purpose = about(&who, &what, Some(&id));
    if let Err(again) = spend(&app, &who, &purpose, &said, &format!("/incidents/{id}/{what}"), json) {
        return again;
    }
    let incident = match app.store.take_up(&id).await {
        Ok(incident) => incident,
        Err(said) => return shell::refusal(StatusCode::CONFLICT, &said, json),
    };
    if let Err(said) = done(&app, &incident, &who, does, &said) {
        return shell::refusal(StatusCode::CONFLICT, &said, json);
    }
    if json { StatusCode::NO_CONTENT.into_response() } else { see_other(&format!("/incidents/{id}#end")) }
}

fn done(app: &App, incident: &Arc<Incident>, who: &Who, does: Does, said: &Said) -> Result<(), Message> {
    match does {
        Does::Say => match text_of(said.text.as_deref()) {
            Some(text) if app.talks.has_a_model() => app.talks.say(incident, text, person(who)),
            Some(_) => Err(no_model()),
            None => Ok(()),
        },
        Does::Cancel => {
            let running = incident.facts().running_said();
            incident.note(incident.task(), By::Human, What::Cancelled { actor: Some(person(who)), said: running });
            incident.cancel();
            Ok(())
        }
        Does::Decide => {
            let decision = Decision { allowed: said.allow.as_deref() == Some("yes"), actor: Some(person(who)) };
            if incident.decide(said.call.as_deref().unwrap_or_default(), decision) {
                Ok(())
            } else {
                Err(Message::new("That call waits no more: somebody decided, or its time was over.", "Look at the incident."))
            }
        }
    }
}

pub(super) fn none(json: bool) -> Response {
    shell::refusal(StatusCode::NOT_FOUND, &Message::new("There is no such incident.", "Look at the list of incidents."), json)
}
