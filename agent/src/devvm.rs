//! Commands on the devvm: SSH, sudo, a deadline. Its host key may change after a rebuild; then a person compares both fingerprints
//! and accepts the new one, and until then nothing runs.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use proto::Message;
use ssh_key::HashAlg;
use tokio::sync::mpsc::Sender;

use crate::config;
use crate::hands::{ExecAsk, ExecEnd, ExecNews};
use crate::host::{Ssh, keep};
use crate::ssh::{Failure, Said, Target};

/// The devvm, and the host key that counts now.
#[derive(Debug)]
pub struct Devvm {
    target: Mutex<Target>,
    sudo: bool,
    accepted: PathBuf,
}

impl Devvm {
    /// As the configuration says; a key that a person accepted since counts instead of the configured one.
    ///
    /// # Errors
    /// The accepted key's file can't be read.
    pub fn new(config: &config::Devvm, state: &Path) -> Result<Self, Message> {
        let accepted = state.join("devvm/known");
        let host_key = match std::fs::read_to_string(&accepted) {
            Ok(text) => ssh_key::PublicKey::from_openssh(&text).map_err(|error| {
                Message::new(format!("{} holds no host key: {error}.", accepted.display()), "Remove it; the configured key counts then.")
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => config.host_key.clone(),
            Err(error) => {
                return Err(Message::new(format!("{} can't be read: {error}.", accepted.display()), "Correct its owner and mode."));
            }
        };
        let target = Target { address: config.address, user: config.user.clone(), host_key, key_hint: "devvm" };
        Ok(Self { target: Mutex::new(target), sudo: config.sudo, accepted })
    }

    /// Where it is, and which key counts.
    pub(crate) fn target(&self) -> Target {
        self.target.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The fingerprint of the key that counts.
    pub fn fingerprint(&self) -> String {
        self.target().host_key.fingerprint(HashAlg::Sha256).to_string()
    }

    /// Accepts the key that the devvm shows, if it is the one whose fingerprint a person has compared and names here.
    ///
    /// # Errors
    /// It shows another one, or none, or the new key can't be kept.
    pub fn accept(&self, key: &ssh_key::PublicKey, compared: &str) -> Result<(), Message> {
        let shown = key.fingerprint(HashAlg::Sha256).to_string();
        if shown != compared {
            return Err(Message::new(
                format!("The devvm shows {shown}, and not {compared}."),
                "Compare again, on the devvm's own console: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub.",
            ));
        }
        let text =
            key.to_openssh().map_err(|error| Message::new(format!("The key can't be written: {error}."), "Report it: this is a bug."))?;
        let folder = self.accepted.parent().map_or(Ok(()), keep::folder);
        let kept = folder.and_then(|()| keep::write(&self.accepted, format!("{text}\n").as_bytes()));
        kept.map_err(|error| Message::new(format!("{} can't be written: {error}.", self.accepted.display()), "Make room, and try again."))?;
        self.target.lock().unwrap_or_else(PoisonError::into_inner).host_key = key.clone();
        Ok(())
    }
}

/// The command line for the devvm's shell. What runs under sudo is one shell with the command as its one argument.
fn line(command: &str, sudo: bool) -> String {
    let quoted = format!("'{}'", command.replace('\'', r"'\''"));
    if sudo { format!("sudo -n -- sh -c {quoted}") } else { format!("sh -c {quoted}") }
}

/// Runs a command there.
pub(crate) async fn exec(ssh: &Ssh, ask: ExecAsk, news: Sender<ExecNews>) -> ExecEnd {
    let Some(devvm) = ssh.devvm() else {
        return ExecEnd::Absent;
    };
    if ask.command.contains('\0') {
        return ExecEnd::Refused("the command holds a NUL byte".to_owned());
    }
    let until = Instant::now() + ask.timeout;
    let mut call = ssh.wire().call(&devvm.target(), line(&ask.command, devvm.sudo), until, false);
    while let Some(said) = call.next().await {
        match said {
            Said::Started => {}
            Said::Output { stderr, bytes } => _ = news.send(ExecNews { stderr, bytes }).await,
            Said::Exited(status) => return ExecEnd::Exited(u32::try_from(status).unwrap_or(255)),
            Said::Signalled(signal) => return ExecEnd::Signalled(signal),
            Said::Failed(Failure::Unreachable(why)) => return ExecEnd::Unreachable(why),
            Said::Failed(Failure::Refused(why) | Failure::NoKey(why)) => return ExecEnd::Refused(why),
            Said::Failed(Failure::HostKey { pinned, shown }) => return ExecEnd::HostKeyChanged { pinned, shown },
            Said::Failed(Failure::Lost(why)) => return ExecEnd::Lost(why),
            Said::Failed(Failure::TimedOut) => return ExecEnd::TimedOut,
        }
    }
    ExecEnd::Lost("its session ended without a word".to_owned())
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn a_command_is_one_argument_whatever_is_in_it() {
        assert_eq!(line("id -u", true), "sudo -n -- sh -c 'id -u'");
        assert_eq!(line("echo 'a b'; rm -rf \"$x\"", false), r#"sh -c 'echo '\''a b'\''; rm -rf "$x"'"#);
        assert_eq!(line("a'; reboot; '", true), r"sudo -n -- sh -c 'a'\''; reboot; '\'''");
    }
}
