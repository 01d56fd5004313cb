//! A frame of the ssh-agent protocol, without its length, to the keyholder: what is signed is a login with a key that is here, and nothing else.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|frame: &[u8]| agent::fuzz::frame(frame));
