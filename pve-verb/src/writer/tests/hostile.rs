//! Names and messages that the writer does not take.

use super::*;

#[test]
fn names_that_would_leave_their_folder_are_not_names() {
    for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/.hidden", "a/b/c/d/e", "a b", "a\n"] {
        assert!(ArtifactPath::try_from(bad.to_owned()).is_err(), "{bad:?}");
        let op = format!(r#"{{"op":"bundle-read","vmid":102,"name":"{}","path":{}}}"#, bundle(), serde_json::to_string(bad).unwrap());
        assert!(serde_json::from_str::<Op>(&op).is_err(), "{op}");
    }
    for bad in ["", ".", "..", "a/b", "a.b", &"x".repeat(65)] {
        assert!(Nonce::try_from(bad.to_owned()).is_err(), "{bad:?}");
    }
}

#[test]
fn what_is_not_the_protocol_ends_the_writer() {
    let place = Place::new();
    for input in
        [&[0xff; 8][..], &frame(b"{\"op\":\"shell\"}", b"").unwrap(), &frame(b"{\"op\":\"log-tail\",\"path\":\"/\"}", b"").unwrap()]
    {
        assert!(serve(&place.root(), &mut { input }, &mut Vec::new()).is_err());
    }
}
