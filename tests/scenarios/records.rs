//! A host that misbehaves around its records: floods, a `/run` with little room, a program that can't be read, a grant that was spent by
//! a call that died, a clock that goes back, a log that is taken away, a key that is gone. The verb's promise holds, and the record says
//! what happened. QEMU is real and boots no guest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking
#![allow(clippy::print_stderr)] // the figures are worth a line

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding};
use ed25519_dalek::{Signer, SigningKey};
use lab::chain::{Chain, LOG};
use lab::lab::{Scenario, run_scenarios};
use lab::process::{run, until};
use lab::station::{self, BUNDLES, anna, bare_vm, body, console, fresh_id};
use lab::worker::{self, Moment, carried, passed, reaches};
use lab::{Answer, Lab, Observed, Result, Ssh, fuse, wedge};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const SCENARIOS: &[Scenario] = &[
    ("when_a_key_floods_the_host_then_its_refusals_are_summarised_and_a_mutation_keeps_its_records", flood),
    ("when_run_has_no_room_for_a_bundle_then_the_disk_alone_takes_it_and_nothing_stays_behind", little_room),
    ("when_gdb_can_not_be_read_then_the_autopsy_times_out_and_cycle_is_in_time", gdb_hangs),
    ("when_qm_can_not_be_read_then_stop_does_nothing_and_no_qm_runs_when_the_disk_is_back", qm_hangs),
    ("when_the_worker_dies_between_grant_and_mutation_then_the_grant_is_spent_and_nothing_was_done", grant),
    ("when_the_clock_goes_back_an_hour_then_cycle_works_and_its_records_say_so", clock),
    ("when_the_log_is_taken_away_under_a_running_cycle_then_it_ends_and_the_log_says_what_is_gone", log_deleted),
    // Last: records without a signature stay in the log.
    ("when_the_signing_key_is_missing_then_cycle_acts_and_says_that_nothing_is_signed", key_missing),
];

const AMPLE: Duration = Duration::from_secs(60);
const CONFIG: &str = "/etc/pve-verb/config.toml";

fn main() {
    run_scenarios(SCENARIOS, station::install)
}

fn verify(words: &str) -> Result<Answer> {
    console(format!("log verify {words}").trim_end(), AMPLE)
}

fn running(lab: &Lab) -> (Option<u32>, Option<u64>) {
    assert_eq!(lab.vm.observe(), Observed::State("running".into()));
    (lab.vm.pid(), lab.vm.start_ticks())
}

fn refused(key: &str) -> i32 {
    let mut command = Command::new("/usr/sbin/pve-verb");
    command.args(["forced", "--key-name", key]).env("SSH_ORIGINAL_COMMAND", "status;reboot").current_dir("/");
    run(&mut command, AMPLE).unwrap().status
}

fn flood(lab: &Lab) -> Result<()> {
    const MANY: usize = 1_040;
    bare_vm(lab)?;
    assert_eq!(anna(lab)?.call("status")?.status, 0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..MANY / 2).for_each(|_| assert_eq!(refused("flood"), 2)));
        }
    });
    eprintln!("flood: {MANY} refusals took {:?}", began.elapsed());
    let of_key = |chain: &Chain, kind: &str| chain.kind(kind).into_iter().filter(|r| r["key_name"] == "flood").count();
    let chain = Chain::read()?;
    assert_eq!((of_key(&chain, "refused"), of_key(&chain, "summary")), (1_000, 0), "a thousand have a record each");
    // The minute, as far as the host counts it, is over.
    let counts = "/run/pve-verb/audit-floods.json";
    let mut floods: Value = serde_json::from_slice(&fs::read(counts).unwrap()).unwrap();
    floods.as_object_mut().unwrap().values_mut().for_each(|flood| flood["told_ms"] = json!(0));
    fs::write(counts, floods.to_string()).unwrap();
    let id = fresh_id()?;
    let cycle = anna(lab)?.call(format!("cycle --json --request-id={id}"))?;
    assert_eq!(cycle.status, 0, "{}", cycle.text());
    carried()?;
    let chain = Chain::read()?;
    let told = chain.kind("summary");
    assert_eq!((told.len(), &told[0]["of"], &told[0]["count"], &told[0]["key_name"]), (1, &json!("refused"), &json!(40), &json!("flood")));
    assert_eq!(told[0]["outcomes"], json!({"refused-request": 40}));
    assert_eq!((chain.count(&id, "intent"), chain.count(&id, "outcome"), chain.on_disk), (1, 1, chain.records.len()));
    let verified = verify("--all")?;
    assert_eq!(verified.status, 0, "{}", verified.text());
    assert!(verified.flat().contains("40 reads and refusals came in floods"), "{}", verified.text());
    let shown = console("log show --key flood", AMPLE)?;
    assert!(shown.flat().contains("40 refusals of this key were counted"), "{}", shown.text());
    Ok(())
}

