//! How often a key may mutate, and capture: counts in /run, on CLOCK_BOOTTIME, so that neither a clock jump nor a reboot's
//! wall clock opens or shuts the door. Pure but for reading and writing its one small file, under a lock of its own: captures count
//! too, and they hold no other.
//!
//! A model's key that runs wild uses up its own allowance, never a person's: counts are for each key.

use crate::config::Limits;
use crate::deadline;
use crate::flock::Flocked;
use crate::host::path;
use proto::{KeyName, Verb};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

const HOUR_MS: u64 = 3_600_000;
const MINUTE_MS: u64 = 60_000;

/// What takes a bundle and changes nothing, and is no `forensics`. Each has a count of its own, so that none of them, called in a loop,
/// stands in the way of another: whoever shares its key can still ask for the verb that helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// A dry run, of whichever verb.
    Dry,
    /// A call of this verb that ended without an intent.
    Call(Verb),
}

impl Idle {
    /// Its count's name: a key's name holds no space.
    fn of(self, key: &KeyName) -> String {
        match self {
            Self::Dry => format!("dry-run {key}"),
            Self::Call(verb) => format!("{verb} {key}"),
        }
    }
}

/// Milliseconds of CLOCK_BOOTTIME at which each key mutated, and captured.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Rates {
    #[serde(default)]
    mutations: BTreeMap<KeyName, Vec<u64>>,
    #[serde(default)]
    forensics: BTreeMap<KeyName, Vec<u64>>,
    #[serde(default)]
    idle: BTreeMap<String, Vec<u64>>,
}

impl Rates {
    /// What is known; a damaged file counts as nothing known, for a count must never lock anyone out.
    pub fn load() -> Self {
        Self::load_at(Path::new(path::RUN))
    }

    /// Looks at the counts and changes them as one act: of two that come at once, the second sees the first.
    ///
    /// # Errors
    /// Where the change could not be kept; what `with` gave is lost with it.
    pub fn update<T>(with: impl FnOnce(&mut Self) -> T) -> std::io::Result<T> {
        Self::update_at(Path::new(path::RUN), with)
    }

