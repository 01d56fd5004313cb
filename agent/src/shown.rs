//! Text of others as a person sees it, in the terminal and on the page: nothing in it moves, hides or colours anything.

use proto::{Body, Event, StepOutcome};

/// Text that the host has escaped once, or nobody has: its backslashes stay, everything that is not printable is shown, on one line.
pub(crate) fn plain(text: &str) -> String {
    text.split('\\').map(|part| proto::escape(part.as_bytes())).collect::<Vec<_>>().join("\\")
}

/// The same for text of several lines.
pub(crate) fn lines(text: &str) -> String {
    text.replace("\r\n", "\n").split('\n').map(|line| plain(&line.replace('\t', "    "))).collect::<Vec<_>>().join("\n")
}

/// What of a host's event is worth a line at night.
pub(crate) fn event(event: &Event) -> Option<String> {
    match &event.body {
        Body::Assessment(own) => Some(format!("  {}: {}", own.code, plain(&own.sentence))),
        Body::Preserved(kept) => Some(format!("  evidence: {}", kept.bundle)),
        Body::Step(step) => {
            let name = serde_json::to_value(step.name).ok().and_then(|name| Some(name.as_str()?.to_owned())).unwrap_or_default();
            let detail = step.detail.as_deref().map(|detail| format!(": {}", plain(detail))).unwrap_or_default();
            match step.outcome {
                StepOutcome::Started => Some(format!("  {name} …")),
                StepOutcome::Done => None,
                StepOutcome::Failed => Some(format!("  {name} failed{detail}")),
                StepOutcome::TimedOut => Some(format!("  {name} took too long{detail}")),
            }
        }
        _ => None,
    }
}
