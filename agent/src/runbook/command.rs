//! The command: opens an incident, runs in it, tells aloud, prints the folder last.

use std::io::{self, Write};
use std::sync::Arc;

use clap::Args;
use proto::Message;

use super::aloud::Aloud;
use super::{Ended, Patience, run};
use crate::config::Config;
use crate::hands::Hands;
use crate::incident::{BY_HAND, By, Notes, Store};

/// `runbook`.
#[derive(Debug, Args)]
pub struct Runbook {
    /// What is wrong, for the record
    pub text: Option<String>,
}

/// Runs it; whether it ended healthy.
///
/// # Errors
/// It could not begin: nothing was asked.
pub fn runbook(args: &Runbook, config: &Config) -> Result<bool, Message> {
    let fault = |error: io::Error| Message::new(format!("The runbook could not begin: {error}."), "Try again.");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(fault)?;
    runtime.block_on(async {
        let hands: Arc<dyn Hands> = Arc::new(crate::host::Ssh::open(config)?);
        let store = Store::open(&config.state.dir, config.state.keep_bytes, false)?;
        let incident = store.create(args.text.as_deref().unwrap_or(&format!("the runbook{BY_HAND}")), By::Human, None)?;
        let task = incident.task();
        let mut journal = Aloud::new(Notes::new(Arc::clone(&incident), task), io::stdout());
        let ended = tokio::select! {
            ended = run(&*hands, &mut journal, Patience::default(), false) => ended,
            () = stopped() => {
                let running = incident.facts().running_said();
                Ended { healthy: false, said: Message::new(format!("The runbook was stopped. {running}"), "Ask with status what is so now.") }
            }
        };
        incident.end(task, ended.healthy, &ended.said);
        let mut out = io::stdout();
        let verdict = if ended.healthy { "healthy" } else { "NOT healthy" };
        let _nobody_reads = writeln!(out, "{verdict}\n{}", incident.folder().display());
        Ok(ended.healthy)
    })
}

/// Ctrl-C, or the request to end.
pub(crate) async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut term), Ok(mut int)) => tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} },
        _ => std::future::pending().await,
    }
}
