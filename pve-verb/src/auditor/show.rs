//! `log show`: the records as people read them, newest last, or the lines as they are. It believes what it shows: whether that may be
//! believed is `log verify`'s.

use proto::{Message, RequestId, Timestamp, Verb};
use serde_json::Value;
use std::collections::HashSet;
use std::io::{self, Write};
use std::path::PathBuf;

use super::files::Files;
use super::raw::digest;
use crate::text;

/// Which records.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Of this request.
    pub request: Option<RequestId>,
    /// Of this verb.
    pub verb: Option<Verb>,
    /// Of this key.
    pub key: Option<String>,
    /// Not before.
    pub since: Option<Timestamp>,
    /// Not after.
    pub until: Option<Timestamp>,
    /// The lines as they are.
    pub json: bool,
}

impl Wanted {
    fn takes(&self, record: &Value) -> bool {
        let member = |name: &str| record.get(name).and_then(Value::as_str);
        let at = member("at").and_then(Timestamp::parse);
        self.request.as_ref().is_none_or(|id| member("request_id") == Some(id.as_str()))
            && self.verb.is_none_or(|verb| member("verb") == Some(verb.to_string().as_str()))
            && self.key.as_ref().is_none_or(|key| member("key_name") == Some(key.as_str()))
            && self.since.is_none_or(|since| at.is_some_and(|at| at >= since))
            && self.until.is_none_or(|until| at.is_some_and(|at| at <= until))
    }
}

/// Shows this host's log.
///
/// # Errors
/// Where it can't be read. A reader that stops listening is none.
pub fn show(wanted: &Wanted, out: &mut dyn Write) -> Result<(), Message> {
    show_at(&Files(PathBuf::from("/")), wanted, out)
}

pub(super) fn show_at(files: &Files, wanted: &Wanted, out: &mut dyn Write) -> Result<(), Message> {
    match lines(files, wanted, out) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Message::new(
            format!("The log could not be read: {e}."),
            "Run it as root on the PVE host, and look at the disk of /var/log/pve-verb.",
        )),
        _ => Ok(()),
    }
}

fn lines(files: &Files, wanted: &Wanted, out: &mut dyn Write) -> io::Result<()> {
    let overflow = files.overflow()?;
    let mut pending: HashSet<[u8; 32]> = overflow.split(|b| *b == b'\n').map(digest).collect();
    for segment in files.segments()? {
        let mut lines = files.segment(segment)?;
        while let Some(text) = lines.next()? {
            if !pending.is_empty() {
                pending.remove(&digest(text.bytes));
            }
            line(text.bytes, wanted, "", out)?;
        }
    }
    for text in overflow.split(|b| *b == b'\n').filter(|l| !l.is_empty() && pending.contains(&digest(l))) {
        line(text, wanted, " (on tmpfs)", out)?;
    }
    Ok(())
}

fn line(bytes: &[u8], wanted: &Wanted, place: &str, out: &mut dyn Write) -> io::Result<()> {
    let Ok(record) = serde_json::from_slice::<Value>(bytes) else {
        let what = format!("(a line that is no record: {})", proto::escape_cut(bytes, 60));
        return if wanted.json { Ok(()) } else { out.write_all(text::paragraph("", &what).as_bytes()) };
    };
    if !wanted.takes(&record) {
        return Ok(());
    }
    if wanted.json {
        out.write_all(bytes)?;
        return out.write_all(b"\n");
    }
    out.write_all(for_people(&record, place).as_bytes())
}

fn for_people(record: &Value, place: &str) -> String {
    let word = |name: &str| record.get(name).and_then(Value::as_str).map(|t| proto::escape_cut(t.as_bytes(), 300));
    let inner = |name: &str, member: &str| record.get(name)?.get(member)?.as_str().map(|t| proto::escape_cut(t.as_bytes(), 300));
    let number = |name: &str| record.get(name).and_then(Value::as_u64);
    let seq = number("seq").map_or_else(|| "?".to_owned(), |n| n.to_string());
    let at = word("at").unwrap_or_default();
    let at = at.get(..19).map_or(at.clone(), |short| format!("{short}Z"));
    let kind = word("kind").unwrap_or_default();
    let mut out = text::paragraph("", &format!("{seq} {at} {kind}{place}"));
    let mut say = |words: String| out.push_str(&text::paragraph("  ", &words));
    let mut who: Vec<String> = word("verb").into_iter().collect();
    who.extend(word("key_name").map(|key| format!("by {key}")));
    who.extend(word("origin").filter(|o| o != "unstated").map(|o| format!("({o})")));
    who.extend(word("actor").map(|a| format!("for {a}")));
    if !who.is_empty() {
        say(who.join(" "));
    }
    if let Some(reason) = word("reason") {
        say(format!("why: {reason}"));
    }
    match (word("outcome"), word("name")) {
        (Some(outcome), Some(step)) => {
            let detail = word("detail").map(|d| format!(": {d}")).unwrap_or_default();
            say(format!("{step} {outcome}{detail}"));
        }
        (Some(outcome), None) => say(format!("{outcome}: {}", inner("message", "what").unwrap_or_default())),
        _ => {}
    }
    for name in ["plan", "note", "what", "bundle", "version", "binary_sha256", "rejected"] {
        let shown = match name {
            "rejected" => inner("rejected", "raw"),
            _ => word(name),
        };
        if let Some(shown) = shown {
            say(if name == "what" { shown } else { format!("{name}: {shown}") });
        }
    }
    if let (Some(from), Some(to), "summary") = (word("from"), word("to"), kind.as_str()) {
        say(format!("from {from} to {to}"));
    }
    if let Some(behind) = number("clock_behind_ms") {
        say(format!("the clock was {} s behind an earlier record's", behind / 1000));
    }
    if let Some(id) = word("request_id") {
        say(format!("request {id}"));
    }
    out
}
