//! Programs that are begun by a child which is this program first: tools, and a program whose file can't be read, with what hangs in it.
//!
//! A lease that somebody holds on a program's file keeps whoever calls execve, as a disk that hangs does.

#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used, clippy::panic, missing_docs)]

use proto::{ProbeOutcome, QemuProcess, Vmid};
use pve_verb::probe::autopsy;
use pve_verb::probe::tools::run_tools;
use pve_verb::procfs::start_time;
use pve_verb::spawn::{self, Ended, Started, ToolOutcome, start, tool};
use rustix::fs::{FlockOperation, flock};
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const AMPLE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

const TESTS: &[(&str, fn())] = &[
    ("a_tool_gets_a_constant_environment_and_its_streams_are_apart", constant_environment),
    ("a_late_tool_is_killed_with_its_children_and_what_it_said_is_kept", late),
    ("a_flood_is_cut_and_does_not_block_the_tool", flood),
    ("an_absent_tool_is_unavailable", absent),
    ("the_planned_tools_are_done_in_time_together", together),
    ("a_tool_that_can_not_be_read_costs_its_deadline_and_never_runs", unreadable_tool),
    ("what_got_sigterm_before_it_began_never_runs_also_where_its_starter_ignored_that_and_is_gone", terminated),
    ("what_hangs_before_it_begins_has_no_descriptor_of_its_starters", descriptors),
    ("nothing_is_begun_for_another_program", orphan),
    ("whatever_a_debugger_is_killed_at_the_process_runs_on", debugger_killed),
];

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    match words.get(1).and_then(|w| w.to_str()) {
        Some("begin") => return ExitCode::from(spawn::begin(&words[2..])),
        Some("terminate") => return terminate(Path::new(&words[2])),
        _ => {}
    }
    let filter = words.get(1).and_then(|w| w.to_str()).filter(|w| !w.starts_with('-')).unwrap_or_default();
    for (name, test) in TESTS.iter().filter(|(name, _)| name.contains(filter)) {
        test();
        println!("ok     {name}");
    }
    ExitCode::SUCCESS
}