fn little_room(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    let before = running(lab);
    let full = wedge::disk_full("/run/pve-verb")?;
    // Room for records and for half of the evidence.
    let fill = fs::OpenOptions::new().write(true).open("/run/pve-verb/.fill").unwrap();
    fill.set_len(fill.metadata().unwrap().len() - 96 * 1024).unwrap();
    let answer = anna(lab)?.call("forensics --json")?;
    let told = body(&answer)?;
    station::quiet(AMPLE)?;
    let left: Vec<_> = fs::read_dir(BUNDLES[1]).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
    full.now();
    assert_eq!((answer.status, &told["preserved_where"]), (0, &json!("disk")), "{told}");
    assert!(told["degraded"].to_string().contains("the bundle is not on tmpfs"), "{told}");
    assert!(left.is_empty(), "left on tmpfs: {left:?}");
    let bundle = Path::new(BUNDLES[0]).join(told["bundle"].as_str().unwrap());
    let manifest: Value = serde_json::from_slice(&fs::read(bundle.join("manifest.json")).unwrap()).unwrap();
    let subjects = manifest["subject"].as_array().unwrap();
    assert!(subjects.len() > 20, "{manifest}");
    for subject in subjects {
        let bytes = fs::read(bundle.join(subject["name"].as_str().unwrap())).unwrap();
        let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(subject["digest"]["sha256"], hash, "{subject}");
    }
    assert!(bundle.join("manifest.json.sig").exists());
    assert_eq!(running(lab), before);
    Ok(())
}

/// A program that can't be read, as on a `/usr` that hangs.
fn unreadable(path: &str) -> Result<fuse::Served> {
    let mut content = tempfile::tempfile().unwrap();
    content.write_all(&fs::read(path).unwrap()).unwrap();
    let served = fuse::program(path, content)?;
    served.stop();
    Ok(served)
}

fn gdb_hangs(lab: &Lab) -> Result<()> {
    let vm = bare_vm(lab)?;
    let before = running(lab);
    let config = fs::read_to_string(CONFIG).unwrap();
    lab::host::write(CONFIG, &format!("{config}\n[evidence]\nautopsy = \"always\"\n"), 0o600)?;
    let gdb = unreadable("/usr/bin/gdb")?;
    let autopsy = |answer: &Answer| answer.events_of("probe").into_iter().find(|p| p["name"] == "autopsy/threads").unwrap();
    let mut answer = anna(lab)?.call("cycle --json")?;
    for _ in 0..2 {
        // On a busy machine the other probes may leave no time to try it.
        if autopsy(&answer)["detail"].to_string().contains("took all the time") {
            answer = anna(lab)?.call("cycle --json")?;
        }
    }
    // What hangs in there keeps nothing that the next one needs.
    let again = anna(lab)?.call("cycle --json")?;
    drop(gdb);
    lab::host::write(CONFIG, &config, 0o600)?;
    assert_eq!(again.status, 0, "{}", again.text());
    let told = body(&answer)?;
    let autopsy = autopsy(&answer);
    eprintln!("gdb can't be read: cycle {:?}, autopsy {autopsy}", answer.wall);
    assert_eq!((answer.status, &autopsy["outcome"]), (0, &json!("timed_out")), "{told}");
    assert!(answer.wall < Duration::from_secs(25), "{:?}", answer.wall);
    assert_ne!((vm.pid(), vm.start_ticks()), before);
    station::quiet(AMPLE)
}

