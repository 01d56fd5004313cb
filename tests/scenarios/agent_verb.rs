//! `breakglass verb`, `doctor`, `receipts verify` and `devvm accept` over both real sshds, with the binaries as shipped: every verb, and
//! the ways in which a connection, an sshd, a key or the client itself goes away in the middle of one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking
#![allow(clippy::print_stderr)] // the figures are worth a line

#[path = "agent/desk.rs"]
#[allow(dead_code)]
mod desk;
#[path = "agent/keyholder.rs"]
mod keyholder;

use std::fs;
use std::time::{Duration, Instant};

use desk::{Desk, desk};
use lab::agent::{CONFIG, STATE};
use lab::installed::{Stamp, log, prepare};
use lab::lab::{Scenario, run_scenarios};
use lab::process::{Finished, Running, must, run, start, until};
use lab::station::{Traces, bare_vm, fresh_id, matching, processes, quiet, slow_stop};
use lab::vm::{send, stop};
use lab::{Lab, Result};
use rustix::process::Signal;

const SCENARIOS: &[Scenario] = &[
    ("when_each_verb_is_asked_then_its_receipt_and_evidence_are_kept_and_the_doctor_is_content", every_verb),
    ("when_the_devvm_shows_another_key_then_a_person_accepts_exactly_that_one", devvm_key),
    ("when_the_connection_is_cut_in_mid_cycle_then_the_same_id_is_asked_again_and_it_is_done_once", cut),
    ("when_sshd_is_restarted_in_mid_cycle_then_the_client_waits_and_it_is_done_once", restarted),
    ("when_the_line_goes_silent_in_mid_cycle_then_it_is_found_dead_and_asked_again", silent),
    ("when_the_client_is_killed_in_mid_cycle_then_attach_fetches_its_receipt", killed),
    ("when_a_person_leaves_a_cycle_then_it_goes_on_and_says_how_to_come_back", left),
    ("when_the_host_shows_another_key_or_signs_with_another_then_nothing_is_believed", other_keys),
];

/// More than any verb takes here.
const AMPLE: Duration = Duration::from_secs(200);

fn main() {
    run_scenarios(SCENARIOS, prepare)
}

fn breakglass(desk: &Desk, words: &[&str]) -> Result<(i32, String)> {
    let end = run(&mut desk.command(words), AMPLE)?;
    Ok((end.status, both(&end)))
}

fn both(end: &Finished) -> String {
    end.text() + &String::from_utf8_lossy(&end.stderr)
}

fn kept() -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(format!("{STATE}/receipts")).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn every_verb(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let desk = desk(lab, "")?;
    let (status, said) = breakglass(&desk, &["doctor"])?;
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("valid receipt") && said.contains("sudo works") && !said.contains("BAD"), "{said}");

    let before = Stamp::of(vm);
    for words in [&["verb", "status"][..], &["verb", "forensics"], &["verb", "cycle", "--dry-run", "--reason", "only a plan"]] {
        let (status, said) = breakglass(&desk, words)?;
        assert_eq!(status, 0, "{words:?}: {said}");
        before.untouched(vm, &words.join(" "));
    }
    let folders: Vec<_> = fs::read_dir(format!("{STATE}/evidence")).unwrap().flatten().collect();
    // The artifacts came with the answers of forensics and of the plan; the bundle with its manifest stays on the host.
    let screens = folders.iter().filter(|folder| folder.path().join("console").is_dir() && folder.path().join("qmp").is_dir());
    assert_eq!(screens.count(), 2, "{folders:?}");

    let (status, said) = breakglass(&desk, &["verb", "reset", "--reason", "the lab's own", "--actor", "anna"])?;
    assert_eq!(status, 0, "{said}");
    assert_eq!(vm.pid(), vm.scope().first().copied());
    let process = vm.pid();
    let (status, said) = breakglass(&desk, &["verb", "cycle", "--reason", "the lab's own"])?;
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("qm-stop done") && said.contains("qm-start done") && said.contains("Evidence is safe"), "{said}");
    assert_ne!(vm.pid(), process);
    assert_eq!(breakglass(&desk, &["verb", "stop"])?.0, 0);
    assert_eq!(vm.pid(), None);
    let (status, said) = breakglass(&desk, &["verb", "reset"])?;
    assert_eq!(status, 6, "the host's own exit status: {said}");
    assert_eq!(breakglass(&desk, &["verb", "start"])?.0, 0);
    assert!(vm.pid().is_some());

    // With --json: the host's events, and nothing else on standard output.
    let end = run(&mut desk.command(&["verb", "status", "--json"]), AMPLE)?;
    assert!(end.status == 0 && end.text().lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{}", both(&end));
    // The last of them is the receipt as the host signed it, which is kept byte for byte too.
    let last = end.text().lines().last().unwrap().to_owned();
    let newest = fs::read_to_string(format!("{STATE}/receipts/{}", kept().pop().unwrap())).unwrap();
    assert!(last.contains("\"event\":\"receipt\"") && last == newest.trim_end(), "{last} {newest}");
    fs::write("/run/lab/answer", end.text()).unwrap();
    let (status, said) = breakglass(&desk, &["receipt", "--signing-key", "/etc/pve-verb/signing_key.pub", "/run/lab/answer"])?;
    assert!(status == 0 && said.contains("status of VM 102 was done"), "{status} {said}");

    assert!(kept().len() >= 9, "{:?}", kept());
    let records = log()?;
    let reset = records.iter().find(|record| record["verb"] == "reset" && record["kind"] == "outcome").unwrap();
    assert_eq!(
        (&reset["actor"], &reset["origin"], &reset["reason"]),
        (&"anna".into(), &"human".into(), &"the lab's own".into()),
        "{reset}"
    );
    let (status, said) = breakglass(&desk, &["receipts", "verify"])?;
    assert!(status == 0 && said.contains("contains the newest"), "{status} {said}");
    // A receipt that nobody signed.
    let newest = format!("{STATE}/receipts/{}", kept().pop().unwrap());
    let text = fs::read_to_string(&newest).unwrap();
    fs::write(&newest, text.replacen("\"body\":\"ey", "\"body\":\"eY", 1)).unwrap();
    let (status, said) = breakglass(&desk, &["receipts", "verify"])?;
    assert!(status == 1 && said.contains("damaged"), "{status} {said}");
    Ok(())
}

