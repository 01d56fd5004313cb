//! Vault, over its HTTP API: a Kubernetes login, its renewal, and one secret of a KV version 2 store, each field of which is a key.
//!
//! Nothing that Vault answers is quoted in an error: an answer to this caller may hold keys.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::{Message, escape_cut};
use reqwest::header::HeaderValue;
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize as Derive;
use serde::de::{Deserialize, DeserializeOwned, Deserializer};
use serde_json::json;
use tracing::warn;
use zeroize::Zeroizing;

use super::keys::{self, Key};

/// One request, body and all.
const DEADLINE: Duration = Duration::from_secs(10);
/// A request that failed for a reason that passes is sent again after these.
const AGAIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];
/// A secret with some keys has less than 20 KiB.
const MAX_ANSWER: usize = 256 * 1024;
/// A projected token has about 1 KiB.
const MAX_JWT: usize = 16 * 1024;
/// The keys are read again at least, and at most, this often: at half of the login's lease between these.
const REFRESH: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(3600));

/// A login that holds.
struct Login {
    token: SecretString,
    lease: Duration,
    renewable: bool,
}

/// The client of one Vault.
pub(super) struct Client {
    settings: super::Vault,
    http: reqwest::Client,
    login: Option<Login>,
    /// Whether its policy lets a login be renewed: where it does not, there is a new login each time.
    renews: bool,
}

#[derive(Derive)]
struct Granted {
    auth: Auth,
}

#[derive(Derive)]
struct Auth {
    client_token: Secret,
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
}

#[derive(Derive)]
struct Answer {
    data: Version,
}

#[derive(Derive)]
struct Version {
    data: BTreeMap<String, Secret>,
}

/// Text that is wiped.
struct Secret(Zeroizing<String>);

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(|text| Self(Zeroizing::new(text)))
    }
}

/// Why a request failed.
enum Failed {
    /// The login does not hold, or does not suffice.
    Forbidden,
    /// Everything else, told.
    Told(Message),
}

impl Client {
    /// A client; nothing is sent yet.
    pub(super) fn new(settings: super::Vault) -> Result<Self, Message> {
        let bad = |what: &str, next: &str| Err(Message::new(format!("vault.{what}."), next));
        if !settings.address.starts_with("https://") {
            return bad("address is not https://IP:PORT", "Vault's keys don't travel without TLS: set address and ca_file.");
        }
        let plain = |text: &str| {
            let parts = text.split('/');
            let good =
                |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            parts.into_iter().all(good)
        };
        if !plain(&settings.path) || !plain(&settings.mount) {
            return bad("path or mount is no path of Vault's API", "Write it as secret/data/breakglass, without a slash at either end.");
        }
        let http = crate::http::client(settings.ca_file.as_deref())?;
        Ok(Self { settings, http, login: None, renews: true })
    }

    /// The keys as they are in Vault now, and when to look again. Renews the login, or logs in again with the token file as it is now.
    pub(super) async fn keys(&mut self) -> Result<(Vec<Key>, Duration), Message> {
        if let Some(login) = self.login.take() {
            // A renewal that fails is no news: the login may have reached its end, and the next one tells.
            self.login = self.renewed(login).await;
        }
        let first = match &self.login {
            Some(_) => self.read().await,
            None => Err(Failed::Forbidden),
        };
        let secret = match first {
            Err(Failed::Forbidden) => {
                self.login =
                    Some(self.log_in().await.map_err(|why| self.told(why, "refuses the login", "role and the token of jwt_file"))?);
                self.read().await
            }
            other => other,
        };
        let secret = secret.map_err(|why| self.told(why, "does not let this role read the keys", "path and the role's policy"))?;
        let lease = self.login.as_ref().map_or(REFRESH.0, |login| login.lease);
        Ok((self.taken(&secret)?, (lease / 2).clamp(REFRESH.0, REFRESH.1)))
    }

    /// The fields that are keys; one that is none takes the others from nobody.
    fn taken(&self, fields: &BTreeMap<String, Secret>) -> Result<Vec<Key>, Message> {
        let mut taken = Vec::new();
        for (field, text) in fields {
            match keys::read(&format!("vault:{}", escape_cut(field.as_bytes(), 64)), text.0.as_bytes()) {
                Ok(key) => taken.push(key),
                Err(why) => warn!(event = "vault", "{why}"),
            }
        }
        if taken.is_empty() {
            return Err(Message::new(
                format!("No field of Vault's {} is a private key.", self.settings.path),
                "Put them there: vault kv put PATH host=@FILE devvm=@FILE.",
            ));
        }
        Ok(taken)
    }

