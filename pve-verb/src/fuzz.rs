//! Ways in for the fuzz targets of `pve-verb/fuzz`, to what is the crate's own. Compiled only with `--cfg fuzzing`, which cargo-fuzz
//! sets: no program that ships has them.

use crate::audit::line::Line;
use crate::auditor::raw::Raw;
use crate::config::Config;
use crate::grant::Signers;
use crate::qmp::{Door, Purpose};
use proto::Vmid;
use std::path::Path;
use std::time::Duration;

/// The door to sockets in a folder of the fuzzer's.
pub fn door(folder: &Path) -> Option<Door> {
    Door::take_at(folder, folder, Vmid::DEVVM, &Purpose::Read("fuzz".to_owned()), Duration::ZERO).ok()
}

/// `config.toml`, parsed.
///
/// # Errors
/// What is wrong with it, as a person is told.
pub fn config(text: &str) -> Result<Config, String> {
    Config::parse(text)
}

/// `allowed_signers`, parsed.
pub fn signers(text: &str) -> Signers {
    Signers::read(text)
}

/// Both readers of an audit line. Panics where they understand the same bytes differently.
pub fn audit_line(bytes: &[u8]) {
    let raw = Raw::read(bytes);
    if let (Some(raw), Some(line)) = (raw, Line::read(bytes)) {
        assert_eq!(raw.seq, line.seq, "two readers, two numbers");
        assert_eq!(proto::Sha256Hex::from_bytes(raw.prev), line.prev, "two readers, two predecessors");
    }
    if let Some(raw) = raw {
        let _ = raw.signature();
    }
}

/// `log verify` of the log below this folder; gives the exit status. Panics where it says nothing, or not what its status says.
pub fn verify_log(root: &Path) -> u8 {
    let mut said = Vec::new();
    let status = crate::auditor::verify_below(root, &mut said);
    let said = String::from_utf8(said).expect("the report is text");
    assert!(!said.is_empty() && said.lines().all(|line| !line.chars().any(char::is_control)), "{said:?}");
    status
}
