//! The pinned key of a host: what `pve-verb init` printed (an `allowed_signers` line), or its `signing_key.pub`. Reads text only.

use proto::namespace;
use ssh_key::{HashAlg, PublicKey};

/// The one key whose receipts are believed, and the host that it belongs to where the text says so.
#[derive(Debug, Clone)]
pub struct Pinned {
    key: PublicKey,
    raw: [u8; 32],
    node: Option<String>,
}

impl Pinned {
    /// Reads a key: `ssh-ed25519 AAAA…`, or a line of `allowed_signers` for `pve-verb@NODE`. Other lines are comments or blank.
    ///
    /// # Errors
    /// Why it is none, as a sentence.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let (Some(line), None) = (lines.next(), lines.next()) else {
            return Err("There is not exactly one key in it.".to_owned());
        };
        let Some(at) = line.find("ssh-ed25519 ") else {
            return Err("It holds no ed25519 key, and pve-verb signs with no other.".to_owned());
        };
        let (before, key) = line.split_at(at);
        let key = PublicKey::from_openssh(key).map_err(|error| format!("Its key can't be read: {error}."))?;
        let Some(raw) = key.key_data().ed25519().map(|key| key.0) else {
            return Err("It holds no ed25519 key, and pve-verb signs with no other.".to_owned());
        };
        let node = match before.split_whitespace().collect::<Vec<_>>()[..] {
            [] => None,
            [principal] => Some(node(principal)?),
            [principal, options] if signs_receipts(options) => Some(node(principal)?),
            _ => return Err(format!("Its options do not let the key sign receipts ({}).", namespace::RECEIPT)),
        };
        Ok(Self { key, raw, node })
    }

    /// The raw key.
    pub(crate) const fn raw(&self) -> &[u8; 32] {
        &self.raw
    }

    /// Whether this key may speak for a host of that name.
    pub(crate) fn speaks_for(&self, node: &str) -> bool {
        self.node.as_deref().is_none_or(|own| own == node)
    }

    /// Its fingerprint, `SHA256:…`.
    pub fn fingerprint(&self) -> String {
        self.key.fingerprint(HashAlg::Sha256).to_string()
    }
}

fn node(principal: &str) -> Result<String, String> {
    let node = principal.strip_prefix("pve-verb@").filter(|node| !node.is_empty() && !node.contains(['*', '?', ',', '!']));
    node.map(str::to_owned).ok_or_else(|| "Its principal is not pve-verb@ and one host's name.".to_owned())
}

fn signs_receipts(options: &str) -> bool {
    let list = options.strip_prefix("namespaces=\"").and_then(|rest| rest.strip_suffix('"'));
    list.is_some_and(|list| list.split(',').any(|one| one == namespace::RECEIPT))
}

#[cfg(test)]
mod tests {
    use super::Pinned;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBpLSis2YWRD4CciWwtMA6RhdG6G8+Sd0iUYOol/V2a5";

    #[test]
    fn a_key_and_a_line_of_allowed_signers_are_the_same_key() {
        let key = Pinned::read(&format!("{KEY} pve-verb@pve\n")).unwrap();
        let line = Pinned::read(&format!("# ours\npve-verb@pve namespaces=\"pve-verb-log,pve-verb-receipt\" {KEY}\n")).unwrap();
        assert_eq!(key.fingerprint(), line.fingerprint());
        assert!(key.speaks_for("other") && line.speaks_for("pve") && !line.speaks_for("other"));
    }

    #[test]
    fn what_could_be_any_key_is_none() {
        for bad in [
            String::new(),
            format!("{KEY}\n{KEY}\n"),
            format!("pve-verb@pve namespaces=\"pve-verb-log\" {KEY}"),
            format!("pve-verb@pve cert-authority {KEY}"),
            format!("pve-verb@* {KEY}"),
            format!("root@pve {KEY}"),
            "ssh-rsa AAAAB3NzaC1yc2E=".to_owned(),
            "ssh-ed25519 AAAA".to_owned(),
        ] {
            assert!(Pinned::read(&bad).is_err(), "{bad}");
        }
    }
}
