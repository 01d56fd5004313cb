//! A browser without a screen, for the page on the lab's host: HTTP/1.1 over one connection a request, as anna with her password.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Where the page listens.
pub(crate) const LISTEN: &str = "127.0.0.1:8102";
/// The line of anna, whose password is `correct horse battery`.
pub(crate) const BASIC: &str = "anna:$argon2id$v=19$m=19456,t=2,p=1$c2FsdC1vZi10aGUtbGFi$6mApGBwFJnZpZyeyBrVPGy9IQvvubvHUWf9GvC2fLhM\n";
const AUTHORIZATION: &str = "Basic YW5uYTpjb3JyZWN0IGhvcnNlIGJhdHRlcnk=";

/// An answer.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) status: u16,
    pub(crate) location: Option<String>,
    pub(crate) body: Vec<u8>,
}

impl Got {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The value of a form's hidden field.
    pub(crate) fn hidden(&self, name: &str) -> String {
        let text = self.text();
        let (_, rest) = text.split_once(&format!("name=\"{name}\" value=\"")).unwrap_or_else(|| panic!("no {name} in {text}"));
        rest.split_once('"').unwrap().0.to_owned()
    }
}

fn send(method: &str, path: &str, form: &str) -> std::io::Result<Got> {
    let mut stream = TcpStream::connect(LISTEN)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let length = form.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {LISTEN}\r\nauthorization: {AUTHORIZATION}\r\nsec-fetch-site: same-origin\r\naccept: text/html\r\n\
         content-type: application/x-www-form-urlencoded\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{form}"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(answer.len());
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let location = head.lines().find_map(|line| line.strip_prefix("location: ")).map(str::to_owned);
    let body = if head.contains("transfer-encoding: chunked") {
        whole(&answer[end + 4..])
    } else {
        answer[(end + 4).min(answer.len())..].to_vec()
    };
    Ok(Got { status, location, body })
}

/// The chunks of a body, put together.
fn whole(mut chunks: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = chunks.windows(2).position(|two| two == b"\r\n") {
        let length = usize::from_str_radix(&String::from_utf8_lossy(&chunks[..at]), 16).unwrap_or(0);
        if length == 0 || chunks.len() < at + 4 + length {
            break;
        }
        body.extend_from_slice(&chunks[at + 2..at + 2 + length]);
        chunks = &chunks[at + 4 + length..];
    }
    body
}

/// A page; none where nobody listens.
pub(crate) fn page(path: &str) -> Option<Got> {
    send("GET", path, "").ok()
}

/// A form; where it leads.
pub(crate) fn post(path: &str, form: &str) -> String {
    let got = send("POST", path, form).unwrap();
    got.location.clone().unwrap_or_else(|| panic!("{path}: {} {}", got.status, got.text()))
}

/// Loads a page until this stands in it.
pub(crate) fn shows(path: &str, text: &str, within: u64) -> String {
    let end = Instant::now() + Duration::from_secs(within);
    loop {
        let got = page(path).map(|got| got.text()).unwrap_or_default();
        if got.contains(text) {
            return got;
        }
        assert!(Instant::now() < end, "{path} does not say {text:?} within {within} s: {got}");
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// A watcher of an incident, which comes back by the number of the last line it saw whenever its stream ends.
pub(crate) struct Stream {
    over: Arc<AtomicBool>,
    saw: Arc<AtomicBool>,
    watches: JoinHandle<Vec<Value>>,
}

impl Stream {
    /// Watches from the beginning, and at least until it has seen this event.
    pub(crate) fn of(incident: &str, until: &'static str) -> Self {
        let (incident, over, saw) = (incident.to_owned(), Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (ends, sees) = (Arc::clone(&over), Arc::clone(&saw));
        let watches = std::thread::spawn(move || {
            let (mut seen, begun) = (Vec::new(), Instant::now());
            let enough = |seen: &[Value]| {
                sees.store(seen.iter().any(|line| line["event"] == until), Ordering::Relaxed);
                ends.load(Ordering::Relaxed) && (sees.load(Ordering::Relaxed) || begun.elapsed() > Duration::from_secs(300))
            };
            while !enough(&seen) {
                let _it_ended = follow(&incident, &mut seen, &enough);
                std::thread::sleep(Duration::from_millis(200));
            }
            seen
        });
        Self { over, saw, watches }
    }

    /// Whether it has seen that event.
    pub(crate) fn saw(&self) -> bool {
        self.saw.load(Ordering::Relaxed)
    }

    /// Lets it go when it next hears something.
    pub(crate) fn stop(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// The lines that it saw.
    pub(crate) fn end(self) -> Vec<Value> {
        self.stop();
        self.watches.join().unwrap()
    }
}

/// One stream, until it ends or is enough. A line without its end was cut off and is none.
fn follow(incident: &str, seen: &mut Vec<Value>, enough: &dyn Fn(&[Value]) -> bool) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(LISTEN)?;
    stream.set_read_timeout(Some(Duration::from_secs(15)))?;
    write!(
        stream,
        "GET /incidents/{incident}/events HTTP/1.1\r\nhost: {LISTEN}\r\nauthorization: {AUTHORIZATION}\r\nlast-event-id: {}\r\n\r\n",
        seen.len()
    )?;
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    lines.read_line(&mut line)?;
    // Told to come back a little later, where many come at once.
    if !line.contains(" 200 ") {
        return Ok(());
    }
    while !enough(seen) {
        line.clear();
        if lines.read_line(&mut line)? == 0 || !line.ends_with('\n') {
            return Ok(());
        }
        let data = line.trim_end().strip_prefix("data: ").and_then(|data| serde_json::from_str::<Value>(data).ok());
        if let Some(data) = data.filter(|data| data["n"].is_u64()) {
            assert_eq!(data["n"], seen.len() as u64 + 1, "each line once, in order");
            seen.push(data);
        }
    }
    Ok(())
}
