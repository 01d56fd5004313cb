//! One request to the Messages API: sent, retried where that is right, its answer streamed. A request whose stream has begun is never
//! sent again by this: it was paid for, and whoever asked decides.

use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use proto::Message;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::Value;

use super::answer::{Answer, Broken, Gathering, Heard, Usage};
use super::settings::{Credential, Settings};
use super::stream::Stream;

/// The API's version that this speaks.
pub(super) const VERSION: &str = "2026-10-21";
/// Until the answer's head is there.
const HEAD: Duration = Duration::from_secs(30);
/// Between two pieces of a stream; the API pings more often.
const SILENCE: Duration = Duration::from_secs(60);
/// A whole answer.
const WHOLE: Duration = Duration::from_secs(600);
/// Attempts after the first.
const AGAIN: u32 = 2;
/// A pause that is longer is no pause at night: somebody else is asked.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// The body of an error is not read further.
const MAX_ERROR: usize = 64 << 10;

/// What a failed request means for the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    /// This model can't now: another may.
    AnotherModel,
    /// No model behind this address and credential will.
    NoModel,
}

/// A request that failed for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// Why, escaped.
    pub(super) why: String,
    /// The API's id of it.
    pub(super) request: Option<String>,
    /// What follows.
    pub(super) means: Means,
    /// What it cost all the same.
    pub(super) usage: Usage,
}

/// What one who asks hears while it goes on.
#[derive(Clone, Debug)]
pub(super) enum News {
    /// A piece of the answer.
    Heard(Heard),
    /// An attempt failed; the next comes after this.
    Again {
        /// Why.
        why: String,
        /// The API's id of the attempt.
        request: Option<String>,
        /// The pause.
        after: Duration,
    },
}

/// The way to the API.
#[derive(Clone, Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    url: reqwest::Url,
    headers: HeaderMap,
}

/// One attempt that failed.
struct Attempt {
    failed: Failed,
    /// Whether trying again can help, and the pause that the API asks for.
    again: Option<Option<Duration>>,
}

impl Client {
    /// A client.
    ///
    /// # Errors
    /// The address, the certificates or the credential can't be used.
    pub(super) fn new(settings: &Settings, credential: &Credential) -> Result<Self, Message> {
        let mut headers = HeaderMap::new();
        let (name, value) = credential.header();
        let bad = |_| Message::new("The API key has characters that no key has.", "Write it anew.");
        let mut secret = HeaderValue::from_str(value).map_err(bad)?;
        secret.set_sensitive(true);
        headers.insert(name, secret);
        headers.insert("anthropic-version", HeaderValue::from_static(VERSION));
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        headers.insert("accept", HeaderValue::from_static("text/event-stream"));
        Ok(Self { http: crate::http::client(settings.ca_file.as_deref())?, url: settings.endpoint()?, headers })
    }

