//! Keys that only the keyholder has, and a person's second key: real ssh, real ssh-keygen, the lab's sshds, the binary as shipped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking

#[path = "agent/keyholder.rs"]
mod keyholder;

use std::process::{Command, Output};
use std::time::Duration;

use keyholder::{BREAKGLASS, SOCKET, holds, keyholder};
use lab::host::write;
use lab::installed::{ask, prepare};
use lab::lab::{Scenario, run_scenarios};
use lab::process::until;
use lab::{Lab, Result};

const SCENARIOS: &[Scenario] = &[
    ("when_ssh_uses_the_keyholder_then_verbs_and_logins_work_and_each_is_logged", logins),
    ("when_its_own_user_looks_into_the_keyholder_then_nothing_can_be_read", closed),
    ("when_breakglass_makes_a_grant_then_the_host_takes_it_once", grant),
];

fn main() {
    run_scenarios(SCENARIOS, prepare)
}

/// ssh with the keyholder's keys and no other.
fn ssh(known_hosts: &str, more: &[&str]) -> Output {
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-T", "-o", "BatchMode=yes", "-o", "IdentityFile=none", "-o", "StrictHostKeyChecking=yes"]);
    ssh.args(["-o", &format!("IdentityAgent={SOCKET}"), "-o", &format!("UserKnownHostsFile={known_hosts}")]);
    ssh.args(more).output().unwrap()
}

fn logins(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    let keys = keyholder(lab)?;
    let status = ssh("/run/lab/known_hosts", &["breakglass@127.0.0.1", "status"]);
    let said = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.status.success() && said.contains("receipt "), "{status:?} {}", keys.log());
    let image = lab.host.inside.image.known_hosts();
    let guest = ssh(image.to_str().unwrap(), &["-p", "2222", "-o", "HostKeyAlias=devvm", "breakglass@127.0.0.1", "sudo -n id -u"]);
    assert_eq!(String::from_utf8_lossy(&guest.stdout).trim(), "0", "{guest:?} {}", keys.log());

    let log = until("both lines", Duration::from_secs(20), || Some(keys.log()).filter(|log| log.matches("\"signed\"").count() == 2))?;
    let signed: Vec<serde_json::Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let signed: Vec<&serde_json::Value> = signed.iter().filter(|line| line["event"] == "signed").collect();
    for line in &signed {
        assert_eq!((&line["user"], &line["uid"]), (&"breakglass".into(), &0.into()), "{line}");
        assert_eq!(line["session"].as_str().unwrap().len(), 16, "{line}");
    }
    assert_ne!(signed[0]["key"], signed[1]["key"], "two keys, one for each");
    // OpenSSH's server asks for logins that are bound to its host key; dropbear does not.
    assert!(signed[0]["host_key"].as_str().is_some_and(|key| key.starts_with("SHA256:")), "{}", signed[0]);
    Ok(())
}

fn closed(lab: &Lab) -> Result<()> {
    let keys = keyholder(lab)?;
    let nobody = |program: &str, arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", program]).args(arguments).output().unwrap()
    };
    let pid = keys.pid();
    for file in ["mem", "maps", "environ", "syscall"] {
        let read = nobody("cat", &[&format!("/proc/{pid}/{file}")]);
        assert!(!read.status.success() && read.stdout.is_empty(), "{file}: {read:?}");
    }
    let traced = nobody("strace", &["-f", "-o", "/dev/null", "-p", &pid.to_string()]);
    let said = String::from_utf8_lossy(&traced.stderr).into_owned();
    assert!(!traced.status.success() && said.contains("Operation not permitted"), "{traced:?}");
    // That root finds both keys there shows that this way of looking finds one where it is.
    for seed in &keys.seeds {
        assert!(holds(pid, seed), "the keyholder's own memory");
        assert!(!holds(lab.host.sshd_pid().unwrap(), seed), "sshd never had it");
    }
    // It says so in a line of its own, after the one with which it begins to serve.
    let told = |log: &String| log.contains("\"memory_locked\":true") || log.contains("memory is not locked");
    until("its word about its memory", Duration::from_secs(20), || Some(keys.log()).filter(told))?;
    let locked = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let locked = locked.lines().find(|line| line.starts_with("VmLck:")).unwrap().to_owned();
    assert_eq!(locked.contains(" 0 kB"), keys.log().contains("memory is not locked"), "{locked} {}", keys.log());
    Ok(())
}

fn grant(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    lab.host.install_program(&lab::lab::built("breakglass")?, BREAKGLASS)?;
    let careful = lab.host.authorize("careful", "--require-grant stop,start,cycle")?;
    let folder = tempfile::tempdir().unwrap();
    let must = |program: &str, arguments: &[&str]| {
        let end = Command::new(program).args(arguments).current_dir(folder.path()).output().unwrap();
        assert!(end.status.success(), "{program} {arguments:?}: {end:?}");
        String::from_utf8(end.stdout).unwrap()
    };
    must("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", "second"]);
    let public = std::fs::read_to_string(folder.path().join("second.pub")).unwrap();
    write("/etc/pve-verb/allowed_signers", &format!("alice namespaces=\"pve-verb-grant\" {public}"), 0o600)?;
    let words = [
        "grant",
        "new",
        "--node",
        "pve",
        "--key-name",
        "careful",
        "--verb",
        "cycle,start",
        "--reason",
        "lab: disk stalled",
        "--for",
        "30m",
    ];
    assert!(must(BREAKGLASS, &words).contains("ssh-keygen -Y sign -n pve-verb-grant"));
    must("ssh-keygen", &["-q", "-Y", "sign", "-n", "pve-verb-grant", "-f", "second", "grant.json"]);
    let grant = must(BREAKGLASS, &["grant", "new", "--signed", "grant.json"]);
    let grant = grant.trim();
    let inspected = must("/usr/sbin/pve-verb", &["grant", "inspect", grant]);
    assert!(inspected.contains("It would be taken now.") && inspected.contains("lab: disk stalled"), "{inspected}");
    assert_eq!(ask(&careful, "cycle")?.body["outcome"], "refused-policy");
    ask(&careful, &format!("cycle --grant={grant}"))?.done();
    let again = ask(&careful, &format!("cycle --grant={grant}"))?;
    assert!(again.message().contains("was spent by request"), "{}", again.message());
    std::fs::remove_file("/etc/pve-verb/allowed_signers").unwrap();
    Ok(())
}
