//! The host's Debian package in a disposable Debian: installed, checked, used through its own sshd on the lab's real VM 102, upgraded,
//! downgraded, removed, purged.
//!
//! The Debian is a debootstrap of its own, made once and kept beside the guest's image; what a run writes to it goes to memory. It shares
//! the lab's VM: sockets, PVE's files and process ids. `qm` there is one line that calls the lab's stand-in.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lab::installed::Told;
use lab::lab::{Scenario, built, run_scenarios};
use lab::process::{Finished, must, run, until};
use lab::{Lab, Result, client::Ssh, guest::lab_folder, host::write, namespace};

const SCENARIOS: &[Scenario] = &[("when_the_package_is_installed_used_upgraded_and_purged_then_evidence_outlives_all_but_the_purge", life)];

/// Where the disposable Debian is seen inside the lab.
const ROOT: &str = "/run/lab/debian/root";
const PORT: u16 = 2223;

fn main() {
    let listing = std::env::args().any(|argument| argument == "--list");
    if namespace::is_outside() && !listing {
        // Both need the network or the compiler, which are outside.
        debian().expect("a disposable Debian");
        package().expect("install/package");
    }
    run_scenarios(SCENARIOS, prepare)
}

fn debian_folder() -> PathBuf {
    lab_folder().join("debian-bookworm")
}

fn debian() -> Result<()> {
    let folder = debian_folder();
    if folder.exists() {
        return Ok(());
    }
    let partial = folder.with_extension("partial");
    let bootstrapped = || {
        let _left_by_one_that_failed_or_was_killed = fs::remove_dir_all(&partial);
        let mut debootstrap = Command::new("debootstrap");
        debootstrap.args(["--variant=minbase", "--include=openssh-server", "bookworm"]).arg(&partial);
        run(&mut debootstrap, Duration::from_secs(900))?.success("debootstrap")
    };
    // It asks a mirror for each of a hundred packages, and gives up where one does not come.
    bootstrapped().or_else(|_| bootstrapped()).or_else(|_| bootstrapped())?;
    fs::rename(partial, folder).expect("the new Debian in its place");
    Ok(())
}

fn out() -> PathBuf {
    lab_folder().join("package")
}

fn deb() -> PathBuf {
    let list = fs::read_dir(out()).expect("install/package ran").flatten();
    list.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "deb")).expect("a package")
}

fn package() -> Result<Finished> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../install/package");
    let _an_older_one = fs::remove_dir_all(out());
    run(Command::new(script).arg("--out").arg(out()), Duration::from_secs(900))?.success("install/package")
}

fn prepare(lab: &Lab) -> Result<()> {
    let under = |name: &str| format!("/run/lab/debian/{name}");
    for name in ["root", "upper", "work"] {
        fs::create_dir_all(under(name)).unwrap();
    }
    let overlay = format!("lowerdir={},upperdir={},workdir={}", debian_folder().display(), under("upper"), under("work"));
    must("mount", ["-t", "overlay", "overlay", "-o", &overlay, ROOT])?;
    for folder in ["/etc/pve", "/run/qemu-server", "/run/lock/qemu-server", "/var/lib/vz", "/var/log/pve", "/sys", "/proc", "/dev"] {
        fs::create_dir_all(format!("{ROOT}{folder}")).unwrap();
        must("mount", ["--rbind", folder, &format!("{ROOT}{folder}")])?;
    }
    lab.host.install_program(&built("qm")?, "/usr/sbin/qm")?;
    // PVE's program as the package expects it; it acts in the lab, where QEMU is.
    let qm = "#!/bin/sh\nexec nsenter --target 1 --root --wd /usr/sbin/qm \"$@\"\n";
    write(&format!("{ROOT}/usr/sbin/qm"), qm, 0o755)?;
    fs::create_dir_all(format!("{ROOT}/run/sshd")).unwrap();
    for name in ["old", "new"] {
        fs::create_dir_all(format!("{ROOT}/root/{name}")).unwrap();
    }
    fs::copy(deb(), format!("{ROOT}/root/new/pve-verb.deb")).unwrap();
    older()
}

