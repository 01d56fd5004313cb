//! SECURITY.md's I/O map against a trace of the real program: every path, socket and program that `pve-verb` touches while the lab's VM
//! is looked at, cycled, stalled and recovered stands in the map, and a touch that does not stand there fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)] // a scenario fails by panicking

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::time::Duration;

use lab::installed::{Told, agent, ask, prepare};
use lab::lab::{Scenario, run_scenarios};
use lab::process::{start, until};
use lab::{Lab, Result, wedge};

const SCENARIOS: &[Scenario] = &[
    ("when_every_verb_is_traced_then_nothing_outside_the_io_map_is_touched", full_run),
    ("when_a_touch_is_not_in_the_io_map_then_it_is_found", a_touch_more),
];

const TRACE: &str = "/run/lab/io.trace";
/// The calls that name a path, a socket or a program.
const CALLS: &str = "trace=%file,connect,bind,listen,sendto,sendmsg,execve,clone,clone3,fork,vfork,chroot,fchdir";

fn main() {
    run_scenarios(SCENARIOS, prepare)
}

/// The map's patterns: what stands in backticks in the first column of the table below its heading, for `pve-verb`.
fn map() -> Vec<String> {
    let text = include_str!("../../SECURITY.md");
    let section = text.split("\n## I/O map\n").nth(1).expect("the I/O map").split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what") && !line.starts_with("| ---"));
    let cells = rows.filter_map(|row| row.split('|').nth(1).map(|cell| cell.split('`').skip(1).step_by(2)));
    cells.flatten().flat_map(expand).collect()
}

/// `{a,b}` in a pattern, written out.
fn expand(pattern: &str) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once('{') else { return vec![pattern.to_owned()] };
    let (inner, after) = rest.split_once('}').expect("a closing brace");
    inner.split(',').flat_map(|choice| expand(&format!("{before}{choice}{after}"))).collect()
}

/// Whether the pattern covers the path: `*` is any part of a name; a pattern that ends in `/` covers the folder and all below it.
fn covers(pattern: &str, path: &str) -> bool {
    // The root itself, and not all that there is.
    if pattern == "/" {
        return path == "/";
    }
    if let Some(folder) = pattern.strip_suffix('/') {
        let depth = folder.split('/').count();
        let head: Vec<&str> = path.split('/').take(depth).collect();
        return glob(folder, &head.join("/"));
    }
    glob(pattern, path)
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text
            .strip_prefix(before)
            .is_some_and(|rest| (0..=rest.len()).any(|n| rest.is_char_boundary(n) && !rest[..n].contains('/') && glob(after, &rest[n..]))),
    }
}

/// One process of the trace: the program that it runs, and its root if it has another one.
#[derive(Clone, Default)]
struct Process {
    ours: bool,
    /// It was another program before.
    became: bool,
    room: Option<String>,
}

/// What the processes of pve-verb touched: paths as the host sees them; `socket …` for what is no path.
fn touched(text: &str) -> BTreeSet<String> {
    let mut processes: BTreeMap<u32, Process> = BTreeMap::new();
    let mut begun: BTreeMap<u32, String> = BTreeMap::new();
    let mut all = BTreeSet::new();
    for line in text.lines() {
        let Some((pid, call)) = line.split_once(' ') else { continue };
        let (Ok(pid), mut call) = (pid.parse::<u32>(), call.trim_start().to_owned()) else { continue };
        if let Some(start) = call.strip_suffix(" <unfinished ...>") {
            begun.insert(pid, start.to_owned());
            continue;
        }
        if call.starts_with("<... ") {
            let Some(start) = begun.remove(&pid) else { continue };
            call = format!("{start}{}", call.split_once(" resumed>").map_or("", |(_, rest)| rest));
        }
        let Some((name, rest)) = call.split_once('(') else { continue };
        let result = call.rsplit_once(" = ").map_or("", |(_, result)| result);
        if matches!(name, "clone" | "clone3" | "fork" | "vfork") {
            if let Some(child) = result.split(['<', ' ']).next().and_then(|pid| pid.parse().ok()) {
                let own = processes.entry(pid).or_default().clone();
                // A quick child's lines may stand before its parent's: what it has become since is not undone.
                if !processes.get(&child).is_some_and(|child| child.became) {
                    processes.insert(child, Process { became: false, ..own });
                }
            }
            continue;
        }
        let quoted = rest.split('"').nth(1).unwrap_or_default().to_owned();
        let process = processes.entry(pid).or_default();
        if name == "execve" {
            if process.ours && !result.starts_with('-') {
                all.insert(quoted.clone());
            }
            if !result.starts_with('-') {
                process.became = true;
                process.ours = quoted == "/usr/sbin/pve-verb" || quoted == "/proc/self/exe" && process.ours;
            }
            continue;
        }
        if !process.ours {
            continue;
        }
        if name == "chroot" && result.starts_with('0') {
            process.room = Some(quoted.clone());
        }
        if matches!(name, "connect" | "bind" | "sendto" | "sendmsg") {
            match rest.split_once("sun_path=\"").and_then(|(_, path)| path.split('"').next()) {
                Some(path) => _ = all.insert(path.to_owned()),
                // A socket that is none of the file system's is named by its family.
                None => {
                    let family = rest.split_once("sa_family=").map(|(_, rest)| rest.split([',', '}']).next().unwrap_or_default());
                    all.extend(family.filter(|family| *family != "AF_UNSPEC").map(str::to_owned));
                }
            }
            continue;
        }
        // A relative name stands on the folder that its descriptor shows: `5</proc/7>, "stat"`.
        let base =
            rest.split_once('<').filter(|(fd, _)| !fd.contains('"')).and_then(|(_, rest)| rest.split('>').next()).unwrap_or_default();
        let path = match quoted.as_str() {
            "" => continue,
            absolute if absolute.starts_with('/') => match &process.room {
                // Inside the helper's own root: what is seen there is what was put there.
                Some(room) if absolute != room => format!("{room}{absolute}"),
                _ => absolute.to_owned(),
            },
            relative => format!("{base}/{relative}"),
        };
        all.insert(plain(&path));
    }
    all
}

