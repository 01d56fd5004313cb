//! What the profile promises about whoever is inside: each promise with the look that shows it, and a profile that is looser in this one
//! thing, in which the same look has to see it broken.

use serde_json::{Value, json};

use crate::container::{KEYHOLDER, SERVER, taken, to_its_end};

/// What a stranger in a container said, and how that ended.
pub(crate) struct Seen {
    pub(crate) status: i32,
    pub(crate) said: Value,
}

/// One promise.
pub(crate) struct Claim {
    pub(crate) what: &'static str,
    /// The container.
    pub(crate) of: &'static str,
    /// What the stranger does.
    pub(crate) tries: &'static [&'static str],
    /// Whether the promise is kept.
    pub(crate) kept: fn(&Seen) -> bool,
    /// Loosens the profile in this.
    pub(crate) loosen: fn(&mut Value),
}

/// 128 + SIGSYS: seccomp's end of a process.
const KILLED: i32 = 159;
const ENOENT: i64 = 2;
const EACCES: i64 = 13;
const ENOSYS: i64 = 38;

fn killed(seen: &Seen) -> bool {
    seen.status == KILLED && seen.said.is_null()
}

fn without_seccomp(config: &mut Value) {
    config["linux"].as_object_mut().unwrap().remove("seccomp");
}

/// The mount at this place.
fn mounted<'a>(config: &'a mut Value, place: &str) -> &'a mut Value {
    config["mounts"].as_array_mut().unwrap().iter_mut().find(|mount| mount["destination"] == place).unwrap()
}

/// Takes an option away from the mount at this place, and puts another one there.
fn option(config: &mut Value, place: &str, from: &str, to: &str) {
    let options = mounted(config, place)["options"].as_array_mut().unwrap();
    assert!(options.iter().any(|option| option == from), "{place} has no {from}");
    options.retain(|option| option != from);
    options.push(to.into());
}

/// Every word of `/proc/self/status` that says what it may do is zero.
fn powerless(seen: &Seen) -> bool {
    ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].iter().all(|set| seen.said["status"][set] == "0000000000000000")
}

/// The options of every mount but the root and the stranger's own.
fn mounts(seen: &Seen) -> impl Iterator<Item = (&str, Vec<&str>)> {
    let all = seen.said["mounts"].as_array().unwrap().iter();
    let all = all.map(|mount| (mount[0].as_str().unwrap(), mount[1].as_str().unwrap().split(',').collect()));
    all.filter(|(place, _)| !["/", "/probe"].contains(place))
}

