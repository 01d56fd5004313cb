//! Peers that stand on the VM's sockets in QEMU's place and misbehave. They serve the lab's scenarios and judge nothing.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lab::Result;
use lab::error::Context;
use serde_json::{Value, json};

/// Listens where QEMU did; QEMU's socket is beside it, and back in its place when this is dropped.
pub(crate) struct Impostor(&'static str);

impl Impostor {
    /// Puts itself there; each client is served on a thread of its own.
    pub(crate) fn put(socket: &'static str, serve: impl Fn(UnixStream) + Send + Sync + 'static) -> Result<Self> {
        fs::rename(socket, format!("{socket}.real")).context("put QEMU's socket aside")?;
        let listener = UnixListener::bind(socket).context("listen in QEMU's place")?;
        let serve = Arc::new(serve);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(std::result::Result::ok) {
                let serve = serve.clone();
                std::thread::spawn(move || serve(client));
            }
        });
        Ok(Self(socket))
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        let _over_our_own = fs::rename(format!("{}.real", self.0), self.0);
    }
}

/// A guest agent that synchronises as it should, and then misbehaves.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Agent {
    /// Escape sequences and bytes that are no text.
    Garbage,
    /// One line that never ends.
    Endless,
    /// Lines without end, before it synchronises.
    Noise,
    /// As much JSON in a line as is taken.
    Bomb,
    /// Nesting without end.
    Deep,
    /// A byte at a time.
    Slow,
    /// Nothing.
    Never,
}

impl Agent {
    pub(crate) const ALL: [Self; 7] = [Self::Garbage, Self::Endless, Self::Noise, Self::Bomb, Self::Deep, Self::Slow, Self::Never];

    pub(crate) fn serve(self, mut client: UnixStream) {
        let Ok(reader) = client.try_clone() else { return };
        for line in BufReader::new(reader).split(b'\n').map_while(std::result::Result::ok) {
            let asked: Value = serde_json::from_slice(line.strip_prefix(b"\xff").unwrap_or(&line)).unwrap_or_default();
            let sent = match (self, &asked["arguments"]["id"]) {
                (Self::Noise, _) => endless(&mut client, b"{\"return\": 1}\n\xff{\"return\": 2}\n"),
                (_, Value::Number(id)) => client.write_all(&[b"\xff", format!("{{\"return\": {id}}}\n").as_bytes()].concat()),
                (Self::Garbage, _) => client.write_all(b"\x1b[2J\x1b]0;owned\x07{\"return\":\xff\xfe}\r\n"),
                (Self::Endless, _) => endless(&mut client, &[b'x'; 4096]),
                (Self::Bomb, _) => client.write_all(format!("{{\"return\":[{}{{}}]}}\n", "{},".repeat(80_000)).as_bytes()),
                (Self::Deep, _) => client.write_all(format!("{}\n", "[".repeat(200_000)).as_bytes()),
                (Self::Slow, _) => b"{\"return\": {}}\n".iter().try_for_each(|byte| {
                    std::thread::sleep(Duration::from_millis(100));
                    client.write_all(&[*byte])
                }),
                (Self::Never, _) => Ok(()),
            };
            if sent.is_err() {
                return;
            }
        }
    }
}

fn endless(to: &mut UnixStream, with: &[u8]) -> std::io::Result<()> {
    let block = with.repeat(64);
    loop {
        to.write_all(&block)?;
    }
}

/// A QMP peer that passes on to the VM's real QEMU what is asked and what it answers, with a flood between the two.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flood {
    /// Events before each answer.
    pub(crate) each: u64,
    /// Whether answers are as much JSON in a line as is taken.
    pub(crate) bomb: bool,
}

impl Flood {
    pub(crate) fn serve(self, client: UnixStream) {
        let Ok(qemu) = UnixStream::connect(lab::qemu_cmd::LAB_MONITOR) else { return };
        let (Ok(asks), Ok(mut answers)) = (client.try_clone(), qemu.try_clone()) else { return };
        let client = Arc::new(Mutex::new(client));
        let to = client.clone();
        let down = std::thread::spawn(move || {
            let event = json!({"timestamp": {"seconds": 1, "microseconds": 0}, "event": "RTC_CHANGE\u{1b}[2J", "data": {"offset": "\u{202e}".repeat(40)}});
            let event = format!("{event}\n").into_bytes();
            for line in BufReader::new(qemu).split(b'\n').map_while(std::result::Result::ok) {
                let Ok(mut to) = to.lock() else { return };
                let answer: Value = serde_json::from_slice(&line).unwrap_or_default();
                // The greeting and the answer to the first command as they are: what follows is then taken for QMP.
                let flooded = answer["id"].as_u64().is_some_and(|id| id > 1);
                let events = if flooded { self.each } else { 0 };
                if (0..events).any(|_| to.write_all(&event).is_err()) {
                    return;
                }
                let line = if self.bomb && flooded {
                    format!("{{\"id\":{},\"return\":[{}{{}}]}}", answer["id"], "{},".repeat(340_000)).into_bytes()
                } else {
                    line
                };
                if to.write_all(&[line, b"\n".to_vec()].concat()).is_err() {
                    return;
                }
            }
        });
        for line in BufReader::new(asks).split(b'\n').map_while(std::result::Result::ok) {
            if answers.write_all(&[line, b"\n".to_vec()].concat()).is_err() {
                break;
            }
        }
        let _closed = answers.shutdown(std::net::Shutdown::Both);
        let _its_end = down.join();
    }
}
