//! The command: the watch alone, without the page. Incidents that it opens are the runbook's, or a model's where there is one.

use std::io;
use std::sync::Arc;

use proto::Message;

use super::notify::Notice;
use super::{Opened, Opener, Watch};
use crate::config::Config;
use crate::hands::Hands;
use crate::incident::{By, Incident, Notes, Store};
use crate::runbook::{Patience, run};

/// Opens incidents for the runbook.
pub struct ByRunbook {
    /// What acts.
    pub hands: Arc<dyn Hands>,
    /// Where incidents are.
    pub store: Arc<Store>,
}

impl Opener for ByRunbook {
    fn open(&self, why: &Notice) -> Result<Opened, Message> {
        let incident = self.store.create(&why.text, By::Watch, None)?;
        let (hands, id) = (Arc::clone(&self.hands), incident.id().to_string());
        // On a task of its own: an incident goes on whatever becomes of the one who waits for its end.
        let running = tokio::spawn(worked(hands, incident));
        let end = Box::pin(async move {
            running.await.unwrap_or_else(|error| {
                (false, Message::new(format!("The runbook met a bug: {error}."), "Act by hand with the six verbs."))
            })
        });
        Ok(Opened { id, end })
    }
}

async fn worked(hands: Arc<dyn Hands>, incident: Arc<Incident>) -> (bool, Message) {
    let task = incident.task();
    let mut notes = Notes::new(Arc::clone(&incident), task);
    let ended = run(&*hands, &mut notes, Patience::default(), true).await;
    incident.end(task, ended.healthy, &ended.said);
    (ended.healthy, ended.said)
}

/// Watches until SIGTERM or SIGINT.
///
/// # Errors
/// It could not begin.
pub fn watch(config: &Config) -> Result<(), Message> {
    let settings = Config::need(config.watch.as_ref(), "watch")?;
    let fault = |error: io::Error| Message::new(format!("The watch could not begin: {error}."), "Start it again.");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(fault)?;
    runtime.block_on(async {
        let hands: Arc<dyn Hands> = Arc::new(crate::host::Ssh::open(config)?);
        let store = Store::open(&config.state.dir, config.state.keep_bytes, true)?;
        let opener: Arc<dyn Opener> = Arc::new(ByRunbook { hands: Arc::clone(&hands), store });
        let watch = Watch::new(settings, &config.state.dir, hands, Some(opener))?;
        tokio::select! {
            () = watch.run() => {}
            () = crate::runbook::command::stopped() => {}
        }
        Ok(())
    })
}
