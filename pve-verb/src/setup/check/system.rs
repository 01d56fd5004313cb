//! What the host around us has to offer: the account, sshd, the clock, `qm`, a debugger.

use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

use super::{Check, Site};
use crate::config::Config;
use crate::host::path;

/// Whether root asks: much of the rest can't be told otherwise.
pub(super) fn root() -> Check {
    if rustix::process::geteuid().is_root() {
        Check::ok("root", "This runs as root.")
    } else {
        Check::bad("root", "This does not run as root, so much below can't be told.", "Run it again as root.")
    }
}

/// The account `breakglass`: uid 0, locked, a shell that reads nothing first.
pub(super) fn account(site: &Site) -> Check {
    let name = "account";
    let make = "Make it with useradd -o -u 0 -g 0 -M -d / -s /bin/dash breakglass, and lock its password.";
    let field = |file: &str| {
        let text = std::fs::read_to_string(site.path(file)).unwrap_or_default();
        let line = text.lines().find(|l| l.starts_with("breakglass:")).map(str::to_owned);
        line.map(|l| l.split(':').map(str::to_owned).collect::<Vec<_>>())
    };
    let Some(entry) = field("/etc/passwd") else {
        return Check::weak(
            name,
            "There is no account breakglass, so keys are root's, whose file is in pmxcfs and whose shell is bash.",
            make,
        );
    };
    let part = |entry: &[String], n: usize| entry.get(n).cloned().unwrap_or_default();
    let (uid, shell) = (part(&entry, 2), part(&entry, 6));
    if uid != "0" {
        return Check::bad(name, format!("The account breakglass has uid {uid}, and pve-verb needs 0."), make);
    }
    if shell.is_empty() || shell.ends_with("nologin") || shell.ends_with("false") {
        return Check::bad(
            name,
            format!("The account breakglass has the shell \"{shell}\", which runs no command."),
            "Use chsh -s /bin/dash breakglass.",
        );
    }
    if shell.ends_with("bash") || shell.ends_with("zsh") {
        return Check::weak(
            name,
            format!("The account breakglass has the shell {shell}, which reads start-up files first: one that hangs blocks every verb."),
            "Use chsh -s /bin/dash breakglass.",
        );
    }
    match field("/etc/shadow") {
        Some(shadow) if !part(&shadow, 1).starts_with(['!', '*']) => {
            Check::bad(name, "The account breakglass has a password, or an empty one, and uid 0.", "Lock it with passwd -l breakglass.")
        }
        Some(shadow) => ages(&shadow)
            .unwrap_or_else(|| Check::ok(name, format!("The account breakglass has uid 0, the shell {shell} and no password."))),
        None => Check::weak(
            name,
            "Whether the account breakglass has a password could not be read.",
            "Run this as root, and look at /etc/shadow.",
        ),
    }
}

/// Whether the account, or the password that it does not have, ends some day: sshd then refuses the key, or asks for a new password
/// instead of running what the key's line forces. Debian's `useradd` takes such a term from `/etc/login.defs`.
fn ages(shadow: &[String]) -> Option<Check> {
    let day = |n: usize| shadow.get(n).and_then(|field| field.parse::<i64>().ok());
    let today = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| (since.as_secs() / 86_400).cast_signed());
    let name = "account";
    let never = "Use chage -d $(date -I) -M -1 -I -1 -E -1 breakglass.";
    // The day of the last change 0: at the next login. No term at all, or one of 273 years, is Debian's "never".
    let password = match (day(2), day(4)) {
        (Some(0), _) => Some(0),
        (Some(changed), Some(most)) if (0..10_000).contains(&most) => Some(changed.saturating_add(most)),
        _ => None,
    };
    let ends = [day(7).filter(|end| *end >= 0), password].into_iter().flatten().min()?;
    let left = ends.saturating_sub(today);
    Some(if left < 0 {
        Check::bad(name, "The account breakglass, or its password's term, has expired: sshd lets no key of it in.", never)
    } else {
        Check::weak(name, format!("The account breakglass, or its password's term, ends in {left} days, and locks its keys out."), never)
    })
}

/// Grants and records are worth little under a clock that stands in the past.
pub(super) fn clock(site: &Site) -> Check {
    let name = "clock";
    let installed = std::fs::metadata(site.path("/usr/sbin/pve-verb")).and_then(|m| m.modified());
    match installed {
        Ok(then) if then > SystemTime::now() => {
            Check::bad(name, "The clock stands before the day on which pve-verb was installed.", "Set the clock, and let chrony keep it.")
        }
        Ok(_) => Check::ok(name, "The clock stands after the day on which pve-verb was installed."),
        Err(_) => Check::weak(name, "The clock could not be compared with anything.", "Look at it with timedatectl."),
    }
}

/// PVE's `qm`.
pub(super) fn qm(site: &Site) -> Check {
    let config = Config::load_from(&site.path(path::CONFIG), site.owner).0;
    let qm = config.host.qm.path().display().to_string();
    match std::fs::metadata(site.path(&qm)) {
        Ok(found) if found.is_file() && found.uid() == site.owner && found.mode() & 0o022 == 0 && found.mode() & 0o100 != 0 => {
            Check::ok("qm", format!("{qm} is there."))
        }
        Ok(_) => Check::bad("qm", format!("{qm} is not a program that root alone can change."), "Install qemu-server again."),
        Err(_) => Check::bad(
            "qm",
            format!("{qm} does not exist, so stop, start and cycle can't work."),
            "Run this on a PVE host, or set host.qm in the configuration.",
        ),
    }
}

/// The debugger that names the line at which QEMU hangs.
pub(super) fn gdb(site: &Site) -> Check {
    if site.path("/usr/bin/gdb").exists() {
        Check::ok("gdb", "gdb is there, so a bundle can say where QEMU hangs.")
    } else {
        Check::weak("gdb", "There is no gdb, so a bundle can't say in which line QEMU hangs.", "Install gdb and pve-qemu-kvm-dbgsym.")
    }
}
