//! `breakglass keyholder` on the lab's host, as its own container runs it: an account without rights, two keys, one socket.

#![allow(dead_code)] // each scenario file uses its part

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::lab::built;
use lab::process::{Running, start, until};
use lab::{Lab, Result};

/// Where the program is.
pub(crate) const BREAKGLASS: &str = "/usr/local/bin/breakglass";
/// The socket.
pub(crate) const SOCKET: &str = "/run/lab/keyholder/agent.sock";
const FOLDER: &str = "/run/lab/keyholder";
/// An account without rights.
pub(crate) const NOBODY: u32 = 65534;

/// A running keyholder.
pub(crate) struct Keyholder {
    running: Option<Running>,
    /// The seeds of both keys: what must be in no other process.
    pub(crate) seeds: Vec<Vec<u8>>,
}

/// Installs the program and starts a keyholder with the key `agent` and the guest's.
pub(crate) fn keyholder(lab: &Lab) -> Result<Keyholder> {
    keyholder_under(lab, &[], "")
}

/// The same, started by another program, with more at the end of its configuration.
pub(crate) fn keyholder_under(lab: &Lab, starter: &[&str], more: &str) -> Result<Keyholder> {
    lab.host.install_program(&built("breakglass")?, BREAKGLASS)?;
    let _from_before = fs::remove_dir_all(FOLDER);
    fs::create_dir_all(FOLDER).unwrap();
    let keys = [("verbs", lab.host.key("agent")?), ("devvm", lab.host.inside.image.key())];
    let mut seeds = Vec::new();
    for (name, from) in &keys {
        let to = Path::new(FOLDER).join(name);
        fs::copy(from, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
        chown(&to, Some(NOBODY), Some(NOBODY)).unwrap();
        seeds.push(seed(&fs::read_to_string(from).unwrap()));
    }
    chown(FOLDER, Some(NOBODY), Some(NOBODY)).unwrap();
    let config = format!("[keyholder]\nsocket = \"{SOCKET}\"\nkey_files = [\"{FOLDER}/verbs\", \"{FOLDER}/devvm\"]\n{more}");
    let file = format!("{FOLDER}/config.toml");
    fs::write(&file, config).unwrap();
    let own = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", BREAKGLASS, "keyholder", "--config", &file];
    let words = [starter, &own].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    let running = start(&mut command, &[])?;
    until("the keyholder's socket", Duration::from_secs(20), || Path::new(SOCKET).exists().then_some(()))?;
    Ok(Keyholder { running: Some(running), seeds })
}

impl Keyholder {
    pub(crate) fn pid(&self) -> u32 {
        self.running.as_ref().unwrap().pid()
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&self.running.as_ref().unwrap().output_so_far()).into_owned()
    }
}

impl Drop for Keyholder {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ended = running.kill();
        }
    }
}

/// The 32 bytes that are an ed25519 key, out of OpenSSH's file: they stand before the last of its public halves.
pub(crate) fn seed(text: &str) -> Vec<u8> {
    use base64ct::{Base64, Encoding};
    let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
    let bytes = Base64::decode_vec(&body).unwrap();
    let length = [0, 0, 0, 64];
    let at = bytes.windows(4).rposition(|window| window == length).unwrap() + 4;
    bytes[at..at + 32].to_vec()
}

/// Whether these bytes stand anywhere in the readable memory of a process; root alone can look.
pub(crate) fn holds(pid: u32, bytes: &[u8]) -> bool {
    use std::os::unix::fs::FileExt;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut looked = 0;
    let found = maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with('r'))).any(|line| {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let (from, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
        let mut block = vec![0; usize::try_from((to - from).min(64 << 20)).unwrap()];
        let read = memory.read_at(&mut block, from).unwrap_or(0);
        looked += read;
        block[..read].windows(bytes.len()).any(|window| window == bytes)
    });
    assert!(found || looked > 100_000, "hardly any memory of {pid} could be read: {looked} bytes");
    found
}
