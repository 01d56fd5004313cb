//! The lines of `authorized_keys`: is every one a forced command of ours, and nothing more?

use std::fs;
use std::time::{Duration, SystemTime};

use clap::Parser;
use proto::Timestamp;

use super::super::authorize::is_a_name;
use super::super::public_key::PublicKey;
use super::{Check, Site, bounded};
use crate::cli::{Cli, Command};
use crate::host::path;
use crate::trusted;

/// Where sshd looks for keys of breakglass, in the recommended set-up.
const OURS: &str = "/etc/pve-verb/authorized_keys";
/// On PVE a link into pmxcfs.
const ROOTS: &str = "/root/.ssh/authorized_keys";
const NAME: &str = "authorized keys";

/// The checks of our own file's lines, and whether root's file is the only one with keys of ours.
pub(super) fn authorized(site: &Site) -> Vec<Check> {
    let ours = trusted::read(&site.path(OURS), site.owner, trusted::NOT_WRITABLE, 1 << 20);
    let mut all = Vec::new();
    let mut keys = 0;
    match ours {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let found = lines(site, OURS, &text, true);
            keys = found.len();
            all.extend(found);
            all.extend(twice(&text));
        }
        Err(trusted::Untrusted::Absent) => {}
        Err(trusted::Untrusted::Bad(why)) => {
            all.push(Check::bad(NAME, format!("{OURS} {why}."), "Give it to root with mode 0600; sshd ignores it as it is."))
        }
    }
    let roots = site.path(ROOTS);
    let in_pmxcfs = fs::read_link(&roots).is_ok_and(|to| to.starts_with(path::PVE));
    match bounded(move || fs::read_to_string(roots)) {
        None => all.push(Check::weak(
            NAME,
            format!("{ROOTS} did not answer within three seconds."),
            "Keep breakglass keys in /etc/pve-verb/authorized_keys, which does not hang with /etc/pve.",
        )),
        Some(Ok(text)) => {
            let found = lines(site, ROOTS, &text, false);
            if keys == 0 && !found.is_empty() && in_pmxcfs {
                all.push(Check::weak(
                    NAME,
                    "The only breakglass keys are in pmxcfs: they count on every node, and are gone when /etc/pve is.",
                    format!("Put them into {OURS}, for the account breakglass."),
                ));
            }
            keys += found.len();
            let forced = !found.is_empty();
            all.extend(found);
            all.extend(shells(site, &text, forced));
        }
        Some(Err(_)) => {}
    }
    if keys == 0 {
        all.push(Check::bad(
            NAME,
            "No key may break the glass.",
            format!("Print a line with pve-verb authorize, and append it to {OURS}."),
        ));
    }
    all
}

/// Root's file beside ours: a key of ours that gets a shell there, bash's start-up file in front of a forced command, and how many
/// others get a shell.
fn shells(site: &Site, text: &str, forced: bool) -> Vec<Check> {
    let ours = fs::read_to_string(site.path(OURS)).unwrap_or_default();
    let keys = |text: &str| -> Vec<(bool, String)> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines
            .filter_map(|line| {
                let (options, key) = options(line)?;
                let shell = !options.iter().any(|(name, _)| name.eq_ignore_ascii_case("command"));
                Some((shell, PublicKey::read(key).ok()?.fingerprint()))
            })
            .collect()
    };
    let known: Vec<String> = keys(&ours).into_iter().map(|(_, fingerprint)| fingerprint).collect();
    let shells: Vec<String> = keys(text).into_iter().filter(|(shell, _)| *shell).map(|(_, fingerprint)| fingerprint).collect();
    let mut all = Vec::new();
    if let Some(both) = shells.iter().find(|fingerprint| known.contains(fingerprint)) {
        all.push(Check::bad(
            NAME,
            format!("The breakglass key {both} also gets a shell, by {ROOTS}."),
            "Give breakglass a key of its own, and take this one out of one of the files.",
        ));
    }
    let passwd = fs::read_to_string(site.path("/etc/passwd")).unwrap_or_default();
    let bash = passwd.lines().any(|line| line.starts_with("root:") && line.ends_with("/bash"));
    if forced && bash && site.path("/root/.bashrc").exists() {
        all.push(Check::weak(
            NAME,
            "Root's bash reads /root/.bashrc before it starts pve-verb for a key in root's file.",
            format!("Put the breakglass keys into {OURS}, for the account breakglass with its dash."),
        ));
    }
    if !shells.is_empty() {
        all.push(Check::ok(NAME, format!("{ROOTS} has {} that are not ours and get a shell.", counted(shells.len()))));
    }
    all
}

