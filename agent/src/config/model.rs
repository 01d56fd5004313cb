//! `[claude]` and `[budget]`: which model acts, how far it may go alone, and what an incident may cost. The credential is in a file or in the
//! environment, never in the configuration.

use std::path::PathBuf;

use proto::Message;
use secrecy::SecretString;
use serde::Deserialize;

/// No credential is longer.
const MAX_KEY: u64 = 16 * 1024;

/// `[claude]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Claude {
    /// Where the Messages API is; absent: `$ANTHROPIC_BASE_URL`, or the vendor's.
    pub base_url: Option<String>,
    /// The model. Any word: which models there are is the API's to know.
    pub model: String,
    /// The model that goes on where the first one can't; empty: none, the runbook goes on.
    pub fallback_model: String,
    /// The file with the API key; absent: `$ANTHROPIC_API_KEY`, or no key, and then the runbook is all there is.
    pub api_key_file: Option<PathBuf>,
    /// Whether a mutating verb waits for a person.
    pub autonomy: Autonomy,
}

/// `claude.autonomy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Autonomy {
    /// The model runs the mutating verbs itself.
    #[default]
    Full,
    /// Each waits for a person's yes.
    Approve,
}

impl Default for Claude {
    fn default() -> Self {
        Self {
            base_url: None,
            model: "claude-opus-5-5".to_owned(),
            fallback_model: "claude-sonnet-5-5".to_owned(),
            api_key_file: None,
            autonomy: Autonomy::default(),
        }
    }
}

impl Claude {
    /// The API's address, without a slash at its end.
    pub fn address(&self) -> String {
        let set = self.base_url.clone().or_else(|| std::env::var("ANTHROPIC_BASE_URL").ok().filter(|url| !url.is_empty()));
        set.unwrap_or_else(|| "https://api.anthropic.com".to_owned()).trim_end_matches('/').to_owned()
    }

    /// The API key; none where there is none, which is no error.
    ///
    /// # Errors
    /// Its file is named and can't be used. The message never holds any of it.
    pub fn key(&self) -> Result<Option<SecretString>, Message> {
        let Some(file) = &self.api_key_file else {
            return Ok(std::env::var("ANTHROPIC_API_KEY").ok().filter(|key| !key.is_empty()).map(SecretString::from));
        };
        let bad = |why: String| {
            Message::new(
                format!("The API key in {} can't be used: {why}.", file.display()),
                "Correct claude.api_key_file; until then the runbook works.",
            )
        };
        let mut text = zeroize::Zeroizing::new(String::new());
        let read =
            std::fs::File::open(file).and_then(|file| std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX_KEY), &mut text));
        read.map_err(|error| bad(error.to_string()))?;
        match text.trim() {
            key if !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Some(SecretString::from(key))),
            _ => Err(bad("it is not one word".to_owned())),
        }
    }
}

/// `[budget]`: for each incident, but for the last.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// Answers of the model.
    pub turns: u32,
    /// Tokens in and out together.
    pub tokens: u64,
    /// Money.
    pub usd: f64,
    /// Time.
    pub minutes: u64,
    /// Mutating verbs that the model may run, over all incidents: the buttons keep the rest of what the host allows.
    pub mutations_per_hour: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { turns: 60, tokens: 4_000_000, usd: 20.0, minutes: 60, mutations_per_hour: 6 }
    }
}

impl Budget {
    /// Whether it can be kept to.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let money = self.usd.is_finite() && self.usd >= 0.0;
        if money { Ok(()) } else { Err("budget.usd is not an amount of money") }
    }
}
