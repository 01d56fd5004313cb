//! The host's package as bytes: the same from two builds in two places, with no complaint that lintian calls an error, with the files
//! that it promises and an AppArmor profile that compiles. Needs no VM.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)] // a test fails by panicking

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::{Arguments, Trial};

fn main() {
    let checks: [(&str, fn()); 3] = [
        ("when_the_package_is_built_twice_then_both_have_the_same_bytes_and_lintian_has_no_error", twice),
        ("when_the_checksums_are_signed_then_stock_ssh_keygen_verifies_them", signed),
        ("when_the_apparmor_profiles_are_compiled_then_the_parser_takes_them", apparmor),
    ];
    let trial = |(name, check): (&'static str, fn())| {
        Trial::test(name, move || {
            check();
            Ok(())
        })
    };
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, checks.map(trial).into()).exit()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn output(command: &mut Command) -> String {
    let end = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(end.status.success(), "{command:?}: {}{}", String::from_utf8_lossy(&end.stdout), String::from_utf8_lossy(&end.stderr));
    String::from_utf8(end.stdout).unwrap()
}

/// Builds it in this folder of sources, with cargo's outputs in a folder of its own, and gives the package's path.
fn build(sources: &Path, target: Option<&Path>, out: &Path, sign: Option<&Path>) -> PathBuf {
    let mut command = Command::new(sources.join("install/package"));
    command.arg("--out").arg(out).env("SOURCE_DATE_EPOCH", "1795000000").current_dir("/");
    if let Some(target) = target {
        command.env("CARGO_TARGET_DIR", target);
    }
    if let Some(key) = sign {
        command.arg("--sign").arg(key);
    }
    PathBuf::from(output(&mut command).lines().last().unwrap())
}

fn twice() {
    let folder = tempfile::tempdir().unwrap();
    let first = build(&root(), None, &folder.path().join("first"), None);
    // Another place for the sources, another for the outputs; what is not committed is part of both.
    let copy = folder.path().join("elsewhere/sources");
    fs::create_dir_all(&copy).unwrap();
    for path in output(Command::new("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(root())).lines() {
        let to = copy.join(path);
        if root().join(path).is_file() {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(root().join(path), to).unwrap();
        }
    }
    let second = build(&copy, Some(&folder.path().join("outputs")), &folder.path().join("second"), None);
    let (one, two) = (fs::read(&first).unwrap(), fs::read(&second).unwrap());
    assert!(one == two, "{} and {} bytes, not the same ones", one.len(), two.len());

    // What a person copies from the manual page has to be what the program takes.
    let manual = "dpkg-deb --fsys-tarfile \"$0\" | tar -xO ./usr/share/man/man8/pve-verb.8.gz | gzip -dc";
    let manual = output(Command::new("sh").args(["-c", manual]).arg(&first));
    assert!(manual.contains("--vmid") && manual.contains("--key-name") && !manual.contains("(en"), "its dashes are printer's dashes");

    let names = output(Command::new("dpkg-deb").arg("-c").arg(&first));
    for file in [
        "usr/sbin/pve-verb",
        "usr/share/man/man8/pve-verb.8.gz",
        "usr/share/bash-completion/completions/pve-verb",
        "usr/share/zsh/vendor-completions/_pve-verb",
        "etc/pve-verb/config.toml",
        "etc/apparmor.d/pve-verb",
        "etc/ssh/sshd_config.d/breakglass.conf",
        "usr/lib/systemd/system/pve-verb-recover.service",
        "usr/lib/tmpfiles.d/pve-verb.conf",
        "usr/share/doc/pve-verb/cold-case.md",
    ] {
        assert!(names.lines().any(|line| line.ends_with(&format!("./{file}"))), "{file} is not in it:\n{names}");
    }
    let lint = Command::new("lintian").args(["--fail-on", "error,warning"]).arg(&first).output().unwrap();
    assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));
    let unpacked = folder.path().join("unpacked");
    output(Command::new("dpkg-deb").arg("-x").arg(&first).arg(&unpacked));
    let binary = fs::read(unpacked.join("usr/sbin/pve-verb")).unwrap();
    let home = std::env::var("HOME").unwrap();
    for leak in [format!("{}/", root().display()), format!("{home}/.cargo"), format!("{home}/.rustup")] {
        assert!(!binary.windows(leak.len()).any(|part| part == leak.as_bytes()), "{leak} is in the binary");
    }
}

fn signed() {
    let folder = tempfile::tempdir().unwrap();
    let (key, out) = (folder.path().join("key"), folder.path().join("out"));
    output(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "release", "-f"]).arg(&key));
    build(&root(), None, &out, Some(&key));
    let public = fs::read_to_string(key.with_extension("pub")).unwrap();
    fs::write(out.join("allowed_signers"), format!("release namespaces=\"file\" {public}")).unwrap();
    let verify = |text: &[u8]| {
        let mut command = Command::new("ssh-keygen");
        command.args(["-Y", "verify", "-f", "allowed_signers", "-I", "release", "-n", "file", "-s", "SHA256SUMS.sig"]).current_dir(&out);
        fs::write(out.join("asked"), text).unwrap();
        command.stdin(fs::File::open(out.join("asked")).unwrap()).output().unwrap().status.success()
    };
    let mut sums = fs::read(out.join("SHA256SUMS")).unwrap();
    assert!(verify(&sums), "what was signed");
    output(Command::new("sha256sum").args(["--strict", "-c", "SHA256SUMS"]).current_dir(&out));
    sums[0] ^= 1;
    assert!(!verify(&sums), "what was changed");
}

fn apparmor() {
    for entry in fs::read_dir(root().join("install/apparmor")).unwrap().flatten() {
        output(
            Command::new("apparmor_parser")
                .args(["--skip-kernel-load", "--skip-cache", "--features-file", "/etc/apparmor.d/abi/3.0"])
                .arg(entry.path()),
        );
    }
    if !Path::new("/sys/kernel/security/apparmor").exists() {
        println!("This kernel has no AppArmor: the profiles are compiled, not enforced.");
    }
}
