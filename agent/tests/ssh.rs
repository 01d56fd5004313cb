//! SSH as it breaks: a real sshd that plays recorded answers, cut, silent or of something else; peers and an ssh-agent that hang.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]

#[path = "support/keyholder.rs"]
mod keyholder;
#[path = "support/sshd.rs"]
mod sshd;

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use agent::config::Config;
use agent::hands::{ExecAsk, ExecEnd, ExecNews, Hands, VerbAsk, VerbEnd, VerbNews};
use agent::host::Ssh;
use agent::receipt::Unproved;
use agent::ssh::{Failure, Said, Target, Wire};
use keyholder::{fingerprint, key};
use proto::{Origin, Verb};
use sshd::{HOST_KEY, Sshd, me};
use tokio::sync::mpsc;

const ANSWERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/answers");
const CYCLE: &str = "4f0a3c52-7c1e-4b57-9a52-0d6b2f3c1a02";

fn config(sshd: &Sshd, state: &Path, host_key: u8) -> Config {
    let (user, port, shown) = (me(), sshd.port, key(host_key).1);
    let signing = std::fs::read_to_string(format!("{ANSWERS}/signing_key.pub")).unwrap();
    let text = format!(
        "[host]\naddress = \"127.0.0.1:{port}\"\nuser = \"{user}\"\nhost_key = \"{shown}\"\nsigning_key = \"{}\"\n\
         [devvm]\naddress = \"127.0.0.1:{port}\"\nuser = \"{user}\"\nhost_key = \"{shown}\"\nsudo = false\n\
         [ssh]\nauth_sock = \"{}\"\n[state]\ndir = \"{}\"\n",
        signing.trim(),
        sshd.socket().display(),
        state.display()
    );
    Config::parse(&text).unwrap()
}

fn ask(verb: Verb, id: &str) -> VerbAsk {
    VerbAsk {
        verb,
        request_id: id.parse().unwrap(),
        origin: Origin::Human,
        actor: None,
        reason: None,
        dry_run: false,
        attach: false,
        grant: None,
    }
}

