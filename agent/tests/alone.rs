//! Incidents that nobody asked for, as `watch` opens them: with Claude, with the second model, without any, with a person's word needed and
//! nobody there, and gone on with after a kill.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api;
#[path = "support/mind.rs"]
mod support;

use std::sync::Arc;
use std::time::Duration;

use agent::claude::{Budget, Settings};
use agent::incident::{By, Store, What};
use agent::watch::command::{Alone, WithoutAPage};
use agent::watch::notify::{Kind, Notice};
use agent::watch::{Opened, Opener};
use api::{Answer, Api, Reply, actors, say, text, verb};
use proto::{Timestamp, Verb, Vmid};
use support::{Desk, approving, desk, recorded, with};

const STALL: &str = "2026-06-11-block-stall";
const NOTICED: &str = "VM 102: no block operation completed. Cycle it.";

fn notice() -> Notice {
    let at = Timestamp::from_unix_ms(1_700_000_000_000);
    Notice {
        v: 1,
        event: Kind::Worse,
        at,
        vmid: Vmid::DEVVM,
        code: "block-stalled".to_owned(),
        since: at,
        text: NOTICED.to_owned(),
        sentence: NOTICED.to_owned(),
        next: String::new(),
        recommend: Some(Verb::Cycle),
        incident: None,
        healthy: None,
    }
}

fn opener(desk: &Desk) -> Alone {
    Alone { mind: Some(Arc::clone(&desk.mind)), hands: Arc::clone(&desk.hands), store: Arc::clone(&desk.store) }
}

/// Opens one and waits for its end: healthy or not, what was said, its lines.
async fn ended(desk: &Desk, opener: &dyn Opener) -> (bool, String, Vec<What>) {
    let Opened { id, end } = opener.open(&notice()).unwrap();
    let (healthy, said) = tokio::time::timeout(Duration::from_secs(60), end).await.unwrap();
    desk.faultless();
    let incident = desk.store.get_by_name(&id).unwrap();
    assert!(incident.facts().ended.is_some());
    let lines = desk.lines(&incident);
    (healthy, said.to_string(), lines)
}

fn reported(lines: &[What]) -> bool {
    lines.iter().any(|what| matches!(what, What::Text { text } if text.starts_with("Report:")))
}

/// The models that were asked, each once, in the order of their first request.
fn models(api: &Api) -> Vec<String> {
    let mut models: Vec<String> = Vec::new();
    for request in api.requests() {
        let model = request["model"].as_str().unwrap().to_owned();
        if !models.contains(&model) {
            models.push(model);
        }
    }
    models
}

