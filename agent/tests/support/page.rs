//! A page of its own on a free port, with a recorded incident behind it instead of a host: verbs take their time and tell what they do.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::claude::{Budget, Settings};
use agent::doctor::{Finding, Level};
use agent::evals::case::{self, Case};
use agent::evals::world::World;
use agent::hands::{Doing, ExecAsk, ExecEnd, ExecNews, Hands, VerbAsk, VerbEnd, VerbNews};
use agent::incident::Store;
use agent::receipt::Unproved;
use agent::signers::Pinned;
use agent::web::app::{App, Parts};
use agent::web::auth::{self, Door};
use agent::web::serve::listen;
use agent::web::site::{Keys, Site};
use proto::{Accepted, Binary, Body, Event, KeyName, Message, Step, StepName, StepOutcome, Timestamp, Verb};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{Sender, channel};
use tokio::sync::oneshot;

/// The password of `anna` in every page's `basic_file`, and the machine's token.
pub(crate) const PASSWORD: &str = "correct horse battery";
pub(crate) const TOKEN: &str = "a-token-of-a-machine";
/// The token of whoever reads `/metrics`, and may nothing else.
#[allow(dead_code)]
pub(crate) const SCRAPE: &str = "a-token-of-a-prometheus";
/// The secret of the proxy.
pub(crate) const SECRET: &str = "a-secret-of-the-proxy";

/// Hands on a recorded incident that take their time.
pub(crate) struct Paced {
    pub(crate) world: World,
    /// Between two things that are told.
    pub(crate) pace: Duration,
    /// The name by which the host tells of itself.
    pub(crate) node: String,
    /// The host says nothing.
    pub(crate) silent: AtomicBool,
    /// The host answers about another VM: the key's line there names it.
    pub(crate) other_vm: AtomicBool,
    /// A mutation stands behind its evidence until this is off: so that a test has all the time that it needs in the middle.
    pub(crate) held: AtomicBool,
}

fn steps(verb: Verb) -> &'static [StepName] {
    match verb {
        Verb::Status | Verb::Forensics => &[],
        Verb::Reset => &[StepName::Preflight, StepName::SystemReset, StepName::Observe],
        Verb::Stop => &[StepName::Preflight, StepName::QmStop, StepName::Observe],
        Verb::Start => &[StepName::Preflight, StepName::QmStart, StepName::Observe],
        Verb::Cycle => &[StepName::Preflight, StepName::QmStop, StepName::QmStart, StepName::Observe],
    }
}

impl Paced {
    async fn told(&self, ask: VerbAsk, news: Sender<VerbNews>) -> VerbEnd {
        let at = || Timestamp::from_unix_ms(u64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap());
        let event = |body| VerbNews::Event(Box::new(Event::new(at(), ask.request_id.clone(), body)));
        let accepted = Accepted {
            verb: ask.verb,
            vmid: self.world.vmid(),
            node: self.node.clone(),
            key_name: KeyName::console("page"),
            key_fingerprint: None,
            origin: ask.origin,
            actor: ask.actor.clone(),
            reason: ask.reason.clone(),
            deadline_ms: ask.verb.deadline_ms(),
            binary: Binary { version: "0.1.0".to_owned(), sha256: None },
            attached: ask.attach,
        };
        let _nobody = news.send(event(Body::Accepted(accepted))).await;
        let (tell, mut told) = channel(16);
        let pace = if ask.verb == Verb::Status { Duration::ZERO } else { self.pace };
        let verb = ask.verb;
        let passes = async {
            while let Some(one) = told.recv().await {
                let preserved = matches!(&one, VerbNews::Event(event) if matches!(event.body, Body::Preserved(_)));
                if !matches!(one, VerbNews::Artifact { .. }) {
                    tokio::time::sleep(pace).await;
                }
                let _nobody = news.send(one).await;
                if !preserved || ask.dry_run {
                    continue;
                }
                while self.held.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                for name in steps(verb) {
                    for (outcome, ms) in [(StepOutcome::Started, 0), (StepOutcome::Done, pace.as_millis() as u64)] {
                        let step =
                            Step { name: *name, outcome, ms, detail: (outcome == StepOutcome::Done).then(|| "as it should be".to_owned()) };
                        let _nobody = news.send(event(Body::Step(step))).await;
                        tokio::time::sleep(pace).await;
                    }
                }
            }
        };
        tokio::join!(self.world.verb(ask.clone(), tell), passes).0
    }
}

impl Hands for Paced {
    fn vmid(&self) -> proto::Vmid {
        self.world.vmid()
    }

    fn verb(&self, ask: VerbAsk, news: Sender<VerbNews>) -> Doing<'_, VerbEnd> {
        Box::pin(async move {
            while self.silent.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            if self.other_vm.load(Ordering::Relaxed) {
                let (wanted, got) = (self.vmid(), "106".parse().unwrap());
                let (checked, said) = (Err(Unproved::OtherVm { wanted, got }), agent::say::other_vm(wanted, got, None));
                return VerbEnd { request_id: ask.request_id, checked, sent: true, status: agent::UNKNOWN, said };
            }
            self.told(ask, news).await
        })
    }

    fn exec(&self, ask: ExecAsk, news: Sender<ExecNews>) -> Doing<'_, ExecEnd> {
        self.world.exec(ask, news)
    }
}

/// A place whose devvm shows another host key until it is accepted.
pub(crate) struct Place(pub(crate) Mutex<Keys>);

