//! The guest's console log: which of its lines speak of the guest that runs now?
//!
//! A log file outlives boots and QEMU processes, and its lines carry the guest's uptime at best. So a line counts only where a
//! bound shows that it is of this boot, and recent. Text is the guest's: whoever shows it escapes it.

use super::Evidence;

/// How old a line may be to be news, in seconds.
const RECENT_S: f64 = 900.0;

/// What a boot begins with. Such a line after another means that the other is of an earlier boot.
const BOOTS: [&str; 5] = ["Linux version ", "SeaBIOS ", "GNU GRUB", "Booting `", "BdsDxe: "];

/// The console since the guest's last boot.
pub(super) struct Console {
    /// The artifact that it was read from.
    pub(super) path: &'static str,
    lines: Vec<String>,
    age_s: Option<u64>,
    live: bool,
}

impl Console {
    pub(super) fn read(evidence: &Evidence<'_>) -> Option<Self> {
        let (path, live) = [("console/log.txt", false), ("console/serial.txt", evidence.facts.serial_is_live == Some(true))]
            .into_iter()
            .find(|(path, _)| (evidence.artifact)(path).is_some_and(|bytes| !bytes.is_empty()))?;
        let text = evidence.text(path)?;
        let lines: Vec<&str> = text.lines().collect();
        let boot = lines.iter().rposition(|line| BOOTS.iter().any(|b| line.contains(b))).unwrap_or(0);
        let lines = lines.get(boot..).unwrap_or_default().iter().map(|line| (*line).to_owned()).collect();
        Some(Self { lines, path, age_s: evidence.facts.qemu_age_s, live })
    }

    /// The last line with one of these, of this QEMU process or of a log that does not contradict it.
    pub(super) fn last(&self, needles: &[&str]) -> Option<&str> {
        self.lines
            .iter()
            .rev()
            .find(|l| needles.iter().any(|n| l.contains(n)))
            .map(String::as_str)
            .filter(|l| !self.of_an_earlier_process(l))
    }

    /// The last line with one of these that is news.
    pub(super) fn last_recent(&self, needles: &[&str]) -> Option<&str> {
        self.last(needles).filter(|line| self.is_recent(line))
    }

    /// Whether the guest booted on: it asks for a login after the last line with one of these.
    pub(super) fn went_on(&self, needles: &[&str]) -> bool {
        let at = self.lines.iter().rposition(|l| needles.iter().any(|n| l.contains(n)));
        at.is_some_and(|at| self.lines.iter().skip(at + 1).any(|l| l.contains(" login:") || l.contains("systemd[1]:")))
    }

    /// The guest's uptime can't be above its QEMU's age, so (age of QEMU) - (stamp) is the most that a line's age can be.
    fn is_recent(&self, line: &str) -> bool {
        self.live || matches!((stamp(line), self.age_s), (Some(at), Some(age)) if age as f64 - at <= RECENT_S)
    }

    /// Stamped later than its QEMU has lived.
    fn of_an_earlier_process(&self, line: &str) -> bool {
        matches!((stamp(line), self.age_s), (Some(at), Some(age)) if !self.live && at > age as f64 + 5.0)
    }
}

/// `[ 1234.567890] text` → 1234.56789.
fn stamp(line: &str) -> Option<f64> {
    let (_, rest) = line.split_once('[')?;
    let (number, _) = rest.split_once(']')?;
    number.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0)
}
