//! The stream of the Messages API, cut anywhere: the same answer however it is cut, and a call that was cut off has no input to run.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let (first, second) = bytes.split_at(usize::from(cut).min(bytes.len()));
    assert_eq!(agent::fuzz::answered(&[first, second]), agent::fuzz::answered(&[bytes]), "it depends on where it is cut");
});
