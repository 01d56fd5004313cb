//! Reads the events of an answer (PROTOCOL.md, section 3) out of bytes as they come, down to the receipt that ends it.
//!
//! It believes nothing: what it gives back is [`Unchecked`]. Unknown events and unknown members are passed over, as the contract
//! orders; a line that is no event, one that is too long, or anything after the receipt makes the whole answer worthless. A line
//! counts when its newline has come, so that an answer that was cut off anywhere is one that was cut off.

use proto::{Event, Receipt, RequestId, VERSION};
use serde::Deserialize;

/// No line is longer: 8 MiB of artifacts inside one event (`--inline`) are 11 MiB of base64.
pub const MAX_LINE: usize = 12 * 1024 * 1024;

/// A receipt as it came. Only [`crate::receipt::check`] can make it worth something.
#[derive(Debug)]
pub struct Unchecked {
    pub(crate) receipt: Receipt,
    /// The id that the answer's unsigned envelope claims.
    pub(crate) request_id: RequestId,
    /// The whole line, without its newline.
    pub(crate) line: String,
}

/// Why there is no receipt to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Not a byte.
    Empty,
    /// It ends in the middle of a line.
    CutOff,
    /// Whole lines, and no receipt at the end.
    NoReceipt,
    /// This line (from 1) is not an event: text, or damaged.
    NotAnEvent(u64),
    /// This line is longer than [`MAX_LINE`].
    TooLong(u64),
    /// Another protocol version.
    Version(u8),
    /// Something follows the receipt, which is always last.
    AfterTheReceipt,
}

/// The reader of one answer.
#[derive(Debug, Default)]
pub struct Reader {
    line: Vec<u8>,
    lines: u64,
    receipt: Option<Unchecked>,
    broken: Option<Broken>,
}

/// What every event has. Read on its own first: an event that this version does not know has no more that could be read.
#[derive(Deserialize)]
struct Envelope {
    v: u8,
    event: String,
}

/// The last event. Not [`Event`], whose flattened body would let a member stand there twice.
#[derive(Deserialize)]
struct Last {
    request_id: RequestId,
    body: String,
    sig: Option<String>,
}

impl Reader {
    /// A reader at the start of an answer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes; `tell` gets the events that are whole by now and known, the receipt excepted.
    pub fn feed(&mut self, mut bytes: &[u8], mut tell: impl FnMut(Event)) {
        while self.broken.is_none() && !bytes.is_empty() {
            if self.receipt.is_some() {
                self.broken = Some(Broken::AfterTheReceipt);
                return;
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            if self.line.len() + part.len() > MAX_LINE {
                self.broken = Some(Broken::TooLong(self.lines + 1));
                return;
            }
            self.line.extend_from_slice(part);
            if end.is_none() {
                return;
            }
            bytes = &rest[1..];
            self.lines += 1;
            let line = std::mem::take(&mut self.line);
            match self.whole(&line) {
                Ok(Some(event)) => tell(event),
                Ok(None) => {}
                Err(why) => self.broken = Some(why),
            }
        }
    }

    /// A whole line, without its newline.
    fn whole(&mut self, line: &[u8]) -> Result<Option<Event>, Broken> {
        let no_event = |_: serde_json::Error| Broken::NotAnEvent(self.lines);
        // As text: a member that nobody reads would otherwise be passed over with whatever bytes it has.
        let line = std::str::from_utf8(line).map_err(|_| Broken::NotAnEvent(self.lines))?;
        let envelope: Envelope = serde_json::from_str(line).map_err(no_event)?;
        if envelope.v != VERSION {
            return Err(Broken::Version(envelope.v));
        }
        if envelope.event != "receipt" {
            // Unknown, or known with a shape of a later version: not ours to refuse.
            return Ok(serde_json::from_str(line).ok());
        }
        let last: Last = serde_json::from_str(line).map_err(no_event)?;
        let receipt = Receipt { body: last.body, sig: last.sig };
        self.receipt = Some(Unchecked { receipt, request_id: last.request_id, line: line.to_owned() });
        Ok(None)
    }

    /// The end of the answer.
    ///
    /// # Errors
    /// Why there is no receipt to check.
    pub fn end(self) -> Result<Unchecked, Broken> {
        match (self.broken, self.receipt) {
            (Some(why), _) => Err(why),
            (None, Some(receipt)) => Ok(receipt),
            (None, None) if !self.line.is_empty() => Err(Broken::CutOff),
            (None, None) if self.lines == 0 => Err(Broken::Empty),
            (None, None) => Err(Broken::NoReceipt),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Unchecked, Broken> {
        let mut reader = Reader::new();
        reader.feed(text.as_bytes(), |_| ());
        reader.end()
    }

    const RECEIPT: &str = r#"{"v":1,"event":"receipt","request_id":"01010101-0101-4101-8101-010101010101","body":"e30=","sig":null}"#;

    #[test]
    fn unknown_events_and_members_are_passed_over() {
        let text = format!("{}\n{}\n", r#"{"v":1,"event":"weather","rain":true}"#, RECEIPT.replacen('{', r#"{"new":[1],"#, 1));
        assert_eq!(read(&text).unwrap().receipt.body, "e30=");
    }

    #[test]
    fn the_receipt_s_line_is_kept_as_it_came_however_the_bytes_come() {
        let text = format!("{{\"v\":1,\"event\":\"weather\"}}\n{RECEIPT}\n");
        for size in 1..=text.len() {
            let mut reader = Reader::new();
            text.as_bytes().chunks(size).for_each(|chunk| reader.feed(chunk, |_| ()));
            assert_eq!(reader.end().unwrap().line, RECEIPT, "in pieces of {size}");
        }
    }

    #[test]
    fn a_receipt_is_exactly_one_and_last() {
        assert_eq!(read("").unwrap_err(), Broken::Empty);
        assert_eq!(read("{\"v\":1,\"event\":\"weather\"}\n").unwrap_err(), Broken::NoReceipt);
        assert_eq!(read(RECEIPT).unwrap_err(), Broken::CutOff);
        for after in ["\n", " ", RECEIPT, "{\"v\":1,\"event\":\"weather\"}\n"] {
            assert_eq!(read(&format!("{RECEIPT}\n{after}")).unwrap_err(), Broken::AfterTheReceipt, "{after:?}");
        }
    }

    #[test]
    fn what_is_no_event_is_named_by_its_line() {
        assert_eq!(read("running: VM 102 looks healthy\n").unwrap_err(), Broken::NotAnEvent(1));
        assert_eq!(read(&format!("{{\"v\":1,\"event\":\"x\"}}\n\n{RECEIPT}\n")).unwrap_err(), Broken::NotAnEvent(2));
        assert_eq!(read("{\"v\":2,\"event\":\"x\"}\n").unwrap_err(), Broken::Version(2));
    }

    #[test]
    fn a_member_that_stands_there_twice_is_refused() {
        let twice = RECEIPT.replacen("\"sig\":null", "\"sig\":null,\"body\":\"e30=\"", 1);
        assert_eq!(read(&format!("{twice}\n")).unwrap_err(), Broken::NotAnEvent(1));
    }

    #[test]
    fn a_line_without_end_takes_no_more_memory_than_the_cap() {
        let mut reader = Reader::new();
        let block = vec![b'x'; 1024 * 1024];
        for _ in 0..14 {
            reader.feed(&block, |_| ());
        }
        assert!(reader.line.len() <= MAX_LINE);
        assert_eq!(reader.end().unwrap_err(), Broken::TooLong(1));
    }
}
