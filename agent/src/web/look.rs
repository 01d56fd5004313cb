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

/// A host that has said nothing for this long is shown as silent.
const SILENT: Duration = Duration::from_secs(8);
/// Between two looks while somebody looks at a page, and while nobody does.
const WATCHED: Duration = Duration::from_secs(10);
const UNWATCHED: Duration = Duration::from_secs(60);
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
    pub seen: Result<Known, Message>,
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
    /// What a form is bound to: the state, the judgement and the QEMU process that were shown.
    pub fn key(&self) -> String {
        match &self.seen {
            Err(_) => "silent".to_owned(),
            Ok(known) => {
                let qemu = known.body.qemu_after.map(|qemu| format!("{}.{}", qemu.pid, qemu.started)).unwrap_or_default();
                format!("{}/{}/{qemu}", known.body.state_after, known.code().map(|code| code.to_string()).unwrap_or_default())
            }
        }
    }

    /// Whether nothing needs doing, as far as one can see.
    pub fn is_healthy(&self) -> bool {
        matches!(&self.seen, Ok(known) if known.code() == Some(Code::Healthy))
    }

    /// How old it is.
    pub fn age(&self) -> Duration {
        Duration::from_millis(now().unix_ms().saturating_sub(self.at.unix_ms()))
    }
}

impl Known {
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
        let none = Message::new("The host has not been asked yet.", "Wait a moment.");
        let (latest, _) = watch::channel(Arc::new(Look { at, since: at, at_least: true, seen: Err(none) }));
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

    /// Looks, for ever.
    pub async fn run(&self, hands: Arc<dyn Hands>) {
        let kept = std::fs::read(&self.file).ok().and_then(|text| serde_json::from_slice::<Since>(&text).ok());
        let mut before = kept;
        loop {
            let at = now();
            let seen = look(&hands).await;
            let mut look = Look { at, since: at, at_least: before.is_none(), seen };
            // Silence has its own beginning, and ends without forgetting what was before it.
            let key = look.key();
            match &before {
                Some(was) if was.key == key => (look.since, look.at_least) = (was.since, was.at_least),
                _ => {
                    let since = Since { key, since: at, at_least: look.at_least };
                    let text = serde_json::to_vec(&since).unwrap_or_default();
                    let _after_a_restart_it_is_at_least = crate::host::keep::write(&self.file, &text);
                    before = Some(since);
                }
            }
            self.latest.send_replace(Arc::new(look));
            let watched = self.interest.load(Ordering::Relaxed) + INTEREST_MS > now().unix_ms();
            tokio::select! {
                () = self.wanted.notified() => {}
                () = tokio::time::sleep(if watched { WATCHED } else { UNWATCHED }) => {}
            }
        }
    }
}

/// One `status`, within [`SILENT`]. What goes on after that is dropped: it changes nothing.
async fn look(hands: &Arc<dyn Hands>) -> Result<Known, Message> {
    let ask = VerbAsk {
        verb: Verb::Status,
        request_id: fresh_id()?,
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
    let began = Instant::now();
    let both = async { tokio::join!(hands.verb(ask, tell), judged) };
    let Ok((end, judged)) = tokio::time::timeout(SILENT, both).await else {
        return Err(Message::new(
            format!("The host has given no answer for {} s.", began.elapsed().as_secs()),
            "The buttons still ask it. If it stays silent, use the host's console: pve-verb status.",
        ));
    };
    match end.checked {
        Ok(proved) => {
            let body = proved.body().clone();
            let judged = judged.filter(|judged| Some(judged.code) == body.assessment);
            Ok(Known { body, judged })
        }
        Err(_) => Err(end.said),
    }
}
