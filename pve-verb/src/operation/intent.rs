//! The newest intent of the log, and what became of it. operation.json is written after the intent: where a worker dies between the two,
//! and where a disk kept the log but not the rest, this is what still knows that its id was begun. Pure.

use proto::RequestId;
use serde::{Deserialize, Serialize};

use super::Operation;

/// How the log says that a mutation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// By its own worker.
    Outcome,
    /// Its worker was killed, and somebody recorded that.
    Interrupted,
}

/// The newest intent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastIntent {
    /// What was to be done.
    pub operation: Operation,
    /// What became of it, as far as the log says.
    pub end: Option<End>,
}

/// What a record says about intents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Something is about to be done.
    Begun(Box<Operation>),
    /// This request ended.
    Ended(RequestId, End),
}

impl LastIntent {
    /// What is known after one more record.
    pub(crate) fn after(before: Option<Self>, mark: Option<Mark>) -> Option<Self> {
        match (before, mark) {
            (_, Some(Mark::Begun(operation))) => Some(Self { operation: *operation, end: None }),
            (Some(last), Some(Mark::Ended(id, end))) if last.operation.request_id == id => Some(Self { end: Some(end), ..last }),
            (before, _) => before,
        }
    }
}

/// Whether a line can have a mark, without reading it: parsing a whole log takes seconds. Within a string the quotes would be escaped.
pub(crate) fn may_mark(line: &[u8]) -> bool {
    let has = |kind: &[u8]| line.windows(kind.len()).any(|w| w == kind);
    [br#""kind":"intent""#.as_slice(), br#""kind":"outcome""#, br#""kind":"interrupted""#].into_iter().any(has)
}

/// The mark of a record; none where it has none.
pub(crate) fn mark(line: &[u8]) -> Option<Mark> {
    #[derive(Deserialize)]
    struct Members {
        kind: String,
        request_id: Option<RequestId>,
        operation: Option<Operation>,
    }
    if !may_mark(line) {
        return None;
    }
    let Members { kind, request_id, operation } = serde_json::from_slice(line).ok()?;
    match kind.as_str() {
        "intent" => operation.map(|o| Mark::Begun(Box::new(o))),
        "outcome" => request_id.map(|id| Mark::Ended(id, End::Outcome)),
        // The record is another request's; whose end it tells is inside.
        "interrupted" => operation.map(|o| Mark::Ended(o.request_id, End::Interrupted)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn id(n: u8) -> RequestId {
        RequestId::from_random([n; 16])
    }

    fn operation(n: u8) -> Value {
        json!({
            "request_id": id(n), "verb": "cycle", "vmid": 102, "key_name": "anna", "boot_id": "b", "pid": 1, "started": 2,
            "at": "2026-11-21T00:30:00.000Z", "bundle": null, "deadline_boot_ms": 3,
        })
    }

    fn seen(lines: &[Value]) -> Option<(RequestId, Option<End>)> {
        let lines = lines.iter().map(|l| serde_json::to_vec(l).unwrap());
        let last = lines.fold(None, |last, line| LastIntent::after(last, mark(&line)));
        last.map(|l| (l.operation.request_id, l.end))
    }

    #[test]
    fn an_intent_is_open_until_an_end_of_its_own_request() {
        let begun = |n| json!({"kind": "intent", "request_id": id(n), "operation": operation(n)});
        let ended = |n| json!({"kind": "outcome", "request_id": id(n)});
        let killed = |n, by| json!({"kind": "interrupted", "request_id": id(by), "operation": operation(n)});
        assert_eq!(seen(&[begun(1)]), Some((id(1), None)));
        assert_eq!(seen(&[begun(1), ended(2), json!({"kind": "read", "request_id": id(1)})]), Some((id(1), None)));
        assert_eq!(seen(&[begun(1), ended(1)]), Some((id(1), Some(End::Outcome))));
        assert_eq!(seen(&[begun(1), killed(1, 2)]), Some((id(1), Some(End::Interrupted))));
        assert_eq!(seen(&[begun(1), killed(1, 2), begun(2)]), Some((id(2), None)));
        assert_eq!(seen(&[ended(1), killed(1, 2)]), None);
        // What a caller says can't pass for a kind.
        assert!(!may_mark(&serde_json::to_vec(&json!({"kind": "read", "reason": r#""kind":"intent""#})).unwrap()));
    }
}
