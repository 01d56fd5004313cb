//! One chain, line by line, in constant memory: numbers, hashes, what repair, prune and rotate records say. Signatures only where they
//! decide something; the last one covers everything before it.

use proto::Sha256Hex;
use serde_json::Value;
use ssh_key::PublicKey;

use super::finding::{At, Code, Findings, Place};
use super::keys::{Keys, Rotation};
use super::raw::{Raw, digest, unhex};
use super::receipts::Receipts;
use crate::audit::claimed_head;

/// What all chains of one verification share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) findings: Findings,
    pub(super) keys: Keys,
    pub(super) receipts: Receipts,
    /// Hashes of the lines that are on tmpfs, until they are met on disk.
    pub(super) pending: std::collections::HashSet<[u8; 32]>,
    /// How many records say `"sig":null`.
    pub(super) unsigned: u64,
    /// How many a repair record keeps.
    pub(super) kept: u64,
    /// How many reads and refusals the summary records stand for.
    pub(super) counted: u64,
}

/// Where a chain stands.
#[derive(Debug)]
pub(super) struct Walk {
    /// The number that comes next.
    next: u64,
    /// How many more it may be, after lines that could not be read.
    slack: u64,
    /// The hash that comes next; none at a beginning that was pruned.
    prev: Option<[u8; 32]>,
    /// The last line, and where it stands.
    before: Vec<u8>,
    before_at: Option<At>,
    last_signed: Vec<u8>,
    last_signed_at: Option<At>,
    /// Number and `prev` of the first record, until a prune record vouches for them.
    beginning: Option<(u64, [u8; 32], At)>,
    /// What the head says, and whether that record was met: none where its number was not.
    head: Option<(u64, [u8; 32])>,
    /// What the host remembers of the disk's end.
    remembered: Option<(u64, [u8; 32])>,
    pub(super) head_met: Option<(bool, At)>,
    pub(super) first: Option<u64>,
    pub(super) count: u64,
}

impl Walk {
    /// A chain whose first record has this number.
    pub(super) fn from(next: u64, head: Option<(u64, [u8; 32])>, remembered: Option<(u64, [u8; 32])>) -> Self {
        Self {
            next,
            slack: 0,
            prev: (next == 1).then_some([0; 32]),
            before: Vec::new(),
            before_at: None,
            last_signed: Vec::new(),
            last_signed_at: None,
            beginning: None,
            head,
            remembered,
            head_met: None,
            first: None,
            count: 0,
        }
    }

    /// The number of the last record, as far as it could be read.
    pub(super) const fn last(&self) -> u64 {
        self.next - 1
    }

    /// The number of the last record, if every line that could not be read was one.
    pub(super) fn last_at_most(&self) -> u64 {
        self.last() + self.slack + u64::from(!self.before_is_json())
    }

    pub(super) fn line(&mut self, place: Place, line: u64, bytes: &[u8], shared: &mut Shared) {
        let hash = digest(bytes);
        let Some(raw) = Raw::read(bytes) else {
            let at = At { place, line, seq: self.next + self.slack };
            shared.findings.at(Code::Edited, at, at, "this is not a record as the host writes them");
            self.slack += 1;
            self.prev = Some(hash);
            return;
        };
        let mut at = At { place, line, seq: raw.seq };
        let from = self.before_at.unwrap_or(at);
        let linked = self.prev.is_none_or(|prev| prev == raw.prev);
        let in_order = (self.next..=self.next.saturating_add(self.slack)).contains(&raw.seq);
        if in_order && !linked {
            shared.findings.at(Code::Edited, from, at, "the hash that the second one names is not that of the first");
        } else if !in_order && linked && self.prev.is_some() {
            at.seq = self.next;
            shared.findings.at(Code::Edited, at, at, format!("it says record {} where {} stands", raw.seq, self.next));
        } else if !in_order && !linked && raw.seq == self.next.saturating_add(self.slack + 1) && !self.before_is_json() {
            shared.findings.at(Code::Edited, from, at, "two lines have become one");
        } else if !in_order {
            shared.findings.at(Code::Reordered, from, at, format!("record {} stands where record {} belongs", raw.seq, self.next));
        }
        if self.first.is_none() {
            self.first = Some(at.seq);
            // Behind lines that could not be read nobody can vouch for it, and those are told of.
            if self.prev.is_none() && self.slack == 0 {
                self.beginning = Some((at.seq, raw.prev, at));
            }
        }
        self.met(&raw, at, hash, bytes, shared);
        self.next = at.seq.saturating_add(1);
        self.slack = 0;
        self.prev = Some(hash);
        self.before.clear();
        self.before.extend_from_slice(bytes);
        self.before_at = Some(at);
        self.count += 1;
    }

