//! What stands around us on the host and can take the way in away, or make it weaker than it looks: the installed package, logind, how
//! sshd is started and whom it makes wait, root's start-up files, the tools that evidence comes from.

use sha2::{Digest, Sha256};

use super::sshd::Sshd;
use super::{Check, Site, bounded};
use crate::host::path;

/// The sums of the package's files, written when it was built.
const SUMS: &str = "/usr/share/pve-verb/SHA256SUMS";
const BINARY: &str = "/usr/sbin/pve-verb";

/// Whether the binary is the one that the package brought.
pub(super) fn package(site: &Site) -> Check {
    let name = "package";
    let (sums, binary) = (site.path(SUMS), site.path(BINARY));
    let read = bounded(move || (std::fs::read_to_string(sums), std::fs::read(binary)));
    let Some((sums, binary)) = read else {
        return Check::bad(name, "The installed files did not answer within three seconds.", "Look at the storage below /usr.");
    };
    let Ok(sums) = sums else {
        return Check::weak(
            name,
            "No package is installed, so the binary can't be compared with one.",
            "Install the Debian package; upgrades then keep all parts together.",
        );
    };
    let wanted = sums.lines().find_map(|line| line.strip_suffix(BINARY.trim_start_matches('/'))).map(str::trim);
    let found: Option<String> = binary.ok().map(|bytes| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect());
    match (wanted, found) {
        (Some(wanted), Some(found)) if wanted == found => Check::ok(name, format!("{BINARY} is the package's: {}.", short(&found))),
        (wanted, found) => Check::bad(
            name,
            format!(
                "{BINARY} is not the one that the package brought: it is {}, and the package's {}.",
                found.as_deref().map_or("unreadable", short),
                wanted.map_or("unknown", short)
            ),
            "Find out who replaced it, then install the package again.",
        ),
    }
}

fn short(hash: &str) -> &str {
    hash.get(..16).unwrap_or(hash)
}

/// The texts of a configuration file and its drop-ins, in the order in which they are read.
fn texts(site: &Site, file: &str) -> String {
    let mut text = std::fs::read_to_string(site.path(file)).unwrap_or_default();
    let mut names: Vec<_> = std::fs::read_dir(site.path(&format!("{file}.d"))).into_iter().flatten().flatten().map(|e| e.path()).collect();
    names.sort();
    for name in names.iter().filter(|name| name.extension().is_some_and(|e| e == "conf")) {
        text.push('\n');
        text.push_str(&std::fs::read_to_string(name).unwrap_or_default());
    }
    text
}

/// Whether logind ends what a login leaves running: the worker that finishes a verb is such a process, until it is in its own cgroup.
pub(super) fn logind(site: &Site) -> Check {
    let name = "logind";
    let text = texts(site, "/etc/systemd/logind.conf");
    let value = |key: &str| text.lines().rev().find_map(|line| line.trim().strip_prefix(key)?.trim().strip_prefix('=').map(str::trim));
    let kills = value("KillUserProcesses").is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "yes" | "true" | "1" | "on"));
    // systemd's default spares root, which an account with uid 0 is for it.
    let spared = value("KillExcludeUsers").is_none_or(|users| users.split_whitespace().any(|user| user == "root"));
    if kills && !spared {
        Check::bad(
            name,
            "logind ends all processes of root's when a connection closes, and a verb in progress is one.",
            "Set KillUserProcesses=no, or add root to KillExcludeUsers, in /etc/systemd/logind.conf.",
        )
    } else {
        Check::ok(name, "logind lets a verb finish when its connection closes.")
    }
}

/// Whether sshd runs, or is started for each connection: on a host under pressure that start is what fails.
pub(super) fn socket(site: &Site) -> Check {
    let name = "sshd's start";
    let socket = "/etc/systemd/system/sockets.target.wants/ssh.socket";
    if std::fs::symlink_metadata(site.path(socket)).is_ok() {
        Check::weak(
            name,
            "sshd is started by systemd for each connection, which fails first when the host is short of memory.",
            "Use systemctl disable --now ssh.socket, then systemctl enable --now ssh.service.",
        )
    } else {
        Check::ok(name, "sshd runs all the time.")
    }
}

