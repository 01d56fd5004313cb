//! Who gets in, from where, and what counts once: the page's door held against those who should not pass.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/browser.rs"]
mod browser;
#[path = "support/page.rs"]
mod page;

use std::time::{Duration, Instant};

use browser::Browser;
use page::{How, Page, SECRET};
use proto::Verb;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn served(folder: &tempfile::TempDir) -> (Page, String) {
    let page = Page::serve(folder.path(), How::stalled(folder.path())).await;
    let base = page.url("");
    Browser::anna(&base).until("/", "Block stalled").await;
    (page, base)
}

fn mutations(page: &Page) -> Vec<Verb> {
    use agent::evals::world::Act;
    let verb = |act: Act| if let Act::Verb { verb, .. } = act { Some(verb) } else { None };
    page.hands.world.acts().into_iter().filter_map(verb).filter(|verb| verb.mutates()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_let_in_without_saying_who() {
    let folder = tempfile::tempdir().unwrap();
    let (page, base) = served(&folder).await;
    let stranger = Browser::stranger(&base);
    for path in [
        "/",
        "/incidents",
        "/evidence",
        "/receipts",
        "/doctor",
        "/hostkey",
        "/metrics",
        "/events",
        "/verbs/cycle/confirm",
        "/runbook",
        "/nowhere",
    ] {
        let got = stranger.get(path).await;
        assert_eq!(got.status, 401, "{path}");
        assert!(got.headers["www-authenticate"].to_str().unwrap().starts_with("Basic"), "{path}");
        assert!(!got.text.contains("stalled"), "{path} says what it should not");
        assert!(!got.text.contains("To the first screen"), "{path} offers a way that leads back to it");
    }
    assert_eq!(stranger.post("/verbs/forensics", &[]).await.status, 401);
    for path in
        ["/healthz", "/readyz", "/openapi.json", "/manifest.webmanifest", "/assets/style.css", "/assets/app.js", "/assets/icon-192.png"]
    {
        assert_eq!(stranger.get(path).await.status, 200, "{path}");
    }
    assert!(mutations(&page).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_metrics_opens_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let (page, base) = served(&folder).await;
    let prometheus = Browser::machine(&base).with("authorization", &format!("Bearer {}", page::SCRAPE));
    let got = prometheus.get("/metrics").await;
    assert_eq!((got.status, got.text.contains("breakglass_")), (200, true), "{}", got.text);
    for path in ["/", "/incidents", "/evidence", "/receipts", "/events", "/verbs/cycle/confirm", "/metrics/", "//metrics", "/nowhere"] {
        let got = prometheus.get(path).await;
        assert_eq!(got.status, 403, "{path}");
        assert!(!got.text.contains("stalled"), "{path} says what it should not");
    }
    assert_eq!(prometheus.post("/verbs/forensics", &[]).await.status, 403);
    assert_eq!(prometheus.post("/metrics", &[]).await.status, 403);
    // A machine's whole token asks as before.
    assert_eq!(Browser::machine(&base).get("/metrics").await.status, 200);
    assert_eq!(Browser::machine(&base).get("/incidents").await.status, 200);
    assert!(mutations(&page).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_header_counts_only_with_the_proxys_secret() {
    let folder = tempfile::tempdir().unwrap();
    let (_page, base) = served(&folder).await;
    let named = Browser::stranger(&base).with("x-forwarded-user", "admin");
    assert_eq!(named.get("/").await.status, 403, "without the secret");
    assert_eq!(named.clone().with("x-breakglass-proxy", "a guess of a secret").get("/").await.status, 403, "with another secret");
    assert_eq!(named.clone().with("x-breakglass-proxy", SECRET).get("/").await.status, 200);
    // A password beside a forged header is no way around it.
    assert_eq!(Browser::anna(&base).with("x-forwarded-user", "admin").get("/").await.status, 403);
    let got = named.with("x-breakglass-proxy", SECRET).get("/").await;
    assert!(got.text.contains("<b>admin</b> (proxy)"), "{}", got.text);

    // The same from an address that is no proxy's.
    let elsewhere = tempfile::tempdir().unwrap();
    let mut how = How::stalled(elsewhere.path());
    how.door.proxies = vec!["192.0.2.0/24".parse().unwrap()];
    let page = Page::serve(elsewhere.path(), how).await;
    let named = Browser::stranger(&page.url("")).with("x-forwarded-user", "admin").with("x-breakglass-proxy", SECRET);
    assert_eq!(named.get("/").await.status, 403, "from a wrong address");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_site_can_press_no_button() {
    let folder = tempfile::tempdir().unwrap();
    let (page, base) = served(&folder).await;
    let anna = Browser::anna(&base);
    let token = anna.get("/verbs/cycle/confirm").await.hidden("token");
    for site in ["cross-site", "same-site", "none"] {
        let elsewhere = anna.clone().with("sec-fetch-site", site);
        assert_eq!(elsewhere.post("/verbs/cycle", &[("token", &token)]).await.status, 403, "{site}");
        assert_eq!(elsewhere.post("/verbs/forensics", &[]).await.status, 403, "{site}");
    }
    let mut old = anna.clone();
    old.headers.remove("sec-fetch-site");
    assert_eq!(old.clone().with("origin", "https://evil.example").post("/verbs/cycle", &[("token", &token)]).await.status, 403);
    assert_eq!(old.clone().with("origin", "null").post("/verbs/cycle", &[("token", &token)]).await.status, 403);
    assert_eq!(old.post("/verbs/cycle", &[("token", &token)]).await.status, 403, "a browser that says nothing");
    assert!(mutations(&page).is_empty());
    // None of that has spent the token.
    anna.post("/verbs/cycle", &[("token", &token)]).await.to();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmation_counts_once_for_its_person_its_verb_and_the_state_that_was_seen() {
    let folder = tempfile::tempdir().unwrap();
    let (page, base) = served(&folder).await;
    let (anna, machine) = (Browser::anna(&base), Browser::machine(&base));
    let question = anna.get("/verbs/cycle/confirm").await;
    let token = question.hidden("token");
    assert!(question.text.contains("Block stalled") && question.text.contains("The host advises this"), "{}", question.text);
    assert_eq!(anna.post("/verbs/cycle", &[]).await.status, 409, "no token");
    assert_eq!(machine.post("/verbs/cycle", &[("token", &token)]).await.status, 409, "somebody else's; a try spends it");
    assert_eq!(anna.post("/verbs/cycle", &[("token", &token)]).await.status, 409, "spent");
    let token = anna.get("/verbs/cycle/confirm").await.hidden("token");
    let other = anna.post("/verbs/stop", &[("token", &token)]).await;
    assert!(other.status == 409 && other.text.contains("Nothing was done"), "another verb's: {}", other.text);
    assert!(mutations(&page).is_empty());

    // Two devices were asked the same; one of them counts.
    let (phone, laptop) = (anna.get("/verbs/cycle/confirm").await.hidden("token"), anna.get("/verbs/cycle/confirm").await.hidden("token"));
    let stale = anna.get("/verbs/reset/confirm").await.hidden("token");
    let run = anna.post("/verbs/cycle", &[("token", &phone)]).await.to();
    assert_eq!(anna.post("/verbs/cycle", &[("token", &laptop)]).await.status, 409);
    anna.until(&run, "Looks healthy").await;
    let late = anna.post("/verbs/reset", &[("token", &stale), ("reason", "kept <b>")]).await;
    assert!(late.status == 409 && late.text.contains("has changed since") && late.text.contains("kept &lt;b&gt;"), "{}", late.text);
    assert_eq!(mutations(&page), [Verb::Cycle]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_one_time_link_is_one_session_and_only_under_the_name_of_this_machine() {
    let folder = tempfile::tempdir().unwrap();
    let how = How { door: agent::web::auth::Settings::default(), ..How::stalled(folder.path()) };
    let page = Page::serve(folder.path(), how).await;
    let stranger = Browser::stranger(&page.url(""));
    assert_eq!(stranger.get("/").await.status, 401);
    let link = format!("/link/{}", page.app.link().unwrap());
    assert_eq!(stranger.clone().with("host", "rebound.example").get(&link).await.status, 421, "and the link is not spent by it");
    let got = stranger.get(&link).await;
    let cookie = got.headers["set-cookie"].to_str().unwrap().to_owned();
    assert!(got.to() == "/" && cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict") && !cookie.contains("Domain"), "{cookie}");
    assert_eq!(stranger.get(&link).await.status, 403, "spent");
    let local = stranger.with("cookie", cookie.split(';').next().unwrap());
    assert_eq!(local.get("/").await.status, 200);
    assert_eq!(local.clone().with("host", "rebound.example").get("/").await.status, 421, "DNS rebinding");
    assert_eq!(local.with("cookie", "breakglass-session=another").get("/").await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_guesses_is_slowed_down_and_nobody_else_is() {
    let folder = tempfile::tempdir().unwrap();
    let (_page, base) = served(&folder).await;
    let guess = |name: &str, n: u32| {
        use base64ct::{Base64, Encoding};
        Browser::stranger(&base).with("authorization", &format!("Basic {}", Base64::encode_string(format!("{name}:guess {n}").as_bytes())))
    };
    let mut seen = Vec::new();
    for n in 0..14 {
        seen.push(guess("bert", n).get("/").await.status);
    }
    assert!(seen.iter().take(8).all(|status| *status == 401) && seen[10..].contains(&429), "{seen:?}");
    assert_eq!(Browser::anna(&base).get("/").await.status, 200, "from the same address");
    for n in 0..14 {
        guess("anna", n).get("/").await;
    }
    assert_eq!(Browser::anna(&base).get("/").await.status, 200, "anna's own password was right a moment ago");
    for n in 0..14 {
        let guess = Browser::stranger(&base).with("authorization", &format!("Bearer guess-{n}"));
        assert_eq!(guess.get("/").await.status, 401, "a token can't be guessed");
    }
    assert_eq!(Browser::machine(&base).get("/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_and_how_stand_in_the_incident_and_are_told_to_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let (_page, base) = served(&folder).await;
    let run = Browser::anna(&base).confirm("cycle").await;
    let told = Browser::machine(&base).get(&run).await.text;
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let log =
        std::fs::read_to_string(folder.path().join(format!("incidents/{}/events.jsonl", told["incident"].as_str().unwrap()))).unwrap();
    for event in ["opened", "button", "verb_asked"] {
        let line = log.lines().find(|line| line.contains(&format!("\"event\":\"{event}\""))).unwrap();
        assert!(line.contains("\"origin\":\"human\"") && line.contains("\"actor\":\"anna"), "{line}");
    }
    assert!(log.contains("\"actor\":\"anna (password)\""), "{log}");
}

/// Sends this, and gives the status line that comes within the time; empty where the connection ends without one.
async fn raw(page: &Page, pieces: &[&[u8]], pause: Duration) -> (String, Duration) {
    let began = Instant::now();
    let mut stream = TcpStream::connect(page.at).await.unwrap();
    for piece in pieces {
        if stream.write_all(piece).await.is_err() {
            break;
        }
        tokio::time::sleep(pause).await;
    }
    let mut answer = vec![0; 200];
    let n = tokio::time::timeout(Duration::from_secs(40), stream.read(&mut answer)).await.expect("no end").unwrap_or(0);
    (String::from_utf8_lossy(&answer[..n]).lines().next().unwrap_or_default().to_owned(), began.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_long_or_too_slow_ends_and_the_page_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (page, base) = served(&folder).await;
    let anna = Browser::anna(&base);
    let long = "x".repeat(200_000);
    let credentials = anna.headers["authorization"].to_str().unwrap();
    let head = format!(
        "POST /incidents HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: {credentials}\r\nsec-fetch-site: same-origin\r\ncontent-type: application/x-www-form-urlencoded\r\n"
    );
    let huge = format!("GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx: {long}\r\n\r\n");
    let (status, _) = raw(&page, &[huge.as_bytes()], Duration::ZERO).await;
    assert!(status.is_empty() || status.contains("431"), "{status}");
    let announced = format!("{head}content-length: {}\r\n\r\ntext={long}", long.len() + 5);
    let (status, _) = raw(&page, &[announced.as_bytes()], Duration::ZERO).await;
    assert!(status.contains("413"), "{status}");
    // Chunked, without an announced length.
    let chunk = format!("{head}transfer-encoding: chunked\r\n\r\n30d40\r\n{long}\r\n0\r\n\r\n");
    let (status, _) = raw(&page, &[chunk.as_bytes()], Duration::ZERO).await;
    assert!(status.contains("413"), "{status}");
    // A head, and a body, that never come to their end.
    let slow_head = raw(&page, &[b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n"], Duration::ZERO);
    let slow_body = format!("{head}content-length: 1000\r\n\r\ntext=");
    let pieces = [slow_body.as_bytes()];
    let slow_body = raw(&page, &pieces, Duration::ZERO);
    let nothing = raw(&page, &[], Duration::ZERO);
    let ((_, first), (second_status, second), (_, third)) = tokio::join!(slow_head, slow_body, nothing);
    assert!(first < Duration::from_secs(20) && third < Duration::from_secs(20), "{first:?} {third:?}");
    assert!(second_status.contains("408") && second < Duration::from_secs(25), "{second_status} {second:?}");
    assert_eq!(anna.get("/").await.status, 200);
}
