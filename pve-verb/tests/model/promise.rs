//! What may happen on that host, and what must hold whatever does: the promise as properties that the checker looks for in every state.

use pve_verb::operation::End;
use pve_verb::promise::{self, Due, Ended, Event, Fresh, Sight, Stage, Stored, Turn};
use stateright::{Model, Property};

use crate::rules::{Action, Rules};
use crate::world::{Answer, Id, Kept, Left, Record, Rung, SLOTS, Spool, Worker, World, ask};

/// A host with these rules, on which so much may happen.
#[derive(Clone)]
pub(crate) struct Promise {
    pub(crate) rules: Rules,
    pub(crate) left: Left,
}

impl Promise {
    /// One event of a worker, with what it does to the host; none where it can't happen.
    fn go(&self, world: &mut World, slot: usize, event: Event, unlucky: bool) -> Option<()> {
        let mut worker = world.workers[slot].clone().filter(|worker| !worker.stuck)?;
        let id = worker.id;
        let stage = (self.rules.after)(worker.stage, event)?;
        if !world.disk_answers {
            // It waits once, and never again.
            worker.without_disk = true;
        }
        let disk = world.disk_answers && !worker.without_disk;
        match event {
            Event::Locked => return self.lock(world, slot, stage, unlucky),
            Event::Settled => {
                let settling = worker.settling.get_or_insert_with(|| world.laid_to_rest_next(disk));
                if !settling.is_empty() {
                    world.workers[slot] = Some(worker);
                    return Some(());
                }
                worker.settling = None;
                world.standing(disk).into_iter().for_each(|other| world.clear(disk, other));
            }
            Event::Fresh => {
                let began = world.intents(disk).is_some_and(|last| last.names(&id)) || world.standing(disk).contains(&id);
                match promise::fresh(&world.stored(disk, id), began) {
                    Fresh::Ran => return None,
                    Fresh::NotLookedUp => {
                        let ran = world.disk.log.contains(&Record::Begun(Box::new(id)));
                        world.truth[id.at()].not_looked_up |= ran || world.disk.stored[id.at()].is_some();
                    }
                    Fresh::Yes => {}
                }
            }
            Event::Preserved => {
                // The unlucky way: tmpfs has room for records, but not for a bundle.
                worker.evidence = Some(match (world.tmpfs_takes && !unlucky, disk) {
                    (_, true) => Rung::Disk,
                    (true, false) => Rung::Tmpfs,
                    (false, false) => Rung::Caller,
                });
            }
            Event::Intended => {
                if !world.append(disk, Record::Begun(Box::new(id))) {
                    return None;
                }
                let truth = &mut world.truth[id.at()];
                // Only a second run of it, which the third property looks for, can find the first one's traces here.
                (truth.begun, truth.observed, truth.told) = (true, false, false);
            }
            Event::Declared => {
                let another_stands = world.disk.operation.is_some_and(|other| other != id);
                if (disk || unlucky) && !another_stands {
                    // The unlucky way: the disk did not answer in time, and took it all the same.
                    world.disk.operation = Some(id);
                }
                let disk = disk && !another_stands;
                if world.tmpfs_takes {
                    world.tmpfs.operation = Some(id);
                } else if !disk {
                    return None;
                }
            }
            Event::Acts => {
                if stage == worker.stage {
                    return None;
                }
                world.broken.acted_without_evidence |= worker.evidence.is_none();
                world.broken.acted_without_intent |= !world.truth[id.at()].begun;
                world.truth[id.at()].acted += 1;
            }
            Event::Refused | Event::Finished => match stage {
                Stage::Closed(Ended::Begun) => {
                    let recorded = world.append(disk, Record::Ended(id, End::Outcome));
                    world.truth[id.at()].observed |= recorded;
                }
                // Its lock went with the stage that refused.
                _ if event == Event::Refused && world.lock == Some(slot) => world.lock = None,
                _ => {}
            },
            Event::Stored => {
                world.store(disk, id, Kept::Receipt);
                world.truth[id.at()].observed |= matches!(world.stored(disk, id), Stored::Ended(Kept::Receipt));
            }
            Event::Cleared => world.clear(disk, id),
            Event::Released => {
                if world.lock == Some(slot) {
                    world.lock = None;
                }
            }
            Event::Captured | Event::Observed => {}
        }
        // What nobody else can see of it is no step of its own.
        worker.stage = (self.rules.after)(stage, Event::Captured).unwrap_or(stage);
        world.workers[slot] = Some(worker);
        Some(())
    }

    fn lock(&self, world: &mut World, slot: usize, stage: Stage, stuck: bool) -> Option<()> {
        let holder = world.lock.and_then(|held| Some((held, world.workers[held].clone()?)));
        let sight = match &holder {
            None => Sight::Free,
            Some((_, worker)) if worker.late => Sight::Late,
            Some(_) => Sight::Lives,
        };
        match ((self.rules.turn)(sight, 0, 0), holder) {
            (Turn::Take, _) => {}
            (Turn::End, Some((held, mut worker))) => {
                world.lock = None;
                world.takeovers = 1;
                if worker.late && stuck {
                    worker.stuck = true;
                    world.workers[held] = Some(worker);
                } else if worker.late {
                    world.gone(held);
                }
            }
            _ => return None,
        }
        world.lock = Some(slot);
        let worker = world.workers[slot].as_mut()?;
        worker.stage = stage;
        Some(())
    }

