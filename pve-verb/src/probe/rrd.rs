//! `pve/rrd`: the minute history that PVE keeps of every VM, the only witness of the block stall of 2026-06-11.
//!
//! The file is read directly (RRD format 0003, this machine's byte order); the daemon that caches updates is asked to flush first, with
//! a deadline, because without that the newest minutes, which tell when it began, may be missing. The file is PVE's own, but is parsed
//! as if it were hostile.

use super::host::outcome;
use crate::helper::run::Outbox;
use crate::procfs::read_capped;
use crate::qmp::wire::Wire;
use proto::{ProbeOutcome, Vmid};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// Where PVE 8 and PVE 9 keep it, below rrdcached's folder.
const FOLDERS: [&str; 2] = ["pve-vm-9.0", "pve2-vm"];
const BASE: &str = "/var/lib/rrdcached/db";
const DAEMON: &str = "/run/rrdcached.sock";
/// Minutes that are kept: a wedge may be found hours late.
const ROWS: usize = 240;

/// A connection to the daemon that caches updates. Made before the sandbox closes: afterwards there is no connecting.
pub(crate) fn daemon() -> Option<Wire> {
    Wire::connect(Path::new(DAEMON), 4 * 1024).ok()
}

/// The probe.
pub(crate) fn probe(vmid: Vmid, daemon: Option<Wire>, out: &Outbox) {
    let since = Instant::now();
    let found = FOLDERS.iter().map(|f| format!("{f}/{vmid}")).find(|p| std::fs::symlink_metadata(format!("{BASE}/{p}")).is_ok());
    let Some(path) = found else {
        return out.without("pve/rrd", since, ProbeOutcome::Unavailable, &format!("there is no RRD file of VM {vmid} below {BASE}"));
    };
    let flushed = flush(daemon, &path);
    match read_capped(format!("{BASE}/{path}"), 16 * 1024 * 1024) {
        Ok(bytes) => match parse(&bytes) {
            Some(mut history) => {
                history.insert("flushed".to_owned(), json!(flushed));
                out.json("pve/rrd", since, &Value::Object(history));
            }
            None => out.without("pve/rrd", since, ProbeOutcome::Failed, "the RRD file is not of the format 0003"),
        },
        Err(e) => out.without("pve/rrd", since, outcome(&e), &e.to_string()),
    }
}

/// Whether the daemon wrote what it had cached.
fn flush(daemon: Option<Wire>, path: &str) -> bool {
    let until = Instant::now() + Duration::from_millis(500);
    let Some(mut wire) = daemon else { return false };
    let sent = wire.send(format!("FLUSH {path}\n").as_bytes(), until);
    sent.is_ok() && wire.line(until).is_ok_and(|l| l.as_bytes().starts_with(b"0 "))
}

/// A cursor over the file: every read is checked, nothing is trusted to be there.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn word(&mut self) -> Option<usize> {
        usize::try_from(u64::from_ne_bytes(self.take(8)?.try_into().ok()?)).ok()
    }

    fn name(&mut self) -> Option<String> {
        let field = self.take(20)?;
        Some(String::from_utf8_lossy(field.split(|&b| b == 0).next()?).into_owned())
    }
}

/// The archive of minute averages, newest [`ROWS`] rows, oldest first: `{step, last_update, columns, rows: [[unix time, value…]]}`.
pub(crate) fn parse(bytes: &[u8]) -> Option<serde_json::Map<String, Value>> {
    const COOKIE: f64 = 8.642_135E130;
    let mut c = Cursor(bytes);
    if c.take(4)? != b"RRD\0" || c.take(5)? != b"0003\0" {
        return None;
    }
    c.take(7)?; // to the next multiple of 8
    if f64::from_ne_bytes(c.take(8)?.try_into().ok()?).to_bits() != COOKIE.to_bits() {
        return None;
    }
    let (sources, archives, step) = (c.word()?, c.word()?, c.word()?);
    if sources == 0 || sources > 256 || archives == 0 || archives > 256 || step == 0 {
        return None;
    }
    c.take(80)?;
    let mut columns = Vec::new();
    for _ in 0..sources {
        columns.push(c.name()?);
        c.take(20 + 80)?;
    }
    let mut kinds = Vec::new();
    for _ in 0..archives {
        let kind = c.name()?;
        c.take(4)?; // alignment
        kinds.push((kind, c.word()?, c.word()?));
        c.take(80)?;
    }
    let last = c.word()?;
    c.take(8)?;
    c.take(sources.checked_mul(30 + 2 + 80)?)?;
    c.take(sources.checked_mul(archives)?.checked_mul(80)?)?;
    let mut heads = Vec::new();
    for _ in 0..archives {
        heads.push(c.word()?);
    }
    for ((kind, rows, per_row), head) in kinds.into_iter().zip(heads) {
        let width = sources.checked_mul(8)?;
        let table = c.take(rows.checked_mul(width)?)?;
        if kind == "AVERAGE" && per_row == 1 && rows > 0 {
            let newest = last - last % step;
            let rows: Vec<Value> = (0..rows.min(ROWS))
                .rev()
                .filter_map(|back| {
                    // The head is the row that was written last; before it, in a ring, the older ones.
                    let row = (head % rows + rows - back) % rows;
                    let at = newest.checked_sub(back.checked_mul(step)?)?;
                    let cells = table
                        .get(row * width..(row + 1) * width)?
                        .chunks_exact(8)
                        .filter_map(|b| Some(f64::from_ne_bytes(b.try_into().ok()?)));
                    Some(Value::Array(std::iter::once(json!(at)).chain(cells.map(|v| json!(v))).collect()))
                })
                .collect();
            return json!({"step": step, "last_update": last, "columns": columns, "rows": rows}).as_object().cloned();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of two sources and one archive of three rows, whose newest is row 1.
    fn file() -> Vec<u8> {
        let mut f = b"RRD\x000003\0".to_vec();
        f.extend([0; 7]);
        f.extend(8.642_135E130_f64.to_ne_bytes());
        for n in [2_u64, 1, 60] {
            f.extend(n.to_ne_bytes());
        }
        f.extend([0; 80]);
        for name in ["diskread", "diskwrite"] {
            f.extend(name.as_bytes());
            f.resize(f.len() + 20 - name.len() + 100, 0);
        }
        f.extend(b"AVERAGE");
        f.extend([0; 17]);
        for n in [3_u64, 1] {
            f.extend(n.to_ne_bytes());
        }
        f.extend([0; 80]);
        f.extend(1_000_u64.to_ne_bytes());
        f.extend([0; 8]);
        f.extend([0; 2 * 112]);
        f.extend([0; 2 * 80]);
        f.extend(1_u64.to_ne_bytes());
        for v in [2.0, 20.0, 3.0, f64::NAN, 1.0, 10.0] {
            f.extend(f64::to_ne_bytes(v));
        }
        f
    }

    #[test]
    fn the_ring_is_read_oldest_first() {
        let history = Value::Object(parse(&file()).unwrap());
        assert_eq!(
            history.to_string(),
            r#"{"step":60,"last_update":1000,"columns":["diskread","diskwrite"],"rows":[[840,1.0,10.0],[900,2.0,20.0],[960,3.0,null]]}"#
        );
    }

    /// One byte is any other, or the end is missing: all of it, as one in a thousand of these would be met by chance too rarely.
    #[test]
    fn no_damage_to_the_file_is_worse_than_no_history() {
        let whole = file();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            for byte in 0..=u8::MAX {
                damaged[at] = byte;
                let _ = parse(&damaged);
            }
            assert!(parse(&whole[..at]).is_none(), "cut at {at}");
        }
    }
}
