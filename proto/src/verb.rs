//! The six verbs and sets of them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// One of the six words that a breakglass key may say. There is no seventh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// What state is the VM in, and does it look healthy? Writes no bundle.
    Status,
    /// Capture and preserve a full evidence bundle; change nothing.
    Forensics,
    /// Warm reset: the same QEMU process, pending configuration not applied.
    Reset,
    /// Pull the plug (`qm stop`), until no process of the VM is left.
    Stop,
    /// Start a stopped VM, or resume a paused one.
    Start,
    /// Stop, then start: a fresh QEMU process with pending configuration applied.
    Cycle,
}

impl Verb {
    /// All six, in the order in which people are shown them.
    pub const ALL: [Self; 6] = [Self::Status, Self::Forensics, Self::Reset, Self::Stop, Self::Start, Self::Cycle];

    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Forensics => "forensics",
            Self::Reset => "reset",
            Self::Stop => "stop",
            Self::Start => "start",
            Self::Cycle => "cycle",
        }
    }

    /// Whether the verb can change the VM. The verb decides this, never the caller.
    pub const fn mutates(self) -> bool {
        match self {
            Self::Status | Self::Forensics => false,
            Self::Reset | Self::Stop | Self::Start | Self::Cycle => true,
        }
    }

    /// The published bound of the whole verb in milliseconds (PROTOCOL.md, section 9): evidence plus action.
    pub const fn deadline_ms(self) -> u64 {
        match self {
            Self::Status => 3_000,
            Self::Forensics => 15_000,
            Self::Reset => 15_000 + 15_000,
            Self::Stop => 15_000 + 105_000,
            Self::Start => 15_000 + 120_000,
            Self::Cycle => 15_000 + 230_000,
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Verb {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|v| v.as_str() == word).ok_or(())
    }
}

/// A set of verbs: what a key may say, or for which verbs it needs a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct VerbSet(u8);

impl VerbSet {
    /// No verb.
    pub const NONE: Self = Self(0);
    /// All six.
    pub const ALL: Self = Self(0b11_1111);
    /// `read`: the two that change nothing.
    pub const READ: Self = Self(0b00_0011);

    /// Whether the verb is in the set.
    pub const fn contains(self, verb: Verb) -> bool {
        self.0 & (1 << verb as u8) != 0
    }

    /// The verbs of the set, in the order of [`Verb::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Verb> {
        Verb::ALL.into_iter().filter(move |v| self.contains(*v))
    }
}

impl FromIterator<Verb> for VerbSet {
    fn from_iter<I: IntoIterator<Item = Verb>>(verbs: I) -> Self {
        Self(verbs.into_iter().fold(0, |set, v| set | 1 << v as u8))
    }
}

impl fmt::Display for VerbSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ALL => f.write_str("all"),
            Self::NONE => f.write_str("none"),
            _ => {
                for (n, verb) in self.iter().enumerate() {
                    if n > 0 {
                        f.write_str(",")?;
                    }
                    f.write_str(verb.as_str())?;
                }
                Ok(())
            }
        }
    }
}

/// `VERB,…`, `all` or `read`, as they stand in `authorized_keys`. A verb twice, or an empty word, is an error.
impl FromStr for VerbSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => return Ok(Self::ALL),
            "read" => return Ok(Self::READ),
            _ => {}
        }
        let mut set = Self::NONE;
        for word in text.split(',') {
            let verb: Verb = word.parse().map_err(|()| {
                format!("\"{}\" is not one of status, forensics, reset, stop, start, cycle", crate::escape_cut(word.as_bytes(), 40))
            })?;
            if set.contains(verb) {
                return Err(format!("{verb} stands there twice"));
            }
            set = Self(set.0 | 1 << verb as u8);
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_read_and_print_alike() {
        for bits in 1..64 {
            let set = VerbSet(bits);
            assert_eq!(set.to_string().parse::<VerbSet>(), Ok(set));
        }
        assert_eq!("read".parse::<VerbSet>(), Ok([Verb::Status, Verb::Forensics].into_iter().collect()));
        for bad in ["", ",", "status,", "status,status", "Status", "all,read", "reboot", "status stop"] {
            assert!(bad.parse::<VerbSet>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_four_verbs_mutate() {
        let reads: VerbSet = Verb::ALL.into_iter().filter(|v| !v.mutates()).collect();
        assert_eq!(reads, VerbSet::READ);
    }
}
