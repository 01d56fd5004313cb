//! Puts an answer of the API together out of its events, block by block. An answer is one only when its last event came.

use serde::Deserialize;
use serde_json::{Map, Value};

/// No answer is longer.
const MAX: usize = 16 << 20;

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
    /// The answer had not ended.
    pub(super) fn end(mut self) -> Result<Answer, Broken> {
        let (true, Some(stop)) = (self.ended, self.stop) else { return Err(Broken::CutOff) };
        self.blocks.sort_by_key(|block| block.index);
        let mut answer = Answer { stop, usage: self.usage, ..Answer::default() };
        for mut block in self.blocks {
            match block.value.get("type").and_then(Value::as_str) {
                Some("tool_use") => {
                    let text = |member: &str| block.value.get(member).and_then(Value::as_str).unwrap_or_default().to_owned();
                    let (id, tool) = (text("id"), text("name"));
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