    /// The next thing that is due for the first of those whom it lays to rest.
    fn settle(&self, world: &mut World, slot: usize) -> Option<()> {
        let mut worker = world.workers[slot].clone().filter(|worker| !worker.stuck)?;
        worker.without_disk |= !world.disk_answers;
        let disk = world.disk_answers && !worker.without_disk;
        let settling = worker.settling.as_mut()?;
        let (id, rest) = settling.first_mut()?;
        match (self.rules.due)(*rest) {
            None => {
                settling.remove(0);
            }
            Some(due) => {
                match due {
                    Due::Store => world.store(disk, *id, Kept::Killed),
                    Due::Tell => {
                        if !world.append(disk, Record::Ended(*id, End::Interrupted)) {
                            return None;
                        }
                        world.truth[id.at()].told = true;
                        world.broken.called_killed_while_it_ran |= world.lives(*id);
                    }
                    Due::Clear => world.clear(disk, *id),
                }
                *rest = rest.after(due);
            }
        }
        world.workers[slot] = Some(worker);
        Some(())
    }

    fn asks(&self, world: &mut World, id: Id) -> Option<()> {
        let front = world.fronts.iter().position(Option::is_none)?;
        world.left.asks -= 1;
        let answer = ask(world, id);
        if matches!(answer, Answer::Killed) {
            world.broken.called_killed_while_it_ran |= world.lives(id);
        }
        if matches!(answer, Answer::Begin | Answer::BeginNotLookedUp) {
            world.fronts[front] = Some(id);
        }
        Some(())
    }

    fn starts(world: &mut World, front: usize) -> Option<()> {
        let id = world.fronts[front]?;
        let slot = world.workers.iter().position(Option::is_none)?;
        world.fronts[front] = None;
        match world.tmpfs.spool[id.at()] {
            // Of many callers one makes the spool; a refused one is taken away first.
            None | Some(Spool::Refused) => {}
            Some(_) => return Some(()),
        }
        world.tmpfs.spool[id.at()] = Some(Spool::Held);
        world.workers[slot] =
            Some(Worker { id, stage: Stage::Asked, late: false, stuck: false, without_disk: false, evidence: None, settling: None });
        Some(())
    }

    fn exits(world: &mut World, slot: usize) -> Option<()> {
        let worker = world.workers[slot].clone().filter(|worker| !worker.stuck)?;
        let word = match worker.stage {
            Stage::Closed(Ended::Refused) => Spool::Refused,
            Stage::Released => Spool::Ended,
            _ => return None,
        };
        world.tmpfs.spool[worker.id.at()] = Some(word);
        world.gone(slot);
        Some(())
    }

    fn power_cut(world: &mut World) {
        let left = std::mem::take(&mut world.tmpfs);
        for id in Id::all() {
            let begun = Record::Begun(Box::new(id));
            world.truth[id.at()].lost |= left.pending.contains(&begun);
        }
        world.workers = [None, None];
        world.fronts = [None; SLOTS];
        world.lock = None;
        world.tmpfs_takes = true;
    }

    /// Whether the next mutation, on a host that answers, tells of everything that was begun and not observed.
    fn next_one_tells(&self, world: &World) -> bool {
        let mut world = well(world);
        world.workers[0] = Some(Worker {
            id: Id(0),
            stage: Stage::Locked,
            late: false,
            stuck: false,
            without_disk: false,
            evidence: None,
            settling: None,
        });
        while world.workers[0].as_ref().is_some_and(|worker| worker.stage == Stage::Locked) {
            if self.settle(&mut world, 0).is_none() && self.go(&mut world, 0, Event::Settled, false).is_none() {
                return false;
            }
        }
        world.truth.iter().all(|truth| !truth.begun || truth.observed || truth.told || truth.lost || truth.not_looked_up)
    }
}

/// The same host, on which nobody is at work and everything answers.
fn well(world: &World) -> World {
    let mut world = world.clone();
    (world.disk_answers, world.tmpfs_takes) = (true, true);
    (0..SLOTS).for_each(|slot| world.gone(slot));
    world
}

