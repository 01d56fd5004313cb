//! Who asks. Four ways in, in this order; the first that the request claims decides, and a claim that fails never falls to the next:
//!
//! 1. an identity header, from a proxy's address and with the secret that only the proxy knows;
//! 2. a bearer token, for machines;
//! 3. HTTP basic with argon2, for the night when the identity provider is down;
//! 4. where none of these is configured: a session from the one-time link that was printed at the start, on loopback only.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use argon2::password_hash::phc::PasswordHash;
use axum::http::{HeaderMap, HeaderName, header};
use base64ct::{Base64, Encoding};
use ipnet::IpNet;
use proto::Message;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use super::limits::Limit;

/// The header in which a proxy shows its secret.
pub const SECRET_HEADER: HeaderName = HeaderName::from_static("x-breakglass-proxy");
/// The session's cookie. The prefix makes browsers refuse one that another host or path set; on loopback there is no TLS, hence no `__Host-`.
pub const COOKIE: &str = "breakglass-session";

/// No file of secrets is longer.
const MAX_FILE: u64 = 64 * 1024;
/// A password that was right is not hashed again for so long: a page is several requests.
const REMEMBERED: Duration = Duration::from_secs(300);
/// How long a password waits until others are looked at.
const QUEUE: Duration = Duration::from_secs(3);
/// When to come again where that was too long.
const AGAIN: Duration = Duration::from_secs(1);
/// How many right passwords are remembered.
const MOST_REMEMBERED: usize = 100;
/// A session of the one-time link ends after this.
const SESSION: Duration = Duration::from_secs(12 * 3600);

/// Who asks, and how we know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// The name, as records show it: printable, at most 64 characters.
    pub name: String,
    /// How we know.
    pub how: How,
}

/// How we know who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// A proxy said so.
    Proxy,
    /// A machine's token.
    Token,
    /// A machine's token that is for `/metrics` and nothing else.
    Metrics,
    /// A password.
    Password,
    /// The one-time link.
    Link,
}

impl How {
    /// Its word in events.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Token | Self::Metrics => "token",
            Self::Password => "password",
            Self::Link => "link",
        }
    }
}

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Nothing was claimed. A browser may be asked for a password where there are any.
    Nobody,
    /// A claim that does not hold.
    Wrong,
    /// An identity header from somewhere else than a proxy, or without its secret: somebody tries, or the proxy is set up wrongly.
    Forged,
    /// Too many passwords are being looked at, or too many of this address and name were wrong: come again after this.
    Busy(Duration),
}

/// What the configuration says of it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The proxies' addresses.
    pub proxies: Vec<IpNet>,
    /// The header in which a proxy names the person.
    pub identity_header: Option<HeaderName>,
    /// The file with the proxy's secret.
    pub secret_file: Option<std::path::PathBuf>,
    /// The file with lines `NAME:SHA256` of machines' tokens; one that ends in `:metrics` is for `/metrics` only.
    pub tokens_file: Option<std::path::PathBuf>,
    /// The file with lines `NAME:$argon2id$…`.
    pub basic_file: Option<std::path::PathBuf>,
}

/// The way in.
#[derive(Debug)]
pub struct Door {
    proxies: Vec<IpNet>,
    identity: Option<(HeaderName, [u8; 32])>,
    tokens: Vec<(Who, proto::Sha256Hex)>,
    passwords: Vec<(String, String)>,
    link: Option<Mutex<Link>>,
    tried: Arc<Tried>,
    /// Each hash takes 19 MiB and some tens of milliseconds. Names that are not there have a place of their own: who tries them takes
    /// none from those that are. A place is free when its hash has ended: who asked may have hung up long before.
    hashing: Arc<Semaphore>,
    guessing: Arc<Semaphore>,
}

/// What became of the passwords that were tried.
#[derive(Debug)]
struct Tried {
    /// The right ones of a moment ago.
    right: Mutex<HashMap<[u8; 32], (String, Instant)>>,
    /// The wrong ones, of each address and claimed name: who guesses is slowed down under the name that is guessed, not with everybody
    /// behind the same address.
    wrong: Limit<(IpAddr, String)>,
}

impl Default for Tried {
    fn default() -> Self {
        Self { right: Mutex::default(), wrong: Limit::new(10, Duration::from_secs(3)) }
    }
}

impl Tried {
    /// What is known of it without a hash.
    fn known(&self, key: &[u8; 32], claim: &(IpAddr, String)) -> Option<Result<Who, Refused>> {
        let right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((name, _)) = right.get(key).filter(|(_, until)| *until > Instant::now()) {
            return Some(Ok(Who { name: name.clone(), how: How::Password }));
        }
        self.wrong.look(claim).err().map(|wait| Err(Refused::Busy(wait)))
    }

    fn was_right(&self, key: [u8; 32], name: String) {
        let mut right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        if right.len() >= MOST_REMEMBERED {
            right.clear();
        }
        right.insert(key, (name, Instant::now() + REMEMBERED));
    }
}