fn counted(n: usize) -> String {
    if n == 1 { "one key of those".to_owned() } else { format!("{n} keys") }
}

/// A key with a term locks its owner out on the night after it: said from thirty days before, as sshd counts them.
fn expires(place: &str, term: &str) -> Option<Check> {
    let digits = term.strip_suffix('Z').unwrap_or(term);
    let long = match digits.len() {
        8 => format!("{digits}000000"),
        12 => format!("{digits}00"),
        14 => digits.to_owned(),
        _ => return None,
    };
    let part = |range: std::ops::Range<usize>| long.get(range);
    let (day, time) = (part(0..8)?, part(8..14)?);
    let end = Timestamp::parse_compact(&format!("{day}T{time}.000Z"))?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let left = Duration::from_millis(end.unix_ms()).checked_sub(now).map(|left| left.as_secs() / 86_400);
    let forever = "Take expiry-time out of the line: who may break the glass ends with the line itself.";
    Some(match left {
        None => Check::bad(NAME, format!("{place} has expired: sshd does not take its key any more."), forever),
        Some(days) if days < 30 => Check::bad(NAME, format!("{place} expires in {days} days, and locks its key out."), forever),
        Some(days) => Check::weak(NAME, format!("{place} expires in {days} days, and locks its key out."), forever),
    })
}

/// A key that stands in two lines: sshd goes by the first that fits, and what the other allows never counts.
fn twice(text: &str) -> Option<Check> {
    let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let mut seen: Vec<(usize, String)> = Vec::new();
    for (n, line) in lines {
        let Some(fingerprint) = options(line).and_then(|(_, key)| PublicKey::read(key).ok()).map(|key| key.fingerprint()) else { continue };
        if let Some((first, _)) = seen.iter().find(|(_, known)| *known == fingerprint) {
            return Some(Check::weak(
                NAME,
                format!("{OURS} lines {first} and {} have the same key, and sshd goes by the first that fits.", n + 1),
                "Leave one of them.",
            ));
        }
        seen.push((n + 1, fingerprint));
    }
    None
}

/// What is too wide about a `from=`: everybody, a large network, or the address that this host's gateway gives to all behind it.
fn wide(site: &Site, from: &str) -> Option<String> {
    let gateway = gateway(&fs::read_to_string(site.path("/proc/net/route")).unwrap_or_default());
    from.split(',').filter(|pattern| !pattern.starts_with('!')).find_map(|pattern| {
        let bits = pattern.split_once('/').and_then(|(_, bits)| bits.parse::<u32>().ok());
        let least = if pattern.contains(':') { 64 } else { 24 };
        if matches!(pattern, "*" | "*.*" | "*.*.*.*") || bits.is_some_and(|bits| bits < least) {
            return Some(format!("accepts its key from all of {pattern}"));
        }
        // sshd does not look names up unless UseDNS says so; and on that night no name may resolve.
        if is_a_name(pattern) {
            return Some(format!("accepts its key from {pattern}, a name: sshd knows addresses only"));
        }
        (gateway.as_deref() == Some(pattern.trim_end_matches("/32")))
            .then(|| format!("accepts its key from {pattern}, the gateway: everybody behind it comes from there"))
    })
}

