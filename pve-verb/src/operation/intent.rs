//! The newest intent of the log, and what became of it. operation.json is written after the intent: where a worker dies between the two,
//! and where a disk kept the log but not the rest, this is what still knows that its id was begun. Pure.

use proto::RequestId;
use serde::{Deserialize, Serialize};

use super::Operation;

/// How the log says that a mutation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// By its own worker.
    Outcome,
    /// Its worker was killed, and somebody recorded that.
    Interrupted,
}

/// Something that was begun, as its request's id names it.
pub trait Named<I> {
    /// Whether it is that request's.
    fn is_of(&self, id: &I) -> bool;
}

impl Named<RequestId> for Operation {
    fn is_of(&self, id: &RequestId) -> bool {
        self.request_id == *id
    }
}

/// The newest intent, and those before it whose end the log does not say. There are such where a mutation was begun while the disk did
/// not say what had been killed before it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastIntent<T = Operation> {
    /// What was to be done.
    pub operation: T,
    /// What became of it, as far as the log says.
    pub end: Option<End>,
    /// Older ones without an end, the oldest first.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<T>,
}

/// What a record says about intents.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Mark<T = Operation, I = RequestId> {
    /// Something is about to be done.
    Begun(Box<T>),
    /// This request ended.
    Ended(I, End),
}

impl<T> LastIntent<T> {
    /// What is known after one more record.
    pub fn after<I>(before: Option<Self>, mark: Option<Mark<T, I>>) -> Option<Self>
    where
        T: Named<I>,
    {
        match (before, mark) {
            (before, Some(Mark::Begun(operation))) => {
                let earlier = before.map_or_else(Vec::new, |last| {
                    let open = last.end.is_none().then_some(last.operation);
                    last.earlier.into_iter().chain(open).collect()
                });
                Some(Self { operation: *operation, end: None, earlier })
            }
            (Some(mut last), Some(Mark::Ended(id, end))) => {
                if last.operation.is_of(&id) {
                    last.end = Some(end);
                }
                last.earlier.retain(|operation| !operation.is_of(&id));
                Some(last)
            }
            (before, None) => before,
            (None, _) => None,
        }
    }

    /// Whether it, or one of the open ones, is that request's.
    pub fn names<I>(&self, id: &I) -> bool
    where
        T: Named<I>,
    {
        self.operation.is_of(id) || self.earlier.iter().any(|operation| operation.is_of(id))
    }

    /// Those without an end, the oldest first.
    pub fn open(&self) -> impl Iterator<Item = &T> {
        self.earlier.iter().chain(self.end.is_none().then_some(&self.operation))
    }
}

/// Whether a line can have a mark, without reading it: parsing a whole log takes seconds. In a repair record the line that it takes in
/// is a string, in which quotes are escaped.
pub(crate) fn may_mark(line: &[u8]) -> bool {
    const KINDS: [&[u8]; 3] = [b"intent", b"outcome", b"interrupted"];
    let unescaped = |rest: &[u8]| -> Vec<u8> { rest.iter().take(24).copied().filter(|byte| *byte != b'\\').collect() };
    let says = |rest: &[u8]| {
        let rest = unescaped(rest);
        let kind = rest.strip_prefix(b"kind\":\"");
        kind.is_some_and(|kind| KINDS.iter().any(|known| kind.strip_prefix(*known).is_some_and(|end| end.first() == Some(&b'"'))))
    };
    line.windows(5).enumerate().any(|(at, word)| word == b"kind\"" && says(&line[at..]) || word == b"kind\\" && says(&line[at..]))
}

/// The mark of a record; none where it has none.
pub(crate) fn mark(line: &[u8]) -> Option<Mark> {
    #[derive(Deserialize)]
    struct Members {
        kind: String,
        request_id: Option<RequestId>,
        operation: Option<Operation>,
        line: Option<String>,
    }
    let read = |line: &[u8]| may_mark(line).then(|| serde_json::from_slice::<Members>(line).ok()).flatten();
    let mut members = read(line)?;
    if members.kind == "repair" {
        // A record that was made while nobody knew where the disk's log ends, taken in as it was.
        members = read(members.line?.as_bytes())?;
    }
    let Members { kind, request_id, operation, .. } = members;
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

    fn after(lines: &[Value]) -> Option<LastIntent> {
        let lines = lines.iter().map(|l| serde_json::to_vec(l).unwrap());
        lines.fold(None, |last, line| LastIntent::after(last, mark(&line)))
    }

    fn seen(lines: &[Value]) -> Option<(RequestId, Option<End>)> {
        after(lines).map(|l| (l.operation.request_id, l.end))
    }

    fn open(lines: &[Value]) -> Vec<RequestId> {
        after(lines).iter().flat_map(LastIntent::open).map(|operation| operation.request_id.clone()).collect()
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
        assert_eq!(open(&[begun(1), begun(2), ended(2)]), [id(1)], "begun while nobody could know of the first");
        assert_eq!(open(&[begun(1), begun(2), begun(3), killed(1, 4)]), [id(2), id(3)]);
        assert_eq!(open(&[begun(1), ended(1), begun(2), ended(2), ended(1)]), []);
        // What a caller says can't pass for a kind.
        assert_eq!(
            mark(&serde_json::to_vec(&json!({"kind": "read", "reason": r#""kind":"intent""#, "operation": operation(1)})).unwrap()),
            None
        );
        assert!(!may_mark(&serde_json::to_vec(&json!({"kind": "read", "reason": "kind: intent"})).unwrap()));
        // What a repair record takes in counts as if it had come to the log by itself.
        let taken_in = |line: &Value| json!({"kind": "repair", "line": serde_json::to_string(line).unwrap()});
        assert_eq!(seen(&[taken_in(&begun(1))]), Some((id(1), None)));
        assert_eq!(seen(&[begun(2), ended(2), taken_in(&begun(1)), taken_in(&ended(1))]), Some((id(1), Some(End::Outcome))));
    }
}
