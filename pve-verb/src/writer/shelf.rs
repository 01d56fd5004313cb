//! The shelf: the bundles of one VM on disk, in the order in which the audit log learned of them, with their ages.
//!
//! The order and the ages stand in `index.json` beside the bundles: a name holds a time that the host's clock said, and a clock can be
//! wrong. A bundle is entered at the first call that ends after it was made, with the number of that call's last record; it grows older
//! by the time that the host is up, as this program sees it. Which one has to go is not decided here.

use proto::{BundleName, Vmid};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io;
use std::path::Path;

use super::{Reply, Root, durable};
use crate::tree::Tree;

/// The index's name beside the bundles.
pub(crate) const INDEX: &str = "index.json";
/// The longest index.
const MOST: u64 = 4 << 20;
/// What a bundle is called while it is removed; like `.partial`, nobody takes it for a bundle.
const DROPPED: &str = ".dropped";

/// A bundle on the shelf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shelved {
    /// Its name.
    pub name: BundleName,
    /// The number of the record at which it was entered: for its own request, that request's last.
    pub seq: u64,
    /// Its files' bytes together.
    pub bytes: u64,
    /// For how long the host was up since, in milliseconds.
    pub aged_ms: u64,
    /// Whether its request said, at its end, that it never had an intent. Nobody else can: one that was killed may have had one, and one
    /// that is at work may have one at any moment. So what is not known to be idle counts as a mutation's.
    #[serde(default)]
    pub idle: bool,
}

/// CLOCK_BOOTTIME, in one boot: the wall clock may jump, this one only stops when the host is off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uptime {
    /// Which boot.
    pub boot_id: String,
    /// Milliseconds since it.
    pub boot_ms: u64,
}

