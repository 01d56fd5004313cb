//! The receipts that are kept, each checked again as it is shown, and the newest head of the host's log that they name.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use maud::{Markup, html};
use proto::{Origin, RequestId, Verb};

use super::app::App;
use super::auth::Who;
use super::shell::{self, Fresh, ago, page, time};
use crate::receipt::Proved;
use crate::receipts::{read, verify};
use crate::shown::plain;

/// On the page; all of them are held against each other.
const MOST: usize = 60;
/// The looks that a page, a watch or a runbook took: one every ten seconds, below everything else.
const LOOKS: usize = 20;
/// So many are gone through for those.
const READ: usize = 2000;

/// One that is kept: its file's name, and what it proves.
type Kept = (String, Option<Proved>);

/// Whether nobody is likely to look for it: the state, asked for by no person.
fn is_look(kept: &Kept) -> bool {
    kept.1.as_ref().is_some_and(|proved| proved.body().verb == Some(Verb::Status) && proved.body().origin != Origin::Human)
}

fn rows(all: &[Kept]) -> Markup {
    html! {
        ul.rows {
            @for (name, proved) in all {
                li {
                    @match proved {
                        Some(proved) => {
                            @let body = proved.body();
                            a.row-link href={ "/runs/" (body.request_id) } {
                                span class={ "pill " (if proved.is_success() { "good" } else { "warn" }) } { (body.outcome) }
                                b { (body.verb.map_or_else(|| "not in the grammar".to_owned(), |verb| verb.to_string())) @if let Some(at) = &body.audit { " · record " (at.seq) } }
                                small { (time(body.finished)) ", " (shell::word(&body.origin)) @if let Some(actor) = &body.actor { " " (plain(actor.as_str())) } ", state " (body.state_after) }
                            }
                        },
                        None => div.row-link { span.pill.bad { "not valid" } b { code { (plain(name)) } } small { "Damaged, or not signed with the pinned key." } },
                    }
                }
            }
        }
    }
}

/// The files, newest last.
fn files(app: &App) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(app.state.join("receipts")).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|ending| ending == "json")).collect();
    all.sort_unstable();
    all
}

/// The line of a run's receipt, as it came.
pub(super) fn line_of(app: &App, id: &RequestId) -> Option<Vec<u8>> {
    let ending = format!("-{id}.json");
    let path = files(app).into_iter().rev().find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(&ending)))?;
    std::fs::read(path).ok()
}

/// `GET /receipts`.
pub(super) async fn list(State(app): State<Arc<App>>, Extension(who): Extension<Who>) -> Response {
    let its = Arc::clone(&app);
    // Thousands of signatures may be checked.
    let checked = tokio::task::spawn_blocking(move || {
        let files = files(&its);
        let found = its.signing_key.as_ref().map(|key| verify(&files, key));
        let (mut newest, mut looks, mut read_until) = (Vec::new(), Vec::new(), 0);
        for path in files.iter().rev().take(READ) {
            let proved = its.signing_key.as_ref().and_then(|key| read(path).ok()?.proved(key));
            let kept = (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), proved);
            if is_look(&kept) {
                looks.push(kept)
            } else {
                newest.push(kept)
            }
            read_until += 1;
            if newest.len() == MOST {
                break;
            }
        }
        (files.len() - read_until, found, newest, looks)
    });
    let Ok((older, found, newest, looks)) = checked.await else {
        return shell::refusal(
            StatusCode::INTERNAL_SERVER_ERROR,
            &proto::Message::new("The receipts could not be read.", "Run breakglass receipts verify."),
            false,
        );
    };
    let look = app.looks.latest();
    let witness = look.seen.as_ref().ok().and_then(|known| known.body.witness.as_ref()).and_then(|witness| witness.ok);
    let body = html! {
        h1 { "Receipts" }
        section.card {
            h2 { "The host's log" }
            @match found.as_ref().and_then(|found| found.newest.as_ref()) {
                Some(head) => { p { "Newest record that is held here: " b { (head.seq) } } p { code { (head.head) } } },
                None => p.quiet { "No receipt that names a record is kept yet." },
            }
            @match witness {
                None if found.as_ref().is_none_or(|found| found.newest.is_none()) => {},
                Some(true) => p.note.good { b { "The log contains it. " } "The host signed that " (ago(look.at)) "." },
                Some(false) => p.note.bad { b { "The log does NOT contain it. " } "It was rolled back or replaced: keep the state folder, and run breakglass receipts verify." },
                None => p.note { "The host has not been asked yet whether its log contains it, or could not tell in time." },
            }
            @if let Some(found) = &found {
                @if found.wrong.is_empty() { p.quiet { (found.receipts) " receipts are held against each other, and fit." } }
                @for wrong in &found.wrong { p.note.bad { (plain(&wrong.what)) " " b { (plain(&wrong.next)) } } }
            }
        }
        section.card {
            h2 { "Newest first" }
            @if newest.is_empty() { p.quiet { "None yet" @if !looks.is_empty() { ", but for looks" } "." } }
            (rows(&newest))
            @if !looks.is_empty() {
                details #looks {
                    summary { (looks.len()) @if looks.len() == 1 { " look" } @else { " looks" } " that nobody pressed" }
                    (rows(&looks[..looks.len().min(LOOKS)]))
                    @if looks.len() > LOOKS { p.quiet { "The newest " (LOOKS) " of them." } }
                }
            }
            @if older > 0 { p.quiet { (older) " older ones are in the state folder: breakglass receipts verify names what does not fit." } }
        }
    };
    shell::html(StatusCode::OK, page("Receipts", "/receipts", Some(&who), &Fresh::default(), &body))
}
