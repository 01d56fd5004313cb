//! The runbook's button: the question before it, which shows the state seen and what that leads to, and is bound to it like a verb's.
//! Once begun it acts without asking again.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Form, Json};
use maud::{Markup, html};
use proto::{Code, Message, Verb};
use serde::Deserialize;

use super::app::App;
use super::auth::Who;
use super::guard::wants_json;
use super::home::{at_work, banners, state};
use super::incidents::{none, text_of};
use super::look::{Known, Look};
use super::press::{RECENT, WAIT, person};
use super::shell::{self, Fresh, page, see_other};
use super::tokens::{About, Stale};
use crate::incident::{BY_HAND, By, IncidentId};
use crate::runbook::{Next, next, second};

/// What its form says.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Asked {
    token: Option<String>,
    text: Option<String>,
    incident: Option<String>,
}

fn about(who: &Who, incident: Option<&IncidentId>, look: &Look) -> About {
    let purpose = incident.map_or_else(|| "runbook".to_owned(), |id| format!("runbook {id}"));
    About { who: who.name.clone(), purpose, state: Some(look.key().to_owned()) }
}

/// The incident that it names, if it names one.
fn named(app: &App, asked: &Asked, json: bool) -> Result<Option<IncidentId>, Response> {
    let Some(id) = asked.incident.as_deref().filter(|id| !id.is_empty()) else { return Ok(None) };
    id.parse().ok().filter(|id| app.store.folder(id).is_some()).map(Some).ok_or_else(|| none(json))
}

/// `GET /runbook`.
pub(super) async fn confirm(
    State(app): State<Arc<App>>,
    Extension(who): Extension<Who>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Response {
    let json = wants_json(&headers, &who);
    let incident = match named(&app, &asked, json) {
        Ok(incident) => incident,
        Err(none) => return none,
    };
    app.looks.interest();
    let look = app.looks.fresh(RECENT, WAIT).await;
    if let Some(said) = look.is_for_another_vm() {
        return shell::refusal(StatusCode::CONFLICT, said, json);
    }
    ask(&app, &who, incident.as_ref(), &asked, &look, None, json)
}

/// The question.
fn ask(app: &Arc<App>, who: &Who, incident: Option<&IncidentId>, asked: &Asked, look: &Look, stale: Option<Stale>, json: bool) -> Response {
    let token = app.tokens.issue(about(who, incident, look));
    let status = if stale.is_some() { StatusCode::CONFLICT } else { StatusCode::OK };
    let changed = stale.map(Stale::said);
    let known = look.seen.as_ref().ok();
    if json {
        let seen = known.map(|known| serde_json::json!({ "state": known.state(), "assessment": known.code(), "advised": known.advised() }));
        let said = changed.map(|what| Message::new(what, "Use the new token."));
        return (status, Json(serde_json::json!({ "token": token, "seen": seen, "at": look.at, "said": said }))).into_response();
    }
    let (acts, would) = would(known);
    let back = incident.map_or_else(|| "/".to_owned(), |id| format!("/incidents/{id}"));
    let body = html! {
        @if let Some(changed) = changed { p.banner.warn role="alert" { (changed) } }
        (banners(&at_work(app, &app.store.list())))
        section.card {
            h1 { "Run the runbook?" }
            p.lead { "It looks, takes evidence, does what is advised then, and checks that the guest is back. It does not ask again." }
            (would)
            form method="post" action="/runbook" {
                input type="hidden" name="token" value=(token);
                @if let Some(id) = incident { input type="hidden" name="incident" value=(id); }
                @if let Some(text) = text_of(asked.text.as_deref()) {
                    label for="text" { "What is wrong (for the record)" }
                    textarea #text name="text" rows="2" maxlength="8000" { (crate::shown::lines(&text)) }
                }
                @if incident.is_some_and(|id| app.talks.runs_the_runbook(id)) {
                    p.note.warn { "It is at work in this incident already." }
                } @else if incident.is_some_and(|id| app.store.one(id).is_some_and(|one| one.facts.waits.iter().any(|asked| asked.runbook))) {
                    p.note.warn { "It waits for the turn in this incident already." }
                } @else {
                    div.row { button.wide.primary.danger[acts] type="submit" { "Run the runbook now" } }
                }
                div.row { a.button href=(back) { "Not now" } }
            }
        }
        h2.over { "As it looks now" }
        (state(app, look, false))
    };
    shell::html(status, page("Run the runbook?", "", Some(who), &Fresh::default(), &body))
}

/// What it would do by what is seen now, and whether that changes the VM for certain.
fn would(known: Option<&Known>) -> (bool, Markup) {
    let Some((known, code)) = known.and_then(|known| Some((known, known.code()?))) else {
        return (false, html! { p.note.warn { "What is so is not known now: what it finds decides." } });
    };
    if code == Code::Healthy {
        return (false, html! { p.note { "The VM looks healthy: it acts only where the devvm itself turns out to be in trouble." } });
    }
    match next(code, known.state(), known.advised()) {
        Next::Soften => (
            true,
            html! {
                p.note.warn { "Now it would end the guest's largest process over SSH, and " b { "reset" } " where that does not help." }
                (after(Verb::Reset))
            },
        ),
        Next::Verb(verb) => {
            let on_purpose = if code == Code::Stopped { ", also where it was stopped on purpose" } else { "" };
            (true, html! { p.note.warn { "Now it would " b { (verb) } " the VM" (on_purpose) "." } (after(verb)) })
        }
        Next::Person => (false, html! { p.note { "Now it would change nothing: what is so is for a person." } }),
    }
}

/// What it may do after that.
fn after(verb: Verb) -> Markup {
    html! {
        p.note {
            "Where the host's evidence still finds the VM unwell then, or off, one more verb may follow: " b { (second(verb)) }
            ". Never a third, and none on a VM that the host calls healthy."
        }
    }
}

/// `POST /runbook`.
pub(super) async fn begin(
    State(app): State<Arc<App>>,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
    Form(asked): Form<Asked>,
) -> Response {
    let json = wants_json(&headers, &who);
    let named = match named(&app, &asked, json) {
        Ok(named) => named,
        Err(none) => return none,
    };
    let look = app.looks.latest();
    if let Some(said) = look.is_for_another_vm() {
        return shell::refusal(StatusCode::CONFLICT, said, json);
    }
    if let Err(stale) = app.tokens.spend(asked.token.as_deref().unwrap_or_default(), &about(&who, named.as_ref(), &look)) {
        return ask(&app, &who, named.as_ref(), &asked, &look, Some(stale), json);
    }
    let begun = match &named {
        Some(id) => app.store.take_up(id).await,
        None => {
            let title = text_of(asked.text.as_deref()).unwrap_or_else(|| format!("the runbook{BY_HAND}"));
            let title = crate::redact::redact(&title);
            app.store.create(&title[..title.floor_char_boundary(200)], By::Human, Some(&person(&who)))
        }
    };
    match begun.and_then(|incident| app.talks.runbook(&incident, person(&who)).map(|()| incident.id().clone())) {
        Ok(id) if json => {
            (StatusCode::ACCEPTED, Json(serde_json::json!({ "incident": id, "events": format!("/incidents/{id}/events") }))).into_response()
        }
        Ok(id) => see_other(&format!("/incidents/{id}#end")),
        Err(said) => shell::refusal(StatusCode::CONFLICT, &said, json),
    }
}
