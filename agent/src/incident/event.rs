//! A line of an incident's log: what happened, when, as part of which task, and who decided it.

use proto::{Assessment, BundleName, Event, Message, ReceiptBody, RequestId, Sha256Hex, Timestamp, Verb};
use serde::{Deserialize, Serialize};

use super::IncidentId;

/// Who decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// A person: typed, pressed, approved.
    Human,
    /// Claude.
    Model,
    /// The runbook.
    Runbook,
    /// An MCP client.
    Mcp,
    /// The watch.
    Watch,
    /// This program by itself: a limit, a restart, a look at the end.
    Agent,
}

impl By {
    /// As the host is told.
    pub const fn origin(self) -> proto::Origin {
        match self {
            Self::Human => proto::Origin::Human,
            Self::Model => proto::Origin::Model,
            Self::Mcp => proto::Origin::Mcp,
            Self::Runbook | Self::Watch | Self::Agent => proto::Origin::Runbook,
        }
    }
}

/// A part of an incident that begins and ends: a turn of the conversation, a button's verb. 0 is the incident itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Task(pub u64);

/// A line. Its hash is SHA-256 of its bytes without the newline.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// The form's version.
    pub v: u8,
    /// Its number, from 1.
    pub n: u64,
    /// When.
    pub at: Timestamp,
    /// Whose.
    pub incident: IncidentId,
    /// As part of what.
    pub task: Task,
    /// Who decided.
    pub origin: By,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
    /// The hash of the line before; zeros in the first.
    pub prev: Sha256Hex,
}

