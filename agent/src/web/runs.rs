//! A run as a page: while it goes on every probe and step with the time left; afterwards the state now, the evidence, the next step.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use maud::{Markup, html};
use proto::{Message, Probe, RequestId, StepOutcome, Verb, Vmid};

use super::app::App;
use super::auth::Who;
use super::guard::wants_json;
use super::home::{capital, left, state};
use super::run::{End, Run, Tone};
use super::shell::{self, Fresh, aged, by, page, time};
use crate::incident::now;
use crate::shown::plain;

/// `GET /runs/{request id}`.
pub(super) async fn run(
    State(app): State<Arc<App>>,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let json = wants_json(&headers, &who);
    let Some(run) = id.parse::<RequestId>().ok().and_then(|id| Run::find(&app, &id)) else {
        let said = Message::new("No verb of this id was asked for from here.", "Look at the incidents, or ask the host with --attach.");
        return shell::refusal(StatusCode::NOT_FOUND, &said, json);
    };
    if json {
        return Json(told(&run)).into_response();
    }
    app.looks.interest();
    let title = match &run.end {
        None => format!("{} runs", capital(run.verb)),
        Some(end) if run.verb.mutates() => format!("{}: {}", capital(run.verb), run.word(end)),
        Some(end) => run.heading(end),
    };
    // After its end the state is looked at for a while: the guest boots.
    let settling = run.end.as_ref().is_some_and(|end| now().unix_ms() < end.at.unix_ms() + 180_000);
    let fresh = Fresh {
        stream: match run.end {
            None => Some(format!("/incidents/{}/events", run.incident)),
            Some(_) => settling.then(|| "/events".to_owned()),
        },
        reload_s: if run.end.is_none() { Some(2) } else { settling.then_some(10) },
    };
    let body = html! {
        p #spoken.spoken role="status" data-live { (capital(run.verb)) ": " (run.doing()) }
        div #live data-live data-done[run.end.is_some()] {
            @match &run.end {
                None => (running(&run, app.hands.vmid())),
                Some(end) => (ended(&app, &run, end)),
            }
            (steps(&run))
            (evidence(&run))
            (about(&run))
        }
    };
    shell::html(StatusCode::OK, page(&title, "", Some(&who), &fresh, &body))
}

/// What a machine is told.
fn told(run: &Run) -> serde_json::Value {
    let end = run.end.as_ref().map(|end| {
        serde_json::json!({
            "at": end.at,
            "proved": end.receipt.is_some(),
            "outcome": end.receipt.as_ref().map(|body| body.outcome),
            "state_after": end.receipt.as_ref().map(|body| body.state_after),
            "bundle": end.receipt.as_ref().and_then(|body| body.bundle.clone()),
            "message": end.said,
        })
    });
    serde_json::json!({
        "request_id": run.id, "incident": run.incident, "verb": run.verb, "asked": run.asked, "until": run.until,
        "doing": run.doing(), "steps": run.steps.iter().map(|(_, step)| step).collect::<Vec<_>>(), "end": end,
    })
}

fn running(run: &Run, vmid: Vmid) -> Markup {
    let whole = run.until.unix_ms().saturating_sub(run.asked.unix_ms()).max(1);
    let gone = now().unix_ms().saturating_sub(run.asked.unix_ms()).min(whole);
    html! {
        section.card.running {
            p.eyebrow { (capital(run.verb)) " of VM " (vmid) @if run.dry_run { " · only planned" } @if run.attached { " · asked after" } }
            h1.headline { (run.doing()) }
            progress max=(whole) value=(gone) data-from=(run.asked.unix_ms()) data-to=(run.until.unix_ms()) aria-label="Time used" {}
            p.since { "At most " b data-until=(run.until.unix_ms()) { (left(run)) } " left" @if let Some(node) = &run.node { ", on " (plain(node)) } }
            @if let Some(why) = &run.again { p.note.warn { "The connection was lost (" (plain(why)) "). The same id is asked again; nothing is done twice." } }
            @if run.verb.mutates() { p.quiet { "It goes on to its own end, whatever happens to this page." } }
        }
    }
}

