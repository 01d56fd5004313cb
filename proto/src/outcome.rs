//! How a request ended: the exit codes, and the two sentences that go with each.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The end of a request. 1–9: nothing was sent to the VM. 10–19: the VM may have changed. The two are never mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The wanted state was observed.
    Done,
    /// Not in the grammar, or an id that belongs to another request.
    RefusedRequest,
    /// This key may not, a grant is missing or bad, or a rate limit holds.
    RefusedPolicy,
    /// Another mutation is in progress, or PVE holds a lock.
    RefusedBusy,
    /// Evidence or intent could not be made durable anywhere.
    RefusedEvidence,
    /// Proved impossible or harmful.
    RefusedPrecondition,
    /// The host is not set up, the forced arguments are bad, or we are not root.
    RefusedHost,
    /// Attempted, and the observed state is not the wanted one.
    Failed,
    /// Attempted, and the state could not be observed in time, or the worker was killed.
    Unknown,
    /// A bug; the message says whether the VM was touched.
    Internal,
}

impl Outcome {
    /// All ten.
    pub const ALL: [Self; 10] = [
        Self::Done,
        Self::RefusedRequest,
        Self::RefusedPolicy,
        Self::RefusedBusy,
        Self::RefusedEvidence,
        Self::RefusedPrecondition,
        Self::RefusedHost,
        Self::Failed,
        Self::Unknown,
        Self::Internal,
    ];

    /// The process's exit status.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::RefusedRequest => 2,
            Self::RefusedPolicy => 3,
            Self::RefusedBusy => 4,
            Self::RefusedEvidence => 5,
            Self::RefusedPrecondition => 6,
            Self::RefusedHost => 7,
            Self::Failed => 10,
            Self::Unknown => 11,
            Self::Internal => 70,
        }
    }

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::RefusedRequest => "refused-request",
            Self::RefusedPolicy => "refused-policy",
            Self::RefusedBusy => "refused-busy",
            Self::RefusedEvidence => "refused-evidence",
            Self::RefusedPrecondition => "refused-precondition",
            Self::RefusedHost => "refused-host",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Internal => "internal",
        }
    }

    /// Whether nothing was sent to the VM.
    pub const fn is_refusal(self) -> bool {
        matches!(self.exit_code(), 1..=9)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Two sentences: what happened, and what to do about it. Both are full sentences for a person on a phone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// What happened.
    pub what: String,
    /// What to do about it.
    #[serde(rename = "do")]
    pub next: String,
}

impl Message {
    /// Both sentences.
    pub fn new(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { what: what.into(), next: next.into() }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.what, self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_the_contracts() {
        let table: Vec<_> = Outcome::ALL.into_iter().map(|o| (o.exit_code(), serde_json::to_string(&o).unwrap())).collect();
        assert_eq!(
            table.iter().map(|(n, s)| format!("{n} {}", s.trim_matches('"'))).collect::<Vec<_>>(),
            [
                "0 done",
                "2 refused-request",
                "3 refused-policy",
                "4 refused-busy",
                "5 refused-evidence",
                "6 refused-precondition",
                "7 refused-host",
                "10 failed",
                "11 unknown",
                "70 internal"
            ]
        );
        assert!(Outcome::ALL.into_iter().all(|o| o.exit_code() != 255 && serde_json::to_string(&o).unwrap() == format!("\"{o}\"")));
    }
}