/// What happened. Text of the devvm's or the host's stands in here escaped, cut and without secrets.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// The incident was opened.
    Opened {
        /// What for.
        title: String,
        /// By whom.
        actor: Option<String>,
        /// The program's version.
        version: String,
    },
    /// The program was started again and took it up.
    Resumed,
    /// A last line that was cut off by a crash was taken away.
    Repaired {
        /// Its length.
        bytes: u64,
    },
    /// A person asked for something: it waits for what is at work, if anything is.
    Waits {
        /// The words; absent: the runbook.
        text: Option<String>,
        /// Whose.
        actor: Option<String>,
    },
    /// A person's words.
    Prompt {
        /// The words.
        text: String,
        /// Whose.
        actor: Option<String>,
    },
    /// Claude's words, as they came.
    Text {
        /// The words.
        text: String,
    },
    /// Claude's thoughts, in short.
    Thinking {
        /// The summary.
        text: String,
    },
    /// Claude calls a tool.
    Call {
        /// The call's id.
        call: String,
        /// The tool.
        tool: String,
        /// Its input.
        input: serde_json::Value,
    },
    /// What Claude got for it.
    Result {
        /// The call's id.
        call: String,
        /// Whether it is told as an error.
        error: bool,
        /// The text.
        text: String,
        /// How many pictures went with it.
        images: usize,
    },
    /// A call waits for a person.
    Awaiting {
        /// The call's id.
        call: String,
        /// The tool.
        tool: String,
        /// What it would do, and why.
        said: String,
    },
    /// A person decided on it, or nobody did in its time.
    Decided {
        /// The call's id.
        call: String,
        /// Whether it may run.
        allowed: bool,
        /// Who.
        actor: Option<String>,
    },
    /// A person pressed a button.
    Button {
        /// The verb.
        verb: Verb,
        /// The id it will be asked with.
        request_id: RequestId,
        /// Who.
        actor: Option<String>,
    },
    /// The runbook begins, as a person wants it.
    Runbook {
        /// Who.
        actor: Option<String>,
    },
    /// A verb is about to be asked for: durable before the first attempt.
    VerbAsked {
        /// The id, for every further attempt.
        request_id: RequestId,
        /// The verb.
        verb: Verb,
        /// Who.
        actor: Option<String>,
        /// Why.
        reason: Option<String>,
        /// Whether it only plans.
        dry_run: bool,
        /// Whether it asks after an earlier attempt.
        attach: bool,
        /// The tool call that it serves.
        call: Option<String>,
        /// The verb's bound, in milliseconds.
        deadline_ms: u64,
    },
    /// The host tells something. Unsigned.
    VerbNews {
        /// The verb's id.
        request_id: RequestId,
        /// The host's event.
        news: Box<Event>,
    },
    /// The connection was lost; it is asked again.
    VerbAgain {
        /// The verb's id.
        request_id: RequestId,
        /// Why.
        why: String,
        /// The pause.
        after_ms: u64,
    },
    /// A file of the evidence is kept.
    Artifact {
        /// The verb's id.
        request_id: RequestId,
        /// Its path in the bundle.
        path: String,
        /// Its path in the incident's folder.
        file: String,
        /// Its type.
        media_type: String,
        /// Its length.
        bytes: u64,
        /// Its hash.
        sha256: Sha256Hex,
    },
    /// A verb ended.
    VerbEnded {
        /// Its id.
        request_id: RequestId,
        /// The verb.
        verb: Verb,
        /// Whether it may have reached the host. Where not, nothing was done there.
        #[serde(default = "may_have")]
        sent: bool,
        /// The exit status: the host's, or 20.
        status: u8,
        /// What happened and what to do.
        said: Message,
        /// What the host signed; absent: nothing is proved.
        receipt: Option<Box<ReceiptBody>>,
        /// The host's judgement, where its code is the signed one.
        assessment: Option<Box<Assessment>>,
        /// The preserved evidence.
        bundle: Option<BundleName>,
    },
    /// A command is about to run on the devvm.
    ExecAsked {
        /// Its number in this incident.
        exec: u64,
        /// The command.
        command: String,
        /// Why.
        reason: Option<String>,
        /// Its time.
        timeout_s: u64,
        /// The tool call that it serves.
        call: Option<String>,
    },
    /// It printed something.
    ExecOutput {
        /// Its number.
        exec: u64,
        /// Whether on standard error.
        stderr: bool,
        /// The text, escaped.
        text: String,
    },
    /// It ended.
    ExecEnded {
        /// Its number.
        exec: u64,
        /// How, in words.
        how: String,
        /// Its exit status, where it had one.
        exit: Option<u32>,
        /// How much it printed.
        bytes: u64,
        /// Where that is, in the incident's folder.
        file: Option<String>,
    },
    /// A message joined the history that Claude is sent.
    Message {
        /// Its line in `messages.jsonl`, from 1.
        line: u64,
        /// Whose.
        role: String,
        /// Its length.
        bytes: u64,
        /// Its hash.
        sha256: Sha256Hex,
    },
    /// Claude answered once.
    Turn {
        /// The model.
        model: String,
        /// Why it stopped.
        stop: String,
        /// The API's id of the call.
        api_request: Option<String>,
        /// Tokens read.
        input: u64,
        /// Tokens written.
        output: u64,
        /// Tokens read from the cache.
        cache_read: u64,
        /// Tokens put into the cache.
        cache_write: u64,
        /// Dollars.
        usd: f64,
        /// How long it took.
        ms: u64,
    },
    /// A call of the API failed.
    Failed {
        /// The model.
        model: String,
        /// Why.
        why: String,
        /// The API's id of the call.
        api_request: Option<String>,
        /// The pause before the next attempt; absent: none with this model.
        again_ms: Option<u64>,
    },
    /// A limit was reached.
    Limit {
        /// Which.
        limit: String,
        /// In two sentences.
        said: Message,
    },
    /// A person stopped the turn.
    Cancelled {
        /// Who.
        actor: Option<String>,
        /// What goes on running.
        said: String,
    },
    /// The agent's or the runbook's own words.
    Said {
        /// The words.
        text: String,
    },
    /// It ended.
    Ended {
        /// Whether the VM is well: by what was observed, whatever anybody says.
        healthy: bool,
        /// The report's last sentences.
        said: Message,
    },
    /// A later version's event.
    #[serde(other)]
    Unknown,
}

/// What an earlier version's log does not say.
const fn may_have() -> bool {
    true
}

impl What {
    /// Whether it has to be on the disk before anything else is done.
    pub(super) const fn is_durable(&self) -> bool {
        !matches!(self, Self::VerbNews { .. } | Self::ExecOutput { .. } | Self::Text { .. } | Self::Thinking { .. } | Self::Artifact { .. })
    }
}
