//! All incidents of a state folder: opens, lists and resumes them, says which may be removed, and counts the model's mutations over
//! all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::{Message, RequestId, Timestamp};
use rustix::fs::FlockOperation;

use super::event::{By, Line, Task, What};
use super::facts::Facts;
use super::log::{self, Bad, Log};
use super::{Incident, IncidentId, artifacts, now};
use crate::bound::{Bound, size};
use crate::mirror::Mirror;
use crate::redact::redact;

const HOUR_MS: u64 = 3_600_000;

/// The incidents of a state folder.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    bound: Arc<Bound>,
    mirror: Mirror,
    open: Mutex<BTreeMap<IncidentId, Arc<Incident>>>,
    /// Whose turn it is to take one up. Not `open`, for which every page waits: the log's lock may be a second's wait.
    takes_up: Mutex<()>,
    /// Those that this process has let go of, and how many lines they had: to take such a one up again is no restart.
    let_go: Mutex<BTreeMap<IncidentId, u64>>,
    /// What follows from the logs that this process does not write, by their lengths: they are only ever appended to.
    read: Mutex<BTreeMap<IncidentId, Judged>>,
}

/// How long the log was, what follows from it, and what is wrong with it.
type Judged = (u64, Facts, Option<String>);

/// An incident in a list.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Its id.
    pub id: IncidentId,
    /// What follows from its log.
    pub facts: Facts,
    /// Whether some process writes it now.
    pub open: bool,
    /// Why its log can't be continued, where it can't.
    pub damaged: Option<String>,
}