    fn load_at(run: &Path) -> Self {
        std::fs::read(run.join("rates.json")).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    fn update_at<T>(run: &Path, with: impl FnOnce(&mut Self) -> T) -> std::io::Result<T> {
        let lock = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(run.join("rates.lock"))?;
        let until = Instant::now() + deadline::COUNTS;
        // Polled, because a blocking flock has no deadline.
        while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() >= until {
                return Err(std::io::Error::other("the counts were held by somebody else for too long"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _lock = Flocked::new(lock);
        let mut rates = Self::load_at(run);
        let told = with(&mut rates);
        let hidden = run.join(format!("rates.json.{}", std::process::id()));
        std::fs::write(&hidden, serde_json::to_vec(&rates)?)?;
        std::fs::rename(&hidden, run.join("rates.json"))?;
        Ok(told)
    }

    /// Whether this key may mutate now; else how long until it may.
    pub fn mutation_wait(&self, key: &KeyName, limits: &Limits, now_ms: u64) -> Option<Duration> {
        let past = self.mutations.get(key).map_or(&[][..], Vec::as_slice);
        let by_interval = past.iter().max().map(|last| last + u64::from(limits.min_interval_s) * 1000);
        wait(past, limits.mutations_per_hour, HOUR_MS, now_ms)
            .max(by_interval.and_then(|at| at.checked_sub(now_ms)).filter(|ms| *ms > 0).map(Duration::from_millis))
    }

    /// Whether this key may capture now; else how long until it may.
    pub fn forensics_wait(&self, key: &KeyName, limits: &Limits, now_ms: u64) -> Option<Duration> {
        wait(self.forensics.get(key).map_or(&[][..], Vec::as_slice), limits.forensics_per_minute, MINUTE_MS, now_ms)
    }

    /// Whether this key may do this once more; else how long until it may. The limit is that of captures.
    pub fn idle_wait(&self, what: Idle, key: &KeyName, limits: &Limits, now_ms: u64) -> Option<Duration> {
        wait(self.idle.get(&what.of(key)).map_or(&[][..], Vec::as_slice), limits.forensics_per_minute, MINUTE_MS, now_ms)
    }

    /// Counts what changed nothing.
    pub fn count_idle(&mut self, what: Idle, key: &KeyName, now_ms: u64) {
        count(self.idle.entry(what.of(key)).or_default(), MINUTE_MS, now_ms);
    }

    /// Counts a mutation that reached intent.
    pub fn count_mutation(&mut self, key: &KeyName, now_ms: u64) {
        count(self.mutations.entry(key.clone()).or_default(), HOUR_MS, now_ms);
    }

    /// Counts a capture.
    pub fn count_forensics(&mut self, key: &KeyName, now_ms: u64) {
        count(self.forensics.entry(key.clone()).or_default(), MINUTE_MS, now_ms);
    }
}

/// The wait until fewer than `most` of `past` lie within the window.
fn wait(past: &[u64], most: u32, window: u64, now: u64) -> Option<Duration> {
    let mut recent: Vec<u64> = past.iter().copied().filter(|at| at + window > now).collect();
    recent.sort_unstable();
    let over = recent.len().checked_sub(usize::try_from(most).unwrap_or(usize::MAX))?;
    // Where the limit is 0 nothing ever frees a place; say the whole window.
    let frees = recent.get(over).copied().unwrap_or(now);
    Some(Duration::from_millis(frees + window - now))
}

fn count(past: &mut Vec<u64>, window: u64, now: u64) {
    past.retain(|at| at + window > now);
    past.push(now);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { mutations_per_hour: 3, min_interval_s: 10, forensics_per_minute: 2 };

    fn key(name: &str) -> KeyName {
        name.parse().unwrap()
    }

    #[test]
    fn a_key_is_held_by_its_own_count_alone() {
        let mut rates = Rates::default();
        for at in [0, 20_000, 40_000] {
            assert_eq!(rates.mutation_wait(&key("model"), &LIMITS, at), None);
            rates.count_mutation(&key("model"), at);
        }
        assert_eq!(rates.mutation_wait(&key("model"), &LIMITS, 60_000), Some(Duration::from_millis(HOUR_MS - 60_000)));
        assert_eq!(rates.mutation_wait(&key("person"), &LIMITS, 60_000), None);
        assert_eq!(rates.mutation_wait(&key("model"), &LIMITS, HOUR_MS), None);
    }

    #[test]
    fn two_mutations_keep_their_distance() {
        let mut rates = Rates::default();
        rates.count_mutation(&key("a"), 1_000);
        assert_eq!(rates.mutation_wait(&key("a"), &LIMITS, 4_000), Some(Duration::from_millis(7_000)));
        assert_eq!(rates.mutation_wait(&key("a"), &LIMITS, 11_000), None);
    }

    #[test]
    fn of_many_that_count_at_once_none_is_lost() {
        let run = tempfile::tempdir().unwrap();
        let most = Limits { forensics_per_minute: 20, ..LIMITS };
        let let_in = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        let update = || {
                            Rates::update_at(run.path(), |rates| {
                                let free = rates.forensics_wait(&key("a"), &most, 5).is_none();
                                if free {
                                    rates.count_forensics(&key("a"), 5);
                                }
                                free
                            })
                        };
                        // Where another was off the processor with the lock in its hand, nothing was counted.
                        let free = (0..50).find_map(|_| update().ok());
                        let_in.fetch_add(free.unwrap().into(), std::sync::atomic::Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(let_in.into_inner(), 20);
        assert!(Rates::load_at(run.path()).forensics_wait(&key("a"), &most, 5).is_some());
    }

    #[test]
    fn captures_have_a_count_of_their_own() {
        let mut rates = Rates::default();
        rates.count_forensics(&key("a"), 0);
        rates.count_forensics(&key("a"), 1);
        assert_eq!(rates.forensics_wait(&key("a"), &LIMITS, 2), Some(Duration::from_millis(MINUTE_MS - 2)));
        assert_eq!(rates.mutation_wait(&key("a"), &LIMITS, 2), None);
        assert_eq!(rates.forensics_wait(&key("a"), &LIMITS, MINUTE_MS), None);
    }

    #[test]
    fn what_changes_nothing_has_a_count_for_each_key_and_kind() {
        let mut rates = Rates::default();
        for at in [0, 1] {
            assert_eq!(rates.idle_wait(Idle::Dry, &key("a"), &LIMITS, at), None);
            rates.count_idle(Idle::Dry, &key("a"), at);
            rates.count_idle(Idle::Call(Verb::Start), &key("a"), at);
        }
        let full = Some(Duration::from_millis(MINUTE_MS - 2));
        assert_eq!(rates.idle_wait(Idle::Dry, &key("a"), &LIMITS, 2), full);
        assert_eq!(rates.idle_wait(Idle::Call(Verb::Start), &key("a"), &LIMITS, 2), full);
        assert_eq!(rates.idle_wait(Idle::Call(Verb::Cycle), &key("a"), &LIMITS, 2), None, "what helps is not held by it");
        assert_eq!(rates.idle_wait(Idle::Dry, &key("b"), &LIMITS, 2), None);
        assert_eq!(rates.forensics_wait(&key("a"), &LIMITS, 2), None);
        assert_eq!(rates.mutation_wait(&key("a"), &LIMITS, 2), None);
        assert_eq!(rates.idle_wait(Idle::Dry, &key("a"), &LIMITS, MINUTE_MS), None);
    }
}