fn devvm_key(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    vm.wait_for_ssh(Duration::from_secs(120))?;
    let desk = desk(lab, "")?;
    let text = fs::read_to_string(CONFIG).unwrap();
    let (head, devvm) = text.split_once("[devvm]").unwrap();
    let own = devvm.lines().find_map(|line| line.strip_prefix("host_key = ")).unwrap().trim_matches('"').to_owned();
    let host = head.lines().find_map(|line| line.strip_prefix("host_key = ")).unwrap().trim_matches('"').to_owned();
    fs::write(CONFIG, format!("{head}[devvm]{}", devvm.replace(&own, &host))).unwrap();
    let fingerprint = |key: &str| {
        fs::write("/run/lab/one.pub", key).unwrap();
        must("ssh-keygen", ["-lf", "/run/lab/one.pub"]).unwrap().text().split(' ').nth(1).unwrap().to_owned()
    };
    let (own, host) = (fingerprint(&own), fingerprint(&host));
    let (status, said) = breakglass(&desk, &["doctor"])?;
    assert!(status == 1 && said.contains(&own) && said.contains(&host) && said.contains("devvm accept"), "{status} {said}");
    assert_eq!(breakglass(&desk, &["devvm", "accept", &host])?.0, 1, "not the one that it shows");
    let (status, said) = breakglass(&desk, &["devvm", "accept", &own])?;
    assert_eq!(status, 0, "{said}");
    let (status, said) = breakglass(&desk, &["doctor"])?;
    assert!(status == 0 && said.contains("sudo works"), "{status} {said}");
    Ok(())
}

/// A cycle that has just preserved its evidence, and goes on for some seconds: QEMU is real and boots no guest.
fn cycle(lab: &Lab, desk: &Desk) -> Result<(String, Running, Option<u32>)> {
    let vm = bare_vm(lab)?;
    let before = vm.pid();
    slow_stop()?;
    let id = fresh_id()?;
    let running = start(&mut desk.command(&["verb", "cycle", "--reason", "the lab's own", "--request-id", &id]), &[])?;
    until("the evidence", Duration::from_secs(60), || {
        String::from_utf8_lossy(&running.output_so_far()).contains("Evidence is safe").then_some(())
    })?;
    Ok((id, running, before))
}

/// That cycle was done, once.
fn done_once(lab: &Lab, id: &str, before: Option<u32>) -> Result<()> {
    quiet(AMPLE)?;
    let left = Traces::of(id)?;
    assert_eq!((left.intents, left.outcomes, left.bundles.len()), (1, 1, 1), "{left:?}");
    assert!(lab.vm.pid().is_some() && lab.vm.pid() != before, "a fresh QEMU process");
    assert_eq!(kept().iter().filter(|name| name.contains(id)).count(), 1, "{:?}", kept());
    Ok(())
}

/// Ends every sshd but the listener.
fn cut_sessions(lab: &Lab) {
    let sshds = matching(|words| words.first().is_some_and(|name| name.starts_with("sshd")));
    sshds.into_iter().filter(|pid| Some(*pid) != lab.host.sshd_pid()).for_each(|pid| drop(send(pid, Signal::KILL)));
}

fn cut(lab: &Lab) -> Result<()> {
    let desk = desk(lab, "")?;
    let (id, running, before) = cycle(lab, &desk)?;
    cut_sessions(lab);
    let end = running.finish(AMPLE)?;
    assert!(end.status == 0 && end.text().contains("again in 1 s") && end.text().contains("was done and observed"), "{}", both(&end));
    done_once(lab, &id, before)
}

