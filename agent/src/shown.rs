//! Text of others as a person sees it, in the terminal and on the page: nothing in it moves, hides or colours anything.

use proto::{Body, Event, Message, StepOutcome};

/// Text that the host has escaped once, or nobody has: its backslashes stay, everything that is not printable is shown, on one line.
pub(crate) fn plain(text: &str) -> String {
    text.split('\\').map(|part| proto::escape(part.as_bytes())).collect::<Vec<_>>().join("\\")
}

/// The same for text of several lines.
pub(crate) fn lines(text: &str) -> String {
    text.replace("\r\n", "\n").split('\n').map(|line| plain(&line.replace('\t', "    "))).collect::<Vec<_>>().join("\n")
}

/// What a text says beyond the message that was shown before it: a report repeats how its last verb ended.
pub(crate) fn beyond<'a>(text: &'a str, shown: Option<&Message>) -> &'a str {
    let rest = shown.and_then(|shown| Some((text.strip_prefix(shown.what.as_str())?, shown.next.as_str())));
    rest.map_or(text, |(rest, next)| rest.strip_suffix(next).unwrap_or(rest).trim())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_shown_is_not_said_again() {
        let shown = Message::new("Nothing was sent.", "Look at it.");
        for (text, rest) in [
            ("Nothing was sent. The devvm is away. Look at it.", "The devvm is away."),
            ("Nothing was sent. Look at it.", ""),
            ("Nothing was sent. Look elsewhere.", "Look elsewhere."),
            ("All is well. Look at it.", "All is well. Look at it."),
        ] {
            assert_eq!((beyond(text, Some(&shown)), beyond(text, None)), (rest, text));
        }
    }
}
