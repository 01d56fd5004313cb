//! `init`: folders, the signing key, its public half, and the line for whoever checks signatures. Run again it changes nothing that is
//! well, and it never replaces a key: receipts that were signed with it must stay checkable.

use proto::{Message, principal};
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, open, renameat_with};
use ssh_key::{LineEnding, PrivateKey, private::Ed25519Keypair};
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use super::{Site, allowed_signers_line, failed, need_root};
use crate::config::Config;
use crate::host::{self, path};
use crate::sign::Signer;

/// The folders that are ours alone.
const FOLDERS: [&str; 6] = [path::ETC, path::VAR, path::EVIDENCE, path::REQUESTS, path::GRANTS, path::LOG];

/// Makes what is missing and prints the `allowed_signers` line.
///
/// # Errors
/// What could not be made, and what to do about it.
pub fn init(out: &mut dyn Write) -> Result<(), Message> {
    need_root()?;
    let (config, _) = Config::load();
    init_at(&Site::host(), config.host.node.as_str(), out)
}

fn init_at(site: &Site, node: &str, out: &mut dyn Write) -> Result<(), Message> {
    for folder in FOLDERS {
        let folder = site.path(folder);
        private_folder(&folder, site.owner).map_err(|e| failed("Making", &folder, e))?;
    }
    let key = site.path(path::SIGNING_KEY);
    if !key.exists() {
        let text = new_key(node).map_err(|e| failed("Making", &key, e))?;
        place(&key, text.as_bytes(), 0o600, RenameFlags::NOREPLACE).map_err(|e| failed("Writing", &key, e))?;
    }
    let signer = Signer::load_from(&key, site.owner).map_err(|why| {
        Message::new(
            format!("There is a signing key that can't be used: {why}."),
            "It is not replaced, as old receipts need it: repair it, or move it away and run this again.",
        )
    })?;
    let public = site.path(path::SIGNING_PUB);
    let line = format!("{} {}\n", signer.public_openssh(), principal(node));
    if std::fs::read_to_string(&public).ok().as_deref() != Some(line.as_str()) {
        place(&public, line.as_bytes(), 0o644, RenameFlags::empty()).map_err(|e| failed("Writing", &public, e))?;
    }
    writeln!(out, "{}", allowed_signers_line(node, &signer))
        .map_err(|e| Message::new(format!("The line could not be printed: {e}."), "Run this again."))
}

fn private_folder(path: &Path, owner: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let found = std::fs::symlink_metadata(path)?;
    if !found.is_dir() || found.uid() != owner {
        return Err(io::Error::other(format!("it is not a folder of uid {owner}'s")));
    }
    if found.mode() & 0o7777 != 0o700 {
        std::fs::set_permissions(path, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

pub(super) fn new_key(node: &str) -> Result<String, String> {
    let pair = Ed25519Keypair::from_seed(&host::random()?);
    let mut key = PrivateKey::from(pair);
    key.set_comment(principal(node));
    key.to_openssh(LineEnding::LF).map(|text| text.to_string()).map_err(|e| e.to_string())
}

/// Puts a file in its place whole, or not at all.
pub(super) fn place(path: &Path, bytes: &[u8], mode: u32, flags: RenameFlags) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let _ = std::fs::remove_file(&temporary);
    let open_flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file = File::from(open(&temporary, open_flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(bytes)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()?;
    renameat_with(CWD, &temporary, CWD, path, flags)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site() -> (tempfile::TempDir, Site) {
        let folder = tempfile::tempdir().unwrap();
        let site = Site { root: folder.path().to_owned(), owner: rustix::process::getuid().as_raw() };
        (folder, site)
    }

    fn run(site: &Site) -> Result<String, Message> {
        let mut out = Vec::new();
        init_at(site, "pve1", &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_second_run_changes_nothing_and_prints_the_same_line() {
        let (_folder, site) = site();
        let line = run(&site).unwrap();
        assert!(
            line.starts_with("pve-verb@pve1 namespaces=\"pve-verb-receipt,pve-verb-manifest,pve-verb-log\" ssh-ed25519 AAAA"),
            "{line}"
        );
        let key = std::fs::read(site.path(path::SIGNING_KEY)).unwrap();
        assert_eq!(run(&site).unwrap(), line);
        assert_eq!(std::fs::read(site.path(path::SIGNING_KEY)).unwrap(), key);
        let mode = |p: &str| std::fs::metadata(site.path(p)).unwrap().mode() & 0o7777;
        assert_eq!((mode(path::SIGNING_KEY), mode(path::SIGNING_PUB), mode(path::ETC), mode(path::LOG)), (0o600, 0o644, 0o700, 0o700));
    }

    #[test]
    fn two_hosts_have_two_keys() {
        let (one, other) = (site(), site());
        assert_ne!(run(&one.1).unwrap(), run(&other.1).unwrap());
    }

    #[test]
    fn a_broken_key_is_never_replaced() {
        let (_folder, site) = site();
        run(&site).unwrap();
        std::fs::write(site.path(path::SIGNING_KEY), "rubbish").unwrap();
        let message = run(&site).unwrap_err();
        assert!(message.what.contains("can't be used") && message.next.contains("not replaced"), "{message}");
        assert_eq!(std::fs::read(site.path(path::SIGNING_KEY)).unwrap(), b"rubbish");
    }

    #[test]
    fn a_wrong_public_half_and_a_wrong_mode_are_put_right() {
        let (_folder, site) = site();
        run(&site).unwrap();
        std::fs::write(site.path(path::SIGNING_PUB), "ssh-ed25519 AAAA other\n").unwrap();
        std::fs::set_permissions(site.path(path::ETC), Permissions::from_mode(0o755)).unwrap();
        let line = run(&site).unwrap();
        let key = line.split_whitespace().last().unwrap();
        assert!(std::fs::read_to_string(site.path(path::SIGNING_PUB)).unwrap().contains(key));
        assert_eq!(std::fs::metadata(site.path(path::ETC)).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn stock_ssh_keygen_reads_the_key() {
        let (_folder, site) = site();
        run(&site).unwrap();
        let answer = std::process::Command::new("ssh-keygen").arg("-y").arg("-f").arg(site.path(path::SIGNING_KEY)).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&answer.stdout), std::fs::read_to_string(site.path(path::SIGNING_PUB)).unwrap(), "{answer:?}");
    }
}
