//! A Messages API that follows a script, on a socket of its own: it checks every request as the real one would, and answers as it is
//! told, down to single bytes. Made of threads and sockets, so that the lab can use it too.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

pub(crate) mod actors;
mod check;

use check::Checker;

/// The key that it takes.
pub(crate) const KEY: &str = "sk-ant-test-0123456789abcdef";

/// What is answered.
#[derive(Clone)]
pub(crate) enum Reply {
    /// A whole answer.
    Answer(Answer),
    /// An answer whose stream is this text, sent in these pieces, and then cut off or not.
    Stream {
        /// The pieces.
        pieces: Vec<Vec<u8>>,
        /// Whether the connection breaks after them.
        cut: bool,
        /// Between two pieces.
        pause: Duration,
    },
    /// An error.
    Error {
        /// The status.
        status: u16,
        /// Its type.
        kind: &'static str,
        /// Further headers.
        headers: Vec<(&'static str, String)>,
        /// `error_code`, where there is one.
        code: Option<&'static str>,
    },
    /// Nothing: the connection is closed.
    Nothing,
    /// Nothing, for this long.
    Silence(Duration),
}

/// An answer's content and end.
#[derive(Clone)]
pub(crate) struct Answer {
    /// The blocks.
    pub(crate) content: Vec<Value>,
    /// Why it stops.
    pub(crate) stop: &'static str,
    /// Tokens that were read and written.
    pub(crate) usage: (u64, u64),
}

impl Answer {
    /// One that thinks first, and then has these blocks.
    pub(crate) fn new(blocks: Vec<Value>) -> Self {
        let calls = blocks.iter().any(|block| block["type"] == "tool_use");
        let thought = json!({ "type": "thinking", "thinking": "Let me see.", "signature": format!("sig-{}", unique()) });
        let content = [vec![thought], blocks].concat();
        Self { content, stop: if calls { "tool_use" } else { "end_turn" }, usage: (1000, 50) }
    }

    /// The stream, as the API sends it.
    pub(crate) fn stream(&self) -> String {
        let mut out = String::new();
        let mut event = |data: Value| out.push_str(&format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap()));
        let usage =
            json!({ "input_tokens": self.usage.0, "output_tokens": 1, "cache_read_input_tokens": 0, "cache_creation_input_tokens": null });
        event(
            json!({ "type": "message_start", "message": { "id": "msg_1", "type": "message", "role": "assistant", "content": [], "usage": usage } }),
        );
        event(json!({ "type": "ping" }));
        for (index, block) in self.content.iter().enumerate() {
            let (start, deltas) = pieces(block);
            event(json!({ "type": "content_block_start", "index": index, "content_block": start }));
            for delta in deltas {
                event(json!({ "type": "content_block_delta", "index": index, "delta": delta }));
            }
            event(json!({ "type": "content_block_stop", "index": index }));
        }
        event(json!({ "type": "message_delta", "delta": { "stop_reason": self.stop }, "usage": { "output_tokens": self.usage.1 } }));
        event(json!({ "type": "message_stop" }));
        out
    }
}

/// A block as it begins, and its deltas.
fn pieces(block: &Value) -> (Value, Vec<Value>) {
    let text = |member: &str| block[member].as_str().unwrap_or_default().to_owned();
    let halves = |text: &str| -> Vec<String> {
        let middle = text.floor_char_boundary(text.len() / 2);
        vec![text[..middle].to_owned(), text[middle..].to_owned()]
    };
    match block["type"].as_str().unwrap() {
        "text" => (
            json!({ "type": "text", "text": "" }),
            halves(&text("text")).iter().map(|half| json!({ "type": "text_delta", "text": half })).collect(),
        ),
        "thinking" => {
            let mut deltas: Vec<Value> =
                halves(&text("thinking")).iter().map(|half| json!({ "type": "thinking_delta", "thinking": half })).collect();
            deltas.push(json!({ "type": "signature_delta", "signature": text("signature") }));
            (json!({ "type": "thinking", "thinking": "", "signature": "" }), deltas)
        }
        "tool_use" => {
            let input = block["input"].as_str().map_or_else(|| block["input"].to_string(), str::to_owned);
            let deltas = halves(&input).iter().map(|half| json!({ "type": "input_json_delta", "partial_json": half })).collect();
            (json!({ "type": "tool_use", "id": block["id"], "name": block["name"], "input": {} }), deltas)
        }
        _ => (block.clone(), Vec::new()),
    }
}

