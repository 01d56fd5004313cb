//! PVE's minute history of the VM: the only witness of the stall of 2026-06-11.
//!
//! Reads rows of time, `diskwrite` and `cpu`: the probe's `{columns, rows}`, JSON as `pvesh get …/rrddata` prints it, or the text of
//! `rrdtool fetch`; does not read RRD's binary files. Rows without a value are gaps, never zeros.

use serde_json::Value;

/// One minute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Minute {
    /// Seconds since 1970.
    pub(super) time: u64,
    /// Bytes a second.
    pub(super) diskwrite: f64,
    /// Share of the VM's vCPUs, 0 to 1.
    pub(super) cpu: Option<f64>,
}

/// Writes, and then none.
pub(super) struct Silence {
    /// How long nothing was written, in seconds.
    pub(super) seconds: u64,
    /// The last rate before, in bytes a second.
    pub(super) before: f64,
    /// Mean share of the vCPUs since, where every row says it.
    pub(super) cpu: Option<f64>,
}

/// The rows that have a `diskwrite`, oldest first.
pub(super) fn minutes(bytes: &[u8]) -> Vec<Minute> {
    if bytes.len() > super::MOST_JSON {
        return Vec::new();
    }
    let mut rows = match serde_json::from_slice::<Value>(bytes) {
        Ok(value) => from_json(&value),
        Err(_) => from_text(&String::from_utf8_lossy(bytes)),
    };
    rows.sort_by_key(|m| m.time);
    rows
}

/// Whether the newest rows are silent for at least 180 s, after writes in the same hour.
pub(super) fn silence(rows: &[Minute], now: u64) -> Option<Silence> {
    let newest = rows.last()?;
    // pvestatd may have stopped: an old zero says nothing about now.
    if now.abs_diff(newest.time) > 300 {
        return None;
    }
    let wrote = rows.iter().rposition(|m| m.diskwrite > 0.0)?;
    let (last, quiet) = (rows.get(wrote)?, rows.get(wrote + 1..)?);
    let seconds = newest.time.saturating_sub(last.time);
    if seconds < 180 || quiet.len() < 3 || now.saturating_sub(last.time) > 3600 {
        return None;
    }
    let cpu = quiet.iter().map(|m| m.cpu).sum::<Option<f64>>().map(|sum| sum / quiet.len() as f64);
    Some(Silence { seconds, before: last.diskwrite, cpu })
}

fn from_json(value: &Value) -> Vec<Minute> {
    if let (Some(columns), Some(rows)) = (value.get("columns").and_then(Value::as_array), value.get("rows").and_then(Value::as_array)) {
        return from_table(columns, rows);
    }
    let rows = value.as_array().or_else(|| value.get("data")?.as_array());
    rows.into_iter()
        .flatten()
        .filter_map(|row| {
            let number = |member: &str| row.get(member).and_then(Value::as_f64).filter(|n| n.is_finite());
            Some(Minute { time: row.get("time")?.as_u64()?, diskwrite: number("diskwrite")?, cpu: number("cpu") })
        })
        .collect()
}

/// `columns` names the values; each row has its time before them.
fn from_table(columns: &[Value], rows: &[Value]) -> Vec<Minute> {
    let place = |name: &str| columns.iter().position(|c| c.as_str() == Some(name)).map(|at| at + 1);
    let Some(diskwrite) = place("diskwrite") else { return Vec::new() };
    let cpu = place("cpu");
    let number = |row: &Value, at: usize| row.get(at).and_then(Value::as_f64).filter(|n| n.is_finite());
    rows.iter()
        .filter_map(|row| {
            Some(Minute { time: row.get(0)?.as_u64()?, diskwrite: number(row, diskwrite)?, cpu: cpu.and_then(|at| number(row, at)) })
        })
        .collect()
}

/// A line of column names, then `TIME: value value …`.
fn from_text(text: &str) -> Vec<Minute> {
    let mut columns: Vec<&str> = Vec::new();
    let mut rows = Vec::new();
    for line in text.lines() {
        let Some((time, values)) = line.split_once(':') else {
            if columns.is_empty() {
                columns = line.split_whitespace().collect();
            }
            continue;
        };
        let values: Vec<&str> = values.split_whitespace().collect();
        let number = |name: &str| {
            let at = columns.iter().position(|c| *c == name)?;
            values.get(at)?.parse::<f64>().ok().filter(|n| n.is_finite())
        };
        if let (Ok(time), Some(diskwrite)) = (time.trim().parse(), number("diskwrite")) {
            rows.push(Minute { time, diskwrite, cpu: number("cpu") });
        }
    }
    rows
}
