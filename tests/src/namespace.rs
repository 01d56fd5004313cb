//! The lab's host as a disposable namespace: what happens in it touches nothing of the machine, and ends with it.
//!
//! ```text
//! the test's process ──spawns──> setpriv --pdeathsig ──exec──> unshare --kill-child ──forks──> init (pid 1, mounts) ──spawns──> the test
//!   cgroup, image, exit status     dies with its parent          all namespaces                 reaps what is orphaned
//! ```
//! Killing any of them ends all of them: the kernel kills a pid namespace with its first process. `unshare` and
//! `setpriv` are used since the system calls behind them need `unsafe` in a program with threads.
//!
//! Not a security boundary: what runs inside is root of the machine.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};
use rustix::process::{WaitOptions, wait};

use crate::error::{Context, Error, Result};
use crate::guest::{Image, image, lab_folder};
use crate::process::must;
use crate::qemu_cmd::{SCOPE, VmConf, command_line};

/// Says to a re-executed lab program which of the processes above it is. Only the lab's own programs read it.
const STAGE: &str = "BREAKGLASS_LAB_STAGE";
/// Says to the process that becomes QEMU that it is to load the lab's snapshot. Only [`exec_in_scope`] reads it.
pub(crate) const SNAPSHOT: &str = "BREAKGLASS_LAB_SNAPSHOT";
/// The subtree of the cgroup hierarchy that the lab sees as its root, followed by the pid of its outer process.
const CGROUP: &str = "breakglass-lab-";
/// What is shown as it is, while everything that is written goes to memory and is gone with the lab.
const COVERED: [&str; 8] = ["/etc", "/var", "/usr", "/root", "/home", "/opt", "/srv", "/tmp"];

/// Shows that this process is inside a lab; made by [`enter`] alone.
#[derive(Debug)]
pub struct Inside {
    /// The guest that VM 102 boots.
    pub image: Image,
}

/// Whether this process was started to become VM 102's QEMU: then [`enter`] does that, whatever the arguments say.
pub fn becomes_qemu() -> bool {
    std::env::var(STAGE).is_ok_and(|stage| stage == "scope")
}

/// Whether [`enter`] would still have to make the lab: for what needs the network or the compiler, which are not inside.
pub fn is_outside() -> bool {
    std::env::var_os(STAGE).is_none()
}

/// Enters a fresh lab: call it first in `main`. It returns inside the lab only; outside it waits and exits as the inside did.
pub fn enter() -> Result<Inside> {
    match std::env::var(STAGE).as_deref() {
        Err(_) => std::process::exit(outside()?),
        Ok("init") => std::process::exit(init()?),
        Ok("scope") => {
            Err(exec_in_scope(&VmConf::parse(&fs::read_to_string(crate::qemu_cmd::CONF).context("read the VM's configuration")?)))
        }
        Ok(_) => Ok(Inside { image: image()? }),
    }
}

/// Moves this process into the VM's scope and becomes its QEMU; returns only if that failed. On PVE systemd does the first part.
pub fn exec_in_scope(conf: &VmConf) -> Error {
    if let Err(error) = fs::create_dir_all(SCOPE).and_then(|()| fs::write(Path::new(SCOPE).join("cgroup.procs"), "0")) {
        return Error::new(format!("The VM's scope {SCOPE} can't be entered: {error}"), "Run it inside the lab");
    }
    rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o027));
    let mut line = command_line(conf);
    if std::env::var_os(SNAPSHOT).is_some() {
        line.extend(crate::snapshot::INCOMING.map(Into::into));
    }
    let error = Command::new(&line[0]).args(&line[1..]).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").exec();
    Error::new(format!("QEMU could not be executed: {error}"), "Install the packages of tests/packages")
}

/// A command that starts VM 102's QEMU in its scope, for whoever can't move itself there.
pub fn qemu_in_scope() -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find its own program")?);
    command.env(STAGE, "scope");
    Ok(command)
}

/// Prepares what outlives the namespace, runs this program again inside it, and cleans up.
fn outside() -> Result<i32> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::new(
            "The lab needs to be root, for its namespaces",
            "Run it as root, in a throw-away machine or container if you like",
        ));
    }
    image()?;
    let cgroups = Cgroups::create()?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--kill-child", "--fork", "--pid", "--mount", "--propagation", "private"]);
    command.args(["--net", "--uts", "--ipc", "--cgroup", "--"]);
    command.arg(std::env::current_exe().context("find its own program")?).args(std::env::args_os().skip(1));
    let mut child = cgroups.within(|| command.env(STAGE, "init").spawn().context("start the lab's namespace"))??;
    let status = child.wait().context("wait for the lab")?;
    drop(cgroups);
    Ok(exit_code(status))
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// A subtree of cgroup2, so that `/sys/fs/cgroup/qemu.slice/102.scope` inside is nowhere near the machine's own.
struct Cgroups {
    own: Option<PathBuf>,
    home: PathBuf,
}

