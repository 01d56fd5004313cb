//! A browser without a screen: plain HTTP as a browser sends it, forms out of the pages that it was shown.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method};

/// One person's.
#[derive(Clone)]
pub(crate) struct Browser {
    client: Client,
    base: String,
    pub(crate) headers: HeaderMap,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Got {
    /// Where it leads.
    pub(crate) fn to(&self) -> String {
        assert_eq!(self.status, 303, "{} {}", self.status, self.text);
        self.headers["location"].to_str().unwrap().to_owned()
    }

    /// The value of a form's hidden field.
    pub(crate) fn hidden(&self, name: &str) -> String {
        let (_, rest) = self.text.split_once(&format!("name=\"{name}\" value=\"")).unwrap_or_else(|| panic!("no {name} in {}", self.text));
        rest.split_once('"').unwrap().0.to_owned()
    }
}

impl Browser {
    /// One that has not said who it is.
    pub(crate) fn stranger(base: &str) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert("accept", HeaderValue::from_static("text/html"));
        headers.insert("sec-fetch-site", HeaderValue::from_static("same-origin"));
        Self { client: agent::http::client(None).unwrap(), base: base.trim_end_matches('/').to_owned(), headers }
    }

    /// Anna's, with her password.
    pub(crate) fn anna(base: &str) -> Self {
        use base64ct::{Base64, Encoding};
        let basic = Base64::encode_string(format!("anna:{}", super::page::PASSWORD).as_bytes());
        Self::stranger(base).with("authorization", &format!("Basic {basic}"))
    }

    /// A machine, with its token.
    pub(crate) fn machine(base: &str) -> Self {
        let mut machine = Self::stranger(base).with("authorization", &format!("Bearer {}", super::page::TOKEN));
        machine.headers.remove("sec-fetch-site");
        machine.headers.insert("accept", HeaderValue::from_static("application/json"));
        machine
    }

    /// The same, with another header.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        self
    }

    async fn send(&self, method: Method, path: &str, form: Option<String>) -> Got {
        let mut request =
            self.client.request(method, format!("{}{path}", self.base)).headers(self.headers.clone()).timeout(Duration::from_secs(30));
        if let Some(form) = form {
            request = request.header("content-type", "application/x-www-form-urlencoded").body(form);
        }
        let answer = request.send().await.unwrap();
        Got { status: answer.status().as_u16(), headers: answer.headers().clone(), text: answer.text().await.unwrap() }
    }

    /// A page.
    pub(crate) async fn get(&self, path: &str) -> Got {
        self.send(Method::GET, path, None).await
    }

    /// A form.
    pub(crate) async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Got {
        let plain = |text: &str| -> String {
            text.bytes()
                .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
                .collect()
        };
        let form: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", plain(value))).collect();
        self.send(Method::POST, path, Some(form.join("&"))).await
    }

    /// The whole way of a mutating verb: the question, and yes. Where it runs.
    pub(crate) async fn confirm(&self, verb: &str) -> String {
        let question = self.get(&format!("/verbs/{verb}/confirm")).await;
        assert_eq!(question.status, 200, "{}", question.text);
        self.post(&format!("/verbs/{verb}"), &[("token", &question.hidden("token")), ("reason", "a test")]).await.to()
    }

    /// Loads a page until this stands in it.
    pub(crate) async fn until(&self, path: &str, text: &str) -> Got {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let got = self.get(path).await;
            if got.text.contains(text) {
                return got;
            }
            assert!(Instant::now() < end, "{path} never says {text:?}: {}", got.text);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A response that is read as it comes.
    pub(crate) async fn stream(&self, path: &str) -> reqwest::Response {
        self.client.get(format!("{}{path}", self.base)).headers(self.headers.clone()).send().await.unwrap()
    }
}