    /// Asks; gives the answer and the API's id of the request. Dropping it drops the connection.
    ///
    /// # Errors
    /// There is no answer, and why.
    pub(super) async fn ask(&self, body: Vec<u8>, mut tell: impl FnMut(News)) -> Result<(Answer, Option<String>), Failed> {
        // Shared by all attempts: it may have megabytes.
        let body = axum::body::Bytes::from(body);
        let mut n = 0;
        loop {
            let Attempt { failed, again } = match tokio::time::timeout(WHOLE, self.once(body.clone(), &mut tell)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(attempt)) => attempt,
                Err(_) => return Err(model(None, format!("the answer took longer than {} s", WHOLE.as_secs()))),
            };
            let Some(asked) = again.filter(|_| n < AGAIN) else { return Err(failed) };
            let pause = asked.unwrap_or_else(|| backoff(n));
            if pause > LONGEST_PAUSE {
                return Err(Failed { why: format!("{}; it asks for a pause of {} s", failed.why, pause.as_secs()), ..failed });
            }
            tell(News::Again { why: failed.why, request: failed.request, after: pause });
            tokio::time::sleep(pause).await;
            n += 1;
        }
    }

    async fn once(&self, body: axum::body::Bytes, tell: &mut impl FnMut(News)) -> Result<(Answer, Option<String>), Attempt> {
        let send = self.http.post(self.url.clone()).headers(self.headers.clone()).body(body).send();
        let answer = match tokio::time::timeout(HEAD, send).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                let why = if error.is_connect() { "no connection to the API" } else { "the connection to the API was lost" };
                let failed = Failed { means: Means::NoModel, ..model(None, why.to_owned()) };
                return Err(Attempt { failed, again: Some(None) });
            }
            Err(_) => {
                return Err(Attempt { failed: model(None, format!("the API did not answer within {} s", HEAD.as_secs())), again: None });
            }
        };
        let header = |name: &str| {
            answer.headers().get(name).and_then(|value| value.to_str().ok()).map(|text| proto::escape_cut(text.as_bytes(), 200))
        };
        let request = header("request-id");
        if !answer.status().is_success() {
            let status = answer.status().as_u16();
            let (should, pause) = (header("x-should-retry"), pause(answer.headers()));
            let body = tokio::time::timeout(HEAD, limited(answer)).await.unwrap_or_default();
            return Err(attempt(status, &body, request, should.as_deref(), pause));
        }
        let begun = |failed| Attempt { failed, again: None };
        let mut gathering = Gathering::default();
        let mut stream = Stream::default();
        let mut pieces = answer.bytes_stream();
        loop {
            let piece = match tokio::time::timeout(SILENCE, pieces.next()).await {
                Ok(Some(Ok(piece))) => piece,
                // What a connection does after the last event is its own affair.
                Ok(Some(Err(_)) | None) | Err(_) if gathering.ended() => break,
                Ok(Some(Err(_))) => return Err(begun(broken(&Broken::CutOff, request, gathering.usage()))),
                Ok(None) => break,
                Err(_) => {
                    let silent = model(request, format!("the answer stopped coming for {} s", SILENCE.as_secs()));
                    return Err(begun(Failed { usage: gathering.usage(), ..silent }));
                }
            };
            let mut trouble = None;
            let fed = stream.feed(&piece, |data| {
                if trouble.is_none() && !gathering.ended() {
                    match gathering.event(&data) {
                        Ok(Some(heard)) => tell(News::Heard(heard)),
                        Ok(None) => {}
                        Err(why) => trouble = Some(why),
                    }
                }
            });
            if let Some(why) = trouble.or_else(|| fed.err().map(|_| Broken::TooLong)) {
                return Err(begun(broken(&why, request, gathering.usage())));
            }
            if gathering.ended() {
                break;
            }
        }
        let usage = gathering.usage();
        match gathering.end() {
            Ok(answer) => Ok((answer, request)),
            Err(why) => Err(begun(broken(&why, request, usage))),
        }
    }
}

fn model(request: Option<String>, why: String) -> Failed {
    Failed { why, request, means: Means::AnotherModel, usage: Usage::default() }
}

fn broken(why: &Broken, request: Option<String>, usage: Usage) -> Failed {
    let why = match why {
        Broken::Unreadable => "the answer could not be read".to_owned(),
        Broken::TooLong => "the answer was longer than any is".to_owned(),
        Broken::Error(kind) => format!("the API broke off in the middle of its answer ({})", proto::escape_cut(kind.as_bytes(), 80)),
        Broken::CutOff => "the answer was cut off".to_owned(),
    };
    Failed { usage, ..model(request, why) }
}

async fn limited(answer: reqwest::Response) -> Vec<u8> {
    let mut body = Vec::new();
    let mut pieces = answer.bytes_stream();
    while let Some(Ok(piece)) = pieces.next().await {
        body.extend_from_slice(&piece[..piece.len().min(MAX_ERROR - body.len())]);
        if body.len() >= MAX_ERROR {
            break;
        }
    }
    body
}