/// The one-time link and the sessions that came of it.
#[derive(Debug, Default)]
struct Link {
    unspent: Option<[u8; 32]>,
    sessions: HashMap<[u8; 32], Instant>,
}

impl Door {
    /// Reads the secrets.
    ///
    /// # Errors
    /// A file that can't be read, or a line that is none.
    pub fn open(settings: &Settings) -> Result<Self, Message> {
        let identity = match (&settings.identity_header, &settings.secret_file) {
            (Some(header), Some(file)) => {
                let secret = read(file)?;
                let secret = secret.trim();
                if secret.len() < 16 {
                    return Err(bad(file, "its secret is shorter than 16 characters"));
                }
                Some((header.clone(), Sha256::digest(secret).into()))
            }
            (None, None) => None,
            _ => {
                return Err(Message::new(
                    "Of web.identity_header and web.secret_file only one is set.",
                    "Set both: a header without a secret could be sent by anybody who reaches the page.",
                ));
            }
        };
        let lines = |file: &Option<std::path::PathBuf>| -> Result<Vec<(String, String)>, Message> {
            let Some(file) = file else { return Ok(Vec::new()) };
            let text = read(file)?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            lines
                .map(|line| {
                    let (name, value) = line.split_once(':').ok_or_else(|| bad(file, "a line of it has no colon"))?;
                    Ok((
                        name_of(name.as_bytes()).ok_or_else(|| bad(file, "a name in it is empty, too long or not printable"))?,
                        value.to_owned(),
                    ))
                })
                .collect()
        };
        let mut tokens = Vec::new();
        for (name, hash) in lines(&settings.tokens_file)? {
            let file = settings.tokens_file.clone().unwrap_or_default();
            let (hash, how) = hash.strip_suffix(":metrics").map_or((hash.as_str(), How::Token), |hash| (hash, How::Metrics));
            let hash = hash.parse().map_err(|_| bad(&file, "a line of it has no SHA-256 in lower-case hexadecimal"))?;
            tokens.push((Who { name, how }, hash));
        }
        let passwords = lines(&settings.basic_file)?;
        for (_, hash) in &passwords {
            let file = settings.basic_file.clone().unwrap_or_default();
            let parsed = PasswordHash::new(hash).map_err(|_| bad(&file, "a line of it is no argon2 hash"))?;
            if !parsed.algorithm.as_str().starts_with("argon2") {
                return Err(bad(&file, "a line of it is no argon2 hash"));
            }
        }
        let link = (identity.is_none() && tokens.is_empty() && passwords.is_empty()).then(Mutex::default);
        Ok(Self {
            proxies: settings.proxies.clone(),
            identity,
            tokens,
            passwords,
            link,
            tried: Arc::default(),
            hashing: Arc::new(Semaphore::new(1)),
            guessing: Arc::new(Semaphore::new(1)),
        })
    }

    /// Whether only the one-time link lets anybody in: then only loopback may be listened on.
    pub const fn is_only_for_loopback(&self) -> bool {
        self.link.is_some()
    }

    /// Whether this is a proxy's address.
    pub fn is_proxy(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.proxies.iter().any(|network| network.contains(&peer))
    }

    /// Whether a browser may ask the person for a password.
    pub const fn takes_passwords(&self) -> bool {
        !self.passwords.is_empty()
    }

    /// A new one-time link's secret; an older one that nobody used is worth nothing any more.
    pub fn new_link(&self) -> Option<String> {
        let secret = super::tokens::random();
        let link = self.link.as_ref()?;
        link.lock().unwrap_or_else(PoisonError::into_inner).unspent = Some(Sha256::digest(&secret).into());
        Some(secret)
    }

    /// Spends the link; gives the session's secret, for the cookie.
    pub fn follow_link(&self, secret: &str) -> Option<String> {
        let mut link = self.link.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let shown: [u8; 32] = Sha256::digest(secret).into();
        let unspent = link.unspent.as_ref()?;
        if !bool::from(unspent.ct_eq(&shown)) {
            return None;
        }
        link.unspent = None;
        let now = Instant::now();
        link.sessions.retain(|_, until| *until > now);
        let session = super::tokens::random();
        link.sessions.insert(Sha256::digest(&session).into(), now + SESSION);
        Some(session)
    }

    /// Who asks.
    ///
    /// # Errors
    /// Why they are not let in.
    pub async fn who(&self, peer: SocketAddr, headers: &HeaderMap) -> Result<Who, Refused> {
        if let Some((header, secret)) = &self.identity
            && (headers.contains_key(header) || headers.contains_key(SECRET_HEADER))
        {
            return self.proxied(peer.ip(), headers, header, secret);
        }
        if let Some(claim) = one(headers, &header::AUTHORIZATION) {
            let (scheme, value) = claim.split_once(' ').ok_or(Refused::Wrong)?;
            return match scheme.to_ascii_lowercase().as_str() {
                "bearer" => self.token(value.trim()),
                "basic" => self.password(peer.ip().to_canonical(), value.trim()).await,
                _ => Err(Refused::Wrong),
            };
        }
        self.session(headers)
    }

