//! Refusals: each has its exit code and its two sentences, leaves one record, and sends nothing to the VM.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use lab::host::write;
use lab::installed::{GENEROUS, Stamp, Told, agent, ask, limits, log};
use lab::lab::Scenario;
use lab::process::{must, run};
use lab::{Lab, Result, Ssh, Vm, station, wedge};
use serde_json::json;

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("when_the_request_is_not_in_the_grammar_then_it_is_refused", grammar),
    ("when_an_id_belongs_to_another_request_then_it_is_refused", foreign_id),
    ("when_the_key_may_only_read_then_it_may_not_mutate", policy),
    ("when_the_key_needs_a_grant_then_the_refusal_says_so", needs_a_grant),
    ("when_a_key_mutates_too_soon_or_too_often_then_it_waits_and_others_do_not", rates),
    ("when_pve_holds_a_lock_then_the_refusal_says_whose_it_is", pve_lock),
    ("when_two_mutations_come_at_once_then_one_acts_and_the_other_is_told_how_to_attach", two_at_once),
    ("when_an_unknown_id_is_attached_to_then_nothing_begins", unknown_id),
    ("when_pve_verb_is_not_root_then_it_refuses", not_root),
    ("when_the_host_is_not_set_up_then_it_refuses", not_set_up),
    ("when_the_forced_arguments_are_bad_then_it_refuses", bad_arguments),
];

/// Says it, and shows that it is refused with this code, in two sentences, with one record, the VM as it was.
pub(crate) fn refused(vm: &Vm, before: &mut Stamp, ssh: &Ssh, line: &str, code: i32, words: &str) -> Result<Told> {
    let records = log()?.len();
    let told = ask(ssh, line)?;
    assert_eq!(told.answer.status, code, "{line}: {:#}", told.body);
    assert!(told.message().contains(words), "{line}: expected {words:?} in {:?}", told.message());
    assert!(told.body["message"]["do"].as_str().is_some_and(|next| next.len() > 8), "{line}: nothing to do: {}", told.body);
    let mut new = log()?.split_off(records);
    // A configuration that a scenario has just written is told first, and old bundles may go behind an answer.
    new.retain(|record| record["kind"] != "start" && record["kind"] != "pruned");
    assert_eq!(new.iter().map(|record| record["kind"].clone()).collect::<Vec<_>>(), ["refused"], "{line}: {new:#?}");
    assert_eq!((&new[0]["request_id"], &new[0]["exit_code"]), (&told.body["request_id"], &json!(code)));
    assert!(told.steps().is_empty(), "{line}");
    *before = before.untouched(vm, line);
    Ok(told)
}

fn grammar(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let before = Stamp::of(vm);
    for line in ["status;reboot", "cycle --force", "STOP", "qm stop 102"] {
        let answer = agent(lab)?.call(line)?;
        let lines = answer.lines();
        assert!(
            answer.status == 2 && lines.last().unwrap().starts_with("receipt ") && lines.last().unwrap().ends_with(" refused-request"),
            "{answer:?}"
        );
        assert!(answer.flat().contains("status, forensics, reset, stop, start, cycle"), "{answer:?}");
    }
    // Who has a program read the answer gets what a program reads, whatever else is wrong with the line.
    let answer = agent(lab)?.call("stop  --json")?;
    assert_eq!((answer.status, &station::body(&answer)?["outcome"]), (2, &json!("refused-request")), "{answer:?}");
    before.untouched(vm, "lines outside the grammar");
    Ok(())
}

fn foreign_id(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let id = "1f0c9a2e-0000-4000-8000-00000000a001";
    ask(&agent(lab)?, &format!("start --request-id={id}"))?.done();
    let mut before = Stamp::of(vm);
    refused(vm, &mut before, &agent(lab)?, &format!("cycle --request-id={id}"), 2, "belongs to another request")?;
    refused(vm, &mut before, &agent(lab)?, &format!("start --dry-run --request-id={id}"), 2, "belongs to another request")?;
    let other = lab.host.authorize("other", "")?;
    refused(vm, &mut before, &other, &format!("start --request-id={id}"), 2, "belongs to another request")?;
    Ok(())
}

fn policy(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let reader = lab.host.authorize("reader", "--allow read")?;
    let mut before = Stamp::of(vm);
    for verb in ["reset", "stop", "start", "cycle", "stop --dry-run"] {
        refused(vm, &mut before, &reader, verb, 3, "it may say status,forensics")?;
    }
    ask(&reader, "status")?.done();
    ask(&reader, "forensics")?.done();
    Ok(())
}

