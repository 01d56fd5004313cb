//! Events to plain lines for a tired person on a phone: short, wrapped, and never more than was asked for.
//!
//! Does not decide anything and does not print. Whatever a guest or a caller may have written is escaped here once more, since
//! escaping twice costs a backslash and escaping never costs a terminal. Colour only where the caller says that this is a terminal.

use proto::{Assessment, AuditPosition, Body, Event, Outcome, Probe, ProbeOutcome, ReceiptBody, Step, StepOutcome, Verb, VmState, Where};
use std::fmt::Write as _;

pub mod say;
mod usage;
mod wrap;

pub use usage::usage;
use wrap::escaped;
pub(crate) use wrap::paragraph;

/// How many unanswered probes are named for one reason.
const NAMED: usize = 3;

/// Turns the events of one answer into text. It remembers what belongs to a later line: probes are counted, not listed.
#[derive(Debug)]
pub struct Renderer {
    colour: bool,
    verb: Option<Verb>,
    captured: usize,
    missed: Vec<(String, Vec<String>)>,
    nothing_to_ask: usize,
    assessment: Option<Assessment>,
}

impl Renderer {
    /// A renderer; `terminal` says whether stdout is one.
    pub const fn new(terminal: bool) -> Self {
        Self { colour: terminal, verb: None, captured: 0, missed: Vec::new(), nothing_to_ask: 0, assessment: None }
    }

    /// The lines for this event, each with its newline; none where it is kept for later. The last line for a receipt is exactly
    /// `receipt SEQ HEAD OUTCOME`.
    pub fn line(&mut self, event: &Event) -> String {
        match &event.body {
            Body::Accepted(a) => {
                self.verb = Some(a.verb);
                if a.verb == Verb::Status {
                    return String::new(); // its first line is the state
                }
                self.accepted(a, &event.request_id)
            }
            Body::Probe(probe) => {
                self.probe(probe);
                String::new()
            }
            Body::Assessment(a) => {
                self.assessment = Some(a.clone());
                if self.verb == Some(Verb::Status) {
                    return String::new();
                }
                self.probes() + &self.judgement(a)
            }
            // Only who asked for events is sent these.
            Body::Artifact(_) | Body::Offered(_) => String::new(),
            Body::Preserved(p) => preserved(p),
            Body::Step(step) => self.step(event, step),
            Body::Receipt(receipt) => match proto::decode_body(&receipt.body) {
                Ok((body, _)) => self.receipt(&body, receipt.sig.is_some()),
                Err(why) => {
                    let said = format!("The answer's receipt could not be read ({why:?}).");
                    paragraph("", &said)
                        + &paragraph("", "Take the outcome as unknown and ask again with the same request id.")
                        + "receipt - - unknown\n"
                }
            },
        }
    }

    fn accepted(&self, a: &proto::Accepted, id: &proto::RequestId) -> String {
        let who = a.actor.as_ref().map(|actor| format!(", for {}", escaped(actor.as_str()))).unwrap_or_default();
        let why = a.reason.as_ref().map(|reason| format!(": {}", escaped(reason.as_str()))).unwrap_or_default();
        let origin = serde_json::to_value(a.origin).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        let joined = if a.attached { "Joined, already running: " } else { "" };
        let text = format!(
            "{joined}{} of VM {} on {}, asked by {} ({origin}){who}{why}. It has {} s.",
            a.verb,
            a.vmid,
            escaped(&a.node),
            a.key_name,
            a.deadline_ms / 1000
        );
        if !a.verb.mutates() {
            return paragraph("", &text);
        }
        paragraph("", &text) + &paragraph("", &format!("If the line breaks it runs on; to see it again: --attach --request-id={id}"))
    }

    fn probe(&mut self, probe: &Probe) {
        let how = match probe.outcome {
            ProbeOutcome::Captured => {
                self.captured += 1;
                return;
            }
            ProbeOutcome::TimedOut => "no answer in time",
            ProbeOutcome::Unavailable => {
                self.nothing_to_ask += 1;
                return;
            }
            ProbeOutcome::Failed => "failed",
        };
        let why = probe.detail.as_deref().map_or_else(|| how.to_owned(), |d| format!("{how}: {}", escaped(d)));
        match self.missed.iter_mut().find(|(known, _)| *known == why) {
            Some((_, names)) => names.push(escaped(&probe.name)),
            None => self.missed.push((why, vec![escaped(&probe.name)])),
        }
    }

