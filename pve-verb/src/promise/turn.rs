//! Whose turn it is: what who wants the mutation lock does about who has it. Asked behind the gate, so one caller at a time.

/// How the lock looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sight {
    /// Nobody has it.
    Free,
    /// Its holder lives and has time left.
    Lives,
    /// Its holder is past its deadline, and there or not.
    Late,
    /// Its holder is gone, and its file is still locked: it died a moment ago, or something that hangs has a copy of its descriptor.
    Gone,
    /// Whoever has it can't be told: it is letting go, or was killed a moment ago.
    Nameless,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Turn {
    /// It is ours.
    Take,
    /// Look again in a moment.
    Wait,
    /// Make sure that its holder can't act again; then replace the lock and look again.
    End,
    /// Somebody else's: refuse.
    Busy,
}

/// How often one caller may take it over.
const TAKEOVERS: usize = 3;
/// How often a lock without a name is looked at.
pub const LOOKS: u32 = 20;
/// How often one whose holder is gone is looked at: whoever lets it go by itself needs a moment, and is not taken over.
const LOOKS_AT_GONE: u32 = 3;

/// What to do about this sight, after so many takeovers and so many looks at a lock without a living name.
#[must_use]
pub const fn turn(sight: Sight, taken_over: usize, looks: u32) -> Turn {
    match sight {
        Sight::Free => Turn::Take,
        Sight::Gone if looks < LOOKS_AT_GONE => Turn::Wait,
        Sight::Late | Sight::Gone if taken_over < TAKEOVERS => Turn::End,
        Sight::Nameless if looks < LOOKS => Turn::Wait,
        Sight::Lives | Sight::Late | Sight::Gone | Sight::Nameless => Turn::Busy,
    }
}
