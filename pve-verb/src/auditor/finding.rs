//! What is wrong with a log: one of the contract's codes, where, and two sentences. Adjacent findings of one kind are one finding, and
//! of many only the first are kept: a log of a million wrong lines must not need a million findings' memory.

use std::fmt;

use crate::host;

/// How many findings are told one by one.
const TOLD: usize = 20;

/// PROTOCOL.md, section 7. The order is that in which one of several decides the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// Not all of it could be read, so nothing is said of the rest.
    Unreadable,
    /// `head.json` is not the host's.
    ForgedHead,
    /// Somebody holds what the log does not.
    RolledBack,
    /// It ends below its head.
    Truncated,
    /// A number is missing or there twice.
    Reordered,
    /// The numbers are right, a hash or signature is not.
    Edited,
    /// The host had no key.
    Unsigned,
}

impl Code {
    /// The exit status.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Edited => 30,
            Self::Reordered => 31,
            Self::Truncated => 32,
            Self::RolledBack => 33,
            Self::ForgedHead => 34,
            Self::Unreadable => 35,
            Self::Unsigned => 36,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Edited => "edited",
            Self::Reordered => "reordered or spliced",
            Self::Truncated => "truncated",
            Self::RolledBack => "rolled back",
            Self::ForgedHead => "forged head",
            Self::Unreadable => "unreadable",
            Self::Unsigned => "unsigned",
        }
    }

    const fn next(self) -> &'static str {
        match self {
            Self::Edited | Self::Reordered => "Believe neither, and hold them against the journal (journalctl -t pve-verb _UID=0).",
            Self::Truncated => {
                "Look for the lost records in the journal (journalctl -t pve-verb _UID=0) and at whoever writes to this disk."
            }
            Self::RolledBack => "Keep the receipts, and find out who restored or rewrote this log.",
            Self::ForgedHead => "Ask callers for their newest receipts, and verify again with --receipts.",
            Self::Unreadable => "Make it readable, then verify again.",
            Self::Unsigned => "Run `pve-verb check` to see why there is no key, and verify these with --receipts.",
        }
    }
}

/// Which file a line is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A segment, by the number in its name.
    Segment(u64),
    /// `/run/pve-verb/audit-overflow.jsonl`.
    Overflow,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(first) => f.write_str(&host::segment(*first)),
            Self::Overflow => f.write_str("audit-overflow.jsonl"),
        }
    }
}

/// A line: where it stands, and its number in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub(super) place: Place,
    pub(super) line: u64,
    pub(super) seq: u64,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which.
    pub code: Code,
    lines: Option<(At, At)>,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.code.exit_code(), self.code.name())?;
        match &self.lines {
            Some((a, b)) if a == b => write!(f, "line {} of {} (record {}): ", a.line, a.place, a.seq)?,
            Some((a, b)) if a.place == b.place => {
                write!(f, "lines {} to {} of {} (records {} to {}): ", a.line, b.line, a.place, a.seq, b.seq)?
            }
            Some((a, b)) => {
                write!(f, "line {} of {} to line {} of {} (records {} to {}): ", a.line, a.place, b.line, b.place, a.seq, b.seq)?;
            }
            None => {}
        }
        write!(f, "{}. {}", self.what, self.code.next())
    }
}

/// All findings so far.
#[derive(Debug, Default)]
pub struct Findings {
    told: Vec<Finding>,
    untold: u64,
    worst: Option<Code>,
}

impl Findings {
    /// About the log as a whole.
    pub(super) fn add(&mut self, code: Code, what: impl Into<String>) {
        self.push(Finding { code, lines: None, what: what.into() });
    }

    /// About these lines. What touches the last finding of this kind makes that one longer.
    pub(super) fn at(&mut self, code: Code, from: At, to: At, what: impl Into<String>) {
        if let Some(Finding { code: before, lines: Some((_, end)), .. }) = self.told.last_mut()
            && *before == code
            && from.place == end.place
            && from.line <= end.line + 1
        {
            if to.place != end.place || to.line > end.line {
                *end = to;
            }
            return;
        }
        self.push(Finding { code, lines: Some((from, to)), what: what.into() });
    }

    fn push(&mut self, finding: Finding) {
        self.worst = Some(self.worst.map_or(finding.code, |w| w.min(finding.code)));
        if self.told.len() < TOLD {
            self.told.push(finding);
        } else {
            self.untold += 1;
        }
    }

    /// Those that are told one by one.
    pub fn told(&self) -> &[Finding] {
        &self.told
    }

    /// How many more there are.
    pub const fn untold(&self) -> u64 {
        self.untold
    }

    /// What decides the exit status; none where there is no finding.
    pub const fn worst(&self) -> Option<Code> {
        self.worst
    }
}