fn until(what: &str, there: impl Fn() -> bool) {
    let end = Instant::now() + AMPLE;
    while !there() {
        assert!(Instant::now() < end, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A program that leaves a file when it runs, and can't be read.
struct Unreadable {
    folder: tempfile::TempDir,
    lease: Child,
}

const LEASE: &str = "
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('held', flush=True)
sys.stdin.read()
";

impl Unreadable {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        std::fs::write(&program, format!("#!/bin/sh\necho ran > {}\n", folder.path().join("ran").display())).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        let mut lease = Command::new("python3");
        lease.args(["-c", LEASE]).arg(&program).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut lease = lease.spawn().unwrap();
        let mut said = String::new();
        BufReader::new(lease.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "held\n");
        Self { folder, lease }
    }

    fn program(&self) -> PathBuf {
        self.folder.path().join("program")
    }

    /// It can be read again.
    fn let_go(mut self) -> tempfile::TempDir {
        drop(self.lease.stdin.take());
        self.lease.wait().unwrap();
        self.folder
    }

    /// The same; whether it ran, is asked when everybody who wanted to begin it is gone.
    fn ran_after_all(self) -> bool {
        let program = self.program();
        let folder = self.let_go();
        until("the end of who hung", || hanging(&program).is_empty());
        folder.path().join("ran").exists()
    }
}

/// Who is about to begin this program, or is it.
fn hanging(program: &Path) -> Vec<u32> {
    let named = |pid: &u32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = words.split(|b| *b == 0).collect();
        words.first() == Some(&b"pve-verb".as_slice()) && words.contains(&program.as_os_str().as_encoded_bytes())
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    all.filter(named).collect()
}

fn begun(program: &Path) -> Started {
    let nothing = File::options().read(true).write(true).open("/dev/null").unwrap();
    let child = start(program.as_os_str(), &["stop", "102"], [nothing.as_fd(); 3], false).unwrap();
    let name = format!("/proc/{}/comm", child.pid().as_raw_nonzero());
    until("the child's own name", || std::fs::read(&name).unwrap() == b"pve-verb-begin\n");
    child
}

fn constant_environment() {
    let ToolOutcome::Finished { status, output, errors, cut } = tool("/bin/sh", &["-c", "env; pwd; echo e >&2; exit 3"], AMPLE, 1000)
    else {
        panic!()
    };
    assert_eq!((status, cut, errors.as_bytes()), (Some(3), false, b"e\n".as_slice()));
    let text = String::from_utf8(output.into_bytes()).unwrap();
    assert!(text.contains("LC_ALL=C\n") && text.ends_with("/\n") && !text.contains("HOME="), "{text}");
}

fn late() {
    let started = Instant::now();
    // Longer than a shell may need for its first word on a busy machine.
    let ToolOutcome::TimedOut { output } = tool("/bin/sh", &["-c", "echo first; sleep 60 & sleep 60"], Duration::from_secs(10), 1000)
    else {
        panic!()
    };
    assert_eq!(output.as_bytes(), b"first\n");
    assert!(started.elapsed() < Duration::from_secs(30));
}

fn flood() {
    let ToolOutcome::Finished { status, output, cut, .. } =
        tool("/bin/sh", &["-c", "head -c 3000000 /dev/zero"], Duration::from_secs(60), 1000)
    else {
        panic!()
    };
    assert_eq!((status, output.as_bytes().len(), cut), (Some(0), 1000, true));
}

fn absent() {
    let ended = tool("/nonexistent/tool", &[], AMPLE, 10);
    assert!(matches!(&ended, ToolOutcome::Unavailable(why) if why.contains("is not installed")), "{ended:?}");
    let forbidden = tool("/etc/passwd", &[], AMPLE, 10);
    assert!(matches!(&forbidden, ToolOutcome::Unavailable(why) if why.contains("denied")), "{forbidden:?}");
}

fn together() {
    // Once of five is enough: whoever measures may have been off the processor.
    let in_time = (0..5).any(|_| {
        let started = Instant::now();
        let answers = run_tools(started + Duration::from_secs(5));
        let df = answers.iter().find(|a| a.name == "host/df").unwrap();
        assert_eq!((answers.len(), df.outcome), (5, ProbeOutcome::Captured), "{df:?}");
        started.elapsed() < Duration::from_secs(4)
    });
    assert!(in_time);
}

fn unreadable_tool() {
    let hung = Unreadable::new();
    let program = hung.program().into_os_string().into_string().unwrap();
    let began = Instant::now();
    let ended = tool(program.leak(), &[], SHORT, 10);
    assert!(matches!(ended, ToolOutcome::TimedOut { .. }), "{ended:?}");
    assert!(began.elapsed() < AMPLE);
    assert!(!hung.ran_after_all());
}

fn terminated() {
    let hung = Unreadable::new();
    let own = std::env::current_exe().unwrap();
    let mut starter = Command::new("/bin/sh");
    starter.args(["-c", "trap '' TERM; exec \"$0\" terminate \"$1\""]).arg(own).arg(hung.program());
    // The one that got the signal is left behind by its starter.
    assert!(starter.status().unwrap().success());
    assert!(!hung.ran_after_all(), "it ran after its starter had said that it never would");
    // And without the signal it would have.
    let hung = Unreadable::new();
    let mut child = begun(&hung.program());
    assert!(child.ended_by(Instant::now() + SHORT).is_none() && !child.has_begun());
    assert!(!hanging(&hung.program()).is_empty());
    let reaper = std::thread::spawn(move || child.ended_by(Instant::now() + AMPLE));
    let ran = hung.folder.path().join("ran");
    let folder = hung.let_go();
    until("what shows that it would have run", || ran.exists());
    assert!(matches!(reaper.join().unwrap(), Some(Ended::Exit(Some(0)))));
    drop(folder);
}

/// As the worker does at its deadline: a signal, a look, and the end of the process.
fn terminate(program: &Path) -> ExitCode {
    let mut child = begun(program);
    let late = child.ended_by(Instant::now() + SHORT).is_none();
    child.term();
    ExitCode::from(u8::from(!late || child.has_begun()))
}

fn descriptors() {
    let hung = Unreadable::new();
    let path = hung.folder.path().join("lock");
    let lock = File::create(&path).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let mut child = begun(&hung.program());
    drop(lock);
    let free = flock(File::open(&path).unwrap(), FlockOperation::NonBlockingLockExclusive);
    child.term();
    let ended = child.ended_by(Instant::now() + AMPLE);
    assert!(matches!(ended, Some(Ended::NotBegun(None))), "{ended:?}");
    assert!(free.is_ok(), "it keeps a lock of its starter's");
    assert!(!hung.ran_after_all());
}

fn orphan() {
    let own = std::env::current_exe().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("ran");
    // Its parent is a shell, as it is somebody else when the worker was killed.
    let mut shell = Command::new("/bin/sh");
    let status = shell.args(["-c", "\"$0\" begin /usr/bin/touch \"$1\"; exit $?"]).arg(own).arg(&mark).status().unwrap();
    assert_eq!((status.code(), mark.exists()), (Some(3), false), "ESRCH");
}

fn debugger_killed() {
    for ms in [620, 700, 800, 1_000] {
        // Once of three is enough: whoever is to settle it may have been off the processor.
        let as_before = (0..3).any(|_| {
            let mut child = Command::new("sleep").arg("60").spawn().unwrap();
            let qemu = QemuProcess { pid: child.id(), started: start_time(child.id()).unwrap() };
            let (answer, trouble) = autopsy::ask(Vmid::DEVVM, qemu, Duration::from_millis(ms));
            let now = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
            let _ = child.kill();
            let _ = child.wait();
            assert!(!answer.detail.is_some_and(|why| why.starts_with("not asked")));
            trouble.is_none() && !now.contains("State:\tT") && now.contains("TracerPid:\t0\n")
        });
        assert!(as_before, "with {ms} ms");
    }
}
