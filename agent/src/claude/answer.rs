//! Puts an answer of the API together out of its events, block by block. An answer is one only when its last event came.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Map, Value};

/// No answer is longer.
const MAX: usize = 16 << 20;
/// No call's id is longer; the API's have 30 characters.
const MAX_ID: usize = 128;

/// What the API counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Usage {
    /// Read.
    #[serde(deserialize_with = "zero")]
    pub(super) input_tokens: u64,
    /// Written.
    #[serde(deserialize_with = "zero")]
    pub(super) output_tokens: u64,
    /// Read from the cache.
    #[serde(deserialize_with = "zero")]
    pub(super) cache_read_input_tokens: u64,
    /// Put into it.
    #[serde(deserialize_with = "zero")]
    pub(super) cache_creation_input_tokens: u64,
}

/// A count that may be null.
fn zero<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    Option::<u64>::deserialize(from).map(Option::unwrap_or_default)
}

/// A tool call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    /// Its id.
    pub(super) id: String,
    /// The tool.
    pub(super) tool: String,
    /// The input; none: it was cut off or is no JSON object, and nothing may be run.
    pub(super) input: Option<Map<String, Value>>,
}

/// A whole answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    /// The content, as it goes back to the API: nobody edits it any more.
    pub(super) content: Vec<Value>,
    /// The calls in it.
    pub(super) calls: Vec<Call>,
    /// Why it stopped.
    pub(super) stop: String,
    /// What it cost.
    pub(super) usage: Usage,
}

impl Answer {
    /// Why nothing of it can be used, after calls of these ids.
    pub(super) fn is_of_no_use(&self, used: &BTreeSet<String>) -> Option<&'static str> {
        if self.stop == "refusal" {
            return Some("the model refused to go on");
        }
        self.calls.iter().any(|call| used.contains(&call.id)).then_some("the model called under an id that it had used before")
    }
}

/// What can be shown before the answer is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// The next words.
    Text(String),
    /// The next words of a thought's summary.
    Thinking(String),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// An event that can't be read.
    Unreadable,
    /// It is longer than any answer is.
    TooLong,
    /// The API says in the middle that it can't go on: its error's type.
    Error(String),
    /// The stream ended before the answer did.
    CutOff,
}

/// An answer as it comes.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    blocks: Vec<Block>,
    stop: Option<String>,
    usage: Usage,
    bytes: usize,
    ended: bool,
}

#[derive(Debug)]
struct Block {
    index: u64,
    value: Map<String, Value>,
    /// A tool call's input, as far as it came.
    input: String,
    whole: bool,
}

impl Gathering {
    /// Takes the data of an event.
    ///
    /// # Errors
    /// There will be no answer.
    pub(super) fn event(&mut self, data: &[u8]) -> Result<Option<Heard>, Broken> {
        self.bytes += data.len();
        if self.bytes > MAX {
            return Err(Broken::TooLong);
        }
        let event: Value = serde_json::from_slice(data).map_err(|_| Broken::Unreadable)?;
        match event["type"].as_str() {
            Some("message_start") => self.count(&event["message"]["usage"]),
            Some("content_block_start") => {
                let index = event["index"].as_u64().ok_or(Broken::Unreadable)?;
                let Value::Object(value) = event["content_block"].clone() else { return Err(Broken::Unreadable) };
                if self.blocks.iter().any(|block| block.index == index) {
                    return Err(Broken::Unreadable);
                }
                self.blocks.push(Block { index, value, input: String::new(), whole: false });
            }
            Some("content_block_delta") => return self.delta(&event),
            Some("content_block_stop") => self.block(&event)?.whole = true,
            Some("message_delta") => {
                if let Some(stop) = event["delta"]["stop_reason"].as_str() {
                    self.stop = Some(stop.to_owned());
                }
                self.count(&event["usage"]);
            }
            Some("message_stop") => self.ended = true,
            Some("error") => {
                return Err(Broken::Error(event["error"]["type"].as_str().unwrap_or("without a type").to_owned()));
            }
            // ping, and what is not known yet.
            _ => {}
        }
        Ok(None)
    }

    fn block(&mut self, event: &Value) -> Result<&mut Block, Broken> {
        let index = event["index"].as_u64().ok_or(Broken::Unreadable)?;
        self.blocks.iter_mut().find(|block| block.index == index).ok_or(Broken::Unreadable)
    }

