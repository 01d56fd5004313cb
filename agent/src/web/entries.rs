//! An incident's lines as entries: what belongs together stands together, where it began. What is drawn of them is in `story.rs`.

use std::collections::BTreeMap;

use proto::Message;

use super::run::Run;
use super::shell::{by, pressed};
use crate::incident::{By, Line, Summary, What};
use crate::shown::plain;

/// Of a longer text the beginning is shown.
pub(super) const MAX_TEXT: usize = 5_000;

/// How a person's asking for the runbook is told.
const RUNBOOK: &str = "Run the runbook.";

/// Something that happened.
pub(super) struct Entry {
    pub(super) n: u64,
    pub(super) at: proto::Timestamp,
    pub(super) origin: By,
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    /// Words, and whose.
    Words { class: &'static str, who: String, text: String },
    /// A call of Claude's, with what it got.
    Call {
        tool: String,
        input: String,
        result: Option<(bool, String, usize)>,
        waits: Option<String>,
        call: String,
        decided: Option<(bool, Option<String>)>,
    },
    /// A verb.
    Verb(Box<Run>),
    /// A command on the devvm.
    Command { command: String, reason: Option<String>, output: String, end: Option<String>, file: Option<String>, bytes: u64 },
    /// A note of this program's.
    Note { class: &'static str, text: String },
}

impl Entry {
    /// Whose words they are, where they are words.
    fn called(&mut self, whose: String) {
        if let Kind::Words { who, .. } = &mut self.kind {
            *who = whose;
        }
    }
}

/// The ends, as they are told: who looks five times finds one sentence, and a look is no end of anything.
#[derive(Default)]
struct Ends {
    /// Whether somebody looked, and whether there was more than looks, since the last one.
    looked: bool,
    more: bool,
    /// The last one's words, and how often they came in a row.
    text: String,
    times: usize,
    /// Where each stands, and whether it says the same as the one before.
    at: Vec<(usize, bool)>,
}

impl Ends {
    fn see(&mut self, line: &Line) {
        match &line.what {
            What::VerbAsked { verb, dry_run, .. } if line.origin == By::Human => {
                self.looked = true;
                self.more |= verb.mutates() && !dry_run;
            }
            What::VerbAsked { .. }
            | What::Prompt { .. }
            | What::Waits { .. }
            | What::Runbook { .. }
            | What::Said { .. }
            | What::Turn { .. }
            | What::Cancelled { .. } => self.more = true,
            _ => {}
        }
    }

    /// The next one's words, and how often they came by now.
    fn take(&mut self, healthy: bool, said: &Message) -> (String, usize) {
        let what = if self.looked && !self.more { "Looked" } else { "Ended" };
        let (how, next) = (if healthy { "healthy" } else { "not healthy" }, pressed(&said.next));
        let text = format!("{what}, {how}. {} {next}", said.what);
        // But for figures, which are others every time.
        let words = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
        self.times = if words(&self.text) == words(&text) { self.times + 1 } else { 1 };
        self.text.clone_from(&text);
        (self.looked, self.more) = (false, false);
        (text, self.times)
    }
}

/// An entry that nothing later belongs to: its place is not kept.
const fn stays(_: usize) {}

/// Lines into entries: what belongs together stands together, where it began.
pub(super) fn fold(all: &[Line], one: &Summary) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut calls: BTreeMap<String, usize> = BTreeMap::new();
    let mut runs: BTreeMap<String, usize> = BTreeMap::new();
    let mut commands: BTreeMap<u64, usize> = BTreeMap::new();
    // What people asked for and has not begun: where it stands, whether it is the runbook, and whose it is.
    let mut waits: Vec<(usize, bool, String)> = Vec::new();
    let mut ends = Ends::default();
    for line in all {
        ends.see(line);
        let mut put = |kind| {
            entries.push(Entry { n: line.n, at: line.at, origin: line.origin, kind });
            entries.len() - 1
        };
        let whose = |actor: &Option<String>| actor.as_deref().map_or_else(|| by(line.origin).to_owned(), plain);
        match &line.what {
            What::Waits { text, actor } => {
                let (runbook, words) = (text.is_none(), text.clone().unwrap_or_else(|| RUNBOOK.to_owned()));
                let who = format!("{}, waits for the turn", whose(actor));
                waits.push((put(Kind::Words { class: "human", who, text: words }), runbook, whose(actor)));
            }
            // What waited stands where it was said.
            What::Prompt { .. } | What::Runbook { .. } if waits.iter().any(|one| one.1 == matches!(line.what, What::Runbook { .. })) => {
                let runbook = matches!(line.what, What::Runbook { .. });
                let begun = waits.iter().position(|one| one.1 == runbook).map(|at| waits.remove(at));
                begun.into_iter().for_each(|(at, _, who)| entries[at].called(who));
            }
            What::Prompt { text, actor } => stays(put(Kind::Words { class: "human", who: whose(actor), text: text.clone() })),
            What::Runbook { actor } => {
                stays(put(Kind::Words { class: "human", who: whose(actor), text: RUNBOOK.to_owned() }));
            }
            What::Text { text } => stays(put(Kind::Words { class: "model", who: "Claude".to_owned(), text: text.clone() })),
            What::Thinking { text } => stays(put(Kind::Words { class: "thought", who: "Claude thinks".to_owned(), text: text.clone() })),
            What::Said { text } => stays(put(Kind::Words { class: "said", who: by(line.origin).to_owned(), text: text.clone() })),
            What::Call { call, tool, input } => {
                let input = serde_json::to_string_pretty(input).unwrap_or_default();
                let kind = Kind::Call { tool: tool.clone(), input, result: None, waits: None, call: call.clone(), decided: None };
                calls.insert(call.clone(), put(kind));
            }
            What::Awaiting { call, said, .. } => {
                if let Some(Kind::Call { waits, .. }) = calls.get(call).map(|at| &mut entries[*at].kind) {
                    // Only what still waits can be decided.
                    *waits = one.facts.awaiting.contains_key(call).then(|| said.clone());
                }
            }
            What::Decided { call, allowed, actor } => {
                if let Some(Kind::Call { decided, .. }) = calls.get(call).map(|at| &mut entries[*at].kind) {
                    *decided = Some((*allowed, actor.clone()));
                }
            }
            What::Result { call, error, text, images } => {
                if let Some(Kind::Call { result, .. }) = calls.get(call).map(|at| &mut entries[*at].kind) {
                    *result = Some((*error, text.clone(), *images));
                }
            }
            What::VerbAsked { request_id, verb, .. } if !runs.contains_key(request_id.as_str()) => {
                if let Some(run) = Run::begun(line, request_id, *verb) {
                    runs.insert(request_id.to_string(), put(Kind::Verb(Box::new(run))));
                }
            }
            What::VerbAsked { request_id, .. }
            | What::VerbNews { request_id, .. }
            | What::VerbAgain { request_id, .. }
            | What::Artifact { request_id, .. }
            | What::VerbEnded { request_id, .. } => {
                if let Some(Kind::Verb(run)) = runs.get(request_id.as_str()).map(|at| &mut entries[*at].kind) {
                    run.fold(line);
                }
            }
            What::ExecAsked { exec, command, reason, .. } => {
                let kind = Kind::Command {
                    command: command.clone(),
                    reason: reason.clone(),
                    output: String::new(),
                    end: None,
                    file: None,
                    bytes: 0,
                };
                commands.insert(*exec, put(kind));
            }
            What::ExecOutput { exec, text, .. } => {
                if let Some(Kind::Command { output, .. }) = commands.get(exec).map(|at| &mut entries[*at].kind)
                    && output.len() < MAX_TEXT
                {
                    output.push_str(&text.replace("\\n", "\n").replace("\\t", "    "));
                }
            }
            What::ExecEnded { exec, how, bytes: length, file: name, .. } => {
                if let Some(Kind::Command { end, file, bytes, .. }) = commands.get(exec).map(|at| &mut entries[*at].kind) {
                    (*end, *file, *bytes) = (Some(how.clone()), name.clone(), *length);
                }
            }
            What::Failed { model, why, again_ms, .. } => {
                let then = again_ms.map_or_else(String::new, |ms| format!(" It is asked again in {} s.", ms.div_ceil(1000)));
                put(Kind::Note { class: "warn", text: format!("{model} could not be had: {why}.{then}") });
            }
            What::Limit { said, .. } => stays(put(Kind::Note { class: "warn", text: said.to_string() })),
            What::Cancelled { actor, said } => {
                stays(put(Kind::Note { class: "warn", text: format!("Stopped by {}. {said}", whose(actor)) }))
            }
            What::Resumed => {
                stays(put(Kind::Note { class: "", text: "This program was started again here.".to_owned() }));
                waits.drain(..).for_each(|(at, _, who)| entries[at].called(format!("{who}, never begun: this program was started again")));
            }
            What::Repaired { bytes } => {
                stays(put(Kind::Note { class: "warn", text: format!("{bytes} bytes of a line that was cut off were taken away.") }))
            }
            What::Ended { healthy, said } => {
                let (text, times) = ends.take(*healthy, said);
                let (class, shown) =
                    (if *healthy { "good" } else { "warn" }, if times > 1 { format!("{text} ({times} times)") } else { text });
                ends.at.push((put(Kind::Note { class, text: shown }), times > 1));
            }
            What::Opened { .. } | What::Button { .. } | What::Message { .. } | What::Turn { .. } | What::Unknown => {}
        }
    }
    // The newest of those that say the same stays.
    let again = |pair: &[(usize, bool)]| pair[1].1.then_some(pair[0].0);
    for at in ends.at.windows(2).filter_map(again).rev() {
        entries.remove(at);
    }
    entries
}
