//! For `agent/fuzz`: one frame, to a keyholder that holds one key.

use std::sync::LazyLock;

use ssh_key::private::{Ed25519Keypair, PrivateKey};

use super::keys::Ring;

static RING: LazyLock<Ring> = LazyLock::new(|| {
    let ring = Ring::default();
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]));
    let text = key.to_openssh(ssh_key::LineEnding::LF).expect("a key has a text");
    ring.put("fuzz", vec![super::keys::read("fuzz", text.as_bytes()).expect("a key")]);
    ring
});

/// Panics where something is signed that is no login.
pub fn frame(frame: &[u8]) {
    let (signed, data) = super::serve::answered(frame, &RING);
    if signed {
        let data = data.expect("what was signed is what was sent");
        assert!(data.windows(14).any(|word| word == b"ssh-connection"), "no login was signed: {data:?}");
        assert_eq!(data.get(..3), Some([0, 0, 0].as_slice()), "it begins with a session's id");
    }
}
