//! A recording: reading it, what in it can't be the same twice, and how an answer is compared with it.
//!
//! Output is compared line by line after the variable parts are masked on both sides; the exit status exactly; the time by order
//! of magnitude, and rather from below: a stand-in that is quick where the real one is slow would hide the very trouble.

use std::fmt::Write as _;
use std::time::Duration;

/// What was recorded, or what the stand-in did.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) code: String,
    pub(crate) wall: f64,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// One recording.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) line: String,
    pub(crate) recorded: Outcome,
}

/// The exit status of a case that the recorder had to kill.
pub(crate) const HUNG: &str = "KILLED-BY-CAP-TIMEOUT";

impl Case {
    /// Reads a recording; `None` if it is one of the free-form ones.
    pub(crate) fn parse(name: &str, text: &str) -> Option<Case> {
        let (line, rest) = text.strip_prefix("$ ")?.split_once("\nrc=")?;
        let (code, rest) = rest.split_once(" wall=")?;
        let (wall, rest) = rest.split_once("s\n--- stdout\n")?;
        let (stdout, stderr) = rest.split_once("--- stderr\n")?;
        let recorded = Outcome { code: code.to_owned(), wall: wall.parse().ok()?, stdout: stdout.to_owned(), stderr: stderr.to_owned() };
        Some(Case { name: name.to_owned(), line: line.to_owned(), recorded })
    }

    /// The program, its arguments, and its stdin.
    pub(crate) fn command(&self) -> (Vec<String>, String) {
        if let Some(script) = self.line.strip_prefix("bash -c ") {
            return (vec!["bash".to_owned(), "-c".to_owned(), script.to_owned()], String::new());
        }
        let (line, stdin) = self.line.split_once("   <<< '").unwrap_or((&self.line, ""));
        let words = line.split_whitespace().map(str::to_owned).collect();
        (words, stdin.trim_end_matches('\'').replace("\\n", "\n"))
    }

    /// How long the stand-in may take before the case counts as hung: what was recorded, and what a busy machine takes it off the CPU.
    pub(crate) fn limit(&self) -> Duration {
        if self.recorded.code == HUNG { Duration::from_secs(6) } else { Duration::from_secs_f64(self.recorded.wall * 2.0 + 15.0) }
    }

    /// What is different, in words; empty if nothing is.
    pub(crate) fn differences(&self, got: &Outcome) -> String {
        let mut text = String::new();
        if got.code != self.recorded.code {
            let _ = writeln!(text, "exit status {} instead of {}", got.code, self.recorded.code);
        }
        if self.recorded.code != HUNG {
            // Each call of qm costs Perl's load time, recorded on a machine that was sometimes busy with other things.
            let calls = self.line.split_whitespace().filter(|word| word.trim_start_matches("/usr/sbin/") == "qm").count();
            let load = f64::from(u8::try_from(calls).unwrap_or(u8::MAX)) * 0.4;
            let waited = self.recorded.wall > 3.0;
            let parallel = self.line.contains(" & ");
            let least = if waited {
                self.recorded.wall * 0.8 - 0.2
            } else if parallel {
                0.4
            } else {
                load
            };
            if got.wall < least || got.wall > self.limit().as_secs_f64() {
                let _ = writeln!(text, "took {:.2} s, recorded {:.2} s", got.wall, self.recorded.wall);
            }
        }
        for (name, want, have) in [("stdout", &self.recorded.stdout, &got.stdout), ("stderr", &self.recorded.stderr, &got.stderr)] {
            let (want, have) = (mask(want), mask(have));
            if want != have {
                let _ = writeln!(text, "{name} differs (- recorded, + stand-in):");
                want.iter().filter(|line| !have.contains(line)).for_each(|line| text.push_str(&format!("  - {line:?}\n")));
                have.iter().filter(|line| !want.contains(line)).for_each(|line| text.push_str(&format!("  + {line:?}\n")));
                if want.len() == have.len() && text.ends_with("):\n") {
                    text.push_str("  (same lines in another order)\n");
                }
            }
        }
        text
    }
}

/// Counters that only QEMU after 7.2 has, or only a disk that was read already, values that only a booted guest's balloon driver reports, files of PVE's PCI reservation
/// and of `ls` itself: lines that the laboratory has no equal of.
const DROPPED: [&str; 13] = [
    "zone_append",
    "idle_time_ns",
    "free_mem:",
    "freemem:",
    "last_update:",
    "major_page_faults:",
    "minor_page_faults:",
    "mem_swapped_",
    "total_mem:",
    "pci-id-reservations",
    "total 0",
    " .",
    " ..",
];

/// The lines with what varies masked and what is absent here dropped.
fn mask(text: &str) -> Vec<String> {
    let dropped = |line: &str| {
        DROPPED.iter().any(|part| match *part {
            " ." | " .." => line.starts_with('d') && line.ends_with(part),
            part => line.contains(part),
        })
    };
    text.trim_end().lines().filter(|line| !dropped(line)).map(mask_line).collect()
}

fn mask_line(line: &str) -> String {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let line = line.trim_end();
    if digits(line) {
        return "#".to_owned();
    }
    if line.starts_with("srw") || line.starts_with("-rw") {
        // `ls -l`: the time varies, the name and the mode do not.
        let words: Vec<&str> = line.split_whitespace().collect();
        return format!("{} {}", words.first().unwrap_or(&""), words.last().unwrap_or(&""));
    }
    if line.bytes().take(4).filter(|byte| *byte == b'.').count() >= 1 && line.starts_with(|c: char| c.is_ascii_digit()) {
        return "VERSION".to_owned();
    }
    if let Some((key, value)) = line.split_once(": ") {
        let name = key.trim_start();
        let varies = ["mem", "uptime", "pid", "diskread", "diskwrite", "running-qemu", "running-machine"].contains(&name);
        let counter = key.starts_with("\t\t") && digits(value) && !name.starts_with("failed_");
        if varies || counter {
            return format!("{key}: #");
        }
    }
    let mut words: Vec<&str> = line.split(' ').collect();
    if words.contains(&"devvm") && words.last().is_some_and(|last| digits(last) && *last != "0") {
        // The pid in `qm list`.
        words.pop();
        words.push("#");
    }
    let masked: Vec<String> =
        words.iter().enumerate().map(|(at, word)| mask_word(word, at.checked_sub(1).and_then(|at| words.get(at)))).collect();
    masked.join(" ")
}

fn mask_word(word: &str, before: Option<&&str>) -> String {
    if before == Some(&"after") && word.bytes().all(|byte| byte.is_ascii_digit()) {
        return "N".to_owned();
    }
    if let Some((path, _)) = word.split_once(".conf.tmp.") {
        return format!("{path}.conf.tmp.N'");
    }
    word.to_owned()
}