impl Cgroups {
    fn create() -> Result<Self> {
        // Hybrid machines have the second version beside the first; it needs no controllers for us.
        let hierarchy =
            ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new).into_iter().find(|path| path.join("cgroup.procs").exists());
        let hierarchy = hierarchy.ok_or_else(|| Error::new("There is no cgroup2 hierarchy", "Mount one at /sys/fs/cgroup"))?;
        sweep(hierarchy);
        let membership = fs::read_to_string("/proc/self/cgroup").context("read its own cgroup")?;
        let home = membership.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let own = hierarchy.join(format!("{CGROUP}{}", std::process::id()));
        // Of a killed lab with the same process id: in a container many have the same.
        if own.exists() {
            remove_subtree(&own);
        }
        fs::create_dir(&own).context(format!("create the cgroup {}", own.display()))?;
        Ok(Self { own: Some(own), home: hierarchy.join(home) })
    }

    /// Does `what` while this process is in the subtree, and comes back: what it spawns stays there.
    fn within<T>(&self, what: impl FnOnce() -> T) -> Result<T> {
        let Some(own) = &self.own else { return Ok(what()) };
        fs::write(own.join("cgroup.procs"), "0").context("enter the lab's cgroup")?;
        let value = what();
        fs::write(self.home.join("cgroup.procs"), "0").context("leave the lab's cgroup")?;
        Ok(value)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        if let Some(own) = &self.own {
            remove_subtree(own);
        }
    }
}

/// Removes what labs left behind whose outer process was killed.
fn sweep(hierarchy: &Path) {
    for entry in fs::read_dir(hierarchy).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(pid) = name.strip_prefix(CGROUP)
            && !Path::new("/proc").join(pid).exists()
        {
            remove_subtree(&entry.path());
        }
    }
}

/// Removes a cgroup and those below it; their last processes may need a moment to be gone.
fn remove_subtree(cgroup: &Path) {
    for _ in 0..50 {
        for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                for inner in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                    let _not_a_cgroup = fs::remove_dir(inner.path());
                }
                let _still_busy = fs::remove_dir(entry.path());
            }
        }
        if fs::remove_dir(cgroup).is_ok() || !cgroup.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Process 1 of the namespace: mounts, starts the program proper, and reaps until that ends.
fn init() -> Result<i32> {
    prepare()?;
    let mut command = Command::new(std::env::current_exe().context("find its own program")?);
    let child = command.args(std::env::args_os().skip(1)).env(STAGE, "inside").spawn().context("start the lab's program")?;
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get().unsigned_abs() == child.id() => {
                return Ok(exit_code(ExitStatus::from_raw(status.as_raw())));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the lab's program"),
        }
    }
}

fn prepare() -> Result<()> {
    rustix::system::sethostname(b"pve").context("set the host's name")?;
    must("/bin/busybox", ["ifconfig", "lo", "127.0.0.1", "up"])?;
    // What the lab builds and what a run leaves for people stays writable, wherever it is.
    let kept = lab_folder().canonicalize().context("find the lab's folder")?;
    let kept_fd: OwnedFd = fs::File::open(&kept).context("open the lab's folder")?.into();
    proc()?;
    tmpfs("/dev/shm", "mode=1777")?;
    cover()?;
    rebind(&kept_fd, &kept)?;
    tmpfs("/run", "mode=755")?;
    for folder in ["/run/lock/qemu-server", "/run/qemu-server", "/run/lab", "/run/sshd"] {
        fs::create_dir_all(folder).context(format!("create {folder}"))?;
    }
    if !Path::new("/var/run").is_symlink() {
        let _absent = fs::remove_dir_all("/var/run");
        symlink("/run", "/var/run").context("link /var/run")?;
    }
    let _replaced = fs::remove_dir_all("/var/tmp");
    fs::create_dir_all("/var/tmp").context("create /var/tmp")?;
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)
        .context("mount the lab's cgroups")
}

/// A /proc of the new pid namespace, through which the machine can't be changed.
fn proc() -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None).context("mount /proc")?;
    mount_bind("/proc/sys", "/proc/sys").context("bind /proc/sys")?;
    mount_remount("/proc/sys", MountFlags::BIND | MountFlags::RDONLY | flags, "").context("make /proc/sys read-only")?;
    // A test that meant the guest's must not crash the machine. Some kernels have none.
    if !Path::new("/proc/sysrq-trigger").exists() {
        return Ok(());
    }
    mount_bind("/dev/null", "/proc/sysrq-trigger").context("cover sysrq-trigger")
}

fn cover() -> Result<()> {
    // The layers live on a tmpfs that nobody sees once it is unmounted; the overlays keep it.
    tmpfs("/mnt", "mode=700")?;
    for folder in COVERED.into_iter().filter(|folder| Path::new(folder).is_dir()) {
        let [upper, work] = ["upper", "work"].map(|layer| format!("/mnt{folder}.{layer}"));
        for layer in [&upper, &work] {
            fs::create_dir(layer).context(format!("create {layer}"))?;
        }
        // The upper's mode is the merged folder's.
        let mode = fs::metadata(folder).context(format!("look at {folder}"))?.permissions();
        fs::set_permissions(&upper, mode).context(format!("set the mode of {upper}"))?;
        let options = std::ffi::CString::new(format!("lowerdir={folder},upperdir={upper},workdir={work}")).context("name an overlay")?;
        mount("overlay", folder, "overlay", MountFlags::empty(), Some(options.as_c_str())).context(format!("cover {folder}"))?;
    }
    unmount("/mnt", UnmountFlags::DETACH).context("hide the layers")
}

/// Binds a folder of the machine back to its own path, through the overlay that covers it by now.
fn rebind(folder: &OwnedFd, path: &Path) -> Result<()> {
    use std::os::fd::AsRawFd;
    mount_bind(format!("/proc/self/fd/{}", folder.as_raw_fd()), path).context("keep the lab's folder writable")
}

/// Mounts a tmpfs; also a small one, as `size=1m,mode=700`.
pub fn tmpfs(path: &str, options: &str) -> Result<()> {
    let options = std::ffi::CString::new(options).context("read the options of a tmpfs")?;
    mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(options.as_c_str()))
        .context(format!("mount a tmpfs at {path}"))
}
