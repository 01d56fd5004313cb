//! A host on which everything is well, and one fault after another in it.

use super::*;
use crate::host::path;
use std::fs::{Permissions, create_dir_all, set_permissions, write};
use std::os::unix::fs::PermissionsExt;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea";

struct Host {
    _folder: tempfile::TempDir,
    site: Site,
}

/// A host on which everything is well.
fn good() -> Host {
    let folder = tempfile::tempdir().unwrap();
    let site = Site { root: folder.path().to_owned(), owner: rustix::process::getuid().as_raw() };
    let host = Host { site, _folder: folder };
    let folders = [
        "/etc/ssh/sshd_config.d",
        "/usr/sbin",
        "/usr/bin",
        "/root/.ssh",
        "/usr/share/pve-verb",
        "/etc/systemd/system/sockets.target.wants",
    ];
    for f in folders.into_iter().chain(["/proc/net", "/var/lib/dpkg"]) {
        create_dir_all(host.site.path(f)).unwrap();
    }
    for f in [path::ETC, path::VAR, path::LOG] {
        create_dir_all(host.site.path(f)).unwrap();
        host.mode(f, 0o700);
    }
    let key = ssh_key::PrivateKey::from(ssh_key::private::Ed25519Keypair::from_seed(&[6; 32]));
    host.has(path::SIGNING_KEY, &key.to_openssh(ssh_key::LineEnding::LF).unwrap(), 0o600);
    host.has(path::SIGNING_PUB, &key.public_key().to_openssh().unwrap(), 0o644);
    host.has("/usr/sbin/pve-verb", "", 0o755);
    host.has("/usr/sbin/qm", "", 0o755);
    for tool in ["/usr/bin/gdb", "/usr/bin/journalctl", "/usr/bin/df", "/usr/sbin/pvesm"] {
        host.has(tool, "", 0o755);
    }
    // The hash of the empty file that stands there for the binary.
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    host.has("/usr/share/pve-verb/SHA256SUMS", &format!("{empty}  usr/sbin/pve-verb\n"), 0o644);
    host.has("/var/lib/dpkg/status", "Package: x\nVersion: 1\n\nPackage: openssh-server\nVersion: 1:9.2p1-2+deb12u3\n", 0o644);
    host.has("/etc/passwd", "root:x:0:0::/root:/bin/bash\nbreakglass:x:0:0::/root:/bin/dash\n", 0o644);
    host.has("/etc/shadow", "breakglass:!:20000::::::\n", 0o600);
    host.has("/etc/group", "root:x:0:\nstaff:x:50:someone\n", 0o644);
    // Debian's, and what our package installs.
    host.has("/etc/ssh/sshd_config", "# Debian's\nInclude /etc/ssh/sshd_config.d/*.conf\nUsePAM yes\nX11Forwarding yes\n", 0o644);
    host.has("/etc/ssh/sshd_config.d/breakglass.conf", include_str!("../../../../install/deb/breakglass.conf"), 0o644);
    let wanted = "/etc/systemd/system/multi-user.target.wants";
    create_dir_all(host.site.path(wanted)).unwrap();
    host.has(&format!("{wanted}/pve-verb-recover.service"), "", 0o644);
    host.has("/etc/pve-verb/authorized_keys", &line("restrict,from=\"192.0.2.1\"", "/usr/sbin/pve-verb forced --key-name a"), 0o600);
    host
}

fn line(options: &str, command: &str) -> String {
    format!("{options},command=\"{command}\" {KEY} a\n")
}

impl Host {
    /// The drop-in with this for the account.
    fn drop_in(&self, text: &str) {
        self.has("/etc/ssh/sshd_config.d/breakglass.conf", &format!("Match User breakglass\n{text}"), 0o644);
    }
    fn has(&self, file: &str, text: &str, mode: u32) {
        write(self.site.path(file), text).unwrap();
        self.mode(file, mode);
    }
    fn mode(&self, file: &str, mode: u32) {
        set_permissions(self.site.path(file), Permissions::from_mode(mode)).unwrap();
    }
    /// What is not ok, apart from what a folder for tests can't have.
    fn complaints(&self) -> Vec<(&'static str, Level, String)> {
        let not_ours = |c: &&Check| c.level != Level::Ok && !(c.name == "root" || c.name == "disk" && c.level == Level::Weak);
        all(&self.site).iter().filter(not_ours).map(|c| (c.name, c.level, c.message.to_string())).collect()
    }
    fn one(&self, name: &str, level: Level, word: &str) {
        let all = self.complaints();
        assert!(all.iter().any(|(n, l, m)| *n == name && *l == level && m.contains(word)), "{name} {level:?} {word}: {all:?}");
    }
}

