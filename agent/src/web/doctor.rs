//! The doctor as a page and as a metric, never as a probe; and the page on which a person accepts the devvm's new host key.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::{Extension, Form};
use maud::{Markup, html};
use proto::{Message, Timestamp};
use serde::Deserialize;

use super::app::App;
use super::auth::Who;
use super::guard::wants_json;
use super::press::person;
use super::shell::{self, Fresh, ago, page, see_other};
use super::site::Keys;
use super::tokens::About;
use crate::doctor::{Finding, Level};
use crate::shown::plain;

/// Between two examinations that nobody asked for.
const EVERY: Duration = Duration::from_secs(3600);
/// The first one lets the program begin.
const FIRST: Duration = Duration::from_secs(20);
/// It is not tried more often.
const AGAIN_MS: u64 = 10_000;
/// What a person waits for it; after that the page shows the last one.
const WAIT: Duration = Duration::from_secs(15);

/// The last examination.
pub(super) type Last = Mutex<Option<(Timestamp, Vec<Finding>)>>;

/// Examines now and then, for the metric.
pub(super) fn begin(app: &Arc<App>) {
    let app = Arc::clone(app);
    tokio::spawn(async move {
        tokio::time::sleep(FIRST).await;
        loop {
            examine(&app).await;
            tokio::time::sleep(EVERY).await;
        }
    });
}

async fn examine(app: &Arc<App>) {
    let Some(site) = &app.site else { return };
    let found = site.examine().await;
    app.meter.doctor(&found);
    *app.doctor.lock().unwrap_or_else(PoisonError::into_inner) = Some((crate::incident::now(), found));
}

fn last(app: &App) -> Option<(Timestamp, Vec<Finding>)> {
    app.doctor.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// `GET /doctor`: the last examination.
pub(super) async fn doctor(State(app): State<Arc<App>>, Extension(who): Extension<Who>) -> Response {
    let last = last(&app);
    let body = html! {
        h1 { "Doctor" }
        section.card {
            form method="post" action="/doctor" { button.primary.wide type="submit" { "Examine now" } }
            p.quiet { "The whole way: host, receipts, clocks, space, the devvm's sshd. It changes nothing. What does not answer takes up to a minute: this page waits 15 s, so load it again then." }
            @match &last {
                None => p { "Not examined yet." },
                Some((at, found)) => {
                    p.since { "Examined " (ago(*at)) }
                    ul.rows { @for one in found { li { (finding(one)) } } }
                }
            }
        }
        p { a href="/hostkey" { "The devvm's host key" } }
    };
    shell::html(StatusCode::OK, page("Doctor", "/doctor", Some(&who), &Fresh::default(), &body))
}

fn finding(one: &Finding) -> Markup {
    let (class, word) = match one.level {
        Level::Ok => ("good", "well"),
        Level::Warn => ("warn", "weak"),
        Level::Bad => ("bad", "broken"),
    };
    html! {
        div.row-link { span class={ "pill " (class) } { (word) } b { (one.name) } small { (plain(&one.said.what)) " " (plain(&one.said.next)) } }
    }
}

/// `POST /doctor`: examines.
pub(super) async fn again(State(app): State<Arc<App>>) -> Response {
    let recent = last(&app).is_some_and(|(at, _)| at.unix_ms() + AGAIN_MS > crate::incident::now().unix_ms());
    if !recent {
        let its = Arc::clone(&app);
        // It goes on where nobody waits for it any more.
        let examined = tokio::spawn(async move { examine(&its).await });
        let _in_time = tokio::time::timeout(WAIT, examined).await;
    }
    see_other("/doctor")
}

/// What the form says.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Accept {
    token: Option<String>,
    fingerprint: Option<String>,
    compared: Option<String>,
}

fn about(who: &Who, keys: &Keys) -> About {
    About { who: who.name.clone(), purpose: "hostkey".to_owned(), state: Some(format!("{keys:?}")) }
}

async fn keys(app: &App) -> Option<Keys> {
    app.site.as_ref()?.keys().await
}

/// `GET /hostkey`.
pub(super) async fn hostkey(State(app): State<Arc<App>>, Extension(who): Extension<Who>) -> Response {
    ask(&app, &who, keys(&app).await, None)
}

fn ask(app: &App, who: &Who, keys: Option<Keys>, said: Option<&Message>) -> Response {
    let body = html! {
        h1 { "The devvm's host key" }
        @if let Some(said) = said { p.banner.warn role="alert" { (plain(&said.what)) " " b { (plain(&said.next)) } } }
        @match &keys {
            None => section.card { p { "No devvm is configured." } },
            Some(keys) => section.card {
                dl.facts {
                    dt { "Pinned" } dd { code { (keys.pinned) } }
                    dt { "Shown now" } dd { @match &keys.shown { Ok(shown) => code { (plain(shown)) }, Err(why) => span { "none: " (plain(why)) } } }
                }
                @match &keys.shown {
                    Ok(shown) if *shown == keys.pinned => p.note.good { b { "They are the same. " } "Nothing needs doing." },
                    Ok(shown) => {
                        p.note.bad { b { "They differ. " } "Nothing runs on the devvm until a person has compared. If it was rebuilt, that is why; if it was not, somebody stands between." }
                        p { "On the devvm's own console, not over the network:" }
                        pre tabindex="0" { "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub" }
                        form method="post" action="/hostkey" {
                            input type="hidden" name="token" value=(app.tokens.issue(about(who, keys)));
                            input type="hidden" name="fingerprint" value=(shown);
                            label.check { input type="checkbox" name="compared" value="yes" required; " I have compared it with the console" }
                            button.danger.wide type="submit" { "Accept the new key" }
                        }
                    },
                    Err(_) => p.note.warn { "It can't be compared now. Look on the first screen whether the VM runs." },
                }
            },
        }
    };
    let status = if said.is_some() { StatusCode::CONFLICT } else { StatusCode::OK };
    shell::html(status, page("The devvm's host key", "/doctor", Some(who), &Fresh::default(), &body))
}

/// `POST /hostkey`: a person has compared.
pub(super) async fn accept(
    State(app): State<Arc<App>>,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
    Form(form): Form<Accept>,
) -> Response {
    let Some(now) = keys(&app).await else { return ask(&app, &who, None, None) };
    let spent = app.tokens.spend(form.token.as_deref().unwrap_or_default(), &about(&who, &now));
    let again = |what: &str| ask(&app, &who, Some(now.clone()), Some(&Message::new(what, "Compare again.")));
    if spent.is_err() {
        return again("This question was answered before, or the keys have changed since. Nothing was accepted.");
    }
    let Some(fingerprint) = form.fingerprint.filter(|_| form.compared.as_deref() == Some("yes")) else {
        return again("Nobody said that it was compared. Nothing was accepted.");
    };
    let accepted = match &app.site {
        Some(site) => site.accept(&fingerprint).await,
        None => Ok(()),
    };
    tracing::warn!(
        event = "hostkey",
        accepted = accepted.is_ok(),
        who = person(&who),
        fingerprint = proto::escape_cut(fingerprint.as_bytes(), 100)
    );
    match accepted {
        Ok(()) if wants_json(&headers, &who) => shell::html(StatusCode::NO_CONTENT, html! {}),
        Ok(()) => see_other("/hostkey"),
        Err(said) => ask(&app, &who, keys(&app).await, Some(&said)),
    }
}
