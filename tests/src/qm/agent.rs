//! `qm agent` and `qm guest cmd`: guest-agent commands by name, their answer as Perl prints JSON.
//!
//! `guest exec` and `guest passwd` are absent.

use std::time::Duration;

use serde_json::{Value, json};

use super::cli::Request;
use super::conf::{self, Conf};
use super::{Fail, Run, out, process, qmp};

const COMMANDS: [&str; 20] = [
    "fsfreeze-freeze",
    "fsfreeze-status",
    "fsfreeze-thaw",
    "fstrim",
    "get-fsinfo",
    "get-host-name",
    "get-memory-block-info",
    "get-memory-blocks",
    "get-osinfo",
    "get-time",
    "get-timezone",
    "get-users",
    "get-vcpus",
    "info",
    "network-get-interfaces",
    "ping",
    "shutdown",
    "suspend-disk",
    "suspend-hybrid",
    "suspend-ram",
];

/// Why this is no command, in PVE's words.
pub fn refuse(command: &str) -> Option<String> {
    (!COMMANDS.contains(&command)).then(|| format!("value '{command}' does not have a value in the enumeration '{}'", COMMANDS.join(", ")))
}

/// Whether the VM has an agent by its configuration.
pub fn enabled(conf: &Conf) -> bool {
    conf.get("agent").is_some_and(|value| value.split(',').any(|part| matches!(part, "1" | "enabled=1")))
}

/// Whether the agent answers.
pub fn ping(vmid: u32) -> Run {
    qmp::agent(vmid, "guest-ping", &Value::Null, qmp::SHORT).map(drop)
}

/// `qm guest cmd VM COMMAND`.
pub fn command(request: &Request) -> Run {
    let vmid = request.vmid;
    let conf = conf::load(vmid)?;
    if process::running(vmid).is_none() {
        return Err(Fail::errno(2, format!("VM {vmid} is not running")));
    }
    if !enabled(&conf) {
        return Err(Fail::die("No QEMU guest agent configured"));
    }
    ping(vmid).map_err(|_| Fail::die("QEMU guest agent is not running"))?;
    let name = request.args.first().map_or("", String::as_str);
    if name == "ping" {
        return Ok(());
    }
    let answer = qmp::agent(vmid, &format!("guest-{name}"), &json!({}), Duration::from_secs(5))?;
    if answer != json!({}) {
        out::raw(pretty(&answer, 0).as_bytes());
        out::raw(b"\n");
    }
    Ok(())
}

/// JSON as Perl's `JSON->pretty->canonical` writes it: three blanks a level, sorted, a blank on both sides of the colon.
fn pretty(value: &Value, depth: usize) -> String {
    let indent = "   ".repeat(depth + 1);
    let close = "   ".repeat(depth);
    match value {
        Value::Array(items) if !items.is_empty() => {
            let items: Vec<String> = items.iter().map(|item| format!("{indent}{}", pretty(item, depth + 1))).collect();
            format!("[\n{}\n{close}]", items.join(",\n"))
        }
        Value::Object(members) if !members.is_empty() => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|a, b| a.0.cmp(b.0));
            let lines: Vec<String> =
                members.iter().map(|(key, item)| format!("{indent}{} : {}", json!(key), pretty(item, depth + 1))).collect();
            format!("{{\n{}\n{close}}}", lines.join(",\n"))
        }
        plain => plain.to_string(),
    }
}
