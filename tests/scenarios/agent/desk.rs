//! The agent's server side on the lab's host: its configuration, its state folder, a keyholder behind it, a webhook that listens.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use lab::agent::{STATE, configure};
use lab::{Lab, Result};
use serde_json::Value;

use crate::keyholder::{BREAKGLASS, Keyholder, SOCKET, keyholder};

/// A desk: the keys, and everything that a command needs.
pub(crate) struct Desk {
    pub(crate) keys: Keyholder,
}

/// Writes the configuration, with `more` at its end, and starts the keyholder.
pub(crate) fn desk(lab: &Lab, more: &str) -> Result<Desk> {
    let keys = keyholder(lab)?;
    configure(&lab.host, SOCKET, more)?;
    Ok(Desk { keys })
}

impl Desk {
    /// A command of the agent's, without an agent or a key of its own in reach.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(BREAKGLASS);
        command.args(words).env_clear().current_dir("/");
        command
    }
}

/// The lines of the newest incident, and its folder.
pub(crate) fn newest() -> (PathBuf, Vec<Value>) {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(format!("{STATE}/incidents")).unwrap().flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort_by_key(|path| path.metadata().unwrap().modified().unwrap());
    let folder = folders.pop().unwrap();
    // A line that is being written is none yet, and may end within a character.
    let text = String::from_utf8_lossy(&fs::read(folder.join("events.jsonl")).unwrap()).into_owned();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    (folder, whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// A webhook: what it was told, and when.
#[derive(Clone, Default)]
pub(crate) struct Hook(Arc<Mutex<Vec<(Instant, Value)>>>);

impl Hook {
    /// Listens on a port of its own; its address.
    pub(crate) fn listen() -> (Self, String) {
        Self::listen_at("127.0.0.1:0")
    }

    /// The same at this address.
    pub(crate) fn listen_at(address: &str) -> (Self, String) {
        let listener = TcpListener::bind(address).unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let hook = Self::default();
        let told = hook.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut request = Vec::new();
                let mut block = [0; 4096];
                let body = loop {
                    let n = stream.read(&mut block).unwrap_or(0);
                    request.extend_from_slice(&block[..n]);
                    let text = String::from_utf8_lossy(&request).into_owned();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else {
                        assert!(n > 0, "a request without a head");
                        continue;
                    };
                    let length = head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
                    if body.len() >= length.unwrap_or(0) || n == 0 {
                        break body.to_owned();
                    }
                };
                told.0.lock().unwrap().push((Instant::now(), serde_json::from_str(&body).unwrap()));
                let _gone = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
            }
        });
        (hook, url)
    }

    /// The first notice of this kind.
    pub(crate) fn told(&self, event: &str) -> Option<(Instant, Value)> {
        self.0.lock().unwrap().iter().find(|(_, notice)| notice["event"] == event).cloned()
    }
}
