//! A small QMP client for the lab's own monitor (or any other socket of that kind), and for the guest agent's.
//!
//! It knows no command. Answers stay JSON values; events that arrive in between are kept in order.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Context, Error, Result};

/// A conversation with QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// Events that arrived so far.
    pub events: Vec<Value>,
}

impl Qmp {
    /// Connects, reads the greeting, leaves negotiation mode.
    pub fn connect(socket: &str, deadline: Duration) -> Result<Self> {
        let mut qmp = Self::raw(socket, deadline)?;
        let greeting = qmp.read(Instant::now() + deadline)?;
        if greeting.get("QMP").is_none() {
            return Err(unexpected("a QMP greeting", &greeting));
        }
        qmp.call("qmp_capabilities", json!({}), deadline)?;
        Ok(qmp)
    }

    /// Connects to a guest agent, which greets nobody.
    pub fn raw(socket: &str, deadline: Duration) -> Result<Self> {
        let stream = connect(socket, deadline).context(format!("connect to {socket}"))?;
        stream.set_write_timeout(Some(deadline)).context("set a time limit")?;
        Ok(Self { stream, buffer: Vec::new(), events: Vec::new() })
    }

    /// Executes a command and gives its `return`; an `error` is one.
    pub fn call(&mut self, command: &str, arguments: Value, deadline: Duration) -> Result<Value> {
        let mut line = json!({"execute": command, "arguments": arguments}).to_string();
        line.push('\n');
        self.stream.write_all(line.as_bytes()).context(format!("send {command}"))?;
        let until = Instant::now() + deadline;
        loop {
            let mut answer = self.read(until)?;
            if answer.get("event").is_some() {
                self.events.push(answer);
            } else if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            } else {
                return Err(unexpected(&format!("an answer to {command}"), &answer));
            }
        }
    }

    fn read(&mut self, until: Instant) -> Result<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).context("read QEMU's JSON");
            }
            let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left)).context("set a time limit")?;
            let mut block = [0; 65536];
            match self.stream.read(&mut block).context("get an answer from QEMU")? {
                0 => return Err(Error::new("QEMU closed the connection", "Look whether it still runs")),
                n => self.buffer.extend_from_slice(&block[..n]),
            }
        }
    }
}

/// Connects within the deadline: where a hung QEMU's backlog is full, `connect` itself would wait for ever.
fn connect(socket: &str, deadline: Duration) -> rustix::io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let address = SocketAddrUnix::new(socket)?;
    let until = Instant::now() + deadline;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let end = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    while let Err(error) = connect(&end, &address) {
        if error != rustix::io::Errno::AGAIN || Instant::now() > until {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    rustix::io::ioctl_fionbio(&end, false)?;
    Ok(UnixStream::from(end))
}

fn unexpected(wanted: &str, got: &Value) -> Error {
    Error::new(format!("QEMU sent {got} where {wanted} was expected"), "Look the command up in facts/qmp-commands.json")
}