fn qm_hangs(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    let before = running(lab);
    let tasks = || fs::read_to_string("/var/log/pve/tasks/index").unwrap_or_default();
    let earlier = tasks();
    let hanging = || station::matching(|words| words.iter().any(|word| word == "/usr/sbin/qm"));
    let qm = unreadable("/usr/sbin/qm")?;
    let answer: Answer = anna(lab)?.spawn("stop --json")?.finish(Duration::from_secs(180))?.into();
    let told = body(&answer)?;
    eprintln!("qm can't be read: stop {:?}, {}", answer.wall, told["message"]);
    assert_eq!((answer.status, &told["outcome"], &told["state_after"]), (10, &json!("failed"), &json!("running")), "{told}");
    assert!(told["message"].to_string().contains("Nothing was done to VM 102"), "{told}");
    assert_eq!(hanging().len(), 1, "it was to hang until after the receipt");
    let plan = anna(lab)?.call("stop --dry-run --json")?;
    assert_eq!(plan.status, 0, "{}", plan.text());
    // The disk is back, when nobody waits for this qm any more.
    qm.go_on();
    until("the end of what hung", AMPLE, || hanging().is_empty().then_some(()))?;
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!((running(lab), tasks(), station::qm_processes()), (before, earlier, vec![]), "a qm ran behind its receipt");
    drop(qm);
    station::quiet(AMPLE)
}

const GRANT: &str = r#"
set -e
cd "$(mktemp -d)"
ssh-keygen -q -t ed25519 -N '' -f key
printf 'alice namespaces="pve-verb-grant" %s\n' "$(cut -d' ' -f1,2 key.pub)" > /etc/pve-verb/allowed_signers
chmod 600 /etc/pve-verb/allowed_signers
b64() { basenc --base64url -w0 | tr -d =; }
printf '{"vmid":102,"node":"%s","verbs":["cycle"],"key_name":"careful","not_before":"%s","not_after":"%s","nonce":"'"$1"'","reason":"lab"}' \
    "$(hostname | cut -d. -f1)" "$(date -u +%FT%TZ -d '-1 min')" "$(date -u +%FT%TZ -d '+1 hour')" > grant.json
ssh-keygen -q -Y sign -n pve-verb-grant -f key grant.json
echo "$(b64 < grant.json).$(sed '/^---/d' grant.json.sig | base64 -d | b64)"
"#;

/// A cycle that was killed behind the spending of its grant.
struct Killed {
    id: String,
    request: String,
    grant: String,
    answer: Answer,
    before: (Option<u32>, Option<u64>),
}

