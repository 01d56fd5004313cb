//! Our own files: who owns them, who else could write them, and whether the disk takes anything.

use rustix::fs::statvfs;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::{Check, Level, Site, bounded};
use crate::config::Config;
use crate::host::path;
use crate::sign::Signer;
use crate::trusted;

/// Below this the next bundles may not fit.
const FREE: u64 = 1 << 30;

/// Owner and mode of every folder of ours, and of every folder above it: whoever may rename one of those owns what is below.
pub(super) fn folders(site: &Site) -> Vec<Check> {
    [("folder /etc/pve-verb", path::ETC), ("folder /var/lib/pve-verb", path::VAR), ("folder /var/log/pve-verb", path::LOG)]
        .into_iter()
        .map(|(name, folder)| folder_check(site, name, folder))
        .collect()
}

fn folder_check(site: &Site, name: &'static str, folder: &str) -> Check {
    let path = site.path(folder);
    let Ok(found) = std::fs::symlink_metadata(&path) else {
        return Check::bad(name, format!("{folder} does not exist."), "Run pve-verb init.");
    };
    if !found.is_dir() || found.uid() != site.owner || found.mode() & 0o077 != 0 {
        return Check::bad(
            name,
            format!("{folder} is not a folder that root alone can enter (uid {}, mode {:04o}).", found.uid(), found.mode() & 0o7777),
            "Run pve-verb init, which puts it right.",
        );
    }
    match above(site, &path) {
        Some((level, what)) => Check {
            name,
            level,
            message: proto::Message::new(what, "Take the write permission away with chmod, or give it back to root with chown."),
        },
        None => Check::ok(name, format!("{folder} and every folder above it belong to root.")),
    }
}

/// The worst folder above this path that somebody else could change.
fn above(site: &Site, path: &Path) -> Option<(Level, String)> {
    let inside = |p: &&Path| p.starts_with(&site.root);
    let judge = |folder: &Path| {
        let found = std::fs::metadata(folder).ok()?;
        let shown = folder.display();
        // Mode 1777 would still let nobody rename what is root's.
        let sticky = found.mode() & 0o1000 != 0;
        if found.uid() != site.owner {
            return Some((Level::Bad, format!("{shown} belongs to uid {}, who can replace what is below.", found.uid())));
        }
        if found.mode() & 0o002 != 0 && !sticky {
            return Some((Level::Bad, format!("{shown} can be written by everybody.")));
        }
        (found.mode() & 0o020 != 0 && !sticky).then(|| (Level::Weak, format!("{shown} can be written by the group {}.", found.gid())))
    };
    path.ancestors().skip(1).take_while(inside).filter_map(judge).max()
}

/// `/usr/sbin/pve-verb`: sshd runs it as root.
pub(super) fn binary(site: &Site) -> Check {
    let name = "binary";
    let path = site.path("/usr/sbin/pve-verb");
    let Ok(found) = std::fs::symlink_metadata(&path) else {
        return Check::bad(
            name,
            "/usr/sbin/pve-verb does not exist, so no key can run it.",
            "Install the package, or copy the binary there with mode 0755.",
        );
    };
    if !found.is_file() || found.uid() != site.owner || found.mode() & 0o7777 != 0o755 {
        return Check::bad(
            name,
            format!("/usr/sbin/pve-verb is not a file of root's with mode 0755 (uid {}, mode {:04o}).", found.uid(), found.mode() & 0o7777),
            "Install the package again.",
        );
    }
    match above(site, &path) {
        Some((level, what)) => Check { name, level, message: proto::Message::new(what, "Give that folder back to root alone.") },
        None => Check::ok(name, "/usr/sbin/pve-verb is root's with mode 0755."),
    }
}

/// The signing key and its public half.
pub(super) fn signing_key(site: &Site) -> Check {
    let name = "signing key";
    let signer = match Signer::load_from(&site.path(path::SIGNING_KEY), site.owner) {
        Ok(signer) => signer,
        Err(why) => {
            return Check::bad(
                name,
                format!("Receipts are unsigned, because {why}."),
                "Run pve-verb init, and repair the key if it says that there is one.",
            );
        }
    };
    let public = trusted::read(&site.path(path::SIGNING_PUB), site.owner, trusted::NOT_WRITABLE, 16 * 1024)
        .ok()
        .and_then(|b| String::from_utf8(b).ok());
    match public {
        Some(text) if text.starts_with(&signer.public_openssh()) => {
            Check::ok(name, format!("The signing key {} is readable and matches its public half.", signer.fingerprint()))
        }
        _ => Check::bad(
            name,
            format!("{} is not the public half of the signing key.", path::SIGNING_PUB),
            "Run pve-verb init, which writes it anew.",
        ),
    }
}

/// `config.toml`.
pub(super) fn config(site: &Site) -> Check {
    let name = "configuration";
    match Config::load_from(&site.path(path::CONFIG), site.owner).1 {
        None => Check::ok(name, format!("{} is usable, or absent.", path::CONFIG)),
        Some(why) => Check::bad(name, format!("{why}."), "Repair the file, or remove it."),
    }
}

/// Whether the disk takes a file, and how much more it would.
pub(super) fn disk(site: &Site) -> Check {
    let name = "disk";
    let folder = site.path(path::VAR);
    let tried = bounded(move || {
        let probe = folder.join(".check");
        let _ = std::fs::remove_file(&probe);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&probe)?;
        let written = file.write_all(b"check").and_then(|()| file.sync_all());
        std::fs::remove_file(&probe)?;
        written?;
        let space = statvfs(&folder)?;
        std::io::Result::Ok(space.f_bavail.saturating_mul(space.f_frsize))
    });
    match tried {
        None => Check::bad(
            name,
            format!("{} did not take a file within three seconds.", path::VAR),
            "Look at the storage; until then evidence stays on tmpfs.",
        ),
        Some(Err(e)) => Check::bad(
            name,
            format!("{} does not take a file: {e}.", path::VAR),
            "Make room or repair the file system; until then evidence stays on tmpfs.",
        ),
        Some(Ok(free)) if free < FREE => {
            Check::weak(name, format!("{} MiB are free below {}.", free >> 20, path::VAR), "Make room: a bundle and the log want a GiB.")
        }
        Some(Ok(free)) => Check::ok(name, format!("The disk takes files, and {} MiB are free.", free >> 20)),
    }
}
