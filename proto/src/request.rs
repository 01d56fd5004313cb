//! The request grammar (PROTOCOL.md, section 2): bytes to [`Request`], once, at the door; and back.
//!
//! Parsing is total: every input gives a request or a [`Rejected`] that names the first offending position. Printing gives the
//! canonical spelling, and reading that gives the same request.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

use crate::{BundleName, RequestId, Sha256Hex, Verb};

mod unit;
pub use unit::{Unit64, Unit200};

/// The longest request.
pub const MAX_REQUEST_BYTES: usize = 4096;
/// The longest grant, in characters.
const MAX_GRANT: usize = 3500;

/// Who is said to act: a claim, recorded as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A person through the agent.
    Human,
    /// Claude.
    Model,
    /// The agent's deterministic runbook.
    Runbook,
    /// An MCP client.
    Mcp,
    /// By hand on the host. Never on the wire.
    Console,
    /// Nothing was claimed.
    #[default]
    Unstated,
}

impl Origin {
    const ON_THE_WIRE: [(&'static str, Self); 4] =
        [("human", Self::Human), ("model", Self::Model), ("runbook", Self::Runbook), ("mcp", Self::Mcp)];
}

/// An audit head that the caller holds: `SEQ:HEX`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    /// The record's number, from 1.
    pub seq: u64,
    /// Its hash.
    pub head: Sha256Hex,
}

impl FromStr for Witness {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (seq, head) = text.split_once(':').ok_or(())?;
        let number: u64 = seq.parse().map_err(|_| ())?;
        if number == 0 || number.to_string() != seq {
            return Err(());
        }
        Ok(Self { seq: number, head: head.parse().map_err(|_| ())? })
    }
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.head)
    }
}

/// A grant as it travels: its characters are checked, its meaning is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant(String);

impl Grant {
    /// The text, `base64url(JSON) "." base64url(SSHSIG)`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Grant {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let good =
            (1..=MAX_GRANT).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if good { Ok(Self(text.to_owned())) } else { Err(()) }
    }
}

/// The options of a request before their places are checked. [`Draft::finish`] checks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the option of its name; PROTOCOL.md, section 2")]
pub struct Draft {
    pub json: bool,
    pub inline: bool,
    pub tar: bool,
    pub bundle: Option<BundleName>,
    pub dry_run: bool,
    pub attach: bool,
    pub request_id: Option<RequestId>,
    pub origin: Origin,
    pub actor: Option<Unit64>,
    pub reason: Option<Unit200>,
    pub witness: Option<Witness>,
    pub grant: Option<Grant>,
}

impl Draft {
    /// The request, where every option is in its place.
    ///
    /// # Errors
    /// An option that does not belong.
    pub fn finish(self, verb: Verb) -> Result<Request, Misplaced> {
        let set = [
            (self.tar, "--tar"),
            (self.bundle.is_some(), "--bundle"),
            (self.dry_run, "--dry-run"),
            (self.attach, "--attach"),
            (self.grant.is_some(), "--grant"),
        ];
        let of_another_verb = set.into_iter().filter(|(set, _)| *set).find_map(|(_, option)| Misplaced::beside(verb, option));
        match of_another_verb.or_else(|| self.at_odds(true).next()) {
            Some(misplaced) => Err(misplaced),
            None => Ok(Request { verb, options: self }),
        }
    }

    /// The options that don't go with the others; of a request that is not `whole` those that nothing which follows could mend.
    fn at_odds(&self, whole: bool) -> impl Iterator<Item = Misplaced> + use<> {
        let rules = [
            (whole && self.inline && !self.json, "--inline", "goes with --json"),
            (self.tar && (self.json || self.inline), "--tar", "goes without --json and --inline"),
            (whole && self.attach && self.request_id.is_none(), "--attach", "goes with --request-id"),
        ];
        rules.into_iter().filter(|(broken, ..)| *broken).map(|(_, option, rule)| Misplaced { option, rule })
    }
}

/// An option that is in the grammar, but not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misplaced {
    /// The option.
    pub option: &'static str,
    /// Where it belongs.
    pub rule: &'static str,
}

