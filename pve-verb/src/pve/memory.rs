//! Whether this host can have the memory that the VM's configuration asks for. Pure, but for [`look`], which reads.
//!
//! QEMU asks for all of it at its start, whatever the balloon says, and the kernel gives it page by page. So a start is proved impossible
//! only where the kernel must refuse it at once: by its rule of overcommitting, and for hugepages by what is plugged in. Everything less
//! may work out, at somebody's cost.

use proto::Vmid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;

use super::{config_text, current};
use crate::procfs::{Pidfile, by_pidfile, read_text};

const MIB: u64 = 1 << 20;
/// What PVE gives where the configuration says nothing, in MiB.
const DEFAULT_MIB: u64 = 512;

/// What is asked for and what there is, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// What the next QEMU asks for, pending values applied.
    pub need: u64,
    /// In hugepages, which are never swapped.
    pub huge: bool,
    /// In several pieces, each of which the kernel looks at alone.
    pub split: bool,
    /// MemTotal.
    pub total: u64,
    /// SwapTotal.
    pub swap: u64,
    /// MemAvailable, and free hugepages where those are asked for.
    pub available: u64,
    /// CommitLimit.
    pub commit_limit: u64,
    /// `vm.overcommit_memory`: 0 refuses what is obviously too much, 1 nothing, 2 what is beyond CommitLimit.
    pub overcommit: u8,
    /// What the VM's QEMU has now and would give back.
    pub old: u64,
}

impl Memory {
    /// The most that the kernel could give, where the VM needs more than that: then a start is proved impossible.
    pub const fn beyond(&self) -> Option<u64> {
        let most = match (self.huge, self.overcommit) {
            (true, _) => self.total,
            (false, 0) if !self.split => self.total.saturating_add(self.swap),
            (false, 2) => self.commit_limit,
            _ => return None,
        };
        if self.need > most { Some(most) } else { None }
    }

    /// What is free, and what the old QEMU gives back.
    pub const fn to_be_had(&self) -> u64 {
        self.available.saturating_add(self.old)
    }
}

/// Bytes as MiB, for people.
pub const fn mib(bytes: u64) -> u64 {
    bytes / MIB
}

/// What the next start goes by: the current values with the pending ones over them.
fn next(config: &str) -> BTreeMap<&str, &str> {
    let mut next = current(config);
    let pending = config.lines().skip_while(|l| l.trim() != "[PENDING]").skip(1).take_while(|l| !l.starts_with('['));
    for (key, value) in pending.filter_map(|l| l.split_once(':')).map(|(k, v)| (k.trim(), v.trim())) {
        if key == "delete" {
            for gone in value.split([',', ';', ' ']) {
                next.remove(gone.trim_start_matches('!'));
            }
        } else {
            next.insert(key, value);
        }
    }
    next
}

/// The same with what the host has, by `/proc/meminfo`, `/proc/sys/vm/overcommit_memory` and the old QEMU's `/proc/PID/status`. None where
/// one of the figures is not there.
fn weigh(config: &str, meminfo: &str, overcommit: &str, status: &str) -> Option<Memory> {
    let next = next(config);
    let mib = match next.get("memory") {
        None => DEFAULT_MIB,
        Some(said) => said.split(',').find_map(|part| part.trim_start_matches("current=").parse().ok())?,
    };
    let huge = next.contains_key("hugepages");
    let kib = |text: &str, name: &str| {
        let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        Some(value.split_ascii_whitespace().next()?.parse::<u64>().ok()?.saturating_mul(1024))
    };
    let pool = kib(meminfo, "HugePages_Free").unwrap_or(0) / 1024 * kib(meminfo, "Hugepagesize").unwrap_or(0);
    Some(Memory {
        need: mib.saturating_mul(MIB),
        huge,
        split: next.get("numa").is_some_and(|said| *said != "0"),
        total: kib(meminfo, "MemTotal")?,
        swap: kib(meminfo, "SwapTotal")?,
        available: kib(meminfo, "MemAvailable")?.saturating_add(if huge { pool } else { 0 }),
        commit_limit: kib(meminfo, "CommitLimit")?,
        overcommit: overcommit.trim().parse().ok()?,
        old: kib(status, "VmRSS").unwrap_or(0).saturating_add(kib(status, "HugetlbPages").unwrap_or(0)),
    })
}

