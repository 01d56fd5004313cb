//! What begins a turn on the page, what ends it, and what a restart leaves of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api;
#[path = "support/browser.rs"]
mod browser;
#[path = "support/page.rs"]
mod page;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agent::claude::Settings;
use agent::evals::case::Case;
use agent::evals::world::Act;
use api::{Api, KEY, Reply, say, text, verb};
use browser::Browser;
use page::{How, Page, every_way, recorded};
use proto::Verb;

fn claude(folder: &Path, api: &Api) -> Settings {
    let key = folder.join("key");
    std::fs::write(&key, format!("{KEY}\n")).unwrap();
    Settings { base_url: Some(api.url.clone()), api_key_file: Some(key), ..Settings::default() }
}

async fn served(folder: &Path, api: &Api, case: Case, first: &str) -> (Page, Browser) {
    let page = Page::serve(folder, How { case, claude: claude(folder, api), ..How::stalled(folder) }).await;
    let anna = Browser::anna(&page.url(""));
    anna.until("/", first).await;
    (page, anna)
}

/// The state folder as a kill leaves it now, served again with this API. The one that was killed goes on where it was, unseen.
async fn killed(page: &mut Page, from: &Path, folder: &Path, api: &Api) -> (Page, Browser) {
    page.stop();
    copy(&from.join("incidents"), &folder.join("incidents"));
    let to = "127.0.0.1:0".parse().unwrap();
    let again = Page::with(folder, Arc::clone(&page.hands), every_way(folder), claude(folder, api), to).await;
    let anna = Browser::anna(&again.url(""));
    (again, anna)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

async fn said(anna: &Browser, words: &str) -> String {
    let token = anna.get("/").await.hidden("token");
    anna.post("/incidents", &[("token", &token), ("text", words)]).await.to()
}

/// The verbs but for looks at the state.
fn verbs(page: &Page) -> Vec<Verb> {
    let verb = |act: Act| if let Act::Verb { verb, .. } = act { Some(verb) } else { None };
    page.hands.world.acts().into_iter().filter_map(verb).filter(|verb| *verb != Verb::Status).collect()
}

/// An API that never answers.
fn silent() -> Api {
    Api::start(|_, _| Reply::Silence(Duration::from_secs(60)))
}

/// An API that has no model for us.
fn dead() -> Api {
    Api::replies(vec![Reply::Error { status: 401, kind: "authentication_error", headers: vec![], code: None }])
}

async fn asked(api: &Api) {
    while api.requests().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Somebody stopped the VM meanwhile, over ssh: a runbook that began by itself would start it.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_without_a_model_the_runbook_waits_for_a_person() {
    let (folder, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let api = silent();
    let (mut page, anna) = served(folder.path(), &api, recorded("stopped-by-an-admin"), "Stopped").await;
    let incident = said(&anna, "The devvm hangs.").await;
    asked(&api).await;
    let (again, anna) = killed(&mut page, folder.path(), after.path(), &dead()).await;
    let idle = anna.until(&incident, "The runbook can go on: press its button.").await;
    assert!(idle.text.contains("could not be had") && !idle.text.contains("The runbook goes on."), "{}", idle.text);
    assert!(verbs(&again).is_empty(), "{:?}", verbs(&again));
}

/// Its sshd stays away after the cycle, and a booting devvm is waited for for minutes.
#[tokio::test(flavor = "multi_thread")]
async fn the_look_at_the_end_is_stopped_like_the_turn() {
    let mut case = recorded("2026-06-11-block-stall");
    case.state.values_mut().for_each(|state| state.reachable = false);
    let replies = vec![say(vec![verb("pve_forensics")]), say(vec![verb("pve_cycle")]), say(vec![text("It is well.")])];
    let folder = tempfile::tempdir().unwrap();
    let (page, anna) = served(folder.path(), &Api::replies(replies), case, "Block stalled").await;
    let incident = said(&anna, "The devvm hangs.").await;
    let busy = anna.until(&incident, "<code>uptime</code>").await.text;
    let token = busy.split("id=\"token-cancel\"").nth(1).unwrap().split("value=\"").nth(1).unwrap().split('"').next().unwrap();
    anna.post(&format!("{incident}/cancel"), &[("token", token)]).await.to();
    let end = anna.until(&incident, "The look at the end was stopped.").await;
    assert!(end.text.contains("Ended, not healthy.") && end.text.contains("Stopped by anna (password)"), "{}", end.text);
    assert_eq!(verbs(&page), [Verb::Forensics, Verb::Cycle, Verb::Forensics]);
}

/// What was found an hour ago says nothing of a runbook that a restart cut off.
#[tokio::test(flavor = "multi_thread")]
async fn a_runbook_that_a_restart_cut_off_names_who_began_it_and_leaves_no_old_end_standing() {
    let (folder, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut page, anna) = served(folder.path(), &dead(), recorded("healthy-idle"), "Looks healthy").await;
    let run = anna.post("/verbs/status", &[]).await.to();
    let id = anna.until(&run, "card outcome good").await.text.split("href=\"/incidents/").nth(1).unwrap()[..36].to_owned();
    let incident = format!("/incidents/{id}");
    anna.until(&incident, "<b>Healthy. </b>").await;
    let question = anna.get(&format!("/runbook?incident={id}")).await;
    // So that it is in the middle of its first look for as long as this takes.
    page.hands.silent.store(true, Ordering::Relaxed);
    anna.post("/runbook", &[("token", &question.hidden("token")), ("incident", &id)]).await.to();
    // First it waits, as everything that is asked for; then it begins.
    let begun = anna.until(&incident, "<b>anna (password)</b>").await.text;
    assert!(begun.contains("Run the runbook.</div>"), "{begun}");
    let list: serde_json::Value = serde_json::from_str(&Browser::machine(&page.url("")).get("/incidents").await.text).unwrap();
    assert_eq!(list[0]["ended"], serde_json::Value::Null, "{list}");
    let (_again, anna) = killed(&mut page, folder.path(), after.path(), &dead()).await;
    page.hands.silent.store(false, Ordering::Relaxed);
    let end = anna.until(&incident, "<b>Not healthy. </b>").await.text;
    assert!(end.contains("The program was started again in the middle of this."), "{end}");
    assert!(end.contains("<b>anna (password)</b>") && end.contains("Run the runbook.</div>"), "{end}");
}

/// The value of the token in this form.
fn token(page: &str, form: &str) -> String {
    page.split(form).nth(1).unwrap().split("value=\"").nth(1).unwrap().split('"').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_turn_is_written_shown_and_named_after_a_restart() {
    let (folder, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let api = silent();
    let (mut page, anna) = served(folder.path(), &api, recorded("2026-06-11-block-stall"), "Block stalled").await;
    let incident = said(&anna, "The devvm hangs.").await;
    asked(&api).await;
    let busy = anna.get(&incident).await.text;
    assert!(!busy.contains("waits for the turn"), "{busy}");
    let say = format!("{incident}/say");
    anna.post(&say, &[("token", &token(&busy, "id=\"token-say\"")), ("text", "Do NOT reset, with password=hunter22.")]).await.to();
    let waits = anna.get(&incident).await.text;
    assert!(waits.contains("<b>anna (password), waits for the turn</b>") && waits.contains("Do NOT reset"), "{waits}");
    let log = std::fs::read_to_string(folder.path().join(&incident[1..]).join("events.jsonl")).unwrap();
    assert!(log.contains("Do NOT reset") && !log.contains("hunter22"), "{log}");
    let (_again, anna) = killed(&mut page, folder.path(), after.path(), &dead()).await;
    let lost = anna.until(&incident, "<b>anna (password), never begun: this program was started again</b>").await.text;
    assert!(lost.contains("Do NOT reset") && lost.matches("<b>anna (password)</b>").count() == 1, "{lost}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runbook_that_waits_is_shown_and_not_asked_for_twice() {
    let folder = tempfile::tempdir().unwrap();
    let api = Api::start(|_, n| if n == 0 { Reply::Silence(Duration::from_secs(60)) } else { say(vec![text("Yes?")]) });
    let (page, anna) = served(folder.path(), &api, recorded("2026-06-11-block-stall"), "Block stalled").await;
    let incident = said(&anna, "Wait for me.").await;
    asked(&api).await;
    let busy = anna.get(&incident).await;
    let id = busy.hidden("incident");
    anna.post(&format!("{incident}/say"), &[("token", &token(&busy.text, "id=\"token-say\"")), ("text", "And now?")]).await.to();
    let question = format!("/runbook?incident={id}");
    anna.post("/runbook", &[("token", &anna.get(&question).await.hidden("token")), ("incident", &id)]).await.to();
    let again = anna.post("/runbook", &[("token", &anna.get(&question).await.hidden("token")), ("incident", &id)]).await;
    assert!(again.status == 409 && again.text.contains("or waits for the turn"), "{} {}", again.status, again.text);
    let waits = anna.get(&incident).await.text;
    assert!(waits.matches("waits for the turn</b>").count() == 2 && waits.contains("disabled>Run the runbook"), "{waits}");
    assert!(waits.contains("Stop the turn") && anna.get(&question).await.text.contains("It waits for the turn in this incident already."));
    // The stop is for what is at work, and for the runbook behind it; words are answered.
    anna.post(&format!("{incident}/cancel"), &[("token", &token(&waits, "id=\"token-cancel\""))]).await.to();
    let end = anna.until(&incident, "The runbook was stopped.").await.text;
    assert!(end.contains("Yes?") && end.matches("<b>anna (password)</b>").count() == 3 && !end.contains("waits for the turn"), "{end}");
    assert!(verbs(&page).is_empty(), "{:?}", verbs(&page));
}
