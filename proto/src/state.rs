//! The state of the VM, as observed and as receipts say it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// QEMU's RunState, as `query-status` names it (QEMU 7.2 and 10.0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are QEMU's own; qapi/run-state.json says what each means")]
pub enum RunState {
    Debug,
    Inmigrate,
    InternalError,
    IoError,
    Paused,
    Postmigrate,
    Prelaunch,
    FinishMigrate,
    RestoreVm,
    Running,
    SaveVm,
    Shutdown,
    Suspended,
    Watchdog,
    GuestPanicked,
    Colo,
}

impl RunState {
    /// Reads QEMU's word; a word of a newer QEMU is none.
    pub fn from_qmp(word: &str) -> Option<Self> {
        serde_json::from_value(serde_json::Value::String(word.to_owned())).ok()
    }
}

/// What the VM is, seen from the host: a QMP RunState where QEMU answers, else what the process table and PVE's files say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum VmState {
    /// QEMU answered QMP with this.
    Qmp(RunState),
    /// QEMU did not say; see [`HostState`].
    Host(HostState),
}

/// The states that the host sees without QEMU's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostState {
    /// No process of this VM anywhere.
    Stopped,
    /// A process that does not answer QMP.
    Unresponsive,
    /// "Stopped" for PVE, but a process or thread still holds the disk.
    Survivor,
    /// The configuration is on another node.
    Elsewhere,
    /// No node has such a VM.
    Missing,
    /// Could not be observed; also what a word of a newer host or QEMU is read as.
    #[serde(other)]
    Unknown,
}

#[allow(non_upper_case_globals, reason = "they read as the variants they stand for")]
impl VmState {
    /// QMP says `running`.
    pub const Running: Self = Self::Qmp(RunState::Running);
    /// See [`HostState::Stopped`].
    pub const Stopped: Self = Self::Host(HostState::Stopped);
    /// See [`HostState::Unresponsive`].
    pub const Unresponsive: Self = Self::Host(HostState::Unresponsive);
    /// See [`HostState::Survivor`].
    pub const Survivor: Self = Self::Host(HostState::Survivor);
    /// See [`HostState::Elsewhere`].
    pub const Elsewhere: Self = Self::Host(HostState::Elsewhere);
    /// See [`HostState::Missing`].
    pub const Missing: Self = Self::Host(HostState::Missing);
    /// See [`HostState::Unknown`].
    pub const Unknown: Self = Self::Host(HostState::Unknown);
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(word)) => f.write_str(&word),
            _ => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_on_the_wire() {
        for (state, word) in [
            (VmState::Running, "running"),
            (VmState::Qmp(RunState::IoError), "io-error"),
            (VmState::Survivor, "survivor"),
            (VmState::Qmp(RunState::GuestPanicked), "guest-panicked"),
        ] {
            assert_eq!(state.to_string(), word);
            assert_eq!(serde_json::from_value::<VmState>(word.into()).unwrap(), state);
        }
        assert_eq!(RunState::from_qmp("finish-migrate"), Some(RunState::FinishMigrate));
        assert_eq!(RunState::from_qmp("newer"), None);
        assert_eq!(serde_json::from_value::<VmState>("newer".into()).unwrap(), VmState::Unknown);
        assert!(serde_json::from_value::<VmState>(7.into()).is_err());
    }
}
