//! The door: what came in, from whom, and its one parsing. After this file there are no caller's bytes, only types.
//!
//! Does not decide whether the caller may (policy.rs), and starts no process.

use crate::spool::Binding;
use proto::{KeyName, Rejected, Request, RequestId, Sha256Hex, VerbSet, Vmid};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Who calls: the forced arguments of an `authorized_keys` line, or a person at the console.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Caller {
    /// The admin's name for the key, or `console:USER`.
    pub key_name: KeyName,
    /// The key's fingerprint, where the line says it.
    pub key_fp: Option<String>,
    /// The one VM.
    pub vmid: Vmid,
    /// What it may say.
    pub allow: Verbs,
    /// For which verbs it needs a grant.
    pub require_grant: Verbs,
    /// `SSH_CONNECTION`: recorded, never obeyed. Its length is bounded here, because the environment is not ours.
    pub ssh_connection: Option<Vec<u8>>,
}

/// A [`VerbSet`] on its way from the front to the worker.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Verbs(pub VerbSet);

impl TryFrom<String> for Verbs {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if text == "none" { Ok(Self(VerbSet::NONE)) } else { text.parse().map(Self) }
    }
}

impl From<Verbs> for String {
    fn from(verbs: Verbs) -> Self {
        verbs.0.to_string()
    }
}

impl Caller {
    /// A key, as its `authorized_keys` line describes it.
    pub fn forced(args: &crate::cli::Forced, ssh_connection: Option<&std::ffi::OsStr>) -> Self {
        Self {
            key_name: args.key_name.clone(),
            key_fp: args.key_fp.clone(),
            vmid: args.vmid,
            allow: Verbs(args.allow),
            require_grant: Verbs(args.require_grant.unwrap_or(VerbSet::NONE)),
            ssh_connection: ssh_connection.map(|s| s.as_encoded_bytes().iter().copied().take(120).collect()),
        }
    }

    /// A key whose line could not be read: it may say nothing.
    pub fn unreadable(ssh_connection: Option<&std::ffi::OsStr>) -> Option<Self> {
        Some(Self {
            key_name: "unreadable-line".parse().ok()?,
            key_fp: None,
            vmid: Vmid::DEVVM,
            allow: Verbs(VerbSet::NONE),
            require_grant: Verbs(VerbSet::NONE),
            ssh_connection: ssh_connection.map(|s| s.as_encoded_bytes().iter().copied().take(120).collect()),
        })
    }

    /// A person at the console: root already, so every verb, without a grant.
    pub fn console(vmid: Vmid) -> Self {
        Self {
            key_name: KeyName::console(&login_name()),
            key_fp: None,
            vmid,
            allow: Verbs(VerbSet::ALL),
            require_grant: Verbs(VerbSet::NONE),
            ssh_connection: None,
        }
    }

    /// Whether this is a person at the console.
    pub fn is_console(&self) -> bool {
        self.key_name.is_console()
    }
}

/// A request as it came, with who brought it. The front hands this to the worker, which parses and authorises it again: the
/// worker believes nobody.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Arrival {
    /// Who calls.
    pub caller: Caller,
    /// The request line. At most a little over the grammar's limit is ever kept; the rest can't matter.
    pub line: Vec<u8>,
    /// How long the line was, and its hash, before it was cut.
    pub whole: Whole,
    /// The id that the host made, for a request that brings none.
    pub fresh_id: RequestId,
}

/// What names a line without repeating it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Whole {
    /// Its bytes.
    pub bytes: usize,
    /// Their hash.
    pub sha256: Sha256Hex,
}

/// A request line longer than the grammar's is cut a little after its limit; the parser then says that it is too long.
const KEPT: usize = proto::MAX_REQUEST_BYTES + 1;

impl Arrival {
    /// What came, from whom.
    pub fn new(caller: Caller, mut line: Vec<u8>, fresh_id: RequestId) -> Self {
        let whole = Whole { bytes: line.len(), sha256: Sha256Hex::from_bytes(Sha256::digest(&line).into()) };
        line.truncate(KEPT);
        Self { caller, line, whole, fresh_id }
    }

    /// Whether one of its words is `--json`. That is no parsing: it says how to answer who could not be understood, nothing else.
    pub fn says_json(&self) -> bool {
        self.line.split(|b| *b == b' ').any(|word| word == b"--json")
    }
}

/// A request in the grammar. Made by [`parse`] only.
#[derive(Debug)]
pub struct Parsed {
    arrival: Arrival,
    request: Request,
}

/// Reads the line.
///
/// # Errors
/// Where it is outside the grammar: where, and why.
pub fn parse(arrival: Arrival) -> Result<Parsed, Box<(Arrival, Rejected)>> {
    match Request::parse(&arrival.line) {
        Ok(request) => Ok(Parsed { arrival, request }),
        Err(rejected) => Err(Box::new((arrival, rejected))),
    }
}

impl Parsed {
    /// Who calls.
    pub const fn caller(&self) -> &Caller {
        &self.arrival.caller
    }

    /// What is asked.
    pub const fn request(&self) -> &Request {
        &self.request
    }

    /// The request's id: the caller's, or the one made for it.
    pub fn id(&self) -> &RequestId {
        self.request.options().request_id.as_ref().unwrap_or(&self.arrival.fresh_id)
    }

    /// Who is said to act. By hand on the host and unstated is the console.
    pub fn origin(&self) -> proto::Origin {
        match self.request.options().origin {
            proto::Origin::Unstated if self.caller().is_console() => proto::Origin::Console,
            said => said,
        }
    }

    /// What its id is bound to.
    pub fn binding(&self) -> Binding {
        Binding {
            key_name: self.caller().key_name.clone(),
            verb: self.request.verb(),
            vmid: self.caller().vmid,
            dry_run: self.request.options().dry_run,
        }
    }

    /// The arrival again, for the worker.
    pub const fn arrival(&self) -> &Arrival {
        &self.arrival
    }
}

/// The user who logged in, by the kernel's login uid: `sudo` does not change it.
fn login_name() -> String {
    let uid = std::fs::read_to_string("/proc/self/loginuid").ok().and_then(|t| t.trim().parse::<u32>().ok()).filter(|uid| *uid != u32::MAX);
    let uid = uid.unwrap_or_else(|| rustix::process::getuid().as_raw());
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, id) = (fields.next()?, fields.next()?, fields.next()?);
        (id.parse::<u32>() == Ok(uid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("uid{uid}"))
}
