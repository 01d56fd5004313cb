//! What a caller wants signed: a login over SSH (RFC 4252, section 7) with the very key that is to sign it, or something else, which is refused.
//!
//! Pure. A signature of anything else could be a grant, a file or a certificate, and no part of breakglass asks for one.

use sha2::{Digest, Sha256};
use ssh_key::HashAlg;
use ssh_key::public::{KeyData, PublicKey};

/// A login that may be signed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Login {
    /// The account, as the server will read it; escaped.
    pub(super) user: String,
    /// The SSH session, the first 16 hex digits of its id: what sshd's debug log calls it by.
    pub(super) session: String,
    /// The server's host key, where the client says so (OpenSSH's host-bound logins).
    pub(super) host: Option<String>,
}

/// SSH_MSG_USERAUTH_REQUEST.
const USERAUTH: u8 = 50;

/// Reads it; the error is what it is instead.
pub(super) fn login(data: &[u8], key: &KeyData) -> Result<Login, String> {
    if let Some(rest) = data.strip_prefix(b"SSHSIG") {
        let namespace = string(rest).map(|(namespace, _)| proto::escape_cut(namespace, 64)).unwrap_or_default();
        return Err(format!("a signature for {namespace:?}"));
    }
    parse(data, key).ok_or_else(|| format!("{} bytes that are not a login with this key", data.len()))
}

fn parse(data: &[u8], key: &KeyData) -> Option<Login> {
    let (session, rest) = string(data)?;
    let (&USERAUTH, rest) = rest.split_first()? else { return None };
    let (user, rest) = string(rest)?;
    let (b"ssh-connection", rest) = string(rest)? else { return None };
    let (method, rest) = string(rest)?;
    let (1, rest) = rest.split_first().map(|(yes, rest)| (*yes, rest))? else { return None };
    let (b"ssh-ed25519", rest) = string(rest)? else { return None };
    let (public, rest) = string(rest)?;
    if !(16..=64).contains(&session.len()) || public != blob(key)?.as_slice() {
        return None;
    }
    let host = match (method, rest) {
        (b"publickey", []) => None,
        (b"publickey-hostbound-v00@openssh.com", rest) => match string(rest)? {
            (host, []) => Some(fingerprint(host)),
            _ => return None,
        },
        _ => return None,
    };
    let session = session.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Some(Login { user: proto::escape_cut(user, 64), session, host })
}

/// The fingerprint of a public key as it goes over the wire.
fn fingerprint(blob: &[u8]) -> String {
    PublicKey::from_bytes(blob).map_or_else(
        |_| Sha256::digest(blob).iter().map(|byte| format!("{byte:02x}")).collect(),
        |key| key.fingerprint(HashAlg::Sha256).to_string(),
    )
}

fn blob(key: &KeyData) -> Option<Vec<u8>> {
    PublicKey::from(key.clone()).to_bytes().ok()
}

/// A string of the SSH protocol, and what follows it.
fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ssh_key::private::Ed25519Keypair;

    fn key(seed: u8) -> KeyData {
        KeyData::Ed25519(Ed25519Keypair::from_seed(&[seed; 32]).public)
    }

    fn put(parts: &[&[u8]]) -> Vec<u8> {
        parts.iter().flat_map(|part| [&u32::try_from(part.len()).unwrap().to_be_bytes()[..], part].concat()).collect()
    }

    fn request(session: &[u8], user: &[u8], method: &str, with: &KeyData, end: &[u8]) -> Vec<u8> {
        let head = [put(&[session]), vec![50], put(&[user, b"ssh-connection", method.as_bytes()]), vec![1]].concat();
        [head, put(&[b"ssh-ed25519", &blob(with).unwrap()]), end.to_vec()].concat()
    }

    #[test]
    fn a_login_says_who_and_where() {
        let plain = request(&[0xab; 32], b"root\n", "publickey", &key(1), b"");
        let login = login(&plain, &key(1)).unwrap();
        assert_eq!(login, Login { user: "root\\n".into(), session: "ab".repeat(8), host: None });
        let bound = request(&[1; 32], b"root", "publickey-hostbound-v00@openssh.com", &key(1), &put(&[&blob(&key(2)).unwrap()]));
        assert!(super::login(&bound, &key(1)).unwrap().host.unwrap().starts_with("SHA256:"));
    }

    #[test]
    fn whatever_is_no_login_with_this_key_is_refused() {
        let good = request(&[1; 32], b"root", "publickey", &key(1), b"");
        assert!(login(&good, &key(2)).is_err(), "another key's login");
        assert!(login(&request(&[1; 32], b"root", "publickey", &key(1), b"x"), &key(1)).is_err(), "more at its end");
        assert!(login(&request(&[1; 32], b"root", "hostbased", &key(1), b""), &key(1)).is_err());
        assert!(login(&request(b"short", b"root", "publickey", &key(1), b""), &key(1)).is_err());
        for cut in 0..good.len() {
            assert!(login(&good[..cut], &key(1)).is_err(), "{cut}");
        }
        let grant = [b"SSHSIG".to_vec(), put(&[b"pve-verb-grant", b"", b"sha512", &[0; 64]])].concat();
        assert!(login(&grant, &key(1)).unwrap_err().contains("pve-verb-grant"));
    }

    proptest! {
        #[test]
        fn random_bytes_are_never_a_login_and_never_a_panic(bytes: Vec<u8>) {
            prop_assert!(login(&bytes, &key(1)).is_err());
        }
    }
}
