//! The keys: read from bytes that are wiped, used for one thing. Nothing here prints one, and no error quotes what it read.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use ed25519_dalek::{Signer as _, SigningKey};
use proto::Message;
use ssh_key::private::PrivateKey;
use ssh_key::public::{Ed25519PublicKey, KeyData};
use ssh_key::{Algorithm, HashAlg, Signature};
use zeroize::Zeroizing;

/// No ed25519 key in OpenSSH's format is longer, whatever its comment.
const MAX_KEY: u64 = 16 * 1024;

/// One private key.
pub(super) struct Key {
    name: String,
    public: KeyData,
    secret: SigningKey,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("name", &self.name).field("public", &self.fingerprint()).finish_non_exhaustive()
    }
}

impl Key {
    /// Where it came from; what `ssh-add -l` shows as its comment.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The public half.
    pub(super) const fn public(&self) -> &KeyData {
        &self.public
    }

    /// `SHA256:…`.
    pub(super) fn fingerprint(&self) -> String {
        self.public.fingerprint(HashAlg::Sha256).to_string()
    }

    /// Signs. What may be signed is decided by meant.rs alone.
    pub(super) fn sign(&self, data: &[u8]) -> Option<Signature> {
        Signature::new(Algorithm::Ed25519, self.secret.sign(data).to_bytes().to_vec()).ok()
    }
}

/// All keys, by where they came from; a source is replaced as a whole.
#[derive(Debug, Default)]
pub(super) struct Ring(RwLock<Vec<(&'static str, Arc<Key>)>>);

impl Ring {
    /// Replaces the keys of a source. A key of another source stays the one that counts.
    pub(super) fn put(&self, source: &'static str, keys: Vec<Key>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(from, _)| *from != source);
        for key in keys {
            if !all.iter().any(|(_, other)| other.public == key.public) {
                all.push((source, Arc::new(key)));
            }
        }
    }

    /// Every key.
    pub(super) fn all(&self) -> Vec<Arc<Key>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).iter().map(|(_, key)| Arc::clone(key)).collect()
    }

    /// The key with this public half.
    pub(super) fn of(&self, public: &KeyData) -> Option<Arc<Key>> {
        self.all().into_iter().find(|key| key.public() == public)
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.all().len()
    }

    /// None.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Reads a private key; `name` is where it is from.
///
/// # Errors
/// Why it is none, in words of our own: a library's could quote what it read.
pub(super) fn read(name: &str, text: &[u8]) -> Result<Key, Message> {
    let bad = |what: &str, next: &str| Message::new(format!("{name} {what}."), next);
    let key = PrivateKey::from_openssh(text)
        .map_err(|_| bad("is not an OpenSSH private key", "Make one: ssh-keygen -t ed25519 -N '' -f FILE."))?;
    if key.is_encrypted() {
        return Err(bad("has a passphrase, which nobody could type in an emergency", "Store it without one: ssh-keygen -p -N '' -f FILE."));
    }
    let pair = key.key_data().ed25519();
    let pair = pair.ok_or_else(|| bad("is not an ed25519 key", "Make one: ssh-keygen -t ed25519 -N '' -f FILE."))?;
    let secret = SigningKey::from_bytes(&pair.private.to_bytes());
    let public = Ed25519PublicKey(secret.verifying_key().to_bytes());
    if public != pair.public {
        return Err(bad("holds a public half that is not its own", "Make a new one: ssh-keygen -t ed25519 -N '' -f FILE."));
    }
    Ok(Key { name: name.to_owned(), public: KeyData::Ed25519(public), secret })
}

/// Reads a key file, which others may not read.
///
/// # Errors
/// Why it can't be used.
pub(super) fn of_file(path: &Path) -> Result<Key, Message> {
    let name = path.display().to_string();
    let unreadable =
        |error: std::io::Error| Message::new(format!("{name} can't be read: {error}."), "Check key_files and who may read it.");
    let file = File::open(path).map_err(unreadable)?;
    let status = file.metadata().map_err(unreadable)?;
    if !status.is_file() || status.len() > MAX_KEY {
        return Err(Message::new(format!("{name} is not a file of at most {MAX_KEY} bytes."), "Name a private key in key_files."));
    }
    if status.mode() & 0o007 != 0 {
        return Err(Message::new(format!("{name} is open to every user of this machine."), "Close it (chmod 0600) and replace the key."));
    }
    // The whole room at once: a buffer that grows leaves copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(usize::try_from(MAX_KEY).unwrap_or_default() + 1));
    file.take(MAX_KEY).read_to_end(&mut text).map_err(unreadable)?;
    read(&name, &text)
}

#[cfg(test)]
mod tests {
    use super::{Ring, of_file, read};
    use ssh_key::LineEnding;
    use ssh_key::private::{Ed25519Keypair, PrivateKey};
    use std::os::unix::fs::PermissionsExt;

    fn pem(seed: u8) -> String {
        PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32])).to_openssh(LineEnding::LF).unwrap().to_string()
    }

    #[test]
    fn a_key_is_read_and_prints_no_byte_of_itself() {
        let key = read("host", pem(7).as_bytes()).unwrap();
        let shown = format!("{key:?}");
        assert!(shown.contains("host") && shown.contains("SHA256:") && !shown.contains("7, 7"), "{shown}");
    }

    #[test]
    fn an_error_quotes_nothing_of_what_it_read() {
        let good = pem(9);
        let middle: String = good.lines().nth(2).unwrap().chars().take(20).collect();
        for bad in [good.replacen('A', "!", 3), good.lines().take(3).collect(), format!("{good}{good}"), "password=hunter2".into()] {
            let said = read("vault's field host", bad.as_bytes()).unwrap_err().to_string();
            assert!(!said.contains(&middle) && !said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn a_file_that_everybody_reads_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), pem(1)).unwrap();
        for (mode, good) in [(0o600, true), (0o440, true), (0o644, false)] {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(of_file(file.path()).is_ok(), good, "{mode:o}");
        }
    }

    #[test]
    fn a_source_is_replaced_as_a_whole_and_the_others_stay() {
        let ring = Ring::default();
        let key = |seed| read("k", pem(seed).as_bytes()).unwrap();
        ring.put("files", vec![key(1)]);
        ring.put("vault", vec![key(1), key(2), key(3)]);
        assert_eq!(ring.len(), 3);
        ring.put("vault", vec![key(4)]);
        assert_eq!(ring.len(), 2);
        assert!(ring.of(key(1).public()).is_some() && ring.of(key(2).public()).is_none());
    }
}