fn refusal() -> Reply {
    Reply::Answer(Answer { content: Vec::new(), stop: "refusal", usage: (1000, 1) })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_watch_opens_claude_recovers_and_explains() {
    let desk = desk(Api::start(|body, _| actors::good(body)), recorded(STALL));
    let (healthy, said, lines) = ended(&desk, &opener(&desk)).await;
    assert!(healthy && reported(&lines), "{said}");
    assert_eq!(desk.world.state(), "well");
    assert_eq!(desk.verbs().iter().filter(|verb| verb.mutates()).count(), 1, "{:?}", desk.verbs());
    // What was noticed may quote the guest: it comes in as data.
    let first = desk.api.requests()[0]["messages"][0]["content"][0]["text"].as_str().unwrap().to_owned();
    assert!(first.starts_with("Nobody asked") && first.contains(&format!("| {NOTICED}")), "{first}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chain_is_model_then_second_model_then_runbook() {
    let settings = || Settings { model: "first".to_owned(), fallback_model: "second".to_owned(), ..Settings::default() };
    let chain = |script: fn(&serde_json::Value) -> Reply| {
        with(Api::start(move |body, _| script(body)), recorded(STALL), settings(), Budget::default(), Duration::ZERO)
    };
    let second = chain(|body| if body["model"] == "first" { refusal() } else { actors::good(body) });
    let (healthy, said, lines) = ended(&second, &opener(&second)).await;
    assert!(healthy && reported(&lines), "{said}");
    assert_eq!(models(&second.api), ["first", "second"]);

    let neither = chain(|_| refusal());
    let (healthy, said, lines) = ended(&neither, &opener(&neither)).await;
    assert!(healthy && !reported(&lines) && said.contains("cycle was done and observed"), "{said}");
    assert_eq!(models(&neither.api), ["first", "second"]);
    assert!(lines.iter().any(|what| matches!(what, What::Said { text } if text.contains("can't be had now"))), "it says so");
    assert_eq!(neither.world.state(), "well");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_person_has_to_allow_it_and_there_is_no_page_it_is_denied_and_ends() {
    let desk = with(Api::start(|body, _| actors::good(body)), recorded(STALL), approving(), Budget::default(), Duration::ZERO);
    let (healthy, said, lines) = ended(&desk, &WithoutAPage(opener(&desk))).await;
    assert!(!healthy, "{said}");
    let denied = lines.iter().filter(
        |what| matches!(what, What::Decided { allowed: false, actor, .. } if actor.as_deref().is_some_and(|who| who.starts_with("nobody"))),
    );
    assert!(denied.count() > 0, "{lines:?}");
    assert!(desk.verbs().into_iter().all(|verb| !verb.mutates()), "{:?}", desk.verbs());
    assert!(lines.iter().all(|what| !matches!(what, What::Decided { allowed: true, .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_person_has_to_allow_it_and_no_model_can_be_had_the_runbook_does_not_act_either() {
    let desk = with(Api::start(|_, _| refusal()), recorded(STALL), approving(), Budget::default(), Duration::ZERO);
    let (healthy, said, _) = ended(&desk, &WithoutAPage(opener(&desk))).await;
    assert!(!healthy && said.contains("can't be had now"), "{said}");
    assert!(desk.verbs().into_iter().all(|verb| !verb.mutates()), "{:?}", desk.verbs());
}

/// A copy of the state as a kill in the middle of the cycle leaves it: the id is on the disk, the result is not.
#[tokio::test(flavor = "multi_thread")]
async fn an_incident_of_the_watch_s_that_was_killed_in_mid_verb_is_gone_on_with_under_the_same_id() {
    // So long that the copy is made in the middle.
    let slow = Duration::from_secs(8);
    let desk = with(Api::start(|body, _| actors::good(body)), recorded(STALL), Settings::default(), Budget::default(), slow);
    let Opened { id, end } = opener(&desk).open(&notice()).unwrap();
    let incident = desk.store.get_by_name(&id).unwrap();
    let asked = |lines: &[What]| -> Vec<String> {
        let of = |what: &What| {
            if let What::VerbAsked { verb: Verb::Cycle, request_id, .. } = what { Some(request_id.to_string()) } else { None }
        };
        lines.iter().filter_map(of).collect()
    };
    let mut watcher = incident.watch(0);
    while asked(&desk.lines(&incident)).is_empty() {
        watcher.next().await;
    }
    let killed = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let folder = killed.path().join("incidents").join(&id);
    std::fs::create_dir_all(folder.join("artifacts")).unwrap();
    for name in ["events.jsonl", "messages.jsonl", "frozen.json"] {
        std::fs::copy(incident.folder().join(name), folder.join(name)).unwrap();
    }
    let before = asked(&desk.lines(&incident));
    assert!(end.await.0, "the first one goes on here, as the host's worker does");

    let store = Store::open(killed.path(), 1 << 30, false).unwrap();
    assert_eq!(store.unfinished().len(), 1);
    let mind = agent::claude::Mind::new(
        &Settings { base_url: Some(desk.api.url.clone()), api_key_file: Some(desk.folder.path().join("key")), ..Settings::default() },
        Budget::default(),
        &store,
        &desk.hands,
    );
    let taken = agent::watch::command::unfinished(mind.unwrap().as_ref(), &desk.hands, &store);
    assert_eq!(taken.len(), 1);
    for one in taken {
        let (healthy, said) = one.end.await;
        assert!(healthy, "{said}");
    }
    let mut lines = Vec::new();
    store.lines(&id.parse().unwrap(), 1, |line, _| lines.push((line.origin, line.what))).unwrap();
    let opened = lines.iter().find(|(_, what)| matches!(what, What::Opened { .. })).unwrap();
    assert_eq!(opened.0, By::Watch);
    let mut all = asked(&lines.into_iter().map(|(_, what)| what).collect::<Vec<_>>());
    assert_eq!(all.len(), 2, "asked, and asked after");
    all.dedup();
    assert_eq!(all, before, "under the same id");
    assert_eq!(desk.verbs().iter().filter(|verb| verb.mutates()).count(), 1, "and done once: {:?}", desk.verbs());
}

/// In mid-cycle a person stops the runbook: what it had begun has an end in the log all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_stopped_runbook_had_begun_comes_to_its_end_in_the_log() {
    // So long that the person is in time.
    let slow = Duration::from_secs(8);
    let dead = Api::replies(vec![Reply::Error { status: 401, kind: "authentication_error", headers: vec![], code: None }]);
    let desk = with(dead, recorded(STALL), Settings::default(), Budget::default(), slow);
    let Opened { id, end } = opener(&desk).open(&notice()).unwrap();
    let incident = desk.store.get_by_name(&id).unwrap();
    let mut watcher = incident.watch(0);
    while !incident.facts().running.iter().any(|pending| pending.verb == Verb::Cycle) {
        watcher.next().await;
    }
    incident.cancel();
    let (healthy, said) = end.await;
    assert!(!healthy && said.what.contains("cycle (request "), "{said}");
    let fetched = async {
        while !incident.facts().running.is_empty() {
            watcher.next().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), fetched).await.expect("nobody waits for the cycle any more");
    let proved = |what: &What| matches!(what, What::VerbEnded { verb: Verb::Cycle, receipt: Some(_), .. });
    assert_eq!(desk.lines(&incident).iter().filter(|what| proved(what)).count(), 1);
    assert_eq!(desk.verbs().iter().filter(|verb| verb.mutates()).count(), 1, "{:?}", desk.verbs());
}

/// Where a person has to allow it, a conversation that can't even be opened is no way around that.
#[tokio::test(flavor = "multi_thread")]
async fn where_a_person_has_to_allow_it_and_the_conversation_is_damaged_nothing_acts_either() {
    let desk = with(Api::start(|body, _| actors::good(body)), recorded(STALL), approving(), Budget::default(), Duration::ZERO);
    let incident = desk.store.create(NOTICED, By::Watch, None).unwrap();
    std::fs::create_dir(incident.folder().join("messages.jsonl")).unwrap();
    let (healthy, said) = agent::chat::alone(Some(&desk.mind), &desk.hands, &incident, NOTICED).await;
    assert!(!healthy && said.what.contains("can't be used"), "{said}");
    assert!(desk.verbs().into_iter().all(|verb| !verb.mutates()), "{:?}", desk.verbs());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_s_stop_is_the_end_of_what_the_watch_opened_and_of_the_look_at_its_end() {
    // While Claude thinks: nothing is looked at any more.
    let desk = desk(Api::start(|_, _| Reply::Silence(Duration::from_secs(60))), recorded(STALL));
    let Opened { id, end } = opener(&desk).open(&notice()).unwrap();
    while desk.api.requests().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    desk.store.get_by_name(&id).unwrap().cancel();
    let (healthy, said) = end.await;
    assert!(!healthy && said.what.contains("You stopped the turn.") && desk.verbs().is_empty(), "{said} {:?}", desk.verbs());

    // While its devvm, which stays away, may be booting.
    let mut case = recorded(STALL);
    case.state.values_mut().for_each(|state| state.reachable = false);
    let replies = vec![say(vec![verb("pve_forensics")]), say(vec![verb("pve_cycle")]), say(vec![text("It is well.")])];
    let desk = support::desk(Api::replies(replies), case);
    let Opened { id, end } = opener(&desk).open(&notice()).unwrap();
    let incident = desk.store.get_by_name(&id).unwrap();
    let mut watcher = incident.watch(0);
    while incident.facts().commands.is_empty() {
        watcher.next().await;
    }
    incident.cancel();
    let (healthy, said) = tokio::time::timeout(Duration::from_secs(60), end).await.unwrap();
    assert!(!healthy && said.what.contains("The look at the end was stopped."), "{said}");
}
