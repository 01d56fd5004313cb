//! The agent's image and the profile that it is shipped with, under a real runtime: both containers do their work on the lab's VM, and each
//! thing that whoever took one over can't do is tried; in a profile that is looser in that one thing the same try has to succeed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)] // a scenario fails by panicking

#[path = "image/claims.rs"]
mod claims;
#[path = "image/container.rs"]
mod container;
#[path = "agent/desk.rs"]
#[allow(dead_code)] // each scenario file uses its part
mod desk;
#[path = "agent/keyholder.rs"]
mod keyholder;
#[path = "image/page.rs"]
mod page;

use std::fs;
use std::net::UdpSocket;
use std::time::Duration;

use claims::{CLAIMS, seen};
use container::{GROUP, KEYHOLDER, both, lay_out, pack, taken, to_its_end};
use keyholder::{holds, seed};
use lab::host::write;
use lab::installed::prepare;
use lab::lab::{Scenario, run_scenarios};
use lab::process::until;
use lab::{Lab, Result, wedge};
use serde_json::Value;

const SCENARIOS: &[Scenario] = &[
    ("when_the_image_is_packed_twice_then_the_bytes_are_the_same_and_every_digest_fits", packed),
    ("when_both_containers_run_as_shipped_then_the_page_cycles_the_vm_and_names_are_resolved", work),
    ("when_the_profile_is_loosened_in_one_thing_then_that_promise_is_seen_broken", promises),
    ("when_a_container_is_taken_then_the_keyholders_memory_and_socket_are_out_of_reach", apart),
];

fn main() {
    run_scenarios(SCENARIOS, |lab| prepare(lab).and_then(|()| lay_out(lab)))
}

fn packed(_: &Lab) -> Result<()> {
    let (first, second) = (pack("/run/lab/first")?, pack("/run/lab/second")?);
    let (one, two) = (fs::read(&first).unwrap(), fs::read(&second).unwrap());
    assert!(one == two, "{} and {} bytes, not the same ones", one.len(), two.len());
    let layout = "/run/lab/layout";
    fs::create_dir_all(layout).unwrap();
    lab::process::must("tar", ["-xf", &first, "-C", layout])?;
    let json = |path: &str| -> Value { serde_json::from_slice(&fs::read(format!("{layout}/{path}")).unwrap()).unwrap() };
    let mut reached = 0;
    let mut blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
        let path = format!("blobs/sha256/{digest}");
        let sum = lab::process::must("sha256sum", [format!("{layout}/{path}")]).unwrap().text();
        assert!(sum.starts_with(&digest), "{path} is {sum}");
        assert_eq!(fs::metadata(format!("{layout}/{path}")).unwrap().len(), descriptor["size"].as_u64().unwrap());
        reached += 1;
        path
    };
    assert_eq!(json("oci-layout")["imageLayoutVersion"], "1.0.0");
    let manifest = json(&blob(&json("index.json")["manifests"][0]));
    let config = json(&blob(&manifest["config"]));
    let layer = blob(&manifest["layers"][0]);
    assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"], "the layer is not compressed");
    assert_eq!(
        (config["config"]["User"].as_str(), reached),
        (Some("8102:8100"), fs::read_dir(format!("{layout}/blobs/sha256")).unwrap().count())
    );
    let names = lab::process::must("tar", ["-tvf", &format!("{layout}/{layer}")])?.text();
    let programs: Vec<&str> = names.lines().filter(|line| line.starts_with("-rwx")).collect();
    assert!(programs.len() == 1 && programs[0].ends_with("./breakglass"), "{names}");
    assert!(names.lines().all(|line| line.contains(" 0/0 ") && !line.contains("s ") && line.contains("2026-")), "{names}");
    Ok(())
}

/// Answers every question about a name with 127.0.0.1, as the cluster's DNS would with its own.
fn resolver() {
    let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
    write("/etc/resolv.conf", "nameserver 127.0.0.1\n", 0o644).unwrap();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((n, from)) = socket.recv_from(&mut question) {
            let mut end = 12;
            while question[end] != 0 {
                end += usize::from(question[end]) + 1;
            }
            let (kind, asked) = (question[end + 2], &question[..(end + 5).min(n)]);
            let mut answer = asked.to_vec();
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            answer[6..12].copy_from_slice(&[0, u8::from(kind == 1), 0, 0, 0, 0]);
            if kind == 1 {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
            }
            let _gone = socket.send_to(&answer, from);
        }
    });
}

