//! What the VM looks like now: `status`, asked in the background, so that no page ever waits for a host that is silent. Each look has its
//! age; what nobody could see is shown as that.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proto::{Assessment, Body, Code, Message, Origin, ReceiptBody, Timestamp, Unit64, Verb, VmState};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, watch};

use crate::hands::{Hands, VerbAsk, VerbNews};
use crate::incident::{fresh_id, now};
use crate::receipt::Unproved;

/// A host that has said nothing for this long is shown as silent.
const SILENT: Duration = Duration::from_secs(8);
/// Between two looks while somebody looks at a page, and while nobody does.
const WATCHED: Duration = Duration::from_secs(10);
const UNWATCHED: Duration = Duration::from_secs(60);
/// After a look that saw something new: the first look at a QEMU process has nothing to compare its disks with, so it can't tell a stall.
const AGAIN: Duration = Duration::from_millis(1_500);
/// Somebody who asked for a page within this time looks at it.
const INTEREST_MS: u64 = 45_000;

/// A look at the VM.
#[derive(Clone, Debug)]
pub struct Look {
    /// When it was asked for.
    pub at: Timestamp,
    /// Since when it has looked like this.
    pub since: Timestamp,
    /// Whether it was like this already when this program looked for the first time: then `since` is no beginning.
    pub at_least: bool,
    /// What was seen; or why nothing was.
    pub seen: Result<Known, Unseen>,
    /// Where nothing was: the last look that saw something.
    pub last: Option<Arc<Self>>,
    key: String,
}

/// Why nothing was seen.
#[derive(Clone, Debug)]
pub struct Unseen {
    /// What happened, what to do.
    pub said: Message,
    /// Whether the host answered, about another VM than the configured one.
    pub other_vm: bool,
}

/// What a signed `status` says.
#[derive(Clone, Debug)]
pub struct Known {
    /// What the host signed.
    pub body: ReceiptBody,
    /// Its judgement, where the code is the signed one.
    pub judged: Option<Assessment>,
}

impl Look {
    /// What a form is bound to: the state, the judgement and the QEMU process that were seen last. Silence changes none of them: a host
    /// that is slow must not make every confirmation stale.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether nothing needs doing, as far as one can see.
    pub fn is_healthy(&self) -> bool {
        matches!(&self.seen, Ok(known) if known.code() == Some(Code::Healthy))
    }

    /// Whether nothing needs doing, and a second look said so too.
    pub fn is_healthy_still(&self) -> bool {
        self.is_healthy() && self.at > self.since
    }

    /// Why nothing may be changed: what would be changed is not the VM that every text here names.
    pub fn is_for_another_vm(&self) -> Option<&Message> {
        self.seen.as_ref().err().filter(|unseen| unseen.other_vm).map(|unseen| &unseen.said)
    }

    /// How old it is.
    pub fn age(&self) -> Duration {
        Duration::from_millis(now().unix_ms().saturating_sub(self.at.unix_ms()))
    }
}

impl Unseen {
    const fn silent(said: Message) -> Self {
        Self { said, other_vm: false }
    }

    /// It in two or three words.
    pub const fn headline(&self) -> &'static str {
        if self.other_vm { "Another VM's key" } else { "Host silent" }
    }
}

impl Known {
    fn key(&self) -> String {
        let qemu = self.body.qemu_after.map(|qemu| format!("{}.{}", qemu.pid, qemu.started)).unwrap_or_default();
        format!("{}/{}/{qemu}", self.state(), self.code().map(|code| code.to_string()).unwrap_or_default())
    }

    /// The judgement's code.
    pub const fn code(&self) -> Option<Code> {
        self.body.assessment
    }

    /// The state.
    pub const fn state(&self) -> VmState {
        self.body.state_after
    }

    /// The verb that is advised.
    pub fn advised(&self) -> Option<Verb> {
        self.judged.as_ref()?.recommend.verb
    }
}

/// Since when it has been what; kept, so that a restart does not forget it.
#[derive(Serialize, Deserialize)]
struct Since {
    key: String,
    since: Timestamp,
    at_least: bool,
}

/// The looks, one after the other.
#[derive(Debug)]
pub struct Looks {
    latest: watch::Sender<Arc<Look>>,
    wanted: Notify,
    interest: AtomicU64,
    file: PathBuf,
}

impl Looks {
    /// Before the first one.
    pub fn new(state: &Path) -> Self {
        let at = now();
        let none = Unseen::silent(Message::new("The host has not been asked yet.", "Wait a moment."));
        let (latest, _) = watch::channel(Arc::new(Look { at, since: at, at_least: true, seen: Err(none), last: None, key: String::new() }));
        Self { latest, wanted: Notify::new(), interest: AtomicU64::new(0), file: state.join("look.json") }
    }

    /// The latest.
    pub fn latest(&self) -> Arc<Look> {
        Arc::clone(&self.latest.borrow())
    }

