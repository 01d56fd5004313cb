//! A browser without a screen, for the page on the lab's host: HTTP/1.1 over one connection a request, as anna with her password.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

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
