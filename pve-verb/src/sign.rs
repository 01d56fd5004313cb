//! Signatures: SSHSIG blobs that stock `ssh-keygen -Y verify` checks, and raw ed25519 ones for single audit lines.
//!
//! Verification here is stricter than ssh-keygen's: whatever is not the one canonical encoding is no signature, so that a flipped bit
//! anywhere is seen. Who may sign what (`allowed_signers`) is not decided here.

use base64ct::{Base64, Encoding};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};
use ssh_key::{HashAlg, PrivateKey, PublicKey, SshSig, public::KeyData};
use std::path::Path;
use std::sync::Arc;

use crate::host::path;
use crate::trusted;

const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----\n";
const END: &str = "-----END SSH SIGNATURE-----\n";
/// What ssh-keygen breaks its lines at.
const LINE: usize = 70;

/// The host's signing key. Clones share it; the last one wipes it.
#[derive(Clone)]
pub struct Signer(Arc<Key>);

struct Key {
    openssh: PrivateKey,
    raw: SigningKey,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.0.openssh.fingerprint(HashAlg::Sha256))
    }
}

impl Signer {
    /// The key in `/etc/pve-verb/signing_key`.
    ///
    /// # Errors
    /// Why there is no usable key, as the second half of a sentence that begins with the file's name. The verbs act all the same.
    pub fn load() -> Result<Self, String> {
        Self::load_from(Path::new(path::SIGNING_KEY), 0)
    }

    pub(crate) fn load_from(path: &Path, owner: u32) -> Result<Self, String> {
        let named = |why: String| format!("{} {why}", path.display());
        let bytes = trusted::read(path, owner, trusted::PRIVATE, 16 * 1024).map_err(|e| named(e.text()))?;
        let key = PrivateKey::from_openssh(&bytes).map_err(|e| named(format!("is not an OpenSSH private key: {e}")))?;
        if key.is_encrypted() {
            return Err(named("has a passphrase, and nobody is there to type it".to_owned()));
        }
        Self::new(key).map_err(named)
    }

    pub(crate) fn new(openssh: PrivateKey) -> Result<Self, String> {
        let Some(pair) = openssh.key_data().ed25519() else {
            return Err(format!("is a {} key, not an ed25519 one", openssh.algorithm()));
        };
        let raw = SigningKey::from_bytes(pair.private.as_ref());
        Ok(Self(Arc::new(Key { openssh, raw })))
    }

    /// A raw SSHSIG blob over these bytes, with SHA-512 as ssh-keygen's.
    ///
    /// # Errors
    /// The library's words; none is known to happen with a key that was loaded.
    pub fn sshsig(&self, namespace: &'static str, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let signature = self.0.openssh.sign(namespace, HashAlg::Sha512, bytes).map_err(|e| e.to_string())?;
        encode(&signature).ok_or_else(|| "the signature could not be encoded".to_owned())
    }

    /// A raw ed25519 signature over exactly these bytes.
    pub fn raw(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.raw.sign(bytes).to_bytes()
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        self.0.openssh.public_key()
    }

    /// The public half as `ssh-ed25519 AAAA…`, without a comment.
    pub fn public_openssh(&self) -> String {
        // Encoding a key that was decoded does not fail; an empty text would match no key anywhere.
        PublicKey::from(self.public().key_data().clone()).to_openssh().unwrap_or_default()
    }

    /// Its fingerprint, `SHA256:…`.
    pub fn fingerprint(&self) -> String {
        self.public().fingerprint(HashAlg::Sha256).to_string()
    }
}

/// Whether the blob is a signature of this key, for this purpose, over exactly these bytes, in its one canonical encoding.
pub fn verify_sshsig(public: &PublicKey, namespace: &str, bytes: &[u8], blob: &[u8]) -> bool {
    let Some(signature) = decode(blob) else { return false };
    let canonical = encode(&signature).is_some_and(|again| again == blob);
    let ours = signature.version() == SshSig::VERSION
        && signature.hash_alg() == HashAlg::Sha512
        && signature.reserved().is_empty()
        && signature.namespace() == namespace
        && signature.public_key() == public.key_data();
    if !canonical || !ours {
        return false;
    }
    match public.key_data() {
        // Strict: RFC 8032's leeway would let a crafted key or signature verify in one library and not in the next.
        KeyData::Ed25519(key) => SshSig::signed_data(namespace, HashAlg::Sha512, bytes)
            .is_ok_and(|signed| verify_raw_key(&key.0, &signed, signature.signature_bytes())),
        _ => public.verify(namespace, bytes, &signature).is_ok(),
    }
}

