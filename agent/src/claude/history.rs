//! What Claude is sent: frozen instructions and tools, and messages that are only ever appended.
//!
//! Thinking blocks are bound to every byte before them, so a message is written once, to `messages.jsonl`, and sent from there. Each is
//! bound to the incident's chain by its hash. Nothing of it stays in memory between two requests.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use proto::{Message, Sha256Hex, Vmid};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::tools;
use crate::incident::{By, Incident, Task, What};

/// The longest answer that is asked for, in tokens.
const MAX_TOKENS: u32 = 16_000;
/// The file with what is frozen.
const FROZEN: &str = "frozen.json";
/// The file with the messages.
const MESSAGES: &str = "messages.jsonl";

/// Whose a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The person's words, and what tools gave.
    User,
    /// Claude's.
    Assistant,
    /// What a person did by hand: the operator's channel, which no tool output can forge.
    System,
}

impl Role {
    const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::System => "system",
        }
    }
}

/// The history of one incident.
#[derive(Debug)]
pub(super) struct History {
    incident: Arc<Incident>,
    file: File,
    last: Option<Role>,
    lines: u64,
    /// `"system":…,"tools":…` as it is sent.
    frozen: String,
}

impl History {
    /// The history of this incident, from before a restart where there is one.
    ///
    /// # Errors
    /// It can't be read or written, or is not what the log says.
    pub(super) fn open(incident: &Arc<Incident>, vmid: Vmid) -> Result<Self, Message> {
        let path = incident.folder().join(MESSAGES);
        let bad = |why: String| {
            Message::new(
                format!("The conversation in {} can't be used: {why}.", path.display()),
                "Open another incident, or let the runbook do it.",
            )
        };
        let unusable = |error: io::Error| bad(error.to_string());
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path).map_err(unusable)?;
        let logged = incident.facts().messages;
        // As bytes: a crash may have left half a character.
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(unusable)?;
        let mut end = 0;
        for (n, (_, sha256)) in logged.iter().enumerate() {
            let line = text[end..].split_inclusive(|b| *b == b'\n').next().unwrap_or_default();
            if hash(line.strip_suffix(b"\n").unwrap_or(line)) != *sha256 {
                return Err(bad(format!("message {} is not the one in the log", n + 1)));
            }
            end += line.len();
        }
        // A message that a crash left before the log had it was never sent.
        if end < text.len() {
            file.set_len(end as u64).map_err(unusable)?;
        }
        let last = logged.last().map(|(role, _)| match role.as_str() {
            "assistant" => Role::Assistant,
            "system" => Role::System,
            _ => Role::User,
        });
        let frozen = frozen(incident.folder(), vmid).map_err(unusable)?;
        Ok(Self { incident: Arc::clone(incident), file, last, lines: logged.len() as u64, frozen })
    }

    /// Whose the last message is.
    pub(super) const fn last(&self) -> Option<Role> {
        self.last
    }

    /// The last message's content.
    pub(super) fn content(&mut self) -> Option<Vec<Value>> {
        let text = self.text().ok()?;
        let message: Value = serde_json::from_str(text.lines().last()?).ok()?;
        message["content"].as_array().cloned()
    }

    /// Appends a message: on the disk, and in the log, when this returns.
    ///
    /// # Errors
    /// It could not be written: then it must not be sent.
    pub(super) fn append(&mut self, task: Task, by: By, role: Role, content: &Value) -> Result<(), Message> {
        let line = json!({ "role": role.as_str(), "content": content }).to_string();
        let written = self.incident.bound().writes(|| {
            let end = self.file.seek(SeekFrom::End(0))?;
            let all = self.file.write_all(format!("{line}\n").as_bytes()).and_then(|()| self.file.sync_data());
            all.inspect_err(|_| {
                let _half_a_line_is_cut_off_when_it_is_opened_again = self.file.set_len(end);
            })
        });
        written.map_err(|error| Message::new(format!("The conversation can't be written: {error}."), "Make room in the state folder."))?;
        let sha256 = hash(line.as_bytes());
        let what = What::Message { line: self.lines + 1, role: role.as_str().to_owned(), bytes: line.len() as u64, sha256 };
        if let Err(why) = self.incident.write(task, by, what) {
            let len = self.text().map_or(0, |text| text.len() - line.len() - 1);
            let _it_is_cut_off_when_it_is_opened_again = self.file.set_len(len as u64);
            return Err(why);
        }
        self.lines += 1;
        self.last = Some(role);
        Ok(())
    }

    fn text(&mut self) -> io::Result<String> {
        let mut text = String::new();
        self.file.seek(SeekFrom::Start(0))?;
        self.file.read_to_string(&mut text)?;
        Ok(text)
    }

    /// The request for the next answer of this model.
    ///
    /// # Errors
    /// The file can't be read.
    pub(super) fn request(&mut self, model: &str) -> Result<Vec<u8>, Message> {
        let unreadable = |error: io::Error| Message::new(format!("The conversation can't be read: {error}."), "Look at the state folder.");
        let model = Value::String(model.to_owned());
        // The mark of the request itself moves with its end and changes no message.
        let head = format!(
            "{{\"model\":{model},\"max_tokens\":{MAX_TOKENS},\"stream\":true,\"thinking\":{{\"type\":\"adaptive\",\"display\":\"summarized\"}},\
             \"cache_control\":{{\"type\":\"ephemeral\"}},{},\"messages\":[",
            self.frozen
        );
        // One copy of it: with the console's pictures in it a conversation has megabytes, and there may be ten.
        let length = self.file.metadata().map_err(unreadable)?.len();
        let mut body = Vec::with_capacity(head.len() + usize::try_from(length).unwrap_or_default() + 2);
        body.extend_from_slice(head.as_bytes());
        self.file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
        self.file.read_to_end(&mut body).map_err(unreadable)?;
        if body.last() == Some(&b'\n') {
            body.pop();
        }
        // A newline is between two messages and in none: within one it is escaped.
        body[head.len()..].iter_mut().filter(|b| **b == b'\n').for_each(|b| *b = b',');
        body.extend_from_slice(b"]}");
        Ok(body)
    }
}

/// Instructions and tools, as this incident began with them: another version of this program does not change them.
fn frozen(folder: &Path, vmid: Vmid) -> io::Result<String> {
    let path = folder.join(FROZEN);
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.is_empty() => return Ok(text),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mark = json!({ "type": "ephemeral", "ttl": "1h" });
    let system = json!([{ "type": "text", "text": super::system(vmid), "cache_control": mark }]);
    let text = format!("\"system\":{system},\"tools\":{}", tools::definitions());
    let new = folder.join("frozen.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    std::fs::rename(&new, &path)?;
    Ok(text)
}

fn hash(bytes: &[u8]) -> Sha256Hex {
    Sha256Hex::from_bytes(Sha256::digest(bytes).into())
}
