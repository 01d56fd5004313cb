//! Names that the parent may say and that become file names here: checked once, when they are read.

use serde::{Deserialize, Serialize};

/// A grant's nonce: `[A-Za-z0-9_-]{1,64}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Nonce(String);

impl Nonce {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Nonce {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let good = (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if good { Ok(Self(text)) } else { Err(format!("\"{}\" is not a nonce", proto::escape_cut(text.as_bytes(), 80))) }
    }
}

impl From<Nonce> for String {
    fn from(nonce: Nonce) -> Self {
        nonce.0
    }
}

/// A file within a bundle: relative, at most four deep, no part begins with a dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ArtifactPath(String);

impl ArtifactPath {
    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ArtifactPath {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let part = |p: &str| {
            (1..=100).contains(&p.len())
                && !p.starts_with('.')
                && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        let good = text.split('/').count() <= 4 && text.split('/').all(part);
        if good { Ok(Self(text)) } else { Err(format!("\"{}\" is not a path within a bundle", proto::escape_cut(text.as_bytes(), 80))) }
    }
}

impl From<ArtifactPath> for String {
    fn from(path: ArtifactPath) -> Self {
        path.0
    }
}