/// Without `.`, `..` and doubled slashes, and `/var/run` and `/var/lock` as what they are.
fn plain(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    let path = format!("/{}", parts.join("/"));
    path.strip_prefix("/var/run/").map(|rest| format!("/run/{rest}")).unwrap_or(path)
}

/// What is not in the map.
fn outside(touched: &BTreeSet<String>, map: &[String]) -> Vec<String> {
    touched.iter().filter(|path| !map.iter().any(|pattern| covers(pattern, path))).cloned().collect()
}

/// Follows sshd and all that it starts while `what` happens.
fn traced(lab: &Lab, what: impl FnOnce() -> Result<()>) -> Result<BTreeSet<String>> {
    let pid = lab.host.sshd_pid().unwrap();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-I", "2", "-y", "-s", "300", "-e", CALLS, "-e", "signal=none", "-o", TRACE, "-p", &pid.to_string()]);
    let running = start(strace.current_dir("/"), &[])?;
    until("strace's grip", Duration::from_secs(5), || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0")).then_some(())
    })?;
    let done = what();
    std::thread::sleep(Duration::from_millis(500));
    lab::vm::send(running.pid(), rustix::process::Signal::INT)?;
    running.finish(Duration::from_secs(120))?;
    done?;
    Ok(touched(&String::from_utf8_lossy(&fs::read(TRACE).expect("a trace"))))
}

fn full_run(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let ssh = agent(lab)?;
    let all = traced(lab, || {
        ask(&ssh, "status")?.done();
        ask(&ssh, "forensics")?.done();
        ask(&ssh, "reset --reason=map")?.done();
        ask(&ssh, "stop --reason=map")?.done();
        ask(&ssh, "start --reason=map")?.done();
        let stopped = wedge::qemu_stopped(vm)?;
        Told::read(ssh.call("cycle --json --reason=stopped")?)?.done();
        drop(stopped);
        let refused = ssh.call("cycle --nonsense")?;
        assert_eq!(refused.status, 2);
        Ok(())
    })?;
    let map = map();
    assert!(map.len() > 20, "{map:?}");
    assert!(all.len() > 100, "a trace of {} paths saw nothing", all.len());
    for must in ["/run/qemu-server/102.qmp", "/usr/sbin/qm", "/run/pve-verb/"] {
        assert!(all.iter().any(|path| path.starts_with(must)), "the trace lacks {must}, so it is not one: {all:#?}");
    }
    let outside = outside(&all, &map);
    println!("{} paths touched, {} patterns in the map.", all.len(), map.len());
    assert!(outside.is_empty(), "touched and not in SECURITY.md's I/O map: {outside:#?}");
    Ok(())
}

fn a_touch_more(lab: &Lab) -> Result<()> {
    let ssh = agent(lab)?;
    let (ours, kept) = ("/usr/sbin/pve-verb", "/usr/sbin/pve-verb.kept");
    fs::rename(ours, kept).unwrap();
    // A program behind the same name that reads one file more.
    lab::host::write(ours, "#!/bin/sh\nread -r line < /etc/hosts\nexit 0\n", 0o755)?;
    let found = traced(lab, || ssh.call("status").map(drop));
    fs::rename(kept, ours).unwrap();
    let found = outside(&found?, &map());
    assert!(found.iter().any(|path| path == "/etc/hosts"), "the touch was not found among {found:?}");
    Ok(())
}
