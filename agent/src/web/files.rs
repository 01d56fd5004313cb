//! What is compiled in: the style sheet, the module, the icons; and what says whether the program is alive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use proto::Message;
use rust_embed::RustEmbed;

use super::app::App;
use super::auth::{COOKIE, Who};
use super::guard::wants_json;
use super::shell;

/// How long the keyholder may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// How long readiness is not examined again.
const KNOWN: Duration = Duration::from_secs(1);

/// What was found, and when.
pub(super) type Ready = tokio::sync::Mutex<Option<(Instant, Result<(), String>)>>;

#[derive(RustEmbed)]
#[folder = "assets/"]
struct Assets;

fn kind(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("json") => "application/json",
        Some("webmanifest") => "application/manifest+json",
        _ => "application/octet-stream",
    }
}

fn file(name: &str) -> Response {
    let Some(found) = Assets::get(name) else {
        return shell::refusal(StatusCode::NOT_FOUND, &Message::new("There is no such file.", "Go to the first screen."), false);
    };
    // Short: after an upgrade a page must not be drawn by the files of the version before.
    let headers = [(header::CONTENT_TYPE, kind(name)), (header::CACHE_CONTROL, "public, max-age=300")];
    (headers, found.data.into_owned()).into_response()
}

/// `GET /assets/{name}`.
pub(super) async fn asset(Path(name): Path<String>) -> Response {
    file(&name)
}

/// Whatever is no route.
pub(super) async fn nowhere(headers: HeaderMap, Extension(who): Extension<Who>) -> Response {
    let said = Message::new("There is no such page.", "Go to the first screen.");
    shell::refusal(StatusCode::NOT_FOUND, &said, wants_json(&headers, &who))
}

/// `GET /manifest.webmanifest`.
pub(super) async fn manifest() -> Response {
    file("manifest.webmanifest")
}

/// `GET /openapi.json`.
pub(super) async fn openapi() -> Response {
    file("openapi.json")
}

/// `GET /healthz`: the process answers.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: what is inside the pod is there. Nothing of the host, the devvm or the API: the page must not vanish with them.
pub(super) async fn readyz(State(app): State<Arc<App>>) -> Response {
    match ready(&app).await {
        Ok(()) => "ready\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn ready(app: &App) -> Result<(), String> {
    // Anybody may ask: who asks at once with others, or right after them, is told the same.
    let mut last = app.ready.lock().await;
    if let Some((at, known)) = &*last
        && at.elapsed() < KNOWN
    {
        return known.clone();
    }
    let now = examine(app).await;
    *last = Some((Instant::now(), now.clone()));
    now
}

async fn examine(app: &App) -> Result<(), String> {
    let probe = app.state.join(".ready");
    // A byte: a full tmpfs takes an empty file. Whoever asks makes room too, so the page stays where any can be made.
    let written = app.store.bound().writes(|| std::fs::write(&probe, b"\n"));
    let written = written.and(std::fs::remove_file(&probe));
    written.map_err(|error| format!("the state folder can't be written: {error}"))?;
    let Some(socket) = &app.keyholder else { return Ok(()) };
    match tokio::time::timeout(ANSWER, tokio::net::UnixStream::connect(socket)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("the keyholder's socket: {error}")),
        Err(_) => Err("the keyholder's socket takes no connection".to_owned()),
    }
}

/// `GET /link/{secret}`: the one-time link becomes a session.
pub(super) async fn link(State(app): State<Arc<App>>, method: Method, Path(secret): Path<String>) -> Response {
    // What only looks whether there is something, as a preview does, does not spend it.
    if method != Method::GET {
        return StatusCode::NO_CONTENT.into_response();
    }
    let Some(session) = app.door.follow_link(&secret) else {
        let said = Message::new("This link was used before, or is not the newest.", "Start breakglass serve again for another.");
        return shell::refusal(StatusCode::FORBIDDEN, &said, false);
    };
    // No Domain: the cookie is this host's alone.
    let cookie = format!("{COOKIE}={session}; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200");
    (StatusCode::SEE_OTHER, [(header::LOCATION, "/".to_owned()), (header::SET_COOKIE, cookie)]).into_response()
}
