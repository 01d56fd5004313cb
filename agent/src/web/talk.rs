//! Conversations: each incident's turns run one after the other on a task of its own, whoever watches. Where no model can be had the
//! runbook goes on, as the owner's autonomy allows, and the log says so; after a restart it waits for a person.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::{Code, Message};
use tokio::sync::{mpsc, watch};

use super::meter::Meter;
use super::press::started_again;
use crate::claude::{Autonomy, Mind, Session, Turned, verdict_unless};
use crate::hands::Hands;
use crate::incident::{By, Incident, IncidentId, Notes, What};
use crate::runbook::{Patience, run as runbook};
use crate::watch::Opened;

/// Sentences that wait for a turn.
const WAITING: usize = 4;
/// A conversation that is idle for this long is put away; the next sentence reads it again.
const IDLE: Duration = Duration::from_secs(600);

/// What a conversation is asked.
enum Ask {
    /// A person's words.
    Prompt { text: String, who: String },
    /// Go on with what a restart cut off.
    Resume,
    /// The incident without a model; and what hears a stop from the moment it was asked for, as the button for that is there at once.
    Runbook { who: String, cancelled: watch::Receiver<u64> },
}

/// All conversations.
pub struct Talks {
    mind: Option<Arc<Mind>>,
    hands: Arc<dyn Hands>,
    meter: Arc<Meter>,
    open: Arc<Mutex<HashMap<IncidentId, Open>>>,
    /// Incidents in which somebody else of this program is at work: the watch. Two conversations in one would write over each other.
    others: Arc<Mutex<HashSet<String>>>,
    /// Whose turn it is to ask for something: what is there when it is looked at is there when it is written down. Not `open`, for which
    /// every page waits.
    asks: Mutex<()>,
}

struct Open {
    ask: mpsc::Sender<Ask>,
    busy: bool,
    /// Whether what is at work is the runbook.
    runbook: Arc<AtomicBool>,
}

impl Talks {
    /// None yet.
    pub fn new(mind: Option<Arc<Mind>>, hands: &Arc<dyn Hands>, meter: &Arc<Meter>) -> Self {
        let (open, others, asks) = (Arc::default(), Arc::default(), Mutex::default());
        Self { mind, hands: Arc::clone(hands), meter: Arc::clone(meter), open, others, asks }
    }

    /// Whether there is a model to talk with.
    pub const fn has_a_model(&self) -> bool {
        self.mind.is_some()
    }

    /// The model.
    pub fn mind(&self) -> Option<Arc<Mind>> {
        self.mind.clone()
    }

    fn open(&self) -> MutexGuard<'_, HashMap<IncidentId, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a turn or the runbook is at work in it.
    pub fn is_busy(&self, incident: &IncidentId) -> bool {
        self.is_anothers(incident) || self.open().get(incident).is_some_and(|open| open.busy)
    }

    /// Whether the runbook is at work in it, as far as it was begun here.
    pub fn runs_the_runbook(&self, incident: &IncidentId) -> bool {
        self.open().get(incident).is_some_and(|open| open.busy && open.runbook.load(Ordering::Relaxed))
    }

    fn is_anothers(&self, incident: &IncidentId) -> bool {
        self.others.lock().unwrap_or_else(PoisonError::into_inner).contains(incident.as_str())
    }

    /// The same incident, which is the watch's until it has ended.
    pub fn others(&self, opened: Opened) -> Opened {
        let (others, id) = (Arc::clone(&self.others), opened.id.clone());
        let all = || others.lock().unwrap_or_else(PoisonError::into_inner);
        all().insert(id.clone());
        let (others, end) = (Arc::clone(&self.others), opened.end);
        let freed = async move {
            let ended = end.await;
            others.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            ended
        };
        Opened { id: opened.id, end: Box::pin(freed) }
    }

    /// A person says something.
    ///
    /// # Errors
    /// Too much waits already, or it can't be recorded.
    pub fn say(&self, incident: &Arc<Incident>, text: String, who: String) -> Result<(), Message> {
        self.ask(incident, Ask::Prompt { text, who })
    }

