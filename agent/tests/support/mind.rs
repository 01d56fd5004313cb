//! A desk for a scripted model: an API, a world of a recorded incident, a state folder.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use agent::claude::{Autonomy, Budget, Mind, Session, Settings};
use agent::evals::case::{self, Case};
use agent::evals::world::{Act, World};
use agent::hands::{Doing, ExecAsk, ExecEnd, ExecNews, Hands, VerbAsk, VerbEnd, VerbNews};
use agent::incident::{By, Incident, Line, Store, What};
use proto::Verb;
use tokio::sync::mpsc::Sender;

use crate::api::{Api, KEY};

/// The desk.
pub(crate) struct Desk {
    /// The API.
    pub(crate) api: Api,
    /// What the model acts on.
    pub(crate) world: Arc<World>,
    /// The same, as hands.
    pub(crate) hands: Arc<dyn Hands>,
    /// The incidents.
    pub(crate) store: Arc<Store>,
    /// The mind.
    pub(crate) mind: Arc<Mind>,
    /// The state folder.
    pub(crate) folder: tempfile::TempDir,
}

/// A recorded incident.
pub(crate) fn recorded(name: &str) -> Case {
    case::all().unwrap().into_iter().find(|case| case.name == name).unwrap()
}

/// A world that is well, and whose devvm prints this for every command.
pub(crate) fn printing(prints: &str) -> Case {
    let text = "about = \"a test\"\nsays = \"help\"\nstart = \"well\"\n[state.well]\nvm = \"running\"\ncode = \"healthy\"\n\
                sentence = \"VM 102 looks healthy.\"\nwhy = \"Nothing.\"\nanswers = [{ when = [], prints = \"x\" }]\n[expect]\nends = [\"well\"]\n";
    let mut case = Case::parse("printing", text).unwrap();
    case.state.get_mut("well").unwrap().answers[0].prints = prints.to_owned();
    case
}

/// Hands that take their time.
pub(crate) struct Slow {
    /// What they do it to.
    pub(crate) world: Arc<World>,
    /// How long a verb takes.
    pub(crate) verb: Duration,
}

impl Hands for Slow {
    fn vmid(&self) -> proto::Vmid {
        self.world.vmid()
    }

    fn verb(&self, ask: VerbAsk, news: Sender<VerbNews>) -> Doing<'_, VerbEnd> {
        Box::pin(async move {
            if ask.verb.mutates() && !ask.attach {
                tokio::time::sleep(self.verb).await;
            }
            self.world.verb(ask, news).await
        })
    }

    fn exec(&self, ask: ExecAsk, news: Sender<ExecNews>) -> Doing<'_, ExecEnd> {
        self.world.exec(ask, news)
    }
}

/// Hands with a devvm on which every command ends like this.
pub(crate) struct Unasked {
    /// What the verbs act on.
    pub(crate) world: Arc<World>,
    /// The end.
    pub(crate) end: ExecEnd,
}

impl Hands for Unasked {
    fn vmid(&self) -> proto::Vmid {
        self.world.vmid()
    }

    fn verb(&self, ask: VerbAsk, news: Sender<VerbNews>) -> Doing<'_, VerbEnd> {
        self.world.verb(ask, news)
    }

    fn exec(&self, _: ExecAsk, _: Sender<ExecNews>) -> Doing<'_, ExecEnd> {
        Box::pin(async { self.end.clone() })
    }
}

/// A desk of this case.
pub(crate) fn desk(api: Api, case: Case) -> Desk {
    with(api, case, Settings::default(), Budget::default(), Duration::ZERO)
}

/// A desk with these settings.
pub(crate) fn with(api: Api, case: Case, settings: Settings, budget: Budget, slow: Duration) -> Desk {
    in_world(api, World::new(case).unwrap(), settings, budget, slow)
}

/// A desk in this world.
pub(crate) fn in_world(api: Api, world: World, settings: Settings, budget: Budget, slow: Duration) -> Desk {
    // On memory where there is some: every line is synced.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, format!("{KEY}\n")).unwrap();
    let settings = Settings { base_url: Some(api.url.clone()), api_key_file: Some(key), ..settings };
    let world = Arc::new(world);
    let hands: Arc<dyn Hands> = if slow.is_zero() { world.clone() } else { Arc::new(Slow { world: Arc::clone(&world), verb: slow }) };
    let store = Store::open(folder.path(), 1 << 30, false).unwrap();
    let mind = Mind::new(&settings, budget, &store, &hands).unwrap().unwrap();
    Desk { api, world, hands, store, mind, folder }
}

/// A model that asks a person first.
pub(crate) fn approving() -> Settings {
    Settings { autonomy: Autonomy::Approve, ..Settings::default() }
}

impl Desk {
    /// A new incident and its conversation.
    pub(crate) fn session(&self) -> (Arc<Incident>, Session) {
        let incident = self.store.create("a test", By::Human, None).unwrap();
        let session = Session::open(&self.mind, &incident).unwrap();
        (incident, session)
    }

    /// What was logged.
    pub(crate) fn lines(&self, incident: &Incident) -> Vec<What> {
        let mut lines: Vec<Line> = Vec::new();
        self.store.lines(incident.id(), 1, |line, _| lines.push(line)).unwrap();
        lines.into_iter().map(|line| line.what).collect()
    }

    /// The verbs that were used on the world.
    pub(crate) fn verbs(&self) -> Vec<Verb> {
        self.world.acts().iter().filter_map(|act| if let Act::Verb { verb, .. } = act { Some(*verb) } else { None }).collect()
    }

    /// The commands that were run in the world.
    pub(crate) fn commands(&self) -> Vec<String> {
        self.world.acts().iter().filter_map(|act| if let Act::Exec { command, .. } = act { Some(command.clone()) } else { None }).collect()
    }

    /// That the API found nothing wrong with any request.
    pub(crate) fn faultless(&self) {
        assert_eq!(self.api.faults(), Vec::<String>::new());
    }
}
