//! What the last two `status` saw of the VM's disks, in /run: so that two polls show a stall that one look can't, however soon the second
//! comes after the first.

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

/// The newest may be too near to compare with; the one before it is not.
const KEPT: usize = 2;

/// Those that were left, the newest first.
fn kept(vmid: Vmid) -> Vec<Sample> {
    std::fs::read(file(vmid)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// The last sample and how many milliseconds ago it was taken, where it is fit to compare with.
pub fn last(vmid: Vmid) -> Option<(Sample, u64)> {
    comparable(kept(vmid), host::awake_ms())
}

fn comparable(kept: Vec<Sample>, now_ms: u64) -> Option<(Sample, u64)> {
    kept.into_iter().find_map(|sample| {
        let ago = Duration::from_millis(now_ms.checked_sub(sample.at_ms?)?);
        (NEAREST..=OLDEST).contains(&ago).then_some((sample, u64::try_from(ago.as_millis()).ok()?))
    })
}

/// Whether this is a sample of the same QEMU that is too near to compare with.
fn is_near(last: &Sample, now: &Sample) -> bool {
    last.qemu == now.qemu && last.at_ms.zip(now.at_ms).is_some_and(|(then, now)| (then..then + 1_000).contains(&now))
}

/// Leaves this one for the next call, unless the newest is near: looks that follow each other quickly must not push out what they can
/// be compared with. It is a help, not evidence: where it can't be left, the next `status` compares with nothing.
pub fn leave(vmid: Vmid, sample: &Sample) {
    let kept = kept(vmid);
    if kept.first().is_some_and(|last| is_near(last, sample)) {
        return;
    }
    let all: Vec<&Sample> = std::iter::once(sample).chain(&kept).take(KEPT).collect();
    let hidden = format!("{}.{}", file(vmid), std::process::id());
    if let Ok(bytes) = serde_json::to_vec(&all) {
        let _ = std::fs::write(&hidden, bytes).and_then(|()| std::fs::rename(&hidden, file(vmid)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Sample {
        Sample { at_ms: Some(ms), ..Sample::default() }
    }

    #[test]
    fn of_two_samples_the_newest_that_is_far_enough_is_compared_with() {
        let with =
            |kept: &[u64], now| comparable(kept.iter().copied().map(at).collect(), now).map(|(sample, ago)| (sample.at_ms.unwrap(), ago));
        assert_eq!(with(&[9_000, 2_000], 10_000), Some((9_000, 1_000)));
        // The second look of two that come at once.
        assert_eq!(with(&[9_500, 2_000], 10_000), Some((2_000, 8_000)));
        assert_eq!(with(&[9_500], 10_000), None);
        // Of before a boot, and too old.
        assert_eq!(with(&[12_000], 10_000), None);
        assert_eq!(with(&[1_000], 10_000_000), None);
        assert!(is_near(&at(9_500), &at(10_000)) && !is_near(&at(9_000), &at(10_000)) && !is_near(&at(12_000), &at(10_000)));
    }
}
