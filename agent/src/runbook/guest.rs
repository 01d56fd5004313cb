//! What the devvm says of itself over SSH: that it answers, since when it is up, how much memory is free. Pure.

/// Below this share of free memory a guest is starved; below the other it is not yet well after a repair.
const STARVED: u64 = 5;

/// Asks for it. Nothing but the kernel's own files: whatever is installed, and however little memory is left.
pub(super) const ASK: &str = "cat /proc/uptime /proc/meminfo";

/// Who uses the memory, for the record; a guest without procps has another `ps`.
pub(super) const WHO: &str =
    "(ps -eo pid,user,rss,stat,comm --sort=-rss 2>/dev/null || ps) | head -20; cat /proc/pressure/memory 2>/dev/null";

/// The kernel ends the process that uses most: its own choice, and the one repair that needs no memory.
pub(super) const END_LARGEST: &str = "echo f > /proc/sysrq-trigger";

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
    use super::Guest;

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
