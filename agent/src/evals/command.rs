//! The command: plays, prints the table line by line, keeps it.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use proto::Message;

use super::{HEAD, Player, Runbook, case, run};
use crate::config::Config;
use crate::runbook::Patience;

/// `evals`.
#[derive(Debug, Args)]
pub struct Evals {
    /// Let the runbook play instead of the model
    #[arg(long)]
    pub runbook: bool,
    /// Let this model play instead of the configured one: fallback_model has to show too what it is worth
    #[arg(long, value_name = "ID", conflicts_with = "runbook")]
    pub model: Option<String>,
    /// Only this case; more than once for several
    #[arg(long, value_name = "NAME")]
    pub case: Vec<String>,
    /// Name the cases and what they are about, and play none
    #[arg(long)]
    pub list: bool,
}

/// Plays; whether all passed.
///
/// # Errors
/// Nobody to play, no such case, or a table that can't be kept.
pub fn evals(args: &Evals, config: &Path, player: impl FnOnce(&Config) -> Result<Box<dyn Player>, Message>) -> Result<bool, Message> {
    let cases =
        case::all().map_err(|why| Message::new(format!("A recorded incident can't be read: {why}."), "Report it: this is a bug."))?;
    if let Some(absent) = args.case.iter().find(|name| !cases.iter().any(|case| case.name == **name)) {
        return Err(Message::new(format!("There is no case {absent:?}."), "See their names with --list."));
    }
    let cases: Vec<_> = cases.into_iter().filter(|case| args.case.is_empty() || args.case.contains(&case.name)).collect();
    let mut out = io::stdout();
    if args.list {
        for case in cases {
            let _nobody_reads = writeln!(out, "{}\n    {}", case.name, case.about);
        }
        return Ok(true);
    }
    // The runbook needs no configuration: whoever has just installed the program can see a table.
    let mut config = if args.runbook && !config.exists() { None } else { Some(Config::load(config)?) };
    if let (Some(config), Some(model)) = (&mut config, &args.model) {
        config.claude.model.clone_from(model);
    }
    let player: Box<dyn Player> = match &config {
        Some(config) if !args.runbook => player(config)?,
        _ => Box::new(Runbook { patience: quick() }),
    };
    let fault = |error: io::Error| Message::new(format!("The replay could not begin: {error}."), "Try again.");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(fault)?;
    let _nobody_reads = writeln!(out, "{HEAD}");
    let whole = args.case.is_empty();
    let table = runtime.block_on(run(&*player, cases, |line| {
        let _nobody_reads = writeln!(out, "{}", line.shown());
    }))?;
    let _nobody_reads = writeln!(out, "{}", table.foot());
    // A part of the cases says nothing about who deserves the power.
    if let Some(config) = config.filter(|_| whole) {
        let _nobody_reads = writeln!(out, "kept in {}", table.keep(&config.state.dir)?.display());
    }
    Ok(table.passed() == table.lines.len())
}

/// In a replay nothing boots, and nobody has to wait for what does not come.
const fn quick() -> Patience {
    let ms = Duration::from_millis;
    Patience { boot: ms(200), soft: ms(200), pause: ms(20), again: ms(20), apart: ms(20), all: Duration::from_secs(60) }
}
