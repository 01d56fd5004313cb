//! `[claude]` and `[budget]` of the configuration, and the credential, which stands in neither.

use std::path::PathBuf;

use proto::Message;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

/// Where the API is, unless told otherwise.
const API: &str = "https://api.anthropic.com";
/// A key is one line.
const MAX_KEY: u64 = 16 << 10;

/// `[claude]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The API; absent: `$ANTHROPIC_BASE_URL`, or the vendor's.
    pub base_url: Option<String>,
    /// The model: an open string.
    pub model: String,
    /// The one that is asked when the first can't answer; empty: none.
    pub fallback_model: String,
    /// The file with the key; absent: `$ANTHROPIC_API_KEY`; neither: the runbook only.
    pub api_key_file: Option<PathBuf>,
    /// The certificates that the API's own has to be signed by; absent: the public ones.
    pub ca_file: Option<PathBuf>,
    /// Whether calls that can change something wait for a person.
    pub autonomy: Autonomy,
}

/// `claude.autonomy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Autonomy {
    /// The model runs everything itself, within the budget.
    #[default]
    Full,
    /// A mutating verb, and a command on the devvm, waits for a person.
    Approve,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            base_url: None,
            model: "claude-opus-5-5".to_owned(),
            fallback_model: "claude-sonnet-5-5".to_owned(),
            api_key_file: None,
            ca_file: None,
            autonomy: Autonomy::Full,
        }
    }
}

/// `[budget]`: for each incident, but the mutations, which are counted over all.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// Answers of the API.
    pub turns: u64,
    /// Tokens read and written, cached or not.
    pub tokens: u64,
    /// Dollars.
    pub usd: f64,
    /// Minutes in which Claude is at work.
    pub minutes: u64,
    /// Mutating verbs by the model in an hour, over all incidents: the buttons keep the rest of the host's 12.
    pub mutations_per_hour: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { turns: 60, tokens: 4_000_000, usd: 20.0, minutes: 60, mutations_per_hour: 6 }
    }
}

/// What the API is told to know us by. Federation (a short-lived token from a projected one, sent as a bearer) gets its variant here.
#[derive(Clone, Debug)]
pub enum Credential {
    /// A Console key.
    Key(SecretString),
}

impl Credential {
    /// The header by which it is sent, and its value.
    pub(super) fn header(&self) -> (&'static str, &str) {
        match self {
            Self::Key(key) => ("x-api-key", key.expose_secret()),
        }
    }
}

impl Settings {
    /// The credential; none: there is no model, and the runbook does it.
    ///
    /// # Errors
    /// A key file is named and can't be used.
    pub fn credential(&self) -> Result<Option<Credential>, Message> {
        use std::io::Read;
        let Some(path) = &self.api_key_file else {
            let key = std::env::var("ANTHROPIC_API_KEY").ok().filter(|key| is_key(key));
            return Ok(key.map(|key| Credential::Key(key.into())));
        };
        let bad = |why: String| {
            Message::new(
                format!("The API key in {} can't be used: {why}.", path.display()),
                "Write the key there, one line, and nothing else.",
            )
        };
        let mut text = String::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(MAX_KEY).read_to_string(&mut text));
        read.map_err(|error| bad(error.to_string()))?;
        let key = text.trim();
        if is_key(key) { Ok(Some(Credential::Key(key.into()))) } else { Err(bad("it holds no key".to_owned())) }
    }

    /// The address of the Messages API.
    ///
    /// # Errors
    /// It is none, or would send the key in the clear to another machine.
    pub fn endpoint(&self) -> Result<reqwest::Url, Message> {
        let base = self.base_url.clone().or_else(|| std::env::var("ANTHROPIC_BASE_URL").ok()).unwrap_or_else(|| API.to_owned());
        let bad = || Message::new("claude.base_url is no https address.", "Correct it in the configuration; http is for loopback only.");
        let url = reqwest::Url::parse(&format!("{}/v1/messages", base.trim_end_matches('/'))).map_err(|_| bad())?;
        let host = url.host_str().unwrap_or_default();
        let local = host == "localhost" || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if url.scheme() == "https" || (url.scheme() == "http" && local) { Ok(url) } else { Err(bad()) }
    }

    /// The models, in the order in which they are asked.
    pub fn models(&self) -> Vec<String> {
        let mut models = vec![self.model.clone()];
        if !self.fallback_model.is_empty() && self.fallback_model != self.model {
            models.push(self.fallback_model.clone());
        }
        models
    }
}

fn is_key(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_graphic())
}

/// Dollars for a million tokens, in and out. A model that nobody here knows costs what the dearest does.
pub(super) fn price(model: &str) -> (f64, f64) {
    match model {
        model if model.contains("haiku") => (0.5, 2.5),
        model if model.contains("sonnet") => (2.0, 10.0),
        _ => (4.0, 20.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_not_sent_in_the_clear() {
        let to = |url: &str| Settings { base_url: Some(url.to_owned()), ..Settings::default() }.endpoint();
        assert_eq!(to("https://api.example/").unwrap().as_str(), "https://api.example/v1/messages");
        assert!(to("http://127.0.0.1:8080").is_ok() && to("http://[::1]:8080").is_ok());
        for bad in ["http://api.example", "http://10.0.0.1", "ftp://x", "api.example", ""] {
            assert!(to(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_file_that_holds_no_key_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let settings = Settings { api_key_file: Some(path.clone()), ..Settings::default() };
        assert!(settings.credential().is_err());
        for (text, good) in [("sk-ant-x\n", true), ("", false), ("two words\n", false), ("a\nb\n", false)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(settings.credential().is_ok(), good, "{text:?}");
        }
        std::fs::write(&path, "sk-ant-x\n").unwrap();
        assert!(!format!("{:?}", settings.credential()).contains("sk-ant"));
    }
}