/// The same package as version 0.0.9: what an upgrade comes from, and a downgrade goes to.
fn older() -> Result<()> {
    let folder = "/run/lab/debian/old";
    must("dpkg-deb", ["-R", &deb().to_string_lossy(), folder])?;
    let control = format!("{folder}/DEBIAN/control");
    let text = fs::read_to_string(&control).unwrap();
    let version = text.lines().find(|line| line.starts_with("Version: ")).unwrap();
    fs::write(&control, text.replacen(version, "Version: 0.0.9", 1)).unwrap();
    must("dpkg-deb", ["--root-owner-group", "-Znone", "-b", folder, &format!("{ROOT}/root/old/pve-verb.deb")]).map(drop)
}

/// A program inside the Debian, as root.
fn inside(program: &str, arguments: &[&str]) -> Result<Finished> {
    let mut command = Command::new("chroot");
    command.args([ROOT, "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", program]);
    run(command.args(arguments), Duration::from_secs(300))
}

fn dpkg(arguments: &[&str]) -> Result<String> {
    inside("dpkg", arguments)?.success(&format!("dpkg {arguments:?}")).map(|end| end.text())
}

fn there(path: &str) -> bool {
    // Not through links: an absolute one would be looked up outside of the Debian.
    fs::symlink_metadata(format!("{ROOT}{path}")).is_ok()
}

fn mode(path: &str) -> u32 {
    fs::metadata(format!("{ROOT}{path}")).unwrap().permissions().mode() & 0o7777
}

fn life(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    // A hardened host: passwords end after a day. For an account that has none that would be the end of every key's.
    let terms = format!("{ROOT}/etc/login.defs");
    let hardened = fs::read_to_string(&terms).unwrap().replace("PASS_MAX_DAYS\t99999", "PASS_MAX_DAYS\t1");
    assert!(hardened.contains("PASS_MAX_DAYS\t1\n"));
    fs::write(&terms, hardened).unwrap();
    let said = dpkg(&["-i", "/root/old/pve-verb.deb"])?;
    for word in ["pve-verb authorize KEY.pub --key-name NAME", "No key may break the glass."] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let passwd = fs::read_to_string(format!("{ROOT}/etc/passwd")).unwrap();
    assert!(passwd.lines().any(|line| line == "breakglass:x:0:0::/:/bin/dash"), "{passwd}");
    assert!(fs::read_to_string(format!("{ROOT}/etc/shadow")).unwrap().contains("\nbreakglass:!"), "the account is locked");
    assert_eq!((mode("/etc/pve-verb"), mode("/etc/pve-verb/config.toml"), mode("/usr/sbin/pve-verb")), (0o700, 0o600, 0o755));
    assert!(there("/etc/systemd/system/multi-user.target.wants/pve-verb-recover.service"));
    inside("/usr/sbin/pve-verb", &["recover"])?.success("the boot unit's command")?;

    // The one line of the admin's.
    let ssh = let_in(lab)?;
    let checked = inside("/usr/sbin/pve-verb", &["check"])?;
    assert_eq!(checked.status, 0, "{}", checked.text());
    inside("/usr/bin/chage", &["-d", "2026-01-01", "breakglass"])?.success("a password of long ago")?;
    let status = ssh.call("status")?;
    assert_eq!(status.status, 0, "{} {}", status.text(), String::from_utf8_lossy(&status.stderr));
    expires(&ssh)?;
    assert!(status.text().contains("VM 102"), "{}", status.text());
    let before = vm.pid().unwrap();
    let cycle = Told::read(ssh.call("cycle --json --reason=package")?)?.done();
    assert_ne!(vm.pid().unwrap(), before, "a fresh QEMU");
    let bundle = format!("/var/lib/pve-verb/evidence/102/{}", cycle.body["bundle"].as_str().unwrap());
    assert!(there(&format!("{bundle}/manifest.json")), "{bundle}");

    // What is the admin's or the record's stays through an upgrade, a downgrade and a removal.
    let key = fs::read(format!("{ROOT}/etc/pve-verb/signing_key")).unwrap();
    let stays = |when: &str| {
        assert_eq!(fs::read(format!("{ROOT}/etc/pve-verb/signing_key")).unwrap(), key, "{when}");
        for path in [&bundle, "/etc/pve-verb/authorized_keys", "/var/log/pve-verb/head.json"] {
            assert!(there(path), "{path} {when}");
        }
    };
    write(&format!("{ROOT}/etc/pve-verb/config.toml"), "[limits]\nmin_interval_s = 0\n", 0o600)?;
    dpkg(&["-i", "/root/new/pve-verb.deb"])?;
    stays("after the upgrade");
    assert!(fs::read_to_string(format!("{ROOT}/etc/pve-verb/config.toml")).unwrap().contains("min_interval_s = 0"), "the admin's words");
    assert_eq!(mode("/etc/pve-verb"), 0o700);
    Told::read(ssh.call("cycle --json --reason=upgraded")?)?.done();
    dpkg(&["--force-downgrade", "-i", "/root/old/pve-verb.deb"])?;
    stays("after the downgrade");
    Told::read(ssh.call("status --json")?)?.done();
    inside("/usr/sbin/pve-verb", &["log", "verify"])?.success("log verify")?;
    dpkg(&["-r", "pve-verb"])?;
    stays("after the removal");
    let gone = ssh.call("status")?;
    assert!(gone.status != 0 && gone.receipt().is_none(), "without the program there is no answer: {}", gone.text());
    dpkg(&["-i", "/root/new/pve-verb.deb"])?;
    Told::read(ssh.call("status --json")?)?.done();

    dpkg(&["-P", "pve-verb"])?;
    for path in ["/etc/pve-verb", "/var/lib/pve-verb", "/var/log/pve-verb", "/usr/sbin/pve-verb", "/etc/ssh/sshd_config.d/breakglass.conf"]
    {
        assert!(!there(path), "{path} is left after the purge");
    }
    assert!(!fs::read_to_string(format!("{ROOT}/etc/passwd")).unwrap().contains("breakglass"), "the account is left after the purge");
    inside("/usr/sbin/sshd", &["-t"])?.success("sshd -t after the purge")?;
    let refused = ssh.call("status")?;
    assert_eq!(refused.status, 255, "the key still lets somebody in: {}", refused.text());
    Ok(())
}

