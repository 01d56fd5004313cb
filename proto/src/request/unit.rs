//! `unit`s: the only free text in a request, percent-encoded, counted before decoding, without control characters.

use serde::{Deserialize, Serialize};
use std::fmt;

use super::Why;

/// Free text of 1 to `MOST` units. What it holds is decoded: valid UTF-8 without control characters, otherwise as the caller chose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Unit<const MOST: usize>(String);

/// An actor.
pub type Unit64 = Unit<64>;
/// A reason.
pub type Unit200 = Unit<200>;

const fn is_plain(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b',' | b':')
}

impl<const MOST: usize> Unit<MOST> {
    /// The decoded text. It is the caller's: escape it before a person sees it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text as it travels.
    pub fn encoded(&self) -> String {
        self.0.bytes().map(|b| if is_plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
    }

    /// Cuts a person's or a model's free text down to what the grammar can carry: control characters become spaces, the end is
    /// dropped on a character's boundary. None where nothing is left.
    pub fn from_free_text(text: &str) -> Option<Self> {
        let mut kept = String::new();
        let mut units = 0;
        for c in text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }) {
            units += c.len_utf8();
            if units > MOST {
                break;
            }
            kept.push(c);
        }
        Self::try_from(kept).ok()
    }

    /// Reads the value that begins at `offset` of `word`.
    pub(super) fn read(word: &str, offset: usize) -> Result<Self, (usize, Why)> {
        let value = word.as_bytes().get(offset..).unwrap_or_default();
        let too_many = Why::Value(if MOST == 64 { "an actor has 1 to 64 characters" } else { "a reason has 1 to 200 characters" });
        if value.is_empty() {
            return Err((offset, too_many));
        }
        let mut decoded = Vec::new();
        let mut at = 0;
        let mut units = 0;
        while let Some(&b) = value.get(at) {
            units += 1;
            if units > MOST {
                return Err((offset + at, too_many));
            }
            if is_plain(b) {
                decoded.push(b);
                at += 1;
            } else if b == b'%' {
                let hex = |n: usize| value.get(at + n).and_then(|b| char::from(*b).to_digit(16));
                let (Some(high), Some(low)) = (hex(1), hex(2)) else {
                    return Err((offset + at, Why::Value("a percent sign is followed by two hex digits")));
                };
                decoded.push((high * 16 + low) as u8);
                at += 3;
            } else {
                return Err((offset + at, Why::Value("other characters than A-Z a-z 0-9 . _ - , : are written as %XX")));
            }
        }
        let text = String::from_utf8(decoded).map_err(|_| (offset, Why::Value("the decoded text is not UTF-8")))?;
        if text.chars().any(char::is_control) {
            return Err((offset, Why::Value("the decoded text has a control character")));
        }
        Ok(Self(text))
    }
}

impl<const MOST: usize> TryFrom<String> for Unit<MOST> {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if (1..=MOST).contains(&text.len()) && !text.chars().any(char::is_control) {
            Ok(Self(text))
        } else {
            Err(format!("\"{}\" is not 1 to {MOST} bytes of text without control characters", crate::escape_cut(text.as_bytes(), 80)))
        }
    }
}

impl<const MOST: usize> From<Unit<MOST>> for String {
    fn from(unit: Unit<MOST>) -> Self {
        unit.0
    }
}

impl<const MOST: usize> fmt::Display for Unit<MOST> {
    /// Escaped: it goes to a person.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::escape(self.0.as_bytes()))
    }
}