    /// The runbook.
    ///
    /// # Errors
    /// It runs or waits there already, too much waits, or it can't be recorded.
    pub fn runbook(&self, incident: &Arc<Incident>, who: String) -> Result<(), Message> {
        self.ask(incident, Ask::Runbook { who, cancelled: incident.cancellations() })
    }

    /// Goes on with what a restart cut off.
    pub fn resume(&self, incident: &Arc<Incident>) {
        let _nothing_waits_after_a_restart = self.ask(incident, Ask::Resume);
    }

    /// What a person asks for is on the disk when this returns: what waits is shown, and a restart does not lose it in silence.
    fn ask(&self, incident: &Arc<Incident>, ask: Ask) -> Result<(), Message> {
        let _one_at_a_time = self.asks.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_anothers(incident.id()) {
            return Err(Message::new(
                "The watch is at work in this incident.",
                "Stop its turn, or wait for its end; the six verbs work meanwhile.",
            ));
        }
        if self.open().get(incident.id()).is_some_and(|open| open.ask.capacity() == 0) {
            return Err(full());
        }
        let asked = match &ask {
            Ask::Prompt { text, who } => Some((Some(crate::redact::redact(text).into_owned()), who.clone())),
            Ask::Resume => None,
            Ask::Runbook { .. } if self.runs_the_runbook(incident.id()) || incident.facts().waits.iter().any(|asked| asked.runbook) => {
                let next = "Wait for its end, or stop it in the incident.";
                return Err(Message::new("The runbook is at work in this incident already, or waits for the turn.", next));
            }
            Ask::Runbook { who, .. } => Some((None, who.clone())),
        };
        if let Some((text, who)) = asked {
            incident.write(incident.task(), By::Human, What::Waits { text, actor: Some(who) })?;
        }
        let mut open = self.open();
        if let Some(known) = open.get_mut(incident.id()) {
            known.busy = true;
            return known.ask.try_send(ask).map_err(|_| full());
        }
        let (tell, asked) = mpsc::channel(WAITING);
        let runbook = Arc::new(AtomicBool::new(matches!(ask, Ask::Runbook { .. })));
        tell.try_send(ask).map_err(|_| full())?;
        open.insert(incident.id().clone(), Open { ask: tell, busy: true, runbook: Arc::clone(&runbook) });
        drop(open);
        let talk = Talk {
            mind: self.mind.clone(),
            hands: Arc::clone(&self.hands),
            meter: Arc::clone(&self.meter),
            incident: Arc::clone(incident),
            session: None,
            runs: runbook,
        };
        tokio::spawn(talk.run(asked, Arc::clone(&self.open)));
        Ok(())
    }
}

fn full() -> Message {
    Message::new("Four sentences wait for an answer already.", "Wait for it, or stop the turn.")
}

struct Talk {
    mind: Option<Arc<Mind>>,
    hands: Arc<dyn Hands>,
    meter: Arc<Meter>,
    incident: Arc<Incident>,
    session: Option<Session>,
    runs: Arc<AtomicBool>,
}

impl Talk {
    async fn run(mut self, mut asked: mpsc::Receiver<Ask>, open: Arc<Mutex<HashMap<IncidentId, Open>>>) {
        let id = self.incident.id().clone();
        loop {
            if let Ok(Some(ask)) = tokio::time::timeout(IDLE, asked.recv()).await {
                let failures = self.incident.facts().failures;
                self.turn(ask).await;
                self.meter.claude_failed(self.incident.facts().failures.saturating_sub(failures));
            }
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            // Within the lock: who asks now finds either this task or none.
            if asked.is_empty() {
                let Some(known) = open.get_mut(&id) else { return };
                if !known.busy {
                    open.remove(&id);
                    return;
                }
                known.busy = false;
            }
        }
    }

