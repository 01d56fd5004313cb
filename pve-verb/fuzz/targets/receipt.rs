//! A receipt's body, as a client is given it: what is understood says the same when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proto::{Receipt, decode_body, encode_body};

fuzz_target!(|text: &str| {
    // The body's JSON as it stands, so that mutations reach it, or the whole event's line with the body in base64.
    let body = match serde_json::from_str::<Receipt>(text) {
        Ok(receipt) => receipt.body,
        Err(_) => match serde_json::from_str(text) {
            Ok(body) => encode_body(&body).expect("a body has a JSON form").0,
            Err(_) => text.to_owned(),
        },
    };
    if let Ok((said, _)) = decode_body(&body) {
        let (again, _) = encode_body(&said).expect("a body has a JSON form");
        assert_eq!(decode_body(&again).expect("what was written can be read").0, said);
        assert_eq!(said.exit_code, said.outcome.exit_code());
    }
});
