//! What a tool gave, as it enters the conversation: what is signed or measured in our words, everything else quoted as data, the console
//! as pictures.

use base64ct::{Base64, Encoding};
use proto::ProbeOutcome;
use serde_json::{Value, json};

use crate::hands::ExecEnd;
use crate::incident::{ExecTold, Incident, Kept, VerbTold};
use crate::untrusted::{Room, Untrusted};

/// Artifacts that are quoted, together, in bytes.
const ROOM: usize = 48 << 10;
/// One that the judgement names.
const NAMED: Room = Room { head: 4000, tail: 2000 };
/// An artifact beyond this is not read.
const MAX_READ: u64 = 4 << 20;
/// Pictures that go with an answer.
const MAX_PICTURES: usize = 2;
/// The longest picture: five MiB as base64.
const MAX_PICTURE: u64 = 3 << 20;

/// What goes into a `tool_result`.
#[derive(Clone, Debug, Default)]
pub(super) struct Given {
    /// The text.
    pub(super) text: String,
    /// Pictures, PNG.
    pub(super) pictures: Vec<Vec<u8>>,
    /// Whether it is told as an error.
    pub(super) error: bool,
}

impl Given {
    /// Our own words about why nothing ran.
    pub(super) fn refused(text: impl Into<String>) -> Self {
        Self { text: text.into(), pictures: Vec::new(), error: true }
    }

    /// As a block of a user message.
    pub(super) fn block(&self, call: &str) -> Value {
        let mut content = vec![json!({ "type": "text", "text": self.text })];
        for picture in &self.pictures {
            let source = json!({ "type": "base64", "media_type": "image/png", "data": Base64::encode_string(picture) });
            content.push(json!({ "type": "image", "source": source }));
        }
        let mut block = json!({ "type": "tool_result", "tool_use_id": call, "content": content });
        if self.error {
            block["is_error"] = Value::Bool(true);
        }
        block
    }
}

fn word(value: impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        other => other.map(|value| value.to_string()).unwrap_or_default(),
    }
}

/// A verb's end.
pub(super) fn verb(incident: &Incident, told: &VerbTold) -> Given {
    let mut text = summary(told);
    let findings = told.assessment.iter().flat_map(|judged| &judged.findings);
    let named: Vec<&str> = findings.flat_map(|finding| finding.evidence.iter().map(String::as_str)).collect();
    text.extend(artifacts(incident, &told.kept, &named));
    Given { text: text.join("\n"), pictures: pictures(incident, &told.kept), error: told.end.checked.is_err() || told.end.status != 0 }
}

/// A verb's end without its artifacts: what is signed, what the host says, what it judged, and what gave nothing.
pub(crate) fn summary(told: &VerbTold) -> Vec<String> {
    let mut text = Vec::new();
    match &told.end.checked {
        Ok(proved) => {
            let body = proved.body();
            let mut line = format!(
                "Signed receipt: {} {} (exit {}), VM was {}, is {}.",
                told.verb, body.outcome, body.exit_code, body.state_before, body.state_after
            );
            if let Some(code) = body.assessment {
                line.push_str(&format!(" Assessment: {code}."));
            }
            if let Some(bundle) = &body.bundle {
                line.push_str(&format!(" Evidence: {bundle}."));
            }
            for (so, note) in [
                (body.already, " It was in that state already."),
                (body.replayed, " This tells an earlier run again."),
                (body.interrupted, " Its worker was killed on the way."),
                (!body.degraded.is_empty(), " Some of the evidence is weaker than it should be."),
            ] {
                if so {
                    line.push_str(note);
                }
            }
            text.push(line);
            text.push(quote("the host's message", &format!("{}\n{}", body.message.what, body.message.next), NAMED));
        }
        Err(_) if !told.end.sent => {
            text.push(format!("NOT SENT: {} never reached the host, so it did nothing there. {}", told.verb, told.end.said))
        }
        Err(_) => text.push(format!(
            "UNKNOWN: there is no valid receipt, so nobody knows what {} did. Look with pve_status. Never repeat it blindly.",
            told.verb
        )),
    }
    if let Some(judged) = &told.assessment {
        if let Some(verb) = judged.recommend.verb {
            text.push(format!("The host's rules recommend: {verb}."));
        }
        let mut lines = vec![judged.sentence.clone(), judged.recommend.why.clone()];
        for finding in &judged.findings {
            lines.push(format!("{}: {}", finding.code, finding.text));
        }
        text.push(quote("the host's assessment", &lines.join("\n"), NAMED));
    }
    let missing: Vec<String> = told
        .probes
        .iter()
        .filter(|probe| probe.outcome != ProbeOutcome::Captured)
        .map(|probe| format!("{}: {} {}", probe.name, word(probe.outcome), probe.detail.as_deref().unwrap_or_default()))
        .collect();
    if !missing.is_empty() {
        text.push(quote("probes that gave nothing", &missing.join("\n"), Room::SMALL));
    }
    text
}

