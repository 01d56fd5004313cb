//! The configuration: one TOML file, read once at the door into types. Unknown keys are refused by name, secrets are in no key of it.
//!
//! A section that a command does not need may be absent: the keyholder's container has no `[host]`, and the server's no `[keyholder]`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use proto::{Message, Vmid};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use crate::keyholder;
use crate::signers::Pinned;

mod web;

pub use web::Web;

/// Where it is, unless `--config` says otherwise.
pub const DEFAULT: &str = "/etc/breakglass/config.toml";

/// No configuration is longer.
const MAX: u64 = 256 * 1024;

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The Proxmox VE host.
    pub host: Option<Host>,
    /// The devvm, as SSH reaches it.
    pub devvm: Option<Devvm>,
    /// Where the SSH keys are.
    pub ssh: Ssh,
    /// `[claude]`.
    pub claude: crate::claude::Settings,
    /// `[budget]`.
    pub budget: crate::claude::Budget,
    /// `[watch]`; absent: off.
    pub watch: Option<Watch>,
    /// `[keyholder]`, with what `[vault]` says in it.
    pub keyholder: Option<keyholder::Settings>,
    /// `[vault]`.
    vault: Option<keyholder::Vault>,
    /// `[web]`.
    pub web: Web,
    /// Where incidents and receipts are.
    pub state: State,
}

/// `[host]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Its sshd. An address, no name: no DNS is needed to reach it.
    #[serde(deserialize_with = "address")]
    pub address: SocketAddr,
    /// The account with the forced command.
    #[serde(default = "root")]
    pub user: String,
    /// The VM that the key of the verbs is for, as its line on the host says.
    #[serde(default = "the_devvm")]
    pub vmid: Vmid,
    /// sshd's host key.
    #[serde(deserialize_with = "public_key")]
    pub host_key: ssh_key::PublicKey,
    /// pve-verb's: receipts are signed by it.
    #[serde(deserialize_with = "pinned")]
    pub signing_key: Pinned,
}

/// `[devvm]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Devvm {
    /// Its sshd.
    #[serde(deserialize_with = "address")]
    pub address: SocketAddr,
    /// The account.
    #[serde(default = "breakglass")]
    pub user: String,
    /// sshd's host key, until a person accepts another.
    #[serde(deserialize_with = "public_key")]
    pub host_key: ssh_key::PublicKey,
    /// Whether commands run under `sudo -n`.
    #[serde(default = "yes")]
    pub sudo: bool,
}

/// `[ssh]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ssh {
    /// The ssh-agent's socket; absent: `$SSH_AUTH_SOCK`.
    pub auth_sock: Option<PathBuf>,
}

/// `[watch]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Between two polls of `status`, in seconds: 10 to 60, so that a wedge is noticed within two minutes.
    #[serde(default = "minute")]
    pub interval_s: u64,
    /// What a change for the worse does.
    #[serde(default)]
    pub on: On,
    /// Where it is told, by an HTTP POST.
    pub notify_url: Option<String>,
    /// The certificates that the receiver's own has to be signed by; absent: the public ones.
    pub ca_file: Option<PathBuf>,
}

/// `watch.on`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum On {
    /// Told, and nothing else.
    #[default]
    Notify,
    /// Told, and an incident is opened.
    Incident,
}

/// `[state]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct State {
    /// The folder.
    pub dir: PathBuf,
    /// What the incidents in it may take; the oldest go first.
    pub keep_bytes: u64,
}

impl Default for State {
    fn default() -> Self {
        Self { dir: "/var/lib/breakglass".into(), keep_bytes: 1 << 30 }
    }
}

fn root() -> String {
    "root".to_owned()
}

const fn the_devvm() -> Vmid {
    Vmid::DEVVM
}

fn breakglass() -> String {
    "breakglass".to_owned()
}

const fn yes() -> bool {
    true
}

const fn minute() -> u64 {
    60
}

fn address<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map_err(|_| {
        let text = proto::escape_cut(text.as_bytes(), 80);
        D::Error::custom(format!("\"{text}\" is no address: write IP:PORT, such as 192.0.2.10:22"))
    })
}

fn public_key<'de, D: Deserializer<'de>>(from: D) -> Result<ssh_key::PublicKey, D::Error> {
    let text = String::deserialize(from)?;
    ssh_key::PublicKey::from_openssh(&text).map_err(|error| D::Error::custom(format!("not a public key ({error})")))
}

fn pinned<'de, D: Deserializer<'de>>(from: D) -> Result<Pinned, D::Error> {
    Pinned::read(&String::deserialize(from)?).map_err(D::Error::custom)
}

impl Config {
    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn load(path: &Path) -> Result<Self, Message> {
        use std::io::Read;
        let bad = |why: String| {
            Message::new(
                format!("The configuration {} can't be used: {why}.", path.display()),
                "Correct it, or name another with --config.",
            )
        };
        let mut text = String::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(MAX).read_to_string(&mut text));
        read.map_err(|error| bad(error.to_string()))?;
        Self::parse(&text).map_err(|why| bad(why.trim_end_matches('.').to_owned()))
    }

    /// Reads its text.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut config: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1);
            format!("line {line}: {}", error.message().replace('\n', " "))
        })?;
        match (&mut config.keyholder, config.vault.take()) {
            (Some(keyholder), vault) => keyholder.vault = vault,
            (None, Some(_)) => return Err("[vault] is there for [keyholder], which is not".to_owned()),
            (None, None) => {}
        }
        if !(config.budget.usd.is_finite() && config.budget.usd >= 0.0) {
            return Err("budget.usd is not an amount of money".to_owned());
        }
        if let Some(watch) = &config.watch
            && !(10..=60).contains(&watch.interval_s)
        {
            return Err("watch.interval_s is not 10 to 60".to_owned());
        }
        Ok(config)
    }

    /// A section that this command needs.
    ///
    /// # Errors
    /// It is not there.
    pub fn need<'a, T>(section: Option<&'a T>, name: &str) -> Result<&'a T, Message> {
        section.ok_or_else(|| Message::new(format!("The configuration has no [{name}]."), format!("This command needs it: add [{name}].")))
    }
}

#[cfg(test)]
mod tests;
