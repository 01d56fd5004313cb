//! The command: the watch alone, without the page. Incidents that it opens are the runbook's, or a model's where there is one.

use std::io;
use std::sync::Arc;

use proto::Message;
use tracing::warn;

use super::notify::Notice;
use super::{Opened, Opener, Watch};
use crate::chat::alone;
use crate::claude::Mind;
use crate::config::Config;
use crate::hands::Hands;
use crate::incident::{By, Incident, Store, What};

/// Opens incidents for Claude, or for the runbook where there is no model.
pub struct Alone {
    /// The model, where there is one.
    pub mind: Option<Arc<Mind>>,
    /// What acts.
    pub hands: Arc<dyn Hands>,
    /// Where incidents are.
    pub store: Arc<Store>,
}

impl Opener for Alone {
    fn open(&self, why: &Notice) -> Result<Opened, Message> {
        let incident = self.store.create(&why.text, By::Watch, None)?;
        let (mind, hands, id) = (self.mind.clone(), Arc::clone(&self.hands), incident.id().to_string());
        let text = why.text.clone();
        // On a task of its own: an incident goes on whatever becomes of the one who waits for its end.
        let running = tokio::spawn(async move { worked(mind, hands, incident, &text).await });
        let end = Box::pin(async move { running.await.unwrap_or_else(|error| bug(&error)) });
        Ok(Opened { id, end })
    }
}

async fn worked(mind: Option<Arc<Mind>>, hands: Arc<dyn Hands>, incident: Arc<Incident>, text: &str) -> (bool, Message) {
    let (healthy, said) = alone(mind.as_ref(), &hands, &incident, text).await;
    incident.end(incident.task(), healthy, &said);
    (healthy, said)
}

/// Takes up what a restart cut off of the watch's own incidents.
pub fn unfinished(mind: Option<&Arc<Mind>>, hands: &Arc<dyn Hands>, store: &Arc<Store>) -> Vec<Opened> {
    let mut taken = Vec::new();
    for id in store.unfinished() {
        let mut ours = false;
        let read = store.lines(&id, 1, |line, _| ours |= matches!(line.what, What::Opened { .. }) && line.origin == By::Watch);
        match read.and_then(|()| if ours { store.resume(&id).map(Some) } else { Ok(None) }) {
            Ok(None) => {}
            // A person had stopped it: only its verbs' ends are still to be had.
            Ok(Some(incident)) if incident.facts().ended.is_some() => {
                let hands = Arc::clone(hands);
                tokio::spawn(async move { incident.catch_up(&hands, incident.task(), true).await });
            }
            Ok(Some(incident)) => {
                let running = tokio::spawn(taken_up(mind.cloned(), Arc::clone(hands), incident));
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
async fn taken_up(mind: Option<Arc<Mind>>, hands: Arc<dyn Hands>, incident: Arc<Incident>) -> (bool, Message) {
    let task = incident.task();
    if let Some(why) = incident.catch_up(&hands, task, mind.is_none()).await {
        incident.end(task, false, &why);
        return (false, why);
    }
    worked(mind, hands, incident, "The program was started again in the middle of this incident.").await
}

fn bug(error: &tokio::task::JoinError) -> (bool, Message) {
    (false, Message::new(format!("The runbook met a bug: {error}."), "Act by hand with the six verbs."))
}

/// The same where there is no page: what waits for a person would wait in vain, and is denied.
pub struct WithoutAPage(pub Alone);

impl Opener for WithoutAPage {
    fn open(&self, why: &Notice) -> Result<Opened, Message> {
        let opened = self.0.open(why)?;
        self.0.store.get_by_name(&opened.id).into_iter().for_each(nobody_decides);
        Ok(opened)
    }
}

/// Denies what waits for a person, until the incident ends.
fn nobody_decides(incident: Arc<Incident>) {
    tokio::spawn(async move {
        let mut watcher = incident.watch(0);
        while incident.facts().ended.is_none() {
            incident.deny_all("nobody: the watch runs without a page");
            watcher.next().await;
        }
    });
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
        let store = Store::open(&config.state.dir, config.state.keep_bytes, true)?;
        let hands: Arc<dyn Hands> = Arc::new(crate::host::Ssh::open(config)?.told_with(&store));
        let mind = Mind::new(&config.claude, config.budget, &store, &hands)?;
        if let Some(said) = crate::claude::unproven(mind.as_ref(), &config.state.dir) {
            warn!(event = "unproven", "{said}");
        }
        let taken = unfinished(mind.as_ref(), &hands, &store);
        for opened in &taken {
            store.get_by_name(&opened.id).into_iter().for_each(nobody_decides);
        }
        let opener: Arc<dyn Opener> = Arc::new(WithoutAPage(Alone { mind, hands: Arc::clone(&hands), store }));
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
