//! The page as a machine asks it: HTTP/1.1 over a socket, one request a connection.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use lab::Result;
use lab::process::until;
use serde_json::Value;

use crate::container::TOKEN;

/// Asks; status and body.
fn ask(method: &str, path: &str, accept: &str, form: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect("127.0.0.1:8102").unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:8102\r\nconnection: close\r\naccept: {accept}\r\nauthorization: Bearer {TOKEN}\r\n\
         content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
        form.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _read_as_far_as_it_came = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    Ok((status, body.to_owned()))
}

/// A page for a person.
pub(crate) fn get(path: &str) -> Result<(u16, String)> {
    ask("GET", path, "text/html", "")
}

fn json(method: &str, path: &str, form: &str) -> Result<Value> {
    let (status, body) = ask(method, path, "application/json", form)?;
    assert!((200..300).contains(&status), "{method} {path}: {status} {body}");
    Ok(serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}")))
}

/// Presses `cycle`, confirms, waits; how it ended.
pub(crate) fn cycle() -> Result<Value> {
    // The question is bound to what was seen: asked before the first look, it would count no more once that has come.
    let asked = until("a question about what was seen", Duration::from_secs(60), || {
        std::thread::sleep(Duration::from_millis(200));
        json("GET", "/verbs/cycle/confirm", "").ok().filter(|asked| !asked["seen"].is_null())
    })?;
    let begun = json("POST", "/verbs/cycle", &format!("token={}&reason=image", asked["token"].as_str().unwrap()))?;
    let run = begun["run"].as_str().unwrap().to_owned();
    until("the cycle's end", Duration::from_secs(300), || {
        std::thread::sleep(Duration::from_millis(500));
        json("GET", &run, "").ok().map(|told| told["end"].clone()).filter(|end| !end.is_null())
    })
}
