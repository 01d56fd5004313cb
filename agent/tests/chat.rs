//! `breakglass chat` as it is started: a person leaves it with Ctrl-C while a cycle runs. A real sshd, the real keyholder, a scripted API.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]

mod api;
#[path = "support/keyholder.rs"]
mod keyholder;
#[path = "support/sshd.rs"]
mod sshd;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use api::{Api, say, text, verb};
use keyholder::key;
use sshd::{HOST_KEY, Sshd, me};

const SIGNING: &str = include_str!("answers/signing_key.pub");

#[test]
fn ctrl_c_stops_the_turn_says_what_goes_on_and_how_to_come_back() {
    let api = Api::replies(vec![say(vec![text("I cycle it."), verb("pve_cycle")]), say(vec![text("I know nothing of it.")])]);
    // It takes the request and says nothing for longer than anybody waits here.
    let sshd = Sshd::playing(&[("play", "sleep 60")]);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("key"), api::KEY).unwrap();
    let text = format!(
        "[host]\naddress = \"127.0.0.1:{}\"\nuser = \"{}\"\nhost_key = \"{}\"\nsigning_key = \"{}\"\n[ssh]\nauth_sock = \"{}\"\n\
         [state]\ndir = \"{}\"\n[claude]\nbase_url = \"{}\"\napi_key_file = \"{}\"\n",
        sshd.port,
        me(),
        key(HOST_KEY).1,
        SIGNING.trim(),
        sshd.socket().display(),
        at("state").display(),
        api.url,
        at("key").display()
    );
    std::fs::write(at("config.toml"), text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_breakglass"));
    command.args(["chat", "--config"]).arg(at("config.toml")).arg("It hangs.").env_clear();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while sshd.asked().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "nothing was asked");
        std::thread::sleep(Duration::from_millis(50));
    }
    let id = sshd.asked()[0].split("--request-id=").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let left = Instant::now();
    let end = child.wait_with_output().unwrap();
    let said = String::from_utf8(end.stdout).unwrap();
    // The host says nothing for a minute.
    assert!(left.elapsed() < Duration::from_secs(20), "after {:?}", left.elapsed());
    assert_eq!(end.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("goes on running to its own end: cycle (request {id})")), "{said}");
    let incident = std::path::PathBuf::from(said.lines().last().unwrap());
    assert!(incident.join("events.jsonl").is_file(), "the folder stands last: {said}");
    // It is remembered as running, so that whoever starts next fetches its receipt.
    let store = agent::incident::Store::open(&at("state"), 1 << 30, false).unwrap();
    let [unfinished] = &store.unfinished()[..] else { panic!("it is forgotten") };
    assert!(store.one(unfinished).unwrap().facts.running.iter().any(|pending| pending.request_id.as_str() == id));
    assert_eq!(sshd.asked().len(), 1, "asked for once");
}