    /// What was captured and what had nobody to ask is counted; what did not answer is named, equal reasons together. The bundle's
    /// summary has every name.
    fn probes(&mut self) -> String {
        let mut out = format!("{} {} of evidence captured.\n", self.captured, if self.captured == 1 { "piece" } else { "pieces" });
        out.push_str(&self.unanswered());
        self.captured = 0;
        out
    }

    fn unanswered(&mut self) -> String {
        let mut out = String::new();
        for (why, names) in self.missed.drain(..) {
            let few: Vec<_> = names.iter().take(NAMED).map(String::as_str).collect();
            let more = if names.len() > NAMED { format!(" and {} more", names.len() - NAMED) } else { String::new() };
            out.push_str(&paragraph("- ", &format!("{}{more} {why}", few.join(", "))));
        }
        if self.nothing_to_ask > 0 && self.verb != Some(Verb::Status) {
            out.push_str(&paragraph("- ", &format!("{} more had nothing to ask (see summary.txt)", self.nothing_to_ask)));
        }
        self.nothing_to_ask = 0;
        out
    }

    fn judgement(&self, a: &Assessment) -> String {
        paragraph("", &self.paint(a.healthy, &escaped(&a.sentence))) + &findings(a) + &advice(a)
    }

    fn step(&self, event: &Event, step: &Step) -> String {
        let at = event.at.to_string();
        let clock = at.get(11..19).unwrap_or_default();
        let name = serde_json::to_value(step.name).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        let how = match step.outcome {
            StepOutcome::Started => "…".to_owned(),
            StepOutcome::Done => format!("done, {}", seconds(step.ms)),
            StepOutcome::Failed => format!("FAILED after {}", seconds(step.ms)),
            StepOutcome::TimedOut => format!("NO ANSWER in {}", seconds(step.ms)),
        };
        let detail = step.detail.as_deref().map(|d| format!(" ({})", escaped(d))).unwrap_or_default();
        paragraph("", &format!("{clock}Z {name} {how}{detail}"))
    }

    fn receipt(&mut self, body: &ReceiptBody, signed: bool) -> String {
        let mut out = String::new();
        let vm = format!("VM {}", body.vmid);
        let status = body.verb == Some(Verb::Status);
        if status {
            // State and judgement in one sentence, before anything else.
            let judged = self.assessment.take();
            let said = judged.as_ref().map_or_else(|| body.message.what.clone(), |a| a.sentence.clone());
            let healthy = judged.as_ref().is_some_and(|a| a.healthy);
            out.push_str(&paragraph("", &self.paint(healthy, &format!("{}: {}", body.state_after, escaped(&said)))));
            if let Some(a) = judged {
                out.push_str(&findings(&a));
                if !a.healthy {
                    out.push_str(&advice(&a));
                }
            } else if body.outcome != Outcome::Done {
                out.push_str(&paragraph("", &escaped(&body.message.next)));
            }
            out.push_str(&self.unanswered());
        } else {
            if self.captured > 0 || !self.missed.is_empty() {
                out.push_str(&self.probes());
            }
            let good = body.outcome == Outcome::Done;
            // Before a refusal, and for an existing bundle, nobody may have looked; "is unknown" would sound like a fault of the VM's.
            if !((body.outcome.is_refusal() || body.verb == Some(Verb::Forensics)) && body.state_after == VmState::Unknown) {
                out.push_str(&paragraph("", &self.paint(good, &format!("Now: {vm} is {}.", body.state_after))));
            }
            out.push_str(&paragraph(what_label(body.outcome), &escaped(&body.message.what)));
            out.push_str(&paragraph("Next: ", &escaped(&body.message.next)));
        }
        if let Some(bundle) = &body.bundle {
            out.push_str(&paragraph("Evidence: ", &place(bundle, u32::from(body.vmid), body.preserved_where)));
        }
        for (said, line) in [
            (body.dry_run, "A dry run: nothing was sent to the VM."),
            (body.already, "It already was in the wanted state: nothing was sent."),
            (body.replayed, "The answer of an earlier run; nothing was run now."),
            (body.interrupted, "The run that did this was killed before its end."),
        ] {
            if said {
                out.push_str(&paragraph("", line));
            }
        }
        for item in &body.degraded {
            out.push_str(&paragraph("Weaker: ", &escaped(item)));
        }
        if body.witness.as_ref().is_some_and(|w| w.ok == Some(false)) {
            out.push_str(&paragraph(
                "",
                &self
                    .paint(false, "WARNING: the host's log no longer has the record that you hold. Run `pve-verb log verify` on the host."),
            ));
        }
        if !signed {
            let why = body.unsigned_reason.as_deref().map(|w| format!(" ({})", escaped(w))).unwrap_or_default();
            out.push_str(&paragraph("", &format!("UNSIGNED{why}: take the outcome as unknown.")));
        }
        if let Some(n) = body.unreviewed.filter(|n| *n > 0) {
            out.push_str(&paragraph(
                "",
                &format!("{n} {} not reviewed yet (`pve-verb review`).", if n == 1 { "use is" } else { "uses are" }),
            ));
        }
        out + &last_line(body.audit.as_ref(), body.outcome)
    }

