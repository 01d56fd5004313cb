//! The runbook's journal, kept as lines of an incident.

use std::sync::Arc;

use proto::Message;

use super::Incident;
use super::act::asked;
use super::event::{By, Task, What};
use super::hears::{Hears, how};
use crate::hands::{ExecEnd, VerbAsk, VerbEnd, VerbNews};
use crate::runbook::Journal;
use crate::untrusted::Untrusted;

/// What the runbook tells, as a task of an incident.
pub struct Notes {
    incident: Arc<Incident>,
    task: Task,
    command: u64,
    hears: Option<Hears>,
}

impl Notes {
    /// A journal that writes into this incident.
    pub fn new(incident: Arc<Incident>, task: Task) -> Self {
        Self { incident, task, command: 0, hears: None }
    }

    fn note(&self, what: What) {
        self.incident.note(self.task, By::Runbook, what);
    }
}

impl Journal for Notes {
    fn asks(&mut self, ask: &VerbAsk) -> Result<(), Message> {
        self.incident.write(self.task, By::Runbook, asked(ask, None))?;
        self.hears = Some(Hears::new(&self.incident, self.task, By::Runbook, ask));
        Ok(())
    }

    fn news(&mut self, _: &VerbAsk, news: &VerbNews) {
        if let Some(hears) = &mut self.hears {
            hears.news(news.clone());
        }
    }

    fn ended(&mut self, _: &VerbAsk, end: &VerbEnd) {
        if let Some(mut hears) = self.hears.take() {
            hears.ended(end);
        }
    }

    fn runs(&mut self, command: &str) -> Result<(), Message> {
        self.command = self.incident.next_exec();
        let what = What::ExecAsked { exec: self.command, command: command.to_owned(), reason: None, timeout_s: 15, call: None };
        self.incident.write(self.task, By::Runbook, what).map(drop)
    }

    fn ran(&mut self, _: &str, output: &[u8], end: &ExecEnd) {
        let exec = self.command;
        if !output.is_empty() {
            self.note(What::ExecOutput { exec, stderr: false, text: Untrusted::from(output.to_vec()).line(4000) });
        }
        let exit = if let ExecEnd::Exited(status) = end { Some(*status) } else { None };
        self.note(What::ExecEnded { exec, how: how(end), exit, bytes: output.len() as u64, file: None });
    }

    fn said(&mut self, text: &str) {
        self.note(What::Said { text: proto::escape_cut(text.as_bytes(), 8000) });
    }
}
