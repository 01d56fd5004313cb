//! A `qm` that lies: the laboratory says in `/run/lab/qm-mode` which sub-command misbehaves, and how.
//!
//! A line is `VERB HOW` (`*` for every verb): `hang`, `garbage`, `success-without-acting`, `fail-after-acting` or `slow SECONDS`.
//! Without the file nothing here does anything.

use std::path::Path;
use std::time::Duration;

use super::{Fail, Run, out, pve};

/// How a sub-command misbehaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lie {
    /// Never ends and does nothing.
    Hang,
    /// Prints bytes that make no sense and says that it went well; does nothing.
    Garbage,
    /// Says that it went well; does nothing.
    Idle,
    /// Does it, then fails.
    FailAfter,
    /// Does it, so much later.
    Slow(Duration),
}

/// What the laboratory wants of this sub-command.
pub fn lie(verb: &str) -> Option<Lie> {
    let text = std::fs::read_to_string(Path::new(pve::LAB).join("qm-mode")).ok()?;
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let whom = words.next()?;
        if whom != verb && whom != "*" {
            return None;
        }
        match words.next()? {
            "hang" | "hang-forever" => Some(Lie::Hang),
            "garbage" => Some(Lie::Garbage),
            "success-without-acting" => Some(Lie::Idle),
            "fail-after-acting" => Some(Lie::FailAfter),
            "slow" => words.next()?.parse().ok().map(|seconds| Lie::Slow(Duration::from_secs(seconds))),
            _ => None,
        }
    })
}

/// Misbehaves.
pub fn act(lie: Lie, honest: impl FnOnce() -> Run) -> Run {
    match lie {
        // The one wait without a deadline in the laboratory: it is what the caller's deadline is tested against.
        Lie::Hang => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        Lie::Garbage => {
            out::raw(b"\x00\xff\xfe\x1b[31mstatus\r\r:\tru\xc3\x28nning\x00\n\x07\n");
            Ok(())
        }
        Lie::Idle => Ok(()),
        Lie::FailAfter => honest().and_then(|()| Err(Fail::die("got timeout"))),
        Lie::Slow(time) => {
            std::thread::sleep(time);
            honest()
        }
    }
}
