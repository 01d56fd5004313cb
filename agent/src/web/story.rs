//! An incident as a page: what was said, called, run and decided, in the order in which it happened; long things folded.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use proto::Verb;
use serde::Deserialize;

use super::app::App;
use super::auth::Who;
use super::entries::{Entry, Kind, MAX_TEXT, fold};
use super::guard::wants_json;
use super::home::capital;
use super::incidents::{about, none};
use super::run::Run;
use super::shell::{self, Fresh, Held, aged, by, marked, page, pressed, size, time};
use crate::incident::{IncidentId, Summary};
use crate::shown::{lines, plain};

/// Entries on a page; the earlier ones are a link away.
const MOST: usize = 200;
/// And they are not longer than this together, unless it is one: a phone loads the page anew at every line.
const MOST_BYTES: usize = 30_000;
/// Where to begin.
#[derive(Debug, Default, Deserialize)]
pub(super) struct From {
    before: Option<u64>,
    still: Option<String>,
}

/// `GET /incidents/{id}`.
pub(super) async fn incident(
    State(app): State<Arc<App>>,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
    Query(from): Query<From>,
    headers: HeaderMap,
) -> Response {
    let json = wants_json(&headers, &who);
    let Some(one) = id.parse::<IncidentId>().ok().and_then(|id| app.store.one(&id)) else { return none(json) };
    let mut all = Vec::new();
    let _what_can_be_read_is_shown = app.store.lines(&one.id, 1, |line, _| all.push(line));
    if json {
        return axum::Json(all).into_response();
    }
    let busy = app.talks.is_busy(&one.id);
    let at_work = busy || (one.open && !one.facts.running.is_empty());
    let entries = fold(&all, &one);
    let end = from.before.map_or(entries.len(), |before| entries.iter().position(|entry| entry.n >= before).unwrap_or(entries.len()));
    // From the last one back, as much as a small page holds.
    let (mut first, mut bytes, mut shown) = (end, 0, Vec::new());
    while first > 0 && end - first < MOST {
        let one = drawn(&app, &who, &one, &entries[first - 1]);
        bytes += one.0.len();
        if bytes > MOST_BYTES && first < end {
            break;
        }
        shown.push(one);
        first -= 1;
    }
    let held = Held { still: from.still };
    let fresh = Fresh {
        stream: Some(format!("/incidents/{}/events?after={}", one.id, one.facts.lines)),
        reload_s: (at_work && held.still.is_none()).then_some(4),
    };
    let title = plain(&one.facts.name());
    let body = html! {
        div #head data-live {
            p.eyebrow { "Incident" @if let Some(at) = one.facts.opened { ", opened " (time(at)) " (" (aged(at)) ")" } }
            h1 { (title) }
            (summary(&app, &one, busy))
        }
        @if first > 0 { p { a.button href={ "/incidents/" (one.id) "?before=" (entries[first].n) } { "Earlier (" (first) ")" } } }
        ol #story.story data-live data-follow[from.before.is_none()] {
            @for entry in shown.iter().rev() { (entry) }
        }
        @if from.before.is_none() {
            ol.story aria-live="polite" { li { div.said.words {} } }
            div #end { (forms(&app, &who, &one, busy, at_work.then_some(&held))) }
        }
    };
    shell::html(StatusCode::OK, page(&title, "/incidents", Some(&who), &fresh, &body))
}

fn summary(app: &App, one: &Summary, busy: bool) -> Markup {
    let spent = one.facts.spent;
    html! {
        @if let Some(why) = &one.damaged { p.note.bad { (plain(why)) } }
        @match &one.facts.ended {
            _ if busy => p.note { b { "At work. " } "It goes on when you leave." },
            Some((true, said)) => p.note.good { b { "Healthy. " } (plain(&said.what)) " " (pressed(&said.next)) },
            Some((false, said)) => p.note.warn { b { "Not healthy. " } (plain(&said.what)) " " (pressed(&said.next)) },
            None => {},
        }
        @if spent.turns > 0 {
            p.quiet {
                (spent.turns) " of " (app.budget.turns) " answers, " (spent.tokens) " tokens, $" (format!("{:.2}", spent.usd)) " of $" (app.budget.usd)
                ", " (spent.ms / 60_000) " of " (app.budget.minutes) " minutes"
            }
        }
    }
}

/// A text's beginning, as it is drawn.
fn cut(text: &str) -> String {
    let some = lines(&text[..text.floor_char_boundary(MAX_TEXT)]);
    let fits = shell::fit(&some, MAX_TEXT);
    if fits.len() == some.len() && text.len() <= MAX_TEXT { some } else { format!("{fits}\n… the rest is left out here.") }
}

