//! Builds the guest: a kernel, an initramfs and a small ext4 disk, kept under a hash of what went into them.
//!
//! The kernel and the programs come out of Debian's packages, which are unpacked and never installed; their libraries
//! come from this machine, where QEMU has brought them. A finished image is used again without a network as long as
//! the recipe is the same; which versions went in stands in its `inputs`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Result};
use crate::process::{must, run};

/// Packages that are fetched and unpacked beside the kernel.
const PACKAGES: [&str; 4] = ["dropbear-bin", "libtomcrypt1", "libtommath1", "qemu-guest-agent"];
/// The kernel: the first of these that the machine's sources have.
const KERNELS: [&str; 2] = ["linux-image-cloud-amd64", "linux-image-virtual"];
/// Modules in the order in which they have to be loaded; what is built in or not there is passed over.
const MODULES: [&str; 14] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
    "scsi_common",
    "scsi_mod",
    "virtio_scsi",
    "sd_mod",
    "virtio_console",
    "virtio_balloon",
];
const FILES: [(&str, &str, u32); 5] = [
    ("etc/rcS", include_str!("../guest/rcS"), 0o755),
    ("etc/inittab", include_str!("../guest/inittab"), 0o644),
    ("etc/os-release", include_str!("../guest/os-release"), 0o644),
    ("usr/bin/sudo", include_str!("../guest/sudo"), 0o755),
    ("sbin/shutdown", include_str!("../guest/shutdown"), 0o755),
];
const FOLDERS: [&str; 18] = [
    "bin",
    "sbin",
    "etc/dropbear",
    "usr/bin",
    "usr/sbin",
    "lib/modules",
    "lib64",
    "proc",
    "sys",
    "dev",
    "run",
    "tmp",
    "data",
    "root/.ssh",
    "home/breakglass/.ssh",
    "var/log",
    "var/lib",
    "mnt",
];

/// A guest that is ready to boot.
#[derive(Debug, Clone)]
pub struct Image {
    /// The folder that holds all of it.
    pub folder: PathBuf,
}

impl Image {
    /// The kernel.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }
    /// The initramfs.
    pub fn initrd(&self) -> PathBuf {
        self.folder.join("initrd")
    }
    /// The disk, qcow2; to be copied, never booted from.
    pub fn disk(&self) -> PathBuf {
        self.folder.join("disk.qcow2")
    }
    /// The private key that root and `breakglass` in the guest accept.
    pub fn key(&self) -> PathBuf {
        self.folder.join("guest_key")
    }
    /// A known_hosts file with the guest's host key under the name `devvm`.
    pub fn known_hosts(&self) -> PathBuf {
        self.folder.join("known_hosts")
    }
}

/// Where the lab keeps what it builds: below cargo's target folder.
pub fn lab_folder() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    target.join("lab")
}

/// The guest's image: the kept one, or a new one (some seconds and 27 MB from Debian's mirror).
pub fn image() -> Result<Image> {
    let lab = lab_folder();
    fs::create_dir_all(&lab).context(format!("create {}", lab.display()))?;
    let lab = lab.canonicalize().context("find the lab's folder")?;
    let folder = lab.join(format!("guest-{}", &recipe()[..16]));
    if !folder.join("inputs").exists() {
        // Built beside and renamed: a build that was killed, or two at once, leave no half image.
        let partial = tempfile::Builder::new().prefix("guest-").suffix(".partial").tempdir_in(&lab).context("create a folder")?;
        build(partial.path())?;
        let built = partial.path().to_owned();
        if fs::rename(&built, &folder).is_ok() {
            let _renamed_away = partial.keep();
        }
    }
    Ok(Image { folder })
}