#[test]
fn a_host_that_is_set_up_well_has_no_complaints() {
    assert_eq!(good().complaints(), []);
}

#[test]
fn each_fault_is_named() {
    use Level::{Bad, Weak};
    type Fault<'a> = (&'a dyn Fn(&Host), &'a str, Level, &'a str);
    let ours = "/etc/pve-verb/authorized_keys";
    let forced = "/usr/sbin/pve-verb forced --key-name a";
    let faults: &[Fault<'_>] = &[
        (&|h| h.mode(path::ETC, 0o750), "folder /etc/pve-verb", Bad, "init"),
        (&|h| h.mode("/etc", 0o777), "folder /etc/pve-verb", Bad, "everybody"),
        (&|h| h.mode("/var/log", 0o775), "folder /var/log/pve-verb", Weak, "group"),
        (&|h| std::fs::remove_dir(h.site.path(path::LOG)).unwrap(), "folder /var/log/pve-verb", Bad, "does not exist"),
        (&|h| h.mode("/usr/sbin/pve-verb", 0o775), "binary", Bad, "0755"),
        (&|h| h.mode(path::SIGNING_KEY, 0o644), "signing key", Bad, "mode 0644"),
        (&|h| h.has(path::SIGNING_PUB, KEY, 0o644), "signing key", Bad, "public half"),
        (&|h| h.has(path::CONFIG, "[limit]", 0o600), "configuration", Bad, "limit"),
        (&|h| std::fs::remove_dir_all(h.site.path(path::VAR)).unwrap(), "disk", Bad, "does not take"),
        (&|h| std::fs::remove_file(h.site.path(ours)).unwrap(), "authorized keys", Bad, "No key"),
        (&|h| h.mode(ours, 0o660), "authorized keys", Bad, "mode"),
        (&|h| h.has(ours, KEY, 0o600), "authorized keys", Bad, "shell"),
        (&|h| h.has(ours, &line("from=\"192.0.2.1\"", forced), 0o600), "authorized keys", Bad, "restrict"),
        (&|h| h.has(ours, &line("restrict,from=\"192.0.2.1\",pty", forced), 0o600), "authorized keys", Bad, "pty"),
        (&|h| h.has(ours, &line("restrict,from=\"192.0.2.1\"", "/bin/sh"), 0o600), "authorized keys", Bad, "another command"),
        (
            &|h| h.has(ours, &line("restrict,from=\"192.0.2.1\"", &format!("{forced} --key-fp SHA256:{}", "A".repeat(43))), 0o600),
            "authorized keys",
            Bad,
            "fingerprint",
        ),
        (&|h| h.has(ours, &line("restrict,no-pty=\"command=\\\"\"", forced), 0o600), "authorized keys", Weak, "every address"),
        (&|h| h.has("/etc/passwd", "root:x:0:0::/root:/bin/bash\n", 0o644), "account", Weak, "no account"),
        (&|h| h.has("/etc/passwd", "breakglass:x:1000:0::/root:/bin/dash\n", 0o644), "account", Bad, "1000"),
        (&|h| h.has("/etc/passwd", "breakglass:x:0:0::/root:/bin/bash\n", 0o644), "account", Weak, "start-up files"),
        (&|h| h.has("/etc/passwd", "breakglass:x:0:0::/root:/usr/sbin/nologin\n", 0o644), "account", Bad, "no command"),
        (&|h| h.has("/etc/shadow", "breakglass::20000::::::\n", 0o600), "account", Bad, "password"),
        (&|h| std::fs::remove_file(h.site.path("/usr/sbin/qm")).unwrap(), "qm", Bad, "does not exist"),
        (&|h| std::fs::remove_file(h.site.path("/usr/bin/gdb")).unwrap(), "gdb", Weak, "no gdb"),
        (&|h| std::fs::remove_file(h.site.path("/usr/sbin/pvesm")).unwrap(), "tools", Weak, "pvesm"),
        (&|h| h.has("/usr/sbin/pve-verb", "another", 0o755), "package", Bad, "not the one"),
        (&|h| std::fs::remove_file(h.site.path("/usr/share/pve-verb/SHA256SUMS")).unwrap(), "package", Weak, "No package"),
        (&|h| h.has("/etc/systemd/logind.conf", "[Login]\nKillUserProcesses=yes\nKillExcludeUsers=\n", 0o644), "logind", Bad, "closes"),
        (&|h| h.has("/etc/systemd/system/sockets.target.wants/ssh.socket", "", 0o644), "sshd's start", Weak, "each connection"),
        (&|h| h.drop_in("MaxSessions 1\nAuthorizedKeysFile /etc/pve-verb/authorized_keys\n"), "sshd's sessions", Weak, "1 sessions"),
        (
            &|h| std::fs::remove_dir_all(h.site.path("/etc/systemd/system/multi-user.target.wants")).unwrap(),
            "boot unit",
            Weak,
            "not recorded at boot",
        ),
        (
            &|h| h.has("/var/lib/dpkg/status", "Package: openssh-server\nVersion: 1:10.0p1-7\n", 0o644),
            "sshd's penalties",
            Weak,
            "ten minutes",
        ),
        (&|h| h.has(ours, &line("restrict,from=\"10.0.0.0/8\"", forced), 0o600), "authorized keys", Weak, "all of 10.0.0.0/8"),
        (
            &|h| {
                h.has(
                    "/proc/net/route",
                    &format!("Iface Destination Gateway\neth0 00000000 {:08X} 0003\n", u32::from_ne_bytes([192, 0, 2, 1])),
                    0o644,
                )
            },
            "authorized keys",
            Weak,
            "the gateway",
        ),
        (
            &|h| h.has(ours, &line("restrict,from=\"192.0.2.1\"", &format!("{forced} --require-grant cycle")), 0o600),
            "allowed signers",
            Bad,
            "nobody",
        ),
        (&|h| h.has("/root/.ssh/authorized_keys", KEY, 0o600), "authorized keys", Bad, "also gets a shell"),
        (
            &|h| {
                h.has("/root/.bashrc", "", 0o644);
                h.has("/root/.ssh/authorized_keys", &line("restrict,from=\"192.0.2.1\"", forced), 0o600);
            },
            "authorized keys",
            Weak,
            ".bashrc",
        ),
    ];
    for (break_it, name, level, word) in faults {
        let host = good();
        break_it(&host);
        host.one(name, *level, word);
    }
}

