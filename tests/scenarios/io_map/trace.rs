//! SECURITY.md's I/O map as patterns, and what a program touched out of strace's own words. Judges nothing but whether the one covers the other.

use std::collections::{BTreeMap, BTreeSet};

/// The calls that name a path, a socket or a program.
pub(crate) const CALLS: &str = "trace=%file,connect,bind,listen,sendto,sendmsg,execve,clone,clone3,fork,vfork,chroot,fchdir";

/// The patterns of a program's map: what stands in backticks in the first column of the table below its heading.
pub(crate) fn map(program: &str) -> Vec<String> {
    let text = include_str!("../../../SECURITY.md");
    let section = text.split("\n## I/O map\n").nth(1).expect("the I/O map").split("\n## ").next().unwrap();
    let section = section.split(&format!("\n### `{program}`\n")).nth(1).expect("its own map").split("\n### ").next().unwrap();
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

/// What the processes of the program touched: paths as the host sees them; for sockets that are no path the address, or the family.
pub(crate) fn touched(text: &str, program: &str) -> BTreeSet<String> {
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
                process.ours = quoted == program || quoted == "/proc/self/exe" && process.ours;
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
                None => all.extend(address(rest)),
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

/// A socket that is none of the file system's: its address and port, or its family where that has none.
fn address(rest: &str) -> Option<String> {
    let family = rest.split_once("sa_family=")?.1.split([',', '}']).next()?;
    let port = rest.split_once("_port=htons(").and_then(|(_, rest)| rest.split(')').next());
    let ip = rest.split_once("inet_addr(\"").or_else(|| rest.split_once("AF_INET6, \"")).and_then(|(_, rest)| rest.split('"').next());
    match (ip, port) {
        (Some(ip), Some(port)) => Some(format!("{ip}:{port}")),
        _ => Some(family.to_owned()).filter(|family| family != "AF_UNSPEC"),
    }
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
pub(crate) fn outside(touched: &BTreeSet<String>, map: &[String]) -> Vec<String> {
    touched.iter().filter(|path| !map.iter().any(|pattern| covers(pattern, path))).cloned().collect()
}