fn drawn(app: &App, who: &Who, one: &Summary, entry: &Entry) -> Markup {
    let when = html! { (time(entry.at)) };
    match &entry.kind {
        Kind::Words { class, who, text } => html! {
            li class=(class) { p.who { b { (who) } (when) } div.said { @if *class == "model" { (marked(&cut(text))) } @else { (cut(text)) } } }
        },
        Kind::Note { class, text } => html! { li { p class={ "note " (class) } { (plain(text)) " " span.quiet { (when) } } } },
        Kind::Verb(run) => verb(run, &when),
        Kind::Command { command, reason, output, end, file, bytes } => html! {
            li {
                details id={ "c" (entry.n) } {
                    summary { span.pill { "devvm" } code { (plain(command.lines().next().unwrap_or_default())) } span.quiet { (end.as_deref().unwrap_or("runs …")) } }
                    p.who { span { "by " (by(entry.origin)) } (when) }
                    @if let Some(reason) = reason { p { (plain(reason)) } }
                    @if command.lines().nth(1).is_some() { pre tabindex="0" { (cut(command)) } }
                    pre tabindex="0" { @if output.is_empty() { "(nothing printed)" } @else { (cut(output)) } }
                    @if let Some(file) = file { p { a href={ "/incidents/" (one.id) "/files/" (file) } { "All of it (" (size(*bytes)) ")" } } }
                }
            }
        },
        Kind::Call { tool, input, result, waits, call, decided } => html! {
            li {
                @if let Some(said) = waits { (ask(app, who, one, call, said)) }
                details id={ "k" (entry.n) } {
                    summary {
                        span.pill { "Claude calls" } code { (plain(tool)) }
                        @match decided {
                            Some((true, _)) => span.pill.good { "approved" },
                            Some((false, _)) => span.pill.bad { "denied" },
                            None => {},
                        }
                        span.quiet { @match result { None => "…", Some((true, ..)) => "an error", Some((false, ..)) => "answered" } }
                    }
                    p.who { (when) @if let Some((_, Some(actor))) = decided { span { "decided by " (plain(actor)) } } }
                    pre tabindex="0" { (cut(input)) }
                    @if let Some((_, text, images)) = result {
                        @if *images > 0 { p.quiet { (images) " pictures went with it: they are in the evidence." } }
                        pre tabindex="0" { (cut(text)) }
                    }
                }
            }
        },
    }
}

/// A verb in the story: its end, its pictures, the way to all of it.
fn verb(run: &Run, when: &Markup) -> Markup {
    let class = run.end.as_ref().map_or("running", |end| run.class(end));
    html! {
        li {
            details id={ "v" (run.id.short()) } open[run.end.is_none()] {
                summary {
                    span class={ "pill " (class) } { (run.end.as_ref().map_or("runs", |end| run.word(end))) }
                    b { (capital(run.verb)) } span.quiet { "by " @match &run.actor { Some(actor) => (plain(actor)), None => (by(run.by)) } }
                }
                p.who { (when) }
                @if let Some(reason) = &run.reason { p { "Why: " (plain(reason)) } }
                @match &run.end {
                    None => p { b { (run.doing()) } ", at most " span data-until=(run.until.unix_ms()) { (super::home::left(run)) } " left" },
                    Some(end) => { p { (plain(&end.said.what)) } p { (run.next(end)) } },
                }
                (screens(run))
                p { a href={ "/runs/" (run.id) } { "All of this verb" } @if run.verb != Verb::Status { " · " a href={ "/evidence/" (run.id) } { "its evidence" } } }
            }
        }
    }
}

/// The console's pictures side by side.
pub(super) fn screens(run: &Run) -> Markup {
    html! {
        @if !run.screens().is_empty() {
            div.pair {
                @for (n, file) in run.screens().iter().enumerate() {
                    figure {
                        a href={ "/artifacts/" (run.id) "/" (file.path) } { img src={ "/artifacts/" (run.id) "/" (file.path) } alt={ "The VM's screen, sample " (n + 1) } loading="lazy"; }
                        figcaption { "Screen " (n + 1) " of " (run.screens().len()) ", " (time(run.asked)) }
                    }
                }
            }
        }
    }
}

/// A call that waits for a person.
fn ask(app: &App, who: &Who, one: &Summary, call: &str, said: &str) -> Markup {
    let token = app.tokens.issue(about(who, "decide", Some(&one.id)));
    html! {
        div.ask role="alert" {
            b { "Claude asks first: " } span { (plain(said)) }
            form method="post" action={ "/incidents/" (one.id) "/decide" } {
                input type="hidden" name="token" value=(token);
                input type="hidden" name="call" value=(call);
                div.row {
                    button.primary.danger type="submit" name="allow" value="yes" { "Approve" }
                    button type="submit" name="allow" value="no" { "Deny" }
                }
            }
        }
    }
}

fn forms(app: &App, who: &Who, one: &Summary, busy: bool, held: Option<&Held>) -> Markup {
    let runbook = app.talks.runs_the_runbook(&one.id);
    let token = |purpose: &str| app.tokens.issue(about(who, purpose, Some(&one.id)));
    html! {
        section.card {
            @if app.talks.has_a_model() {
                form method="post" action={ "/incidents/" (one.id) "/say" } {
                    input #token-say data-token type="hidden" name="token" value=(token("say"));
                    label for="text" { "Say something" }
                    @if let Some(held) = held { (held.said()) }
                    textarea #text name="text" rows="3" maxlength="8000" required {}
                    div.row { button.primary type="submit" { "Send" } }
                }
                @if let Some(said) = app.unproven() { p.note { (said) } }
            }
            div.row {
                div #go data-live {
                    form method="get" action="/runbook" {
                        input type="hidden" name="incident" value=(one.id);
                        button.wide type="submit" disabled[runbook || one.facts.waits.iter().any(|asked| asked.runbook)] { "Run the runbook …" }
                    }
                }
                div #stop data-live {
                    @if busy {
                        form method="post" action={ "/incidents/" (one.id) "/cancel" } {
                            input #token-cancel data-token type="hidden" name="token" value=(token("cancel"));
                            button.danger.wide type="submit" { @if runbook { "Stop the runbook" } @else { "Stop the turn" } }
                        }
                    }
                }
            }
            p.quiet { "The six verbs are on " a href="/" { "the first screen" } "; what you press there while this goes on belongs to it." }
        }
    }
}

/// `GET /incidents/{id}/files/{*name}`: all that a command printed.
pub(super) async fn file(State(app): State<Arc<App>>, Path((id, name)): Path<(String, String)>) -> Response {
    let found = id.parse::<IncidentId>().ok().and_then(|id| app.store.file(&id, &name));
    super::evidence::sent(found, &name)
}
