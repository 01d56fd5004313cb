//! The command: the watch alone, without the page. Incidents that it opens are the runbook's, or a model's where there is one.

use std::io;
use std::sync::Arc;

use proto::{Message, Outcome};
use tracing::warn;

use super::notify::Notice;
use super::{Opened, Opener, Watch};
use crate::config::Config;
use crate::hands::Hands;
use crate::incident::{By, Incident, Notes, Store, What};
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
        let end = Box::pin(async move { running.await.unwrap_or_else(|error| bug(&error)) });
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

/// Takes up what a restart cut off of the watch's own incidents.
fn unfinished(hands: &Arc<dyn Hands>, store: &Arc<Store>) -> Vec<Opened> {
    let mut taken = Vec::new();
    for id in store.unfinished() {
        let mut ours = false;
        let read = store.lines(&id, 1, |line, _| ours |= matches!(line.what, What::Opened { .. }) && line.origin == By::Watch);
        match read.and_then(|()| if ours { store.resume(&id).map(Some) } else { Ok(None) }) {
            Ok(None) => {}
            Ok(Some(incident)) => {
                let running = tokio::spawn(taken_up(Arc::clone(hands), incident));
                let end = Box::pin(async move { running.await.unwrap_or_else(|error| bug(&error)) });
                taken.push(Opened { id: id.to_string(), end });
            }
            Err(why) => warn!(event = "degraded", incident = id.as_str(), "{why}"),
        }
    }
    taken
}

/// Goes on with an incident: first what became of the verbs that ran, asked by their ids, which starts nothing. After a mutation whose
/// result nobody knows there is no other.
async fn taken_up(hands: Arc<dyn Hands>, incident: Arc<Incident>) -> (bool, Message) {
    let task = incident.task();
    for pending in incident.facts().running {
        let unknown = match incident.reattach(&hands, task, &pending) {
            Ok(None) => None,
            Ok(Some(running)) => match running.end().await {
                Ok(told) => match &told.end.checked {
                    Ok(proved) if !matches!(proved.body().outcome, Outcome::Unknown | Outcome::Internal) => None,
                    _ => Some(told.end.said),
                },
                Err(why) => Some(why),
            },
            Err(why) => Some(why),
        };
        if let Some(why) = unknown {
            incident.end(task, false, &why);
            return (false, why);
        }
    }
    worked(hands, incident).await
}

fn bug(error: &tokio::task::JoinError) -> (bool, Message) {
    (false, Message::new(format!("The runbook met a bug: {error}."), "Act by hand with the six verbs."))
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
        let taken = unfinished(&hands, &store);
        let opener: Arc<dyn Opener> = Arc::new(ByRunbook { hands: Arc::clone(&hands), store });
        let watch = Watch::new(settings, &config.state.dir, hands, Some(opener))?;
        for opened in taken {
            watch.follow(opened);
        }
        tokio::select! {
            () = watch.run() => {}
            () = crate::runbook::command::stopped() => {}
        }
        Ok(())
    })
}
