//! The watch: polls `status`, notices a wedge within two minutes and a silent host within three, tells a webhook, and opens an incident
//! where it is told to.
//!
//! ```text
//!  status ──> Look ──judge.rs──> Worse, Better ──┬──> outbox.rs ──> notify.rs ──> webhook
//!   (signed)             │                       └──> opens an incident: Claude, or the runbook
//!                  watch.json: what was told, over a restart
//! ```
//! One incident of the watch's is at work at a time: a guest that boots after a cycle shows other troubles on its way, and two that cure the
//! same VM would undo each other's work. What is still wrong when it has ended gets the next one.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use proto::{Body, Code, Message, Origin, RequestId, Timestamp, Unit64, Verb, Vmid};
use tokio::sync::mpsc;
use tracing::{info, warn};

pub mod command;
pub mod judge;
pub mod notify;
mod outbox;

use crate::config;
use crate::hands::{Hands, VerbAsk, VerbNews};
use judge::{CONFIRM_MS, Decision, LOOK_MS, Look, Memory, Trouble};
use notify::{Kind, Notice, Webhook};
use outbox::Outbox;

/// A poll begins this much before its minute is over, so that two of them, and the telling, fit into two minutes.
const EARLY: Duration = Duration::from_secs(5);

/// Opens incidents. What an incident does is its own; the watch hears how it ended.
pub trait Opener: Send + Sync {
    /// Opens one: its id, and its end.
    ///
    /// # Errors
    /// Why none could be opened.
    fn open(&self, why: &Notice) -> Result<Opened, Message>;
}

/// An incident that was opened.
pub struct Opened {
    /// Its id.
    pub id: String,
    /// How it ends: healthy or not, and the report's last sentences.
    pub end: Pin<Box<dyn Future<Output = (bool, Message)> + Send>>,
}

/// What a look at the VM showed.
struct Seen {
    look: Look,
    vmid: Vmid,
    sentence: String,
    next: String,
    recommend: Option<Verb>,
}

/// A watch at work.
pub struct Watch {
    hands: Arc<dyn Hands>,
    opener: Option<Arc<dyn Opener>>,
    tell: Arc<Outbox>,
    /// Its incidents that have not ended.
    at_work: Arc<AtomicUsize>,
    file: PathBuf,
    every: Duration,
}

impl Watch {
    /// A watch as configured; `opener` opens incidents where `on = "incident"`.
    ///
    /// # Errors
    /// The webhook can't be used.
    pub fn new(settings: &config::Watch, state: &Path, hands: Arc<dyn Hands>, opener: Option<Arc<dyn Opener>>) -> Result<Self, Message> {
        let hook = settings.notify_url.as_deref().map(|url| Webhook::new(url, settings.ca_file.as_deref())).transpose()?;
        let tell = Arc::new(Outbox::open(state));
        let told = Arc::clone(&tell);
        tokio::spawn(async move {
            loop {
                let notice = told.next().await;
                match &hook {
                    Some(hook) => drop(hook.tell(&notice).await),
                    None => warn!(event = "noticed", what = notice.event.as_str(), "{}", notice.text),
                }
                told.done();
            }
        });
        let every = Duration::from_secs(settings.interval_s).saturating_sub(EARLY);
        let opener = opener.filter(|_| settings.on == config::On::Incident);
        Ok(Self { hands, opener, tell, at_work: Arc::default(), file: state.join("watch.json"), every })
    }

    /// Watches until it is dropped.
    pub async fn run(&self) {
        let mut memory = self.remembered();
        info!(event = "watch", every_s = self.every.as_secs(), incidents = self.opener.is_some(), "watching");
        let mut tick = tokio::time::interval(self.every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            loop {
                let seen = self.look().await;
                let before = memory.clone();
                let decision = memory.see(now(), seen.look);
                let mut confirms = false;
                match decision {
                    Decision::Nothing => {
                        if let Some((trouble, since)) = memory.told.filter(|(told, _)| memory.owed && seen.look == Look::Bad(*told)) {
                            memory.owed = self.open(&notice(Kind::Worse, trouble, since, &seen)).is_err();
                        }
                    }
                    Decision::Confirm => confirms = true,
                    Decision::Worse(trouble, since) => memory.owed = self.worse(trouble, since, &seen),
                    Decision::Better(trouble, since) => {
                        let text = format!("VM {} is well again: {} is over.", seen.vmid, word(trouble));
                        let seen = Seen { sentence: text, next: "The bundles say what it was.".to_owned(), ..seen };
                        self.tell.put(notice(Kind::Better, trouble, since, &seen));
                    }
                }
                // After it is kept for the webhook: killed in between, it is told twice, and never not at all.
                if (memory.told, memory.owed) != (before.told, before.owed) {
                    self.remember(&memory);
                }
                if !confirms {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(CONFIRM_MS)).await;
            }
        }
    }

    /// Tells it, and opens an incident for it; whether one is still owed.
    fn worse(&self, trouble: Trouble, since: Timestamp, seen: &Seen) -> bool {
        let told = notice(Kind::Worse, trouble, since, seen);
        self.tell.put(told.clone());
        if self.opener.is_none() || !trouble.is_a_wedge() {
            return false;
        }
        let Err(why) = self.open(&told) else { return false };
        if let Some(why) = why {
            let text = format!("No incident could be opened. {why}");
            self.tell.put(Notice { at: now(), sentence: text.clone(), text, ..told });
        }
        true
    }

