//! The one door for process spawning: this binary again, under a constant subcommand, with a constant environment.
//!
//! It does not know what the child is for, and it takes no word from a caller.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// What every child finds in its environment, and nothing else.
const ENVIRONMENT: [(&str, &str); 2] = [("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("LC_ALL", "C")];

/// Starts this binary again under a hidden subcommand. The child calls `setsid` first thing: without unsafe code nobody can do it for it.
///
/// # Errors
/// Where the kernel refuses a new process.
pub fn reexec(subcommand: &'static str, stdin: Stdio, stdout: Stdio) -> io::Result<Child> {
    // Not by its path: the file may have been replaced by an upgrade, and both halves must be the same program.
    let mut command = Command::new("/proc/self/exe");
    command.env_clear().envs(ENVIRONMENT).current_dir("/");
    command.arg0("pve-verb").arg(subcommand).stdin(stdin).stdout(stdout).stderr(Stdio::null()).spawn()
}