pub(crate) const CLAIMS: &[Claim] = &[
    Claim {
        what: "the server writes nowhere but in its tmpfs",
        of: "server",
        tries: &["look"],
        kept: |seen| seen.said["writable"] == json!(["/var/lib/breakglass"]) && seen.said["folders"].as_u64() > Some(8),
        loosen: |config| {
            config["root"]["readonly"] = false.into();
            config["process"]["user"] = json!({ "uid": 0, "gid": 0 });
        },
    },
    Claim {
        what: "the keyholder writes nowhere but beside its socket",
        of: "keyholder",
        tries: &["look"],
        kept: |seen| seen.said["writable"] == json!(["/run/keyholder"]),
        loosen: |config| {
            let open = json!({ "destination": "/run/secrets/vault", "type": "tmpfs", "source": "tmpfs", "options": ["uid=8101"] });
            config["mounts"].as_array_mut().unwrap().push(open);
        },
    },
    Claim {
        what: "the server can't put another socket in the place of the keyholder's",
        of: "server",
        tries: &["look"],
        kept: |seen| !seen.said["writable"].as_array().unwrap().contains(&"/run/keyholder".into()),
        // Either of the two that hold it is enough: the mount, and the folder's owner.
        loosen: |config| {
            option(config, "/run/keyholder", "ro", "rw");
            config["process"]["user"]["uid"] = KEYHOLDER.into();
        },
    },
    Claim {
        what: "there is no program but the one, so no shell",
        of: "server",
        tries: &["look"],
        kept: |seen| seen.said["programs"] == json!(["/breakglass", "/probe"]),
        loosen: |config| {
            let busybox = json!({ "destination": "/busybox", "type": "bind", "source": "/bin/busybox", "options": ["bind", "ro"] });
            config["mounts"].as_array_mut().unwrap().push(busybox);
        },
    },
    Claim {
        what: "a shell can't be started",
        of: "server",
        tries: &["call", "shell"],
        kept: |seen| seen.said["errno"] == ENOENT,
        loosen: |config| {
            let busybox = json!({ "destination": "/bin/sh", "type": "bind", "source": "/bin/busybox", "options": ["bind", "ro"] });
            config["mounts"].as_array_mut().unwrap().push(busybox);
        },
    },
    Claim {
        what: "what was written inside can't be started",
        of: "server",
        tries: &["call", "exec"],
        kept: |seen| seen.said["errno"] == EACCES,
        loosen: |config| option(config, "/var/lib/breakglass", "noexec", "exec"),
    },
    Claim {
        what: "the server has no capability, in no set",
        of: "server",
        tries: &["look"],
        kept: powerless,
        loosen: |config| config["process"]["capabilities"]["bounding"] = json!(["CAP_NET_RAW"]),
    },
    Claim {
        what: "the keyholder has no capability, in no set",
        of: "keyholder",
        tries: &["look"],
        kept: powerless,
        loosen: |config| config["process"]["capabilities"]["bounding"] = json!(["CAP_SYS_PTRACE"]),
    },
    Claim {
        what: "nothing that is started can have more rights",
        of: "server",
        tries: &["look"],
        kept: |seen| seen.said["status"]["NoNewPrivs"] == "1",
        // Without it runc would load the filter before its own last steps, which the filter does not allow.
        loosen: |config| {
            config["process"]["noNewPrivileges"] = false.into();
            without_seccomp(config);
        },
    },
    Claim {
        what: "neither program is root, and they are two users",
        of: "server",
        tries: &["look"],
        kept: |seen| seen.said["status"]["Uid"] == format!("{SERVER}\t{SERVER}\t{SERVER}\t{SERVER}"),
        loosen: |config| config["process"]["user"]["uid"] = KEYHOLDER.into(),
    },
    Claim {
        what: "a seccomp filter is there",
        of: "keyholder",
        tries: &["look"],
        kept: |seen| seen.said["status"]["Seccomp"] == "2",
        loosen: without_seccomp,
    },
    Claim { what: "unshare kills", of: "server", tries: &["call", "unshare"], kept: killed, loosen: without_seccomp },
    Claim { what: "mount kills", of: "server", tries: &["call", "mount"], kept: killed, loosen: without_seccomp },
    Claim { what: "chroot kills", of: "server", tries: &["call", "chroot"], kept: killed, loosen: without_seccomp },
    Claim { what: "ptrace kills", of: "server", tries: &["call", "ptrace"], kept: killed, loosen: without_seccomp },
    Claim { what: "a second process kills", of: "server", tries: &["call", "fork"], kept: killed, loosen: without_seccomp },
    Claim { what: "unshare kills the keyholder", of: "keyholder", tries: &["call", "unshare"], kept: killed, loosen: without_seccomp },
    Claim {
        what: "a socket of another family is not there",
        of: "server",
        tries: &["call", "netlink"],
        kept: |seen| seen.said["errno"] == ENOSYS,
        loosen: without_seccomp,
    },
    Claim {
        what: "a call that nobody needs is not there",
        of: "server",
        tries: &["call", "memfd"],
        kept: |seen| seen.said["errno"] == ENOSYS,
        loosen: without_seccomp,
    },
    Claim {
        what: "nobody else's process is seen",
        of: "server",
        tries: &["look"],
        kept: |seen| seen.said["others"] == json!([]),
        loosen: |config| config["linux"]["namespaces"].as_array_mut().unwrap().retain(|one| one["type"] != "pid"),
    },
    Claim {
        what: "what the kernel tells of itself is masked",
        of: "server",
        tries: &["look"],
        kept: |seen| seen.said["told"] == 0,
        loosen: |config| config["linux"]["maskedPaths"] = json!([]),
    },
    Claim {
        what: "the kernel's settings are read-only",
        of: "server",
        tries: &["look"],
        kept: |seen| mounts(seen).any(|(place, options)| place == "/proc/sys" && options.contains(&"ro")),
        loosen: |config| config["linux"]["readonlyPaths"] = json!([]),
    },
    Claim {
        what: "no mount honours a set-uid bit",
        of: "server",
        tries: &["look"],
        kept: |seen| mounts(seen).all(|(_, options)| options.contains(&"nosuid") || options.contains(&"ro")),
        loosen: |config| option(config, "/var/lib/breakglass", "nosuid", "suid"),
    },
    Claim {
        what: "there is no core file",
        of: "keyholder",
        tries: &["look"],
        kept: |seen| seen.said["core"].as_str().unwrap().split_whitespace().nth(5) == Some("0"),
        loosen: |config| config["process"]["rlimits"] = json!([]),
    },
];

/// Does what the claim tries in this configuration.
pub(crate) fn seen(claim: &Claim, loosened: bool) -> lab::Result<Seen> {
    let mut config = taken(claim.of, claim.tries);
    if loosened {
        (claim.loosen)(&mut config);
    }
    let end = to_its_end("stranger", config)?;
    let said = serde_json::from_slice(&end.stdout).unwrap_or_default();
    let words = String::from_utf8_lossy(&end.stderr);
    assert!(!words.contains("level=error"), "runc could not start it, {} ({loosened}): {words}", claim.what);
    Ok(Seen { status: end.status, said })
}
