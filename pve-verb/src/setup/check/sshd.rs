//! What sshd would do with a login of `breakglass`: its configuration read as sshd reads it. The first value of a keyword counts, files
//! come in where `Include` names them, and a block of `Match` that fits the account counts before what stands outside of blocks.
//!
//! Conditions that only a connection can meet (an address, a host) are taken as met where they give something, and as not met where they
//! would take something away: what is said here is never an alarm that needs a connection to be true.

use std::os::unix::fs::MetadataExt;

use super::{Check, Site};

const NAME: &str = "sshd";
/// The account.
const WHO: &str = "breakglass";
const MAIN: &str = "/etc/ssh/sshd_config";
const DROP_IN: &str = "/etc/ssh/sshd_config.d/breakglass.conf";
const KEYS: &str = "/etc/pve-verb/authorized_keys";
/// sshd's own limit on files within files.
const DEEPEST: usize = 16;

/// For whom a line counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    All,
    Breakglass,
    /// For the account, on some connections.
    Perhaps,
    Others,
}

/// sshd's configuration, its lines in the order in which they are read.
#[derive(Debug, Default)]
pub(super) struct Sshd {
    lines: Vec<(For, String, Vec<String>)>,
    /// What could not be read, or could be written by somebody else.
    files: Vec<String>,
    wrong: Vec<String>,
}

impl Sshd {
    pub(super) fn read(site: &Site) -> Self {
        let mut all = Self::default();
        all.file(site, MAIN, For::All, 0);
        all
    }

    fn file(&mut self, site: &Site, path: &str, within: For, depth: usize) {
        let at = site.path(path);
        let Ok(text) = std::fs::read_to_string(&at) else { return };
        self.files.push(path.to_owned());
        if std::fs::metadata(&at).is_ok_and(|found| found.uid() != site.owner || found.mode() & 0o022 != 0) {
            self.wrong.push(path.to_owned());
        }
        let mut counts = within;
        for line in text.lines() {
            let words = words(line);
            let Some((key, values)) = words.split_first() else { continue };
            match key.to_ascii_lowercase().as_str() {
                "match" => counts = narrower(within, fits(values)),
                "include" if depth < DEEPEST => {
                    for pattern in values {
                        for path in included(site, pattern) {
                            self.file(site, &path, counts, depth + 1);
                        }
                    }
                }
                key => self.lines.push((counts, key.to_owned(), values.to_vec())),
            }
        }
    }

    /// The values of a keyword for the account; `perhaps` where a condition of the connection's may give it.
    fn values(&self, key: &str, perhaps: bool) -> Option<&[String]> {
        let first = |wanted: For| self.lines.iter().find(|(counts, k, _)| *counts == wanted && k == key);
        let found = first(For::Breakglass).or_else(|| if perhaps { first(For::Perhaps) } else { None }).or_else(|| first(For::All));
        found.map(|(_, _, values)| values.as_slice())
    }

    /// The one value of a keyword, in small letters.
    fn value(&self, key: &str) -> Option<String> {
        self.values(key, false).and_then(<[String]>::first).map(|value| value.to_ascii_lowercase())
    }

    /// Every pattern of a keyword that adds up.
    fn patterns(&self, key: &str) -> Vec<&str> {
        let of = |wanted: For| {
            let lines = self.lines.iter().filter(move |(counts, k, _)| *counts == wanted && k == key);
            lines.flat_map(|(_, _, values)| values).map(String::as_str).collect::<Vec<_>>()
        };
        let ours = of(For::Breakglass);
        if ours.is_empty() { of(For::All) } else { ours }
    }

