//! What is known of an id, from what its runs left: in its spool, among the stored ends, in the log. Pure; what is asked costs time where
//! the disk hangs, so each trace is asked for only where the ones before it did not decide.

/// Where traces of an id are.
pub trait Traces {
    /// Its spool.
    type Spool;
    /// Its stored end.
    type End;
    /// What a killed run of it leaves of itself.
    type Trace;

    /// The spool of its worker; none where there is none on tmpfs.
    fn spool(&mut self) -> Option<Self::Spool>;
    /// Whether that worker lives.
    fn lives(&mut self, spool: &Self::Spool) -> bool;
    /// How that worker ended, by its own last word.
    fn last_word(&mut self, spool: Self::Spool) -> LastWord<Self>;
    /// What is stored of its end.
    fn stored(&mut self) -> Stored<Self::End>;
    /// An intent of it, or its operation.json, of which no end is stored.
    fn begun(&mut self) -> Option<Self::Trace>;
}

/// What is stored of an id's end.
#[derive(Debug)]
pub enum Stored<E> {
    /// It ended.
    Ended(E),
    /// It ended, and what is stored of that can't be read.
    Damaged,
    /// Nothing.
    No,
    /// Nothing of this boot; whether there is something of an earlier one, the disk did not say.
    NotOfThisBoot,
}

/// How the spool of a dead worker ends.
#[derive(Debug)]
pub enum LastWord<T: Traces + ?Sized> {
    /// Without a receipt: it was killed.
    None(T::Trace),
    /// With a refusal, which is not stored: the id may be asked again.
    Refused(T::Spool),
    /// With another receipt.
    Ended(T::End),
}

/// What is to become of a request with this id.
#[derive(Debug)]
pub enum Asked<T: Traces + ?Sized> {
    /// It runs: join it.
    Join(T::Spool),
    /// It ended: say that again.
    Replay(T::End),
    /// It ended, and nobody can say how.
    Damaged,
    /// Its worker was killed: tell so.
    Killed(T::Trace),
    /// It was refused before, and may be begun once more.
    Again(T::Spool),
    /// Nobody asked with it.
    New,
    /// Nobody in this boot; of earlier ones the disk does not say.
    NotLookedUp,
}

/// What is to become of a request with this id. Only [`Asked::Again`], [`Asked::New`] and [`Asked::NotLookedUp`] may start a worker.
pub fn asked<T: Traces>(traces: &mut T) -> Asked<T> {
    let dead = match traces.spool() {
        Some(spool) if traces.lives(&spool) => return Asked::Join(spool),
        dead => dead,
    };
    let looked_up = match traces.stored() {
        Stored::Ended(end) => return Asked::Replay(end),
        Stored::Damaged => return Asked::Damaged,
        Stored::No => true,
        Stored::NotOfThisBoot => false,
    };
    let refused = match dead.map(|spool| traces.last_word(spool)) {
        // Its end is in its spool, whatever became of the place where ends are stored.
        Some(LastWord::None(trace)) => return Asked::Killed(trace),
        Some(LastWord::Ended(end)) => return Asked::Replay(end),
        Some(LastWord::Refused(spool)) => Some(spool),
        None => None,
    };
    // Also behind a refusal: it may have run before the host booted, when the disk did not say so yet.
    match (traces.begun(), refused) {
        (Some(trace), _) => Asked::Killed(trace),
        (None, Some(spool)) => Asked::Again(spool),
        (None, None) if looked_up => Asked::New,
        (None, None) => Asked::NotLookedUp,
    }
}

/// Whether a worker that holds the lock may run its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fresh {
    /// It did not run.
    Yes,
    /// Not in this boot; the disk does not say of earlier ones. That is no reason to leave a VM wedged, and is said.
    NotLookedUp,
    /// It ran.
    Ran,
}

/// Whether a worker that holds the lock may run its id: between its front's look and its lock another worker may have.
#[must_use]
pub const fn fresh<E>(stored: &Stored<E>, begun: bool) -> Fresh {
    match stored {
        Stored::Ended(_) | Stored::Damaged => Fresh::Ran,
        // Where its end could be stored nowhere, the log knows.
        Stored::No | Stored::NotOfThisBoot if begun => Fresh::Ran,
        Stored::NotOfThisBoot => Fresh::NotLookedUp,
        Stored::No => Fresh::Yes,
    }
}