    /// What this record means for the rest.
    fn met(&mut self, raw: &Raw<'_>, at: At, hash: [u8; 32], bytes: &[u8], shared: &mut Shared) {
        if let Some((seq, claimed)) = self.head
            && seq == at.seq
        {
            self.head_met = Some((claimed == hash, at));
        }
        if self.remembered.is_some_and(|(seq, remembered)| seq == at.seq && remembered != hash) {
            shared.findings.at(Code::Edited, at, at, "it is not the record that this host remembers");
        }
        shared.receipts.meet(at.seq, &hash);
        if !shared.pending.is_empty() {
            shared.pending.remove(&hash);
        }
        if raw.sig.is_some() {
            self.last_signed.clear();
            self.last_signed.extend_from_slice(bytes);
            self.last_signed_at = Some(at);
        } else {
            shared.unsigned += 1;
            shared.findings.at(Code::Unsigned, at, at, "the host had no usable key when it wrote this");
        }
        match raw.kind {
            b"repair" => repair(at, bytes, shared),
            b"pruned" => self.pruned(bytes),
            b"summary" => shared.counted = shared.counted.saturating_add(counted(bytes)),
            b"rotate" if !rotate(raw, bytes, &mut shared.keys) => {
                shared.findings.at(Code::Edited, at, at, "it names a new key, and the key before did not sign that");
            }
            _ => {}
        }
    }

    fn pruned(&mut self, bytes: &[u8]) {
        let Some((seq, prev, _)) = self.beginning else { return };
        let Ok(record) = serde_json::from_slice::<Value>(bytes) else { return };
        let last = record.get("last_seq").and_then(Value::as_u64);
        let hash = record.get("last_hash").and_then(Value::as_str).and_then(|h| unhex(h.as_bytes()));
        if last == Some(seq - 1) && hash == Some(prev) {
            self.beginning = None;
        }
    }

    /// After the last line: the beginning, and the last signature.
    pub(super) fn end(&self, shared: &mut Shared) {
        if let Some((seq, _, at)) = self.beginning {
            shared.findings.at(
                Code::Reordered,
                at,
                at,
                format!("the log begins with record {seq}, and no record says that those before were pruned"),
            );
        }
        if let (Some(at), Some(raw)) = (self.last_signed_at, Raw::read(&self.last_signed))
            && !shared.keys.none()
            && !shared.keys.line(&raw)
        {
            shared.findings.at(Code::Edited, at, at, "its signature is not this host's");
        }
        if !self.before_is_json()
            && let Some(at) = self.before_at
        {
            shared.findings.at(Code::Edited, at, at, "this is not one JSON object");
        }
    }

    fn before_is_json(&self) -> bool {
        self.before.is_empty() || serde_json::from_slice::<serde::de::IgnoredAny>(&self.before).is_ok()
    }
}

/// How many requests a summary stands for.
fn counted(bytes: &[u8]) -> u64 {
    serde_json::from_slice::<Value>(bytes).ok().and_then(|record| record.get("count")?.as_u64()).unwrap_or(0)
}

