//! Rows about the host and PVE: locks, tasks, where the VM is, whether PVE can be asked, and what was left half-way.

use std::fs;
use std::time::Duration;

use lab::bundle::{judged, judged_with};
use lab::fuse::Hang;
use lab::installed::{agent, ask};
use lab::lab::Scenario;
use lab::process::until;
use lab::station::{fresh_id, honest, lies, quiet};
use lab::worker::{Moment, reaches};
use lab::{Lab, Observed, Result, wedge};

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("when_a_live_task_holds_the_lock_then_the_task_is_named", locked_by_a_task),
    ("when_a_lock_was_left_behind_then_qm_unlock_is_named", lock_left_behind),
    ("when_etc_pve_hangs_then_the_bundle_says_so_and_has_all_the_rest", pve_hung),
    ("when_a_verb_was_killed_half_way_then_the_bundle_has_its_trace_and_the_verb_that_completes_it", interrupted),
    ("when_the_vm_is_stopped_then_since_when_and_by_whom_is_said", stopped),
    ("when_the_vm_is_elsewhere_then_the_bundle_says_where", elsewhere),
];

fn locked_by_a_task(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    let (lock, task) = (wedge::config_lock(&lab.host, "backup")?, wedge::live_task("vzdump")?);
    let bundle = judged(lab, "locked", None);
    task.now();
    lock.now();
    let bundle = bundle?;
    let upid = bundle.json("pve/lock.json")["live_tasks"][0]["upid"].as_str().unwrap().to_owned();
    assert!(upid.contains(":vzdump:102:") && bundle.text("pve/tasks.txt").contains(&upid));
    let said = bundle.finding("locked");
    assert!(said.contains("\"backup\"") && said.contains(&upid), "{said}");
    assert!(bundle.advice().contains("Wait for that task's end") && !bundle.advice().contains("unlock"), "{}", bundle.advice());
    Ok(())
}

fn lock_left_behind(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    let lock = wedge::config_lock(&lab.host, "snapshot")?;
    let bundle = judged(lab, "locked", None);
    lock.now();
    let bundle = bundle?;
    let (lock, said) = (bundle.json("pve/lock.json"), bundle.finding("locked"));
    assert_eq!((&lock["lock"], lock["live_tasks"].as_array().unwrap().len()), (&"snapshot".into(), 0), "{lock}");
    assert!(said.contains("\"snapshot\"") && said.contains("no live task owns it"), "{said}");
    assert!(bundle.advice().contains("`qm unlock 102`"), "{}", bundle.advice());
    Ok(())
}

fn pve_hung(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    let rest = ["qmp/query-block.json", "process/threads.2.json", "guest/ping.json", "host/mounts.txt", "console/screen-2.png"];
    for how in [Hang::Killable, Hang::Uninterruptible] {
        let hung = wedge::etc_pve_hung(how)?;
        let bundle = judged_with(lab, "pve-unresponsive", None, &rest);
        drop(hung);
        let bundle = bundle?;
        for question in ["pve/102", "pve/vmlist", "pve/lock"] {
            assert!(bundle.why_not(question).unwrap().contains("abandoned"), "{how:?}: {:?}", bundle.why_not(question));
        }
        for path in rest {
            assert!(bundle.has(path), "{how:?}: {path} is missing for the sake of /etc/pve");
        }
        assert!(bundle.advice().contains("`systemctl restart pve-cluster`"), "{}", bundle.advice());
    }
    Ok(())
}

fn interrupted(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    let id = fresh_id()?;
    // There is time between the two halves, and what the killed one has begun comes to its end all the same.
    lies("start slow 8\n")?;
    let caller = agent(lab)?.spawn(format!("cycle --json --request-id={id}"))?;
    let killed = reaches(&id, Moment::Step("qm-stop", "done"), Duration::from_secs(60)).and_then(|()| lab::worker::kill());
    honest();
    killed?;
    let _its_answer = caller.finish(Duration::from_secs(60))?;
    quiet(Duration::from_secs(60))?;
    let running = vm.pid().is_some();
    let (verb, advice) = if running { (None, "nothing is left to do") } else { (Some("start"), "completes it") };
    let bundle = judged(lab, "interrupted", verb)?;
    let operation = bundle.json("host/operation.json");
    assert_eq!((&operation["request_id"], &operation["verb"]), (&id.as_str().into(), &"cycle".into()), "{operation}");
    let said = bundle.finding("interrupted");
    assert!(said.contains(&id) && said.contains("killed half-way") && said.contains("of key agent"), "{said}");
    assert!(bundle.advice().contains(advice), "{}", bundle.advice());
    ask(&agent(lab)?, "cycle")?.done();
    vm.kill()
}

fn stopped(lab: &Lab) -> Result<()> {
    let vm = lab.stopped()?;
    vm.start()?;
    wedge::other_qm(&["stop", "102"])?.success("qm stop")?;
    until("the VM's end", Duration::from_secs(30), || (vm.observe() == Observed::Stopped).then_some(()))?;
    let bundle = judged(lab, "stopped", Some("start"))?;
    let said = bundle.finding("stopped");
    assert!(said.contains("qmstop by root@pam ended at 20") && said.contains(": OK"), "{said}");
    for question in ["qmp/query-status", "process/identity", "console/screen-1", "guest/ping"] {
        assert_eq!(bundle.why_not(question).as_deref(), Some("the VM is not running"), "{question}");
    }
    for path in ["pve/102.conf", "host/meminfo.txt", "pve/tasks.txt"] {
        assert!(bundle.has(path), "{path}: a start is a mutation too");
    }
    assert!(bundle.why_not("host/survivor").is_some() && bundle.why_not("host/operation").is_some());
    Ok(())
}

fn elsewhere(lab: &Lab) -> Result<()> {
    lab.stopped()?;
    let (list, away) = ("/etc/pve/.vmlist", "/etc/pve/nodes/other/qemu-server");
    let before = fs::read_to_string(list).unwrap();
    fs::create_dir_all(away).unwrap();
    fs::rename(lab::qemu_cmd::CONF, format!("{away}/102.conf")).unwrap();
    fs::write(list, before.replace("\"node\": \"pve\"", "\"node\": \"other\"")).unwrap();
    let bundle = judged(lab, "elsewhere", None);
    fs::rename(format!("{away}/102.conf"), lab::qemu_cmd::CONF).unwrap();
    fs::write(list, before).unwrap();
    let bundle = bundle?;
    assert_eq!(bundle.json("pve/vmlist.json")["ids"]["102"]["node"], "other");
    assert!(bundle.finding("elsewhere").contains("is on other") && bundle.advice().contains("Call pve-verb on other"));
    Ok(())
}
