//! What all pages have around them, and the small pieces that many of them are made of. maud escapes whatever is put into a page;
//! text of the host, the guest or the model goes through [`plain`] besides, which shows what would move or hide text.

use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};
use proto::{Message, Timestamp};
use serde::Serialize;

use super::auth::Who;
use crate::incident::{By, now};

/// How a page stays fresh.
#[derive(Clone, Debug, Default)]
pub(super) struct Fresh {
    /// The event stream that tells of changes.
    pub(super) stream: Option<String>,
    /// Where there is no JavaScript: loaded again after so many seconds.
    pub(super) reload_s: Option<u32>,
}

/// Where one is: a word of the navigation.
pub(super) const PLACES: [(&str, &str); 5] =
    [("/", "Now"), ("/incidents", "Incidents"), ("/evidence", "Evidence"), ("/receipts", "Receipts"), ("/doctor", "Doctor")];

/// A page.
pub(super) fn page(title: &str, place: &str, who: Option<&Who>, fresh: &Fresh, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="theme-color" media="(prefers-color-scheme: light)" content="#f4f5f7";
                meta name="theme-color" media="(prefers-color-scheme: dark)" content="#101418";
                @if let Some(s) = fresh.reload_s { noscript { meta http-equiv="refresh" content=(s); } }
                title { (title) " · Breakglass" }
                link rel="stylesheet" href="/assets/style.css";
                link rel="icon" href="/assets/icon.svg" type="image/svg+xml";
                link rel="apple-touch-icon" href="/assets/icon-192.png";
                link rel="manifest" href="/manifest.webmanifest";
                script type="module" src="/assets/app.js" {}
            }
            body data-now=(now().unix_ms()) data-stream=[fresh.stream.as_deref()] {
                a.skip href="#main" { "To the content" }
                header.top {
                    a.brand href="/" { img src="/assets/icon.svg" alt="" width="24" height="24"; "Breakglass" }
                    nav aria-label="Pages" {
                        @for (href, name) in PLACES {
                            @if href == place { a href=(href) aria-current="page" { (name) } } @else { a href=(href) { (name) } }
                        }
                    }
                }
                main #main tabindex="-1" { (body) }
                footer {
                    @if let Some(who) = who { span { "You are " b { (who.name) } " (" (who.how.word()) ")" } }
                    span #link-state role="status" {}
                    span { "Times are UTC" }
                }
            }
        }
    }
}

/// A page that says no, with what to do.
pub(super) fn refusal(status: StatusCode, said: &Message, json: bool) -> Response {
    if json {
        return (status, axum::Json(said)).into_response();
    }
    let body = html! {
        section.card.calm { h1 { (title(status)) } p { (said.what) } p { b { (said.next) } } p { a.button href="/" { "To the first screen" } } }
    };
    (status, page(title(status), "", None, &Fresh::default(), &body)).into_response()
}

fn title(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "Who are you?",
        StatusCode::FORBIDDEN => "Not from here",
        StatusCode::NOT_FOUND => "Not here",
        StatusCode::TOO_MANY_REQUESTS => "Too much at once",
        StatusCode::SERVICE_UNAVAILABLE => "Not now",
        StatusCode::CONFLICT => "Not any more",
        _ => "That did not work",
    }
}

/// Text that the host has escaped once, or nobody has: its backslashes stay, everything that is not printable is shown.
pub(super) fn plain(text: &str) -> String {
    text.split('\\').map(|part| proto::escape(part.as_bytes())).collect::<Vec<_>>().join("\\")
}

/// The same for text of several lines.
pub(super) fn lines(text: &str) -> String {
    text.lines().map(|line| plain(&line.replace('\t', "    "))).collect::<Vec<_>>().join("\n")
}

/// A word of a closed set, as a person reads it.
pub(super) fn word(value: &impl Serialize) -> String {
    let word = serde_json::to_value(value).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default();
    word.replace('_', " ")
}

/// Who decided, in a word.
pub(super) const fn by(origin: By) -> &'static str {
    match origin {
        By::Human => "a person",
        By::Model => "Claude",
        By::Runbook => "the runbook",
        By::Mcp => "an MCP client",
        By::Watch => "the watch",
        By::Agent => "this program",
    }
}

/// A time of day; with its date where it is not today's.
pub(super) fn time(at: Timestamp) -> Markup {
    let text = at.to_string();
    let today = now().to_string();
    let (date, clock) = (text.get(..10).unwrap_or_default(), text.get(11..19).unwrap_or_default());
    html! {
        time datetime=(text) { @if today.get(..10) != Some(date) { (date) " " } (clock) }
    }
}

/// How long ago.
pub(super) fn ago(at: Timestamp) -> String {
    let s = now().unix_ms().saturating_sub(at.unix_ms()) / 1000;
    if s < 2 { "just now".to_owned() } else { format!("{} ago", long(Duration::from_secs(s))) }
}

/// A length of time, to one unit or two.
pub(super) fn long(time: Duration) -> String {
    match time.as_secs() {
        s @ 0..=89 => format!("{s} s"),
        s @ 90..=5399 => format!("{} min", s / 60),
        s @ 5400..=172_799 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        s => format!("{} days", s / 86_400),
    }
}

/// A length in bytes.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} B"),
        10_000..=9_999_999 => format!("{} kB", bytes / 1000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

/// HTML, with its status.
pub(super) fn html(status: StatusCode, markup: Markup) -> Response {
    (status, markup).into_response()
}

/// To another page, after something was done.
pub(super) fn see_other(to: &str) -> Response {
    (StatusCode::SEE_OTHER, [(header::LOCATION, to.to_owned())]).into_response()
}