    /// Whether the account logs in with a key of ours, and gets what the key's line forces.
    pub(super) fn lets_in(&self, site: &Site) -> Check {
        let test = "Check with sshd -T -C user=breakglass,host=x,addr=192.0.2.1";
        if self.files.is_empty() {
            return Check::weak(NAME, "sshd's configuration could not be read.", format!("{test}."));
        }
        if let Some(file) = self.wrong.first() {
            return Check::bad(
                NAME,
                format!("{file} could be changed by somebody who is not root, and says who gets in."),
                "Give it to root with mode 0644.",
            );
        }
        if !self.values("authorizedkeysfile", true).is_some_and(|files| files.iter().any(|file| file == KEYS)) {
            let there = std::fs::symlink_metadata(site.path(DROP_IN)).is_ok();
            if there && !self.files.iter().any(|file| file == DROP_IN) {
                return Check::bad(
                    NAME,
                    format!("sshd does not read {DROP_IN}: {MAIN} has no Include of that folder, so no key of {KEYS} counts."),
                    format!("Put Include /etc/ssh/sshd_config.d/*.conf at the top of {MAIN}, then reload sshd."),
                );
            }
            return Check::weak(NAME, format!("sshd is not told to read {KEYS} for breakglass."), format!("Install the drop-in. {test}."));
        }
        match self.refuses(site) {
            Some((what, next)) => Check::bad(NAME, what, format!("{next} {test}.")),
            None => Check::ok(NAME, format!("sshd reads {KEYS} for breakglass, and lets it in.")),
        }
    }

    /// Why a key of ours would not get what its line forces, and what to do.
    fn refuses(&self, site: &Site) -> Option<(String, String)> {
        let add = |to: &str, name: &str| format!("Add {name} to it, or say {to} in the drop-in's block.");
        let groups = groups(site);
        let any = |patterns: &[&str], names: &[String]| names.iter().any(|name| listed(patterns, name));
        let me = [WHO.to_owned()];
        for (key, word, names, name) in
            [("denyusers", "DenyUsers", &me[..], WHO), ("denygroups", "DenyGroups", &groups[..], "the account's group")]
        {
            if any(&self.patterns(key), names) {
                return Some((format!("sshd refuses breakglass: {word} has {name} in it."), format!("Take it out of {word}.")));
            }
        }
        for (key, word, names, name) in [("allowusers", "AllowUsers", &me[..], WHO), ("allowgroups", "AllowGroups", &groups[..], "root")] {
            let patterns = self.patterns(key);
            if !patterns.is_empty() && !any(&patterns, names) {
                return Some((format!("sshd refuses breakglass: {word} has others only."), add(word, name)));
            }
        }
        if self.value("permitrootlogin").as_deref() == Some("no") {
            let what = "sshd refuses breakglass: its uid is 0, and PermitRootLogin is no.";
            return Some((what.to_owned(), "Say PermitRootLogin forced-commands-only in the drop-in's block.".to_owned()));
        }
        if self.value("pubkeyauthentication").as_deref() == Some("no") {
            let what = "sshd takes no keys: PubkeyAuthentication is no.";
            return Some((what.to_owned(), "Say PubkeyAuthentication yes in the drop-in's block.".to_owned()));
        }
        let methods = self.values("authenticationmethods", false).unwrap_or_default();
        if !methods.is_empty() && !methods.iter().any(|way| way == "publickey" || way == "any") {
            let what = "sshd wants more than a key of breakglass: AuthenticationMethods names no way by publickey alone.";
            return Some((what.to_owned(), "Say AuthenticationMethods publickey in the drop-in's block.".to_owned()));
        }
        let forced = self.values("forcecommand", false).and_then(<[String]>::first).filter(|command| *command != "none");
        forced.map(|command| {
            let what = format!("sshd starts {command} for breakglass, not what the key's line forces.");
            (what, "Say ForceCommand none in the drop-in's block.".to_owned())
        })
    }

    /// How many sessions one connection has: a client that keeps one connection needs several at once.
    pub(super) fn sessions(&self) -> Check {
        let name = "sshd's sessions";
        match self.value("maxsessions").and_then(|n| n.parse::<u32>().ok()) {
            Some(n) if n < 4 => Check::weak(
                name,
                format!("sshd allows {n} sessions in one connection, so a status may have to wait for a cycle."),
                "Set MaxSessions 10 for the user breakglass.",
            ),
            _ => Check::ok(name, "sshd allows enough sessions in one connection."),
        }
    }

