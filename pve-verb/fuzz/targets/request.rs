//! A request line: what is accepted has one canonical spelling, which means the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proto::Request;

fuzz_target!(|line: &[u8]| {
    match Request::parse(line) {
        Ok(request) => {
            let spelled = request.to_string();
            let again = Request::parse(spelled.as_bytes()).expect("the canonical spelling is in the grammar");
            assert_eq!(again, request);
            assert_eq!(again.to_string(), spelled);
        }
        Err(rejected) => {
            assert!(rejected.position <= line.len());
            pve_verb_fuzz::shown(&rejected.to_string());
        }
    }
});