    /// Hears of each.
    pub fn hear(&self) -> watch::Receiver<Arc<Look>> {
        self.latest.subscribe()
    }

    /// Somebody looks at a page.
    pub fn interest(&self) {
        let before = self.interest.swap(now().unix_ms(), Ordering::Relaxed);
        if before + INTEREST_MS < now().unix_ms() && self.latest().age() > WATCHED {
            self.wanted.notify_one();
        }
    }

    /// Another look, now.
    pub fn want(&self) {
        self.wanted.notify_one();
    }

    /// A look that is at most this old, waited for only so long; otherwise the latest.
    pub async fn fresh(&self, most: Duration, wait: Duration) -> Arc<Look> {
        let mut hear = self.hear();
        if self.latest().age() <= most {
            return self.latest();
        }
        self.want();
        let _in_time = tokio::time::timeout(wait, hear.changed()).await;
        self.latest()
    }

    /// Shows a look. Silence has a beginning of its own, and ends without forgetting since when it was as it was before it.
    fn tell(&self, at: Timestamp, seen: Result<Known, Unseen>, before: &mut Option<Since>, silent: &mut Option<Timestamp>) {
        let known = seen.as_ref().map_or_else(|_| self.latest().key.clone(), Known::key);
        let mut look = Look { at, since: at, at_least: false, seen, last: None, key: known };
        if look.seen.is_err() {
            let before = self.latest();
            look.last = if before.seen.is_ok() { Some(before) } else { before.last.clone() };
            look.since = *silent.get_or_insert(at);
            self.latest.send_replace(Arc::new(look));
            return;
        }
        *silent = None;
        let key = look.key.clone();
        look.at_least = before.is_none();
        match before {
            Some(was) if was.key == key => (look.since, look.at_least) = (was.since, was.at_least),
            _ => {
                let since = Since { key, since: at, at_least: look.at_least };
                let text = serde_json::to_vec(&since).unwrap_or_default();
                let _after_a_restart_it_is_at_least = crate::host::keep::write(&self.file, &text);
                *before = Some(since);
            }
        }
        self.latest.send_replace(Arc::new(look));
    }

    /// Waits until it is time for the next one; who comes to look at a page meanwhile makes it sooner.
    async fn due(&self, new: bool) {
        let began = Instant::now();
        loop {
            let watched = self.interest.load(Ordering::Relaxed) + INTEREST_MS > now().unix_ms();
            let most = match (watched, new) {
                (_, true) => AGAIN,
                (true, false) => WATCHED,
                (false, false) => UNWATCHED,
            };
            if began.elapsed() >= most {
                return;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Looks, for ever.
    pub async fn run(&self, hands: Arc<dyn Hands>) {
        let kept = std::fs::read(&self.file).ok().and_then(|text| serde_json::from_slice::<Since>(&text).ok());
        let mut before = kept;
        let mut silent = None;
        loop {
            let at = now();
            let mut looking = std::pin::pin!(look(&hands));
            let seen = match tokio::time::timeout(SILENT, &mut looking).await {
                Ok(seen) => seen,
                // Shown as silent, and still waited for: a slow host's answer would never come if each was given up.
                Err(_) => {
                    self.tell(at, Err(silence()), &mut before, &mut silent);
                    looking.await
                }
            };
            self.tell(at, seen, &mut before, &mut silent);
            let latest = self.latest();
            let new = latest.seen.is_ok() && latest.since == latest.at;
            tokio::select! {
                () = self.wanted.notified() => {}
                () = self.due(new) => {}
            }
        }
    }
}

fn silence() -> Unseen {
    let next = "The buttons still ask it. If it stays silent, use the host's console: pve-verb status.";
    Unseen::silent(Message::new("The host gives no answer.", next))
}

/// One `status`, to its end.
async fn look(hands: &Arc<dyn Hands>) -> Result<Known, Unseen> {
    let ask = VerbAsk {
        verb: Verb::Status,
        request_id: fresh_id().map_err(Unseen::silent)?,
        origin: Origin::Runbook,
        actor: Unit64::from_free_text("page"),
        reason: None,
        dry_run: false,
        attach: false,
        grant: None,
    };
    let (tell, mut told) = mpsc::channel(64);
    let judged = async {
        let mut judged = None;
        while let Some(news) = told.recv().await {
            if let VerbNews::Event(event) = news
                && let Body::Assessment(assessment) = event.body
            {
                judged = Some(assessment);
            }
        }
        judged
    };
    let (end, judged) = tokio::join!(hands.verb(ask, tell), judged);
    match end.checked {
        Ok(proved) => {
            let body = proved.body().clone();
            let judged = judged.filter(|judged| Some(judged.code) == body.assessment);
            Ok(Known { body, judged })
        }
        Err(why) => Err(Unseen { said: end.said, other_vm: matches!(why, Unproved::OtherVm { .. }) }),
    }
}
