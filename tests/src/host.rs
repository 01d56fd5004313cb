//! The PVE host around VM 102: `/etc/pve` as pmxcfs shows it, the forced command's account, a real sshd.
//!
//! It holds files and one sshd, all inside the namespace of [`crate::namespace`]. There is no pmxcfs, no cluster, no
//! systemd and no qmeventd; `qm` is a stand-in that says so.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::client::Ssh;
use crate::error::{Context, Result};
use crate::namespace::Inside;
use crate::process::{Finished, must, run, until};
use crate::qemu_cmd::{CONF, VmConf};

/// Where the forced command's keys are.
pub const AUTHORIZED_KEYS: &str = "/etc/pve-verb/authorized_keys";
/// Where the lab keeps its clients' keys, which on no real host are on the host.
const KEYS: &str = "/run/lab/keys";
/// The kernel and initrd of the guest, as the `args:` line names them.
const GUEST: &str = "/var/lib/vz/lab";
/// VM 102's disk.
pub const DISK: &str = "/var/lib/vz/images/102/vm-102-disk-0.qcow2";

/// sshd's part for the account, as protocol.md has it.
const DROP_IN: &str = "Match User breakglass\n    AuthorizedKeysFile /etc/pve-verb/authorized_keys\n    AuthenticationMethods publickey\n    \
    PermitRootLogin forced-commands-only\n    PermitTTY no\n    DisableForwarding yes\n    PermitUserRC no\n";

/// The host, inside the lab's namespace.
#[derive(Debug)]
pub struct Host {
    /// What the guest boots from.
    pub inside: Inside,
    sshd: Option<u32>,
}

impl Host {
    /// Lays out the host: configuration of VM 102, its disk, the account `breakglass`, sshd on 127.0.0.1:22.
    pub fn prepare(inside: Inside) -> Result<Self> {
        let mut host = Self { inside, sshd: None };
        host.lay_out_pve()?;
        host.lay_out_images()?;
        host.create_account()?;
        host.start_sshd()?;
        Ok(host)
    }

    /// The same before anybody installed anything of ours: no account, no drop-in, none of our folders. `systemctl` is a stand-in.
    pub fn bare(inside: Inside) -> Result<Self> {
        let mut host = Self { inside, sshd: None };
        host.lay_out_pve()?;
        host.lay_out_images()?;
        // The machine around the lab may have them, for whoever tries this where it is installed.
        for folder in ["/etc/pve-verb", "/var/lib/pve-verb", "/var/log/pve-verb"] {
            let _absent = fs::remove_dir_all(folder);
        }
        let _absent = fs::remove_file("/etc/ssh/sshd_config.d/breakglass.conf");
        for list in ["/etc/passwd", "/etc/shadow"] {
            let text = fs::read_to_string(list).context(format!("read {list}"))?;
            let others: String = text.split_inclusive('\n').filter(|line| !line.starts_with("breakglass:")).collect();
            fs::write(list, others).context(format!("write {list}"))?;
        }
        host.start_sshd()?;
        // sshd takes its pidfile away before it reads its configuration anew, and writes it when it listens again.
        let reload = "#!/bin/sh\n# Of the laboratory, which has no systemd: it knows `reload ssh` and `enable`.\n\
            if [ \"$1\" = enable ] && [ $# = 2 ]; then\n\
            folder=/etc/systemd/system/multi-user.target.wants; mkdir -p $folder; ln -sf ../$2.service $folder/$2.service; exit; fi\n\
            [ \"$*\" = 'reload ssh' ] || { echo 'stand-in systemctl: only reload ssh' >&2; exit 1; }\n\
            pid=$(cat /run/lab/sshd.pid) && rm /run/lab/sshd.pid && kill -HUP \"$pid\" || exit\n\
            n=0; until [ -s /run/lab/sshd.pid ]; do n=$((n + 1)); [ $n -lt 100 ] || exit 1; sleep 0.1; done\n";
        write("/usr/bin/systemctl.lab", reload, 0o755)?;
        fs::rename("/usr/bin/systemctl.lab", "/usr/bin/systemctl").context("put systemctl in place")?;
        Ok(host)
    }

