//! What a probe helper that was taken over can still do: nothing of what is tried here. Each attempt is a process of its own, which
//! closes the sandbox around itself as the helper does, and then tries.
//!
//! The attempts are in here and not in the binary that ships. `cargo test` needs no root for this; as root it also shows that no
//! layer is missing.

#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used, clippy::panic, missing_docs)]

use pve_verb::sandbox::{self, Layer};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What stands around an attempt: made before the sandbox closes, as a helper's own things are.
struct Place {
    /// The folder of everything; the sockets are in `sockets`, the pictures in `screens`.
    folder: PathBuf,
    screens: OwnedFd,
}

/// A file of a sealed bundle, below the folder of everything.
const SEALED: &str = "evidence/102/20261121T003000.123Z-cycle-1f0c9a2e/manifest.json";

type Attempt = fn(&Place) -> std::io::Result<()>;

/// In both sandboxes each of these must fail.
const EVIL: &[(&str, Attempt)] = &[
    ("write a file", |p| File::create(p.folder.join("sockets/new")).map(drop)),
    ("write a file in the new root", |_| File::create("new").map(drop)),
    ("write a file in tmp", |_| File::create("/tmp/pve-verb-sandbox").map(drop)),
    ("write a picture", |p| {
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CREATE;
        Ok(rustix::fs::openat(&p.screens, "screen-1.ppm", flags, rustix::fs::Mode::RUSR).map(drop)?)
    }),
    ("append to a file", |p| File::options().append(true).open(p.folder.join("screens/screen-1.ppm")).map(drop)),
    ("make a folder", |p| std::fs::create_dir(p.folder.join("sockets/x"))),
    ("write into a sealed bundle", |p| File::options().write(true).open(p.folder.join(SEALED)).map(drop)),
    ("cut a file of a sealed bundle", |p| File::options().write(true).truncate(true).open(p.folder.join(SEALED)).map(drop)),
    ("put a file into a sealed bundle", |p| File::create_new(p.folder.join(SEALED).with_file_name("new")).map(drop)),
    ("remove a file of a sealed bundle", |p| std::fs::remove_file(p.folder.join(SEALED))),
    ("put another file in its place", |p| std::fs::rename(p.folder.join("secret"), p.folder.join(SEALED))),
    ("link a file into a sealed bundle", |p| std::fs::hard_link(p.folder.join("secret"), p.folder.join(SEALED).with_file_name("new"))),
    ("reach a sealed bundle through its own descriptors", |p| {
        use std::os::fd::AsRawFd;
        let around = format!("/proc/self/fd/{}/../{SEALED}", p.screens.as_raw_fd());
        File::options().write(true).open(around).map(drop)
    }),
    ("remove a file", |p| Ok(rustix::fs::unlinkat(&p.screens, "screen-1.ppm", rustix::fs::AtFlags::empty())?)),
    ("rename a file", |p| Ok(rustix::fs::renameat(&p.screens, "screen-1.ppm", &p.screens, "x")?)),
    ("change a mode", |p| Ok(rustix::fs::fchmod(&p.screens, rustix::fs::Mode::RWXU)?)),
    ("a file without a name", |p| {
        let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR;
        Ok(rustix::fs::openat(&p.screens, ".", flags, rustix::fs::Mode::RUSR).map(drop)?)
    }),
    ("start a program", |_| Command::new("/bin/true").status().map(drop)),
    ("become a program", |_| Err(std::os::unix::process::CommandExt::exec(&mut Command::new("/bin/true")))),
    ("open a network connection", |_| match TcpStream::connect("127.0.0.1:9") {
        // Nobody listens there: being told so would mean that it was tried.
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(()),
        other => other.map(drop),
    }),
    ("open a datagram socket", |_| UdpSocket::bind("127.0.0.1:0").map(drop)),
    ("open another netlink socket", |_| {
        use rustix::net::{AddressFamily, SocketType, socket};
        Ok(socket(AddressFamily::NETLINK, SocketType::RAW, None).map(drop)?)
    }),
    ("listen", |_| UnixListener::bind("new").map(drop)),
    ("listen in the abstract name space", |_| UnixListener::bind_addr(&SocketAddr::from_abstract_name("pve-verb-sandbox")?).map(drop)),
    ("connect to a socket elsewhere", |p| UnixStream::connect(p.folder.join("elsewhere")).map(drop)),
    ("connect to an abstract socket", |p| UnixStream::connect_addr(&abstract_name(&p.folder)?).map(drop)),
    ("connect to a socket elsewhere, around the corner", |_| UnixStream::connect("../elsewhere").map(drop)),
    ("trace its parent", |_| traced(parent())),
    ("kill its parent", |_| Ok(rustix::process::kill_process(parent(), rustix::process::Signal::CONT)?)),
    ("mount", |_| Ok(rustix::mount::mount("none", "/", "tmpfs", rustix::mount::MountFlags::empty(), None)?)),
    ("leave its root", |_| Ok(rustix::process::chroot("..")?)),
    ("leave its folder", |p| Ok(rustix::process::fchdir(&p.screens)?)),
    ("raise its limits", |_| {
        use rustix::process::{Resource, Rlimit, setrlimit};
        Ok(setrlimit(Resource::Data, Rlimit { current: None, maximum: None })?)
    }),
    ("start a process that is no thread", |_| Command::new("/proc/self/exe").spawn().map(drop)),
];

