//! What the checker may change about the shipped code, and what it may let happen.

use pve_verb::promise::{self, Due, Event, Rest, Sight, Stage, Turn};

use crate::world::Id;

/// What decides: the shipped functions, or one of them with a bug.
#[derive(Clone)]
pub(crate) struct Rules {
    pub(crate) after: fn(Stage, Event) -> Option<Stage>,
    pub(crate) turn: fn(Sight, usize, u32) -> Turn,
    pub(crate) due: fn(Rest) -> Option<Due>,
}

impl Rules {
    /// As shipped.
    pub(crate) fn shipped() -> Self {
        Self { after: Stage::after, turn: promise::turn, due: Rest::due }
    }
}

/// What happens next. Numbers are slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A caller asks with this id.
    Asks(Id),
    /// A front starts the worker that it has decided to start.
    Starts(usize),
    /// A worker goes on with this event, if the rules let it; with the flag it does so the unlucky way.
    Goes(usize, Event, bool),
    /// A worker that settles does the next thing that is due.
    Settles(usize),
    /// A worker ends.
    Exits(usize),
    /// A worker is killed, with the flag in state D.
    IsKilled(usize, bool),
    /// A worker in state D is gone at last.
    Vanishes(usize),
    /// A worker's deadline passes.
    IsLate(usize),
    /// A read comes by: it learns where the log ends, and carries.
    Carries,
    DiskChanges,
    TmpfsChanges,
    PowerCut,
}
