//! A running keyholder of the real binary, its configuration, and what it wrote.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The process; ended with its owner.
pub(crate) struct Keyholder {
    pub(crate) folder: tempfile::TempDir,
    child: Child,
}

/// A private key of this seed, as OpenSSH writes it, and its public line.
pub(crate) fn key(seed: u8) -> (String, String) {
    use ssh_key::LineEnding;
    use ssh_key::private::{Ed25519Keypair, PrivateKey};
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]));
    (key.to_openssh(LineEnding::LF).unwrap().to_string(), key.public_key().to_openssh().unwrap())
}

/// `SHA256:…` of that key.
pub(crate) fn fingerprint(seed: u8) -> String {
    ssh_key::PublicKey::from_openssh(&key(seed).1).unwrap().fingerprint(ssh_key::HashAlg::Sha256).to_string()
}

impl Keyholder {
    /// Starts it with this configuration, in which `DIR` is its folder, and these files in it; `through` is put before its command line.
    pub(crate) fn start(config: &str, files: &[(&str, &str)], through: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
            fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        let dir = folder.path().to_str().unwrap();
        fs::write(folder.path().join("config.toml"), config.replace("DIR", dir)).unwrap();
        if !through.is_empty() {
            for file in fs::read_dir(folder.path()).unwrap() {
                std::os::unix::fs::chown(file.unwrap().path(), Some(NOBODY), Some(NOBODY)).unwrap();
            }
            std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let words = [through, &[env!("CARGO_BIN_EXE_breakglass"), "keyholder", "--config"]].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(folder.path().join("config.toml"));
        let out = |name: &str| fs::File::create(folder.path().join(name)).unwrap();
        let child = command.stdin(Stdio::null()).stdout(out("stdout")).stderr(out("stderr")).spawn().unwrap();
        Self { folder, child }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Everything that it wrote.
    pub(crate) fn log(&self) -> String {
        let text = |name: &str| fs::read_to_string(self.path(name)).unwrap();
        text("stdout") + &text("stderr")
    }

    /// A program that uses the socket.
    pub(crate) fn client(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new(program).args(arguments).env("SSH_AUTH_SOCK", self.socket()).stdin(Stdio::null()).output().unwrap()
    }

    /// What `ssh-add -l` prints.
    pub(crate) fn listed(&self) -> String {
        String::from_utf8(self.client("ssh-add", &["-l"]).stdout).unwrap()
    }

    /// Waits until this is so.
    pub(crate) fn until(&self, what: &str, within: u64, mut so: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(within);
        while !so(self) {
            assert!(Instant::now() < end, "not within {within} s: {what}\nlisted: {}\n{}", self.listed(), self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the socket is there.
    pub(crate) fn ready(self) -> Self {
        self.until("the socket", 20, |k| k.socket().exists());
        self
    }

    /// Resident memory in KiB.
    pub(crate) fn resident(&self) -> u64 {
        let status = fs::read_to_string(Path::new("/proc").join(self.pid().to_string()).join("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Asks it to end; its exit status.
    pub(crate) fn end(&mut self) -> i32 {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().code().unwrap()
    }

    /// Its exit status, where it ends by itself.
    pub(crate) fn ended(&mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap()
    }
}

/// An account without rights.
pub(crate) const NOBODY: u32 = 65534;

impl Drop for Keyholder {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}