/// A repair record is the host's own word on what the disk lacked; the old head in it is a signature on that.
fn repair(at: At, bytes: &[u8], shared: &mut Shared) {
    let Ok(record) = serde_json::from_slice::<Value>(bytes) else { return };
    if let Some(line) = record.get("line").and_then(Value::as_str) {
        kept(at, line.as_bytes(), shared);
    }
    let position = |name: &str| {
        let value = record.get(name)?;
        let head: Sha256Hex = serde_json::from_value(value.get("head")?.clone()).ok()?;
        Some((value.get("seq")?.as_u64()?, head))
    };
    let Some((end, _)) = position("continues") else { return };
    let mut known = position("lost").map(|(seq, _)| seq);
    if let Some(text) = record.get("head_json").and_then(Value::as_str) {
        match Head::read(text.as_bytes()) {
            Some(head)
                if shared.keys.none()
                    || head.blob.as_ref().is_none_or(|blob| shared.keys.signed(proto::namespace::LOG, &head.body, blob)) =>
            {
                known = known.max(Some(head.seq));
            }
            _ => shared.findings.at(Code::ForgedHead, at, at, "the head.json that it keeps was not made by this host"),
        }
    }
    match known {
        Some(seq) if seq > end => {
            shared.findings.at(
                Code::Truncated,
                at,
                at,
                format!("it says that records {} to {seq} were gone when the log went on", end + 1),
            );
        }
        Some(_) => shared.findings.at(Code::Edited, at, at, format!("it says that record {end} was another one before")),
        None => {}
    }
}

/// A line that could not be carried at its own place.
fn kept(at: At, line: &[u8], shared: &mut Shared) {
    let hash = digest(line);
    shared.pending.remove(&hash);
    shared.kept += 1;
    let Some(raw) = Raw::read(line) else {
        shared.findings.at(Code::Edited, at, at, "the line that it keeps is not a record");
        return;
    };
    shared.receipts.meet(raw.seq, &hash);
    if raw.sig.is_some() && !shared.keys.none() && !shared.keys.kept(&raw) {
        shared.findings.at(Code::Edited, at, at, "the line that it keeps was not signed by this host");
    }
}

fn rotate(raw: &Raw<'_>, bytes: &[u8], keys: &mut Keys) -> bool {
    let Ok(record) = serde_json::from_slice::<Value>(bytes) else { return false };
    let key = |name: &str| PublicKey::from_openssh(record.get(name)?.as_str()?).ok();
    let (Some(old), Some(new)) = (key("old_key"), key("new_key")) else { return false };
    keys.rotate(Rotation { seq: raw.seq, old, new, boot_id: raw.boot_id.to_vec(), monotonic_ns: raw.monotonic_ns }, raw)
}

/// `head.json`, in the one form in which the host writes it.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) seq: u64,
    pub(super) hash: [u8; 32],
    pub(super) body: Vec<u8>,
    pub(super) blob: Option<Vec<u8>>,
}

impl Head {
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        use base64ct::{Base64, Encoding};
        let text = std::str::from_utf8(bytes).ok()?;
        let (seq, head) = claimed_head(text)?;
        let value: Value = serde_json::from_str(text).ok()?;
        let body = Base64::decode_vec(value.get("body")?.as_str()?).ok()?;
        let blob = match value.get("sig")? {
            Value::Null => None,
            sig => Some(Base64::decode_vec(sig.as_str()?).ok()?),
        };
        // Made again it must be the same bytes: no spaces, no other order, no second spelling.
        let again = serde_json::to_vec(
            &serde_json::json!({"body": Base64::encode_string(&body), "sig": blob.as_ref().map(|b| Base64::encode_string(b))}),
        )
        .ok()?;
        let body_again = serde_json::to_vec(&serde_json::json!({"seq": seq, "head": head})).ok()?;
        (again == bytes && body_again == body).then_some(())?;
        Some(Self { seq, hash: unhex(head.as_str().as_bytes())?, body, blob })
    }
}