#[test]
fn what_keeps_the_account_out_is_named() {
    use Level::{Bad, Weak};
    let keys = "AuthorizedKeysFile /etc/pve-verb/authorized_keys\n";
    let main =
        |text: &'static str| move |h: &Host| h.has("/etc/ssh/sshd_config", &format!("{text}\nInclude sshd_config.d/*.conf\n"), 0o644);
    let bare = |text: &'static str| {
        move |h: &Host| {
            h.drop_in(keys);
            main(text)(h);
        }
    };
    let day = |n: i64| {
        let today = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() / 86_400;
        today.checked_add_signed(n).unwrap()
    };
    type Fault<'a> = (&'a dyn Fn(&Host), &'a str, Level, &'a str);
    let faults: &[Fault<'_>] = &[
        // An sshd_config from before Debian's had an Include, kept through upgrades.
        (&|h| h.has("/etc/ssh/sshd_config", "UsePAM yes\n", 0o644), "sshd", Bad, "has no Include"),
        (&|h| h.has("/etc/ssh/sshd_config", "Match User other\nInclude sshd_config.d/*.conf\n", 0o644), "sshd", Weak, "not told"),
        (&|h| h.has("/etc/ssh/sshd_config.d/breakglass.conf", &format!("Match User other\n{keys}"), 0o644), "sshd", Weak, "not told"),
        (&|h| h.mode("/etc/ssh/sshd_config.d/breakglass.conf", 0o666), "sshd", Bad, "somebody who is not root"),
        (&main("AllowUsers root admin@192.0.2.*"), "sshd", Bad, "AllowUsers has others only"),
        (&main("AllowGroups ssh-users"), "sshd", Bad, "AllowGroups has others only"),
        (&main("DenyUsers break*"), "sshd", Bad, "DenyUsers"),
        (&main("DenyGroups root"), "sshd", Bad, "DenyGroups"),
        (&main("PubkeyAuthentication no"), "sshd", Bad, "takes no keys"),
        (&main("ForceCommand /usr/bin/menu"), "sshd", Bad, "/usr/bin/menu"),
        (&bare("PermitRootLogin=no"), "sshd", Bad, "PermitRootLogin is no"),
        (&bare("AuthenticationMethods publickey,keyboard-interactive"), "sshd", Bad, "more than a key"),
        (&|h| h.has("/etc/shadow", &format!("breakglass:!:{}:0:90:7:::\n", day(-91)), 0o600), "account", Bad, "has expired"),
        (&|h| h.has("/etc/shadow", &format!("breakglass:!:{}:0:90:7:::\n", day(-80)), 0o600), "account", Weak, "in 10 days"),
        (&|h| h.has("/etc/shadow", "breakglass:!:0:0:99999:7:::\n", 0o600), "account", Bad, "has expired"),
        (&|h| h.has("/etc/shadow", &format!("breakglass:!:{}:0:99999:7::{}:\n", day(-1), day(-1)), 0o600), "account", Bad, "has expired"),
    ];
    for (break_it, name, level, word) in faults {
        let host = good();
        break_it(&host);
        host.one(name, *level, word);
    }
    // What lets it in, whatever the rest says; and what only a connection can tell is no alarm.
    for fine in [
        "AllowUsers root breakglass",
        "AllowGroups root",
        "PermitRootLogin no",
        "AuthenticationMethods publickey,password",
        "Match Address 192.0.2.0/24\nPubkeyAuthentication no\nMatch all",
        "Match User !breakglass,*\nForceCommand /usr/bin/menu\nMatch all",
    ] {
        let host = good();
        main(fine)(&host);
        assert_eq!(host.complaints(), [], "{fine}");
    }
    let host = good();
    host.has("/etc/shadow", &format!("breakglass:!:{}:0:99999:7:::\n", day(-1)), 0o600);
    assert_eq!(host.complaints(), [], "Debian's own terms");
}

