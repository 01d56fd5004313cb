//! What an admin does once on a host: make the keys, print the lines that go elsewhere, and ask whether all is well.
//!
//! Runs as root at a terminal, never for a caller; the command line itself is the `cli`'s.

use proto::principal;

use crate::sign::Signer;

/// The line of an `allowed_signers` file under which this host's signatures are checked, for its own purposes only.
pub fn allowed_signers_line(node: &str, signer: &Signer) -> String {
    format!("{} namespaces=\"pve-verb-receipt,pve-verb-manifest,pve-verb-log\" {}", principal(node), signer.public_openssh())
}
