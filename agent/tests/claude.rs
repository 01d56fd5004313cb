//! Claude's loop against a scripted Messages API that checks every request: how it ends well, what holds it, what people do beside it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api;
#[path = "support/mind.rs"]
mod support;

use std::time::{Duration, Instant};

use agent::claude::{Budget, Session, Settings, Turned, verdict};
use agent::evals::world::{Act, World};
use agent::hands::Hands;
use agent::incident::{Asks, By, Decision, Store, What};
use api::actors::{self, results};
use api::{Api, Reply, exec, say, text, verb};
use proto::Verb;
use serde_json::Value;
use support::{approving, desk, printing, recorded, with};

const STALL: &str = "2026-06-11-block-stall";
const STORM: &str = "2026-06-22-memory-storm";

fn done() -> Reply {
    say(vec![text("That is all.")])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stall_is_seen_cycled_and_proved() {
    let desk = desk(Api::start(|body, _| actors::good(body)), recorded(STALL));
    let (incident, mut session) = desk.session();
    assert_eq!(session.prompt("The devvm hangs.", Some("anna")).await, Turned::Said);
    desk.faultless();
    assert_eq!(desk.verbs(), [Verb::Forensics, Verb::Cycle, Verb::Status]);
    assert_eq!(desk.world.state(), "well");
    let (healthy, _) = verdict(&desk.hands, &incident, incident.task()).await;
    assert!(healthy);
    // The console went along as pictures, and what was signed as our own words.
    let second = desk.api.requests()[1].to_string();
    assert!(second.contains("\"media_type\":\"image/png\"") && second.contains("Assessment: block-stalled"));
    let lines = desk.lines(&incident);
    let reason =
        lines.iter().find_map(|what| if let What::VerbAsked { verb: Verb::Cycle, reason, .. } = what { reason.clone() } else { None });
    assert_eq!(reason.as_deref(), Some("a scripted model wants it"));
    assert!(lines.iter().any(|what| matches!(what, What::Text { text } if text.starts_with("Report:"))));
    assert_eq!(incident.facts().spent.turns, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_pressure_is_repaired_over_ssh_without_a_power_verb() {
    let desk = desk(Api::start(|body, _| actors::good(body)), recorded(STORM));
    let (_, mut session) = desk.session();
    assert_eq!(session.prompt("It crawls.", None).await, Turned::Said);
    desk.faultless();
    assert_eq!((desk.verbs(), desk.world.state().as_str()), (vec![Verb::Forensics, Verb::Status], "well"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_runs_before_a_bundle_of_this_incident_is_preserved() {
    let desk = desk(
        Api::replies(vec![say(vec![verb("pve_status"), exec("poweroff")]), say(vec![verb("pve_forensics"), exec("uptime")]), done()]),
        recorded(STORM),
    );
    assert_eq!(desk.session().1.prompt("Hello.", None).await, Turned::Said);
    desk.faultless();
    assert_eq!(desk.commands(), ["uptime"]);
    assert!(results(&desk.api.requests()[1]).unwrap().contains("Call pve_forensics first"));
    // Another incident's bundle is none of this one's.
    let again = with(
        Api::replies(vec![say(vec![exec("uptime")]), done()]),
        recorded(STORM),
        Settings::default(),
        Budget::default(),
        Duration::ZERO,
    );
    assert_eq!(again.session().1.prompt("Hello.", None).await, Turned::Said);
    assert!(again.commands().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_of_an_answer_is_answered_in_its_order() {
    let many: Vec<Value> = (0..20).map(|_| verb("pve_status")).collect();
    let desk = desk(Api::replies(vec![say(many), done()]), recorded(STALL));
    assert_eq!(desk.session().1.prompt("Hello.", None).await, Turned::Said);
    desk.faultless();
    assert_eq!(desk.verbs().len(), 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_unknown_result_no_further_mutation_of_the_same_answer_is_sent() {
    let first = say(vec![verb("pve_forensics"), verb("pve_cycle"), verb("pve_cycle")]);
    let desk = desk(Api::replies(vec![first, done()]), recorded("cycle-with-unknown-end"));
    assert_eq!(desk.session().1.prompt("Hello.", None).await, Turned::Said);
    desk.faultless();
    assert_eq!(desk.verbs(), [Verb::Forensics, Verb::Cycle]);
    assert!(results(&desk.api.requests()[1]).unwrap().contains("was not sent"));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_unknown_result_nothing_is_changed_until_the_model_has_looked() {
    let replies = vec![
        say(vec![verb("pve_forensics"), verb("pve_cycle")]),
        say(vec![verb("pve_reset")]),
        // Decided before the look was read.
        say(vec![verb("pve_status"), verb("pve_cycle")]),
        say(vec![verb("pve_start")]),
        done(),
    ];
    let desk = desk(Api::replies(replies), recorded("cycle-with-unknown-end"));
    let (incident, mut session) = desk.session();
    assert_eq!(session.prompt("Hello.", None).await, Turned::Said);
    desk.faultless();
    assert_eq!(desk.verbs(), [Verb::Forensics, Verb::Cycle, Verb::Status, Verb::Start]);
    assert_eq!(incident.facts().unknown, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_is_used_up_stops_the_model_and_says_so() {
    let endless = || Api::start(|_, _| say(vec![verb("pve_status")]));
    for (budget, word) in [
        (Budget { turns: 3, ..Budget::default() }, "3 answers"),
        (Budget { tokens: 2500, ..Budget::default() }, "2500 tokens"),
        (Budget { usd: 0.012, ..Budget::default() }, "dollars"),
        (Budget { minutes: 0, ..Budget::default() }, "0 minutes"),
    ] {
        let desk = with(endless(), recorded(STALL), Settings::default(), budget, Duration::ZERO);
        let (incident, mut session) = desk.session();
        let Turned::Stopped(said) = session.prompt("Hello.", None).await else { panic!("no limit") };
        assert!(said.what.contains(word), "{said}");
        desk.faultless();
        assert!(desk.verbs().len() <= 3);
        assert!(desk.lines(&incident).iter().any(|what| matches!(what, What::Limit { .. })));
        // It is the incident's: a second prompt does not begin anew.
        assert!(matches!(session.prompt("Go on.", None).await, Turned::Stopped(_)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_s_mutations_of_an_hour_are_counted_over_all_incidents() {
    let budget = Budget { mutations_per_hour: 2, ..Budget::default() };
    let api = Api::start(|body, _| if actors::called(body).len() < 2 { say(vec![verb("pve_reset")]) } else { done() });
    let desk = with(api, recorded("guest-hangs"), Settings::default(), budget, Duration::ZERO);
    for _ in 0..2 {
        assert_eq!(desk.session().1.prompt("Hello.", None).await, Turned::Said);
    }
    desk.faultless();
    assert_eq!(desk.verbs(), [Verb::Reset, Verb::Reset]);
    assert!(results(desk.api.requests().last().unwrap()).unwrap().contains("LIMIT"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_s_no_is_told_as_a_no_and_a_yes_runs_it() {
    let script = |body: &Value, _| match actors::called(body).len() {
        0 => say(vec![verb("pve_forensics")]),
        1 | 2 => say(vec![verb("pve_cycle")]),
        _ => done(),
    };
    let desk = with(Api::start(script), recorded(STALL), approving(), Budget::default(), Duration::ZERO);
    let (incident, mut session) = desk.session();
    let person = {
        let incident = incident.clone();
        tokio::spawn(async move {
            for allowed in [false, true] {
                let mut watcher = incident.watch(0);
                let call = loop {
                    if let Some(call) = incident.facts().awaiting.into_keys().next() {
                        break call;
                    }
                    watcher.next().await;
                };
                assert!(incident.decide(&call, Decision { allowed, actor: Some("anna".to_owned()) }));
                while !incident.facts().awaiting.is_empty() {
                    watcher.next().await;
                }
            }
        })
    };
    assert_eq!(session.prompt("Hello.", None).await, Turned::Said);
    person.await.unwrap();
    desk.faultless();
    assert_eq!(desk.verbs(), [Verb::Forensics, Verb::Cycle]);
    let requests = desk.api.requests();
    assert!(results(&requests[2]).unwrap().contains("DENIED"));
    let operator = |n: usize| requests[n]["messages"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(operator(2)["role"], "system");
    assert!(operator(2).to_string().contains("A person DENIED") && operator(3).to_string().contains("A person ALLOWED"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_does_by_hand_comes_in_the_operator_s_channel_without_a_word_of_the_guest_s() {
    let desk = desk(Api::replies(vec![done()]), recorded("injection-in-the-findings"));
    let (incident, mut session) = desk.session();
    assert_eq!(session.prompt("Hello.", None).await, Turned::Said);
    let running = incident.verb(&desk.hands, incident.task(), By::Human, Verb::Forensics, Asks::default()).unwrap();
    let told = running.end().await.unwrap();
    assert_eq!(session.prompt("I took evidence.", None).await, Turned::Said);
    desk.faultless();
    let requests = desk.api.requests();
    let last = requests[1]["messages"].as_array().unwrap().last().unwrap();
    assert_eq!(last["role"], "system");
    let text = last["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("A person asked for forensics") && text.contains("ended: done"), "{text}");
    assert!(!text.contains(&told.assessment.unwrap().sentence));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_a_person_stops_says_what_goes_on_and_another_can_follow() {
    let script =
        |body: &Value, n| if n == 0 && actors::called(body).is_empty() { say(vec![verb("pve_cycle"), verb("pve_status")]) } else { done() };
    let desk = with(Api::start(script), recorded(STALL), Settings::default(), Budget::default(), Duration::from_secs(5));
    let (incident, mut session) = desk.session();
    let person = {
        let incident = incident.clone();
        tokio::spawn(async move {
            let mut watcher = incident.watch(0);
            while incident.facts().running.is_empty() {
                watcher.next().await;
            }
            incident.cancel();
        })
    };
    let Turned::Cancelled(said) = session.prompt("Hello.", None).await else { panic!("not stopped") };
    person.await.unwrap();
    assert!(said.what.contains("goes on running") && said.what.contains("cycle (request "), "{said}");
    assert_eq!(session.prompt("And now?", None).await, Turned::Said);
    desk.faultless();
    // It ran to its end, and nothing else of that answer.
    let mut watcher = incident.watch(0);
    let ended = async {
        while !incident.facts().running.is_empty() {
            watcher.next().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.expect("it never ends");
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(desk.verbs(), [Verb::Cycle]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_is_stopped_in_the_middle_of_an_answer_too() {
    let desk = desk(Api::start(|_, n| if n == 0 { Reply::Silence(Duration::from_secs(60)) } else { done() }), recorded(STALL));
    let (incident, mut session) = desk.session();
    let (stop, api) = (incident.clone(), desk.api.clone());
    tokio::spawn(async move {
        while api.requests().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stop.cancel();
    });
    let begun = Instant::now();
    assert!(matches!(session.prompt("Hello.", None).await, Turned::Cancelled(_)));
    assert!(begun.elapsed() < Duration::from_secs(15));
    assert_eq!(session.prompt("And now?", None).await, Turned::Said);
    desk.faultless();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_in_mid_verb_the_conversation_goes_on_with_the_receipt() {
    let script = |body: &Value, _| if actors::called(body).is_empty() { say(vec![verb("pve_cycle"), verb("pve_status")]) } else { done() };
    let api = Api::start(script);
    let slow = with(api.clone(), recorded(STALL), Settings::default(), Budget::default(), Duration::from_secs(60));
    let (incident, mut session) = slow.session();
    let turn = tokio::spawn(async move { session.prompt("Hello.", None).await });
    let mut watcher = incident.watch(0);
    while incident.facts().running.is_empty() {
        watcher.next().await;
    }
    // As kill -9 leaves it: the log and the conversation as they are now. The host finishes it.
    let id = incident.id().clone();
    let asked = incident.facts().running[0].request_id.clone();
    let copy = tempfile::tempdir().unwrap();
    let to = copy.path().join("incidents").join(id.as_str());
    std::fs::create_dir_all(&to).unwrap();
    for name in ["events.jsonl", "messages.jsonl", "frozen.json"] {
        std::fs::copy(incident.folder().join(name), to.join(name)).unwrap();
    }
    turn.abort();
    let (tell, _) = tokio::sync::mpsc::channel(100);
    let again = agent::hands::VerbAsk {
        verb: Verb::Cycle,
        request_id: asked.clone(),
        origin: proto::Origin::Model,
        actor: None,
        reason: None,
        dry_run: false,
        attach: false,
        grant: None,
    };
    Hands::verb(&*slow.world, again, tell).await;
    let store = Store::open(copy.path(), 1 << 30, false).unwrap();
    assert_eq!(store.unfinished(), std::slice::from_ref(&id));
    let incident = store.resume(&id).unwrap();
    let mut session = Session::open(&slow.mind, &incident).unwrap();
    assert_eq!(session.resume().await, Some(Turned::Said));
    slow.faultless();
    assert_eq!(slow.verbs(), [Verb::Cycle], "fetched by its id, not done again");
    let told = results(api.requests().last().unwrap()).unwrap();
    assert!(told.contains("Signed receipt: cycle done") && told.contains("restarted"), "{told}");
    assert_eq!(session.resume().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_gone_before_it_is_sent_and_not_in_the_log() {
    let secret = "hvs.CAESIJ1234567890abcdefghij";
    let prints = format!("VAULT_TOKEN={secret}\n-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----\n");
    let desk = desk(Api::replies(vec![say(vec![verb("pve_forensics"), exec("env")]), done()]), printing(&prints));
    let (incident, mut session) = desk.session();
    assert_eq!(session.prompt(&format!("The password is password={secret}"), None).await, Turned::Said);
    desk.faultless();
    let sent = format!("{:?}", desk.api.requests());
    let log = std::fs::read_to_string(incident.folder().join("events.jsonl")).unwrap();
    for text in [sent, log] {
        assert!(!text.contains("CAESIJ") && !text.contains("b3Blbn") && text.contains("[redacted"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_incidents_at_once_share_neither_conversation_nor_budget() {
    let desk = desk(Api::start(|body, _| actors::good(body)), recorded(STALL));
    let (one, mut first) = desk.session();
    let (two, mut second) = desk.session();
    let (a, b) = tokio::join!(first.prompt("One.", None), second.prompt("Two.", None));
    assert_eq!((a, b), (Turned::Said, Turned::Said));
    desk.faultless();
    assert_ne!(one.id(), two.id());
    for incident in [&one, &two] {
        let text = std::fs::read_to_string(incident.folder().join("messages.jsonl")).unwrap();
        assert_eq!((text.contains("One."), text.contains("Two.")), (incident.id() == one.id(), incident.id() == two.id()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_devvm_that_boots_is_waited_for_in_one_call_and_otherwise_nobody_waits() {
    let mut case = recorded(STALL);
    let well = case.state.get_mut("well").unwrap();
    well.reachable = false;
    let script = |body: &Value, _| match actors::called(body).len() {
        0 => say(vec![verb("pve_forensics"), exec("uptime")]),
        2 => say(vec![verb("pve_cycle"), exec("uptime")]),
        _ => done(),
    };
    let desk = desk(Api::start(script), case);
    let (incident, mut session) = desk.session();
    let begun = Instant::now();
    let tries = |world: &World| world.acts().iter().filter(|act| matches!(act, Act::Exec { .. })).count();
    let stop = {
        let (incident, world) = (incident.clone(), desk.world.clone());
        tokio::spawn(async move {
            let mut watcher = incident.watch(0);
            while !(incident.facts().mutated && incident.facts().commands.len() == 1) {
                watcher.next().await;
            }
            let early = begun.elapsed();
            while tries(&world) < 3 {
                assert!(begun.elapsed() < Duration::from_secs(25), "it is not tried again");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            incident.cancel();
            early
        })
    };
    assert!(matches!(session.prompt("Hello.", None).await, Turned::Cancelled(_)));
    // A wait would be 30 s, the command's own time.
    assert!(stop.await.unwrap() < Duration::from_secs(15), "before anything was changed a dead devvm is no reason to wait");
    let tries = desk.commands().len();
    // Nobody waits any more: it does not run later behind anybody's back.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(desk.commands().len() <= tries + 1);
    let now = desk.commands().len();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!((desk.commands().len(), incident.facts().commands.len()), (now, 0));
    desk.faultless();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_is_told_which_vm_it_is_about() {
    let world = World::of(recorded(STALL), "105".parse().unwrap()).unwrap();
    let desk = support::in_world(Api::replies(vec![done()]), world, Settings::default(), Budget::default(), Duration::ZERO);
    assert_eq!(desk.session().1.prompt("Hello.", None).await, Turned::Said);
    let system = desk.api.requests()[0]["system"].to_string();
    assert!(system.contains("you bring VM 105, ") && !system.contains("VMID") && !system.contains("102"), "{system}");
}