/// A number that no other call gives.
pub(crate) fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A block of text.
pub(crate) fn text(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

/// A block that calls a tool; an input that is a string is sent as it is.
pub(crate) fn call(name: &str, input: Value) -> Value {
    json!({ "type": "tool_use", "id": format!("toolu_{:04}", unique()), "name": name, "input": input })
}

/// A call with no more than a reason.
pub(crate) fn verb(name: &str) -> Value {
    call(name, json!({ "reason": "a scripted model wants it" }))
}

/// A command.
pub(crate) fn exec(command: &str) -> Value {
    call("devvm_exec", json!({ "command": command, "timeout_s": 30, "reason": "a scripted model wants it" }))
}

/// Blocks as a whole answer.
pub(crate) fn say(blocks: Vec<Value>) -> Reply {
    Reply::Answer(Answer::new(blocks))
}

/// What decides about answers: the whole request, and how many came before it.
pub(crate) type Script = Box<dyn FnMut(&Value, usize) -> Reply + Send>;

/// The API.
#[derive(Clone)]
pub(crate) struct Api {
    /// Its address.
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
}

struct State {
    script: Script,
    checker: Checker,
    requests: Vec<Value>,
    count: usize,
    keeps: bool,
    faults: Vec<String>,
}

impl Api {
    /// Listens, and answers by this script.
    pub(crate) fn start(script: impl FnMut(&Value, usize) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = State {
            script: Box::new(script),
            checker: Checker::default(),
            requests: Vec::new(),
            count: 0,
            keeps: true,
            faults: Vec::new(),
        };
        let api = Self { url, state: Arc::new(Mutex::new(state)) };
        let served = api.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let api = served.clone();
                std::thread::spawn(move || api.serve(stream));
            }
        });
        api
    }

    /// The same, keeping no request: where it is the process's memory that is looked at.
    pub(crate) fn forgetful(script: impl FnMut(&Value, usize) -> Reply + Send + 'static) -> Self {
        let api = Self::start(script);
        api.state.lock().unwrap().keeps = false;
        api
    }

    /// These answers, one after the other; the last one again and again.
    pub(crate) fn replies(replies: Vec<Reply>) -> Self {
        Self::start(move |_, n| replies[n.min(replies.len() - 1)].clone())
    }

    /// The requests so far.
    pub(crate) fn requests(&self) -> Vec<Value> {
        self.state.lock().unwrap().requests.clone()
    }

    /// What the real API would have refused.
    pub(crate) fn faults(&self) -> Vec<String> {
        self.state.lock().unwrap().faults.clone()
    }

    fn serve(&self, mut stream: TcpStream) {
        let Some((head, body)) = request(&mut stream) else { return };
        let reply = {
            let mut state = self.state.lock().unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let fault = check::head(&head).and_then(|()| state.checker.check(&body));
            if state.keeps {
                state.requests.push(body.clone());
            }
            state.count += 1;
            match fault {
                Err(why) => {
                    state.faults.push(why);
                    Reply::Error { status: 400, kind: "invalid_request_error", headers: Vec::new(), code: None }
                }
                Ok(()) => {
                    let n = state.count - 1;
                    let reply = (state.script)(&body, n);
                    if let Reply::Answer(answer) = &reply {
                        state.checker.answered(answer);
                    }
                    reply
                }
            }
        };
        let _the_client_left = give(&mut stream, reply);
    }
}

/// Head and body of a request.
fn request(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut block = vec![0; 64 * 1024];
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        match stream.read(&mut block) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&block[..n]),
            _ => return None,
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).ok()?.to_lowercase();
    let length: usize = head.lines().find_map(|line| line.strip_prefix("content-length:"))?.trim().parse().ok()?;
    let mut body = bytes.split_off(end);
    while body.len() < length {
        match stream.read(&mut block) {
            Ok(n) if n > 0 => body.extend_from_slice(&block[..n]),
            _ => return None,
        }
    }
    Some((head, body))
}

fn give(stream: &mut TcpStream, reply: Reply) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (pieces, cut, pause) = match reply {
        Reply::Nothing => return Ok(()),
        Reply::Silence(time) => {
            std::thread::sleep(time);
            return Ok(());
        }
        Reply::Error { status, kind, headers, code } => {
            let body = json!({ "type": "error", "request_id": "req_error",
                "error": { "type": kind, "message": "no \u{1b}[31mreason", "details": { "error_code": code } } });
            let body = body.to_string();
            write!(stream, "HTTP/1.1 {status} Error\r\nrequest-id: req_error\r\ncontent-length: {}\r\nconnection: close\r\n", body.len())?;
            for (name, value) in headers {
                write!(stream, "{name}: {value}\r\n")?;
            }
            return write!(stream, "\r\n{body}");
        }
        Reply::Answer(answer) => (vec![answer.stream().into_bytes()], false, Duration::ZERO),
        Reply::Stream { pieces, cut, pause } => (pieces, cut, pause),
    };
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nrequest-id: req_ok\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes())?;
    for piece in pieces {
        let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat();
        stream.write_all(&chunk)?;
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    if cut { Ok(()) } else { stream.write_all(b"0\r\n\r\n") }
}