    fn delta(&mut self, event: &Value) -> Result<Option<Heard>, Broken> {
        let delta = event["delta"].clone();
        let block = self.block(event)?;
        let mut more = |member: &str, from: &str| {
            let text = delta[from].as_str().unwrap_or_default().to_owned();
            match block.value.get_mut(member) {
                Some(Value::String(old)) => old.push_str(&text),
                _ => drop(block.value.insert(member.to_owned(), Value::String(text.clone()))),
            }
            text
        };
        Ok(match delta["type"].as_str() {
            Some("text_delta") => Some(Heard::Text(more("text", "text"))),
            Some("thinking_delta") => Some(Heard::Thinking(more("thinking", "thinking"))),
            Some("signature_delta") => {
                more("signature", "signature");
                None
            }
            Some("input_json_delta") => {
                block.input.push_str(delta["partial_json"].as_str().unwrap_or_default());
                None
            }
            Some("citations_delta") => {
                if let Value::Array(list) = block.value.entry("citations").or_insert_with(|| Value::Array(Vec::new())) {
                    list.push(delta["citation"].clone());
                }
                None
            }
            _ => None,
        })
    }

    fn count(&mut self, usage: &Value) {
        // Cumulative: what is told again replaces, what is not told stays.
        let Ok(told) = serde_json::from_value::<Usage>(usage.clone()) else { return };
        let keep = |old: &mut u64, new: u64| *old = new.max(*old);
        keep(&mut self.usage.input_tokens, told.input_tokens);
        keep(&mut self.usage.output_tokens, told.output_tokens);
        keep(&mut self.usage.cache_read_input_tokens, told.cache_read_input_tokens);
        keep(&mut self.usage.cache_creation_input_tokens, told.cache_creation_input_tokens);
    }

    /// What was counted so far: a broken answer costs too.
    pub(super) const fn usage(&self) -> Usage {
        self.usage
    }

    /// Whether the last event came.
    pub(super) const fn ended(&self) -> bool {
        self.ended
    }

    /// The stream's end.
    ///
    /// # Errors
    /// The answer had not ended, or calls something that can't be answered: a result goes back, and a person says yes, by the call's id.
    pub(super) fn end(mut self) -> Result<Answer, Broken> {
        let (true, Some(stop)) = (self.ended, self.stop) else { return Err(Broken::CutOff) };
        self.blocks.sort_by_key(|block| block.index);
        let mut answer = Answer { stop, usage: self.usage, ..Answer::default() };
        for mut block in self.blocks {
            match block.value.get("type").and_then(Value::as_str) {
                Some("tool_use") => {
                    let text = |member: &str| block.value.get(member).and_then(Value::as_str).unwrap_or_default().to_owned();
                    let (id, tool) = (text("id"), text("name"));
                    if !is_id(&id) || tool.is_empty() || answer.calls.iter().any(|call| call.id == id) {
                        return Err(Broken::Unreadable);
                    }
                    let input = block.whole.then(|| input(&block.input)).flatten();
                    // A call that was cut off is answered like any other, and needs an input for that.
                    block.value.insert("input".to_owned(), Value::Object(input.clone().unwrap_or_default()));
                    answer.calls.push(Call { id, tool, input });
                }
                // Empty text is an error in a history, and says nothing.
                Some("text") if block.value.get("text").and_then(Value::as_str).is_none_or(|text| text.trim().is_empty()) => continue,
                _ => {}
            }
            answer.content.push(Value::Object(block.value));
        }
        Ok(answer)
    }
}

/// Whether this names a call, as the API has it: nothing else may go back to it.
fn is_id(text: &str) -> bool {
    (1..=MAX_ID).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// A call's input: nothing came for one without members.
fn input(text: &str) -> Option<Map<String, Value>> {
    if text.trim().is_empty() {
        return Some(Map::new());
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(input)) => Some(input),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// An answer that makes calls under these ids and names.
    fn calling(calls: &[(&str, &str)]) -> Result<Answer, Broken> {
        let mut gathering = Gathering::default();
        let mut tell = |event: Value| drop(gathering.event(event.to_string().as_bytes()).unwrap());
        for (index, (id, name)) in calls.iter().enumerate() {
            let block = json!({ "type": "tool_use", "id": id, "name": name, "input": {} });
            tell(json!({ "type": "content_block_start", "index": index, "content_block": block }));
            tell(json!({ "type": "content_block_stop", "index": index }));
        }
        tell(json!({ "type": "message_delta", "delta": { "stop_reason": "tool_use" } }));
        tell(json!({ "type": "message_stop" }));
        gathering.end()
    }

    #[test]
    fn a_call_that_can_t_be_answered_by_its_id_is_no_answer() {
        assert_eq!(calling(&[("toolu_01-a", "pve_status"), ("toolu_02", "pve_status")]).unwrap().calls.len(), 2);
        let long = "x".repeat(MAX_ID + 1);
        for calls in [
            &[("", "pve_cycle")][..],
            &[("a\u{202e}b", "pve_cycle")],
            &[("../x", "pve_cycle")],
            &[(long.as_str(), "pve_cycle")],
            &[("toolu_01", "")],
            &[("toolu_01", "pve_status"), ("toolu_01", "pve_cycle")],
        ] {
            assert_eq!(calling(calls).unwrap_err(), Broken::Unreadable, "{calls:?}");
        }
    }
}