    fn proxied(&self, peer: IpAddr, headers: &HeaderMap, name: &HeaderName, secret: &[u8; 32]) -> Result<Who, Refused> {
        let from_proxy = self.is_proxy(peer);
        let shown: [u8; 32] = Sha256::digest(one(headers, &SECRET_HEADER).unwrap_or_default()).into();
        if !from_proxy || !bool::from(shown.ct_eq(secret)) {
            return Err(Refused::Forged);
        }
        // The proxy is real and knows nobody: it was asked to let everybody through.
        let person = one(headers, name).and_then(|name| name_of(name.as_bytes())).ok_or(Refused::Nobody)?;
        Ok(Who { name: person, how: How::Proxy })
    }

    fn token(&self, shown: &str) -> Result<Who, Refused> {
        let shown = proto::Sha256Hex::from_bytes(Sha256::digest(shown).into());
        // All of them are compared: the time does not tell which one is near.
        let found = self.tokens.iter().fold(None, |found, (who, hash)| {
            if bool::from(hash.as_str().as_bytes().ct_eq(shown.as_str().as_bytes())) { Some(who) } else { found }
        });
        found.cloned().ok_or(Refused::Wrong)
    }

    async fn password(&self, peer: IpAddr, shown: &str) -> Result<Who, Refused> {
        let decoded = Base64::decode_vec(shown).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or(Refused::Wrong)?;
        let (name, password) = decoded.split_once(':').ok_or(Refused::Wrong)?;
        let key: [u8; 32] = Sha256::digest(&decoded).into();
        // Nothing is known of the name yet.
        let claim = (peer, name.chars().take(64).collect());
        if let Some(known) = self.tried.known(&key, &claim) {
            return known;
        }
        // A name that is not there costs as much as one that is.
        let there = self.passwords.iter().find(|(known, _)| known == name);
        let places = Arc::clone(if there.is_some() { &self.hashing } else { &self.guessing });
        let line = there.or_else(|| self.passwords.first()).ok_or(Refused::Wrong)?.clone();
        let place = tokio::time::timeout(QUEUE, places.acquire_owned()).await.ok().and_then(Result::ok).ok_or(Refused::Busy(AGAIN))?;
        // A page is several requests, and a phone that wakes up sends them at once: the first has found out for all of them.
        if let Some(known) = self.tried.known(&key, &claim) {
            return known;
        }
        let (tried, shown_name, shown_password) = (Arc::clone(&self.tried), name.to_owned(), password.to_owned());
        // Goes on to its end when the client hangs up, so it takes its place with it and counts for itself.
        let hashed = tokio::task::spawn_blocking(move || {
            let right = password::fits(&line.1, &shown_password) && line.0 == shown_name;
            if right {
                tried.was_right(key, line.0.clone());
            } else {
                let _counted = tried.wrong.take(claim);
            }
            drop(place);
            right.then_some(line.0)
        });
        let name = hashed.await.ok().flatten().ok_or(Refused::Wrong)?;
        Ok(Who { name, how: How::Password })
    }

    fn session(&self, headers: &HeaderMap) -> Result<Who, Refused> {
        let link = self.link.as_ref().ok_or(Refused::Nobody)?;
        let cookies = one(headers, &header::COOKIE).ok_or(Refused::Nobody)?;
        let session = cookies.split(';').find_map(|cookie| cookie.trim().strip_prefix(COOKIE)?.strip_prefix('=')).ok_or(Refused::Nobody)?;
        let shown: [u8; 32] = Sha256::digest(session).into();
        let link = link.lock().unwrap_or_else(PoisonError::into_inner);
        let until = link.sessions.get(&shown).ok_or(Refused::Wrong)?;
        if *until > Instant::now() { Ok(Who { name: "local".to_owned(), how: How::Link }) } else { Err(Refused::Wrong) }
    }
}

/// The one value of a header. Sent twice it is none: two readers could take different ones.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut all = headers.get_all(name).iter();
    match (all.next(), all.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// A name as records may show it.
fn name_of(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?.trim();
    let good = (1..=64).contains(&text.chars().count()) && text.chars().all(|c| c.is_alphanumeric() || " ._-@+,:".contains(c));
    good.then(|| text.to_owned())
}

fn read(file: &Path) -> Result<String, Message> {
    use std::io::Read;
    let mut text = String::new();
    let read = std::fs::File::open(file).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
    read.map_err(|error| bad(file, &error.to_string()))?;
    Ok(text)
}

fn bad(file: &Path, why: &str) -> Message {
    Message::new(format!("{} can't be used: {why}.", file.display()), "Correct the file, or take its key out of [web].")
}

mod password;
#[cfg(test)]
mod tests;
