//! A caller of the forced command: the system's own `ssh`, with one key, and what came back.
//!
//! It reads answers but judges none: a receipt's signature is checked by whoever wants to know.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::error::Result;
use crate::process::{Finished, Running, start};

/// `ssh` with one key to one account.
#[derive(Debug, Clone)]
pub struct Ssh {
    to: String,
    port: u16,
    key: PathBuf,
    known_hosts: PathBuf,
    alias: Option<String>,
    deadline: Duration,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The remote exit status; 255 is ssh's own.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// How long it took, connection and all.
    pub wall: Duration,
    /// Whether the client was killed at its deadline.
    pub timed_out: bool,
}

impl From<Finished> for Answer {
    fn from(end: Finished) -> Self {
        Self { status: end.status, stdout: end.stdout, stderr: end.stderr, wall: end.wall, timed_out: end.timed_out }
    }
}

impl Answer {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its lines.
    pub fn lines(&self) -> Vec<String> {
        self.text().lines().map(str::to_owned).collect()
    }

    /// Standard output as one line: what a phone's width broke is together again.
    pub fn flat(&self) -> String {
        self.text().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The events of a `--json` answer; a line that is no JSON object is left out.
    pub fn events(&self) -> Vec<Value> {
        self.text().lines().filter_map(|line| serde_json::from_str(line).ok()).filter(Value::is_object).collect()
    }

    /// The events of one kind.
    pub fn events_of(&self, kind: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["event"] == kind).collect()
    }

    /// Milliseconds from the first event to the first of this kind, by the host's own clock: without ssh and its machine's load.
    pub fn after_ms(&self, kind: &str) -> Option<u64> {
        let first = |event: Option<&Value>| unix_ms(&event?["at"]);
        first(self.events_of(kind).first())?.checked_sub(first(self.events().first())?)
    }

    /// The receipt event, if the answer ends with one, its body decoded into `decoded`.
    pub fn receipt(&self) -> Option<Value> {
        let mut receipt = self.events().pop().filter(|event| event["event"] == "receipt")?;
        receipt["decoded"] = decoded(receipt["body"].as_str()?)?;
        Some(receipt)
    }

    /// The decoded body of the receipt.
    pub fn receipt_body(&self) -> Option<Value> {
        self.receipt().map(|mut receipt| receipt["decoded"].take())
    }
}

/// A time of the contract, in milliseconds since 1970; anything else is none.
pub fn unix_ms(time: &Value) -> Option<u64> {
    proto::Timestamp::parse(time.as_str()?).map(proto::Timestamp::unix_ms)
}

/// A receipt's body: JSON in base64.
pub fn decoded(body: &str) -> Option<Value> {
    serde_json::from_slice(&base64(body)?).ok()
}

/// Base64 as the contract has it: standard, padded; anything else is none.
fn base64(text: &str) -> Option<Vec<u8>> {
    use base64ct::{Base64, Encoding};
    Base64::decode_vec(text).ok()
}

impl Ssh {
    /// A client; `known_hosts` has to hold the host's key, an unknown one is refused.
    pub fn new(to: &str, port: u16, key: &Path, known_hosts: &Path) -> Self {
        Self { to: to.into(), port, key: key.into(), known_hosts: known_hosts.into(), alias: None, deadline: Duration::from_secs(300) }
    }

    /// The same, for a host whose key is known under another name.
    pub fn known_as(mut self, alias: &str) -> Self {
        self.alias = Some(alias.into());
        self
    }

    /// The same with another deadline.
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The private key it uses.
    pub fn key(&self) -> &Path {
        &self.key
    }

    /// Runs a request to its end or the deadline. The bytes go to the server as they are: ssh sends one argument unchanged.
    pub fn call(&self, request: impl AsRef<[u8]>) -> Result<Answer> {
        self.call_with(request, &[])
    }

    /// The same with something on standard input.
    pub fn call_with(&self, request: impl AsRef<[u8]>, stdin: &[u8]) -> Result<Answer> {
        Ok(start(&mut self.command(request.as_ref()), stdin)?.finish(self.deadline)?.into())
    }

    /// Starts a request without waiting, to be killed midway.
    pub fn spawn(&self, request: impl AsRef<[u8]>) -> Result<Running> {
        start(&mut self.command(request.as_ref()), &[])
    }

    /// What ssh has to be told, as its configuration names it.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = vec![
            ("HostName", self.to.rsplit('@').next().unwrap_or_default().to_owned()),
            ("Port", self.port.to_string()),
            ("IdentityFile", self.key.display().to_string()),
            ("BatchMode", "yes".into()),
            ("IdentitiesOnly", "yes".into()),
            ("IdentityAgent", "none".into()),
            ("StrictHostKeyChecking", "yes".into()),
            ("GlobalKnownHostsFile", "none".into()),
            ("UserKnownHostsFile", self.known_hosts.display().to_string()),
            // It holds until the server greets: many logins at once, on a busy machine, wait for seconds.
            ("ConnectTimeout", "20".into()),
            ("LogLevel", "ERROR".into()),
        ];
        settings.extend(self.alias.clone().map(|alias| ("HostKeyAlias", alias)));
        settings
    }

    /// The command line, for a client with needs of its own. An empty request asks for a login, without a terminal.
    pub fn command(&self, request: &[u8]) -> Command {
        use std::os::unix::ffi::OsStrExt;
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-T"]);
        for (name, value) in self.settings() {
            ssh.args(["-o", &format!("{name}={value}")]);
        }
        ssh.args(["--", &self.to]);
        if !request.is_empty() {
            ssh.arg(std::ffi::OsStr::from_bytes(request));
        }
        ssh
    }
}