/// An account whose password ends, as `useradd` makes it on a hardened host: sshd runs nothing for its keys, and `check` says so before.
fn expires(ssh: &Ssh) -> Result<()> {
    inside("/usr/bin/chage", &["-M", "1", "breakglass"])?.success("a term")?;
    let (refused, checked) = (ssh.call("status")?, inside("/usr/sbin/pve-verb", &["check"])?);
    assert!(refused.status != 0 && refused.receipt().is_none(), "{}", refused.text());
    assert!(checked.status != 0 && checked.text().contains("has expired"), "{}", checked.text());
    inside("/usr/bin/chage", &["-M", "-1", "breakglass"])?.success("no term")?;
    Ok(())
}

/// Appends what `authorize` prints, starts the Debian's sshd, and gives the client.
fn let_in(lab: &Lab) -> Result<Ssh> {
    let key = lab.host.key("package")?;
    fs::copy(key.with_extension("pub"), format!("{ROOT}/root/package.pub")).unwrap();
    let line = inside("/usr/sbin/pve-verb", &["authorize", "/root/package.pub", "--key-name", "package", "--from", "127.0.0.1"])?;
    write(&format!("{ROOT}/etc/pve-verb/authorized_keys"), &line.success("authorize")?.text(), 0o600)?;
    inside("/usr/sbin/sshd", &["-p", &PORT.to_string(), "-E", "/root/sshd.log", "-o", "ListenAddress=127.0.0.1"])?.success("sshd")?;
    until("the Debian's sshd", Duration::from_secs(30), || std::net::TcpStream::connect(("127.0.0.1", PORT)).ok())?;
    let public = fs::read_to_string(format!("{ROOT}/etc/ssh/ssh_host_ed25519_key.pub")).unwrap();
    write("/run/lab/known_debian", &format!("[127.0.0.1]:{PORT} {public}"), 0o644)?;
    Ok(Ssh::new("breakglass@127.0.0.1", PORT, &key, Path::new("/run/lab/known_debian")))
}
