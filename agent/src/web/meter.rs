//! What is counted, for Prometheus. Every verb of this program goes through [`Counted`], whoever asked for it.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc::Sender;

use super::app::App;
use crate::doctor::Level;
use crate::hands::{Doing, ExecAsk, ExecEnd, ExecNews, Hands, VerbAsk, VerbEnd, VerbNews};

/// How verbs ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ended {
    verb: &'static str,
    /// The receipt's, or `unproved`.
    outcome: &'static str,
}

/// How pages were answered.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    status: u16,
}

/// What the doctor found.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Tried {
    what: &'static str,
}

/// The counters.
#[derive(Debug, Default)]
pub struct Meter {
    verbs: Family<Ended, Counter>,
    degraded: Counter,
    unproved: Counter,
    unreviewed: Gauge,
    claude: Counter,
    answers: Family<Answered, Counter>,
    doctor: Family<Tried, Gauge>,
    streams: Gauge<i64, AtomicI64>,
    healthy: Gauge,
    age: Gauge,
}

impl Meter {
    fn verb(&self, ask: &VerbAsk, end: &VerbEnd) {
        let outcome = match &end.checked {
            Ok(proved) => {
                let body = proved.body();
                if !body.degraded.is_empty() {
                    self.degraded.inc();
                }
                if let Some(unreviewed) = body.unreviewed {
                    self.unreviewed.set(i64::try_from(unreviewed).unwrap_or(i64::MAX));
                }
                body.outcome.as_str()
            }
            Err(_) if !end.sent => "not-sent",
            Err(_) => {
                self.unproved.inc();
                "unproved"
            }
        };
        self.verbs.get_or_create(&Ended { verb: ask.verb.as_str(), outcome }).inc();
    }

    /// Calls of Claude's API that failed.
    pub(super) fn claude_failed(&self, how_often: u64) {
        self.claude.inc_by(how_often);
    }

    /// A request was answered.
    pub(super) fn answered(&self, status: u16) {
        self.answers.get_or_create(&Answered { status }).inc();
    }

    /// A stream began (1) or ended (-1).
    pub(super) fn stream(&self, change: i64) {
        self.streams.inc_by(change);
    }

    /// What the doctor found: 0 well, 1 weak, 2 broken; the worst of each name.
    pub(super) fn doctor(&self, all: &[crate::doctor::Finding]) {
        self.doctor.clear();
        for one in all {
            let level = match one.level {
                Level::Ok => 0,
                Level::Warn => 1,
                Level::Bad => 2,
            };
            let gauge = self.doctor.get_or_create(&Tried { what: one.name });
            gauge.set(gauge.get().max(level));
        }
    }

    fn text(&self) -> String {
        let mut all = Registry::with_prefix("breakglass");
        all.register(
            "verbs",
            "Verbs asked for, by how they ended; unproved: no valid receipt; not-sent: never reached the host",
            self.verbs.clone(),
        );
        all.register("evidence_degraded", "Receipts that say that something is weaker than it should be", self.degraded.clone());
        all.register("receipts_unverified", "Verbs that ended without a valid receipt", self.unproved.clone());
        all.register("uses_unreviewed", "Mutating uses that nobody has reviewed on the host", self.unreviewed.clone());
        all.register("claude_errors", "Calls of Claude's API that failed", self.claude.clone());
        all.register("http_answers", "Requests answered, by status", self.answers.clone());
        all.register("doctor", "What the doctor found: 0 well, 1 weak, 2 broken", self.doctor.clone());
        all.register("event_streams", "Event streams that are open", self.streams.clone());
        all.register("vm_healthy", "Whether the last look found the VM healthy", self.healthy.clone());
        all.register("look_age_seconds", "Age of the last look at the VM", self.age.clone());
        let mut text = String::new();
        let _strings_take_everything = prometheus_client::encoding::text::encode(&mut text, &all);
        text
    }
}

/// `GET /metrics`.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let look = app.looks.latest();
    app.meter.healthy.set(look.is_healthy().into());
    app.meter.age.set(i64::try_from(look.age().as_secs()).unwrap_or(i64::MAX));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.meter.text()).into_response()
}

/// Hands whose every verb is counted.
pub struct Counted {
    hands: Arc<dyn Hands>,
    meter: Arc<Meter>,
}

impl Counted {
    /// Around these.
    pub fn new(hands: Arc<dyn Hands>, meter: &Arc<Meter>) -> Self {
        Self { hands, meter: Arc::clone(meter) }
    }
}

impl Hands for Counted {
    fn vmid(&self) -> proto::Vmid {
        self.hands.vmid()
    }

    fn verb(&self, ask: VerbAsk, news: Sender<VerbNews>) -> Doing<'_, VerbEnd> {
        Box::pin(async move {
            let end = self.hands.verb(ask.clone(), news).await;
            self.meter.verb(&ask, &end);
            end
        })
    }

    fn exec(&self, ask: ExecAsk, news: Sender<ExecNews>) -> Doing<'_, ExecEnd> {
        self.hands.exec(ask, news)
    }
}