/// What an answer that is an error means. By its type and code, never by its message.
fn attempt(status: u16, body: &[u8], request: Option<String>, should: Option<&str>, pause: Option<Duration>) -> Attempt {
    let error: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |value: &Value| proto::escape_cut(value.as_str().unwrap_or_default().as_bytes(), 300);
    let (kind, said) = (text(&error["error"]["type"]), text(&error["error"]["message"]));
    let code = text(&error["error"]["details"]["error_code"]);
    let spent = code == "enforced_spend_limit_reached" && pause.is_none();
    let retryable = matches!(status, 408 | 409 | 429) || status >= 500;
    let again = match should {
        Some("true") => true,
        Some("false") => false,
        _ => retryable,
    };
    let means = if spent || matches!(status, 401..=403) { Means::NoModel } else { Means::AnotherModel };
    let name = if code.is_empty() { kind } else { format!("{kind}, {code}") };
    let failed = Failed { means, ..model(request, format!("the API answers {status} ({name}) {said}").trim_end().to_owned()) };
    Attempt { failed, again: (again && !spent).then_some(pause) }
}

/// The pause that the API asks for.
fn pause(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(ms) = text("retry-after-ms").and_then(|text| text.parse::<f64>().ok()).filter(|ms| (0.0..1e9).contains(ms)) {
        return Some(Duration::from_secs_f64(ms / 1000.0));
    }
    let after = text("retry-after")?;
    if let Some(s) = after.parse::<f64>().ok().filter(|s| (0.0..1e6).contains(s)) {
        return Some(Duration::from_secs_f64(s));
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    Some(Duration::from_secs(http_date(after)?.saturating_sub(now)))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` in seconds since 1970: the one form that is still sent.
fn http_date(text: &str) -> Option<u64> {
    let parts: Vec<&str> = text.split_whitespace().collect();
    let [_, day, month, year, time, "GMT"] = parts[..] else { return None };
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    proto::Timestamp::parse(&format!("{year}-{month:02}-{day:0>2}T{time}.000Z")).map(|at| at.unix_ms() / 1000)
}

/// 0.5·2ⁿ s, with up to a quarter less, so that many do not come back at once.
fn backoff(n: u32) -> Duration {
    let mut byte = [0];
    let _any_will_do = rustix::rand::getrandom(&mut byte, rustix::rand::GetRandomFlags::empty());
    let full = 500_u64 << n.min(4);
    Duration::from_millis(full - full / 4 * u64::from(byte[0]) / 255)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_told_in_three_ways() {
        let told = |name: &'static str, value: &str| pause(&HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]));
        assert_eq!(told("retry-after-ms", "250"), Some(Duration::from_millis(250)));
        assert_eq!(told("retry-after", "3"), Some(Duration::from_secs(3)));
        assert_eq!(told("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!((told("retry-after", "soon"), told("x", "3")), (None, None));
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
    }

    #[test]
    fn errors_are_told_apart_by_type_and_code() {
        let spend = br#"{"type":"error","error":{"type":"rate_limit_error","message":"retry later","details":{"error_code":"enforced_spend_limit_reached"}}}"#;
        let over = br#"{"type":"error","error":{"type":"overloaded_error","message":"enforced_spend_limit_reached"}}"#;
        let a = attempt(429, spend, None, None, None);
        assert_eq!((a.failed.means, a.again), (Means::NoModel, None));
        assert_eq!(attempt(429, spend, None, None, Some(Duration::ZERO)).again, Some(Some(Duration::ZERO)));
        let a = attempt(529, over, None, None, None);
        assert_eq!((a.failed.means, a.again), (Means::AnotherModel, Some(None)));
        assert_eq!(attempt(529, over, None, Some("false"), None).again, None);
        assert_eq!(attempt(400, b"", None, None, None).again, None);
        assert_eq!(attempt(401, b"<html>", None, None, None).failed.means, Means::NoModel);
    }
}
