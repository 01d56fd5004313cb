//! What is asked in a way that nobody foresaw, and what is longer than anybody expected: the page stays a page, small, and in bounded memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod api;
#[path = "support/browser.rs"]
mod browser;
#[path = "support/page.rs"]
mod page;

use std::fmt::Write;
use std::time::Duration;

use agent::claude::Settings;
use agent::evals::case::Answer;
use agent::incident::{By, Store, What};
use api::{Api, KEY, exec, say, text, verb};
use browser::Browser;
use page::{How, Page, recorded};
use tokio::task::JoinSet;

/// With the style sheet, the module and the icon, which every page has.
const WEIGHT: usize = 60_000;

async fn served(folder: &tempfile::TempDir) -> (Page, Browser) {
    let page = Page::serve(folder.path(), How::stalled(folder.path())).await;
    let anna = Browser::anna(&page.url(""));
    anna.until("/", "Block stalled").await;
    (page, anna)
}

async fn weight(anna: &Browser, path: &str) -> usize {
    let mut all = 0;
    for one in [path, "/assets/style.css", "/assets/app.js", "/assets/icon.svg"] {
        all += anna.get(one).await.text.len();
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_route_takes_is_answered_by_a_page_that_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let (page, anna) = served(&folder).await;
    let client = agent::http::client(None).unwrap();
    let long = "x".repeat(70_000);
    for (method, path, kind, body, status) in [
        ("GET", "/verbs/reboot/confirm", "", "", 404),
        ("POST", "/verbs/reboot", "application/x-www-form-urlencoded", "", 404),
        ("PUT", "/", "", "", 405),
        ("DELETE", "/incidents", "", "", 405),
        ("POST", "/incidents", "application/json", "{}", 415),
        ("POST", "/incidents", "application/x-www-form-urlencoded", "text=a&text=b", 422),
        ("POST", "/incidents", "application/x-www-form-urlencoded", &long, 413),
        ("GET", "/incidents/01010101-0101-4101-8101-010101010101?before=x", "", "", 400),
    ] {
        for json in [false, true] {
            let method = method.parse::<reqwest::Method>().unwrap();
            // One connection each: what is too long is answered before all of it was read, and its connection is of no use then.
            let mut request = client.request(method.clone(), page.url(path)).headers(anna.headers.clone()).header("connection", "close");
            if json {
                request = request.header("accept", "application/json");
            }
            if !kind.is_empty() {
                request = request.header("content-type", kind).body(body.to_owned());
            }
            let mut request = request.build().unwrap();
            if json {
                request.headers_mut().insert("accept", "application/json".parse().unwrap());
            }
            let mut tries = 0..5;
            let (got, headers, text) = loop {
                let answer = async {
                    let answer = client.execute(request.try_clone().unwrap()).await?;
                    Ok::<_, reqwest::Error>((answer.status().as_u16(), answer.headers().clone(), answer.text().await?))
                };
                match answer.await {
                    Ok(answer) => break answer,
                    // Who is still sending when it ends may be told of the end first.
                    Err(why) => assert!(tries.next().is_some(), "{method} {path}: {why:?}"),
                }
            };
            assert_eq!(got, status, "{method} {path}: {text}");
            assert!(headers.contains_key("content-security-policy") && headers["x-content-type-options"] == "nosniff", "{method} {path}");
            if json {
                let said: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{method} {path}: {text}"));
                assert!(said["what"].is_string() && said["do"].is_string(), "{text}");
            } else {
                assert!(text.contains("<h1>") && text.contains("To the first screen"), "{method} {path}: {text}");
            }
        }
    }
    let looked = client.head(page.url("/")).headers(anna.headers.clone()).send().await.unwrap();
    assert_eq!(looked.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_that_is_asked_for_by_many_at_once_is_one_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (page, _anna) = served(&folder).await;
    let mut all = JoinSet::new();
    for _ in 0..20 {
        let stranger = Browser::stranger(&page.url(""));
        all.spawn(async move {
            let mut seen = Vec::new();
            for _ in 0..20 {
                let got = stranger.get("/readyz").await;
                seen.push((got.status, got.text));
            }
            seen
        });
    }
    while let Some(seen) = all.join_next().await {
        for one in seen.unwrap() {
            assert_eq!(one, (200, "ready\n".to_owned()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_only_looks_at_the_one_time_link_does_not_spend_it() {
    let folder = tempfile::tempdir().unwrap();
    let how = How { door: agent::web::auth::Settings::default(), ..How::stalled(folder.path()) };
    let page = Page::serve(folder.path(), how).await;
    let link = format!("/link/{}", page.app.link().unwrap());
    let looked = agent::http::client(None).unwrap().head(page.url(&link)).send().await.unwrap();
    assert!(looked.headers().get("set-cookie").is_none());
    assert_eq!(Browser::stranger(&page.url("")).get(&link).await.to(), "/");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_conversation_and_long_files_are_still_small_pages() {
    let mut log = String::new();
    for n in 0..4000 {
        writeln!(log, "line {n} <of> a \"log\" & more \u{1b}[31mred").unwrap();
    }
    let mut case = recorded("2026-06-11-block-stall");
    for state in case.state.values_mut() {
        state.reachable = true;
        state.answers = vec![Answer { when: vec![], prints: log.clone(), exit: 0, hangs: false, to: None }];
        state.artifacts.insert("guest/journal.txt".to_owned(), format!("{log}the end of it\n"));
    }
    let script = |_: &serde_json::Value, n: usize| match n {
        0 => say(vec![verb("pve_forensics")]),
        1 => say(vec![verb("pve_cycle")]),
        2..=9 => say(vec![text(&"Long words. ".repeat(800)), exec("journalctl -b")]),
        _ => say(vec![text("Enough.")]),
    };
    let folder = tempfile::tempdir().unwrap();
    let api = Api::start(script);
    let key = folder.path().join("key");
    std::fs::write(&key, format!("{KEY}\n")).unwrap();
    let claude = Settings { base_url: Some(api.url.clone()), api_key_file: Some(key), ..Settings::default() };
    let page = Page::serve(folder.path(), How { case, claude, ..How::stalled(folder.path()) }).await;
    let anna = Browser::anna(&page.url(""));
    let home = anna.until("/", "Block stalled").await;
    let story = anna.post("/incidents", &[("token", &home.hidden("token")), ("text", "Read the journal.")]).await.to();
    let end = anna.until(&story, "Ended, ").await;
    assert!(end.text.contains("All of it ("), "the whole output is a link away");
    // Page by page back to its beginning, and nothing is left out between two of them.
    let (mut path, mut pages, mut entries) = (story.clone(), 0, 0);
    loop {
        let weighs = weight(&anna, &path).await;
        assert!(weighs <= WEIGHT, "{path} weighs {weighs}");
        let got = anna.get(&path).await.text;
        pages += 1;
        entries += got.matches("devvm</span>").count();
        let Some((_, rest)) = got.split_once("?before=") else {
            assert!(got.contains("Read the journal."));
            break;
        };
        path = format!("{story}?before={}", rest.split('"').next().unwrap());
    }
    assert!(pages > 1 && entries >= 8, "{pages} pages, {entries} commands");
    let run = end.text.split("/evidence/").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let file = format!("/evidence/{run}/guest/journal.txt");
    let weighs = weight(&anna, &file).await;
    assert!(weighs <= WEIGHT, "{file} weighs {weighs}");
    let shown = anna.get(&file).await.text;
    assert!(shown.contains("line 0 &lt;of&gt;") && shown.contains("the end of it") && shown.contains("left out"), "{shown}");
    assert!(anna.get(&format!("/artifacts/{run}/guest/journal.txt")).await.text.ends_with("the end of it\n"));
}

/// Resident memory of this process, which is the server's and its clients', in MiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_download_and_never_read_cost_bounded_memory() {
    let mut case = recorded("2026-06-11-block-stall");
    case.state.get_mut("stalled").unwrap().artifacts.insert("guest/big.txt".to_owned(), "big\n".repeat(2 << 20));
    let folder = tempfile::tempdir().unwrap();
    let page = Page::serve(folder.path(), How { case, ..How::stalled(folder.path()) }).await;
    let anna = Browser::anna(&page.url(""));
    anna.until("/", "Block stalled").await;
    let run = anna.post("/verbs/forensics", &[]).await.to();
    anna.until(&run, "card outcome bad").await;
    let tar = format!("{}/tar", run.replace("/runs/", "/evidence/"));
    let whole = anna.get(&tar).await;
    let length: usize = whole.headers["content-length"].to_str().unwrap().parse().unwrap();
    drop(whole);
    let bytes = anna.stream(&tar).await.bytes().await.unwrap();
    assert!(bytes.len() == length && length > 8 << 20 && length.is_multiple_of(512), "{length}");
    drop(bytes);
    let before = resident();
    let mut held = Vec::new();
    for n in 0..40 {
        let path = if n % 2 == 0 { tar.clone() } else { run.replace("/runs/", "/artifacts/") + "/guest/big.txt" };
        held.push(anna.stream(&path).await);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = resident();
    eprintln!("40 downloads of 8 MiB that nobody reads: {before} MiB before, {after} MiB after");
    assert!(held.iter().all(|answer| answer.status() == 200));
    assert!(after < before + 60, "{before} MiB before, {after} MiB after");
    assert_eq!(anna.get("/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_log_of_before_is_told_whole_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let id = {
        let store = Store::open(folder.path(), 1 << 30, false).unwrap();
        let incident = store.create("long", By::Human, None).unwrap();
        for n in 0..60 {
            incident.note(incident.task(), By::Agent, What::Said { text: format!("{n} {}", "x".repeat(60_000)) });
        }
        incident.end(incident.task(), true, &proto::Message::new("It is over.", "Nothing."));
        incident.id().clone()
    };
    let (_page, anna) = served(&folder).await;
    let mut stream = anna.stream(&format!("/incidents/{id}/events")).await;
    let (mut text, mut seen) = (String::new(), Vec::new());
    while seen.len() < 62 {
        let chunk = tokio::time::timeout(Duration::from_secs(20), stream.chunk()).await.expect("nothing comes").unwrap().unwrap();
        text.push_str(&String::from_utf8_lossy(&chunk));
        seen = text.split_inclusive('\n').filter_map(|line| line.strip_prefix("id: ")?.strip_suffix('\n')?.parse::<u64>().ok()).collect();
    }
    assert_eq!(seen, (1..=62).collect::<Vec<u64>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_of_before_a_restart_is_asked_again() {
    use agent::evals::world::Act;
    use std::sync::Arc;
    let folder = tempfile::tempdir().unwrap();
    let how = How::stalled(folder.path());
    let (door, claude) = (how.door.clone(), how.claude.clone());
    let mut page = Page::serve(folder.path(), how).await;
    let anna = Browser::anna(&page.url(""));
    anna.until("/", "Block stalled").await;
    let token = anna.get("/verbs/cycle/confirm").await.hidden("token");
    page.stop();
    let again = Page::with(folder.path(), Arc::clone(&page.hands), door, claude, "127.0.0.1:0".parse().unwrap()).await;
    let anna = Browser::anna(&again.url(""));
    anna.until("/", "Block stalled").await;
    let asked = anna.post("/verbs/cycle", &[("token", &token), ("reason", "typed before")]).await;
    assert!(asked.status == 409 && asked.text.contains("Nothing was done now") && asked.text.contains("typed before"), "{}", asked.text);
    let mutated = |act: &Act| matches!(act, Act::Verb { verb, .. } if verb.mutates());
    assert!(!again.hands.world.acts().iter().any(mutated));
    anna.post("/verbs/cycle", &[("token", &asked.hidden("token"))]).await.to();
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_how_verbs_ended_what_is_not_proved_and_what_the_doctor_found() {
    let folder = tempfile::tempdir().unwrap();
    let how = How { case: recorded("cycle-with-unknown-end"), ..How::stalled(folder.path()) };
    let page = Page::serve(folder.path(), how).await;
    let (anna, machine) = (Browser::anna(&page.url("")), Browser::machine(&page.url("")));
    anna.until("/", "Block stalled").await;
    let run = anna.confirm("cycle").await;
    anna.until(&run, "Result unknown").await;
    anna.post("/doctor", &[]).await.to();
    anna.get("/nowhere").await;
    let told = machine.get("/metrics").await;
    assert!(told.headers["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    for line in [
        "breakglass_verbs_total{verb=\"cycle\",outcome=\"unknown\"} 1",
        "breakglass_evidence_degraded_total ",
        "breakglass_receipts_unverified_total 0",
        "breakglass_uses_unreviewed ",
        "breakglass_claude_errors_total 0",
        "breakglass_doctor{what=\"host\"} 0",
        "breakglass_doctor{what=\"devvm\"} 2",
        "breakglass_http_answers_total{status=\"404\"} 1",
        "breakglass_vm_healthy 0",
    ] {
        assert!(told.text.contains(line), "{line} in {}", told.text);
    }
    assert!(!told.text.contains("outcome=\"done\",verb=\"cycle\"") && !told.text.contains("verb=\"cycle\",outcome=\"done\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reason_of_several_lines_is_one_line_in_records() {
    let folder = tempfile::tempdir().unwrap();
    let (_page, anna) = served(&folder).await;
    let token = anna.get("/verbs/cycle/confirm").await.hidden("token");
    let run = anna.post("/verbs/cycle", &[("token", &token), ("reason", " it\r\nhangs\tverb=cycle  COMPLETE ")]).await.to();
    assert!(anna.until(&run, "card outcome good").await.text.contains("<dd>it hangs verb=cycle COMPLETE</dd>"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_says_that_it_changed_nothing_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (_page, anna) = served(&folder).await;
    let token = anna.get("/verbs/cycle/confirm").await.hidden("token");
    let run = anna.post("/verbs/cycle", &[("token", &token), ("dry_run", "yes")]).await.to();
    let end = anna.until(&run, "card outcome").await;
    assert!(end.text.contains("Planned, nothing changed"), "{}", end.text);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(anna.get("/").await.text.contains("Block stalled"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_can_not_take_every_place() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpSocket;
    let folder = tempfile::tempdir().unwrap();
    let mut how = How::stalled(folder.path());
    how.door.proxies = vec!["127.0.0.9/32".parse().unwrap()];
    let page = Page::serve(folder.path(), how).await;
    let from = async |address: &str| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
        socket.connect(page.at).await
    };
    // Heads that never end.
    let mut held = Vec::new();
    for _ in 0..600 {
        if let Ok(Ok(mut stream)) = tokio::time::timeout(Duration::from_millis(500), from("127.0.0.2")).await {
            let _may_be_closed_already = stream.write_all(b"GET / HTTP/1.1\r\n").await;
            held.push(stream);
        }
    }
    for address in ["127.0.0.3", "127.0.0.9"] {
        let answer = async {
            let mut stream = from(address).await.unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            text
        };
        let text = tokio::time::timeout(Duration::from_secs(8), answer).await.expect("no place for anybody else");
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    }
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_state_folder_it_is_alive_and_not_ready() {
    let folder = tempfile::tempdir().unwrap();
    let (state, _page, stranger) = ready(&folder).await;
    std::fs::remove_dir_all(&state).unwrap();
    alive_and_not_ready(&stranger, "the state folder can't be written").await;
}

/// A page that is ready, its state folder, and somebody who asks it.
async fn ready(folder: &tempfile::TempDir) -> (std::path::PathBuf, Page, Browser) {
    let state = folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let page = Page::serve(&state, How::stalled(folder.path())).await;
    let stranger = Browser::stranger(&page.url(""));
    stranger.until("/readyz", "ready").await;
    (state, page, stranger)
}

async fn alive_and_not_ready(stranger: &Browser, why: &str) {
    let not = stranger.until("/readyz", why).await;
    assert_eq!(not.status, 503);
    assert_eq!(stranger.get("/healthz").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_it_is_alive_and_not_ready() {
    let folder = tempfile::tempdir().unwrap();
    let (state, _page, stranger) = ready(&folder).await;
    // What takes an empty file and no byte, as a full tmpfs does.
    std::os::unix::fs::symlink("/dev/full", state.join(".ready")).unwrap();
    alive_and_not_ready(&stranger, "No space left on device").await;
    stranger.until("/readyz", "ready").await;
}
