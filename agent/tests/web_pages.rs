//! What the pages say: the whole way of a stall, over a reload, a second device and a restart; text of others; unknown is never success.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/browser.rs"]
mod browser;
#[path = "support/page.rs"]
mod page;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use browser::Browser;
use page::{How, Page, recorded};

#[tokio::test(flavor = "multi_thread")]
async fn a_stall_is_seen_confirmed_watched_and_over_and_a_second_device_sees_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let how = How { pace: Duration::from_millis(60), ..How::stalled(folder.path()) };
    let page = Page::serve(folder.path(), how).await;
    let (phone, laptop) = (Browser::anna(&page.url("")), Browser::machine(&page.url("")).with("accept", "text/html"));
    let home = phone.until("/", "Block stalled").await;
    page.hands.held.store(true, Ordering::Relaxed);
    assert!(home.text.contains("Advice: cycle") && home.text.contains("action=\"/verbs/cycle/confirm\""), "{}", home.text);
    let run = phone.confirm("cycle").await;
    let live = phone.until(&run, "Safe on disk").await;
    assert!(live.text.contains("<noscript><meta http-equiv=\"refresh\" content=\"2\">") && live.text.contains("left"), "{}", live.text);
    assert!(laptop.get(&run).await.text.contains("Cycle of VM 102"), "the other device");
    assert!(laptop.get("/").await.text.contains("cycle runs"), "and the first screen there");
    page.hands.held.store(false, Ordering::Relaxed);
    phone.until(&run, "qm-start").await;
    let end = phone.until(&run, "Looks healthy").await;
    assert!(end.text.contains("card outcome good") && end.text.contains("valid, signed by pve"), "{}", end.text);
    assert_eq!(laptop.get(&run).await.text.matches("card outcome good").count(), 1);
    let incident = end.text.split("/incidents/").nth(1).unwrap()[..36].to_owned();
    let story = phone.until(&format!("/incidents/{incident}"), "Ended, healthy").await;
    assert!(story.text.contains("a test") && story.text.contains("anna (password)"), "{}", story.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_the_middle_asks_after_the_verb_and_starts_nothing() {
    use agent::evals::world::Act;
    let folder = tempfile::tempdir().unwrap();
    let how = How { pace: Duration::from_millis(80), ..How::stalled(folder.path()) };
    let (door, claude) = (how.door.clone(), how.claude.clone());
    // The log as a server leaves it that was killed after the verb's first line.
    let mut page = Page::serve(folder.path(), how).await;
    let anna = Browser::anna(&page.url(""));
    anna.until("/", "Block stalled").await;
    page.hands.held.store(true, Ordering::Relaxed);
    let run = anna.confirm("cycle").await;
    anna.until(&run, "captured").await;
    page.stop();
    let hands = Arc::clone(&page.hands);
    let killed = tempfile::tempdir().unwrap();
    copy(&folder.path().join("incidents"), &killed.path().join("incidents"));
    hands.held.store(false, Ordering::Relaxed);
    let again = Page::with(killed.path(), hands, door, claude, "127.0.0.1:0".parse().unwrap()).await;
    let anna = Browser::anna(&again.url(""));
    let end = anna.until(&run, "card outcome good").await;
    assert!(end.text.contains("valid, signed by pve"));
    let cycles = again.hands.world.acts().into_iter().filter(|act| matches!(act, Act::Verb { verb: proto::Verb::Cycle, .. })).count();
    assert_eq!(cycles, 1, "never twice");
    let incident = &end.text.split("/incidents/").nth(1).unwrap()[..36];
    let log = std::fs::read_to_string(killed.path().join(format!("incidents/{incident}/events.jsonl"))).unwrap();
    assert_eq!(log.matches("\"attach\":true").count(), 1, "asked after, once: {log}");
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
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

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_result_is_never_drawn_as_a_good_one() {
    let folder = tempfile::tempdir().unwrap();
    let how = How { case: recorded("cycle-with-unknown-end"), ..How::stalled(folder.path()) };
    let page = Page::serve(folder.path(), how).await;
    let anna = Browser::anna(&page.url(""));
    anna.until("/", "Block stalled").await;
    let run = anna.confirm("cycle").await;
    let end = anna.until(&run, "Result unknown").await;
    assert!(end.text.contains("card outcome unknown") && !end.text.contains("outcome good"), "{}", end.text);
    let list = anna.get("/incidents").await;
    assert!(!list.text.contains("pill good"), "{}", list.text);
    let now = anna.until("/", "QEMU could not be asked").await;
    assert!(!now.text.contains("card state good"), "{}", now.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_is_drawn_as_what_it_saw_and_not_as_done() {
    for (case, first, class, heading) in [
        ("2026-06-11-block-stall", "Block stalled", "bad", "block stalled"),
        ("disk-full", "disk is full", "warn", "guest's disk is full"),
        ("healthy-idle", "Looks healthy", "good", "looks healthy"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let page = Page::serve(folder.path(), How { case: recorded(case), ..How::stalled(folder.path()) }).await;
        let anna = Browser::anna(&page.url(""));
        anna.until("/", first).await;
        for verb in ["Status", "Forensics"] {
            let run = anna.post(&format!("/verbs/{}", verb.to_lowercase()), &[]).await.to();
            let end = anna.until(&run, &format!("card outcome {class}")).await;
            assert!(end.text.contains(&format!("<h1 class=\"headline\">{verb}: {heading}</h1>")), "{}", end.text);
            assert!(!end.text.contains("before it acted"), "{}", end.text);
            let incident = end.text.split("/incidents/").nth(1).unwrap()[..36].to_owned();
            let story = anna.get(&format!("/incidents/{incident}")).await.text;
            assert!(story.contains(&format!("<span class=\"pill {class}\">")) && !story.contains(">Done<"), "{story}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_host_costs_nobody_any_time_and_the_buttons_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let page = Page::serve(folder.path(), How::stalled(folder.path())).await;
    let anna = Browser::anna(&page.url(""));
    anna.until("/", "Block stalled").await;
    page.hands.silent.store(true, Ordering::Relaxed);
    let mut slowest = Duration::ZERO;
    let silent = async {
        loop {
            let began = Instant::now();
            let got = anna.get("/").await;
            slowest = slowest.max(began.elapsed());
            if got.text.contains("Host silent") {
                return got;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let got = tokio::time::timeout(Duration::from_secs(45), silent).await.expect("the page says that the host is silent");
    // Whoever waited for the host would wait until it is shown as silent, which is after 8 s, or for ever.
    assert!(slowest < Duration::from_secs(6), "{slowest:?}");
    assert_eq!(got.text.matches("<button class=\"verb").count(), 6, "{}", got.text);
    assert!(!got.text.contains("card state good"));
    assert!(got.text.contains("Last seen") && got.text.contains("<b>Block stalled</b>, running. Nobody knows"), "{}", got.text);
    let began = Instant::now();
    let run = anna.confirm("cycle").await;
    assert!(began.elapsed() < Duration::from_secs(10), "a button is taken at once: {:?}", began.elapsed());
    assert!(anna.get(&run).await.text.contains("Asking the host"));
    page.hands.silent.store(false, Ordering::Relaxed);
    anna.until(&run, "card outcome good").await;
}

/// What guests, hostnames and chats try.
const EVIL: [&str; 9] = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "'><svg/onload=alert(1)>",
    "</pre></main><iframe src=javascript:alert(1)>",
    "</textarea><script src=//evil.example/x.js></script>",
    "<a href=\"javascript:alert(1)\">x</a>",
    "<style>@import url(//evil.example)</style>",
    "<!-- --><base href=//evil.example>",
    "\u{202e}\u{0}\u{1b}[2J<form action=//evil.example>",
];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_guest_a_host_or_a_person_says_becomes_markup() {
    let all = EVIL.join(" ");
    let mut case = recorded("2026-06-11-block-stall");
    let state = case.state.get_mut("stalled").unwrap();
    state.sentence = format!("VM 102 is block-stalled: {all}");
    state.why = all.clone();
    state.artifacts.insert("guest/journal.txt".to_owned(), all.clone());
    state.artifacts.insert("guest/page.html".to_owned(), format!("<!DOCTYPE html>{all}"));
    state.reachable = true;
    state.answers = vec![agent::evals::case::Answer { when: vec![], prints: all.clone(), exit: 0, hangs: false, to: None }];
    let folder = tempfile::tempdir().unwrap();
    let page = Page::serve(folder.path(), How { case, ..How::stalled(folder.path()) }).await;
    let anna = Browser::anna(&page.url(""));
    anna.until("/", "Block stalled").await;
    let run = anna.post("/verbs/forensics", &[("reason", &all)]).await.to();
    anna.until(&run, "card outcome bad").await;
    let id = run.rsplit('/').next().unwrap().to_owned();
    let asked = anna.post("/runbook", &[("text", &all)]).await;
    let incident = anna.post("/runbook", &[("token", &asked.hidden("token")), ("text", &all)]).await.to();
    let incident = incident.split('#').next().unwrap().to_owned();
    let again = anna.post("/incidents", &[("token", "spent"), ("text", &all)]).await;
    assert_eq!(again.status, 409);
    anna.until(&incident, "devvm").await;
    let question = anna.get(&format!("/verbs/cycle/confirm?incident={}&reason={}", "%22%3E%3Cscript%3E", "%3Cscript%3E")).await;
    let mut pages = vec![asked, again, question];
    for path in [
        "/",
        "/incidents",
        "/evidence",
        "/receipts",
        "/doctor",
        "/hostkey",
        &run,
        &incident,
        &format!("/evidence/{id}"),
        &format!("/evidence/{id}/guest/journal.txt"),
        &format!("/evidence/{id}/guest/page.html"),
        "/nowhere/<script>",
    ] {
        pages.push(anna.get(&path.replace('<', "%3C").replace('>', "%3E")).await);
    }
    for got in &pages {
        let text = &got.text;
        for evil in [
            "<script>",
            "<img src=x",
            "<svg/",
            "<iframe",
            "<style>",
            "<base",
            "<a href=\"javascript",
            "<form action=//",
            "evil.example>",
            "\u{202e}",
            "\u{1b}",
            "onerror=alert(1)>",
        ] {
            assert!(!text.contains(evil), "{evil} in {text}");
        }
        for tag in text.split('<').skip(1).filter(|tag| tag.starts_with("script")) {
            assert!(tag.starts_with("script type=\"module\" src=\"/assets/app.js\">"), "{tag}");
        }
        assert!(!text.contains(" style=") && !text.contains(" onclick="), "inline");
    }
    // The file itself: never a page.
    let raw = anna.get(&format!("/artifacts/{id}/guest/page.html")).await;
    assert_eq!((raw.status, raw.headers["content-type"].to_str().unwrap()), (200, "text/plain; charset=utf-8"));
    assert!(
        raw.headers["content-security-policy"].to_str().unwrap().contains("sandbox") && raw.headers["x-content-type-options"] == "nosniff"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_leads_to_no_file_but_the_evidences_own() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret-of-the-state"), "hidden").unwrap();
    let page = Page::serve(folder.path(), How::stalled(folder.path())).await;
    let anna = Browser::anna(&page.url(""));
    anna.until("/", "Block stalled").await;
    let run = anna.post("/verbs/forensics", &[]).await.to();
    let end = anna.until(&run, "card outcome bad").await;
    let id = run.rsplit('/').next().unwrap();
    let incident = &end.text.split("/incidents/").nth(1).unwrap()[..36];
    assert_eq!(anna.get(&format!("/artifacts/{id}/qmp/query-status.json")).await.status, 200);
    for path in [
        "../events.jsonl",
        "..%2f..%2fsecret-of-the-state",
        "%2e%2e/%2e%2e/%2e%2e/secret-of-the-state",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "qmp",
        "qmp/",
        "qmp/..",
        "qmp/query-status.json%00",
        ".",
    ] {
        for place in [
            format!("/artifacts/{id}/"),
            format!("/evidence/{id}/"),
            format!("/incidents/{incident}/files/artifacts/"),
            "/assets/".to_owned(),
            "/runs/".to_owned(),
        ] {
            let got = anna.get(&format!("{place}{path}")).await;
            assert!(got.status >= 400 || !got.text.contains("hidden") && !got.text.contains("root:"), "{place}{path}: {}", got.text);
            assert!(!got.text.contains("\"event\":"), "{place}{path}");
        }
    }
    let tar = anna.get(&format!("/evidence/{id}/tar")).await;
    assert!(tar.headers["content-disposition"].to_str().unwrap().ends_with(".tar\"") && tar.text.contains("qmp/query-status.json"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_is_small_strict_and_loads_nothing_from_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let page = Page::serve(folder.path(), How::stalled(folder.path())).await;
    let anna = Browser::anna(&page.url(""));
    anna.until("/", "Block stalled").await;
    let run = anna.confirm("cycle").await;
    let end = anna.until(&run, "card outcome good").await;
    let incident = end.text.split("/incidents/").nth(1).unwrap()[..36].to_owned();
    let shared = anna.get("/assets/style.css").await.text.len()
        + anna.get("/assets/app.js").await.text.len()
        + anna.get("/assets/icon.svg").await.text.len();
    for path in [
        "/".to_owned(),
        "/verbs/stop/confirm".to_owned(),
        "/runbook".to_owned(),
        run.clone(),
        format!("/incidents/{incident}"),
        "/incidents".to_owned(),
        "/evidence".to_owned(),
        run.replace("/runs/", "/evidence/"),
        "/receipts".to_owned(),
        "/doctor".to_owned(),
        "/hostkey".to_owned(),
    ] {
        let got = anna.get(&path).await;
        assert_eq!(got.status, 200, "{path}");
        assert!(got.text.len() + shared <= 60_000, "{path} weighs {}", got.text.len() + shared);
        let csp = got.headers["content-security-policy"].to_str().unwrap();
        assert!(csp.contains("default-src 'none'") && csp.contains("frame-ancestors 'none'") && !csp.contains("unsafe"), "{csp}");
        assert!(got.headers["x-content-type-options"] == "nosniff" && got.headers["cache-control"] == "no-store");
        assert!(!got.text.contains("://"), "{path} names another place: {}", got.text);
        assert!(got.text.contains("<html lang=\"en\">") && got.text.matches("<h1").count() >= 1, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_after_the_last_line_that_was_seen() {
    let folder = tempfile::tempdir().unwrap();
    let page = Page::serve(folder.path(), How::stalled(folder.path())).await;
    let anna = Browser::anna(&page.url(""));
    anna.until("/", "Block stalled").await;
    let run = anna.confirm("cycle").await;
    let end = anna.until(&run, "card outcome good").await;
    let events = format!("/incidents/{}/events", &end.text.split("/incidents/").nth(1).unwrap()[..36]);
    let first = read(&anna, &events, 8).await;
    assert_eq!(first.iter().filter(|line| line.starts_with("id:")).count(), 8);
    assert_eq!(first[0], "event: beat", "a heartbeat is an event");
    let ids = |lines: &[String]| -> Vec<u64> { lines.iter().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()).collect() };
    assert_eq!(ids(&first), (1..=8).collect::<Vec<u64>>());
    let resumed = read(&anna.clone().with("last-event-id", "8"), &events, 3).await;
    assert_eq!(ids(&resumed), [9, 10, 11]);
    assert_eq!(ids(&read(&anna, &format!("{events}?after=5"), 2).await), [6, 7]);
    let gone = read(&anna, "/incidents/01010101-0101-4101-8101-010101010101/events", 1).await;
    assert!(gone.iter().any(|line| line == "event: gone"), "{gone:?}");
}

/// The lines of a stream until so many ids came, or it ended.
async fn read(browser: &Browser, path: &str, ids: usize) -> Vec<String> {
    let mut answer = browser.stream(path).await;
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    while text.matches("\nid: ").count() + usize::from(text.starts_with("id: ")) < ids || !text.ends_with("\n\n") {
        match tokio::time::timeout(Duration::from_secs(15), answer.chunk()).await.expect("nothing comes").unwrap() {
            Some(chunk) => text.push_str(&String::from_utf8_lossy(&chunk)),
            None => break,
        }
    }
    let mut seen = 0;
    text.lines()
        .take_while(|line| {
            seen += usize::from(line.starts_with("id: "));
            seen <= ids
        })
        .map(str::to_owned)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_host_key_of_the_devvm_is_accepted_by_a_person_who_compared_it() {
    let folder = tempfile::tempdir().unwrap();
    let page = Page::serve(folder.path(), How::stalled(folder.path())).await;
    let anna = Browser::anna(&page.url(""));
    let asked = anna.get("/hostkey").await;
    let (token, shown) = (asked.hidden("token"), asked.hidden("fingerprint"));
    assert!(asked.text.contains("They differ") && asked.text.contains("SHA256:ZmlsZQ"), "{}", asked.text);
    let fields = |compared: bool, token: &str| {
        let all = [("token", token.to_owned()), ("fingerprint", shown.clone()), ("compared", "yes".to_owned())];
        all.into_iter().take(if compared { 3 } else { 2 }).collect::<Vec<_>>()
    };
    let send = async |fields: Vec<(&str, String)>| {
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        anna.post("/hostkey", &fields).await
    };
    assert_eq!(send(fields(false, &token)).await.status, 409, "nobody said that it was compared");
    assert_eq!(send(fields(true, &token)).await.status, 409, "spent");
    let token = anna.get("/hostkey").await.hidden("token");
    assert_eq!(send(fields(true, &token)).await.to(), "/hostkey");
    assert!(anna.get("/hostkey").await.text.contains("They are the same"));
}
