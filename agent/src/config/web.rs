//! `[web]`: where the page listens, and who is believed to be whom.

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::http::HeaderName;
use ipnet::IpNet;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

/// `[web]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Web {
    /// The address of the page. Without any way to know who asks, only loopback is served.
    #[serde(deserialize_with = "super::address")]
    pub listen: SocketAddr,
    /// The networks from which the identity header is believed; a lone address is a network of one.
    #[serde(deserialize_with = "networks")]
    pub proxies: Vec<IpNet>,
    /// The header with the name of whom the proxy let in.
    #[serde(deserialize_with = "header")]
    pub identity_header: Option<HeaderName>,
    /// The file with the secret that the proxy shows.
    pub secret_file: Option<PathBuf>,
    /// The file with the hashes of machines' tokens.
    pub tokens_file: Option<PathBuf>,
    /// The file with names and argon2 hashes of passwords.
    pub basic_file: Option<PathBuf>,
}

impl Default for Web {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8102)),
            proxies: Vec::new(),
            identity_header: None,
            secret_file: None,
            tokens_file: None,
            basic_file: None,
        }
    }
}

fn networks<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpNet>, D::Error> {
    let network = |text: String| {
        text.parse().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from)).map_err(|_: std::net::AddrParseError| text)
    };
    let all = Vec::<String>::deserialize(from)?.into_iter().map(network).collect::<Result<_, _>>();
    all.map_err(|text| D::Error::custom(format!("{text} is neither an address nor a network such as 10.42.0.0/16")))
}

fn header<'de, D: Deserializer<'de>>(from: D) -> Result<Option<HeaderName>, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map(Some).map_err(|_| D::Error::custom(format!("{} is no header's name", proto::escape(text.as_bytes()))))
}