    /// The configuration of VM 102 that a lab starts with: that of `facts/golden`, and how the guest boots.
    ///
    /// A second `-cpu` overrules the first: with `rdrand` the guest's random numbers, and so its sshd, are ready 2 s earlier. Without
    /// `no_timer_check` the guest's kernel counts timer ticks while it boots, and panics where a busy machine gave its emulator none.
    pub fn default_conf() -> String {
        format!(
            "agent: 1\nargs: -kernel {GUEST}/vmlinuz -initrd {GUEST}/initrd -append \"console=tty0 console=ttyS0 panic=0 loglevel=4 mitigations=off no_timer_check rdinit=/init\" \
             -cpu qemu64,+rdrand -netdev user,id=net0,hostfwd=tcp:127.0.0.1:2222-:22 -device virtio-net-pci,netdev=net0,id=net0,romfile=\n\
             boot: order=scsi0\ncores: 1\ncpu: qemu64\nkvm: 0\nmemory: 256\nmeta: creation-qemu=9.2.0,ctime=1735689600\nname: devvm\nnuma: 0\nonboot: 1\nostype: l26\n\
             scsi0: local:102/vm-102-disk-0.qcow2,iothread=1,size=64M\nscsihw: virtio-scsi-single\nserial0: socket\n\
             smbios1: uuid=3d3e5f8e-0000-4000-8000-000000000102\nsockets: 1\nvga: std\n"
        )
    }

    /// The same without a guest: QEMU is up in 0.2 s and stays in its firmware, for tests that need the process only.
    pub fn bare_conf() -> String {
        let mut conf = VmConf::parse(&Self::default_conf());
        conf.current.remove("args");
        conf.to_text()
    }

    /// VM 102's configuration as it stands.
    pub fn conf(&self) -> Result<VmConf> {
        Ok(VmConf::parse(&fs::read_to_string(CONF).context("read VM 102's configuration")?))
    }

    /// Changes VM 102's configuration as an admin would, by way of its file.
    pub fn set_conf(&self, change: impl FnOnce(&mut VmConf)) -> Result<()> {
        let mut conf = self.conf()?;
        change(&mut conf);
        write(CONF, &conf.to_text(), 0o640)
    }

    /// Puts configuration and disk back to what a fresh lab has. The VM must be stopped.
    pub fn restore(&self) -> Result<()> {
        write(CONF, &Self::default_conf(), 0o640)?;
        fs::copy(self.inside.image.disk(), DISK).context("copy the guest's disk").map(drop)
    }

    /// Gives the node quorum, or takes it: on pmxcfs it shows as the owner's write bit of `/etc/pve/local`.
    pub fn set_quorum(&self, quorum: bool) -> Result<()> {
        mode("/etc/pve/nodes/pve", if quorum { 0o755 } else { 0o555 })
    }

    /// Makes VM 102 HA-managed in this state (`started`, `ignored`, …), or not managed.
    pub fn set_ha(&self, state: Option<&str>) -> Result<()> {
        let path = "/etc/pve/ha/resources.cfg";
        match state {
            Some(state) => write(path, &format!("vm: 102\n\tstate {state}\n"), 0o640),
            None if Path::new(path).exists() => fs::remove_file(path).context("remove the HA resources"),
            None => Ok(()),
        }
    }

    /// Copies the programs to where they are on a real host, and runs `pve-verb init`.
    pub fn install(&self, pve_verb: &Path, qm: &Path) -> Result<()> {
        self.install_program(pve_verb, "/usr/sbin/pve-verb")?;
        self.install_program(qm, "/usr/sbin/qm")?;
        run(Command::new("/usr/sbin/pve-verb").arg("init"), Duration::from_secs(20))?.success("pve-verb init").map(drop)
    }

