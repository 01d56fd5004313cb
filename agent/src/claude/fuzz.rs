//! For `agent/fuzz`: the stream of an answer, as the client puts it together.

use super::answer::Gathering;
use super::stream::Stream;

/// What these pieces of a stream come to, in words that can be compared.
pub fn answered(pieces: &[&[u8]]) -> String {
    let (mut stream, mut gathering, mut broken) = (Stream::default(), Gathering::default(), None);
    for piece in pieces {
        let fed = stream.feed(piece, |data| {
            if let (None, Err(why)) = (&broken, gathering.event(&data)) {
                broken = Some(format!("{why:?}"));
            }
        });
        if fed.is_err() {
            return "too long".to_owned();
        }
    }
    match (broken, gathering.end()) {
        (Some(why), _) => why,
        (None, Err(why)) => format!("{why:?}"),
        (None, Ok(answer)) => {
            for call in &answer.calls {
                assert!(call.input.is_none() || answer.content.iter().any(|block| block["id"] == call.id.as_str()), "a call from nowhere");
            }
            format!("{answer:?}")
        }
    }
}