/// Who made a signature.
#[derive(Clone, Debug)]
pub struct Person {
    /// Their key.
    pub key: KeyData,
    /// Of a security key: whether somebody touched it. None of a key in a file.
    pub touched: Option<bool>,
}

impl Person {
    /// The key's fingerprint.
    pub fn fingerprint(&self) -> String {
        self.key.fingerprint(HashAlg::Sha256).to_string()
    }
}

/// The key that made this blob, if it is a sound signature for this purpose over exactly these bytes, in its one canonical encoding,
/// by an ed25519 key in a file or in a security key. Whether that key may is the caller's question.
pub fn person_who_signed(namespace: &str, bytes: &[u8], blob: &[u8]) -> Option<Person> {
    let signature = decode(blob)?;
    let canonical = encode(&signature).is_some_and(|again| again == blob);
    if !canonical || signature.version() != SshSig::VERSION || !signature.reserved().is_empty() || signature.namespace() != namespace {
        return None;
    }
    let signed = SshSig::signed_data(namespace, signature.hash_alg(), bytes).ok()?;
    let (key, made) = (signature.public_key(), signature.signature_bytes());
    let (sound, touched) = match key {
        KeyData::Ed25519(public) => (verify_raw_key(&public.0, &signed, made), None),
        KeyData::SkEd25519(public) => {
            // OpenSSH's PROTOCOL.u2f: the key signs the application's hash, its flags, its counter and the message's hash.
            let (made, trailer) = made.split_at_checked(64)?;
            let message = [&Sha256::digest(public.application())[..], trailer, &Sha256::digest(&signed)[..]].concat();
            let flags = trailer.first().copied().filter(|_| trailer.len() == 5)?;
            (verify_raw_key(&public.public_key().0, &message, made), Some(flags & 1 == 1))
        }
        _ => (false, None),
    };
    sound.then(|| Person { key: key.clone(), touched })
}

/// Whether these 64 bytes are this ed25519 key's signature over exactly these bytes.
pub fn verify_raw(public: &PublicKey, bytes: &[u8], signature: &[u8]) -> bool {
    public.key_data().ed25519().is_some_and(|key| verify_raw_key(&key.0, bytes, signature))
}

fn verify_raw_key(key: &[u8; 32], bytes: &[u8], signature: &[u8]) -> bool {
    let Ok(signature) = ed25519_dalek::Signature::from_slice(signature) else { return false };
    VerifyingKey::from_bytes(key).is_ok_and(|key| key.verify_strict(bytes, &signature).is_ok())
}

/// The blob as a file, byte for byte as ssh-keygen writes it.
pub fn armour(blob: &[u8]) -> String {
    let body = Base64::encode_string(blob);
    let mut text = String::with_capacity(BEGIN.len() + body.len() + body.len() / LINE + END.len() + 1);
    text.push_str(BEGIN);
    let mut rest = body.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII: every index is a character's boundary.
        let (line, next) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = next;
    }
    text.push_str(END);
    text
}

/// The blob of a file that [`armour`] could have written; stock ssh-keygen reads more than that.
pub fn dearmour(text: &str) -> Option<Vec<u8>> {
    let body: String = text.strip_prefix(BEGIN)?.strip_suffix(END)?.split('\n').collect();
    let blob = Base64::decode_vec(&body).ok()?;
    (armour(&blob) == text).then_some(blob)
}

fn decode(blob: &[u8]) -> Option<SshSig> {
    // ssh-key decodes a blob only through its armour; a blob that the armour can't carry is none either.
    SshSig::from_pem(armour(blob)).ok()
}

fn encode(signature: &SshSig) -> Option<Vec<u8>> {
    dearmour(&signature.to_pem(ssh_key::LineEnding::LF).ok()?)
}

#[cfg(test)]
#[path = "sign/tests.rs"]
mod tests;
