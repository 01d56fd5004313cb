//! Whether the API can be had: asked for each configured model by name, which costs nothing and says as much as a conversation's begin
//! would. What it answers is not read, only its status.

use std::time::Duration;

use proto::Message;
use reqwest::header::HeaderValue;

use super::settings::Settings;

/// How long each may take.
const WAIT: Duration = Duration::from_secs(10);

/// What was found about one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It can be had with this key.
    There,
    /// The API does not take the key: its status.
    Refused(u16),
    /// It has no model of that name.
    Unknown,
    /// It answered something else: its status.
    Odd(u16),
    /// It can't be reached: why.
    Gone(String),
}

/// Asks for each configured model; none where there is no key.
///
/// # Errors
/// The key, the address or the certificates can't be used.
pub async fn probe(settings: &Settings) -> Result<Option<Vec<(String, Found)>>, Message> {
    let Some(credential) = settings.credential()? else { return Ok(None) };
    let (name, value) = credential.header();
    let mut value = HeaderValue::from_str(value).map_err(|_| Message::new("The API key is none.", "Write it anew."))?;
    value.set_sensitive(true);
    let (http, endpoint) = (crate::http::client(settings.ca_file.as_deref())?, settings.endpoint()?);
    let mut all = Vec::new();
    for model in settings.models() {
        let mut url = endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop().push("models").push(&model);
        }
        let asked = http.get(url).header(name, value.clone()).header("anthropic-version", super::client::VERSION).timeout(WAIT).send();
        let found = match asked.await {
            Ok(answer) => match answer.status().as_u16() {
                200 => Found::There,
                status @ (401 | 403) => Found::Refused(status),
                404 => Found::Unknown,
                status => Found::Odd(status),
            },
            Err(error) if error.is_timeout() => Found::Gone(format!("no answer in {} s", WAIT.as_secs())),
            Err(error) => Found::Gone(innermost(&error)),
        };
        all.push((model, found));
    }
    Ok(Some(all))
}

/// The last cause: the others only say that something was sent.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    proto::escape_cut(last.to_string().as_bytes(), 200)
}