/// A hash of everything here that decides what the image holds.
fn recipe() -> String {
    let mut hash = Sha256::new();
    hash.update(include_str!("guest.rs"));
    for (path, text, _) in FILES {
        hash.update(path);
        hash.update(text);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn build(folder: &Path) -> Result<()> {
    // Three folders that do not stay: packages, what was in them, and the guest's root.
    let [debs, unpacked, root] = ["debs", "unpacked", "root"].map(|name| folder.join(name));
    for path in [&debs, &unpacked, &root] {
        fs::create_dir(path).context(format!("create {}", path.display()))?;
    }
    let mut inputs = fetch(&debs, &unpacked)?;
    fill_root(&unpacked, &root)?;
    keys(&unpacked, &root, folder)?;
    inputs.push_str(&kernel_and_modules(&unpacked, &root, folder)?);
    pack(&root, &folder.join("initrd"))?;
    disk(folder)?;
    for path in [debs, unpacked, root] {
        fs::remove_dir_all(&path).context(format!("remove {}", path.display()))?;
    }
    fs::write(folder.join("inputs"), inputs).context("write the image's inputs")
}

/// Downloads and unpacks; gives the names of the package files, which carry their versions.
fn fetch(debs: &Path, unpacked: &Path) -> Result<String> {
    let mut wanted: Vec<String> = PACKAGES.iter().map(|name| (*name).to_owned()).collect();
    wanted.extend(kernel_packages()?);
    let minutes = Duration::from_secs(300);
    run(Command::new("apt-get").args(["-o", "Acquire::Retries=5", "download", "-q"]).args(&wanted).current_dir(debs), minutes)?
        .success("apt-get download")?;
    let mut names: Vec<PathBuf> = entries(debs)?;
    names.sort();
    for deb in &names {
        run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(unpacked), minutes)?.success("dpkg-deb -x")?;
    }
    Ok(names.iter().filter_map(|deb| Some(format!("{}\n", deb.file_name()?.to_str()?))).collect())
}

/// The real packages behind the first meta package that is there: image, and on Ubuntu modules.
fn kernel_packages() -> Result<Vec<String>> {
    for meta in KERNELS {
        let depends = run(Command::new("apt-cache").args(["depends", meta]), Duration::from_secs(30))?.text();
        let image = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: ").filter(|name| name.starts_with("linux-image-")));
        if let Some(image) = image {
            let mut all = vec![image.to_owned()];
            if meta == "linux-image-virtual" {
                all.push(image.replacen("linux-image-", "linux-modules-", 1));
            }
            return Ok(all);
        }
    }
    Err(Error::new("No kernel package for the guest was found", "Run `apt-get update` on a Debian or Ubuntu machine and try again"))
}

fn fill_root(unpacked: &Path, root: &Path) -> Result<()> {
    for folder in FOLDERS {
        fs::create_dir_all(root.join(folder)).context(format!("create {folder}"))?;
    }
    for (path, text, mode) in FILES {
        write(root, path, text, mode)?;
    }
    write(root, "etc/passwd", "root::0:0:root:/root:/bin/sh\nbreakglass:*:1000:1000::/home/breakglass:/bin/sh\n", 0o644)?;
    write(root, "etc/group", "root:x:0:\nbreakglass:x:1000:\n", 0o644)?;
    write(root, "etc/hostname", "devvm\n", 0o644)?;
    write(root, "etc/shells", "/bin/sh\n", 0o644)?;
    write(root, "etc/securetty", "tty1\nttyS0\n", 0o644)?;
    let busybox = Path::new("/bin/busybox");
    copy(busybox, &root.join("bin/busybox"))?;
    copy(busybox, &root.join("bin/busybox.suid"))?;
    mode(&root.join("bin/busybox.suid"), 0o4755)?;
    for applet in must("/bin/busybox", ["--list-full"])?.text().lines() {
        // usr/bin and the like: keep busybox's own layout, so that a full path in a script works.
        let link = root.join(applet);
        if let Some(parent) = link.parent() {
            fs::create_dir_all(parent).context("create a folder for an applet")?;
        }
        if !link.exists() {
            symlink("/bin/busybox", &link).context(format!("link {applet}"))?;
        }
    }
    symlink("bin/busybox", root.join("init")).context("link init")?;
    // The guest agent keeps its state there.
    symlink("/run", root.join("var/run")).context("link var/run")?;
    for program in ["usr/sbin/dropbear", "usr/sbin/qemu-ga"] {
        let from = unpacked.join(program);
        copy(&from, &root.join(program))?;
        libraries(&from, unpacked, root)?;
    }
    Ok(())
}

/// Copies the shared libraries of `program`, loader included, to the paths at which it looks for them.
fn libraries(program: &Path, unpacked: &Path, root: &Path) -> Result<()> {
    let own = unpacked.join("usr/lib/x86_64-linux-gnu");
    let listing = run(Command::new("ldd").arg(program).env("LD_LIBRARY_PATH", &own), Duration::from_secs(20))?.success("ldd")?;
    for line in listing.text().lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (name, path) = match words[..] {
            [name, "=>", "not", "found"] => {
                return Err(Error::new(
                    format!("{} needs {name}, which is not here", program.display()),
                    "Install the package that has it",
                ));
            }
            [name, "=>", path, ..] => (format!("lib/x86_64-linux-gnu/{name}"), path),
            [path, address] if path.starts_with('/') && address.starts_with('(') => (path.trim_start_matches('/').to_owned(), path),
            _ => continue,
        };
        let to = root.join(name);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).context("create a library folder")?;
        }
        copy(Path::new(path), &to)?;
    }
    Ok(())
}

