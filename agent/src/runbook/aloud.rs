//! A journal that a person reads along: what is asked, each step as it happens, how it ended. Foreign text is escaped.

use std::io::Write;
use std::time::Duration;

use proto::{Message, Verb};

use super::Journal;
use crate::hands::{ExecEnd, VerbAsk, VerbEnd, VerbNews};
use crate::shown::{self, plain};
use crate::silence::Silence;

/// Tells it, and hands it on to the incident's own journal.
pub(super) struct Aloud<J, W> {
    inner: J,
    out: W,
    /// What was said of the devvm last: a guest that boots is asked many times.
    devvm: String,
    /// How the last verb ended, where it did not end well.
    bad: Option<Message>,
}

impl<J: Journal, W: Write + Send> Aloud<J, W> {
    /// A journal that tells to `out`.
    pub(super) const fn new(inner: J, out: W) -> Self {
        Self { inner, out, devvm: String::new(), bad: None }
    }

    fn line(&mut self, text: &str) {
        let _nobody_reads = writeln!(self.out, "{text}").and_then(|()| self.out.flush());
    }
}

impl<J: Journal, W: Write + Send> Journal for Aloud<J, W> {
    fn asks(&mut self, ask: &VerbAsk) -> Result<(), Message> {
        self.inner.asks(ask)?;
        let within = Duration::from_millis(ask.verb.deadline_ms()).as_secs();
        let id = if ask.verb == Verb::Status { String::new() } else { format!(", request {}", ask.request_id) };
        self.line(&format!("{} (at most {within} s{id})", ask.verb));
        Ok(())
    }

    fn news(&mut self, ask: &VerbAsk, news: &VerbNews) {
        self.inner.news(ask, news);
        match news {
            VerbNews::Event(event) => {
                if let Some(text) = shown::event(event) {
                    self.line(&text);
                }
            }
            VerbNews::Again { why, after } => {
                self.line(&format!("  {}. The same request is asked again in {} s.", plain(why).trim_end_matches('.'), after.as_secs()));
            }
            VerbNews::Artifact { .. } => {}
        }
    }

    fn ended(&mut self, ask: &VerbAsk, end: &VerbEnd) {
        self.inner.ended(ask, end);
        let bad = (end.status != 0).then(|| end.said.clone());
        match &bad {
            Some(_) if self.bad == bad => self.line("  The same."),
            Some(said) => self.line(&format!("  {} {}", plain(&said.what), plain(&said.next))),
            None => {}
        }
        self.bad = bad;
    }

    fn runs(&mut self, command: &str) -> Result<(), Message> {
        self.inner.runs(command)
    }

    fn ran(&mut self, command: &str, output: &[u8], end: &ExecEnd) {
        self.inner.ran(command, output, end);
        let how = match Silence::of(end) {
            None => "answers".to_owned(),
            Some(silence @ Silence::Mute(_)) => format!("does not answer: {silence}"),
            Some(silence) => format!("was not asked: {silence}"),
        };
        if self.devvm != how {
            self.line(&format!("devvm {how}"));
            self.devvm = how;
        }
    }

    fn said(&mut self, text: &str) {
        self.inner.said(text);
        let text = plain(shown::beyond(text, self.bad.as_ref()));
        if !text.is_empty() {
            self.line(&text);
        }
    }
}
