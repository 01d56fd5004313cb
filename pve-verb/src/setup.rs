//! What an admin does once on a host: make the keys, print the lines that go elsewhere, and ask whether all is well.
//!
//! Runs as root at a terminal, never for a caller; the command line itself is the `cli`'s. Nothing here changes a file of sshd's: what
//! is printed is for the admin to place.

use proto::{Message, Timestamp, principal};
use std::path::{Path, PathBuf};

use crate::sign::Signer;

mod authorize;
mod check;
mod init;
mod public_key;
mod rotate;

pub use authorize::{Policy, authorize};
pub use check::{Check, Level, check};
pub use init::init;
pub use rotate::rotate;
#[cfg(test)]
pub(crate) use rotate::rotate_at;

/// Where the host is: `/` and root, and in tests a folder that looks like it and whoever runs them.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) root: PathBuf,
    pub(crate) owner: u32,
}

impl Site {
    fn host() -> Self {
        Self { root: PathBuf::from("/"), owner: 0 }
    }

    fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }
}

/// The line of an `allowed_signers` file under which this host's signatures are checked, for its own purposes only.
pub fn allowed_signers_line(node: &str, signer: &Signer) -> String {
    format!("{} {NAMESPACES} {}", principal(node), signer.public_openssh())
}

/// The line of a key that signs no more: what it signed before stays checkable (`ssh-keygen -Y verify -O verify-time=…`).
fn retired_signers_line(node: &str, signer: &Signer, at: Timestamp) -> String {
    let until: String = at.to_string().chars().take(19).filter(char::is_ascii_digit).collect();
    format!("{} {NAMESPACES},valid-before=\"{until}Z\" {}", principal(node), signer.public_openssh())
}

/// A host's key is good for its own purposes only.
const NAMESPACES: &str = "namespaces=\"pve-verb-receipt,pve-verb-manifest,pve-verb-log\"";

fn need_root() -> Result<(), Message> {
    if rustix::process::geteuid().is_root() {
        Ok(())
    } else {
        Err(Message::new("This needs root, because only root may own the keys.", "Run it again as root, on the PVE host."))
    }
}

fn failed(doing: &str, path: &Path, why: impl std::fmt::Display) -> Message {
    Message::new(format!("{doing} {} failed: {why}.", path.display()), "Repair that, then run this again; what was done already stays.")
}