#[test]
fn a_line_that_would_refuse_or_end_is_named() {
    let ours = "/etc/pve-verb/authorized_keys";
    let forced = "/usr/sbin/pve-verb forced --key-name a";
    let from = "restrict,from=\"192.0.2.1\"";
    let soon = |seconds: u64| {
        let at = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
        let at = proto::Timestamp::from_unix_ms(u64::try_from(at).unwrap() + seconds * 1000).compact();
        format!("{}{}", &at[..8], &at[9..13])
    };
    let command = |more: &str| line(from, &format!("{forced} {more}"));
    let cases = [
        (command("--allow reboot"), Level::Bad, "refuses"),
        (command("--vmid 0"), Level::Bad, "refuses"),
        (command("--alow read"), Level::Bad, "refuses"),
        (command("; /bin/sh"), Level::Bad, "refuses"),
        (line(from, "/usr/sbin/pve-verb forced"), Level::Bad, "refuses"),
        (line(&format!("{from},expiry-time=\"20240101\""), forced), Level::Bad, "has expired"),
        (line(&format!("{from},expiry-time=\"{}Z\"", soon(29 * 86_400)), forced), Level::Bad, "expires in 2"),
        (line(&format!("{from},expiry-time=\"{}\"", soon(400 * 86_400)), forced), Level::Weak, "expires in"),
        (line(&format!("{from},expiry-time=\"soon\""), forced), Level::Bad, "can't be read"),
        (line("restrict,from=\"laptop.example.org\"", forced), Level::Weak, "a name"),
        (format!("{}{}", command("--allow read"), command("")), Level::Weak, "lines 1 and 2"),
    ];
    for (text, level, word) in cases {
        let host = good();
        host.has(ours, &text, 0o600);
        host.one("authorized keys", level, word);
    }
}

#[test]
fn keys_only_in_pmxcfs_are_weak_and_other_peoples_keys_are_passed_over() {
    let host = good();
    std::fs::remove_file(host.site.path("/etc/pve-verb/authorized_keys")).unwrap();
    host.has(
        "/root/.ssh/authorized_keys",
        &format!("{KEY} somebody\n{}", line("restrict,from=\"192.0.2.1\"", "/usr/sbin/pve-verb forced --key-name a")),
        0o600,
    );
    assert_eq!(host.complaints(), []);
    host.has("/root/.ssh/authorized_keys", &format!("{KEY} somebody\n"), 0o600);
    host.one("authorized keys", Level::Bad, "No key");
}

#[test]
fn what_authorize_prints_is_well() {
    let host = good();
    let policy = super::super::Policy {
        key_name: "agent".parse().unwrap(),
        vmid: Some(proto::Vmid::DEVVM),
        allow: None,
        require_grant: Some("stop,cycle".parse().unwrap()),
        from: Some("192.0.2.0/24".to_owned()),
    };
    let file = host.site.path("/key.pub");
    write(&file, KEY).unwrap();
    let mut out = Vec::new();
    super::super::authorize(&file, &policy, &mut out, &mut Vec::new()).unwrap();
    host.has("/etc/pve-verb/authorized_keys", std::str::from_utf8(&out).unwrap(), 0o600);
    host.has("/etc/pve-verb/allowed_signers", &format!("owner {KEY}\n"), 0o600);
    assert_eq!(host.complaints(), []);
}
