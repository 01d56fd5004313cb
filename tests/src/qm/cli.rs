//! The command line: which sub-commands there are, which options they take, and PVE's complaints about anything else.
//!
//! Only the sub-commands that the laboratory needs are here; the others are known by name, so that "unknown command" stays true.

use std::collections::BTreeMap;

use super::{Fail, Run, conf};

/// `qm help`: the one place where somebody reading could mistake this for Proxmox's.
pub const HELP: &str = "\
This is a STAND-IN for Proxmox VE's qm, made for the Breakglass laboratory. It drives a real QEMU and repeats what the real qm was
recorded to say; it is not Proxmox software and must not be used outside the laboratory.

       qm status <vmid> [--verbose]
       qm start <vmid> [--skiplock] [--timeout N]
       qm stop <vmid> [--skiplock] [--timeout N]
       qm shutdown <vmid> [--skiplock] [--timeout N] [--forceStop]
       qm reset <vmid> [--skiplock]
       qm resume <vmid> [--skiplock]
       qm suspend <vmid> [--skiplock]
       qm reboot <vmid>
       qm config <vmid> [--current]
       qm pending <vmid>
       qm set <vmid> [--KEY VALUE] [--delete KEYS]
       qm unlock <vmid>
       qm list
       qm agent <vmid> ping (qm guest cmd <vmid> ping)
       qm sendkey <vmid> <key>
       qm monitor <vmid>
       qm showcmd <vmid>";

/// What the real one prints after "unknown command", as it was recorded.
const RECORDED: &str = include_str!("../../golden/C-missing-bogus_102.txt");

/// The kinds of an option's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bool,
    Int,
    Text,
}

/// A sub-command: its name, its fixed arguments after the VM's, its options, its line of usage.
struct Verb {
    name: &'static str,
    vm: bool,
    args: usize,
    options: &'static [(&'static str, Kind)],
    usage: &'static str,
}

const SKIP: (&str, Kind) = ("skiplock", Kind::Bool);
const TIMEOUT: (&str, Kind) = ("timeout", Kind::Int);

const VERBS: [Verb; 18] = [
    Verb { name: "status", vm: true, args: 0, options: &[("verbose", Kind::Bool)], usage: "<vmid> [OPTIONS]" },
    Verb { name: "start", vm: true, args: 0, options: &[SKIP, TIMEOUT], usage: "<vmid> [OPTIONS]" },
    Verb {
        name: "stop",
        vm: true,
        args: 0,
        options: &[SKIP, TIMEOUT, ("keepActive", Kind::Bool), ("overrule-shutdown", Kind::Bool)],
        usage: "<vmid> [OPTIONS]",
    },
    Verb {
        name: "shutdown",
        vm: true,
        args: 0,
        options: &[SKIP, TIMEOUT, ("forceStop", Kind::Bool), ("keepActive", Kind::Bool)],
        usage: "<vmid> [OPTIONS]",
    },
    Verb { name: "reset", vm: true, args: 0, options: &[SKIP], usage: "<vmid> [OPTIONS]" },
    Verb { name: "resume", vm: true, args: 0, options: &[SKIP, ("nocheck", Kind::Bool)], usage: "<vmid> [OPTIONS]" },
    Verb { name: "suspend", vm: true, args: 0, options: &[SKIP, ("todisk", Kind::Bool)], usage: "<vmid> [OPTIONS]" },
    Verb { name: "reboot", vm: true, args: 0, options: &[TIMEOUT], usage: "<vmid> [OPTIONS]" },
    Verb { name: "config", vm: true, args: 0, options: &[("current", Kind::Bool), ("snapshot", Kind::Text)], usage: "<vmid> [OPTIONS]" },
    Verb { name: "pending", vm: true, args: 0, options: &[], usage: "<vmid>" },
    Verb { name: "set", vm: true, args: 0, options: &[("delete", Kind::Text), SKIP], usage: "<vmid> [OPTIONS]" },
    Verb { name: "unlock", vm: true, args: 0, options: &[], usage: "<vmid>" },
    Verb { name: "list", vm: false, args: 0, options: &[("full", Kind::Bool)], usage: " [OPTIONS]" },
    Verb { name: "guest cmd", vm: true, args: 1, options: &[], usage: "<vmid> <command>" },
    Verb { name: "sendkey", vm: true, args: 1, options: &[SKIP], usage: "<vmid> <key> [OPTIONS]" },
    Verb { name: "monitor", vm: true, args: 0, options: &[], usage: "<vmid>" },
    Verb { name: "terminal", vm: true, args: 0, options: &[("iface", Kind::Text), ("escape", Kind::Text)], usage: "<vmid> [OPTIONS]" },
    Verb { name: "showcmd", vm: true, args: 0, options: &[("pretty", Kind::Bool)], usage: "<vmid> [OPTIONS]" },
];

