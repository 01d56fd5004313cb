//! The keyholder and a scripted Vault: TLS with an authority made for the test, logins, leases, rotation, and a Vault that fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]

#[path = "support/keyholder.rs"]
mod support;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use support::{Keyholder, fingerprint, key};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// What the scripted Vault knows and has seen.
struct Script {
    /// What the secret holds.
    fields: Value,
    /// The token that it believes.
    token: String,
    /// The JWT that it believes.
    jwt: String,
    /// Seconds of each lease.
    lease: u64,
    /// Answers given first, whatever is asked.
    first: Vec<u16>,
    /// Whether a renewal is refused, as at a token's longest life.
    no_renewal: bool,
    /// What was asked.
    seen: Vec<String>,
}

type Shared = Arc<Mutex<Script>>;

async fn vault(State(script): State<Shared>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> (StatusCode, Json<Value>) {
    let mut script = script.lock().unwrap();
    script.seen.push(format!("{method} {}", uri.path()));
    if let Some(status) = script.first.pop() {
        return (StatusCode::from_u16(status).unwrap(), Json(json!({"errors": ["scripted"]})));
    }
    let denied = (StatusCode::FORBIDDEN, Json(json!({"errors": ["permission denied"]})));
    let auth = json!({"auth": {"client_token": script.token, "lease_duration": script.lease, "renewable": true}});
    let authorised = headers.get("x-vault-token").is_some_and(|token| token.as_bytes() == script.token.as_bytes());
    match (method.as_str(), uri.path()) {
        ("POST", "/v1/auth/kubernetes/login") => {
            let asked: Value = serde_json::from_slice(&body).unwrap();
            if asked == json!({"role": "breakglass", "jwt": script.jwt}) { (StatusCode::OK, Json(auth)) } else { denied }
        }
        ("POST", "/v1/auth/token/renew-self") if authorised && !script.no_renewal => (StatusCode::OK, Json(auth)),
        ("GET", "/v1/secret/data/breakglass") if authorised => {
            (StatusCode::OK, Json(json!({"data": {"data": script.fields, "metadata": {"version": 3}}})))
        }
        _ => denied,
    }
}

struct Tls(TcpListener, TlsAcceptor);

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((stream, from)) = self.0.accept().await else { continue };
            if let Ok(stream) = self.1.accept(stream).await {
                return (stream, from);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

/// The scripted Vault, its address and the certificate of its authority.
struct Vault {
    script: Shared,
    port: u16,
    ca: String,
    _runtime: tokio::runtime::Runtime,
}

impl Vault {
    fn start(fields: Value) -> Self {
        let first = Vec::new();
        let script =
            Script { fields, token: "hvs.one".into(), jwt: "jwt-one".into(), lease: 4, first, no_renewal: false, seen: Vec::new() };
        let script = Arc::new(Mutex::new(script));
        let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let secret = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], secret).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let app = axum::Router::new().fallback(vault).with_state(Arc::clone(&script));
        runtime.spawn(async move { axum::serve(Tls(listener, TlsAcceptor::from(Arc::new(config))), app).await });
        Self { script, port, ca: own.cert.pem(), _runtime: runtime }
    }

    fn set(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }

    fn seen(&self, what: &str) -> usize {
        self.script.lock().unwrap().seen.iter().filter(|seen| seen.contains(what)).count()
    }

    fn keyholder(&self, ca: &str) -> Keyholder {
        let config = format!(
            "[keyholder]\nsocket = \"DIR/agent.sock\"\n[vault]\naddress = \"https://127.0.0.1:{}\"\nrole = \"breakglass\"\n\
             path = \"secret/data/breakglass\"\njwt_file = \"DIR/jwt\"\nca_file = \"DIR/ca.pem\"\n",
            self.port
        );
        Keyholder::start(&config, &[("jwt", "jwt-one\n"), ("ca.pem", ca)], &[]).ready()
    }
}

