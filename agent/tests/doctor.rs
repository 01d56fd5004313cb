//! What `doctor` says about Claude's API, where a socket that answers as it is told stands in for it; and when it says what.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agent::claude::Settings;
use agent::doctor::{Level, claude};

const KEY: &str = "sk-ant-test-0123456789abcdef";

/// Answers each request with this status, and keeps what was asked.
fn api(status: &'static str) -> (String, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tell, asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut head) = (stream.unwrap(), Vec::new());
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                head.push(byte[0]);
            }
            let _gone = tell.send(String::from_utf8_lossy(&head).into_owned());
            let _gone = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    (url, asked)
}

fn settings(folder: &Path, base_url: String) -> Settings {
    let key = folder.join("key");
    std::fs::write(&key, format!("{KEY}\n")).unwrap();
    Settings {
        base_url: Some(base_url),
        model: "claude-opus-5-5".to_owned(),
        fallback_model: "a model/of ours".to_owned(),
        api_key_file: Some(key),
        ..Settings::default()
    }
}

#[tokio::test]
async fn each_model_is_asked_for_and_what_is_wrong_is_said() {
    let folder = tempfile::tempdir().unwrap();
    for (status, level, word) in [
        ("200 OK", Level::Ok, "can be had"),
        ("401 Unauthorized", Level::Bad, "does not take the key"),
        ("403 Forbidden", Level::Bad, "does not take the key"),
        ("404 Not Found", Level::Bad, "no model claude-opus-5-5"),
        ("529 Overloaded", Level::Warn, "answered 529"),
        ("302 Found\r\nlocation: http://127.0.0.1:9/", Level::Warn, "answered 302"),
    ] {
        let (url, asked) = api(status);
        let found = claude(&settings(folder.path(), url)).await;
        assert_eq!(found.len(), 2, "{status}");
        assert_eq!(found[0].level, level, "{status}: {found:?}");
        assert!(found[0].said.what.contains(word), "{status}: {found:?}");
        let asked: Vec<String> = asked.try_iter().collect();
        assert!(asked[0].starts_with("GET /v1/models/claude-opus-5-5 HTTP/1.1\r\n"), "{asked:?}");
        assert!(asked[1].starts_with("GET /v1/models/a%20model%2Fof%20ours HTTP/1.1\r\n"), "{asked:?}");
        assert!(asked.iter().all(|head| head.contains(&format!("x-api-key: {KEY}\r\n"))), "{asked:?}");
        assert!(found.iter().all(|one| !format!("{one:?}").contains(KEY)), "the key is told: {found:?}");
    }
}

#[tokio::test]
async fn an_api_that_is_gone_is_a_warning_and_one_without_a_key_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let found = claude(&settings(folder.path(), "http://127.0.0.1:9".to_owned())).await;
    assert!(found.iter().all(|one| one.level == Level::Warn && one.said.what.contains("refused")), "{found:?}");
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let found = claude(&Settings { api_key_file: Some(empty), ..Settings::default() }).await;
    assert!(found.len() == 1 && found[0].level == Level::Bad && found[0].said.what.contains("holds no key"), "{found:?}");
}

#[test]
fn each_finding_is_printed_when_it_is_known_and_a_closed_port_is_not_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    // Its own to the end, so that nobody else takes it, and nobody listens there.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed = held.local_addr().unwrap();
    // It takes connections and never says a word: its part takes the longest.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let key = include_str!("answers/signing_key.pub").trim();
    let devvm = silent.local_addr().unwrap();
    let text = format!(
        "[host]\naddress = \"{closed}\"\nhost_key = \"{key}\"\nsigning_key = \"{key}\"\n[devvm]\naddress = \"{devvm}\"\nhost_key = \"{key}\"\n\
         [ssh]\nauth_sock = \"/nonexistent/agent.sock\"\n[state]\ndir = \"{}\"\n",
        folder.path().join("state").display()
    );
    let config = folder.path().join("config.toml");
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_breakglass"));
    command.args(["doctor", "--config"]).arg(&config).env_clear().stdout(Stdio::piped()).stderr(Stdio::null());
    let begun = Instant::now();
    let mut child = command.spawn().unwrap();
    let lines: Vec<(String, Duration)> =
        BufReader::new(child.stdout.take().unwrap()).lines().map(|line| (line.unwrap(), begun.elapsed())).collect();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{lines:?}");
    let when = |start: &str| lines.iter().find(|(line, _)| line.starts_with(start)).unwrap_or_else(|| panic!("{start}: {lines:?}")).1;
    let host = when(&format!("BAD   host: Nothing was sent: {closed} can't be reached: "));
    assert!(host < Duration::from_secs(7) && when("ok    receipts") < Duration::from_secs(7), "{lines:?}");
    assert!(host < when("BAD   devvm") && begun.elapsed() < Duration::from_secs(60), "{lines:?}");
}