/// Stages one. None where it was past its intent by then, or had given up by itself: between the two are two fsyncs, and then the second
/// for which it waits for the log, and whoever is to kill it may be off the processor.
fn spent_and_killed(lab: &Lab, careful: &Ssh, nonce: &str) -> Result<Option<Killed>> {
    bare_vm(lab)?;
    let before = running(lab);
    let made = Command::new("bash").args(["-c", GRANT, "bash", nonce]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let grant = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let id = fresh_id()?;
    let request = format!("cycle --json --request-id={id} --grant={grant}");
    let spent = Path::new("/var/lib/pve-verb/grants").join(nonce);
    let front = careful.spawn(&request)?;
    let began = Instant::now();
    while !spent.exists() {
        assert!(began.elapsed() < AMPLE, "the grant is not spent");
        std::thread::sleep(Duration::from_micros(100));
    }
    // From here on the log takes no record: so the worker stands between the spending and the intent, and is killed there.
    let lock = fs::OpenOptions::new().write(true).create(true).truncate(false).open("/run/pve-verb/audit.lock").unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let hit = worker::kill();
    drop(lock);
    let answer = front.finish(AMPLE)?.into();
    station::quiet(AMPLE)?;
    if passed(&id, Moment::Told("receipt")) || Chain::read()?.count(&id, "intent") > 0 {
        return Ok(None);
    }
    hit?;
    Ok(Some(Killed { id, request, grant, answer, before }))
}

fn grant(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    let careful = lab.host.authorize("careful", "--require-grant cycle")?;
    let killed = (0..10).find_map(|n| spent_and_killed(lab, &careful, &format!("killed-in-between-{n}")).transpose()).transpose()?;
    let Killed { id, request, grant, answer, before } = killed.expect("a cycle that was killed between spending and intent, of ten");
    assert_eq!((answer.status, &body(&answer)?["interrupted"]), (11, &json!(true)), "{}", answer.text());
    assert_eq!(running(lab), before, "the VM was touched");
    // Replayed under its own id and under another one.
    assert_eq!(careful.call(&request)?.status, 11);
    let again = careful.call(format!("cycle --json --grant={grant}"))?;
    let told = body(&again)?;
    assert_eq!((again.status, &told["outcome"]), (3, &json!("refused-policy")), "{told}");
    assert!(told["message"].to_string().contains(&format!("was spent by request {id}")), "{told}");
    let chain = Chain::read()?;
    assert_eq!((chain.count(&id, "intent"), running(lab)), (0, before));
    fs::remove_file("/etc/pve-verb/allowed_signers").unwrap();
    Ok(())
}

/// The host's own key, as it would sign if its clock were right again tomorrow.
fn signing_key() -> SigningKey {
    let text = fs::read_to_string("/etc/pve-verb/signing_key").unwrap();
    let inner: String = text.lines().filter(|line| !line.starts_with("---")).collect();
    let blob = Base64::decode_vec(&inner).unwrap();
    // The private half: a string of 64 bytes, seed and public key.
    let at = blob.windows(4).rposition(|w| w == [0, 0, 0, 64]).unwrap() + 4;
    SigningKey::from_bytes(&blob[at..at + 32].try_into().unwrap())
}

fn clock(lab: &Lab) -> Result<()> {
    bare_vm(lab)?;
    assert_eq!(anna(lab)?.call("status")?.status, 0);
    carried()?;
    // The machine's clock is everybody's, so it is the log that gets a record of an hour ahead: as one that was written before the clock
    // went back. Signed by the host, in the chain.
    let mut segments: Vec<_> =
        fs::read_dir(LOG).unwrap().flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "jsonl")).collect();
    segments.sort();
    let segment = segments.last().unwrap();
    let text = fs::read(segment).unwrap();
    let last = text.strip_suffix(b"\n").unwrap().rsplit(|b| *b == b'\n').next().unwrap();
    let record: Value = serde_json::from_slice(last).unwrap();
    let at = String::from_utf8(Command::new("date").args(["-u", "-d", "+1 hour", "+%FT%T.000Z"]).output().unwrap().stdout).unwrap();
    let hash: String = Sha256::digest(last).iter().map(|byte| format!("{byte:02x}")).collect();
    let line = format!(
        r#"{{"seq":{},"at":"{}","boot_id":{},"monotonic_ns":{},"prev":"{hash}","kind":"review","note":"before the clock went back""#,
        record["seq"].as_u64().unwrap() + 1,
        at.trim(),
        record["boot_id"],
        record["monotonic_ns"].as_u64().unwrap() + 1
    );
    let sig = signing_key().sign(&[b"pve-verb-log\n", line.as_bytes()].concat());
    let line = format!("{line},\"sig\":\"{}\"}}\n", Base64::encode_string(&sig.to_bytes()));
    fs::OpenOptions::new().write(true).open(segment).unwrap().write_all_at(line.as_bytes(), text.len() as u64).unwrap();
    fs::remove_file("/run/pve-verb/audit-tail.json").unwrap();
    assert_eq!(verify("--all")?.status, 0, "the record of an hour ahead is no good one");

    let id = fresh_id()?;
    let answer = anna(lab)?.call(format!("cycle --json --request-id={id}"))?;
    let told = body(&answer)?;
    assert_eq!((answer.status, &told["preserved_where"]), (0, &json!("disk")), "{told}");
    assert!(told["degraded"].to_string().contains("s behind the newest audit record"), "{told}");
    assert_eq!(lab.vm.observe(), Observed::State("running".into()));
    carried()?;
    let chain = Chain::read()?;
    assert!(chain.of(&id).len() > 4 && chain.on_disk == chain.records.len());
    for record in chain.of(&id) {
        let behind = record["clock_behind_ms"].as_u64().unwrap_or(0);
        assert!((3_500_000..=3_600_000).contains(&behind), "{record}");
    }
    let again = anna(lab)?.call(format!("cycle --json --request-id={id}"))?;
    assert_eq!((again.status, &body(&again)?["replayed"]), (0, &json!(true)));
    let verified = verify("--all")?;
    assert_eq!(verified.status, 0, "{}", verified.text());
    Ok(())
}

