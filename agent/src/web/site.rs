//! What only the real host and devvm have, beside the hands: the doctor, and the devvm's host key.

use std::sync::Arc;

use proto::Message;

use crate::config::Config;
use crate::doctor::{Finding, examine};
use crate::hands::Doing;
use crate::host::Ssh;

/// Both host keys of the devvm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The fingerprint that counts.
    pub pinned: String,
    /// The one that it shows now; or why it shows none.
    pub shown: Result<String, String>,
}

/// The place where all this happens.
pub trait Site: Send + Sync {
    /// Tries the whole way.
    fn examine(&self) -> Doing<'_, Vec<Finding>>;
    /// The devvm's host keys; none where there is no devvm.
    fn keys(&self) -> Doing<'_, Option<Keys>>;
    /// A person has compared this fingerprint and accepts it.
    fn accept<'a>(&'a self, fingerprint: &'a str) -> Doing<'a, Result<(), Message>>;
}

/// The real one.
pub struct Real {
    /// The way to both.
    pub ssh: Arc<Ssh>,
    /// As configured.
    pub config: Config,
}

impl Site for Real {
    fn examine(&self) -> Doing<'_, Vec<Finding>> {
        Box::pin(examine(&self.ssh, &self.config, |_| ()))
    }

    fn keys(&self) -> Doing<'_, Option<Keys>> {
        Box::pin(async move {
            let devvm = self.ssh.devvm()?;
            let shown = self.ssh.wire().shown(&devvm.target()).await;
            let shown = shown.map(|key| key.fingerprint(ssh_key::HashAlg::Sha256).to_string()).map_err(|why| why.to_string());
            Some(Keys { pinned: devvm.fingerprint(), shown })
        })
    }

    fn accept<'a>(&'a self, fingerprint: &'a str) -> Doing<'a, Result<(), Message>> {
        Box::pin(self.ssh.accept(fingerprint))
    }
}