    /// Whether it was told how long an address that failed has to wait.
    pub(super) fn knows_penalties(&self) -> bool {
        self.lines.iter().any(|(counts, key, _)| *counts == For::All && key == "persourcepenalties")
    }
}

/// A line's words: a comment's are none, quotes hold one together, and the first may end with `=`.
fn words(line: &str) -> Vec<String> {
    let (mut all, mut word, mut quoted, mut begun) = (Vec::new(), String::new(), false, false);
    for c in line.trim().chars() {
        match c {
            '"' => (quoted, begun) = (!quoted, true),
            '#' if !quoted && !begun => break,
            c if !quoted && (c.is_ascii_whitespace() || c == '=' && all.is_empty()) => {
                if begun {
                    all.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            c => {
                word.push(c);
                begun = true;
            }
        }
    }
    if begun {
        all.push(word);
    }
    all
}

/// What a `Match` says about the account.
fn fits(conditions: &[String]) -> For {
    let mut all = For::Breakglass;
    for pair in conditions.chunks(2) {
        let one = match pair {
            [all] if all.eq_ignore_ascii_case("all") => For::Breakglass,
            [key, who] if key.eq_ignore_ascii_case("user") => {
                if listed(&who.split(',').collect::<Vec<_>>(), WHO) {
                    For::Breakglass
                } else {
                    For::Others
                }
            }
            _ => For::Perhaps,
        };
        all = narrower(all, one);
    }
    all
}

/// Both conditions together.
const fn narrower(one: For, other: For) -> For {
    match (one, other) {
        (For::Others, _) | (_, For::Others) => For::Others,
        (For::Perhaps, _) | (_, For::Perhaps) => For::Perhaps,
        (For::All, other) => other,
        (For::Breakglass, _) => For::Breakglass,
    }
}

/// Whether a list of patterns names it; one with `!` takes it out. Of `USER@HOST` the user counts.
fn listed(patterns: &[&str], name: &str) -> bool {
    let is = |pattern: &str| like(pattern.split('@').next().unwrap_or_default().as_bytes(), name.as_bytes());
    !patterns.iter().filter_map(|pattern| pattern.strip_prefix('!')).any(is) && patterns.iter().any(|pattern| is(pattern))
}

/// `*` and `?` as sshd has them.
fn like(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => like(rest, text) || text.split_first().is_some_and(|(_, text)| like(pattern, text)),
        (Some((p, rest)), Some((t, text))) => (*p == b'?' || p == t) && like(rest, text),
        _ => false,
    }
}

/// The files that an `Include` names, in order.
fn included(site: &Site, pattern: &str) -> Vec<String> {
    let whole = if pattern.starts_with('/') { pattern.to_owned() } else { format!("/etc/ssh/{pattern}") };
    let Some((folder, last)) = whole.rsplit_once('/') else { return Vec::new() };
    let entries = std::fs::read_dir(site.path(folder)).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| like(last.as_bytes(), name.as_bytes()) && (last.starts_with('.') || !name.starts_with('.')));
    names.sort();
    names.into_iter().map(|name| format!("{folder}/{name}")).collect()
}

/// The names of the account's groups: that of its number in `/etc/passwd`, and those that list it.
fn groups(site: &Site) -> Vec<String> {
    let text = |file: &str| std::fs::read_to_string(site.path(file)).unwrap_or_default();
    let passwd = text("/etc/passwd");
    let gid = passwd.lines().find(|line| line.starts_with("breakglass:")).and_then(|line| line.split(':').nth(3)).unwrap_or("0");
    let file = text("/etc/group");
    let of = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, number, members] = fields.as_slice() else { return None };
        (*number == gid || members.split(',').any(|member| member == WHO)).then(|| (*name).to_owned())
    };
    file.lines().filter_map(of).collect()
}