/// Beyond those, in the sandbox of `probe-guest` alone.
const EVIL_GUEST: &[(&str, Attempt)] = &[
    ("read a file", |_| File::open("/etc/passwd").map(drop)),
    ("read a file beside the pictures", |p| {
        Ok(rustix::fs::openat(&p.screens, "../secret", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).map(drop)?)
    }),
    ("see an abstract socket", |p| match UnixStream::connect_addr(&abstract_name(&p.folder)?) {
        // It is there and Landlock refuses it. The one of the kernels before 6.12 would not: it must not be there at all.
        Err(e) if e.kind() == ErrorKind::PermissionDenied => Ok(()),
        other => other.map(drop),
    }),
    ("look around", |p| std::fs::read_dir(&p.folder).map(drop)),
    (
        "list the pictures",
        |p| Ok(rustix::fs::Dir::read_from(&p.screens).and_then(|mut d| d.next().unwrap_or(Err(Errno::NOENT)).map(drop))?),
    ),
    ("use more memory than it has", |_| {
        let mut much: Vec<u8> = Vec::new();
        much.try_reserve_exact(80 << 20).map_err(|_| Error::from(ErrorKind::OutOfMemory))
    }),
];

/// What the helpers are there for must go on.
const GOOD_GUEST: &[(&str, Attempt)] = &[
    ("connect to a socket in its folder", |_| {
        let mut qemu = UnixStream::connect("./102.qmp")?;
        qemu.write_all(b"?")
    }),
    ("read a picture", |p| {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOFOLLOW;
        let mut text = String::new();
        File::from(rustix::fs::openat(&p.screens, "screen-1.ppm", flags, rustix::fs::Mode::empty())?).read_to_string(&mut text)?;
        if text == "P6" { Ok(()) } else { Err(Error::other(text)) }
    }),
    ("start a thread", |_| std::thread::Builder::new().spawn(|| 1).map(|t| drop(t.join()))),
    ("use the memory that it needs", |_| {
        let much = vec![1_u8; 40 << 20];
        if much.iter().map(|b| usize::from(*b)).sum::<usize>() == much.len() { Ok(()) } else { Err(Error::other("sum")) }
    }),
];

const GOOD_HOST: &[(&str, Attempt)] = &[
    ("read a file", |_| std::fs::read("/etc/passwd").map(drop)),
    ("read of another process", |_| {
        std::fs::read_dir(format!("/proc/{}/fd", parent().as_raw_nonzero()))
            .and_then(|mut d| d.next().unwrap_or(Err(Errno::NOENT.into())).map(drop))
    }),
    ("start a thread", |_| std::thread::Builder::new().spawn(|| 1).map(|t| drop(t.join()))),
];

/// The abstract socket that the test listens on.
fn abstract_name(folder: &Path) -> std::io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(folder.as_os_str().as_bytes())
}

