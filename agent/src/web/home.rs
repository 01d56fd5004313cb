//! The first screen: the state now, since when, the assessment with its evidence, the console, six buttons, the chat.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use maud::{Markup, html};
use proto::{Code, Verb};

use super::app::App;
use super::auth::Who;
use super::look::{Known, Look};
use super::run::{Run, newest_screen};
use super::shell::{self, Fresh, Held, aged, page, time};
use super::tokens::About;
use crate::incident::Summary;
use crate::shown::plain;

/// Somebody who comes back to a page wants to see what is so now, and not to wait for it.
const RECENT: Duration = Duration::from_secs(20);
const WAIT: Duration = Duration::from_millis(900);

/// `GET /`.
pub(super) async fn home(State(app): State<Arc<App>>, Extension(who): Extension<Who>, Query(held): Query<Held>) -> Response {
    app.looks.interest();
    let look = app.looks.fresh(RECENT, WAIT).await;
    let all = app.store.list();
    let running = at_work(&app, &all);
    let awaiting: Vec<&Summary> = all.iter().filter(|one| one.open && !one.facts.awaiting.is_empty()).collect();
    let reload_s = held.still.is_none().then_some(if running.is_empty() { 15 } else { 5 });
    let fresh = Fresh { stream: Some("/events".to_owned()), reload_s };
    let title = match &look.seen {
        Ok(known) => headline(known.code()),
        Err(unseen) => unseen.headline(),
    };
    let body = html! {
        div #live data-live {
            @for one in &awaiting {
                a.banner.warn href={ "/incidents/" (one.id) } { b { "Claude asks first. " } "Look and decide: " (plain(&one.facts.name())) }
            }
            (banners(&running))
            (state(&app, &look, true))
        }
        section.verbs #verbs data-live aria-label="The six verbs" { (buttons(look.seen.as_ref().ok().and_then(Known::advised))) }
        div #weak data-live { @if let Ok(known) = &look.seen { (weak(known)) } }
        div #picture data-live { (picture(&app)) }
        (talk(&app, &who, &held))
        div #recent data-live { (recent(&app, &all)) }
    };
    shell::html(StatusCode::OK, page(title, "/", Some(&who), &fresh, &body))
}

/// The runs that go on.
pub(super) fn at_work(app: &Arc<App>, all: &[Summary]) -> Vec<Run> {
    let open = all.iter().filter(|one| one.open).flat_map(|one| one.facts.running.iter().map(move |pending| (one, pending)));
    open.filter(|(_, pending)| pending.verb != Verb::Status).filter_map(|(one, pending)| Run::of(app, one, &pending.request_id)).collect()
}

/// The way to each of them.
pub(super) fn banners(running: &[Run]) -> Markup {
    html! {
        @for run in running {
            a.banner href={ "/runs/" (run.id) } {
                b { (run.verb) " runs: " } (run.doing()) ", "
                span data-until=(run.until.unix_ms()) { (left(run)) } " left"
            }
        }
    }
}

/// The time that a run has left, in words.
pub(super) fn left(run: &Run) -> String {
    shell::long(Duration::from_millis(run.until.unix_ms().saturating_sub(crate::incident::now().unix_ms())))
}

/// The state in two or three words.
pub(super) const fn headline(code: Option<Code>) -> &'static str {
    match code {
        Some(Code::Healthy) => "Looks healthy",
        Some(Code::BlockStalled) => "Block stalled",
        Some(Code::QemuUnresponsive) => "QEMU does not respond",
        Some(Code::QmpUnavailable) => "QEMU could not be asked",
        Some(Code::GuestUnresponsive) => "Guest does not respond",
        Some(Code::GuestPanicked) => "Guest panicked",
        Some(Code::GuestDiskFull) => "Guest's disk is full",
        Some(Code::GuestOom) => "Guest ran out of memory",
        Some(Code::Paused) => "Paused",
        Some(Code::Stopped) => "Stopped",
        Some(Code::Survivor) => "Stopped, and something survives",
        Some(Code::Locked) => "Locked by PVE",
        Some(Code::PveUnresponsive) => "PVE does not respond",
        Some(Code::Elsewhere) => "On another node",
        Some(Code::Interrupted) => "A verb was cut off",
        Some(Code::Newer) => "Not a state that this version knows",
        None => "Not judged",
    }
}

