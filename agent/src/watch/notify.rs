//! Tells a webhook: one JSON object by POST, with a deadline, again while that can help. The address may hold a secret and is in no log.
//!
//! ```json
//! {"v":1, "event":"worse", "at":"2026-11-21T00:30:00.000Z", "vmid":102, "code":"block-stalled", "since":"2026-11-21T00:29:00.000Z",
//!  "sentence":"VM 102 is block-stalled: …", "next":"Only a fresh QEMU process …", "recommend":"cycle",
//!  "incident":"1f0c9a2e-…", "text":"VM 102 is block-stalled: … Only a fresh …"}
//! ```
//!
//! `event` is `worse`, `better`, `opened` (an incident was) or `ended` (it did; `healthy` says how). `code` is an assessment's, or
//! `host-silent`. `recommend`, `incident` and `healthy` may be null. `text` is for receivers that show one member. Guest-influenced text is escaped.

use std::time::Duration;

use proto::{Timestamp, Verb, Vmid};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

/// One POST.
const DEADLINE: Duration = Duration::from_secs(10);
/// A receiver that is down gets these chances, within ten minutes.
const AGAIN: [u64; 7] = [1, 4, 10, 30, 60, 120, 300];

/// Of what kind a notice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A change for the worse.
    Worse,
    /// It is over.
    Better,
    /// An incident was opened.
    Opened,
    /// An incident ended.
    Ended,
}

impl Kind {
    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Worse => "worse",
            Self::Better => "better",
            Self::Opened => "opened",
            Self::Ended => "ended",
        }
    }
}

/// What is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Notice {
    /// The form's version.
    pub v: u8,
    /// Its kind.
    pub event: Kind,
    /// When.
    pub at: Timestamp,
    /// The VM.
    pub vmid: Vmid,
    /// What is, or was, wrong.
    pub code: String,
    /// Since when.
    pub since: Timestamp,
    /// What happened; escaped.
    pub sentence: String,
    /// What to do.
    pub next: String,
    /// The verb that is recommended.
    pub recommend: Option<Verb>,
    /// The incident.
    pub incident: Option<String>,
    /// How an incident ended.
    pub healthy: Option<bool>,
    /// Both sentences.
    pub text: String,
}

/// Where it is told.
#[derive(Clone, Debug)]
pub struct Webhook {
    http: reqwest::Client,
    url: reqwest::Url,
}

impl Webhook {
    /// A webhook.
    ///
    /// # Errors
    /// The address is none, or its certificates can't be read.
    pub fn new(url: &str, ca_file: Option<&std::path::Path>) -> Result<Self, proto::Message> {
        let url = reqwest::Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let url =
            url.ok_or_else(|| proto::Message::new("watch.notify_url is no http or https address.", "Correct it in the configuration."))?;
        Ok(Self { http: crate::http::client(ca_file)?, url })
    }

    /// Tells it, however often that takes within ten minutes; whether it was taken.
    pub async fn tell(&self, notice: &Notice) -> bool {
        let body = serde_json::to_vec(notice).unwrap_or_default();
        let host = self.url.host_str().unwrap_or_default();
        let mut pauses = AGAIN.into_iter();
        loop {
            let post = self.http.post(self.url.clone()).header("content-type", "application/json").body(body.clone()).send();
            let (passes, why) = match tokio::time::timeout(DEADLINE, post).await {
                Ok(Ok(answer)) if answer.status().is_success() => {
                    info!(event = "notified", what = notice.event.as_str(), host, "{}", notice.text);
                    return true;
                }
                Ok(Ok(answer)) => {
                    let status = answer.status();
                    (status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429), format!("it answers {}", status.as_u16()))
                }
                Ok(Err(error)) => {
                    (true, if error.is_connect() { "no connection".to_owned() } else { "the connection was lost".to_owned() })
                }
                Err(_) => (true, format!("no answer within {} s", DEADLINE.as_secs())),
            };
            let Some(pause) = pauses.next().filter(|_| passes) else {
                warn!(event = "not-notified", what = notice.event.as_str(), host, "{why}; told here only: {}", notice.text);
                return false;
            };
            warn!(event = "not-notified", what = notice.event.as_str(), host, again_s = pause, "{why}");
            tokio::time::sleep(Duration::from_secs(pause)).await;
        }
    }
}