fn work(lab: &Lab) -> Result<()> {
    let vm = lab.fresh()?;
    resolver();
    let hook = desk::Hook::listen_at("127.0.0.1:8199").0;
    let (keys, server) = both()?;
    // The page, and a cycle by its button, as a machine presses it.
    for path in ["/healthz", "/readyz"] {
        assert_eq!(page::get(path)?.0, 200, "{path}: {}", server.log());
    }
    // It asks the host by itself, through the keyholder.
    until("a page that shows a healthy VM", Duration::from_secs(60), || {
        std::thread::sleep(Duration::from_secs(1));
        page::get("/").ok().filter(|(status, home)| *status == 200 && home.contains("Looks healthy"))
    })?;
    let before = vm.pid();
    let end = page::cycle()?;
    assert_eq!((&end["outcome"], &end["proved"]), (&"done".into(), &true.into()), "{end} {}", server.log());
    assert!(vm.pid().is_some() && vm.pid() != before, "a fresh QEMU process: {end}");
    // The cycle ended with QEMU's start: the guest still boots.
    vm.wait_for_ssh(Duration::from_secs(120))?;
    // The same program once more in the same container, over the same socket.
    let doctor = server.exec(&["/breakglass", "doctor", "--config", "/etc/breakglass/server.toml"])?;
    assert_eq!(doctor.status, 0, "{}{}", doctor.text(), String::from_utf8_lossy(&doctor.stderr));
    assert!(doctor.text().contains("ok    devvm: Its sshd answers, and sudo works."), "{}", doctor.text());
    // The watch finds its webhook by name, inside an image without a library or a resolver's configuration of its own.
    let stopped = wedge::qemu_stopped(vm)?;
    let told = until("the webhook", Duration::from_secs(120), || hook.told("worse"));
    drop(stopped);
    assert!(told.is_ok(), "{told:?} {}", server.log());
    assert!(keys.log().matches("\"signed\"").count() >= 3, "{}", keys.log());
    Ok(())
}

fn promises(_: &Lab) -> Result<()> {
    let _keys = container::keyholder()?;
    let mut wrong = Vec::new();
    for claim in CLAIMS {
        let (tight, loose) = (seen(claim, false)?, seen(claim, true)?);
        match ((claim.kept)(&tight), (claim.kept)(&loose)) {
            (true, false) => println!("{}: {}, and seen broken where it is not", claim.of, claim.what),
            (kept, also) => wrong.push(format!("{}: {}: kept as shipped: {kept}, when loosened: {also}", claim.of, claim.what)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn apart(lab: &Lab) -> Result<()> {
    lab.fresh()?;
    let (keys, server) = both()?;
    page::cycle()?;
    for key in [lab.host.key("agent")?, lab.host.inside.image.key()] {
        let seed = seed(&fs::read_to_string(key).unwrap());
        assert!(holds(keys.pid(), &seed), "this way of looking finds a key where it is");
        assert!(!holds(server.pid(), &seed), "the server has a key in its memory");
    }
    // Nobody's process is seen from the server's container. Were it seen, its memory would still be closed, but to root with all rights.
    let memory = |loosen: &dyn Fn(&mut Value)| -> Result<Value> {
        let mut config = taken("server", &["look"]);
        config["linux"]["namespaces"].as_array_mut().unwrap().retain(|one| one["type"] != "pid");
        loosen(&mut config);
        let end = to_its_end("stranger", config)?;
        let said: Value = serde_json::from_slice(&end.stdout).unwrap_or_else(|_| panic!("{end:?}"));
        assert!(said["others"].as_array().unwrap().contains(&keys.pid().into()), "it is seen: {said}");
        Ok(said["memory"].as_array().unwrap().contains(&keys.pid().into()).into())
    };
    assert_eq!(memory(&|_| ())?, false, "as another user");
    assert_eq!(memory(&|config| config["process"]["user"]["uid"] = KEYHOLDER.into())?, false, "as its own user");
    let all = |config: &mut Value| {
        config["process"]["user"] = serde_json::json!({ "uid": 0, "gid": 0 });
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = serde_json::json!(["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"]);
        }
    };
    assert_eq!(memory(&all)?, true, "as root this way of looking opens it");

    // The socket is for the server's container alone: not for another user and group, not for a container that does not have its folder.
    let connects = |change: &dyn Fn(&mut Value)| -> Result<Value> {
        let mut config = taken("server", &["look"]);
        change(&mut config);
        let end = to_its_end("stranger", config)?;
        Ok(serde_json::from_slice::<Value>(&end.stdout).unwrap_or_else(|_| panic!("{end:?}"))["socket"].clone())
    };
    assert_eq!(connects(&|_| ())?, true, "the server's own user in the server's own container");
    assert_eq!(connects(&|config| config["process"]["user"] = serde_json::json!({ "uid": 8109, "gid": 8109 }))?, false, "another");
    assert_eq!(connects(&|config| config["process"]["user"] = serde_json::json!({ "uid": 8109, "gid": GROUP }))?, true, "of the group");
    let without = |config: &mut Value| config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/run/keyholder");
    assert_eq!(connects(&without)?, false, "without the folder");
    Ok(())
}