/// How grave it is, as a class: never green unless it is known to be well.
pub(super) const fn tone(code: Option<Code>) -> &'static str {
    match code {
        Some(Code::Healthy) => "good",
        Some(Code::Stopped | Code::Paused | Code::Locked | Code::Elsewhere | Code::GuestDiskFull) => "warn",
        Some(Code::QmpUnavailable) | None => "unknown",
        Some(_) => "bad",
    }
}

/// What is so now: also on the confirmation and under a result.
pub(super) fn state(app: &App, look: &Look, first: bool) -> Markup {
    let head = |text: &str| html! { @if first { h1.headline { (text) } } @else { h2.headline { (text) } } };
    match &look.seen {
        Err(unseen) => html! {
            section.card.state.unknown {
                p.eyebrow { "VM " (app.hands.vmid()) }
                (head(unseen.headline()))
                p.since { "since " (time(look.since)) ", asked " (aged(look.at)) }
                p { (plain(&unseen.said.what)) }
                @if let Some((last, known)) = look.last.as_ref().and_then(|last| Some((last, last.seen.as_ref().ok()?))) {
                    p { "Last seen " (aged(last.at)) ": " b { (headline(known.code())) } ", " (known.state()) ". Nobody knows whether it still is so." }
                }
                p.advice { (plain(&unseen.said.next)) }
            }
        },
        Ok(known) => html! {
            section class={ "card state " (tone(known.code())) } {
                p.eyebrow { "VM " (known.body.vmid) " on " (plain(&known.body.node)) " · " span.whole { (known.state()) ", seen " (aged(look.at)) } }
                (head(headline(known.code())))
                p.since {
                    @if look.at_least { "since before " } @else { "since " }
                    span.whole { (time(look.since)) } " " span.whole { "(" (aged(look.since)) ")" }
                }
                p { (plain(known.judged.as_ref().map_or(known.body.message.what.as_str(), |judged| judged.sentence.as_str()))) }
                @if let Some(judged) = &known.judged {
                    p.advice {
                        @if let Some(verb) = judged.recommend.verb { b { "Advice: " (verb) ". " } }
                        (plain(&judged.recommend.why))
                    }
                    @if !judged.findings.is_empty() {
                        details #findings {
                            summary { @if judged.findings.len() == 1 { "What was found, and its evidence" } @else { (judged.findings.len()) " findings and their evidence" } }
                            ul.findings {
                                @for finding in &judged.findings {
                                    li { b { (finding.code) } " " (plain(&finding.text)) @for path in &finding.evidence { " " code { (plain(path)) } } }
                                }
                            }
                        }
                    }
                }
                @if known.body.witness.as_ref().is_some_and(|witness| witness.ok == Some(false)) {
                    p.note.bad { b { "The host's log does not contain the newest receipt held here." } " It was rolled back or replaced: look at " a href="/receipts" { "the receipts" } "." }
                }
                @if !first { (weak(known)) }
            }
        },
    }
}

/// What is weaker than it should be. On the first screen it stands below the buttons: it is no reason not to press one.
fn weak(known: &Known) -> Markup {
    let unreviewed = known.body.unreviewed.unwrap_or_default();
    html! {
        @for one in &known.body.degraded { p.note { "Weaker than it should be: " (plain(one)) } }
        @if unreviewed > 0 { p.note { (unreviewed) @if unreviewed == 1 { " use is" } @else { " uses are" } " not reviewed on the host. Afterwards, on the host: " code { "pve-verb review" } "." } }
    }
}

