//! A real sshd on this machine, whose forced command plays what a test wrote; its keys come out of the real keyholder.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::keyholder::{Keyholder, key};

/// The seed of sshd's host key.
pub(crate) const HOST_KEY: u8 = 10;

/// Reads the request, notes it, and runs `play.N` for the Nth request, or else `play`.
const FORCED: &str = r#"#!/bin/sh
cd DIR || exit 1
echo "$SSH_ORIGINAL_COMMAND" >> asked
cat "$SSH_USER_AUTH" >> used
play=play.$(wc -l < asked)
[ -x "$play" ] || play=play
exec "./$play"
"#;

/// The sshd, and the keyholder beside it.
pub(crate) struct Sshd {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) port: u16,
    keyholder: Keyholder,
    child: Child,
}

impl Sshd {
    /// One that plays these scripts: `play`, `play.1`, …
    pub(crate) fn playing(plays: &[(&str, &str)]) -> Self {
        let sshd = Self::start(HOST_KEY, true);
        for (name, script) in plays {
            sshd.program(name, &format!("#!/bin/sh\n{script}\n"));
        }
        sshd
    }

    /// One with an ordinary shell behind it.
    pub(crate) fn with_a_shell(host_key: u8) -> Self {
        Self::start(host_key, false)
    }

    fn start(host_key: u8, forced: bool) -> Self {
        let config = "[keyholder]\nsocket = \"DIR/agent.sock\"\nkey_files = [\"DIR/verbs\", \"DIR/devvm\"]\n";
        let keyholder = Keyholder::start(config, &[("verbs", &key(1).0), ("devvm", &key(2).0)], &[]).ready();
        let folder = tempfile::tempdir().unwrap();
        // Free a moment ago; where somebody else was quicker sshd says so in its log, and there is another one.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = folder.path().to_str().unwrap().to_owned();
        let write = |name: &str, text: &str, mode: u32| {
            fs::write(folder.path().join(name), text).unwrap();
            fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        write("host_key", &key(host_key).0, 0o600);
        write("authorized", &format!("{}\n{}\n", key(1).1, key(2).1), 0o600);
        write("forced", &FORCED.replace("DIR", &dir), 0o755);
        let mut config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {dir}/host_key\nAuthorizedKeysFile {dir}/authorized\nStrictModes no\n\
             UsePAM no\nPidFile none\nPermitRootLogin yes\nExposeAuthInfo yes\nLogLevel VERBOSE\nMaxStartups 200\n"
        );
        if forced {
            config.push_str(&format!("ForceCommand {dir}/forced\n"));
        }
        write("config", &config, 0o600);
        // sshd insists on it, and only its service makes it: not there where that was never started.
        fs::create_dir_all("/run/sshd").unwrap();
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-f"]).arg(folder.path().join("config")).arg("-E").arg(folder.path().join("log"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let sshd = Self { folder, port, keyholder, child };
        let end = Instant::now() + Duration::from_secs(20);
        while !sshd.log().contains("Server listening") {
            if sshd.log().contains("Cannot bind any address") {
                drop(sshd);
                return Self::start(host_key, forced);
            }
            assert!(Instant::now() < end, "sshd does not listen: {}", sshd.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        sshd
    }

    /// Puts a program into its folder.
    pub(crate) fn program(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
        fs::set_permissions(self.folder.path().join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    /// What sshd wrote.
    pub(crate) fn log(&self) -> String {
        self.read("log")
    }

    /// The requests that came, one a line.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.read("asked").lines().map(str::to_owned).collect()
    }

    /// The public keys that logged in for them.
    pub(crate) fn used(&self) -> String {
        self.read("used")
    }

    /// The keys' socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.keyholder.socket()
    }

    /// The listener's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends every session that is there; sshd itself goes on.
    pub(crate) fn end_sessions(&self) {
        let parent = self.child.id().to_string();
        let _none = Command::new("pkill").args(["-9", "-P", &parent]).status().unwrap();
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.end_sessions();
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Whose account this is.
pub(crate) fn me() -> String {
    String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap().trim().to_owned()
}
