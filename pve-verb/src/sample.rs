//! What the last `status` saw of the VM's disks, in /run: so that two polls show a stall that one look can't.

use proto::Vmid;
use std::time::Duration;

use crate::assess::Sample;
use crate::host;

/// An older sample says nothing about now.
const OLDEST: Duration = Duration::from_secs(15 * 60);
/// Two looks closer than this say nothing about progress.
const NEAREST: Duration = Duration::from_millis(1_000);

fn file(vmid: Vmid) -> String {
    format!("{}/status-{vmid}.json", host::path::RUN)
}

/// The last sample and how many milliseconds ago it was taken, where it is fit to compare with.
pub fn last(vmid: Vmid) -> Option<(Sample, u64)> {
    let sample: Sample = serde_json::from_slice(&std::fs::read(file(vmid)).ok()?).ok()?;
    let ago = Duration::from_millis(host::awake_ms().checked_sub(sample.at_ms?)?);
    (NEAREST..=OLDEST).contains(&ago).then_some((sample, u64::try_from(ago.as_millis()).ok()?))
}

/// Whether there is a sample of the same QEMU that is only too near to compare with.
pub fn is_fresh(vmid: Vmid, now: &Sample) -> bool {
    let last = std::fs::read(file(vmid)).ok().and_then(|bytes| serde_json::from_slice::<Sample>(&bytes).ok());
    last.is_some_and(|last| {
        last.qemu == now.qemu && last.at_ms.zip(now.at_ms).is_some_and(|(then, now)| (then..then + 1_000).contains(&now))
    })
}

/// Leaves this one for the next call. It is a help, not evidence: where it can't be left, the next `status` compares with nothing.
pub fn leave(vmid: Vmid, sample: &Sample) {
    let hidden = format!("{}.{}", file(vmid), std::process::id());
    if let Ok(bytes) = serde_json::to_vec(sample) {
        let _ = std::fs::write(&hidden, bytes).and_then(|()| std::fs::rename(&hidden, file(vmid)));
    }
}