    /// Copies one program, mode 0755, replacing what is there by name, as a package manager does.
    pub fn install_program(&self, from: &Path, to: &str) -> Result<()> {
        let beside = format!("{to}.new");
        fs::copy(from, &beside).context(format!("copy {}", from.display()))?;
        mode(&beside, 0o755)?;
        fs::rename(&beside, to).context(format!("put {to} in place"))
    }

    /// Adds a line to the forced command's `authorized_keys`, as printed by `pve-verb authorize`.
    pub fn authorize_line(&self, line: &str) -> Result<()> {
        fs::create_dir_all("/etc/pve-verb").context("create /etc/pve-verb")?;
        mode("/etc/pve-verb", 0o700)?;
        let before = fs::read_to_string(AUTHORIZED_KEYS).unwrap_or_default();
        write(AUTHORIZED_KEYS, &format!("{before}{}\n", line.trim_end()), 0o600)
    }

    /// Adds the plain line for a named key: `restrict`, the forced command, and `extra` arguments such as `--allow read`.
    pub fn authorize(&self, name: &str, extra: &str) -> Result<Ssh> {
        let public = fs::read_to_string(self.key(name)?.with_extension("pub")).context("read a client's key")?;
        let extra = if extra.is_empty() { String::new() } else { format!(" {extra}") };
        self.authorize_line(&format!("restrict,command=\"/usr/sbin/pve-verb forced --key-name {name}{extra}\" {}", public.trim_end()))?;
        self.ssh(name)
    }

    /// Takes every key out of `authorized_keys`.
    pub fn revoke_all(&self) -> Result<()> {
        if Path::new(AUTHORIZED_KEYS).exists() { write(AUTHORIZED_KEYS, "", 0o600) } else { Ok(()) }
    }