/// A cycle to its end, and how often it was asked again.
fn cycle(ssh: &Ssh, id: &str) -> (VerbEnd, usize) {
    runtime().block_on(async {
        let (tell, mut news) = mpsc::channel(16);
        let count = async {
            let mut again = 0;
            while let Some(said) = news.recv().await {
                again += usize::from(matches!(said, VerbNews::Again { .. }));
            }
            again
        };
        tokio::join!(ssh.verb(ask(Verb::Cycle, id), tell), count)
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn playing(plays: &[(&str, &str)]) -> (Sshd, tempfile::TempDir, Ssh) {
    let plays: Vec<(&str, String)> = plays.iter().map(|(name, text)| (*name, text.replace("ANSWERS", ANSWERS))).collect();
    let sshd = Sshd::playing(&plays.iter().map(|(name, text)| (*name, text.as_str())).collect::<Vec<_>>());
    let state = tempfile::tempdir().unwrap();
    let ssh = Ssh::open(&config(&sshd, state.path(), HOST_KEY)).unwrap();
    (sshd, state, ssh)
}

#[test]
fn a_proved_receipt_is_kept_as_it_came_and_its_head_is_the_next_witness() {
    let (sshd, state, ssh) = playing(&[("play", "cat ANSWERS/cycle.ndjson")]);
    let (end, again) = cycle(&ssh, CYCLE);
    assert_eq!((end.status, again), (0, 0), "{}", end.said);
    assert!(end.checked.unwrap().is_success());
    let kept: Vec<_> = std::fs::read_dir(state.path().join("receipts")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let answer = std::fs::read(format!("{ANSWERS}/cycle.ndjson")).unwrap();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert!(answer.ends_with(&std::fs::read(&kept[0]).unwrap()), "the receipt's line, byte for byte");

    assert_eq!(cycle(&ssh, CYCLE).0.status, 0);
    drop(ssh);
    // Another process later knows it too.
    let ssh = Ssh::open(&config(&sshd, state.path(), HOST_KEY)).unwrap();
    assert_eq!(cycle(&ssh, CYCLE).0.status, 0);
    let asked = sshd.asked();
    assert!(!asked[0].contains("--witness=") && asked[1].contains("--witness=") && asked[2].contains("--witness="), "{asked:?}");
    let used = sshd.used();
    assert!(used.contains(key(1).1.split(' ').nth(1).unwrap()) && !used.contains(key(2).1.split(' ').nth(1).unwrap()), "{used}");
}

#[test]
fn a_line_that_breaks_or_an_end_without_a_receipt_is_asked_again_under_the_same_id() {
    for first in
        ["head -c 20000 ANSWERS/cycle.ndjson; sleep 0.2; kill -9 $PPID", "head -c 20000 ANSWERS/cycle.ndjson", "exit 0", "kill -9 $PPID"]
    {
        let (sshd, _state, ssh) = playing(&[("play.1", first), ("play", "cat ANSWERS/cycle.ndjson")]);
        let (end, again) = cycle(&ssh, CYCLE);
        assert_eq!((end.status, again), (0, 1), "{first}: {}", end.said);
        let asked = sshd.asked();
        assert!(asked.len() == 2 && asked.iter().all(|line| line.contains(&format!("--request-id={CYCLE}"))), "{first}: {asked:?}");
    }
}

#[test]
fn a_slow_line_is_no_broken_one() {
    let whole = "i=0; size=$(wc -c < ANSWERS/cycle.ndjson); while [ $((i * 4096)) -lt $size ]; do \
                 dd if=ANSWERS/cycle.ndjson bs=4096 skip=$i count=1 status=none; i=$((i + 1)); sleep 0.02; done";
    let (_sshd, _state, ssh) = playing(&[("play", whole)]);
    let (end, again) = cycle(&ssh, CYCLE);
    assert_eq!((end.status, again), (0, 0), "{}", end.said);
}

#[test]
fn a_receipt_of_something_else_is_unknown_at_once() {
    for (play, id) in [
        ("cat ANSWERS/cycle.ndjson", "00000000-0000-4000-8000-000000000000"),
        ("cat ANSWERS/status.ndjson", CYCLE),
        ("cat ANSWERS/unsigned.ndjson", CYCLE),
        ("cat ANSWERS/cycle.ndjson; echo", CYCLE),
        ("sed '$s/\"sig\":\"U1NIU0lH/\"sig\":\"U1NIU0lI/' ANSWERS/cycle.ndjson", CYCLE),
        ("echo done", CYCLE),
    ] {
        let (sshd, state, ssh) = playing(&[("play", play)]);
        let begun = Instant::now();
        let (end, again) = cycle(&ssh, id);
        assert_eq!((end.status, again), (agent::UNKNOWN, 0), "{play}: {}", end.said);
        assert!(end.checked.is_err() && sshd.asked().len() == 1 && begun.elapsed() < Duration::from_secs(10), "{play}");
        assert_eq!(std::fs::read_dir(state.path().join("receipts")).unwrap().count(), 0, "{play}: nothing is kept as proved");
    }
}

#[test]
fn a_receipt_about_another_vm_is_not_believed_and_with_its_key_nothing_is_changed() {
    let (sshd, state, _) = playing(&[("play.1", "cat ANSWERS/status.ndjson"), ("play", "cat ANSWERS/cycle.ndjson")]);
    let mut config = config(&sshd, state.path(), HOST_KEY);
    config.host.as_mut().unwrap().vmid = "105".parse().unwrap();
    let ssh = Ssh::open(&config).unwrap();
    let status = "4f0a3c52-7c1e-4b57-9a52-0d6b2f3c1a01";
    let (tell, _) = mpsc::channel(1);
    let end = runtime().block_on(ssh.verb(ask(Verb::Status, status), tell));
    assert_eq!((end.status, end.said.what.as_str()), (agent::UNKNOWN, "The key is for VM 102, and [host] vmid says 105."));
    assert!(matches!(end.checked, Err(Unproved::OtherVm { .. })) && end.said.next.contains("vmid = 102"), "{}", end.said);

    let (end, _) = cycle(&ssh, CYCLE);
    assert!(!end.sent && end.said.what == "Nothing was sent. The key is for VM 102, and [host] vmid says 105.", "{}", end.said);
    assert_eq!(sshd.asked().len(), 1, "{:?}", sshd.asked());
    // Who did not look first is told where it was done.
    let (end, _) = cycle(&Ssh::open(&config).unwrap(), CYCLE);
    assert!(end.sent && end.status == agent::UNKNOWN && end.said.what.ends_with("what cycle did, it did to VM 102."), "{}", end.said);
    assert_eq!(std::fs::read_dir(state.path().join("receipts")).unwrap().count(), 0, "nothing is kept as proved");
}

#[test]
fn another_host_key_ends_it_before_anything_is_sent() {
    let (sshd, state, _) = playing(&[("play", "cat ANSWERS/cycle.ndjson")]);
    let ssh = Ssh::open(&config(&sshd, state.path(), 11)).unwrap();
    let (end, again) = cycle(&ssh, CYCLE);
    assert_eq!((end.status, again), (agent::UNKNOWN, 0), "{}", end.said);
    let said = end.said.to_string();
    assert!(said.contains(&fingerprint(11)) && said.contains(&fingerprint(HOST_KEY)), "{said}");
    assert!(sshd.asked().is_empty() && !sshd.log().contains("Accepted publickey"), "{}", sshd.log());
}

#[test]
fn another_host_key_after_the_request_went_out_is_no_word_that_nothing_was_sent() {
    // In the middle of it sshd gets another key, as of a host set up anew or of somebody in between.
    let swap = "n=$(grep -c 'Server listening' log); cp other host_key && kill -HUP $(cat listener)\n\
                i=0; until [ $(grep -c 'Server listening' log) -gt $n ] || [ $i -gt 200 ]; do i=$((i + 1)); sleep 0.1; done\n\
                sleep 1; kill -9 $PPID";
    let (sshd, _state, ssh) = playing(&[("play", swap)]);
    sshd.program("other", &key(11).0);
    std::fs::set_permissions(sshd.folder.path().join("other"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(sshd.folder.path().join("listener"), sshd.pid().to_string()).unwrap();
    let (end, again) = cycle(&ssh, CYCLE);
    // Twice where the spare session had logged in before.
    assert!(end.status == agent::UNKNOWN && again >= 1 && sshd.asked().len() == again, "{again} {}", end.said);
    let said = end.said.to_string();
    assert!(said.contains(&fingerprint(11)) && said.contains("--attach") && !said.contains("Nothing was sent"), "{said}");
}

#[test]
fn a_key_that_is_not_taken_or_not_there_ends_it_at_the_first_try_and_nothing_was_sent() {
    let (sshd, state, _) = playing(&[("play", "cat ANSWERS/cycle.ndjson")]);
    let folder = tempfile::tempdir().unwrap();
    let (gone, empty) = (folder.path().join("gone"), folder.path().join("empty"));
    let mut agent =
        std::process::Command::new("ssh-agent").arg("-D").arg("-a").arg(&empty).stdout(std::process::Stdio::null()).spawn().unwrap();
    while !empty.exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::write(sshd.folder.path().join("authorized"), "").unwrap();
    for (socket, why, next) in [
        (sshd.socket(), format!("sshd on 127.0.0.1:{} accepts no key of the ssh-agent for {}", sshd.port, me()), "pve-verb authorize"),
        (empty, "has no key".to_owned(), "ssh-add"),
        (gone, "does not answer".to_owned(), "ssh-add"),
    ] {
        let mut config = config(&sshd, state.path(), HOST_KEY);
        config.ssh.auth_sock = Some(socket);
        let (end, again) = cycle(&Ssh::open(&config).unwrap(), CYCLE);
        let said = end.said.to_string();
        assert!(end.status == agent::UNKNOWN && again == 0, "{again} {said}");
        assert!(said.starts_with("Nothing was sent: ") && said.contains(&why) && said.contains(next), "{said}");
        assert!(!said.contains("known") && !said.contains("--attach"), "{said}");
    }
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert!(sshd.asked().is_empty(), "{:?}", sshd.asked());
}

#[test]
fn a_spare_session_that_has_died_costs_one_more_try() {
    let (sshd, _state, ssh) = playing(&[("play", "cat ANSWERS/cycle.ndjson")]);
    assert_eq!(cycle(&ssh, CYCLE).0.status, 0);
    std::thread::sleep(Duration::from_millis(500));
    sshd.end_sessions();
    let (end, again) = cycle(&ssh, CYCLE);
    assert!(end.status == 0 && again <= 1, "{again} {}", end.said);
}

/// What a command on the devvm printed, and how it ended.
fn exec(ssh: &Ssh, command: &str, timeout: Duration) -> (ExecEnd, Vec<u8>, Vec<u8>) {
    runtime().block_on(async {
        let (tell, mut news) = mpsc::channel::<ExecNews>(4);
        let collect = async {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            while let Some(said) = news.recv().await {
                if said.stderr { err.extend(said.bytes) } else { out.extend(said.bytes) }
            }
            (out, err)
        };
        let (end, (out, err)) = tokio::join!(ssh.exec(ExecAsk { command: command.to_owned(), timeout }, tell), collect);
        (end, out, err)
    })
}

#[test]
fn a_command_on_the_devvm_ends_as_it_ended_and_a_lost_one_never_as_done() {
    let sshd = Sshd::with_a_shell(HOST_KEY);
    let state = tempfile::tempdir().unwrap();
    let ssh = Ssh::open(&config(&sshd, state.path(), HOST_KEY)).unwrap();
    let long = Duration::from_secs(30);
    let (end, out, err) = exec(&ssh, "echo \"it's\"; echo no >&2; exit 3", long);
    assert_eq!((end, out.as_slice(), err.as_slice()), (ExecEnd::Exited(3), &b"it's\n"[..], &b"no\n"[..]));
    let (end, out, _) = exec(&ssh, "head -c 5000000 /dev/zero", long);
    assert_eq!((end, out.len()), (ExecEnd::Exited(0), 5_000_000));
    assert_eq!(exec(&ssh, "kill -TERM $$", long).0, ExecEnd::Signalled("TERM".to_owned()));
    for lost in ["kill -9 $PPID; sleep 1", "echo x; sleep 0.3; kill -9 $PPID; sleep 1"] {
        let (end, ..) = exec(&ssh, lost, long);
        assert!(matches!(end, ExecEnd::Lost(_)), "{lost}: {end:?}");
    }
    let begun = Instant::now();
    assert_eq!(exec(&ssh, "sleep 20", Duration::from_secs(1)).0, ExecEnd::TimedOut);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let first = sshd.log().lines().find(|line| line.contains("Accepted publickey")).map(str::to_owned);
    assert!(first.as_ref().is_some_and(|line| line.contains(&fingerprint(2))), "{first:?}");
}

#[test]
fn a_devvm_with_a_new_host_key_waits_until_a_person_accepts_exactly_that_one() {
    let sshd = Sshd::with_a_shell(12);
    let state = tempfile::tempdir().unwrap();
    let ssh = Ssh::open(&config(&sshd, state.path(), HOST_KEY)).unwrap();
    let second = Duration::from_secs(20);
    let changed = ExecEnd::HostKeyChanged { pinned: fingerprint(HOST_KEY), shown: fingerprint(12) };
    assert_eq!(exec(&ssh, "true", second).0, changed);
    let devvm = ssh.devvm().unwrap();
    let shown = ssh_key::PublicKey::from_openssh(&key(12).1).unwrap();
    assert!(devvm.accept(&shown, &fingerprint(HOST_KEY)).is_err());
    assert_eq!(exec(&ssh, "true", second).0, changed);
    devvm.accept(&shown, &fingerprint(12)).unwrap();
    assert_eq!(exec(&ssh, "true", second).0, ExecEnd::Exited(0));
    drop(ssh);
    let ssh = Ssh::open(&config(&sshd, state.path(), HOST_KEY)).unwrap();
    assert_eq!(exec(&ssh, "true", second).0, ExecEnd::Exited(0), "it is remembered in the state folder");
}

/// A peer, which does this with each connection.
fn peer(each: fn(TcpStream)) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || each(stream));
        }
    });
    address
}

fn silent(stream: TcpStream) {
    std::thread::sleep(Duration::from_secs(60));
    drop(stream);
}

fn drip(mut stream: TcpStream) {
    while stream.write_all(b"S").is_ok() {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A banner, and then a packet whose end never comes.
fn drip_of_a_packet(mut stream: TcpStream) {
    let mut bytes = b"SSH-2.0-slow\r\n\0\0\x70\0\x0a\x14".to_vec();
    while stream.write_all(&bytes).is_ok() {
        bytes = vec![0];
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn flood(mut stream: TcpStream) {
    while stream.write_all(&[b'x'; 4096]).is_ok() {}
}

/// The last word of a call, and when it came.
fn last(wire: &Wire, target: &Target, until: Duration) -> (Option<Said>, Duration) {
    let begun = Instant::now();
    let word = runtime().block_on(async {
        let mut call = wire.call(target, "status".to_owned(), begun + until, false);
        let mut last = None;
        while let Some(said) = call.next().await {
            last = Some(said);
        }
        last
    });
    (word, begun.elapsed())
}

fn target(address: SocketAddr) -> Target {
    let host_key = ssh_key::PublicKey::from_openssh(&key(HOST_KEY).1).unwrap();
    Target { address, user: me(), host_key, key_hint: "verbs" }
}

#[test]
fn whatever_a_peer_does_a_call_ends_by_its_deadline_and_its_thread_soon_after() {
    // A listener whose queue is full drops what knocks: no answer at all.
    let full = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let hole = full.local_addr().unwrap();
    let _queued: Vec<_> = (0..4).map(|_| TcpStream::connect_timeout(&hole, Duration::from_millis(200))).collect();
    let wire = Wire::new("/nonexistent/agent.sock".into());
    let peers = [
        ("silent", peer(silent)),
        ("drip", peer(drip)),
        ("drip of a packet", peer(drip_of_a_packet)),
        ("flood", peer(flood)),
        ("black hole", hole),
    ];
    std::thread::scope(|scope| {
        for (name, address) in peers {
            let wire = &wire;
            scope.spawn(move || {
                let (word, took) = last(wire, &target(address), Duration::from_secs(2));
                assert!(matches!(word, Some(Said::Failed(_))) && took < Duration::from_secs(20), "{name}: {word:?} after {took:?}");
            });
        }
    });
    let end = Instant::now() + Duration::from_secs(15);
    while wire.sessions() > 0 {
        assert!(Instant::now() < end, "{} sessions hang", wire.sessions());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn an_ssh_agent_that_never_answers_holds_no_call_and_no_more_than_so_many_threads() {
    let sshd = Sshd::playing(&[("play", "true")]);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let _never_answers = UnixListener::bind(&socket).unwrap();
    let wire = Wire::new(socket);
    let there = target(SocketAddr::from(([127, 0, 0, 1], sshd.port)));
    let (word, took) = last(&wire, &there, Duration::from_secs(2));
    // What never logged in has sent nothing.
    assert!(matches!(word, Some(Said::Failed(Failure::Unreachable(_)))) && took < Duration::from_secs(20), "{word:?} after {took:?}");
    let calls: Vec<_> = (0..100).map(|_| wire.call(&there, "status".to_owned(), Instant::now() + Duration::from_secs(60), false)).collect();
    assert!(wire.sessions() <= 64, "{}", wire.sessions());
    let last = calls.into_iter().last().map(|mut call| runtime().block_on(async move { call.next().await }));
    assert!(matches!(last, Some(Some(Said::Failed(Failure::Unreachable(_))))), "{last:?}");
}
