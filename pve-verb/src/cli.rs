//! The admin's command line: clap's definitions, from which help, man page and completions come. No decisions.
//!
//! A verb by hand takes the options of the request grammar; they are put together to a request line again and go through the one
//! parser that sshd's requests go through.

use clap::{Args, Parser, Subcommand};
use proto::{KeyName, VerbSet, Vmid};

mod bundle;
mod log;

pub use bundle::{BundleCommand, Export, VerifyBundle};
pub use log::{GrantCommand, LogCommand, Show, Verify};

/// Six verbs on one VM, with evidence before any mutation.
#[derive(Debug, Parser)]
#[command(name = "pve-verb", version, disable_help_subcommand = true, max_term_width = 100)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "clap shows the text that stands at each")]
pub enum Command {
    /// What state is the VM in, and does it look healthy?
    Status(ByHand),
    /// Capture and preserve a full evidence bundle; change nothing
    Forensics(ByHand),
    /// Warm reset of the guest: the same QEMU process
    Reset(ByHand),
    /// Pull the plug, until no process of the VM is left
    Stop(ByHand),
    /// Start a stopped VM, or resume a paused one
    Start(ByHand),
    /// Stop, then start: a fresh QEMU process, pending configuration applied
    Cycle(ByHand),
    /// As sshd starts it: the request comes from SSH_ORIGINAL_COMMAND
    Forced(Forced),
    /// Make keys and folders, print the allowed_signers line
    Init,
    /// Print the authorized_keys line for a public key
    Authorize(Authorize),
    /// Is this host set up well?
    Check,
    /// Say that a person has looked at what was done since the last review
    Review {
        /// What you looked at, and what you found
        #[arg(long)]
        note: String,
    },
    /// Put a new signing key in the old one's place, with the old one's word for it in the log
    Rotate,
    /// Record what was interrupted; run at boot
    Recover,
    /// The audit log
    #[command(subcommand)]
    Log(LogCommand),
    /// The evidence bundles
    #[command(subcommand)]
    Bundle(BundleCommand),
    /// Grants: a second key's yes to one mutation
    #[command(subcommand)]
    Grant(GrantCommand),
    #[command(hide = true)]
    Worker,
    #[command(hide = true)]
    Writer,
    #[command(hide = true)]
    ProbeGuest,
    #[command(hide = true)]
    ProbeHost,
    #[command(hide = true)]
    Begin {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<std::ffi::OsString>,
    },
}

/// The arguments in `authorized_keys`: the policy of this key.
#[derive(Debug, Args)]
pub struct Forced {
    /// The admin's name for this key
    #[arg(long, value_name = "NAME", value_parser = forced_key_name)]
    pub key_name: KeyName,
    /// The key's fingerprint, for the record
    #[arg(long, value_name = "SHA256:…", value_parser = fingerprint)]
    pub key_fp: Option<String>,
    /// The one VM
    #[arg(long, default_value = "102")]
    pub vmid: Vmid,
    /// What this key may say
    #[arg(long, value_name = "VERB,…|all|read", default_value = "all")]
    pub allow: VerbSet,
    /// For which verbs it needs a grant
    #[arg(long, value_name = "VERB,…")]
    pub require_grant: Option<VerbSet>,
}

/// `authorize`.
#[derive(Debug, Args)]
pub struct Authorize {
    /// The public key's file
    #[arg(value_name = "KEY.pub")]
    pub key: std::path::PathBuf,
    /// The admin's name for this key
    #[arg(long, value_name = "NAME", value_parser = forced_key_name)]
    pub key_name: KeyName,
    /// The one VM
    #[arg(long, default_value = "102")]
    pub vmid: Vmid,
    /// What this key may say
    #[arg(long, value_name = "VERB,…|all|read", default_value = "all")]
    pub allow: VerbSet,
    /// For which verbs it needs a grant
    #[arg(long, value_name = "VERB,…")]
    pub require_grant: Option<VerbSet>,
    /// From which addresses it may come (sshd's from=)
    #[arg(long, value_name = "PATTERN,…")]
    pub from: Option<String>,
}