/// What each verb does, for somebody who is tired.
pub(super) const fn does(verb: Verb) -> &'static str {
    match verb {
        Verb::Status => "look again, 3 s",
        Verb::Forensics => "keep evidence, change nothing",
        Verb::Reset => "restart the guest, same QEMU",
        Verb::Stop => "pull the plug, leave it off",
        Verb::Start => "start it, or resume it",
        Verb::Cycle => "stop and start: a fresh QEMU",
    }
}

/// The six. One that changes something asks on a page of its own.
fn buttons(advised: Option<Verb>) -> Markup {
    let face = |verb: Verb| {
        html! {
            button.verb .advised[advised == Some(verb)] type="submit" {
                b { (capital(verb)) @if verb.mutates() { " …" } @if advised == Some(verb) { " " i { "advised" } } }
                small { (does(verb)) }
            }
        }
    };
    // What is advised comes first: it is what a thumb should find.
    let first = Verb::ALL.into_iter().filter(|verb| advised == Some(*verb));
    html! {
        @for verb in first.chain(Verb::ALL.into_iter().filter(|verb| advised != Some(*verb))) {
            @if verb.mutates() {
                form method="get" action={ "/verbs/" (verb) "/confirm" } { (face(verb)) }
            } @else {
                form method="post" action={ "/verbs/" (verb) } { (face(verb)) }
            }
        }
    }
}

/// A verb at the beginning of a sentence.
pub(super) fn capital(verb: Verb) -> String {
    let word = verb.as_str();
    word.chars().take(1).flat_map(char::to_uppercase).chain(word.chars().skip(1)).collect()
}

fn picture(app: &Arc<App>) -> Markup {
    html! {
        section.card {
            h2 { "Console" }
            @if let Some((run, file)) = newest_screen(app) {
                figure {
                    a href={ "/evidence/" (run.id) } { img src={ "/artifacts/" (run.id) "/" (file.path) } alt="What the VM's screen showed" loading="lazy"; }
                    figcaption { "From the evidence of " (run.verb) ", " (aged(run.asked)) ". Forensics takes a new one." }
                }
            } @else {
                p.quiet { "No picture yet: Forensics takes two, and keeps them with the evidence." }
            }
        }
    }
}

/// The chat box, with what Claude may do and may cost.
fn talk(app: &App, who: &Who, held: &Held) -> Markup {
    let token = app.tokens.issue(About { who: who.name.clone(), purpose: "chat".to_owned(), state: None });
    html! {
        section.card.talk {
            h2 { @if app.talks.has_a_model() { "Ask Claude" } @else { "The runbook" } }
            form method=(if app.talks.has_a_model() { "post" } else { "get" }) action=(if app.talks.has_a_model() { "/incidents" } else { "/runbook" }) {
                label for="text" { "What is wrong?" }
                (held.said())
                textarea #text name="text" rows="3" maxlength="8000" placeholder="The devvm hangs, SSH does not answer." {}
                div.row {
                    // The token goes with this button only: the other asks by an address, and addresses are kept in histories.
                    @if app.talks.has_a_model() { button.primary #token-chat data-token type="submit" name="token" value=(token) { "Send" } }
                    button type="submit" formaction="/runbook" formmethod="get" { "Run the runbook …" }
                }
            }
            @if let Some(said) = app.unproven() { p.note { (said) } }
            p.quiet {
                @if app.talks.has_a_model() {
                    (app.claude.model) @if app.asks_first() { " asks before each change." } @else { " may run the verbs itself." }
                    " At most $" (app.budget.usd) ", " (app.budget.turns) " answers and " (app.budget.minutes) " minutes an incident, "
                    (app.budget.mutations_per_hour) " changes an hour."
                } @else {
                    "No API key is set, so there is no model. The runbook looks, takes evidence, does what is advised and checks that the guest is back."
                }
            }
        }
    }
}

fn recent(app: &App, all: &[Summary]) -> Markup {
    html! {
        @if !all.is_empty() {
            section.card {
                h2 { "Incidents" }
                ul.rows { @for one in all.iter().take(3) { (super::incidents::row(app, one)) } }
                p { a href="/incidents" { "All incidents" } }
            }
        }
    }
}