fn parent() -> rustix::process::Pid {
    rustix::process::getppid().unwrap()
}

/// Nobody without unsafe code can call ptrace; strace would, as a program. What asks for the same right is reading of the memory.
fn traced(pid: rustix::process::Pid) -> std::io::Result<()> {
    File::options().read(true).write(true).open(format!("/proc/{}/mem", pid.as_raw_nonzero())).map(drop)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, word, kind, name, folder] = args.as_slice()
        && word == "try"
    {
        return attempt(kind, name, Path::new(folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for sub in ["sockets", "screens"] {
        std::fs::create_dir(path.join(sub)).unwrap();
    }
    std::fs::write(path.join("screens/screen-1.ppm"), "P6").unwrap();
    std::fs::write(path.join("secret"), "secret").unwrap();
    std::fs::create_dir_all(path.join(SEALED).parent().unwrap()).unwrap();
    std::fs::write(path.join(SEALED), "sealed").unwrap();
    let _qemu = UnixListener::bind(path.join("sockets/102.qmp")).unwrap();
    let _elsewhere = UnixListener::bind(path.join("elsewhere")).unwrap();
    let _abstract = UnixListener::bind_addr(&abstract_name(path).unwrap()).unwrap();
    UnixStream::connect_addr(&abstract_name(path).unwrap()).unwrap();

    let guest = EVIL.iter().chain(EVIL_GUEST).map(|e| ("guest", e.0, 3)).chain(GOOD_GUEST.iter().map(|g| ("guest", g.0, 0)));
    let host = EVIL.iter().map(|e| ("host", e.0, 3)).chain(GOOD_HOST.iter().map(|g| ("host", g.0, 0)));
    let mut failed = 0;
    for (kind, name, expected) in guest.chain(host) {
        let done = Command::new(&args[0]).args(["try", kind, name]).arg(path).output().unwrap();
        let good = done.status.code() == Some(expected);
        failed += u32::from(!good);
        let said = [done.stdout, if good { Vec::new() } else { done.stderr }].concat();
        println!("{} {kind}: {name}: {} {}", if good { "ok    " } else { "FAILED" }, done.status, String::from_utf8_lossy(&said).trim());
    }
    assert_eq!(failed, 0, "attempts that did not end as they must");
    assert_eq!(std::fs::read_to_string(path.join(SEALED)).unwrap(), "sealed");
    assert_eq!(std::fs::read_dir(path.join(SEALED).parent().unwrap()).unwrap().count(), 1);
    ExitCode::SUCCESS
}

/// 0: it was done; 3: it was refused; anything else is neither.
fn attempt(kind: &str, name: &str, folder: &Path) -> ExitCode {
    let all: Vec<_> = EVIL.iter().chain(EVIL_GUEST).chain(GOOD_GUEST).chain(GOOD_HOST).collect();
    let own = if kind == "guest" { GOOD_GUEST } else { GOOD_HOST };
    let (_, tried) = own.iter().chain(all).find(|(n, _)| *n == name).unwrap();
    rustix::process::chdir(folder.join("sockets")).unwrap();
    let place = Place { folder: folder.to_owned(), screens: File::open(folder.join("screens")).unwrap().into() };
    let missing = if kind == "guest" { sandbox::guest(Some(&folder.join("screens"))) } else { sandbox::host() };
    let root = rustix::process::geteuid().is_root();
    let may_lack: &[Layer] = if root { &[] } else { &[Layer::Root, Layer::Network] };
    if missing.iter().any(|layer| !may_lack.contains(layer)) {
        println!("missing: {missing:?}");
        return ExitCode::from(9);
    }
    // Without a root folder and a network of its own, only the kernel's newest Landlock keeps it from other sockets: nothing to see here.
    let others = ["connect to a socket elsewhere", "connect to an abstract socket", "see an abstract socket"];
    if !root && others.iter().any(|o| name.starts_with(o)) && kind == "guest" {
        return ExitCode::from(3);
    }
    match tried(&place) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            println!("{e}");
            ExitCode::from(3)
        }
    }
}
