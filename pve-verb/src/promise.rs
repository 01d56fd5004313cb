//! The promise, as a transition function: who may go from which stage to which, and what is decided from the traces that others left.
//!
//! Pure: no I/O, no clock. The pipeline asks it before it goes on, and a model checker (`tests/model.rs`) asks it everything that could
//! happen: crashes, power cuts, disks that hang and come back, deadlines, two callers with one id, a lock that is taken over.
//!
//! ```text
//! Asked ─ Locked ─ Settled ─ Fresh ─ Captured ─ Preserved ─ Intended ─ Declared ─ Acting ─ Observed
//!   └────────┴────────┴────────┴────────┴───────────┤            └─────────┤                   │
//!                                       Refused, Untouched                 └───────────────  Begun
//!                                                   └───────────── Closed ─ Stored ─ Cleared ──┘
//! ```
//!
//! Types hold the first half already (docs/adr/0002); this holds it to the end, and across requests, which types don't see.

mod ids;
mod rest;
mod turn;

pub use ids::{Asked, Fresh, LastWord, Stored, Traces, asked, fresh};
pub use rest::{Due, Rest};
pub use turn::{LOOKS, Sight, Turn, turn};

/// How far the worker of a mutating request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// It holds nothing yet.
    Asked,
    /// The mutation lock is its own.
    Locked,
    /// Whatever was killed before it, and can be known of now, is told.
    Settled,
    /// Its id did not run, as far as that can be known now.
    Fresh,
    /// Everything was asked.
    Captured,
    /// The evidence is durable on its rung.
    Preserved,
    /// The `intent` record is durable: its id never runs again.
    Intended,
    /// operation.json stands.
    Declared,
    /// It may act on the VM, and may have done so.
    Acting,
    /// What came of it was looked at.
    Observed,
    /// Its last record is made.
    Closed(Ended),
    /// Its end is stored under its id.
    Stored(Ended),
    /// operation.json is gone.
    Cleared,
    /// The lock is free.
    Released,
}

/// What kind of end a record closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ended {
    /// A refusal before any intent: nothing is stored, and the id may be asked again.
    Refused,
    /// A dry run, or nothing had to be done.
    Untouched,
    /// The end of an intent, whatever came of it.
    Begun,
}

/// What a worker did, or is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// It took the lock.
    Locked,
    /// It told of what was killed.
    Settled,
    /// It found that its id did not run.
    Fresh,
    /// It captured.
    Captured,
    /// It preserved.
    Preserved,
    /// Its intent is durable.
    Intended,
    /// Its operation.json stands.
    Declared,
    /// It is about to act.
    Acts,
    /// It looked what came of that.
    Observed,
    /// Its record closes as a refusal.
    Refused,
    /// Its record closes with a verdict.
    Finished,
    /// Its end is stored.
    Stored,
    /// operation.json was taken away.
    Cleared,
    /// It let the lock go.
    Released,
}

impl Event {
    /// All there are, for whoever tries everything.
    pub const ALL: [Self; 14] = [
        Self::Locked,
        Self::Settled,
        Self::Fresh,
        Self::Captured,
        Self::Preserved,
        Self::Intended,
        Self::Declared,
        Self::Acts,
        Self::Observed,
        Self::Refused,
        Self::Finished,
        Self::Stored,
        Self::Cleared,
        Self::Released,
    ];
}

impl Stage {
    /// The stage behind this event; none where it must not happen here.
    #[must_use]
    pub const fn after(self, event: Event) -> Option<Self> {
        Some(match (self, event) {
            (Self::Asked, Event::Locked) => Self::Locked,
            (Self::Locked, Event::Settled) => Self::Settled,
            (Self::Settled, Event::Fresh) => Self::Fresh,
            (Self::Fresh, Event::Captured) => Self::Captured,
            (Self::Captured, Event::Preserved) => Self::Preserved,
            (Self::Preserved, Event::Intended) => Self::Intended,
            (Self::Intended, Event::Declared) => Self::Declared,
            (Self::Declared | Self::Acting, Event::Acts) => Self::Acting,
            (Self::Acting, Event::Observed) => Self::Observed,
            (before, Event::Refused) if before.before_its_intent() => Self::Closed(Ended::Refused),
            (Self::Preserved, Event::Finished) => Self::Closed(Ended::Untouched),
            // Refused behind its own intent, before anything was sent: that is the end of the intent.
            (Self::Intended | Self::Declared, Event::Refused) | (Self::Observed, Event::Finished) => Self::Closed(Ended::Begun),
            (Self::Closed(end @ (Ended::Untouched | Ended::Begun)), Event::Stored) => Self::Stored(end),
            (Self::Stored(Ended::Begun), Event::Cleared) => Self::Cleared,
            // Never between an intent and its stored end: the next mutation would take it for killed.
            (Self::Closed(Ended::Refused) | Self::Stored(Ended::Untouched) | Self::Cleared, Event::Released) => Self::Released,
            _ => return None,
        })
    }

    /// Whether an intent of it may be durable.
    #[must_use]
    pub const fn is_begun(self) -> bool {
        matches!(
            self,
            Self::Intended
                | Self::Declared
                | Self::Acting
                | Self::Observed
                | Self::Closed(Ended::Begun)
                | Self::Stored(Ended::Begun)
                | Self::Cleared
        )
    }

    const fn before_its_intent(self) -> bool {
        matches!(self, Self::Asked | Self::Locked | Self::Settled | Self::Fresh | Self::Captured | Self::Preserved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn along(events: &[Event]) -> Option<Stage> {
        events.iter().try_fold(Stage::Asked, |stage, event| stage.after(*event))
    }

    const TO_EVIDENCE: [Event; 5] = [Event::Locked, Event::Settled, Event::Fresh, Event::Captured, Event::Preserved];

    #[test]
    fn a_mutation_goes_its_way_and_no_stage_of_it_can_be_left_out() {
        let whole = [
            &TO_EVIDENCE[..],
            &[Event::Intended, Event::Declared, Event::Acts, Event::Observed, Event::Finished],
            &[Event::Stored, Event::Cleared, Event::Released],
        ]
        .concat();
        assert_eq!(along(&whole), Some(Stage::Released));
        for left_out in 0..whole.len() {
            let mut less = whole.clone();
            less.remove(left_out);
            assert_eq!(along(&less), (left_out == whole.len() - 1).then_some(Stage::Cleared), "without {:?}", whole[left_out]);
        }
    }

    #[test]
    fn a_refusal_ends_what_did_not_act_and_only_an_intent_has_an_end_to_store() {
        for n in 0..=TO_EVIDENCE.len() {
            let refused = [&TO_EVIDENCE[..n], &[Event::Refused, Event::Released]].concat();
            assert_eq!(along(&refused), Some(Stage::Released));
        }
        let begun = [&TO_EVIDENCE[..], &[Event::Intended, Event::Refused]].concat();
        assert_eq!(along(&begun), Some(Stage::Closed(Ended::Begun)));
        assert_eq!(along(&[&begun[..], &[Event::Released]].concat()), None);
        let acted = [&TO_EVIDENCE[..], &[Event::Intended, Event::Declared, Event::Acts, Event::Refused]].concat();
        assert_eq!(along(&acted), None, "what may have acted is looked at, never refused");
    }
}
