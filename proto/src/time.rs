//! Times as everything here writes them: UTC, RFC 3339, milliseconds. Mixed clocks cost the first investigation hours.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A moment in UTC with millisecond precision; on the wire `2026-11-21T00:30:00.123Z`. Years 1970 to 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(u64);

/// 9999-12-31T23:59:59.999Z; a clock beyond it is cut rather than printed with five digits.
const LAST: u64 = 253_402_300_799_999;

impl Timestamp {
    /// From milliseconds since 1970.
    pub const fn from_unix_ms(ms: u64) -> Self {
        Self(if ms > LAST { LAST } else { ms })
    }

    /// Milliseconds since 1970.
    pub const fn unix_ms(self) -> u64 {
        self.0
    }

    /// The form in bundle names, `20261121T003000.123Z`: no colon, so that it is a file name everywhere.
    pub fn compact(self) -> String {
        self.to_string().replace(['-', ':'], "")
    }

    /// Reads [`Self::compact`]'s form, and nothing else.
    pub fn parse_compact(text: &str) -> Option<Self> {
        let b = text.as_bytes();
        if !text.is_ascii() || b.len() != 20 {
            return None;
        }
        let part = |from: usize, to: usize| text.get(from..to);
        let long = format!("{}-{}-{}:{}:{}", part(0, 4)?, part(4, 6)?, part(6, 11)?, part(11, 13)?, part(13, 20)?);
        Self::parse(&long)
    }

    /// Reads `2026-11-21T00:30:00.123Z`, and nothing else.
    pub fn parse(text: &str) -> Option<Self> {
        let b = text.as_bytes();
        let shape = b"dddd-dd-ddTdd:dd:dd.dddZ";
        if b.len() != shape.len() || !b.iter().zip(shape).all(|(c, s)| if *s == b'd' { c.is_ascii_digit() } else { c == s }) {
            return None;
        }
        let number = |from: usize, to: usize| text.get(from..to).and_then(|t| t.parse::<u64>().ok());
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let (hour, minute, second, ms) = (number(11, 13)?, number(14, 16)?, number(17, 19)?, number(20, 23)?);
        if year < 1970 || !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let days = days_before(year, month) + day.checked_sub(1)?;
        let at = Self((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + ms);
        // The 31st of a shorter month would come back as another date.
        (at.to_string() == text).then_some(at)
    }
}

/// Days from 1970-01-01 to the first of this month.
fn days_before(year: u64, month: u64) -> u64 {
    let y = year - 1;
    let leap_days = |y: u64| y / 4 - y / 100 + y / 400;
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let months: u64 = (1..month).map(|m| month_days(m, leap)).sum();
    (year - 1970) * 365 + leap_days(y) - leap_days(1969) + months
}

const fn month_days(month: u64, leap: bool) -> u64 {
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ms, s) = (self.0 % 1000, self.0 / 1000);
        let (days, s) = (s / 86_400, s % 86_400);
        // The proleptic year is found by a guess from the mean year, at most one off.
        let mut year = 1970 + days * 400 / 146_097;
        while days_before(year, 1) > days {
            year -= 1;
        }
        while days_before(year + 1, 1) <= days {
            year += 1;
        }
        let month = (1..=12).rev().find(|m| days_before(year, *m) <= days).unwrap_or(1);
        let day = days - days_before(year, month) + 1;
        write!(f, "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{ms:03}Z", s / 3600, s / 60 % 60, s % 60)
    }
}

impl From<Timestamp> for String {
    fn from(at: Timestamp) -> Self {
        at.to_string()
    }
}

impl TryFrom<String> for Timestamp {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
            .ok_or_else(|| format!("\"{}\" is not a time such as 2026-11-21T00:30:00.123Z", crate::escape_cut(text.as_bytes(), 40)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_220_999_123, "2026-11-21T00:29:59.123Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (LAST, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Timestamp(ms).to_string(), text);
            assert_eq!(Timestamp::parse(text), Some(Timestamp(ms)));
        }
    }

    #[test]
    fn days_of_every_year_round_trip() {
        for day in (0..=LAST / 86_400_000).step_by(7) {
            let at = Timestamp(day * 86_400_000 + day % 86_400_000);
            assert_eq!(Timestamp::parse(&at.to_string()), Some(at));
            assert_eq!(Timestamp::parse_compact(&at.compact()), Some(at));
        }
    }

    #[test]
    fn other_spellings_are_not_times() {
        for bad in [
            "",
            "2026-02-29T00:00:00.000Z",
            "2026-11-21T24:00:00.000Z",
            "2026-11-21 00:00:00.000Z",
            "2026-11-21T00:00:00Z",
            "2026-11-21T00:00:00.000+00:00",
            "2026-11-00T00:00:00.000Z",
            "1969-12-31T00:00:00.000Z",
        ] {
            assert_eq!(Timestamp::parse(bad), None, "{bad}");
        }
        assert_eq!(Timestamp::from_unix_ms(u64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
    }
}
