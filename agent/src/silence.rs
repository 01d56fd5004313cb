//! Why the devvm gave no answer, and what may be said of a VM that the host calls healthy all the same. Pure.
//!
//! Nobody was set up to ask it, it can't be asked, it does not answer: only the last says something of the guest, and that may be no more
//! than that it still boots. So none of the three is a reason to change a VM which the host calls healthy.

use proto::{Message, Vmid, escape_cut};

use crate::hands::ExecEnd;

/// What is kept of a foreign word.
const WORD: usize = 200;

/// Why there was no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Silence {
    /// The configuration names no devvm.
    Absent,
    /// It shows another host key than the pinned one.
    Changed {
        /// The pinned key's fingerprint.
        pinned: String,
        /// That of the key which it shows.
        shown: String,
    },
    /// It can't be asked: no key, a refused one, no sudo. A guest that boots refuses logins for a while, too.
    Shut(String),
    /// It does not answer: it is off, hangs or boots.
    Mute(String),
}

impl Silence {
    /// What a command's end says; nothing where the command ended as it should.
    pub(crate) fn of(end: &ExecEnd) -> Option<Self> {
        let cut = |text: &str| escape_cut(text.as_bytes(), WORD);
        match end {
            ExecEnd::Exited(0) => None,
            ExecEnd::Absent => Some(Self::Absent),
            ExecEnd::HostKeyChanged { pinned, shown } => Some(Self::Changed { pinned: cut(pinned), shown: cut(shown) }),
            ExecEnd::Refused(why) => Some(Self::Shut(cut(why))),
            // sudo's own word for "not you" is a status like any other: a shell that answers is no guest that hangs.
            ExecEnd::Exited(status) => Some(Self::Shut(format!("its sshd answers, and a command ended with {status}"))),
            ExecEnd::Unreachable(why) | ExecEnd::Lost(why) => Some(Self::Mute(cut(why))),
            ExecEnd::TimedOut => Some(Self::Mute("a command did not end in its time".to_owned())),
            ExecEnd::Signalled(signal) => Some(Self::Mute(format!("a command was ended by {}", escape_cut(signal.as_bytes(), 20)))),
        }
    }

    /// Whether it stays so until a person does something: then there is nothing to wait for.
    pub(crate) const fn is_for_good(&self) -> bool {
        matches!(self, Self::Absent | Self::Changed { .. })
    }

    /// What to say where the host calls the VM healthy, and whether that is a good end: only where nobody ever meant to ask the guest, and
    /// that is said. `did` is what was done to the VM before, as a sentence or nothing.
    pub(crate) fn though_healthy(&self, did: &str, vmid: Vmid) -> (bool, Message) {
        let did = if did.is_empty() { String::new() } else { format!("{did} ") };
        let seen = format!("{did}From the host VM {vmid} looks healthy");
        match self {
            Self::Absent => (
                true,
                Message::new(
                    format!("{seen}, in two looks; nobody asked the guest, as the configuration has no [devvm]."),
                    "Try the devvm yourself; its console is in the bundle.",
                ),
            ),
            Self::Changed { .. } => (
                false,
                Message::new(
                    format!("{seen}, and the guest was not asked: {self}."),
                    "Compare it on the devvm's own console, then accept it: breakglass devvm accept FINGERPRINT.",
                ),
            ),
            Self::Shut(_) => (
                false,
                Message::new(
                    format!("{seen}, and the guest can't be asked: {self}."),
                    "Find out why with breakglass doctor; the devvm's console is in the bundle.",
                ),
            ),
            Self::Mute(_) => (
                false,
                Message::new(
                    format!("{seen}, and the devvm does not answer over SSH: {self}."),
                    "Look at its console, in the bundle and live: it may still be booting. reset boots it anew.",
                ),
            ),
        }
    }
}

impl std::fmt::Display for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Absent => f.write_str("the configuration has no [devvm]"),
            Self::Changed { pinned, shown } => write!(f, "it shows the host key {shown}, and {pinned} is pinned"),
            Self::Shut(why) | Self::Mute(why) => f.write_str(why.trim_end_matches('.')),
        }
    }
}