impl Misplaced {
    /// An option that belongs to other verbs than this.
    fn beside(verb: Verb, option: &str) -> Option<Self> {
        const FORENSICS: &str = "belongs to forensics";
        const MUTATING: &str = "belongs to reset, stop, start and cycle";
        let (forensics, mutates) = (verb == Verb::Forensics, verb.mutates());
        let rules = [
            ("--tar", forensics, FORENSICS),
            ("--bundle", forensics, FORENSICS),
            ("--dry-run", mutates, MUTATING),
            ("--attach", mutates, MUTATING),
            ("--grant", mutates, MUTATING),
        ];
        rules.into_iter().find(|(known, belongs, _)| *known == option && !belongs).map(|(option, _, rule)| Self { option, rule })
    }
}

/// A request in the grammar. Made by [`Request::parse`] and [`Draft::finish`] only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    verb: Verb,
    options: Draft,
}

/// What is wrong with a rejected request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nothing was said.
    Empty,
    /// More than [`MAX_REQUEST_BYTES`].
    TooLong,
    /// A byte that is not printable ASCII.
    Byte(u8),
    /// A space where a word should begin, or at an end.
    Space,
    /// The first word is none of the six.
    Verb,
    /// A word that is no option.
    Word,
    /// An option's value is not what the grammar has there.
    Value(&'static str),
    /// An option for the second time.
    Twice,
    /// An option that does not belong here.
    Misplaced(Misplaced),
}

/// A request outside the grammar: where, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Offset of the first offending byte, from 0.
    pub position: usize,
    /// What is wrong there.
    pub why: Why,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.why {
            Why::Empty => write!(f, "the request is empty"),
            Why::TooLong => write!(f, "the request is longer than {MAX_REQUEST_BYTES} bytes"),
            Why::Byte(b) => write!(f, "byte 0x{b:02x} is not printable ASCII"),
            Why::Space => write!(f, "exactly one space stands between words, and none at either end"),
            Why::Verb => write!(f, "the first word is not one of the six verbs"),
            Why::Word => write!(f, "this word is not an option"),
            Why::Value(rule) => write!(f, "{rule}"),
            Why::Twice => write!(f, "this option stands there twice"),
            Why::Misplaced(m) => write!(f, "{} {}", m.option, m.rule),
        }
    }
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// [`Rejected`] with the first offending position, for every input that is not in the grammar.
    pub fn parse(line: &[u8]) -> Result<Self, Rejected> {
        let reject = |position, why| Err(Rejected { position, why });
        if line.is_empty() {
            return reject(0, Why::Empty);
        }
        if line.len() > MAX_REQUEST_BYTES {
            return reject(MAX_REQUEST_BYTES, Why::TooLong);
        }
        let (mut draft, mut seen) = (Draft::default(), Vec::new());
        let read = draft.read(line, &mut seen);
        let misplaced = |m: Misplaced| {
            let position = seen.iter().find(|(name, _)| *name == m.option).map_or(0, |(_, at)| *at);
            Rejected { position, why: Why::Misplaced(m) }
        };
        match draft.at_odds(read.is_ok()).map(misplaced).chain(read.err()).min_by_key(|rejected| rejected.position) {
            Some(rejected) => Err(rejected),
            None => draft.finish(read?).map_err(misplaced),
        }
    }

    /// The verb.
    pub const fn verb(&self) -> Verb {
        self.verb
    }

    /// The options; they are all in their places.
    pub const fn options(&self) -> &Draft {
        &self.options
    }
}

