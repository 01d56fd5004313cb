//! Times, their least, median and most, and the tables that are printed of them: Markdown, as `docs/performance.md` has it.

use std::fmt;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::Result;
use lab::error::{Context, Error};

/// Times of one thing, in milliseconds, in the order in which they were taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times(Vec<f64>);

impl Times {
    /// None yet.
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    /// Another one.
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1e3);
    }

    /// The time that this part of them does not exceed: 0.5 is the median. Not a number where there are none.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // of a few thousand at most
        let at = ((sorted.len() as f64 * part).ceil() as usize).max(1) - 1;
        sorted.get(at).copied().unwrap_or(f64::NAN)
    }

    /// The median.
    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The median of the ratios, pair by pair: both were taken by turns.
    pub(crate) fn over(&self, other: &Self) -> f64 {
        Self(self.0.iter().zip(&other.0).map(|(own, other)| own / other).collect()).median()
    }
}

/// Milliseconds as people read them.
pub(crate) fn ms(value: f64) -> String {
    match value {
        v if v.is_nan() => "–".to_owned(),
        v if v < 10.0 => format!("{v:.2} ms"),
        v if v < 1e3 => format!("{v:.0} ms"),
        v => format!("{:.2} s", v / 1e3),
    }
}

/// A table, and what is to be said below it.
#[derive(Debug)]
pub(crate) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    below: Vec<String>,
}

impl Table {
    /// An empty one with these columns.
    pub(crate) fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new(), below: Vec::new() }
    }

    /// One of times, whose first column says what was timed.
    pub(crate) fn of_times(what: &'static str) -> Self {
        Self::new(&[what, "runs", "least", "median", "most"])
    }

    /// A row.
    pub(crate) fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.to_vec());
    }

    /// A row of times.
    pub(crate) fn times(&mut self, what: &str, times: &Times) {
        let figures = [0.0, 0.5, 1.0].map(|part| ms(times.quantile(part)));
        self.row(&[what.to_owned(), times.0.len().to_string(), figures[0].clone(), figures[1].clone(), figures[2].clone()]);
    }

    /// A ratio that is to be at most, or at least, so much.
    pub(crate) fn target(&mut self, what: &str, ratio: f64, target: Target) {
        let (met, words) = match target {
            Target::AtMost(most) => (ratio <= most, format!("at most {most:.2}")),
            Target::AtLeast(least) => (ratio >= least, format!("at least {least:.2}")),
        };
        let verdict = if met { "met" } else { "missed" };
        self.below.push(format!("{what}: {ratio:.3} (target: {words}; {verdict})"));
    }

    /// A sentence below it.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.below.push(text.into());
    }
}

/// What a ratio is held against.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less.
    AtLeast(f64),
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n| {} |\n|{}", self.head.join(" | "), " --- |".repeat(self.head.len()))?;
        self.rows.iter().try_for_each(|row| writeln!(f, "| {} |", row.join(" | ")))?;
        if !self.below.is_empty() {
            writeln!(f)?;
        }
        self.below.iter().try_for_each(|line| writeln!(f, "- {line}"))
    }
}

/// Runs it from start to end as a caller does who only wants its exit status: the whole process. An exit status but 0 is an error.
pub(crate) fn whole(command: &mut Command) -> Result<Duration> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let began = Instant::now();
    let status = command.status().context(format!("start {name}"))?;
    let took = began.elapsed();
    if status.success() {
        return Ok(took);
    }
    Err(Error::new(format!("{name} {:?} ended with {status}", command.get_args().collect::<Vec<_>>()), "Run it by hand in `lab exec`"))
}

/// `pve-verb` on the host's console with these words.
pub(crate) fn verb(words: &str) -> Command {
    let mut command = Command::new("/usr/sbin/pve-verb");
    command.args(words.split(' ')).current_dir("/");
    command
}

/// The load averages.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// The machine, in one line.
pub(crate) fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<&str> = cpus.lines().filter_map(|line| line.strip_prefix("model name")?.split(": ").nth(1)).collect();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{} CPUs ({}), {} GiB, Linux {}; the VM under QEMU's software emulation. Load average (1, 5, 15 min): {}.",
        models.len(),
        models.first().unwrap_or(&"unknown"),
        kib >> 20,
        kernel.trim(),
        load()
    )
}
