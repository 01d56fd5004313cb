//! `review --note TEXT`: a person says that they have looked at what was done since the last review. The review is itself a record.

use proto::{KeyName, Message};
use serde_json::{Map, json};
use std::io::Write;

use crate::audit::{Kind, Log};
use crate::config::Config;
use crate::disk::Disk;
use crate::door::Caller;
use crate::host;
use crate::sign::Signer;
use crate::text::say;

/// The longest note, in bytes.
const MOST: usize = 2_000;

/// Records the review.
///
/// # Errors
/// An empty note says nothing and is refused; so is one that can't be recorded.
pub fn review(note: &str, out: &mut dyn Write) -> Result<(), Message> {
    host::ready()?;
    let note = note.trim();
    if note.is_empty() || note.len() > MOST {
        return Err(Message::new(
            format!("A review's note has 1 to {MOST} bytes."),
            "Say in a sentence what you looked at, and what you found.",
        ));
    }
    let (config, _) = Config::load();
    let mut log = Log::open(Disk::spawn(), Signer::load().ok(), config.audit.keep_bytes.bytes());
    let before = log.unreviewed();
    let by: KeyName = Caller::console(proto::Vmid::DEVVM).key_name;
    let mut facts = Map::new();
    facts.insert("key_name".to_owned(), json!(by));
    facts.insert("note".to_owned(), json!(note));
    facts.insert("reviewed".to_owned(), json!(before));
    let position = log.append(Kind::Review, facts).map_err(|why| say::intent_nowhere(&why))?;
    let uses = before.map_or_else(|| "an unknown number of uses".to_owned(), |n| format!("{n} {}", if n == 1 { "use" } else { "uses" }));
    let _ = writeln!(out, "Reviewed {uses}; it is record {} of the log.", position.seq);
    Ok(())
}
