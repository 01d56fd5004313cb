//! Decodes an event stream (`text/event-stream`) however it is cut into pieces. It knows nothing of what the events mean.

/// No event is longer.
const MAX: usize = 8 << 20;

/// The decoder of one stream.
#[derive(Debug, Default)]
pub(super) struct Stream {
    line: Vec<u8>,
    data: Option<Vec<u8>>,
    /// The last byte was a carriage return: a newline after it belongs to it.
    returned: bool,
    begun: bool,
}

/// An event that is longer than any is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Stream {
    /// Takes the next bytes; `tell` gets the data of each event that is whole by now.
    ///
    /// # Errors
    /// Nothing that follows can be read.
    pub(super) fn feed(&mut self, bytes: &[u8], mut tell: impl FnMut(Vec<u8>)) -> Result<(), TooLong> {
        for &byte in bytes {
            match byte {
                b'\n' if std::mem::take(&mut self.returned) => {}
                b'\n' | b'\r' => {
                    self.returned = byte == b'\r';
                    self.end_of_line(&mut tell);
                }
                byte => {
                    self.returned = false;
                    self.line.push(byte);
                    if self.line.len() + self.data.as_ref().map_or(0, Vec::len) > MAX {
                        return Err(TooLong);
                    }
                }
            }
        }
        Ok(())
    }

    fn end_of_line(&mut self, tell: &mut impl FnMut(Vec<u8>)) {
        let mut line = std::mem::take(&mut self.line);
        if !std::mem::replace(&mut self.begun, true) && line.starts_with("\u{feff}".as_bytes()) {
            line.drain(..3);
        }
        if line.is_empty() {
            if let Some(data) = self.data.take() {
                tell(data);
            }
            return;
        }
        // Everything else than data — comments, names, ids, retry — is of no use here: the data says its own type.
        let Some(value) = line.strip_prefix(b"data") else { return };
        let value = match value {
            [] => value,
            [b':', b' ', rest @ ..] | [b':', rest @ ..] => rest,
            _ => return,
        };
        match &mut self.data {
            Some(data) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
            None => self.data = Some(value.to_vec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(pieces: &[&[u8]]) -> Vec<String> {
        let mut stream = Stream::default();
        let mut events = Vec::new();
        for piece in pieces {
            stream.feed(piece, |data| events.push(String::from_utf8(data).unwrap())).unwrap();
        }
        events
    }

    const TEXT: &[u8] = b"\xef\xbb\xbfevent: a\ndata: {\"x\":1}\n\n: ping\n\ndata:two\r\ndata: lines\r\n\r\nid: 7\rdata\r\rdata: cut";

    #[test]
    fn events_end_with_a_blank_line_and_a_cut_one_is_none() {
        assert_eq!(all(&[TEXT]), ["{\"x\":1}", "two\nlines", ""]);
    }

    #[test]
    fn an_event_without_end_takes_no_more_memory_than_the_cap() {
        let mut stream = Stream::default();
        let block = vec![b'x'; 1 << 20];
        assert!((0..20).any(|_| stream.feed(&block, |_| ()).is_err()));
    }

    proptest! {
        #[test]
        fn it_is_the_same_however_it_is_cut(cuts in proptest::collection::vec(0..TEXT.len(), 0..20)) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut at = 0;
            for cut in cuts {
                pieces.push(&TEXT[at..cut]);
                at = cut;
            }
            pieces.push(&TEXT[at..]);
            prop_assert_eq!(all(&pieces), all(&[TEXT]));
        }
    }
}
