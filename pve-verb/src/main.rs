//! argv and environment in, exit code out. Decides nothing.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(pve_verb::entry::run())
}
