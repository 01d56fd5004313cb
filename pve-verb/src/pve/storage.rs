//! Whether the VM's volumes are there, as far as a look at a path can prove that one is not. Reader and pure parsers; runs in the probe
//! helper, because a path may lie on storage that hangs.
//!
//! Only a plain folder (`dir:`) can prove an absence: a logical volume may only be inactive, a network share only not mounted, and PVE
//! brings both up when it starts the VM. Everything else is not known, and does not count.

use proto::Vmid;
use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{config_text, current, volumes};
use crate::host::path::PVE;
use crate::procfs::read_text;

/// The volumes that a start of this VM would use and that are proved to be missing: `scsi0 (local:102/vm-102-disk-0.qcow2)`.
///
/// # Errors
/// Where the configuration or `storage.cfg` can't be read.
pub fn missing(vmid: Vmid) -> std::io::Result<Vec<String>> {
    let config = config_text(vmid)?;
    let storages = read_text(format!("{PVE}/storage.cfg"))?;
    let folders = folders(&storages);
    let gone = |(key, volume): (String, String)| {
        let path = path_of(&volume, &folders)?;
        let absent = matches!(std::fs::symlink_metadata(path), Err(e) if e.kind() == std::io::ErrorKind::NotFound);
        absent.then(|| format!("{key} ({})", proto::escape_cut(volume.as_bytes(), 120)))
    };
    Ok(volumes(&at_start(&config)).into_iter().filter_map(gone).collect())
}

/// The configuration as a start would use it: what is pending is applied.
fn at_start(config: &str) -> String {
    let mut values: BTreeMap<String, String> = current(config).into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let pending = config.lines().skip_while(|l| l.trim() != "[PENDING]").skip(1).take_while(|l| !l.starts_with('['));
    for (key, value) in pending.filter_map(|l| l.split_once(':')) {
        if key.trim() == "delete" {
            for word in value.split([',', ' ', ';']).filter(|w| !w.is_empty()) {
                // A leading `!` forces; it is not part of the name.
                values.remove(word.trim_start_matches('!'));
            }
        } else {
            values.insert(key.trim().to_owned(), value.trim().to_owned());
        }
    }
    values.into_iter().map(|(k, v)| format!("{k}: {v}\n")).collect()
}

/// The `dir:` storages by name, with their path. One that is a mount point may only be unmounted, and is left out.
fn folders(storage_cfg: &str) -> BTreeMap<String, PathBuf> {
    let mut all = BTreeMap::new();
    let mut inside: Option<String> = None;
    for line in storage_cfg.lines() {
        if !line.starts_with([' ', '\t']) {
            inside = line.split_once(':').filter(|(kind, _)| *kind == "dir").map(|(_, name)| name.trim().to_owned());
            continue;
        }
        let (Some(name), Some((key, value))) = (&inside, line.trim().split_once(char::is_whitespace)) else { continue };
        match key {
            "path" => drop(all.insert(name.clone(), PathBuf::from(value.trim()))),
            "is_mountpoint" if !matches!(value.trim(), "0" | "no") => {
                all.remove(name);
                inside = None;
            }
            _ => {}
        }
    }
    all
}

/// Where a volume of a `dir:` storage lies; none for any other, and for a name that would lead elsewhere.
fn path_of(volume: &str, folders: &BTreeMap<String, PathBuf>) -> Option<PathBuf> {
    let (storage, name) = volume.split_once(':')?;
    let folder = folders.get(storage)?;
    let mut parts = name.split('/');
    let (Some(first), Some(file), None) = (parts.next(), parts.next(), parts.next()) else { return None };
    if file.is_empty() || first == ".." || file == ".." {
        return None;
    }
    match first {
        "iso" => Some(folder.join("template/iso").join(file)),
        vmid if vmid.bytes().all(|b| b.is_ascii_digit()) => Some(folder.join("images").join(vmid).join(file)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORAGE: &str = "dir: local\n\tpath /var/lib/vz\n\tcontent iso,images\n\nlvmthin: local-lvm\n\tthinpool data\n\tvgname pve\n\ndir: usb\n\tpath /mnt/usb\n\tis_mountpoint 1\n";

    #[test]
    fn only_a_plain_folder_proves_an_absence() {
        let folders = folders(STORAGE);
        let at = |volume: &str| path_of(volume, &folders).map(|p| p.display().to_string());
        assert_eq!(at("local:102/vm-102-disk-0.qcow2").as_deref(), Some("/var/lib/vz/images/102/vm-102-disk-0.qcow2"));
        assert_eq!(at("local:iso/debian.iso").as_deref(), Some("/var/lib/vz/template/iso/debian.iso"));
        for unknown in [
            "local-lvm:vm-102-disk-0",
            "usb:102/vm-102-disk-0.raw",
            "nfs:102/x.raw",
            "/dev/sda",
            "none",
            "local:102/../../etc/passwd",
            "local:../x",
            "local:102/",
        ] {
            assert_eq!(at(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn what_is_pending_counts_as_it_will_at_the_start() {
        let config = "scsi0: local:102/a.raw\nscsi1: local:102/b.raw\n[PENDING]\ndelete: scsi1\nscsi0: local:102/new.raw,size=1G\n\n[snap]\nscsi0: local:102/old.raw\n";
        assert_eq!(volumes(&at_start(config)), [("scsi0".to_owned(), "local:102/new.raw".to_owned())]);
    }
}
