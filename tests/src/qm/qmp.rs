//! QMP and guest-agent commands over QEMU's one-client sockets, with the real `qm`'s time limits and words.
//!
//! One connection a command, as the real one. A client that gives up leaves a dead entry in a hung QEMU's backlog, and the one
//! after the last free entry gets `EAGAIN`: that is the kernel's doing, so nothing here imitates it.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde_json::{Value, json};

use super::{Fail, Run, process, task};

/// The usual limit of a command.
pub const USUAL: Duration = Duration::from_secs(5);
/// The limit of `guest-ping`, and of everything `qm status` asks.
pub const SHORT: Duration = Duration::from_secs(3);
/// How long a try to connect waits before the next.
const RETRY: Duration = Duration::from_millis(100);
/// How often a wait looks whether a signal came.
const SLICE: Duration = Duration::from_millis(50);

/// One connection to a monitor or an agent.
#[derive(Debug)]
pub struct Session {
    stream: UnixStream,
    unread: Vec<u8>,
    end: Instant,
}

impl Session {
    /// Connects; the limit counts for the connection and then again for everything that is asked over it.
    fn open(vmid: u32, kind: &str, limit: Duration) -> Run<Session> {
        let cannot = |why: String| Fail::die(format!("unable to connect to VM {vmid} {kind} socket - {why}"));
        let address = SocketAddrUnix::new(process::run_file(vmid, kind)).map_err(|why| cannot(why.to_string()))?;
        let begin = Instant::now();
        let mut tries = 0_u32;
        loop {
            tries += 1;
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(|why| cannot(why.to_string()))?;
            match connect(&fd, &address) {
                Ok(()) => {
                    let stream = UnixStream::from(fd);
                    let set = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(SLICE)));
                    set.and_then(|()| stream.set_write_timeout(Some(limit))).map_err(|why| cannot(why.to_string()))?;
                    return Ok(Session { stream, unread: Vec::new(), end: Instant::now() + limit });
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::NOENT) => return Err(cannot("No such file or directory".to_owned())),
                Err(Errno::CONNREFUSED) => return Err(cannot("Connection refused".to_owned())),
                Err(why) => return Err(cannot(why.to_string())),
            }
            if begin.elapsed() >= limit {
                return Err(cannot(format!("timeout after {tries} retries")));
            }
            task::pause(RETRY)?;
        }
    }

    /// A monitor connection whose capabilities are negotiated.
    pub fn monitor(vmid: u32, limit: Duration) -> Run<Session> {
        let mut session = Session::open(vmid, "qmp", limit)?;
        session.until(|answer| answer.get("QMP").is_some())?;
        session.ask("qmp_capabilities", &Value::Null)?;
        Ok(session)
    }

    fn send(&mut self, bytes: &[u8]) -> Run {
        self.stream.write_all(bytes).map_err(|_| Fail::die("client closed connection"))
    }

    /// Asks one command and gives what it returned.
    pub fn ask(&mut self, name: &str, arguments: &Value) -> Run<Value> {
        let mut request = json!({ "execute": name });
        if !arguments.is_null() {
            request["arguments"] = arguments.clone();
        }
        self.send(format!("{request}\r\n").as_bytes())?;
        let answer = self.until(|answer| answer.get("return").is_some() || answer.get("error").is_some())?;
        match answer.get("error") {
            Some(error) => Err(Fail::die(error["desc"].as_str().unwrap_or("unknown error"))),
            None => Ok(answer["return"].clone()),
        }
    }

    /// Reads lines until one is wanted; events and noise are skipped.
    fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Run<Value> {
        loop {
            while let Some(at) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=at).collect();
                // The agent marks the end of what was before a synchronisation with 0xff.
                let line: Vec<u8> = line.into_iter().filter(|byte| *byte != 0xff).collect();
                if let Ok(value) = serde_json::from_slice::<Value>(&line)
                    && wanted(&value)
                {
                    return Ok(value);
                }
            }
            if Instant::now() >= self.end {
                return Err(Fail::die("got timeout"));
            }
            task::interrupted()?;
            let mut chunk = [0; 65536];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(Fail::die("client closed connection")),
                Ok(n) => self.unread.extend_from_slice(chunk.get(..n).unwrap_or_default()),
                Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(_) => return Err(Fail::die("client closed connection")),
            }
        }
    }
}

fn named(vmid: u32, name: &str, fail: Fail) -> Fail {
    if fail.words == task::INTERRUPT { fail } else { Fail::die(format!("VM {vmid} qmp command '{name}' failed - {}", fail.words)) }
}

/// One monitor command over a connection of its own.
pub fn command(vmid: u32, name: &str, arguments: &Value, limit: Duration) -> Run<Value> {
    if process::running(vmid).is_none() {
        return Err(Fail::die(format!("VM {vmid} not running")));
    }
    Session::monitor(vmid, limit).and_then(|mut session| session.ask(name, arguments)).map_err(|fail| named(vmid, name, fail))
}

/// One guest-agent command over a connection of its own, after a synchronisation that drops old answers.
pub fn agent(vmid: u32, name: &str, arguments: &Value, limit: Duration) -> Run<Value> {
    let ask = || {
        let mut session = Session::open(vmid, "qga", limit)?;
        let id = std::process::id();
        session.send(&[0xff])?;
        session.send(format!("{}\n", json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } })).as_bytes())?;
        session.until(|answer| answer.get("return").and_then(Value::as_u64) == Some(u64::from(id)))?;
        session.ask(name, arguments)
    };
    ask().map_err(|fail| named(vmid, name, fail))
}
