//! `check`: is this host set up well? A list of named checks, each ok, weak or bad, each with two sentences. Changes nothing.
//!
//! Nothing here decides what a verb may do: a host on which half of this is bad still answers. What may hang (a disk, a link into
//! pmxcfs) is read in a thread that is left behind after three seconds.

use proto::Message;
use std::io::{self, Write};
use std::sync::mpsc;
use std::time::Duration;

use super::Site;

mod around;
mod files;
mod keys;
mod sshd;
mod system;

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but weaker than it could.
    Weak,
    /// It does not work, or somebody else could make it not work.
    Bad,
}

/// One check's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub level: Level,
    /// What was found, and what to do.
    pub message: Message,
}

impl Check {
    fn ok(name: &'static str, what: impl Into<String>) -> Self {
        Self { name, level: Level::Ok, message: Message::new(what, "Nothing needs doing.") }
    }
    fn weak(name: &'static str, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { name, level: Level::Weak, message: Message::new(what, next) }
    }
    fn bad(name: &'static str, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { name, level: Level::Bad, message: Message::new(what, next) }
    }
}

/// Runs every check and prints them; true where none is bad.
///
/// # Errors
/// Where `out` can't be written.
pub fn check(out: &mut dyn Write) -> io::Result<bool> {
    let all = all(&Site::host());
    for check in &all {
        let level = match check.level {
            Level::Ok => "ok  ",
            Level::Weak => "weak",
            Level::Bad => "BAD ",
        };
        writeln!(out, "{level}  {}: {}", check.name, check.message)?;
    }
    Ok(all.iter().all(|c| c.level != Level::Bad))
}

fn all(site: &Site) -> Vec<Check> {
    let mut all = vec![system::root()];
    all.extend(files::folders(site));
    all.extend([files::binary(site), files::signing_key(site), files::config(site), files::disk(site)]);
    all.extend(keys::authorized(site));
    all.extend(around::signers(site));
    let sshd = sshd::Sshd::read(site);
    all.extend([system::account(site), sshd.lets_in(site), around::socket(site), sshd.sessions(), around::penalties(site, &sshd)]);
    all.extend([
        around::boot(site),
        around::logind(site),
        system::clock(site),
        system::qm(site),
        system::gdb(site),
        around::tools(site),
        around::package(site),
    ]);
    all
}

/// The answer of something that may hang, or none after three seconds.
fn bounded<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, hear) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = tell.send(ask());
    });
    hear.recv_timeout(Duration::from_secs(3)).ok()
}

#[cfg(test)]
mod tests;
