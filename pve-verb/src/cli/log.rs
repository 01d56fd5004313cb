//! `log …` and `grant …`: what is asked of the record, and of who may add to it.

use clap::{Args, Subcommand};
use proto::{RequestId, Timestamp, Verb};
use std::path::PathBuf;

/// `log …`.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Print the newest head: its number and hash, signed
    Head,
    /// Is the log what this host wrote, all of it, in this order?
    Verify(Verify),
    /// Show records, newest last
    Show(Show),
}

/// `grant …`.
#[derive(Debug, Subcommand)]
pub enum GrantCommand {
    /// What does it say, who signed it, and would it be taken now?
    Inspect {
        /// base64url(JSON).base64url(signature)
        #[arg(value_name = "TEXT")]
        text: String,
    },
}

/// `log verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// What callers kept: answers, receipts, heads, SEQ:HEX
    #[arg(long, value_name = "FILE")]
    pub receipts: Option<PathBuf>,
    /// Check every signature, not only the last
    #[arg(long)]
    pub all: bool,
    /// Public keys or allowed_signers lines, instead of this host's own key
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
}

/// `log show`.
#[derive(Debug, Args)]
pub struct Show {
    /// Only this request
    #[arg(long, value_name = "ID")]
    pub request: Option<RequestId>,
    /// Only this verb
    #[arg(long, value_parser = verb)]
    pub verb: Option<Verb>,
    /// Only this key
    #[arg(long, value_name = "NAME")]
    pub key: Option<String>,
    /// Not before (UTC; 2026-11-21 or 2026-11-21T00:30 will do)
    #[arg(long, value_name = "TIME", value_parser = from)]
    pub since: Option<Timestamp>,
    /// Not after
    #[arg(long, value_name = "TIME", value_parser = to)]
    pub until: Option<Timestamp>,
    /// The lines as they are
    #[arg(long)]
    pub json: bool,
}

fn verb(text: &str) -> Result<Verb, String> {
    text.parse().map_err(|()| "status, forensics, reset, stop, start or cycle".to_owned())
}

fn from(text: &str) -> Result<Timestamp, String> {
    time(text, "1970-01-01T00:00:00.000Z")
}

fn to(text: &str) -> Result<Timestamp, String> {
    time(text, "9999-12-31T23:59:59.999Z")
}

/// A time whose smaller parts may be missing; they are the template's.
fn time(text: &str, template: &str) -> Result<Timestamp, String> {
    let plain = text.strip_suffix('Z').unwrap_or(text).replace(' ', "T");
    let rest = if plain.len() < 10 { "" } else { template.get(plain.len()..).unwrap_or("Z") };
    Timestamp::try_from(format!("{plain}{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_may_be_short() {
        for (text, since) in [
            ("2026-11-21", "2026-11-21T00:00:00.000Z"),
            ("2026-11-21 00:30", "2026-11-21T00:30:00.000Z"),
            ("2026-11-21T00:30:05Z", "2026-11-21T00:30:05.000Z"),
            ("2026-11-21T00:30:05.123Z", "2026-11-21T00:30:05.123Z"),
        ] {
            assert_eq!(from(text).unwrap().to_string(), since);
        }
        assert_eq!(to("2026-11-21").unwrap().to_string(), "2026-11-21T23:59:59.999Z");
        for bad in ["", "yesterday", "2026-13-01", "2026-11-21T00:30:05.123+01:00"] {
            assert!(from(bad).is_err(), "{bad}");
        }
    }
}
