//! Who stopped the VM, and when: the newest task of PVE's that started or stopped it.
//!
//! Reads `pve/tasks.txt`: under `# index`, a line for each finished task, oldest first: `UPID END STATUS`, times in hexadecimal seconds.

use proto::Timestamp;

use super::Evidence;
use crate::pve::parse_upid;

/// Tasks after which a VM is stopped.
const STOPPING: [&str; 5] = ["qmstop", "qmshutdown", "qmsuspend", "qmigrate", "qmdestroy"];

/// What the newest of those tasks did; none where none is known.
pub(super) fn last(e: &Evidence<'_>) -> Option<String> {
    let text = e.text("pve/tasks.txt")?;
    let (_, index) = text.split_once("# index")?;
    let id = e.vmid().to_string();
    index.lines().rev().find_map(|line| of(line, &id))
}

fn of(line: &str, id: &str) -> Option<String> {
    let mut words = line.splitn(3, ' ');
    let (upid, end, status) = (words.next()?, words.next()?, words.next()?);
    let task = parse_upid(upid).filter(|task| task.id == id)?;
    let user = upid.split(':').nth(7).unwrap_or_default();
    let at = Timestamp::from_unix_ms(u64::from_str_radix(end, 16).ok()?.checked_mul(1000)?);
    match task.kind.as_str() {
        kind if STOPPING.contains(&kind) => Some(format!("{kind} by {user} ended at {at}: {status}")),
        "qmstart" => Some(format!("qmstart by {user} ended at {at}: {status}; no task stopped it since")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_start_or_stop_counts_and_nobody_elses() {
        let line = |kind: &str, id: &str| of(&format!("UPID:pve:00001234:00ABCDEF:6741A2B3:{kind}:{id}:root@pam: 6741A2B4 OK"), "102");
        assert_eq!(line("qmstop", "102").unwrap(), "qmstop by root@pam ended at 2024-11-23T09:39:00.000Z: OK");
        assert!(line("qmstart", "102").unwrap().ends_with("no task stopped it since"));
        assert_eq!((line("qmstop", "1020"), line("vncproxy", "102"), of("garbage", "102")), (None, None, None));
        assert_eq!(of("UPID:pve:00001234:00ABCDEF:6741A2B3:qmstop:102:root@pam: FFFFFFFFFFFFFFFF OK", "102"), None);
    }
}