fn restarted(lab: &Lab) -> Result<()> {
    let desk = desk(lab, "")?;
    let (id, running, before) = cycle(lab, &desk)?;
    // As a restart of the unit does it, slowly: nobody listens for a while.
    let listener = lab.host.sshd_pid().unwrap();
    stop(listener)?;
    cut_sessions(lab);
    std::thread::sleep(Duration::from_secs(12));
    send(listener, Signal::CONT)?;
    send(listener, Signal::HUP)?;
    let end = running.finish(AMPLE)?;
    assert!(end.status == 0 && end.text().contains("again in"), "{}", both(&end));
    done_once(lab, &id, before)
}

fn silent(lab: &Lab) -> Result<()> {
    let desk = desk(lab, "")?;
    let (id, running, before) = cycle(lab, &desk)?;
    must("/bin/busybox", ["ifconfig", "lo", "down"])?;
    let begun = Instant::now();
    let found = until("the dead line", Duration::from_secs(60), || {
        String::from_utf8_lossy(&running.output_so_far()).contains("again in").then(|| begun.elapsed())
    });
    must("/bin/busybox", ["ifconfig", "lo", "up"])?;
    eprintln!("a silent line was found dead after {:.0} s", found?.as_secs_f32());
    let end = running.finish(AMPLE)?;
    assert_eq!(end.status, 0, "{}", both(&end));
    done_once(lab, &id, before)
}

fn killed(lab: &Lab) -> Result<()> {
    let desk = desk(lab, "")?;
    let (id, running, before) = cycle(lab, &desk)?;
    running.kill()?;
    // At once, while it runs there: joined. Later: told again.
    for _ in 0..2 {
        let (status, said) = breakglass(&desk, &["verb", "cycle", "--attach", "--request-id", &id])?;
        assert!(status == 0 && said.contains("was done and observed"), "{status} {said}");
    }
    done_once(lab, &id, before)?;
    let unknown = fresh_id()?;
    let (status, said) = breakglass(&desk, &["verb", "cycle", "--attach", "--request-id", &unknown])?;
    assert_eq!(status, 6, "attaching never starts anything: {said}");
    assert!(Traces::of(&unknown)?.none());
    Ok(())
}

fn left(lab: &Lab) -> Result<()> {
    let desk = desk(lab, "")?;
    let (id, running, before) = cycle(lab, &desk)?;
    send(running.pid(), Signal::INT)?;
    let end = running.finish(AMPLE)?;
    assert!(end.status == 20 && !processes("worker").is_empty(), "left before the cycle's end: {} {}", end.status, both(&end));
    assert!(both(&end).contains(&format!("--attach --request-id={id}")), "{}", both(&end));
    quiet(AMPLE)?;
    let (status, said) = breakglass(&desk, &["verb", "cycle", "--attach", "--request-id", &id])?;
    assert_eq!(status, 0, "{said}");
    done_once(lab, &id, before)
}

fn other_keys(lab: &Lab) -> Result<()> {
    let desk = desk(lab, "")?;
    let text = fs::read_to_string(CONFIG).unwrap();
    must("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", "/run/lab/other"])?;
    let other: String = fs::read_to_string("/run/lab/other.pub").unwrap().split(' ').take(2).collect::<Vec<_>>().join(" ");
    let with = |name: &str| -> String {
        let mut done = false;
        let line = |line: &str| {
            let first = !done && line.starts_with(&format!("{name} = "));
            done |= first;
            if first { format!("{name} = \"{other}\"\n") } else { format!("{line}\n") }
        };
        text.lines().map(line).collect()
    };
    let records = log()?.len();
    fs::write(CONFIG, with("host_key")).unwrap();
    let (status, said) = breakglass(&desk, &["verb", "cycle"])?;
    assert!(status == 20 && said.contains("Nothing was sent") && said.matches("SHA256:").count() == 2, "{status} {said}");
    assert_eq!(log()?.len(), records, "nothing reached the host");
    fs::write(CONFIG, with("signing_key")).unwrap();
    let (status, said) = breakglass(&desk, &["verb", "status"])?;
    assert!(status == 20 && said.contains("UNKNOWN") && kept().is_empty(), "{status} {said}");
    // Nobody there at all: a peer that takes the connection and says nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    fs::write(CONFIG, text.replace("127.0.0.1:22\"", &format!("{}\"", listener.local_addr().unwrap()))).unwrap();
    let begun = Instant::now();
    let (status, said) = breakglass(&desk, &["verb", "status"])?;
    assert!(status == 20 && begun.elapsed() < Duration::from_secs(100), "{status} after {:?}: {said}", begun.elapsed());
    eprintln!("a host that says nothing: given up after {:.0} s", begun.elapsed().as_secs_f32());
    Ok(())
}
