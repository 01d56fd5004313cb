//! `/etc/pve-verb/allowed_signers`, as ssh-keygen reads it and where in doubt more strictly: a line that is not understood as a whole
//! lets nobody in.

use proto::{Timestamp, namespace};
use ssh_key::public::{KeyData, PublicKey};
use std::path::Path;

use crate::host::path;
use crate::text::say::BadGrant;
use crate::trusted;

/// Who may sign grants.
#[derive(Clone, Debug, Default)]
pub struct Signers {
    all: Vec<Signer>,
    /// Why there are none, where the file can't be used.
    unusable: Option<String>,
}

#[derive(Clone, Debug)]
struct Signer {
    principal: String,
    key: KeyData,
    namespaces: Option<String>,
    after: Option<Timestamp>,
    before: Option<Timestamp>,
}

impl Signers {
    /// The host's file. Where it can't be used nobody may sign, and the refusal says why.
    pub fn load() -> Self {
        Self::load_from(Path::new(path::ALLOWED_SIGNERS), 0)
    }

    pub(crate) fn load_from(path: &Path, owner: u32) -> Self {
        match trusted::read(path, owner, trusted::NOT_WRITABLE, 1 << 20) {
            Ok(bytes) => Self::read(&String::from_utf8_lossy(&bytes)),
            Err(why) => Self { all: Vec::new(), unusable: Some(format!("{} {}", path.display(), why.text())) },
        }
    }

    pub(crate) fn read(text: &str) -> Self {
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        Self { all: lines.filter_map(line).collect(), unusable: None }
    }

    /// The principal of this key, where one of its lines allows it to sign grants now.
    pub(super) fn principal_of(&self, key: &KeyData, now: Timestamp) -> Result<String, BadGrant> {
        if let Some(why) = &self.unusable {
            return Err(BadGrant::NoSigners(why.clone()));
        }
        let mut refused = BadGrant::UnknownSigner;
        for signer in self.all.iter().filter(|s| s.key == *key) {
            let name = &signer.principal;
            refused = if signer.namespaces.as_ref().is_some_and(|list| !listed(list, namespace::GRANT)) {
                BadGrant::SignerMayNot(format!("{name} may not sign for the namespace {}", namespace::GRANT))
            } else if let Some(after) = signer.after.filter(|after| now < *after) {
                BadGrant::SignerMayNot(format!("{name} may sign from {after} on"))
            } else if let Some(before) = signer.before.filter(|before| now > *before) {
                BadGrant::SignerMayNot(format!("{name} could sign until {before}"))
            } else {
                return Ok(name.clone());
            };
        }
        Err(refused)
    }
}

/// `PRINCIPALS [OPTIONS] TYPE BASE64 [COMMENT]`; none where any of it is not understood.
fn line(text: &str) -> Option<Signer> {
    let (principal, rest) = text.split_once([' ', '\t'])?;
    let rest = rest.trim_start();
    let (options, key) = if key_of(rest).is_some() { (Vec::new(), rest) } else { options(rest)? };
    let mut signer =
        Signer { principal: principal.trim_matches('"').to_owned(), key: key_of(key)?, namespaces: None, after: None, before: None };
    for (name, value) in options {
        match (name.to_ascii_lowercase().as_str(), value) {
            ("namespaces", Some(list)) => signer.namespaces = Some(list),
            ("valid-after", Some(time)) => signer.after = Some(time_of(&time)?),
            ("valid-before", Some(time)) => signer.before = Some(time_of(&time)?),
            // Certificates are not accepted, so neither is who would make them; and what an unknown option takes away is not known.
            _ => return None,
        }
    }
    Some(signer)
}

fn key_of(text: &str) -> Option<KeyData> {
    let mut words = text.split_ascii_whitespace();
    let (kind, body) = (words.next()?, words.next()?);
    if !matches!(kind, "ssh-ed25519" | "sk-ssh-ed25519@openssh.com") {
        return None;
    }
    PublicKey::from_openssh(&format!("{kind} {body}")).ok().map(|key| key.key_data().clone())
}

type Options = Vec<(String, Option<String>)>;

/// `name`, `name=value` or `name="value"`, with commas between, until a space outside quotes.
fn options(text: &str) -> Option<(Options, &str)> {
    let (mut all, mut name, mut value, mut quoted) = (Vec::new(), String::new(), None::<String>, false);
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '=' if !quoted && value.is_none() => value = Some(String::new()),
            ',' | ' ' | '\t' if !quoted => {
                all.push((std::mem::take(&mut name), value.take()));
                if c != ',' {
                    return Some((all, text.get(at..)?.trim_start()));
                }
            }
            c => value.as_mut().unwrap_or(&mut name).push(c),
        }
    }
    None
}

/// `YYYYMMDD[HHMM[SS]]Z`. Without the Z ssh-keygen takes the host's own time zone, which is nothing to hang a key on.
fn time_of(text: &str) -> Option<Timestamp> {
    let digits = text.strip_suffix('Z')?;
    if !matches!(digits.len(), 8 | 12 | 14) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let padded = format!("{digits:0<14}");
    let part = |from: usize, to: usize| padded.get(from..to).unwrap_or_default();
    Timestamp::parse(&format!("{}-{}-{}T{}:{}:{}.000Z", part(0, 4), part(4, 6), part(6, 8), part(8, 10), part(10, 12), part(12, 14)))
}

/// OpenSSH's pattern lists: a match of a negated pattern wins.
fn listed(list: &str, name: &str) -> bool {
    let matching = |negated: bool| list.split(',').filter(move |p| p.starts_with('!') == negated).map(|p| p.trim_start_matches('!'));
    !matching(true).any(|p| fits(p.as_bytes(), name.as_bytes())) && matching(false).any(|p| fits(p.as_bytes(), name.as_bytes()))
}

fn fits(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => fits(rest, name) || name.split_first().is_some_and(|(_, shorter)| fits(pattern, shorter)),
        (Some((b'?', rest)), Some((_, shorter))) => fits(rest, shorter),
        (Some((p, rest)), Some((n, shorter))) => p == n && fits(rest, shorter),
        _ => false,
    }
}
