//! The command line of `breakglass`: clap's definitions, from which the help comes, and what each command runs.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use proto::{Body, RequestId, Verb, Vmid};

use crate::UNKNOWN;
use crate::answer::Reader;
use crate::config::{self, Config};
use crate::receipt::{Asked, Unproved, check, exit_code};
use crate::say;
use crate::signers::Pinned;

/// A key is one line; what is longer is another file.
const MAX_KEY: u64 = 64 * 1024;

/// The client of pve-verb, the forced command on a Proxmox VE host.
#[derive(Debug, Parser)]
#[command(name = "breakglass", version, disable_help_subcommand = true, max_term_width = 100, after_help = LATER)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
    /// The configuration
    #[arg(long, global = true, value_name = "FILE", default_value = config::DEFAULT)]
    pub config: PathBuf,
}

const LATER: &str = "\
Exit status: the host's own where its receipt is valid (0 done, 2 to 7 refused, 10 failed,
11 unknown, 70 a bug), 20 where there is no valid receipt, 64 for a wrong command line.";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// One verb on the host, its evidence and receipt kept
    Verb(crate::verb::Verb),
    /// Try the whole way and say what is broken
    Doctor,
    /// The kept receipts
    #[command(subcommand)]
    Receipts(Receipts),
    /// The devvm
    #[command(subcommand)]
    Devvm(Devvm),
    /// Read an answer that was asked for with --json, and say what it proves
    Receipt(Receipt),
    /// Hold the SSH keys and sign logins with them, for whoever may use its socket
    Keyholder,
    /// A conversation with Claude about one incident; ends with 0 where the VM is well
    Chat(crate::chat::Chat),
    /// The page and its API, for a browser: the state, the six verbs, the evidence, Claude
    Serve,
    /// An incident without a model: evidence, what the assessment recommends, is the guest back
    Runbook(crate::runbook::command::Runbook),
    /// Notice a wedge and tell it, or open an incident
    Watch,
    /// The verbs and their evidence for an MCP client, over standard input and output
    Mcp,
    /// Replay recorded incidents for who is to act in them, and score what was done
    Evals(crate::evals::command::Evals),
    /// A second key's permission for one mutation
    #[command(subcommand)]
    Grant(Grant),
}

/// `receipts`.
#[derive(Debug, Subcommand)]
pub enum Receipts {
    /// Hold them against each other and against the host's log: roll-back and forks show
    Verify,
}

/// `devvm`.
#[derive(Debug, Subcommand)]
pub enum Devvm {
    /// Accept its new host key, after a person has compared the fingerprint on its own console
    Accept {
        /// The fingerprint that the console shows
        #[arg(value_name = "SHA256:…")]
        fingerprint: String,
    },
}

/// `grant`.
#[derive(Debug, Subcommand)]
pub enum Grant {
    /// Write a grant to be signed with ssh-keygen -Y sign; with --signed, pack it into what --grant takes
    New(crate::grant::New),
}

/// `receipt`.
#[derive(Debug, Args)]
pub struct Receipt {
    /// The host's key: what `pve-verb init` printed, its signing_key.pub, or a file with either
    #[arg(long, value_name = "KEY_OR_FILE")]
    pub signing_key: Option<String>,
    /// The id that was asked with: a receipt of another request is not an answer
    #[arg(long, value_name = "UUID")]
    pub request_id: Option<RequestId>,
    /// The verb that was asked for
    #[arg(long, value_parser = verb)]
    pub verb: Option<Verb>,
    /// The VM that was meant
    #[arg(long)]
    pub vmid: Option<Vmid>,
    /// The answer; - or nothing: standard input
    pub file: Option<PathBuf>,
}

pub(crate) fn verb(text: &str) -> Result<Verb, String> {
    text.parse().map_err(|()| "one of status, forensics, reset, stop, start, cycle".to_owned())
}

