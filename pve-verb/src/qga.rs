//! The guest agent's protocol, from the suspicious side: everything that comes is the guest's.
//!
//! What may be asked is a closed enum of questions; none of them runs, writes, freezes or changes anything in the guest. A
//! connection begins with `guest-sync-delimited`: what an earlier client left in the port is thrown away up to its 0xFF.

use crate::qmp::wire::Wire;
use crate::qmp::{Door, QmpError, parse, qemu_error};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The longest line of the agent's: parsed, it takes many times as much.
const LINE: usize = 256 * 1024;

/// A question to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the agent's own")]
pub enum Query {
    Ping,
    Info,
    Osinfo,
    Time,
    Fsinfo,
    Diskstats,
    Load,
    Vcpus,
}

impl Query {
    const fn command(self) -> &'static str {
        match self {
            Self::Ping => "guest-ping",
            Self::Info => "guest-info",
            Self::Osinfo => "guest-get-osinfo",
            Self::Time => "guest-get-time",
            Self::Fsinfo => "guest-get-fsinfo",
            Self::Diskstats => "guest-get-diskstats",
            Self::Load => "guest-get-load",
            Self::Vcpus => "guest-get-vcpus",
        }
    }
}

/// A connection that the agent has synchronised.
#[derive(Debug)]
pub struct Agent<'door> {
    wire: Wire,
    broken: bool,
    door: &'door Door,
}

impl<'door> Agent<'door> {
    /// Connects (one attempt) and synchronises. `nonce` tells our answer from what earlier clients left.
    ///
    /// # Errors
    /// [`QmpError::NoSocket`] where the VM has no agent port; [`QmpError::Timeout`] where nobody in the guest answers.
    pub fn open(door: &'door Door, nonce: u32, within: Duration) -> Result<Self, QmpError> {
        let until = Instant::now() + within;
        let mut wire = Wire::connect(&door.qga(), LINE)?;
        // The leading 0xFF makes the agent drop half a command that an earlier client may have left in its parser.
        let mut sync = vec![0xff];
        sync.extend(format!("{}\n", json!({"execute": "guest-sync-delimited", "arguments": {"id": nonce}})).as_bytes());
        wire.send(&sync, until)?;
        loop {
            let line = door.line(&mut wire, until)?;
            let Some(at) = line.as_bytes().iter().rposition(|&b| b == 0xff) else { continue };
            let ours = serde_json::from_slice::<Value>(line.as_bytes().get(at + 1..).unwrap_or_default()).ok();
            if ours.is_some_and(|v| v.get("return").and_then(Value::as_u64) == Some(u64::from(nonce))) {
                return Ok(Self { wire, broken: false, door });
            }
        }
    }

    /// Asks, and returns what stands under `return`.
    ///
    /// # Errors
    /// Where the agent says so, does not answer in time, or what comes is not its protocol; after the latter two the connection is
    /// given up.
    pub fn ask(&mut self, query: Query, within: Duration) -> Result<Value, QmpError> {
        if self.broken {
            return Err(QmpError::Timeout);
        }
        let result = self.exchange(query, Instant::now() + within);
        self.broken = result.as_ref().is_err_and(|e| !e.is_answer());
        result
    }

    fn exchange(&mut self, query: Query, until: Instant) -> Result<Value, QmpError> {
        self.door.still_ours()?;
        self.wire.send(format!("{}\n", json!({"execute": query.command()})).as_bytes(), until)?;
        let mut answer = parse(&self.door.line(&mut self.wire, until)?)?;
        if let Some(error) = answer.get("error") {
            return Err(qemu_error(error));
        }
        answer.get_mut("return").map(Value::take).ok_or_else(|| QmpError::Protocol("an answer with neither return nor error".to_owned()))
    }
}

/// What the serial console's socket says by itself until `until`; nothing is sent.
///
/// # Errors
/// Where there is no such socket, or nobody listens on it.
pub fn listen(socket: &std::path::Path, until: Instant, most: usize) -> Result<crate::probe::Raw, QmpError> {
    Ok(Wire::connect(socket, most)?.listen(until, most))
}

