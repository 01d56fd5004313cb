//! Where the events of an answer go: to a caller's stdout, as text or NDJSON, or into a worker's spool. Decides nothing.

use proto::{Body, Event, RequestId};

use crate::out::Out;
use crate::spool::Spool;
use crate::{host, text};

/// How a caller wants to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For a person.
    Text,
    /// One event a line.
    Json,
}

/// The two places.
enum Place {
    Caller { out: Out, form: Form, renderer: text::Renderer },
    Spool(Spool),
}

/// The answer to one request.
pub struct Answer {
    id: RequestId,
    place: Place,
}

impl Answer {
    /// To the caller on standard output.
    pub fn to_caller(id: RequestId, form: Form) -> Self {
        let out = Out::new(crate::deadline::CALLER_STALLED, crate::deadline::CALLER_PATIENCE);
        let colour = std::io::IsTerminal::is_terminal(&std::io::stdout());
        Self { id, place: Place::Caller { out, form, renderer: text::Renderer::new(colour) } }
    }

    /// Into the spool that fronts relay.
    pub const fn to_spool(id: RequestId, spool: Spool) -> Self {
        Self { id, place: Place::Spool(spool) }
    }

    /// Says it.
    pub fn say(&mut self, body: Body) {
        self.event(&Event::new(host::now(), self.id.clone(), body));
    }

    /// Passes on an event that somebody else made: the front relays its worker's.
    ///
    /// Waits for a caller with the receipt only. Before, whoever reads slowly would spend the time in which evidence is taken. What is
    /// inside an artifact goes out behind a record of who got it: with the first step, or the receipt.
    pub fn event(&mut self, event: &Event) {
        match &mut self.place {
            Place::Spool(spool) => spool.append(event),
            Place::Caller { out, form: Form::Json, .. } => {
                match &event.body {
                    Body::Probe(probe) if probe.data.is_some() => out.hold(),
                    Body::Step(_) | Body::Receipt(_) => out.release(),
                    _ => {}
                }
                if let Ok(line) = serde_json::to_string(event) {
                    out.line(&line);
                }
            }
            Place::Caller { out, form: Form::Text, renderer } => {
                let text = renderer.line(event);
                if !text.is_empty() {
                    out.line(text.trim_end_matches('\n'));
                }
            }
        }
        if matches!(event.body, Body::Receipt(_)) {
            self.flush();
        }
    }

    /// Waits until the caller has what may go out, or is gone.
    pub fn flush(&mut self) {
        if let Place::Caller { out, .. } = &mut self.place {
            out.flush();
        }
    }

    /// Now that the request is parsed: its own id, and the form it asked for.
    pub fn understood(&mut self, id: &RequestId, json: bool) {
        self.id = id.clone();
        if let Place::Caller { form, .. } = &mut self.place {
            *form = if json { Form::Json } else { Form::Text };
        }
    }

    /// The last word, under the id that it is about.
    pub fn last(&mut self, id: &RequestId, receipt: proto::Receipt) {
        self.id = id.clone();
        self.say(Body::Receipt(receipt));
    }

    /// Help for a person, outside the events.
    pub fn aside(&mut self, help: &str) {
        if let Place::Caller { out, form: Form::Text, .. } = &mut self.place {
            out.line(help.trim_end_matches('\n'));
        }
    }

    /// Whether nobody listens any more.
    pub const fn nobody_listens(&self) -> bool {
        match &self.place {
            Place::Caller { out, .. } => out.is_gone(),
            Place::Spool(_) => false,
        }
    }
}
