//! What runs inside a case's host: the staging script, the recorded command, the comparison; and small helpers of the scripts.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::case::{Case, HUNG, Outcome};
use crate::{extra, host, stage};

/// `--case NAME SCRIPT TEXT`: one recording. The text comes along because its file may be covered in the host.
pub(crate) const CASE: &str = "--case";
/// `--extra NAME`: a test that is not in the recordings' form.
pub(crate) const EXTRA: &str = "--extra";

/// Runs a hidden sub-command of this program, if `args` are one.
pub(crate) fn hidden(args: &[String]) -> Option<i32> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    Some(match words.as_slice() {
        [host::INIT, ..] => host::init(args.get(1..).unwrap_or_default()),
        [CASE, name, script, text] => replay(name, script, text),
        [EXTRA, name] => extra::run(name),
        ["--poke", path] => poke(path),
        ["--hold", path] => hold(path),
        ["--hang-pve"] => hang_pve(),
        _ => return None,
    })
}

/// Runs a staging script; gives what it complained about.
pub(crate) fn prepare(script: &str) -> Result<(), String> {
    let script = format!("{}\n{script}", stage::WORDS);
    let output = File::create("/tmp/staging").map_err(|why| why.to_string())?;
    let errors = output.try_clone().map_err(|why| why.to_string())?;
    // Its helpers stay in the background, so its output is a file: a pipe would not end.
    let status = Command::new("bash").args(["-c", &script]).stdin(Stdio::null()).stdout(output).stderr(errors).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("staging failed ({other:?}): {}", std::fs::read_to_string("/tmp/staging").unwrap_or_default())),
    }
}

/// Runs a command to its end, or kills it at the limit.
pub(crate) fn perform(words: &[String], stdin: &str, limit: Duration) -> Result<Outcome, String> {
    let (program, args) = words.split_first().ok_or("no command")?;
    let file = |name: &str| File::create(name).map_err(|why| why.to_string());
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(file("/tmp/stdout")?).stderr(file("/tmp/stderr")?);
    for name in ["LANG", "LANGUAGE", "LC_ALL"] {
        command.env_remove(name);
    }
    let begin = Instant::now();
    let mut child = command.spawn().map_err(|why| format!("{program}: {why}"))?;
    if let Some(mut pipe) = child.stdin.take() {
        // A command that does not read it is fine.
        let _ = pipe.write_all(stdin.as_bytes());
    }
    let code = loop {
        if let Some(status) = child.try_wait().map_err(|why| why.to_string())? {
            break status.code().map_or_else(|| format!("{status}"), |code| code.to_string());
        }
        if begin.elapsed() > limit {
            // What hangs in a dead file system may survive this; the host's end takes it.
            let _ = child.kill();
            break HUNG.to_owned();
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let wall = begin.elapsed().as_secs_f64();
    let read = |name: &str| std::fs::read(name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    Ok(Outcome { code, wall, stdout: read("/tmp/stdout"), stderr: read("/tmp/stderr") })
}

fn replay(name: &str, script: &str, text: &str) -> i32 {
    let Some(case) = Case::parse(name, text) else {
        println!("{name} can't be read");
        return 1;
    };
    let (words, stdin) = case.command();
    let got = prepare(script).and_then(|()| perform(&words, &stdin, case.limit()));
    match got {
        Ok(got) => {
            let differences = case.differences(&got);
            if !differences.is_empty() {
                println!("$ {}\nstaged by: {script}\n{differences}\nstand-in: {got:#?}", case.line);
            }
            i32::from(!differences.is_empty())
        }
        Err(why) => {
            println!("{}: {why}", case.name);
            1
        }
    }
}

/// Connects and goes away, as a client that gave up: a hung QEMU keeps the dead entry in its backlog.
fn poke(path: &str) -> i32 {
    let tried = SocketAddrUnix::new(path).and_then(|address| {
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
        connect(fd, &address)
    });
    i32::from(tried.is_err())
}

/// Connects and stays; it is held from QEMU's greeting on, as only then nobody else is let in.
fn hold(path: &str) -> i32 {
    let greeting = UnixStream::connect(path).and_then(|mut stream| stream.read_exact(&mut [0]).map(|()| stream));
    let Ok(_stream) = greeting else {
        return 1;
    };
    let _ = std::fs::write("/tmp/held", "");
    std::thread::sleep(Duration::from_secs(300));
    0
}

/// A FUSE mount at `/etc/pve` whose daemon never reads a request.
fn hang_pve() -> i32 {
    let Ok(device) = File::options().read(true).write(true).open("/dev/fuse") else {
        return 1;
    };
    // The options name the descriptor by its number.
    let number = std::os::fd::AsRawFd::as_raw_fd(&device);
    let options = std::ffi::CString::new(format!("fd={number},rootmode=40000,user_id=0,group_id=0")).unwrap_or_default();
    if mount("fuse", "/etc/pve", "fuse", MountFlags::empty(), Some(options.as_c_str())).is_err() {
        return 1;
    }
    std::thread::sleep(Duration::from_secs(300));
    drop(device);
    0
}
