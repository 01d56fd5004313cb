//! Which key may have signed what: the keys that the verifier trusts, and the rotations that the log itself records.

use proto::namespace;
use ssh_key::PublicKey;

use super::raw::Raw;
use crate::sign;

/// A process that was already running at a rotation signs with the old key for this long.
const GRACE_NS: u64 = 60_000_000_000;

/// A rotation: from the record after this one the new key signs.
#[derive(Clone, Debug)]
pub(super) struct Rotation {
    pub(super) seq: u64,
    pub(super) old: PublicKey,
    pub(super) new: PublicKey,
    pub(super) boot_id: Vec<u8>,
    pub(super) monotonic_ns: u64,
}

/// The keys of one log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys {
    trusted: Vec<PublicKey>,
    rotations: Vec<Rotation>,
}

impl Keys {
    /// Every ed25519 key of a file: public keys or `allowed_signers` lines.
    pub(crate) fn read(text: &str) -> Self {
        let mut trusted = Vec::new();
        for line in text.lines().map(str::trim).filter(|l| !l.starts_with('#')) {
            let mut words = line.split_ascii_whitespace().skip_while(|w| *w != "ssh-ed25519");
            if let (Some(kind), Some(body)) = (words.next(), words.next())
                && let Ok(key) = PublicKey::from_openssh(&format!("{kind} {body}"))
            {
                trusted.push(key);
            }
        }
        Self { trusted, rotations: Vec::new() }
    }

    pub(crate) fn none(&self) -> bool {
        self.trusted.is_empty()
    }

    /// Takes a rotation in; false where it does not follow the one before, or its old key did not sign it.
    pub(super) fn rotate(&mut self, rotation: Rotation, raw: &Raw<'_>) -> bool {
        // Killed between its record and the key's replacing, and run again.
        if let Some(last) = self.rotations.last_mut()
            && (last.old.key_data(), last.new.key_data()) == (rotation.old.key_data(), rotation.new.key_data())
            && verifies(&rotation.old, raw)
        {
            *last = rotation;
            return true;
        }
        let follows = self.rotations.last().is_none_or(|r| r.new.key_data() == rotation.old.key_data());
        let sound = follows && verifies(&rotation.old, raw);
        if sound {
            self.rotations.push(rotation);
        }
        sound
    }

    /// Whether one of the log's keys is trusted. Its last signature covers all before it; from an older key the rotations lead on.
    fn trusts(&self) -> bool {
        let is_trusted = |key: &PublicKey| self.trusted.iter().any(|t| t.key_data() == key.key_data());
        self.rotations.is_empty() || self.rotations.iter().any(|r| is_trusted(&r.old) || is_trusted(&r.new))
    }

    /// Who may have signed the record of this number.
    fn of(&self, seq: u64) -> (Vec<&PublicKey>, Option<&Rotation>) {
        if !self.trusts() || self.rotations.is_empty() {
            return (self.trusted.iter().collect(), None);
        }
        match self.rotations.iter().rev().find(|r| r.seq < seq) {
            Some(rotation) => (vec![&rotation.new], Some(rotation)),
            None => (self.rotations.first().map(|r| &r.old).into_iter().collect(), None),
        }
    }

    /// Whether the line's own signature is one that may stand there.
    pub(super) fn line(&self, raw: &Raw<'_>) -> bool {
        let (keys, rotated) = self.of(raw.seq);
        let late =
            rotated.filter(|r| r.boot_id == raw.boot_id && raw.monotonic_ns.checked_sub(r.monotonic_ns).is_some_and(|ns| ns <= GRACE_NS));
        keys.into_iter().chain(late.map(|r| &r.old)).any(|key| verifies(key, raw))
    }

    /// Whether any of them signed this line, whose number is another chain's.
    pub(super) fn kept(&self, raw: &Raw<'_>) -> bool {
        let rotated = self.rotations.iter().flat_map(|r| [&r.old, &r.new]).filter(|_| self.trusts());
        self.trusted.iter().chain(rotated).any(|key| verifies(key, raw))
    }

    /// Whether a head with this number is one that may stand there.
    pub(super) fn head(&self, seq: u64, body: &[u8], blob: &[u8]) -> bool {
        let (keys, rotated) = self.of(seq);
        keys.into_iter().chain(rotated.map(|r| &r.old)).any(|key| sign::verify_sshsig(key, namespace::LOG, body, blob))
    }

    /// Whether any of them signed this.
    pub(crate) fn signed(&self, namespace: &str, bytes: &[u8], blob: &[u8]) -> bool {
        let rotated = self.rotations.iter().flat_map(|r| [&r.old, &r.new]).filter(|_| self.trusts());
        self.trusted.iter().chain(rotated).any(|key| sign::verify_sshsig(key, namespace, bytes, blob))
    }

    /// The newest key's fingerprint.
    pub(crate) fn fingerprint(&self) -> String {
        let newest = self.rotations.last().map(|r| &r.new).or(self.trusted.first());
        newest.map_or_else(|| "nobody".to_owned(), |key| key.fingerprint(ssh_key::HashAlg::Sha256).to_string())
    }
}

fn verifies(key: &PublicKey, raw: &Raw<'_>) -> bool {
    raw.signature().is_some_and(|sig| sign::verify_raw(key, &crate::audit::signed_part(raw.signed), &sig))
}