/// sshd from 9.8 on makes an address wait, for up to ten minutes, that failed to log in: a client that retries locks itself out.
pub(super) fn penalties(site: &Site, sshd: &Sshd) -> Check {
    let name = "sshd's penalties";
    let status = std::fs::read_to_string(site.path("/var/lib/dpkg/status")).unwrap_or_default();
    let version = status
        .split("\n\n")
        .find(|package| package.lines().next() == Some("Package: openssh-server"))
        .and_then(|package| package.lines().find_map(|line| line.strip_prefix("Version: ")));
    let Some((major, minor)) = version.and_then(numbers) else {
        return Check::ok(name, "The version of sshd is not known here, so neither is whether it makes anybody wait.");
    };
    let told = sshd.knows_penalties();
    if (major, minor) < (9, 8) || told {
        Check::ok(name, format!("sshd {major}.{minor} locks no address out for minutes, or was told how long."))
    } else {
        Check::weak(
            name,
            format!("sshd {major}.{minor} makes an address wait for up to ten minutes after failed logins."),
            "Set PerSourcePenalties with a small max in a file below /etc/ssh/sshd_config.d.",
        )
    }
}

/// The two numbers of a version such as `1:9.2p1-2+deb12u3`.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let plain = version.split_once(':').map_or(version, |(_, rest)| rest);
    let (major, rest) = plain.split_once('.')?;
    let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Whether what was begun when the host went down is recorded at the next boot, or only when somebody calls.
pub(super) fn boot(site: &Site) -> Check {
    let name = "boot unit";
    let wanted = ["multi-user.target.wants", "sysinit.target.wants", "pve-guests.service.wants"];
    let unit = |folder: &&str| site.path(&format!("/etc/systemd/system/{folder}/pve-verb-recover.service"));
    if wanted.iter().any(|folder| std::fs::symlink_metadata(unit(folder)).is_ok()) {
        Check::ok(name, "What was begun when the host went down is recorded at the next boot.")
    } else {
        Check::weak(
            name,
            "What was begun when the host went down is not recorded at boot, but only at the next call.",
            "Install the package, or install/deb/pve-verb-recover.service, and use systemctl enable pve-verb-recover.",
        )
    }
}

/// The tools that evidence about the host comes from. Each one's absence is one artifact less.
pub(super) fn tools(site: &Site) -> Check {
    let name = "tools";
    let missing: Vec<&str> =
        ["/usr/bin/journalctl", "/usr/sbin/pvesm", "/usr/bin/df"].into_iter().filter(|tool| !site.path(tool).exists()).collect();
    if missing.is_empty() {
        Check::ok(name, "The tools for evidence about the host are there.")
    } else {
        Check::weak(name, format!("A bundle lacks what {} would say.", missing.join(" and ")), "Install the packages that they belong to.")
    }
}

/// Where a key's line asks for grants: whether anybody could sign one.
pub(super) fn signers(site: &Site) -> Option<Check> {
    let name = "allowed signers";
    let lines = std::fs::read_to_string(site.path("/etc/pve-verb/authorized_keys")).unwrap_or_default();
    if !lines.contains("--require-grant") {
        return None;
    }
    let file = format!("{}/allowed_signers", path::ETC);
    let text = std::fs::read_to_string(site.path(&file)).unwrap_or_default();
    let any = text.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
    Some(if any {
        Check::ok(name, format!("{file} names who may sign grants."))
    } else {
        Check::bad(
            name,
            format!("A key needs grants, and {file} names nobody who may sign one."),
            "Add the signer's line, or take --require-grant out of the key's line.",
        )
    })
}
