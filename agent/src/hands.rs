//! All that the agent can do to the world: one of six verbs on the host, a command on the devvm, and asking whether its sshd answers.
//!
//! Claude, the runbook, the buttons, the terminal and MCP act through this and nothing else. Two implement it: SSH, and the replay
//! of recorded incidents by which a model is scored. What comes back from either is data: it enters a prompt only through one quoting function.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use proto::{Event, Grant, Origin, RequestId, Unit64, Unit200, Verb, Vmid};
use tokio::sync::mpsc::Sender;

use crate::receipt::{Proved, Unproved};

/// What a call gives back in the end. Dropping it leaves the work running: a verb on the host is never half done by our leaving.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One verb, as its caller means it. The witness is the implementation's own: it holds the newest audit head.
#[derive(Clone, Debug)]
pub struct VerbAsk {
    /// The verb.
    pub verb: Verb,
    /// The idempotency key: made before the first attempt, kept for every further one.
    pub request_id: RequestId,
    /// Which kind of caller decided.
    pub origin: Origin,
    /// Who.
    pub actor: Option<Unit64>,
    /// Why.
    pub reason: Option<Unit200>,
    /// Plan, and change nothing.
    pub dry_run: bool,
    /// Ask after it, and never start it.
    pub attach: bool,
    /// The second key, where the host requires one.
    pub grant: Option<Grant>,
}

/// What a running verb tells.
#[derive(Clone, Debug)]
pub enum VerbNews {
    /// The host's event, its artifact's data taken out. Unsigned: shown, never believed.
    Event(Box<Event>),
    /// An artifact that came with a probe, its hash compared with the event's: its path in the bundle, its bytes.
    Artifact {
        /// The path in the bundle, as `proto` admits it: relative, without `..`.
        path: String,
        /// Its type.
        media_type: String,
        /// What it holds.
        bytes: Vec<u8>,
    },
    /// The connection was lost or not to be had; the same id is asked again after this long.
    Again {
        /// What happened, in one sentence.
        why: String,
        /// The pause.
        after: Duration,
    },
}

/// How a verb ended, for its caller.
#[derive(Debug)]
pub struct VerbEnd {
    /// The id that was asked with.
    pub request_id: RequestId,
    /// The receipt that proves it, or why nothing is known.
    pub checked: Result<Box<Proved>, Unproved>,
    /// Whether the request, or an earlier one of this id, may have reached the host. Where not, nothing was done there.
    pub sent: bool,
    /// The exit status: the host's, or [`crate::UNKNOWN`].
    pub status: u8,
    /// What happened and what to do.
    pub said: proto::Message,
}

/// A command on the devvm.
#[derive(Clone, Debug)]
pub struct ExecAsk {
    /// The command, as the devvm's shell reads it. Runs under sudo.
    pub command: String,
    /// Given up after this.
    pub timeout: Duration,
}

/// A block of a command's output, as it comes.
#[derive(Clone, Debug)]
pub struct ExecNews {
    /// Whether it came on standard error.
    pub stderr: bool,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// How a command on the devvm ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEnd {
    /// It ended with this status.
    Exited(u32),
    /// It was ended by this signal.
    Signalled(String),
    /// Its time was over. It may still be running there.
    TimedOut,
    /// The connection was lost in the middle: it may still be running there.
    Lost(String),
    /// No connection: nothing ran.
    Unreachable(String),
    /// Its sshd let nobody in, there was no key to log in with, or it could not be tried: nothing ran.
    Refused(String),
    /// The configuration names no devvm: nothing ran, and nothing ever will.
    Absent,
    /// The devvm showed another host key than the pinned one: nothing ran. A person compares the two and accepts the new one.
    HostKeyChanged {
        /// The pinned key's fingerprint.
        pinned: String,
        /// The fingerprint of the key that was shown.
        shown: String,
    },
}

/// What the agent can do.
pub trait Hands: Send + Sync {
    /// The VM that the verbs are about: what every text and question names.
    fn vmid(&self) -> Vmid;

    /// Runs a verb to its end, however often the connection is lost, and tells what comes. Ends by itself after the verb's deadline
    /// and a grace; `news` may be dropped at any time.
    fn verb(&self, ask: VerbAsk, news: Sender<VerbNews>) -> Doing<'_, VerbEnd>;

    /// Runs a command on the devvm.
    fn exec(&self, ask: ExecAsk, news: Sender<ExecNews>) -> Doing<'_, ExecEnd>;
}
