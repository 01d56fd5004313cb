//! A host in the model: what lies on disk and on tmpfs, who holds the lock, which workers live, and what became of each id.
//!
//! Coarser than the real one in one way: what the shipped code does behind one lock, or with one rename, is one step.

use pve_verb::operation::{End, LastIntent, Mark, Named};
use pve_verb::promise::{Asked, LastWord, Rest, Stage, Stored, Traces};

/// A request id. There are two, and any caller may use either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id(pub u8);

/// How many ids.
pub(crate) const IDS: usize = 2;
/// How many workers and fronts at once.
pub(crate) const SLOTS: usize = 2;

impl Id {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..IDS as u8).map(Self)
    }

    pub(crate) fn at(self) -> usize {
        usize::from(self.0)
    }
}

impl Named<Self> for Id {
    fn is_of(&self, id: &Self) -> bool {
        self == id
    }
}

/// A record of the log, as far as it matters here.
pub(crate) type Record = Mark<Id, Id>;
/// What the log says of intents.
pub(crate) type Intents = Option<LastIntent<Id>>;

/// An end as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kept {
    /// With its receipt.
    Receipt,
    /// Somebody stored that it was killed.
    Killed,
}

/// What survives a power cut.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Disk {
    pub(crate) log: Vec<Record>,
    pub(crate) operation: Option<Id>,
    pub(crate) stored: [Option<Kept>; IDS],
}

/// What does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tmpfs {
    /// Whether anybody of this boot has seen where the disk's log ends.
    pub(crate) knows: bool,
    /// Records that the disk does not have yet.
    pub(crate) pending: Vec<Record>,
    pub(crate) operation: Option<Id>,
    pub(crate) stored: [Option<Kept>; IDS],
    pub(crate) spool: [Option<Spool>; IDS],
}

/// A spool of a worker that is there, or of one that is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Spool {
    /// Its worker holds the file's lock.
    Held,
    /// Its worker was killed.
    Silent,
    /// It ends with a refusal.
    Refused,
    /// It ends with another receipt.
    Ended,
}

/// On which rung the evidence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rung {
    Disk,
    Tmpfs,
    Caller,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Worker {
    pub(crate) id: Id,
    pub(crate) stage: Stage,
    /// Past its deadline.
    pub(crate) late: bool,
    /// Killed, and in state D: it keeps what it holds, and does nothing any more.
    pub(crate) stuck: bool,
    /// A disk that was late once is not asked again by the same worker.
    pub(crate) without_disk: bool,
    pub(crate) evidence: Option<Rung>,
    /// Whom it has yet to lay to rest.
    pub(crate) settling: Option<Vec<(Id, Rest)>>,
}

/// What became of an id: not on the host, only in this model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Truth {
    /// An intent of it was durable.
    pub(crate) begun: bool,
    /// How many workers may have acted with it.
    pub(crate) acted: u8,
    /// Somebody looked what came of it, and the caller or the record has that.
    pub(crate) observed: bool,
    /// A record says that it was killed.
    pub(crate) told: bool,
    /// Its intent was on tmpfs only (its answer said so), and the host lost its power.
    pub(crate) lost: bool,
    /// It had ended or begun before the host booted, and a worker ran it that could not look that up, and said so (docs/adr/0018).
    pub(crate) not_looked_up: bool,
}

/// What must never be; each is a sentence of the promise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Broken {
    pub(crate) acted_without_evidence: bool,
    pub(crate) acted_without_intent: bool,
    pub(crate) called_killed_while_it_ran: bool,
}

/// How much may still happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Left {
    pub(crate) asks: u8,
    pub(crate) kills: u8,
    pub(crate) cuts: u8,
    pub(crate) disk: u8,
    pub(crate) tmpfs: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) disk: Disk,
    pub(crate) disk_answers: bool,
    pub(crate) tmpfs: Tmpfs,
    pub(crate) tmpfs_takes: bool,
    pub(crate) lock: Option<usize>,
    /// How often the lock was taken over.
    pub(crate) takeovers: u8,
    pub(crate) workers: [Option<Worker>; SLOTS],
    /// Fronts that have looked and are about to start a worker.
    pub(crate) fronts: [Option<Id>; SLOTS],
    pub(crate) truth: [Truth; IDS],
    pub(crate) broken: Broken,
    pub(crate) left: Left,
}

fn fold(before: Intents, records: &[Record]) -> Intents {
    records.iter().cloned().fold(before, |last, record| LastIntent::after(last, Some(record)))
}

impl World {
    pub(crate) fn new(left: Left) -> Self {
        Self {
            disk: Disk::default(),
            disk_answers: true,
            tmpfs: Tmpfs { knows: true, ..Tmpfs::default() },
            tmpfs_takes: true,
            lock: None,
            takeovers: 0,
            workers: [None, None],
            fronts: [None; SLOTS],
            truth: Default::default(),
            broken: Broken::default(),
            left,
        }
    }

    /// Where the log ends on disk is seen, and what is on tmpfs carried there. What was written while nobody knew that end goes into
    /// repair records, in the same order.
    pub(crate) fn carry(&mut self) {
        let pending = std::mem::take(&mut self.tmpfs.pending);
        self.disk.log.extend(pending);
        self.tmpfs.knows = true;
        for id in Id::all() {
            if let Some(kept) = self.tmpfs.stored[id.at()] {
                self.disk.stored[id.at()] = Some(kept);
            }
        }
    }

    /// Whether a record could be made durable.
    pub(crate) fn append(&mut self, disk: bool, record: Record) -> bool {
        if disk {
            self.carry();
            self.disk.log.push(record);
        } else if self.tmpfs_takes {
            self.tmpfs.pending.push(record);
        } else {
            return false;
        }
        true
    }

