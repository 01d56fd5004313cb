//! The keyholder as its users and its enemies meet it: the real binary, OpenSSH's own `ssh-add` and `ssh-keygen`, and raw bytes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]

#[path = "support/keyholder.rs"]
mod support;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Keyholder, fingerprint, key};

const CONFIG: &str = "[keyholder]\nsocket = \"DIR/agent.sock\"\nkey_files = [\"DIR/host\", \"DIR/devvm\"]\n";

fn two_keys(through: &[&str]) -> Keyholder {
    Keyholder::start(CONFIG, &[("host", &key(1).0), ("devvm", &key(2).0)], through).ready()
}

/// The lines of a private key in the middle: what may stand nowhere.
fn middles() -> Vec<String> {
    [1, 2].iter().flat_map(|seed| key(*seed).0.lines().skip(1).take(4).map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn openssh_lists_the_keys_and_can_do_nothing_else() {
    let mut holder = two_keys(&[]);
    let listed = holder.listed();
    assert!(listed.contains(&fingerprint(1)) && listed.contains(&fingerprint(2)) && listed.lines().count() == 2, "{listed}");
    assert_eq!(holder.socket().metadata().unwrap().permissions().mode() & 0o777, 0o600);

    std::fs::write(holder.path("other"), key(3).0).unwrap();
    std::fs::set_permissions(holder.path("other"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(holder.path("host.pub"), key(1).1).unwrap();
    std::fs::write(holder.path("text"), "vmid").unwrap();
    let (other, public, text) = (holder.path("other"), holder.path("host.pub"), holder.path("text"));
    let (other, public, text) = (other.to_str().unwrap(), public.to_str().unwrap(), text.to_str().unwrap());
    for (program, arguments, logged) in [
        ("ssh-add", &[other][..], "to add a key"),
        ("ssh-add", &["-t", "60", other], "to add a key"),
        ("ssh-add", &["-D"], "to remove keys"),
        ("ssh-add", &["-d", public], "to remove keys"),
        ("ssh-add", &["-T", public], "bytes that are not a login with this key"),
        ("ssh-keygen", &["-Y", "sign", "-n", "pve-verb-grant", "-f", public, text], "a signature for \\\"pve-verb-grant\\\""),
    ] {
        let before = holder.log();
        let end = holder.client(program, arguments);
        assert!(!end.status.success(), "{program} {arguments:?}: {end:?}");
        assert!(holder.log()[before.len()..].contains(logged), "{program} {arguments:?}: {}", &holder.log()[before.len()..]);
    }
    assert_eq!(holder.listed(), listed);
    assert_eq!(holder.end(), 0);
    assert!(!holder.socket().exists());
    assert!(middles().iter().all(|line| !holder.log().contains(line)), "a key stands in the log");
}

#[test]
fn a_frame_that_is_huge_or_slow_ends_its_caller_and_costs_nothing() {
    let holder = two_keys(&[]);
    let mut huge = UnixStream::connect(holder.socket()).unwrap();
    huge.write_all(&u32::MAX.to_be_bytes()).unwrap();
    let _it_may_be_closed = huge.write_all(&[13; 4096]);
    assert_eq!(huge.read(&mut [0; 16]).unwrap_or(0), 0, "no answer to 4 GiB");

    let mut slow = UnixStream::connect(holder.socket()).unwrap();
    let begun = Instant::now();
    slow.write_all(&16_000_u32.to_be_bytes()).unwrap();
    while slow.write_all(&[13]).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(20), "a slow caller is still served");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(holder.listed().contains(&fingerprint(1)));
}

#[test]
fn many_callers_are_bounded_and_the_newest_is_served() {
    let holder = two_keys(&[]);
    let crowd = || -> Vec<UnixStream> {
        let caller = |_| {
            let mut caller = UnixStream::connect(holder.socket()).unwrap();
            let _refused_by_now = caller.write_all(&[&16_000_u32.to_be_bytes()[..], &[13; 8000]].concat());
            caller
        };
        (0..300).map(caller).collect()
    };
    // Whom it lets go is gone a moment later.
    let few = || {
        let open = || std::fs::read_dir(format!("/proc/{}/fd", holder.pid())).unwrap().count();
        let until = Instant::now() + Duration::from_secs(2);
        while open() >= 60 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        open() < 60
    };
    // Before the crowd's own time is over, which is 5 s. A machine that is busy for that long shows nothing: then once more.
    let prompt = (0..5).any(|_| {
        let (_crowd, begun) = (crowd(), Instant::now());
        assert!(holder.listed().contains(&fingerprint(2)));
        let prompt = begun.elapsed() < Duration::from_secs(3) && few();
        if prompt {
            assert!(holder.resident() < 30 * 1024, "{} KiB", holder.resident());
        }
        prompt
    });
    assert!(prompt, "the newest waits for those before it, or a crowd of 300 keeps its descriptors");
}

#[test]
fn garbage_is_refused_and_never_ends_it() {
    let holder = two_keys(&[]);
    let good = [&[0, 0, 0, 1][..], &[11]].concat();
    for kind in 0..=255_u8 {
        for body in [&[][..], &[0; 40], &[255; 40], &[0, 0, 0, 200, 1, 2, 3]] {
            let mut caller = UnixStream::connect(holder.socket()).unwrap();
            caller.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            let length = u32::try_from(body.len() + 1).unwrap().to_be_bytes();
            caller.write_all(&[&length[..], &[kind], body].concat()).unwrap();
            let mut answer = [0; 5];
            caller.read_exact(&mut answer).unwrap();
            assert_eq!(answer[4], if kind == 11 && body.is_empty() { 12 } else { 5 }, "{kind} {body:?}");
        }
    }
    let mut caller = UnixStream::connect(holder.socket()).unwrap();
    caller.write_all(&good).unwrap();
    caller.read_exact(&mut [0; 5]).unwrap();
}

#[test]
fn its_memory_is_closed_to_its_own_user_and_its_descriptors_too() {
    // As an account without rights: root may read everything, and is not defended against.
    let root = rustix::process::geteuid().is_root();
    let through: &[&str] = if root { &["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"] } else { &[] };
    let holder = two_keys(through);
    let run = |program: &str, arguments: &[&str]| {
        let words = [through, &[program], arguments].concat();
        Command::new(words[0]).args(&words[1..]).output().unwrap()
    };
    let mut other = Command::new(if root { "setpriv" } else { "sleep" });
    if root {
        other.args(&through[1..]).arg("sleep");
    }
    let mut other = other.arg("60").spawn().unwrap();
    // Until then it is setpriv, and root's.
    let comm = format!("/proc/{}/comm", other.id());
    holder.until("the other program", 20, |_| std::fs::read_to_string(&comm).unwrap() == "sleep\n");
    for file in ["mem", "environ", "maps"] {
        let look = |pid: u32| run("dd", &[&format!("if=/proc/{pid}/{file}"), "count=0", "status=none"]).status.success();
        assert!(look(other.id()), "this test can see nothing: {file}");
        assert!(!look(holder.pid()), "{file} of the keyholder can be opened");
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", holder.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert!(core.split_whitespace().nth(4) == Some("0"), "{core}");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn its_memory_is_locked_where_the_machine_allows_it_and_otherwise_it_says_so() {
    let holder = two_keys(&[]);
    // It says so in a line of its own, after the one with which it begins to serve.
    holder.until("its word", 20, |k| k.log().contains("\"memory_locked\":true") || k.log().contains("memory is not locked"));
    let status = std::fs::read_to_string(format!("/proc/{}/status", holder.pid())).unwrap();
    let locked = status.lines().find(|line| line.starts_with("VmLck:")).unwrap();
    let none = locked.split_whitespace().nth(1) == Some("0");
    assert_eq!(none, holder.log().contains("memory is not locked"), "{locked}\n{}", holder.log());
}

#[test]
fn a_socket_in_use_is_left_alone_and_a_dead_one_replaced() {
    let mut first = two_keys(&[]);
    let config = CONFIG.replace("DIR/agent.sock", first.socket().to_str().unwrap());
    let files = [("host", key(1).0), ("devvm", key(2).0)];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let mut second = Keyholder::start(&config, &files, &[]);
    assert_eq!(second.ended(), 1);
    assert!(second.log().contains("a running process serves it"), "{}", second.log());
    assert!(first.listed().contains(&fingerprint(1)));
    // Killed without a chance to tidy up.
    let pid = rustix::process::Pid::from_raw(i32::try_from(first.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let _signalled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| first.ended()));
    let _third = Keyholder::start(&config, &files, &[]);
    first.until("the third to serve", 30, |k| k.listed().contains(&fingerprint(2)));
}

#[test]
fn a_key_that_is_none_ends_it_in_two_sentences_without_a_byte_of_it() {
    let damaged = key(1).0.replacen('b', "c", 9);
    let mut holder = Keyholder::start(CONFIG, &[("host", &damaged), ("devvm", &key(2).0)], &[]);
    assert_eq!(holder.ended(), 1);
    let said = holder.log();
    assert!(said.contains("host is not an OpenSSH private key. Make one"), "{said}");
    assert!(
        middles()
            .iter()
            .chain(damaged.lines().skip(1).map(str::to_owned).collect::<Vec<_>>().iter())
            .all(|l| l.starts_with('-') || !said.contains(l)),
        "{said}"
    );
}

/// By construction: no other part of the agent can come to hold a key. What reads one is in keyholder/ alone.
#[test]
fn only_the_keyholder_s_files_know_of_private_keys() {
    let mut seen = 0;
    let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !path.ends_with("keyholder") {
                    folders.push(path);
                }
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let code = text.split("#[cfg(test)]").next().unwrap();
            for word in ["PrivateKey", "SigningKey", "Keypair", "key_files", "userauth_pubkey", "x-vault-token", "jwt_file"] {
                // The keyholder's own, and the replay's, which makes a key to sign the receipts of a host that is none.
                let own = path.ends_with("keyholder.rs") || (path.ends_with("evals/world.rs") && matches!(word, "PrivateKey" | "Keypair"));
                assert!(own || !code.contains(word), "{} knows of {word}", path.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 8, "{seen} files");
}