/// The default route's gateway in the kernel's table: hexadecimal, in this machine's byte order.
fn gateway(table: &str) -> Option<String> {
    table.lines().find_map(|line| {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let [_, "00000000", gateway, ..] = words.as_slice() else { return None };
        let bytes = u32::from_str_radix(gateway, 16).ok()?.to_ne_bytes();
        Some(std::net::Ipv4Addr::from(bytes).to_string())
    })
}

/// One check for each line. `all_ours`: every line should be one of ours; else other people's are passed over.
fn lines(site: &Site, file: &str, text: &str, all_ours: bool) -> Vec<Check> {
    text.lines()
        .enumerate()
        .map(|(n, line)| (n + 1, line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#') && (all_ours || line.contains("pve-verb")))
        .map(|(n, line)| judge(site, &format!("{file} line {n}"), line))
        .collect()
}

fn judge(site: &Site, place: &str, line: &str) -> Check {
    let again = "Print the line anew with pve-verb authorize.";
    let bad = |why: &str| Check::bad(NAME, format!("{place} {why}."), again);
    let Some((options, key)) = options(line) else { return bad("could not be read") };
    let value = |name: &str| options.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_deref());
    let key = match PublicKey::read(key) {
        Ok(key) => key,
        Err(why) => return bad(&format!("has a key that should not be used: {why}")),
    };
    let Some(Some(command)) = value("command") else { return bad("forces no command, so its key gets a shell") };
    let mut words = command.split(' ');
    if (words.next(), words.next()) != (Some("/usr/sbin/pve-verb"), Some("forced")) {
        return bad("forces another command than /usr/sbin/pve-verb forced");
    }
    // Read as it will be read at night: a word that the program does not know would refuse every call (7).
    let read = Cli::try_parse_from(command.split(' '));
    let Ok(Cli { command: Command::Forced(forced) }) = read else {
        return bad("forces arguments that pve-verb refuses, so its key gets no answer");
    };
    if value("restrict").is_none() {
        return bad("does not say restrict, so its key may forward ports and agents");
    }
    if let Some((granted, _)) = options.iter().find(|(n, _)| {
        matches!(
            n.to_ascii_lowercase().as_str(),
            "pty" | "agent-forwarding" | "port-forwarding" | "x11-forwarding" | "user-rc" | "environment" | "cert-authority"
        )
    }) {
        return bad(&format!("gives back what restrict took: {granted}"));
    }
    if forced.key_fp.is_some_and(|fingerprint| fingerprint != key.fingerprint()) {
        return bad("names the fingerprint of another key");
    }
    if let Some(term) = value("expiry-time") {
        return term.and_then(|term| expires(place, term)).unwrap_or_else(|| bad("has an expiry-time that can't be read"));
    }
    let Some(from) = value("from").flatten() else {
        return Check::weak(
            NAME,
            format!("{place} accepts its key from every address."),
            "Add from=\"…\" with the addresses that it comes from.",
        );
    };
    if let Some(what) = wide(site, from) {
        return Check::weak(NAME, format!("{place} {what}."), "Name the addresses that it really comes from.");
    }
    Check::ok(NAME, format!("{place} forces pve-verb and nothing else."))
}

type Options = Vec<(String, Option<String>)>;

/// The options of a line, and the rest of it, read as sshd does: commas between them, quotes around values, `\"` inside.
fn options(line: &str) -> Option<(Options, &str)> {
    if PublicKey::read(line).is_ok() {
        return Some((Vec::new(), line));
    }
    let (mut all, mut word, mut value) = (Vec::new(), String::new(), None::<String>);
    let mut chars = line.char_indices().peekable();
    let mut quoted = false;
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' if quoted && chars.peek().is_some_and(|(_, c)| *c == '"') => {
                chars.next();
                value.get_or_insert_default().push('"');
            }
            '"' => quoted = !quoted,
            '=' if !quoted && value.is_none() => value = Some(String::new()),
            ',' | ' ' | '\t' if !quoted => {
                all.push((std::mem::take(&mut word), value.take()));
                if c != ',' {
                    return Some((all, line.get(at..)?.trim()));
                }
            }
            c => value.as_mut().unwrap_or(&mut word).push(c),
        }
    }
    None
}
