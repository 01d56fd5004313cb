//! What the devvm says of itself over SSH: that it answers, since when it is up, how much memory is free. Pure.

use crate::hands::ExecEnd;

/// Below this share of free memory a guest is starved; below the other it is not yet well after a repair.
const STARVED: u64 = 5;

/// Asks for it. Nothing but the kernel's own files: whatever is installed, and however little memory is left.
pub(super) const ASK: &str = "cat /proc/uptime /proc/meminfo";

/// Who uses the memory, for the record; a guest without procps has another `ps`.
pub(super) const WHO: &str =
    "(ps -eo pid,user,rss,stat,comm --sort=-rss 2>/dev/null || ps) | head -20; cat /proc/pressure/memory 2>/dev/null";

/// The kernel ends the process that uses most: its own choice, and the one repair that needs no memory.
pub(super) const END_LARGEST: &str = "echo f > /proc/sysrq-trigger";

/// Whether [`END_LARGEST`] has ended a process. A starved guest may take the word and be too slow to say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Killed {
    /// Surely not: the word was not given.
    No,
    /// Nobody knows.
    Perhaps,
    /// The word was given.
    Yes,
}

impl Killed {
    /// What the command's end says.
    pub(super) const fn of(end: Result<(), &ExecEnd>) -> Self {
        match end {
            Ok(()) | Err(ExecEnd::Exited(0)) => Self::Yes,
            // A shell or sudo that says no; from 128 on it was itself ended by a signal, at whatever moment.
            Err(ExecEnd::Exited(1..128)) => Self::No,
            Err(ExecEnd::Unreachable(_) | ExecEnd::Refused(_) | ExecEnd::Absent | ExecEnd::HostKeyChanged { .. }) => Self::No,
            Err(ExecEnd::Exited(_) | ExecEnd::Signalled(_) | ExecEnd::TimedOut | ExecEnd::Lost(_)) => Self::Perhaps,
        }
    }

    /// What was done, as a sentence.
    pub(super) const fn did(self) -> &'static str {
        match self {
            Self::No => "Nothing was changed.",
            Self::Perhaps => "The guest's largest process may have been ended over SSH.",
            Self::Yes => "The guest's largest process was ended over SSH.",
        }
    }
}

/// A devvm that answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guest {
    /// Seconds since it booted.
    pub(super) up_s: u64,
    /// Memory that processes could have, in percent.
    pub(super) free_percent: u64,
}

impl Guest {
    /// Reads the answer to [`ASK`]; nothing where it is none. The devvm may lie: then it is believed about itself alone.
    pub(super) fn read(output: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(output);
        let up = text.lines().next()?.split(['.', ' ']).next()?.parse().ok()?;
        let figure = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok());
        let (total, free) = (figure("MemTotal:")?, figure("MemAvailable:")?);
        let free_percent = free.checked_mul(100)?.checked_div(total)?;
        Some(Self { up_s: up, free_percent: free_percent.min(100) })
    }

    /// Hardly any memory is left.
    pub(super) const fn starved(&self) -> bool {
        self.free_percent < STARVED
    }
}

#[cfg(test)]
mod tests {
    use super::{Guest, Killed};
    use crate::hands::ExecEnd;

    #[test]
    fn only_where_surely_no_process_was_ended_may_one_be_ended_again() {
        let text = String::new;
        let changed = ExecEnd::HostKeyChanged { pinned: text(), shown: text() };
        for end in [ExecEnd::Unreachable(text()), ExecEnd::Refused(text()), ExecEnd::Absent, changed, ExecEnd::Exited(1)] {
            assert_eq!(Killed::of(Err(&end)), Killed::No, "{end:?}");
        }
        for end in [ExecEnd::TimedOut, ExecEnd::Lost(text()), ExecEnd::Signalled(text()), ExecEnd::Exited(137)] {
            assert_eq!(Killed::of(Err(&end)), Killed::Perhaps, "{end:?}");
        }
        assert_eq!(Killed::of(Ok(())), Killed::Yes);
    }

    #[test]
    fn an_answer_is_read_and_anything_else_is_none() {
        let answer = b"5012.52 100.0\nMemTotal:       24000000 kB\nMemFree: 1 kB\nMemAvailable:     240000 kB\n";
        let guest = Guest::read(answer).unwrap();
        assert_eq!((guest.up_s, guest.free_percent, guest.starved()), (5012, 1, true));
        for bad in [&b""[..], b"sh: cat: not found\n", b"12.5 1\nMemTotal: 0 kB\nMemAvailable: 0 kB\n", b"12.5 1\n", b"\xff\xfe"] {
            assert_eq!(Guest::read(bad), None);
        }
    }
}