/// A command line that passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The sub-command; `agent` has become `guest cmd`.
    pub verb: String,
    /// The VM, 0 for `list`.
    pub vmid: u32,
    /// The arguments after the VM.
    pub args: Vec<String>,
    /// The options; flags have the value `1`.
    pub options: BTreeMap<String, String>,
}

impl Request {
    /// Whether a flag is set.
    pub fn flag(&self, name: &str) -> bool {
        self.options.get(name).is_some_and(|value| value == "1")
    }

    /// `--timeout`.
    pub fn timeout(&self) -> Option<u64> {
        self.options.get("timeout").and_then(|value| value.parse().ok())
    }
}

fn unknown(name: &str) -> Fail {
    let usage = RECORDED.split_once("'qm bogus'\n").map_or("", |(_, usage)| usage);
    Fail::die(format!("ERROR: unknown command 'qm {name}'\n{}", usage.strip_suffix('\n').unwrap_or(usage)))
}

/// Parses what stands after `qm`.
pub fn parse(args: &[String]) -> Run<Request> {
    let Some(first) = args.first() else {
        let usage = unknown("").words;
        return Err(Fail::die(format!("ERROR: no command specified\n{}", usage.split_once('\n').map_or("", |(_, usage)| usage))));
    };
    let (name, rest) = match (first.as_str(), args.get(1).map(String::as_str)) {
        ("agent", _) => ("guest cmd".to_owned(), args.get(1..)),
        ("guest", Some(sub)) => (format!("guest {sub}"), args.get(2..)),
        (name, _) => (name.to_owned(), args.get(1..)),
    };
    let rest = rest.unwrap_or_default();
    let Some(verb) = VERBS.iter().find(|verb| verb.name == name) else {
        let real = RECORDED.lines().any(|line| line.trim_start().starts_with(&format!("qm {name} ")));
        return Err(if real { Fail::die(format!("the laboratory's stand-in for qm can't '{name}'")) } else { unknown(&name) });
    };
    let usage = |words: String| Fail::errno(2, format!("{words}\nqm {} {}", verb.name, verb.usage.trim_start()));

    let mut words = Vec::new();
    let mut options = BTreeMap::new();
    let mut bad = BTreeMap::new();
    let mut rest = rest.iter().peekable();
    while let Some(word) = rest.next() {
        let Some(option) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|option| !option.is_empty()) else {
            words.push(word.clone());
            continue;
        };
        let (key, inline) = option.split_once('=').map_or((option, None), |(key, value)| (key, Some(value.to_owned())));
        let kind = verb.options.iter().find(|(name, _)| *name == key).map(|(_, kind)| *kind);
        let settable = verb.name == "set" && conf::known(key);
        let Some(kind) = kind.or(settable.then_some(Kind::Text)) else {
            return Err(usage(format!("Unknown option: {key}\n400 unable to parse option")));
        };
        let value = match (kind, inline) {
            (_, Some(value)) => value,
            // A flag's value is optional and only taken when it looks like one.
            (Kind::Bool, None) => rest.next_if(|next| matches!(next.as_str(), "0" | "1")).cloned().unwrap_or_else(|| "1".to_owned()),
            (_, None) => match rest.next() {
                Some(value) => value.clone(),
                None => {
                    return Err(usage(format!("Option {key} requires an argument\n400 unable to parse option")));
                }
            },
        };
        let why = match kind {
            Kind::Int if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(format!("type check ('integer') failed - got '{value}'"))
            }
            Kind::Text if settable => conf::misfit(key, &value),
            _ => None,
        };
        if let Some(why) = why {
            bad.insert(key.to_owned(), why);
        }
        options.insert(key.to_owned(), value);
    }
    let wanted = usize::from(verb.vm) + verb.args;
    if words.len() != wanted {
        let which = if words.len() < wanted { "not enough" } else { "too many" };
        return Err(usage(format!("400 {which} arguments")));
    }
    let mut vmid = 0;
    if verb.vm {
        let text = words.remove(0);
        match text.parse::<u32>() {
            Ok(number) if (100..=999_999_999).contains(&number) => vmid = number,
            Ok(_) => drop(bad.insert("vmid".to_owned(), "invalid format - value does not look like a valid VM ID\n".to_owned())),
            Err(_) => drop(bad.insert("vmid".to_owned(), format!("type check ('integer') failed - got '{text}'"))),
        }
    }
    if verb.name == "guest cmd"
        && let Some(why) = words.first().and_then(|command| super::agent::refuse(command))
    {
        bad.insert("command".to_owned(), why);
    }
    if !bad.is_empty() {
        let lines: String = bad.iter().map(|(key, why)| format!("\n{key}: {why}")).collect();
        return Err(usage(format!("400 Parameter verification failed.{lines}")));
    }
    Ok(Request { verb: name, vmid, args: words, options })
}