fn log_deleted(lab: &Lab) -> Result<()> {
    let vm = bare_vm(lab)?;
    let before = running(lab);
    let (known, id) = (Chain::read()?.records.len(), fresh_id()?);
    station::slow_stop()?;
    let front = anna(lab)?.spawn(format!("cycle --json --request-id={id}"))?;
    reaches(&id, Moment::Step("qm-stop", "started"), AMPLE)?;
    // A record may come into it while it is emptied.
    until("the log's going away", AMPLE, || fs::remove_dir_all(LOG).is_ok().then_some(()))?;
    let answer: Answer = front.finish(AMPLE)?.into();
    station::honest();
    let told = body(&answer)?;
    assert_eq!((answer.status, &told["outcome"]), (0, &json!("done")), "{told}");
    assert_ne!((vm.pid(), vm.start_ticks()), before);
    assert_eq!(anna(lab)?.call("status")?.status, 0);
    carried()?;
    let chain = Chain::read()?;
    let lost = chain.kind("repair").into_iter().filter_map(|r| r["lost"]["seq"].as_u64()).max();
    assert!(lost.is_some_and(|seq| seq > known as u64), "no record says what is gone: {lost:?} of {known}");
    assert_eq!((chain.count(&id, "outcome"), chain.on_disk), (1, chain.records.len()));
    let verified = verify("")?;
    assert_eq!(verified.status, 32, "{}", verified.text());
    assert!(verified.flat().contains("were gone when the log went on"), "{}", verified.text());
    Ok(())
}

fn key_missing(lab: &Lab) -> Result<()> {
    let vm = bare_vm(lab)?;
    let before = running(lab);
    let key = "/etc/pve-verb/signing_key";
    fs::rename(key, "/etc/pve-verb/signing_key.away").unwrap();
    let id = fresh_id()?;
    let answer = anna(lab)?.call(format!("cycle --json --request-id={id}"));
    let status = anna(lab)?.call("status --json");
    fs::rename("/etc/pve-verb/signing_key.away", key).unwrap();
    let (answer, status) = (answer?, status?);
    let told = body(&answer)?;
    assert_eq!((answer.status, &told["preserved_where"]), (0, &json!("disk")), "{told}");
    assert!(told["degraded"].to_string().contains("not signed"), "{told}");
    assert_eq!(answer.receipt().unwrap()["sig"], Value::Null);
    assert_eq!((status.status, status.receipt().unwrap()["sig"].is_null()), (0, true));
    assert_ne!((vm.pid(), vm.start_ticks()), before);
    let bundle = Path::new(BUNDLES[0]).join(told["bundle"].as_str().unwrap());
    assert!(bundle.join("manifest.json").exists() && !bundle.join("manifest.json.sig").exists());
    assert_eq!(anna(lab)?.call("status")?.status, 0);
    station::quiet(AMPLE)?;
    let verified = verify("")?;
    assert!(verified.flat().contains("no usable key when it wrote this"), "{}", verified.text());
    let shown = console(&format!("log show --json --request {id}"), AMPLE)?;
    let records: Vec<Value> = shown.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(records.len() > 4 && records.iter().all(|r| r["sig"].is_null()), "{records:?}");
    assert_eq!(records.last().unwrap()["kind"], "outcome");
    Ok(())
}