impl Store {
    /// Opens the folder, making it where it is not there. `serving`: every line goes to standard output too.
    ///
    /// # Errors
    /// The folder can't be made or written.
    pub fn open(state: &Path, keep_bytes: u64, serving: bool) -> Result<Arc<Self>, Message> {
        let folder = state.join("incidents");
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|error| unusable(&folder, &error))?;
        let mirror = if serving { Mirror::stdout() } else { Mirror::default() };
        let bound = Arc::new(Bound::new(state, keep_bytes));
        let (open, takes_up, let_go, read) = (Mutex::default(), Mutex::default(), Mutex::default(), Mutex::default());
        Ok(Arc::new(Self { folder, bound, mirror, open, takes_up, let_go, read }))
    }

    /// Where the log shipper reads.
    pub(crate) fn mirror(&self) -> Mirror {
        self.mirror.clone()
    }

    /// The bound of the state folder.
    pub(crate) fn bound(&self) -> &Bound {
        &self.bound
    }

    fn opened(&self) -> MutexGuard<'_, BTreeMap<IncidentId, Arc<Incident>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn let_go(&self) -> MutexGuard<'_, BTreeMap<IncidentId, u64>> {
        self.let_go.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens an incident: its folder is its first act.
    ///
    /// # Errors
    /// It can't be made; nothing else was done.
    pub fn create(&self, title: &str, by: By, actor: Option<&str>) -> Result<Arc<Incident>, Message> {
        self.retain();
        let id = IncidentId::fresh()?;
        let folder = self.folder.join(id.as_str());
        // Never an existing one: two incidents share nothing.
        let made = self.bound.writes(|| {
            DirBuilder::new().mode(0o700).create(&folder)?;
            Log::create(&folder).inspect_err(|_| unmade(&folder))
        });
        let log = made.map_err(|error| unusable(&folder, &error))?;
        let _the_log_is_synced_by_itself = fs::File::open(&self.folder).and_then(|file| file.sync_all());
        let (mirror, bound) = (self.mirror.clone(), Arc::clone(&self.bound));
        let incident = Incident::around(id.clone(), folder.clone(), log, Facts::default(), artifacts::ROOM, mirror, bound);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let what = What::Opened { title: redact(title).into_owned(), actor: actor.map(str::to_owned), version };
        incident.write(Task(0), by, what).inspect_err(|_| unmade(&folder))?;
        self.opened().insert(id, Arc::clone(&incident));
        Ok(incident)
    }

    /// An incident that this process has open.
    pub fn get(&self, id: &IncidentId) -> Option<Arc<Incident>> {
        self.opened().get(id).map(Arc::clone)
    }

    /// The same by the text of its id.
    pub fn get_by_name(&self, id: &str) -> Option<Arc<Incident>> {
        self.get(&id.parse().ok()?)
    }

    /// Takes up an incident: an open one, or one from before a restart.
    ///
    /// # Errors
    /// Another process has it, it is damaged, or there is none.
    pub fn resume(&self, id: &IncidentId) -> Result<Arc<Incident>, Message> {
        if let Some(incident) = self.get(id) {
            return Ok(incident);
        }
        let _one_at_a_time = self.takes_up.lock().unwrap_or_else(PoisonError::into_inner);
        // Of two at once the second finds what the first has taken up.
        if let Some(incident) = self.get(id) {
            return Ok(incident);
        }
        let folder = self.folder(id).ok_or_else(|| self.none())?;
        let mut facts = Facts::default();
        let (log, torn) = Log::open(&folder, |line| facts.fold(&line)).map_err(|bad| unwritable(&folder, &bad))?;
        let room = artifacts::ROOM.saturating_sub(size(&folder.join("artifacts")));
        // Where it has grown since, another process had it.
        let was_ours = self.let_go().remove(id) == Some(facts.lines);
        // What waited for a person waits no more: whoever asked is gone.
        facts.awaiting.clear();
        facts.commands.clear();
        let incident = Incident::around(id.clone(), folder, log, facts, room, self.mirror.clone(), Arc::clone(&self.bound));
        if torn > 0 {
            incident.write(Task(0), By::Agent, What::Repaired { bytes: torn })?;
        }
        if !was_ours {
            incident.write(Task(0), By::Agent, What::Resumed)?;
        }
        self.opened().insert(id.clone(), Arc::clone(&incident));
        Ok(incident)
    }

    /// The same for the page, which serves others meanwhile.
    ///
    /// # Errors
    /// As [`Store::resume`].
    pub async fn take_up(self: &Arc<Self>, id: &IncidentId) -> Result<Arc<Incident>, Message> {
        let (store, id) = (Arc::clone(self), id.clone());
        let taken = tokio::task::spawn_blocking(move || store.resume(&id)).await;
        taken.unwrap_or_else(|error| Err(Message::new(format!("The incident could not be taken up: {error}."), "Try again.")))
    }

    /// All of them, newest first.
    pub fn list(&self) -> Vec<Summary> {
        let ids = self.ids();
        // What was removed is forgotten here, once a list: asked at each summary it made a list grow with the square of the incidents.
        self.read.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| ids.contains(id));
        self.let_go().retain(|id, _| ids.contains(id));
        let mut all: Vec<Summary> = ids.into_iter().map(|id| self.summary(id)).collect();
        all.sort_by_key(|one| std::cmp::Reverse(one.facts.opened));
        all
    }

    /// Those that a restart interrupted: without an end, or with a mutation whose receipt nobody has fetched; and nobody writes them.
    pub fn unfinished(&self) -> Vec<IncidentId> {
        let interrupted = |one: &Summary| !one.facts.is_over() && !one.open && one.damaged.is_none();
        self.list().into_iter().filter(interrupted).map(|one| one.id).collect()
    }

    /// One of them.
    pub fn one(&self, id: &IncidentId) -> Option<Summary> {
        self.folder(id).map(|_| self.summary(id.clone()))
    }

    /// The incident in which a verb was asked for under this id.
    pub fn of_run(&self, run: &RequestId) -> Option<Summary> {
        self.list().into_iter().find(|one| one.facts.runs.iter().any(|(known, ..)| known == run))
    }

    fn ids(&self) -> BTreeSet<IncidentId> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    fn summary(&self, id: IncidentId) -> Summary {
        if let Some(incident) = self.get(&id) {
            return Summary { id, facts: incident.facts(), open: true, damaged: None };
        }
        let folder = self.folder.join(id.as_str());
        let length = fs::metadata(folder.join(log::NAME)).map_or(0, |meta| meta.len());
        let mut known = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, facts, damaged)) = known.get(&id).filter(|(then, ..)| *then == length) {
            return Summary { open: log::is_written(&folder), id, facts: facts.clone(), damaged: damaged.clone() };
        }
        let mut facts = Facts::default();
        let read = log::lines(&folder, 1, |line, _| facts.fold(&line));
        let damaged = read.err().map(|bad| unwritable(&folder, &bad).what);
        known.insert(id.clone(), (length, facts.clone(), damaged.clone()));
        Summary { open: log::is_written(&folder), id, facts, damaged }
    }

    /// The lines of an incident from number `from`, whoever writes it, each with its text.
    ///
    /// # Errors
    /// There is no such incident, or a line can't be read.
    pub fn lines(&self, id: &IncidentId, from: u64, tell: impl FnMut(Line, &str)) -> Result<(), Message> {
        let folder = self.folder(id).ok_or_else(|| self.none())?;
        log::lines(&folder, from, tell).map_err(|bad| unwritable(&folder, &bad))
    }

    /// An incident's folder, where there is one.
    pub fn folder(&self, id: &IncidentId) -> Option<PathBuf> {
        Some(self.folder.join(id.as_str())).filter(|folder| folder.is_dir())
    }

    fn none(&self) -> Message {
        Message::new("There is no incident of this id.", format!("The ids are the folders of {}.", self.folder.display()))
    }

    /// Where a file of an incident is, by the name that a line says.
    pub fn file(&self, id: &IncidentId, name: &str) -> Option<PathBuf> {
        artifacts::within(&self.folder(id)?, name)
    }

    /// Lets go of what ended, and makes room in the state folder. An open one stays, and so does one that is not over.
    pub fn retain(&self) {
        // Handles that nobody holds any more, of incidents that ended.
        self.opened().retain(|id, incident| {
            let facts = incident.facts();
            let stays = Arc::strong_count(incident) > 1 || facts.ended.is_none();
            if !stays {
                self.let_go().insert(id.clone(), facts.lines);
            }
            stays
        });
        self.bound.make(0);
    }

    /// Takes one of the mutations that the model has in an hour, over all incidents and all processes on this folder.
    ///
    /// # Errors
    /// There is none left, or it can't be counted: then nothing is sent.
    pub fn take_mutation(&self, per_hour: u32) -> Result<(), Message> {
        let path = self.folder.join("mutations");
        let count = || -> io::Result<Result<(), Timestamp>> {
            let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
            let mut text = String::new();
            (&mut file).take(1 << 16).read_to_string(&mut text)?;
            let now = now().unix_ms();
            // A clock that went back leaves times of the future: they count.
            let mut recent: Vec<u64> =
                text.lines().filter_map(|line| line.parse().ok()).filter(|at: &u64| at.saturating_add(HOUR_MS) > now).collect();
            if recent.len() >= per_hour as usize {
                let first = recent.iter().min().copied().unwrap_or(now);
                return Ok(Err(Timestamp::from_unix_ms(first.saturating_add(HOUR_MS))));
            }
            recent.push(now);
            let text: String = recent.iter().map(|at| format!("{at}\n")).collect();
            // Over what is there, and cut off then: on a full disk nothing that was counted is lost.
            file.rewind()?;
            file.write_all(text.as_bytes())?;
            file.set_len(text.len() as u64)?;
            file.sync_data()?;
            Ok(Ok(()))
        };
        match self.bound.writes(count) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(until)) => Err(Message::new(
                format!("The model has used its {per_hour} mutations of this hour, over all incidents."),
                format!("A person's buttons still work; the next one is free at {until}."),
            )),
            Err(error) => Err(unusable(&path, &error)),
        }
    }
}

