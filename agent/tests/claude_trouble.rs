//! Claude's loop against a scripted Messages API that fails in every way that the real one can: nothing half is run, nobody waits long.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api;
#[path = "support/mind.rs"]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::claude::{Budget, Mind, Session, Settings, Turned, verdict};
use agent::evals::world::World;
use agent::hands::{Doing, ExecAsk, ExecEnd, ExecNews, Hands, VerbAsk, VerbEnd, VerbNews};
use agent::incident::{Asks, By, Incident, What};
use api::actors::results;
use api::{Answer, Api, Reply, call, exec, say, text, verb};
use proto::Verb;
use serde_json::{Value, json};
use support::{Desk, Unasked, desk, printing, recorded};
use tokio::sync::mpsc::Sender;

const STALL: &str = "2026-06-11-block-stall";
const UNKNOWN: &str = "cycle-with-unknown-end";

fn done() -> Reply {
    say(vec![text("That is all.")])
}

fn error(status: u16, kind: &'static str, headers: Vec<(&'static str, String)>) -> Reply {
    Reply::Error { status, kind, headers, code: None }
}

fn soon() -> Vec<(&'static str, String)> {
    vec![("retry-after-ms", "20".to_owned())]
}

/// A stream as it is, in one piece.
fn stream(text: String, cut: bool) -> Reply {
    Reply::Stream { pieces: vec![text.into_bytes()], cut, pause: Duration::ZERO }
}

fn bare(blocks: Vec<Value>, stop: &'static str) -> Answer {
    Answer { content: blocks, stop, usage: (1000, 50) }
}

fn models(api: &Api) -> Vec<String> {
    api.requests().iter().map(|request| request["model"].as_str().unwrap().to_owned()).collect()
}

const FIRST: &str = "claude-opus-5-5";
const SECOND: &str = "claude-sonnet-5-5";