    /// Green or red on a terminal. Wrapping counts the marks as letters, which only makes a line shorter.
    fn paint(&self, good: bool, text: &str) -> String {
        if self.colour { format!("\x1b[{}m{text}\x1b[0m", if good { 32 } else { 31 }) } else { text.to_owned() }
    }
}

/// The judgement in a few lines, as an answer and a bundle's `summary.txt` have it.
pub fn judgement_text(a: &Assessment) -> String {
    paragraph("", &escaped(&a.sentence)) + &findings(a) + &advice(a)
}

/// What the sentence does not say already.
fn findings(a: &Assessment) -> String {
    let more = a.findings.iter().filter(|f| f.text != a.sentence);
    more.map(|f| paragraph("- ", &format!("{}: {}", f.code, escaped(&f.text)))).collect()
}

fn advice(a: &Assessment) -> String {
    let verb = a.recommend.verb.map(|v| format!("{v}. ")).unwrap_or_default();
    paragraph("", &format!("Advice: {verb}{}", escaped(&a.recommend.why)))
}

const fn what_label(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "Done: ",
        Outcome::Failed => "FAILED: ",
        Outcome::Unknown => "UNKNOWN: ",
        Outcome::Internal => "INTERNAL: ",
        _ => "Refused: ",
    }
}

fn preserved(p: &proto::Preserved) -> String {
    let rung = match p.place {
        Where::Disk => "on disk",
        Where::Tmpfs => "in memory (tmpfs) only",
        Where::Caller => "with you only",
    };
    let mut out = paragraph("", &format!("Evidence is safe {rung}: {}", p.bundle));
    for item in &p.degraded {
        out.push_str(&paragraph("Weaker: ", &escaped(item)));
    }
    out
}

fn place(bundle: &proto::BundleName, vmid: u32, rung: Option<Where>) -> String {
    use crate::host::path;
    match rung {
        Some(Where::Disk) | None => format!("{}/{vmid}/{bundle}", path::EVIDENCE),
        Some(Where::Tmpfs) => format!("{}/{vmid}/{bundle} (gone with the host's power)", path::RUN_EVIDENCE),
        Some(Where::Caller) => format!("{bundle}, with the caller only"),
    }
}

/// `receipt SEQ HEAD OUTCOME`: what a person notes, and what `--witness` takes.
fn last_line(audit: Option<&AuditPosition>, outcome: Outcome) -> String {
    let mut line = String::new();
    let _ = match audit {
        Some(at) => writeln!(line, "receipt {} {} {outcome}", at.seq, at.head),
        None => writeln!(line, "receipt - - {outcome}"),
    };
    line
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

/// A refusal where there is no pipeline to make a receipt: its two sentences, wrapped.
pub fn refusal_text(message: &proto::Message) -> String {
    paragraph("", &escaped(&message.what)) + &paragraph("", &escaped(&message.next))
}