fn quote(source: &str, text: &str, room: Room) -> String {
    Untrusted::from(text).quote(source, room).as_str().to_owned()
}

/// The text artifacts, those that the judgement names first, as far as there is room; then the names of the rest.
fn artifacts(incident: &Incident, kept: &[Kept], named: &[&str]) -> Vec<String> {
    let is_named = |one: &&Kept| named.contains(&one.path.as_str());
    let ordered = kept.iter().filter(is_named).chain(kept.iter().filter(|one| !is_named(one)));
    let (mut out, mut rest, mut used) = (Vec::new(), Vec::new(), 0);
    for one in ordered {
        let is_text = one.media_type.starts_with("text/") || one.media_type == "application/json";
        let bytes =
            (is_text && used < ROOM && one.bytes <= MAX_READ).then(|| incident.file(&one.file).and_then(|path| std::fs::read(path).ok()));
        match bytes.flatten() {
            Some(bytes) => {
                let room = if is_named(&one) { NAMED } else { Room::SMALL };
                let quoted = Untrusted::from(bytes).quote(&format!("artifact {}", one.path), room);
                used += quoted.as_str().len();
                out.push(quoted.as_str().to_owned());
            }
            None if one.media_type == "image/png" => {}
            None => rest.push(format!("{} ({} bytes)", one.path, one.bytes)),
        }
    }
    if !rest.is_empty() {
        out.push(quote("artifacts that are stored and not shown", &rest.join("\n"), Room::SMALL));
    }
    out
}

/// The console: PNG only, as they were checked to be.
pub(crate) fn pictures(incident: &Incident, kept: &[Kept]) -> Vec<Vec<u8>> {
    let screens = kept.iter().filter(|one| one.media_type == "image/png" && one.path.starts_with("console/") && one.bytes <= MAX_PICTURE);
    let read = screens.filter_map(|one| std::fs::read(incident.file(&one.file)?).ok());
    read.filter(|bytes| is_png(bytes)).take(MAX_PICTURES).collect()
}

/// Whether it begins as a PNG does and has a size that the API takes.
pub(crate) fn is_png(bytes: &[u8]) -> bool {
    let side = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
    bytes.starts_with(b"\x89PNG\r\n\x1a\n") && [16, 20].into_iter().all(|at| side(at).is_some_and(|side| (1..=8000).contains(&side)))
}

/// A command's end.
pub(super) fn exec(told: &ExecTold) -> Given {
    // What SSH or the devvm says of the end is data like its output.
    let (mut text, detail) = match &told.end {
        ExecEnd::Exited(status) => (format!("The command ended with exit status {status}."), None),
        ExecEnd::Signalled(signal) => ("The command was ended by a signal.".to_owned(), Some(signal.clone())),
        ExecEnd::TimedOut => ("Its time was over. It may still be running there.".to_owned(), None),
        ExecEnd::Lost(why) => ("The connection was lost in the middle. It may still be running there.".to_owned(), Some(why.clone())),
        ExecEnd::Unreachable(why) => ("No connection to the devvm: nothing ran.".to_owned(), Some(why.clone())),
        ExecEnd::Refused(why) => ("The devvm let nobody in, or could not be tried: nothing ran.".to_owned(), Some(why.clone())),
        ExecEnd::Absent => {
            ("The configuration has no [devvm], so no command can ever run there. Only the verbs are there.".to_owned(), None)
        }
        ExecEnd::HostKeyChanged { .. } => (
            "The devvm shows another host key than the pinned one: nothing ran. A person has to compare the two and accept the new one."
                .to_owned(),
            None,
        ),
    };
    if let Some(detail) = detail {
        text.push('\n');
        text.push_str(&quote("what was said of it", &detail, Room::SMALL));
    }
    if let Some((_, false)) = &told.file {
        text.push_str(" Its output was longer than what is stored.");
    }
    if !told.output.is_empty() {
        text.push('\n');
        text.push_str(told.output.quote("output of the command on the devvm", Room::LARGE).as_str());
    }
    Given { text, pictures: Vec::new(), error: !matches!(told.end, ExecEnd::Exited(_)) }
}