#[tokio::test(flavor = "multi_thread")]
async fn an_overloaded_api_is_asked_again_with_the_pauses_that_it_wants() {
    let replies = vec![error(429, "rate_limit_error", soon()), error(529, "overloaded_error", soon()), done()];
    let desk = desk(Api::replies(replies), recorded(STALL));
    let (incident, mut session) = desk.session();
    assert_eq!(session.prompt("Hello.", None).await, Turned::Said);
    assert_eq!(models(&desk.api), [FIRST, FIRST, FIRST]);
    let again =
        desk.lines(&incident).into_iter().filter(|what| matches!(what, What::Failed { again_ms: Some(20), api_request: Some(_), .. }));
    assert_eq!(again.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_can_t_answer_is_followed_by_the_next_within_seconds() {
    for (first, requests) in [
        (error(500, "api_error", soon()), 4),
        (error(529, "overloaded_error", vec![("retry-after", "3600".to_owned())]), 2),
        (error(500, "api_error", vec![("x-should-retry", "false".to_owned())]), 2),
        (error(404, "not_found_error", Vec::new()), 2),
        (Reply::Answer(bare(vec![text("I can")], "refusal")), 2),
    ] {
        let begun = Instant::now();
        let api = Api::start(move |body, _| if body["model"] == FIRST { first.clone() } else { done() });
        let desk = desk(api, recorded(STALL));
        assert_eq!(desk.session().1.prompt("Hello.", None).await, Turned::Said);
        desk.faultless();
        let models = models(&desk.api);
        assert_eq!((models.len(), models.last().unwrap().as_str()), (requests, SECOND));
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_model_can_be_had_it_is_said_at_once() {
    let spent = Reply::Error { status: 429, kind: "rate_limit_error", headers: Vec::new(), code: Some("enforced_spend_limit_reached") };
    for (reply, requests) in [
        (spent, 1),
        (error(401, "authentication_error", Vec::new()), 1),
        (error(402, "billing_error", Vec::new()), 1),
        (Reply::Nothing, 3),
        (Reply::Answer(bare(vec![text("No.")], "refusal")), 2),
    ] {
        let begun = Instant::now();
        let desk = desk(Api::replies(vec![reply]), recorded(STALL));
        let (_, mut session) = desk.session();
        let Turned::Unavailable(said) = session.prompt("Hello.", None).await else { panic!("an answer") };
        assert!(said.next.contains("runbook") && !said.to_string().contains('\u{1b}'), "{said}");
        assert_eq!(desk.api.requests().len(), requests);
        assert!(begun.elapsed() < Duration::from_secs(20));
        // What comes next is a whole conversation again.
        let _the_same = session.prompt("And now?", None).await;
        desk.faultless();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_network_reaches_the_runbook_which_brings_the_vm_back() {
    let desk = desk(Api::replies(vec![Reply::Nothing]), recorded(STALL));
    let incident = desk.store.create("the watch saw it", By::Watch, None).unwrap();
    let (healthy, said) = agent::chat::alone(Some(&desk.mind), &desk.hands, &incident, "VM 102 is block-stalled.").await;
    assert!(healthy, "{said}");
    assert!(desk.verbs().contains(&Verb::Cycle) && desk.world.state() == "well");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_runs_nothing_and_is_not_paid_for_twice() {
    let whole = bare(vec![text("Now."), verb("pve_cycle")], "tool_use").stream();
    let cut_at = |word: &str| whole[..whole.find(word).unwrap()].to_owned();
    let error = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"x\"}}\n\n";
    for broken in [
        stream(cut_at("message_stop"), false),
        stream(cut_at("message_stop"), true),
        stream(cut_at("partial_json"), true),
        stream(format!("{}{error}", cut_at("event: message_delta")), false),
        stream(format!("{}data: {{\"type\":\n\n", cut_at("event: message_delta")), false),
        stream(String::new(), false),
    ] {
        let api = Api::start(move |body, _| if body["model"] == FIRST { broken.clone() } else { done() });
        let desk = desk(api, recorded(STALL));
        let (incident, mut session) = desk.session();
        assert_eq!(session.prompt("Hello.", None).await, Turned::Said);
        desk.faultless();
        assert_eq!((models(&desk.api), desk.verbs()), (vec![FIRST.to_owned(), SECOND.to_owned()], vec![]));
        assert!(!desk.lines(&incident).iter().any(|what| matches!(what, What::Call { .. })));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_was_cut_or_is_no_json_is_told_and_never_run() {
    let cycle = |input: &str| call("pve_cycle", json!(input));
    for (first, word) in [
        (bare(vec![cycle("{\"reason\": \"sta")], "max_tokens"), "cut off"),
        (bare(vec![cycle("{\"reason\": \"stalled\"}")], "max_tokens"), "cut off"),
        (bare(vec![cycle("{\"reason\": stalled}")], "tool_use"), "cut off"),
        (bare(vec![cycle("[1]")], "tool_use"), "cut off"),
        (bare(vec![cycle("{\"reason\": \"x\", \"force\": true}")], "tool_use"), "not what the tool takes"),
        (bare(vec![call("pve_destroy", json!({"reason": "x"}))], "tool_use"), "no tool of that name"),
        (bare(vec![cycle("{\"reason\": \"stalled\"}")], "end_turn"), "cut off"),
    ] {
        let desk = desk(Api::replies(vec![Reply::Answer(first), done()]), recorded(STALL));
        assert_eq!(desk.session().1.prompt("Hello.", None).await, Turned::Said);
        desk.faultless();
        assert!(desk.verbs().is_empty());
        let told = results(&desk.api.requests()[1]).unwrap();
        assert!(told.contains(word), "{told}");
    }
}

/// A result goes back by the call's id, and so does a person's yes: it has to mean one call.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_an_id_of_its_own_is_never_run() {
    let under = |name: &str, id: &str| {
        let mut block = call(name, json!({ "reason": "stalled" }));
        block["id"] = json!(id);
        Reply::Answer(bare(vec![block], "tool_use"))
    };
    for id in ["toolu_same", "", "a b"] {
        let desk = desk(Api::replies(vec![under("pve_status", "toolu_same"), under("pve_cycle", id), done()]), recorded(STALL));
        let (incident, mut session) = desk.session();
        assert_eq!(session.prompt("Hello.", None).await, Turned::Said);
        desk.faultless();
        assert_eq!((models(&desk.api), desk.verbs()), (vec![FIRST.to_owned(), FIRST.to_owned(), SECOND.to_owned()], vec![Verb::Status]));
        assert_eq!(desk.lines(&incident).iter().filter(|what| matches!(what, What::Call { .. })).count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_cut_at_its_longest_or_pauses_is_gone_on_with() {
    for stop in ["max_tokens", "pause_turn"] {
        let desk = desk(Api::replies(vec![Reply::Answer(bare(vec![text("First I")], stop)), done()]), recorded(STALL));
        assert_eq!(desk.session().1.prompt("Hello.", None).await, Turned::Said);
        desk.faultless();
        assert_eq!(desk.api.requests().len(), 2);
    }
    let desk = desk(Api::replies(vec![Reply::Answer(bare(vec![text("x")], "model_context_window_exceeded"))]), recorded(STALL));
    assert!(matches!(desk.session().1.prompt("Hello.", None).await, Turned::Stopped(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_known_yet_is_passed_over_and_goes_back_unchanged() {
    let weather = json!({ "type": "weather", "rain": [1, 2] });
    let mut answer = bare(vec![weather.clone(), verb("pve_status")], "tool_use").stream();
    let news = "event: news\ndata: {\"type\":\"news\",\"x\":1}\n\n: comment\n\nevent: content_block_delta\n\
                data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"sun_delta\",\"sun\":1}}\n\n";
    let at = answer.find("event: message_delta").unwrap();
    answer.insert_str(at, news);
    let desk = desk(Api::replies(vec![stream(answer, false), done()]), recorded(STALL));
    assert_eq!(desk.session().1.prompt("Hello.", None).await, Turned::Said);
    desk.faultless();
    assert_eq!(desk.api.requests()[1]["messages"][1]["content"][0], weather);
    assert_eq!(desk.verbs(), [Verb::Status]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_byte_by_byte_is_the_same_answer() {
    let answer = bare(vec![text("Größe: 𝄞"), verb("pve_status")], "tool_use").stream();
    let pieces = answer.bytes().map(|byte| vec![byte]).collect();
    let drip = Reply::Stream { pieces, cut: false, pause: Duration::from_micros(100) };
    let desk = desk(Api::replies(vec![drip, done()]), recorded(STALL));
    let (incident, mut session) = desk.session();
    assert_eq!(session.prompt("Hello.", None).await, Turned::Said);
    desk.faultless();
    assert!(desk.lines(&incident).iter().any(|what| matches!(what, What::Text { text } if text == "Größe: 𝄞")));
    assert_eq!(desk.verbs(), [Verb::Status]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_mib_of_output_head_and_tail_are_sent_and_all_is_stored() {
    let prints = format!("the first line\n{}the last line\n", "0123456789abcdef\n".repeat(130_000));
    let desk = desk(Api::replies(vec![say(vec![verb("pve_forensics"), exec("dmesg")]), done()]), printing(&prints));
    let (incident, mut session) = desk.session();
    assert_eq!(session.prompt("Hello.", None).await, Turned::Said);
    desk.faultless();
    let told = results(&desk.api.requests()[1]).unwrap();
    assert!(told.contains("| the first line") && told.contains("| the last line") && told.contains("bytes left out"));
    assert!(told.len() < 60_000, "{}", told.len());
    let stored = std::fs::read(incident.folder().join("artifacts/exec/1.txt")).unwrap();
    assert_eq!(stored, prints.as_bytes());
}

/// Hands whose every command hangs until its time is over.
struct Hanging(Arc<World>);

impl Hands for Hanging {
    fn vmid(&self) -> proto::Vmid {
        self.0.vmid()
    }

    fn verb(&self, ask: VerbAsk, news: Sender<VerbNews>) -> Doing<'_, VerbEnd> {
        self.0.verb(ask, news)
    }

    fn exec(&self, ask: ExecAsk, _: Sender<ExecNews>) -> Doing<'_, ExecEnd> {
        Box::pin(async move {
            tokio::time::sleep(ask.timeout).await;
            ExecEnd::TimedOut
        })
    }
}

/// A conversation of an incident that has so much left of its one minute.
fn nearly_over(desk: &Desk, hands: &Arc<dyn Hands>, left: Duration) -> (Arc<Incident>, Session) {
    let key = Some(desk.folder.path().join("key"));
    let settings = Settings { base_url: Some(desk.api.url.clone()), api_key_file: key, ..Settings::default() };
    let mind = Mind::new(&settings, Budget { minutes: 1, ..Budget::default() }, &desk.store, hands).unwrap().unwrap();
    let incident = desk.store.create("a test", By::Human, None).unwrap();
    let ms = u64::try_from((Duration::from_secs(60) - left).as_millis()).unwrap();
    let (model, stop, api_request) = (FIRST.to_owned(), "end_turn".to_owned(), None);
    let turn = What::Turn { model, stop, api_request, input: 1, output: 1, cache_read: 0, cache_write: 0, usd: 0.0, ms };
    incident.note(incident.task(), By::Agent, turn);
    let session = Session::open(&mind, &incident).unwrap();
    (incident, session)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_minutes_hold_for_the_many_calls_of_one_answer_too() {
    let wait = |n: u32| call("devvm_exec", json!({ "command": format!("sleep {n}"), "timeout_s": 600, "reason": "it waits" }));
    let desk = desk(Api::replies(vec![say(vec![verb("pve_forensics"), wait(1), wait(2), verb("pve_cycle")]), done()]), recorded(STALL));
    let hands: Arc<dyn Hands> = Arc::new(Hanging(Arc::clone(&desk.world)));
    let (incident, mut session) = nearly_over(&desk, &hands, Duration::from_secs(8));
    let turned = tokio::time::timeout(Duration::from_secs(60), session.prompt("Hello.", None)).await.expect("its time is over");
    let Turned::Stopped(said) = turned else { panic!("{turned:?}") };
    assert!(said.what.contains("1 minutes"), "{said}");
    desk.faultless();
    let lines = desk.lines(&incident);
    let asked: Vec<u64> =
        lines.iter().filter_map(|what| if let What::ExecAsked { timeout_s, .. } = what { Some(*timeout_s) } else { None }).collect();
    assert!(asked.len() == 1 && asked[0] <= 8, "{asked:?}");
    assert_eq!(desk.verbs(), [Verb::Forensics], "nothing is begun behind the end of its time");
}

#[tokio::test(flavor = "multi_thread")]
async fn minutes_that_an_answer_without_end_has_used_are_used() {
    let desk = desk(Api::replies(vec![Reply::Silence(Duration::from_secs(60))]), recorded(STALL));
    let (_, mut session) = nearly_over(&desk, &desk.hands, Duration::from_secs(8));
    for _ in 0..3 {
        assert!(matches!(session.prompt("Hello.", None).await, Turned::Stopped(_)));
    }
    assert_eq!(desk.api.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_did_during_the_last_answer_is_told_also_when_the_conversation_was_put_away() {
    let text = bare(vec![text("Well.")], "end_turn").stream();
    let pieces = text.as_bytes().chunks(text.len() / 8).map(<[u8]>::to_vec).collect();
    let slowly = Reply::Stream { pieces, cut: false, pause: Duration::from_millis(200) };
    let desk = desk(Api::replies(vec![slowly, done()]), recorded(STALL));
    let (incident, mut session) = desk.session();
    let talk = tokio::spawn(async move { session.prompt("Hello.", None).await });
    while desk.api.requests().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    incident.verb(&desk.hands, incident.task(), By::Human, Verb::Forensics, Asks::default()).unwrap().end().await.unwrap();
    assert_eq!(talk.await.unwrap(), Turned::Said);
    let mut session = Session::open(&desk.mind, &incident).unwrap();
    assert_eq!(session.prompt("And now?", None).await, Turned::Said);
    desk.faultless();
    let requests = desk.api.requests();
    let last = requests[1]["messages"].as_array().unwrap().last().unwrap();
    assert!(last["role"] == "system" && last.to_string().contains("A person asked for forensics"), "{last}");
    // Once.
    let mut session = Session::open(&desk.mind, &incident).unwrap();
    assert_eq!(session.prompt("And now?", None).await, Turned::Said);
    assert_eq!(desk.api.requests()[2]["messages"].as_array().unwrap().last().unwrap()["role"], "user");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_a_crash_tore_within_a_character_is_taken_away() {
    let desk = desk(Api::replies(vec![done()]), recorded(STALL));
    let (incident, mut session) = desk.session();
    assert_eq!(session.prompt("Größe?", None).await, Turned::Said);
    drop(session);
    let path = incident.folder().join("messages.jsonl");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.extend_from_slice(b"{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"Gr\xc3");
    std::fs::write(&path, bytes).unwrap();
    let mut session = Session::open(&desk.mind, &incident).unwrap();
    assert_eq!(session.prompt("And now?", None).await, Turned::Said);
    desk.faultless();
}

/// The end of an incident in which nothing was changed, with a devvm that every command ends like this on.
async fn at_the_end(end: ExecEnd) -> (bool, String, Vec<Verb>) {
    let desk = desk(Api::replies(vec![]), printing(""));
    let (incident, _session) = desk.session();
    let hands: Arc<dyn Hands> = Arc::new(Unasked { world: Arc::clone(&desk.world), end });
    let (healthy, said) = verdict(&hands, &incident, incident.task()).await;
    (healthy, said.to_string(), desk.verbs())
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_end_a_devvm_that_nobody_can_ask_is_told_from_one_that_does_not_answer() {
    let (healthy, said, verbs) = at_the_end(ExecEnd::Absent).await;
    assert!(healthy && said.contains("nobody asked the guest"), "{said}");
    assert_eq!(verbs, [Verb::Forensics, Verb::Status], "two looks from the host");
    let (healthy, said, _) = at_the_end(ExecEnd::Exited(1)).await;
    assert!(!healthy && said.contains("can't be asked") && !said.contains("does not answer"), "{said}");
    let changed = ExecEnd::HostKeyChanged { pinned: "SHA256:old".to_owned(), shown: "SHA256:new".to_owned() };
    let (healthy, said, _) = at_the_end(changed).await;
    assert!(!healthy && said.contains("SHA256:new") && said.contains("devvm accept"), "{said}");
    let (healthy, said, _) = at_the_end(ExecEnd::TimedOut).await;
    assert!(!healthy && said.contains("does not answer over SSH"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_unknown_result_a_look_that_the_model_has_not_read_does_not_count() {
    let start = || say(vec![verb("pve_start")]);
    let cycle = say(vec![verb("pve_forensics"), verb("pve_cycle")]);
    let desk = desk(Api::replies(vec![cycle, done(), start(), done(), say(vec![verb("pve_status")]), start(), done()]), recorded(UNKNOWN));
    let (incident, mut session) = desk.session();
    assert_eq!(session.prompt("Hello.", None).await, Turned::Said);
    // The look at the end, and a person's: neither is in the conversation.
    verdict(&desk.hands, &incident, incident.task()).await;
    incident.verb(&desk.hands, incident.task(), By::Human, Verb::Status, Asks::default()).unwrap().end().await.unwrap();
    assert_eq!(incident.facts().unknown, None, "shown as known");
    assert_eq!(session.prompt("And?", None).await, Turned::Said);
    let starts = || desk.verbs().into_iter().filter(|verb| *verb == Verb::Start).count();
    assert!(starts() == 0 && results(desk.api.requests().last().unwrap()).unwrap().contains("was not sent"), "{:?}", desk.verbs());
    assert_eq!(session.prompt("Look.", None).await, Turned::Said);
    desk.faultless();
    assert_eq!(starts(), 1);
}