fn needs_a_grant(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let careful = lab.host.authorize("careful", "--require-grant stop,cycle")?;
    let mut before = Stamp::of(vm);
    let told = refused(vm, &mut before, &careful, "cycle", 3, "needs a grant for cycle")?;
    assert!(told.message().contains("--grant"), "{}", told.message());
    refused(vm, &mut before, &careful, "stop --grant=abc.def", 3, "can't be read")?;
    refused(vm, &mut before, &agent(lab)?, "stop --grant=abc.def", 3, "can't be read")?;
    ask(&careful, "status")?.done();
    Ok(())
}

fn rates(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    let (model, person) = (lab.host.authorize("model", "")?, lab.host.authorize("person", "")?);
    limits("[limits]\nmutations_per_hour = 2\nmin_interval_s = 0\nforensics_per_minute = 2\n")?;
    let put_back = scopeguard(|| limits(GENEROUS));
    for _ in 0..2 {
        ask(&model, "reset")?.done();
    }
    let vm = lab.fresh()?;
    let mut before = Stamp::of(vm);
    refused(vm, &mut before, &model, "reset", 3, "has used its 2 mutations of this hour")?;
    refused(vm, &mut before, &model, "stop", 3, "Try again at 2")?;
    // Dry runs and start are exempt from that, and another key has its own allowance.
    for line in ["cycle --dry-run", "start"] {
        // What changes nothing has the rate of captures, each by itself.
        for _ in 0..2 {
            ask(&model, line)?.done();
        }
        refused(vm, &mut before, &model, line, 3, "has asked for this 2 times within a minute without anything being changed")?;
        ask(&person, line)?.done();
    }
    limits("[limits]\nmutations_per_hour = 9\nmin_interval_s = 3000\nforensics_per_minute = 2\n")?;
    refused(vm, &mut before, &model, "cycle", 3, "less than 3000 s ago")?;
    ask(&person, "forensics")?.done();
    ask(&person, "forensics")?.done();
    refused(vm, &mut before, &person, "forensics", 3, "captured 2 bundles within a minute")?;
    ask(&person, "reset")?.done();
    // The console has no limit.
    let by_hand = lab.host.console(&["/usr/sbin/pve-verb", "reset"], Duration::from_secs(40))?;
    assert_eq!(by_hand.status, 0, "{}", by_hand.text());
    drop(put_back);
    Ok(())
}

/// Runs something when it is dropped.
fn scopeguard<T>(then: impl FnMut() -> Result<T>) -> impl Drop {
    struct Guard<T, F: FnMut() -> Result<T>>(F);
    impl<T, F: FnMut() -> Result<T>> Drop for Guard<T, F> {
        fn drop(&mut self) {
            let _shown_by_the_next_scenario = (self.0)();
        }
    }
    Guard(then)
}

fn pve_lock(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let ssh = agent(lab)?;
    let lock = wedge::config_lock(&lab.host, "backup")?;
    let mut before = Stamp::of(vm);
    for verb in ["reset", "stop", "cycle"] {
        refused(vm, &mut before, &ssh, verb, 4, "On the host run `qm unlock 102`")?;
    }
    let task = wedge::live_task("vzdump")?;
    // The task's own line stands in the index only at its end, so the stamp is taken as it is.
    for verb in ["reset", "stop", "cycle"] {
        let told = refused(vm, &mut before, &ssh, verb, 4, "\"backup\" on the VM for a task that still runs: UPID:pve:")?;
        assert!(!told.message().contains("unlock"), "{}", told.message());
    }
    task.now();
    lock.now();
    // Stopped, start is refused by it as well.
    let vm = lab.stopped()?;
    let lock = wedge::config_lock(&lab.host, "migrate")?;
    refused(vm, &mut Stamp::of(vm), &ssh, "start", 4, "\"migrate\"")?;
    lock.now();
    Ok(())
}