impl Model for Promise {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.left.clone())]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.left.asks > 0 {
            actions.extend(Id::all().map(Action::Asks));
        }
        for slot in 0..SLOTS {
            if world.fronts[slot].is_some() {
                actions.push(Action::Starts(slot));
            }
            let Some(worker) = &world.workers[slot] else { continue };
            if worker.stuck {
                actions.push(Action::Vanishes(slot));
                continue;
            }
            actions.extend(Event::ALL.map(|event| Action::Goes(slot, event, false)));
            actions.push(Action::Settles(slot));
            actions.push(Action::Exits(slot));
            actions.push(Action::Goes(slot, Event::Locked, true));
            if !world.disk_answers {
                actions.extend([Event::Preserved, Event::Declared].map(|event| Action::Goes(slot, event, true)));
            }
            let wanted = world.workers.iter().flatten().any(|other| other.stage == Stage::Asked);
            if world.lock == Some(slot) && !worker.late && wanted {
                actions.push(Action::IsLate(slot));
            }
            if world.left.kills > 0 {
                actions.extend([false, true].map(|stuck| Action::IsKilled(slot, stuck)));
            }
        }
        if world.disk_answers && (!world.tmpfs.knows || !world.tmpfs.pending.is_empty()) {
            actions.push(Action::Carries);
        }
        if world.left.disk > 0 {
            actions.push(Action::DiskChanges);
        }
        if world.left.tmpfs > 0 {
            actions.push(Action::TmpfsChanges);
        }
        if world.left.cuts > 0 {
            actions.push(Action::PowerCut);
        }
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        match action {
            Action::Asks(id) => self.asks(&mut world, id)?,
            Action::Starts(front) => Self::starts(&mut world, front)?,
            Action::Goes(slot, event, unlucky) => self.go(&mut world, slot, event, unlucky)?,
            Action::Settles(slot) => self.settle(&mut world, slot)?,
            Action::Exits(slot) => Self::exits(&mut world, slot)?,
            Action::IsKilled(slot, true) => {
                world.left.kills -= 1;
                world.workers[slot].as_mut()?.stuck = true;
            }
            Action::IsKilled(slot, false) => {
                world.left.kills -= 1;
                world.gone(slot);
            }
            Action::Vanishes(slot) => world.gone(slot),
            Action::IsLate(slot) => world.workers[slot].as_mut()?.late = true,
            Action::Carries => world.carry(),
            Action::DiskChanges => {
                world.left.disk -= 1;
                world.disk_answers = !world.disk_answers;
            }
            Action::TmpfsChanges => {
                world.left.tmpfs -= 1;
                world.tmpfs_takes = !world.tmpfs_takes;
            }
            Action::PowerCut => {
                world.left.cuts -= 1;
                Self::power_cut(&mut world);
            }
        }
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no mutation without preserved evidence", |_, world: &World| !world.broken.acted_without_evidence),
            Property::always("no mutation without an intent", |_, world: &World| !world.broken.acted_without_intent),
            Property::always("never two mutations at once", |_, world: &World| {
                world.workers.iter().flatten().filter(|worker| worker.stage == Stage::Acting && !worker.stuck).count() <= 1
            }),
            Property::always("never two mutations for one id", |_, world: &World| {
                world.truth.iter().all(|truth| truth.acted <= 1 || truth.lost || truth.not_looked_up)
            }),
            Property::always("what was begun is observed, or told by the next", |model: &Self, world: &World| model.next_one_tells(world)),
            Property::always("an id that began is never new", |model: &Self, world: &World| {
                let disk_hung = world.left.disk != model.left.disk;
                let mut world = well(world);
                Id::all().all(|id| {
                    let truth = &world.truth[id.at()];
                    // One that was refused behind its intent, and killed before that was stored, is only known by the log: docs/adr/0035.
                    let begun = truth.acted > 0 || (truth.begun && !disk_hung);
                    let excused = truth.lost || truth.not_looked_up;
                    !begun || excused || !matches!(ask(&mut world, id), Answer::Begin | Answer::BeginNotLookedUp)
                })
            }),
            Property::always("nobody is called killed who runs", |_, world: &World| !world.broken.called_killed_while_it_ran),
            Property::sometimes("a mutation ends observed", |_, world: &World| {
                world.truth.iter().any(|truth| truth.acted == 1 && truth.observed)
            }),
            Property::sometimes("both ids act", |_, world: &World| world.truth.iter().all(|truth| truth.acted > 0)),
        ]
        .into_iter()
        .chain(self.left.kills.gt(&0).then(|| {
            Property::sometimes("a killed one is told", |_, world: &World| world.truth.iter().any(|truth| truth.acted == 1 && truth.told))
        }))
        .chain(self.left.kills.gt(&0).then(|| {
            Property::sometimes("a lock is taken over by one that acts", |_, world: &World| {
                world.takeovers > 0 && world.workers.iter().flatten().any(|worker| worker.stage == Stage::Acting && !worker.late)
            })
        }))
        .chain(self.left.disk.gt(&0).then(|| {
            Property::sometimes("evidence is with the caller only", |_, world: &World| {
                world.workers.iter().flatten().any(|worker| worker.stage == Stage::Acting && worker.evidence == Some(Rung::Caller))
            })
        }))
        .chain((self.left.cuts.gt(&0) && self.left.disk.gt(&0)).then(|| {
            // What docs/adr/0018 admits: it said that it could not look it up.
            Property::sometimes("an id that could not be looked up runs twice", |_, world: &World| {
                world.truth.iter().any(|truth| truth.acted == 2)
            })
        }))
        .collect()
    }
}
