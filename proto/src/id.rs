//! Names and numbers that are checked once, when they are made: after that they are what their type says.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

use crate::{Timestamp, Verb};

/// Makes a string type whose only maker is its check; serde goes through the same check.
macro_rules! checked_string {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                let check: fn(&str) -> bool = $check;
                if check(&text) {
                    Ok(Self(text))
                } else {
                    Err(format!("\"{}\" is not {}", crate::escape_cut(text.as_bytes(), 80), $what))
                }
            }
        }

        impl FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

const fn is_hex(b: u8) -> bool {
    matches!(b, b'0'..=b'9' | b'a'..=b'f')
}

checked_string! {
    /// An idempotency key: a UUID in lower case, `8-4-4-4-12`.
    RequestId, "a UUID in lower case (8-4-4-4-12)", |text| {
        text.len() == 36
            && text.bytes().enumerate().all(|(n, b)| if matches!(n, 8 | 13 | 18 | 23) { b == b'-' } else { is_hex(b) })
    }
}

impl RequestId {
    /// A random (version 4) id from 16 random bytes.
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let mut text = String::with_capacity(36);
        for (n, byte) in bytes.iter().enumerate() {
            if matches!(n, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            text.push_str(&format!("{byte:02x}"));
        }
        Self(text)
    }

    /// The first eight hex digits, as they stand in a bundle's name.
    pub fn short(&self) -> &str {
        self.0.get(..8).unwrap_or_default()
    }
}

checked_string! {
    /// The name that the admin gave a key: `[A-Za-z0-9._-]{1,64}`; or `console:USER`, which only the host itself makes.
    KeyName, "a key name ([A-Za-z0-9._-], 1 to 64 of them)", |text| {
        let name = text.strip_prefix("console:").unwrap_or(text);
        (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    }
}

impl KeyName {
    /// The name of a person at the host's own console. Characters that a key name can't have become `_`.
    pub fn console(user: &str) -> Self {
        let mut name: String =
            user.chars().take(64).map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' }).collect();
        if name.is_empty() {
            name.push('_');
        }
        Self(format!("console:{name}"))
    }

    /// Whether this is a person at the host's own console.
    pub fn is_console(&self) -> bool {
        self.0.starts_with("console:")
    }
}

checked_string! {
    /// A SHA-256 in 64 lower-case hex digits.
    Sha256Hex, "a SHA-256 in 64 lower-case hex digits", |text| text.len() == 64 && text.bytes().all(is_hex)
}

impl Sha256Hex {
    /// 64 zeros: what stands before the first record of a log.
    pub fn zero() -> Self {
        Self("0".repeat(64))
    }

    /// From the digest's bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes.iter().map(|b| format!("{b:02x}")).collect())
    }
}

checked_string! {
    /// A bundle's folder name: `20261121T003000.123Z-cycle-1f0c9a2e`. It can never leave the folder it is looked up in.
    BundleName, "a bundle name (such as 20261121T003000.123Z-cycle-1f0c9a2e)", |text| {
        let mut parts = text.split('-');
        let (Some(at), Some(verb), Some(id), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return false;
        };
        Timestamp::parse_compact(at).is_some() && verb.parse::<Verb>().is_ok() && id.len() == 8 && id.bytes().all(is_hex)
    }
}

impl BundleName {
    /// The name of the bundle that this request makes.
    pub fn new(at: Timestamp, verb: Verb, id: &RequestId) -> Self {
        Self(format!("{}-{verb}-{}", at.compact(), id.short()))
    }

    /// When the bundle was begun.
    pub fn at(&self) -> Option<Timestamp> {
        Timestamp::parse_compact(self.0.split('-').next()?)
    }

    /// The verb for which it was captured.
    pub fn verb(&self) -> Option<Verb> {
        self.0.split('-').nth(1)?.parse().ok()
    }
}

/// A VM's number on PVE: 100 to 999999999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vmid(u32);

impl Vmid {
    /// The devvm.
    pub const DEVVM: Self = Self(102);
}

impl TryFrom<u32> for Vmid {
    type Error = String;
    fn try_from(number: u32) -> Result<Self, String> {
        if (100..=999_999_999).contains(&number) { Ok(Self(number)) } else { Err(format!("{number} is not a VM id (100 to 999999999)")) }
    }
}

impl From<Vmid> for u32 {
    fn from(vmid: Vmid) -> Self {
        vmid.0
    }
}

impl FromStr for Vmid {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        // `+102`, `0102` and ` 102` are other spellings that no VM id of PVE's has.
        match text.parse::<u32>() {
            Ok(number) if number.to_string() == text => Self::try_from(number),
            _ => Err(format!("\"{}\" is not a VM id (100 to 999999999)", crate::escape_cut(text.as_bytes(), 40))),
        }
    }
}

impl fmt::Display for Vmid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_their_folder_are_not_names() {
        for bad in [
            "..",
            "../x",
            "",
            "a/b",
            "20261121T003000.123Z-cycle-1f0c9a2e/..",
            "20261121T003000.123Z-cycle-1F0C9A2E",
            "20261121T003000.123Z-reboot-1f0c9a2e",
            "20261321T003000.123Z-cycle-1f0c9a2e",
        ] {
            assert!(bad.parse::<BundleName>().is_err(), "{bad:?}");
        }
        assert!("20261121T003000.123Z-cycle-1f0c9a2e".parse::<BundleName>().is_ok());
    }

    #[test]
    fn a_vmid_has_one_spelling() {
        for bad in ["", "99", "+102", "0102", " 102", "102 ", "1e3", "4294967398", "1000000000"] {
            assert!(bad.parse::<Vmid>().is_err(), "{bad:?}");
        }
        assert_eq!("102".parse(), Ok(Vmid::DEVVM));
    }

    #[test]
    fn a_forced_key_name_is_never_a_console() {
        assert!(KeyName::console("alice").is_console());
        assert!(!"agent".parse::<KeyName>().unwrap().is_console());
        assert_eq!(KeyName::console("böse\n").as_str(), "console:b_se_");
        for bad in ["", "a b", "a\n", "ä", &"x".repeat(65)] {
            assert!(bad.parse::<KeyName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_are_lower_case_uuids() {
        let id = RequestId::from_random([0xff; 16]);
        assert_eq!(id.as_str(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert!(id.as_str().parse::<RequestId>().is_ok());
        for bad in [
            "FFFFFFFF-ffff-4fff-bfff-ffffffffffff",
            "ffffffffffff4fffbfffffffffffffff",
            "ffffffff-ffff-4fff-bfff-fffffffffffff",
            "ffffffff-ffff-4fff-bfff-ffffffffff\n",
        ] {
            assert!(bad.parse::<RequestId>().is_err(), "{bad:?}");
        }
    }
}