impl Uptime {
    /// How long the host was up between the two, as far as that is certain: across a boot, only since then.
    fn since(&self, before: Option<&Self>) -> u64 {
        match before {
            Some(before) if before.boot_id == self.boot_id => self.boot_ms.saturating_sub(before.boot_ms),
            Some(_) => self.boot_ms,
            None => 0,
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Index {
    seen: Option<Uptime>,
    bundles: Vec<Shelved>,
}

/// What an index says; a damaged one says nothing.
pub(crate) fn index(bytes: &[u8]) -> Vec<Shelved> {
    serde_json::from_slice::<Index>(bytes).unwrap_or_default().bundles
}

impl Root {
    pub(super) fn shelve(&self, vmid: Vmid, seq: u64, own: Option<(&BundleName, bool)>, now: &Uptime) -> io::Result<Reply> {
        let shelf = self.shelf(vmid);
        durable::folder(&shelf)?;
        let lock = self.shelf_lock()?;
        let file = shelf.join(INDEX);
        let before = durable::read(&file, MOST).ok().flatten().unwrap_or_default();
        // Without an index nobody knows how old anything is: all bundles are then as young as their first sight.
        let mut index: Index = serde_json::from_slice(&before).unwrap_or_default();
        let older = now.since(index.seen.as_ref());
        let Reply::Bundles { names } = self.bundle_list(vmid)? else { return Err(io::Error::other("the shelf can't be listed")) };
        let here: HashSet<&BundleName> = names.iter().collect();
        index.bundles.retain(|b| here.contains(&b.name));
        for bundle in &mut index.bundles {
            bundle.aged_ms = bundle.aged_ms.saturating_add(older);
            if let Some((_, idle)) = own.filter(|(name, _)| *name == &bundle.name) {
                // Another call met it before its own request came to its end.
                (bundle.seq, bundle.idle) = (seq, idle);
            }
        }
        let known: HashSet<BundleName> = index.bundles.iter().map(|b| b.name.clone()).collect();
        let mut new: Vec<_> = names.into_iter().filter(|name| !known.contains(name)).collect();
        // Whatever else is new here was made before: by a call that was refused or killed, or that found no disk.
        new.sort_by_key(|name| own.is_some_and(|(own, _)| own == name));
        for name in new {
            let bytes = size(&shelf.join(name.as_str()))?;
            let idle = own.is_some_and(|(own, idle)| idle && own == &name);
            index.bundles.push(Shelved { name, seq, bytes, aged_ms: 0, idle });
        }
        index.seen = Some(now.clone());
        let after = serde_json::to_vec(&index)?;
        if after != before {
            durable::replace(&file, &after)?;
        }
        // Removing takes its time, and somebody's evidence may be waiting to be carried.
        drop(lock);
        sweep(&shelf)?;
        Ok(Reply::Shelf { bundles: index.bundles })
    }

    pub(super) fn bundle_drop(&self, vmid: Vmid, name: &BundleName) -> io::Result<Reply> {
        let shelf = self.shelf(vmid);
        let lock = self.shelf_lock()?;
        let bundles = index(&durable::read(&shelf.join(INDEX), MOST)?.unwrap_or_default());
        if bundles.iter().all(|b| b.name != *name) || bundles.last().is_some_and(|b| b.name == *name) {
            return Err(io::Error::other("a bundle is dropped by the index only, and never the newest"));
        }
        let dropped = shelf.join(format!("{name}{DROPPED}"));
        durable::remove_folder(&dropped)?;
        // From here on it is no bundle any more, whole or half.
        std::fs::rename(shelf.join(name.as_str()), &dropped)?;
        durable::sync_folder(&shelf)?;
        drop(lock);
        durable::remove_folder(&dropped)?;
        Ok(Reply::Done {})
    }
}

/// What a killed drop left.
fn sweep(shelf: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(shelf)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name.to_str().and_then(|n| n.strip_suffix(DROPPED)).is_some_and(|n| n.parse::<BundleName>().is_ok());
        if ours {
            durable::remove_folder(&entry.path())?;
        }
    }
    Ok(())
}

fn size(bundle: &Path) -> io::Result<u64> {
    let entries = Tree::open(bundle)?.map(|tree| tree.entries()).transpose()?.unwrap_or_default();
    Ok(entries.iter().filter_map(|e| e.bytes).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_request_says_that_a_bundle_is_of_no_mutation() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path().to_owned());
        let shelf = root.shelf(Vmid::DEVVM);
        let named = |n: u32| -> BundleName { format!("20261121T003000.123Z-cycle-{n:08x}").parse().unwrap() };
        let make = |n| std::fs::create_dir_all(shelf.join(named(n).as_str())).unwrap();
        let shelve = |seq, own: Option<u32>, idle| {
            let own = own.map(named);
            let now = Uptime { boot_id: "a".to_owned(), boot_ms: 5_000 };
            match root.shelve(Vmid::DEVVM, seq, own.as_ref().map(|name| (name, idle)), &now).unwrap() {
                Reply::Shelf { bundles } => bundles.into_iter().map(|b| (b.name, b.idle)).collect::<Vec<_>>(),
                other => panic!("{other:?}"),
            }
        };
        // Bundle 1 is of a request that is at work, or was killed; 2 says of itself that it had no intent.
        make(1);
        make(2);
        assert_eq!(shelve(10, Some(2), true), [(named(1), false), (named(2), true)]);
        assert_eq!(shelve(20, Some(1), true), [(named(1), true), (named(2), true)], "its own end comes later");
        make(3);
        assert_eq!(shelve(30, None, true), [(named(1), true), (named(2), true), (named(3), false)], "nobody's word");
        // An index of an earlier version says nothing about it.
        let text = std::fs::read_to_string(shelf.join(INDEX)).unwrap();
        std::fs::write(shelf.join(INDEX), text.replace(",\"idle\":true", "").replace(",\"idle\":false", "")).unwrap();
        assert_eq!(shelve(40, None, true), [(named(1), false), (named(2), false), (named(3), false)]);
    }
}
