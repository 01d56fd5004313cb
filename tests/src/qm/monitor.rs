//! `qm monitor`: HMP commands from stdin, one QMP connection each, and its prompt with Perl's terminal codes on stderr.
//!
//! Line editing is absent: what is echoed is what a pipe on stdin makes the real one echo.

use std::io::BufRead;
use std::time::Duration;

use serde_json::{Value, json};

use super::cli::Request;
use super::{Run, conf, out, qmp};

/// The limit of one command.
const LIMIT: Duration = Duration::from_secs(30);
const PROMPT: &str = "\x1b[4mqm> \x1b[24m";

/// `qm monitor VM`: always exits with 0, whatever failed.
pub fn monitor(request: &Request) -> Run {
    let vmid = request.vmid;
    conf::load(vmid)?;
    out::say(&format!("Entering QEMU Monitor for VM {vmid} - type 'help' for help"));
    let mut lines = std::io::stdin().lock().lines();
    let mut printed = false;
    loop {
        // Perl's readline clears the rest of a line that something was printed on.
        out::warn_raw(&format!("{PROMPT}{}", if printed { "\x1b[K" } else { "" }));
        let Some(Ok(line)) = lines.next() else {
            return Ok(());
        };
        out::warn_raw(&format!("{line}\n"));
        let line = line.trim();
        if matches!(line, "quit" | "q") {
            return Ok(());
        }
        if line.is_empty() {
            continue;
        }
        let answer = qmp::command(vmid, "human-monitor-command", &json!({ "command-line": line }), LIMIT);
        let text = match answer {
            Ok(Value::String(text)) => text,
            Ok(_) => String::new(),
            Err(fail) => format!("ERROR: {}\n", fail.words),
        };
        printed = !text.is_empty();
        out::raw(text.as_bytes());
    }
}