/// A verb by hand. Every option is the request grammar's; the grammar, not clap, says where it belongs.
#[derive(Debug, Args)]
pub struct ByHand {
    /// The VM
    #[arg(long, default_value = "102")]
    pub vmid: Vmid,
    /// One JSON event a line, instead of text
    #[arg(long)]
    pub json: bool,
    /// With --json: artifacts inside the events
    #[arg(long)]
    pub inline: bool,
    /// forensics: the bundle as a tar on stdout
    #[arg(long)]
    pub tar: bool,
    /// forensics: answer with this existing bundle
    #[arg(long, value_name = "NAME")]
    pub bundle: Option<String>,
    /// Capture, check and show the plan; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// With --request-id: never starts anything
    #[arg(long)]
    pub attach: bool,
    /// The idempotency key
    #[arg(long, value_name = "UUID")]
    pub request_id: Option<String>,
    /// Who acts, as a claim: human, model, runbook or mcp
    #[arg(long)]
    pub origin: Option<String>,
    /// Who acts, by name
    #[arg(long)]
    pub actor: Option<String>,
    /// Why
    #[arg(long)]
    pub reason: Option<String>,
    /// The newest audit head that you hold
    #[arg(long, value_name = "SEQ:HEX")]
    pub witness: Option<String>,
    /// A signed grant
    #[arg(long)]
    pub grant: Option<String>,
}

impl ByHand {
    /// The request line that these options spell. Free text is percent-encoded here, because at a console people type spaces.
    pub fn line(&self, verb: proto::Verb) -> Vec<u8> {
        let mut line = verb.to_string();
        for (set, word) in [
            (self.json, " --json"),
            (self.inline, " --inline"),
            (self.tar, " --tar"),
            (self.dry_run, " --dry-run"),
            (self.attach, " --attach"),
        ] {
            if set {
                line.push_str(word);
            }
        }
        for (value, name, free_text) in [
            (&self.bundle, "--bundle", false),
            (&self.request_id, "--request-id", false),
            (&self.origin, "--origin", false),
            (&self.actor, "--actor", true),
            (&self.reason, "--reason", true),
            (&self.witness, "--witness", false),
            (&self.grant, "--grant", false),
        ] {
            if let Some(value) = value {
                line.push_str(&format!(" {name}="));
                for b in value.bytes() {
                    if free_text && !(b.is_ascii_alphanumeric() || b"._-,:".contains(&b)) {
                        line.push_str(&format!("%{b:02X}"));
                    } else {
                        line.push(char::from(b));
                    }
                }
            }
        }
        line.into_bytes()
    }
}

/// A key's name in `authorized_keys`: only the host itself makes `console:` ones.
fn forced_key_name(text: &str) -> Result<KeyName, String> {
    let name: KeyName = text.parse()?;
    if name.is_console() { Err("console:… is the host's own name for a person at its console".to_owned()) } else { Ok(name) }
}

fn fingerprint(text: &str) -> Result<String, String> {
    let hash = text.strip_prefix("SHA256:").unwrap_or_default();
    if hash.len() == 43 && hash.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/')) {
        Ok(text.to_owned())
    } else {
        Err("a fingerprint is SHA256: and 43 characters of base64, as ssh-keygen -l prints it".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn forced_arguments_are_read_strictly() {
        let good = ["pve-verb", "forced", "--key-name", "agent", "--vmid", "102", "--allow", "read", "--require-grant", "cycle"];
        assert!(Cli::try_parse_from(good).is_ok());
        for bad in [
            &["pve-verb", "forced"][..],
            &["pve-verb", "forced", "--key-name", "console:root"],
            &["pve-verb", "forced", "--key-name", "a b"],
            &["pve-verb", "forced", "--key-name", "a", "--vmid", "99"],
            &["pve-verb", "forced", "--key-name", "a", "--vmid", "102", "--vmid", "103"],
            &["pve-verb", "forced", "--key-name", "a", "--allow", "reboot"],
            &["pve-verb", "forced", "--key-name", "a", "--allow", ""],
            &["pve-verb", "forced", "--key-name", "a", "--key-fp", "MD5:aa"],
            &["pve-verb", "forced", "--key-n", "a"],
            &["pve-verb", "forced", "--key-name", "a", "extra"],
        ] {
            assert!(Cli::try_parse_from(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn by_hand_goes_through_the_same_grammar() {
        let cli = Cli::try_parse_from(["pve-verb", "cycle", "--reason", "disk stalled; ü", "--dry-run"]).unwrap();
        let Command::Cycle(by_hand) = cli.command else { panic!() };
        let request = proto::Request::parse(&by_hand.line(proto::Verb::Cycle)).unwrap();
        assert_eq!(request.options().reason.as_ref().unwrap().as_str(), "disk stalled; ü");
        // An option out of place is the grammar's to refuse, with the grammar's sentence.
        let cli = Cli::try_parse_from(["pve-verb", "status", "--dry-run", "--request-id", "a b"]).unwrap();
        let Command::Status(by_hand) = cli.command else { panic!() };
        assert!(proto::Request::parse(&by_hand.line(proto::Verb::Status)).is_err());
    }
}