/// Takes away what a beginning left that failed.
fn unmade(folder: &Path) {
    let _it_is_removed_later = fs::remove_dir_all(folder);
}

/// Whether a folder is what a failed beginning left: no line, and nobody who writes one.
pub(crate) fn is_empty(folder: &Path) -> bool {
    match fs::metadata(folder.join(log::NAME)) {
        Ok(meta) => meta.len() == 0 && !log::is_written(folder),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// The lock of an incident that may be removed: nobody writes it, and it is over, or can't be continued.
pub(crate) fn removable(folder: &Path) -> Option<fs::File> {
    let file = fs::File::open(folder.join(log::NAME)).ok()?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    let mut facts = Facts::default();
    let read = log::lines(folder, 1, |line, _| facts.fold(&line));
    (read.is_err() || facts.is_over()).then_some(file)
}

fn unusable(path: &Path, error: &io::Error) -> Message {
    Message::new(format!("{} can't be used: {error}.", path.display()), "Make it writable, or name another folder in [state] dir.")
}

fn unwritable(folder: &Path, bad: &Bad) -> Message {
    let log = folder.join(log::NAME);
    match bad {
        Bad::Io(error) => unusable(&log, error),
        Bad::Busy => Message::new(
            format!("{} is being written by another breakglass.", log.display()),
            "Watch it there, or stop that program; then try again.",
        ),
        Bad::Damaged(line) => Message::new(
            format!("Line {line} of {} does not fit to the lines before it.", log.display()),
            "Read it as it is, and open another incident.",
        ),
    }
}