/// Reads all of it.
///
/// # Errors
/// Where one of the files can't be read, or does not say it.
pub fn look(vmid: Vmid) -> io::Result<Memory> {
    let config = config_text(vmid)?;
    let status = match by_pidfile(vmid)? {
        Pidfile::Runs(qemu) => read_text(format!("/proc/{}/status", qemu.pid)).unwrap_or_default(),
        Pidfile::Absent | Pidfile::Stale { .. } => String::new(),
    };
    let memory = weigh(&config, &read_text("/proc/meminfo")?, &read_text("/proc/sys/vm/overcommit_memory")?, &status);
    memory.ok_or_else(|| io::Error::other("the configuration or the host does not say how much memory it is"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       16384000 kB\nMemFree:          200000 kB\nMemAvailable:    4096000 kB\nSwapTotal:       8192000 kB\n\
                           SwapFree:        8192000 kB\nCommitLimit:    10240000 kB\nHugePages_Total:      10\nHugePages_Free:        8\nHugepagesize:       2048 kB\n";

    fn with(config: &str, overcommit: &str) -> Memory {
        weigh(config, MEMINFO, overcommit, "VmRSS:\t  1024000 kB\nHugetlbPages:\t       0 kB\n").unwrap()
    }

    #[test]
    fn the_next_start_asks_for_what_is_pending() {
        let need = |config: &str| with(config, "0\n").need / MIB;
        assert_eq!(need("memory: 4096\n"), 4_096);
        assert_eq!(need("memory: current=2048\nballoon: 512\n"), 2_048, "a balloon takes nothing off the start");
        assert_eq!(need("cores: 1\n"), 512);
        assert_eq!(need("memory: 4096\n\n[PENDING]\nmemory: 8192\n\n[snap]\nmemory: 1\n"), 8_192);
        assert_eq!(need("memory: 4096\n[PENDING]\ndelete: numa,!memory\n"), 512);
        assert_eq!(need("memory: 4096\n[snap]\nmemory: 1\n"), 4_096);
        assert_eq!(weigh("memory: much\n", MEMINFO, "0", ""), None);
        assert_eq!(weigh("memory: 1\n", "MemTotal: 1 kB\n", "0", ""), None);
    }

    #[test]
    fn only_what_the_kernel_must_refuse_is_proved_impossible() {
        // 16000 MiB of RAM, 8000 of swap, 10000 that may be promised where nothing is overcommitted.
        for (config, overcommit, most) in [
            ("memory: 24000", "0", None),
            ("memory: 24001", "0", Some(24_000)),
            ("memory: 24001\nnuma: 0", "0", Some(24_000)),
            ("memory: 24001\nnuma: 1", "0", None),
            ("memory: 24001", "1", None),
            ("memory: 10001", "2", Some(10_000)),
            ("memory: 10001\nnuma: 1", "2", Some(10_000)),
            ("memory: 16001\nhugepages: 2", "1", Some(16_000)),
            ("memory: 16000\nhugepages: any", "0", None),
        ] {
            assert_eq!(with(config, overcommit).beyond().map(mib), most, "{config}, {overcommit}");
        }
    }

    #[test]
    fn the_old_qemu_gives_its_own_back() {
        assert_eq!(mib(with("memory: 1", "0").to_be_had()), 5_000);
        assert_eq!(mib(with("memory: 1\nhugepages: 2", "0").to_be_had()), 5_016, "and the pool of hugepages is there for it");
    }
}
