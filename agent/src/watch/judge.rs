//! Which looks at the VM are news. Pure: samples and times in, decisions out, so that every order of them can be tried.
//!
//! One odd look is looked at again at once, a stall excepted, which two looks a minute apart have shown already. Looks that are all bad and
//! never twice alike, as of a host that is overloaded, are told by their number. What is told is told once; a recovery is two healthy looks;
//! and what comes back within a quarter of an hour is told when that is over, not each time.

use proto::{Code, Timestamp};
use serde::{Deserialize, Serialize};

/// Before an odd look is taken for true it is repeated after this, in milliseconds.
pub(super) const CONFIRM_MS: u64 = 8_000;
/// A look that takes longer is one at a silent host, in milliseconds. `status` itself takes three seconds at most.
pub(super) const LOOK_MS: u64 = 30_000;
/// Looks that a silent host gets before it is told: a link that drops for a minute is no news.
const SILENT_LOOKS: u8 = 3;
/// Bad looks in a row, whatever they are, before the latest is told.
const BAD_LOOKS: u8 = 4;
/// Healthy looks that make a recovery.
const WELL_LOOKS: u8 = 2;
/// The same trouble is told again only after this, in milliseconds.
const QUIET_MS: u64 = 15 * 60 * 1000;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trouble {
    /// The host says so, and signed it.
    Vm(Code),
    /// The host does not answer, or not with a valid receipt.
    HostSilent,
}

/// One look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// All is well.
    Well,
    /// This is wrong.
    Bad(Trouble),
}

/// What follows from a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: look again at the next tick.
    Nothing,
    /// Look again after `CONFIRM_MS`.
    Confirm,
    /// A change for the worse, since then.
    Worse(Trouble, Timestamp),
    /// It is over; what was wrong, since when.
    Better(Trouble, Timestamp),
}

/// What is remembered, over a restart too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// What was told and is not over.
    pub told: Option<(Trouble, Timestamp)>,
    /// Each trouble that was told, and when last: it is quiet about it for a while.
    pub last: Vec<(Trouble, Timestamp)>,
    /// An incident is still to be opened for what was told: another was at work, or none could be opened.
    pub owed: bool,
    /// What is being confirmed.
    #[serde(skip)]
    suspected: Option<Suspicion>,
    /// Healthy looks since.
    #[serde(skip)]
    well: u8,
}

/// Bad looks in a row of which nothing was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Suspicion {
    /// The latest.
    trouble: Trouble,
    /// How many looks in a row it was.
    alike: u8,
    /// When the first bad look was, whatever it showed.
    since: Timestamp,
    /// How many bad looks there were since.
    looks: u8,
}

impl Memory {
    /// Takes a look.
    pub fn see(&mut self, now: Timestamp, look: Look) -> Decision {
        match look {
            Look::Well => {
                self.suspected = None;
                self.well = self.well.saturating_add(1);
                match self.told {
                    Some(_) if self.well < WELL_LOOKS => Decision::Confirm,
                    Some((trouble, since)) => {
                        (self.told, self.owed) = (None, false);
                        Decision::Better(trouble, since)
                    }
                    None => Decision::Nothing,
                }
            }
            Look::Bad(trouble) => {
                self.well = 0;
                if self.told.is_some_and(|(told, _)| told == trouble) {
                    self.suspected = None;
                    return Decision::Nothing;
                }
                let before = self.suspected.unwrap_or(Suspicion { trouble, alike: 0, since: now, looks: 0 });
                let alike = if before.trouble == trouble { before.alike.saturating_add(1) } else { 1 };
                let looks = before.looks.saturating_add(1);
                self.suspected = Some(Suspicion { trouble, alike, since: before.since, looks });
                if alike < needed(trouble) && looks < BAD_LOOKS {
                    return Decision::Confirm;
                }
                let quiet = |at: Timestamp| now.unix_ms().saturating_sub(at.unix_ms()) < QUIET_MS && now >= at;
                if self.last.iter().any(|(last, at)| *last == trouble && quiet(*at)) {
                    return Decision::Nothing;
                }
                self.suspected = None;
                self.told = Some((trouble, before.since));
                self.last.retain(|(last, _)| *last != trouble);
                self.last.push((trouble, now));
                Decision::Worse(trouble, before.since)
            }
        }
    }
}

