//! The host's answer, cut anywhere: the same events and the same end however it is cut, and an answer without its receipt is none.
#![no_main]

use agent::answer::Reader;
use libfuzzer_sys::fuzz_target;

fn read(pieces: &[&[u8]]) -> (usize, bool) {
    let (mut reader, mut events) = (Reader::new(), 0);
    for piece in pieces {
        reader.feed(piece, |_| events += 1);
    }
    (events, reader.end().is_ok())
}

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let (first, second) = bytes.split_at(usize::from(cut).min(bytes.len()));
    let whole = read(&[bytes]);
    assert_eq!(read(&[first, second]), whole, "it depends on where it is cut");
    assert!(!whole.1 || bytes.windows(7).any(|word| word == b"receipt"), "an end without a receipt");
});