    /// The private key of a client of this name, made at its first use; the public one is beside it.
    pub fn key(&self, name: &str) -> Result<PathBuf> {
        fs::create_dir_all(KEYS).context("create the clients' keys")?;
        let path = Path::new(KEYS).join(format!("{name}_ed25519"));
        if !path.exists() {
            must("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", &path.to_string_lossy()])?;
        }
        Ok(path)
    }

    /// A client with this key, for `breakglass@127.0.0.1`.
    pub fn ssh(&self, name: &str) -> Result<Ssh> {
        Ok(Ssh::new("breakglass@127.0.0.1", 22, &self.key(name)?, Path::new("/run/lab/known_hosts")))
    }

    /// Runs a program on the host's console (as root, no sshd in between).
    pub fn console(&self, arguments: &[&str], deadline: Duration) -> Result<Finished> {
        run(Command::new(arguments[0]).args(&arguments[1..]).current_dir("/"), deadline)
    }

    fn lay_out_pve(&self) -> Result<()> {
        let _not_a_pve_host = fs::remove_dir_all("/etc/pve");
        for folder in ["/etc/pve/nodes/pve/qemu-server", "/etc/pve/ha", "/etc/pve/priv", "/var/log/pve/tasks", "/run/lock/qemu-server"] {
            fs::create_dir_all(folder).context(format!("create {folder}"))?;
        }
        for (target, link) in [("nodes/pve", "/etc/pve/local"), ("nodes/pve/qemu-server", "/etc/pve/qemu-server")] {
            symlink(target, link).context(format!("link {link}"))?;
        }
        let vm_list = "{\n\"version\": 1,\n\"ids\": {\n\"102\": { \"node\": \"pve\", \"type\": \"qemu\", \"version\": 1 }}\n\n}\n";
        let members = "{\n\"nodename\": \"pve\",\n\"version\": 1\n}\n";
        let version = "{\n\"starttime\": 1735689600,\n\"clinfo\": 0,\n\"vmlist\": 1,\n\"api\": 1\n}\n";
        let storage = "dir: local\n\tpath /var/lib/vz\n\tcontent images,iso,vztmpl,backup\n";
        for (path, text) in [
            (CONF, Self::default_conf().as_str()),
            ("/etc/pve/.vmlist", vm_list),
            ("/etc/pve/.members", members),
            ("/etc/pve/.version", version),
            ("/etc/pve/.clusterlog", "{\n\"data\": [\n]\n}\n"),
            ("/etc/pve/storage.cfg", storage),
            ("/var/log/pve/tasks/index", ""),
            ("/var/log/pve/tasks/active", ""),
            ("/etc/hostname", "pve\n"),
            ("/etc/hosts", "127.0.0.1 localhost pve\n"),
            ("/etc/motd", "This is a laboratory: qm is a stand-in, nothing here is a Proxmox VE host.\n"),
        ] {
            write(path, text, 0o640)?;
        }
        for open in ["/etc/hostname", "/etc/hosts", "/etc/motd"] {
            mode(open, 0o644)?;
        }
        // Debian has a script of this name that insists on KVM; on PVE it is a link.
        let _absent = fs::remove_file("/usr/bin/kvm");
        symlink("qemu-system-x86_64", "/usr/bin/kvm").context("link /usr/bin/kvm")
    }

    fn lay_out_images(&self) -> Result<()> {
        for folder in [GUEST, "/var/lib/vz/images/102"] {
            fs::create_dir_all(folder).context(format!("create {folder}"))?;
        }
        let image = &self.inside.image;
        fs::copy(image.kernel(), format!("{GUEST}/vmlinuz")).context("copy the guest's kernel")?;
        fs::copy(image.initrd(), format!("{GUEST}/initrd")).context("copy the guest's initrd")?;
        self.restore()
    }

    /// The account as an admin makes it, and sshd's drop-in.
    fn create_account(&self) -> Result<()> {
        let passwd = fs::read_to_string("/etc/passwd").context("read the accounts")?;
        if !passwd.lines().any(|line| line.starts_with("breakglass:")) {
            must("useradd", ["-o", "-u", "0", "-g", "0", "-M", "-d", "/", "-s", "/bin/dash", "breakglass"])?;
        }
        write("/etc/ssh/sshd_config.d/breakglass.conf", DROP_IN, 0o644)
    }

    /// Starts Debian's sshd with Debian's configuration and a host key of the lab's own.
    fn start_sshd(&mut self) -> Result<()> {
        for entry in fs::read_dir("/etc/ssh").context("read /etc/ssh")?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
                fs::remove_file(entry.path()).context("remove the machine's host keys from the lab")?;
            }
        }
        let key = "/etc/ssh/ssh_host_ed25519_key";
        must("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "root@pve", "-f", key])?;
        let public = fs::read_to_string(format!("{key}.pub")).context("read the host's key")?;
        write("/run/lab/known_hosts", &format!("127.0.0.1 {public}"), 0o644)?;
        must("/usr/sbin/sshd", ["-t"])?;
        // -E: its log is evidence when a scenario fails. Forking into the background, as under an init script, it is reaped by process 1.
        must(
            "/usr/sbin/sshd",
            ["-E", "/run/lab/sshd.log", "-o", "ListenAddress=127.0.0.1", "-o", "PidFile=/run/lab/sshd.pid", "-o", "MaxStartups=100"],
        )?;
        let pid = until("sshd's start", Duration::from_secs(20), || fs::read_to_string("/run/lab/sshd.pid").ok()?.trim().parse().ok())?;
        self.sshd = Some(pid);
        Ok(())
    }

    /// sshd's process id.
    pub fn sshd_pid(&self) -> Option<u32> {
        self.sshd
    }
}

/// Writes a file with a mode, its folder's existence taken for granted.
pub fn write(path: &str, text: &str, bits: u32) -> Result<()> {
    fs::write(path, text).context(format!("write {path}"))?;
    mode(path, bits)
}

fn mode(path: &str, bits: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(bits)).context(format!("set the mode of {path}"))
}