    async fn turn(&mut self, ask: Ask) {
        let resumes = matches!(ask, Ask::Resume);
        // From here on: the look at its end is stopped by the same button.
        let cancelled = self.incident.cancellations();
        let turned = match ask {
            Ask::Runbook { who, cancelled } => {
                self.runs.store(true, Ordering::Relaxed);
                self.incident.note(self.incident.task(), By::Human, What::Runbook { actor: Some(who) });
                return self.runbook(cancelled).await;
            }
            Ask::Prompt { text, who } => match self.session() {
                Ok(mut session) => {
                    let turned = session.prompt(&text, Some(&who)).await;
                    self.session = Some(session);
                    turned
                }
                Err(why) => {
                    let task = self.incident.task();
                    self.incident.note(task, By::Human, What::Prompt { text: crate::redact::redact(&text).into_owned(), actor: Some(who) });
                    Turned::Unavailable(why)
                }
            },
            Ask::Resume => {
                let turned = match self.session() {
                    Ok(mut session) => {
                        let turned = session.resume().await;
                        self.session = Some(session);
                        turned
                    }
                    Err(_) => None,
                };
                let facts = self.incident.facts();
                match turned {
                    // No turn of Claude's was cut off, and nothing is to be proved: what was judged before is not what is so now.
                    None if !facts.touched && facts.running.is_empty() => {
                        return self.incident.end(self.incident.task(), false, &started_again());
                    }
                    turned => turned.unwrap_or(Turned::Said),
                }
            }
        };
        match turned {
            Turned::Unavailable(why) => {
                // Where calls wait for a person the runbook does too: the page has a button for it. And after a restart nobody asked: what
                // was asked for before it may be hours old, and what is so now somebody's doing since.
                if !resumes && self.mind.as_ref().is_none_or(|mind| mind.autonomy() == Autonomy::Full) {
                    self.said(format!("{} The runbook goes on.", why.what));
                    // Once: the one that a person asked for meanwhile is next.
                    if self.incident.facts().waits.iter().any(|asked| asked.runbook) {
                        return;
                    }
                    self.runbook(self.incident.cancellations()).await;
                } else {
                    self.said(format!("{} The runbook can go on: press its button.", why.what));
                }
            }
            Turned::Cancelled(said) => self.incident.end(self.incident.task(), false, &said),
            Turned::Said | Turned::Stopped(_) => self.verdict(cancelled).await,
        }
    }

    fn session(&mut self) -> Result<Session, Message> {
        match (self.session.take(), &self.mind) {
            (Some(session), _) => Ok(session),
            (None, Some(mind)) => Session::open(mind, &self.incident),
            (None, None) => Err(Message::new("There is no API key.", "The runbook does it without a model.")),
        }
    }

    fn said(&self, text: String) {
        self.incident.note(self.incident.task(), By::Agent, What::Said { text });
    }

    /// After words alone nothing has to be proved; after a mutation the VM is looked at once more.
    async fn verdict(&self, mut cancelled: watch::Receiver<u64>) {
        let facts = self.incident.facts();
        // What a person has pressed meanwhile ends the incident when it ends.
        if !facts.running.is_empty() {
            return;
        }
        let task = self.incident.task();
        let (healthy, said) = if facts.touched {
            verdict_unless(&mut cancelled, &self.hands, &self.incident, task).await
        } else {
            let healthy = facts.state.is_some_and(|(_, code, _)| code == Some(Code::Healthy));
            let what = facts.sentence.unwrap_or_else(|| "Nothing was changed.".to_owned());
            (healthy, Message::new(what, "Say more or press a button: the incident goes on."))
        };
        self.incident.end(task, healthy, &said);
    }

    /// The runbook; a person's stop ends it like any turn.
    async fn runbook(&self, mut cancelled: watch::Receiver<u64>) {
        self.runs.store(true, Ordering::Relaxed);
        let task = self.incident.task();
        let mut notes = Notes::new(Arc::clone(&self.incident), task);
        let (healthy, said) = tokio::select! {
            biased;
            _ = cancelled.changed() => {
                let running = self.incident.facts().running_said();
                (false, Message::new(format!("The runbook was stopped. {running}"), "Look what is so now, with status."))
            }
            ended = runbook(&*self.hands, &mut notes, Patience::default(), false) => (ended.healthy, ended.said),
        };
        self.incident.fetch_the_runbook_s(&self.hands, task);
        self.incident.end(task, healthy, &said);
        self.runs.store(false, Ordering::Relaxed);
    }
}
