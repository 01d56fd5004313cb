//! How often somebody may ask: a bucket for each name, and one for each address that fails to log in. Bounded, whoever asks.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many are remembered; beyond, the ones that are full again are forgotten, and then the rest.
const MOST: usize = 10_000;

/// Buckets that fill up with time.
#[derive(Debug)]
pub struct Limit<K> {
    most: f64,
    refill: Duration,
    buckets: Mutex<HashMap<K, (f64, Instant)>>,
}

impl<K: Eq + Hash> Limit<K> {
    /// At most `most` at once, and one more each `refill`.
    pub fn new(most: u32, refill: Duration) -> Self {
        Self { most: most.into(), refill, buckets: Mutex::default() }
    }

    /// Takes one; where there is none, how long to wait for it.
    ///
    /// # Errors
    /// The wait.
    pub fn take(&self, key: K) -> Result<(), Duration> {
        self.take_at(key, Instant::now())
    }

    fn take_at(&self, key: K, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = |left: f64, since: Instant| {
            (left + now.saturating_duration_since(since).as_secs_f64() / self.refill.as_secs_f64()).min(self.most)
        };
        if buckets.len() >= MOST {
            buckets.retain(|_, (left, since)| filled(*left, *since) < self.most);
        }
        if buckets.len() >= MOST {
            buckets.clear();
        }
        let (left, since) = buckets.entry(key).or_insert((self.most, now));
        let have = filled(*left, *since);
        *since = now;
        *left = have;
        if have < 1.0 {
            return Err(self.refill.mul_f64(1.0 - have));
        }
        *left = have - 1.0;
        Ok(())
    }

    /// Whether one could be taken; takes none.
    ///
    /// # Errors
    /// The wait.
    pub fn look(&self, key: &K) -> Result<(), Duration> {
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((left, since)) = buckets.get(key) else { return Ok(()) };
        let have = left + since.elapsed().as_secs_f64() / self.refill.as_secs_f64();
        if have < 1.0 { Err(self.refill.mul_f64(1.0 - have)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_and_fills_up_and_is_one_key_s_own() {
        let limit = Limit::new(3, Duration::from_secs(10));
        let start = Instant::now();
        for _ in 0..3 {
            assert_eq!(limit.take_at("anna", start), Ok(()));
        }
        let wait = limit.take_at("anna", start).unwrap_err();
        assert!(wait > Duration::from_secs(9) && wait <= Duration::from_secs(10), "{wait:?}");
        assert!(limit.look(&"anna").is_err() && limit.look(&"bert").is_ok());
        assert_eq!(limit.take_at("bert", start), Ok(()));
        assert_eq!(limit.take_at("anna", start + Duration::from_secs(10)), Ok(()));
        assert!(limit.take_at("anna", start + Duration::from_secs(11)).is_err());
    }

    #[test]
    fn a_million_addresses_take_bounded_memory() {
        let limit = Limit::new(3, Duration::from_secs(10));
        let now = Instant::now();
        for n in 0..50_000 {
            let _taken = limit.take_at(n, now);
        }
        assert!(limit.buckets.lock().unwrap().len() <= MOST);
    }
}
