//! Where the events of an answer go: to a caller's stdout, as text, NDJSON or a tar, or into a worker's spool. Decides nothing.

use proto::{Body, BundleName, Event, Offered, RequestId};
use std::time::Instant;

use crate::channel::Front;
use crate::out::Out;
use crate::spool::Spool;
use crate::tar::Tar;
use crate::{ack, deadline, host, text};

/// How a caller wants to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For a person.
    Text,
    /// One event a line.
    Json,
    /// A tar of the bundle, the receipt last.
    Tar,
}

/// The files of a bundle: paths within it, and bytes.
pub type Files = Vec<(String, Vec<u8>)>;

/// Why the caller does not keep a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unkept {
    /// It did not ask for artifacts inside events.
    NotAsked,
    /// It was sent the bundle and did not acknowledge it: why, fit to stand in a sentence.
    Silent(&'static str),
}

/// The two places.
enum Place {
    Caller { out: Out, form: Form, renderer: text::Renderer },
    Spool { spool: Spool, front: Front },
}

/// The answer to one request.
pub struct Answer {
    id: RequestId,
    place: Place,
    /// What a tar has before its receipt.
    files: Option<(BundleName, Files)>,
    /// What a person would have read meanwhile: a tar without a bundle has it.
    said: String,
}

impl Answer {
    /// To the caller on standard output.
    pub fn to_caller(id: RequestId, form: Form) -> Self {
        let out = Out::new(deadline::CALLER_STALLED, deadline::CALLER_PATIENCE);
        let colour = form == Form::Text && std::io::IsTerminal::is_terminal(&std::io::stdout());
        Self::to(id, Place::Caller { out, form, renderer: text::Renderer::new(colour) })
    }

    /// Into the spool that fronts relay; what the spool has no room for goes to the one front that started this.
    pub const fn to_spool(id: RequestId, spool: Spool, front: Front) -> Self {
        Self::to(id, Place::Spool { spool, front })
    }

    /// To a program at the other end of this.
    #[cfg(test)]
    pub(crate) fn to_program(id: RequestId, out: Out) -> Self {
        Self::to(id, Place::Caller { out, form: Form::Json, renderer: text::Renderer::new(false) })
    }

    const fn to(id: RequestId, place: Place) -> Self {
        Self { id, place, files: None, said: String::new() }
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
            Place::Spool { spool, .. } => spool.append(event),
            Place::Caller { out, form: Form::Json, .. } => {
                match &event.body {
                    Body::Probe(probe) if probe.data.is_some() => out.hold(),
                    // What only the caller can keep has to be with it before there can be a record of anything.
                    Body::Step(_) | Body::Receipt(_) | Body::Artifact(_) | Body::Offered(_) => out.release(),
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
            Place::Caller { form: Form::Tar, renderer, .. } => self.said.push_str(&renderer.line(event)),
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
    pub fn understood(&mut self, id: &RequestId, options: &proto::Draft) {
        self.id = id.clone();
        if let Place::Caller { form, renderer, .. } = &mut self.place {
            *form = match (options.json, options.tar) {
                (true, _) => Form::Json,
                (false, true) => Form::Tar,
                (false, false) => Form::Text,
            };
            if *form == Form::Tar {
                *renderer = text::Renderer::new(false);
            }
        }
    }

    /// Whether these files will be sent.
    pub const fn is_tar(&self) -> bool {
        matches!(self.place, Place::Caller { form: Form::Tar, .. })
    }

    /// What a tar has before its receipt; other forms don't ask for it.
    pub fn before_the_receipt(&mut self, bundle: &BundleName, files: impl FnOnce() -> Files) {
        if self.is_tar() {
            self.files = Some((bundle.clone(), files()));
        }
    }

    /// The last word, under the id that it is about.
    pub fn last(&mut self, id: &RequestId, receipt: proto::Receipt) {
        self.id = id.clone();
        let event = Event::new(host::now(), self.id.clone(), Body::Receipt(receipt));
        self.event(&event);
        if let Place::Caller { out, form: Form::Tar, .. } = &mut self.place {
            // A caller who is gone by now, or goes, is told by nobody; its record is closed.
            let _ = write_tar(out, self.files.take(), &self.said, &event);
        }
        self.flush();
    }

    /// Sends a bundle to the caller and waits until it says that it keeps it.
    ///
    /// # Errors
    /// Why it does not.
    pub fn offer(&mut self, files: impl Iterator<Item = Body>, offered: &Offered) -> Result<(), Unkept> {
        let id = self.id.clone();
        let events = files.chain([Body::Offered(offered.clone())]).map(|body| Event::new(host::now(), id.clone(), body));
        let sent = Instant::now() + deadline::OFFER;
        match &mut self.place {
            Place::Caller { out, form: Form::Json, .. } => {
                out.release();
                for event in events {
                    out.line(&serde_json::to_string(&event).unwrap_or_default());
                }
                out.flush_by(sent);
                if out.is_gone() {
                    return Err(Unkept::Silent("it is gone, or too slow to take it"));
                }
                ack::of(&offered.manifest_sha256, std::io::stdin(), Instant::now() + deadline::ACK).map_err(Unkept::Silent)
            }
            Place::Caller { .. } => Err(Unkept::NotAsked),
            Place::Spool { front, .. } => front.offer(events, &offered.manifest_sha256, sent).map_err(Unkept::Silent),
        }
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
            Place::Spool { .. } => false,
        }
    }
}

/// The bundle and the receipt; or, where there is no bundle, the two sentences of why.
fn write_tar(out: &mut Out, bundle: Option<(BundleName, Files)>, said: &str, receipt: &Event) -> std::io::Result<()> {
    let mut tar = Tar::begin(out, receipt.at.unix_ms() / 1000);
    let receipt = serde_json::to_vec(receipt)?;
    match bundle {
        Some((name, files)) => {
            for (path, bytes) in files {
                tar.file(&format!("{name}/{path}"), &bytes)?;
            }
            tar.file(&format!("{name}/receipt.json"), &receipt)?;
        }
        None => {
            tar.file("refused/answer.txt", said.as_bytes())?;
            tar.file("refused/receipt.json", &receipt)?;
        }
    }
    tar.end()
}
