//! The one way to HTTPS: TLS in Rust, the public root certificates compiled in, those of a file besides where one is named. No proxy
//! from the environment, and no redirect: a credential goes to the configured address only.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::Message;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);

/// A client; `ca_file` replaces the public roots.
///
/// # Errors
/// The file holds no certificate.
pub fn client(ca_file: Option<&Path>) -> Result<reqwest::Client, Message> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(file) => {
            let bad = |why: String| {
                Message::new(
                    format!("{} holds no certificate that can be used: {why}.", file.display()),
                    "Write the authority's there, as PEM.",
                )
            };
            for certificate in CertificateDer::pem_file_iter(file).map_err(|error| bad(error.to_string()))? {
                let certificate = certificate.map_err(|error| bad(error.to_string()))?;
                roots.add(certificate).map_err(|error| bad(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(bad("it is empty".to_owned()));
            }
        }
    }
    let fault = |why: String| Message::new(format!("TLS can't be used here: {why}."), "Report it: this is a bug.");
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| fault(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT)
        .user_agent(concat!("breakglass/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| fault(error.to_string()))
}
