//! What a person sees: narrow lines for a phone, sections with the time, and commands as they are run. Decides nothing.
#![allow(clippy::print_stdout)] // it is the screen

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::process::start;

/// As wide as pve-verb's own answers.
const WIDTH: usize = 60;
/// Longer than any verb may take.
const PATIENCE: Duration = Duration::from_secs(260);

/// The terminal, or a pipe.
pub(super) struct Screen {
    started: Instant,
    colour: bool,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), colour: std::io::stdout().is_terminal() }
    }

    /// The head of an act.
    pub(super) fn section(&self, number: usize, title: &str) {
        println!("\n{}", self.bold(&format!("== {number}. {title} ({} s)", self.started.elapsed().as_secs())));
    }

    /// What a person should know before they look at what follows.
    pub(super) fn say(&self, text: &str) {
        println!("{}", wrapped(text, ""));
    }

    /// Something that was looked at and is so.
    pub(super) fn checked(&self, what: &str) {
        println!("{}", self.bold(&wrapped(&format!("OK: {what}."), "    ")));
    }

    /// The end.
    pub(super) fn done(&self, text: &str) {
        println!("\n{}", self.bold(&format!("== Done after {} s", self.started.elapsed().as_secs())));
        for paragraph in text.split("\n\n") {
            self.say(paragraph);
        }
    }

    /// Shows a command (or several lines of them) and runs exactly it with `sh -e`, its output as it comes; gives the exit status and
    /// the output.
    pub(super) fn shell(&self, folder: &Path, script: &str) -> Result<(i32, String)> {
        let traced: String =
            statements(script).iter().map(|one| format!("printf '%s\\n' {}\n{one}\n", quoted(&self.prompt(one)))).collect();
        let mut command = Command::new("sh");
        // The account's own environment: a person's login has no more, and ssh looks there for its configuration.
        command.env_clear().envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/root"), ("LANG", "C.UTF-8")]);
        command.args(["-e", "-c", &format!("exec 2>&1\n{traced}")]).current_dir(folder);
        let shown = start(&mut command, &[])?.finish_showing(PATIENCE, |bytes| {
            // A terminal that went away takes nothing with it.
            let mut out = std::io::stdout();
            let _gone = out.write_all(bytes).and_then(|()| out.flush());
        })?;
        let commands: String = statements(script).iter().map(|one| self.prompt(one) + "\n").collect();
        let text = shown.text();
        Ok((shown.status, text.strip_prefix(&commands).map_or(text.clone(), str::to_owned)))
    }

    fn prompt(&self, command: &str) -> String {
        self.bold(&format!("$ {command}"))
    }

    fn bold(&self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A shell script in the pieces that a person would type and see answered: a line each, a here-document whole. Blank lines and
/// comments of their own go.
fn statements(script: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut lines = script.lines();
    while let Some(line) = lines.next() {
        let mut one = line.trim_end().to_owned();
        if let Some((_, word)) = line.split_once("<<'") {
            let end = word.trim_end().trim_end_matches('\'');
            for more in lines.by_ref() {
                one.push('\n');
                one.push_str(more);
                if more == end {
                    break;
                }
            }
        }
        while one.ends_with('\\') {
            let Some(more) = lines.next() else { break };
            one.push('\n');
            one.push_str(more);
        }
        if !one.is_empty() && !one.trim_start().starts_with('#') {
            all.push(one);
        }
    }
    all
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Breaks at spaces only: a path or a hash stays whole, to be copied.
fn wrapped(text: &str, indent: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let fits = lines.last().is_some_and(|line| line.trim().is_empty() || line.chars().count() + 1 + word.chars().count() <= WIDTH);
        if !fits {
            lines.push(indent.to_owned());
        }
        if let Some(line) = lines.last_mut() {
            if !line.trim().is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::{statements, wrapped};

    #[test]
    fn a_here_document_is_one_statement() {
        let script = "umask 077\n\n# why\ncat > f <<'END'\nA\n  B\nEND\nsshd -t\nssh-keygen -Y verify \\\n  -f x\n";
        assert_eq!(statements(script), ["umask 077", "cat > f <<'END'\nA\n  B\nEND", "sshd -t", "ssh-keygen -Y verify \\\n  -f x"]);
    }

    #[test]
    fn lines_fit_a_phone_and_long_words_stay_whole() {
        let path = "/x".repeat(40);
        let text = wrapped(&format!("{} {path} end", "word ".repeat(20)), "  ");
        assert!(text.lines().all(|line| line.len() <= 60 || line.trim() == path), "{text}");
    }
}
