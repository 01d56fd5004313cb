//! Runs `install/demo` as a person would, with the programs that are built, and looks at what it leaves behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::guest::lab_folder;
use lab::process::{Running, run, start, until};
use lab::vm::send;
use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::Signal;

/// After the build; the promise is 90 s, and other work on the machine may double that.
const PROMISED: Duration = Duration::from_secs(180);

fn main() {
    let trials = vec![
        Trial::test("when_the_demo_is_run_then_the_vm_is_cured_and_the_evidence_survives_the_laboratory", demo),
        Trial::test("when_the_disk_is_left_stalled_then_a_newcomer_cures_it_by_the_page", page),
        Trial::test("when_the_page_s_port_is_taken_then_it_says_so_before_anything_else", taken),
    ];
    libtest_mimic::run(&Arguments { test_threads: Some(1), ..Arguments::from_args() }, trials).exit();
}

/// `install/demo --built` with these words.
fn built(words: &[&str]) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(root.join("install/demo"));
    command.arg("--built").args(words).current_dir("/");
    command
}

fn demo() -> Result<(), Failed> {
    let shown = run(&mut built(&[]), PROMISED)?;
    let text = shown.text();
    let errors = String::from_utf8_lossy(&shown.stderr);
    assert_eq!(shown.status, 0, "{text}\n{errors}");
    for promised in ["This is a LABORATORY", "STAND-INS: `qm`", "block-stalled", "qm-start done", "VM 102 is recovered"] {
        assert!(text.contains(promised), "it does not show {promised}:\n{text}");
    }
    // The last line is the folder, and the namespace that wrote it is gone.
    let kept = Path::new(text.trim_end().lines().last().unwrap());
    assert!(kept.join("summary.txt").is_file() && kept.join("console/screen-1.png").is_file(), "{}", kept.display());
    for (file, namespace) in [("manifest.json", "pve-verb-manifest"), ("receipt.json", "pve-verb-receipt"), ("head.json", "pve-verb-log")] {
        let arguments = ["-Y", "verify", "-f", "allowed_signers", "-I", "pve-verb@pve", "-n", namespace, "-s", &format!("{file}.sig")];
        let signed = std::fs::read(kept.join(file))?;
        let verified = start(Command::new("ssh-keygen").args(arguments).current_dir(kept), &signed)?.finish(Duration::from_secs(60))?;
        assert_eq!(verified.status, 0, "{file}: {}", String::from_utf8_lossy(&verified.stderr));
    }
    std::fs::remove_dir_all(kept)?;
    Ok(())
}

/// A port of the machine that nobody has at the moment.
fn free() -> std::io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}

/// The person sits outside the laboratory, as a newcomer does, with a real browser.
fn page() -> Result<(), Failed> {
    let port = free()?.local_addr()?.port();
    let demo = start(&mut built(&["page", &port.to_string()]), &[])?;
    let cured = cured(&demo);
    // In any case, as nothing else ends it. As Ctrl-C does, which whoever runs this in the background may have it ignore.
    send(demo.pid(), Signal::TERM)?;
    let end = demo.finish(PROMISED * 4)?;
    cured?;
    assert_eq!((end.status, end.timed_out), (143, false), "{}", end.text());
    until("its port to be free", Duration::from_secs(30), || TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())?;
    Ok(())
}

/// Opens the link that the demonstration prints, and cures the VM.
fn cured(demo: &Running) -> lab::Result<()> {
    let said = || String::from_utf8_lossy(&demo.output_so_far()).into_owned();
    let link = || said().lines().find(|line| line.starts_with("http://")).map(str::to_owned);
    let link = until("the link", PROMISED, link)?;
    let target = lab_folder().canonicalize().unwrap_or_else(|_| lab_folder());
    let mut browser = Command::new(target.join("../venv/bin/python"));
    browser.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("browser/newcomer.py")).arg(link).env("PYTHONDONTWRITEBYTECODE", "1");
    run(browser.env("SCREENSHOTS", target.join("screenshots")), Duration::from_secs(600))?.success("the newcomer's browser")?;
    until("the demo's word that it is cured", Duration::from_secs(120), || said().contains("you cured it").then_some(()))
}

fn taken() -> Result<(), Failed> {
    let holder = free()?;
    let port = holder.local_addr()?.port().to_string();
    for (words, said) in [(["page", &port], "can't be had"), (["page", "eighty"], "is no port"), (["pages", ""], "knows `page [PORT]`")] {
        let end = run(&mut built(&words), Duration::from_secs(30))?;
        assert!(end.status != 0 && end.stdout.is_empty(), "{words:?}: {}", end.text());
        assert!(String::from_utf8_lossy(&end.stderr).contains(said), "{words:?}: {}", String::from_utf8_lossy(&end.stderr));
    }
    Ok(())
}
