//! What every route works with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proto::Message;
use tokio::sync::{Semaphore, watch};

use super::auth::Door;
use super::limits::Limit;
use super::look::Looks;
use super::meter::{Counted, Meter};
use super::site::Site;
use super::talk::Talks;
use super::tokens::Tokens;
use crate::claude::{Autonomy, Budget, Mind, Settings};
use crate::hands::Hands;
use crate::incident::{Incident, IncidentId, Store};
use crate::signers::Pinned;
use crate::watch::command::{Alone, unfinished};
use crate::watch::notify::Notice;
use crate::watch::{Opened, Opener, Watch};

/// An incident that had its last line this long ago is over: what is pressed now opens another one.
const CURRENT_MS: u64 = 30 * 60 * 1000;
/// Event streams at once. Each is a task and a few kilobytes.
const STREAMS: usize = 128;

/// What the server is made of.
pub struct Parts {
    /// Who may come in.
    pub door: Door,
    /// Whether it listens on loopback.
    pub loopback: bool,
    /// What acts.
    pub hands: Arc<dyn Hands>,
    /// The incidents.
    pub store: Arc<Store>,
    /// What is set for Claude.
    pub claude: Settings,
    /// What an incident may cost.
    pub budget: Budget,
    /// The state folder.
    pub state: PathBuf,
    /// The host's key, for receipts that are kept.
    pub signing_key: Option<Pinned>,
    /// The keyholder's socket, for readiness.
    pub keyholder: Option<PathBuf>,
    /// What only the real thing has: doctor, host keys, bundles.
    pub site: Option<Arc<dyn Site>>,
}

/// The server.
pub struct App {
    pub(super) door: Door,
    pub(super) loopback: bool,
    pub(super) hands: Arc<dyn Hands>,
    pub(super) store: Arc<Store>,
    pub(super) claude: Settings,
    pub(super) budget: Budget,
    pub(super) state: PathBuf,
    pub(super) signing_key: Option<Pinned>,
    pub(super) keyholder: Option<PathBuf>,
    pub(super) site: Option<Arc<dyn Site>>,
    pub(super) looks: Looks,
    pub(super) tokens: Tokens,
    pub(super) talks: Talks,
    pub(super) meter: Arc<Meter>,
    /// Requests that read, of each person.
    pub(super) reads: Limit<String>,
    /// Requests that do something, of each person: apart, so that a page that reloads too often never takes away a button.
    pub(super) acts: Limit<String>,
    pub(super) streams: Arc<Semaphore>,
    /// What goes on in the incidents, in a few words that change with it.
    pub(super) goings: watch::Sender<String>,
    pub(super) doctor: super::doctor::Last,
    pub(super) ready: super::files::Ready,
}

impl App {
    /// Puts it together; nothing runs yet.
    ///
    /// # Errors
    /// Claude's settings can't be used.
    pub fn new(parts: Parts) -> Result<Arc<Self>, Message> {
        let meter = Arc::new(Meter::default());
        let hands: Arc<dyn Hands> = Arc::new(Counted::new(parts.hands, &meter));
        let mind = Mind::new(&parts.claude, parts.budget, &parts.store, &hands)?;
        Ok(Arc::new(Self {
            door: parts.door,
            loopback: parts.loopback,
            looks: Looks::new(&parts.state),
            tokens: Tokens::default(),
            talks: Talks::new(mind, &hands, &meter),
            hands,
            store: parts.store,
            claude: parts.claude,
            budget: parts.budget,
            state: parts.state,
            signing_key: parts.signing_key,
            keyholder: parts.keyholder,
            site: parts.site,
            meter,
            reads: Limit::new(240, Duration::from_millis(50)),
            acts: Limit::new(20, Duration::from_secs(1)),
            streams: Arc::new(Semaphore::new(STREAMS)),
            goings: watch::channel(String::new()).0,
            doctor: super::doctor::Last::default(),
            ready: super::files::Ready::default(),
        }))
    }

    /// Whether a call of Claude's waits for a person.
    pub(super) fn asks_first(&self) -> bool {
        self.claude.autonomy == Autonomy::Approve
    }

    /// Which models have not shown that they deserve it, in one sentence.
    pub(super) fn unproven(&self) -> Option<String> {
        crate::claude::unproven(self.talks.mind().as_ref(), &self.state)
    }

    /// The incident that is going on, if one is.
    pub(super) fn current(&self) -> Option<IncidentId> {
        let now = crate::incident::now().unix_ms();
        let recent =
            |one: &crate::incident::Summary| one.damaged.is_none() && one.facts.changed.is_some_and(|at| at.unix_ms() + CURRENT_MS > now);
        self.store.list().into_iter().find(recent).map(|one| one.id)
    }

    /// The incident that a person means: the named one, else the one that is going on, else a new one of this title.
    pub(super) async fn incident(&self, named: Option<&IncidentId>, title: &str, who: &str) -> Result<Arc<Incident>, Message> {
        if let Some(id) = named {
            return self.store.take_up(id).await;
        }
        // One that another process writes can't be joined: what is done now is an incident of its own.
        if let Some(id) = self.current()
            && let Ok(incident) = self.store.take_up(&id).await
        {
            return Ok(incident);
        }
        self.store.create(title, crate::incident::By::Human, Some(who))
    }

    /// Starts what runs beside the routes: the looks, and what a restart cut off.
    pub fn start(self: &Arc<Self>) {
        let app = Arc::clone(self);
        tokio::spawn(async move { app.looks.run(Arc::clone(&app.hands)).await });
        tokio::spawn(super::events::goings(Arc::clone(self)));
        super::press::take_up(self);
        super::doctor::begin(self);
    }

    /// The watch, in the same process; incidents that it opens are seen here as they go on.
    ///
    /// # Errors
    /// Its webhook can't be used.
    pub fn watch(self: &Arc<Self>, settings: &crate::config::Watch) -> Result<(), Message> {
        let (mind, hands, store) = (self.talks.mind(), Arc::clone(&self.hands), Arc::clone(&self.store));
        let taken = unfinished(mind.as_ref(), &hands, &store);
        let alone = Alone { mind, hands: Arc::clone(&hands), store };
        let opener: Arc<dyn Opener> = Arc::new(Watched { alone, app: Arc::clone(self) });
        let watch = Watch::new(settings, &self.state, hands, Some(opener))?;
        for opened in taken {
            watch.follow(self.talks.others(opened));
        }
        tokio::spawn(async move { watch.run().await });
        Ok(())
    }

    /// A link that lets one person in once, where nothing else is configured.
    pub fn link(&self) -> Option<String> {
        self.door.new_link()
    }
}

/// The watch's incidents, which are nobody else's until they have ended.
struct Watched {
    alone: Alone,
    app: Arc<App>,
}

impl Opener for Watched {
    fn open(&self, why: &Notice) -> Result<Opened, Message> {
        self.alone.open(why).map(|opened| self.app.talks.others(opened))
    }
}
