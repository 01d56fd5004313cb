//! The watch with a scripted webhook: what it tells, when, how often, and over a restart. The host is a recorded one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent::config::{On, Watch as Settings};
use agent::evals::case::{Case, all};
use agent::evals::world::World;
use agent::hands::{ExecAsk, Hands};
use agent::watch::notify::Notice;
use agent::watch::{Opened, Opener, Watch};
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Json, Router};
use serde_json::Value;
use tokio::sync::mpsc;

/// What a webhook was told, and what it answers first.
#[derive(Default)]
struct Hook {
    told: Vec<(Instant, Value)>,
    first: Vec<u16>,
}

type Shared = Arc<Mutex<Hook>>;

async fn hook(State(hook): State<Shared>, Json(notice): Json<Value>) -> StatusCode {
    let mut hook = hook.lock().unwrap();
    if let Some(status) = hook.first.pop() {
        return StatusCode::from_u16(status).unwrap();
    }
    hook.told.push((Instant::now(), notice));
    StatusCode::NO_CONTENT
}

async fn serve(first: &[u16]) -> (Shared, String) {
    let shared = Arc::new(Mutex::new(Hook { told: Vec::new(), first: first.to_vec() }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/secret-path", listener.local_addr().unwrap());
    let app = Router::new().route("/secret-path", axum::routing::post(hook)).with_state(Arc::clone(&shared));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (shared, url)
}

fn told(hook: &Shared) -> Vec<String> {
    let hook = hook.lock().unwrap();
    hook.told.iter().map(|(_, notice)| format!("{} {}", notice["event"].as_str().unwrap(), notice["code"].as_str().unwrap())).collect()
}

async fn until(what: &str, within: u64, so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(within);
    while !so() {
        assert!(Instant::now() < end, "not within {within} s: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A healthy world that a command wedges: the recorded stall of 2026-06-11, and a way into it.
fn world() -> Arc<World> {
    let mut case: Case = all().unwrap().into_iter().find(|case| case.name == "2026-06-11-block-stall").unwrap();
    case.start = "well".to_owned();
    let wedge = agent::evals::case::Answer {
        when: vec!["wedge".to_owned()],
        prints: String::new(),
        exit: 0,
        hangs: false,
        to: Some("stalled".to_owned()),
    };
    case.state.get_mut("well").unwrap().answers.insert(0, wedge);
    Arc::new(World::new(case).unwrap())
}

async fn wedge(world: &World) {
    let (tell, _told) = mpsc::channel(4);
    world.exec(ExecAsk { command: "wedge".to_owned(), timeout: Duration::from_secs(1) }, tell).await;
}

fn settings(url: &str, on: On) -> Settings {
    Settings { interval_s: 6, on, notify_url: Some(url.to_owned()), ca_file: None }
}

fn start(settings: &Settings, state: PathBuf, world: &Arc<World>, opener: Option<Arc<dyn Opener>>) -> tokio::task::JoinHandle<()> {
    let hands: Arc<dyn Hands> = Arc::<World>::clone(world);
    let watch = Watch::new(settings, &state, hands, opener).unwrap();
    tokio::spawn(async move { watch.run().await })
}

/// Opens an incident that the runbook works on.
struct ByRunbook(Arc<World>);

impl Opener for ByRunbook {
    fn open(&self, _: &Notice) -> Result<Opened, proto::Message> {
        let world = Arc::clone(&self.0);
        let end = Box::pin(async move {
            let ended = agent::runbook::run(&*world, &mut agent::runbook::Nowhere, agent::runbook::Patience::default(), true).await;
            (ended.healthy, ended.said)
        });
        Ok(Opened { id: "1f0c9a2e-0000-4000-8000-000000000001".to_owned(), end })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_is_told_once_though_the_webhook_fails_at_first_and_not_again_after_a_restart() {
    let (hook, url) = serve(&[429, 503]).await;
    let (folder, world) = (tempfile::tempdir().unwrap(), world());
    let settings = settings(&url, On::Notify);
    let watch = start(&settings, folder.path().to_owned(), &world, None);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(told(&hook), Vec::<String>::new(), "a healthy VM is no news");
    wedge(&world).await;
    until("the stall is told", 60, || told(&hook) == ["worse block-stalled"]).await;
    let notice = hook.lock().unwrap().told[0].1.clone();
    assert_eq!((&notice["recommend"], &notice["vmid"], &notice["v"]), (&"cycle".into(), &102.into(), &1.into()), "{notice}");
    assert!(notice["text"].as_str().unwrap().contains("no block operation completed") && notice["incident"].is_null(), "{notice}");
    // Ended right after it was told, and before that is on the disk, it would be told twice.
    let kept = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    until("that it was told is kept", 20, || kept("untold.json") == "[]" && kept("watch.json").contains("block-stalled")).await;
    watch.abort();
    let watch = start(&settings, folder.path().to_owned(), &world, None);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(told(&hook), ["worse block-stalled"], "told before the restart");
    // Somebody cures it.
    let (tell, _told) = mpsc::channel(64);
    let ask = agent::hands::VerbAsk {
        verb: proto::Verb::Cycle,
        request_id: proto::RequestId::from_random([7; 16]),
        origin: proto::Origin::Human,
        actor: None,
        reason: None,
        dry_run: false,
        attach: false,
        grant: None,
    };
    world.verb(ask, tell).await;
    until("the recovery is told", 60, || told(&hook) == ["worse block-stalled", "better block-stalled"]).await;
    watch.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_incidents_on_the_vm_is_recovered_and_explained_and_nobody_asked() {
    let (hook, url) = serve(&[]).await;
    let (folder, world) = (tempfile::tempdir().unwrap(), world());
    wedge(&world).await;
    let opener: Arc<dyn Opener> = Arc::new(ByRunbook(Arc::clone(&world)));
    let watch = start(&settings(&url, On::Incident), folder.path().to_owned(), &world, Some(opener));
    until("it is over", 90, || told(&hook).len() == 4).await;
    let all = told(&hook);
    let at = |what: &str| all.iter().position(|one| *one == format!("{what} block-stalled")).unwrap_or_else(|| panic!("{what}: {all:?}"));
    // Each tells by a timer of its own: where a busy machine lets both come due, the recovery may be told before the end.
    assert!(at("worse") < at("opened") && at("opened") < at("ended") && at("worse") < at("better"), "{all:?}");
    let ended = hook.lock().unwrap().told[at("ended")].1.clone();
    assert_eq!((&ended["healthy"], &ended["incident"]), (&true.into(), &"1f0c9a2e-0000-4000-8000-000000000001".into()), "{ended}");
    assert!(ended["text"].as_str().unwrap().contains("cycle was done and observed"), "{ended}");
    watch.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_hangs_or_refuses_keeps_nobody_from_watching() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let (folder, world) = (tempfile::tempdir().unwrap(), world());
    wedge(&world).await;
    let opener: Arc<dyn Opener> = Arc::new(ByRunbook(Arc::clone(&world)));
    let watch = start(&settings(&url, On::Incident), folder.path().to_owned(), &world, Some(opener));
    until("the incident ran all the same", 8, || world.state() == "well").await;
    watch.abort();
    assert!(agent::watch::notify::Webhook::new("ftp://127.0.0.1/", None).is_err());
    assert!(agent::watch::notify::Webhook::new("not an address", None).is_err());
}

/// Opens incidents that end when they are told to.
#[derive(Default)]
struct ByHand {
    opened: Mutex<Vec<tokio::sync::oneshot::Sender<()>>>,
    count: std::sync::atomic::AtomicUsize,
}

impl Opener for ByHand {
    fn open(&self, _: &Notice) -> Result<Opened, proto::Message> {
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        self.opened.lock().unwrap().push(end);
        let n = self.count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let end = Box::pin(async move {
            let _gone = ended.await;
            (false, proto::Message::new("It did not help.", "Look."))
        });
        Ok(Opened { id: format!("1f0c9a2e-0000-4000-8000-00000000000{n}"), end })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_one_incident_is_at_work_another_trouble_opens_none_and_is_not_forgotten() {
    let (hook, url) = serve(&[]).await;
    let mut case: Case = all().unwrap().into_iter().find(|case| case.name == "2026-06-11-block-stall").unwrap();
    // What its first incident does makes the guest boot: for a while it does not answer.
    let mut boots = case.state["stalled"].clone();
    (boots.code, boots.recommend) = (proto::Code::GuestUnresponsive, Some(proto::Verb::Reset));
    case.state.insert("boots".to_owned(), boots);
    case.state.get_mut("stalled").unwrap().on.get_mut(&proto::Verb::Cycle).unwrap().to = Some("boots".to_owned());
    let (folder, world) = (tempfile::tempdir().unwrap(), Arc::new(World::new(case).unwrap()));
    let opener = Arc::new(ByHand::default());
    let count = || opener.count.load(std::sync::atomic::Ordering::Relaxed);
    let watch = start(&settings(&url, On::Incident), folder.path().to_owned(), &world, Some(opener.clone() as Arc<dyn Opener>));
    until("the first incident", 60, || count() == 1).await;
    let (tell, _told) = mpsc::channel(64);
    let ask = agent::hands::VerbAsk {
        verb: proto::Verb::Cycle,
        request_id: proto::RequestId::from_random([7; 16]),
        origin: proto::Origin::Model,
        actor: None,
        reason: None,
        dry_run: false,
        attach: false,
        grant: None,
    };
    world.verb(ask, tell).await;
    until("the other trouble is told", 60, || told(&hook).contains(&"worse guest-unresponsive".to_owned())).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(count(), 1, "the first one is at work, and the guest boots by its doing");
    drop(opener.opened.lock().unwrap().pop());
    until("what is still wrong gets the next one", 40, || count() == 2).await;
    watch.abort();
}

#[test]
fn what_could_not_be_told_before_a_kill_is_told_after_it() {
    // Its own from here on, so that nobody else takes it, and nobody listens there yet.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let settings = settings(&format!("http://{address}/secret-path"), On::Notify);
    let (folder, world) = (tempfile::tempdir().unwrap(), world());
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let first = runtime();
    first.block_on(async {
        wedge(&world).await;
        start(&settings, folder.path().to_owned(), &world, None);
        until("it is remembered", 20, || folder.path().join("watch.json").exists()).await;
    });
    // As a kill ends it: nobody had listened.
    first.shutdown_background();
    let second = runtime();
    let shared = Arc::new(Mutex::new(Hook::default()));
    second.block_on(async {
        let listener = socket.listen(64).unwrap();
        let app = Router::new().route("/secret-path", axum::routing::post(hook)).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, app).await });
        start(&settings, folder.path().to_owned(), &world, None);
        until("it is told", 60, || told(&shared) == ["worse block-stalled"]).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(told(&shared), ["worse block-stalled"], "once");
        let file = folder.path().join("untold.json");
        until("it is forgotten", 20, || std::fs::read_to_string(&file).is_ok_and(|kept| kept == "[]")).await;
    });
    second.shutdown_background();
    let kept = std::fs::read_to_string(folder.path().join("untold.json")).unwrap();
    assert_eq!(kept, "[]");
    assert!(!kept.contains("secret-path"));
}