fn two_at_once(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let (first, second) = (agent(lab)?, lab.host.authorize("second", "")?);
    let id = "1f0c9a2e-0000-4000-8000-00000000a002";
    // It can't come to its end before the second was told.
    let qm = wedge::qm_stop_waits(lab)?;
    let running = first.spawn(format!("cycle --json --request-id={id}"))?;
    lab::process::until("the first's work", Duration::from_secs(30), || {
        String::from_utf8_lossy(&running.output_so_far()).contains("\"event\":\"probe\"").then_some(())
    })?;
    let told = ask(&second, "stop")?;
    assert_eq!(told.answer.status, 4, "{:#}", told.body);
    assert!(told.message().contains("A cycle by key agent is in progress since 20"), "{}", told.message());
    assert!(told.message().contains(&format!("`cycle --attach --request-id={id}`")), "{}", told.message());
    assert!(told.steps().is_empty());
    // A read passes meanwhile.
    ask(&second, "status")?.done();
    qm.go_on();
    let end = running.finish(Duration::from_secs(180))?;
    drop(qm);
    assert_eq!(end.status, 0, "{}", end.text());
    let acts: Vec<_> = log()?.into_iter().filter(|record| record["kind"] == "intent").collect();
    assert_eq!(acts.last().unwrap()["request_id"], id, "only the first had an intent");
    assert_eq!(vm.observe(), lab::Observed::State("running".into()));
    Ok(())
}

fn unknown_id(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let line = "cycle --attach --request-id=1f0c9a2e-0000-4000-8000-00000000a003";
    refused(vm, &mut Stamp::of(vm), &agent(lab)?, line, 6, "ever began on this host")?;
    Ok(())
}

fn not_root(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let before = Stamp::of(vm);
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "/usr/sbin/pve-verb", "forced", "--key-name", "agent"]);
    let answer = run(command.env("SSH_ORIGINAL_COMMAND", "stop"), Duration::from_secs(20))?;
    assert_eq!(answer.status, 7, "{}", answer.text());
    assert!(answer.text().contains("does not run as root") && answer.text().ends_with("receipt - - refused-host\n"), "{}", answer.text());
    before.untouched(vm, "not root");
    Ok(())
}

fn not_set_up(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    // /etc/pve-verb is gone, so the line is where root's own is.
    let public = fs::read_to_string(lab.host.key("agent")?.with_extension("pub")).unwrap();
    fs::create_dir_all("/root/.ssh").unwrap();
    fs::set_permissions("/root/.ssh", fs::Permissions::from_mode(0o700)).unwrap();
    write("/root/.ssh/authorized_keys", &format!("restrict,command=\"/usr/sbin/pve-verb forced --key-name agent\" {public}"), 0o600)?;
    let root = Ssh::new("root@127.0.0.1", 22, &lab.host.key("agent")?, std::path::Path::new("/run/lab/known_hosts"));
    let before = Stamp::of(vm);
    // Not a rename: a folder that the machine under the lab has as well can't be renamed in an overlay.
    must("mv", ["/etc/pve-verb", "/etc/pve-verb.away"])?;
    let answer = root.call("stop");
    must("mv", ["/etc/pve-verb.away", "/etc/pve-verb"])?;
    must("chmod", ["755", "/etc/pve-verb"])?;
    let open = root.call("stop");
    must("chmod", ["700", "/etc/pve-verb"])?;
    let open = open?;
    assert!(open.status == 7 && open.flat().contains("/etc/pve-verb has mode 0755") && open.flat().contains("`chmod 700"), "{open:?}");
    let answer = answer?;
    assert_eq!(answer.status, 7, "{answer:?}");
    assert!(answer.flat().contains("/etc/pve-verb is missing") && answer.flat().contains("`pve-verb init`"), "{}", answer.text());
    // Root's own line works as well as the account's, set up.
    ask(&root, "status")?.done();
    fs::remove_file("/root/.ssh/authorized_keys").unwrap();
    before.untouched(vm, "a host that is not set up");
    Ok(())
}

fn bad_arguments(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let before = Stamp::of(vm);
    for (n, bad) in
        ["--allow reboot", "--vmid 99", "--key-fp MD5:aa", "--allow stop --allow all", "extra", "--require-grant all,x"].iter().enumerate()
    {
        let ssh = lab.host.authorize(&format!("bad{n}"), bad)?;
        let answer = ssh.call("stop")?;
        assert_eq!(answer.status, 7, "{bad}: {answer:?}");
        assert!(
            answer.flat().contains("arguments in authorized_keys are bad") && answer.flat().contains("`pve-verb authorize KEY.pub"),
            "{}",
            answer.text()
        );
    }
    before.untouched(vm, "bad forced arguments");
    Ok(())
}
