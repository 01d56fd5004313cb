//! What callers kept: receipts and witnesses, from a file. Whoever rewrites the log can't rewrite these.
//!
//! Understood are the last line of a text answer, `--json` answers and single events, bodies, the output of `log head`, and `SEQ:HEX`.
//! Everything else in the file is passed over, so that whole answers can be kept as they came.

use base64ct::{Base64, Encoding};
use proto::{Receipt, ReceiptBody, Witness, namespace};
use serde_json::Value;
use std::collections::HashMap;

use super::finding::{Code, Findings};
use super::keys::Keys;
use super::raw::unhex;
use crate::audit::claimed_head;

/// Something that a caller holds.
#[derive(Debug)]
struct Held {
    line: usize,
    hash: [u8; 32],
    /// Whether it says that its record was on tmpfs only.
    tmpfs_only: bool,
    /// The signature and what it is over, where there is one.
    signed: Option<(Vec<u8>, Vec<u8>)>,
    found: bool,
}

/// All that callers hold, by the number of the record.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    by_seq: HashMap<u64, Vec<Held>>,
    text: String,
}

impl Receipts {
    pub(super) fn read(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let mut all = Self::default();
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.starts_with('{') {
                all.json(n + 1, line);
            } else {
                all.plain(n + 1, line);
            }
        }
        // A text answer wraps its sentences; this undoes it.
        all.text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        all
    }

    fn plain(&mut self, line: usize, text: &str) {
        let mut words = text.split_ascii_whitespace();
        let position = match words.next() {
            Some("receipt") => words.next().zip(words.next()),
            Some(word) => word.trim_start_matches("--witness=").split_once(':').filter(|(seq, _)| !seq.is_empty()),
            None => None,
        };
        if let Some((seq, head)) = position
            && let (Ok(seq), Some(hash)) = (seq.parse(), unhex(head.as_bytes()))
        {
            self.add(seq, Held { line, hash, tmpfs_only: false, signed: None, found: false });
        }
    }

    fn json(&mut self, line: usize, text: &str) {
        if let Some((seq, head)) = claimed_head(text) {
            if let Some(hash) = unhex(head.as_str().as_bytes()) {
                self.add(seq, Held { line, hash, tmpfs_only: false, signed: None, found: false });
            }
            return;
        }
        let (body, signed) = match serde_json::from_str::<Receipt>(text) {
            Ok(receipt) => match proto::decode_body(&receipt.body) {
                Ok((body, bytes)) => {
                    let sig = receipt.sig.and_then(|s| Base64::decode_vec(&s).ok());
                    (body, sig.map(|sig| (sig, bytes)))
                }
                Err(_) => return,
            },
            Err(_) => match serde_json::from_str::<ReceiptBody>(text) {
                Ok(body) => (body, None),
                Err(_) => return self.witness(line, text),
            },
        };
        let Some(audit) = body.audit else { return };
        let Some(hash) = unhex(audit.head.as_str().as_bytes()) else { return };
        let mark = tmpfs_mark(audit.seq);
        let tmpfs_only = body.degraded.iter().any(|d| d.contains(&mark));
        self.add(audit.seq, Held { line, hash, tmpfs_only, signed, found: false });
    }

    fn witness(&mut self, line: usize, text: &str) {
        let given = serde_json::from_str::<Value>(text).ok().and_then(|v| serde_json::from_value::<Witness>(v).ok());
        if let Some(witness) = given
            && let Some(hash) = unhex(witness.head.as_str().as_bytes())
        {
            self.add(witness.seq, Held { line, hash, tmpfs_only: false, signed: None, found: false });
        }
    }

    fn add(&mut self, seq: u64, held: Held) {
        self.by_seq.entry(seq).or_default().push(held);
    }

    pub(super) fn len(&self) -> usize {
        self.by_seq.values().map(Vec::len).sum()
    }

    /// The log has this record.
    pub(super) fn meet(&mut self, seq: u64, hash: &[u8; 32]) {
        if self.by_seq.is_empty() {
            return;
        }
        for held in self.by_seq.get_mut(&seq).into_iter().flatten() {
            held.found |= held.hash == *hash;
        }
    }

    /// What the log, which goes from `first` to `last`, does not have.
    pub(super) fn judge(&self, first: u64, last: u64, keys: &Keys, findings: &mut Findings, notes: &mut Vec<String>) {
        let mut missing: Vec<_> =
            self.by_seq.iter().flat_map(|(seq, all)| all.iter().map(move |h| (*seq, h))).filter(|(_, h)| !h.found).collect();
        missing.sort_unstable_by_key(|(seq, held)| (*seq, held.line));
        let mut pruned = 0;
        for (seq, held) in missing {
            if seq < first {
                pruned += 1;
                continue;
            }
            let ours = held.signed.as_ref().map(|(sig, bytes)| keys.signed(namespace::RECEIPT, bytes, sig));
            // A text receipt can't say it itself; the answer around it does. What contradicts its own signature says nothing.
            let tmpfs = held.tmpfs_only && ours == Some(true) || held.signed.is_none() && self.text.contains(&tmpfs_mark(seq));
            if tmpfs {
                notes.push(format!(
                    "line {} of the receipts, record {seq}: lost-with-tmpfs. It said itself that its record was on tmpfs only.",
                    held.line
                ));
                continue;
            }
            let how = if seq > last { format!("newer than the log, which ends at {last}") } else { "not the one of this log".to_owned() };
            let whose = match ours {
                Some(true) => "; its signature is this host's",
                Some(false) => "; its own signature is not this host's",
                None => "",
            };
            findings.add(Code::RolledBack, format!("record {seq}, which line {} of the receipts holds, is {how}{whose}", held.line));
        }
        if pruned > 0 {
            notes.push(format!("{pruned} receipts are older than the log's first record {first}, so they can't be checked any more."));
        }
    }
}

fn tmpfs_mark(seq: u64) -> String {
    format!("audit record {seq} is on tmpfs only")
}