#[test]
fn keys_come_from_vault_are_read_again_and_stay_when_it_fails() {
    let vault = Vault::start(json!({"host": key(1).0, "devvm": key(2).0}));
    vault.set(|script| script.first = vec![503, 429]);
    let holder = vault.keyholder(&vault.ca);
    holder.until("both keys, after two answers that pass", 20, |k| {
        k.listed().contains(&fingerprint(1)) && k.listed().contains(&fingerprint(2))
    });
    assert_eq!(vault.seen("login"), 3, "{:?}", vault.script.lock().unwrap().seen);

    // The lease is renewed, and a key that was replaced is replaced here.
    vault.set(|script| script.fields = json!({"host": key(3).0, "devvm": key(2).0}));
    holder.until("the new key", 15, |k| k.listed().contains(&fingerprint(3)) && !k.listed().contains(&fingerprint(1)));
    assert!(vault.seen("renew-self") >= 1);
    assert_eq!(vault.seen("login"), 3);

    // The token's life is over: a new login, with the token file as it is by then.
    std::fs::write(holder.path("jwt"), "jwt-two").unwrap();
    vault.set(|script| {
        (script.no_renewal, script.jwt, script.token) = (true, "jwt-two".into(), "hvs.two".into());
        script.fields = json!({"host": key(4).0});
    });
    holder.until("the key after another login", 15, |k| k.listed().contains(&fingerprint(4)));

    // Vault refuses from now on, then is gone: what is held stays.
    vault.set(|script| script.jwt = "another".into());
    holder.until("a warning", 20, |k| k.log().contains("refuses the login"));
    assert!(holder.listed().contains(&fingerprint(4)));
    drop(vault);
    holder.until("another warning", 30, |k| k.log().contains("can't be asked"));
    assert!(holder.listed().contains(&fingerprint(4)));
    for secret in ["hvs.one", "hvs.two", "jwt-one", "jwt-two"].map(str::to_owned).iter().chain(&middles(&[1, 2, 3, 4])) {
        assert!(!holder.log().contains(secret), "{secret} stands in the log");
    }
}

fn middles(seeds: &[u8]) -> Vec<String> {
    seeds.iter().flat_map(|seed| key(*seed).0.lines().skip(1).take(4).map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn a_field_that_is_no_key_takes_the_others_from_nobody_and_is_not_quoted() {
    let vault = Vault::start(json!({"host": key(1).0, "password": "hunter2-hunter2", "old": key(2).0.replacen('A', "B", 9)}));
    let holder = vault.keyholder(&vault.ca);
    holder.until("the good key", 20, |k| k.listed().contains(&fingerprint(1)));
    let log = holder.log();
    assert!(log.contains("vault:password is not an OpenSSH private key") && log.contains("vault:old is not"), "{log}");
    assert!(!log.contains("hunter2") && middles(&[1]).iter().all(|line| !log.contains(line)), "{log}");
}

#[test]
fn another_authority_gets_no_token_and_the_socket_is_there_all_the_same() {
    let vault = Vault::start(json!({"host": key(1).0}));
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap().cert.pem();
    let holder = vault.keyholder(&other);
    holder.until("a warning", 20, |k| k.log().contains("can't be asked"));
    assert!(holder.log().contains("The keys held so far stay"), "{}", holder.log());
    assert_eq!(vault.seen(""), 0);
    assert!(holder.listed().contains("no identities"), "{}", holder.listed());
}

#[test]
fn an_answer_that_is_huge_or_of_another_shape_is_no_key() {
    let vault = Vault::start(json!({"host": "x".repeat(300_000)}));
    let holder = vault.keyholder(&vault.ca);
    holder.until("a warning", 30, |k| k.log().contains("more than 262144 bytes"));
    vault.set(|script| script.fields = json!({"host": {"nested": "hunter2"}}));
    holder.until("another", 30, |k| k.log().contains("answers what this version does not read"));
    assert!(!holder.log().contains("hunter2") && holder.resident() < 30 * 1024, "{} KiB: {}", holder.resident(), holder.log());
    vault.set(|script| script.fields = json!({"host": key(1).0}));
    holder.until("the key at last", 30, |k| k.listed().contains(&fingerprint(1)));
}