fn ended(app: &App, run: &Run, end: &End) -> Markup {
    let tone = end.tone();
    let look = app.looks.latest();
    let seen_since = look.at >= end.at;
    let advised = look.seen.as_ref().ok().and_then(super::look::Known::advised);
    html! {
        section class={ "card outcome " (run.class(end)) } {
            p.eyebrow { (capital(run.verb)) " of VM " (app.hands.vmid()) ", ended " (time(end.at)) " (" (aged(end.at)) ")" }
            h1.headline { (run.heading(end)) }
            p { (plain(&end.said.what)) }
            p.advice { b { "Next: " } (run.next(end)) }
            @match &end.receipt {
                Some(body) => {
                    dl.facts {
                        dt { "State after" } dd { (body.state_after) }
                        dt { "Receipt" } dd { "valid, signed by " (plain(&body.node)) @if let Some(at) = &body.audit { ", record " (at.seq) } }
                        @if let Some(bundle) = &body.bundle { dt { "Evidence" } dd { a href={ "/evidence/" (run.id) } { (bundle) } } }
                        @if body.interrupted { dt { "Note" } dd { "Its worker was killed on the way." } }
                    }
                    @for one in &body.degraded { p.note { "Weaker than it should be: " (plain(one)) } }
                }
                None if !end.sent => p.note { "It never reached the host, so it did nothing there." },
                None => p.note.warn { "No valid receipt came, so nothing is known of it, whatever else is shown here." },
            }
            @if tone == Tone::Unknown && run.verb.mutates() {
                form method="post" action="/verbs/status" { button.primary.wide type="submit" { "Ask what is so now" } }
            }
        }
        h2.over { "State now" @if !seen_since { " (looked before it ended; looking again)" } }
        (state(app, &look, false))
        div.row {
            @if let Some(verb) = advised.filter(|verb| seen_since && verb.mutates()) {
                a.button.primary href={ "/verbs/" (verb) "/confirm?incident=" (run.incident) } { (capital(verb)) " …" }
            }
            a.button href={ "/incidents/" (run.incident) } { "The incident" }
            @if run.verb != Verb::Status { a.button href={ "/evidence/" (run.id) } { "The evidence" } }
        }
    }
}

fn steps(run: &Run) -> Markup {
    html! {
        @if !run.steps.is_empty() {
            section.card {
                h2 { "Steps" }
                ol.steps {
                    @for (at, step) in &run.steps {
                        li class=(mark(step.outcome)) {
                            b { (shell::word(&step.name)) } " "
                            @match step.outcome {
                                StepOutcome::Started => span { "since " (time(*at)) },
                                outcome => span { (shell::word(&outcome)) ", " (seconds(step.ms)) },
                            }
                            @if let Some(detail) = &step.detail { small { (plain(detail)) } }
                        }
                    }
                }
            }
        }
    }
}

const fn mark(outcome: StepOutcome) -> &'static str {
    match outcome {
        StepOutcome::Started => "now",
        StepOutcome::Done => "done",
        StepOutcome::Failed => "failed",
        StepOutcome::TimedOut => "late",
    }
}

fn seconds(ms: u64) -> String {
    format!("{:.1} s", Duration::from_millis(ms).as_secs_f32())
}

fn evidence(run: &Run) -> Markup {
    let (captured, others) = run.captured();
    html! {
        @if captured + others.len() > 0 || run.preserved.is_some() {
            section.card {
                h2 { "Evidence" }
                p {
                    b { (captured) } " pieces captured" @if !others.is_empty() { ", " (others.len()) " could not be" } ". "
                    @match &run.preserved {
                        Some(kept) => { "Safe on " (shell::word(&kept.place)) ": " code { (kept.bundle) } },
                        None if run.end.is_none() && run.verb.mutates() => "Not preserved yet: nothing is changed before it is.",
                        None => {},
                    }
                }
                @if let Some(judged) = run.judged.as_ref() {
                    p { (plain(&judged.sentence)) }
                    @if !judged.findings.is_empty() {
                        details #findings-then {
                            summary { @if run.verb.mutates() && !run.dry_run { "What was found before it acted" } @else { "What was found" } }
                            ul.findings { @for finding in &judged.findings { li { b { (finding.code) } " " (plain(&finding.text)) } } }
                        }
                    }
                }
                details #probes open[run.end.is_none() && run.steps.is_empty()] {
                    summary { "Every probe" }
                    ul.probes { @for probe in run.probes.iter().rev() { (one(probe)) } }
                }
            }
        }
    }
}

fn one(probe: &Probe) -> Markup {
    let outcome = shell::word(&probe.outcome);
    html! {
        li class=(outcome.replace(' ', "-")) {
            code { (plain(&probe.name)) } " " span { (outcome) ", " (seconds(probe.ms)) }
            @if let Some(detail) = &probe.detail { small { (plain(detail)) } }
        }
    }
}

fn about(run: &Run) -> Markup {
    html! {
        section.card.quiet {
            dl.facts {
                dt { "Asked by" } dd { (by(run.by)) @if let Some(actor) = &run.actor { ", " (plain(actor)) } ", " (time(run.asked)) }
                @if let Some(reason) = &run.reason { dt { "Why" } dd { (plain(reason)) } }
                dt { "Request" } dd { code { (run.id) } }
                dt { "Incident" } dd { a href={ "/incidents/" (run.incident) } { code { (run.incident) } } }
            }
        }
    }
}
