//! `/etc/pve-verb/config.toml` (PROTOCOL.md, section 1): optional, each key with a default, and never a reason to lock anyone out.
//!
//! Whatever is wrong with the file, [`Config::load`] gives the defaults and one sentence about it. It records and prints nothing.

use serde::Deserialize;
use std::path::{Path, PathBuf};

use crate::host::{self, path};
use crate::trusted::{self, Untrusted};

/// A configuration file longer than this is somebody's mistake.
const MOST: u64 = 64 * 1024;

/// How the host is set up.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How often.
    pub limits: Limits,
    /// What is kept of the evidence.
    pub evidence: Evidence,
    /// What is kept of the log.
    pub audit: Audit,
    /// What this host is.
    pub host: Host,
}

/// `[limits]`, for each key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// `reset`, `stop` and `cycle` in an hour.
    pub mutations_per_hour: u32,
    /// Seconds between two of them.
    pub min_interval_s: u32,
    /// `forensics` in a minute.
    pub forensics_per_minute: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { mutations_per_hour: 12, min_interval_s: 10, forensics_per_minute: 6 }
    }
}

/// `[evidence]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evidence {
    /// Bundles.
    pub keep: u32,
    /// Their bytes together.
    pub keep_bytes: Size,
    /// When QEMU's threads are looked at with a debugger.
    pub autopsy: Autopsy,
}

impl Default for Evidence {
    fn default() -> Self {
        Self { keep: 50, keep_bytes: Size(4 << 30), autopsy: Autopsy::Wedged }
    }
}

/// `evidence.autopsy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Autopsy {
    /// Where QEMU looks wedged.
    Wedged,
    /// Before every reset, stop and cycle.
    Always,
    /// Not at all.
    Never,
}

/// `[audit]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// The log's bytes together.
    pub keep_bytes: Size,
}

impl Default for Audit {
    fn default() -> Self {
        Self { keep_bytes: Size(1 << 30) }
    }
}

/// `[host]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// The node's name.
    pub node: Node,
    /// PVE's `qm`.
    pub qm: Qm,
}

impl Default for Host {
    fn default() -> Self {
        // A kernel's host name may hold what a node's may not; it is used all the same, and it is never more than a name.
        Self { node: Node(host::hostname()), qm: Qm(PathBuf::from("/usr/sbin/qm")) }
    }
}

/// A number of bytes: `"4GiB"`, `"512MiB"`, `"64KiB"`, `"1000B"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Size(u64);

impl Size {
    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl TryFrom<String> for Size {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("\"{}\" is not a size such as 4GiB, 512MiB, 64KiB or 1000B", proto::escape_cut(text.as_bytes(), 40));
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let shift = match unit {
            "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(1 << shift).filter(|n| *n > 0).map(Self).ok_or_else(wrong)
    }
}

/// A node's name: it becomes part of paths and of a principal.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Node(String);

impl Node {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Node {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let good = (1..=63).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && !text.starts_with('-');
        if good { Ok(Self(text)) } else { Err(format!("\"{}\" is not a node's name", proto::escape_cut(text.as_bytes(), 80))) }
    }
}

/// Where `qm` is: absolute, so that no search path decides what runs as root.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "PathBuf")]
pub struct Qm(PathBuf);

impl Qm {
    /// The path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<PathBuf> for Qm {
    type Error = String;
    fn try_from(path: PathBuf) -> Result<Self, String> {
        if path.is_absolute() { Ok(Self(path)) } else { Err("qm must be an absolute path".to_owned()) }
    }
}

impl Config {
    /// The configuration, and why it is only the defaults where the file could not be used. No file is no reason.
    pub fn load() -> (Self, Option<String>) {
        Self::load_from(Path::new(path::CONFIG), 0)
    }

    pub(crate) fn load_from(path: &Path, owner: u32) -> (Self, Option<String>) {
        let read = match trusted::read(path, owner, trusted::NOT_WRITABLE, MOST) {
            Ok(bytes) => String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned()),
            Err(Untrusted::Absent) => return (Self::default(), None),
            Err(Untrusted::Bad(why)) => Err(why),
        };
        match read.and_then(|text| Self::parse(&text)) {
            Ok(config) => (config, None),
            Err(why) => (Self::default(), Some(format!("{} {why}; the defaults apply", path.display()))),
        }
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|e: toml::de::Error| {
            let line = e.span().map(|s| text.bytes().take(s.start).filter(|b| *b == b'\n').count() + 1);
            let place = line.map(|n| format!(" in line {n}")).unwrap_or_default();
            format!("is not usable{place}: {}", proto::escape_cut(e.message().as_bytes(), 200))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn with(text: &str, mode: u32) -> (Config, Option<String>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        Config::load_from(&path, rustix::process::getuid().as_raw())
    }

    #[test]
    fn the_contracts_defaults() {
        let (config, degraded) = Config::load_from(Path::new("/nonexistent/config.toml"), 0);
        assert_eq!(degraded, None, "no file is no reason to be degraded");
        assert_eq!((config.limits.mutations_per_hour, config.limits.min_interval_s, config.limits.forensics_per_minute), (12, 10, 6));
        assert_eq!(
            (config.evidence.keep, config.evidence.keep_bytes.bytes(), config.evidence.autopsy),
            (50, 4_294_967_296, Autopsy::Wedged)
        );
        assert_eq!((config.audit.keep_bytes.bytes(), config.host.qm.path()), (1_073_741_824, Path::new("/usr/sbin/qm")));
    }

    #[test]
    fn a_key_that_is_set_is_used_and_the_others_keep_their_defaults() {
        let (config, degraded) = with("[evidence]\nkeep_bytes = \"512MiB\"\nautopsy = \"never\"\n[host]\nnode = \"pve2\"\n", 0o644);
        assert_eq!(degraded, None);
        assert_eq!((config.evidence.keep_bytes.bytes(), config.evidence.autopsy, config.evidence.keep), (512 << 20, Autopsy::Never, 50));
        assert_eq!(config.host.node.as_str(), "pve2");
    }

    #[test]
    fn a_bad_file_gives_the_defaults_and_a_reason() {
        for (text, mode, word) in [
            ("[limits", 0o600, "line 1"),
            ("\n[limits]\nmutation_per_hour = 3\n", 0o600, "mutation_per_hour"),
            ("[limits]\nmutations_per_hour = -1\n", 0o600, "line 2"),
            ("[evidence]\nkeep_bytes = \"4GB\"\n", 0o600, "4GB"),
            ("[evidence]\nkeep_bytes = \"99999999999TiB\"\n", 0o600, "size"),
            ("[host]\nqm = \"qm\"\n", 0o600, "absolute"),
            ("[host]\nnode = \"../x\"\n", 0o600, "node"),
            ("", 0o620, "mode"),
            ("", 0o602, "mode"),
        ] {
            let (config, degraded) = with(text, mode);
            assert_eq!(config, Config::default(), "{text:?}");
            assert!(degraded.as_ref().is_some_and(|d| d.contains(word) && d.ends_with("the defaults apply")), "{text:?}: {degraded:?}");
        }
    }
}
