//! What the real API refuses: each rule of the Messages API that a client can break, held against every request.

use base64ct::{Base64, Encoding};
use serde_json::Value;

use super::{Answer, KEY};

/// What is known of the conversations so far.
#[derive(Default)]
pub(super) struct Checker {
    /// The messages of the last request of each, with its `system` and `tools`.
    conversations: Vec<(Vec<Value>, Value, Value)>,
    /// Thinking that was sent, by its signature.
    thoughts: Vec<(String, String)>,
}

fn rule(holds: bool, why: impl Into<String>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why.into()) }
}

/// The head of a request.
pub(super) fn head(head: &str) -> Result<(), String> {
    rule(head.starts_with("post /v1/messages http/1.1\r\n"), format!("another path: {}", head.lines().next().unwrap_or_default()))?;
    rule(head.contains(&format!("\r\nx-api-key: {KEY}\r\n")), "no key")?;
    rule(!head.contains("\r\nauthorization:"), "both credentials")?;
    rule(head.contains("\r\nanthropic-version: 2026-10-21\r\n"), "no version")?;
    rule(head.contains("\r\ncontent-type: application/json\r\n"), "no content type")
}

impl Checker {
    /// An answer that is sent.
    pub(super) fn answered(&mut self, answer: &Answer) {
        for block in answer.content.iter().filter(|block| block["type"] == "thinking") {
            let text = |member: &str| block[member].as_str().unwrap_or_default().to_owned();
            self.thoughts.push((text("signature"), text("thinking")));
        }
    }

    /// A request.
    pub(super) fn check(&mut self, body: &Value) -> Result<(), String> {
        for member in ["temperature", "top_p", "top_k", "tool_choice"] {
            rule(body.get(member).is_none(), format!("{member} is a 400"))?;
        }
        rule(body["stream"] == true && body["max_tokens"].as_u64().is_some_and(|n| n > 0), "stream and max_tokens")?;
        rule(body["thinking"]["type"] == "adaptive" && body["thinking"]["display"] == "summarized", "thinking")?;
        let marks = body.to_string().matches("\"cache_control\"").count();
        rule((1..=4).contains(&marks), format!("{marks} cache marks"))?;
        let messages = body["messages"].as_array().ok_or("no messages")?;
        roles(messages)?;
        for message in messages {
            self.message(message)?;
        }
        calls(messages)?;
        self.append_only(body, messages)
    }

    fn message(&self, message: &Value) -> Result<(), String> {
        let content = message["content"].as_array().ok_or("content is a list here")?;
        rule(!content.is_empty(), "a message without content")?;
        let role = &message["role"];
        for block in content {
            match block["type"].as_str() {
                Some("text") => {
                    rule(block["text"].as_str().is_some_and(|text| !text.trim().is_empty()), "an empty text block")?;
                }
                _ if role == "system" => return Err("a system message has text only".to_owned()),
                Some("thinking") => {
                    let same =
                        self.thoughts.iter().any(|(signature, text)| block["signature"] == **signature && block["thinking"] == **text);
                    rule(role == "assistant" && same, "Invalid signature in thinking block")?;
                }
                Some("tool_use") => rule(role == "assistant" && block["input"].is_object(), "a call's input is an object")?,
                Some("tool_result") => {
                    rule(role == "user", "a result is the user's")?;
                    for part in block["content"].as_array().ok_or("a result's content is a list here")? {
                        result_part(part)?;
                    }
                }
                Some("weather") => {}
                other => return Err(format!("a block of type {other:?}")),
            }
        }
        Ok(())
    }

    fn append_only(&mut self, body: &Value, messages: &[Value]) -> Result<(), String> {
        let (system, tools) = (body["system"].clone(), body["tools"].clone());
        for tool in tools.as_array().ok_or("no tools")? {
            rule(tool["strict"] == true && tool["input_schema"]["additionalProperties"] == false, "a tool is strict")?;
        }
        let old = self.conversations.iter_mut().find(|(old, ..)| messages.starts_with(old));
        match old {
            Some((old, was, had)) => {
                rule(*was == system && *had == tools, "system and tools are frozen")?;
                *old = messages.to_vec();
                Ok(())
            }
            None => {
                rule(messages.len() == 1, "the history was changed, not appended to")?;
                self.conversations.push((messages.to_vec(), system, tools));
                Ok(())
            }
        }
    }
}

fn result_part(part: &Value) -> Result<(), String> {
    match part["type"].as_str() {
        Some("text") => rule(part["text"].as_str().is_some_and(|text| !text.is_empty()), "empty text in a result"),
        Some("image") => {
            let source = &part["source"];
            rule(source["type"] == "base64" && source["media_type"] == "image/png", "an image's source")?;
            let data = source["data"].as_str().unwrap_or_default();
            rule(data.len() <= 5 << 20, "an image is too long")?;
            let bytes = Base64::decode_vec(data).map_err(|_| "an image is no base64")?;
            rule(bytes.starts_with(b"\x89PNG\r\n\x1a\n"), "an image is no PNG")
        }
        other => Err(format!("a result's part of type {other:?}")),
    }
}

/// User and assistant alternate; a system message follows a user's; the last is not the assistant's.
fn roles(messages: &[Value]) -> Result<(), String> {
    let mut before = "assistant";
    for message in messages {
        let role = message["role"].as_str().unwrap_or_default();
        let fits = match role {
            "user" => before == "assistant",
            "assistant" => before == "user" || before == "system",
            "system" => before == "user",
            _ => false,
        };
        rule(fits, format!("{role} after {before}"))?;
        before = role;
    }
    rule(before != "assistant", "the messages end with the assistant's")
}

/// Every call is answered in the next message, once, before anything else in it.
fn calls(messages: &[Value]) -> Result<(), String> {
    let ids = |message: Option<&Value>, kind: &str, member: &str| -> Vec<String> {
        let content = message.and_then(|message| message["content"].as_array()).cloned().unwrap_or_default();
        content.iter().filter(|block| block["type"] == kind).map(|block| block[member].as_str().unwrap_or_default().to_owned()).collect()
    };
    for (n, message) in messages.iter().enumerate() {
        let asked = if message["role"] == "assistant" { ids(Some(message), "tool_use", "id") } else { Vec::new() };
        let next = messages.get(n + 1);
        if message["role"] == "assistant" {
            rule(asked == ids(next, "tool_result", "tool_use_id"), format!("calls {asked:?} are not answered one by one"))?;
        }
        if message["role"] == "user" {
            let results = ids(Some(message), "tool_result", "tool_use_id").len();
            let content = message["content"].as_array().map_or(0, Vec::len);
            let first = message["content"].as_array().into_iter().flatten().take(results).all(|block| block["type"] == "tool_result");
            rule(first && results <= content, "results come first")?;
            rule(n > 0 || results == 0, "results without calls")?;
        }
    }
    Ok(())
}
