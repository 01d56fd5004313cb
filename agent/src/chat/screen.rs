//! An incident as a terminal shows it: its lines as they come, words as they are said, the time that is left. Nothing of others' steers
//! the terminal: everything but our own words is escaped here once more.

use std::io::Write;
use std::time::{Duration, Instant};

use proto::Message;

use crate::incident::{Line, Live, Seen, What};
use crate::shown::{self, lines};

/// A command's output, a piece of it.
const MAX_OUTPUT: usize = 300;

/// The terminal.
pub(super) struct Screen<W> {
    out: W,
    /// Whether it is one: then words are shown as they come, and the time left.
    live: bool,
    /// What was shown live of the text that is not a line yet.
    said: String,
    /// Whether the last line on it is one that the next replaces.
    waiting: bool,
    /// The verb that runs, and when its time is over.
    running: Option<(String, Instant)>,
    /// How the last verb ended, where it did not end well.
    bad: Option<Message>,
    /// What the runbook reported last.
    report: String,
}

impl<W: Write> Screen<W> {
    pub(super) const fn new(out: W, live: bool) -> Self {
        Self { out, live, said: String::new(), waiting: false, running: None, bad: None, report: String::new() }
    }

    /// Shows a line of our own words, escaped where others' are in it.
    pub(super) fn line(&mut self, text: &str) {
        self.fresh();
        let _nobody_reads = writeln!(self.out, "{text}").and_then(|()| self.out.flush());
    }

    /// At the beginning of an empty line.
    fn fresh(&mut self) {
        if std::mem::take(&mut self.waiting) {
            let _nobody_reads = write!(self.out, "\r\u{1b}[K");
        }
        if !self.said.is_empty() {
            self.said.clear();
            let _nobody_reads = writeln!(self.out);
        }
    }

    /// Shows what a watcher sees.
    pub(super) fn seen(&mut self, seen: &Seen) {
        match seen {
            Seen::Live(live) => self.words(live),
            Seen::Line(_, text) => {
                if let Ok(line) = serde_json::from_str::<Line>(text) {
                    self.what(&line.what);
                }
            }
        }
    }

    fn words(&mut self, live: &Live) {
        if !self.live || live.thinking {
            return;
        }
        if std::mem::take(&mut self.waiting) {
            let _nobody_reads = write!(self.out, "\r\u{1b}[K");
        }
        self.said.push_str(&live.text);
        let _nobody_reads = write!(self.out, "{}", lines(&live.text)).and_then(|()| self.out.flush());
    }

    /// Shows a line.
    pub(super) fn what(&mut self, what: &What) {
        match what {
            What::Prompt { text, .. } => self.prompt(text),
            What::Text { text } => {
                // What was shown already is not shown twice; what was missed is.
                if self.said == *text {
                    self.fresh();
                } else {
                    self.line(&lines(text));
                }
            }
            What::VerbAsked { verb, request_id, deadline_ms, attach, .. } => {
                let within = Duration::from_millis(*deadline_ms);
                let again = if *attach { ", asked after again" } else { "" };
                self.line(&format!("{verb} (at most {} s, request {request_id}{again})", within.as_secs()));
                self.running = Some((verb.to_string(), Instant::now() + within));
                self.report.clear();
            }
            What::VerbNews { news, .. } => {
                if let Some(text) = shown::event(news) {
                    self.line(&text);
                }
            }
            What::VerbAgain { why, after_ms, .. } => {
                self.line(&format!("  {}. The same request is asked again in {} s.", lines(why).trim_end_matches('.'), after_ms / 1000));
            }
            What::VerbEnded { verb, status, said, receipt, .. } => {
                self.running = None;
                let bad = (*status != 0).then(|| said.clone());
                match receipt {
                    Some(body) if *status == 0 => {
                        self.line(&format!("  {verb}: {}, VM {} is {}", body.outcome, body.vmid, body.state_after))
                    }
                    _ if bad.is_some() && self.bad == bad => self.line("  The same."),
                    _ => self.line(&format!("  {} {}", lines(&said.what), lines(&said.next))),
                }
                self.bad = bad;
            }
            What::ExecAsked { command, timeout_s, .. } => {
                self.line(&format!("devvm # {}", proto::escape_cut(command.as_bytes(), 500)));
                self.running = Some(("the command".to_owned(), Instant::now() + Duration::from_secs(*timeout_s)));
            }
            What::ExecOutput { text, .. } => self.line(&format!("  {}", cut(&lines(text)))),
            What::ExecEnded { how, exit, .. } => {
                self.running = None;
                if *exit != Some(0) {
                    self.line(&format!("  {}", lines(how)));
                }
            }
            What::Awaiting { said, .. } => {
                self.line(&format!("Claude wants to run: {}\nAllow it? [y/N]", lines(said)));
            }
            What::Decided { allowed, .. } => self.line(if *allowed { "Allowed." } else { "Denied: nothing was sent." }),
            What::Failed { model, why, again_ms, .. } => {
                let then = again_ms
                    .map_or_else(String::new, |ms| format!(" It is asked again in {:.1} s.", Duration::from_millis(ms).as_secs_f32()));
                self.line(&format!("{}: {}.{then}", lines(model), lines(why)));
            }
            What::Limit { said, .. } => self.line(&lines(&said.to_string())),
            What::Cancelled { said, .. } => self.line(&lines(said)),
            What::Said { text } => {
                let new = lines(shown::beyond(text, self.bad.as_ref()));
                if !new.is_empty() {
                    self.line(&new);
                }
                self.report = lines(text);
            }
            _ => {}
        }
    }

