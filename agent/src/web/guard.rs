//! The way to every route: which host is named, who asks, from where, how often; and on the way back the headers that every answer has.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use proto::Message;

use super::app::App;
use super::auth::{How, Refused, Who};
use super::press::is_machine;
use super::{origin, shell};

/// What is served to everybody: nothing in it is about the VM.
fn is_open(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz" | "/openapi.json" | "/manifest.webmanifest")
        || path.starts_with("/assets/")
        || path.starts_with("/link/")
}

/// Whether the answer is to be JSON.
pub(super) fn wants_json(headers: &HeaderMap, who: &Who) -> bool {
    accepts_json(headers) || (is_machine(who) && !headers.contains_key(header::ACCEPT))
}

fn accepts_json(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).is_some_and(|text| text.contains("application/json"))
}

/// The middleware around everything.
pub(super) async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut named = None;
    let json = accepts_json(request.headers());
    let mut answer = match admit(&app, request, &mut named).await {
        Ok(request) => paged(next.run(request).await, json || named.as_ref().is_some_and(is_machine)),
        Err(refused) => refused,
    };
    for (name, value) in origin::HEADERS {
        // A file that never changes may say otherwise for itself.
        answer.headers_mut().entry(name).or_insert(value);
    }
    let status = answer.status().as_u16();
    app.meter.answered(status);
    let quiet = method == Method::GET && status < 400;
    if !quiet {
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let who = named.as_ref().map_or("", |who: &Who| who.name.as_str());
        let how = named.as_ref().map_or("", |who| who.how.word());
        tracing::info!(event = "http", %method, path = proto::escape_cut(path.as_bytes(), 200), status, ms, who, how);
    }
    answer
}

/// What refuses before a route does it in a bare line of text: the same as a page, with what to do.
fn paged(answer: Response, json: bool) -> Response {
    let bare = |value: &header::HeaderValue| value.as_bytes().starts_with(b"text/plain");
    let kind = answer.headers().get(header::CONTENT_TYPE);
    if !answer.status().is_client_error() || answer.headers().contains_key(header::CONTENT_SECURITY_POLICY) || !kind.is_none_or(bare) {
        return answer;
    }
    let (status, what, next) = match answer.status() {
        StatusCode::METHOD_NOT_ALLOWED => {
            (StatusCode::METHOD_NOT_ALLOWED, "This page can't be asked in that way.", "Go to the first screen.")
        }
        StatusCode::PAYLOAD_TOO_LARGE => (StatusCode::PAYLOAD_TOO_LARGE, "That was longer than 64 KiB.", "Say it in fewer words."),
        StatusCode::REQUEST_TIMEOUT => {
            (StatusCode::REQUEST_TIMEOUT, "It did not come or answer in time.", "Look on the first screen what is so now.")
        }
        StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, "That was no form.", "Send application/x-www-form-urlencoded: see /openapi.json.")
        }
        status => (status, "What was asked has another form than this page knows.", "Go to the first screen; machines: see /openapi.json."),
    };
    let mut paged = shell::refusal(status, &Message::new(what, next), json);
    if let Some(allowed) = answer.headers().get(header::ALLOW) {
        paged.headers_mut().insert(header::ALLOW, allowed.clone());
    }
    paged
}

/// Lets a request in, with who asks in it.
async fn admit(app: &App, mut request: Request, named: &mut Option<Who>) -> Result<Request, Response> {
    let headers = request.headers();
    let json = accepts_json(headers);
    if is_open(request.uri().path()) {
        return if request.uri().path().starts_with("/link/") { here(app, headers, json).map(|()| request) } else { Ok(request) };
    }
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)), |info| info.0);
    let who = identify(app, peer, headers, json).await?;
    *named = Some(who.clone());
    if who.how == How::Metrics && (request.uri().path() != "/metrics" || *request.method() != Method::GET) {
        let said = Message::new(
            "This token opens /metrics and nothing else.",
            "Use one whose line of web.tokens_file has no :metrics at its end.",
        );
        return Err(shell::refusal(StatusCode::FORBIDDEN, &said, json));
    }
    // What a page elsewhere can't know or send needs no look at the name of the host.
    if matches!(who.how, How::Password | How::Link) {
        here(app, headers, json)?;
    }
    let acts = !matches!(*request.method(), Method::GET | Method::HEAD);
    if acts && !origin::is_same(headers, is_machine(&who)) {
        let said = Message::new("This was sent by a page of another site, or by none.", "Press the button on this page itself.");
        return Err(shell::refusal(StatusCode::FORBIDDEN, &said, json));
    }
    let bucket = if acts { &app.acts } else { &app.reads };
    bucket.take(who.name.clone()).map_err(|wait| later(wait.as_secs() + 1, json))?;
    request.extensions_mut().insert(who);
    Ok(request)
}

/// On loopback, that the browser means loopback.
fn here(app: &App, headers: &HeaderMap, json: bool) -> Result<(), Response> {
    if !app.loopback || origin::is_loopback_host(headers) {
        return Ok(());
    }
    let said =
        Message::new("This page is only for this machine, and was asked for under another name.", "Open http://127.0.0.1 with its port.");
    Err(shell::refusal(StatusCode::MISDIRECTED_REQUEST, &said, json))
}

async fn identify(app: &App, peer: SocketAddr, headers: &HeaderMap, json: bool) -> Result<Who, Response> {
    let refused = match app.door.who(peer, headers).await {
        Ok(who) => return Ok(who),
        Err(refused) => refused,
    };
    let (status, what, next) = match refused {
        Refused::Busy(wait) => return Err(later(wait.as_secs() + 1, json)),
        Refused::Nobody => (StatusCode::UNAUTHORIZED, "Nobody is let in without saying who they are.", way_in(app)),
        Refused::Wrong => {
            tracing::warn!(event = "refused", why = "wrong credentials", peer = %peer.ip());
            (StatusCode::UNAUTHORIZED, "What was sent to say who you are does not hold.", way_in(app))
        }
        Refused::Forged => {
            tracing::warn!(event = "refused", why = "identity header from elsewhere, or without the proxy's secret", peer = %peer.ip());
            let next = "If this came through your proxy, compare web.proxies and the secret of X-Breakglass-Proxy on both sides.";
            (StatusCode::FORBIDDEN, "An identity was claimed that only the proxy may claim.", next)
        }
    };
    let mut answer = shell::refusal(status, &Message::new(what, next), json);
    if status == StatusCode::UNAUTHORIZED && app.door.takes_passwords() {
        answer
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static(r#"Basic realm="breakglass", charset="UTF-8""#));
    }
    Err(answer)
}

fn way_in(app: &App) -> &'static str {
    if app.door.is_only_for_loopback() {
        "Open the link that breakglass serve printed; it counts once. Start it again for another."
    } else if app.door.takes_passwords() {
        "Sign in through your proxy, or with a name and password of web.basic_file."
    } else {
        "Sign in through your proxy, or send a token of web.tokens_file."
    }
}

fn later(seconds: u64, json: bool) -> Response {
    let said = Message::new("That was too much at once.", format!("Try again in {seconds} s; plain ssh to the host works meanwhile."));
    let mut answer = shell::refusal(StatusCode::TOO_MANY_REQUESTS, &said, json).into_response();
    answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    answer
}
