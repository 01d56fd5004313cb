//! The page in a real browser on the lab's host: real QEMU, both real sshds, the binary as shipped, Chromium as a phone and as a desk.
//! What is pressed and read stands in `tests/browser/incident.py`; here is what only root on the host can do and see.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking
#![allow(clippy::print_stderr)] // the figures are worth a line

#[path = "agent/browser.rs"]
#[allow(dead_code)] // the other browser is a real one
mod browser;
#[path = "agent/desk.rs"]
#[allow(dead_code)] // its webhook is the watch's
mod desk;
#[path = "agent/keyholder.rs"]
mod keyholder;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use browser::{BASIC, LISTEN};
use desk::{desk, newest};
use keyholder::BREAKGLASS;
use lab::guest::lab_folder;
use lab::installed::prepare;
use lab::lab::{Scenario, run_scenarios};
use lab::process::{start, until};
use lab::{Lab, Result, station, wedge};

const SCENARIOS: &[Scenario] = &[
    ("when_the_block_layer_stalls_then_a_phone_recovers_it_in_two_presses_over_a_killed_server", |lab| phone(lab, "with")),
    ("when_the_phone_has_no_javascript_then_it_is_the_same", |lab| phone(lab, "without")),
];

fn main() {
    run_scenarios(SCENARIOS, prepare)
}

/// Chromium as an account of its own would have it: nothing of this test's environment but where things are.
fn browsing(javascript: &str) -> Command {
    let target = lab_folder().canonicalize().unwrap();
    let mut command = Command::new(target.parent().unwrap().join("venv/bin/python"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("browser/incident.py")).args([BREAKGLASS, javascript]);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/root").env("LANG", "C.UTF-8").env("PYTHONDONTWRITEBYTECODE", "1");
    command.env("SCREENSHOTS", target.join("screenshots"));
    command
}

fn phone(lab: &Lab, javascript: &str) -> Result<()> {
    let vm = lab.fresh()?;
    let before = vm.pid();
    let _desk = desk(lab, &format!("[web]\nlisten = \"{LISTEN}\"\nbasic_file = \"/etc/breakglass/basic\"\n"))?;
    std::fs::write("/etc/breakglass/basic", BASIC).unwrap();
    let browsing = start(&mut browsing(javascript), &[])?;
    let said = || String::from_utf8_lossy(&browsing.output_so_far()).into_owned();
    if until("the browser at a healthy page", Duration::from_secs(120), || said().contains("stall now").then_some(())).is_err() {
        return browsing.finish(Duration::ZERO)?.success("the browser before the stall").map(drop);
    }
    // So that there is a middle, in which another device joins and the server is killed, also where a browser takes its time. Before the
    // stall: whoever sees that one presses at once.
    station::lies("stop slow 20\n")?;
    let stalled = wedge::block_stall(vm)?;
    let ended = browsing.finish(Duration::from_secs(600))?.success("the browser")?;
    station::honest();
    stalled.forget();
    eprintln!("{javascript} JavaScript: {}", ended.text().replace('\n', "; "));
    assert_ne!(vm.pid(), before, "a fresh QEMU process");
    vm.wait_for_ssh(Duration::from_secs(120))?;
    assert_eq!(vm.guest("dd if=/dev/zero of=/data/proof bs=4k count=4 conv=fsync")?.status, 0, "its disk works");

    // Done once, on the host too, and by whom.
    let id = ended.text().lines().find_map(|line| line.strip_prefix("run /runs/")).unwrap().to_owned();
    let log = lab::chain::Chain::read()?;
    assert_eq!((log.count(&id, "intent"), log.count(&id, "outcome")), (1, 1));
    let (_, lines) = newest();
    let asked: Vec<_> = lines.iter().filter(|line| line["event"] == "verb_asked" && line["verb"] == "cycle").collect();
    assert!(!asked.is_empty() && asked.iter().all(|line| line["request_id"] == id.as_str() && line["origin"] == "human"), "{asked:?}");
    assert_eq!(asked[0]["actor"], "anna (password)");
    Ok(())
}