impl Draft {
    /// Reads the words, and tells the verb. An option that was `seen` has its position there.
    fn read<'a>(&mut self, line: &'a [u8], seen: &mut Vec<(&'a str, usize)>) -> Result<Verb, Rejected> {
        let reject = |position, why| Err(Rejected { position, why });
        let mut verb = None;
        let mut position = 0;
        for word in line.split(|b| *b == b' ') {
            // A bad byte inside this word comes before anything that is wrong with the word as a whole only if it stands first;
            // positions within a word are the word's own, so the byte is reported where it stands.
            if let Some(n) = word.iter().position(|b| !b.is_ascii_graphic()) {
                return reject(position + n, Why::Byte(word[n]));
            }
            let Ok(text) = std::str::from_utf8(word) else { return reject(position, Why::Word) };
            if text.is_empty() {
                // At the very end the offending byte is the space before.
                return reject(if position == line.len() { position - 1 } else { position }, Why::Space);
            }
            if let Some(verb) = verb {
                let name = text.split_once('=').map_or(text, |(name, _)| name);
                if let Some(misplaced) = Misplaced::beside(verb, name) {
                    return reject(position, Why::Misplaced(misplaced));
                }
                if seen.iter().any(|(n, _)| *n == name) {
                    return reject(position, Why::Twice);
                }
                self.take(text).map_err(|(offset, why)| Rejected { position: position + offset, why })?;
                seen.push((name, position));
            } else {
                verb = Some(text.parse::<Verb>().map_err(|()| Rejected { position, why: Why::Verb })?);
            }
            position += word.len() + 1;
        }
        verb.ok_or(Rejected { position: 0, why: Why::Verb })
    }

    /// Takes one option word; an error carries its offset within the word.
    fn take(&mut self, word: &str) -> Result<(), (usize, Why)> {
        fn value<T: FromStr>(word: &str, offset: usize, rule: &'static str) -> Result<T, (usize, Why)> {
            word.get(offset..).and_then(|v| v.parse().ok()).ok_or((offset, Why::Value(rule)))
        }
        let (name, has_value) = match word.split_once('=') {
            Some((name, _)) => (name, true),
            None => (word, false),
        };
        let at = name.len() + 1;
        match (name, has_value) {
            ("--json", false) => self.json = true,
            ("--inline", false) => self.inline = true,
            ("--tar", false) => self.tar = true,
            ("--dry-run", false) => self.dry_run = true,
            ("--attach", false) => self.attach = true,
            ("--bundle", true) => self.bundle = Some(value(word, at, "this is not a bundle's name")?),
            ("--request-id", true) => self.request_id = Some(value(word, at, "a request id is a UUID in lower case")?),
            ("--origin", true) => {
                let said = word.get(at..).unwrap_or_default();
                let known = Origin::ON_THE_WIRE.into_iter().find(|(w, _)| *w == said);
                self.origin = known.ok_or((at, Why::Value("an origin is human, model, runbook or mcp")))?.1;
            }
            ("--actor", true) => self.actor = Some(Unit64::read(word, at)?),
            ("--reason", true) => self.reason = Some(Unit200::read(word, at)?),
            ("--witness", true) => self.witness = Some(value(word, at, "a witness is SEQ:HEX, as in a receipt's last line")?),
            ("--grant", true) => self.grant = Some(value(word, at, "a grant is 1 to 3500 characters of A-Z a-z 0-9 - _ .")?),
            _ => return Err((0, Why::Word)),
        }
        Ok(())
    }
}

impl fmt::Display for Request {
    /// The canonical spelling: the grammar's order, and percent signs only where they must be.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let o = &self.options;
        write!(f, "{}", self.verb)?;
        for (set, word) in [(o.json, "--json"), (o.inline, "--inline"), (o.tar, "--tar"), (o.dry_run, "--dry-run"), (o.attach, "--attach")]
        {
            if set {
                write!(f, " {word}")?;
            }
        }
        if let Some(bundle) = &o.bundle {
            write!(f, " --bundle={bundle}")?;
        }
        if let Some(id) = &o.request_id {
            write!(f, " --request-id={id}")?;
        }
        if let Some((word, _)) = Origin::ON_THE_WIRE.into_iter().find(|(_, origin)| *origin == o.origin) {
            write!(f, " --origin={word}")?;
        }
        if let Some(actor) = &o.actor {
            write!(f, " --actor={}", actor.encoded())?;
        }
        if let Some(reason) = &o.reason {
            write!(f, " --reason={}", reason.encoded())?;
        }
        if let Some(witness) = &o.witness {
            write!(f, " --witness={witness}")?;
        }
        if let Some(grant) = &o.grant {
            write!(f, " --grant={}", grant.as_str())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
