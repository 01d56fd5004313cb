//! The page for one tired person on a phone, and its API.
//!
//! ```text
//! request ──> serve.rs (bounds) ──> guard.rs: origin.rs (Host, same origin), auth.rs (who?), limits.rs ──> a route ──> HTML or JSON
//!                                                                    └─ what changes something: tokens.rs (this state, once)
//!  looks (look.rs: status in the background) ──┐
//!  incidents, folded by run.rs, entries.rs ─────┴──> home, runs, incidents, evidence, receipts, doctor: one file a page, shell.rs around
//! ```
//! Every page is whole without JavaScript; `app.js` only keeps it fresh.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;

pub mod app;
pub mod auth;
mod doctor;
mod entries;
mod events;
mod evidence;
mod files;
mod guard;
mod home;
mod incidents;
pub mod limits;
pub mod look;
pub mod meter;
pub mod origin;
mod press;
mod receipts;
mod run;
mod runbook;
mod runs;
mod send;
pub mod serve;
mod shell;
pub mod site;
mod story;
pub mod talk;
mod tar;
pub mod tokens;

use app::App;

/// The longest body of a request: a sentence, a form.
const BODY: usize = 64 * 1024;
/// The longest that an answer may take to begin.
const ANSWER: Duration = Duration::from_secs(20);

/// The routes, with everything around them.
pub fn routes(app: &Arc<App>) -> Router {
    Router::new()
        .route("/", get(home::home))
        .route("/events", get(events::looks))
        .route("/verbs/{verb}/confirm", get(press::confirm))
        .route("/verbs/{verb}", post(press::press))
        .route("/runbook", get(runbook::confirm).post(runbook::begin))
        .route("/runs/{id}", get(runs::run))
        .route("/incidents", get(incidents::list).post(incidents::open))
        .route("/incidents/{id}/events", get(events::incident))
        .route("/incidents/{id}", get(story::incident))
        .route("/incidents/{id}/files/{*name}", get(story::file))
        .route("/incidents/{id}/{what}", post(incidents::act))
        .route("/evidence", get(evidence::list))
        .route("/evidence/{id}", get(evidence::bundle))
        .route("/evidence/{id}/{*path}", get(evidence::shown))
        .route("/artifacts/{id}/{*path}", get(evidence::raw))
        .route("/receipts", get(receipts::list))
        .route("/doctor", get(doctor::doctor).post(doctor::again))
        .route("/hostkey", get(doctor::hostkey).post(doctor::accept))
        .route("/link/{secret}", get(files::link))
        .route("/metrics", get(meter::metrics))
        .route("/assets/{name}", get(files::asset))
        .route("/manifest.webmanifest", get(files::manifest))
        .route("/openapi.json", get(files::openapi))
        .route("/healthz", get(files::healthz))
        .route("/readyz", get(files::readyz))
        .fallback(files::nowhere)
        .layer(DefaultBodyLimit::max(BODY))
        .layer(RequestBodyLimitLayer::new(BODY))
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, ANSWER))
        // Outermost: what the layers before refuse has the same headers, is counted, and is a page.
        .layer(from_fn_with_state(Arc::clone(app), guard::guard))
        .with_state(Arc::clone(app))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn the_openapi_document_names_every_route_and_no_other() {
        let routed: BTreeSet<String> = include_str!("web.rs")
            .lines()
            .filter_map(|line| line.trim().strip_prefix(".route(\"")?.split_once('"').map(|(path, _)| path.replace("{*", "{")))
            .collect();
        let document: serde_json::Value = serde_json::from_str(include_str!("../assets/openapi.json")).unwrap();
        let told: BTreeSet<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
        assert!(routed.len() > 20);
        assert_eq!(routed, told);
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, said) in methods.as_object().unwrap() {
                let named = path.matches('{').count();
                let told = said["parameters"].as_array().map_or(0, |all| all.iter().filter(|one| one["in"] == "path").count());
                assert_eq!(named, told, "{method} {path}");
            }
        }
    }
}
