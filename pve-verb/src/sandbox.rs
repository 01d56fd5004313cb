//! What a probe helper gives up before the first foreign byte, so that one that was taken over by what it parsed can't write a file,
//! reach another socket, start a program or trace a process.
//!
//! Each layer stands for itself: a kernel may lack one, and then the others hold and the missing one is reported, never silently.
//! The filters are in `sandbox/filter.rs`. Layers bind the calling thread and what it starts later, so this comes before any thread.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use nix::sched::{CloneFlags, unshare};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs};
use serde::{Deserialize, Serialize};
use std::path::Path;

mod filter;

/// The most memory that `probe-guest` may write to: what it holds of an answer, several times over.
const MEMORY: u64 = 60 * 1024 * 1024;

/// A layer of the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// No program that it might start could gain privileges.
    NoNewPrivileges,
    /// Root's capabilities are gone, but for those that it needs.
    Capabilities,
    /// It can't use more memory than its share.
    Memory,
    /// It sees no file, and no socket that has a path, outside one folder.
    Root,
    /// It sees no network, and no socket that has a name without a path.
    Network,
    /// The kernel refuses it every file but those named.
    Landlock,
    /// The kernel refuses it every system call but those named.
    Seccomp,
}

impl Layer {
    /// As a person knows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoNewPrivileges => "no-new-privileges",
            Self::Capabilities => "dropped capabilities",
            Self::Memory => "a memory limit",
            Self::Root => "a root folder of its own",
            Self::Network => "a network namespace of its own",
            Self::Landlock => "Landlock",
            Self::Seccomp => "seccomp",
        }
    }
}

/// The sandbox of `probe-guest`: the sockets in the working folder, which becomes the root, the pictures in `screens`, which is open
/// already, and nothing else. No writing. A socket that is open keeps the network namespace that it was opened in.
///
/// Gives what this kernel does not do.
pub fn guest(screens: Option<&Path>) -> Vec<Layer> {
    let mut missing = Vec::new();
    let mut layer = |layer, done: bool| {
        if !done {
            missing.push(layer);
        }
    };
    layer(Layer::NoNewPrivileges, set_no_new_privs(true).is_ok());
    // Abstract unix sockets are the network's: whoever listens on one sees a client that is root. Those with a path are not.
    layer(Layer::Network, unshare(CloneFlags::CLONE_NEWNET).is_ok());
    // Its rules name folders that are out of sight after the next step.
    let rules = landlocked(screens);
    layer(Layer::Root, rustix::process::chroot(".").is_ok());
    let enforced = rules.and_then(RulesetCreated::restrict_self).is_ok_and(|status| status.ruleset != RulesetStatus::NotEnforced);
    layer(Layer::Landlock, enforced);
    layer(Layer::Capabilities, keep(CapabilitySet::empty()));
    let most = Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) };
    layer(Layer::Memory, setrlimit(Resource::Data, most).is_ok());
    layer(Layer::Seccomp, filter::guest().is_ok());
    missing
}

/// The sandbox of `probe-host`: it reads what only root may read, everywhere, and writes nowhere. No Landlock, inside which
/// `/proc/PID/{stack,syscall,io,fd}` are refused.
///
/// Gives what this kernel does not do.
pub fn host() -> Vec<Layer> {
    let mut missing = Vec::new();
    let mut layer = |layer, done: bool| {
        if !done {
            missing.push(layer);
        }
    };
    layer(Layer::NoNewPrivileges, set_no_new_privs(true).is_ok());
    // `/proc/PID/stack` asks for SYS_ADMIN, its neighbours for SYS_PTRACE, `/dev/kmsg` for SYSLOG.
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE | CapabilitySet::SYSLOG | CapabilitySet::DAC_READ_SEARCH;
    layer(Layer::Capabilities, keep(needed));
    layer(Layer::Seccomp, filter::host().is_ok());
    missing
}

/// Drops all other capabilities.
fn keep(needed: CapabilitySet) -> bool {
    let dropped = capabilities(None).and_then(|now| {
        let kept = now.permitted & needed;
        set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })
    });
    dropped.is_ok()
}

/// Everything that Landlock knows is refused, apart from reading pictures and connecting to the sockets. What came after its third
/// version is refused where the kernel can, and without a word where it can't, since another layer refuses the same: seccomp device
/// controls, TCP and signals; the network namespace abstract sockets; the root folder sockets with a path.
fn landlocked(screens: Option<&Path>) -> Result<RulesetCreated, RulesetError> {
    let newest = ABI::V9;
    let connecting: BitFlags<AccessFs> = AccessFs::from_all(newest) & !AccessFs::from_all(ABI::V8);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V3))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(newest))?
        .handle_access(AccessNet::from_all(newest))?
        .scope(Scope::from_all(newest))?
        .create()?;
    if let Some(folder) = screens.and_then(|s| PathFd::new(s).ok()) {
        rules = rules.add_rule(PathBeneath::new(folder, AccessFs::ReadFile))?;
    }
    if let Ok(folder) = PathFd::new(".") {
        rules = rules.add_rule(PathBeneath::new(folder, connecting))?;
    }
    Ok(rules)
}
