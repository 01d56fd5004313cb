//! The lab's one error: two sentences, what happened and what to do.

use std::fmt;

/// What happened, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    what: String,
    remedy: String,
}

/// The lab's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// `what` and `remedy` are sentences without their full stop.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. {}.", self.what, self.remedy)
    }
}

impl std::error::Error for Error {}

/// Says what was being done when an I/O or system call failed.
pub trait Context<T> {
    /// `what` completes "could not …".
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| {
            Error::new(format!("The lab could not {what}: {error}"), "Run as root on a machine with the packages of tests/packages")
        })
    }
}
