//! What all pages have around them, and the small pieces that many of them are made of. maud escapes whatever is put into a page;
//! text of the host, the guest or the model goes through [`crate::shown`] besides, which shows what would move or hide text.

use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};
use proto::{Message, Timestamp};
use serde::{Deserialize, Serialize};

use super::auth::Who;
use crate::incident::{By, now};
use crate::shown::plain;

/// How a page stays fresh.
#[derive(Clone, Debug, Default)]
pub(super) struct Fresh {
    /// The event stream that tells of changes.
    pub(super) stream: Option<String>,
    /// Where there is no JavaScript: loaded again after so many seconds.
    pub(super) reload_s: Option<u32>,
}

/// Where there is no JavaScript a page that loads itself again takes away what is being written on it: it can be held still.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Held {
    pub(super) still: Option<String>,
}

impl Held {
    /// What stands over a field for text.
    pub(super) fn said(&self) -> Markup {
        html! {
            noscript {
                p.quiet {
                    @if self.still.is_some() { "This page is held still. " a href="?" { "Keep it fresh" } }
                    @else { "This page loads itself again, without what is typed. " a href="?still=yes#text" { "Hold this page still to write" } }
                }
            }
        }
    }
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
                meta name="theme-color" media="(prefers-color-scheme: light)" content="#f2f4f6";
                meta name="theme-color" media="(prefers-color-scheme: dark)" content="#0f1316";
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
                    a.brand href="/" { img src="/assets/icon.svg" alt="" width="24" height="24"; span { "Breakglass" } }
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
        section.card.calm { h1 { (title(status)) } p { (said.what) } p { b { (said.next) } }
            // Who may not come in would only come back to this.
            @if status != StatusCode::UNAUTHORIZED { p { a.button href="/" { "To the first screen" } } }
        }
    };
    (status, page(title(status), "", None, &Fresh::default(), &body)).into_response()
}

fn title(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "Who are you?",
        StatusCode::FORBIDDEN => "Not from here",
        StatusCode::NOT_FOUND => "Not here",
        StatusCode::PAYLOAD_TOO_LARGE => "Too long",
        StatusCode::REQUEST_TIMEOUT => "Too slow",
        StatusCode::TOO_MANY_REQUESTS => "Too much at once",
        StatusCode::SERVICE_UNAVAILABLE => "Not now",
        StatusCode::CONFLICT => "Not any more",
        _ => "That did not work",
    }
}

/// How long a character is in a page.
const fn drawn(c: char) -> usize {
    match c {
        '<' | '>' => 4,
        '&' => 5,
        '"' => 6,
        c => c.len_utf8(),
    }
}

/// As much of a text's beginning as takes so many bytes in a page.
pub(super) fn fit(text: &str, most: usize) -> &str {
    let mut sum = 0;
    let end = text.char_indices().find(|(_, c)| {
        sum += drawn(*c);
        sum > most
    });
    &text[..end.map_or(text.len(), |(at, _)| at)]
}

/// The same of its end.
pub(super) fn fit_end(text: &str, most: usize) -> &str {
    let mut sum = 0;
    let begin = text.char_indices().rev().find(|(_, c)| {
        sum += drawn(*c);
        sum > most
    });
    &text[begin.map_or(0, |(at, c)| at + c.len_utf8())..]
}

/// A model's words: what it marks as bold or as code, on one line and without space inside the marks, is drawn so; whatever else it marks
/// stays as it is.
pub(super) fn marked(text: &str) -> Markup {
    let text = crate::shown::lines(text);
    let (mut rest, mut pieces) = (text.as_str(), Vec::new());
    while let Some((at, mark)) = ["**", "`"].into_iter().filter_map(|mark| Some((rest.find(mark)?, mark))).min() {
        let inner = &rest[at + mark.len()..];
        match inner.find(mark).filter(|end| *end > 0 && !inner[..*end].contains('\n') && inner[..*end].trim() == &inner[..*end]) {
            Some(end) => {
                pieces.extend([("", &rest[..at]), (mark, &inner[..end])]);
                rest = &inner[end + mark.len()..];
            }
            None => {
                pieces.push(("", &rest[..at + mark.len()]));
                rest = inner;
            }
        }
    }
    pieces.push(("", rest));
    html! {
        @for (mark, text) in pieces {
            @match mark { "**" => b { (text) }, "`" => code { (text) }, _ => (text) }
        }
    }
}

/// A word of a closed set, as a person reads it.
pub(super) fn word(value: &impl Serialize) -> String {
    let word = serde_json::to_value(value).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default();
    word.replace('_', " ")
}

/// What to do next, as it is done on a page: nobody can leave out an option of the host's there.
pub(super) fn pressed(next: &str) -> String {
    if next.contains("without --dry-run") { "Press its button to do it.".to_owned() } else { plain(next) }
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

/// The same where it matters that it goes on being true while one looks at it.
pub(super) fn aged(at: Timestamp) -> Markup {
    html! { span data-at=(at.unix_ms()) { (ago(at)) } }
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

#[cfg(test)]
mod tests {
    use super::{fit, fit_end, marked, pressed};

    #[test]
    fn nobody_is_told_to_leave_out_an_option_on_a_page() {
        for (next, said) in [
            ("Send it again without --dry-run, and with a new request id, to do it.", "Press its button to do it."),
            ("Ask with status.", "Ask with status."),
        ] {
            assert_eq!(pressed(next), said);
        }
    }

    #[test]
    fn what_fits_is_counted_as_it_is_drawn() {
        for (text, most, first, last) in
            [("abc", 3, "abc", "abc"), ("abc", 2, "ab", "bc"), ("<&\"", 9, "<&", "\""), ("aäb", 2, "a", "b"), ("", 0, "", "")]
        {
            assert_eq!((fit(text, most), fit_end(text, most)), (first, last), "{text} {most}");
            assert!(maud::html! { (fit(text, most)) }.into_string().len() <= most);
        }
    }

    #[test]
    fn bold_and_code_are_drawn_and_nothing_else_is_markup() {
        for (text, drawn) in [
            ("a **fresh** one:\n`free -m`", "a <b>fresh</b> one:\n<code>free -m</code>"),
            ("**<script>**`<b>`", "<b>&lt;script&gt;</b><code>&lt;b&gt;</code>"),
            ("2 ** 3, ` and **\n**", "2 ** 3, ` and **\n**"),
            ("****``", "****``"),
            ("ä**ö**ü", "ä<b>ö</b>ü"),
            ("**\u{202e}**", "<b>\\u{202e}</b>"),
        ] {
            assert_eq!(marked(text).into_string(), drawn);
        }
    }
}
