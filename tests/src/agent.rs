//! The agent's configuration on the lab's host: where the host and the devvm are, and their keys as an admin would look them up.

use std::fs;
use std::path::Path;

use crate::error::{Context, Error, Result};
use crate::host::Host;

/// Where the agent keeps its state.
pub const STATE: &str = "/var/lib/breakglass";
/// Its configuration.
pub const CONFIG: &str = "/etc/breakglass/config.toml";

/// Writes the configuration, its keys behind the ssh-agent at this socket, and empties the state folder. `more` stands at its end.
pub fn configure(host: &Host, socket: &str, more: &str) -> Result<()> {
    let host_key = public(Path::new("/etc/ssh/ssh_host_ed25519_key.pub"))?;
    let signing_key = public(Path::new("/etc/pve-verb/signing_key.pub"))?;
    let guest_key = public(&host.inside.image.known_hosts())?;
    fs::create_dir_all("/etc/breakglass").context("create /etc/breakglass")?;
    let _from_before = fs::remove_dir_all(STATE);
    fs::create_dir_all(STATE).context(format!("create {STATE}"))?;
    let text = format!(
        "[host]\naddress = \"127.0.0.1:22\"\nuser = \"breakglass\"\nhost_key = \"{host_key}\"\nsigning_key = \"{signing_key}\"\n\
         [devvm]\naddress = \"127.0.0.1:2222\"\nuser = \"breakglass\"\nhost_key = \"{guest_key}\"\nsudo = true\n\
         [ssh]\nauth_sock = \"{socket}\"\n[state]\ndir = \"{STATE}\"\n{more}"
    );
    fs::write(CONFIG, text).context(format!("write {CONFIG}"))
}

/// The first ed25519 key of a file, as its two first words.
fn public(file: &Path) -> Result<String> {
    let text = fs::read_to_string(file).context(format!("read {}", file.display()))?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let key = words.windows(2).find(|two| two[0] == "ssh-ed25519").map(|two| two.join(" "));
    key.ok_or_else(|| Error::new(format!("{} has no ed25519 key", file.display()), "Look at what wrote it"))
}
