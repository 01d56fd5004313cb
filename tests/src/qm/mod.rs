//! A stand-in for Proxmox VE's `qm`: it drives the real QEMU of a VM at the real paths, says what the real one says and is as slow as it.
//!
//! What it is held to are the recordings in `tests/golden`. It is no Proxmox: storage, migration, snapshots, backups, clones and
//! cloud-init are absent, and there is no qmeventd behind it, so a guest that powers off stays as `status: shutdown` until somebody
//! stops it. It says that it is a stand-in in `qm help` and in every task log, never in what the recordings pin.

pub mod agent;
pub mod cli;
pub mod conf;
pub mod config;
pub mod ha;
pub mod lock;
pub mod mode;
pub mod monitor;
pub mod out;
pub mod process;
pub mod pve;
pub mod qmp;
pub mod start;
pub mod status;
pub mod stop;
pub mod task;
pub mod tasklog;
pub mod verbs;

use std::time::Duration;

/// Perl's time to load `PVE::CLI::qm` (0.465 s, median of nine on an idle machine) and the little that follows before it acts.
const LOAD: Duration = Duration::from_millis(480);
/// It varies from run to run. So does ours, by the pid: two that are started together don't arrive together.
const SPREAD: Duration = Duration::from_millis(12);

/// Why a command ended without success: its exit status and what stands on stderr (without the last line's end).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fail {
    /// The exit status; inside a task it is lost, as in the real one, and becomes 255.
    pub code: i32,
    /// What is printed.
    pub words: String,
}

impl Fail {
    /// A failure with Perl's usual `die` status.
    pub fn die(words: impl Into<String>) -> Fail {
        Fail { code: 255, words: words.into() }
    }

    /// A failure whose status is a left-over errno (`ENOENT` = 2, `EINTR` = 4, ...).
    pub fn errno(code: i32, words: impl Into<String>) -> Fail {
        Fail { code, words: words.into() }
    }
}

/// What a step of a command gives.
pub type Run<T = ()> = Result<T, Fail>;

/// Runs the command line of this process and gives its exit status.
pub fn main() -> i32 {
    let args: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let name = args.first().map_or("", String::as_str);
    if name.starts_with("task UPID:") {
        return task::worker();
    }
    match args.get(1).map_or("", String::as_str) {
        task::PRELUDE => task::prelude(),
        start::SCOPED => start::scoped(args.get(2..).unwrap_or_default()),
        _ => client(args.get(1..).unwrap_or_default()),
    }
}

fn client(args: &[String]) -> i32 {
    out::locale_warnings();
    std::thread::sleep(LOAD + SPREAD * (std::process::id() % 5));
    let code = match command(args) {
        Ok(()) => 0,
        Err(fail) => {
            out::warn(&fail.words);
            fail.code
        }
    };
    match out::stdout_trouble() {
        Some(why) if code == 0 => {
            out::warn(&format!("Unable to flush stdout: {why}"));
            1
        }
        _ => code,
    }
}

fn command(args: &[String]) -> Run {
    if matches!(args.first().map(String::as_str), Some("help" | "--help")) {
        out::say(cli::HELP);
        return Ok(());
    }
    pve::answers()?;
    let request = cli::parse(args)?;
    match mode::lie(&request.verb) {
        Some(lie) => mode::act(lie, || verbs::run(&request)),
        None => verbs::run(&request),
    }
}