/// Serves this process's command line; gives its exit status.
pub fn run() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _nobody_reads = error.print();
            // clap's own 2 would read as the host's "refused".
            return if error.use_stderr() { 64 } else { 0 };
        }
    };
    let config = || Config::load(&cli.config);
    let ended = match &cli.command {
        Command::Receipt(args) => receipt(args),
        Command::Verb(args) => {
            return config().and_then(|config| crate::verb::verb(args, &config)).unwrap_or_else(|message| {
                let _nobody_reads = writeln!(io::stderr(), "{message}");
                UNKNOWN
            });
        }
        Command::Doctor => return passed(config().and_then(|config| crate::doctor::doctor(&config))),
        Command::Receipts(Receipts::Verify) => {
            return passed(config().and_then(|config| crate::receipts::command(&config)));
        }
        Command::Devvm(Devvm::Accept { fingerprint }) => {
            return quiet(config().and_then(|config| {
                let ssh = crate::host::Ssh::open(&config)?;
                crate::verb::runtime()?.block_on(ssh.accept(fingerprint))
            }));
        }
        Command::Keyholder => {
            log();
            return quiet(config().and_then(|config| crate::keyholder::run(Config::need(config.keyholder.as_ref(), "keyholder")?)));
        }
        Command::Chat(args) => return passed(config().and_then(|config| crate::chat::chat(args, &config))),
        Command::Serve => {
            log();
            return quiet(config().and_then(|config| crate::web::serve::serve(&config)));
        }
        Command::Runbook(args) => return passed(config().and_then(|config| crate::runbook::command::runbook(args, &config))),
        Command::Watch => {
            log();
            return quiet(config().and_then(|config| crate::watch::command::watch(&config)));
        }
        Command::Mcp => return quiet(config().and_then(|config| crate::mcp::command(&config))),
        Command::Evals(args) => return passed(crate::evals::command::evals(args, &cli.config, model)),
        Command::Grant(Grant::New(args)) => {
            return quiet(crate::grant::new(args).map(|said| writeln!(io::stdout(), "{said}").unwrap_or(())));
        }
    };
    match ended {
        Ok((said, status)) => {
            let _nobody_reads = writeln!(io::stdout(), "{said}");
            status
        }
        Err(message) => {
            let _nobody_reads = writeln!(io::stderr(), "{message}");
            UNKNOWN
        }
    }
}

/// The end of a command that prints nothing of its own: 0, or 1 with what is wrong.
fn quiet(ended: Result<(), proto::Message>) -> u8 {
    ended.map_or_else(
        |message| {
            let _nobody_reads = writeln!(io::stderr(), "{message}");
            1
        },
        |()| 0,
    )
}

/// 0 where all is well, 1 where it is not or could not be told.
fn passed(ended: Result<bool, proto::Message>) -> u8 {
    match ended {
        Ok(well) => u8::from(!well),
        Err(message) => quiet(Err(message)),
    }
}

/// Who plays the recorded incidents, unless the runbook does.
fn model(config: &Config) -> Result<Box<dyn crate::evals::Player>, proto::Message> {
    Ok(Box::new(crate::claude::Model::new(&config.claude, config.budget, &config.state.dir)?))
}

/// Each event is one JSON line on standard output, for the cluster's log shipper.
fn log() {
    let _set_before =
        tracing_subscriber::fmt().json().flatten_event(true).with_target(false).with_max_level(tracing::Level::INFO).try_init();
}

/// `receipt`: the two sentences and the exit status; or what could not be read.
fn receipt(args: &Receipt) -> Result<(proto::Message, u8), proto::Message> {
    let pinned = args.signing_key.as_deref().map(pinned).transpose()?;
    let mut claimed = args.request_id.clone();
    let mut reader = Reader::new();
    let unreadable =
        |error: io::Error| proto::Message::new(format!("The answer could not be read: {error}."), "Name its file, or pipe it in.");
    let mut input: Box<dyn Read> = match args.file.as_deref().filter(|file| file.as_os_str() != "-") {
        Some(file) => Box::new(File::open(file).map_err(unreadable)?),
        None => Box::new(io::stdin()),
    };
    let mut block = vec![0; 64 * 1024];
    loop {
        match input.read(&mut block) {
            Ok(0) => break,
            Ok(n) => reader.feed(&block[..n], |event| {
                if let (Body::Accepted(_), None) = (&event.body, &claimed) {
                    claimed = Some(event.request_id);
                }
            }),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    let asked = Asked { request_id: args.request_id.clone(), verb: args.verb, vmid: args.vmid };
    let checked = reader.end().map_err(Unproved::Answer).and_then(|unchecked| check(&unchecked, pinned.as_ref(), &asked));
    let status = exit_code(&checked);
    let said = checked.map_or_else(|why| say::unproved(&why, claimed.as_ref()), |proved| say::proved(&proved));
    Ok((said, status))
}

/// A key, or the file that holds it: no path has a blank after `ssh-ed25519`.
fn pinned(key_or_file: &str) -> Result<Pinned, proto::Message> {
    let named = |why: String| {
        proto::Message::new(format!("The signing key can't be used. {why}"), "Give what `pve-verb init` printed on the host.")
    };
    if key_or_file.contains("ssh-ed25519 ") {
        return Pinned::read(key_or_file).map_err(named);
    }
    let mut text = String::new();
    let read = File::open(key_or_file).and_then(|file| file.take(MAX_KEY).read_to_string(&mut text));
    read.map_err(|error| named(format!("{key_or_file}: {error}.")))?;
    Pinned::read(&text).map_err(named)
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_definitions_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_configuration_may_be_named_before_the_command_and_after_it() {
        for line in
            ["--config x doctor", "doctor --config x", "verb --config x status", "receipts --config x verify", "receipts verify --config x"]
        {
            let cli = Cli::try_parse_from(std::iter::once("breakglass").chain(line.split(' '))).unwrap();
            assert_eq!(cli.config, std::path::Path::new("x"), "{line}");
        }
        assert_eq!(Cli::try_parse_from(["breakglass", "doctor"]).unwrap().config, std::path::Path::new(crate::config::DEFAULT));
    }
}
