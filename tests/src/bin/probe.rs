//! Stands in for whoever has taken over a container of the agent: says what could be seen, written, started and called in there, as JSON.
//!
//! `probe look` tries what leaves it alive. `probe call NAME` makes one system call and says what came of it, if it still can. `probe done`
//! is an exit status and nothing else, for who wants to know whether it can be started.
#![allow(clippy::print_stdout, reason = "that is what it is for")]

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::fs::{Access, access};
use rustix::mount::{MountFlags, mount};
use rustix::net::{AddressFamily, SocketType, socket};
use serde_json::{Value, json};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let said = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["look"] => look(),
        ["call", name] => call(name).map_or_else(|error| json!({ "errno": error.raw_os_error() }), |()| json!({ "errno": 0 })),
        ["done"] => return ExitCode::from(42),
        _ => return ExitCode::from(64),
    };
    println!("{said}");
    ExitCode::SUCCESS
}

fn look() -> Value {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let status: serde_json::Map<String, Value> =
        status.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name.to_owned(), value.trim().into())).collect();
    let (mut folders, mut programs) = (Vec::new(), Vec::new());
    walk(Path::new("/"), &mut folders, &mut programs);
    programs.sort();
    let others: Vec<u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id())
        .collect();
    let size = |path: &str| fs::read(path).map_or(0, |bytes| bytes.len());
    json!({
        "status": status,
        "folders": folders.len(),
        "writable": folders.iter().filter(|folder| is_writable(folder)).collect::<Vec<_>>(),
        "programs": programs,
        "others": others,
        "memory": others.iter().filter(|pid| fs::File::open(format!("/proc/{pid}/mem")).is_ok()).collect::<Vec<_>>(),
        "socket": UnixStream::connect("/run/keyholder/agent.sock").is_ok(),
        "told": size("/proc/interrupts") + size("/proc/kallsyms"),
        "mounts": fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines().map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            json!([words.get(4), words.get(5)])
        }).collect::<Vec<_>>(),
        "core": fs::read_to_string("/proc/self/limits").unwrap_or_default().lines().find(|line| line.starts_with("Max core")),
    })
}

/// All folders, and all files that could be started, outside of `/proc`.
fn walk(folder: &Path, folders: &mut Vec<PathBuf>, programs: &mut Vec<PathBuf>) {
    folders.push(folder.to_owned());
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        if kind.is_dir() && path != Path::new("/proc") {
            walk(&path, folders, programs);
        } else if kind.is_file() && access(&path, Access::EXEC_OK).is_ok() {
            programs.push(path);
        }
    }
}

fn is_writable(folder: &Path) -> bool {
    let file = folder.join(".probe");
    let made = fs::write(&file, "x").is_ok();
    let _never_made = fs::remove_file(file);
    made
}

fn call(name: &str) -> io::Result<()> {
    match name {
        "unshare" => Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)?),
        "mount" => Ok(mount("tmpfs", "/var/lib/breakglass", "tmpfs", MountFlags::empty(), None)?),
        "chroot" => Ok(rustix::process::chroot("/")?),
        "ptrace" => Ok(nix::sys::ptrace::traceme()?),
        "fork" => Command::new("/probe").arg("done").status().map(drop),
        "netlink" => Ok(socket(AddressFamily::NETLINK, SocketType::RAW, None).map(drop)?),
        "memfd" => Ok(rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::empty()).map(drop)?),
        // What it wrote itself, in the place where it may write.
        "exec" => {
            let written = Path::new("/var/lib/breakglass/probe");
            let mut from = fs::File::open("/probe")?;
            let mut to = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(written)?;
            io::copy(&mut from, &mut to)?;
            drop(to);
            Err(Command::new(written).arg("done").exec())
        }
        "shell" => Err(Command::new("/bin/sh").exec()),
        _ => Err(io::Error::other("no such call")),
    }
}