/// The guest's host key, the key that opens it, and the known_hosts file that goes with it.
fn keys(unpacked: &Path, root: &Path, folder: &Path) -> Result<()> {
    let key = folder.join("guest_key");
    let path = key.to_string_lossy().into_owned();
    must("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "lab-guest", "-f", &path])?;
    let public = fs::read_to_string(folder.join("guest_key.pub")).context("read the guest's key")?;
    write(root, "root/.ssh/authorized_keys", &public, 0o600)?;
    write(root, "home/breakglass/.ssh/authorized_keys", &public, 0o600)?;
    mode(&root.join("root/.ssh"), 0o700)?;
    let home = root.join("home/breakglass");
    for path in [home.clone(), home.join(".ssh"), home.join(".ssh/authorized_keys")] {
        std::os::unix::fs::chown(&path, Some(1000), Some(1000)).context("give the guest's user its home")?;
    }
    mode(&home.join(".ssh"), 0o700)?;
    let host_key = root.join("etc/dropbear/host_key");
    let said = run(
        Command::new(unpacked.join("usr/bin/dropbearkey"))
            .args(["-t", "ed25519", "-f"])
            .arg(&host_key)
            .env("LD_LIBRARY_PATH", unpacked.join("usr/lib/x86_64-linux-gnu")),
        Duration::from_secs(20),
    )?
    .success("dropbearkey")?
    .text();
    let line = said
        .lines()
        .find(|line| line.starts_with("ssh-ed25519 "))
        .ok_or_else(|| Error::new("dropbearkey printed no public key", "Compare its output with what tests/src/guest.rs expects"))?;
    fs::write(folder.join("known_hosts"), format!("devvm {line}\n")).context("write the guest's known_hosts")
}

/// Copies the kernel and the modules; gives the kernel's release as an input.
fn kernel_and_modules(unpacked: &Path, root: &Path, folder: &Path) -> Result<String> {
    let boot = entries(&unpacked.join("boot"))?;
    let kernel = boot.iter().find(|path| path.to_string_lossy().contains("/vmlinuz-"));
    let kernel = kernel.ok_or_else(|| Error::new("The kernel package holds no vmlinuz", "Compare it with tests/src/guest.rs"))?;
    copy(kernel, &folder.join("vmlinuz"))?;
    let base = [unpacked.join("lib/modules"), unpacked.join("usr/lib/modules")].into_iter().find(|path| path.exists());
    let mut found = Vec::new();
    if let Some(base) = base {
        walk(&base, &mut found)?;
    }
    let mut order = String::new();
    for name in MODULES {
        let Some(path) =
            found.iter().find(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&format!("{name}.ko"))))
        else {
            continue;
        };
        let to = format!("lib/modules/{}", path.file_name().unwrap_or_default().to_string_lossy());
        copy(path, &root.join(&to))?;
        order.push_str(&format!("/{to}\n"));
    }
    write(root, "etc/modules.order", &order, 0o644)?;
    Ok(format!("{}\n", kernel.display()))
}

/// Packs the root as the kernel wants it. Not compressed: under TCG unpacking costs more than loading.
fn pack(root: &Path, to: &Path) -> Result<()> {
    let mut paths = Vec::new();
    walk(root, &mut paths)?;
    let mut list: Vec<String> = paths.iter().filter_map(|path| Some(path.strip_prefix(root).ok()?.to_str()?.to_owned())).collect();
    list.sort();
    let list = list.join("\n");
    let mut cpio = Command::new("cpio");
    cpio.args(["--quiet", "--reproducible", "-o", "-H", "newc", "-F"]).arg(to).current_dir(root);
    crate::process::start(&mut cpio, list.as_bytes())?.finish(Duration::from_secs(60))?.success("cpio")?;
    Ok(())
}

/// A 64 MB ext4 disk: small enough to fill in a second.
fn disk(folder: &Path) -> Result<()> {
    let raw = folder.join("disk.raw");
    fs::File::create(&raw).and_then(|file| file.set_len(64 << 20)).context("create the guest's disk")?;
    let options = "lazy_itable_init=0,lazy_journal_init=0";
    let raw_path = raw.to_string_lossy().into_owned();
    must("mkfs.ext4", ["-q", "-F", "-L", "data", "-E", options, &raw_path])?;
    let qcow2 = folder.join("disk.qcow2").to_string_lossy().into_owned();
    must("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", &raw_path, &qcow2])?;
    fs::remove_file(&raw).context("remove the raw disk")
}

/// Everything below a folder, links not followed.
fn walk(folder: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for path in entries(folder)? {
        let is_folder = path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
        into.push(path.clone());
        if is_folder {
            walk(&path, into)?;
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(folder).context(format!("read {}", folder.display()))?;
    list.map(|entry| entry.map(|entry| entry.path()).context("read a folder")).collect()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).context(format!("copy {}", from.display())).map(drop)
}

fn write(root: &Path, path: &str, text: &str, bits: u32) -> Result<()> {
    let path = root.join(path);
    // Not through a link: an applet of the same name would be overwritten with it.
    fs::write(&path, text).context(format!("write {}", path.display()))?;
    mode(&path, bits)
}

fn mode(path: &Path, bits: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(bits)).context(format!("set the mode of {}", path.display()))
}
