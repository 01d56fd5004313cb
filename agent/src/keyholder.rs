//! `breakglass keyholder`: a process of its own that holds the SSH keys in locked memory and signs logins with them, over the
//! ssh-agent protocol on a socket. The only part that opens key files or talks to Vault; it talks to nothing else.
//!
//! ```text
//!  key files ──┐                                   ┌── list: public keys
//!              ├──> Ring (locked, wiped) ──socket──┤
//!  Vault ──────┘      vault.rs, keys.rs   serve.rs └── sign: a login with one of them, and nothing else (meant.rs), each logged
//! ```
//!
//! Whoever reaches the socket can log in while they reach it, and can't take a key away. What they can't do is sign anything but a
//! login: a key here never becomes a grant's (docs/adr/0026).

use std::path::PathBuf;
use std::time::Duration;

use proto::Message;
use serde::Deserialize;
use tracing::{info, warn};

#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod harden;
mod keys;
mod meant;
mod serve;
mod socket;
mod vault;

use keys::Ring;

/// Between two looks at Vault after one that failed: doubled up to the last.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// `[keyholder]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where the socket is made. Its folder has to be there.
    pub socket: PathBuf,
    /// The group that may use the socket besides our own user; absent: our own user alone.
    pub group: Option<u32>,
    /// OpenSSH private keys, ed25519, without a passphrase.
    pub key_files: Vec<PathBuf>,
    /// `[vault]`, a section of its own in the file.
    #[serde(skip)]
    pub vault: Option<Vault>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { socket: "/run/keyholder/agent.sock".into(), group: None, key_files: Vec::new(), vault: None }
    }
}

/// `[vault]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vault {
    /// `https://IP:PORT`.
    pub address: String,
    /// The role of its Kubernetes login.
    pub role: String,
    /// Where that login is mounted: `auth/MOUNT/login`.
    #[serde(default = "kubernetes")]
    pub mount: String,
    /// The API path of the secret in a KV version 2 store, such as `secret/data/breakglass`. Each of its fields is a private key.
    pub path: String,
    /// The service account's token.
    #[serde(default = "service_account")]
    pub jwt_file: PathBuf,
    /// The certificates that Vault's own has to be signed by; absent: the public ones.
    pub ca_file: Option<PathBuf>,
}

fn kubernetes() -> String {
    "kubernetes".to_owned()
}

fn service_account() -> PathBuf {
    "/var/run/secrets/kubernetes.io/serviceaccount/token".into()
}

/// Holds the keys and serves the socket until SIGTERM or SIGINT.
///
/// # Errors
/// Why it could not begin: a key file that is none, a socket that can't be made, no key and no Vault to get one from.
pub fn run(settings: &Settings) -> Result<(), Message> {
    harden::close()?;
    let locked = harden::lock();
    let ring = Ring::default();
    ring.put("files", settings.key_files.iter().map(|file| keys::of_file(file)).collect::<Result<_, _>>()?);
    let vault = settings.vault.clone().map(vault::Client::new).transpose()?;
    if vault.is_none() && ring.is_empty() {
        return Err(Message::new("The keyholder has no key to hold.", "Name key_files or [vault] in the configuration."));
    }
    let fault = |error: std::io::Error| Message::new(format!("The keyholder could not begin: {error}."), "Start it again.");
    // One thread: the stacks of more would be locked memory for nothing.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(fault)?;
    runtime.block_on(async {
        let socket = socket::Socket::bind(&settings.socket, settings.group)?;
        info!(event = "keyholder", socket = %settings.socket.display(), keys = ring.len(), memory_locked = locked.is_ok(), "serving");
        if let Err(why) = locked {
            warn!(event = "degraded", "{why}");
        }
        let refreshed = async {
            match vault {
                Some(client) => refresh(client, &ring).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = serve::serve(socket.listener(), &ring) => {}
            () = refreshed => {}
            () = stopped() => info!(event = "keyholder", "stopped: the keys are wiped"),
        }
        Ok(())
    })
}

/// Keeps Vault's keys in the ring as they are there: at each renewal of the login they are read again. A Vault that fails takes
/// no key away: break-glass has to work on the day on which Vault does not.
async fn refresh(mut client: vault::Client, ring: &Ring) {
    let mut pause = AGAIN.0;
    loop {
        match client.keys().await {
            Ok((keys, next)) => {
                info!(event = "vault", keys = keys.len(), next_s = next.as_secs(), "the keys were read");
                ring.put("vault", keys);
                pause = AGAIN.0;
                tokio::time::sleep(next).await;
            }
            Err(why) => {
                warn!(event = "vault", held = ring.len(), again_s = pause.as_secs(), "{why}");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(AGAIN.1);
            }
        }
    }
}

/// Either signal that asks a process to end.
async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut term), Ok(mut int)) => tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} },
        _ => std::future::pending().await,
    }
}
