//! Floods: what is counted instead of recorded one by one, and the `summary` records that say so (PROTOCOL.md, section 7).
//!
//! Two things are counted. Refusals of a key beyond a thousand an hour; and reads and refusals while the disk does not take what is on
//! tmpfs, so that asking again and again can't fill the memory that a mutation's intent needs. Of each key and kind at most one summary
//! a minute is recorded; what is left over is recorded by the next call after that minute, whoever makes it.

use proto::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

use super::chain::Held;
use super::line::Kind;

/// So many refusals of a key in an hour get a record each.
pub(super) const REFUSALS: u64 = 1_000;
/// With this much of the log on tmpfs only, reads and refusals are counted.
pub(super) const CROWDED: u64 = 4 << 20;
const HOUR_MS: u64 = 3_600_000;
const MINUTE_MS: u64 = 60_000;
const FILE: &str = "audit-floods.json";

/// What is counted, by kind and key.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Floods(BTreeMap<String, Flood>);

#[derive(Debug, Serialize, Deserialize)]
struct Flood {
    of: Kind,
    key_name: String,
    /// CLOCK_BOOTTIME at which the hour of `seen` began.
    hour_ms: u64,
    /// How many came in that hour.
    seen: u64,
    /// CLOCK_BOOTTIME of the first that is counted, or of the last summary: the next one is due a minute later.
    told_ms: u64,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    outcomes: BTreeMap<String, u64>,
}

impl Floods {
    /// What `/run` knows; what can't be read counts as nothing, so that it is recorded.
    pub(super) fn load(held: &Held<'_>) -> Self {
        held.small(FILE).and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Whether it could be kept.
    pub(super) fn store(&self, held: &Held<'_>) -> bool {
        serde_json::to_vec(self).is_ok_and(|text| held.replace(FILE, &text).is_ok())
    }

    /// One more: true where it is counted, and gets no record of its own.
    pub(super) fn counts(&mut self, kind: Kind, facts: &Map<String, Value>, crowded: bool, (now, now_ms): (Timestamp, u64)) -> bool {
        let word = |name: &str| facts.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
        if !matches!(kind, Kind::Refused | Kind::Read) || kind == Kind::Read && !crowded {
            return false;
        }
        if kind == Kind::Refused && !crowded && facts.get("bundle").is_some_and(|bundle| !bundle.is_null()) {
            // It took evidence, so a rate of its own bounds it, and its bundle needs a number.
            return false;
        }
        let key_name = word("key_name");
        let flood = self.0.entry(format!("{kind:?} {key_name}")).or_insert_with(|| Flood {
            of: kind,
            key_name,
            hour_ms: now_ms,
            seen: 0,
            told_ms: 0,
            from: None,
            to: None,
            outcomes: BTreeMap::new(),
        });
        if now_ms.saturating_sub(flood.hour_ms) >= HOUR_MS {
            (flood.hour_ms, flood.seen) = (now_ms, 0);
        }
        flood.seen += 1;
        if !crowded && flood.seen <= REFUSALS {
            return false;
        }
        if flood.from.is_none() {
            flood.from = Some(now);
            flood.told_ms = flood.told_ms.max(now_ms);
        }
        flood.to = Some(now);
        *flood.outcomes.entry(word("outcome")).or_default() += 1;
        true
    }

    /// The facts of the summaries that are due. Afterwards they are told.
    pub(super) fn due(&mut self, now_ms: u64) -> Vec<Map<String, Value>> {
        let mut facts = Vec::new();
        for flood in self.0.values_mut().filter(|f| f.from.is_some() && now_ms.saturating_sub(f.told_ms) >= MINUTE_MS) {
            let (from, to, outcomes) = (flood.from.take(), flood.to.take(), std::mem::take(&mut flood.outcomes));
            flood.told_ms = now_ms;
            let count: u64 = outcomes.values().sum();
            let what = if flood.of == Kind::Read { "reads" } else { "refusals" };
            let record = json!({
                "key_name": flood.key_name, "of": flood.of, "count": count, "from": from, "to": to, "outcomes": outcomes,
                "what": format!("{count} {what} of this key were counted and not recorded one by one"),
            });
            if let Value::Object(record) = record {
                facts.push(record);
            }
        }
        // A key that is quiet, and of which all is told, need not be remembered.
        self.0.retain(|_, f| f.from.is_some() || now_ms.saturating_sub(f.hour_ms) < HOUR_MS);
        facts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(key: &str, outcome: &str) -> Map<String, Value> {
        [("key_name".to_owned(), json!(key)), ("outcome".to_owned(), json!(outcome))].into_iter().collect()
    }

    fn at(ms: u64) -> (Timestamp, u64) {
        (Timestamp::from_unix_ms(1_700_000_000_000 + ms), ms)
    }

    #[test]
    fn a_thousand_refusals_an_hour_get_a_record_each_and_the_rest_one_summary_a_minute() {
        let mut floods = Floods::default();
        let counted = (0..3_000u64).filter(|n| floods.counts(Kind::Refused, &facts("a", "refused-request"), false, at(n * 10))).count();
        assert_eq!(counted, 2_000);
        assert!(!floods.counts(Kind::Refused, &facts("b", "refused-policy"), false, at(31_000)), "another key has a count of its own");
        assert!(floods.due(60_000).is_empty(), "the first that was counted came after 10 s");
        let due = floods.due(75_000);
        assert_eq!((due.len(), &due[0]["count"], &due[0]["key_name"]), (1, &json!(2_000), &json!("a")));
        assert_eq!(due[0]["outcomes"], json!({"refused-request": 2_000}));
        assert!(floods.counts(Kind::Refused, &facts("a", "refused-request"), false, at(76_000)));
        assert!(floods.due(134_000).is_empty(), "one a minute");
        assert_eq!(floods.due(136_000).len(), 1);
        assert!(!floods.counts(Kind::Refused, &facts("a", "refused-request"), false, at(HOUR_MS + 1)), "the next hour");
    }

    #[test]
    fn a_refusal_that_has_evidence_gets_a_record_of_its_own() {
        let mut floods = Floods::default();
        let with = |bundle: Value| {
            let mut facts = facts("a", "refused-precondition");
            facts.insert("bundle".to_owned(), bundle);
            facts
        };
        assert!((0..2_000).all(|n| !floods.counts(Kind::Refused, &with(json!("20261121T003000.123Z-reset-1f0c9a2e")), false, at(n))));
        assert!((0..2_000).any(|n| floods.counts(Kind::Refused, &with(Value::Null), false, at(n))), "without it is counted");
        assert!(floods.counts(Kind::Refused, &with(json!("20261121T003000.123Z-reset-1f0c9a2e")), true, at(1)), "no room");
    }

    #[test]
    fn reads_are_counted_only_where_it_is_crowded_and_mutations_never() {
        let mut floods = Floods::default();
        assert!((0..5_000).all(|n| !floods.counts(Kind::Read, &facts("a", "done"), false, at(n))));
        assert!(floods.counts(Kind::Read, &facts("a", "done"), true, at(6_000)));
        assert!(floods.counts(Kind::Refused, &facts("a", "refused-policy"), true, at(6_000)));
        for kind in [Kind::Intent, Kind::Step, Kind::Outcome, Kind::Review, Kind::Rotate] {
            assert!((0..5_000).all(|n| !floods.counts(kind, &facts("a", "done"), true, at(n))));
        }
    }
}