impl From<&QmpError> for proto::ProbeOutcome {
    fn from(e: &QmpError) -> Self {
        match e {
            QmpError::NoSocket | QmpError::Refused | QmpError::Busy | QmpError::GaveWay(_) => Self::Unavailable,
            QmpError::NoGreeting | QmpError::Timeout => Self::TimedOut,
            QmpError::Qemu { class, .. } if class == "CommandNotFound" => Self::Unavailable,
            QmpError::Closed | QmpError::Protocol(_) | QmpError::Qemu { .. } => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qmp::Purpose;
    use proto::{ProbeOutcome, Vmid};
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use tempfile::TempDir;

    const SOON: Duration = Duration::from_millis(300);
    const AMPLE: Duration = Duration::from_secs(20);

    fn guest(behave: impl FnOnce(UnixStream) + Send + 'static) -> (TempDir, Door) {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("102.qga")).unwrap();
        let door = Door::take_at(folder.path(), folder.path(), Vmid::DEVVM, &Purpose::Read("test".into()), Duration::ZERO).unwrap();
        std::thread::spawn(move || behave(listener.accept().unwrap().0));
        (folder, door)
    }

    fn synced(mut s: UnixStream, before: &[u8], then: &[u8]) {
        let mut reader = BufReader::new(s.try_clone().unwrap());
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line).unwrap();
        assert_eq!(line[0], 0xff);
        s.write_all(before).unwrap();
        s.write_all(b"\xff{\"return\": 7}\n").unwrap();
        line.clear();
        reader.read_until(b'\n', &mut line).unwrap();
        let _ = s.write_all(then);
        std::thread::sleep(Duration::from_secs(1));
    }

    #[test]
    fn what_an_earlier_client_left_in_the_port_is_skipped() {
        let (_f, door) = guest(|s| synced(s, b"{\"return\": 1}\nhalf{\xff{\"return\": 6}\n", b"{\"return\": {}}\n"));
        assert_eq!(Agent::open(&door, 7, AMPLE).unwrap().ask(Query::Ping, AMPLE), Ok(json!({})));
    }

    #[test]
    fn a_silent_guest_times_out_and_a_missing_port_is_unavailable() {
        let (folder, door) = guest(|s| {
            std::thread::sleep(AMPLE);
            drop(s);
        });
        assert_eq!(ProbeOutcome::from(&Agent::open(&door, 7, SOON).unwrap_err()), ProbeOutcome::TimedOut);
        std::fs::remove_file(folder.path().join("102.qga")).unwrap();
        assert_eq!(ProbeOutcome::from(&Agent::open(&door, 7, SOON).unwrap_err()), ProbeOutcome::Unavailable);
    }

    #[test]
    fn garbage_is_an_error_and_a_missing_command_is_unavailable() {
        let (_f, door) = guest(|s| synced(s, b"", b"\x1b]0;x\x07\n"));
        let mut agent = Agent::open(&door, 7, AMPLE).unwrap();
        assert!(matches!(agent.ask(Query::Load, AMPLE), Err(QmpError::Protocol(text)) if text.contains("\\x1b")));
        assert!(agent.ask(Query::Ping, AMPLE).is_err());
        let (_f, door) = guest(|s| synced(s, b"", b"{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no\"}}\n"));
        let e = Agent::open(&door, 7, AMPLE).unwrap().ask(Query::Load, AMPLE).unwrap_err();
        assert_eq!(ProbeOutcome::from(&e), ProbeOutcome::Unavailable);
    }

    #[test]
    fn a_gigabyte_without_a_newline_is_cut() {
        let (_f, door) = guest(|mut s| while s.write_all(&[b'x'; 65536]).is_ok() {});
        assert!(matches!(Agent::open(&door, 7, Duration::from_secs(20)), Err(QmpError::Protocol(_))));
    }
}