impl Site for Place {
    fn examine(&self) -> Doing<'_, Vec<Finding>> {
        let one = |name, level, what: &str, next: &str| Finding { name, level, said: Message::new(what, next) };
        Box::pin(async move {
            vec![
                one("host", Level::Ok, "pve answers with a valid receipt; VM 102 is running.", ""),
                one(
                    "clock",
                    Level::Warn,
                    "The host's clock and this one are 7 s apart.",
                    "Let both be kept by chrony or systemd-timesyncd.",
                ),
                one(
                    "devvm",
                    Level::Bad,
                    "It shows another host key than the pinned one.",
                    "If it was rebuilt, compare on its console and accept the key.",
                ),
            ]
        })
    }

    fn keys(&self) -> Doing<'_, Option<Keys>> {
        let keys = self.0.lock().unwrap().clone();
        Box::pin(async move { Some(keys) })
    }

    fn accept<'a>(&'a self, fingerprint: &'a str) -> Doing<'a, Result<(), Message>> {
        let mut keys = self.0.lock().unwrap();
        let same = keys.shown.as_deref() == Ok(fingerprint);
        if same {
            keys.pinned = fingerprint.to_owned();
        }
        Box::pin(async move { if same { Ok(()) } else { Err(Message::new("It shows another one.", "Compare again.")) } })
    }
}

/// A page that is served.
pub(crate) struct Page {
    pub(crate) at: SocketAddr,
    pub(crate) hands: Arc<Paced>,
    pub(crate) app: Arc<App>,
    stop: Option<oneshot::Sender<()>>,
}

/// How a page is to be.
pub(crate) struct How {
    /// The recorded incident.
    pub(crate) case: Case,
    /// The VM that it is about.
    pub(crate) vmid: proto::Vmid,
    /// Between two things that a verb tells.
    pub(crate) pace: Duration,
    /// The host's name.
    pub(crate) node: String,
    /// Who may come in; with nothing set, by the one-time link.
    pub(crate) door: auth::Settings,
    /// What is set for Claude.
    pub(crate) claude: Settings,
    /// Where it listens.
    pub(crate) listen: SocketAddr,
}

/// A recorded incident.
pub(crate) fn recorded(name: &str) -> Case {
    case::all().unwrap().into_iter().find(|case| case.name == name).unwrap()
}

/// Every way in, with its files in this folder.
pub(crate) fn every_way(folder: &Path) -> auth::Settings {
    use argon2::Argon2;
    use argon2::password_hash::PasswordHasher;
    use sha2::{Digest, Sha256};
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        Some(path)
    };
    // A cheap one: what it costs is not what is tested, and machines are slow.
    let cheap = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, argon2::Params::new(64, 1, 1, None).unwrap());
    let hash = cheap.hash_password_with_salt(PASSWORD.as_bytes(), b"salt of a test").unwrap();
    let sum = |token: &str| Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    auth::Settings {
        proxies: vec!["127.0.0.1/32".parse().unwrap()],
        identity_header: Some("x-forwarded-user".parse().unwrap()),
        secret_file: write("secret", format!("{SECRET}\n")),
        tokens_file: write("tokens", format!("machine:{}\nprometheus:{}:metrics\n", sum(TOKEN), sum(SCRAPE))),
        basic_file: write("basic", format!("anna:{hash}\n")),
    }
}

impl How {
    /// The stall of 2026-06-11, told at once, for whoever knows the way in.
    pub(crate) fn stalled(folder: &Path) -> Self {
        Self {
            case: recorded("2026-06-11-block-stall"),
            vmid: proto::Vmid::DEVVM,
            pace: Duration::from_millis(2),
            node: "pve".to_owned(),
            door: every_way(folder),
            claude: Settings { api_key_file: None, ..Settings::default() },
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }
}

impl Page {
    /// Serves one on this state folder.
    pub(crate) async fn serve(state: &Path, how: How) -> Self {
        let hands = Arc::new(Paced {
            world: World::of(how.case, how.vmid).unwrap(),
            pace: how.pace,
            node: how.node,
            silent: AtomicBool::default(),
            other_vm: AtomicBool::default(),
            held: AtomicBool::default(),
        });
        Self::with(state, hands, how.door, how.claude, how.listen).await
    }

    /// The same with hands from before, as after a restart.
    pub(crate) async fn with(state: &Path, hands: Arc<Paced>, door: auth::Settings, claude: Settings, to: SocketAddr) -> Self {
        let keys = Keys {
            pinned: "SHA256:ZmlsZQ0KZmlsZQ0KZmlsZQ0KZmlsZQ0KZmlsZQ0KZm0".to_owned(),
            shown: Ok("SHA256:bmV3IGtleQ0KbmV3IGtleQ0KbmV3IGtleQ0KbmV3IGs".to_owned()),
        };
        let app = App::new(Parts {
            door: Door::open(&door).unwrap(),
            loopback: true,
            hands: Arc::clone(&hands) as Arc<dyn Hands>,
            store: Store::open(state, 1 << 30, false).unwrap(),
            claude,
            budget: Budget::default(),
            state: state.to_owned(),
            // Where a test has put one there, with receipts that it signed.
            signing_key: std::fs::read_to_string(state.join("signing_key.pub")).ok().map(|key| Pinned::read(&key).unwrap()),
            keyholder: None,
            site: Some(Arc::new(Place(Mutex::new(keys)))),
        })
        .unwrap();
        let listener = TcpListener::bind(to).await.unwrap();
        let at = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        app.start();
        let serving = Arc::clone(&app);
        tokio::spawn(async move {
            listen(&serving, &listener, async {
                let _stopped = stopped.await;
            })
            .await;
        });
        Self { at, hands, app, stop: Some(stop) }
    }

    /// Its address with this path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at)
    }

    /// Takes no connection any more.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }
}