    /// The verdict's sentences, unless the runbook's report was just that.
    pub(super) fn verdict(&mut self, said: &Message) {
        let text = lines(&said.to_string());
        if self.report != text {
            self.line(&text);
        }
    }

    /// A person's words: they were typed here, unless this is shown later.
    fn prompt(&mut self, text: &str) {
        if !self.live {
            self.line(&format!("> {}", lines(text)));
        }
    }

    /// The time that is left, in a line that the next replaces.
    pub(super) fn tick(&mut self) {
        if !self.live || !self.said.is_empty() {
            return;
        }
        let Some((name, end)) = &self.running else { return };
        let left = end.saturating_duration_since(Instant::now()).as_secs();
        let _nobody_reads = write!(self.out, "\r\u{1b}[K… {name}: at most {left} s more").and_then(|()| self.out.flush());
        self.waiting = true;
    }
}

fn cut(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_OUTPUT);
    if end < text.len() { format!("{}…", &text[..end]) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::Task;

    const HOSTILE: &str = "a\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{202e}b\rc\u{8}";

    #[test]
    fn no_text_of_others_steers_the_terminal() {
        let mut screen = Screen::new(Vec::new(), true);
        let h = HOSTILE.to_owned();
        let message = Message::new(HOSTILE, HOSTILE);
        screen.seen(&Seen::Live(Live { task: Task(1), thinking: false, text: h.clone() }));
        for what in [
            What::Text { text: h.clone() },
            What::ExecAsked { exec: 1, command: h.clone(), reason: None, timeout_s: 5, call: None },
            What::ExecOutput { exec: 1, stderr: false, text: h.clone() },
            What::ExecEnded { exec: 1, how: h.clone(), exit: None, bytes: 0, file: None },
            What::Awaiting { call: h.clone(), tool: h.clone(), said: h.clone() },
            What::Failed { model: h.clone(), why: h.clone(), api_request: None, again_ms: None },
            What::Limit { limit: h.clone(), said: message.clone() },
            What::Cancelled { actor: None, said: h.clone() },
            What::Said { text: h.clone() },
            What::VerbAgain { request_id: proto::RequestId::from_random([0; 16]), why: h, after_ms: 0 },
        ] {
            screen.what(&what);
        }
        let text = String::from_utf8(screen.out).unwrap();
        assert!(text.contains("owned"));
        assert!(!text.chars().any(|c| c.is_control() && c != '\n') && !text.contains('\u{202e}'), "{text:?}");
    }

    #[test]
    fn a_report_says_what_is_new_and_the_verdict_does_not_repeat_it() {
        let mut screen = Screen::new(Vec::new(), false);
        let said = Message::new("Nothing was sent.", "Look at it.");
        let request_id = proto::RequestId::from_random([0; 16]);
        for verb in [proto::Verb::Status, proto::Verb::Forensics] {
            let (request_id, said) = (request_id.clone(), said.clone());
            screen.what(&What::VerbEnded {
                request_id,
                verb,
                sent: false,
                status: 20,
                said,
                receipt: None,
                assessment: None,
                bundle: None,
            });
        }
        let report = Message::new("Nothing was sent. The devvm is away.", "Look at it.");
        screen.what(&What::Said { text: report.to_string() });
        screen.verdict(&report);
        assert_eq!(String::from_utf8(screen.out).unwrap(), "  Nothing was sent. Look at it.\n  The same.\nThe devvm is away.\n");
    }

    #[test]
    fn what_was_shown_live_is_not_shown_twice() {
        let mut screen = Screen::new(Vec::new(), true);
        for text in ["It is ", "stalled."] {
            screen.seen(&Seen::Live(Live { task: Task(1), thinking: false, text: text.to_owned() }));
        }
        screen.what(&What::Text { text: "It is stalled.".to_owned() });
        screen.what(&What::Text { text: "Missed.".to_owned() });
        assert_eq!(String::from_utf8(screen.out).unwrap(), "It is stalled.\nMissed.\n");
    }
}