    /// What the log says of intents, to who may ask the disk or not.
    pub(crate) fn intents(&mut self, disk: bool) -> Intents {
        if disk && !self.tmpfs.knows {
            self.carry();
        }
        let seen = if self.tmpfs.knows { fold(None, &self.disk.log) } else { None };
        fold(seen, &self.tmpfs.pending)
    }

    pub(crate) fn stored(&self, disk: bool, id: Id) -> Stored<Kept> {
        match (self.tmpfs.stored[id.at()], disk) {
            (Some(kept), _) => Stored::Ended(kept),
            (None, true) => self.disk.stored[id.at()].map_or(Stored::No, Stored::Ended),
            (None, false) => Stored::NotOfThisBoot,
        }
    }

    pub(crate) fn store(&mut self, disk: bool, id: Id, kept: Kept) {
        if self.tmpfs_takes {
            self.tmpfs.stored[id.at()] = Some(kept);
        }
        let there = &mut self.disk.stored[id.at()];
        if disk && (kept == Kept::Receipt || there.is_none()) {
            *there = Some(kept);
        }
    }

    /// What operation.json names.
    pub(crate) fn standing(&self, disk: bool) -> Vec<Id> {
        let on_disk = self.disk.operation.filter(|_| disk);
        on_disk.into_iter().chain(self.tmpfs.operation.filter(|id| on_disk != Some(*id))).collect()
    }

    pub(crate) fn clear(&mut self, disk: bool, id: Id) {
        self.tmpfs.operation = self.tmpfs.operation.filter(|other| *other != id);
        if disk {
            self.disk.operation = self.disk.operation.filter(|other| *other != id);
        }
    }

    /// As `operation::unfinished`.
    fn unfinished(&self, disk: bool, last: &Intents) -> Vec<Id> {
        let mut all: Vec<Id> = last.iter().flat_map(LastIntent::open).copied().collect();
        for id in self.standing(disk) {
            if !all.contains(&id) {
                all.push(id);
            }
        }
        all.retain(|id| !matches!(self.stored(disk, *id), Stored::Ended(Kept::Receipt)));
        all
    }

    /// As the beginning of `operation::lay_to_rest`.
    pub(crate) fn laid_to_rest_next(&mut self, disk: bool) -> Vec<(Id, Rest)> {
        let last = self.intents(disk);
        let mut all = self.unfinished(disk, &last);
        let stored = |id| matches!(self.stored(disk, id), Stored::Ended(_));
        all.extend(last.as_ref().filter(|last| last.end.is_some() && !stored(last.operation)).map(|last| last.operation));
        let rest = |id| {
            let stands = self.standing(disk).contains(&id);
            let end = last.as_ref().filter(|last| last.operation == id).and_then(|last| last.end);
            let told = end == Some(End::Interrupted) || (end == Some(End::Outcome) && !stands);
            Rest { stored: stored(id), told, stands }
        };
        all.into_iter().map(|id| (id, rest(id))).collect()
    }

    /// As `replay::begun`.
    pub(crate) fn begun(&mut self, disk: bool, id: Id) -> bool {
        let holder = self.lock.and_then(|slot| self.workers[slot].as_ref()).map(|worker| worker.id);
        let last = self.intents(disk);
        let killed = self.unfinished(disk, &last).contains(&id) && holder != Some(id);
        killed || last.is_some_and(|last| last.operation == id && last.end.is_some())
    }

    /// The process is gone, and what it held is free.
    pub(crate) fn gone(&mut self, slot: usize) {
        let Some(worker) = self.workers[slot].take() else { return };
        if self.lock == Some(slot) {
            self.lock = None;
        }
        let spool = &mut self.tmpfs.spool[worker.id.at()];
        if *spool == Some(Spool::Held) {
            *spool = Some(Spool::Silent);
        }
    }

    pub(crate) fn lives(&self, id: Id) -> bool {
        self.workers.iter().flatten().any(|worker| worker.id == id && !worker.stuck)
    }
}

/// The traces of an id, to the shipped [`pve_verb::promise::asked`].
pub(crate) struct LookUp<'a> {
    pub(crate) world: &'a mut World,
    pub(crate) id: Id,
}

impl Traces for LookUp<'_> {
    type Spool = Spool;
    type End = Kept;
    type Trace = ();

    fn spool(&mut self) -> Option<Spool> {
        self.world.tmpfs.spool[self.id.at()]
    }

    fn lives(&mut self, spool: &Spool) -> bool {
        *spool == Spool::Held
    }

    fn last_word(&mut self, spool: Spool) -> LastWord<Self> {
        match spool {
            Spool::Held | Spool::Silent => LastWord::None(()),
            Spool::Refused => LastWord::Refused(spool),
            Spool::Ended => LastWord::Ended(Kept::Receipt),
        }
    }

    fn stored(&mut self) -> Stored<Kept> {
        self.world.stored(self.world.disk_answers, self.id)
    }

    fn begun(&mut self) -> Option<()> {
        self.world.begun(self.world.disk_answers, self.id).then_some(())
    }
}

/// What a caller who asks with this id gets, by the shipped rules.
pub(crate) fn ask(world: &mut World, id: Id) -> Answer {
    match pve_verb::promise::asked(&mut LookUp { world, id }) {
        Asked::Join(_) => Answer::Joined,
        Asked::Replay(Kept::Receipt) | Asked::Damaged => Answer::Ended,
        Asked::Replay(Kept::Killed) | Asked::Killed(()) => Answer::Killed,
        Asked::Again(_) | Asked::New => Answer::Begin,
        Asked::NotLookedUp => Answer::BeginNotLookedUp,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    Joined,
    Ended,
    Killed,
    Begin,
    BeginNotLookedUp,
}