    /// Opens an incident; the error is why not, without a word where another is at work.
    fn open(&self, told: &Notice) -> Result<(), Option<Message>> {
        let Some(opener) = self.opener.as_ref().filter(|_| self.at_work.load(Ordering::Relaxed) == 0) else { return Err(None) };
        let opened = opener.open(told).map_err(Some)?;
        self.tell.put(Notice { event: Kind::Opened, incident: Some(opened.id.clone()), at: now(), ..told.clone() });
        self.ended(opened, told.clone());
        Ok(())
    }

    /// Tells how an incident ends that was opened before a restart.
    pub fn follow(&self, opened: Opened) {
        let memory = self.remembered();
        let (trouble, since) = memory.told.or_else(|| memory.last.last().copied()).unwrap_or((Trouble::HostSilent, now()));
        let (sentence, next) = (String::new(), String::new());
        let seen = Seen { look: Look::Bad(trouble), vmid: self.hands.vmid(), sentence, next, recommend: None };
        self.ended(opened, notice(Kind::Opened, trouble, since, &seen));
    }

    fn ended(&self, opened: Opened, told: Notice) {
        let (tell, at_work) = (Arc::clone(&self.tell), Arc::clone(&self.at_work));
        at_work.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let (healthy, said) = opened.end.await;
            at_work.fetch_sub(1, Ordering::Relaxed);
            let said = Message::new(plain(&said.what), plain(&said.next));
            let (at, text) = (now(), said.to_string());
            let (incident, healthy, sentence, next) = (Some(opened.id), Some(healthy), said.what, said.next);
            tell.put(Notice { event: Kind::Ended, incident, healthy, at, sentence, next, text, ..told });
        });
    }

    /// One `status`.
    async fn look(&self) -> Seen {
        let silent = |said: &Message| Seen {
            look: Look::Bad(Trouble::HostSilent),
            vmid: self.hands.vmid(),
            sentence: said.what.clone(),
            next: said.next.clone(),
            recommend: None,
        };
        let mut bytes = [0; 16];
        if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).is_err() {
            return silent(&Message::new("There were no random bytes.", "Start the watch again."));
        }
        let (tell, mut told) = mpsc::channel(64);
        let ask = VerbAsk {
            verb: Verb::Status,
            request_id: RequestId::from_random(bytes),
            origin: Origin::Runbook,
            actor: Unit64::from_free_text("watch"),
            reason: None,
            dry_run: false,
            attach: false,
            grant: None,
        };
        let (mut assessed, mut why) = (None, None);
        let hears = async {
            while let Some(news) = told.recv().await {
                match news {
                    VerbNews::Event(event) => {
                        if let Body::Assessment(assessment) = event.body {
                            assessed = Some(assessment);
                        }
                    }
                    VerbNews::Again { why: said, .. } => why = Some(said),
                    VerbNews::Artifact { .. } => {}
                }
            }
        };
        let looked = async { tokio::join!(self.hands.verb(ask, tell), hears).0 };
        let Ok(end) = tokio::time::timeout(Duration::from_millis(LOOK_MS), looked).await else {
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            let what = format!("The host gave no answer to status within {} s{why}.", LOOK_MS / 1000);
            return silent(&Message::new(what, "Look whether the host runs: breakglass doctor."));
        };
        match &end.checked {
            Err(_) => silent(&end.said),
            Ok(proved) => {
                let body = proved.body();
                let Some(code) = body.assessment else { return silent(&body.message) };
                // What is advised is not signed: it counts where its code is the signed one.
                let assessed = assessed.filter(|own| own.code == code);
                Seen {
                    look: if code == Code::Healthy { Look::Well } else { Look::Bad(Trouble::Vm(code)) },
                    vmid: body.vmid,
                    sentence: assessed.as_ref().map_or_else(|| body.message.what.clone(), |own| own.sentence.clone()),
                    next: assessed.as_ref().map_or_else(|| body.message.next.clone(), |own| own.recommend.why.clone()),
                    recommend: assessed.and_then(|own| own.recommend.verb),
                }
            }
        }
    }

    fn remembered(&self) -> Memory {
        let read = std::fs::read(&self.file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        read.unwrap_or_default()
    }

    fn remember(&self, memory: &Memory) {
        let new = self.file.with_extension("new");
        let text = serde_json::to_vec(memory).unwrap_or_default();
        if let Err(error) = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &self.file)) {
            warn!(
                event = "degraded",
                "the watch can't keep what it told in {} ({error}): after a restart it tells it again",
                self.file.display()
            );
        }
    }
}

impl Trouble {
    /// Whether an incident is opened for it: what a person may have wanted, or what no verb helps, is told only.
    pub const fn is_a_wedge(self) -> bool {
        !matches!(
            self,
            Self::HostSilent
                | Self::Vm(Code::Stopped | Code::Locked | Code::Elsewhere | Code::Interrupted | Code::Survivor | Code::PveUnresponsive)
        )
    }
}

fn word(trouble: Trouble) -> String {
    match trouble {
        Trouble::Vm(code) => code.to_string(),
        Trouble::HostSilent => "host-silent".to_owned(),
    }
}

/// Text that the host has escaped once: its backslashes stay as they are.
fn plain(text: &str) -> String {
    text.split('\\').map(|part| proto::escape(part.as_bytes())).collect::<Vec<_>>().join("\\")
}

/// A notice; what the host quotes of a guest is escaped here once more than the host did it.
fn notice(event: Kind, trouble: Trouble, since: Timestamp, seen: &Seen) -> Notice {
    let (sentence, next) = (plain(&seen.sentence), plain(&seen.next));
    Notice {
        v: 1,
        event,
        at: now(),
        vmid: seen.vmid,
        code: word(trouble),
        since,
        text: format!("{sentence} {next}"),
        sentence,
        next,
        recommend: seen.recommend,
        incident: None,
        healthy: None,
    }
}

fn now() -> Timestamp {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}