/// How many looks in a row make it true.
const fn needed(trouble: Trouble) -> u8 {
    match trouble {
        // Two looks a minute apart have shown it.
        Trouble::Vm(Code::BlockStalled) => 1,
        Trouble::HostSilent => SILENT_LOOKS,
        // Somebody else's read of the socket, a start or a backup in progress: these pass by themselves.
        Trouble::Vm(Code::QmpUnavailable | Code::Stopped | Code::Locked | Code::Paused | Code::Interrupted) => 3,
        Trouble::Vm(_) => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn at(second: u64) -> Timestamp {
        Timestamp::from_unix_ms(1_790_000_000_000 + second * 1000)
    }

    const STALL: Look = Look::Bad(Trouble::Vm(Code::BlockStalled));
    const HUNG: Look = Look::Bad(Trouble::Vm(Code::QemuUnresponsive));

    #[test]
    fn a_stall_is_told_at_once_and_once() {
        let mut memory = Memory::default();
        assert_eq!(memory.see(at(0), Look::Well), Decision::Nothing);
        assert_eq!(memory.see(at(60), STALL), Decision::Worse(Trouble::Vm(Code::BlockStalled), at(60)));
        for minute in 2..200 {
            assert_eq!(memory.see(at(minute * 60), STALL), Decision::Nothing);
        }
        assert_eq!(memory.see(at(12_000), Look::Well), Decision::Confirm);
        assert_eq!(memory.see(at(12_008), Look::Well), Decision::Better(Trouble::Vm(Code::BlockStalled), at(60)));
    }

    #[test]
    fn one_odd_look_is_looked_at_again() {
        let mut memory = Memory::default();
        assert_eq!(memory.see(at(0), HUNG), Decision::Confirm);
        assert_eq!(memory.see(at(8), Look::Well), Decision::Nothing);
        assert_eq!(memory.see(at(60), HUNG), Decision::Confirm);
        assert_eq!(memory.see(at(68), HUNG), Decision::Worse(Trouble::Vm(Code::QemuUnresponsive), at(60)));
        assert_eq!(memory.see(at(128), STALL), Decision::Worse(Trouble::Vm(Code::BlockStalled), at(128)), "another trouble is news");
    }

    #[test]
    fn every_wedge_is_told_within_two_minutes_of_looks() {
        for trouble in
            [Code::BlockStalled, Code::QemuUnresponsive, Code::GuestPanicked, Code::GuestUnresponsive, Code::QmpUnavailable, Code::Stopped]
        {
            let looks = u64::from(needed(Trouble::Vm(trouble)));
            // The wedge begins right after a look; a stall shows in the second one only.
            let shown_after = if trouble == Code::BlockStalled { 110 } else { 55 };
            assert!(shown_after + (looks - 1) * (CONFIRM_MS / 1000 + 3) + 3 <= 120, "{trouble}");
        }
    }

    #[test]
    fn a_silent_host_is_told_within_three_minutes_and_a_link_that_drops_for_a_minute_is_not() {
        let looks = u64::from(needed(Trouble::HostSilent));
        assert!(55 + looks * LOOK_MS / 1000 + (looks - 1) * CONFIRM_MS / 1000 <= 180);
        assert!((looks - 1) * (LOOK_MS + CONFIRM_MS) / 1000 > 60, "the last one begins after that minute");
    }

    #[test]
    fn looks_that_are_all_bad_and_never_alike_are_told_once_and_since_the_first() {
        let [hung, slow, silent] = [Trouble::Vm(Code::GuestUnresponsive), Trouble::Vm(Code::PveUnresponsive), Trouble::HostSilent];
        let mut memory = Memory::default();
        for (n, trouble) in [hung, silent, slow].into_iter().enumerate() {
            assert_eq!(memory.see(at(60 + n as u64 * 38), Look::Bad(trouble)), Decision::Confirm);
        }
        assert_eq!(memory.see(at(174), Look::Bad(hung)), Decision::Worse(hung, at(60)));
        let told = (5..200).filter(|n| {
            let look = Look::Bad([hung, silent, slow][*n as usize % 3]);
            matches!(memory.see(at(60 + n * 38), look), Decision::Worse(..))
        });
        assert_eq!(told.count(), 0, "what was told comes back at every third look");
    }

    #[test]
    fn what_flaps_is_told_once_in_a_quarter_of_an_hour() {
        let mut memory = Memory::default();
        let mut told = 0;
        for minute in 0..60 {
            for (second, look) in [(0, STALL), (20, Look::Well), (30, Look::Well)] {
                told += usize::from(matches!(memory.see(at(minute * 60 + second), look), Decision::Worse(..)));
            }
        }
        assert_eq!(told, 4);
    }

    #[test]
    fn a_restart_remembers_what_was_told() {
        let mut memory = Memory::default();
        memory.see(at(0), STALL);
        let mut after: Memory = serde_json::from_str(&serde_json::to_string(&memory).unwrap()).unwrap();
        assert_eq!(after.see(at(90), STALL), Decision::Nothing);
        after.see(at(100), Look::Well);
        assert!(matches!(after.see(at(108), Look::Well), Decision::Better(..)));
    }

    proptest! {
        /// Whatever the order of looks, worse and better alternate for a trouble, and no quarter of an hour has the same one twice.
        #[test]
        fn no_order_of_looks_makes_it_flap(looks in proptest::collection::vec((1_u64..90, 0_usize..5), 0..300)) {
            let kinds = [Look::Well, STALL, HUNG, Look::Bad(Trouble::HostSilent), Look::Well];
            let (mut memory, mut now, mut told) = (Memory::default(), 0, Vec::<(u64, Trouble)>::new());
            for (pause, kind) in looks {
                now += pause;
                if let Decision::Worse(trouble, since) = memory.see(at(now), kinds[kind]) {
                    prop_assert!(since <= at(now));
                    prop_assert!(told.iter().all(|(when, other)| *other != trouble || now - when >= QUIET_MS / 1000));
                    told.push((now, trouble));
                }
            }
        }

        /// Whatever the order of looks, a run of bad ones that is long enough is told, or its latest was within the quarter of an hour.
        #[test]
        fn no_order_of_looks_keeps_it_silent(looks in proptest::collection::vec((1_u64..90, 0_usize..12), 0..300)) {
            let bad = [Code::QemuUnresponsive, Code::GuestUnresponsive, Code::PveUnresponsive, Code::QmpUnavailable, Code::Stopped]
                .map(Trouble::Vm);
            let (mut memory, mut now, mut run, mut told) = (Memory::default(), 0, 0, Vec::<(u64, Trouble)>::new());
            for (pause, kind) in looks {
                now += pause;
                let trouble = if kind == 10 { None } else { Some(bad.get(kind % 6).copied().unwrap_or(Trouble::HostSilent)) };
                if let Decision::Worse(trouble, _) = memory.see(at(now), trouble.map_or(Look::Well, Look::Bad)) {
                    told.push((now, trouble));
                }
                let Some(trouble) = trouble else { run = 0; continue };
                run += 1;
                let lately = told.iter().any(|(when, other)| *other == trouble && now - when < QUIET_MS / 1000);
                prop_assert!(run < u32::from(BAD_LOOKS) || memory.told.is_some() || lately, "{run} bad looks, the latest {trouble:?}");
            }
        }
    }
}
