//! A record's line as bytes, in the one form in which `audit` writes it. Anything else is no record: a reader that forgave a space, a
//! leading zero or another order of members would call two different files the same.
//!
//! No JSON parser here: a million lines must cost little more than hashing them.

use base64ct::{Base64, Encoding};
use sha2::{Digest, Sha256};

/// `,"sig":"`, 88 characters of base64, `"}`.
const SIGNED_END: usize = 8 + 88 + 2;
const UNSIGNED_END: &[u8] = b",\"sig\":null}";

/// A record's line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Raw<'a> {
    pub(crate) seq: u64,
    pub(super) boot_id: &'a [u8],
    pub(super) monotonic_ns: u64,
    pub(crate) prev: [u8; 32],
    pub(super) kind: &'a [u8],
    /// What the signature is over.
    pub(super) signed: &'a [u8],
    /// Its base64; none where the host had no key.
    pub(super) sig: Option<&'a [u8]>,
}

impl<'a> Raw<'a> {
    /// Reads a line without its newline; none where it is not in the one form.
    pub(crate) fn read(line: &'a [u8]) -> Option<Self> {
        let (signed, sig) = split(line)?;
        let mut rest = signed;
        eat(&mut rest, b"{\"seq\":")?;
        let seq = number(&mut rest)?;
        eat(&mut rest, b",\"at\":\"")?;
        take(&mut rest, 24)?;
        eat(&mut rest, b"\",\"boot_id\":\"")?;
        let boot_id = until_quote(&mut rest)?;
        eat(&mut rest, b"\",\"monotonic_ns\":")?;
        let monotonic_ns = number(&mut rest)?;
        eat(&mut rest, b",\"prev\":\"")?;
        let prev = unhex(take(&mut rest, 64)?)?;
        eat(&mut rest, b"\",\"kind\":\"")?;
        let kind = until_quote(&mut rest)?;
        eat(&mut rest, b"\"")?;
        (rest.is_empty() || rest.first() == Some(&b',')).then_some(Self { seq, boot_id, monotonic_ns, prev, kind, signed, sig })
    }

    /// The signature's bytes; none where its base64 is not canonical.
    pub(crate) fn signature(&self) -> Option<[u8; 64]> {
        let mut bytes = [0; 66];
        Base64::decode(self.sig?, &mut bytes).ok()?.try_into().ok()
    }
}

fn split(line: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    if let Some(signed) = line.strip_suffix(UNSIGNED_END) {
        return Some((signed, None));
    }
    let (signed, end) = line.split_at_checked(line.len().checked_sub(SIGNED_END)?)?;
    let sig = end.strip_prefix(b",\"sig\":\"")?.strip_suffix(b"\"}")?;
    Some((signed, Some(sig)))
}

fn eat(rest: &mut &[u8], expected: &[u8]) -> Option<()> {
    *rest = rest.strip_prefix(expected)?;
    Some(())
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(n)?;
    *rest = tail;
    Some(head)
}

fn until_quote<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let n = rest.iter().take(80).position(|b| !(b.is_ascii_alphanumeric() || *b == b'-'))?;
    (rest.get(n) == Some(&b'"')).then(|| take(rest, n))?
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let n = rest.iter().position(|b| !b.is_ascii_digit())?;
    let digits = take(rest, n)?;
    if digits.len() > 1 && digits.first() == Some(&b'0') {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// 64 lower-case hex digits.
pub(super) fn unhex(hex: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if hex.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = nibble(*high)? << 4 | nibble(*low)?;
    }
    Some(bytes)
}

const fn nibble(c: u8) -> Option<u8> {
    match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    }
}

pub(super) fn digest(line: &[u8]) -> [u8; 32] {
    Sha256::digest(line).into()
}