    async fn log_in(&self) -> Result<Login, Failed> {
        let file = &self.settings.jwt_file;
        let unreadable = |why: String| {
            Failed::Told(Message::new(
                format!("The service account's token {} can't be used: {why}.", file.display()),
                "Mount it, or set vault.jwt_file.",
            ))
        };
        let jwt = Zeroizing::new(std::fs::read_to_string(file).map_err(|error| unreadable(error.to_string()))?);
        if jwt.len() > MAX_JWT {
            return Err(unreadable(format!("it has more than {MAX_JWT} bytes")));
        }
        let body = json!({"role": self.settings.role, "jwt": jwt.trim()});
        let granted: Granted = self.call(Method::POST, &format!("auth/{}/login", self.settings.mount), None, Some(&body)).await?;
        Ok(granted.auth.into())
    }

    async fn renewed(&mut self, login: Login) -> Option<Login> {
        if !login.renewable || !self.renews {
            return None;
        }
        let granted: Result<Granted, _> = self.call(Method::POST, "auth/token/renew-self", Some(&login.token), Some(&json!({}))).await;
        match granted {
            Ok(granted) => Some(granted.auth.into()),
            Err(Failed::Forbidden) => {
                self.renews = false;
                None
            }
            // Vault is away: the login may hold all the same.
            Err(Failed::Told(_)) => Some(login),
        }
    }

    async fn read(&self) -> Result<BTreeMap<String, Secret>, Failed> {
        let token = self.login.as_ref().map(|login| &login.token);
        let answer: Answer = self.call(Method::GET, &self.settings.path, token, None).await?;
        Ok(answer.data.data)
    }

    /// One request of the API, sent again where that can help.
    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        token: Option<&SecretString>,
        body: Option<&serde_json::Value>,
    ) -> Result<T, Failed> {
        let url = format!("{}/v1/{path}", self.settings.address.trim_end_matches('/'));
        let mut pauses = AGAIN.into_iter();
        loop {
            let mut request = self.http.request(method.clone(), &url);
            if let Some(mut token) = token.and_then(|token| HeaderValue::from_str(token.expose_secret()).ok()) {
                token.set_sensitive(true);
                request = request.header("x-vault-token", token);
            }
            if let Some(body) = body {
                request = request.json(body);
            }
            let (passes, why) = match tokio::time::timeout(DEADLINE, answered(request)).await {
                Ok(Ok((status, bytes))) if status.is_success() => {
                    return serde_json::from_slice(&bytes)
                        .map_err(|_| Failed::Told(self.fault(path, "answers what this version does not read")));
                }
                Ok(Ok((StatusCode::FORBIDDEN, _))) => return Err(Failed::Forbidden),
                Ok(Ok((status, _))) => (status.is_server_error() || status.as_u16() == 429, format!("answers {}", status.as_u16())),
                Ok(Err(why)) => (true, why),
                Err(_) => (true, format!("does not answer within {} s", DEADLINE.as_secs())),
            };
            match pauses.next().filter(|_| passes) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(Failed::Told(self.fault(path, &why))),
            }
        }
    }

    fn fault(&self, path: &str, why: &str) -> Message {
        Message::new(
            format!("Vault at {} {why}, asked for {path}.", self.settings.address),
            "The keys held so far stay; look at Vault, its address, path and ca_file.",
        )
    }

    fn told(&self, why: Failed, what: &str, check: &str) -> Message {
        match why {
            Failed::Told(message) => message,
            Failed::Forbidden => {
                Message::new(format!("Vault at {} {what}.", self.settings.address), format!("The keys held so far stay; check {check}."))
            }
        }
    }
}

impl From<Auth> for Login {
    fn from(auth: Auth) -> Self {
        let token = SecretString::from(auth.client_token.0.as_str());
        Self { token, lease: Duration::from_secs(auth.lease_duration), renewable: auth.renewable }
    }
}

/// The status and the whole body; the error is why there is none.
async fn answered(request: reqwest::RequestBuilder) -> Result<(StatusCode, Zeroizing<Vec<u8>>), String> {
    let mut response = request.send().await.map_err(|error| fault(&error))?;
    let mut body = Zeroizing::new(Vec::with_capacity(MAX_ANSWER));
    while let Some(chunk) = response.chunk().await.map_err(|error| fault(&error))? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(format!("answers with more than {MAX_ANSWER} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((response.status(), body))
}

/// The cause at the bottom: what reqwest itself says is that there was one.
fn fault(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    format!("can't be asked ({})", escape_cut(cause.to_string().as_bytes(), 200))
}
