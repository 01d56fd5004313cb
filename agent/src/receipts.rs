//! `receipts verify`: the kept receipts against each other and against what the host's log says now. A fork (two records with one
//! number), a roll-back (the log is shorter than a receipt says) and a chain that does not fit show here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use proto::{Event, Message, ReceiptBody, Witness};

use crate::answer::{MAX_LINE, Reader};
use crate::config::Config;
use crate::hands::{Hands, VerbAsk};
use crate::host::Ssh;
use crate::host::keep::Keep;
use crate::receipt::{Asked, Proved, check};
use crate::signers::Pinned;

/// A kept receipt: its line as it came.
#[derive(Debug)]
pub struct Kept {
    line: Vec<u8>,
}

/// Reads a kept receipt.
///
/// # Errors
/// The file can't be read.
pub fn read(path: &Path) -> std::io::Result<Kept> {
    let mut line = Vec::new();
    File::open(path)?.take(MAX_LINE as u64).read_to_end(&mut line)?;
    Ok(Kept { line })
}

impl Kept {
    /// The body, unchecked: what it claims.
    fn claimed(&self) -> Option<ReceiptBody> {
        let event: Event = serde_json::from_slice(&self.line).ok()?;
        let proto::Body::Receipt(receipt) = event.body else { return None };
        proto::decode_body(&receipt.body).ok().map(|(body, _)| body)
    }

    /// The audit head that it names.
    pub fn witness(&self) -> Option<Witness> {
        self.claimed()?.audit.map(|at| Witness { seq: at.seq, head: at.head })
    }

    /// What it proves.
    pub(crate) fn proved(&self, pinned: &Pinned) -> Option<Proved> {
        let mut reader = Reader::new();
        reader.feed(&self.line, |_| ());
        check(&reader.end().ok()?, Some(pinned), &Asked::default()).ok()
    }
}

/// What the receipts say together.
#[derive(Debug, Default)]
pub struct Findings {
    /// How many there are.
    pub receipts: usize,
    /// What is wrong, each in two sentences.
    pub wrong: Vec<Message>,
    /// The newest place in the host's log.
    pub newest: Option<Witness>,
}

/// Holds the kept receipts against each other.
pub fn verify(files: &[std::path::PathBuf], pinned: &Pinned) -> Findings {
    let mut found = Findings::default();
    let mut heads: BTreeMap<u64, (String, String, String)> = BTreeMap::new();
    let wrong = |found: &mut Findings, what: String, next: &str| found.wrong.push(Message::new(what, next));
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(proved) = read(file).ok().and_then(|kept| kept.proved(pinned)) else {
            wrong(
                &mut found,
                format!("The kept receipt {name} is damaged, or not signed with the pinned key."),
                "Look who can write to the state folder; if the host's key was rotated, put the new one into [host] signing_key.",
            );
            continue;
        };
        found.receipts += 1;
        let Some(at) = &proved.body().audit else { continue };
        let own = (at.head.to_string(), at.prev.to_string(), name.clone());
        match heads.get(&at.seq) {
            // A replay names its original's place.
            Some((head, _, other)) if *head != own.0 => wrong(
                &mut found,
                format!("A fork: {name} and {other} both name record {} of the host's log, with different hashes.", at.seq),
                "Two logs were written. Compare both receipts with pve-verb log verify --receipts on the host.",
            ),
            _ => _ = heads.insert(at.seq, own),
        }
    }
    for (seq, (_, prev, name)) in &heads {
        if let Some((head, _, before)) = heads.get(&seq.wrapping_sub(1)).filter(|(head, ..)| head != prev) {
            wrong(
                &mut found,
                format!("The chain does not fit: {name} follows {before} in the host's log, and names {prev} where that says {head}."),
                "The log between them is not the one that was written. Run pve-verb log verify --receipts on the host.",
            );
        }
    }
    found.newest = heads.last_key_value().and_then(|(seq, (head, ..))| Some(Witness { seq: *seq, head: head.parse().ok()? }));
    found
}

/// `receipts verify`: prints what it found; true where all fits, here and on the host.
///
/// # Errors
/// The configuration or the state folder can't be used.
pub fn command(config: &Config) -> Result<bool, Message> {
    use std::io::Write;
    let host = Config::need(config.host.as_ref(), "host")?;
    let files = Keep::open(&config.state.dir, config.state.keep_bytes)?.all();
    let found = verify(&files, &host.signing_key);
    let mut out = std::io::stdout();
    for wrong in &found.wrong {
        let _nobody_reads = writeln!(out, "{wrong}");
    }
    let _nobody_reads = writeln!(out, "{} receipts, {} findings.", found.receipts, found.wrong.len());
    if found.newest.is_none() {
        return Ok(found.wrong.is_empty());
    }
    // The witness goes along with every request: its answer is signed.
    let ssh = Ssh::open(config)?;
    let ask = VerbAsk {
        verb: proto::Verb::Status,
        request_id: crate::verb::fresh_id()?,
        origin: proto::Origin::Human,
        actor: None,
        reason: None,
        dry_run: false,
        attach: false,
        grant: None,
    };
    let (tell, listener) = tokio::sync::mpsc::channel(1);
    // Gone before the first event: a listener that is there and never listens would hold the answer up for ever.
    drop(listener);
    let end = crate::verb::runtime()?.block_on(ssh.verb(ask, tell));
    let (line, well) = match end.checked.as_ref().map(|proved| proved.body().witness.as_ref().and_then(|witness| witness.ok)) {
        Ok(Some(true)) => ("The host's log contains the newest of them.".to_owned(), true),
        Ok(Some(false)) => {
            ("The host's log does NOT contain the newest of them: it was rolled back or replaced. Keep the state folder.".to_owned(), false)
        }
        Ok(None) => ("The host could not tell in time whether its log contains the newest of them. Ask again.".to_owned(), false),
        Err(_) => (end.said.to_string(), false),
    };
    let _nobody_reads = writeln!(out, "{line}");
    Ok(well && found.wrong.is_empty())
}
